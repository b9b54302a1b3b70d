"""An agent with a ledger: its calls are on the bill, and a ledger that fails costs no answer."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt

from anytime_graph import Budget, LedgerError, Prices, ThreadBusy, open_checkpoints
from anytime_graph.checkpoints import Checkpoints, quotas
from anytime_graph.metering import account, clock
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.ledgers import ASK, ON, sql
from tests.kit.marks import both
from tests.kit.server import Reply, Script, Server
from tests.kit.waiting import PATIENCE, Clock

ANSWER = "Rivers bend because water erodes the outer bank."


def thinking(times: int, words: str = "") -> Script:
    """A model that has its tool called so often, then answers."""

    def reply(request: dict[str, Any], i: int) -> Reply:
        done = sum(m["role"] == "tool" for m in request["messages"])
        if request.get("tools") and done < times:
            return Reply(text=words, tools=[("think", {"about": f"bank {done}"})])
        return Reply(text=ANSWER)

    return reply


def agent(server: Server, store: Checkpoints, *inside: Any, **options: Any) -> Any:
    model = server.model(seed=0)

    @tool
    def think(about: str) -> str:
        """Think about it."""
        return str(metered(model).invoke(about).text)

    options = {"budget": Budget(tokens=20_000), **options}
    tools = options.pop("tools", [think])
    budget = TokenBudgetMiddleware(options.pop("budget"), ledger=store.ledger, **options)
    return create_agent(model, tools, middleware=[budget, *inside], checkpointer=store.saver)


def run(app: Any, given: Any, sync: bool, on: Any = ON) -> dict[str, Any]:
    out = app.invoke(given, on) if sync else asyncio.run(app.ainvoke(given, on))
    assert isinstance(out, dict)
    return out


def test_an_agents_calls_are_on_the_bill(server: Server, store: Checkpoints) -> None:
    server.script = thinking(2)
    app = agent(server, store, prices=Prices(input=1, output=2), tool_prices={"think": 0.01})
    config: Any = {"configurable": {"thread_id": "rivers", "user": "ann"}}
    out = run(app, ASK, True, config)
    (shown,) = store.ledger.runs("rivers")
    assert shown["spent"] == out["spent"]
    assert (shown["model"], shown["stop_reason"]) == ("scripted", "done")
    assert out["spent"]["tokens"] == server.settled().served
    assert out["spent"]["usd"] > 0.02
    by_node = {bill.of["node"]: bill.spend for bill in store.ledger.spend(["user", "node"])}
    assert {node: spend["calls"] for node, spend in by_node.items()} == {
        "agent": 3,
        "tool": 2,
        "tool_call": 0,
    }
    assert by_node["tool_call"]["usd"] == pytest.approx(0.02)
    by_tool = {bill.of["tool"]: bill.spend for bill in store.ledger.spend(["tool"])}
    assert by_tool["think"]["usd"] == pytest.approx(0.02)
    assert {tool: spend["tool_calls"] for tool, spend in by_tool.items()} == {None: 0, "think": 2}
    assert by_tool[None]["tokens"] == out["spent"]["tokens"]
    by_both = [tuple(bill.of.values()) for bill in store.ledger.spend(["model", "tool"])]
    assert sorted(by_both, key=str) == [("scripted", None), (None, "think")]
    taken: list[dict[str, Any]] = []
    assert store.ledger.deliver(taken.append) == 7
    assert store.ledger.deliver(taken.append) == 0
    assert {row["user"] for row in taken} == {"ann"}
    assert {(row["node"], row["tool"]) for row in taken} == {
        ("agent", None),
        ("tool", None),
        ("tool_call", "think"),
    }
    assert sum(row["tokens"] for row in taken) == server.served


def test_an_agents_thread_is_told_to_be_running_while_it_is(
    server: Server, store: Checkpoints
) -> None:
    server.script, seen = thinking(1), []

    @tool
    def think(about: str) -> str:
        """Think about it."""
        seen.extend(row["running"] for row in store.ledger.threads())
        return "It bends."

    run(agent(server, store, tools=[think]), ASK, True)
    assert seen == [True]
    assert [row["running"] for row in store.ledger.threads()] == [False]


def test_a_thread_that_is_forgotten_leaves_no_lease_of_its_agent(
    server: Server, store: Checkpoints, target: str
) -> None:
    """A kill leaves one, and its name holds the thread's."""
    server.script = thinking(0)
    run(agent(server, store), ASK, True)
    (shown,) = store.ledger.runs("rivers")
    store.ledger.leases.enter(f"rivers {shown['asked'][:18]}", object())
    leases = "SELECT count(*) FROM leases WHERE thread LIKE 'rivers%'"
    assert sql(target, leases) == [(1,)]
    assert store.ledger.forget("rivers")
    assert sql(target, leases) == [(0,)]


