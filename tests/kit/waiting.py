"""Waiting for what happens, however long a busy machine takes over it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from anytime_graph.checkpoints.sqlite import SqliteStore

T = TypeVar("T")
PATIENCE = 300.0
"""Seconds after which what a test waits for counts as hung. No program is held to it."""
_TRANSACTION = SqliteStore.transaction.__wrapped__.__code__  # type: ignore[attr-defined]


def until(happened: Callable[[], T]) -> T:
    """Look again and again; returns what there is once there is something."""
    while not (found := happened()):
        time.sleep(0.01)
    return found


async def auntil(happened: Callable[[], T]) -> T:
    while not (found := happened()):
        await asyncio.sleep(0.01)
    return found


def waits_for_the_file() -> set[int]:
    """The threads that are about to get SQLite's write lock, or wait for it."""
    frames = sys._current_frames().items()
    return {thread for thread, frame in frames if frame.f_code is _TRANSACTION}


class Clock:
    """A clock that a test can put forward, so that time is scarce at once. ahead: by so many seconds."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def now(self) -> float:
        return time.time() + self.ahead
