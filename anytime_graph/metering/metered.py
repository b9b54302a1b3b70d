"""`metered`: a chat model whose calls are paid from an account, wherever they are made.

The payer is found where the call is made: code that runs a tool, a turn of an agent or a draft names
it with `paying_from`. A model that was made for one payer carries it along.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import threading
import types
from collections.abc import Coroutine, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

from cachetools import LRUCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig

from anytime_graph import prompts
from anytime_graph.budget import (
    GOOD_ROOM,
    MIN_ROOM,
    TOOL_CALLS,
    Limits,
    Prices,
    Short,
    Spend,
    nothing,
)
from anytime_graph.interrupt import StopSignal, to_its_end
from anytime_graph.metering.account import Account, planned
from anytime_graph.metering.call import acall, call
from anytime_graph.metering.learned import RefusedBefore
from anytime_graph.metering.meter import Meter, meter_for
from anytime_graph.metering.request import (
    Journal,
    JournalError,
    Place,
    Reply,
    Request,
    Take,
    digest_of,
)
from anytime_graph.metering.streamed import reports_its_end
from anytime_graph.metering.tool_calls import broken, first_calls
from anytime_graph.models import resolve_model
from anytime_graph.models.providers import with_parsed
from anytime_graph.models.tokens import Shape
from anytime_graph.run.calls import Receipt
from anytime_graph.run.context import around, invocation

_LEAST_MATERIAL = 40
"""A last call shows earlier material only if it may show more characters than this."""
_SMALLER = 4
"""A last call's prompt is at most this part of one that was refused with the smallest output too."""
_PRICES, _PAYER, _OWN = "anytime_prices", "anytime_payer", "anytime_own"
_STRUCTURED = "ls_structured_output_format"
"""The option with which `with_structured_output` tells tracers of its schema."""
_INVOCATIONS = 4_096
"""Invocations whose accounts are remembered."""


@dataclass
class Reservation:
    """A call that is reserved, and what came of it.

    request: None if the call did not fit (`short` says why), or if `message` is known already.
    reply: None until it has come. message: what the caller gets. unfinished: the reply ended before
    it could be used, by the budget or a broken connection, not by the model or the caller's own cap.
    cut: by the budget. broke: the reply broke off, perhaps within its tool calls. tool_calls: held for those in it.
    recalled: it was made and paid before its process ended, and its reply is given again.
    cost: of one that was given up, if it is known. structured: the caller reads its reply by a schema.
    """

    meter: Meter
    shape: Shape = field(default_factory=list)
    request: Request | None = None
    short: Short | None = None
    reply: Reply | None = None
    message: AIMessage = field(default_factory=lambda: AIMessage(""))
    unfinished: bool = False
    cut: bool = False
    broke: bool = False
    tool_calls: int = 0
    recalled: bool = False
    cost: Spend | None = None
    structured: bool = False

    @property
    def place(self) -> int:
        """Its ordinal among the calls of its run."""
        assert self.request is not None
        return self.request.place.ordinal

    @property
    def amounts(self) -> Spend:
        """What is held for it."""
        assert self.request is not None
        most = self.meter.reservation(self.request.max_input, self.request.max_output)
        return {**most, "tool_calls": self.tool_calls}

    @property
    def error(self) -> Exception | None:
        """What the client raised."""
        return None if self.reply is None else self.reply.error

    @property
    def blocked(self) -> str | None:
        """Why the run ends if the provider ended the reply, as a filter does."""
        word = None if self.reply is None else self.reply.receipt.get("blocked")
        return f"blocked: {word}" if word else None


class Payer(Protocol):
    """What pays for the calls of metered models, and how they are recorded and stopped."""

    account: Account
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

    def granted(self, reserved: Reservation, reply: Reply) -> Reply:
        """What is left of a reply that has come: it may ask for more tool calls than may run."""
        ...

    def settle(self, reserved: Reservation) -> None:
        """Book the reply; without one the call was given up, and is charged in full unless its cost is known.
        Raises what the caller must know."""
        ...


