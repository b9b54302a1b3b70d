"""The command line over many questions: the audit of a judge; what a memory learns and forgets."""

from __future__ import annotations

import sys
from typing import Any

import click

from anytime_graph.audit import audit as audit_ledger
from anytime_graph.audit import audit_questions
from anytime_graph.budget import DIMENSIONS, Budget
from anytime_graph.checkpoints import open_checkpoints
from anytime_graph.checkpoints.export import line
from anytime_graph.checkpoints.memory import LedgerMemory
from anytime_graph.cli import display, ledger_commands
from anytime_graph.cli import options as option
from anytime_graph.constraints import Constraints
from anytime_graph.interrupt import interruptible
from anytime_graph.models import default_model
from anytime_graph.warm_up import warm_up as fill

_FRESH = ("model", "answer", "judge", "rubric", "price", *DIMENSIONS)
_AGAIN = "interrupted; the same command goes on, and pays for nothing twice"


@click.command()
@click.argument("thread", required=False)
@option.database
@click.option(
    "--questions",
    type=click.Path(exists=True, dir_okay=False),
    help='Ask these: one on a line, or JSON Lines with a "question". The budget is for each.',
)
@option.auditing
@option.budgeted(8_000)
@ledger_commands.as_json_option
def audit(
    thread: str | None, db: str, questions: str | None, as_json: bool, **options: Any
) -> None:
    """Find out whether a model's judgement means anything.

    Without a scorer, a model compares its own answers, and small models do so no better than a coin.
    This counts how often the judge agrees with a scorer (--check, or constraints), with itself when
    the two answers change places, and with mere length, each with a 95% interval; and says in words
    whether to let it judge.

    Reads the comparisons that are in the ledger, of THREAD or of all, at no cost. With --questions
    it buys new ones: each question is answered a few times, and answers with different scores are
    compared. Ctrl-C keeps what was bought, and exits with 130; the same command goes on.

    \b
    anytime-graph audit rivers --check check.py:score
    anytime-graph audit --questions some.txt --words 20-40 --model openai:gpt-4.1-mini
    anytime-graph audit --questions some.txt --check check.py:score --judge openai:gpt-4.1
    """
    if questions is None:
        for name in _FRESH:
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --questions")
    elif thread is not None:
        raise click.UsageError("give a THREAD, or --questions, not both")
    quiet = as_json or not sys.stderr.isatty()
    with ledger_commands.told(as_json):
        rates = option.scorer(options)
        if questions is None:
            with ledger_commands.opened(db) as store:
                if thread is not None:
                    ledger_commands.runs_of(store.ledger, thread)
                found = audit_ledger(store.ledger, thread, rates)
            stopped = False
        else:
            if rates is None:
                raise ValueError("--questions: a scorer is needed: --check, or a constraint")
            with (
                open_checkpoints(db) as store,
                interruptible() as stop,
                display.progress("questions", quiet) as progress,
            ):
                found = audit_questions(
                    option.questions(questions, rates),
                    options["model"] or default_model(),
                    rates,
                    Budget(**(option.amounts(options) or {"tokens": 8_000})),
                    store,
                    option.judge(options),
                    answer=options["answer"]
                    or ("whole" if isinstance(rates, Constraints) else "tags"),
                    prices=option.prices(options["price"]),
                    progress=progress,
                    stop=stop,
                )
            stopped = stop.is_set()
    if as_json:
        click.echo(line(found.as_dict()))
    else:
        display.audited(found)
    if stopped:
        click.echo(_AGAIN, err=True)
        sys.exit(ledger_commands.INTERRUPTED)


@click.command("warm-up")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@option.database
@option.warming
@option.budgeted(4_000)
@ledger_commands.as_json_option
def warm_up(file: str, db: str, as_json: bool, **options: Any) -> None:
    """Fill the memory of --db with preference pairs, from the example questions in FILE.

    One question on a line, or JSON Lines with a "question". Each is answered a few times within the
    budget (it is for each), the scorer (--check, or constraints; else the model itself) says which
    answers were better, and later questions of the same --namespace that are alike are shown these
    pairs: `solve --memory --db ... --namespace ...`, or memory=ledger in a program.

    Ctrl-C keeps what is done, and exits with 130. The same command goes on, and pays nothing for
    questions that are over.

    \b
    anytime-graph warm-up examples.txt --check check.py:score --namespace acme/ann
    anytime-graph solve "Describe a fox." --db anytime.db --thread fox --memory --namespace acme/ann
    """
    quiet = as_json or not sys.stderr.isatty()
    with ledger_commands.told(as_json):
        options["strategy"] = options["strategy"] or "best_of_n"
        options["model"] = options["model"] or default_model()
        made = option.parts(options)
        asked = option.questions(file, made["scorer"])
        with (
            open_checkpoints(db) as store,
            interruptible() as stop,
            display.progress("questions", quiet) as progress,
        ):
            done = fill(
                asked,
                made.pop("scorer") or "judge",
                Budget(**(option.amounts(options) or {"tokens": 4_000})),
                **made,
                checkpoints=store,
                namespace=tuple(option.space(options["namespace"])),
                progress=progress,
                stop=stop,
            )
    if as_json:
        told = {"pairs": done.pairs, "left": done.left, "spent": done.spent}
        click.echo(line({**told, "questions": [vars(q) for q in done.questions]}))
    else:
        display.warmed(done)
    if stop.is_set():
        click.echo(_AGAIN, err=True)
        sys.exit(ledger_commands.INTERRUPTED)


@click.command()
@option.database
@option.namespace
@click.option(
    "--older-than", type=option.DURATION, help="Only pairs older than this: 30d, 12h, 45min, 90s."
)
@click.option(
    "--keep", type=click.IntRange(min=0), help="Keep the newest so many of each namespace."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(
    db: str, namespace: str | None, older_than: float | None, keep: int | None, yes: bool
) -> None:
    """Delete preference pairs from the memory of --db, so that they are shown no more.

    Of one --namespace, or of all. Without --older-than and --keep it deletes all of them, and asks
    before. Questions, answers and what they cost stay: `rm` deletes those.

    \b
    anytime-graph forget --older-than 30d
    anytime-graph forget --namespace acme/ann --keep 100
    anytime-graph forget --namespace acme/ann --yes
    """
    with ledger_commands.told(False), ledger_commands.opened(db) as store:
        space = None if namespace is None else tuple(option.space(namespace))
        if older_than is None and not keep and not yes:
            of = "every namespace" if namespace is None else f"{namespace!r}"
            click.confirm(f"Forget all preference pairs of {of}?", abort=True)
        gone = LedgerMemory(store.ledger).forget(space, older_than=older_than, keep=keep)
    click.echo(f"forgot {gone} preference pair{'' if gone == 1 else 's'}")


COMMANDS = (audit, warm_up, forget)
