"""A benchmark from its first cell to its last, within a budget for all of them; or from where it was
killed, without paying for anything twice."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from anytime_graph.benchmark.cells import Cell, Record, Records, preparations
from anytime_graph.benchmark.recording import Facts, Recording
from anytime_graph.benchmark.run import FixedMemory, Learned, Lost, Unmeasured
from anytime_graph.benchmark.tape import CellModel
from anytime_graph.budget import Limits, Spend, nothing
from anytime_graph.metering.account import Account
from anytime_graph.metering.meter import Meter
from anytime_graph.tasks import Question

_PATIENCE = 3
"""Cells in a row that may come to nothing before the benchmark gives up."""
_TRIES = 3
"""Times that a cell is run, if calls fail."""


class Measure(Protocol):
    """A protocol: the most a cell can cost, in tokens and USD, and what it comes to."""

    def ceiling(self, cell: Cell) -> tuple[float, float]: ...

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Learned | None]: ...


@dataclass
class Session:
    """total: what the benchmark may cost as a whole, and has cost. A cell's ceiling is held back from it
    before the cell starts. inner: the model; None to replay. report: called whenever a cell has
    ended, with None if it was measured, else why not."""

    measure: Measure
    records: Records
    recording: Recording
    total: Account
    facts: Facts
    inner: Meter | None
    parallel: int = 1
    stop: threading.Event | None = None
    report: Callable[[Cell, str | None], None] = lambda cell, failure: None
    failures: list[str] = field(default_factory=list)
    ended: str | None = None
    _memories: dict[str, FixedMemory] = field(default_factory=dict)

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
        """Make the preference data of one kind. A cell with a record is replayed, at no cost."""
        learned: dict[str, Learned] = {}

        def keep(cell: Cell, what: Learned | None) -> None:
            learned[cell.name] = what or Learned(cell.question.prompt, [], [])

        self._all(cells, keep)
        if all(cell.name in learned for cell in cells):
            self._memories[kind] = FixedMemory([learned[cell.name] for cell in cells])

    def _model(self, cell: Cell) -> CellModel:
        return CellModel(
            self.recording,
            self.facts,
            None if cell.name in self.records else self.inner,
            str(cell),
            cell.model_seed,
            ceiling(*self.measure.ceiling(cell)),
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
        """Side by side, in their order; the first that the total cannot hold ends it. Returns those
        that came to nothing."""
        running: dict[Future[tuple[Record, Learned | None]], tuple[Cell, CellModel]] = {}
        failed: list[Cell] = []
        in_a_row = 0

        def collect() -> None:
            nonlocal in_a_row
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, model = running.pop(future)
                self._release(model)
                failure = self._ended(cell, future, keep)
                in_a_row = 0 if failure is None else in_a_row + (not isinstance(failure, Lost))
                failed.extend([cell] if failure else [])
                self.report(cell, str(failure) if failure else None)

        def admitted(model: CellModel) -> bool:
            while True:
                while len(running) >= self.parallel:
                    collect()
                if self._over(in_a_row):
                    return False
                if self._hold(model):
                    return True
                if not running:
                    self.ended = "budget"
                    return False
                collect()

        with ThreadPoolExecutor(self.parallel) as pool:
            for cell in cells:
                model = self._model(cell)
                if not admitted(model):
                    break
                memory = self._memories.get(cell.lessons or "")
                running[pool.submit(self.measure.measure, cell, model, memory)] = (cell, model)
            while running:
                collect()
        self._over(in_a_row)
        return failed

    def _hold(self, model: CellModel) -> bool:
        """Hold back what the cell may cost; False if it does not fit now. A replay costs nothing."""
        if model.inner is None:
            return True
        with self.total.lock:
            rest, most = self.total.left(), model.account.limits
            if any(most[d] > amount for d, amount in rest.items()):
                return False
            self.total.hold(_as_spend(most))
            return True

    def _release(self, model: CellModel) -> None:
        if model.inner is not None:
            self.total.settle(_as_spend(model.account.limits), model.account.spent)

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
        """RecordedReply in what a cell came to; returns why it came to nothing, if so."""
        try:
            record, learned = future.result()
        except Unmeasured as failure:
            self.failures.append(f"{cell}: {failure}")
            return failure
        if cell.name not in self.records:
            self.records.add(record)
        keep(cell, learned)
        return None


def ceiling(tokens: float, usd: float) -> Account:
    """What one cell may cost."""
    return Account({"tokens": tokens, "usd": usd})


def _as_spend(limits: Limits) -> Spend:
    return {**nothing(), "tokens": math.ceil(limits["tokens"]), "usd": limits["usd"], "calls": 1}
