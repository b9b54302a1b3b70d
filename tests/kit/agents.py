"""An agent whose tools call models, ask a sub-agent and run a graph, for processes that die."""

from __future__ import annotations

import random
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool

from anytime_graph import Budget, Prices, create_anytime_graph
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.server import Reply, Script

TURNS = (
    [("think", {"about": "banks"})],
    [("delegate", {"question": "What is silt?"}), ("think", {"about": "water"})],
    [("wonder", {"at": "bends"})],
)
"""What the agent calls, turn by turn."""
PRICES = Prices(input=1, output=2)
COSTS = {"think": 0.01, "delegate": 0.02}
"""What its tools cost, in US dollars."""


def built(model: Any, tokens: int, ledger: Any, saver: Any) -> Any:
    cheap = metered(model, PRICES)

    @tool
    def think(about: str) -> str:
        """Think about something."""
        return str(cheap.invoke(f"Think about {about}.").text)

    own = TokenBudgetMiddleware(
        Budget(tokens=tokens), reserve=0.3, prices=PRICES, tool_prices=COSTS
    )
    helper: Any = create_agent(cheap, [think], middleware=[own], system_prompt="You help.")
    graph: Any = create_anytime_graph(
        cheap, budget=Budget(tokens=250), strategy="self_refine", scorer=lambda q, a: 0.5
    ).compile()

    @tool
    def delegate(question: str) -> str:
        """Ask a helper."""
        return str(helper.invoke({"messages": [("user", question)]})["messages"][-1].text)

    @tool
    def wonder(at: str) -> str:
        """Wonder at something."""
        return str(graph.invoke({"messages": [("user", f"Why {at}?")]})["messages"][-1].text)

    priced: Any = {"prices": PRICES, "tool_prices": COSTS}
    budget = TokenBudgetMiddleware(Budget(tokens=tokens), ledger=ledger, **priced)
    tools = [think, delegate, wonder]
    return create_agent(model, tools, middleware=[budget], checkpointer=saver)


def working(n: int) -> Script:
    """The agent works through its turns, its helper thinks once; all else is answered in words."""

    def reply(request: dict[str, Any], i: int) -> Reply:
        messages = request["messages"]
        done = sum(m["role"] == "assistant" for m in messages)
        dice = random.Random(f"{n} {done} {messages[-1]['content']}")
        text = f"so <answer>bend {dice.randint(0, 99)}</answer> {'thus ' * dice.randint(0, 12)}"
        offered = [each["function"]["name"] for each in request.get("tools") or ()]
        if "delegate" in offered and done < len(TURNS):
            return Reply(text=text, tools=list(TURNS[done]), pace=0.0005)
        if offered == ["think"] and done == 0:
            return Reply(text="", tools=[("think", {"about": "silt"})], pace=0.0005)
        return Reply(text, pace=0.0005)

    return reply
