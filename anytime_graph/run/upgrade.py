"""Brings checkpoints of earlier versions into today's form: states, assignments and outcomes.

A thread that was killed, or that waits for more budget, holds work that an earlier version planned. In
form 0, calls were "tasks", and replies were "outcomes" without a call. The move held the facts about a
draft's agent and about several choices. `room` and `prompt_bound` were the reservation.

A channel that gets a new name must stay declared by its old one, because LangGraph gives the hub only
channels that are declared.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any, cast

from anytime_graph.models.tokens import Calibration, uncalibrated, without_prompt
from anytime_graph.run.calls import (
    JUDGE,
    OWN,
    REVIEW,
    AgentCall,
    AgentDraft,
    Assignment,
    PlannedCall,
    Role,
    receipt,
)
from anytime_graph.run.forms import KEY, Stored, Upgrade, refuse_newer, through, unchanged, upgraded
from anytime_graph.run.pairs import parting
from anytime_graph.run.state import Payoff, State, fresh

CHANNEL = "anytime_form"
"""The channel with the form of the state. A parent graph may have channels of its own beside it."""
_RENAMED = {"prompt_bound": "max_input", "room": "max_output"}
_OF_CALLS = ("ordinal", "step", "slice", "shape")
_OF_RUNS = ("run_id", "thread", "plan", "question", "spent", "limits")
_MEANS = (0.8, 0.09, 0.35, 2.0, 1.0, 0.95, 1.1, 1.3, 1.25, 2.5, 1.0)
_OF_SPENDS = {"calls", "cached_tokens", "usd"}
_MEANING = ("candidate", "preferred", "why", "principles")


def migrated_state(state: Mapping[str, Any]) -> State:
    """The state in today's form, with the replies that wait in it. Raises NewerForm and UnknownForm."""
    form, what = state.get(CHANNEL, 0), f"the state of thread {state.get('thread', '')!r}"
    refuse_newer(what, form, len(STATE))
    begun = "question_id" in state
    now = through(STATE[form:] if begun else (), dict(state), what)
    if now.get("returned"):
        now["returned"] = [upgraded(each, OUTCOME, "a reply") for each in now["returned"]]
    return cast(State, {**now, CHANNEL: len(STATE)})


def changes(state: Mapping[str, Any], now: Mapping[str, Any]) -> State:
    """What `migrated_state` changed in a state, to be written with the next step."""
    return cast(State, {k: v for k, v in now.items() if k not in state or state[k] is not v})


def migrated_assignment(sent: Mapping[str, Any]) -> Assignment:
    """An assignment that a killed run left in its checkpoint, in today's form. Raises NewerForm and UnknownForm."""
    return cast(Assignment, upgraded(sent, ASSIGNMENT, "the plan of a call"))


def migrated_final(state: Mapping[str, Any]) -> State:
    """The state that the finish node was sent, in today's form. Raises NewerForm and UnknownForm."""
    return cast(State, upgraded(state, FINAL, "the end of a run"))


def planned_call(row: Mapping[str, Any]) -> PlannedCall:
    """The plan in a row of the ledger's calls, in today's form. Raises NewerForm and UnknownForm."""
    planned = upgraded(json.loads(row["task"]), PLANNED, "the plan of a call in the ledger")
    del planned[KEY]
    return cast(PlannedCall, planned)


# --- the upgrades from form 0, which versions wrote that did not state a form


def planned_from_task(task: Stored) -> Stored:
    """A planned call, from a task as the ledger kept it."""
    move = dict(task["move"])
    call: Stored = {key: task[key] for key in _OF_CALLS}
    call |= {new: task[old] for old, new in _RENAMED.items()}
    call["role"] = task.get("gate") or _role(move)
    call |= {"n": move.pop("choices", 1), "prompt_copies": move.pop("billed", 1)}
    if (choice := move.pop("choice", None)) is not None:
        call["choice"] = choice
    agent, overhead = move.pop("agent", None), move.pop("overhead", 0)
    if agent is not None:
        growth = task.get("growth", 1.0)
        call["agent"] = {"may_return": bool(agent), "overhead": overhead, "growth": growth}
    within, request, final = (move.pop(key, None) for key in ("within", "request", "final"))
    if within is not None:
        call["agent_call"] = AgentCall(draft=within, request=request or "", last=bool(final))
    return {**call, "move": _move(move, task.get("swapped", False))}


def _role(move: Stored) -> Role:
    """Of a task from before tasks had a gate, when a model was its own judge."""
    if move["kind"] != "critique":
        return OWN
    return REVIEW if move["second"] is None else JUDGE


