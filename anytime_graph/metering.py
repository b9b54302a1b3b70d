"""The one gate to the model: every call is bounded before it is made, cut if it does not keep to
its bound, and charged by what the provider reports or, failing that, by its whole reservation.

Nothing else in this package calls a chat model.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import math
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    message_to_dict,
)
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.utils.utils import LC_ID_PREFIX

from anytime_graph import calls, providers, tokens
from anytime_graph.budget import Budget, Limits, Prices, Spend, nothing
from anytime_graph.checkpoints import Access, LedgerError
from anytime_graph.state import Task

log = logging.getLogger(__name__)

_SHAPING = {"tools", "tool_choice", "parallel_tool_calls", "response_format", "stop"}
"""Request options that shape an answer."""
_SLACK = 16
"""Pieces or tokens above the cap at which a stream is cut, for each choice."""
_CRUMBS = 6
"""Pieces that a token comes in at the most, on the whole of a reply."""
_LONGEST = 128
"""Characters of the longest tokens, which are blanks."""
_USAGE = ("input", "output", "total", "reasoning", "cached", "written")
_WRITTEN = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
"""Details of a report that tell what input was written to a cache; LangChain fills the first or the
others."""
_INCREDIBLE = 10**9
"""Tokens that no call can have used."""
_POLL = 0.05
_LONGEST_WAIT = 30.0
_GRACE = 5.0
"""Seconds after its deadline at which an abandoned connection gives up by itself."""


class Stop(Protocol):
    """What a caller sets to end a run early; a threading.Event is one."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Gate:
    """A chat model made ready for metering.

    model: no hidden retries, usage reported in streams; its output is capped, or its stream is cut
    where its class has no field for a cap. kwargs: what was bound to it.
    ceiling: output tokens that the model never exceeds. extra: text that travels with each prompt.
    once: whether a request for several choices is billed its prompt once: None if that is to be
    found out, False also where such requests cannot be made.
    """

    model: BaseChatModel
    kwargs: Mapping[str, Any]
    ceiling: int | None
    name: str
    extra: str
    count: tokens.Counter | None
    prices: Prices | None
    once: bool | None = False

    def shape(self, prompt: list[Any]) -> tokens.Shape:
        return tokens.shape(prompt, self.extra, self.count)

    def bound(self, shape: tokens.Shape, known: tokens.Calibration, within: bool = False) -> int:
        exact, tools = self.count is not None, bool(self.kwargs.get("tools"))
        return tokens.bound(shape, known, exact=exact, family=self.name, tools=tools, within=within)

    def learn(
        self, known: tokens.Calibration, shape: tokens.Shape, reported: int, base: bool
    ) -> tokens.Calibration:
        exact, tools = self.count is not None, bool(self.kwargs.get("tools"))
        return tokens.learn(
            known, shape, reported, exact=exact, family=self.name, tools=tools, base=base
        )

    def cap(self, paid: int | None) -> int | None:
        """The output cap for a call: what is paid for, within what the model can write."""
        return min((cap for cap in (paid, self.ceiling) if cap is not None), default=None)

    def amounts(self, prompt: int, room: int) -> Limits:
        """What a call takes of each dimension, of time an instant at the least."""
        return {
            "tokens": prompt + room,
            "output_tokens": room,
            "usd": self.prices.most(prompt, room) if self.prices else 0.0,
            "calls": 1,
            "seconds": 0.001,
        }


