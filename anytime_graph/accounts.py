"""Budgets for work that others plan, such as agents: an account holds what a run may still spend,
accounts of sub-agents and tools draw on that of their caller, and a metered chat model can make no
call that its account does not pay for.

A call is reserved in its account and in all above it, under one lock, before it is made: calls
that run side by side cannot overspend together.
"""

from __future__ import annotations

import contextvars
import functools
import json
import math
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    message_chunk_to_message,
)
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import get_runtime

from anytime_graph import prompts
from anytime_graph.budget import (
    DIMENSIONS,
    BudgetTooSmall,
    Limits,
    Prices,
    Spend,
    nothing,
    output_room,
)
from anytime_graph.metering import Gate, Heard, Reply, acall, call, gate
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.state import GOOD_ROOM, MIN_ROOM, Task
from anytime_graph.tokens import Calibration, Shape, uncalibrated

_INSTANT = 0.001
_TERMS = "anytime_terms"
_ACCOUNTS = 4_096
_LEAST_ALLOWANCE = 40
"""Characters of earlier material below which a last call shows none."""


class Short(BudgetTooSmall):
    """A call that what is left cannot pay for. dimension: what it is short of."""

    def __init__(self, given: Limits, least: Limits, dimension: str) -> None:
        super().__init__(given, least, "one call")
        self.dimension = dimension


@dataclass
class _Series:
    """The last prompt of a model's in an account, which the next may begin with.

    said: its messages, as hashes. beside: what travelled with it.
    """

    known: Calibration
    said: list[int]
    beside: str


@dataclass
class Order:
    """A call that is reserved: what it may take (`amounts`), and how it is to be made."""

    gate: Gate
    task: Task
    amounts: Limits
    said: list[int]


