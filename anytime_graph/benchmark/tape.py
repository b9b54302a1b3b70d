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
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import Runnable, RunnableBinding
from pydantic import ConfigDict

from anytime_graph.benchmark.recording import Facts, Recorded, RecordedReply
from anytime_graph.budget import Prices, Spend, nothing
from anytime_graph.checkpoints import LedgerError
from anytime_graph.metering.account import Account
from anytime_graph.metering.call import call
from anytime_graph.metering.meter import Meter, meter, with_json_schema
from anytime_graph.metering.request import Reply, Request
from anytime_graph.models import providers
from anytime_graph.models.providers import describe
from anytime_graph.models.tokens import uncalibrated
from anytime_graph.nodes import critique

_OPENAI = "api.openai.com"


class NotRecorded(ValueError):
    """A strategy asked what the recording does not hold."""


def facts_of(model: BaseChatModel, prices: Prices | None = None) -> Facts:
    """Raises ValueError for a model that no budget can hold."""
    own, held = meter(model, None), with_json_schema(model, critique.VERDICT)
    options = {name: getattr(own.model, name, None) for name in ("model_kwargs", "extra_body")}
    return Facts(
        own.name,
        own.ceiling,
        own.tokenizer.count is not None,
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
class CellModel:
    """What a cell hears its model through. inner: the model to ask, None in a replay. account: the
    most that the cell may buy, and what it has bought. failures: calls that the provider failed.
    missing: what a replay did not find. heard: the replies so far."""

    recording: Recorded
    facts: Facts
    inner: Meter | None
    cell: str
    seed: int
    account: Account
    stop: threading.Event | None = None
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    heard: list[RecordedReply] = field(default_factory=list)

    def model(self) -> Tape:
        profile: Any = {"structured_output": self.facts.structured is not None}
        return Tape(
            of=self,
            model_name=self.facts.name,
            seed=self.seed,
            max_tokens=self.facts.ceiling,
            profile=profile,
        )

    def play(
        self, tape: Tape, messages: list[BaseMessage], options: dict[str, Any]
    ) -> RecordedReply:
        """The reply, recorded before or bought now. What cannot be written down is not asked, and
        the cell comes to nothing."""
        key = _key(tape, messages, options)
        try:
            take = self.recording.claim(key, self.stop)
            if take is None:
                try:
                    if self.inner is None:
                        self._miss(key, tape)
                    take = self._bought(self.inner, key, tape, messages, options)
                finally:
                    self.recording.release(key)
        except (OSError, LedgerError) as error:
            self.failures.append(describe(error))
            raise
        self.heard.append(take)
        return take

    def _miss(self, key: str, tape: Tape) -> NoReturn:
        """A call's place in its run is what metering has added to the seed."""
        place = f"call {tape.seed - self.seed}, seed {tape.seed}, cap {tape.max_tokens}"
        missing = f"{self.cell}: {place}, request {key[:12]}"
        self.missing.append(missing)
        raise NotRecorded(missing)

    def _bought(
        self,
        inner: Meter,
        key: str,
        tape: Tape,
        messages: list[BaseMessage],
        options: dict[str, Any],
    ) -> RecordedReply:
        seed = {"seed": tape.seed} if "seed" in type(inner.model).model_fields else {}
        ready = replace(
            inner,
            model=inner.model.model_copy(update=seed),
            bound={**inner.bound, **options},
        )
        _, max_input = inner.max_input(messages, uncalibrated())
        request = Request(
            prompt=messages, max_input=max_input, max_output=tape.max_tokens, kind="benchmark"
        )
        held = self._held(inner.reservation(max_input, tape.max_tokens))
        self.recording.ask(key, held["tokens"], held["usd"])
        reply = call(ready, request, {"callbacks": []}, self.stop)
        came = reply.receipt
        if came["interrupted"]:
            self.account.settle(held, held)
            raise NotRecorded("interrupted")
        take = _recorded(key, tape, reply)
        unended = self.recording.tells_ends and not (take.usage or take.finish or take.cut)
        if reply.error is not None or unended:
            failure = "the stream broke off" if reply.error is None else describe(reply.error)
            self.failures.append(failure)
            spend = held if came["spend"]["calls"] else nothing()
            self.account.settle(held, spend)
            self.recording.fail(key, spend["tokens"], spend["usd"])
            raise reply.error or ConnectionError(failure)
        spend = came["spend"] if take.usage and not take.cut else held
        self.account.settle(held, spend)
        self.recording.answer(take, spend["tokens"], spend["usd"])
        return take

    def _held(self, amounts: Spend) -> Spend:
        """The most that the call can cost, as the cell keeps to its ceiling."""
        with self.account.lock:
            left = self.account.left()
            held: Spend = {
                **amounts,
                "tokens": int(min(amounts["tokens"], left["tokens"])),
                "usd": min(amounts["usd"], left["usd"]),
            }
            self.account.hold(held)
        return held


class Tape(BaseChatModel):
    """The model as a cell has it; see CellModel. Metering finds in it what it would find in the model
    behind it, so that a replay makes the requests that were recorded."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    of: Any
    model_name: str
    seed: int
    max_tokens: int | None = None

    @property
    def _llm_type(self) -> str:
        return "anytime-tape"

    @property
    def root_client(self) -> Any:
        """Only its address is looked at: what OpenAI serves is counted by tiktoken."""
        host = _OPENAI if self.of.facts.counted else ""
        return type("Client", (), {"base_url": type("Address", (), {"host": host})})

    @property
    def model_kwargs(self) -> Any:
        return self.of.facts.beside.get("model_kwargs")

    @property
    def extra_body(self) -> Any:
        return self.of.facts.beside.get("extra_body")

    def with_structured_output(self, schema: Any, **options: Any) -> Runnable[Any, Any]:
        return self.bind(**(self.of.facts.structured or {})) | StrOutputParser()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _played(self.of.play(self, messages, kwargs)):
            yield ChatGenerationChunk(message=chunk)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        text = "".join(c.text for c in self._stream(messages, stop, run_manager, **kwargs))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def _key(tape: Tape, messages: list[BaseMessage], options: Mapping[str, Any]) -> str:
    said = [[m.type, m.content] for m in messages]
    asked = json.dumps([tape.model_name, tape.seed, tape.max_tokens, said, options], default=str)
    return hashlib.sha256(asked.encode(errors="replace")).hexdigest()[:32]


def _recorded(key: str, tape: Tape, reply: Reply) -> RecordedReply:
    """The reply as it came."""
    pieces: list[Any] = []
    usage: list[dict[str, Any]] = []
    finish: str | None = None
    for chunk in reply.chunks:
        reported = getattr(chunk, "usage_metadata", None)
        if (piece := _piece(chunk)) is not None or not reported:
            pieces.append(piece)
        if reported:
            usage.append(json.loads(json.dumps(reported)))
        finish = providers.finish(chunk.response_metadata) or finish
    cut = reply.receipt["ended"] == "cut"
    return RecordedReply(key, tape.seed, tape.max_tokens, pieces, usage, finish, cut)


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


def _played(take: RecordedReply) -> Iterator[AIMessageChunk]:
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
