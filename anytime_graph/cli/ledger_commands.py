"""The commands that read and change a ledger, such as `threads`, `show` and `export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import click
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from anytime_graph.budget import BudgetTooSmall, NoAnswer
from anytime_graph.checkpoints import (
    Checkpoints,
    Ledger,
    LedgerError,
    ThreadBusy,
    open_checkpoints,
)
from anytime_graph.checkpoints.export import FORMS, Row, line
from anytime_graph.checkpoints.target import is_address
from anytime_graph.cli import display, options
from anytime_graph.interrupt import StopSignal, interruptible
from anytime_graph.pages.thread import page, told
from anytime_graph.planning.profiles import Profile, expected_best, profile_of, save_profile
from anytime_graph.text import clipped, harmless, meant

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class _Early(NoAnswer):
    """Ctrl-C ended the run before any answer came."""


class Refused(click.ClickException):
    """Bad input that is no matter of usage, such as a missing key: told in one line."""

    exit_code = 2


@contextmanager
def opened(db: str, new: bool = False, **how: Any) -> Iterator[Checkpoints]:
    """The ledger and the checkpoints of --db. new: it may be made here. Whoever wrote a checkpoint, it makes only
    what LangGraph takes for safe. Raises Refused for what cannot be a ledger, or holds none."""
    try:
        safe = JsonPlusSerializer(allowed_msgpack_modules=None)
        opening = open_checkpoints(db, serde=safe, **how)
        if wrong := _unfit(db, new):
            raise ValueError(f"target={db!r}: {wrong}")
    except ValueError as error:
        raise Refused(harmless(options.in_options(str(error)))) from None
    try:
        with opening as store:
            yield store
    except (LedgerError, ImportError) as error:
        raise Refused(harmless(options.in_options(str(error)))) from None


def _unfit(db: str, new: bool) -> str | None:
    """Why this is no ledger; None if opening it will tell."""
    if is_address(db):
        return None
    file = Path(db)
    if file.is_dir():
        return f"this is a folder; name a file in it, as in {file / 'anytime.db'}"
    if file.exists() and not file.is_file():
        return "this is not a file; name another"
    if new or (file.is_file() and file.stat().st_size):
        return None
    there = "this file is empty" if file.exists() else "there is no such file"
    return f"{there}; name another, or fill it with `anytime-graph solve QUESTION --db FILE --thread NAME`"


@contextmanager
def stoppable() -> Iterator[StopSignal]:
    """Ctrl-C as a stop signal, within `errors_shown`, where a run without an answer that it ended is no
    error. What a scorer prints meanwhile is no answer: it goes to standard error."""
    with interruptible() as stop, redirect_stdout(sys.stderr):
        try:
            yield stop
        except NoAnswer as error:
            if stop.is_set():
                raise _Early(error.causes, error.spent) from None
            raise


@contextmanager
def errors_shown(as_json: bool) -> Iterator[None]:
    """Turn the library's errors into messages and exit codes."""
    try:
        yield
    except (BudgetTooSmall, LedgerError, ValueError, FileNotFoundError, ImportError) as error:
        raise Refused(harmless(options.in_options(str(error)))) from None
    except NoAnswer as error:
        if as_json:
            click.echo(line({"answer": None, "errors": error.causes, "spent": error.spent}))
        if isinstance(error, _Early):
            click.echo(
                f"interrupted before the first answer; spent: {display.spending(error.spent, {})}",
                err=True,
            )
            sys.exit(INTERRUPTED)
        raise click.ClickException(harmless(str(error))) from None
    except ThreadBusy as error:
        raise click.ClickException(harmless(str(error))) from None


def runs_of(ledger: Ledger, thread: str) -> list[dict[str, Any]]:
    """The runs of a thread. Raises ClickException if the ledger has no such thread."""
    runs = ledger.runs(thread)
    if not runs:
        instead = meant(thread, [row["thread"] for row in ledger.threads()])
        raise click.ClickException(
            f"there is no thread {thread!r} in this ledger; {instead}`anytime-graph threads` lists them"
        )
    return runs


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print only JSON.")


