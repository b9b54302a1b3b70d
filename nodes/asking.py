"""What each kind of call asks: the prompt of a move, in as much detail as its slice pays for."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_core.messages import AnyMessage

from anytime_graph.nodes import critique, draft, learn, refine
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.run.calls import PlannedMove
from anytime_graph.run.state import State


@dataclass(frozen=True)
class Asking:
    """Builds prompts for one graph. rubric: what its judge goes by, if anything is given."""

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
            return list(draft.prompt(state, self.answers, move, detail, max_output, allowance))
        if move["kind"] == "refine":
            return list(refine.prompt(state, self.answers, move, detail, max_output, allowance))
        if move["kind"] == "learn":
            return list(learn.prompt(state, move, detail))
        return list(critique.prompt(state, move, detail, self.rubric, structured))
