"""The budget edge: what to do next, and how much of what is left each move may spend.

Pure: state in, tasks or a stop reason out. Slices never add up to more than what is left, and
every task carries the reservation that its call will be held to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytime_graph import prompts
from anytime_graph.budget import (
    DIMENSIONS,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    left,
    output_room,
    share,
)
from anytime_graph.metering import Gate
from anytime_graph.nodes import critique, draft, refine
from anytime_graph.nodes.answers import Asked
from anytime_graph.prompts import DETAILS
from anytime_graph.scoring import Scorer
from anytime_graph.state import GOOD_ROOM, MIN_ROOM, Decides, State, Task, contests, question_of
from anytime_graph.strategies import Critique, Draft, Move, Refine, Stop, Strategy, View, as_dict

_RESERVE = 0.2
"""The largest part of what is left that is held back for a last call that forces an answer."""
_PATIENCE = 3
"""Steps in a row that may fail as a whole before the run gives up."""
_STEPS = 3
"""Graph steps that another round takes: the calls, the fold, the finish."""


@dataclass(frozen=True)
class Setup:
    """What a graph was built with."""

    gate: Gate
    asked: Asked
    strategy: Strategy
    decides: Decides
    scorer: Scorer | None
    width: int


def plan(setup: Setup, state: State, stopped: bool) -> list[Task] | str:
    """The tasks of the next step, or why the run ends.

    Raises BudgetTooSmall before anything was spent, if not one draft can be paid for; NoAnswer
    if the run ends without one.
    """
    planned = _plan(setup, state, stopped)
    if isinstance(planned, str) and state["best"] is None:
        if state["ordinal"] == 0 and planned in DIMENSIONS:
            raise BudgetTooSmall(state["limits"], least(setup, state))
        raise NoAnswer(
            state["errors"] or [f"stopped before the first reply ({planned})"], state["spent"]
        )
    return planned


def least(setup: Setup, state: State) -> Limits:
    """The smallest budget that pays for one draft, in the dimensions of the run's own."""
    prompt = draft.prompt(state, setup.asked, as_dict(Draft()), 0.0, None)
    tokens = setup.gate.bound(setup.gate.shape(list(prompt)), state["calibration"])
    prices = setup.gate.prices
    amounts: Limits = {
        "tokens": tokens + MIN_ROOM,
        "output_tokens": MIN_ROOM,
        "usd": prices.usd(tokens, MIN_ROOM) if prices else 0.0,
        "calls": 1,
        "seconds": 0.001,
    }
    return {
        d: max(amounts[d], limit) if limit >= amounts[d] else amounts[d]
        for d, limit in state["limits"].items()
    }


def view(setup: Setup, state: State) -> View:
    best = state["best"]
    return View(
        candidates=state["candidates"],
        best=best,
        pairs=state["pairs"],
        contests=contests(state) if setup.decides == "judge" else [],
        decides=setup.decides,
        made=state["made"],
        spent=state["spent"],
        left=left(state["limits"], state["spent"]),
    )


def _plan(setup: Setup, state: State, stopped: bool) -> list[Task] | str:
    best = state["best"]
    if stopped or state["interrupted"]:
        return "interrupted"
    if state["remaining_steps"] <= _STEPS:
        return "steps"
    if state["failures"] >= _PATIENCE:
        return "errors"
    if best is not None and best["score"] is not None and best["score"] >= 1.0:
        return "perfect"
    rest = left(state["limits"], state["spent"])
    for dimension in ("seconds", *DIMENSIONS):  # a call cut by the clock uses up its tokens too
        if rest.get(dimension, 1) <= 0:
            return dimension
    need = _last_call_need(setup, state)
    scarce = any(rest[d] < 2 * need[d] for d in need if d in rest)
    if scarce and (last := _last_call(setup, state, rest)):
        return last
    moves = list(setup.strategy(view(setup, state)))
    if not moves or isinstance(moves[0], Stop):
        reason = str(moves[0].reason) if moves and isinstance(moves[0], Stop) else "done"
        return _last_call(setup, state, rest) or reason
    slicer = _Slicer(setup, state, [m for m in moves if not isinstance(m, Stop)])
    return (
        slicer.tasks(_reserved(need, rest))
        or _last_call(setup, state, rest)
        or slicer.tasks(rest)
        or _short_of(setup, state, rest)
    )


def _short_of(setup: Setup, state: State, rest: Limits) -> str:
    """The dimension that a further draft would overrun."""
    need = least(setup, {**state, "limits": dict.fromkeys(rest, 0)})
    return next((d for d in DIMENSIONS if d in rest and rest[d] < need[d]), next(iter(rest)))


def _answerless(setup: Setup, state: State) -> bool:
    """The best reply so far was cut before it held an answer, and none was forced from it yet."""
    best = state["best"]
    complete = best is not None and (best["complete"] or state["concluded"] == best["id"])
    return not complete and setup.asked.protocol.kind != "whole"