@click.command(cls=options.Command)
@options.database
@click.option(
    "--search",
    metavar="WORDS",
    help="List only threads with all these words in a question or an answer.",
)
@as_json_option
def threads(db: str, search: str | None, as_json: bool) -> None:
    """List the threads of a ledger with their last questions.

    The thread that changed last comes first.

    \b
    anytime-graph threads
    anytime-graph threads --search "river bend" --db postgresql://me@host/runs
    """
    with opened(db) as store:
        rows = [_summary(row) for row in store.ledger.threads()]
        if search is not None:
            matching = {hit["thread"] for hit in store.ledger.search(search)}
            rows = [row for row in rows if row["thread"] in matching]
    if as_json:
        click.echo(line(rows))
    elif rows:
        display.listing(rows)
    else:
        click.echo(
            "no threads" if search is None else f"no thread contains the words {search!r}", err=True
        )


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    spent = {name: row["spent"][name] for name in ("tokens", "usd", "calls")}
    names = ("thread", "question", "answer", "score", "runs", "running", "stop_reason", "changed")
    return {**{name: row[name] for name in names}, **spent}


@click.command("show", cls=options.Command)
@click.argument("thread")
@options.database
@as_json_option
@click.option(
    "--html",
    "page_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw all of it on one page, and write it to this file.",
)
def show_command(thread: str, db: str, as_json: bool, page_file: Path | None) -> None:
    """Show what happened on THREAD: calls, answers and costs.

    Every question of the thread is shown, oldest first, with its calls, answers and preference
    pairs, what was spent, and why it stopped. It works while another process runs the thread.
    The page of --html needs no network and holds everything, prompts and replies too.

    \b
    anytime-graph show rivers
    anytime-graph show rivers --html rivers.html
    """
    if as_json and page_file is not None:
        raise click.UsageError("choose one of --json and --html")
    if page_file is not None:
        _refuse_ledger(page_file, db)
    with opened(db) as store:
        runs_of(store.ledger, thread)
        story = told(store.ledger, thread)
    if page_file is not None:
        try:
            page_file.write_text(page(story), encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(page_file), error.strerror) from None
        click.echo(page_file)
    elif as_json:
        click.echo(line(story))
    else:
        display.story(**story, db=db)


def _refuse_running(ledger: Ledger, thread: str) -> None:
    if any(row["running"] for row in ledger.threads() if row["thread"] == thread):
        raise click.ClickException(f"thread {thread!r} is being run; stop its process first")


@click.command(cls=options.Command)
@click.argument("thread")
@options.database
def best(thread: str, db: str) -> None:
    """Print the best answer to the last question of THREAD.

    Nothing else is printed. While another process runs the thread, it is the best answer so far.
    Exit code 1: there is no answer yet.

    \b
    anytime-graph best rivers > answer.txt
    """
    with opened(db) as store:
        runs_of(store.ledger, thread)
        answer = store.ledger.best(thread)
    if answer is None:
        raise click.ClickException(f"thread {thread!r}: its last question has no answer yet")
    if answer["answer"] is None:
        raise click.ClickException(f'thread {thread!r}: answers were not kept (record="usage")')
    display.say(answer["answer"])


@click.command(cls=options.Command)
@click.argument("thread", required=False)
@options.database
@click.option(
    "--all", "everything", is_flag=True, help="Export every thread, the latest changed last."
)
@click.option(
    "--as",
    "form",
    type=options.Choice(list(FORMS)),
    required=True,
    help="What to export; see above.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="Write to this file.  [default: standard output]",
)
def export(thread: str | None, db: str, everything: bool, form: str, output: str) -> None:
    """Export answers, preference pairs or runs as JSON Lines.

    Name one THREAD, or give --all.

    \b
    dpo       preference pairs for TRL: prompt, chosen and rejected as text
    dpo-chat  the same as chat messages, with the conversation so far
    openai    preference pairs in the format of OpenAI's fine-tuning API
    answers   every answer, with its score and its feedback
    runs      every question, with its budget, spend and stop reason

    \b
    anytime-graph export --all --as dpo-chat -o pairs.jsonl
    """
    if everything == (thread is not None):
        raise click.UsageError("name one THREAD, or give --all")
    _refuse_ledger(output, db)
    with opened(db) as store:
        if thread is None:
            names = [row["thread"] for row in reversed(store.ledger.threads())]
        else:
            names = [runs_of(store.ledger, thread)[0]["thread"]]
        skipped = _written(chain.from_iterable(FORMS[form](store.ledger, n) for n in names), output)
    if skipped:
        pairs = display.many(skipped, "pair")
        click.echo(f'skipped {pairs} whose texts were not kept (record="usage")', err=True)


