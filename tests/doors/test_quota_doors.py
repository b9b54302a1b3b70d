"""Quotas at the other doors: the chat model, agents, and what clients may ask of a served graph."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool

from anytime_graph import (
    Budget,
    Prices,
    Quota,
    QuotaExceeded,
    create_anytime_graph,
    open_checkpoints,
)
from anytime_graph.budget import nothing
from anytime_graph.chat import ChatAnytime
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.checkpoints.quotas import Payers
from anytime_graph.metering.request import Request
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.ledgers import ASK, sql
from tests.kit.marks import both
from tests.kit.server import Reply, Server, by_place
from tests.kit.waiting import PATIENCE

PER_USER = Quota(Budget(tokens=1_000), per="user", window="1d")


def booked(target: str) -> int:
    ((tokens,),) = sql(target, "SELECT sum(tokens) FROM quota_steps")
    return int(tokens)


def exceeded(ask: Callable[[str], Any]) -> QuotaExceeded:
    """Ann asks until her quota is used up."""
    for _ in range(20):
        try:
            ask("ann")
        except QuotaExceeded as full:
            return full
    raise AssertionError("the quota holds nobody")


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("chained", [False, True])
def test_a_chat_model_keeps_to_quotas(
    server: Server, store: Checkpoints, target: str, sync: bool, chained: bool
) -> None:
    server.script = by_place
    chat = ChatAnytime(
        model=server.model(seed=0),
        budget=Budget(tokens=400),
        strategy="best_of_n",
        ledger=store.ledger,
        quotas=[Quota(Budget(tokens=300), per="user", window="1d")],
    )

    asked: Any = ChatPromptTemplate([("user", "{text}")]) | chat if chained else chat

    def ask(user: str) -> Any:
        config: Any = {"metadata": {"user": user}}
        if sync:
            return asked.invoke("Why do rivers bend?", config)
        return asyncio.run(asked.ainvoke("Why do rivers bend?", config))

    full = exceeded(ask)
    assert full.who == "ann"
    assert 200 < booked(target) == server.settled().served <= 300
    assert ask("bob").text
    (ann, _) = sorted(store.ledger.spend(["user"]), key=lambda bill: str(bill.of["user"]))
    assert ann.of == {"user": "ann"}
    assert ann.spend["tokens"] <= 300
    with pytest.raises(ValueError, match="must know whose the call is"):
        chat.invoke("Why do rivers bend?")


@pytest.mark.pairwise
@both
def test_an_agent_keeps_to_quotas_with_its_tools(
    server: Server, store: Checkpoints, target: str, sync: bool
) -> None:
    """Its model calls a tool for ever, and the tool calls a model."""

    def script(request: dict[str, Any], i: int) -> Reply:
        tools = [("think", {"about": "rivers"})] if request.get("tools") else []
        return Reply(text="They bend because water wears banks away.", tools=tools)

    server.script = script

    @tool
    def think(about: str) -> str:
        """Think about it."""
        return str(metered(server.model()).invoke(about).text)

    budget = TokenBudgetMiddleware(Budget(tokens=100_000), quotas=[PER_USER], ledger=store.ledger)
    agent: Any = create_agent(server.model(), [think], middleware=[budget])

    def ask(user: str) -> Any:
        config: Any = {"configurable": {"user": user}, "recursion_limit": 200}
        return agent.invoke(ASK, config) if sync else asyncio.run(agent.ainvoke(ASK, config))

    out = ask("ann")
    assert out["stop_reason"] == "quota"
    assert out["messages"][-1].text
    assert 500 < booked(target) == server.settled().served <= 1_000
    served = server.served
    exceeded(ask)
    assert served <= booked(target) == server.settled().served <= 1_000
    assert sql(target, "SELECT * FROM quota_holds") == []


@pytest.mark.parametrize(
    "limit",
    [
        *({"calls": n} for n in (1, 2, 3, 4)),
        *({"tokens": n} for n in (300, 450, 700, 1_200)),
        {"output_tokens": 60},
        {"tool_calls": 2},
        {"calls": 3, "tokens": 400},
    ],
    ids=str,
)
@both
def test_an_agent_answers_whatever_quota_ends_it(
    server: Server, store: Checkpoints, limit: dict[str, int], sync: bool
) -> None:
    """It keeps of a quota, as of its budget, what its last call needs."""

    def script(request: dict[str, Any], i: int) -> Reply:
        tools = [("look", {"at": f"bend {i}"})] if request.get("tools") else []
        return Reply(text="" if tools else "Water wears banks away.", tools=tools)

    @tool
    def look(at: str) -> str:
        """Look at it."""
        return f"{at}: erosion"

    server.script = script
    quota = Quota(Budget(**limit), per="user", window="1d")
    for own in (Budget(tokens=9_000), Budget(calls=9), Budget(tool_calls=9)):
        middleware = TokenBudgetMiddleware(own, quotas=[quota], ledger=store.ledger)
        agent: Any = create_agent(server.model(), [look], middleware=[middleware])
        config: Any = {"configurable": {"user": str(own)}, "recursion_limit": 200}
        out = agent.invoke(ASK, config) if sync else asyncio.run(agent.ainvoke(ASK, config))
        assert out["messages"][-1].text == "Water wears banks away."
        assert out["stop_reason"] == "quota"
        spent = out["spent"]
        assert all(spent[dimension] <= most for dimension, most in limit.items())


@both
def test_an_agent_in_a_tool_leaves_its_callers_last_call_to_the_quota(
    server: Server, store: Checkpoints, sync: bool
) -> None:
    """Of six calls the caller makes one, the agent in its tool two or three and its last, the caller its last."""

    def script(request: dict[str, Any], i: int) -> Reply:
        tools = [(t["function"]["name"], {"at": f"bend {i}"}) for t in request.get("tools") or []]
        return Reply(text="" if tools else "Water wears banks away.", tools=tools)

    server.script = script

    @tool
    def peek(at: str) -> str:
        """Peek at it."""
        return f"{at}: erosion"

    inner: Any = create_agent(
        server.model(), [peek], middleware=[TokenBudgetMiddleware(Budget(calls=9))]
    )

    @tool
    def look(at: str) -> str:
        """Look at it."""
        return str(inner.invoke({"messages": [("user", at)]})["messages"][-1].text)

    for most in (3, 4, 6):
        quota = Quota(Budget(calls=most), per="user", window="1d")
        middleware = TokenBudgetMiddleware(
            Budget(tokens=90_000), quotas=[quota], ledger=store.ledger
        )
        agent: Any = create_agent(server.model(), [look], middleware=[middleware])
        config: Any = {"configurable": {"user": f"ann {most}"}, "recursion_limit": 200}
        out = agent.invoke(ASK, config) if sync else asyncio.run(agent.ainvoke(ASK, config))
        assert out["messages"][-1].text == "Water wears banks away."
        looked = [m.text for m in out["messages"] if m.type == "tool"]
        assert looked == ["Water wears banks away."]
        assert (out["stop_reason"], out["spent"]["calls"]) == ("quota", most)


class TestTools:
    """Ann's agent searches, for a cent each time, over several runs."""

    def app(self, server: Server, store: Checkpoints, ran: list[str], budget: Budget) -> Any:
        def script(request: dict[str, Any], i: int) -> Reply:
            done = sum(m["role"] == "tool" for m in request["messages"])
            tools = [("search", {"q": "bend"})] if request.get("tools") and done < 2 else []
            return Reply(text="They bend because water wears banks away.", tools=tools)

        @tool
        def search(q: str) -> str:
            """Search the web."""
            ran.append(q)
            return "erosion"

        server.script = script
        middleware = TokenBudgetMiddleware(
            Budget(tokens=100_000),
            quotas=[Quota(budget, per="user", window="day")],
            ledger=store.ledger,
            prices=Prices(input=0.1, output=0.1),
            tool_prices={"search": 0.01},
        )
        return create_agent(server.model(), [search], middleware=[middleware])

    def asked(self, app: Any, sync: bool, user: str = "ann") -> Any:
        config: Any = {"configurable": {"user": user}}
        return app.invoke(ASK, config) if sync else asyncio.run(app.ainvoke(ASK, config))

    @pytest.mark.pairwise
    @both
    def test_what_they_cost_is_in_a_quota_of_dollars(
        self, server: Server, store: Checkpoints, target: str, sync: bool
    ) -> None:
        ran: list[str] = []
        app = self.app(server, store, ran, Budget(usd=0.035))
        outs = [self.asked(app, sync) for _ in range(2)]
        said = [m.text for m in outs[1]["messages"] if m.type == "tool"]
        assert said[0] == "erosion"
        assert said[1].startswith("Not done: the quota of usd=0.035 per user in day (user 'ann')")
        assert "it does again at" in said[1]
        assert [out["stop_reason"] for out in outs] == ["done", "done"]
        assert len(ran) == 3
        ((nanodollars, tool_calls),) = sql(
            target, "SELECT sum(nanodollars), sum(tool_calls) FROM quota_steps"
        )
        billed = sum(bill.spend["usd"] for bill in store.ledger.spend(["user"]))
        assert nanodollars == round(billed * 1e9) == round(0.03e9 + server.settled().served * 100)
        assert tool_calls == 3
        self.asked(app, sync, "bob")
        assert len(ran) == 5

    @pytest.mark.pairwise
    @both
    def test_a_quota_of_tool_calls_holds_over_all_runs(
        self, server: Server, store: Checkpoints, target: str, sync: bool
    ) -> None:
        ran: list[str] = []
        app = self.app(server, store, ran, Budget(tool_calls=3))
        outs = [self.asked(app, sync) for _ in range(2)]
        assert [out["stop_reason"] for out in outs] == ["done", "quota"]
        assert all(out["messages"][-1].text for out in outs)
        assert (len(ran), sql(target, "SELECT sum(tool_calls) FROM quota_steps")) == (3, [(3,)])

    @both
    def test_a_tool_waits_for_what_calls_elsewhere_give_back(
        self, server: Server, store: Checkpoints, target: str, sync: bool
    ) -> None:
        ran: list[str] = []
        app = self.app(server, store, ran, Budget(usd=0.03))
        held: Any = {**nothing(), "usd": 0.025, "calls": 1}
        bounded = Request(prompt=[], max_input=0, max_output=1)
        book, asked = Payers.book, threading.Event()
        quota = Quota(Budget(usd=0.03), per="user", window="day")
        payers = store.ledger.paying([quota], {"user": "ann"}.get)
        assert payers is not None

        def noted(payers: Payers, execute: Any, amounts: Any, *more: Any) -> Any:
            if amounts["tool_calls"]:
                asked.set()
            return book(payers, execute, amounts, *more)

        with open_checkpoints(target) as opened, ThreadPoolExecutor() as pool:
            other = opened.ledger.paying([quota], {"user": "ann"}.get)
            assert other is not None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Payers, "book", noted)
                with opened.ledger.store.transaction() as execute:
                    other.hold(execute, "elsewhere", bounded, held)
                running = pool.submit(self.asked, app, sync)
                assert asked.wait(PATIENCE)
                assert not ran
                with opened.ledger.store.transaction() as execute:
                    other.settle(execute, "elsewhere", nothing())
                out = running.result()
        assert (len(ran), out["stop_reason"]) == (2, "done")