def gate(model: Any, prices: Prices | None) -> Gate:
    """Prepare a model. Raises ValueError if it is no chat model, or if nothing could hold its
    output to a budget."""
    model, kwargs = unbound(model)
    if not isinstance(model, BaseChatModel):
        raise ValueError(
            f"model={type(model).__name__}: pass a LangChain chat model, or a string such as "
            "'openai:gpt-4.1-mini' or 'local'"
        )
    if isinstance(getattr(model, "budget", None), Budget):
        raise ValueError(
            f"model={type(model).__name__}: it makes calls of its own, within its own budget; pass "
            "the model inside it"
        )
    streams = (
        type(model)._stream is not BaseChatModel._stream
        or type(model)._astream is not BaseChatModel._astream
    )
    if providers.cap_field(model) is None and not streams:
        raise ValueError(
            f"model={type(model).__name__}: it neither streams nor has a field to cap its output "
            f"({', '.join(providers.CAP_FIELDS)}), so no budget can hold it"
        )
    own = providers.own_caps(model, kwargs)
    metered, kwargs = providers.metered(model, providers.unparsed(model, kwargs))
    held = (getattr(metered, field, None) for field in providers.HOLDERS)
    beside = [part for part in (kwargs, *held) if part]
    name = providers.model_name(model) or type(model).__name__
    known = True if _openais(model) else None
    return Gate(
        model=metered,
        kwargs=kwargs,
        ceiling=min(own, default=None),
        name=name,
        extra=json.dumps(beside, default=str, ensure_ascii=False) if beside else "",
        count=_counter(model, name),
        prices=prices,
        once=known if getattr(model, "n", 1) != 1 and providers.chooses(metered, kwargs) else False,
    )


def unbound(model: Any) -> tuple[Any, dict[str, Any]]:
    """The model inside its bindings, and what is bound to it."""
    kwargs: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        kwargs = {**model.kwargs, **kwargs}
        model = model.bound
    return model, kwargs


def unshaped(model: Any) -> Any:
    """The model without what shapes its answers, such as tools: for judgements and reviews, which
    are no answers. The same object if nothing does."""
    bare, kwargs = unbound(model)
    kept = {key: value for key, value in kwargs.items() if key not in _SHAPING}
    if len(kept) == len(kwargs):
        return model
    return bare.bind(**kept) if kept else bare


def held_to(model: Any, schema: Mapping[str, Any]) -> Runnable[Any, Any] | None:
    """The model bound so that its replies are JSON for the JSON schema, where its profile says that
    its provider can hold it to one; else None."""
    model, kwargs = unbound(model)
    if not (getattr(model, "profile", None) or {}).get("structured_output"):
        return None
    try:
        chain = model.with_structured_output(dict(schema), method="json_schema")
    except (NotImplementedError, TypeError, ValueError):  # its class has no such method
        return None
    bound = getattr(chain, "first", None)
    if not isinstance(bound, RunnableBinding) or "tools" in bound.kwargs:
        return None
    if (form := bound.kwargs.get("response_format")) is not None:
        options = providers.unparsed(model, {**kwargs, "response_format": form})
        return cast(BaseChatModel, model).bind(**options)
    return bound.bind(**kwargs)


@dataclass(frozen=True)
class Reply:
    """What a call brought.

    text: what arrived, be it cut. ended: by itself ("stop"), at the cap ("length"), by us
    ("cut"), or by a failure ("error"). spend: what it is charged. reported: input tokens by the
    provider's report, None if there was no believable one. lost: not made, or in flight when its
    process ended. refused: the provider finds fault with the request itself. recalled: not made now,
    but read from the ledger. called: it calls tools. message: in an agent's draft, the whole message.
    others: of a request for several choices, what the further ones are (text, message_id, ended,
    starved, failed, errors). once: see tokens.Calibration; None if this call does not tell.
    """

    text: str
    message_id: str | None
    ended: str
    spend: Spend
    reported: int | None
    starved: bool
    failed: bool
    interrupted: bool
    retry_after: float
    errors: list[str]
    started: float
    ended_at: float
    lost: bool = False
    refused: bool = False
    recalled: bool = False
    called: bool = False
    message: dict[str, Any] | None = None
    others: list[dict[str, Any]] = field(default_factory=list)
    once: bool | None = None


def choices(task: Task, reply: Reply) -> list[tuple[Task, Reply]]:
    """Each choice that a request brought, as if it were a call of its own; the first bears the
    cost."""
    if (n := task["move"].get("choices", 1)) == 1:
        return [(task, reply)]
    room = None if task["room"] is None else task["room"] // n
    free: dict[str, Any] = {"spend": nothing(), "reported": None, "once": None, "others": []}
    further = [replace(reply, **free, **other) for other in reply.others]
    moves = [task["move"], *({**task["move"], "choices": 1},) * len(further)]
    return [
        (
            {**task, "ordinal": task["ordinal"] + i, "move": {**move, "choice": i}, "room": room},
            each,
        )
        for i, (move, each) in enumerate(zip(moves, [reply, *further], strict=True))
    ]


