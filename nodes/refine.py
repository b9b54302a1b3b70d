"""The prompt of a refinement: improve an answer, given its feedback and the preference pairs."""

from __future__ import annotations

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.nodes.answering import shown
from anytime_graph.planning.answers import AnswerFormat, conversation
from anytime_graph.prompts import Lessons
from anytime_graph.run.calls import RefineMove
from anytime_graph.run.state import State


def refine_prompt(
    state: State,
    answers: AnswerFormat,
    move: RefineMove,
    lessons: Lessons,
    detail: float,
    max_output: int | None,
) -> list[AnyMessage]:
    parent = next(c for c in state["candidates"] if c["id"] == move["of"])
    reasons = (
        p["why"] for p in state["pairs"] if p["chosen_id"] == move["of"] and p["why_by"] == "judge"
    )
    return prompts.refine(
        conversation(state),
        answers.protocol,
        shown(parent, detail),
        parent["feedback"],
        parent["right"] or next(reasons, None),
        lessons,
        detail,
        max_output,
    )
