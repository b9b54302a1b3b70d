"""Whether the request of a call has left, where its HTTP client can tell: one that is given up while it still
connects costs nothing.

httpx tells of each step of a connection through the request's extension `trace`.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Departure:
    """Whether a request has left. Until it is known that one still waits for its connection, it counts as
    gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connecting = self._gone = self._given_up = False

    def told(self, event: str) -> None:
        """What the connection does now. Raises ConnectionAbortedError where a request would leave that was
        given up."""
        with self._lock:
            if event.startswith("connection."):
                self._connecting = True
            elif self._given_up:
                raise ConnectionAbortedError("given up before it left")
            else:
                self._gone = True

    def give_up(self) -> bool:
        """Keep the request from leaving; False if it may be gone."""
        with self._lock:
            self._given_up = self._given_up or (self._connecting and not self._gone)
            return self._given_up


_DEPARTING: contextvars.ContextVar[Departure | None] = contextvars.ContextVar(
    "anytime_departing", default=None
)


@contextmanager
def departing(departure: Departure) -> Iterator[None]:
    """What is sent within tells whether it has left, where its client can tell."""
    token = _DEPARTING.set(departure)
    try:
        yield
    finally:
        _DEPARTING.reset(token)


def watched(request: Any, waits: bool) -> Any:
    """The HTTP request, whose connection tells the call within which it is sent what becomes of it. waits: its
    client is asynchronous."""
    departure = _DEPARTING.get()
    if departure is None or "trace" in request.extensions:
        return request

    def told(event: str, info: Any) -> None:
        departure.told(event)

    async def atold(event: str, info: Any) -> None:
        departure.told(event)

    request.extensions = {**request.extensions, "trace": atold if waits else told}
    return request
