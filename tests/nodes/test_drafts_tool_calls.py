"""The tool calls of agents that draft count against the budget of the run, and against quotas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from anytime_graph import Budget, Prices, Quota, Until, create_anytime_graph, open_checkpoints
from anytime_graph.chat import ChatAnytime
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from anytime_graph.planning.moves import Draft, Stop
from tests.kit.forks import prepared
from tests.kit.kills import NEVER, Doom, ended, struck
from tests.kit.ledgers import sql
from tests.kit.marks import both
from tests.kit.server import Reply, Server, serving

ASK: Any = {"messages": [("user", "Why do rivers bend?")]}
ON: Any = {"configurable": {"thread_id": "rivers", "user": "ann"}}


def asking(batches: list[int]) -> Any:
    """A model whose drafts ask for so many searches in their turns, and then answer."""

    def script(request: dict[str, Any], i: int) -> Reply:
        turn = sum(m["role"] == "assistant" for m in request["messages"])
        n = batches[turn] if request.get("tools") and turn < len(batches) else 0
        told = f"<answer>{i % 3}</answer>"
        return Reply(text=told, tools=[("search", {"q": "bend"})] * n)

    return script


PRICES = Prices(input=0.1, output=0.1)


def drafting(server: Server, ran: list[str], inside: Any = (), **how: Any) -> Any:
    @tool
    def search(q: str) -> str:
        """Search the web."""
        ran.append(q)
        return "erosion"

    def drafter(model: Any) -> Any:
        return create_agent(model, [search], middleware=[make() for make in inside])

    how = {"strategy": "best_of_n", "scorer": lambda q, a: int(a) / 10, "drafter": drafter} | how
    return create_anytime_graph(server.model(), **how).compile()


@settings(max_examples=8, deadline=None)
@given(
    batches=st.lists(st.integers(0, 6), max_size=3),
    most=st.integers(0, 7),
    sync=st.booleans(),
    own=st.sampled_from([None, 2]),
    strategy=st.sampled_from(["best_of_n", "self_refine"]),
)
def test_drafts_side_by_side_never_exceed_the_tool_calls_and_each_is_counted_once(
    batches: list[int], most: int, sync: bool, own: int | None, strategy: str
) -> None:
    """own: tool calls that a middleware in the drafting agent allows it."""
    ran: list[str] = []
    inside = () if own is None else (lambda: TokenBudgetMiddleware(Budget(tool_calls=own)),)
    with serving() as server:
        server.script = asking(batches)
        budget = Budget(calls=12, tool_calls=most)
        app = drafting(server, ran, inside, budget=budget, strategy=strategy)
        out = app.invoke(ASK) if sync else asyncio.run(app.ainvoke(ASK))
        assert len(ran) <= most
        assert out["spent"]["tool_calls"] == len(ran) or own is not None
        assert out["spent"]["tool_calls"] <= most
        assert out["spent"]["tokens"] == server.settled().served
        assert out["best"]["answer"].isdigit()
        assert out["stop_reason"] == "calls"


def test_a_tool_call_is_counted_once_where_the_drafting_agent_has_a_budget_of_its_own(
    server: Server,
) -> None:
    ran: list[str] = []
    server.script = asking([1, 1, 1])
    inside = [lambda: TokenBudgetMiddleware(Budget(tool_calls=2))]
    out = drafting(
        server, ran, inside, budget=Budget(calls=4, tool_calls=9), strategy="single"
    ).invoke(ASK)
    assert (len(ran), out["spent"]["tool_calls"]) == (2, 3)
    assert out["spent_by"]["draft"] == out["spent"] | {
        "seconds": out["spent_by"]["draft"]["seconds"]
    }


@pytest.mark.parametrize(("most", "each"), [(5, [1, 2, 2]), (1, [0, 0, 1]), (20, [4, 4, 4])])
def test_drafts_of_one_step_share_out_the_tool_calls(
    server: Server, most: int, each: list[int]
) -> None:
    ran: list[str] = []
    server.script = asking([4])

    def three(view: Any) -> list[Any]:
        return [Stop()] if view.candidates else [Draft()] * 3

    budget = Budget(tokens=30_000, tool_calls=most)
    out = drafting(server, ran, budget=budget, strategy=three).invoke(ASK)
    assert len(out["candidates"]) == 3
    assert (len(ran), out["spent"]["tool_calls"]) == (sum(each), sum(each))


def test_without_tool_calls_left_drafts_go_on_without_tools(server: Server) -> None:
    ran: list[str] = []
    server.script = asking([3])
    out = drafting(server, ran, budget=Budget(calls=6, tool_calls=0)).invoke(ASK)
    assert (ran, out["stop_reason"], out["spent"]["calls"]) == ([], "calls", 6)
    assert len(out["candidates"]) > 2


def test_a_run_with_the_tool_calls_of_another_process_goes_on(
    server: Server, tmp_path: Path
) -> None:
    """The ledger has what a lost state spent."""
    ran: list[str] = []
    server.script = asking([2])
    with open_checkpoints(tmp_path / "a.db") as store:
        app = drafting(server, ran, budget=Budget(calls=4, tool_calls=3), ledger=store.ledger)
        out = app.invoke(ASK, ON)
        again = app.invoke(ASK, ON)
        (run, *_) = store.ledger.runs("rivers")
        (bill,) = store.ledger.spend(["user"])
    assert len(ran) == 3
    for spent in (out["spent"], again["spent"], run["spent"], bill.spend):
        assert spent["tool_calls"] == 3


def test_a_quota_of_tool_calls_holds_over_runs_agents_and_users(
    server: Server, tmp_path: Path
) -> None:
    ran: list[str] = []
    server.script = asking([2])
    with open_checkpoints(tmp_path / "a.db") as store:
        quota = {"quotas": [Quota(Budget(tool_calls=3), per="user", window="1d")]}
        ledger = {"ledger": store.ledger}
        app = drafting(server, ran, budget=Budget(calls=2), **quota, **ledger)
        for thread, so_far in (("a", 2), ("b", 3), ("c", 3)):
            on = {"configurable": {"thread_id": thread, "user": "ann"}}
            out = app.invoke(ASK, on)
            assert (len(ran), out["stop_reason"]) == (so_far, "calls")

        @tool
        def search(q: str) -> str:
            """Search the web."""
            ran.append(q)
            return "erosion"

        middleware = TokenBudgetMiddleware(Budget(tokens=9_000), **quota, **ledger)
        agent = create_agent(server.model(), [search], middleware=[middleware])
        for user, n, reason in (("ann", 0, "quota"), ("bob", 2, "done")):
            ran.clear()
            out = agent.invoke(ASK, {"configurable": {"user": user}})
            assert (len(ran), out["stop_reason"]) == (n, reason)
        assert "the quota of tool calls is used up" in str(
            agent.invoke(ASK, {"configurable": {"user": "ann"}})["messages"]
        )


def test_tool_calls_alone_bound_no_call_of_a_model(server: Server) -> None:
    alone = Budget(tool_calls=5)
    with pytest.raises(ValueError, match="budget tool_calls=5: it bounds no call of the model"):
        drafting(server, [], budget=alone)
    with pytest.raises(ValueError, match="add another dimension"):
        drafting(server, [], budget=Budget(tokens=900)).invoke({**ASK, "budget": alone})
    with pytest.raises(ValueError, match="a chat model makes no tool calls itself"):
        ChatAnytime(model=server.model(), budget=alone)
    assert not server.calls


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 7])
def test_a_last_call_that_pays_for_no_tool_is_a_draft_without_tools(
    server: Server, calls: int
) -> None:
    ran: list[str] = []
    server.script = asking([1])
    out = drafting(server, ran, budget=Budget(calls=calls)).invoke(ASK)
    assert (out["spent"]["calls"], out["stop_reason"], out["errors"]) == (calls, "calls", [])
    assert (len(ran), len(out["candidates"])) == (calls // 2, (calls + 1) // 2)


def test_with_a_rule_that_ends_the_run_tool_calls_alone_are_a_budget(server: Server) -> None:
    ran: list[str] = []
    server.script = asking([2, 2])
    until = Until(target=0.2)
    out = drafting(server, ran, budget=Budget(tool_calls=3), until=until).invoke(ASK)
    assert (len(ran), out["spent"]["tool_calls"], out["stop_reason"]) == (3, 3, "target")


def test_a_graph_without_agents_runs_as_without_tool_calls(server: Server) -> None:
    server.script = lambda request, i: Reply(text="<answer>7</answer>")
    told = []
    for budget in (Budget(tokens=3_000), Budget(tokens=3_000, tool_calls=1)):
        server.calls.clear()
        app = create_anytime_graph(server.model(), budget=budget).compile()
        out = app.invoke(ASK)
        told.append((out["stop_reason"], [call.text for call in server.calls]))
    assert told[0] == told[1]


def searching(
    url: str, store: Any, quota: Budget, ran: Any = lambda q: None, calls: int = 9
) -> Any:
    """A drafting agent with a budget of its own, whose tool costs a cent and asks a model."""
    model = ChatOpenAI(model="scripted", base_url=url, api_key="none", max_retries=0)
    helper = metered(model, PRICES)

    @tool
    def search(q: str) -> str:
        """Search the web."""
        ran(q)
        return helper.invoke(f"Look up {q}.").text

    def drafter(model: Any) -> Any:
        own = TokenBudgetMiddleware(
            Budget(tokens=50_000), prices=PRICES, tool_prices={"search": 0.01}
        )
        return create_agent(model, [search], middleware=[own])

    return create_anytime_graph(
        model,
        budget=Budget(calls=calls, tokens=90_000),
        strategy="best_of_n",
        prices=PRICES,
        scorer=lambda q, a: 0.5,
        drafter=drafter,
        ledger=store.ledger,
        quotas=[Quota(quota, per="user", window="1d")],
    )


def searching_life(url: str, target: str) -> None:
    with open_checkpoints(target) as store:
        app = searching(url, store, Budget(usd=1)).compile(store.saver)
        app.invoke(None if app.get_state(ON).next else ASK, ON)


def in_quotas(target: str) -> tuple[float, int, int]:
    """US dollars, tokens and tool calls."""
    query = "SELECT sum(nanodollars) * 1e-9, sum(tokens), sum(tool_calls) FROM quota_steps"
    ((usd, tokens, tool_calls),) = sql(target, query)
    return float(usd), int(tokens), int(tool_calls)


@pytest.mark.pairwise
@both
def test_what_tools_of_drafts_spend_is_on_the_bill_and_in_quotas(
    server: Server, store: Any, target: str, sync: bool
) -> None:
    ran: list[str] = []
    server.script = asking([1])
    app = searching(server.url, store, Budget(usd=1), ran.append).compile()
    out = app.invoke(ASK, ON) if sync else asyncio.run(app.ainvoke(ASK, ON))
    assert len(ran) > 1
    served = server.settled().served
    dollars = len(ran) * 0.01 + served * 1e-7
    (run,) = store.ledger.runs("rivers")
    (bill,) = store.ledger.spend(["user"])
    for spent in (out["spent"], run["spent"], bill.spend):
        assert spent["usd"] == pytest.approx(dollars)
        assert (spent["tokens"], spent["calls"]) == (served, len(server.calls))
        assert spent["tool_calls"] == len(ran)
    (by_tool,) = (bill.spend for bill in store.ledger.spend(["tool"]) if bill.of["tool"])
    assert by_tool["usd"] == pytest.approx(len(ran) * 0.01)
    assert in_quotas(target) == (pytest.approx(dollars), served, len(ran))


@pytest.mark.pairwise
@both
def test_a_quota_of_dollars_holds_for_tools_of_drafts(
    server: Server, store: Any, target: str, sync: bool
) -> None:
    ran: list[str] = []
    server.script = asking([1])
    app = searching(server.url, store, Budget(usd=0.04), ran.append, calls=30).compile()
    out = app.invoke(ASK, ON) if sync else asyncio.run(app.ainvoke(ASK, ON))
    assert 1 <= len(ran) <= 3
    assert out["best"]["answer"]
    assert in_quotas(target)[0] == pytest.approx(out["spent"]["usd"])
    assert out["spent"]["usd"] <= 0.04


@pytest.mark.pairwise
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("event", ["asked", "ended"])
def test_tools_of_drafts_are_booked_at_a_kill_and_paid_calls_are_given_again(
    server: Server, target: str, event: str, n: int
) -> None:
    """The second request is that of a tool's model."""
    server.script = asking([1])
    for doom in (Doom(event, n, 0), NEVER):
        process = prepared(searching_life, server.url, target)
        process.start()
        with struck(server, doom, process.kill):
            code = ended(process)
    assert code == 0
    with open_checkpoints(target) as store:
        (run,) = store.ledger.runs("rivers")
        (bill,) = store.ledger.spend(["user"])
    assert len(server.calls) <= run["spent"]["calls"] == bill.spend["calls"] <= 9
    if event == "asked":  # the call that was under way is made again, maybe after one beside it
        before, *after = (call.request["messages"] for call in server.calls[n - 1 :])
        assert before in [messages[: len(before)] for messages in after]
    usd, tokens, _ = in_quotas(target)
    assert usd == pytest.approx(bill.spend["usd"]) == pytest.approx(run["spent"]["usd"])
    assert tokens == run["spent"]["tokens"] >= server.settled().served
