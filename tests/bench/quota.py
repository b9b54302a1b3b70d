"""Many processes on one quota: overspend, utilisation, and what the books add to a call.

`python -m tests.bench.quota [PROCESSES [CALLS]]`; CALLS in all, by default 32 processes and 2,000 calls.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from rich.console import Console
from rich.table import Table

from anytime_graph import Budget, Quota, open_checkpoints
from anytime_graph.budget import Spend
from anytime_graph.metering.call import call
from anytime_graph.metering.meter import meter
from anytime_graph.metering.request import Journal, Place, Reply, Request
from tests.kit.forks import forks
from tests.kit.postgres import fresh, running

PROMPT, CAP = 60, 1_000
REPLIES = (100, 500)
"""Output tokens of a reply: between these; each call reserves CAP."""
SECONDS = (0.5, 2.5)
"""How long a call takes."""


class Drawn(BaseChatModel):
    """A model whose replies have a drawn length and take a drawn time."""

    max_tokens: int | None = None

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("a river"))])

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        time.sleep(random.uniform(*SECONDS))
        output = min(random.randint(*REPLIES), self.max_tokens or CAP)
        total = {"input_tokens": PROMPT, "output_tokens": output, "total_tokens": PROMPT + output}
        usage: Any = total
        yield ChatGenerationChunk(message=AIMessageChunk("a river", usage_metadata=usage))

    @property
    def _llm_type(self) -> str:
        return "drawn"


class Timed:
    """A journal that notes how long its writes take."""

    def __init__(self, inner: Journal) -> None:
        self.inner, self.seconds = inner, 0.0

    def recall(self, place: Place) -> None:
        return None

    def reserve(
        self, request: Request, amounts: Spend, model: str, so_far: Callable[[], str]
    ) -> bool:
        began = time.perf_counter()
        try:
            return self.inner.reserve(request, amounts, model, so_far)
        finally:
            self.seconds += time.perf_counter() - began

    def settle(self, place: Place, reply: Reply) -> None:
        began = time.perf_counter()
        self.inner.settle(place, reply)
        self.seconds += time.perf_counter() - began


def process(target: str, calls: int, start: Any, results: Any) -> None:
    """Calls until they are made or the quota is used up. Tells what each cost and what it waited for
    the books."""
    ready = meter(Drawn(), None)
    with open_checkpoints(target) as store:
        shared = store.ledger.shared(())
        shared.standings()
        start.wait()
        spent, added, refused = 0, [], 0
        for _ in range(calls):
            journal = Timed(shared.journal())  # type: ignore[arg-type] # there is a quota
            request = Request(prompt=[HumanMessage("?")], max_input=PROMPT, max_output=CAP)
            reply = call(ready, request, {"callbacks": []}, None, journal)
            refused += bool(reply.receipt.get("withheld"))
            spent += reply.receipt["spend"]["tokens"]
            if reply.receipt["spend"]["calls"]:
                added.append(journal.seconds * 1_000)
        results.put((spent, added, refused))


def measured(target: str, processes: int, calls: int) -> tuple[str, ...]:
    # Half of what the calls would cost: 360 tokens each.
    quota = calls * (PROMPT + sum(REPLIES) // 2) // 2
    with open_checkpoints(target) as store:
        store.ledger.quotas.keep(Quota(Budget(tokens=quota), window="1d"))
        began = time.perf_counter()
        start, results = forks.Barrier(processes), forks.SimpleQueue()
        workers = [
            forks.Process(target=process, args=(target, calls // processes, start, results))
            for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        told = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        (row,) = store.ledger.quotas.rows()
    spent, added = sum(each[0] for each in told), [ms for each in told for ms in each[1]]
    assert row["booked"]["tokens"] == spent, "the books are what was spent"
    return (
        f"{len(added)} of {calls}",
        str(max(0, spent - quota)),
        f"{spent / quota:.3f}",
        f"{statistics.median(added):.2f}",
        f"{statistics.quantiles(added, n=20)[-1]:.1f}",
        f"{time.perf_counter() - began:.0f}",
    )


def main(processes: int = 32, calls: int = 2_000) -> None:
    table = Table(
        "database",
        "calls made",
        "tokens over",
        "utilisation",
        "median ms added",
        "95 %",
        "seconds",
        title=f"{processes} processes on one quota of half of what {calls} calls cost",
    )
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        table.add_row("SQLite", *measured(str(Path(folder) / "quota.db"), processes, calls))
        url = stack.enter_context(fresh(stack.enter_context(running())))
        table.add_row("PostgreSQL", *measured(url, processes, calls))
    Console(width=110).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