def metered(model: str | BaseChatModel, prices: Prices | None = None) -> BaseChatModel:
    """A chat model whose calls are charged to the budget of the agent that it works for: give it to
    tools, and to middlewares that call models of their own. Outside an agent with a
    TokenBudgetMiddleware it behaves like the model itself.

    model: a chat model or its name, as for create_anytime_graph. prices: US dollars per million
    tokens; default: looked up by the model's name. A call that does not fit raises BudgetTooSmall;
    the agent gets the message and goes on. Raises ValueError if it is no chat model.
    """
    resolved = resolve_model(model)
    if not isinstance(resolved, BaseChatModel):
        raise ValueError(
            f"model={type(resolved).__name__}: a LangChain chat model is needed, with nothing bound "
            "to it, or a string such as 'openai:gpt-4.1-mini' or 'local'"
        )
    plain = _unmetered(resolved)
    charged = _as_class(plain, _metered_class(type(plain)))
    vars(charged)[_PRICES] = prices or vars(resolved).get(_PRICES)
    vars(charged)[_PAYER] = vars(resolved).get(_PAYER)
    return charged


def paid_by(payer: Payer, model: BaseChatModel, prices: Prices | None) -> BaseChatModel:
    """The model metered, with all its calls paid by this payer, in any thread."""
    charged = metered(model, prices)
    vars(charged)[_PAYER] = payer
    return charged


def own_model(model: BaseChatModel, prices: Prices | None = None) -> BaseChatModel:
    """The model metered, as that of an agent's turn: what middlewares call there are other models."""
    charged = metered(model, prices)
    vars(charged)[_OWN] = True
    return charged


def _unmetered(model: BaseChatModel) -> BaseChatModel:
    """The model as it was before `metered`, with the fields that were set since."""
    if not is_metered(model):
        return model
    plain = _as_class(model, type(model).__bases__[0])
    for name in (_PRICES, _PAYER, _OWN):
        vars(plain).pop(name, None)
    return plain


def _as_class(model: BaseChatModel, kind: type[BaseChatModel]) -> BaseChatModel:
    """A copy of the model as an instance of another class with the same fields."""
    copy = model.model_copy()
    object.__setattr__(copy, "__class__", kind)
    return copy