@both
def test_a_tools_time_is_in_the_spend_and_on_the_bill(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    ahead = Clock()
    for module in (account, clock):
        monkeypatch.setattr(module, "time", ahead)

    @tool
    def think(about: str) -> str:
        """Think about it for long."""
        ahead.ahead += 100
        return "It bends."

    async def alive() -> tuple[Any, Any]:
        async with open_checkpoints(tmp_path / "a.db") as store:
            out = await agent(server, store, tools=[think]).ainvoke(ASK, ON)
            return out, store.ledger.runs("rivers")

    server.script = thinking(2)
    if sync:
        with open_checkpoints(tmp_path / "a.db") as store:
            out = run(agent(server, store, tools=[think]), ASK, True)
            shown = store.ledger.runs("rivers")
    else:
        out, shown = asyncio.run(alive())
    assert out["spent"]["seconds"] >= 200
    assert [row["spent"] for row in shown] == [out["spent"]]


def test_the_same_question_later_on_is_asked_again(server: Server, store: Checkpoints) -> None:
    server.script = thinking(1)
    app = agent(server, store, per="thread")
    first = run(app, ASK, True)
    second = run(app, ASK, True)
    assert first["spent"]["calls"] == 3
    assert second["spent"]["calls"] == 4
    assert second["spent"]["tokens"] == server.settled().served
    assert len(store.ledger.runs("rivers")) == 2


def test_a_run_goes_on_when_its_question_is_asked_again(server: Server, store: Checkpoints) -> None:
    """A tool that fails leaves it open; a model's error ends it, with its budget."""
    server.script = thinking(1)

    @tool
    def think(about: str) -> str:
        """Think about it."""
        raise OSError("a cable is out")

    with pytest.raises(OSError, match="cable"):
        run(agent(server, store, tools=[think]), ASK, True)
    out = run(agent(server, store), ASK, True)
    (shown,) = store.ledger.runs("rivers")
    assert out["spent"] == shown["spent"]
    assert out["spent"]["tokens"] == server.settled().served
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "ai"]
    assert len(server.calls) == 3, "the first turn is paid"
    server.script = lambda request, i: Reply(text="", error="drop")
    asked: Any = {"messages": [("user", "Why do rivers freeze?")]}
    for _ in range(2):
        with pytest.raises(openai.APIError):
            run(agent(server, store), asked, True)
    first, second = store.ledger.runs("rivers")[1:]
    assert first["spent"]["calls"] == second["spent"]["calls"] == 1


@both
def test_an_approval_may_come_at_once(server: Server, tmp_path: Path, sync: bool) -> None:
    server.script = thinking(1)
    inside = HumanInTheLoopMiddleware(interrupt_on={"think": True})
    approve: Any = Command(resume={"decisions": [{"type": "approve"}]})

    async def alive() -> dict[str, Any]:
        async with open_checkpoints(tmp_path / "a.db") as store:
            app = agent(server, store, inside)
            assert "__interrupt__" in await app.ainvoke(ASK, ON)
            out: dict[str, Any] = await app.ainvoke(approve, ON)
            return out

    if sync:
        with open_checkpoints(tmp_path / "a.db") as store:
            app = agent(server, store, inside)
            assert "__interrupt__" in app.invoke(ASK, ON)
            out = app.invoke(approve, ON)
    else:
        out = asyncio.run(alive())
    assert out["messages"][-1].text == ANSWER
    assert out["spent"]["calls"] == 3
    assert out["spent"]["tokens"] == server.settled().served


