"""Measures all cells of a benchmark within one budget, and continues after a stop.

No reply is paid for twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from anytime_graph.benchmark.cells import Cell, Record, Records, preparations
from anytime_graph.benchmark.recording import Facts, Recording
from anytime_graph.benchmark.run import FixedMemory, Lesson, Lost, Unmeasured
from anytime_graph.benchmark.tape import CellModel
from anytime_graph.budget import Limits, Spend, nothing
from anytime_graph.checkpoints import LedgerError
from anytime_graph.metering.account import Account
from anytime_graph.metering.meter import Meter
from anytime_graph.tasks import Question

_PATIENCE = 3
"""The benchmark ends when this many cells in a row fail."""
_TRIES = 3
"""How often a cell is run at most, if calls fail."""


class Measure(Protocol):
    """A protocol: the most that a cell can cost, in tokens and USD, and its measurement."""

    def ceiling(self, cell: Cell) -> tuple[float, float]: ...

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Lesson | None]: ...


@dataclass
class Session:
    """The measurement of the cells of one task.

    total: the account of the whole benchmark. A cell's ceiling is reserved there before the cell
    starts. inner: the model, None in a replay. report: called with each cell that ends, and None if
    it was measured, else the reason. ended: why some cells were not run, or None. failures: why
    single cells were not measured.
    """

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
        """Run all cells without a record, after the cells that make preference data for them.
        training: the questions for preference data."""
        todo = [cell for cell in cells if cell.name not in self.records]
        for kind in dict.fromkeys(cell.lessons for cell in todo if cell.lessons):
            self._prepare(preparations(todo[0].settings, kind, training()), kind)
        ready = [c for c in todo if c.lessons is None or c.lessons in self._memories]
        self._run_with_retries(ready, lambda cell, lesson: None)
        if len(ready) < len(todo) and self.ended is None:
            self.ended = "preparation"

    def _prepare(self, cells: Sequence[Cell], kind: str) -> None:
        """Make the preference data of one kind. A cell with a record is replayed, at no cost."""
        lessons: dict[str, Lesson] = {}

        def keep(cell: Cell, lesson: Lesson | None) -> None:
            lessons[cell.name] = lesson or Lesson(cell.question.prompt, [], [])

        self._run_with_retries(cells, keep)
        if all(cell.name in lessons for cell in cells):
            self._memories[kind] = FixedMemory([lessons[cell.name] for cell in cells])

    def _model(self, cell: Cell) -> CellModel:
        return CellModel(
            self.recording,
            self.facts,
            None if cell.name in self.records else self.inner,
            str(cell),
            cell.model_seed,
            cell_account(*self.measure.ceiling(cell)),
            self.stop,
        )

    def _run_with_retries(
        self, cells: Sequence[Cell], keep: Callable[[Cell, Lesson | None], None]
    ) -> None:
        """Run the cells; those that fail run again after the others."""
        for _ in range(_TRIES):
            self.failures.clear()
            cells = self._run_once(cells, keep)
            if not cells or self.ended is not None:
                return

    def _run_once(
        self, cells: Iterable[Cell], keep: Callable[[Cell, Lesson | None], None]
    ) -> list[Cell]:
        """Run the cells in parallel, in their order, until the total cannot pay for the next one.
        Returns those that failed."""
        running: dict[Future[tuple[Record, Lesson | None]], tuple[Cell, CellModel]] = {}
        failed: list[Cell] = []
        in_a_row = 0

        def collect() -> None:
            nonlocal in_a_row
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, model = running.pop(future)
                self._release(model)
                failure = self._collected(cell, future, keep)
                in_a_row = 0 if failure is None else in_a_row + (not isinstance(failure, Lost))
                failed.extend([cell] if failure else [])
                self.report(cell, str(failure) if failure else None)

        def admitted(model: CellModel) -> bool:
            while True:
                while len(running) >= self.parallel:
                    collect()
                if self._must_end(in_a_row):
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
        self._must_end(in_a_row)
        return failed

    def _hold(self, model: CellModel) -> bool:
        """Reserve what the cell may cost; False if it does not fit now. A replay costs nothing."""
        if model.inner is None:
            return True
        with self.total.lock:
            ceiling = model.account.limits
            if any(ceiling[d] > amount for d, amount in self.total.left().items()):
                return False
            self.total.hold(_as_spend(ceiling))
            return True

    def _release(self, model: CellModel) -> None:
        if model.inner is not None:
            self.total.settle(_as_spend(model.account.limits), model.account.spent)

    def _must_end(self, in_a_row: int) -> bool:
        if self.stop is not None and self.stop.is_set():
            self.ended = "interrupted"
        elif in_a_row >= _PATIENCE:
            self.ended = "failures"
        return self.ended is not None

    def _collected(
        self,
        cell: Cell,
        future: Future[tuple[Record, Lesson | None]],
        keep: Callable[[Cell, Lesson | None], None],
    ) -> Unmeasured | LedgerError | None:
        """Keep the record and the lesson of a cell; returns why it was not measured, or None."""
        try:
            record, lesson = future.result()
        except (Unmeasured, LedgerError) as failure:
            self.failures.append(f"{cell}: {failure}")
            return failure
        if cell.name not in self.records:
            self.records.add(record)
        keep(cell, lesson)
        return None


def cell_account(tokens: float, usd: float) -> Account:
    """The account of one cell, with its ceiling as limits."""
    return Account({"tokens": tokens, "usd": usd})


def _as_spend(limits: Limits) -> Spend:
    return {**nothing(), "tokens": math.ceil(limits["tokens"]), "usd": limits["usd"], "calls": 1}
