"""`metered`: a chat model whose calls are paid from an account, wherever they are made.

Who pays is found where the call is made: whoever runs a tool, a turn of an agent or a draft says so
with `paying_from`; a model that was made for one payer has it with itself.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

from cachetools import LRUCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig
from langgraph.runtime import get_runtime

from anytime_graph import prompts
from anytime_graph.budget import GOOD_ROOM, MIN_ROOM, Limits, Prices, Spend, output_room
from anytime_graph.interrupt import StopSignal
from anytime_graph.metering.account import Account, Short, planned
from anytime_graph.metering.call import acall, call
from anytime_graph.metering.meter import Meter, meter
from anytime_graph.metering.request import Journal, Reply, Request
from anytime_graph.metering.streamed import reports_its_end
from anytime_graph.metering.tool_calls import broken
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.models.tokens import Shape

_LEAST_MATERIAL = 40
"""Characters of earlier material below which a last call shows none."""
_PRICES, _PAYER = "anytime_prices", "anytime_payer"
_INVOCATIONS = 4_096
"""Invocations whose accounts are kept in mind."""


@dataclass
class Reservation:
    """A call that is reserved, and what came of it.

    request: None if it did not fit, and `short` tells why, or if `message` was had before.
    message: what its caller gets. unfinished: the budget, or a connection that broke, and not the
    model or its user, ended the reply before it could be used. broke: it broke off, perhaps within
    its tool calls. error: the client's.
    """

    meter: Meter
    shape: Shape = field(default_factory=list)
    place: int = 0
    request: Request | None = None
    short: Short | None = None
    message: AIMessage = field(default_factory=lambda: AIMessage(""))
    unfinished: bool = False
    broke: bool = False
    error: Exception | None = None

    @property
    def amounts(self) -> Spend:
        """What is held for it."""
        assert self.request is not None
        return self.meter.reservation(self.request.max_input, self.request.max_output)


class Payer(Protocol):
    """Who pays for the calls of metered models, and how they are recorded and stopped."""

    stop: StopSignal | None

    def reserve(
        self,
        model: BaseChatModel,
        prompt: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Reservation:
        """Reserve a call with these options. Raises if it does not fit and its caller is to be told
        so."""
        ...

    def journal(self, reserved: Reservation) -> Journal | None:
        """Where the call is recorded."""
        ...

    def settle(self, reserved: Reservation, reply: Reply | None) -> None:
        """Book the reply; None: its maker gave it up, and it is charged in full. Raises what its
        caller is to be told."""
        ...


def metered(model: str | BaseChatModel, prices: Prices | None = None) -> BaseChatModel:
    """A chat model whose calls are charged to the budget of the agent that it works for: give it to
    tools, and to middlewares that call models of their own. Where no agent with a
    TokenBudgetMiddleware is at work, it is the model itself.

    model: a chat model or its name, as for create_anytime_graph. prices: US dollars per million
    tokens; default: looked up by the model's name. A call that does not fit raises BudgetTooSmall;
    the agent is told, and goes on. Raises ValueError if it is no chat model.
    """
    resolved = resolve_model(model)
    if not isinstance(resolved, BaseChatModel):
        raise ValueError(
            f"model={type(resolved).__name__}: a LangChain chat model is needed, with nothing bound "
            "to it, or a string such as 'openai:gpt-4.1-mini' or 'local'"
        )
    plain = _plain(resolved)
    charged = _as_class(plain, _metered_class(type(plain)))
    vars(charged)[_PRICES] = prices or vars(resolved).get(_PRICES)
    vars(charged)[_PAYER] = vars(resolved).get(_PAYER)
    return charged


def paid_by(payer: Payer, model: BaseChatModel, prices: Prices | None) -> BaseChatModel:
    """The model metered, with all its calls paid by this payer, whatever thread makes them."""
    charged = metered(model, prices)
    vars(charged)[_PAYER] = payer
    return charged


def _plain(model: BaseChatModel) -> BaseChatModel:
    """The model as it was before `metered`, with what was set since."""
    if _PRICES not in vars(model):
        return model
    plain = _as_class(model, type(model).__bases__[0])
    for name in (_PRICES, _PAYER):
        vars(plain).pop(name, None)
    return plain


def _as_class(model: BaseChatModel, kind: type[BaseChatModel]) -> BaseChatModel:
    """A copy of the model that is of another class with the same fields."""
    copy = model.model_copy()
    object.__setattr__(copy, "__class__", kind)
    return copy


@functools.cache
def _metered_class(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """A subclass that differs in who makes the calls: to LangChain, and to middlewares that look
    at the class, the profile or the fields of a model, it is what it was."""
    changed = {
        "generate": _generate,
        "agenerate": _agenerate,
        # Streamed, it is called as a model that cannot be: through the methods above.
        "_stream": BaseChatModel._stream,
        "_astream": BaseChatModel._astream,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    made = types.new_class(kind.__name__, (kind,), {}, lambda body: body.update(changed))
    return cast("type[BaseChatModel]", made)


def _generate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    plain, payer = _plain(self), _payer_of(self)
    if payer is None:
        return plain.generate(messages, stop, callbacks, **options)
    config, options = _split(callbacks, stop, options)
    prices = vars(self)[_PRICES]
    replies = []
    for prompt in messages:
        with _reserved(payer, payer.reserve(plain, prompt, options, prices)) as (reserved, replied):
            if (request := reserved.request) is not None:
                journal = payer.journal(reserved)
                replied.append(call(reserved.meter, request, config, payer.stop, journal))
        replies.append(reserved.message)
    return _result(replies)


async def _agenerate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    plain, payer = _plain(self), _payer_of(self)
    if payer is None:
        return await plain.agenerate(messages, stop, callbacks, **options)
    config, options = _split(callbacks, stop, options)
    prices = vars(self)[_PRICES]
    replies = []
    for prompt in messages:
        with _reserved(payer, payer.reserve(plain, prompt, options, prices)) as (reserved, replied):
            if (request := reserved.request) is not None:
                journal = payer.journal(reserved)
                replied.append(await acall(reserved.meter, request, config, payer.stop, journal))
        replies.append(reserved.message)
    return _result(replies)


def _payer_of(model: BaseChatModel) -> Payer | None:
    return vars(model).get(_PAYER) or current_payer()


@contextmanager
def _reserved(payer: Payer, reserved: Reservation) -> Iterator[tuple[Reservation, list[Reply]]]:
    """A call that is made within, and settled after; in full, if no reply is left in the list that
    comes with it."""
    replied: list[Reply] = []
    try:
        yield reserved, replied
    finally:
        if reserved.request is not None:
            payer.settle(reserved, replied[-1] if replied else None)


def _split(
    callbacks: Any, stop: list[str] | None, options: dict[str, Any]
) -> tuple[RunnableConfig, dict[str, Any]]:
    """What concerns the run, and what is sent."""
    config: dict[str, Any] = {"callbacks": callbacks}
    for name in ("tags", "metadata", "run_name", "run_id"):
        config[name] = options.pop(name, None)
    options.pop("ls_structured_output_format", None)
    if stop is not None:
        options["stop"] = stop
    given = {key: value for key, value in config.items() if value is not None}
    return cast(RunnableConfig, given), options


def _result(messages: Sequence[AIMessage]) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=m)] for m in messages])


# --- an agent's account pays


@dataclass
class AgentPayer:
    """Pays an agent's calls, and those of its tools and middlewares, from an account.

    kind: "agent": a turn of its model; "last": the call in which it sums up; "tool": a call within
    a tool; "middleware": one that a middleware makes in a node of its own. share: what the agent
    keeps for its last call, of its limits or by dimension. question: what the last call answers.
    latest: the latest call, of those that are made one at a time.
    """

    account: Account
    kind: Literal["agent", "last", "tool", "middleware"]
    share: float | Limits = 0.0
    question: BaseMessage | None = None
    latest: Reservation | None = None
    stop: StopSignal | None = None

    def _ready(
        self, model: BaseChatModel, options: Mapping[str, Any], prices: Prices | None
    ) -> Meter:
        ready = meter(model.bind(**options), prices or prices_of(model))
        if ready.prices is None and "usd" in self.account.limits:
            raise ValueError(
                f"budget usd: the price of {ready.name!r} is not known; pass "
                "prices=Prices(input=..., output=...) in dollars per million tokens, or install "
                "anytime-graph[prices]"
            )
        return ready

    def journal(self, reserved: Reservation) -> Journal | None:
        return None

    def reserve(
        self,
        model: BaseChatModel,
        prompt: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Reservation:
        """Raises Short in a tool; elsewhere, where that would be retried or end the run, a call that
        does not fit has no request. Raises ValueError for a model without a price under a budget in
        USD."""
        ready = self._ready(model, options, prices)
        self.account.recall(prompt)
        with self.account.lock:
            try:
                reserved = self._planned(ready, prompt)
            except Short as short:
                if self.kind == "tool":
                    raise
                # A summary that is not made is what was to be summed up.
                text = prompts.said(prompt[-1]) if self.kind == "middleware" else ""
                self.latest = Reservation(ready, short=short, message=AIMessage(text))
                return self.latest
            self.account.hold(reserved.amounts)
            self.latest = reserved
            return reserved

    def settle(self, reserved: Reservation, reply: Reply | None) -> None:
        """Raises what the client raised."""
        account, ready, request = self.account, reserved.meter, reserved.request
        assert request is not None
        account.settle(
            reserved.amounts, reserved.amounts if reply is None else reply.receipt["spend"]
        )
        if reply is None:
            return
        if reply.receipt["interrupted"]:
            raise KeyboardInterrupt
        if reply.error is not None:
            reserved.error = reply.error
            raise reply.error
        reserved.message = message = reply.message
        account.mark(message)
        cap, ended = request.max_output, reply.receipt["ended"]
        ours = cap is not None and (ready.ceiling is None or cap < ready.ceiling)
        cut = ended == "cut" or (ended == "length" and ours)
        silent = ready.name in account.growth and not reports_its_end(message)
        reserved.broke = silent or (broken(message) and not cut)
        empty = not message.text.strip()
        reserved.unfinished = not message.tool_calls and (cut or reserved.broke or empty)
        if (reported := reply.receipt["reported"]) is not None:
            account.learn(ready, reserved.shape, reported)

    def _planned(self, ready: Meter, prompt: Sequence[BaseMessage]) -> Reservation:
        account, last = self.account, self.kind == "last"
        if self.kind == "agent":
            account.reserve = self._reserve(ready, prompt)
        rest = account.left(last)
        messages: Sequence[BaseMessage] = prompt
        if last:
            messages = self._sum_up(ready, prompt, rest)
        elif self.kind == "agent" and ready.bound.get("tools"):
            messages = prompts.told(prompt, rest)
        least = MIN_ROOM if last else GOOD_ROOM
        shape, request = planned(
            ready, messages, rest, account.known(ready), min_output=least, half=not last
        )
        return Reservation(ready, shape, request=request)

    def _reserve(self, ready: Meter, prompt: Sequence[BaseMessage]) -> Limits:
        """What the last call is kept: what was asked for, but at the least what its shortest prompt
        and a short reply take."""
        asked = last_call_reserve(self.share, self.account.limits)
        if not asked:
            return {}
        bare = replace(ready, bound={}, tokenizer=replace(ready.tokenizer, tools=False, extra=""))
        shortest = prompts.sum_up(prompt, 0, False, self.question)
        _, max_input = bare.max_input(list(shortest), self.account.known(bare))
        need = cast("Mapping[str, float]", bare.reservation(max_input, GOOD_ROOM))
        return {d: max(need[d], asked.get(d, 0)) for d in self.account.limits}

    def _sum_up(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> Sequence[BaseMessage]:
        """The last prompt, with as much of the material as leaves a quarter to the reply."""
        wanted = max(GOOD_ROOM, (output_room(rest, 0, ready.prices) or 0) // 4)
        full = allowance = sum(len(prompts.said(m)) for m in prompt)
        while allowance > _LEAST_MATERIAL:
            fitting = prompts.sum_up(prompt, allowance, 4 * allowance >= full, self.question)
            _, max_input = ready.max_input(list(fitting), self.account.known(ready))
            room = output_room(rest, max_input, ready.prices)
            if room is None or room >= wanted:
                return fitting
            allowance //= 2
        return prompts.sum_up(prompt, 0, False, self.question)


def last_call_reserve(share: float | Limits, limits: Limits) -> Limits:
    """What is asked to be kept for the last call: of calls, one is enough. Nothing if there is none."""
    if isinstance(share, int | float):
        share = {d: amount * share for d, amount in limits.items()} if share else {}
    return {d: min(1, amount) if d == "calls" else amount for d, amount in share.items()}


# --- who pays here

_PAYING: contextvars.ContextVar[Payer | None] = contextvars.ContextVar(
    "anytime_payer", default=None
)
_accounts: LRUCache[Hashable, Account] = LRUCache(_INVOCATIONS)
_lock = threading.Lock()


@contextmanager
def paying_from(payer: Payer) -> Iterator[None]:
    """Calls of metered models within, in whatever thread or task, are paid by this payer."""
    token = _PAYING.set(payer)
    try:
        yield
    finally:
        _PAYING.reset(token)


def current_payer() -> Payer | None:
    """Who pays here: the innermost payer around, or, in a node of an agent below that, the agent."""
    around, account = _PAYING.get(), current_account()
    if account is None or (isinstance(around, AgentPayer) and account in around.account.chain):
        return around
    return AgentPayer(account, "middleware")


def calling_account() -> Account | None:
    """The account of the tool call, or of the draft, that an agent's run is part of."""
    around = _PAYING.get()
    return getattr(around, "account", None)


def current_account() -> Account | None:
    """The account of the agent's invocation that a node belongs to."""
    here = _invocation()
    with _lock:
        return None if here is None else _accounts.get(here)


def open_account(account: Account) -> Account:
    """Make it the account of this invocation, for all of the agent's nodes."""
    here = _invocation()
    with _lock:
        _accounts[here] = account
    return account


def _invocation() -> Hashable | None:
    """What all nodes of one invocation of a graph share, and no two invocations at a time; None
    outside of a graph."""
    try:
        runtime = get_runtime()
    except (RuntimeError, KeyError):
        return None
    info = runtime.execution_info if runtime else None
    return (runtime.control, info.checkpoint_ns.rpartition("|")[0]) if info else None
