"""Processes that are killed when the server comes to a certain event."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from typing import NamedTuple

from tests.kit.server import Call, Server
from tests.kit.waiting import PATIENCE


class Doom(NamedTuple):
    """A life ends `delay` seconds after the n-th such event: "asked", "word" or "ended" at the
    server; "born", its own beginning."""

    event: str
    n: int
    delay: float


NEVER = Doom("never", 1, 0)


def ended(process: ForkServerProcess) -> int | None:
    process.join(PATIENCE)
    hung = process.is_alive()
    process.kill()
    process.join()
    assert not hung
    return process.exitcode


@contextmanager
def struck(server: Server, doom: Doom, strike: Callable[[], None]) -> Iterator[None]:
    """Strike when the doom comes, unless the block ends before."""
    nth = itertools.count(1)
    timer = threading.Timer(doom.delay, strike)

    def watch(event: str, call: Call) -> None:
        if event == doom.event and next(nth) == doom.n:
            if doom.delay:
                timer.start()
            else:
                strike()

    server.watch = watch
    watch("born", Call({}, 0))
    try:
        yield
    finally:
        timer.cancel()
        server.watch = lambda event, call: None