@dataclass
class Heard:
    """For callers that need more of a reply than its text: the pieces that arrived, tool calls
    among them, and the client's own error if the call failed."""

    pieces: list[BaseMessage] = field(default_factory=list)
    error: Exception | None = None

    def message(self) -> AIMessage:
        """What the pieces make, with those tool calls whose arguments came whole."""
        chunks = [p for p in self.pieces if isinstance(p, AIMessageChunk)]
        if not chunks:
            return calls.whole(cast(AIMessage, self.pieces[-1])) if self.pieces else AIMessage("")
        return calls.whole(chunks[0] + chunks[1:])


def reports_its_end(message: AIMessage) -> bool:
    """Whether its provider said why the reply ended, or what it cost: one that broke off did not."""
    said = providers.finish(message.response_metadata) is not None
    return said or message.usage_metadata is not None


def recalled(gate: Gate, task: Task, access: Access) -> Reply | None:
    """What the ledger holds at the task's place; see _Meter.recall."""
    return _Meter(gate, task, None, access).recall()


def call(
    gate: Gate,
    task: Task,
    config: RunnableConfig,
    stop: Stop | None,
    access: Access | None = None,
    heard: Heard | None = None,
) -> Reply:
    """Make the call; where it has a time limit or may be stopped, in a thread of its own, so that
    a silent server cannot hold it. With a ledger it is reserved there before and settled after;
    what stands at its place already is not called again."""
    meter = _Meter(gate, task, stop, access, heard)
    if (earlier := meter.recall()) is not None:
        return earlier
    done = threading.Event()

    def pump() -> None:
        try:
            model, kwargs = meter.capped()
            meter.drain(model.stream(task["prompt"], meter.told(config), **kwargs))
        except Exception as error:
            meter.fail(error)
        finally:
            done.set()

    try:
        if not meter.hold_back(task["wait"]) or not meter.reserve():
            return meter.settle()
        if meter.patience() is None:
            pump()
            return meter.book()
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(pump,), daemon=True, name="metered-call").start()
        while not done.wait(meter.patience()) and not meter.over():
            pass
    except KeyboardInterrupt:
        meter.interrupt()
    return meter.book()


async def acall(
    gate: Gate,
    task: Task,
    config: RunnableConfig,
    stop: Stop | None,
    access: Access | None = None,
    heard: Heard | None = None,
) -> Reply:
    """The same, on the event loop. Cancelling it closes the connection."""
    meter = _Meter(gate, task, stop, access, heard)
    if access is not None and (earlier := await asyncio.to_thread(meter.recall)) is not None:
        return earlier
    until = time.monotonic() + task["wait"]
    while not meter.over() and (rest := until - time.monotonic()) > 0:
        await asyncio.sleep(min(rest, _POLL))
    if meter.cut or not (await asyncio.to_thread(meter.reserve) if access else meter.reserve()):
        return meter.settle()

    async def pump() -> None:
        try:
            model, kwargs = meter.capped()
            await meter.adrain(model.astream(task["prompt"], meter.told(config), **kwargs))
        except Exception as error:
            meter.fail(error)

    work = asyncio.create_task(pump())
    try:
        while not work.done() and not meter.over():
            await asyncio.wait({work}, timeout=meter.patience())
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=1)
    return await asyncio.to_thread(meter.book) if access else meter.book()


@dataclass
class _Part:
    """A choice, as far as it has arrived."""

    id: str | None
    text: str = ""
    finish: str | None = None


