"""Answer the question afresh, or force an answer out of reasoning that was cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering import Reply
from anytime_graph.nodes.answers import Asked, candidate, lessons
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
    conversation = asked.conversation(state)
    if (of := move["conclude"]) is not None:
        reasoning = next(c["text"] for c in state["candidates"] if c["id"] == of)
        return prompts.conclude(conversation, asked.protocol, reasoning, detail)
    return prompts.draft(
        conversation, asked.protocol, lessons(state, move, allowance), detail, room
    )


def absorb(task: Task, reply: Reply, asked: Asked) -> Candidate | None:
    of = task["move"]["conclude"]
    if of is None:
        return candidate(task, reply, asked, "draft", [])
    return candidate(task, reply, asked, "conclude", [of])
