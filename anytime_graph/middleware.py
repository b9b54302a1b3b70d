"""A budget for agents built with langchain's `create_agent`: a hard cap before each model call, and
a reserve for one last call in which the agent sums up what it has.

Needs the extra `agents`; `import anytime_graph` does not need langchain.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypeVar, cast
from uuid import uuid4

from cachetools import LRUCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, ToolMessage
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.managed.is_last_step import RemainingStepsManager
from langgraph.runtime import Runtime, get_runtime
from langgraph.types import Command, Overwrite
from typing_extensions import TypedDict

from anytime_graph.budget import (
    Budget,
    Limits,
    NoAnswer,
    Prices,
    Short,
    Spend,
    as_budget,
    checked_parts,
    in_digits,
    left,
    nothing,
    total,
    used,
)
from anytime_graph.checkpoints import Ledger, ThreadBusy
from anytime_graph.checkpoints.agents import AgentRun, asked_on
from anytime_graph.checkpoints.quotas import SharedQuotas
from anytime_graph.interrupt import TimeIsUp, awithin, within
from anytime_graph.metering.account import Account
from anytime_graph.metering.metered import (
    AgentPayer,
    Reservation,
    calling_account,
    current_account,
    last_call_reserve,
    metered,
    open_account,
    own_model,
    paid_elsewhere,
    paying_from,
)
from anytime_graph.metering.near_end import NearEnd, near_end_of
from anytime_graph.metering.quota import Quota, checked_quotas
from anytime_graph.metering.request import JournalError, Place
from anytime_graph.metering.tool_time import abandonable, check_time
from anytime_graph.models.providers import advised, describe
from anytime_graph.models.tokens import Calibration, check_media_tokens, uncalibrated
from anytime_graph.run.asking import Asked, check_resumable, granted
from anytime_graph.run.forms import Stored, Upgrade, upgraded
from anytime_graph.text import meant

try:
    from langchain.agents.middleware import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        ToolCallRequest,
        hook_config,
    )
    from langchain.agents.middleware.types import OmitFromInput, PrivateStateAttr
except ImportError:
    raise ImportError(
        "anytime_graph.middleware needs langchain; install anytime-graph[agents]"
    ) from None

__all__ = ["TokenBudgetMiddleware", "metered"]

log = logging.getLogger(__name__)

_ROUND = 2
"""LangGraph's steps from one turn of an agent to the next, the model's and its tools', without other middlewares."""
_THREADS = 4_096
"""Threads whose accounts are remembered."""

Request = ModelRequest[Any]
T = TypeVar("T")
Response = ModelResponse[Any]
Result = ToolMessage | Command[Any]


class _Asks(TypedDict):
    """reason: why a human is asked. message: the id of the message with the agent's latest words that stands
    for a reply meanwhile. written: what the model wrote in a reply that was cut."""

    reason: str
    message: str
    written: str


class _Run(TypedDict):
    """question: what the user asked. calibrations: how far prompts exceeded their bounds, by model. allowed:
    the ids of the tool calls in the last reply that may run, if not all may; refused: whether it had
    more. granted: what a human granted beyond the budget. asks: what a human is asked now, or, once there
    is no more (ends), was asked last. asked, place: in a ledger, what its run is found by, and the place
    of its next call. id: of the invocation that began it. step: LangGraph's number of the last turn's. form: which form
    this has."""

    question: BaseMessage | None
    calibrations: dict[str, Calibration]
    allowed: NotRequired[list[str] | None]
    refused: NotRequired[bool]
    granted: NotRequired[Limits]
    asks: NotRequired[_Asks]
    ends: NotRequired[bool]
    asked: NotRequired[str]
    place: NotRequired[int]
    id: NotRequired[str]
    step: NotRequired[int]
    form: NotRequired[int]


def _with_calibrations(run: Stored) -> Stored:
    growth = run.pop("growth").items()
    return {**run, "calibrations": {m: {**uncalibrated(), "growth": g} for m, g in growth}}


UPGRADES: tuple[Upgrade, ...] = (_with_calibrations,)
"""Of _Run in an agent's thread, from each form to the next; see forms.py."""


def _added(kept: Spend, more: Spend) -> Spend:
    return total([kept, more])


def _added_by(kept: dict[str, Spend], more: dict[str, Spend]) -> dict[str, Spend]:
    return {**kept, **{name: total([kept.get(name, nothing()), more[name]]) for name in more}}