class _Meter:
    """One call under way: counts what arrives, says when to cut, and settles what it cost."""

    def __init__(
        self,
        gate: Gate,
        task: Task,
        stop: Stop | None,
        access: Access | None = None,
        heard: Heard | None = None,
    ) -> None:
        self.gate, self.task, self.stop, self.access = gate, task, stop, access
        self.heard = heard
        self.kept = heard or (Heard() if "agent" in task["move"] else None)
        self.started = time.time()
        self.clock = time.monotonic()
        self.seconds = task["slice"].get("seconds")
        self.choices = int(task["move"].get("choices", 1))
        self.run_id = uuid4()
        self.parts: dict[str | None, _Part] = {}
        self.once: bool | None = None
        self.text: list[str] = []
        self.thought: list[str] = []
        self.pieces = 0
        self.silent = 0
        self.length = 0
        self.least = 0
        self.looked = 0
        self.typical = 0.0
        self.usage: dict[str, Any] | None = None
        self.usage_error = False
        self.message_id: str | None = None
        self.finish: str | None = None
        self.cut: str | None = None
        self.made = False
        self.lost = False
        self.overran = False
        self.ended = False
        self.interrupted = False
        self.errors: list[str] = []
        self.failed = False
        self.refused = False
        self.called = False
        self.retry_after = 0.0

    # --- before it, in the ledger

    def recall(self) -> Reply | None:
        """The reply that was settled at this place; or, where a process ended while the call was
        in flight, what had arrived of it, charged in full."""
        if self.access is None:
            return None
        try:
            entry = self.access.ledger.recall(self.task)
        except LedgerError as error:
            return self._unmade(error)
        if entry is None:
            return None
        if entry.reply is not None:
            late = max(entry.reply["ended_at"], entry.changed)
            errors = entry.reply["errors"]
            if not entry.kept and not entry.text:
                errors = [*errors, "the reply was paid for, but replies are not kept"]
            known = {"interrupted": False, "retry_after": 0.0, "recalled": True, "errors": errors}
            return Reply(**{**entry.reply, **known, "text": entry.text, "ended_at": late})
        self.made = self.lost = True
        self.cut = "in flight when its process ended; charged in full"
        self.text.append(entry.text)
        self.parts[None] = _Part(None, entry.text)
        reply = self.settle()
        spend = reply.spend if self.task["room"] is None else entry.reserved
        seconds = max(0.0, entry.changed - entry.started)
        reply = replace(
            reply,
            spend={**spend, "seconds": seconds},
            started=entry.started,
            ended_at=entry.changed,
            recalled=True,
        )
        try:
            self.access.ledger.settle(self.task, asdict(reply), abandoned=True)
        except LedgerError as error:
            reply.errors.append(str(error))
        return reply

    def _unmade(self, error: LedgerError) -> Reply:
        self.failed = self.lost = True
        self.errors.append(f"not made: {error}")
        return self.settle()

    def reserve(self) -> bool:
        """Write the reservation; False if the call must not be made."""
        if self.access is not None:
            bound = self.task["prompt_bound"]
            full = self._priced(bound, self.task["room"] or 0, 0, bound)
            try:
                self.lost = not self.access.ledger.reserve(
                    self.access.hold, self.task, full, self.gate.name, self.so_far
                )
            except LedgerError as error:
                self._unmade(error)
            if self.lost:
                return False
        self.made = True
        return True

    def so_far(self) -> str:
        """Of several choices, the first."""
        return self._arrived()[0].text

    # --- while it runs

    def capped(self) -> tuple[BaseChatModel, Mapping[str, Any]]:
        """The model with this call's output cap and, where it takes one, its time limit; and what is
        bound to it."""
        update: dict[str, Any] = {}
        bound = self.gate.kwargs
        if (room := self.task["room"]) is not None:
            update, bound = providers.fitted(self.gate.model, bound, room // self.choices)
        if isinstance(seed := getattr(self.gate.model, "seed", None), int):
            update["seed"] = seed + self.task["ordinal"]
        if self.seconds is not None:
            own = getattr(self.gate.model, "request_timeout", None)
            patience = self.seconds + _GRACE
            patience = min(own, patience) if isinstance(own, int | float) else patience
            update |= providers.clients(self.gate.model, timeout=patience)
        model = self.gate.model.model_copy(update=update)
        if self.choices > 1:
            id = f"{LC_ID_PREFIX}-{self.run_id}"
            model = model.model_copy(update=providers.apart(model, self.choices, id))
        return model, bound

    def told(self, config: RunnableConfig) -> RunnableConfig:
        """The first of several choices is known by the id of the call's run."""
        return {**config, "run_id": self.run_id} if self.choices > 1 else config

    def hold_back(self, seconds: float) -> bool:
        """Wait before a call that follows a refusal; False if time ran out or a stop came."""
        until = time.monotonic() + seconds
        while not self.over() and (rest := until - time.monotonic()) > 0:
            time.sleep(min(rest, _POLL))
        return self.cut is None

    def patience(self) -> float | None:
        """Seconds until something may have to be decided although nothing arrives."""
        rest = None if self.seconds is None else self.seconds - (time.monotonic() - self.clock)
        if self.stop is not None:
            rest = _POLL if rest is None else min(rest, _POLL)
        return None if rest is None else max(0.0, rest)

    def over(self) -> bool:
        """Whether the call must end now, whatever has arrived."""
        if self.cut is None:
            if self.stop is not None and self.stop.is_set():
                self.interrupt()
            elif self.seconds is not None and time.monotonic() - self.clock >= self.seconds:
                self.cut = "out of time"
        return self.cut is not None

    def interrupt(self) -> None:
        self.cut, self.interrupted = "stopped", True

    def drain(self, stream: Iterator[Any]) -> None:
        try:
            for chunk in stream:
                if self._feed(chunk):
                    return
            self.ended = True
        finally:
            if close := getattr(stream, "close", None):
                close()

    async def adrain(self, stream: AsyncIterator[Any]) -> None:
        try:
            async for chunk in stream:
                if self._feed(chunk):
                    return
            self.ended = True
        finally:
            if close := getattr(stream, "aclose", None):
                await close()

    def fail(self, error: Exception) -> None:
        done = [part for part in self._arrived() if part.finish is not None]
        if (
            len(done) >= self.choices
            and self.cut is None
            and isinstance(error, TypeError | ValueError)
        ):
            # The reply is whole; what follows it, the usage report, could not be read.
            self.usage_error = self.ended = True
        elif self.cut is None:
            self.failed = True
            self.errors.append(describe(error))
            self.retry_after = _retry_after(error)
            if self.kept is not None:
                self.kept.error = error
            status = providers.status(error)
            self.refused = status is not None and not _transient(status)
            if self.choices > 1 and (self.refused or (status is None and not self.pieces)):
                self.once = False
            log.debug("call %s failed", self.task["ordinal"], exc_info=error)

    def _feed(self, chunk: BaseMessage) -> bool:
        """Take in a piece of the reply; True to cut the stream."""
        if self.over():
            return True
        if self.kept is not None:
            self.kept.pieces.append(chunk)
        called = providers.called(chunk)
        self.called = self.called or bool(called)
        text, thought = _clean(chunk.text), _clean(providers.reasoning(chunk) + called)
        if text or thought:
            self.pieces += 1
            self.length += len(text) + len(thought)
            self.text.append(text)
            self.thought.append(thought)
            for words in filter(None, (text, thought)):
                self.least += tokens.least(words)
                self.typical += tokens.typical(words)
        elif not getattr(chunk, "usage_metadata", None):
            self.silent += 1
        self.message_id = chunk.id or self.message_id
        self.finish = (finish := providers.finish(chunk.response_metadata)) or self.finish
        if self.choices > 1 and str(self.run_id) in (chunk.id or ""):
            part = self.parts.setdefault(chunk.id, _Part(chunk.id))
            part.text += text
            part.finish = finish or part.finish
        self._add_usage(getattr(chunk, "usage_metadata", None))
        room = self.task["room"]
        if room is not None and self._exceeds(room):
            self.cut = f"the provider ignored the limit of {room} output tokens"
            self.overran = True
        return self.cut is not None

    def _exceeds(self, room: int) -> bool:
        """More came than the cap allows. That is so with `slack` pieces above the cap, as servers
        send tokens or bundles of them, unless their text cannot be so many tokens: then they are
        crumbs of tokens, and the text is judged by what it is about, or at the very least. Runs of
        a mark count by their characters, for those may be tokens each. Whatever they are of, it is
        so above 6 pieces a token, and above 128 characters a token.

        With a cap of 300: "(", newlines and blanks, one a piece, are cut at 317 pieces, and so are
        words. Pieces of one letter are cut by the words they make, at 1,817 at the latest; prose of
        300 tokens has about 1,400. Of pieces of 10,000 "(", the fourth is cut, at 38,400 of them.

        The text is looked at again when it has grown by an eighth, so in linear time on the whole.
        """
        slack = _SLACK * self.choices
        if self.silent > slack and self.pieces + self.silent > room + slack:
            return True
        if self.pieces > _CRUMBS * room + slack or self.length > _LONGEST * room:
            return True
        if self.typical > 3 * self.pieces and 0.8 * self.typical > room + slack:
            return True
        grown = max(self.pieces, self.least)
        if grown <= max(room + slack, self.looked + self.looked // 8):
            return False
        self.looked = grown
        text = "".join(self.text) + "".join(self.thought)
        if self.pieces > room + slack:
            if _most(text) >= self.pieces:
                return True
            if 0.8 * tokens.typical(text) > room + slack:
                return True
        return tokens.least(text) > room + slack

    def _add_usage(self, usage: Mapping[str, Any] | None) -> None:
        if not usage:
            return
        have = self.usage or dict.fromkeys(_USAGE, 0)
        inputs, outputs = usage.get("input_token_details"), usage.get("output_token_details")
        try:
            more = {
                "input": int(usage.get("input_tokens") or 0),
                "output": int(usage.get("output_tokens") or 0),
                "total": int(usage.get("total_tokens") or 0),
                "reasoning": int((outputs or {}).get("reasoning") or 0),
                "cached": int((inputs or {}).get("cache_read") or 0),
                "written": sum(int((inputs or {}).get(k) or 0) for k in _WRITTEN),
            }
        except (TypeError, ValueError):
            self.usage_error = True
            return
        # LangChain's chunks add up, but some servers repeat the running total in every chunk.
        running = 0 < have["input"] <= more["input"]
        self.usage = {k: max(have[k], more[k]) if running else have[k] + more[k] for k in have}

    # --- when it has ended

    def book(self) -> Reply:
        """Charge the call, here and in the ledger. A reply that is paid for is not lost with the
        ledger."""
        reply = self.settle()
        if self.access is not None:
            try:
                self.access.ledger.settle(self.task, asdict(reply))
            except LedgerError as error:
                reply.errors.append(str(error))
        return reply

    def settle(self) -> Reply:
        """Charge the call. After this nothing that still arrives counts."""
        if not self.ended and not self.failed and self.cut is None:
            self.cut = "cut"
        spend, reported = self._charge("".join(self.text), "".join(self.thought))
        now = time.time()
        spend["seconds"] = max(0.0, now - self.started)
        full = self._full(spend, reported)
        ended = "error" if self.failed else "cut" if self.cut else "length" if full else "stop"
        first, *others = [
            self._choice(i, part, ended, spend) for i, part in enumerate(self._arrived())
        ]
        message = first.pop("message")
        return Reply(
            **first,
            spend=spend,
            reported=reported,
            interrupted=self.interrupted,
            retry_after=self.retry_after,
            started=self.started,
            ended_at=now,
            lost=self.lost,
            refused=self.refused,
            called=self.called,
            message=None if message is None else message_to_dict(message),
            others=others,
            once=self.once,
        )

    def _arrived(self) -> list[_Part]:
        """The choices, in their order."""
        if self.choices > 1:
            parts = sorted(self.parts.values(), key=lambda part: providers.index(part.id))
            return parts or [_Part(None)]
        return [_Part(self.message_id, "".join(self.text), self.finish)]

    def _choice(self, i: int, part: _Part, ended: str, spend: Spend) -> dict[str, Any]:
        """What a choice comes to. ended: how the call did, which is how an unfinished one did."""
        errors, text, failed = [] if i else list(self.errors), part.text, self.failed
        if self.choices > 1 and part.finish is not None:
            ended = "length" if part.finish in providers.FULL else "stop"
        starved = ended == "length" and not text.strip()
        if starved:
            errors.append(
                f"starved: {spend['output_tokens']} output tokens, "
                f"{spend['reasoning_tokens']} of them reasoning, and no text"
            )
        message = self._message(text, ended)
        called = self.called if message is None else bool(message.tool_calls)
        silent = not text.strip() and ended == "stop"
        if message is not None and calls.broken(message):
            failed, message = True, None
            errors.append("its tool calls did not come whole")
        elif silent and not called and self.heard is None:
            failed = True
            errors.append("the reply was empty")
        if self.cut and not i and (not text.strip() or self.cut not in ("stopped", "out of time")):
            errors.append(self.cut)
        place = f"{self.task['move']['kind']} {self.task['ordinal'] + i}"
        return {
            "text": text,
            "message_id": part.id,
            "ended": ended,
            "starved": starved,
            "failed": failed,
            "errors": [f"{place}: {error}" for error in errors],
            "message": message,
        }

    def _message(self, text: str, ended: str) -> AIMessage | None:
        """For an agent, the reply as a message. Tool calls of one that was cut are not to be carried
        out, nor those of one that was to be the last."""
        if "agent" not in self.task["move"] or self.kept is None or not self.kept.pieces:
            return None
        if ended in ("cut", "error"):
            return AIMessage(text) if text.strip() else None
        message = self.kept.message()
        if ended == "stop" and not self.task["move"]["final"]:
            return message
        return AIMessage(text, id=message.id, usage_metadata=message.usage_metadata)

    def _full(self, spend: Spend, reported: int | None) -> bool:
        if self.finish is not None or reported is None:
            return self.finish in providers.FULL
        return self.task["room"] is not None and spend["output_tokens"] >= self.task["room"]

    def _charge(self, text: str, thought: str) -> tuple[Spend, int | None]:
        if not self.made:
            return nothing(), None
        usage, reasoning = self.usage, 0
        if self.choices > 1 and self.ended and len(self._arrived()) < self.choices:
            self.once = False
        lie = None if not self.ended else self._disbelief(usage, text + thought)
        if self.ended and lie is None and usage is not None:
            paid, cached = usage["input"], min(max(0, usage["cached"]), usage["input"])
            written = min(max(0, usage["written"]), paid - cached)
            made = max(usage["output"], usage["total"] - usage["input"])
            reasoning = min(max(0, usage["reasoning"]), made)
            if self.choices > 1:
                return self._charge_choices(paid, made, cached, written, reasoning, text + thought)
        else:
            room, seen = self.task["room"] or 0, text + thought
            most = _most(seen) if self.overran or not room else tokens.least(seen)
            paid, cached = self.task["prompt_bound"], 0
            written = paid
            made = max(room, most, self.pieces + self.silent if self.overran else 0)
        spend = self._priced(paid, made, cached, written)
        spend["reasoning_tokens"] = reasoning
        if lie is not None:
            self.errors.append(f"{lie}; charged {spend['tokens']} tokens, the whole reservation")
            return spend, None
        if self.ended and (excess := self._excess(spend)):
            self.errors.append(excess)
        return spend, spend["input_tokens"] if self.ended else None

    def _charge_choices(
        self, paid: int, made: int, cached: int, written: int, reasoning: int, seen: str
    ) -> tuple[Spend, int | None]:
        """By the report, unless it tells the tokens of one choice only: then by what came, with the
        prompt once for each choice. Whether the prompt was billed once is certain only below what
        it would be at the very least as often as there are choices."""
        n, reported = self.choices, paid
        if made < max(self.pieces, tokens.least(seen) // 2):
            self.once = False
            room = self.task["room"] or math.inf
            least, made = made, max(self.pieces, int(min(room, tokens.upper(seen))))
            paid = min(self.task["prompt_bound"], n * paid)
            self.errors.append(
                f"the provider reported {reported} + {least} tokens for {n} choices of at least "
                f"{self.pieces}; charged {paid + made}, as far as they were seen"
            )
            return self._priced(paid, made, 0, paid), reported
        if self.once is None and paid < n * tokens.least(self._asked()):
            self.once = True
        elif self.once is None and paid > self.task["prompt_bound"] // self.task["move"]["billed"]:
            self.once, reported = False, math.ceil(paid / n)
        spend = self._priced(paid, made, cached, written)
        spend["reasoning_tokens"] = reasoning
        if excess := self._excess(spend):
            self.errors.append(excess)
        return spend, reported

    def _asked(self) -> str:
        return "\n".join(m.text for m in self.task["prompt"])

    def _priced(self, paid: int, made: int, cached: int, written: int) -> Spend:
        """What a call costs with so many tokens of input and output, and of input that a cache gave
        or took in."""
        prices = self.gate.prices
        return Spend(
            tokens=paid + made,
            input_tokens=paid,
            output_tokens=made,
            reasoning_tokens=0,
            cached_tokens=cached,
            usd=prices.usd(paid, made, cached, written) if prices else 0.0,
            calls=1,
            seconds=0.0,
        )

    def _disbelief(self, usage: dict[str, Any] | None, text: str) -> str | None:
        """Why a report cannot be true: absent, not numbers, or below half of what the texts are
        at the very least."""
        if self.usage_error:
            return "the end of the reply, with its usage report, could not be read"
        if usage is None:
            return "the provider reported no usage"
        if max(usage.values()) > _INCREDIBLE:
            return "the provider reported more tokens of usage than a call can have"
        for name, said, floor in (
            ("input", usage["input"], tokens.least(self._asked())),
            ("output", usage["output"], tokens.least(text) if self.choices == 1 else 0),
        ):
            if said < max(0, math.floor(floor / 2)) or (said <= 0 < floor):
                return f"the provider reported {said} {name} tokens for a text of at least {floor}"
        return None

    def _excess(self, spend: Spend) -> str | None:
        """A report above the reservation is booked as it stands, and noted."""
        over_prompt = spend["input_tokens"] - self.task["prompt_bound"]
        over_room = spend["output_tokens"] - (self.task["room"] or math.inf)
        if over_prompt <= 0 and over_room <= 0:
            return None
        return (
            f"the provider reported {spend['input_tokens']} + {spend['output_tokens']} tokens; "
            f"reserved were {self.task['prompt_bound']} + {self.task['room']}"
        )


def _most(text: str) -> int:
    """The most tokens that a text was written in, though its runs could have been fewer."""
    return tokens.upper(text) + tokens.repeated(text)


def describe(error: BaseException) -> str:
    """An error in one line that holds no prompt, reply or key: providers echo them in messages."""
    parts = [type(error).__name__]
    status, code = providers.status(error), getattr(error, "code", None)
    if status is not None:
        parts.append(f"HTTP {status}")
    if isinstance(code, str) and re.fullmatch(r"[a-z][a-z_]{2,40}", code):
        parts.append(code)
    return " ".join(parts)


def _retry_after(error: Exception) -> float:
    """Seconds to hold back before the next call: as the server asks, else half a second if it is
    overloaded or gone; 0 if the request itself was at fault."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    try:
        return min(_LONGEST_WAIT, max(0.0, float(headers["retry-after"])))
    except (KeyError, TypeError, ValueError):
        status = providers.status(error)
        if status is None:
            return 0.0 if isinstance(error, ValueError | TypeError) else 0.5
        return 0.5 if _transient(status) else 0.0


def _transient(status: int) -> bool:
    """An HTTP status that says nothing against the request itself."""
    return status in (408, 409, 429) or status >= 500


def _clean(text: str) -> str:
    """Text without lone surrogates, which no later request could carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _counter(model: BaseChatModel, name: str) -> tokens.Counter | None:
    """tiktoken for OpenAI's own models at OpenAI's own address; others tokenize otherwise."""
    return tokens.openai_counter(name) if _openais(model) else None


def _openais(model: BaseChatModel) -> bool:
    root = getattr(model, "root_client", None)
    return getattr(getattr(root, "base_url", None), "host", "") == "api.openai.com"
