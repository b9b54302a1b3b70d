"""A reply as it streams in: what has arrived, what it says of itself, and when it has gone too far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    message_chunk_to_message,
)

from anytime_graph.models import providers, tokens

SLACK = 16
"""Tokens beyond its cap at which a stream is cut; for each choice."""
_WRITTEN = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
"""Details of a report that tell what input was written to a cache; LangChain fills the first or the
others."""


@dataclass
class Usage:
    """The provider's report, in tokens. written: of the input, what went into its cache."""

    input: int = 0
    output: int = 0
    total: int = 0
    reasoning: int = 0
    cached: int = 0
    written: int = 0

    @classmethod
    def read(cls, usage: Mapping[str, Any]) -> Usage:
        """Raises TypeError or ValueError where a figure is no number."""
        inputs = usage.get("input_token_details") or {}
        outputs = usage.get("output_token_details") or {}
        return cls(
            input=int(usage.get("input_tokens") or 0),
            output=int(usage.get("output_tokens") or 0),
            total=int(usage.get("total_tokens") or 0),
            reasoning=int(outputs.get("reasoning") or 0),
            cached=int(inputs.get("cache_read") or 0),
            written=sum(int(inputs.get(key) or 0) for key in _WRITTEN),
        )

    def joined(self, more: Usage) -> Usage:
        """With the report of a later chunk. LangChain's chunks add up, but some servers repeat the
        running total in every chunk."""
        running = 0 < self.input <= more.input
        mine, theirs = vars(self), vars(more)
        return Usage(
            **{k: max(mine[k], theirs[k]) if running else mine[k] + theirs[k] for k in mine}
        )


@dataclass
class Choice:
    """One of the choices, as far as it has arrived. id: of its message."""

    id: str | None
    text: str = ""
    finish: str | None = None


@dataclass
class StreamedReply:
    """What has arrived of a reply to a request for `n` choices with `max_output` tokens in all.

    run_id: of the call's run; the chunks of several choices carry it. pieces: chunks with text, seen
    or thought or of a tool call; unseen_chunks: those whose text the client does not show.
    usage: the provider's report so far; unreadable: it had no numbers. called: the model calls tools.
    """

    n: int
    max_output: int | None
    run_id: str
    chunks: list[BaseMessage] = field(default_factory=list)
    pieces: int = 0
    unseen_chunks: int = 0
    usage: Usage | None = None
    unreadable: bool = False
    called: bool = False
    finish: str | None = None
    _id: str | None = None
    _text: list[str] = field(default_factory=list)
    _thought: list[str] = field(default_factory=list)
    _choices: dict[str | None, Choice] = field(default_factory=dict)
    _least: int = 0
    _typical: float = 0.0

    def feed(self, chunk: BaseMessage) -> bool:
        """Take in a chunk; True if more has come than the cap allows."""
        self.chunks.append(chunk)
        called = providers.called(chunk)
        self.called = self.called or bool(called)
        text = providers.clean(chunk.text)
        thought = providers.clean(providers.reasoning(chunk) + called)
        usage = getattr(chunk, "usage_metadata", None)
        if text or thought:
            self.pieces += 1
            self._text.append(text)
            self._thought.append(thought)
            self._least += tokens.least(text) + tokens.least(thought)
            self._typical += tokens.typical(text) + tokens.typical(thought)
        elif not usage:
            self.unseen_chunks += 1
        self._id = chunk.id or self._id
        self.finish = (finish := providers.finish(chunk.response_metadata)) or self.finish
        if self.n > 1 and self.run_id in (chunk.id or ""):
            choice = self._choices.setdefault(chunk.id, Choice(chunk.id))
            choice.text += text
            choice.finish = finish or choice.finish
        self._report(usage)
        return self.max_output is not None and self._exceeds(self.max_output)

    @property
    def seen(self) -> str:
        """All text that arrived, thoughts and tool calls included."""
        return "".join(self._text) + "".join(self._thought)

    def choices(self) -> list[Choice]:
        """What has arrived, by choice, in the provider's order."""
        if self.n == 1:
            return [Choice(self._id, "".join(self._text), self.finish)]
        parts = sorted(self._choices.values(), key=lambda choice: providers.index(choice.id))
        return parts or [Choice(None)]

    def ended_choices(self) -> int:
        """How many choices have come to their end."""
        return sum(choice.finish is not None for choice in self.choices())

    def message(self, choice: Choice, whole: bool) -> AIMessage:
        """A choice as a message. whole: the reply came to its own end."""
        own = [c for c in self.chunks if self.n == 1 or c.id == choice.id]
        return joined(own, whole) if own else AIMessage(choice.text)

    def _exceeds(self, cap: int) -> bool:
        """More came than the cap allows: by the pieces, which are tokens unless they are crumbs
        of tokens; by pieces whose text the client does not show; or, where pieces are bundles of
        tokens, by the text itself."""
        slack = SLACK * self.n
        if self.unseen_chunks > slack and self.pieces + self.unseen_chunks > cap + slack:
            return True
        if self._typical > 3 * self.pieces and 0.8 * self._typical > cap + SLACK:
            return True
        if self.pieces <= cap and self._least <= cap + SLACK:
            return False
        text = self.seen
        most, fewest = tokens.upper(text), tokens.least(text)
        return most > cap if self.pieces > cap else fewest > cap + SLACK

    def _report(self, usage: Mapping[str, Any] | None) -> None:
        if not usage:
            return
        try:
            more = Usage.read(usage)
        except (TypeError, ValueError):
            self.unreadable = True
            return
        self.usage = (self.usage or Usage()).joined(more)


def joined(chunks: list[BaseMessage], whole: bool) -> AIMessage:
    """The message that the chunks make. Of a reply that was cut or broke off, only those tool calls
    are kept whose arguments are complete: half of them could be another instruction."""
    pieces = [p for p in chunks if isinstance(p, AIMessageChunk)]
    if not pieces:
        return cast(AIMessage, chunks[-1])
    both = pieces[0] + pieces[1:]
    message = cast(AIMessage, message_chunk_to_message(both))
    if whole and reports_its_end(message):
        return message
    complete = {c["id"] for c in both.tool_call_chunks if _is_json(c["args"])}
    content = message.content
    if not isinstance(content, str):
        content = [b for b in content if not _calls(b) or b["id"] in complete]
    update = {
        "content": content,
        "tool_calls": [c for c in message.tool_calls if c["id"] in complete],
        "invalid_tool_calls": [],
        "additional_kwargs": {
            k: v for k, v in message.additional_kwargs.items() if k != "tool_calls"
        },
    }
    return message.model_copy(update=update)


def reports_its_end(message: AIMessage) -> bool:
    """Whether its provider said why the reply ended, or what it cost: one that broke off did not."""
    ended = providers.finish(message.response_metadata) is not None
    return ended or message.usage_metadata is not None


def _calls(block: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(block, dict) and block.get("type") == "tool_use"


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except ValueError:
        return False
    return True
