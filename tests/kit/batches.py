"""Questions of mixed difficulty, and a graph that answers them."""

from __future__ import annotations

import random
import re
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import create_anytime_graph
from tests.kit.server import Reply

CHANCES = (1.0, 0.5, 0.2, 0.0)
"""How often a reply to question 0, 1, 2, 3, 4, ... is right."""


def asked(n: int) -> list[str]:
    return [f"question {i}" for i in range(n)]


def number(request: dict[str, Any]) -> int:
    found = re.search(r"question (\d+)", str(request["messages"]))
    assert found
    return int(found[1])


def mixed(request: dict[str, Any], i: int) -> Reply:
    """Easy and hopeless questions, with replies of different lengths."""
    n = number(request)
    draw = random.Random(f"{n}/{request['seed']}")
    right = draw.random() < CHANCES[n % len(CHANCES)]
    words = "so " * draw.randint(5, 40)
    return Reply(text=f"{words}<answer>{'right' if right else draw.random()}</answer>")


def scorer(question: str, answer: str) -> float:
    return float(answer == "right")


def app_of(server: Any, **options: Any) -> Any:
    options = {"scorer": scorer, "strategy": "best_of_n", **options}
    saver = options.pop("saver", None) or InMemorySaver()
    return create_anytime_graph(server.model(seed=0), **options).compile(checkpointer=saver)
