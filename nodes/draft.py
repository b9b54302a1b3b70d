"""The prompt of a draft: answer the question, or conclude reasoning that was cut."""

from __future__ import annotations

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.planning.answers import AnswerFormat, conversation
from anytime_graph.prompts import Lessons
from anytime_graph.run.calls import DraftMove
from anytime_graph.run.state import State


def draft_prompt(
    state: State,
    answers: AnswerFormat,
    move: DraftMove,
    lessons: Lessons,
    detail: float,
    max_output: int | None,
) -> list[AnyMessage]:
    before = conversation(state)
    if (cut := move["conclude"]) is not None:
        if move.get("again"):
            return prompts.conclude_again(before, answers.protocol)
        reasoning = next(c["text"] for c in state["candidates"] if c["id"] == cut)
        return prompts.conclude(before, answers.protocol, reasoning, detail)
    return prompts.opening(before, answers.protocol, lessons, detail, max_output)
