"""The tape: a chat model that records the replies of another one, and replays them.

Every benchmark uses it. A request with the same messages, seed and cap as before is answered from the
recording. So a benchmark continues after a kill, and a replay gets the same results without a model.
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
from anytime_graph.nodes.critique import VERDICT

_OPENAI = "api.openai.com"


class NotRecorded(ValueError):
    """A replay needs a reply that the recording does not hold."""


def facts_of(model: BaseChatModel, prices: Prices | None = None) -> Facts:
    """The facts of a model. Raises ValueError for a model that no budget can limit."""
    own, structured = meter(model, None), with_json_schema(model, VERDICT)
    options = {name: getattr(own.model, name, None) for name in ("model_kwargs", "extra_body")}
    return Facts(
        own.name,
        own.ceiling,
        own.tokenizer.count is not None,
        _as_json(structured.kwargs) if isinstance(structured, RunnableBinding) else None,
        {name: _as_json(value) or {} for name, value in options.items() if value},
        asdict(prices) if prices else None,
    )


def _as_json(value: Any) -> dict[str, Any] | None:
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(value)))
    except (TypeError, ValueError):
        return None


def limited(model: BaseChatModel, rate: float | None) -> BaseChatModel:
    """The model with at most `rate` requests per minute."""
    if rate is None:
        return model
    limiter = InMemoryRateLimiter(requests_per_second=rate / 60)
    return model.model_copy(update={"rate_limiter": limiter})


@dataclass
class CellModel:
    """The model of a cell. inner: the model to ask, None in a replay. account: the most that the
    cell may spend, and its spend. failures: why calls failed. missing: requests that a replay did
    not find. replies: those so far."""

    recording: Recorded
    facts: Facts
    inner: Meter | None
    cell: str
    seed: int
    account: Account
    stop: threading.Event | None = None
    failures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    replies: list[RecordedReply] = field(default_factory=list)

    def model(self) -> Tape:
        """The chat model that the strategy uses."""
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
        """The reply, recorded before or bought now. If the request cannot be recorded, it is not
        sent, and the cell fails."""
        key = _request_key(tape, messages, options)
        try:
            recorded = self.recording.claim(key, self.stop)
            if recorded is None:
                try:
                    if self.inner is None:
                        self._miss(key, tape)
                    recorded = self._bought(self.inner, key, tape, messages, options)
                finally:
                    self.recording.release(key)
        except (OSError, LedgerError) as error:
            self.failures.append(describe(error))
            raise
        self.replies.append(recorded)
        return recorded

    def _miss(self, key: str, tape: Tape) -> NoReturn:
        """Note what is missing. Metering adds the place of a call in its run to the seed."""
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
        receipt = reply.receipt
        if receipt["interrupted"]:
            self.account.settle(held, held)
            raise NotRecorded("interrupted")
        recorded = _recorded_reply(key, tape, reply)
        unended = self.recording.tells_ends and not (
            recorded.usage or recorded.finish or recorded.cut
        )
        if reply.error is not None or unended:
            failure = "the stream broke off" if reply.error is None else describe(reply.error)
            self.failures.append(failure)
            spend = held if receipt["spend"]["calls"] else nothing()
            self.account.settle(held, spend)
            self.recording.fail(key, spend["tokens"], spend["usd"])
            raise reply.error or ConnectionError(failure)
        spend = receipt["spend"] if recorded.usage and not recorded.cut else held
        self.account.settle(held, spend)
        self.recording.answer(recorded, spend["tokens"], spend["usd"])
        return recorded

    def _held(self, amounts: Spend) -> Spend:
        """Reserve the most that the call can cost, which is at most what the cell has left."""
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
    """The chat model of a cell; see CellModel. To metering it looks like the recorded model, so a
    replay makes the same requests."""

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
        """Metering reads only its address: tiktoken counts what OpenAI serves."""
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


def _request_key(tape: Tape, messages: list[BaseMessage], options: Mapping[str, Any]) -> str:
    texts = [[m.type, m.content] for m in messages]
    request = json.dumps([tape.model_name, tape.seed, tape.max_tokens, texts, options], default=str)
    return hashlib.sha256(request.encode(errors="replace")).hexdigest()[:32]


def _recorded_reply(key: str, tape: Tape, reply: Reply) -> RecordedReply:
    """The reply as it arrived."""
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


def _played(reply: RecordedReply) -> Iterator[AIMessageChunk]:
    for piece in reply.pieces:
        thought, text = piece if isinstance(piece, list) else (None, piece)
        extra = {"reasoning_content": thought} if thought else {}
        yield AIMessageChunk(content=text or "", additional_kwargs=extra)
    finish = {"finish_reason": reply.finish} if reply.finish else {}
    if reply.cut:
        return
    reports: list[Any] = [*reply.usage] or [None]
    for usage in reports:
        yield AIMessageChunk(content="", usage_metadata=usage, response_metadata=finish)
        finish = {}
