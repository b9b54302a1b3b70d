"""Lets Ctrl-C return the best answer instead of losing it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class StopSignal(Protocol):
    """Set by a caller to end a run early; a threading.Event is one."""

    def is_set(self) -> bool: ...


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C sets the event that it yields; a second one interrupts as usual.

    Pass the event to the graph: `app.invoke(..., context={"stop": stop})`. Ctrl-C then cuts calls in
    flight, and the best answer so far is returned with stop_reason "interrupted". Main thread only.
    """
    stop = threading.Event()

    def on_first(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
