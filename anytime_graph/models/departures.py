"""Whether the request of a call has left, where its HTTP client can tell: one that is given up while it still
connects costs nothing. Nor does one leave by a connection of another event loop, which brings no reply.

httpx tells of each step of a connection through the request's extension `trace`.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

_IDLE = 100
"""Connections that a client keeps at most, by far."""
_loops: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The event loop that the connections of an HTTP client belong to, where it is known."""

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
        self._here = self._fresh = self._gone = self._given_up = self.kept = False

    def made(self, waits: bool) -> None:
        """The model makes the request now."""
        self._here = waits in self._tells

    def taken(self, waits: bool) -> None:
        """Its client has it now, and may not tell before it leaves. Raises ConnectionAbortedError if it was given
        up."""
        with self._lock:
            self._tells.add(waits)
            self._refuse()
            self._here = self._fresh = False

    def _refuse(self) -> None:
        if self._given_up:
            raise ConnectionAbortedError("given up before it left")

    def told(self, event: str, foreign: bool = False) -> None:
        """What the connection does now. Raises ConnectionAbortedError where a request would leave that was
        given up, or by a connection that is not a new one if those are foreign: then it is `kept`."""
        with self._lock:
            if event.startswith("connection."):
                self._here = self._fresh = True
            elif ".response_closed." not in event:
                self.kept = foreign and not self._fresh
                if self.kept:
                    raise ConnectionAbortedError("of another event loop")
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


def watched(request: Any) -> Any:
    """The HTTP request, whose connection tells the call within which it is sent what becomes of it."""
    departure = _DEPARTING.get()
    if departure is None:
        return request
    departure.taken(waits=False)
    if "trace" not in request.extensions:
        told = {"trace": lambda event, info: departure.told(event)}
        request.extensions = {**request.extensions, **told}
    return request


async def sent_here(http: Any, request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """The same for an asynchronous client, with the reply. Idle connections that an earlier event loop has
    left in the client, as one `asyncio.run` leaves them to the next, are let go one by one."""
    departure, loop = _DEPARTING.get(), asyncio.get_running_loop()
    if departure is None:
        return await send(request)
    departure.taken(waits=True)
    if "trace" in request.extensions:
        return await send(request)
    foreign = 0 if _loops.get(http) is loop else _IDLE

    async def told(event: str, info: Any) -> None:
        departure.told(event, foreign > 0)
        if event.startswith("connection."):  # the client had none left
            _loops[http] = loop

    request.extensions = {**request.extensions, "trace": told}
    while True:
        departure.kept = False
        try:
            return await send(request)
        except Exception:
            if not departure.kept:
                raise
            foreign -= 1