def test_tools_that_ask_a_human_side_by_side_leave_the_run_to_those_at_work(
    server: Server, store: Checkpoints
) -> None:
    at_work, asked, asked_later = (threading.Event() for _ in range(3))

    class Order(AgentMiddleware):
        """Tool "second" begins after "first" has asked, and "think" calls its model after both have."""

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            if request.tool_call["name"] == "second":
                assert asked.wait(PATIENCE)
            try:
                return handler(request)
            finally:
                asked.set()
                if request.tool_call["name"] == "second":
                    asked_later.set()

    @tool
    def first() -> str:
        """Ask."""
        assert at_work.wait(PATIENCE)
        return str(interrupt("first?"))

    @tool
    def second() -> str:
        """Ask later."""
        return str(interrupt("second?"))

    @tool
    def think() -> str:
        """Think, while others ask."""
        at_work.set()
        assert asked_later.wait(PATIENCE)
        with ThreadPoolExecutor(1) as elsewhere, pytest.raises(ThreadBusy):
            elsewhere.submit(app.invoke, None, ON).result()
        return str(metered(server.model()).invoke("rivers").text)

    def script(request: dict[str, Any], i: int) -> Reply:
        done = any(m["role"] == "tool" for m in request["messages"])
        calls: list[Any] = [(name, {}) for name in ("first", "second", "think")]
        return Reply(text="", tools=calls) if request.get("tools") and not done else Reply(ANSWER)

    server.script = script
    budget = TokenBudgetMiddleware(Budget(tokens=20_000), ledger=store.ledger)
    app: Any = create_agent(
        server.model(),
        [first, second, think],
        middleware=[Order(), budget],
        checkpointer=store.saver,
    )
    out = run(app, ASK, True)
    while "__interrupt__" in out:
        answers = {each.id: "yes" for each in out["__interrupt__"]}
        out = run(app, Command(resume=answers), True)
    assert out["stop_reason"] == "done"
    assert out["spent"]["calls"] == len(server.settled().calls) == 3
    assert out["spent"]["tokens"] == server.served


def test_what_a_tool_paid_before_it_asked_a_human_is_told_as_its_own(
    server: Server, store: Checkpoints
) -> None:
    model = server.model(seed=0)

    @tool
    def think(about: str) -> str:
        """Think about it, and have it approved."""
        return metered(model).invoke(about).text + str(interrupt("so?"))

    server.script = thinking(1)
    app = agent(server, store, tools=[think])
    assert "__interrupt__" in run(app, ASK, True)
    out = run(app, Command(resume="yes"), True)
    assert len(server.settled().calls) == 3
    by = {name: spend["tokens"] for name, spend in out["spent_by"].items()}
    assert by["think"] == server.calls[1].served
    assert sum(by.values()) == out["spent"]["tokens"] == server.served


def test_agents_that_a_graph_asks_the_same_at_once_have_runs_of_their_own(
    server: Server, store: Checkpoints
) -> None:
    server.script = lambda request, i: Reply(f"Reason {i}.")
    budget = TokenBudgetMiddleware(Budget(tokens=2_000), ledger=store.ledger)
    asked: Any = create_agent(server.model(), [], middleware=[budget])
    graph = StateGraph(MessagesState)
    graph.add_node("asked", asked)
    graph.add_conditional_edges(START, lambda state: [Send("asked", ASK) for _ in range(3)])
    out = run(graph.compile(store.saver), {"messages": []}, True)
    answers = [m.text for m in out["messages"] if m.type == "ai"]
    assert sorted(answers) == ["Reason 0.", "Reason 1.", "Reason 2."]
    (billed,) = store.ledger.spend(["model"])
    assert billed.spend["tokens"] == server.settled().served


