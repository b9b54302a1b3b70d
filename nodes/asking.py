"""Build the prompt of any move, in as much detail as its slice pays for."""

from __future__ import annotations

from langchain_core.messages import AnyMessage

from anytime_graph.nodes.combine import combined_prompt
from anytime_graph.nodes.critique import critique_prompt
from anytime_graph.nodes.draft import draft_prompt
from anytime_graph.nodes.learn import learn_prompt
from anytime_graph.nodes.refine import refine_prompt
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.prompts import Lessons
from anytime_graph.run.calls import PlannedMove, combines
from anytime_graph.run.state import State


def prompt_of(
    answers: AnswerFormat,
    rubric: str | None,
    state: State,
    move: PlannedMove,
    lessons: Lessons,
    detail: float,
    max_output: int | None,
    structured: bool,
) -> list[AnyMessage]:
    """The prompt of the move; see planning.setup.PromptOf. rubric: the judge's instructions, if the user
    gave any."""
    if move["kind"] == "draft":
        return draft_prompt(state, answers, move, lessons, detail, max_output)
    if move["kind"] == "refine":
        return refine_prompt(state, answers, move, lessons, detail, max_output)
    if combines(move):
        return combined_prompt(state, answers, move, detail, max_output)
    if move["kind"] == "learn":
        return learn_prompt(state, move, detail)
    return critique_prompt(state, move, detail, rubric, structured)
