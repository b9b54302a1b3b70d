"""A reply as it streams in: what has arrived, what it reports, and when it exceeds its cap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from anytime_graph.metering.tool_calls import with_whole_calls
from anytime_graph.models import providers, tokens

SLACK = 16
"""Pieces or tokens above the cap at which a stream is cut, for each choice."""
_CRUMBS = 6
"""The most pieces that a token arrives in, averaged over a reply."""
_LONGEST = 128
"""Characters of the longest tokens, which are runs of spaces."""
_REPORT: dict[str, Any] = {"usage_metadata": None}
_DETAILS: dict[str, Any] = {"additional_kwargs": {}, "response_metadata": {}}
_WRITTEN = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
"""Details of a report that count the input written to a cache; LangChain fills the first or the
others."""


@dataclass
class Usage:
    """The provider's report, in tokens. written: input that went into its cache."""

    input: int = 0
    output: int = 0
    total: int = 0
    reasoning: int = 0
    cached: int = 0
    written: int = 0

    @classmethod
    def read(cls, usage: Mapping[str, Any]) -> Usage:
        """Raises TypeError, ValueError or OverflowError where a figure is no number."""
        inputs = usage.get("input_token_details") or {}
        outputs = usage.get("output_token_details") or {}
        return cls(
            input=int(usage.get("input_tokens") or 0),
            output=int(usage.get("output_tokens") or 0),
            total=int(usage.get("total_tokens") or 0),
            reasoning=_detail(outputs, "reasoning"),
            cached=_detail(inputs, "cache_read"),
            written=sum(_detail(inputs, key) for key in _WRITTEN),
        )

    def joined(self, later: Usage) -> Usage:
        """With the report of a later chunk. LangChain's chunks add up, but some servers repeat the
        running total in every chunk: 50 input tokens after 50 are 50, not 100. Nor is it less: where
        Google's last total is the smaller one, LangChain's chunk has a negative number. Raises
        ValueError if the first report has one."""
        if self == Usage() and min(later.input, later.output) < 0:
            raise ValueError("a negative number of tokens")
        again = 0 < self.input <= later.input
        joined = {}
        for name, n in vars(self).items():
            more = vars(later)[name]
            joined[name] = max(n, more) if again else max(n, n + more)
        return Usage(**joined)


def _detail(details: Mapping[str, Any], key: str) -> int:
    """A detail of a report. LangChain puts the name of a service tier before its name."""
    return sum(int(details.get(f"{tier}{key}") or 0) for tier in ("", "flex_", "priority_"))


@dataclass
class StreamedChoice:
    """One of the choices, as far as it has arrived. id: of its message."""

    id: str | None
    text: str = ""
    finish: str | None = None


