"""The tape: a model in front of the model, which remembers what was answered.

It stands there in every benchmark. What was asked before in the same words, with the same seed and the
same cap, is answered from the recording; so a benchmark that was killed goes on where it was, and one
that is replayed, without any model, comes to exactly the same.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import Runnable, RunnableBinding
from pydantic import ConfigDict

from anytime_graph import providers, tokens
from anytime_graph.benchmark.recording import Bought, Facts, Take, Takes, heard
from anytime_graph.budget import Prices
from anytime_graph.checkpoints import LedgerError
from anytime_graph.metering import Gate, describe, gate, held_to
from anytime_graph.nodes import critique

_OPENAI = "api.openai.com"


class NotRecorded(ValueError):
    """A strategy asked what the recording does not hold."""


def facts_of(model: BaseChatModel, prices: Prices | None = None) -> Facts:
    """Raises ValueError for a model that no budget can hold."""
    own, held = gate(model, None), held_to(model, critique.VERDICT)
    options = {name: getattr(own.model, name, None) for name in ("model_kwargs", "extra_body")}
    return Facts(
        own.name,
        own.ceiling,
        own.count is not None,
        _as_json(held.kwargs) if isinstance(held, RunnableBinding) else None,
        {name: _as_json(value) or {} for name, value in options.items() if value},
        asdict(prices) if prices else None,
    )


def _as_json(value: Any) -> dict[str, Any] | None:
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(value)))
    except (TypeError, ValueError):
        return None


def limited(model: BaseChatModel, rate: float | None) -> BaseChatModel:
    """The model with so many requests a minute, at most."""
    if rate is None:
        return model
    limiter = InMemoryRateLimiter(requests_per_second=rate / 60)
    return model.model_copy(update={"rate_limiter": limiter})


@dataclass
class Deck:
    """What a cell hears its model through. inner: the model to ask, None in a replay. ceiling: the
    most that the cell may buy, in tokens and USD. failures: calls that the provider failed.
    missing: what a replay did not find. heard: the takes so far."""

    recording: Takes
    facts: Facts
    inner: Gate | None
    cell: str
    seed: int
    ceiling: tuple[float, float]
    stop: threading.Event | None = None
    bought: Bought = field(default_factory=Bought)
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    heard: list[Take] = field(default_factory=list)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def model(self) -> Tape:
        profile: Any = {"structured_output": self.facts.structured is not None}
        return Tape(
            deck=self,
            model_name=self.facts.name,
            seed=self.seed,
            max_tokens=self.facts.ceiling,
            profile=profile,
        )

    def play(
        self, tape: Tape, messages: list[BaseMessage], options: dict[str, Any]
    ) -> Iterator[AIMessageChunk]:
        """What cannot be written down is not asked, and the cell comes to nothing."""
        try:
            yield from self._heard(_key(tape, messages, options), tape, messages, options)
        except (OSError, LedgerError) as error:
            self.failures.append(describe(error))
            raise

    def _heard(
        self, key: str, tape: Tape, messages: list[BaseMessage], options: dict[str, Any]
    ) -> Iterator[AIMessageChunk]:
        take = self.recording.claim(key, self.stop)
        if take is None:
            try:
                if self.inner is None:
                    self._miss(key, tape)
                yield from self._live(key, tape, messages, options)
            finally:
                self.recording.release(key)
            return
        self.heard.append(take)
        yield from _played(take)

    def _miss(self, key: str, tape: Tape) -> None:
        """A call's place in its run is what the gate has added to the seed."""
        place = f"call {tape.seed - self.seed}, seed {tape.seed}, cap {tape.max_tokens}"
        told = f"{self.cell}: {place}, request {key[:12]}"
        self.missing.append(told)
        raise NotRecorded(told)

    def _live(
        self, key: str, tape: Tape, messages: list[BaseMessage], options: dict[str, Any]
    ) -> Iterator[AIMessageChunk]:
        assert self.inner is not None
        held = self._reserved(self.inner, tape, messages)
        self.recording.ask(key, *held)
        pieces: list[Any] = []
        usage: list[dict[str, Any]] = []
        finish: str | None = None

        def settle(cost: tuple[float, float]) -> None:
            with self._counting:
                self.bought.add(cost[0] - held[0], cost[1] - held[1])

        def record(cut: bool = False) -> None:
            take = Take(key, tape.seed, tape.max_tokens, pieces, usage, finish, cut)
            cost = self._cost(take, held, messages)
            settle(cost)
            self.recording.answer(take, *cost)
            self.heard.append(take)

        def fail(cost: tuple[float, float]) -> None:
            settle(cost)
            self.recording.fail(key, *cost)

        try:
            model, options = self._asked(self.inner, tape, options)
            for chunk in model.stream(messages, **options):
                if (piece := _piece(chunk)) is not None or not chunk.usage_metadata:
                    pieces.append(piece)
                if chunk.usage_metadata:
                    usage.append(json.loads(json.dumps(chunk.usage_metadata)))
                finish = providers.finish(chunk.response_metadata) or finish
                yield chunk
        except GeneratorExit:
            if self.stop is None or not self.stop.is_set():
                record(cut=True)
            raise
        except Exception as error:
            self.failures.append(describe(error))
            unserved = not (pieces or usage) and providers.unserved(error)
            fail((0.0, 0.0) if unserved else held)
            raise
        if self.recording.tells_ends and not (usage or finish):
            self.failures.append("the stream broke off")
            fail(held)
        else:
            record()

    def _asked(
        self, inner: Gate, tape: Tape, options: dict[str, Any]
    ) -> tuple[BaseChatModel, dict[str, Any]]:
        update: dict[str, Any] = {}
        options = {**inner.kwargs, **options}
        if tape.max_tokens is not None:
            update, options = providers.fitted(inner.model, options, tape.max_tokens)
        if "seed" in type(inner.model).model_fields:
            update["seed"] = tape.seed
        return inner.model.model_copy(update=update), options

    def _reserved(
        self, inner: Gate, tape: Tape, messages: list[BaseMessage]
    ) -> tuple[float, float]:
        """The most that the call can cost: by its own bound, and as the cell keeps to its ceiling."""
        bound = inner.bound(inner.shape(messages), tokens.uncalibrated())
        room = tape.max_tokens or 0
        usd = inner.prices.most(bound, room) if inner.prices else 0.0
        with self._counting:
            left = (self.ceiling[0] - self.bought.tokens, self.ceiling[1] - self.bought.usd)
            held = (min(bound + room, max(0, left[0])), min(usd, max(0.0, left[1])))
            self.bought.add(*held, 1)
        return held

    def _cost(
        self, take: Take, held: tuple[float, float], messages: list[BaseMessage]
    ) -> tuple[float, float]:
        """By the provider's report, if there is a believable one; else the whole reservation."""
        if take.cut or not take.usage:
            return held
        counts = [
            (u.get("input_tokens") or 0, u.get("output_tokens") or 0, _cached(u))
            for u in take.usage
        ]
        rising = all(0 < a[0] <= b[0] for a, b in pairwise(counts))
        fold = max if rising else sum
        paid, made, cached = (fold(column) for column in zip(*counts, strict=True))
        text = "".join(m.text for m in messages) + _text(take)
        if paid + made < tokens.least(text) / 2:
            return held
        prices = self.recording.prices
        return paid + made, prices.usd(paid, made, min(cached, paid)) if prices else 0.0


