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

_HEADS = (
    "http11.send_request_headers.",
    "http2.send_connection_init.",
    "http2.send_request_headers.",
)
"""What goes before a request's body, without which nobody serves it."""


class Departure:
    """Whether a request has left. Unless it is known that it has yet to come to its client, or waits there for
    its connection, it counts as gone. tells: whether requests to this model go through clients that tell: those
    that wait (True), those that do not (False), or both; as far as is known."""

    def __init__(self, tells: set[bool] | None = None) -> None:
        self._lock, self._tells = threading.Lock(), set() if tells is None else tells
        self._here = self._gone = self._given_up = False

    def made(self, waits: bool) -> None:
        """The model makes the request now."""
        self._here = waits in self._tells

    def taken(self, waits: bool) -> None:
        """Its client has it now, and may not tell before it leaves. Raises ConnectionAbortedError if it was given
        up."""
        with self._lock:
            self._tells.add(waits)
            self._refuse()
            self._here = False

    def _refuse(self) -> None:
        if self._given_up:
            raise ConnectionAbortedError("given up before it left")

    def told(self, event: str) -> None:
        """What the connection does now. Raises ConnectionAbortedError where a request would leave that was
        given up."""
        with self._lock:
            if event.startswith("connection."):
                self._here = True
            elif ".response_closed." not in event:
                self._refuse()
                self._gone = self._gone or not event.startswith(_HEADS)

    def give_up(self) -> bool:
        """Keep the request from leaving; False if it may be gone."""
        with self._lock:
            self._given_up = self._given_up or (self._here and not self._gone)
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
    if departure is None:
        return request
    departure.taken(waits)
    if "trace" in request.extensions:
        return request

    def told(event: str, info: Any) -> None:
        departure.told(event)

    async def atold(event: str, info: Any) -> None:
        departure.told(event)

    request.extensions = {**request.extensions, "trace": atold if waits else told}
    return request
