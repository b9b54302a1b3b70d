"""A run in the terminal: budget bar, improving answers, the curve."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from anytime_graph.budget import DIMENSIONS, Limits, Spend, nothing
from anytime_graph.live import improvement
from anytime_graph.state import Output, Point, Task

_WIDTH, _HEIGHT = 56, 8


def watch(events: Iterable[Any], quiet: bool = False) -> Output:
    """Follow a stream of ["custom", "tasks", "values"] to its end; returns the output. Shows the
    budget and each improving answer on standard error, unless quiet."""
    console = Console(stderr=True, quiet=quiet)
    out: Any = {}
    running: dict[str, Task] = {}
    spent, limits = nothing(), cast(Limits, {})
    began = time.monotonic()
    with _display(console) as show:
        for mode, event in events:
            if mode == "values":
                out = event
                spent, limits = event.get("spent", spent), event.get("limits", limits)
            elif (
                mode == "tasks" and isinstance(task := event.get("input"), dict) and "slice" in task
            ):
                running[event["id"]] = cast(Task, task)
            elif mode == "tasks" and "input" not in event:
                running.pop(event["id"], None)
            elif mode == "custom" and (better := improvement(event)) is not None:
                score = "" if better["score"] is None else f"  score {better['score']:.2f}"
                console.print(
                    Text(
                        f"{time.monotonic() - began:6.1f} s  {better['source']:8}{score}",
                        "bold green",
                    )
                )
                console.print(Text(f"          {better['answer']}"))
            show(spent, limits, running.values())
    return cast(Output, out)


@contextmanager
def _display(console: Console) -> Iterator[Any]:
    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def show(spent: Spend, limits: Limits, running: Iterable[Task]) -> None:
            live.update(_bars(spent, limits, list(running)))

        yield show


def _bars(spent: Spend, limits: Limits, running: list[Task]) -> Group:
    """One bar for each limited dimension: spent, reserved by calls in flight, left."""
    rows = []
    for dimension in (d for d in DIMENSIONS if d in limits):
        used = cast(float, spent[dimension])  # type: ignore[literal-required]
        held = min(_reserved(running, dimension), max(0.0, limits[dimension] - used))
        whole = limits[dimension] or 1
        full, reserved = (round(_WIDTH * min(1, x / whole)) for x in (used, held))
        bar = Text()
        bar.append("█" * full, "green")
        bar.append("▒" * reserved, "yellow")
        bar.append("·" * max(0, _WIDTH - full - reserved), "dim")
        rest = max(0.0, limits[dimension] - used - held)
        bar.append(f"  {dimension}: {used:g} spent, {held:g} reserved, {rest:g} left")
        rows.append(bar)
    return Group(*rows)


def _reserved(running: list[Task], dimension: str) -> float:
    if dimension == "calls":
        return float(len(running))
    if dimension == "seconds":
        return 0.0
    if dimension == "output_tokens":
        return float(sum(t["room"] or 0 for t in running))
    if dimension == "usd":
        return sum(t["slice"]["usd"] for t in running)
    return float(sum(t["prompt_bound"] + (t["room"] or 0) for t in running))


def title(head: str, question: str) -> None:
    Console(stderr=True).print(Panel(Text(question), title=head, title_align="left"))


def result(out: Output) -> None:
    """The best answer, why the run stopped, what each node cost, and the curve."""
    console, best = Console(), out["best"]
    assert best is not None, "a run without an answer raises NoAnswer"
    score = "" if best["score"] is None else f", score {best['score']:.2f}"
    console.print(Panel(Text(best["answer"]), title=f"Best answer{score}", title_align="left"))
    console.print(f"Stopped by: {out['stop_reason']}")
    table = Table("node", "calls", "input", "output", "tokens", "seconds", box=None)
    for node in ("draft", "critique", "refine"):
        spend = out["spent_by"].get(node, nothing())
        table.add_row(
            node,
            *(str(spend[k]) for k in ("calls", "input_tokens", "output_tokens", "tokens")),
            f"{spend['seconds']:.1f}",
        )
    console.print(table)
    if "critique" not in out["spent_by"] and out["pairs"]:
        console.print(f"({len(out['pairs'])} preference pairs came from the scorer, at no cost)")
    console.print(Text(curve(out["curve"], out["spent"]["tokens"])))
    for error in out["errors"][:5]:
        console.print(Text(f"noted: {error}", "yellow"))


def curve(points: list[Point], tokens: int) -> str:
    """Best-so-far score against tokens, drawn with characters; empty without scores."""
    known = [(p["spent"]["tokens"], p["score"]) for p in points if p["score"] is not None]
    if not known or not tokens:
        return ""
    columns = []
    for x in range(_WIDTH):
        reached = [s for t, s in known if t <= (x + 1) * tokens / _WIDTH]
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
