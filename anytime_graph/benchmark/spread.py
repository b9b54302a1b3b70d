"""The engine "ray": workers of a Ray cluster measure the cells.

The driver keeps the total, the records and the recording. A worker spends at most the ceiling that
the driver has reserved for its cell.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from langchain_core.language_models import BaseChatModel

from anytime_graph.benchmark.cells import Cell, Record
from anytime_graph.benchmark.paper import PaperProtocol
from anytime_graph.benchmark.recording import POLL, Facts
from anytime_graph.benchmark.run import FixedMemory, Lesson, Lost, RunProtocol, Unmeasured
from anytime_graph.benchmark.shared import Grants, WorkerRecording
from anytime_graph.benchmark.tape import CellModel, facts_of, limited
from anytime_graph.budget import Limits, Prices
from anytime_graph.checkpoints import Ledger, LedgerError
from anytime_graph.checkpoints.postgres import PostgresStore
from anytime_graph.interrupt import interruptible
from anytime_graph.metering.account import Account
from anytime_graph.metering.meter import meter
from anytime_graph.models import resolve_model
from anytime_graph.tasks import Task


@dataclass(frozen=True)
class Job:
    """The work of a worker. address: that of the database. rate: the worker's requests per minute.
    lessons: those that the cell is shown, or None. For the other fields see Grants, Facts, Recorded,
    RunProtocol and CellModel."""

    address: str = field(repr=False)
    benchmark: str
    grant: str
    model: str
    rate: float | None
    facts: Facts
    prices: Prices | None
    tells_ends: bool
    protocol: type[RunProtocol | PaperProtocol]
    task: Task
    cell: Cell
    ceiling: Limits
    lessons: Sequence[Lesson] | None


@dataclass(frozen=True)
class Spread:
    """Measures cells by workers, and replays in this process."""

    local: RunProtocol | PaperProtocol
    grants: Grants
    model: str
    rate: float | None

    def ceiling(self, cell: Cell) -> tuple[float, float]:
        return self.local.ceiling(cell)

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Lesson | None]:
        """Measure the cell on a worker. Raises Lost if the worker died; its calls are kept."""
        if model.inner is None:
            return self.local.measure(cell, model, memory)
        job = Job(
            self.grants.url,
            self.grants.benchmark,
            self.grants.give(cell.name),
            self.model,
            self.rate,
            model.facts,
            self.local.prices,
            model.recording.tells_ends,
            type(self.local),
            replace(self.local.task, questions=()),
            cell,
            model.account.limits,
            memory.lessons if memory else None,
        )
        try:
            return _run_on_worker(job, self.local.stop)
        finally:
            model.account.book(self.grants.settle(job.grant, cell.name))


def _run_on_worker(job: Job, stop: threading.Event | None) -> tuple[Record, Lesson | None]:
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    remote: Any = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(work)
    cancelled = False
    try:
        future = remote.remote(job)
        while not ray.wait([future], timeout=POLL)[0]:
            if stop is not None and stop.is_set() and not cancelled:
                ray.cancel(future)  # the worker gets a Ctrl-C
                cancelled = True
        measured: tuple[Record, Lesson | None] = ray.get(future)
        return measured
    except TaskCancelledError:
        raise Unmeasured("interrupted") from None
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise Lost(f"its worker was lost ({type(error).__name__})") from None


def work(job: Job) -> tuple[Record, Lesson | None]:
    """Measure a cell in a worker. Raises Unmeasured, also if the database fails, and ValueError if
    the worker's model differs from the driver's."""
    try:
        return _measured(job)
    except LedgerError as error:
        raise Unmeasured(str(error)) from None


def _measured(job: Job) -> tuple[Record, Lesson | None]:
    model = _model(job.model, job.rate)
    if facts_of(model, job.prices) != job.facts:
        raise ValueError(
            f"--model {job.model}: the model has other settings on a worker; give all machines "
            "the same packages and environment"
        )
    with (
        interruptible() as stop,
        closing(Ledger(PostgresStore(job.address))) as ledger,
        WorkerRecording.opened(
            ledger.store,
            job.address,
            job.grant,
            job.benchmark,
            job.cell.name,
            job.prices,
            stop,
        ) as recording,
    ):
        recording.tells_ends = job.tells_ends
        model_of_cell = CellModel(
            recording,
            job.facts,
            meter(model, job.prices),
            str(job.cell),
            job.cell.model_seed,
            Account(job.ceiling),
            stop,
        )
        memory = FixedMemory(job.lessons) if job.lessons is not None else None
        protocol = job.protocol(job.task, ledger, job.prices, stop)
        return protocol.measure(job.cell, model_of_cell, memory)


@lru_cache(maxsize=1)
def _model(name: str, rate: float | None) -> BaseChatModel:
    return limited(resolve_model(name), rate)


@contextmanager
def cluster(size: int) -> Iterator[None]:
    """Connect to this process's Ray, else to the cluster at RAY_ADDRESS, else to a new one on this
    machine with `size` workers, which ends with the block."""
    try:
        import ray
    except ImportError:
        raise ImportError("--engine ray needs: pip install 'anytime-graph[ray]'") from None
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        own = {"address": "local", "num_cpus": size, "include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield
    finally:
        ray.shutdown()
