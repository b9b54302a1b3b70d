"""What a strategy may know of a run, read out of its state."""

from __future__ import annotations

from anytime_graph import scoring
from anytime_graph.budget import left
from anytime_graph.models.tokens import Calibration, uncalibrated
from anytime_graph.planning.moves import View
from anytime_graph.planning.setup import Setup
from anytime_graph.run.fold import contests, tied
from anytime_graph.run.state import State


def view(setup: Setup, state: State, judging: bool = True) -> View:
    """What the strategy may know. judging: whether the judge may still be asked."""
    spent, prices = state["spent"], setup.meters[setup.answering(state)].prices
    output_price = prices.output / 1e6 if prices else 0.0
    return View(
        candidates=state["candidates"],
        best=state["best"],
        pairs=state["pairs"],
        principles=state["principles"],
        payoffs=state["payoffs"],
        profile=setup.profile,
        ballots=state["ballots"],
        judged=state["judging"],
        contests=contests(state) if judging and setup.decides == "judge" else [],
        judging=judging,
        whole=setup.answers.extract is scoring.whole_reply,
        recalled=bool(state["examples"]),
        compared=[(first, second) for first, second, _ in state["matches"]],
        tied=tied(state) if setup.decides == "agreement" else [],
        decides=setup.decides,
        made=state["made"],
        spent=spent,
        left=left(state["limits"], spent),
        usd_per_token=spent["usd"] / max(1, spent["tokens"]) if spent["usd"] else output_price,
        prompt_once=billed_once(setup, state) is True,
    )


def billed_once(setup: Setup, state: State) -> bool | None:
    """Whether the prompt of several choices is billed once; None if it is not known, False also if choices cannot
    be had."""
    role = setup.answering(state)
    own = setup.meters[role]
    if "n" in own.known.refused or setup.drafter is not None:
        return False
    return calibration(state, role).get("once", own.billed_once)


def calibration(state: State, role: str) -> Calibration:
    """What the run has learned of how far prompts to a role's model exceed their bounds."""
    return state["calibrations"].get(role) or uncalibrated()