def test_one_invocation_at_a_time_is_at_work_on_a_question(
    server: Server, store: Checkpoints
) -> None:
    release = threading.Event()

    def held(request: dict[str, Any], i: int) -> Reply:
        release.wait(PATIENCE)
        return Reply(text=ANSWER)

    server.script = held
    app = agent(server, store)
    outs: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: outs.append(run(app, ASK, True)))
    first.start()
    with server.changed:
        assert server.changed.wait_for(lambda: server.calls, PATIENCE)
    with pytest.raises(ThreadBusy):
        agent(server, store).invoke(None, ON)
    release.set()
    first.join(PATIENCE)
    assert outs[0]["messages"][-1].text == ANSWER
    assert len(server.settled().calls) == 1


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("fresh", [60.0, 0.0])
def test_a_ledger_that_fails_in_mid_run_costs_no_answer(
    server: Server,
    tmp_path: Path,
    sync: bool,
    at: int,
    fresh: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fails while the model or the tool is under way, and stays so. fresh: how long it is known what quotas
    there are."""
    monkeypatch.setattr(quotas, "_FRESH", fresh)
    usual, broken = thinking(50), threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        if i == at:
            broken.set()
        return usual(request, i)

    server.script = script

    async def alive() -> dict[str, Any]:
        async with open_checkpoints(tmp_path / "anytime.db") as store:
            fail_once_set(store, broken, monkeypatch)
            out: dict[str, Any] = await agent(server, store).ainvoke(ASK, ON)
            broken.clear()
            return out

    if sync:
        with open_checkpoints(tmp_path / "anytime.db") as store:
            fail_once_set(store, broken, monkeypatch)
            out = agent(server, store).invoke(ASK, ON)
            broken.clear()
    else:
        out = asyncio.run(alive())
    assert out["messages"][-1].text == ANSWER
    assert out["stop_reason"] == "error: LedgerError"
    assert out["spent"]["tokens"] == server.settled().served
    assert len(server.calls) == at + 2  # the one under way, and the last one


@both
def test_a_ledger_that_fails_as_the_last_call_begins_costs_no_answer(
    server: Server, tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget has ended the turns; what is kept for the last call buys the answer all the same."""
    server.script, broken = thinking(50), threading.Event()

    class Breaks(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            if not request.tools:
                broken.set()
            return handler(request)

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            if not request.tools:
                broken.set()
            return await handler(request)

    async def alive() -> dict[str, Any]:
        async with open_checkpoints(tmp_path / "anytime.db") as store:
            fail_once_set(store, broken, monkeypatch)
            asked = agent(server, store, Breaks(), budget=Budget(tokens=20_000, calls=4))
            out: dict[str, Any] = await asked.ainvoke(ASK, ON)
            broken.clear()
            return out

    if sync:
        with open_checkpoints(tmp_path / "anytime.db") as store:
            fail_once_set(store, broken, monkeypatch)
            asked = agent(server, store, Breaks(), budget=Budget(tokens=20_000, calls=4))
            out = asked.invoke(ASK, ON)
            broken.clear()
    else:
        out = asyncio.run(alive())
    assert out["messages"][-1].text == ANSWER
    assert out["stop_reason"] == "calls"
    assert out["spent"]["tokens"] == server.settled().served
    assert out["spent"]["calls"] == len(server.calls) <= 4


def fail_once_set(
    store: Checkpoints, broken: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's database can neither be read nor written once this is set."""
    kept = store.ledger.store

    def failing(name: str) -> Any:
        usual = getattr(kept, name)

        def may_fail(*given: Any, **named: Any) -> Any:
            if broken.is_set():
                raise LedgerError("the disk is full")
            return usual(*given, **named)

        return may_fail

    for name in ("transaction", "reading"):
        monkeypatch.setattr(kept, name, failing(name))
