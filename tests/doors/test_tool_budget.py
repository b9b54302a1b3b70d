"""An agent's tool calls are counted and paid before they run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from anytime_graph import Budget, Prices
from anytime_graph.budget import nothing
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.marks import both
from tests.kit.server import Reply, Server, serving

ANSWER = "Rivers bend because water erodes the outer bank."
QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}
ON: Any = {"configurable": {"thread_id": "1"}}
PRICES = Prices(input=0.4, output=1.6)
CHEAP = Prices(input=0.1, output=0.1)


def searching(batches: list[int] | int) -> Any:
    """A model that asks for so many searches in each turn, the last number for ever."""
    counts = [batches] if isinstance(batches, int) else batches

    def script(request: dict[str, Any], i: int) -> Reply:
        n = counts[min(i, len(counts) - 1)] if request.get("tools") else 0
        return Reply(text="Let me look." if n else ANSWER, tools=[("search", {"q": "bend"})] * n)

    return script


def agent(server: Server, ran: list[str], budget: Budget, **more: Any) -> Any:
    @tool
    def search(q: str) -> str:
        """Search the web."""
        ran.append(q)
        return "erosion"

    inside, built = more.pop("inside", ()), more.pop("built", {})
    middleware = [TokenBudgetMiddleware(budget, **more), *inside]
    return create_agent(server.model(), [search], middleware=middleware, **built)


def run(app: Any, given: Any = QUESTION, sync: bool = True, **options: Any) -> Any:
    return app.invoke(given, **options) if sync else asyncio.run(app.ainvoke(given, **options))


def told(out: Any) -> list[str]:
    return [m.text for m in out["messages"] if isinstance(m, ToolMessage)]


@both
def test_a_tool_call_over_the_budget_is_not_carried_out_and_the_last_call_answers(
    server: Server, sync: bool
) -> None:
    ran: list[str] = []
    server.script = searching(2)
    out = run(agent(server, ran, Budget(tokens=20_000, tool_calls=3)), sync=sync)
    assert len(ran) == 3
    over = "Not done: the budget of 3 tool calls is used up"
    assert sorted(told(out)) == [over, "erosion", "erosion", "erosion"]
    assert (out["stop_reason"], out["messages"][-1].text) == ("tool_calls", ANSWER)
    assert "tools" not in server.calls[-1].request
    assert len(server.calls) == 3
    left = [f"{n} tool calls" for n in (3, 1)]
    assert all(text in call.text for text, call in zip(left, server.calls, strict=False))


def test_tool_calls_within_the_budget_change_nothing(server: Server) -> None:
    ran: list[str] = []
    server.script = searching([2, 1, 0])
    out = run(agent(server, ran, Budget(tokens=20_000, tool_calls=3)))
    assert (len(ran), out["stop_reason"]) == (3, "done")
    assert "0 tool calls" in server.calls[-1].text


def test_without_a_reserve_it_ends_with_the_last_text(server: Server) -> None:
    ran: list[str] = []
    server.script = searching(1)
    out = run(agent(server, ran, Budget(tokens=20_000, tool_calls=0), reserve=0))
    assert (ran, out["stop_reason"]) == ([], "tool_calls")
    assert (out["messages"][-1].text, len(server.calls)) == ("Let me look.", 1)


@settings(max_examples=6, deadline=None)
@given(
    batches=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    most=st.integers(0, 5),
    price=st.sampled_from([0.0, 0.001, 0.004]),
    per=st.sampled_from(["run", "thread"]),
)
def test_neither_the_tool_calls_nor_the_dollars_are_ever_exceeded(
    batches: list[int], most: int, price: float, per: Any
) -> None:
    ran: list[str] = []
    with serving() as server:
        server.script = searching(batches)
        budget = Budget(usd=0.01, tool_calls=most)
        how: Any = {"tool_prices": {"search": price}, "prices": PRICES, "per": per}
        app = agent(server, ran, budget, built={"checkpointer": InMemorySaver()}, **how)
        for _ in range(2):
            before, calls = len(ran), len(server.calls)
            out = run(app, config=ON)
            if per == "run":
                assert len(ran) - before <= most
                bought, asked = len(ran) - before, server.calls[calls:]
            else:
                assert len(ran) <= most
                bought, asked = len(ran), server.calls
            usd = sum(c.prompt * 0.4 + c.output * 1.6 for c in asked) / 1e6 + price * bought
            assert out["spent"]["usd"] == pytest.approx(usd)
            assert out["spent"]["tool_calls"] == bought
            by = out["spent_by"]
            assert sum(spend["usd"] for spend in by.values()) == pytest.approx(usd)
            searches = by.get("search", nothing())
            assert searches["tool_calls"] == bought
            assert searches["usd"] == pytest.approx(price * bought)
            assert usd <= 0.01
            assert isinstance(out["messages"][-1], AIMessage)


def test_a_tool_that_cannot_be_paid_is_not_carried_out(server: Server) -> None:
    ran: list[str] = []
    server.script = searching([1, 1, 1, 0])
    how: Any = {"tool_prices": {"search": 0.01}, "prices": PRICES}
    out = run(agent(server, ran, Budget(usd=0.03), **how))
    assert (len(ran), out["stop_reason"]) == (2, "done")
    assert told(out)[-1].startswith("Not done: the budget (usd=")
    assert 0.02 < out["spent"]["usd"] <= 0.03


def test_a_tool_whose_result_is_the_answer_is_paid(server: Server) -> None:
    @tool(return_direct=True)
    def search(q: str) -> str:
        """Search the web."""
        return "erosion"

    server.script = searching(1)
    middleware = TokenBudgetMiddleware(Budget(tokens=9_000), tool_prices={"search": 0.01})
    out = run(create_agent(server.model(), [search], middleware=[middleware]))
    assert (out["stop_reason"], out["spent"]["usd"]) == ("done", pytest.approx(0.01))


def test_a_run_that_waits_for_approval_goes_on_with_the_tool_calls_it_has_left(
    server: Server,
) -> None:
    """Each part is an agent of its own over the checkpoint, as in another process."""
    ran: list[str] = []
    server.script = searching(1)
    saver = InMemorySaver()

    def part(given: Any) -> Any:
        app = agent(
            server,
            ran,
            Budget(tokens=20_000, tool_calls=2),
            inside=[HumanInTheLoopMiddleware({"search": True})],
            built={"checkpointer": saver},
        )
        return run(app, given, config=ON)

    out = part(QUESTION)
    for _ in range(3):
        assert "__interrupt__" in out
        out = part(Command(resume={"decisions": [{"type": "approve"}]}))
    assert (len(ran), out["stop_reason"]) == (2, "tool_calls")
    assert out["messages"][-1].text == ANSWER


def test_a_structured_answer_is_no_tool_call(server: Server) -> None:
    class River(BaseModel):
        """A river."""

        name: str

    ran: list[str] = []

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(
            text="", tools=[("search", {"q": "x"})] if not i else [("River", {"name": "Po"})]
        )

    server.script = script
    built = {"response_format": ToolStrategy(River)}
    out = run(agent(server, ran, Budget(tokens=20_000, tool_calls=1), built=built))
    assert (out["structured_response"], out["stop_reason"]) == (River(name="Po"), "done")
    assert len(ran) == 1


def test_a_thread_from_before_tool_calls_were_counted_goes_on(server: Server) -> None:
    """Its tool call was allowed when it was asked for."""
    ran: list[str] = []
    server.script = searching([1, 0])
    saver = InMemorySaver()
    waits: Any = {"inside": [HumanInTheLoopMiddleware({"search": True})]}
    waits["built"] = {"checkpointer": saver}
    run(agent(server, ran, Budget(tokens=20_000), **waits), config=ON)
    app = agent(server, ran, Budget(tokens=20_000, tool_calls=1), **waits)
    assert app.get_state(ON).values["anytime_run"]["allowed"] is None
    out = run(app, Command(resume={"decisions": [{"type": "approve"}]}), config=ON)
    assert (len(ran), out["stop_reason"]) == (1, "done")


@pytest.mark.parametrize(
    ("budget", "warned"),
    [
        (Budget(calls=5), [0, 0, 0.25, 0.5]),
        (Budget(calls=99, tool_calls=4), [0, 0.25, 0.5, 0.5]),
    ],
)
def test_an_agent_is_warned_in_its_prompts_once_a_part_of_its_budget_is_used(
    server: Server, budget: Budget, warned: list[float]
) -> None:
    server.script = searching(1)
    parts = (0.8, 0.25, 0.5)
    out = run(agent(server, [], budget, warn_at=parts))
    for part in parts:
        said = [f"Warning: {part:.0%} of the budget is used" in c.text for c in server.calls[:4]]
        assert said == [at == part for at in warned]
    assert not any("Warning" in m.text for m in out["messages"])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"warn_at": (1.5,)}, "warn_at=1.5"),
        ({"budget": {"tool_calls": -1}}, "tool_calls=-1"),
        ({"budget": {"tool_calls": 1.5}}, "tool_calls=1.5"),
        ({"reserve": {"tool_calls": 1}}, "reserve tool_calls"),
        ({"tool_prices": {"search": -0.1}}, "tool_prices search=-0.1"),
    ],
)
def test_wrong_amounts_are_named(wrong: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TokenBudgetMiddleware(**{"budget": Budget(tokens=1_000), **wrong})


@both
def test_a_price_for_a_tool_that_the_model_is_not_offered_is_told_once(
    server: Server, sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = searching([1, 0])
    prices: Any = {"tool_prices": {"serch": 0.01, "search": 0.01}, "prices": PRICES}
    app = agent(server, [], Budget(usd=1.0), **prices)
    for _ in range(2):
        run(app, sync=sync)
    [told] = [record.getMessage() for record in caplog.records]
    assert told == "tool_prices serch=0.01: did you mean 'search'? the model is offered search"


class Late(AgentMiddleware[Any, Any, Any]):
    """Brings a tool in the second turn."""

    def __init__(self, ran: list[str]) -> None:
        super().__init__()

        def lend(q: str) -> str:
            """Lend a book."""
            ran.append(q)
            return "lent"

        self.late = tool(lend)

    def with_tool(self, request: Any) -> Any:
        turns = [m for m in request.messages if m.type == "ai"]
        offered = bool(turns and request.tools)
        return request.override(tools=[*request.tools, *([self.late] if offered else [])])

    def carried_out(self, request: Any) -> Any:
        own = request.tool_call["name"] == "lend"
        return request.override(tool=self.late) if own else request

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(self.with_tool(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(self.with_tool(request))

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(self.carried_out(request))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(self.carried_out(request))


@both
def test_a_tool_that_a_middleware_brings_later_may_have_a_price(
    server: Server, sync: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        names = ["search", "lend"][i : i + 1] if request.get("tools") else []
        return Reply("So." if names else ANSWER, tools=[(name, {"q": "bend"}) for name in names])

    server.script, ran = script, list[str]()
    how: Any = {"tool_prices": {"lend": 0.25}, "prices": PRICES}
    out = run(agent(server, ran, Budget(usd=1.0), inside=[Late(ran)], **how), sync=sync)
    assert ran == ["bend", "bend"]
    assert out["spent_by"]["lend"]["usd"] == 0.25
    assert "tool_prices lend=0.25" in caplog.text


@settings(max_examples=8, deadline=None)
@given(
    batches=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    most=st.integers(0, 7),
    own=st.sampled_from([None, 1, 9]),
    per=st.sampled_from(["run", "thread"]),
    sync=st.booleans(),
)
def test_agents_and_their_sub_agents_together_never_exceed_the_tool_calls(
    batches: list[int], most: int, own: int | None, per: Any, sync: bool
) -> None:
    """Sub-agents run side by side. own: their own budget; without one their model is metered."""
    ran: list[str] = []
    with serving() as server:

        def script(request: dict[str, Any], i: int) -> Reply:
            names = {t["function"]["name"] for t in request.get("tools") or ()}
            n = batches[min(i, len(batches) - 1)] if names else 0
            name = "delegate" if "delegate" in names else "search"
            return Reply(text="Let me look.", tools=[(name, {"q": "bend"})] * n)

        server.script = script

        @tool
        def search(q: str) -> str:
            """Search the web."""
            ran.append(q)
            return "erosion"

        within = [] if own is None else [TokenBudgetMiddleware(Budget(calls=3, tool_calls=own))]
        sub = create_agent(metered(server.model()), [search], middleware=within)

        @tool
        def delegate(q: str) -> str:
            """Have it looked up."""
            ran.append(q)
            return str(sub.invoke({"messages": [("user", q)]})["messages"][-1].text)

        budget = Budget(calls=14, tool_calls=most)
        built: Any = {"checkpointer": InMemorySaver()}
        app = create_agent(
            server.model(),
            [delegate],
            middleware=[TokenBudgetMiddleware(budget, per=per)],
            **built,
        )
        for _ in range(2):
            if per == "run":
                ran.clear()
                server.calls.clear()
            out = run(app, sync=sync, config=ON)
            assert out["spent"]["tool_calls"] == len(ran) <= most
            assert out["spent"]["calls"] == len(server.settled().calls) <= 14
            by = out["spent_by"].values()
            for part in ("tokens", "calls", "tool_calls"):
                assert sum(spend[part] for spend in by) == out["spent"][part]


@both
@pytest.mark.pairwise
@pytest.mark.parametrize("books", [True, False], ids=["ledger", "no_ledger"])
@pytest.mark.parametrize("by_sub_agent", [True, False], ids=["sub_agent", "tool"])
@pytest.mark.parametrize("per", ["run", "thread"])
def test_a_tool_that_asks_a_human_is_paid_once(
    server: Server, store: Checkpoints, sync: bool, books: bool, by_sub_agent: bool, per: Any
) -> None:
    """per: with "thread", the app that asked is the one that goes on."""
    begun: list[str] = []

    @tool
    def confirm(question: str) -> str:
        """Ask the user."""
        return " ".join(str(interrupt(f"{question} {n}")) for n in (1, 2))

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        asked = any(m["role"] == "tool" for m in request["messages"])
        call = [] if asked or not names else [(names[0], {"question": "Sure?", "what": "a pen"})]
        return Reply(text="Done.", tools=call)

    server.script = script

    def app() -> Any:
        sub = create_agent(metered(server.model(), CHEAP), [confirm])

        @tool
        def buy(what: str) -> str:
            """Buy something."""
            begun.append(what)
            if by_sub_agent:
                return str(sub.invoke({"messages": [("user", what)]})["messages"][-1].text)
            return str(confirm.invoke({"question": "Sure?"}))

        paying = TokenBudgetMiddleware(
            Budget(usd=0.9),
            per=per,
            prices=CHEAP,
            tool_prices={"buy": 0.5},
            ledger=store.ledger if books else None,
        )
        return create_agent(server.model(), [buy], middleware=[paying], checkpointer=saver)

    saver, on = InMemorySaver(), {"configurable": {"thread_id": "pen", "user": "ann"}}
    out: dict[str, Any] = {}
    given: Any = {"messages": [("user", "Buy a pen.")]}
    same = app()
    for turn in range(3):
        paid = same if per == "thread" else app()
        out = paid.invoke(given, on) if sync else asyncio.run(paid.ainvoke(given, on))
        assert ("__interrupt__" in out) == (turn < 2)
        given = Command(resume="yes")
    assert (out["stop_reason"], len(begun)) == ("done", 3)
    dollars = pytest.approx(0.5 + server.settled().served * 1e-7)
    assert (out["spent"]["usd"], out["spent"]["tool_calls"]) == (dollars, 2 if by_sub_agent else 1)
    if books:
        (bill,) = store.ledger.spend(["user"])
        assert (bill.spend["usd"], bill.spend["tool_calls"]) == (
            dollars,
            out["spent"]["tool_calls"],
        )
