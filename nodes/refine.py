"""Improve an answer, with its feedback and the preference pairs in view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering import Reply
from anytime_graph.nodes.answers import Asked, candidate, lessons, shown
from anytime_graph.pairs import Candidate
from anytime_graph.state import State, Task


def prompt(
    state: State,
    asked: Asked,
    move: dict[str, Any],
    detail: float,
    room: int | None,
    allowance: int | None = None,
) -> Sequence[AnyMessage]:
    of = next(c for c in state["candidates"] if c["id"] == move["of"])
    preferred = (
        p["why"] for p in state["pairs"] if p["chosen_id"] == of["id"] and p["why_by"] == "judge"
    )
    return prompts.refine(
        asked.conversation(state),
        asked.protocol,
        shown(of, detail),
        of["feedback"],
        of["right"] or next(preferred, None),
        lessons(state, move, allowance),
        detail,
        room,
    )


def absorb(task: Task, reply: Reply, asked: Asked) -> Candidate | None:
    return candidate(task, reply, asked, "refine", [task["move"]["of"]])
