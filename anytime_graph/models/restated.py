"""HTTP clients through which a reply that is nothing but an error has the status that the error stands for, and
one that comes whole although a stream was asked for is a stream.

Gateways send such with status 200, as JSON or as the first event of a stream. Clients would take it for an
empty stream, or fail on it without a word of why.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any

from anytime_graph.models.departures import restated, sent_here, watched
from anytime_graph.models.statuses import status_in
from anytime_graph.models.whole import as_stream

_LONGEST = 65_536
"""Bytes of a reply that are read to see whether it is an error."""
_LONGEST_WHOLE = 2**23
"""Bytes that are read of one that is JSON, and may have come whole."""
_LINES = ("", *":deir")
"""How the lines of a stream of events begin: with a colon, or with data, event, id or retry."""
_DATA = re.compile(r"^data:(.*)$", re.M)
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")


def restating(http: Any) -> Any:
    """A view of an HTTP client, which shares its connections."""
    if getattr(http, "restates", False):
        return http
    view = object.__new__(_restating_kind(http.__class__))
    view.__dict__, view.original = http.__dict__, http  # which would be closed if nobody held it
    return view


def restating_in(owner: Any, *names: str) -> Any:
    """A copy of what holds HTTP clients by these names, which holds views of them."""
    own = copy.copy(owner)
    for name in names:
        if hasattr(http := getattr(owner, name, None), "send"):
            setattr(own, name, restating(http))
    own.original = owner  # which would close them if nobody held it
    return own


@functools.cache
def _restating_kind(kind: Any) -> Any:
    def send(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        response = kind.send(self, watched(self, request), *args, **options)
        if response.is_closed:
            return _with_status(response)
        head, parts = _Head(response), response.iter_bytes()
        try:
            for part in parts:
                if head.shows(part):
                    break
        except Exception as error:
            head.broken = error
        except BaseException:
            response.close()
            raise
        if (stated := head.stated()) is None:
            return head.passed_on(_streams(type(response).__module__)[0](head, parts))
        response.close()
        return stated

    async def asend(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        response = await sent_here(
            self, request, lambda sent: kind.send(self, sent, *args, **options)
        )
        if response.is_closed:
            return _with_status(response)
        head, parts = _Head(response), response.aiter_bytes()
        try:
            async for part in parts:
                if head.shows(part):
                    break
        except Exception as error:
            head.broken = error
        except BaseException:
            await response.aclose()
            raise
        if (stated := head.stated()) is None:
            return head.passed_on(_streams(type(response).__module__)[1](head, parts))
        await response.aclose()
        return stated

    sends = asend if inspect.iscoroutinefunction(kind.send) else send
    own = {"send": sends, "restates": True, "__del__": lambda self: None}
    return type(kind.__name__, (kind,), own | {"__slots__": ("original",)})


class _Head:
    """What has been read of a reply that streams in. broken: what ended the reading. begun: usage that its
    first event reports."""

    def __init__(self, response: Any) -> None:
        self.response, self.read = response, bytearray()
        self.begun: Any = None
        self.broken: Exception | None = None
        self._examined = 0

    def shows(self, part: bytes) -> bool:
        """Take in a part; True once it shows whether the reply is an error. It is examined when it has grown
        by an eighth, so in linear time."""
        self.read += part
        most = _LONGEST_WHOLE if self.read[:64].lstrip()[:1] == b"{" else _LONGEST
        if (size := len(self.read)) >= most:
            return True
        if not self.response.is_success or size < self._examined * 9 // 8:
            return False
        self._examined = size
        return _first_json(self.read)[1]

    def stated(self) -> Any:
        """The reply with its status, if it is an error; not every client reads the words of one that streams."""
        if not self.response.is_success:
            words = self.read[:_LONGEST].decode("utf-8", "replace").encode()
            return _like(self.response, self.response.status_code, content=words)
        body = _first_json(self.read + b"\n\n")[0]
        if isinstance(body, dict) and isinstance(message := body.get("message"), dict):
            self.begun = message.get("usage") if body.get("type") == "message_start" else None
        return _as_error(self.response, body) or _as_stream(self.response, body)

    def passed_on(self, stream: Any) -> Any:
        """The reply as it would have come."""
        return _like(self.response, self.response.status_code, stream=stream)


class _Totals:
    """Puts what Anthropic's first event reports into its last one, where that does not: its client reads only
    that, and gateways report the prompt as Anthropic once did, at the beginning alone."""

    def __init__(self, begun: Any) -> None:
        self._begun = begun if isinstance(begun, dict) else {}
        self._open = b""

    def of(self, part: bytes) -> bytes:
        """The part, but for a line that is still open, with what was open before it."""
        if not self._begun:
            return part
        *lines, self._open = (self._open + part).split(b"\n")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def rest(self) -> bytes:
        return self._line(self._open)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b'"message_delta"' not in line:
            return line
        event, _ = _json_at_head(line[5:].decode("utf-8", "replace").strip())
        if not isinstance(event, dict) or not isinstance(usage := event.get("usage"), dict):
            return line
        told = {name: count for name, count in usage.items() if count is not None}
        return b"data: " + json.dumps({**event, "usage": {**self._begun, **told}}).encode()


@functools.cache
def _streams(module: str) -> tuple[Any, Any]:
    """Streams, sync and async, of a head and the parts that follow it, for the package of a reply."""
    package = import_module(module.partition(".")[0])
    # The types of both bases are known at run time only.

    class Stream(package.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, head: _Head, parts: Iterator[bytes]) -> None:
            self.head, self.parts = head, parts

        def __iter__(self) -> Iterator[bytes]:
            totals = _Totals(self.head.begun)
            yield totals.of(bytes(self.head.read))
            if self.head.broken is not None:
                raise self.head.broken
            for part in self.parts:
                yield totals.of(part)
            yield totals.rest()

        def close(self) -> None:
            self.head.response.close()

    class AsyncStream(package.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, head: _Head, parts: AsyncIterator[bytes]) -> None:
            self.head, self.parts = head, parts

        async def __aiter__(self) -> AsyncIterator[bytes]:
            totals = _Totals(self.head.begun)
            yield totals.of(bytes(self.head.read))
            if self.head.broken is not None:
                raise self.head.broken
            async for part in self.parts:
                yield totals.of(part)
            yield totals.rest()

        async def aclose(self) -> None:
            await self.head.response.aclose()

    return Stream, AsyncStream


def _like(response: Any, status: int, **body: Any) -> Any:
    """A reply like this one, with another body, which is not encoded."""
    headers = [(k, v) for k, v in response.headers.multi_items() if k not in _OF_THE_BODY]
    about = {name: getattr(response, name) for name in ("request", "extensions", "history")}
    return type(response)(status, headers=headers, **about, **body)


def _with_status(response: Any) -> Any:
    """A reply that has come, with the status of the error that it may be."""
    content = response.content
    short = response.is_success and len(content) <= _LONGEST
    return (_as_error(response, _first_json(content)[0]) if short else None) or response


def _as_error(response: Any, body: Any) -> Any:
    """The reply with the status of the error that is its body; None if it is none. One that says nothing known,
    or reports usage, may have been served, as with status 500."""
    if not isinstance(body, dict) or any(map(_says, body.get("choices") or ())):
        return None
    if not (body.get("error") or "error" in (body.get("object"), body.get("type"))):
        return None
    status = (None if body.get("usage") else status_in(body)) or 500
    return restated(_like(response, status, content=json.dumps(body).encode()))


def _as_stream(response: Any, body: Any) -> Any:
    """The reply as a stream, if one was asked for and it came whole; None otherwise."""
    try:
        asked = json.loads(response.request.content).get("stream")
    except (ValueError, AttributeError, RuntimeError):  # it may not have been read
        return None
    if not asked or (content := as_stream(body)) is None:
        return None
    told = _like(response, response.status_code, content=content)
    # Mistral's client takes no other for a stream.
    told.headers["content-type"] = "text/event-stream"
    return told


def _says(choice: Any) -> bool:
    """Whether a choice holds anything of a reply."""
    parts = [choice.get(key) for key in ("delta", "message")] if isinstance(choice, dict) else [1]
    return any(
        part and (not isinstance(part, dict) or any(v for k, v in part.items() if k != "role"))
        for part in parts
    )


def _first_json(read: bytes | bytearray) -> tuple[Any, bool]:
    """What the reply begins with, as JSON: the reply itself, its first line or item, or the data of its first
    event. Also whether that has come, or cannot."""
    text = read.lstrip(b"\xef\xbb\xbf \t\r\n[").decode("utf-8", "replace")
    if text[:1] == "{":
        return _json_at_head(text)
    if text[:1] not in _LINES:
        return None, True
    *events, _ = text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    for data in filter(str.strip, map("\n".join, map(_DATA.findall, events))):
        found, _ = _json_at_head(data.strip())
        if not (isinstance(found, dict) and found.get("type") == "ping"):
            return found, True
    return None, False


def _json_at_head(text: str) -> tuple[Any, bool]:
    """The JSON at the head of a text, and whether all of it is there."""
    try:
        return json.JSONDecoder().raw_decode(text)[0], True
    except RecursionError:
        return None, True
    except ValueError:
        return None, False
