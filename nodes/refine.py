"""The prompt of a refinement: improve an answer, given its feedback and the preference pairs."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.nodes.answering import shown
from anytime_graph.planning.answers import AnswerFormat, conversation, pair_context
from anytime_graph.run.calls import RefineMove
from anytime_graph.run.state import State


def refine_prompt(
    state: State,
    answers: AnswerFormat,
    move: RefineMove,
    detail: float,
    max_output: int | None,
    allowance: int | None,
) -> Sequence[AnyMessage]:
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
        pair_context(state, move, allowance),
        detail,
        max_output,
    )
