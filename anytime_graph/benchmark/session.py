"""A benchmark from its first cell to its last, within a budget for all of them; or from where it was
killed, without paying for anything twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from anytime_graph.benchmark.cells import Cell, Record, Records, preparations
from anytime_graph.benchmark.recording import Facts, Recording
from anytime_graph.benchmark.run import Learned, Lore, Lost, Unmeasured
from anytime_graph.benchmark.tape import Deck
from anytime_graph.metering import Gate
from anytime_graph.tasks import Question

_PATIENCE = 3
"""Cells in a row that may come to nothing before the benchmark gives up."""
_TRIES = 3
"""Times that a cell is run, if calls fail."""


class Measure(Protocol):
    """A protocol: the most a cell can cost, in tokens and USD, and what it comes to."""

    def ceiling(self, cell: Cell) -> tuple[float, float]: ...

    def measure(
        self, cell: Cell, deck: Deck, memory: Lore | None
    ) -> tuple[Record, Learned | None]: ...


@dataclass
class Purse:
    """What the benchmark may cost as a whole. A cell's ceiling is held back before it starts, so
    that what was bought never exceeds `tokens` or `usd` (None: not limited)."""

    recording: Recording
    tokens: float | None = None
    usd: float | None = None
    held: list[Deck] = field(default_factory=list)

    def hold(self, deck: Deck) -> bool:
        """Hold back the deck's ceiling; False if it does not fit now."""
        if not all(
            most is None or mine + now <= most
            for most, mine, now in zip(
                (self.tokens, self.usd), deck.ceiling, self.committed(), strict=True
            )
        ):
            return False
        self.held.append(deck)
        return True

    def release(self, deck: Deck) -> None:
        self.held = [other for other in self.held if other is not deck]

    def committed(self) -> tuple[float, float]:
        """Bought so far, and what the cells under way may still buy."""
        bought, open_ = self.recording.bought, self.held
        return (
            bought.tokens + sum(d.ceiling[0] - d.bought.tokens for d in open_),
            bought.usd + sum(d.ceiling[1] - d.bought.usd for d in open_),
        )


@dataclass
class Session:
    """inner: the gate to the model; None to replay. told: called whenever a cell has ended, with
    None if it was measured, else why not."""

    measure: Measure
    records: Records
    recording: Recording
    purse: Purse
    facts: Facts
    inner: Gate | None
    parallel: int = 1
    stop: threading.Event | None = None
    told: Callable[[Cell, str | None], None] = lambda cell, failure: None
    failures: list[str] = field(default_factory=list)
    ended: str | None = None
    _memories: dict[str, Lore] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], training: Callable[[], Sequence[Question]]) -> None:
        """All cells that have no record yet; first those that make the preference data for them.
        Afterwards `ended` says why not all of them were run, None if they were; `failures`, what
        kept single ones from being measured. training: the questions for preference data."""
        todo = [cell for cell in cells if cell.name not in self.records]
        for kind in dict.fromkeys(cell.lessons for cell in todo if cell.lessons):
            self._prepare(preparations(todo[0].settings, kind, training()), kind)
        ready = [c for c in todo if c.lessons is None or c.lessons in self._memories]
        self._all(ready, lambda cell, learned: None)
        if len(ready) < len(todo) and self.ended is None:
            self.ended = "preparation"

    def _prepare(self, cells: Sequence[Cell], kind: str) -> None:
        """What was made before is made again from the tape, and costs nothing."""
        learned: dict[str, Learned] = {}

        def keep(cell: Cell, what: Learned | None) -> None:
            learned[cell.name] = what or Learned(cell.question.prompt, [], [])

        for cell in cells:
            if cell.name in self.records:
                deck = self._deck(cell, replayed=True)
                keep(cell, self.measure.measure(cell, deck, None)[1])
        self._all([c for c in cells if c.name not in self.records], keep)
        if all(cell.name in learned for cell in cells):
            self._memories[kind] = Lore([learned[cell.name] for cell in cells])

    def _deck(self, cell: Cell, replayed: bool = False) -> Deck:
        return Deck(
            self.recording,
            self.facts,
            None if replayed else self.inner,
            str(cell),
            cell.model_seed,
            self.measure.ceiling(cell),
            self.stop,
        )

    def _all(self, cells: Sequence[Cell], keep: Callable[[Cell, Learned | None], None]) -> None:
        """All of them; those that came to nothing once more, after the others."""
        for _ in range(_TRIES):
            self.failures.clear()
            cells = self._pass(cells, keep)
            if not cells or self.ended is not None:
                return

    def _pass(
        self, cells: Iterable[Cell], keep: Callable[[Cell, Learned | None], None]
    ) -> list[Cell]:
        """Side by side, in their order; the first that the purse cannot hold ends it. Returns those
        that came to nothing."""
        running: dict[Future[tuple[Record, Learned | None]], tuple[Cell, Deck]] = {}
        failed: list[Cell] = []
        in_a_row = 0

        def collect() -> None:
            nonlocal in_a_row
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, deck = running.pop(future)
                self.purse.release(deck)
                failure = self._ended(cell, future, keep)
                in_a_row = 0 if failure is None else in_a_row + (not isinstance(failure, Lost))
                failed.extend([cell] if failure else [])
                self.told(cell, str(failure) if failure else None)

        def admitted(deck: Deck) -> bool:
            while True:
                while len(running) >= self.parallel:
                    collect()
                if self._over(in_a_row):
                    return False
                if self.purse.hold(deck):
                    return True
                if not running:
                    self.ended = "budget"
                    return False
                collect()

        with ThreadPoolExecutor(self.parallel) as pool:
            for cell in cells:
                deck = self._deck(cell)
                if not admitted(deck):
                    break
                memory = self._memories.get(cell.lessons or "")
                running[pool.submit(self.measure.measure, cell, deck, memory)] = (cell, deck)
            while running:
                collect()
        self._over(in_a_row)
        return failed

    def _over(self, in_a_row: int) -> bool:
        if self.stop is not None and self.stop.is_set():
            self.ended = "interrupted"
        elif in_a_row >= _PATIENCE:
            self.ended = "failures"
        return self.ended is not None

    def _ended(
        self,
        cell: Cell,
        future: Future[tuple[Record, Learned | None]],
        keep: Callable[[Cell, Learned | None], None],
    ) -> Unmeasured | None:
        """Take in what a cell came to; returns why it came to nothing, if so."""
        try:
            record, learned = future.result()
        except Unmeasured as failure:
            self.failures.append(f"{cell}: {failure}")
            return failure
        self.records.add(record)
        keep(cell, learned)
        return None
