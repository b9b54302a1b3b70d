"""Everything that the commands show in a terminal: progress, answers, curves and tables.

Text from a model is shown as it is: it is never read as markup or as escape sequences.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import click
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from anytime_graph.audit import Audit
from anytime_graph.batch import Batch
from anytime_graph.batch import Progress as BatchProgress
from anytime_graph.budget import DIMENSIONS, UNIT_NAMES, Limits, Spend, counted, nothing
from anytime_graph.metrics import Interval
from anytime_graph.planning.profiles import Profile
from anytime_graph.run.announcements import improvement
from anytime_graph.run.calls import PlannedCall
from anytime_graph.run.endings import call_ended, decided, ended
from anytime_graph.run.state import Output, Point
from anytime_graph.text import clipped, harmless
from anytime_graph.warm_up import WarmUp

_WIDTH, _HEIGHT = 56, 8
_BESIDE = 52
"""Columns that a bar leaves to its amounts: "tokens: 5,000 spent, 1,000 reserved, 94,000 left"."""
_PASSWORD = re.compile(r"(?<=://)([^/:@]*):.*@|[?&]password=[^&]*")
"""Whose it is, and the password, in the address of a database."""
_CLIP = 300
_NARROWEST = 60
"""Columns below which tables lose words."""
_ROOMY = 110
"""Columns of a terminal in which a table of threads has room for each of its own."""


def say(text: str) -> None:
    """Print an answer: exactly to a file or a pipe; to a terminal without escape sequences, and broken
    between words."""
    if sys.stdout.isatty():
        Console(highlight=False).print(_inert(text))
    else:
        deliver(text)


def exact(text: str) -> str:
    """The text for standard output: as it is, but for a terminal without escape sequences."""
    return harmless(text) if sys.stdout.isatty() else text


def deliver(text: str) -> None:
    """Write what was paid for to standard output or, if that cannot be written, to standard error. A
    reader who has gone wants nothing."""
    try:
        click.echo(text.encode(errors="replace").decode(), color=True)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        give_up_output()
        click.echo(harmless(text), err=True)
        raise click.ClickException(
            f"standard output cannot be written ({error.strerror}); what was to go there stands above"
        ) from None


def give_up_output() -> None:
    """Standard output, which cannot be written, is not tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _inert(text: object, style: str = "") -> Text:
    return Text(harmless(str(text)), style)


def follow(events: Iterable[Any], quiet: bool = False) -> Output:
    """Follow a stream of ["custom", "tasks", "values"] to its end, and return the output. Unless
    quiet, the budget and each better answer are shown on standard error."""
    console = Console(stderr=True, quiet=quiet)
    out: Any = {}
    running: dict[str, PlannedCall] = {}
    spent, limits = nothing(), cast(Limits, {})
    shown, began = "", time.monotonic()
    with _display(console) as show:
        for mode, event in events:
            if mode == "values":
                out = event
                spent, limits = event.get("spent", spent), event.get("limits", limits)
            elif (
                mode == "tasks"
                and isinstance(given := event.get("input"), dict)
                and "call" in given
            ):
                running[event["id"]] = given["call"]
            elif mode == "tasks" and "input" not in event:
                running.pop(event["id"], None)
            elif (
                mode == "custom"
                and (better := improvement(event)) is not None
                and better["answer"] != shown  # of equal answers, another may become the best
            ):
                shown = better["answer"]
                score = "" if better["score"] is None else f"  score {better['score']:.2f}"
                console.print(
                    Text(
                        f"{time.monotonic() - began:6.1f} s  {better['source']:8}{score}",
                        "bold green",
                    )
                )
                console.print(Padding(_inert(better["answer"]), (0, 0, 0, 10)))
            show(spent, limits, running.values())
    return cast(Output, out)


@contextmanager
def _display(console: Console) -> Iterator[Any]:
    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def show(spent: Spend, limits: Limits, running: Iterable[PlannedCall]) -> None:
            live.update(_bars(spent, limits, list(running), console.width))

        yield show


