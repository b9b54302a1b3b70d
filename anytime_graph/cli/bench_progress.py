"""The progress bar of a running benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from anytime_graph.benchmark.cells import Cell
from anytime_graph.benchmark.recording import Recording
from anytime_graph.text import harmless


@contextmanager
def cell_progress(todo: int, recording: Recording) -> Iterator[Callable[[Cell, str | None], None]]:
    """Show a bar with the time left and the spend, on standard error if that is a terminal. Call
    the value it yields for each cell that ends, with its failure or None."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[spent]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def spent() -> str:
        usd = f", ${recording.bought.usd:.4f}" if recording.bought.usd else ""
        return f"{recording.bought.tokens:,.0f} tokens{usd}"

    with bar:
        shown = bar.add_task("measuring", total=todo, spent=spent())

        def advance(cell: Cell, failure: str | None) -> None:
            bar.update(shown, advance=not (failure or cell.prepares), spent=spent())
            if failure is not None:
                console.print(harmless(f"{cell}: {failure}"), markup=False, highlight=False)

        yield advance