class Account:
    """What may still be spent, by one agent's run or one tool call. Safe to use from any thread.

    limits: amounts by dimension; None: the tool call's part of what its caller has left, fixed at
    the first call. spent: booked so far; its seconds are those in which calls were active.
    reserve: what only the last call may use. parent: whom it draws on. growth: how far prompts
    were seen to exceed their bound, by model. open: the tool calls that are under way. question:
    what the last call answers. ended: a call of a middleware's did not fit, so the work ends.
    """

    def __init__(
        self, limits: Limits | None, parent: Account | None = None, spent: Spend | None = None
    ) -> None:
        self.parent = parent
        self.limits = limits
        self.spent: Spend = {**nothing(), **(spent or {})}  # type: ignore[typeddict-item]
        self.reserve: Limits = {}
        self.lock: threading.RLock = parent.lock if parent else threading.RLock()
        self.depth: int = parent.depth + 1 if parent else 0
        self.growth: dict[str, float] = parent.growth if parent else {}
        self.open: set[str] = set()
        self.question: BaseMessage | None = None
        self.ended: Short | None = None
        self._held: Limits = {}
        self._series: dict[str, _Series] = {}
        self._active = 0
        self._since = 0.0
        self._ordinal = 0

    def left(self, final: bool = False) -> Limits:
        """What is left here and in every account above. final: the reserve included."""
        with self.lock:
            rest = {
                d: max(0, limit - self._used(d) - (0 if final else self.reserve.get(d, 0)))
                for d, limit in self._limits().items()
            }
            above = self.parent.left() if self.parent else {}
            return {
                d: min(a[d] for a in (rest, above) if d in a)
                for d in DIMENSIONS
                if d in rest or d in above
            }

    def narrow(self) -> None:
        """Take no more from above than is left there now, so that the reserve is a part of what
        can really be spent."""
        with self.lock:
            above = self.parent.left() if self.parent else {}
            own = self._limits()
            self.limits = own | {
                d: min(own.get(d, math.inf), amount + self._used(d)) for d, amount in above.items()
            }

    def adopt(self, spend: Spend) -> None:
        """Book what was spent below before this process knew of it."""
        with self.lock:
            for account in self._chain():
                _add(account.spent, spend)

    def catch_up(self, spent: Spend) -> None:
        """Book what a checkpoint knows and this account does not: tool calls that were done when
        the run was interrupted beside them."""
        with self.lock:
            ahead = less(spent, self.spent)
            ahead["seconds"] = 0.0  # those of calls side by side add up to more than the time
            if ahead["calls"] > 0:
                self.adopt(ahead)

    def keep(self, share: float | Limits) -> None:
        """Set aside what was asked for, until the first prompt tells what the last call needs."""
        with self.lock:
            self.reserve = _asked(share, self._limits())

    def order(self, gate: Gate, plan: Plan, prompt: Sequence[BaseMessage]) -> Order:
        """Reserve a call. Raises Short if it does not fit; nothing is reserved then."""
        with self.lock:
            if plan.share is not None:
                self.reserve = self._reserve(gate, plan.share, prompt)
            rest = self.left(plan.final)
            said = _said(prompt)
            series = None if plan.final else self._following(gate, said)
            known: Calibration = self._known(gate)
            if series is not None:
                known = {**series.known, "growth": known["growth"]}
            if plan.final:
                messages = self._fitted(gate, prompt, rest)
            else:
                messages = prompts.told(prompt, rest) if plan.agent and rest else list(prompt)
            shape = gate.shape(messages)
            bound = gate.bound(shape, known, within=series is not None)
            wanted = GOOD_ROOM if plan.agent and not plan.final else MIN_ROOM
            least = wanted if gate.ceiling is None else min(wanted, gate.ceiling)
            need = _need(gate, bound, least)
            for d, amount in rest.items():
                if amount < need[d]:
                    raise Short(rest, {k: max(v, need[k]) for k, v in rest.items()}, d)
            room = output_room(rest, bound, gate.prices)
            if room is not None and plan.agent and not plan.final:
                room = max(least, room // 2)  # a call that fails is charged all of it
            room = gate.cap(room)
            amounts = _need(gate, bound, room or 0)
            task = self._task(gate, messages, bound, room, shape, rest)
            for account in self._chain():
                account._hold(amounts)
            return Order(gate, task, amounts, said)

    def settle(self, order: Order, reply: Reply | None, plan: Plan) -> None:
        """Book a call in place of its reservation; without a reply, the whole reservation."""
        with self.lock:
            spend = reply.spend if reply is not None else _whole(order)
            for account in self._chain():
                account._release(order.amounts)
                _add(account.spent, {**spend, "seconds": 0.0})
            if reply is None or reply.reported is None:
                return
            known = order.gate.learn(
                self._known(order.gate), order.task["shape"], reply.reported, plan.agent
            )
            self.growth[order.gate.name] = known["growth"]
            if plan.agent and not plan.final:
                self._series[order.gate.name] = _Series(known, order.said, order.gate.extra)

    def _chain(self) -> Iterator[Account]:
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    def _limits(self) -> Limits:
        if self.limits is None:
            parts = max(1, len(self.parent.open)) if self.parent else 1
            above = self.parent.left() if self.parent else {}
            self.limits = {d: _part(d, a, parts) + self._used(d) for d, a in above.items()}
        return self.limits

    def _used(self, dimension: str) -> float:
        running = time.monotonic() - self._since if self._active else 0.0
        booked = cast(float, self.spent[dimension])  # type: ignore[literal-required]
        return booked + (running if dimension == "seconds" else self._held.get(dimension, 0))

    def _hold(self, amounts: Limits) -> None:
        if not self._active:
            self._since = time.monotonic()
        self._active += 1
        self._held = {d: self._held.get(d, 0) + a for d, a in amounts.items()}

    def _release(self, amounts: Limits) -> None:
        self._active -= 1
        if not self._active:
            self.spent["seconds"] += time.monotonic() - self._since
        self._held = {d: a - amounts.get(d, 0) for d, a in self._held.items()}

    def _reserve(self, gate: Gate, share: float | Limits, prompt: Sequence[BaseMessage]) -> Limits:
        """What the last call is kept: as much as was asked for, but what its shortest prompt and
        a short reply take."""
        limits = self._limits()
        asked = _asked(share, limits)
        if not asked:
            return {}
        bare = replace(gate, kwargs={}, extra="")
        shortest = bare.shape(prompts.sum_up(prompt, 0, False, self.question))
        need = _need(gate, bare.bound(shortest, self._known(gate)), GOOD_ROOM)
        need["seconds"] = 0.0
        return {d: max(need[d], asked.get(d, 0)) for d in limits}

    def _fitted(self, gate: Gate, prompt: Sequence[BaseMessage], rest: Limits) -> list[Any]:
        """The last prompt with as much of the material as leaves a quarter to the reply."""
        known = self._known(gate)

        def room(messages: list[Any]) -> float:
            bound = gate.bound(gate.shape(messages), known)
            paid = output_room(rest, bound, gate.prices)
            return math.inf if paid is None else paid

        all_ = output_room(rest, 0, gate.prices)
        wanted = min(
            max(GOOD_ROOM, 0 if all_ is None else all_ // 4),
            room(prompts.sum_up(prompt, 0, False, self.question)),
        )
        fitting = (m for m in _shorter(prompt, self.question) if room(m) >= wanted)
        return next(fitting)

    def _known(self, gate: Gate) -> Calibration:
        return {**uncalibrated(), "growth": self.growth.get(gate.name, 1.0)}

    def _following(self, gate: Gate, said: list[int]) -> _Series | None:
        """The last prompt, if this one begins with it."""
        series = self._series.get(gate.name)
        if series is None or series.beside != gate.extra:
            return None
        return series if said[: len(series.said)] == series.said else None

    def _task(
        self,
        gate: Gate,
        messages: list[Any],
        bound: int,
        room: int | None,
        shape: Shape,
        rest: Limits,
    ) -> Task:
        self._ordinal += 1
        return Task(
            ordinal=self._ordinal,
            step=self._ordinal,
            move={"kind": "call"},
            swapped=False,
            gate=gate.name,
            slice=rest,
            prompt=messages,
            prompt_bound=bound,
            room=room,
            shape=shape,
            wait=0.0,
            run_id=0,
            thread="",
            plan="",
            question="",
            spent=self.spent,
            limits=self._limits(),
        )


@dataclass
class Plan:
    """How a desk's calls are planned. agent: they are an agent's own. final: the last, in which it
    sums up. share: of the limits, or by dimension, what is kept for the last call. spares: a call
    that does not fit is answered with what it was given, and the agent's work ends: it is a
    middleware's (a summary), whose failure would lose the run."""

    agent: bool = False
    final: bool = False
    share: float | Limits | None = None
    spares: bool = False


@dataclass
class Desk:
    """Where metered models charge their calls, and what came of the latest.

    short: it did not fit. reply: what it brought. error: the client's own, where it failed.
    message: as the caller received it.
    """

    account: Account
    plan: Plan = field(default_factory=Plan)
    short: Short | None = None
    reply: Reply | None = None
    order: Order | None = None
    error: Exception | None = None
    message: AIMessage | None = None

    def buy(
        self,
        model: BaseChatModel,
        messages: Sequence[BaseMessage],
        config: RunnableConfig,
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> AIMessage:
        """Make a call if it fits. If it does not, `short` tells, and a tool's call raises it.
        Raises what the client raises."""
        order, heard, reply = self._order(model, messages, options, prices), Heard(), None
        if order is None:
            return self._spared(messages)
        try:
            reply = call(order.gate, order.task, config, None, heard=heard)
        finally:
            self.account.settle(order, reply, self.plan)
        return self._absorb(order, reply, heard)

    async def abuy(
        self,
        model: BaseChatModel,
        messages: Sequence[BaseMessage],
        config: RunnableConfig,
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> AIMessage:
        order, heard, reply = self._order(model, messages, options, prices), Heard(), None
        if order is None:
            return self._spared(messages)
        try:
            reply = await acall(order.gate, order.task, config, None, heard=heard)
        finally:
            self.account.settle(order, reply, self.plan)
        return self._absorb(order, reply, heard)

    @property
    def broke(self) -> bool:
        """The latest reply broke off: neither its end nor its usage was reported, as they were
        before."""
        if self.message is None or self.order is None or self.message.tool_calls:
            return False
        known = self.order.gate.name in self.account.growth
        return known and not _reports_its_end(self.message)

    @property
    def unfinished(self) -> bool:
        """The budget, and not the model or its user, ended the latest reply before it could be
        used; or it is empty."""
        reply, message, order = self.reply, self.message, self.order
        if reply is None or message is None or order is None:
            return True
        if message.tool_calls:
            return False
        ceiling, room = order.gate.ceiling, order.task["room"]
        ours = reply.ended == "cut" or (room is not None and (ceiling is None or room < ceiling))
        if not message.text.strip() or (reply.ended in ("length", "cut") and ours):
            return True
        return self.broke

    def _order(
        self,
        model: BaseChatModel,
        messages: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Order | None:
        self.short = self.reply = self.order = self.error = self.message = None
        bound = model.bind(**_unparsed(model, options))
        ready = gate(bound, prices or prices_of(model))
        if ready.prices is None and "usd" in self.account.left():
            raise ValueError(
                f"budget usd: the price of {ready.name!r} is not known; pass "
                "prices=Prices(input=..., output=...) in dollars per million tokens, or install "
                "anytime-graph[prices]"
            )
        try:
            self.order = self.account.order(ready, self.plan, messages)
        except Short as short:
            self.short = short
            if self.plan.spares:
                self.account.ended = short
            elif not self.plan.agent:
                raise
        return self.order

    def _spared(self, messages: Sequence[BaseMessage]) -> AIMessage:
        """In place of a call that does not fit, where an error would be retried or lose the run."""
        return AIMessage(prompts.said(messages[-1]) if self.plan.spares else "")

    def _absorb(self, order: Order, reply: Reply, heard: Heard) -> AIMessage:
        self.reply, self.error = reply, heard.error
        if reply.interrupted:
            raise KeyboardInterrupt
        if heard.error is not None:
            raise heard.error
        self.message = _joined(heard.pieces, reply.ended == "stop")
        return self.message


# --- metered models


@dataclass(frozen=True)
class _Terms:
    """On what a metered model makes its calls: at a given desk, or at that of the work it is part
    of; at these prices, or as listed."""

    desk: Desk | None
    prices: Prices | None


def metered(model: str | BaseChatModel, prices: Prices | None = None) -> BaseChatModel:
    """A chat model whose calls are charged to the budget of the agent that it works for: give it to
    tools, and to middlewares that call models of their own. Where no agent with a
    TokenBudgetMiddleware is at work, it is the model itself.

    model: a chat model or its name, as for create_anytime_graph. prices: US dollars per million
    tokens; default: looked up by the model's name. A call that does not fit raises BudgetTooSmall;
    the agent is told, and goes on. Raises ValueError if it is no chat model.
    """
    return _metered(resolve_model(model), _Terms(None, prices))


def at(model: BaseChatModel, desk: Desk, prices: Prices | None) -> BaseChatModel:
    """The model, its calls charged at this desk."""
    return _metered(unmetered(model), _Terms(desk, prices or _terms(model).prices))


def unmetered(model: BaseChatModel) -> BaseChatModel:
    """The model as it was before `metered`, with what was set since."""
    if _TERMS not in vars(model):
        return model
    plain = _turned(model, type(model).__bases__[0])
    del vars(plain)[_TERMS]
    return plain


def _metered(model: Any, terms: _Terms) -> BaseChatModel:
    if not isinstance(model, BaseChatModel):
        raise ValueError(
            f"model={type(model).__name__}: a LangChain chat model is needed, with nothing bound "
            "to it, or a string such as 'openai:gpt-4.1-mini' or 'local'"
        )
    plain = unmetered(model)
    changed = _turned(plain, _metered_kind(type(plain)))
    vars(changed)[_TERMS] = terms
    return changed


def _terms(model: BaseChatModel) -> _Terms:
    return cast(_Terms, vars(model).get(_TERMS) or _Terms(None, None))


def _turned(model: BaseChatModel, kind: type[BaseChatModel]) -> BaseChatModel:
    """A copy of the model that is of another class with the same fields."""
    copy = model.model_copy()
    object.__setattr__(copy, "__class__", kind)
    return copy


@functools.cache
def _metered_kind(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """A subclass that differs in who makes the calls: to LangChain, and to middlewares that look
    at the class, the profile or the fields of a model, it is what it was."""
    methods = {
        "generate": _generate,
        "agenerate": _agenerate,
        "stream": _stream,
        "astream": _astream,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return cast(
        "type[BaseChatModel]",
        types.new_class(kind.__name__, (kind,), {}, lambda body: body.update(methods)),
    )


def _generate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    desk, plain = _desk(self), unmetered(self)
    if desk is None:
        return plain.generate(messages, stop, callbacks, **options)
    config, options = _split(callbacks, stop, options)
    prices = _terms(self).prices
    return _result([desk.buy(plain, m, config, options, prices) for m in messages])


async def _agenerate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    desk, plain = _desk(self), unmetered(self)
    if desk is None:
        return await plain.agenerate(messages, stop, callbacks, **options)
    config, options = _split(callbacks, stop, options)
    prices = _terms(self).prices
    return _result([await desk.abuy(plain, m, config, options, prices) for m in messages])


def _stream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Iterator[Any]:
    """In one piece: what arrives meanwhile is seen by callbacks, as when an agent is streamed."""
    if _desk(self) is None:
        yield from unmetered(self).stream(input, config, **options)
    else:
        yield _piece(self.invoke(input, config, **options))


async def _astream(self: BaseChatModel, input: Any, config: Any = None, **options: Any) -> Any:
    if _desk(self) is None:
        async for piece in unmetered(self).astream(input, config, **options):
            yield piece
    else:
        yield _piece(await self.ainvoke(input, config, **options))


def _piece(message: BaseMessage) -> AIMessageChunk:
    fields = {k: v for k, v in message.model_dump().items() if k != "type"}
    return AIMessageChunk(**fields, chunk_position="last")


def _split(
    callbacks: Any, stop: list[str] | None, options: dict[str, Any]
) -> tuple[RunnableConfig, dict[str, Any]]:
    """What concerns the run, and what is sent."""
    named = ("tags", "metadata", "run_name", "run_id")
    config = {k: options.pop(k, None) for k in named} | {"callbacks": callbacks}
    options.pop("ls_structured_output_format", None)
    if stop is not None:
        options["stop"] = stop
    return cast(RunnableConfig, {k: v for k, v in config.items() if v is not None}), options


def _unparsed(model: BaseChatModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with a schema for the reply sent as part of the body: named as such,
    langchain-openai would parse the reply, and fail on one that was cut."""
    rest = dict(options)
    if "extra_body" in type(model).model_fields and isinstance(rest.get("response_format"), dict):
        own = getattr(model, "extra_body", None) or {}
        form = {"response_format": rest.pop("response_format")}
        rest["extra_body"] = {**own, **(rest.get("extra_body") or {}), **form}
    return rest


def _result(messages: Sequence[AIMessage]) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=m)] for m in messages])


def _joined(pieces: Sequence[BaseMessage], ended: bool) -> AIMessage:
    """The message that the pieces make. Of a reply that was cut or broke off, only those tool calls
    are kept whose arguments are complete: half of them could be another instruction."""
    if not pieces:
        return AIMessage("")
    chunks = [p for p in pieces if isinstance(p, AIMessageChunk)]
    if not chunks:
        return cast(AIMessage, pieces[-1])
    joined = chunks[0] + chunks[1:]
    message = cast(AIMessage, message_chunk_to_message(joined))
    if ended and _reports_its_end(message):
        return message
    complete = {c["id"] for c in joined.tool_call_chunks if _is_json(c["args"])}
    content = message.content
    if not isinstance(content, str):
        content = [
            b
            for b in content
            if not isinstance(b, dict) or b.get("type") != "tool_use" or b.get("id") in complete
        ]
    update = {
        "content": content,
        "tool_calls": [c for c in message.tool_calls if c["id"] in complete],
        "invalid_tool_calls": [],
        "additional_kwargs": {
            k: v for k, v in message.additional_kwargs.items() if k != "tool_calls"
        },
    }
    return message.model_copy(update=update)


def _reports_its_end(message: AIMessage) -> bool:
    reasons = ("finish_reason", "stop_reason", "done_reason")
    said = any(message.response_metadata.get(reason) for reason in reasons)
    return said or message.usage_metadata is not None


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except ValueError:
        return False
    return True


# --- whose account it is


_DESK: contextvars.ContextVar[Desk | None] = contextvars.ContextVar("anytime_desk", default=None)
_accounts: OrderedDict[Hashable, Account] = OrderedDict()
_registering = threading.Lock()


@contextmanager
def scope(desk: Desk) -> Iterator[None]:
    """What is called within, in whatever thread or task, is charged at this desk."""
    token = _DESK.set(desk)
    try:
        yield
    finally:
        _DESK.reset(token)


def outer() -> Account | None:
    """The account of the tool call, or the model call, that the caller is part of."""
    desk = _DESK.get()
    return desk.account if desk else None


def registered(key: Hashable) -> Account | None:
    with _registering:
        return _accounts.get(key)


def register(account: Account, *keys: Hashable) -> Account:
    with _registering:
        for key in keys:
            _accounts[key] = account
            _accounts.move_to_end(key)
        while len(_accounts) > _ACCOUNTS:
            _accounts.popitem(last=False)
    return account


def here() -> Hashable | None:
    """What all nodes of one invocation of a graph share, and no two invocations at a time; None
    outside of a graph."""
    try:
        spaces = str((get_config().get("configurable") or {}).get("checkpoint_ns") or "")
        control = get_runtime().control
    except (RuntimeError, AttributeError, KeyError):
        return None
    return None if control is None else (control, spaces.rpartition("|")[0])


def _desk(model: BaseChatModel) -> Desk | None:
    """Where a model's calls are charged: at its own desk, else at the innermost around it."""
    if (own := _terms(model).desk) is not None:
        return own
    around, key = _DESK.get(), here()
    account = registered(key) if key is not None else None
    if account is None or (around is not None and around.account.depth >= account.depth):
        return around
    return Desk(account, Plan(spares=True))


# --- amounts


def added(kept: Spend | None, more: Spend | None) -> Spend:
    """The sum of two spends, either of which may be missing."""
    out = {**nothing(), **(kept or {})}
    _add(cast(Spend, out), more or nothing())
    return cast(Spend, out)


def less(spend: Spend | None, by: Spend | None) -> Spend:
    return added(spend, cast(Spend, {d: -cast(float, a) for d, a in (by or nothing()).items()}))


def _add(to: Spend, spend: Spend) -> None:
    for dimension, amount in spend.items():
        to[dimension] += amount  # type: ignore[literal-required]


def _need(gate: Gate, bound: int, room: int) -> Limits:
    return {
        "tokens": bound + room,
        "output_tokens": room,
        "usd": gate.prices.usd(bound, room) if gate.prices else 0.0,
        "calls": 1,
        "seconds": _INSTANT,
    }


def _whole(order: Order) -> Spend:
    bound, room = order.task["prompt_bound"], order.task["room"] or 0
    spend: Spend = {**nothing(), "input_tokens": bound, "output_tokens": room, "calls": 1}
    return {**spend, "tokens": bound + room, "usd": order.amounts["usd"]}


def _asked(share: float | Limits, limits: Limits) -> Limits:
    """The reserve that was asked for; one call is enough. Nothing if there shall be no last call."""
    if isinstance(share, int | float):
        share = {d: amount * share for d, amount in limits.items()} if share else {}
    return {d: min(1, amount) if d == "calls" else amount for d, amount in share.items()}


def _part(dimension: str, amount: float, parts: int) -> float:
    """A tool call's part of what is left; time passes for all of them at once."""
    if dimension == "seconds" or parts == 1:
        return amount
    if dimension == "calls":
        return max(min(1, amount), amount // parts)
    return amount / parts if dimension == "usd" else amount // parts


def _said(prompt: Sequence[BaseMessage]) -> list[int]:
    return [hash(f"{m.type}:{m.content!r}:{getattr(m, 'tool_calls', '')!r}") for m in prompt]


def _shorter(prompt: Sequence[BaseMessage], question: BaseMessage | None) -> Iterator[list[Any]]:
    """Last prompts, each with less of the material than the one before."""
    full = sum(len(prompts.said(m)) for m in prompt)
    for allowance in (None, full // 2, full // 4):
        yield prompts.sum_up(prompt, allowance, True, question)
    allowance = full // 2
    while allowance > _LEAST_ALLOWANCE:
        yield prompts.sum_up(prompt, allowance, False, question)
        allowance //= 2
    yield prompts.sum_up(prompt, 0, False, question)