def _last_call(setup: Setup, state: State, rest: Limits) -> list[Task]:
    """One short call that forces an answer out of the best reply."""
    best = state["best"]
    if best is None or not _answerless(setup, state):
        return []
    return _Slicer(setup, state, [Draft(conclude=best["id"])]).tasks(rest)


def _last_call_need(setup: Setup, state: State) -> Limits:
    """What that call takes at the least; nothing once there is an answer."""
    if not _answerless(setup, state):
        return {}
    conversation = setup.asked.conversation(state)
    prompt = prompts.conclude(conversation, setup.asked.protocol, "word " * 40, 0.0)
    tokens = setup.gate.bound(setup.gate.shape(prompt), state["calibration"])
    prices = setup.gate.prices
    return {
        "tokens": tokens + GOOD_ROOM,
        "output_tokens": GOOD_ROOM,
        "usd": prices.usd(tokens, GOOD_ROOM) if prices else 0.0,
        "calls": 1,
    }


def _reserved(need: Limits, rest: Limits) -> Limits:
    """What is left when that call is held back, if it takes no more than a fifth of it; of time,
    a fifth."""
    if not need or any(need[d] > _RESERVE * rest[d] for d in need if d in rest):
        return rest
    held = need | ({"seconds": _RESERVE * rest["seconds"]} if "seconds" in rest else {})
    return {d: amount - held.get(d, 0) for d, amount in rest.items()}


@dataclass(frozen=True)
class _Slicer:
    """Cuts what is left into slices for as many of the moves as it pays for."""

    setup: Setup
    state: State
    moves: Sequence[Draft | Critique | Refine]

    def tasks(self, rest: Limits) -> list[Task]:
        comfort = max(GOOD_ROOM, self.state["least_room"])
        for n in range(len(self.moves), 0, -1):
            if tasks := self._first(n, rest, comfort):
                return tasks
        for move in self.moves:
            for room in (comfort, MIN_ROOM):
                if tasks := self._sliced([(move, 1.0)], rest, room):
                    return tasks
        return []

    def _first(self, n: int, rest: Limits, room: int) -> list[Task]:
        """The first n moves at their shares; at larger ones if there are fewer than was asked."""
        grow = len(self.moves) / n
        shares = [min(1 / n, (m.share or 1 / len(self.moves)) * grow) for m in self.moves[:n]]
        return self._sliced(list(zip(self.moves[:n], shares, strict=True)), rest, room)

    def _sliced(
        self, planned: Sequence[tuple[Draft | Critique | Refine, float]], rest: Limits, room: int
    ) -> list[Task]:
        calls = [
            (move, part / len(orders), swapped)
            for move, part in planned
            for orders in [_orders(move)]
            for swapped in orders
        ]
        if len(calls) > rest.get("calls", len(calls)):
            return []
        tasks = []
        for i, (move, part, swapped) in enumerate(calls):
            task = self._task(i, as_dict(move), share(rest, part), swapped, room)
            if task is None:
                return []
            tasks.append(task)
        return tasks

    def _task(
        self, i: int, move: dict[str, Any], slice_: Limits, swapped: bool, least_room: int
    ) -> Task | None:
        """The call in full: the most detailed prompt that leaves room enough for the reply."""
        gate, state = self.setup.gate, self.state
        within = move["kind"] != "critique" and move.get("conclude") is None
        for detail in DETAILS:
            build = self._prompt(move, detail, swapped)
            shape = gate.shape(build(99_999))
            bound = gate.bound(shape, state["calibration"], within)
            paid = output_room(slice_, bound, gate.prices)
            wanted = {1.0: max(least_room, bound), 0.0: least_room}.get(detail, GOOD_ROOM)
            if paid is not None and paid < max(wanted, least_room):
                continue
            room = gate.cap(paid)
            prompt = build(room)
            return Task(
                ordinal=state["ordinal"] + i,
                step=state["ordinal"],
                move=move,
                swapped=swapped,
                slice=slice_,
                prompt=prompt,
                prompt_bound=bound,
                room=room,
                shape=gate.shape(prompt),
                wait=min(state["wait"] * 2 ** max(0, state["failures"] - 1), 30.0),
                run_id=state["run_id"],
                thread=state["thread"],
                plan="",
                question=question_of(state["messages"]).text,
                spent=state["spent"],
                limits=state["limits"],
            )
        return None

    def _prompt(self, move: dict[str, Any], detail: float, swapped: bool) -> Any:
        state, asked = self.state, self.setup.asked
        if move["kind"] == "draft":
            return lambda room: list(draft.prompt(state, asked, move, detail, room))
        if move["kind"] == "refine":
            return lambda room: list(refine.prompt(state, asked, move, detail, room))
        return lambda _: list(critique.prompt(state, asked, move, detail, swapped))


def _orders(move: Move) -> tuple[bool, ...]:
    """A comparison is asked in both orders; anything else once."""
    return (False, True) if isinstance(move, Critique) and move.second is not None else (False,)
