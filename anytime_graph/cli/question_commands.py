"""The commands over many questions: `batch`, `audit`, `warm-up` and `forget`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from anytime_graph.audit import audit, audit_questions
from anytime_graph.batch import Answered, Progress, batch
from anytime_graph.budget import Budget, counted
from anytime_graph.checkpoints.export import line
from anytime_graph.checkpoints.memory import LedgerMemory
from anytime_graph.cli import display, ledger_commands
from anytime_graph.cli import options as option
from anytime_graph.constraints import Constraints
from anytime_graph.graph import create_anytime_graph
from anytime_graph.text import harmless
from anytime_graph.warm_up import Warmed, warm_up

_NEW_COMPARISONS_ONLY = ("model", "answer", "judge", "rubric", "price", *option.AMOUNTS)
_ALL_EARLIER = "no call was made: these are answers of earlier runs; another --name asks anew"
_INTERRUPTED_NOTE = "interrupted: what was cut in flight counts in full; the same command continues"


@click.command("batch", cls=option.Command)
@click.argument("file", type=option.QUESTIONS)
@option.database
@option.making
@option.keyed
@option.budgeted(100_000)
@click.option(
    "--name",
    default="batch",
    show_default=True,
    help="Which batch in --db this is. What its questions have cost before counts; new ones begin at 0.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Questions that are worked on at once.",
)
def batch_command(file: str, db: str, name: str, workers: int, **options: Any) -> None:
    """Answer the questions in FILE within one budget for all.

    FILE (- for standard input) has one question on each line, or JSON Lines with a "question", or with
    "messages" (roles and contents) for a conversation that ends in one; other fields are not read. A
    question that stands there twice is asked, and printed, once. Every question gets an answer first. The
    rest of the budget is spent where the next tokens promise most. The answers are printed as JSON Lines,
    in the order of FILE. If a question has no answer, or a scorer fails, the exit code is 1.

    Ctrl-C prints the best answers so far, with exit code 130. The same command continues, and buys
    nothing twice. A larger budget continues where it pays. For another model or strategy, give another
    --name. While it runs, the same command with the same --db, in another terminal or on another machine,
    works on the same questions.

    \b
    anytime-graph batch questions.jsonl --tokens 200000 > answers.jsonl
    anytime-graph batch sums.txt --check check.py:score --strategy best_of_n
    """
    quiet = not sys.stderr.isatty()
    with ledger_commands.errors_shown(False):
        keys = option.keys(options.pop("keys"))
        options["model"] = option.model_of(options)
        arguments = option.graph_arguments(options)
        asked = option.conversations(file, arguments["scorer"])
        budget = Budget(**(option.amounts(options) or {"tokens": 100_000}))
        with (
            ledger_commands.opened(db, new=True) as store,
            ledger_commands.stoppable() as stop,
            display.batch_progress(quiet) as progress,
        ):
            graph = create_anytime_graph(**arguments, budget=budget, ledger=store.ledger)
            app = graph.compile(checkpointer=store.saver).with_config(configurable=keys)
            before: list[int] = []

            def shown(now: Progress) -> None:
                before.append(now.spent["calls"])
                progress(now)

            done = batch(app, asked, budget, name=name, workers=workers, stop=stop, progress=shown)
    gains = [None if math.isinf(q.gain) else q.gain for q in done.questions]  # JSON has no infinity
    rows = [asdict(q) | {"gain": gain} for q, gain in zip(done.questions, gains, strict=True)]
    display.deliver("\n".join(map(line, rows)))
    display.batch_summary(done)
    if done.spent["calls"] == before[0] > 0:
        click.echo(_ALL_EARLIER, err=True)
    if stop.is_set():
        click.echo(_INTERRUPTED_NOTE, err=True)
        sys.exit(ledger_commands.INTERRUPTED)
    _refuse_unscored(done.questions)
    if any(q.answer is None for q in done.questions):
        sys.exit(1)


@click.command("audit", cls=option.Command)
@click.argument("thread", required=False)
@option.database
@click.option(
    "--questions",
    type=option.QUESTIONS,
    help="Buy new comparisons for the questions in this file: one on each line, or JSON Lines with a "
    '"question". The budget is for each question.',
)
@option.auditing
@option.keyed
@option.budgeted(8_000)
@ledger_commands.as_json_option
def audit_command(
    thread: str | None, db: str, questions: str | None, as_json: bool, **options: Any
) -> None:
    """Measure whether a model can judge answers.

    A judge compares answers of its own model, and small models do that no better than chance. The
    audit counts how often the judge agrees with a scorer (--check, or constraints), how often it
    agrees with itself when the two answers are swapped, and how often it prefers the longer answer.
    Each figure has a 95% interval. A sentence says whether to trust the judge.

    The audit reads the comparisons in the ledger, of THREAD or of all threads, at no cost. With
    --questions it buys new ones: it answers each question several times, and compares answers with
    different scores. Ctrl-C keeps what was bought, with exit code 130. The same command continues.

    \b
    anytime-graph audit rivers --check check.py:score
    anytime-graph audit --questions some.txt --check check.py:score \\
        --model openai:gpt-4.1-mini --judge openai:gpt-4.1
    """
    if questions is None:
        if options["keys"]:
            raise click.UsageError("--key goes with --questions")
        for name in _NEW_COMPARISONS_ONLY:
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} goes with --questions")
    elif thread is not None:
        raise click.UsageError("give a THREAD or --questions, not both")
    quiet = as_json or not sys.stderr.isatty()
    with ledger_commands.errors_shown(as_json):
        scorer = option.scorer(options)
        if questions is None:
            with ledger_commands.opened(db) as store:
                if thread is not None:
                    ledger_commands.runs_of(store.ledger, thread)
                report = audit(store.ledger, thread, scorer)
            stopped = False
        else:
            if scorer is None:
                raise ValueError("--questions: a scorer is needed; give --check or a constraint")
            with (
                ledger_commands.opened(db, new=True) as store,
                ledger_commands.stoppable() as stop,
                display.progress("questions", quiet) as progress,
            ):
                report = audit_questions(
                    option.questions(questions, scorer),
                    option.model_of(options),
                    scorer,
                    Budget(**(option.amounts(options) or {"tokens": 8_000})),
                    store,
                    option.judge(options),
                    answer=options["answer"]
                    or ("whole" if isinstance(scorer, Constraints) else "tags"),
                    prices=option.prices(options["price"]),
                    progress=progress,
                    stop=stop,
                    keys=option.keys(options["keys"]),
                )
            stopped = stop.is_set()
    if as_json:
        click.echo(line(report.as_dict()))
    else:
        display.audited(report)
    if stopped:
        click.echo(_INTERRUPTED_NOTE, err=True)
        sys.exit(ledger_commands.INTERRUPTED)


@click.command("warm-up", cls=option.Command)
@click.argument("file", type=option.QUESTIONS)
@option.database
@option.warming
@option.keyed
@option.budgeted(4_000)
@ledger_commands.as_json_option
def warm_up_command(file: str, db: str, as_json: bool, **options: Any) -> None:
    """Fill the memory in --db from example questions in FILE.

    FILE has one question on each line, or JSON Lines with a "question". Each question is answered
    several times, within a budget of its own. The scorer (--check or constraints, otherwise the
    model itself) decides which answers are better. The resulting preference pairs are shown with
    similar later questions of the same --namespace: with `solve --memory`, or with memory=ledger
    in a program.

    Ctrl-C keeps what is done, with exit code 130. The same command continues, and pays nothing for
    questions that are finished.

    \b
    anytime-graph warm-up examples.txt --check check.py:score --namespace acme
    anytime-graph solve "Describe a fox." --db anytime.db --thread fox \\
        --memory --namespace acme
    """
    quiet = as_json or not sys.stderr.isatty()
    with ledger_commands.errors_shown(as_json):
        keys = option.keys(options.pop("keys"))
        options["strategy"] = options["strategy"] or "best_of_n"
        options["model"] = option.model_of(options)
        arguments = option.graph_arguments(options)
        texts = option.questions(file, arguments["scorer"])
        with (
            ledger_commands.opened(db, new=True) as store,
            ledger_commands.stoppable() as stop,
            display.progress("questions", quiet) as progress,
        ):
            summary = warm_up(
                texts,
                arguments.pop("scorer") or "judge",
                Budget(**(option.amounts(options) or {"tokens": 4_000})),
                **arguments,
                checkpoints=store,
                namespace=tuple(option.space(options["namespace"])),
                progress=progress,
                stop=stop,
                keys=keys,
            )
    if as_json:
        totals = {"pairs": summary.pairs, "left": summary.left, "spent": summary.spent}
        click.echo(line({**totals, "questions": [vars(q) for q in summary.questions]}))
    else:
        display.warmed(summary)
    if stop.is_set():
        click.echo(_INTERRUPTED_NOTE, err=True)
        sys.exit(ledger_commands.INTERRUPTED)
    _refuse_unscored(summary.questions)


def _refuse_unscored(questions: Iterable[Answered | Warmed]) -> None:
    """Raises ClickException if the scorer failed on questions, with what it raised."""
    faults = [q.error for q in questions if q.error and q.stop_reason == "scorer"]
    if faults:
        raise click.ClickException("; ".join(counted(map(harmless, faults))))


@click.command(cls=option.Command)
@option.database
@option.namespace
@click.option(
    "--older-than",
    type=option.DURATION,
    help="Delete only pairs older than this, as in 30d, 12h, 45min or 90s.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    metavar="N",
    help="Keep the newest N pairs of each namespace.",
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
def forget(
    db: str, namespace: str | None, older_than: float | None, keep: int | None, yes: bool
) -> None:
    """Delete preference pairs from the memory in --db.

    They are not shown to the model any more. Only the pairs of --namespace are deleted, or those of
    every namespace. With both --older-than and --keep, a pair is deleted that either of them would
    delete. What deletes all pairs (neither of them, --keep 0, --older-than 0s) asks first.
    Questions, answers and costs stay in the ledger; `rm` deletes those.

    \b
    anytime-graph forget --older-than 30d
    anytime-graph forget --namespace acme/ann --keep 100
    anytime-graph forget --namespace acme/ann --yes
    """
    with ledger_commands.errors_shown(False), ledger_commands.opened(db) as store:
        space = None if namespace is None else tuple(option.space(namespace))
        everything = older_than is None if keep is None else keep == 0
        if (everything or older_than == 0) and not yes:
            scope = "every namespace" if namespace is None else f"{namespace!r}"
            click.confirm(f"Forget all preference pairs of {scope}?", abort=True)
        deleted = LedgerMemory(store.ledger).forget(space, older_than=older_than, keep=keep)
    click.echo(f"forgot {deleted} preference pair{'' if deleted == 1 else 's'}")


COMMANDS = (batch_command, audit_command, warm_up_command, forget)
