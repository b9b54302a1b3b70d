"""Ctrl-C that returns the best answer instead of losing it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class StopSignal(Protocol):
    """What a caller sets to end a run early; a threading.Event is one."""

    def is_set(self) -> bool: ...


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C sets the event it yields; a second one interrupts as usual.

    Pass the event on: `app.invoke(..., context={"stop": stop})`. Calls in flight are then cut and
    the best answer so far is returned with stop_reason "interrupted". Main thread only.
    """
    stop = threading.Event()

    def first(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
