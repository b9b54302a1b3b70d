"""An agent that asks a human for more, over a scripted server."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from anytime_graph import Budget
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.server import Reply, Server

ANSWER = "Rivers bend because water erodes the outer bank."
QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}
ON: Any = {"configurable": {"thread_id": "1"}}


@tool
def look_up(topic: str) -> str:
    """Look up what is known about a topic."""
    return f"{topic} bend"


def looking(request: dict[str, Any], i: int) -> Reply:
    """A model that looks things up for as long as it may."""
    if request.get("tools"):
        return Reply(text=f"Look {i}.", tools=[("look_up", {"topic": "rivers"})])
    return Reply(text=ANSWER)


def agent(server: Server, budget: Budget, **more: Any) -> Any:
    tools, inside = more.pop("tools", [look_up]), more.pop("inside", ())
    built = {k: more.pop(k) for k in ("checkpointer", "response_format") if k in more}
    middleware = [TokenBudgetMiddleware(budget, on_exhausted="ask", **more), *inside]
    return create_agent(server.model(), tools, middleware=middleware, **built)


def run(app: Any, given: Any = QUESTION, sync: bool = True, config: Any = ON) -> Any:
    return app.invoke(given, config) if sync else asyncio.run(app.ainvoke(given, config))


def last(out: Any) -> str:
    message = out["messages"][-1]
    assert isinstance(message, AIMessage)
    return str(message.text)
