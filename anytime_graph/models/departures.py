"""Whether the request of a call has left, as far as that can be told: one that fails, or is given up, before
that costs nothing. Nor does one leave by a connection of another event loop, which brings no reply. Also hangs up
on a server that a call no longer waits for.

httpx tells of each step of a connection through the request's extension `trace`. Where another client sends the
request, it has not left as long as LangChain still calls callbacks or waits for the model's rate limiter.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.rate_limiters import BaseRateLimiter

_IDLE = 100
"""Connections that a client keeps at most, by far."""
_HTTPX = ("httpx", "httpx2")
_CONNECTING = ("HTTPTransport", "AsyncHTTPTransport")
"""Their transports that make connections."""
_HEADS = (
    "http11.send_request_headers.",
    "http2.send_connection_init.",
    "http2.send_request_headers.",
)
"""What goes before a request's body, without which nobody serves it."""
_MADE = ("connection.connect_tcp.complete", "connection.start_tls.complete")
"""What brings a new connection. What is told of it has that as its `return_value`."""
_loops: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The event loop that the connections of an HTTP client belong to, where it is known."""


class Departure:
    """Whether a request has left. Once it may have, it counts as gone until it is known that one still waits
    for its connection. served: the server has begun a reply, which is no refusal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unseen = self._connecting = self._gone = self._given_up = self.kept = False
        self.served = False
        self._connection: Any = None

    def unseen(self) -> None:
        """Nothing may tell of it from now on. Raises ConnectionAbortedError where it was given up."""
        with self._lock:
            self._check()
            self._unseen = True

    def told(self, event: str, foreign: bool = False, info: Any = None) -> None:
        """What the connection does now, and what httpx says of that. Raises ConnectionAbortedError where a request
        would leave that was given up, or by a connection that is not a new one if those are foreign: then it is
        `kept`."""
        with self._lock:
            if event in _MADE and info:
                self._connection = info["return_value"]
            elif event.startswith("http2.") or ".response_closed." in event:
                self._connection = None  # it serves other requests too, or may from now on
            if event.startswith("connection."):
                self._connecting = True
            elif ".response_closed." not in event:
                self.kept = foreign and not self._connecting
                self._check()
                self._gone = self._gone or not event.startswith(_HEADS)
            if event.endswith("receive_response_headers.complete"):
                self.served = any(part in range(200, 300) for part in info["return_value"])

    def _check(self) -> None:
        if self.kept or self._given_up:
            raise ConnectionAbortedError("given up before it left")

    def give_up(self) -> bool:
        """Keep the request from leaving; False if it may be gone."""
        with self._lock:
            waits = not self._gone and (self._connecting or not self._unseen)
            self._given_up = self._given_up or waits
            return self._given_up

    def hang_up(self) -> None:
        """Close the connection under a thread that reads from it, if it was made for this request and serves no
        other. A thread cannot be cancelled, and a silent server would hold it for as long as its client waits."""
        with self._lock:
            own = None if self._connection is None else self._connection.get_extra_info("socket")
            if isinstance(own, socket.socket):
                with suppress(OSError):  # it is closed already
                    socket.socket.shutdown(
                        own, socket.SHUT_RDWR
                    )  # TLS's own forgets its keys under the reader


class Gate(BaseRateLimiter):
    """A model's rate limiter, or none, behind which nothing tells whether its request has left."""

    def __init__(self, departure: Departure, own: BaseRateLimiter | None) -> None:
        self._departure, self._connection = departure, own

    def acquire(self, *, blocking: bool = True) -> bool:
        acquired = self._connection is None or self._connection.acquire(blocking=blocking)
        self._departure.unseen()
        return acquired

    async def aacquire(self, *, blocking: bool = True) -> bool:
        acquired = self._connection is None or await self._connection.aacquire(blocking=blocking)
        self._departure.unseen()
        return acquired


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


def restated(response: Any) -> Any:
    """The reply, which had another status."""
    if (departure := _DEPARTING.get()) is not None:
        departure.served = departure.served and response.is_success
    return response


def watched(http: Any, request: Any) -> Any:
    """The HTTP request, whose connection tells the call within which it is sent what becomes of it."""
    departure = _DEPARTING.get()
    if departure is not None and _tells(departure, http, request):
        told = {"trace": lambda event, info: departure.told(event, info=info)}
        request.extensions = {**request.extensions, **told}
    return request


def _tells(departure: Departure, http: Any, request: Any) -> bool:
    """Whether the client's connections can tell the call of the request. Only httpx's own are sure to."""
    find = getattr(http, "_transport_for_url", lambda url: None)
    kinds = (type(find(request.url)), type(http.original).send)
    own = all(kind.__module__.partition(".")[0] in _HTTPX for kind in kinds)
    free = "trace" not in request.extensions
    if not (own and free and kinds[0].__name__ in _CONNECTING):
        departure.unseen()
    return free


async def sent_here(http: Any, request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """The same for an asynchronous client, with the reply. Idle connections that an earlier event loop has
    left in the client, as one `asyncio.run` leaves them to the next, are let go one by one."""
    departure, loop = _DEPARTING.get(), asyncio.get_running_loop()
    if departure is None or not _tells(departure, http, request):
        return await send(request)
    foreign = 0 if _loops.get(http.original) is loop else _IDLE

    async def told(event: str, info: Any) -> None:
        departure.told(event, foreign > 0, info)
        if event.startswith("connection."):  # the client had none left
            _loops[http.original] = loop

    request.extensions = {**request.extensions, "trace": told}
    while True:
        departure.kept = False
        try:
            return await send(request)
        except Exception:
            if not departure.kept:
                raise
            foreign -= 1