@functools.cache
def _metered_class(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """A subclass that makes its calls through a payer. LangChain, and middlewares that look at a
    model's class, profile or fields, see no difference."""
    overrides = {
        "generate": _generate,
        "agenerate": _agenerate,
        # Like a model that cannot stream, it streams through the methods above.
        "_stream": BaseChatModel._stream,
        "_astream": BaseChatModel._astream,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    subclass = types.new_class(kind.__name__, (kind,), {}, lambda body: body.update(overrides))
    return cast("type[BaseChatModel]", subclass)


def _generate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    if (payer := _payer_of(self, messages[0])) is None:
        return _unmetered(self).generate(messages, stop, callbacks, **options)
    structured = _STRUCTURED in options
    config, options = _split(callbacks, stop, options)
    replies = []
    for prompt in messages:
        reserved = payer.reserve(_unmetered(self), prompt, options, vars(self)[_PRICES])
        with _settling(payer, reserved):
            if (request := _asked(payer, reserved, structured)) is not None:
                journal = payer.journal(reserved)
                reserved.reply = call(reserved.meter, request, config, payer.stop, journal)
        replies.append(with_parsed(reserved.message) if structured else reserved.message)
    return LLMResult(generations=[[ChatGeneration(message=m)] for m in replies])


async def _agenerate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    if (payer := _payer_of(self, messages[0])) is None:
        return await _unmetered(self).agenerate(messages, stop, callbacks, **options)
    structured = _STRUCTURED in options
    config, options = _split(callbacks, stop, options)
    replies = []
    for prompt in messages:
        asked = (_unmetered(self), prompt, options, vars(self)[_PRICES])
        if payer.account.shared is None:
            reserved = payer.reserve(*asked)
        else:  # it reads the quotas' books
            reserved = await _reserved(payer, asyncio.to_thread(payer.reserve, *asked))
        with _settling(payer, reserved):
            if (request := _asked(payer, reserved, structured)) is not None:
                journal = payer.journal(reserved)
                reserved.reply = await acall(reserved.meter, request, config, payer.stop, journal)
        replies.append(with_parsed(reserved.message) if structured else reserved.message)
    return LLMResult(generations=[[ChatGeneration(message=m)] for m in replies])


async def _reserved(payer: Payer, reserving: Coroutine[Any, Any, Reservation]) -> Reservation:
    """What is reserved, given back if this is cancelled meanwhile."""
    task = asyncio.create_task(reserving)
    try:
        return await to_its_end(task)
    except asyncio.CancelledError as error:
        if task.exception() is None:
            vars(error)["cost"] = nothing()
            with _settling(payer, task.result()):
                raise
        raise


def _payer_of(model: BaseChatModel, prompt: Sequence[BaseMessage]) -> Payer | None:
    payer: Payer | None = vars(model).get(_PAYER) or current_payer()
    if _OWN in vars(model) or not isinstance(payer, AgentPayer) or payer.is_asked(prompt):
        return payer
    return payer.beside()


def _asked(payer: Payer, reserved: Reservation, structured: bool) -> Request | None:
    """The request to make, if there is one. structured: a tool call in its reply is the answer."""
    reserved.structured = structured
    if reserved.request is None or structured:
        return reserved.request
    return replace(reserved.request, granted=functools.partial(payer.granted, reserved))


def with_tool_calls_held(
    account: Account, reserved: Reservation, reply: Reply, quotas: Take | None = None
) -> Reply:
    """The reply with those of its tool calls that are left for it; they are reserved. Its spend counts
    them."""
    held = account.hold_tool_calls(len(reply.message.tool_calls), quotas)
    reserved.tool_calls = held
    spend: Spend = {**reply.receipt["spend"], "tool_calls": held}
    receipt: Receipt = {**reply.receipt, "spend": spend}
    return replace(reply, message=first_calls(reply.message, held), receipt=receipt)


@contextmanager
def _settling(payer: Payer, reserved: Reservation) -> Iterator[None]:
    """The call is made within, and settled after."""
    try:
        yield
    except asyncio.CancelledError as error:
        reserved.cost = vars(error).get("cost")
        raise
    finally:
        if reserved.request is not None:
            payer.settle(reserved)


def _split(
    callbacks: Any, stop: list[str] | None, options: dict[str, Any]
) -> tuple[RunnableConfig, dict[str, Any]]:
    """The config of the run, and the options that are sent."""
    config: dict[str, Any] = {"callbacks": callbacks}
    for name in ("tags", "metadata", "run_name", "run_id"):
        config[name] = options.pop(name, None)
    options.pop(_STRUCTURED, None)
    if stop is not None:
        options["stop"] = stop
    given = {key: value for key, value in config.items() if value is not None}
    return cast(RunnableConfig, given), options


# --- an agent's account pays


@dataclass
class AgentPayer:
    """Pays an agent's calls, and those of its tools and middlewares, from an account.

    kind: "agent": a turn of its model; "last": the call in which it sums up; "tool": a call within
    a tool; "middleware": one that a middleware makes in a node of its own. share: what the agent
    keeps for its last call, as a part of its limits or by dimension. question: what the last call
    answers. summing: the model of the last call, if it is another one. again: it is the second try of
    the last call. latest: the latest call; "agent" and "last" make them one at a time. warned: see
    prompts.with_remaining. unrecorded: the ledger has failed, and the call is made all the same.
    closes: the message to which the turn replies. turn: whose turn it is, for what a middleware asks in it on
    its own behalf. starved: such a call did not fit.
    """

    account: Account
    kind: Literal["agent", "last", "tool", "middleware"]
    share: float | Limits = 0.0
    question: BaseMessage | None = None
    summing: BaseChatModel | None = None
    again: bool = False
    latest: Reservation | None = None
    stop: StopSignal | None = None
    warned: float | None = None
    unrecorded: bool = False
    closes: BaseMessage | None = None
    turn: AgentPayer | None = None
    starved: Short | None = None

    def is_asked(self, prompt: Sequence[BaseMessage]) -> bool:
        """Whether it is the turn itself that a middleware asks of a model of its own: the prompt ends as the
        turn's does, and there is no reply yet. Else it asks on its own behalf."""
        if self.kind not in ("agent", "last") or self.closes is None:
            return True
        latest = self.latest
        replied = latest is not None and latest.error is None and latest.reply is not None
        same = bool(prompt) and prompt[-1].content == self.closes.content
        return same and not replied

    def beside(self) -> AgentPayer:
        """Pays what a middleware asks in this turn on its own behalf: the prompt stays as it is, and the reply
        is not the agent's."""
        return AgentPayer(
            self.account, "middleware", stop=self.stop, unrecorded=self.unrecorded, turn=self
        )

    def _ready(
        self, model: BaseChatModel, options: Mapping[str, Any], prices: Prices | None
    ) -> Meter:
        ready = meter_for(model, options, prices, self.account.media_tokens)
        if "usd" in self.account.limits:
            ready.check_price("budget usd")
        if TOOL_CALLS in self.account.limits:
            ready.check_tools("budget tool_calls")
        if self.account.tools_priced:
            ready.check_tools("tool_prices")
        return ready

    def journal(self, reserved: Reservation) -> Journal | None:
        shared, record = self.account.shared, self.account.record
        if shared is None or self.unrecorded:
            return None
        if record is None or reserved.request is None:
            return shared.journal()
        return record.journal(reserved.request, shared)

    def reserve(
        self,
        model: BaseChatModel,
        prompt: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Reservation:
        """Raises Short in a tool. Elsewhere an error would be retried or end the run, so a call that
        does not fit gets no request instead. Raises ValueError for a model without a price under a
        budget in USD."""
        ready = self._ready(model, options, prices)
        self.account.recall(prompt)
        with self.account.lock:
            try:
                self.latest = self._recorded(ready, prompt, options)
                if not self.latest.recalled:
                    self.account.hold(self.latest.amounts)
            except Short as short:
                if self.kind == "tool":
                    self.account.short = short
                    raise
                # Where a summary does not fit, the text that was to be summed up takes its place.
                summary = self.kind == "middleware" and self.turn is None
                text = prompts.spoken_text(prompt[-1]) if summary else ""
                if self.turn is not None:
                    self.turn.starved = short
                self.latest = Reservation(ready, short=short, message=AIMessage(text))
            return self.latest

    def granted(self, reserved: Reservation, reply: Reply) -> Reply:
        """Of an agent's own reply, the middleware knows which tool calls are structured answers."""
        if self.kind in ("agent", "last"):
            return reply
        return with_tool_calls_held(self.account, reserved, reply)

    def settle(self, reserved: Reservation) -> None:
        """Raises what the client raised, and Short if a tool's model may not call the tools that it
        asks for, or if its structured answer was cut."""
        account, ready, request = self.account, reserved.meter, reserved.request
        assert request is not None
        if (reply := reserved.reply) is None:
            if not reserved.recalled:
                account.settle(reserved.amounts, reserved.cost or reserved.amounts)
            return
        if reserved.recalled:
            account.retell(reply.receipt["spend"])
        else:
            account.settle(reserved.amounts, reply.receipt["spend"])
        if reply.receipt.get("oversized"):
            most = request.max_input // _SMALLER
            account.largest[ready.name] = min(most, account.largest.get(ready.name, most))
        if reply.receipt["interrupted"]:
            raise KeyboardInterrupt
        if isinstance(reply.error, RefusedBefore):
            reserved.reply = reply = replace(reply, error=account.refusal or reply.error)
        if reply.error is not None:
            account.refusal = reply.error if reply.receipt["unserved"] else None
            raise reply.error
        if reply.receipt["lost"]:
            raise JournalError("another invocation goes on with this run")
        reserved.message = message = reply.message
        account.mark(message)
        cap, ended = request.max_output, reply.receipt["ended"]
        cap_is_ours = cap is not None and (ready.ceiling is None or cap < ready.ceiling)
        cap_is_ours = cap_is_ours and not request.ended_early(reply.receipt)
        reserved.cut = cut = ended == "cut" or (ended == "length" and cap_is_ours)
        # A model that has reported before ends no reply without a report.
        silent = ready.name in account.calibrations and not reports_its_end(message)
        reserved.broke = silent or (broken(message) and not cut)
        empty = not message.text.strip() and ended != "blocked"
        reserved.unfinished = not message.tool_calls and (cut or reserved.broke or empty)
        if (reported := reply.receipt["reported"]) is not None and not reserved.recalled:
            account.learn(ready, reserved.shape, reported)
        unheard = reply.called and not message.text.strip()
        unheard |= cut and reserved.structured and with_parsed(message) is message
        if self.kind == "tool" and unheard and not message.tool_calls:
            raise Short(account.left(), account.left() | {"tool_calls": 1}, TOOL_CALLS)

    def _recorded(
        self, ready: Meter, prompt: Sequence[BaseMessage], options: Mapping[str, Any]
    ) -> Reservation:
        """The call as it was made before the process ended, or else at a place of its own."""
        if (record := self.account.record) is None or self.unrecorded:
            reserved = self._planned(ready, prompt)
            assert reserved.request is not None
            reserved.request = replace(reserved.request, place=Place(self.account.run, 0))
            return reserved
        digest = digest_of(prompt, {**options, "kind": self.kind})
        if (request := record.again(digest)) is not None:
            return Reservation(ready, request=request, recalled=True)
        reserved = self._planned(ready, prompt)
        assert reserved.request is not None
        reserved.request = replace(reserved.request, place=record.place(self.kind, digest))
        return reserved

    def _planned(self, ready: Meter, prompt: Sequence[BaseMessage]) -> Reservation:
        account, last = self.account, self.kind == "last"
        if self.kind == "agent":
            account.reserve, account.closing = self._kept(ready, prompt)
        kept = last or (self.turn is not None and self.turn.kind == "last")
        rest = account.left(kept) if self.unrecorded else account.rest(kept)
        if "usd" in rest:
            ready.check_price("quota usd")
        if TOOL_CALLS in rest:
            ready.check_tools("quota tool_calls")
        messages: Sequence[BaseMessage] = prompt
        if last:
            messages = self._sum_up(ready, prompt, rest)
        elif self.kind == "agent" and ready.bound.get("tools"):
            messages = prompts.with_remaining(prompt, rest, self.warned)
        least = MIN_ROOM if last else GOOD_ROOM
        how: Any = {"min_output": least, "half": not last}
        known = account.calibration(ready)
        if last and not self.again and (part := self._beside_second(ready, prompt, rest)):
            with suppress(Short):
                shape, request = planned(ready, messages, part, known, **how)
                return Reservation(ready, shape, request=request)
        try:
            shape, request = planned(ready, messages, rest, known, **how)
        except Short:
            planned(ready, messages, account.left(kept), known, **how)
            standings = account.standings()
            assert standings is not None, "only quotas leave less than the account"
            _, max_input = ready.max_input(list(messages), known)
            raise standings.exceeded(ready.reservation(max_input, ready.cap(least))) from None
        return Reservation(ready, shape, request=request)

    def _kept(self, ready: Meter, prompt: Sequence[BaseMessage]) -> tuple[Limits, Limits]:
        """What is kept for the last call of the budget, the share, but at least what its shortest prompt and a
        short reply cost; and that least."""
        if not self.share:
            return {}, {}
        reserve = last_call_reserve(self.share, self.account.limits)
        if self.summing is not None:
            ready = self._ready(_unmetered(self.summing), {}, vars(self.summing)[_PRICES])
        need = self._shortest(ready, prompt, again=False)
        if not reserve:
            return {}, need
        return {d: max(need[d], reserve.get(d, 0)) for d in self.account.limits}, need

    def _shortest(self, ready: Meter, prompt: Sequence[BaseMessage], again: bool) -> Limits:
        """What a last call with the shortest prompt and a short reply costs."""
        bare = replace(ready, bound={}, tokenizer=replace(ready.tokenizer, tools=False, extra=""))
        shortest = prompts.sum_up(prompt, 0, False, self.question, again)
        _, max_input = bare.max_input(list(shortest), self.account.calibration(bare))
        return cast(Limits, dict(bare.reservation(max_input, GOOD_ROOM)))

    def _beside_second(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> Limits | None:
        """What the first try of a last call may take beside a second one, which gets a quarter of the time.
        None if the rest does not pay for two. Of 2,000 tokens, 1,700 beside one of 300."""
        need = self._shortest(ready, prompt, again=True)
        need["seconds"] = rest.get("seconds", 0.0) / 4
        part = {d: amount - need[d] for d, amount in rest.items()}
        return part if all(amount >= need[d] for d, amount in part.items()) else None

    def _sum_up(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> Sequence[BaseMessage]:
        """The last prompt, with as much material as leaves a quarter of the rest to the reply. Of 4,000
        tokens the reply keeps 1,000; the material is halved until its prompt leaves them."""
        wanted = max(GOOD_ROOM, (ready.room(rest, 0) or 0) // 4)
        most = self.account.largest.get(ready.name, math.inf)
        full = allowance = sum(len(prompts.spoken_text(m)) for m in prompt)
        if self.again:
            allowance //= 2
        while allowance > _LEAST_MATERIAL:
            system = not self.again and 4 * allowance >= full
            shorter = prompts.sum_up(prompt, allowance, system, self.question, self.again)
            _, max_input = ready.max_input(list(shorter), self.account.calibration(ready))
            room = ready.room(rest, max_input)
            if max_input <= most and (room is None or room >= wanted):
                return shorter
            allowance //= 2
        return prompts.sum_up(prompt, 0, False, self.question, self.again)


def last_call_reserve(share: float | Limits, limits: Limits) -> Limits:
    """What to keep for the last call; one call at most, and no tool call. Nothing if the agent makes
    none."""
    if isinstance(share, int | float):
        share = {d: amount * share for d, amount in limits.items()} if share else {}
    share = {d: amount for d, amount in share.items() if d != TOOL_CALLS}
    return {d: min(1, amount) if d == "calls" else amount for d, amount in share.items()}


# --- who pays here

_PAYING: contextvars.ContextVar[Payer | None] = contextvars.ContextVar(
    "anytime_payer", default=None
)
_accounts: LRUCache[Hashable, Account] = LRUCache(_INVOCATIONS)
_lock = threading.Lock()


@contextmanager
def paying_from(payer: Payer) -> Iterator[None]:
    """This payer pays for the calls of metered models within, in any thread or task that inherits the
    context."""
    token = _PAYING.set(payer)
    try:
        yield
    finally:
        _PAYING.reset(token)


def is_metered(model: BaseChatModel) -> bool:
    """Whether its calls are charged to whoever it works for."""
    return _PRICES in vars(model)


def paid_elsewhere(model: BaseChatModel) -> bool:
    """Whether the model carries its payer along; see `paid_by`."""
    return vars(model).get(_PAYER) is not None


def current_payer() -> Payer | None:
    """The innermost payer around; in a node of an agent further inside, that agent, also for what its
    middlewares invoke there."""
    payer = _PAYING.get()
    account = current_account() or _account_around()
    if account is None or (payer is not None and not _within(account, payer.account)):
        return payer
    return AgentPayer(account, "middleware")


def calling_account() -> Account | None:
    """The account that an agent's run is part of: of a tool call, of a draft, or of an agent in whose
    middleware it runs."""
    payer, account = _PAYING.get(), _account_around()
    if payer is None or (account is not None and _within(account, payer.account)):
        return account
    return payer.account


def _within(account: Account, other: Account) -> bool:
    return account is not other and other in account.chain


def _account_around() -> Account | None:
    """The account of the innermost agent within whose invocation this one runs."""
    if (here := invocation()) is None:
        return None
    with _lock:
        found = (_accounts.get(each) for each in around(here))
        return next((account for account in found if account is not None), None)


def current_account() -> Account | None:
    """The account of the agent's invocation that a node belongs to."""
    with _lock:
        return None if (here := invocation()) is None else _accounts.get(here)


def open_account(account: Account) -> Account:
    """Make it the account of this invocation, for all nodes of the agent."""
    with _lock:
        _accounts[invocation()] = account
    return account
