"""Improve an answer, with its feedback and the preference pairs in view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering import Reply
from anytime_graph.nodes.answers import Asked, candidate
from anytime_graph.state import Candidate, State, Task


def prompt(
    state: State, asked: Asked, move: dict[str, Any], detail: float, room: int | None
) -> Sequence[AnyMessage]:
    of = next(c for c in state["candidates"] if c["id"] == move["of"])
    return prompts.refine(
        asked.conversation(state),
        asked.protocol,
        of["answer"],
        of["feedback"],
        state["pairs"],
        move["pairs"],
        detail,
        room,
    )


def absorb(task: Task, reply: Reply, asked: Asked) -> Candidate | None:
    return candidate(task, reply, asked, "refine", [task["move"]["of"]])