@dataclass
class StreamedReply:
    """What has arrived of a reply to a request for `n` choices with `max_output` tokens in all.

    run_id: of the call's run; the chunks of several choices carry it. pieces: chunks with text,
    reasoning or parts of a tool call. unseen_chunks: chunks whose text the client does not show.
    usage: the provider's report so far. unreadable: the report had no numbers. reported: the report
    came after every choice had ended; an earlier one is less than the cost. called: the model called
    tools. closed: the last thing that came was a report. running: reports come while the reply does, so
    that one is no sign of its end. begun: the reply has begun to come; that the Responses API took the
    request is no part of it. over: more has come than the cap allows. stated: dollars that the provider
    says it costs; written: input that went into its cache, where its client does not tell.
    """

    n: int
    max_output: int | None
    run_id: str
    chunks: list[BaseMessage] = field(default_factory=list)
    pieces: int = 0
    unseen_chunks: int = 0
    usage: Usage | None = None
    unreadable: bool = False
    reported: bool = False
    called: bool = False
    finish: str | None = None
    closed: bool = False
    running: bool = False
    begun: bool = False
    over: bool = False
    stated: float = 0.0
    written: int = 0
    _refused: bool = False
    _id: str | None = None
    _text: list[str] = field(default_factory=list)
    _thought: list[str] = field(default_factory=list)
    _texts: dict[str | None, list[str]] = field(default_factory=dict)
    _finishes: dict[str | None, str] = field(default_factory=dict)
    _length: int = 0
    _least: int = 0
    _written: float = 0.0
    _examined: int = 0

    def feed(self, chunk: BaseMessage) -> bool:
        """Take in a chunk; True if the stream is to be cut, as more has come than the cap allows. What has just
        ended is not cut."""
        if not isinstance(chunk, AIMessage):
            chunk = _as_reply(chunk)
        was_whole = self.whole
        self.chunks.append(chunk)
        called = providers.called(chunk)
        self.called = self.called or bool(called)
        refusal = providers.refusal(chunk)
        text = providers.clean(chunk.text + refusal)
        thought = providers.clean(providers.reasoning(chunk) + called)
        usage = getattr(chunk, "usage_metadata", None)
        if text or thought:
            self.pieces += 1
            self._text.append(text)
            self._thought.append(thought)
            self._length += len(text) + len(thought)
            for words in filter(None, (text, thought)):
                self._least += tokens.min_tokens(words)
                self._written += tokens.written(words)
            self.closed = self.reported = False
        elif not usage:
            self.unseen_chunks += 1
        self.begun = self.begun or chunk.content != [] or "id" not in chunk.response_metadata
        self._id = chunk.id or self._id
        finish = providers.finish(chunk.response_metadata)
        self._refused = self._refused or bool(refusal)
        if finish is not None and self._refused and self.n == 1:
            finish = providers.REFUSAL
        self.finish = finish or self.finish
        if self.n > 1 and self.run_id in (chunk.id or ""):
            self._texts.setdefault(chunk.id, []).append(text)
            if finish:
                self._finishes[chunk.id] = finish
        for report in (chunk.response_metadata, chunk.response_metadata.get("token_usage")):
            if isinstance(report, Mapping):
                self.hear(report)
        if usage:
            self.closed = True
            beside = bool(text or thought) and isinstance(chunk, AIMessageChunk)
            self.running = self.running or beside or self.usage is not None
            self._report(usage)
            self.reported = self.whole
        self.over = self.over or (self.max_output is not None and self._exceeds(self.max_output))
        goes_on = was_whole and bool(text or thought or self.unseen_chunks > SLACK * self.n)
        return self.over and (goes_on or not self.whole)

    @property
    def seen(self) -> str:
        """All text that arrived, thoughts and tool calls included."""
        return "".join(self._text) + "".join(self._thought)

    def choices(self) -> list[StreamedChoice]:
        """What has arrived of each choice, in the provider's order."""
        if self.n == 1:
            return [StreamedChoice(self._id, "".join(self._text), self.finish)]
        ids = sorted(self._texts, key=providers.choice_index)
        parts = [StreamedChoice(id, "".join(self._texts[id]), self._finishes.get(id)) for id in ids]
        return parts or [StreamedChoice(None)]

    @property
    def whole(self) -> bool:
        """Whether every choice has come to its end."""
        ended = len(self._finishes) if self.n > 1 else int(self.finish is not None)
        return ended >= self.n

    def message(self, choice: StreamedChoice) -> AIMessage:
        """A choice as a message."""
        own = [c for c in self.chunks if self.n == 1 or c.id == choice.id]
        return joined(own) if own else AIMessage(choice.text)

    def _exceeds(self, cap: int) -> bool:
        """Whether more came than the cap allows.

        Servers send a token or several in a piece, so a reply is cut at `slack` pieces above the cap.
        Some send parts of tokens: if the text cannot be as many tokens as pieces, the text itself is
        judged, by the tokens that so much text takes at the least. Runs of a mark count by their characters, for
        each may be a token. Above 6 pieces a token, or 128 characters a token, any reply is cut.

        With a cap of 300: "(", newlines, spaces or words, one a piece, are cut at 317 pieces. Single
        letters are cut by the words that they make, at 1,817 pieces at the latest; prose of 300
        tokens has about 1,400. Of pieces of 10,000 "(" the fourth is cut, as it passes 38,400.

        The text is examined again when it has grown by an eighth, so all of it in linear time.
        """
        slack = SLACK * self.n
        if self.unseen_chunks > slack and self.pieces + self.unseen_chunks > cap + slack:
            return True
        if self.pieces > _CRUMBS * cap + slack or self._length > _LONGEST * cap:
            return True
        if self._written > max(3 * self.pieces, cap + slack):
            return True
        grown = max(self.pieces, self._least)
        if grown <= max(cap + slack, self._examined + self._examined // 8):
            return False
        self._examined = grown
        text = self.seen
        if self.pieces > cap + slack:
            if max_written_tokens(text) >= self.pieces:
                return True
            if tokens.written(text) > cap + slack:
                return True
        return tokens.min_tokens(text) > cap + slack

    def hear(self, report: Mapping[str, Any]) -> None:
        """Take in what a provider reports, and its client does not pass on."""
        self.stated = max(self.stated, providers.stated_cost(report))
        self.written = max(self.written, providers.written_to_cache(report))

    def _report(self, usage: Mapping[str, Any]) -> None:
        try:
            self.usage = (self.usage or Usage()).joined(Usage.read(usage))
            self.usage.written = max(self.usage.written, self.written)
        except (TypeError, ValueError, OverflowError):
            self.unreadable = True


def _as_reply(chunk: BaseMessage) -> AIMessageChunk:
    """A chunk of another role than the model's, as a server may call it, as one of the model's."""
    about = {
        name: getattr(chunk, name) for name in ("id", "additional_kwargs", "response_metadata")
    }
    usage = getattr(chunk, "usage_metadata", None)
    return AIMessageChunk(content=chunk.content, usage_metadata=usage, **about)


def joined(chunks: Sequence[BaseMessage]) -> AIMessage:
    """The message that the chunks make, with those tool calls whose arguments arrived whole."""
    pieces = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
    return with_whole_calls(_sum(pieces) if pieces else cast(AIMessage, chunks[-1]))


def _sum(pieces: Sequence[AIMessageChunk]) -> AIMessage:
    """The chunks as one. LangChain cannot add up all that servers send, such as a report whose figures are no
    numbers, or a field that is a text in one chunk and a number in the next: then without those."""
    for left_out in ({}, _REPORT, _DETAILS, _REPORT | _DETAILS):
        with suppress(TypeError, ValueError):
            first, *others = (p.model_copy(update=left_out) if left_out else p for p in pieces)
            return first + others
    return AIMessage("".join(piece.text for piece in pieces), id=pieces[-1].id)


def reports_its_end(message: AIMessage) -> bool:
    """Whether the provider said why the reply ended, or what it cost; a reply that broke off says
    neither."""
    ended = providers.finish(message.response_metadata) is not None
    return ended or message.usage_metadata is not None


def max_written_tokens(text: str) -> int:
    """The most tokens that the model may have used to write a text, runs mark by mark."""
    return tokens.max_tokens(text) + tokens.repeated(text)