def test_quotas_need_a_ledger(server: Server) -> None:
    model = server.model()
    for make in (
        lambda: create_anytime_graph(model, budget=Budget(calls=1), quotas=[PER_USER]),
        lambda: TokenBudgetMiddleware(Budget(calls=1), quotas=[PER_USER]),
        lambda: ChatAnytime(model=model, budget=Budget(calls=1), quotas=[PER_USER]),
    ):
        with pytest.raises(ValueError, match="quotas: their books are kept in a ledger"):
            make()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window": "1w"}, "quota window='1w': a length such as"),
        ({"window": "0d"}, "quota window='0d'"),
        ({"window": "day", "per": "a user"}, "quota per='a user': the name of a key"),
        ({"window": "day", "budget": Budget(seconds=5)}, "quota seconds: it is for one run"),
    ],
)
def test_a_bad_quota_is_explained(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Quota(**{"budget": Budget(calls=1), **arguments})


# --- most


class TestMost:
    def asked(self, server: Server, given: Any, context: Any = None, **more: Any) -> Any:
        server.script = by_place
        user = more.pop("user", None)
        options = {"budget": Budget(calls=2), "strategy": "best_of_n", "scorer": lambda q, a: 0.5}
        app = create_anytime_graph(server.model(seed=0), **{**options, **more}).compile()
        config: Any = {"configurable": {"langgraph_auth_user": user} if user else {}}
        return app.invoke({**ASK, **given}, config, context=context)

    @pytest.mark.parametrize("way", ["input", "context"])
    def test_nobody_gets_more(self, server: Server, way: str) -> None:
        for budget, said in (
            ({"calls": 9}, "budget calls=9: at most tokens=900, calls=4 may be asked for"),
            ({"calls": 1, "tokens": 901}, "budget tokens=901: at most"),
        ):
            given = ({"budget": budget}, None) if way == "input" else ({}, {"budget": budget})
            with pytest.raises(ValueError, match=said):
                self.asked(server, *given, most=Budget(calls=4, tokens=900))
        assert not server.calls

    def test_a_dimension_that_is_left_out_is_bounded_too(self, server: Server) -> None:
        most = Budget(calls=4, tokens=900)
        out = self.asked(server, {"budget": {"tokens": 800}}, most=most)
        assert (out["limits"], out["spent"]["calls"]) == ({"tokens": 800, "calls": 4}, 4)
        assert self.asked(server, {}, most=most)["limits"] == {"calls": 2}

    def test_to_think_on_is_asking_too(self, server: Server, store: Checkpoints) -> None:
        server.script = by_place
        app = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(calls=2),
            most=Budget(calls=3),
            strategy="best_of_n",
            scorer=lambda q, a: 0.5,
            ledger=store.ledger,
        ).compile(store.saver)
        on: Any = {"configurable": {"thread_id": "t"}}
        app.invoke(ASK, on)
        with pytest.raises(ValueError, match="budget calls=4: at most calls=3"):
            app.invoke({"budget": {"calls": 4}}, on)
        assert app.invoke({"budget": {"calls": 3}}, on)["limits"] == {"calls": 5}

    def test_a_served_graph_gives_no_more_than_its_own_budget(self, server: Server) -> None:
        more, less = {"budget": {"calls": 3}}, {"budget": {"calls": 1}}
        ann = SimpleNamespace(identity="ann")
        with pytest.raises(ValueError, match="at most calls=2 may be asked for"):
            self.asked(server, more, user=ann)
        assert self.asked(server, less, user=ann)["spent"]["calls"] == 1
        assert self.asked(server, more)["spent"]["calls"] == 3
        assert self.asked(server, more, user=ann, most=Budget(calls=3))["spent"]["calls"] == 3
