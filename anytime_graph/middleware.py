"""A budget for agents built with langchain's `create_agent`: a hard cap before each model call, and
a reserve for one last call in which the agent sums up what it has.

Needs the extra `agents`; `import anytime_graph` does not need langchain.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.channels.untracked_value import UntrackedValue
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Command
from typing_extensions import TypedDict

from anytime_graph.accounts import (
    Account,
    Desk,
    Plan,
    Short,
    added,
    at,
    here,
    less,
    metered,
    outer,
    register,
    registered,
    scope,
)
from anytime_graph.budget import (
    Budget,
    BudgetTooSmall,
    Limits,
    Prices,
    Spend,
    as_budget,
    nothing,
)
from anytime_graph.metering import describe

try:
    from langchain.agents.middleware import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        ToolCallRequest,
    )
    from langchain.agents.middleware.types import OmitFromInput, PrivateStateAttr
except ImportError:
    raise ImportError(
        "anytime_graph.middleware needs langchain; install anytime-graph[agents]"
    ) from None

__all__ = ["TokenBudgetMiddleware", "metered"]

log = logging.getLogger(__name__)


class _Kept(TypedDict):
    """What outlives a process. question: the id of the user message that began the run. before:
    what the thread had spent by then. growth: how far prompts exceeded their bound, by model."""

    question: str | None
    before: Spend
    growth: dict[str, float]


class BudgetState(AgentState[Any]):
    """spent: what the run (or the thread) has cost so far, sub-agents and tools included.
    stop_reason: None while it works; "done", or the dimension of the budget that ended it, or the
    error that did."""

    spent: NotRequired[Annotated[Spend, OmitFromInput, added]]
    stop_reason: NotRequired[Annotated[str | None, OmitFromInput]]
    anytime_kept: NotRequired[Annotated[_Kept, PrivateStateAttr]]
    anytime_account: NotRequired[Annotated[str, UntrackedValue, PrivateStateAttr]]


_OURS = ("spent", "stop_reason", "anytime_kept", "anytime_account")

Request = ModelRequest[Any]
Response = ModelResponse[Any]
Result = ToolMessage | Command[Any]


class TokenBudgetMiddleware(AgentMiddleware[BudgetState, Any, Any]):
    """Holds an agent to a budget, and gets an answer out of it before the budget ends.

    budget: what may be spent; the first dimension to run out ends the work. Seconds are those in
        which model calls are active.
    per: "run": the budget is for each user message; "thread": for all of a thread's, over its
        invocations (needs a checkpointer).
    reserve: what is kept for the last call: a fraction of the budget, or a Budget. At least what
        its shortest prompt takes; 0: there is no last call.
    prices: US dollars per million tokens of the agent's model; default: looked up by its name.

    Before each call the prompt, tools included, is bounded and the output capped to what is left
    beside the reserve; a stream that exceeds its cap is cut. What the provider reports is booked;
    a call without a believable report is charged in full, and clients do not retry unseen. When
    no further call fits, or a reply was cut by the budget, the model is asked once more, without
    tools, to answer from what it has. If not even that fits, the run ends with the text that the
    model gave last. The agent's state has `spent` and `stop_reason`.

    Sub-agents with this middleware draw on the budget of the tool call that they run in, within
    their own. Tools and middlewares that call a model draw on it if the model is `metered(model)`.
    Tool calls that run side by side share what is left in equal parts, from their first model
    call on.

    Put it first in `middleware=[...]`: what comes after it is inside, where its calls are metered
    (retries, fallbacks to `metered` models, SummarizationMiddleware with a `metered` model).
    ModelCallLimitMiddleware ends a run without a last call; Budget(calls=...) does with one.

    Raises ValueError for a bad argument, BudgetTooSmall when not one call fits and nothing was
    spent, and what the model's client raises as long as the model has said nothing.
    """

    state_schema = BudgetState

    def __init__(
        self,
        budget: Budget,
        *,
        per: Literal["run", "thread"] = "run",
        reserve: float | Budget = 0.2,
        prices: Prices | None = None,
    ) -> None:
        super().__init__()
        if per not in ("run", "thread"):
            raise ValueError(f"per={per!r}: 'run' or 'thread' is needed")
        if prices is not None and not isinstance(prices, Prices):
            raise ValueError(f"prices={prices!r}: Prices(input=..., output=...) are needed")
        self.budget = as_budget(budget)
        self.per = per
        self.prices = prices
        self.share = _share(reserve, self.budget)

    # --- the run's account

    def before_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any]:
        """Open the account of this invocation; a new user message begins a new run."""
        asked = next((m for m in reversed(state["messages"]) if m.type == "human"), None)
        question = asked.id if asked else None
        kept, spent = state.get("anytime_kept"), added(state.get("spent"), None)
        begins = kept is None or kept["question"] != question
        update: dict[str, Any] = {"stop_reason": None, "anytime_account": uuid4().hex}
        if begins and self.per == "run":
            update["spent"] = less(nothing(), spent)
            spent = nothing()
        growth = kept["growth"] if kept else {}
        before = spent if begins or kept is None else kept["before"]
        update["anytime_kept"] = _Kept(question=question, before=before, growth=growth)
        account = self._opened(spent, growth)
        account.question = asked
        register(account, update["anytime_account"], *_place())
        return update

    async def abefore_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any]:
        return self.before_agent(state, runtime)

    def _opened(self, spent: Spend, growth: Mapping[str, float]) -> Account:
        account = Account(self.budget.limits(), outer(), spent)
        account.growth.update(growth)
        account.narrow()
        account.keep(self.share)
        return account

    def _account(self, state: Mapping[str, Any]) -> Account:
        """The account of this invocation; after a restart, as the checkpoint has it."""
        keys = [key for key in (state.get("anytime_account"), *_place()) if key is not None]
        for key in keys:
            if (account := registered(key)) is not None:
                return account
        kept, spent = state.get("anytime_kept"), added(state.get("spent"), None)
        account = self._opened(spent, kept["growth"] if kept else {})
        if kept is not None:
            asked = (m for m in _messages(state) if m.id == kept["question"])
            account.question = next(asked, None)
        if account.parent is not None:
            account.parent.adopt(less(spent, kept["before"] if kept else None))
        return register(account, *keys)

    # --- the agent's calls

    def wrap_model_call(
        self, request: Request, handler: Callable[[Request], Response]
    ) -> ExtendedModelResponse[Any]:
        turn = _Turn(self, request)
        while (asked := turn.next()) is not None:
            with scope(turn.desk):
                try:
                    turn.take(handler(asked))
                except Exception as error:
                    turn.fail(error)
        return turn.result()

    async def awrap_model_call(
        self, request: Request, handler: Callable[[Request], Awaitable[Response]]
    ) -> ExtendedModelResponse[Any]:
        turn = _Turn(self, request)
        while (asked := turn.next()) is not None:
            with scope(turn.desk):
                try:
                    turn.take(await handler(asked))
                except Exception as error:
                    turn.fail(error)
        return turn.result()

    # --- tools

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]
    ) -> Result:
        with _working(self._account(request.state), request) as desk:
            try:
                result = handler(request)
            except BudgetTooSmall as small:
                result = _refused(request, small)
            return cast(Result, _charged(result, desk.account.spent))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        with _working(self._account(request.state), request) as desk:
            try:
                result = await handler(request)
            except BudgetTooSmall as small:
                result = _refused(request, small)
            return cast(Result, _charged(result, desk.account.spent))


class _Turn:
    """One turn of the model: an ordinary call and, where the budget ends it, the last one."""

    def __init__(self, middleware: TokenBudgetMiddleware, request: Request) -> None:
        self.middleware, self.request = middleware, request
        self.state = cast("Mapping[str, Any]", request.state)
        self.account = middleware._account(self.state)
        self.account.catch_up(added(self.state.get("spent"), None))
        self.desk = Desk(self.account)
        self.plans = [Plan(agent=True, share=middleware.share)]
        if middleware.share:
            self.plans.append(Plan(agent=True, final=True))
        self.response: Response | None = None
        self.reason: str | None = None
        self.error: Exception | None = None
        self.written: list[BaseMessage] = []
        kept = self.state.get("anytime_kept")
        before = kept["before"] if kept else None
        self.paid = less(self.account.spent, before)["calls"] > 0
        if self.account.ended is not None:
            self.fail(self.account.ended)
            del self.plans[0]

    def next(self) -> Request | None:
        """The next request to make, if there is one."""
        if self.response is not None or not self.plans:
            return None
        if not self.paid and not self.written and not isinstance(self.error, Short | None):
            return None
        plan = self.plans.pop(0)
        self.desk = Desk(self.account, plan)
        model = at(self.request.model, self.desk, self.middleware.prices)
        asked = self.request.override(model=model)
        if not plan.final:
            return asked
        messages = [*self.request.messages, *cast("list[Any]", self.written)]
        return asked.override(messages=messages, tools=[], tool_choice=None)

    def take(self, response: Response) -> None:
        """Keep a response, unless it only says that its call failed or did not fit, or the budget
        ended it."""
        desk = self.desk
        if (error := desk.short or desk.error) is not None:
            return self.fail(error)
        if desk.message is not None and desk.message.text.strip():
            self.written = [AIMessage(desk.message.text)]
        if desk.order is None or not desk.unfinished or (desk.plan.final and self.written):
            self.response = response
        else:
            self.reason = self.reason or (
                "error: the reply broke off" if desk.broke else self._scarcest()
            )

    def fail(self, error: Exception) -> None:
        if isinstance(error, GraphBubbleUp):
            raise error
        error = self.desk.short or error
        if self.error is None or isinstance(self.error, Short):
            self.error = error
        if self.reason is None and isinstance(error, Short):
            self.reason = error.dimension
        elif self.reason is None:
            self.reason = f"error: {describe(error)}"
        log.debug("a call of the agent's: %s", self.reason)

    def result(self) -> ExtendedModelResponse[Any]:
        """The turn's messages, and what they cost. Without a response: the last text that the
        model wrote in this run."""
        response, reason = self.response, self.reason
        update: dict[str, Any] = {}
        if response is None:
            ended_before = self.state.get("stop_reason") not in (None, "done")
            if self.error is not None and (ended_before or not (self.paid or self.written)):
                raise self.error
            response = ModelResponse(result=[AIMessage(self._last_text())])
        if reason is not None:
            update["jump_to"] = "end"
        elif response.structured_response is not None or not _calls_tools(response):
            reason = "done"
        kept = self.state.get("anytime_kept") or _Kept(question=None, before=nothing(), growth={})
        update |= {
            "spent": less(self.account.spent, self.state.get("spent")),
            "stop_reason": reason,
            "anytime_kept": {**kept, "growth": dict(self.account.growth)},
        }
        return ExtendedModelResponse(response, Command(update=update))

    def _last_text(self) -> str:
        for message in reversed([*self.request.messages, *self.written]):
            if message.type == "human":
                break
            if message.type == "ai" and message.text.strip():
                return str(message.text)
        return ""

    def _scarcest(self) -> str:
        rest, limits = self.account.left(), self.account.limits or {}
        return min(rest, key=lambda d: rest[d] / (limits.get(d) or 1.0), default="done")


@contextmanager
def _working(account: Account, request: ToolCallRequest) -> Iterator[Desk]:
    """A tool call under way, with an account of its own below the agent's."""
    own = str(request.tool_call["id"])
    said = next((m for m in reversed(_messages(request.state)) if m.type == "ai"), None)
    siblings = {str(call["id"]) for call in getattr(said, "tool_calls", ())}
    with account.lock:
        if own not in account.open:
            account.open = siblings | {own}
    desk = Desk(Account(None, account))
    try:
        with scope(desk):
            yield desk
    finally:
        with account.lock:
            account.open.discard(own)