def _bars(
    spent: Spend, limits: Limits, running: list[PlannedCall], columns: int = 2 * _WIDTH
) -> Table:
    """One bar for each limited dimension: spent, reserved by running calls, and left. Each stands on
    one line of a terminal with 80 columns."""
    table, amounts = Table.grid(padding=(0, 2)), cast("Mapping[str, float]", spent)
    width = max(8, min(_WIDTH, columns - _BESIDE))
    for dimension in (d for d in DIMENSIONS if d in limits):
        used = amounts.get(dimension, 0)
        held = min(_reserved_by_calls(running, dimension), max(0.0, limits[dimension] - used))
        whole = limits[dimension] or 1
        full, reserved = (round(width * min(1, x / whole)) for x in (used, held))
        bar = Text()
        bar.append("█" * full, "green")
        bar.append("▒" * reserved, "yellow")
        bar.append("·" * max(0, width - full - reserved), "dim")
        rest = max(0.0, limits[dimension] - used - held)
        said = {"spent": used, "reserved": held, "left": rest}
        told = (
            f"{_amount(n, dimension)} {what}" for what, n in said.items() if n or what != "reserved"
        )
        table.add_row(bar, f"{dimension.replace('_', ' ')}: {', '.join(told)}")
    return table


def _amount(n: float, dimension: str) -> str:
    return f"{n:,.{4 if dimension == 'usd' else 1 if dimension == 'seconds' else 0}f}"


def _reserved_by_calls(running: list[PlannedCall], dimension: str) -> float:
    if dimension == "calls":
        return float(len(running))
    if dimension == "seconds":
        return 0.0
    if dimension == "output_tokens":
        return float(sum(call["max_output"] or 0 for call in running))
    if dimension in ("usd", "tool_calls"):
        return sum(call["slice"][dimension] for call in running)
    return float(sum(call["max_input"] + (call["max_output"] or 0) for call in running))


