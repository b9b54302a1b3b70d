"""Checkpoints of earlier versions, in today's form: states, what was sent to spokes, what came back.

A thread that was killed, or that waits for more budget, holds work that an earlier version planned. In
form 0, calls were "tasks" and replies were "outcomes" without a call: what is known of a draft's agent
and of several choices stood in the move, and `room` and `prompt_bound` were the reservation.

A channel of the state that gets another name keeps its old one in StoredState: LangGraph hands the hub
no channel that is declared nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from anytime_graph.forms import KEY, Stored, Upgrade, refuse_newer, unchanged, upgraded
from anytime_graph.run.calls import AgentCall, AgentDraft, Assignment, PlannedCall, receipt
from anytime_graph.run.state import Payoff, State, fresh

CHANNEL = "anytime_form"
"""Where a state says which form it has; a parent graph may have channels of its own beside it."""
_RENAMED = {"gate": "role", "prompt_bound": "max_input", "room": "max_output"}
_OF_CALLS = ("ordinal", "step", "slice", "shape")
_OF_RUNS = ("run_id", "thread", "plan", "question", "spent", "limits")
_MEANING = ("candidate", "preferred", "why", "principles")


class StoredState(State, total=False):
    """The state as the hub reads it: today's channels, and those of earlier forms."""


def migrated_state(state: Mapping[str, Any]) -> State:
    """The state in today's form, with the replies that came in while it stood. Raises NewerForm."""
    form, thread = state.get(CHANNEL, 0), state.get("thread", "")
    refuse_newer(f"the state of thread {thread!r}", form, len(STATE))
    now = dict(state)
    if "question_id" in state:  # else no question was begun
        for upgrade in STATE[form:]:
            now = upgrade(now)
    if now.get("returned"):
        now["returned"] = [upgraded(each, OUTCOME, "a reply") for each in now["returned"]]
    return cast(State, {**now, CHANNEL: len(STATE)})


def changes(state: Mapping[str, Any], now: Mapping[str, Any]) -> State:
    """What `migrated_state` changed of a state, to be written with the next step."""
    return cast(State, {k: v for k, v in now.items() if k not in state or state[k] is not v})


def migrated_assignment(sent: Mapping[str, Any]) -> Assignment:
    """What was sent to a spoke, as a killed run left it in its checkpoint. Raises NewerForm."""
    return cast(Assignment, upgraded(sent, ASSIGNMENT, "the plan of a call"))


def migrated_final(state: Mapping[str, Any]) -> State:
    """What the finish was handed, in today's form. Raises NewerForm."""
    return cast(State, upgraded(state, FINAL, "the end of a run"))


def planned_call(row: Mapping[str, Any]) -> PlannedCall:
    """What a row of the ledger's calls was planned as. Raises NewerForm."""
    planned = upgraded(json.loads(row["task"]), PLANNED, "the plan of a call in the ledger")
    del planned[KEY]
    return cast(PlannedCall, planned)


# --- the upgrades from form 0, of versions that did not say which form they wrote


def planned_from_task(task: Stored) -> Stored:
    """A planned call, from what the ledger kept of a task."""
    move = dict(task["move"])
    found: Stored = {key: task[key] for key in _OF_CALLS}
    found |= {new: task[old] for old, new in _RENAMED.items()}
    found |= {"n": move.pop("choices", 1), "prompt_copies": move.pop("billed", 1)}
    if (choice := move.pop("choice", None)) is not None:
        found["choice"] = choice
    agent, overhead = move.pop("agent", None), move.pop("overhead", 0)
    if agent is not None:
        growth = task.get("growth", 1.0)
        found["agent"] = AgentDraft(may_return=bool(agent), overhead=overhead, growth=growth)
    within, request, final = (move.pop(key, None) for key in ("within", "request", "final"))
    if within is not None:
        found["agent_call"] = AgentCall(draft=within, request=request or "", last=bool(final))
    return {**found, "move": _move(move, task.get("swapped", False))}


def receipt_from_reply(reply: Stored) -> Stored:
    """A receipt, from a reply as the ledger kept it or an outcome as the state did."""
    started = float(reply["started"])
    usual = receipt(started, float(reply.get("ended_at") or started))
    found = {key: reply.get(key, value) for key, value in usual.items()}
    return {**found, "billed_once": reply.get("once")}


def _with_all_channels(state: Stored) -> Stored:
    """Channels came one by one. What is not known of earlier replies counts as not tried."""
    none = fresh(state["question_id"], {}, state.get("run_id", 0), "", state["limits"])
    filled: Stored = {**none, "chosen": None, **state}
    filled["judging"] = {**none["judging"], **filled["judging"]}
    whole = Payoff.__required_keys__
    filled["payoffs"] = {k: p for k, p in filled["payoffs"].items() if p.keys() == whole}
    filled["owed"] = [_move(dict(move), False) for move in filled["owed"]]
    return filled


def _assignment_from_task(task: Stored) -> Stored:
    run = {**{key: task[key] for key in _OF_RUNS}, "chosen": task.get("chosen", {})}
    prompt = task["prompt"] or None  # an empty one was lost with its process
    return {"call": planned_from_task(task), "prompt": prompt, "wait": task["wait"], "run": run}


def _outcome_with_call(outcome: Stored) -> Stored:
    failed = outcome["failed"]
    came = receipt_from_reply({**outcome, "ended_at": outcome["ended"]})
    call = planned_from_task(
        {"step": outcome["ordinal"], "slice": {}, "prompt_bound": 0, **outcome}
    )
    meaning = {key: outcome[key] for key in _MEANING if key in outcome}
    return {"call": call, "receipt": {**came, "ended": "error" if failed else "stop"}, **meaning}


def _move(move: Stored, swapped: bool) -> Stored:
    if move["kind"] == "critique":
        return {**move, "swapped": swapped}
    if move["kind"] in ("draft", "refine"):
        with_pairs = move.pop("taught", False)
        move = {key: value for key, value in move.items() if key not in ("choices", "billed")}
        return {**move, "with_pairs": with_pairs}
    return move


STATE: tuple[Upgrade, ...] = (_with_all_channels,)
ASSIGNMENT: tuple[Upgrade, ...] = (_assignment_from_task,)
OUTCOME: tuple[Upgrade, ...] = (_outcome_with_call,)
FINAL: tuple[Upgrade, ...] = (unchanged,)
PLANNED: tuple[Upgrade, ...] = (planned_from_task,)
