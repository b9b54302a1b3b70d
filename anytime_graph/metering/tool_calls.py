"""Which tool calls of a reply may be carried out: those whose arguments arrived whole.

LangChain repairs arguments that broke off: `{"path": "/data` becomes {"path": "/data"}, which the
model may not have meant. Nor is it known what it meant by a key that comes twice.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, TypeGuard, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    InvalidToolCall,
    ToolCall,
    message_chunk_to_message,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call

from anytime_graph.models import providers

_BLOCKS = (
    *("tool_use", "input_json_delta", "function_call", "custom_tool_call"),
    *("tool_call", "tool_call_chunk"),
)
"""Types of content blocks that hold tool calls, or parts of them."""


def with_whole_calls(message: AIMessage) -> AIMessage:
    """The message (never a chunk) with those tool calls whose arguments were sent as a JSON object,
    however the reply ended; the others are invalid. Empty text means no arguments, and free text or an
    object that the provider made counts as whole, but only in a reply that the model ended, or whose
    client does not say how it ended. Nor is empty text if its client has left out the arguments, as that
    of the Responses API may, or has joined them to another call."""
    about = message.response_metadata
    ended = providers.ended_naturally(about)
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    if isinstance(message, AIMessageChunk):
        chunks = message.tool_call_chunks
        joined = all(chunk["name"] for chunk in chunks)  # one without was not joined to its start
        at = Counter(chunk["index"] for chunk in chunks)
        mixed = {c["index"] for c in chunks if not c["args"] and at[c["index"]] > 1} - {None}
        free = _ids(message, ("custom_tool_call",))
        left = {_call_id(block) for block in _calls_in(message) if block.get("partial_json")}
        unsaid = ended and joined and about.get("object") != "response"
        built = "function_call" in message.additional_kwargs  # Google's
        whole = joined and (ended or providers.finish(about) is None)
        for chunk in chunks:
            args = _parsed_arguments(chunk["args"], unsaid and chunk["id"] not in left)
            odd = not whole and (built or chunk["index"] is None)  # Ollama's have none
            odd = odd or chunk["index"] in mixed or (chunk["id"] in free and not ended)
            if args is None or not chunk["name"] or odd:
                invalid.append(_invalid(chunk))
            else:
                valid.append(tool_call(name=chunk["name"], args=args, id=chunk["id"]))
        message = cast(AIMessage, message_chunk_to_message(message))
    else:
        sent: dict[Any, list[Any]] = {}
        for id, arguments in _sent_arguments(message):
            sent.setdefault(id, []).append(arguments)
        invalid.extend(message.invalid_tool_calls)
        ended = ended or (not sent and providers.finish(about) is None)
        made = _ids(message, ("custom_tool_call", "tool_use"))
        for call in message.tool_calls:
            texts = sent.get(call["id"]) or [_argument_text(call["args"])]
            told = ended or call["id"] not in made
            if told and all(_parsed_arguments(text, ended) is not None for text in texts):
                valid.append(call)
            else:
                invalid.append(_invalid({**call, "args": "".join(map(_argument_text, texts))}))
    return _with_calls(message, valid, invalid)


def first_calls(message: AIMessage, n: int) -> AIMessage:
    """The message with its first n tool calls."""
    return _with_calls(message, message.tool_calls[:n], message.invalid_tool_calls)


def _with_calls(
    message: AIMessage, valid: list[ToolCall], invalid: list[InvalidToolCall]
) -> AIMessage:
    """The message with these tool calls in place of its own, in its content too."""
    if valid == message.tool_calls and invalid == message.invalid_tool_calls:
        return message
    kept = {call["id"] for call in valid}
    content = message.content
    if not isinstance(content, str):
        content = [b for b in content if not _is_call(b) or _call_id(b) in kept]
    extra = {k: v for k, v in message.additional_kwargs.items() if k != "tool_calls"}
    update = {"tool_calls": valid, "invalid_tool_calls": invalid}
    return message.model_copy(update={**update, "content": content, "additional_kwargs": extra})


def broken(message: AIMessage) -> bool:
    """Whether the model called tools and none of the calls arrived whole."""
    return bool(message.invalid_tool_calls) and not message.tool_calls


def _parsed_arguments(text: Any, ended: bool) -> dict[str, Any] | None:
    """The arguments in a text, or None if it is no JSON object. Like LangChain it allows control
    characters within strings: some models write them, and a cut does not cause them."""
    if not text:
        return {} if ended else None
    try:
        written = _argument_text(text)
        args = json.loads(
            written,
            strict=False,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_unambiguous,
        )
    except (ValueError, TypeError, RecursionError):
        return None
    return args if isinstance(args, dict) else None


def _finite(number: str) -> float:
    """Raises ValueError for NaN and Infinity, which Python reads and JSON does not have, and for numbers as
    large as 1e999, which Python would make infinite: the tool would get what the model did not write."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number:.20}: a finite number is needed")
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError if a key comes twice: of its values Python takes the last one, and whoever approves
    the call may have read the first."""
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _sent_arguments(message: AIMessage) -> Iterator[tuple[Any, Any]]:
    """The id and the arguments of each call as they were sent, where the client keeps them."""
    for call in message.additional_kwargs.get("tool_calls") or ():
        yield call.get("id"), (call.get("function") or {}).get("arguments")
    for block in _calls_in(message):
        if "arguments" in block:
            yield _call_id(block), block["arguments"]


def _calls_in(message: AIMessage) -> list[dict[str, Any]]:
    """The content blocks that are calls of tools; a text has none."""
    content = message.content
    return [] if isinstance(content, str) else [block for block in content if _is_call(block)]


def _is_call(block: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(block, dict) and block.get("type") in _BLOCKS


def _ids(message: AIMessage, kinds: Collection[str]) -> set[Any]:
    """The ids of the calls in content blocks of these types."""
    return {_call_id(block) for block in _calls_in(message) if block["type"] in kinds}


def _call_id(block: Any) -> Any:
    return block.get("call_id") or block.get("id")


def _argument_text(args: Any) -> str:
    """The arguments of a call as text; empty if it has none."""
    return args if isinstance(args, str) else json.dumps(args) if args else ""


def _invalid(call: Any) -> InvalidToolCall:
    return invalid_tool_call(
        name=call["name"],
        args=call["args"],
        id=call["id"],
        error="the arguments did not come whole",
    )
