"""An OpenAI-compatible endpoint that behaves as badly as it is told to, and counts what it serves.

It is the fake at the wire: everything of ours, and the provider's client, is real. Each request
gets a `Reply` from the script; the books (`server.calls`) say what was truly served.
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from langchain_openai import ChatOpenAI

from tests.kit.loopback import Handler, listening
from tests.kit.waiting import PATIENCE

WORD = "word "
REFUSALS = (400, 401, 403, 404, 409, 413, 422, 429, 503, 529)
LIES: dict[str, Any] = {
    "omitted": "none",
    "zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "null": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    "empty": {},
    "negative": {"prompt_tokens": -50, "completion_tokens": -900, "total_tokens": -950},
    "text": {"prompt_tokens": "many", "completion_tokens": "few", "total_tokens": "some"},
    "huge": {"prompt_tokens": 10**12, "completion_tokens": 10**12, "total_tokens": 2 * 10**12},
}
"""Reports of usage."""


@dataclass
class Reply:
    """text: what the model would say, or None to fill any limit. finish: None to derive it.

    usage: "true", "none" (omitted), or a dict that is sent in its place. reasoning: billed tokens
    spent before the text. cached: of the prompt's tokens, as reported. ignore_limit: serve the text, or for ever, whatever the limit says.
    error: an HTTP status, with `says` for its message or all of its body, by default an echo of the prompt, and more
    `headers`; "drop" (close before any byte), "break" (close in mid-stream), "junk"
    (bytes that are no JSON), "hang" (silence), "torn" (close after the report, before the end),
    "mute" (silence from there on). retry_after: seconds that an HTTP status asks for. pace: seconds a token takes. piece: words a chunk; None: one where
    somebody could look at or cut the stream under way, else eight, which takes less CPU.
    word: what an endless text repeats, one token each. delta: the field of the stream that carries
    the text: "content", "reasoning_content" or "tool". tools: calls that follow the text, as
    (name, arguments); a word of the arguments is a token, and so is the name. more: what the further
    choices say of a request for several; without, it brings one. bills: the prompt "once" for all
    choices, or for "each". tells: the usage of "all" choices, or as if there were "one".
    """

    text: str | None = "fine"
    usage: str | dict[str, Any] = "true"
    reasoning: int = 0
    cached: int = 0
    ignore_limit: bool = False
    error: int | str | None = None
    says: str | dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    retry_after: float = 0
    pace: float = 0.0
    piece: int | None = None
    word: str = WORD
    delta: str = "content"
    tools: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    more: list[str | None] = field(default_factory=list)
    bills: str = "once"
    tells: str = "all"


@dataclass
class Call:
    """What a request asked for and what was served for it. reported: usage sent, (input, output).
    refused: it was turned away, and nobody bills it."""

    request: dict[str, Any]
    prompt: int
    output: int = 0
    reported: tuple[int, int] | None = None
    refused: bool = False
    closed_early: bool = False

    @property
    def served(self) -> int:
        return self.prompt + self.output

    @property
    def limit(self) -> int | None:
        return self.request.get("max_completion_tokens", self.request.get("max_tokens"))

    @property
    def text(self) -> str:
        return "\n".join(said(m["content"]) for m in self.request["messages"])


Script = Callable[[dict[str, Any], int], Reply]


def unwatched(event: str, call: Call) -> None:
    """Nobody looks."""


@dataclass
class Server:
    """watch: told of each request "asked", each "word" served and each reply "ended" by itself.

    engine: what it says it is, if it counts prompts: "llamacpp" or "vllm". count: what it says of them, by
    path: JSON, an HTTP status, "hang" or "junk". counted: the paths that it was asked at. preface: tokens that it
    puts before each prompt.
    """

    url: str
    script: Script = lambda request, i: Reply()
    watch: Callable[[str, Call], None] = unwatched
    calls: list[Call] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    open: int = 0
    engine: str | None = None
    count: Callable[[str, dict[str, Any]], Any] = lambda path, body: counting(path, body)
    counted: list[str] = field(default_factory=list)
    preface: int = 0

    @property
    def served(self) -> int:
        return sum(c.served for c in self.calls)

    def settled(self) -> Server:
        """Wait until no request is being served any more, then read the books."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.open == 0, PATIENCE)
        return self

    def model(self, n: int | None = 1, **options: Any) -> ChatOpenAI:
        """n: None to let several drafts be asked for in one request."""
        return ChatOpenAI(model="scripted", base_url=self.url, api_key="none", n=n, **options)


def by_place(request: dict[str, Any], i: int) -> Reply:
    """A digit for an answer, by the call's place in its run, which its seed tells."""
    return Reply(text=f"so <answer>{request['seed'] * 7 % 10}</answer> it is")


def prompt_tokens(messages: list[dict[str, Any]], tools: Sequence[Any] = ()) -> int:
    """This endpoint's tokenizer: words, punctuation marks, digits; 4 more for each message."""
    text = " ".join(said(m["content"]) for m in messages)
    calls = [call["function"] for m in messages for call in m.get("tool_calls") or ()]
    text += "".join(json.dumps(part) for part in (*calls, *tools))
    return len(re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text)) + 4 * len(messages) + 3


