"""Running questions as this process sees them: answers to announce, and how long calls are active.

Nothing here decides about money, and a run loses nothing if this is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cachetools import LRUCache
from langgraph.config import get_stream_writer
from langsmith import get_current_run_tree
from typing_extensions import TypedDict

from anytime_graph.budget import Limits, Spend, left, nothing, total
from anytime_graph.run.pairs import Candidate

_MOST = 4_096


class Improvement(TypedDict):
    """A custom stream event: the best answer so far. source: the node it came from."""

    answer: str
    score: float | None
    spent: Spend
    remaining: Limits
    source: str
    candidate: int


class Warned(TypedDict):
    """A custom stream event: this part of the budget is used. spent, remaining: of the run."""

    used: float
    spent: Spend
    remaining: Limits


class Live:
    """One running question: the answer announced last, what the running step has spent, and how long its
    calls have been active. reached: the hub's plan one of whose calls brought a good enough answer."""

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
    def active(self, step: int, spent: Spend) -> Iterator[float]:
        """Open while a call of this step runs. Yields the seconds for which the step was active before.
        spent: what the run had spent before the step. Calls side by side share their seconds."""
        with self._lock:
            if step != self._step:
                self._step, self._active, self._spent = step, 0.0, spent
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
        """An event if a new answer of the running step beats the announced one. Without scores only the
        first answer is announced, because the judge or the vote decides later."""
        with self._lock:
            best = self._announced
            if best is not None and (candidate["score"] or 0.0) <= (best["score"] or 0.0):
                return None
            self._announced = candidate
            return _event(candidate, self._spent, limits)

    def settle(self, best: Candidate, spent: Spend, limits: Limits) -> Improvement | None:
        """An event if the best answer is not the one announced last."""
        with self._lock:
            self._spent = spent
            if self._announced is not None and self._announced["id"] == best["id"]:
                return None
            self._announced = best
            return _event(best, spent, limits)


class Lives:
    """The running questions of a graph, by run id. The least recently used are forgotten first."""

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
    """The event if it is an Improvement, as other nodes of an app may write custom events too."""
    ours = isinstance(event, dict) and event.keys() == Improvement.__annotations__.keys()
    return event if ours else None


def announce(event: Improvement | Warned | None) -> None:
    """Write an event to the graph's custom stream."""
    if event is not None:
        get_stream_writer()(event)


def note(node: str, candidate: Candidate | None, spend: Spend) -> None:
    """Add score and spend to the metadata of the node's run in LangSmith."""
    run = get_current_run_tree()
    if run is not None and run.name == node:
        score = None if candidate is None else candidate["score"]
        scored = {} if score is None else {"score": score}
        run.add_metadata({**scored, "tokens": spend["tokens"], "usd": spend["usd"]})
