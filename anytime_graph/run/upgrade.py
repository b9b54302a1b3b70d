"""Calls, assignments and outcomes as earlier versions stored them, in today's form.

A checkpoint or a ledger can hold work that an earlier version planned: a thread that was killed, or
waits for more budget. What has today's form already is returned as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from anytime_graph.run.calls import (
    AgentCall,
    AgentDraft,
    Assignment,
    Outcome,
    PlannedCall,
    PlannedMove,
    Receipt,
)

_RENAMED = {"gate": "role", "prompt_bound": "max_input", "room": "max_output"}
_OF_CALLS = ("ordinal", "step", "slice", "shape")
_OF_RUNS = ("run_id", "thread", "plan", "chosen", "question", "spent", "limits")
_OF_RECEIPTS = (
    *("spend", "reported", "starved", "failed", "refused", "lost", "interrupted"),
    *("retry_after", "errors", "started"),
)


def call_from(stored: Mapping[str, Any]) -> PlannedCall:
    """A planned call. Before version 4 of the ledger's schema, what is known of a draft's agent and
    of several choices stood in the move."""
    if "max_input" in stored:
        return cast(PlannedCall, dict(stored))
    move = dict(stored["move"])
    found: dict[str, Any] = {key: stored[key] for key in _OF_CALLS}
    found |= {new: stored[old] for old, new in _RENAMED.items()}
    found |= {"n": move.pop("choices", 1), "prompt_copies": move.pop("billed", 1)}
    if (choice := move.pop("choice", None)) is not None:
        found["choice"] = choice
    agent, overhead = move.pop("agent", None), move.pop("overhead", 0)
    if agent is not None:
        growth = stored.get("growth", 1.0)
        found["agent"] = AgentDraft(may_return=bool(agent), overhead=overhead, growth=growth)
    within, request, final = (move.pop(key, None) for key in ("within", "request", "final"))
    if within is not None:
        found["agent_call"] = AgentCall(draft=within, request=request or "", last=bool(final))
    return cast(PlannedCall, {**found, "move": _move(move, stored["swapped"])})


def assignment_from(stored: Mapping[str, Any]) -> Assignment:
    """What the hub has sent to a spoke."""
    if "call" in stored:
        return cast(Assignment, dict(stored))
    return cast(
        Assignment,
        {
            "call": call_from(stored),
            "prompt": stored["prompt"] or None,
            "wait": stored["wait"],
            "run": {key: stored[key] for key in _OF_RUNS},
        },
    )


def outcome_from(stored: Mapping[str, Any]) -> Outcome:
    """What a spoke has brought back."""
    if "call" in stored:
        return cast(Outcome, dict(stored))
    receipt = {key: stored[key] for key in _OF_RECEIPTS}
    receipt |= {
        "unserved": False,
        "closed": False,
        "ended": "error" if stored["failed"] else "stop",
        "ended_at": stored["ended"],
        "billed_once": stored.get("once"),
        "recalled": False,
    }
    call = call_from({**stored, "step": stored["ordinal"], "slice": {}})
    meaning = ("candidate", "preferred", "why", "principles")
    found = {key: stored[key] for key in meaning if key in stored}
    return cast(Outcome, {"call": call, "receipt": cast(Receipt, receipt), **found})


def _move(move: dict[str, Any], swapped: bool) -> PlannedMove:
    if move["kind"] == "critique":
        move["swapped"] = swapped
    elif move["kind"] in ("draft", "refine"):
        move["with_pairs"] = move.pop("taught", False)
    return cast(PlannedMove, move)


def receipt_from(stored: Mapping[str, Any]) -> Receipt:
    """What a settled call came to. Before version 4 of the ledger's schema it stood in the reply
    itself, and a further choice had only what differed from the first."""
    if "receipt" in stored:
        return cast(Receipt, dict(stored["receipt"]))
    found = {key: stored[key] for key in (*_OF_RECEIPTS, "ended", "ended_at")}
    new = {"unserved": False, "closed": False, "recalled": False}
    extra = {"billed_once": stored.get("once"), **{k: stored.get(k, v) for k, v in new.items()}}
    return cast(Receipt, found | extra)