def receipt_from_reply(reply: Stored) -> Stored:
    """A receipt, from a reply as the ledger kept it, or an outcome as the state did."""
    started = float(reply["started"])
    usual = receipt(started, float(reply.get("ended_at") or started))
    kept = {key: reply.get(key, value) for key, value in usual.items()}
    return {**kept, "billed_once": reply.get("once")}


def _with_all_channels(state: Stored) -> Stored:
    """Fill in channels that were added one by one. Payoffs without all of their fields are left out."""
    none = fresh(state["question_id"], {}, state.get("run_id", 0), "", state["limits"])
    filled: Stored = {**none, "chosen": None, **state}
    filled["judging"] = {**none["judging"], **filled["judging"]}
    fields = Payoff.__required_keys__
    filled["payoffs"] = {k: p for k, p in filled["payoffs"].items() if p.keys() == fields}
    filled["candidates"] = list(map(_candidate, filled["candidates"]))
    filled["best"] = filled["best"] and _candidate(filled["best"])
    filled["pairs"] = list(map(_pair, filled["pairs"]))
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
    if "candidate" in meaning:
        meaning["candidate"] = _candidate(meaning["candidate"])
    return {"call": call, "receipt": {**came, "ended": "error" if failed else "stop"}, **meaning}


def _candidate(candidate: Stored) -> Stored:
    return {"right": None, "taught": False, **candidate}


def _pair(pair: Stored) -> Stored:
    """With the excerpts and the origin of its reason, which pairs did not tell at first."""
    if "better" in pair:
        return pair
    better, worse = parting(pair["chosen"], pair["rejected"])
    by = pair["by"] if pair["why"] else "score" if pair["by"] == "scorer" else "nobody"
    return {**pair, "better": better, "worse": worse, "why_by": by}


def _move(move: Stored, swapped: bool) -> Stored:
    if move["kind"] == "critique":
        return {**move, "swapped": swapped}
    if move["kind"] in ("draft", "refine"):
        with_pairs = move.pop("taught", False)
        move = {key: value for key, value in move.items() if key not in ("choices", "billed")}
        return {**move, "with_pairs": with_pairs}
    return move


# --- the upgrades from form 1, whose shapes counted eleven kinds of text


def _measured(call: Stored) -> Stored:
    """With the shape of today: the mean tokens of those kinds, and no spread."""
    *kinds, _, messages, media = call["shape"] or [0.0] * 14
    mean = sum(n * w for n, w in zip(kinds, _MEANS, strict=True))
    return {**call, "shape": [mean, 0.0, mean, messages, 3_000 * media]}


def _with_measured_call(stored: Stored) -> Stored:
    return {**stored, "call": _measured(stored["call"])}


def _uncalibrated(state: Stored) -> Stored:
    known = state["calibrations"].items()
    return {**state, "calibrations": {role: without_prompt(each) for role, each in known}}


# --- the upgrade from spends that count no tool calls


def with_tool_calls(stored: Stored) -> Stored:
    """With tool calls in all spends."""
    return cast(Stored, _counting(stored))


def _counting(part: Any) -> Any:
    """The same object if there is no spend in it."""
    if isinstance(part, list):
        each = [_counting(one) for one in part]
        return part if all(map(operator.is_, part, each)) else each
    if not isinstance(part, dict):
        return part
    if part.keys() >= _OF_SPENDS:
        return {"tool_calls": 0, **part}
    known = {key: _counting(value) for key, value in part.items()}
    return part if all(known[key] is part[key] for key in part) else known


# --- the upgrade from agents' drafts that were told of the tokenizer only


def _with_calibration(call: Stored) -> Stored:
    if (agent := call.get("agent")) is None:
        return call
    known = {**uncalibrated(), "growth": agent["growth"]}
    draft = AgentDraft(
        may_return=agent["may_return"],
        overhead=agent["overhead"],
        calibration=cast(Calibration, known),
    )
    return {**call, "agent": draft}


def _with_calibrated_call(stored: Stored) -> Stored:
    return {**stored, "call": _with_calibration(stored["call"])}


STATE: tuple[Upgrade, ...] = (_with_all_channels, _uncalibrated, with_tool_calls)
ASSIGNMENT: tuple[Upgrade, ...] = (
    _assignment_from_task,
    _with_measured_call,
    with_tool_calls,
    _with_calibrated_call,
)
OUTCOME: tuple[Upgrade, ...] = (
    _outcome_with_call,
    _with_measured_call,
    with_tool_calls,
    _with_calibrated_call,
)
FINAL: tuple[Upgrade, ...] = (unchanged, with_tool_calls)
PLANNED: tuple[Upgrade, ...] = (planned_from_task, _measured, _with_calibration)
