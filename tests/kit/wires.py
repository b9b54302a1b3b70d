"""A loopback endpoint that speaks the wire formats of chat completions, Responses and Anthropic,
whole or streamed, and ends its replies for whatever reason a test gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from langchain_openai import ChatOpenAI

from tests.kit.loopback import Handler, listening

Json = dict[str, Any]
DONE = "All is clean."

numbers = count()

NATURAL = ["stop", "tool_calls", "end_turn", "tool_use", "completed"]
FINISHES = [*NATURAL, "length", "content_filter", "error", "insufficient_system_resource", None]


@dataclass(frozen=True)
class Sent:
    """A reply. pieces: of the arguments of its one tool call; None: it makes none. finish: why it
    ends; None: that is not said. said: its text; None: that it is done, or nothing before a call.
    refusal: words with which the model refuses. reports: whether usage is reported."""

    pieces: tuple[str, ...] | None = None
    finish: str | None = "stop"
    said: str | None = None
    refusal: str = ""
    reports: bool = True

    @property
    def text(self) -> str:
        if self.said is not None:
            return self.said
        return DONE if self.pieces is None and not self.refusal else ""

    @property
    def arguments(self) -> str:
        return "".join(self.pieces or ())


# --- the wire formats


def sse(events: list[Json], end: bytes = b"") -> tuple[str, bytes]:
    kinds = (f"event: {e['type']}\n" if "type" in e else "" for e in events)
    parts = zip(kinds, events, strict=True)
    body = b"".join(f"{kind}data: {json.dumps(event)}\n\n".encode() for kind, event in parts)
    return "text/event-stream", body + end


def whole(body: Json) -> tuple[str, bytes]:
    return "application/json", json.dumps(body).encode()


def chat(sent: Sent) -> tuple[str, bytes]:
    def event(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion.chunk", "created": 0, "choices": [choice]}

    events = [event({"role": "assistant", "content": sent.text})]
    for i, piece in enumerate(("", *(sent.pieces or ())) if sent.pieces is not None else ()):
        begun = {"index": 0} if i else {"index": 0, "id": "call_0", "type": "function"}
        function = {"arguments": piece} if i else {"name": "remove", "arguments": piece}
        events.append(event({"tool_calls": [begun | {"function": function}]}))
    events += [event({"refusal": letter}) for letter in sent.refusal]
    events += [event({}, sent.finish)] if sent.finish else []
    usage = {"prompt_tokens": 30, "completion_tokens": 60, "total_tokens": 90}
    report = [event({}) | {"choices": [], "usage": usage}] if sent.reports else []
    return sse([*events, *report], b"data: [DONE]\n\n")


def chat_whole(sent: Sent) -> tuple[str, bytes]:
    function = {"name": "remove", "arguments": sent.arguments}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    message: Json = {"role": "assistant", "content": sent.text}
    message |= {} if sent.pieces is None else {"tool_calls": calls}
    message |= {"refusal": sent.refusal} if sent.refusal else {}
    choice = {"index": 0, "message": message, "finish_reason": sent.finish}
    usage = {"prompt_tokens": 30, "completion_tokens": 60, "total_tokens": 90}
    return whole({"id": "c", "object": "chat.completion", "created": 0} | {
        "model": "m", "choices": [choice], "usage": usage,
    })  # fmt: skip


def response(sent: Sent, output: list[Json]) -> Json:
    ended = sent.finish in NATURAL
    status: Json = {"status": "completed" if ended else "incomplete"}
    if not ended:
        reason = "max_output_tokens" if sent.finish == "length" else sent.finish
        status |= {"incomplete_details": {"reason": reason}}
    usage = {"input_tokens": 30, "output_tokens": 60, "total_tokens": 90}
    usage |= {"input_tokens_details": {"cached_tokens": 0}}  # type: ignore[dict-item]
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}  # type: ignore[dict-item]
    return {"id": f"resp_{next(numbers)}", "object": "response", "created_at": 0, "model": "m", "tools": []} | {
        "parallel_tool_calls": True, "tool_choice": "auto", "output": output, "usage": usage,
    } | status  # fmt: skip


def responses(sent: Sent) -> tuple[str, bytes]:
    at: Json = {"output_index": 1, "item_id": "fc_1"}
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_0", "name": "remove"}
    says: Json = {"output_index": 0, "content_index": 0, "item_id": "m", "logprobs": []}
    begun = {"status": "in_progress", "usage": None}
    events: list[Json] = [
        {"type": "response.created", "response": response(sent, []) | begun},
        {
            "type": "response.output_text.delta",
            "delta": sent.text,
        }
        | says,
    ]
    if sent.pieces is not None:
        added = {"type": "response.output_item.added", "item": item | {"arguments": ""}, **at}
        kind = "response.function_call_arguments.delta"
        events += [added, *({"type": kind, "delta": piece, **at} for piece in sent.pieces)]
    if sent.refusal:
        done = {"type": "response.refusal.done", "refusal": sent.refusal, "output_index": 0}
        events.append(done | {"content_index": 1, "item_id": "m"})
    if sent.finish is not None:
        last = response(sent, [])
        events.append({"type": f"response.{last['status']}", "response": last})
    return sse([event | {"sequence_number": i} for i, event in enumerate(events)])


def responses_whole(sent: Sent) -> tuple[str, bytes]:
    text = {"type": "output_text", "text": sent.text}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    content: list[Json] = [text | {"annotations": []}]
    content += [{"type": "refusal", "refusal": sent.refusal}] if sent.refusal else []
    output: list[Json] = [message | {"content": content}]
    if sent.pieces is not None:
        call = {"type": "function_call", "id": "fc_1", "call_id": "call_0", "name": "remove"}
        output.append(call | {"arguments": sent.arguments})
    return whole(response(sent, output))


def freeform_call(sent: Sent) -> Json:
    call = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_0", "name": "remove"}
    return call | {"input": sent.arguments}


def freeform(sent: Sent) -> tuple[str, bytes]:
    """A call whose argument is any text, of the Responses API."""
    begun = {"status": "in_progress", "usage": None}
    events: list[Json] = [{"type": "response.created", "response": response(sent, []) | begun}]
    done = {"type": "response.output_item.done", "output_index": 0}
    events += [done | {"item": freeform_call(sent)}] if sent.pieces is not None else []
    if sent.pieces is None:
        says: Json = {"output_index": 0, "content_index": 0, "item_id": "m", "logprobs": []}
        events.append({"type": "response.output_text.delta", "delta": sent.text} | says)
    if sent.finish is not None:
        last = response(sent, [])
        events.append({"type": f"response.{last['status']}", "response": last})
    return sse([event | {"sequence_number": i} for i, event in enumerate(events)])


def freeform_whole(sent: Sent) -> tuple[str, bytes]:
    if sent.pieces is None:
        return responses_whole(sent)
    return whole(response(sent, [freeform_call(sent)]))


def anthropic_whole(sent: Sent) -> tuple[str, bytes]:
    """The arguments of its call are an object, whatever the model wrote of them."""
    call = {
        "type": "tool_use",
        "id": "toolu_0",
        "name": "remove",
        "input": {"path": sent.arguments},
    }
    content = [{"type": "text", "text": sent.text}] if sent.pieces is None else [call]
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": content}
    usage = {"input_tokens": 30, "output_tokens": 60}
    return whole(message | {"stop_reason": sent.finish, "stop_sequence": None, "usage": usage})


def anthropic(sent: Sent) -> tuple[str, bytes]:
    usage = {"input_tokens": 30, "output_tokens": 1}
    message: Json = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    said = sent.text
    text, call = {"type": "text", "text": ""}, {"type": "tool_use", "id": "toolu_0"}
    events: list[Json] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": text},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": said},
        },
        {"type": "content_block_stop", "index": 0},
    ]
    if sent.pieces is not None:
        block = call | {"name": "remove", "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in sent.pieces]
        events.append({"type": "content_block_start", "index": 1, "content_block": block})
        events += [{"type": "content_block_delta", "index": 1, "delta": d} for d in deltas]
        events.append({"type": "content_block_stop", "index": 1})
    if sent.finish is None and not sent.reports:
        return sse(events)
    reason = "max_tokens" if sent.finish == "length" else sent.finish
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"input_tokens": 30, "output_tokens": 60},
        }
    )
    return sse([*events, {"type": "message_stop"}])


@dataclass
class Wire:
    """A loopback endpoint. reply: what all requests are answered with, or only those with tools, as
    long as no tool was run."""

    url: str
    send: Callable[[Sent], tuple[str, bytes]] = chat
    reply: Sent = field(default_factory=Sent)
    all: bool = False
    requests: list[Json] = field(default_factory=list)

    def model(self, **options: Any) -> Any:
        streams = self.send not in (chat_whole, responses_whole, freeform_whole, anthropic_whole)
        if self.send in (anthropic, anthropic_whole):
            from langchain_anthropic import ChatAnthropic

            of: Json = {"model": "claude-m", "base_url": self.url, "api_key": "none"}
            return ChatAnthropic(**of, max_retries=0, disable_streaming=not streams)
        return ChatOpenAI(
            model="m",
            base_url=self.url,
            api_key="none",  # type: ignore[arg-type]
            **options,
            disable_streaming=not streams,
            use_responses_api=self.send in (responses, responses_whole, freeform, freeform_whole),
        )


FORMATS = (chat, chat_whole, responses, responses_whole, anthropic)


@contextmanager
def speaking() -> Iterator[Wire]:
    wire: Wire

    class Answering(Handler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            wire.requests.append(request)
            calling = request.get("tools") and "removed" not in json.dumps(request)
            kind, body = wire.send(wire.reply if calling or wire.all else Sent())
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with listening(Answering) as url:
        wire = Wire(url)
        yield wire