def _refuse_ledger(output: str | Path, db: str) -> None:
    with suppress(OSError):  # one of them is no file that there is
        if os.path.samefile(output, db):
            raise click.UsageError(
                f"{output}: that is the ledger, which would be lost; name another file"
            )


def _written(rows: Iterable[Row | None], output: str) -> int:
    """Write the rows; returns how many were None, and so could not be written."""
    skipped = 0
    try:
        opened_file = click.open_file(output, "w", encoding="utf-8")
    except OSError as error:
        raise click.FileError(output, error.strerror) from None
    with opened_file as file:
        for row in rows:
            if row is None:
                skipped += 1
            else:
                file.write(line(row) + "\n")
    return skipped


@click.command("plot", cls=options.Command)
@click.argument("thread")
@options.database
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture to write: .png, .svg or .pdf.",
)
def plot_command(thread: str, db: str, output: Path) -> None:
    """Draw the quality of the best answer against the tokens spent.

    The picture shows the last question of THREAD.

    \b
    anytime-graph plot rivers -o curve.png
    """
    from anytime_graph.cli.plot import plot_curve

    with opened(db) as store:
        run = runs_of(store.ledger, thread)[-1]
        curve, answers = store.ledger.curve(thread), store.ledger.answers(run["id"])
    if not curve:
        raise click.ClickException(f"thread {thread!r}: its last question has no answer yet")
    try:
        plot_curve(run, curve, answers, output)
    except (ImportError, ValueError, OSError) as error:
        raise click.UsageError(f"-o {output}: {error}") from None
    click.echo(output)


@click.command(cls=options.Command)
@click.argument("thread")
@options.database
@click.option("--yes", is_flag=True, help="Delete without asking.")
def rm(thread: str, db: str, yes: bool) -> None:
    """Delete THREAD: its ledger record and its checkpoints.

    \b
    anytime-graph rm rivers
    """
    with opened(db) as store:
        runs = runs_of(store.ledger, thread)
        _refuse_running(store.ledger, thread)
        if not yes:
            last = clipped(runs[-1]["question"] or "(not kept)", 60)
            click.confirm(
                f"Delete {thread!r} ({display.many(len(runs), 'question')}, the last: {last})?",
                abort=True,
            )
            _refuse_running(store.ledger, thread)  # meanwhile it may have begun
        store.ledger.forget(thread)
        store.saver.delete_thread(thread)
    click.echo(f"deleted {thread!r}")


@click.command(cls=options.Command)
@options.database
@click.option("--model", help="Include only runs of this model.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="PREFIX",
    help="A kind of task: the threads whose names begin with PREFIX. Can be repeated.  "
    "[default: all threads together]",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the profiles in this file, for load_profile. Other profiles in it are kept.",
)
@as_json_option
def profile(
    db: str, model: str | None, tasks: Sequence[str], save: Path | None, as_json: bool
) -> None:
    """Show how much drafts and refinements improve the answers.

    There is one table for each model and kind of task. Only runs with a scorer count. The curve is the
    expected best score of 1, 2, 3, ... drafts, if their scores are normally distributed.

    \b
    anytime-graph profile --task rivers --task bikes --save profiles.json
    """
    with errors_shown(as_json), opened(db) as store:
        profiles = _profiles(store.ledger, model, tasks or [""])
        if save is not None:
            for (name, task), learned in profiles.items():
                save_profile(save, learned, name, task)
    if as_json:
        rows = [{"model": m, "task": t, "kinds": kinds} for (m, t), kinds in profiles.items()]
        click.echo(line(rows))
        return
    if not profiles:
        click.echo("no answers that a scorer rated", err=True)
    for (name, task), learned in profiles.items():
        display.profiled(name, task, learned)
        click.echo(display.curve(*expected_best(learned)) + "\n")


def _profiles(
    ledger: Ledger, model: str | None, tasks: Iterable[str]
) -> dict[tuple[str, str], Profile]:
    names = {run["model"] for row in ledger.threads() for run in ledger.runs(row["thread"])}
    return {
        (name, task): learned
        for name in sorted(names if model is None else {model})
        for task in tasks
        if (learned := profile_of(ledger, name, task))
    }


COMMANDS = (threads, show_command, best, export, plot_command, profile, rm)
