"""A reply that came whole, as the stream of events that was asked for: of chat completions, OpenAI's Responses
and Anthropic's messages. Clients that asked for a stream would take it for an empty one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

_ENDED = ("completed", "incomplete")
"""Statuses of a response that is whole."""
_WRITTEN_OUT = ("tool_use", "end_turn", "stop_sequence")
"""Why a message ends whose model wrote all of it."""
_TOLD = {
    "text": (("text", "text_delta"),),
    "thinking": (("thinking", "thinking_delta"), ("signature", "signature_delta")),
}
"""The texts of Anthropic's blocks, and the events that bring them."""


def as_stream(body: Any) -> bytes | None:
    """The reply as events; None if it is none that is known."""
    if not isinstance(body, dict):
        return None
    events: Iterable[dict[str, Any]] | None
    if body.get("object") == "response":
        events = _of_responses(body) if body.get("status") in _ENDED else None
    elif body.get("type") == "message":
        events = _of_anthropic(body) if isinstance(body.get("content"), list) else None
    else:
        events = _of_chat(body)
    return None if events is None else b"".join(map(_as_event, events)) + b"data: [DONE]\n\n"


def _as_event(event: dict[str, Any]) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def _of_chat(body: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Mistral's client reads usage beside a choice only, and Groq's only where Groq has it."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    if not all(isinstance(c, dict) and c.get("message") for c in choices):
        return None
    about = {**body, "object": "chat.completion.chunk"}
    said = [{**c, "delta": _delta(c["message"]), "finish_reason": None} for c in choices]
    ends = [{**c, "delta": {}, "logprobs": None} for c in choices]
    groq = {"x_groq": {"usage": body.get("usage")}}
    return [{**about, "choices": said, "usage": None}, {**about, "choices": ends, **groq}]


def _delta(message: Any) -> Any:
    """A message as a piece of a stream, where tool calls have numbers."""
    if not isinstance(message, dict) or not isinstance(calls := message.get("tool_calls"), list):
        return message
    numbered = [{"index": i, **call} for i, call in enumerate(calls) if isinstance(call, dict)]
    return {**message, "tool_calls": numbered}


def _of_responses(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    for i, item in enumerate(part for part in body.get("output") or () if isinstance(part, dict)):
        at = {"output_index": i, "item_id": item.get("id")}
        empty = {**item, "content": []} if item.get("type") == "message" else item
        events.append({"type": "response.output_item.added", "item": empty, **at})
        if empty is not item:
            for j, part in enumerate(item.get("content") or ()):
                events += _of_content(part, {**at, "content_index": j})
        events.append({"type": "response.output_item.done", "item": item, **at})
    events.append({"type": f"response.{body['status']}", "response": body})
    return ({**event, "sequence_number": i} for i, event in enumerate(events))


def _of_content(part: dict[str, Any], at: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind = "refusal" if part.get("type") == "refusal" else "output_text"
    said = {"refusal": "refusal", "output_text": "text"}[kind]
    text = part.get(said) or ""
    yield {"type": "response.content_part.added", "part": {**part, said: ""}, **at}
    yield {"type": f"response.{kind}.delta", "delta": text, "logprobs": [], **at}
    yield {"type": f"response.{kind}.done", said: text, "logprobs": [], **at}
    yield {"type": "response.content_part.done", "part": part, **at}


def _of_anthropic(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ends = ("stop_reason", "stop_sequence", "container")
    begun = {**body, "content": [], **dict.fromkeys(ends)}
    yield {"type": "message_start", "message": begun}
    for i, block in enumerate(part for part in body["content"] if isinstance(part, dict)):
        deltas = [
            {"type": kind, name: block[name]}
            for name, kind in _TOLD.get(str(block.get("type")), ())
            if block.get(name)
        ]
        empty = {**block, **{name: "" for delta in deltas for name in delta if name != "type"}}
        if block.get("type") == "tool_use":
            empty = {**block, "input": {}}
            written = json.dumps(block.get("input") or {})
            if body.get("stop_reason") not in _WRITTEN_OUT:
                written = written[:-1]  # what the provider made whole may have been cut
            deltas = [{"type": "input_json_delta", "partial_json": written}]
        yield {"type": "content_block_start", "index": i, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": i, "delta": delta}
        yield {"type": "content_block_stop", "index": i}
    end = {name: body.get(name) for name in ends}
    yield {"type": "message_delta", "delta": end, "usage": body.get("usage") or {}}
    yield {"type": "message_stop"}
