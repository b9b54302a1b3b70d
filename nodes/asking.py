"""Build the prompt of any move, in as much detail as its slice pays for."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_core.messages import AnyMessage

from anytime_graph.nodes.combine import combined_prompt
from anytime_graph.nodes.critique import critique_prompt
from anytime_graph.nodes.draft import draft_prompt
from anytime_graph.nodes.learn import learn_prompt
from anytime_graph.nodes.refine import refine_prompt
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.run.calls import PlannedMove, combines
from anytime_graph.run.state import State


@dataclass(frozen=True)
class Asking:
    """Builds the prompts of one graph. rubric: the judge's instructions, if the user gave any."""

    answers: AnswerFormat
    rubric: str | None

    def __call__(
        self,
        state: State,
        move: PlannedMove,
        detail: float,
        max_output: int | None = None,
        allowance: int | None = None,
        structured: bool = False,
    ) -> list[AnyMessage]:
        """The prompt of the move; see planning.setup.Ask."""
        if move["kind"] == "draft":
            return list(draft_prompt(state, self.answers, move, detail, max_output, allowance))
        if move["kind"] == "refine":
            return list(refine_prompt(state, self.answers, move, detail, max_output, allowance))
        if combines(move):
            return list(combined_prompt(state, self.answers, move, detail, max_output))
        if move["kind"] == "learn":
            return list(learn_prompt(state, move, detail))
        return list(critique_prompt(state, move, detail, self.rubric, structured))