class BudgetState(AgentState[Any]):
    """spent: what the run (or the thread) has cost so far, sub-agents and tools included. spent_by: the
    same for the agent's "model" and for each tool, with all that was spent in it. stop_reason: None
    while it works; "done", or the dimension of the budget that ended it, or the error that did."""

    spent: NotRequired[Annotated[Spend, OmitFromInput, _added]]
    spent_by: NotRequired[Annotated[dict[str, Spend], OmitFromInput, _added_by]]
    stop_reason: NotRequired[Annotated[str | None, OmitFromInput]]
    anytime_run: NotRequired[Annotated[_Run, PrivateStateAttr]]
    remaining_steps: NotRequired[Annotated[int, PrivateStateAttr, RemainingStepsManager]]


_OURS = ("spent", "spent_by", "stop_reason", "anytime_run")


class TokenBudgetMiddleware(AgentMiddleware[BudgetState, Any, Any]):
    """Holds an agent to a budget, and gets an answer out of it before the budget ends.

    budget: what may be spent; the first dimension to run out ends the work. Seconds are those in
        which model calls and tools are active; a tool that takes longer is abandoned. A tool call
        beyond `tool_calls` is not carried out; the model is told so, and makes its last call.
    per: "run": the budget is for each invocation and its resumes; "thread": for all of a thread's
        (needs a checkpointer). Invocations at the same time share it if they run in one process.
    reserve: what is kept for a last call, in which the model sums up without tools what it has: a
        fraction of the budget, or a Budget. At least what its shortest prompt takes; 0: no such call.
    prices: US dollars per million tokens of the agent's model; default: looked up by its name.

    media_tokens: the most input tokens that an image, a document or a tool of the provider adds to
        a prompt; see create_anytime_graph.
    tool_prices: US dollars per call, by the name of the tool. They are booked before it runs, and one
        that does not fit beside the reserve is not carried out.
    warn_at: parts of the budget, as in (0.5, 0.8): once one is used, an agent with tools is told so in
        each prompt, beside what is left.
    near_end: a cheaper model for the turns that come when four fifths of the budget are used, and for the last
        call; NearEnd says after which part.
    advise: where a provider takes a budget of tokens that the model itself sees (Anthropic's task budgets), it
        is sent along; the cap stays.
    on_exhausted: what happens when the budget is used up: "answer" makes the last call; "ask" interrupts the
        agent before that, to ask a human for more, and needs a checkpointer.
    quotas: what users, tenants or the like may spend over all runs; quotas in the ledger's database
        hold too.
    ledger: records each call before it is made, such as `open_checkpoints(...).ledger`: what was
        spent and answered outlives a crash.

    Put it first in `middleware=[...]`. Sub-agents, tools and middlewares that call a model of their
    own draw on the budget if the model is `metered(model)`; docs/middleware.md tells more. The
    agent's state has `spent`, `spent_by` and `stop_reason`.

    Raises ValueError for a bad argument; in a run BudgetTooSmall when not one call fits and nothing
    was spent, and what the model's client raises as long as the model has said nothing.
    """

    state_schema = BudgetState

    def __init__(
        self,
        budget: Budget,
        *,
        per: Literal["run", "thread"] = "run",
        reserve: float | Budget = 0.2,
        prices: Prices | None = None,
        media_tokens: int | None = None,
        tool_prices: Mapping[str, float] | None = None,
        warn_at: Sequence[float] = (),
        near_end: str | BaseChatModel | NearEnd | None = None,
        advise: bool = False,
        on_exhausted: Literal["answer", "ask"] = "answer",
        quotas: Sequence[Quota] = (),
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        if per not in ("run", "thread"):
            raise ValueError(f"per={per!r}: 'run' or 'thread' is needed")
        if on_exhausted not in ("answer", "ask"):
            raise ValueError(f"on_exhausted={on_exhausted!r}: 'answer' or 'ask' is needed")
        if prices is not None and not isinstance(prices, Prices):
            raise ValueError(f"prices={prices!r}: Prices(input=..., output=...) are needed")
        self.budget = as_budget(budget)
        self.per = per
        self.prices = prices
        self.media_tokens = check_media_tokens(media_tokens)
        self.share = _share(reserve, self.budget)
        self.warn_at = checked_parts(warn_at)
        self.tool_prices = _prices({} if tool_prices is None else tool_prices)
        self._unpriced = {*self.tool_prices}
        if ledger is not None and not isinstance(ledger, Ledger):
            raise ValueError(f"ledger={ledger!r:.40}: pass the ledger= of open_checkpoints(...)")
        if quotas and ledger is None:
            raise ValueError("quotas: their books are kept in a ledger; pass ledger= too")
        self.advise = advise
        late = near_end_of(near_end)
        self.near_end = (
            None if late is None else replace(late, model=metered(late.model, late.prices))
        )
        self.asks = on_exhausted == "ask"
        if self.asks:
            self.__class__ = _asking(cast(Any, type(self)))
        self.ledger = ledger
        self.quotas = checked_quotas(quotas)
        self._threads: LRUCache[str, Account] = LRUCache(_THREADS)
        self._lock, self._resuming = threading.Lock(), threading.Lock()

    # --- the run's account

    def before_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Begin a run: open its account."""
        if self.asks:
            check_resumable(get_config())
        question = next((m for m in reversed(_messages(state)) if m.type == "human"), None)
        earlier = _run(state)
        run = _Run(
            question=question,
            calibrations=earlier["calibrations"],
            id=uuid4().hex,
            form=len(UPGRADES),
        )
        goes_on = False
        update: dict[str, Any] = {"stop_reason": None, "anytime_run": run}
        if self.ledger is not None:
            again = not state.get("stop_reason") and _same(question, earlier["question"])
            before = earlier.get("asked") if again else None
            run["asked"] = asked_on(self.ledger, _messages(state), before)
            goes_on = run["asked"] == before
            if goes_on:
                repeated = _repeated(_messages(state))
                update["messages"] = [RemoveMessage(str(message.id)) for message in repeated]
        by: dict[str, Spend] = {}
        if goes_on or self.per == "thread":
            run["granted"], by = earlier.get("granted", {}), state.get("spent_by") or {}
        _account_of(run)  # refuses the run if another is at work under its control
        account = self._enter(nothing() if self.per == "run" else _spent(state), run)
        spent = Overwrite(total([account.spent]))
        return {**update, "spent": spent, "spent_by": Overwrite(by)}

    async def abefore_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any]:
        return await self._aside(self.before_agent, state, runtime)

    def after_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """End the run's record, and book what other middlewares spent after the last turn. Name the reason
        of an end that no model call was: a tool's with `return_direct`, or another middleware's."""
        reason = state.get("stop_reason") or "done"
        account = self._account(state)
        if (own := _own_run(account)) is None:
            due = account.collect()
            if due["calls"] or due["tool_calls"]:
                spent = self._thus(state, due)
                return {"stop_reason": reason, "spent": spent, "spent_by": {"model": due}}
            return None if state.get("stop_reason") else {"stop_reason": reason}
        spent = self._total(account)
        try:
            own.end(reason)
            spent["seconds"] = own.spent(self.per == "thread")["seconds"]
        except JournalError as error:
            log.warning("%s", error)
        return {"stop_reason": reason, "spent": Overwrite(spent)}

    async def aafter_agent(
        self, state: BudgetState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        return await self._aside(self.after_agent, state, runtime)

    @hook_config(can_jump_to=["model"])
    def _ask(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Ask a human whether the run may cost more, if it would end."""
        run = _run(state)
        asks = run.get("asks")
        if asks is None or run.get("ends"):
            return None
        answer = next(m.text for m in _messages(state) if m.id == asks["message"])
        limits = self.limits(run)
        more = granted(
            Asked(
                stop_reason=asks["reason"],
                answer=answer,
                spent=_spent(state),
                limits=limits,
                fault=None,
            )
        )
        if more is None:
            run["ends"] = True
        else:
            earlier = run.get("granted", {})
            run["granted"] = {d: earlier.get(d, 0) + more.get(d, 0) for d in limits}
            run["refused"] = False
            del run["asks"]
        gone = RemoveMessage(asks["message"])
        return {"messages": [gone], "anytime_run": run, "jump_to": "model"}

    def _know_tools(self, tools: Sequence[Any]) -> None:
        """Warn once of prices for tools that the model is not offered. It may be offered them later."""
        names = [str(t.get("name") if isinstance(t, dict) else t.name) for t in tools]
        for name in self._unpriced.difference(names):
            log.warning(
                "tool_prices %s=%g: %sthe model is offered %s",
                name,
                self.tool_prices[name],
                meant(name, names),
                ", ".join(names) or "no tool",
            )
        self._unpriced.clear()

    def limits(self, run: _Run) -> Limits:
        """The budget and what a human granted beyond it."""
        more = run.get("granted", {})
        return {d: amount + more.get(d, 0) for d, amount in self.budget.limits().items()}

    def _account(self, state: Any) -> Account:
        """The account of this invocation; of one that is resumed, as the checkpoint has it."""
        run = _run(state)
        if (account := _account_of(run)) is not None:
            return account
        with self._resuming:  # its tool calls may begin at once
            return _account_of(run) or self._enter(_spent(state), run)

    def _thread_spent(self, spent: Spend) -> Spend:
        """What the thread has cost: by its checkpoint, or by invocations that are not in it, because
        they ran at the same time."""
        shared = self._shared()
        return spent if shared is None else shared.at_least(spent)

    def _shared(self) -> Account | None:
        """The account of the thread, from which its invocations in this process are paid, even those
        that run at the same time."""
        info = get_runtime().execution_info
        if self.per == "run" or info is None or info.thread_id is None or calling_account():
            return None
        with self._lock:
            return self._threads.setdefault(info.thread_id, Account(self.budget.limits()))

    def _enter(self, spent: Spend, run: _Run) -> Account:
        shared = self._shared()
        if shared is not None:
            spent = shared.at_least(spent)
            shared.limits = {d: max(n, shared.limits[d]) for d, n in self.limits(run).items()}
        around = shared or calling_account()
        quotas = None if self.ledger is None else self.ledger.shared(self.quotas)
        account = Account(self.limits(run), spent, around, shared=quotas)
        account.media_tokens, account.invocation = self.media_tokens, run.get("id")
        account.tools_priced |= bool(self.tool_prices)
        account.calibrations.update(run["calibrations"])
        account.reserve = last_call_reserve(self.share, account.limits)
        if self.ledger is not None and account.record is None and "asked" in run:
            self._record(account, run)
        return open_account(account)

    def _record(self, account: Account, run: _Run) -> None:
        """Find or begin the run in the ledger. What it says was spent holds, where that is more."""
        assert self.ledger is not None
        assert isinstance(account.shared, SharedQuotas)
        question = "" if run["question"] is None else str(run["question"].text)
        known, limits = run.get("place", 0), account.limits
        account.record = own = AgentRun(
            self.ledger, account.shared, run["asked"], question, limits, known
        )
        for each in account.chain if self.per == "thread" else [account]:
            each.at_least(own.spent(self.per == "thread"))

    def _thus(self, state: Any, due: Spend) -> Any:
        """The update of a state with what is due."""
        if self.per == "run":
            return due
        return Overwrite(self._thread_spent(_added(_spent(state), due)))

    def _total(self, account: Account) -> Spend:
        """What the run (or the thread) has cost, by its account."""
        return total([(self._shared() or account).spent])

    # --- the agent's calls

    def wrap_model_call(
        self, request: Request, handler: Callable[[Request], Response]
    ) -> ExtendedModelResponse[Any]:
        turn = _Turn(self, request)
        for attempt in turn.requests():
            with paying_from(turn.payer):
                try:
                    with turn.kept.working() if turn.kept else nullcontext():
                        turn.take(handler(attempt))
                except Exception as error:
                    turn.fail(error)
        return turn.result()

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[Response]]
    ) -> ExtendedModelResponse[Any]:
        turn: _Turn = await self._aside(_Turn, self, request)
        for attempt in turn.requests():
            with paying_from(turn.payer):
                try:
                    async with turn.kept.aworking() if turn.kept else nullcontext():
                        turn.take(await handler(attempt))
                except Exception as error:
                    turn.fail(error)
        return await self._aside(turn.result)

    # --- tools

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]
    ) -> Result:
        tool = self._begun(request)
        if isinstance(tool, ToolMessage):
            return tool
        kept = _own_run(tool.account.parent)
        with _working(tool.account) as seconds:
            try:
                with kept.working() if kept else nullcontext():
                    result = within(seconds, lambda: handler(request))
            except (Short, TimeIsUp, JournalError) as error:
                result = _refused(request, error)
            except NoAnswer:
                if tool.account.short is None:
                    raise
                result = _refused(request, tool.account.short)
            except GraphInterrupt:
                _pause(tool)
                raise
        return cast(Result, _charged(request, result, _tool_spent(tool)))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        tool = await self._aside(self._begun, request)
        if isinstance(tool, ToolMessage):
            return tool
        kept = _own_run(tool.account.parent)
        with _working(tool.account) as seconds:
            if seconds is not None and request.tool is not None:
                request = request.override(tool=abandonable(request.tool))
            try:
                async with kept.aworking() if kept else nullcontext():
                    result = await awithin(seconds, lambda: handler(request))
            except (Short, TimeIsUp, JournalError) as error:
                result = _refused(request, error)
            except NoAnswer:
                if tool.account.short is None:
                    raise
                result = _refused(request, tool.account.short)
            except GraphInterrupt:
                await self._aside(_pause, tool)
                raise
        return cast(Result, _charged(request, result, await self._aside(_tool_spent, tool)))

    async def _aside(self, work: Callable[..., T], *given: Any) -> T:
        """The same beside the event loop, if a ledger is read or written: this run's, or that of the draft that
        it is part of. On the loop it could wait for LangGraph's saver, which needs the loop to go on."""
        around = calling_account()
        if self.ledger is None and (around is None or around.record is None):
            return work(*given)
        return await asyncio.to_thread(work, *given)

    def _begun(self, request: ToolCallRequest) -> _ToolCall | ToolMessage:
        """A tool call that may run, with its price booked; else what the model is told.
        Which calls may run was decided when they were asked for, so they may come in any order."""
        allowed = _run(request.state).get("allowed")
        call, account = request.tool_call, self._account(request.state)
        if allowed is not None and call["id"] not in allowed:
            most = account.limits.get("tool_calls")
            of = "quota of" if most is None else f"budget of {most:.0f}"
            return _refused(request, f"the {of} tool calls is used up")
        try:
            check_time(request.tool, account.left().get("seconds"))
            return _opened(account, request, self.tool_prices.get(call["name"], 0.0))
        except (Short, TimeIsUp, JournalError) as error:
            return _refused(request, error)


