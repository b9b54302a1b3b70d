"""What may end a run early, without loss of the best answer: Ctrl-C, and functions that say `exit()`."""

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


class Exited(Exception):
    """A function of the user's wanted to exit from the program."""


@contextmanager
def contained() -> Iterator[None]:
    """For calls of the user's functions. Raises Exited in place of SystemExit, so that `exit()` ends only
    the function. Ctrl-C and the cancelling of a task pass."""
    try:
        yield
    except SystemExit as error:
        raise Exited from error


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