@contextmanager
def progress(what: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error. Call the value it yields with (finished, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet)
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda finished, total: bar.update(task, completed=finished, total=total)


@contextmanager
def batch_progress(quiet: bool = False) -> Iterator[Callable[[BatchProgress], None]]:
    """Show on standard error how many questions are answered, what was spent, and what the next tokens
    promise."""
    columns = (
        TextColumn("answered"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("", total=None)

        def show(now: BatchProgress) -> None:
            gain = "" if math.isinf(now.gain) else f", gain {now.gain:.3f} per 1,000"
            text = f"{now.spent['tokens']:,} tokens{gain}"
            bar.update(task, completed=now.answered, total=now.questions, description=text)

        yield show


def batch_summary(done: Batch) -> None:
    """Show on standard error how many questions have an answer, the cost, and why the batch ended."""
    answered = sum(q.answer is not None for q in done.questions)
    unscored = any(q.stop_reason == "scorer" for q in done.questions)
    causes = {
        "done": "the scorer failed" if unscored else "no question gains from more",
        "interrupted": "stopped by Ctrl-C",
        "quota": "quotas do not pay for more",
    }
    cause = causes.get(
        done.stop_reason, f"the budget's {UNIT_NAMES.get(done.stop_reason)} are used up"
    )
    click.echo(f"{answered} of {len(done.questions)} questions answered; {cause}", err=True)
    click.echo(f"spent: {spending(done.spent, {})}", err=True)


_AUDIT_ROWS = {
    "agreement": "agrees with the scorer, single call",
    "agreement_decided": "agrees with the scorer, both orders",
    "decided": "names the same winner in both orders",
    "itself": "agrees with itself when the order is swapped",
    "first": "names the answer shown first",
    "longer": "names the longer answer",
    "scorer_longer": "(the scorer names the longer answer)",
    "length": "correlation of verdict and length",
}


def audited(audit: Audit) -> None:
    """Show an audit as a table, and its verdict."""
    console = Console(highlight=False)
    if not audit.comparisons:
        console.print(_inert(audit.verdict, "bold"))
        return
    table = Table("the judge", box=None, header_style="bold", pad_edge=False)
    for name in ("share", "95% interval", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, label in _AUDIT_ROWS.items():
        interval, unit = (
            getattr(audit, name),
            (lambda x: f"{x:.2f}") if name == "length" else _percent,
        )
        shown = (
            ("-", "-")
            if interval is None
            else (unit(interval.mean), _interval_text(interval, unit))
        )
        table.add_row(label, *shown, f"{audit.sizes[name]:,}")
    console.print(table)
    console.print(
        f"\n{audit.comparisons:,} comparisons of {audit.questions:,} questions in {audit.calls:,} "
        f"calls, {audit.unread:,} of them without a verdict; spent: {spending(audit.spent, {})}"
    )
    for error in audit.errors[:3]:
        console.print(_inert(f"noted: {error}", "yellow"))
    console.print(_inert(audit.verdict, "bold"))


def warmed(summary: WarmUp) -> None:
    """Show a warm-up as a table: the pairs from each question, and their cost."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("question", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("best score", "pairs", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("stopped by", no_wrap=True)
    for q in summary.questions:
        table.add_row(
            Text(clipped(q.question, _CLIP)),
            _score_text(q.score),
            str(q.pairs),
            f"{q.spent['tokens']:,}",
            _inert(_ending(q.stop_reason, False), "yellow" if q.error else ""),
        )
    console = Console(highlight=False)
    console.print(table)
    left = f", {many(summary.left, 'question')} left" if summary.left else ""
    pairs, asked = many(summary.pairs, "preference pair"), many(len(summary.questions), "question")
    console.print(f"\n{pairs} from {asked}{left}; spent: {spending(summary.spent, {})}")
    for error in dict.fromkeys(q.error for q in summary.questions if q.error):
        console.print(_inert(f"noted: {error}", "yellow"))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _interval_text(interval: Interval, unit: Callable[[float], str]) -> str:
    return f"{unit(interval.low)} to {unit(interval.high)}"


def title(head: str, question: str) -> None:
    Console(stderr=True).print(Panel(_inert(question), title=head, title_align="left"))


def many(n: int, what: str) -> str:
    """ "1 call", "2 calls"."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def compared(first: str, best: str, rules: Callable[[str], Mapping[str, bool]]) -> None:
    """Show the first answer and which rules it kept, beside those that the best one keeps."""
    console = Console(highlight=False)
    console.print(Panel(_inert(first), title="First answer", title_align="left"))
    table = Table("asked", box=None, header_style="bold")
    for name in ("first", "best"):
        table.add_column(name, justify="center")
    kept, now = rules(first), rules(best)
    for rule in kept:
        table.add_row(_inert(rule), *(_yes_or_no(each[rule]) for each in (kept, now)))
    console.print(table)


def _yes_or_no(holds: bool) -> Text:
    return Text("yes", "green") if holds else Text("no", "red")


def result(out: Output) -> None:
    """Show the best answer, why the run stopped, what it cost, and the curve."""
    console, best = Console(highlight=False), out["best"]
    assert best is not None, "a run without an answer raises NoAnswer"
    score = "" if best["score"] is None else f", score {best['score']:.2f}"
    console.print(Panel(_inert(best["answer"]), title=f"Best answer{score}", title_align="left"))
    console.print(_inert(f"{ended(out['stop_reason'])}."))
    console.print(Text(f"Spent: {spending(out['spent'], out['limits'])}.\n"))
    console.print(Text(curve(out["curve"], out["spent"]["tokens"])))
    for error in counted(out["errors"])[:5]:
        console.print(_inert(f"noted: {error}", "yellow"))


def run_ended(out: Output, quiet: bool) -> None:
    """Show on standard error why a run ended and what it cost. If quiet, only a stop reason that
    needs an explanation."""
    console = Console(stderr=True, highlight=False)
    if not quiet:
        spent = spending(out["spent"], out["limits"])
        console.print(_inert(f"{ended(out['stop_reason'])}. Spent: {spent}", "dim"))
        if shares := _shares(out["spent"], out["judging"]["spent"]["tokens"]):
            console.print(Text(shares, "dim"))
    if explanation := _explained(out["stop_reason"]):
        console.print(Text(explanation))


def _explained(stop_reason: str | None) -> str:
    return "To let it judge more, give more budget" if stop_reason == "judge" else ""


def _shares(spent: Mapping[str, Any], judged: int) -> str:
    """The judge's share of the tokens and the cached share of the input; "" without both."""
    shares = []
    if judged:
        shares.append(f"{judged / spent['tokens']:.0%} of the tokens by the judge")
    if spent["cached_tokens"]:
        shares.append(f"{spent['cached_tokens'] / spent['input_tokens']:.0%} of the input cached")
    return ", ".join(shares)


def curve(points: list[Point], tokens: int) -> str:
    """The best score so far against tokens, drawn with characters; "" without scores."""
    scored = [(p["spent"]["tokens"], p["score"]) for p in points if p["score"] is not None]
    if not scored or not tokens:
        return ""
    columns = []
    for x in range(_WIDTH):
        reached = [s for t, s in scored if t <= (x + 1) * tokens / _WIDTH]
        columns.append(max(reached, default=None))
    lines = []
    for y in range(_HEIGHT, -1, -1):
        label = f"{y / _HEIGHT:4.2f}" if y % 2 == 0 else "    "
        row = "".join(
            " "
            if c is None
            else "━"
            if round(c * _HEIGHT) == y
            else "░"
            if round(c * _HEIGHT) > y
            else " "
            for c in columns
        )
        lines.append(f"{label} ┤{row}")
    lines.append("     └" + "─" * _WIDTH)
    lines.append(f"      0{'tokens':>{_WIDTH // 2 + 2}}{tokens:>{_WIDTH // 2 - 3}}")
    return "\n".join(["best score so far, against tokens spent", *lines])


# --- the ledger


def profiled(model: str, task: str, learned: Profile) -> None:
    """Show what each kind of answer brought, as a table."""
    title("profile", f"{model}, {task or 'all threads'}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kind")
    for name in ("answers", "score", "change", "tokens each", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, of in learned.items():
        n = of["tries"]
        changed = f"{of['change'] / n:+.2f}" if not kind.endswith("draft") else ""
        each = f"{of['tokens'] / n:,.0f}"
        table.add_row(kind, str(n), f"{of['worth'] / n:.2f}", changed, each, f"{of['cut'] / n:.0%}")
    Console().print(table)


def _wide(**how: Any) -> Console:
    """Where tables are shown. A terminal too narrow for their words breaks the lines itself."""
    found = Console(**how)
    return found if found.width >= _NARROWEST else Console(width=_NARROWEST, **how)


def listing(threads: list[dict[str, Any]]) -> None:
    """Show the threads as a table. In a narrow terminal the question stands below the thread's name."""
    console = _wide()
    roomy = console.width >= _ROOMY
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    if roomy:
        table.add_column("thread", max_width=40, overflow="fold")
        table.add_column("question", ratio=1, no_wrap=True, overflow="ellipsis")
    else:
        table.add_column("thread, question", ratio=1, overflow="fold")
    for name in ("score", "tokens", "usd", *(["calls"] if roomy else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("stopped by", max_width=12)
    table.add_column("when", no_wrap=True)
    for row in threads:
        thread = _inert(row["thread"], "bold")
        question = Text(clipped(row["question"] or "(not kept)", _CLIP if roomy else _CLIP // 3))
        table.add_row(
            *([thread, question] if roomy else [Group(thread, Padding(question, (0, 0, 0, 2)))]),
            _score_text(row["score"]),
            f"{row['tokens']:,}",
            _usd(row["usd"]),
            *([str(row["calls"])] if roomy else []),
            _inert(_ending(row["stop_reason"], row["running"])),
            _ago(row["changed"]),
        )
    console.print(table)


def quotas(rows: list[dict[str, Any]]) -> None:
    """Show quotas and what is used of them as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("per", "for", "window", "who", "quota", "used"):
        table.add_column(name, overflow="fold")
    for row in rows:
        amounts = (
            ", ".join(f"{d}={n:.15g}" for d, n in row[of].items()) for of in ("limits", "booked")
        )
        words = (str(row[name] or "all") for name in ("per", "for", "window", "who"))
        table.add_row(*map(_inert, (*words, *amounts)))
    _wide().print(table)


def bills(rows: list[dict[str, Any]]) -> None:
    """Show what was spent as a table. The first columns are what it is added up by."""
    amounts = ["calls", "tokens", "input_tokens", "output_tokens", "usd"]
    if any(row["tool_calls"] for row in rows):
        amounts.insert(0, "tool_calls")
    names = [name for name in rows[0] if name not in nothing()]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for name in amounts:
        table.add_column(name.replace("_tokens", ""), justify="right", no_wrap=True)
    for row in rows:
        told = (_inert(row[name] or "-") for name in names)
        table.add_row(*told, *(f"{row[n]:,}" for n in amounts[:-1]), _usd(row["usd"]))
    _wide().print(table)


def story(thread: str, runs: list[dict[str, Any]], running: bool, db: str) -> None:
    """Show the runs of a thread of this database one after the other, with their calls, answers and pairs."""
    console = _wide(highlight=False)
    places = {run["id"]: i for i, run in enumerate(runs, 1)}
    for i, run in enumerate(runs, 1):
        last = i == len(runs)
        head = _inert(f"{thread}, run {i} of {len(runs)}, {_when(run['started'])}")
        question = _inert(run["question"] if run["question"] is not None else "(not kept)")
        console.print(Panel(question, title=head, title_align="left"))
        parent = run["parent_id"]
        branch = "" if parent is None else f"; branched off run {places.get(parent, parent)}"
        how = f"{run['model']}, strategy {run['strategy']}, {decided(run['decides'])}{branch}"
        console.print(_inert(how, "dim"))
        if run["calls"]:
            console.print(_call_table(run["calls"]))
        _print_answers(console, run)
        _print_pairs(console, run)
        stop = run["stop_reason"]
        over = "Running" if running and last else ended(stop) if stop else "Unfinished"
        console.print(_inert(over, "bold"))
        console.print(Text(f"Spent: {spending(run['spent'], run['limits'])}"))
        for note in (_explained(stop), _shares(run["spent"], run["judging"]["tokens"])):
            if note:
                console.print(Text(f"  {note}"))
        if any(run["inherited"].values()):
            console.print(Text(f"  of it before it branched off: {spending(run['inherited'], {})}"))
        console.print()
    if runs[-1]["stop_reason"] is None and not running:
        console.print(_inert(f"It was cut off. To go on: {again(thread, db)}", "yellow"))


def again(thread: str, db: str) -> str:
    """The command that goes on with a thread, for a shell: a client may have chosen its name. It is shown, so
    without a database's password."""
    shown = _PASSWORD.sub(lambda found: f"{found[1]}@" if found[1] is not None else "", db)
    return shlex.join(["anytime-graph", "resume", thread, "--db", shown])


def _call_table(calls: list[dict[str, Any]]) -> Table:
    table = Table("#", "call", box=None, header_style="bold", expand=True)
    for name in ("input", "output", "tokens", "usd", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("how it ended", ratio=1)
    for call in calls:
        amounts = (f"{call[k]:,}" for k in ("input_tokens", "output_tokens", "tokens"))
        seconds = f"{call['seconds']:.1f}"
        table.add_row(
            str(call["ordinal"]),
            _inert(call["kind"]),
            *amounts,
            _usd(call["usd"]),
            seconds,
            _ended(call),
        )
    return table


def _ended(call: dict[str, Any]) -> Text:
    return Text(clipped("; ".join([call_ended(call), *call["errors"]]), _CLIP))


def _print_answers(console: Console, run: dict[str, Any]) -> None:
    for answer in run["answers"]:
        best = answer["id"] == run["best_id"]
        parents = ", ".join(map(str, answer["parents"]))
        of = f" of {parents}" if parents else ""
        score = "" if answer["score"] is None else f", score {answer['score']:.2f}"
        state = "" if answer["complete"] else ", cut off"
        head = f"Answer {answer['ordinal']}: {answer['node']}{of}{score}{state}"
        console.print(
            _inert(head + (", the best" if best else ""), "bold green" if best else "bold")
        )
        text = Text(clipped(answer["answer"] or "(not kept)", _CLIP))
        if answer["feedback"]:
            text.append(f"\nto mend: {clipped(answer['feedback'], _CLIP)}", "dim")
        console.print(Padding(text, (0, 0, 0, 2)))


def _print_pairs(console: Console, run: dict[str, Any]) -> None:
    for pair in run["pairs"]:
        head = f"Answer {pair['chosen_ordinal']} over {pair['rejected_ordinal']}"
        why = clipped(pair["why"] or "(not kept)", _CLIP)
        console.print(_inert(f"{head}, by the {pair['decided_by']}: {why}"))


def spending(spent: Mapping[str, Any], limits: Limits) -> str:
    """The amounts with their limits; amounts without a limit only if they are not 0."""
    amounts = []
    for d in DIMENSIONS:
        amount = round(spent.get(d, 0), 6 if d == "usd" else 1)
        unit = d.replace("_", " ")
        if (limits.get(d) or amount) == 1 and d.endswith(("tokens", "calls")):
            unit = unit.removesuffix("s")
        if d in limits:
            amounts.append(f"{amount:,} of {limits[d]:,} {unit}")
        elif amount:
            amounts.append(f"{amount:,} {unit}")
    return ", ".join(amounts) or "nothing"


def _ending(stop_reason: str | None, running: bool) -> str:
    return "running" if running else "unfinished" if stop_reason is None else stop_reason


def _score_text(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _usd(usd: float) -> str:
    return f"{usd:.4f}" if usd else "-"


def _ago(moment: float) -> str:
    passed = max(0.0, time.time() - moment)
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= seconds:
            return f"{passed // seconds:.0f} {unit} ago"
    return "just now"


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