@functools.cache
def _asking(kind: Any) -> Any:
    """The class with a node in which a human is asked, which agents that do not ask do without."""
    node = {"after_model": kind._ask, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), node)


class _Metered(ModelRequest[Any]):
    """A request whose model is metered, whichever an inner middleware puts in its place."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given | {"model": own_model(given["model"])})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, own_model(value) if name == "model" else value)


class _Turn:
    """One turn of the agent: an ordinary call and, where the budget or an error ends it, the last, in two
    tries: with the agent's settings, then bare, shorter and as plain text.

    written: what the model wrote in a reply that was cut. asked: the tool calls that may run, by tool.
    """

    def __init__(self, middleware: TokenBudgetMiddleware, request: Request) -> None:
        self.middleware = middleware
        self.run, self.share = _run(request.state), middleware.share
        middleware._know_tools(request.tools)
        model = metered(request.model, middleware.prices)
        self.booked_above = paid_elsewhere(model)
        self.request: Request = _Metered(**{**vars(request), "model": model})
        self.account = middleware._account(request.state)
        self.kept = _own_run(self.account)
        if self.kept is None:
            self.account.spent = _added(_spent(request.state), self.account.due)
        self.payer = AgentPayer(self.account, "agent", self.share, self.run["question"])
        self.payer.summing = self._late(last=True)
        if (late := self._late()) is not None:
            self.request = self.request.override(model=late, model_settings={})
        if middleware.advise:
            advice = advised(self.request.model, self.account.limits.get("tokens"))
            settings = {**self.request.model_settings, **advice}
            self.request = self.request.override(model_settings=settings)
        at = used(self.account.limits, self.account.spent)
        self.payer.warned = max((p for p in middleware.warn_at if p <= at), default=None)
        self.response: Response | None = None
        self.reason: str | None = None
        self.error: Exception | None = None
        self.written: list[BaseMessage] = []
        self.asked: dict[str, Spend] = {}
        self.asks = False

    def requests(self) -> Iterator[Request]:
        """The requests to make, until there is a response, or a human is to be asked for more."""
        if self.run.get("ends"):
            self.reason, written = self.run["asks"]["reason"], self.run["asks"]["written"]
            self.written = [AIMessage(written)] if written else []
        elif self.run.get("refused"):
            none_left = self.account.left().get("tool_calls") == 0
            self.reason = "tool_calls" if none_left else "quota"
        elif self._out_of_steps():
            self.reason = "steps"
        else:
            self.payer.closes = self.request.messages[-1] if self.request.messages else None
            yield self.request
        self.asks = self.response is None and self._may_ask()
        if self.asks:
            return
        short = self.error is None or isinstance(self.error, Short)
        if not self.share or not (short or self._latest_text() is not None):
            return
        last = self.request.override(tools=[], tool_choice=None)
        if (late := self._late(last=True)) is not None:
            last = last.override(model=late, model_settings={})
        bare = last.override(response_format=None, model_settings={}, model=_brisk(last.model))
        unrecorded = self._goes_unrecorded()
        for request in (last, bare):
            while self.response is None and not self._hopeless():
                self.payer = AgentPayer(
                    self.account,
                    "last",
                    question=self.run["question"],
                    again=request is bare,
                    unrecorded=unrecorded,
                )
                messages = [*self.request.messages, *cast("list[Any]", self.written)]
                self.payer.closes = messages[-1] if messages else None
                yield request.override(messages=messages)
                if self.response is not None or not self._goes_unrecorded():
                    break
                unrecorded = True

    def _goes_unrecorded(self) -> bool:
        """Whether the ledger has just failed, and the last call is made without it. Where quotas pay, it is not."""
        if not isinstance(self.error, JournalError) or self.kept is None or self.kept.in_quotas:
            return False
        log.warning("the last call is not in the ledger: %s", self.error)
        self.kept = None
        return True

    def _out_of_steps(self) -> bool:
        """Whether LangGraph's limit pays for no other turn and for the nodes that end the agent, which take no
        more than a round. From the second turn on, when a round is known, one step is to spare: with rounds
        of 2 steps, 4 that are left let the last turn come now."""
        left = cast(BudgetState, self.request.state).get("remaining_steps")
        if left is None or not self.request.tools:
            return False
        now, before = get_config()["metadata"]["langgraph_step"], self.run.get("step")
        self.run = {**self.run, "step": now}
        return left < 2 * _ROUND if before is None else left <= 2 * (now - before)

    def _late(self, last: bool = False) -> BaseChatModel | None:
        """The model for the end of the budget, if this call is near it."""
        near, account = self.middleware.near_end, self.account
        if near is None or not (last or used(account.limits, account.spent) >= near.at):
            return None
        return cast(BaseChatModel, near.model)

    def _hopeless(self) -> bool:
        """Whether another call would not be made or served either: one was the last, and did not fit, or
        its server refuses all calls."""
        call = self.payer.latest
        if self.payer.kind != "last" or call is None:
            return False
        return call.reply is None or call.reply.receipt["closed"]

    def take(self, response: Response) -> None:
        """Keep a response, unless it only says that its call failed or did not fit, or the budget
        ended it."""
        call = self.payer.latest
        if call is None and self.payer.starved is not None:
            return self.fail(self.payer.starved)
        if call is None:  # an inner middleware answered itself
            self.response = response
            return
        if (error := call.short or call.error) is not None:
            return self.fail(error)
        said = bool(call.message.text.strip())
        if said:
            self.written = [AIMessage(call.message.text)]
        if self.payer.kind == "last":
            answered = said and (self.payer.again or not call.broke)
            answered = answered or response.structured_response is not None
            self.response = _without_calls(response) if answered else None
        elif not call.unfinished:
            self.response = response
        elif self.reason is None:
            self.reason = self._why_unfinished(call)

    def _why_unfinished(self, call: Reservation) -> str:
        if self.account.left().get("seconds", math.inf) <= 0:
            return "seconds"
        at_limit = call.reply is not None and call.reply.receipt["ended"] == "length"
        if at_limit and not call.cut:
            return "length"
        if call.broke:
            return call.blocked or "error: the reply broke off"
        return self.account.scarcest() if call.cut else "error: the reply was empty"

    def fail(self, error: Exception) -> None:
        if isinstance(error, GraphBubbleUp | ThreadBusy):
            raise error
        call = self.payer.latest
        short = self.payer.starved if call is None else call.short
        if short is not None:
            error = short
        if call is not None and call.reply is not None and call.reply.text.strip():
            self.written = [AIMessage(call.reply.text)]  # it broke in mid-sentence, and is paid for
        if self.error is None or isinstance(self.error, Short):
            self.error = error
        if self.reason is None:
            failed = f"error: {describe(error)}"
            self.reason = error.dimension if isinstance(error, Short) else failed
        log.debug("a call of the agent's: %s", self.reason)

    def result(self) -> ExtendedModelResponse[Any]:
        """The turn's messages, and what they cost. Without a response: the last text that the
        model wrote in this run."""
        response, reason = self.response, self.reason
        asks: dict[str, _Asks] = {}
        if self.asks:
            response, asks["asks"] = self._question()
            reason = None
        elif response is None:
            text = self._latest_text()
            unspent = not (self.account.spent if self.kept else self.account.due)["calls"]
            raised = self.error if unspent or not isinstance(self.error, Short) else None
            if text is None and raised is not None:
                self._give_up()
                raise raised
            response = ModelResponse(result=[AIMessage(text or "")])
        update: dict[str, Any] = {} if reason is None else {"jump_to": "end"}
        if reason is None and not asks and _is_answer(response):
            latest = self.payer.latest
            reason = (latest and latest.blocked) or "done"
        known = dict(self.account.calibrations)
        run = cast(_Run, {**self.run, **self._allowed(response), "calibrations": known, **asks})
        spent: Any = self.account.collect()
        by = {"model": {**spent, "tool_calls": 0}, **self.asked}
        if (own := _own_run(self.account)) is not None:
            spent, run["place"] = Overwrite(self.middleware._total(self.account)), own.next
        else:
            spent = self.middleware._thus(self.request.state, spent)
        update |= {"spent": spent, "spent_by": by, "stop_reason": reason, "anytime_run": run}
        return ExtendedModelResponse(response, Command(update=update))

    def _may_ask(self) -> bool:
        """Whether a human is to be asked for more: what is used up is the agent's own budget, and not that
        of its caller, and it was spent."""
        limits, reason = self.middleware.limits(self.run), self.reason
        if not self.middleware.asks or self.run.get("ends") or reason not in limits:
            return False
        own, around = left(limits, self.account.spent), calling_account()
        above = around.left().get(reason, math.inf) if around else math.inf
        return self.account.spent["calls"] > 0 and above > own[reason]

    def _question(self) -> tuple[Response, _Asks]:
        """The agent's latest words in place of a reply, and what a human is to be asked."""
        message = AIMessage(self._latest_text() or "", id=str(uuid4()))
        written = "".join(str(m.text) for m in self.written)
        asks = _Asks(reason=str(self.reason), message=str(message.id), written=written)
        return ModelResponse(result=[message]), asks

    def _give_up(self) -> None:
        """The run ends in an error: who asks again begins another one."""
        with suppress(JournalError):
            if (own := _own_run(self.account)) is not None:
                own.end(self.reason or "error")

    def _allowed(self, response: Response) -> dict[str, Any]:
        """Which of the tool calls in a response may run: the first ones. They are booked. Those that have
        an answer, as a structured response has, are not carried out."""
        answered = {m.tool_call_id for m in response.result if isinstance(m, ToolMessage)}
        calls = [c for m in response.result for c in getattr(m, "tool_calls", ())]
        calls = [call for call in calls if call["id"] not in answered]
        taken = self.account.take_tool_calls(len(calls), own=self.booked_above)
        over = {call["id"] for call in calls[taken:]}
        for call in calls[:taken]:
            one = self.asked.get(call["name"], nothing())
            self.asked[call["name"]] = total([one, {**nothing(), "tool_calls": 1}])
        allowed = [call["id"] for call in calls[:taken] if call["id"] not in over]
        limited = over or "tool_calls" in self.account.limits
        return {"allowed": allowed if limited else None, "refused": bool(over)}

    def _latest_text(self) -> str | None:
        """What the model said last in this run; None if it did not reply, "" if without words."""
        text = None
        for message in reversed([*self.request.messages, *self.written]):
            if message.type == "human":
                break
            if message.type == "ai":
                text = text or str(message.text).strip()
        return text