def _messages(state: Any) -> Sequence[BaseMessage]:
    return cast("Sequence[BaseMessage]", state.get("messages", ()))


def _refused(request: ToolCallRequest, small: BudgetTooSmall) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(
        f"Not done: {small}", tool_call_id=call["id"], name=call["name"], status="error"
    )


def _charged(result: Any, spent: Spend) -> Any:
    """A tool's result, and what it cost as an update of the agent's state. What a sub-agent's
    state says of its own budget does not enter it."""
    cost = {"spent": dict(spent)} if spent["calls"] else {}
    if isinstance(result, ToolMessage):
        return Command(update={"messages": [result], **cost}) if cost else result
    if isinstance(result, list):
        return [
            *(_charged(r, nothing()) for r in result),
            *([Command(update=cost)] if cost else []),
        ]
    if not isinstance(result, Command) or result.graph is not None:
        return result
    if isinstance(result.update, dict):
        update: Any = {k: v for k, v in result.update.items() if k not in _OURS} | cost
    else:
        update = [pair for pair in result.update or () if pair[0] not in _OURS] + [*cost.items()]
    return replace(result, update=update)


def _calls_tools(response: Response) -> bool:
    return any(getattr(message, "tool_calls", None) for message in response.result)


def _place() -> Sequence[Hashable]:
    key = here()
    return () if key is None else (key,)


def _share(reserve: Any, budget: Budget) -> float | Limits:
    """The reserve as a fraction or as amounts; 0 if there is none."""
    if isinstance(reserve, Budget | Mapping):
        amounts, limits = as_budget(reserve, "reserve").limits(), budget.limits()
        for d, amount in amounts.items():
            if d not in limits:
                raise ValueError(f"reserve {d}={amount:g}: the budget ({budget}) sets no {d}")
            if amount > limits[d]:
                raise ValueError(f"reserve {d}={amount:g}: more than the budget's {limits[d]:g}")
        return amounts if any(amounts.values()) else 0.0
    number = isinstance(reserve, int | float) and not isinstance(reserve, bool)
    if not number or not 0 <= reserve < 1:
        raise ValueError(
            f"reserve={reserve!r}: a fraction of the budget, from 0 to below 1, or a Budget"
        )
    return float(reserve)