class Tape(BaseChatModel):
    """The model as a cell has it; see Deck. The gate finds in it what it would find in the model
    behind it, so that a replay makes the requests that were recorded."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    deck: Any
    model_name: str
    seed: int
    max_tokens: int | None = None

    @property
    def _llm_type(self) -> str:
        return "anytime-tape"

    @property
    def root_client(self) -> Any:
        """Only its address is looked at: what OpenAI serves is counted by tiktoken."""
        host = _OPENAI if self.deck.facts.counted else ""
        return type("Client", (), {"base_url": type("Address", (), {"host": host})})

    @property
    def model_kwargs(self) -> Any:
        return self.deck.facts.beside.get("model_kwargs")

    @property
    def extra_body(self) -> Any:
        return self.deck.facts.beside.get("extra_body")

    def with_structured_output(self, schema: Any, **options: Any) -> Runnable[Any, Any]:
        return self.bind(**(self.deck.facts.structured or {})) | StrOutputParser()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self.deck.play(self, messages, kwargs):
            yield ChatGenerationChunk(message=chunk)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        said = "".join(c.text for c in self._stream(messages, stop, run_manager, **kwargs))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(said))])


def _key(tape: Tape, messages: list[BaseMessage], options: Mapping[str, Any]) -> str:
    said = [[m.type, m.content] for m in messages]
    asked = json.dumps([tape.model_name, tape.seed, tape.max_tokens, said, options], default=str)
    return hashlib.sha256(asked.encode(errors="replace")).hexdigest()[:32]


def _piece(chunk: Any) -> Any:
    text = chunk.text
    thought = chunk.additional_kwargs.get("reasoning_content")
    if not isinstance(chunk.content, str):
        thought = "".join(
            str(b.get("reasoning") or b.get("thinking") or "")
            for b in chunk.content
            if isinstance(b, dict) and b.get("type") in ("reasoning", "thinking")
        )
    return [thought, text] if isinstance(thought, str) and thought else text or None


def _played(take: Take) -> Iterator[AIMessageChunk]:
    for piece in take.pieces:
        thought, text = piece if isinstance(piece, list) else (None, piece)
        extra = {"reasoning_content": thought} if thought else {}
        yield AIMessageChunk(content=text or "", additional_kwargs=extra)
    finish = {"finish_reason": take.finish} if take.finish else {}
    if take.cut:
        return
    reports: list[Any] = [*take.usage] or [None]
    for usage in reports:
        yield AIMessageChunk(content="", usage_metadata=usage, response_metadata=finish)
        finish = {}


def _cached(usage: Mapping[str, Any]) -> int:
    return int((usage.get("input_token_details") or {}).get("cache_read") or 0)


def _text(take: Take) -> str:
    return "".join(heard(take))
