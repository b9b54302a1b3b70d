"""The engine "ray": each cell is measured by a worker of a Ray cluster. The driver keeps the total, the
records and the recording; a worker buys within the ceiling that was held back for its cell."""

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
from anytime_graph.benchmark.run import FixedMemory, Learned, Lost, RunProtocol, Unmeasured
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
    """What a worker is told. address: of the database. rate: requests a minute, its own. learned:
    what the cell is shown, if anything. The others: see Grants, Facts, Recorded, RunProtocol and CellModel."""

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
    learned: Sequence[Learned] | None


@dataclass(frozen=True)
class Spread:
    """Measures cells by workers; in this process only what asks no model."""

    local: RunProtocol | PaperProtocol
    grants: Grants
    model: str
    rate: float | None

    def ceiling(self, cell: Cell) -> tuple[float, float]:
        return self.local.ceiling(cell)

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Learned | None]:
        """Raises Lost if the worker died: what it had bought is kept."""
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
            memory.learned if memory else None,
        )
        try:
            return _sent(job, self.local.stop)
        finally:
            model.account.book(self.grants.settle(job.grant, cell.name))


def _sent(job: Job, stop: threading.Event | None) -> tuple[Record, Learned | None]:
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    remote: Any = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(work)
    cancelled = False
    try:
        coming = remote.remote(job)
        while not ray.wait([coming], timeout=POLL)[0]:
            if stop is not None and stop.is_set() and not cancelled:
                ray.cancel(coming)  # a Ctrl-C to the worker
                cancelled = True
        found: tuple[Record, Learned | None] = ray.get(coming)
        return found
    except TaskCancelledError:
        raise Unmeasured("interrupted") from None
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise Lost(f"its worker was lost ({type(error).__name__})") from None


def work(job: Job) -> tuple[Record, Learned | None]:
    """What a worker does. Raises Unmeasured, also if its database fails; ValueError if its model is
    not the driver's."""
    try:
        return _measured(job)
    except LedgerError as error:
        raise Unmeasured(str(error)) from None


def _measured(job: Job) -> tuple[Record, Learned | None]:
    model = _model(job.model, job.rate)
    if facts_of(model, job.prices) != job.facts:
        raise ValueError(
            f"--model {job.model}: on a worker it is set otherwise than here; give all the same "
            "packages and the same environment"
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
        ) as takes,
    ):
        takes.tells_ends = job.tells_ends
        hearing = CellModel(
            takes,
            job.facts,
            meter(model, job.prices),
            str(job.cell),
            job.cell.model_seed,
            Account(job.ceiling),
            stop,
        )
        memory = FixedMemory(job.learned) if job.learned is not None else None
        protocol = job.protocol(job.task, ledger, job.prices, stop)
        return protocol.measure(job.cell, hearing, memory)


@lru_cache(maxsize=1)
def _model(name: str, rate: float | None) -> BaseChatModel:
    return limited(resolve_model(name), rate)


@contextmanager
def cluster(size: int) -> Iterator[None]:
    """This process's Ray if it has one, else the cluster at RAY_ADDRESS, else one of this machine's own
    for so many workers, which ends with the block."""
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
