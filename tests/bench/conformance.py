"""What "a budget of three calls" and "a budget shared by thirty tasks" come to, by the server's books.

    python -m tests.bench.conformance [RUNS]

Two sets of scenarios that others published are run against this package and against what people use
instead. The first is that of agent-budget-semantics (PyPI): an agent that would call tools for ever,
several tools in one reply, a tool that fails, an answer in the last call. The second is the race of
arXiv 2606.04056: tasks side by side that each look at what is left, and then spend.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.tools import ToolException, tool
from langgraph.errors import GraphRecursionError
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from anytime_graph import Budget
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.server import Reply, Script, Server, serving

QUESTION: Any = {"messages": [("user", "How warm is it in the cities of the coast?")]}
LIMIT, TASKS, PER_CALL = 3, 30, 5
CALL = 24
"""Tokens of a short question and its answer, as a user would estimate them."""


@dataclass
class Tools:
    ran: int = 0
    fails: bool = False

    def weather(self) -> Any:
        @tool
        def weather(city: str) -> str:
            """The weather in a city."""
            self.ran += 1
            if self.fails:
                raise ToolException("the station does not answer")
            return "mild"

        weather.handle_tool_error = True
        return weather


def endless(calls: int) -> Script:
    """A model that calls tools in every reply in which it may."""
    call = Reply(text="", tools=[("weather", {"city": "Bergen"})] * calls)
    return lambda request, i: call if request.get("tools") else Reply("It is mild, I think.")


def answers_third(request: dict[str, Any], i: int) -> Reply:
    return Reply(text="It is mild.") if i >= LIMIT - 1 else endless(1)(request, i)


SCENARIOS: dict[str, tuple[Script, bool]] = {
    "tools for ever": (endless(1), False),
    "three tools a reply": (endless(3), False),
    "a tool that fails": (endless(1), True),
    "the third reply answers": (answers_third, False),
}

Agent = Callable[[Server, Any], Any]


def ours(server: Server, tool: Any) -> Any:
    middleware: Any = [TokenBudgetMiddleware(Budget(calls=LIMIT))]
    return create_agent(server.model(), [tool], middleware=middleware).invoke(QUESTION)


def call_limit(server: Server, tool: Any) -> Any:
    middleware: Any = [ModelCallLimitMiddleware(run_limit=LIMIT)]
    return create_agent(server.model(), [tool], middleware=middleware).invoke(QUESTION)


def recursion(server: Server, tool: Any) -> Any:
    agent = create_agent(server.model(), [tool])
    return agent.invoke(QUESTION, {"recursion_limit": LIMIT})


AGENTS: dict[str, Agent] = {
    "anytime-graph, calls=3": ours,
    "LangChain, run_limit=3": call_limit,
    "LangGraph, recursion_limit=3": recursion,
}


def counting(console: Console) -> None:
    console.print("A budget of 3:\n")
    table = Table(box=MARKDOWN)
    table.add_column("scenario")
    table.add_column("under")
    for name in ("model calls", "tool runs"):
        table.add_column(name, justify="right")
    table.add_column("the caller gets")
    for scenario, (script, fails) in SCENARIOS.items():
        for name, agent in AGENTS.items():
            tools = Tools(fails=fails)
            with serving() as server:
                server.script = script
                try:
                    last = agent(server, tools.weather())["messages"][-1]
                    came = repr(last.text.partition(":")[0])
                except GraphRecursionError:
                    came = "an exception"
                table.add_row(scenario, name, str(len(server.calls)), str(tools.ran), came)
    console.print(table)


# --- the race

Race = Callable[[Server, int], Awaitable[None]]


async def in_tools(server: Server, budget: int) -> None:
    """Thirty tools of one agent's turn call a model, all paid by the agent's budget."""
    inner = metered(server.model())

    @tool
    async def look(city: str) -> str:
        """Look up a city."""
        return (await inner.ainvoke(f"How warm is it in {city}?")).text

    middleware: Any = [TokenBudgetMiddleware(Budget(tokens=budget))]
    agent = create_agent(server.model(), [look], middleware=middleware)
    await agent.ainvoke(QUESTION)


async def look_then_spend(server: Server, budget: int) -> None:
    """A counter that each task reads before its call, and adds to after."""
    model, spent = server.model(stream_usage=True), 0

    async def task() -> None:
        nonlocal spent
        while spent < budget:
            reply = await model.ainvoke("How warm is it in Bergen?")
            spent += (reply.usage_metadata or {"total_tokens": 0})["total_tokens"]

    await asyncio.gather(*(task() for _ in range(TASKS)))


async def limited_agents(server: Server, budget: int) -> None:
    """Thirty agents with LangChain's limit of calls, each allowed what its share would pay for."""
    share = budget // TASKS // CALL
    middleware: Any = [ModelCallLimitMiddleware(run_limit=share)]
    agent = create_agent(server.model(), [Tools().weather()], middleware=middleware)
    await asyncio.gather(*(agent.ainvoke(QUESTION) for _ in range(TASKS)))


RACES: dict[str, Race] = {
    "anytime-graph, tools of one agent": in_tools,
    "a counter, looked at before each call": look_then_spend,
    "LangChain, run_limit by share": limited_agents,
}


def _race_script(request: dict[str, Any], i: int) -> Reply:
    names = [tool["function"]["name"] for tool in request.get("tools") or ()]
    answered = any(m["role"] == "tool" for m in request["messages"])
    if names and (names == ["weather"] or not answered):
        return Reply(
            text="", tools=[(names[0], {"city": "Bergen"})] * (TASKS if names == ["look"] else 1)
        )
    return Reply(text="mild " * PER_CALL, pace=0.002)


def racing(console: Console, runs: int, budget: int) -> None:
    console.print(f"\n{TASKS} tasks side by side, {budget:,} tokens for all, {runs} runs:\n")
    table = Table(box=MARKDOWN)
    table.add_column("under")
    for name in ("runs over", "most served", "calls"):
        table.add_column(name, justify="right")
    for name, race in RACES.items():
        served, calls = [], []
        for _ in range(runs):
            with serving() as server:
                server.script = _race_script
                asyncio.run(race(server, budget))
                served.append(server.settled().served)
                calls.append(len(server.calls))
        over = sum(tokens > budget for tokens in served)
        spread = f"{min(calls)} to {max(calls)}"
        table.add_row(name, f"{over} of {runs}", f"{max(served):,}", spread)
    console.print(table)


def main(runs: int = 30) -> None:
    console = Console(width=120)
    counting(console)
    racing(console, runs, 9_000)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
