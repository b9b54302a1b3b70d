"""A graph that asks a human for more, over a scripted server."""

from __future__ import annotations

from typing import Any

from anytime_graph import Budget, create_anytime_graph
from tests.kit.server import Reply, Server

ASK: Any = {"messages": [("user", "Name a river.")]}
ON: Any = {"configurable": {"thread_id": "1"}}


def script(request: dict[str, Any], i: int) -> Reply:
    return Reply(text=f"so <answer>river {request['seed']}</answer> it is")


def graph(server: Server, budget: Budget, **more: Any) -> Any:
    server.script = script
    return create_anytime_graph(
        server.model(seed=0),
        budget=budget,
        scorer=lambda question, answer: int(answer.split()[1]) / 100,
        strategy="best_of_n",
        on_exhausted="ask",
        **more,
    )
