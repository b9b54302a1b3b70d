"""Who decides in a run, and why it ended, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anytime_graph.budget import TOOL_CALLS, UNIT_NAMES

MEANINGS = {
    **{d: f"what is left of the {unit} pays for no further step" for d, unit in UNIT_NAMES.items()},
    TOOL_CALLS: "the reply asks for tools, or the budget's tool calls are used up",
    "quota": "a quota over many runs is used up",
    "judge": "the judge's share of the budget is used up",
    "perfect": "an answer reached the highest score",
    "agreed": "the answers agree, so more of them would bring nothing",
    "satisfied": "a review found nothing wrong with the answer",
    "undecided": "the judge cannot tell the answers apart, so more of them would bring nothing",
    "target": "an answer reached the score that was wanted",
    "confidence": "the vote is as sure as was wanted",
    "min_gain": "the next answer promises less than was asked for",
    "price": "the next answer costs more than it promises",
    "length": "every reply is cut, by max_tokens or by the provider, before its answer is whole",
    "done": "nothing was left to do",
    "interrupted": "by Ctrl-C, a stop event, or a client that left",
    "drained": "its process was asked to end",
    "errors": "calls kept failing",
    "scorer": "the scorer failed on every answer",
    "blocked": "the provider ended every answer",
    "ledger": "its file or database failed, so no further call could be written down",
    "strategy": "the strategy raised this error",
    "steps": "LangGraph's limit of steps is reached",
    "error": "a call failed, and the agent ended with what it had",
}
"""By stop reason; of one with a cause behind a colon, by what stands before it."""


_DECIDE = {
    "vote": "the votes decide",
    "agreement": "the votes decide, among equals the judge",
}


def decided(by: str) -> str:
    """Who chooses the best answer."""
    return _DECIDE.get(by, f"the {by} decides")


def ended(reason: str | None) -> str:
    """Why a run stopped, with the meaning of its stop reason. A strategy's own has none."""
    meaning = MEANINGS.get((reason or "").partition(":")[0])
    return f"Stopped by: {reason}" + (f" ({meaning})" if meaning else "")


def call_ended(call: Mapping[str, Any]) -> str:
    """How a call of the ledger ended. Of one that has no end yet, what that costs."""
    lost = {
        "reserved": "in flight; its reservation is counted",
        "abandoned": "lost with its process; charged its reservation",
    }
    endings = {"stop": "complete", "length": "at its limit", "cut": "cut", "error": "failed"}
    return lost.get(call["state"], endings.get(call["ended"], str(call["ended"])))
