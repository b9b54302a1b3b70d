"""What a human is asked when the budget of a run is used up."""

from __future__ import annotations

from typing import Literal

from anytime_graph.budget import DIMENSIONS
from anytime_graph.planning.moves import Stop, View
from anytime_graph.planning.prospects import best_prospect, votes_decide
from anytime_graph.planning.setup import Setup
from anytime_graph.planning.view import view
from anytime_graph.run.asking import Asked
from anytime_graph.run.state import State

Gain = Literal["score", "chance", "deviations"]


class Exhausted(Asked):
    """What a graph asks with. score: of the best answer. gain_per_1000_tokens: what the answer that promises
    most is expected to bring. gain_of: what that is a gain of: the score, the chance that the answer is
    right, or the quality in standard deviations between drafts. next_tokens: what that answer is expected
    to cost."""

    score: float | None
    gain_per_1000_tokens: float
    gain_of: Gain
    next_tokens: int


def used_up(state: State, stop: Stop) -> bool:
    """Whether a run ends because its own budget, and not a quota or another limit, is used up."""
    return bool(state["limits"]) and stop.reason in (*DIMENSIONS, "judge")


def exhausted(setup: Setup, state: State, stop: Stop) -> Exhausted:
    """The question to a human at the end of a run that has an answer."""
    best, seen = state["best"], view(setup, state)
    assert best is not None, "a run without an answer ends in NoAnswer"
    prospect = best_prospect(seen)
    return Exhausted(
        stop_reason=stop.reason,
        answer=best["answer"],
        score=best["score"],
        spent=state["spent"],
        limits=state["limits"],
        gain_per_1000_tokens=1_000 * prospect.rate,
        gain_of=_gain_of(seen),
        next_tokens=round(prospect.tokens),
        fault=None,
    )


def _gain_of(seen: View) -> Gain:
    """What a prospect's gain is a gain of; see planning.prospects."""
    if seen.decides == "scorer":
        return "score"
    return "chance" if votes_decide(seen) else "deviations"