class _ToolCall(NamedTuple):
    """account: its own. place: of its row in the ledger."""

    account: Account
    place: Place | None


def _opened(account: Account, request: ToolCallRequest, price: float) -> _ToolCall:
    """A tool call, with a part of what is left for itself, and its price booked, unless it was before it
    paused. Raises Short if that does not fit, here or in a quota, and JournalError."""
    call_id = str(request.tool_call["id"])
    place = None if account.record is None else account.record.tool_paused(call_id)
    if place is not None:
        price = 0.0
    calling = next((m for m in reversed(_messages(request.state)) if m.type == "ai"), None)
    parts = len(getattr(calling, "tool_calls", ())) or 1
    cost, slice_ = Spend(**{**nothing(), "usd": price}), Limits()
    with account.lock:
        rest = account.left()
        if price > rest.get("usd", price):
            raise Short(rest, cast("Mapping[str, float]", cost), "usd")
        for dimension, amount in rest.items():
            part = max(1, amount // parts) if dimension == "calls" else amount / parts
            slice_[dimension] = amount if dimension in ("seconds", "tool_calls") else part
        if "usd" in slice_:
            slice_["usd"] += price
        own = Account(slice_, parent=account, tool_call=call_id)
        own.price = price
        own.hold(cost)
    try:
        if place is None and own.record is not None and own.shared is not None:
            kept = _own_run(account)
            with own.working(), kept.working() if kept else nullcontext():
                seconds = own.left().get("seconds", math.inf)
                place = own.record.tool_begins(
                    request.tool_call["name"], call_id, price, own.shared, seconds
                )
    except BaseException:
        own.settle(cost, nothing())
        raise
    own.settle(cost, cost)
    return _ToolCall(own, place)


def _pause(tool: _ToolCall) -> None:
    """A tool asks a human, and is called again with the answer. The ledger keeps that its price is paid;
    without one it is paid then."""
    tool.account.settle(nothing(), {**nothing(), "usd": -tool.account.price})
    _end_in_ledger(tool, pauses=True)


def _tool_spent(tool: _ToolCall) -> Spend:
    """What a tool call has cost in all."""
    _end_in_ledger(tool)
    return tool.account.close()


def _end_in_ledger(tool: _ToolCall, pauses: bool = False) -> None:
    """If the ledger cannot keep how long it took, its price stays booked there."""
    if tool.place is not None and tool.account.record is not None:
        try:
            tool.account.record.tool_ended(tool.place, tool.account.price, pauses)
        except JournalError as error:
            log.warning("%s", error)


def _own_run(account: Account | None) -> AgentRun | None:
    """The run in the ledger that an agent's account has, unless it is part of another agent's."""
    if account is None:
        return None
    above = account.parent.record if account.parent else None
    return cast(AgentRun, account.record) if account.record is not above else None


@contextmanager
def _working(own: Account) -> Iterator[float | None]:
    """A tool call under way. Yields the seconds that it may take."""
    try:
        with own.working(), paying_from(AgentPayer(own, "tool")):
            yield own.left().get("seconds")
    except BaseException:
        assert own.parent is not None
        own.parent.owe(own.close())
        raise


def _refused(request: ToolCallRequest, why: object) -> ToolMessage:
    """What the model is told. A journal's error may name files, so it is not passed on."""
    if isinstance(why, JournalError):
        log.warning("a tool call is not made: %s", why)
        why = "the ledger cannot record what it costs"
    call = request.tool_call
    return ToolMessage(
        f"Not done: {why}", tool_call_id=call["id"], name=call["name"], status="error"
    )


def _charged(request: ToolCallRequest, result: Any, spent: Spend) -> Any:
    """A tool's result, and what it cost as an update of the agent's state. What a sub-agent's state
    says of its own budget does not enter the agent's."""
    by = {request.tool_call["name"]: spent}
    cost = {"spent": spent, "spent_by": by} if any(spent.values()) else {}
    if isinstance(result, ToolMessage):
        return Command(update={"messages": [result], **cost}) if cost else result
    if isinstance(result, list):
        return [*(_charged(request, part, nothing()) for part in result), Command(update=cost)]
    if not isinstance(result, Command) or result.graph is not None:
        return result
    given = cast("Mapping[str, Any]", result.update or {})
    kept = {key: value for key, value in given.items() if key not in _OURS}
    return replace(result, update=kept | cost)


def _spent(state: Any) -> Spend:
    return total([state.get("spent") or nothing()])


def _account_of(run: _Run) -> Account | None:
    """The account of this invocation, if it is that of the run. Raises ValueError while that of another run
    is at work."""
    account = current_account()
    if account is None or run.get("id") in (None, account.invocation):
        return account
    if account.active:
        raise ValueError(
            "control: another invocation of the agent is at work under the same RunControl; give each "
            "invocation a RunControl() of its own"
        )
    return None


def _run(state: Any) -> _Run:
    none = _Run(question=None, calibrations={}, form=len(UPGRADES))
    run = cast("Mapping[str, Any]", state.get("anytime_run") or none)
    return cast(_Run, upgraded(run, UPGRADES, "the agent's thread"))


def _messages(state: Any) -> Sequence[BaseMessage]:
    return cast("Sequence[BaseMessage]", state.get("messages", ()))


def _without_calls(response: Response) -> Response:
    """A last reply without calls of tools, which it does not have."""
    if response.structured_response is not None:
        return response
    kept = [
        AIMessage(m.text, id=m.id, usage_metadata=m.usage_metadata)
        if isinstance(m, AIMessage) and m.tool_calls
        else m
        for m in response.result
        if not isinstance(m, ToolMessage)
    ]
    return replace(response, result=kept)


def _brisk(model: BaseChatModel) -> BaseChatModel:
    """The model, which thinks little if it can be asked to."""
    if not getattr(model, "reasoning_effort", None):
        return model
    return model.model_copy(update={"reasoning_effort": "low"})


def _is_answer(response: Response) -> bool:
    calls = any(getattr(message, "tool_calls", None) for message in response.result)
    return response.structured_response is not None or not calls


def _same(question: BaseMessage | None, earlier: BaseMessage | None) -> bool:
    """Whether this is the question that was asked last."""
    return bool(question and earlier and question.text == earlier.text)


def _repeated(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What stands at the end of a conversation twice once a question is asked again: the question, and
    before it tool calls without an answer, which the model asks for again."""
    *earlier, question = messages
    if not any(_same(question, message) for message in earlier):
        return []
    answers: list[BaseMessage] = []
    for message in reversed(earlier):
        if not isinstance(message, ToolMessage):
            break
        answers.append(message)
    calls = getattr(message, "tool_calls", ())
    answered = {answer.tool_call_id for answer in answers if isinstance(answer, ToolMessage)}
    unanswered = any(call["id"] not in answered for call in calls)
    return [question, *([message, *answers] if unanswered else [])]


def _prices(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise ValueError(f"tool_prices={given!r:.40}: a dict is needed, as in {{'search': 0.01}}")
    return {name: _price(name, usd) for name, usd in given.items()}


def _price(name: str, usd: Any) -> float:
    if isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 <= usd < math.inf:
        raise ValueError(f"tool_prices {name}={usd!r}: US dollars per call, 0 or more, are needed")
    return float(usd)


def _share(reserve: Any, budget: Budget) -> float | Limits:
    """The reserve as a fraction or as amounts; 0 if there is none."""
    if isinstance(reserve, int | float) and not isinstance(reserve, bool):
        if not 0 <= reserve < 1:
            raise ValueError(f"reserve={reserve!r}: a fraction is from 0 to below 1")
        return float(reserve)
    amounts, limits = as_budget(reserve, "reserve").limits(), budget.limits()
    if "tool_calls" in amounts:
        raise ValueError("reserve tool_calls: the last call makes none; leave them out")
    for dimension, amount in amounts.items():
        if amount > limits.get(dimension, 0):
            raise ValueError(f"reserve {dimension}={in_digits(amount)}: the budget is {budget}")
    return amounts if any(amounts.values()) else 0.0