def counting(path: str, body: dict[str, Any]) -> Any:
    """What llama.cpp's server and vLLM's say of a prompt: the tokens that `prompt_tokens` counts, in a
    template whose marks are single characters."""
    text = body.get("content")
    if text is None:
        said_ = [said(m["content"]) for m in body["messages"]]
        calls = [c["function"] for m in body["messages"] for c in m.get("tool_calls") or ()]
        said_ += [json.dumps(part) for part in (*calls, *body.get("tools", ()))]
        marks = "\x01" * (4 * len(body["messages"]) + 3)
        text = marks + " ".join(said_)
    if path == "/apply-template":
        return {"prompt": text}
    pieces = re.findall(r"\s*(?:[^\W\d_]+|\d|[^\w\s]|_)\s*", text)
    if "content" in body:
        return {"tokens": [{"id": i, "piece": piece} for i, piece in enumerate(pieces)]}
    return {"count": len(pieces), "tokens": [*range(len(pieces))]}


def words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def said(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block.get("text", "") for block in content or [])


@contextmanager
def serving() -> Iterator[Server]:
    server: Server

    class Playing(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1
        at_once = True

        def do_GET(self) -> None:
            server.counted.append(self.path)
            if server.engine is None:
                return self._send(404, {"error": {"message": "no such thing"}})
            self._send(200, {"data": [{"id": "scripted", "owned_by": server.engine}]})

        def do_POST(self) -> None:
            with server.changed:
                server.open += 1
            try:
                if self.path in ("/apply-template", "/tokenize"):
                    self._count()
                else:
                    self._serve()
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with server.changed:
                    server.open -= 1
                    server.changed.notify_all()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = json.loads(body)
            self.asked = request.get("model")
            with server.changed:
                asked = prompt_tokens(request["messages"], request.get("tools", ()))
                call = Call(request, server.preface + asked)
                index = len(server.calls)
                server.calls.append(call)
                server.changed.notify_all()
            server.watch("asked", call)
            reply = server.script(request, index)
            if isinstance(reply.error, int):
                call.prompt, call.refused = 0, reply.error in REFUSALS
                message = "no: " + call.text if reply.says is None else reply.says
                headers = reply.headers or {"retry-after": f"{reply.retry_after:g}"}
                whole = message if isinstance(message, dict) else {"error": {"message": message}}
                self._send(reply.error, whole, headers)
            elif reply.error == "drop":
                self._drop()
            elif reply.error == "junk":
                self._raw(200, b"<html>it is not JSON</html>", "application/json")
            elif reply.error == "hang":
                self._hang()
            elif reply.more and request.get("n", 1) > 1:
                self._stream_choices(request, call, reply)
            elif request.get("stream"):
                self._stream(request, call, reply)
            else:
                self._whole(call, reply)

        def _count(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.counted.append(self.path)
            told = server.count(self.path, body)
            if told == "hang":
                self._hang()
            elif told == "junk":
                self._raw(200, b"<html>it is not JSON</html>", "text/html")
            elif isinstance(told, int):
                self._send(told, {"error": {"message": "no"}})
            else:
                self._send(200, told)

        def _stream(self, request: dict[str, Any], call: Call, reply: Reply) -> None:
            limit = None if reply.ignore_limit else call.limit
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            if reply.error == "torn":
                self.send_header("content-length", str(10**9))
            self.end_headers()
            self.close_connection = True
            call.output = min(reply.reasoning, limit) if limit is not None else reply.reasoning
            source = _endless(reply.word) if reply.text is None else iter(words(reply.text))
            finish, piece = "stop", []
            watched = (
                reply.ignore_limit or reply.pace or reply.error or server.watch is not unwatched
            )
            self.at_once = watched
            size = reply.piece or (1 if watched else 32)
            try:
                for word in source:
                    if limit is not None and call.output >= limit:
                        finish = "length"
                        break
                    call.output += 1
                    piece.append(word)
                    if reply.pace:
                        time.sleep(reply.pace)
                    if len(piece) >= size:
                        self._event(_delta("".join(piece), reply.delta))
                        piece = []
                        if call.limit is not None and call.output > call.limit:
                            self._await_the_end()
                    server.watch("word", call)
                    if reply.error == "break" and call.output >= 5:
                        return self._drop()
                if piece:
                    self._event(_delta("".join(piece), reply.delta))
                for part in _called(reply, len(server.calls)) if finish == "stop" else ():
                    finish = "tool_calls"
                    if limit is not None and call.output >= limit:
                        finish = "length"
                        break
                    call.output += 1
                    self._event({"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]})
                if reply.error == "break":
                    return self._drop()
                self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
                if (request.get("stream_options") or {}).get("include_usage"):
                    self._usage(call, reply)
                if reply.error == "torn":
                    return self._drop()
                if reply.error == "mute":
                    return self._hang()
                self.wfile.write(b"data: [DONE]\n\n")
                server.watch("ended", call)
            except (BrokenPipeError, ConnectionResetError):
                call.closed_early = True
                raise

        def _await_the_end(self) -> None:
            """Beyond the limit the client is to hang up, which takes its time on a busy machine."""
            if select.select([self.connection], [], [], 0.03)[0]:
                raise ConnectionResetError

        def _stream_choices(self, request: dict[str, Any], call: Call, reply: Reply) -> None:
            """Several choices, word by word in turn."""
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            texts = [reply.text, *reply.more][: request["n"]]
            limit = None if reply.ignore_limit else call.limit
            prompt, first = call.prompt, 0
            call.prompt *= len(texts) if reply.bills == "each" else 1
            under_way = {
                i: enumerate(_endless(reply.word) if text is None else words(text))
                for i, text in enumerate(texts)
            }
            while under_way:
                for i, source in list(under_way.items()):
                    made, word = next(source, (0, None))
                    finish = "stop" if word is None else "length" if made == limit else None
                    told = _delta("" if word is None else word, "content")["choices"][0]
                    if finish:
                        del under_way[i]
                        told["delta"] = {}
                    else:
                        call.output += 1
                        first += not i
                        if reply.pace:
                            time.sleep(reply.pace)
                        server.watch("word", call)
                    self._event({"choices": [told | {"index": i, "finish_reason": finish}]})
                    if reply.ignore_limit and call.limit is not None and made > call.limit:
                        self._await_the_end()
                    if reply.error == "break" and call.output >= 5:
                        return self._drop()
            if reply.tells == "one":
                usage = {"prompt_tokens": prompt, "completion_tokens": first}
                reply = replace(reply, usage=usage | {"total_tokens": prompt + first})
            self._usage(call, reply)
            self.wfile.write(b"data: [DONE]\n\n")
            server.watch("ended", call)

        def _whole(self, call: Call, reply: Reply) -> None:
            limit = 4_096 if call.limit is None or reply.ignore_limit else call.limit
            source = _endless(reply.word) if reply.text is None else iter(words(reply.text))
            served = list(islice(source, limit + 1))
            finish = "length" if len(served) > limit else "stop"
            call.output = min(len(served), limit)
            time.sleep(reply.pace * call.output)
            message: dict[str, Any] = {"role": "assistant", "content": "".join(served[:limit])}
            for part in _called(reply, len(server.calls)) if finish == "stop" else ():
                if call.output >= limit:
                    finish = "length"
                    break
                call.output += 1
                made = message.setdefault("tool_calls", [])
                if "id" in part:
                    made.append(part)
                else:
                    made[-1]["function"]["arguments"] += part["function"]["arguments"]
            if "tool_calls" in message and finish == "stop":
                finish = "tool_calls"
            call.reported = (call.prompt, call.output)
            self._send(
                200,
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": self.asked,
                    "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                    "usage": {
                        "prompt_tokens": call.prompt,
                        "completion_tokens": call.output,
                        "total_tokens": call.served,
                    },
                },
            )

        def _usage(self, call: Call, reply: Reply) -> None:
            if reply.usage == "none":
                return
            usage: dict[str, Any] = {
                "prompt_tokens": call.prompt,
                "completion_tokens": call.output,
                "total_tokens": call.served,
                "prompt_tokens_details": {"cached_tokens": reply.cached},
                "completion_tokens_details": {"reasoning_tokens": reply.reasoning},
            }
            if isinstance(reply.usage, dict):
                usage = reply.usage
            else:
                call.reported = (call.prompt, call.output)
            self._event({"choices": [], "usage": usage})

        def _event(self, payload: dict[str, Any]) -> None:
            base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": self.asked}
            self.wfile.write(b"data: " + json.dumps(base | payload).encode() + b"\n\n")
            if self.at_once:
                self.wfile.flush()

        def _send(
            self, status: int, payload: dict[str, Any], headers: Mapping[str, str] | None = None
        ) -> None:
            self._raw(status, json.dumps(payload).encode(), "application/json", headers)

        def _raw(
            self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None
        ) -> None:
            dated = "date" in (headers or {})
            self.send_response_only(status) if dated else self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            self.wfile.write(body)

        def _drop(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def _hang(self) -> None:
            """Say nothing until the client goes away."""
            self.close_connection = True
            with suppress(OSError):
                self.wfile.flush()
                self.connection.recv(1)

    with listening(Playing) as url:
        server = Server(f"{url}/v1")
        yield server


def _endless(word: str) -> Iterator[str]:
    while True:
        yield word


def _called(reply: Reply, turn: int) -> Iterator[dict[str, Any]]:
    """The parts of the tool calls, each a token."""
    for i, (name, arguments) in enumerate(reply.tools):
        begun = {"name": name, "arguments": ""}
        yield {"index": i, "id": f"call_{turn}_{i}", "type": "function", "function": begun}
        for word in words(json.dumps(arguments)):
            yield {"index": i, "function": {"arguments": word}}


def _delta(text: str, field: str) -> dict[str, Any]:
    part: dict[str, Any] = {field: text}
    if field == "tool":
        part = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    return {"choices": [{"index": 0, "delta": {"role": "assistant", **part}}]}
