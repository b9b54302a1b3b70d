"""What runs within a tool is paid and billed once, whatever it is and whoever keeps its books."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from anytime_graph import Budget, NoAnswer, Prices, Quota, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.ledgers import ASK, sql
from tests.kit.marks import both
from tests.kit.server import Reply, Server

ON: Any = {"configurable": {"thread_id": "t", "user": "ann"}}


def script(request: dict[str, Any], i: int) -> Reply:
    """The outer agent uses its tool once; all else is answered at once."""
    asked = any(m["role"] == "tool" for m in request["messages"])
    tools = [("dig", {"deep": "as deep as you can"})] if request.get("tools") and not asked else []
    return Reply(text=f"<answer>{i}</answer>", tools=tools)


def inner(kind: str, model: Any, ledger: dict[str, Any]) -> tuple[Any, Any]:
    """What the tool uses, and what its output looks like to it."""
    best: Any = {"strategy": "best_of_n", "scorer": lambda q, a: 0.5, **ledger}
    if kind == "model":
        return model, lambda out: out.text
    if kind == "chat":
        return ChatAnytime(model=model, budget=Budget(calls=3), **best), lambda out: out.text
    if kind == "agent":
        limited = TokenBudgetMiddleware(Budget(calls=2), **ledger)
        used: Any = create_agent(model, middleware=[limited])
    else:
        used = create_anytime_graph(model, budget=Budget(calls=3), **best).compile()
    return used, lambda out: out["messages"][-1].text


@both
@pytest.mark.pairwise
@pytest.mark.parametrize("own", [True, False], ids=["own_books", "no_books"])
@pytest.mark.parametrize("kind", ["model", "chat", "agent", "graph"])
@pytest.mark.parametrize("outer", ["agent", "draft", "draft_with_budget"])
def test_it_is_paid_and_billed_once(
    server: Server,
    store: Checkpoints,
    target: str,
    outer: str,
    kind: str,
    own: bool,
    sync: bool,
) -> None:
    server.script = script
    quotas = [Quota(Budget(tokens=90_000), per="user", window="1d")]
    ledger = store.ledger
    ledger.quotas.keep(Quota(Budget(tokens=80_000), window="1d"))
    used, text_of = inner(kind, metered(server.model()), {"ledger": ledger} if own else {})
    elsewhere: Any = {"configurable": {"user": "bob"}} if kind == "graph" else None

    def given(deep: str) -> Any:
        return {"messages": [("user", deep)]} if kind in ("agent", "graph") else deep

    if sync:

        @tool
        def dig(deep: str) -> str:
            """Dig."""
            return str(text_of(used.invoke(given(deep), elsewhere)))
    else:

        @tool
        async def dig(deep: str) -> str:
            """Dig."""
            return str(text_of(await used.ainvoke(given(deep), elsewhere)))

    books: Any = {"ledger": ledger, "quotas": quotas}
    if outer == "agent":
        limited = TokenBudgetMiddleware(Budget(tokens=60_000), **books)
        app: Any = create_agent(server.model(), [dig], middleware=[limited])
    else:
        inside = [TokenBudgetMiddleware(Budget(tokens=30_000))] if "_" in outer else []
        app = create_anytime_graph(
            server.model(),
            budget=Budget(tokens=60_000),
            strategy="single",
            drafter=lambda model: create_agent(model, [dig], middleware=inside),
            **books,
        ).compile()
    out = app.invoke(ASK, ON) if sync else asyncio.run(app.ainvoke(ASK, ON))
    served = server.settled().served
    assert len(server.calls) >= 3
    assert out["spent"]["tokens"] == served
    bills = {bill.of["user"]: bill.spend["tokens"] for bill in ledger.spend(["user"])}
    assert sum(bills.values()) == served
    assert sql(target, "SELECT sum(tokens) FROM bills") == [(served,)]
    paid = sql(
        target,
        "SELECT a.per, a.who, sum(s.tokens) FROM quota_steps s JOIN quota_accounts a "
        "ON a.id = s.account_id GROUP BY a.per, a.who ORDER BY a.per",
    )
    assert paid == [("", "", served), ("user", "ann", served)]
    delivered: list[Any] = []
    ledger.deliver(delivered.append)
    assert sum(row["tokens"] for row in delivered) == served


def test_a_call_that_nobody_can_pay_for_is_named(server: Server) -> None:
    """Neither of the reasons is the provider's, so each is told in full, and no request is made."""
    server.script = script
    graph = create_anytime_graph(metered(server.model()), budget=Budget(tokens=2_000)).compile()

    @tool
    def dig(deep: str) -> str:
        """Dig."""
        return str(graph.invoke({"messages": [("user", deep)]})["best"]["answer"])

    limited = TokenBudgetMiddleware(Budget(usd=1), prices=Prices(input=1, output=1))
    app = create_agent(server.model(), [dig], middleware=[limited])
    told = r"the price of 'scripted' is not known; pass prices=Prices"
    with pytest.raises(NoAnswer, match=told) as failure:
        app.invoke(ASK)
    assert len(server.calls) == 1
    assert len(failure.value.causes) == 1, "all drafts are one request"
