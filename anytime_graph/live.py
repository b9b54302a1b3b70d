"""A running question as this process sees it: which answer was announced, what the running step
has spent, how long calls have been active. For display and for the clock; money is never decided
here, and nothing is lost with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cachetools import LRUCache
from typing_extensions import TypedDict

from anytime_graph.budget import Limits, Spend, left, nothing, total
from anytime_graph.pairs import Candidate
from anytime_graph.state import Task

_MOST = 4_096


class Improvement(TypedDict):
    """A custom stream event: the best answer so far. source: the node it came from."""

    answer: str
    score: float | None
    spent: Spend
    remaining: Limits
    source: str
    candidate: int


class Live:
    """reached: the hub's plan of which a task has brought an answer that will do."""

    def __init__(self) -> None:
        self.reached: str | None = None
        self._lock = threading.Lock()
        self._announced: Candidate | None = None
        self._spent = nothing()
        self._step = -1
        self._running = 0
        self._since = 0.0
        self._active = 0.0

    @contextmanager
    def active(self, task: Task) -> Iterator[float]:
        """While a task runs. Yields the seconds its step has been active before."""
        with self._lock:
            if task["step"] != self._step:
                self._step, self._active, self._spent = task["step"], 0.0, task["spent"]
            now = time.monotonic()
            if not self._running:
                self._since = now
            before = self._active + (now - self._since)
            self._running += 1
        try:
            yield before
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._active += time.monotonic() - self._since

    def charge(self, spend: Spend) -> None:
        with self._lock:
            self._spent = total([self._spent, spend])

    def offer(self, candidate: Candidate, limits: Limits) -> Improvement | None:
        """An event if a sibling's fresh answer beats what was announced; without a score only the
        first answer does, for the judge or the vote has yet to speak."""
        with self._lock:
            known = self._announced
            if known is not None and (candidate["score"] or 0.0) <= (known["score"] or 0.0):
                return None
            self._announced = candidate
            return _event(candidate, self._spent, limits)

    def settle(self, best: Candidate, spent: Spend, limits: Limits) -> Improvement | None:
        """An event if the incumbent is not the answer announced last."""
        with self._lock:
            self._spent = spent
            if self._announced is not None and self._announced["id"] == best["id"]:
                return None
            self._announced = best
            return _event(best, spent, limits)


class Lives:
    """The running questions of a graph, by run id; those not used for longest are forgotten first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_run: LRUCache[int, Live] = LRUCache(_MOST)

    def __getitem__(self, run_id: int) -> Live:
        with self._lock:
            return self._by_run.setdefault(run_id, Live())

    def forget(self, run_id: int) -> None:
        with self._lock:
            self._by_run.pop(run_id, None)


def _event(candidate: Candidate, spent: Spend, limits: Limits) -> Improvement:
    return Improvement(
        answer=candidate["answer"],
        score=candidate["score"],
        spent=spent,
        remaining=left(limits, spent),
        source=candidate["node"],
        candidate=candidate["id"],
    )


def improvement(event: Any) -> Improvement | None:
    """The event, if it is one of ours: other nodes of an app may write custom events too."""
    ours = isinstance(event, dict) and event.keys() == Improvement.__annotations__.keys()
    return event if ours else None
