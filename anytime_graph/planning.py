"""The budget edge: what to do next, and how much of what is left each move may spend.

Pure: state in, tasks or a stop reason out. Slices never add up to more than what is left, and
every task carries the reservation that its call will be held to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from anytime_graph import prompts, prospects, scoring
from anytime_graph.budget import (
    DIMENSIONS,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    left,
    output_room,
    share,
)
from anytime_graph.drafters import Drafter
from anytime_graph.metering import Gate
from anytime_graph.moves import Critique, Draft, Learn, Move, Refine, Stop, Strategy, View, as_dict
from anytime_graph.nodes import critique, draft, learn, refine
from anytime_graph.nodes.answers import Asked, lessons
from anytime_graph.prompts import DETAILS, Lessons
from anytime_graph.scoring import Judge, Scorer
from anytime_graph.state import (
    GOOD_ROOM,
    MIN_ROOM,
    OWN,
    PLAIN,
    REVIEW,
    STRUCTURED,
    Decides,
    Payoff,
    State,
    Task,
    contests,
    judges,
    places,
    question_of,
)
from anytime_graph.stopping import Until, outweighed, reached
from anytime_graph.tokens import Calibration, Shape, uncalibrated

_RESERVE = 0.2
"""The largest part of what is left that is held back for a last call that forces an answer."""
_LESSONS = 0.4
"""The part of a slice that preference pairs may take in a prompt."""
_VERDICT = 256
"""Output tokens of a judgement, at most, unless its model was seen to need more."""
_PATIENCE = 3
"""Steps in a row that may fail as a whole before the run gives up."""
_OPENING, _ROUND, _DOUBLINGS = 4_096, 8, 64
"""Without a budget: output tokens of the first horizon; drafts that one should still pay for, lest
they be cut for nothing; how often it is doubled at the most."""
_STEPS = 3
"""Graph steps that another round takes: the calls, the fold, the finish."""


@dataclass(frozen=True)
class Setup:
    """What a graph was built with. gates: the model's own; the judge's; the judge's held to a
    schema, where its provider can. drafter: makes the agent that drafts, if one does."""

    gates: Mapping[str, Gate]
    asked: Asked
    strategy: Strategy
    decides: Decides
    scorer: Scorer | None
    judge: Judge
    width: int
    profile: Mapping[str, Payoff] = field(default_factory=dict)
    until: Until | None = None
    drafter: Drafter | None = None

    def learn(
        self, gate: str, known: Calibration, shape: Shape, reported: int, base: bool
    ) -> Calibration:
        """Correct a gate's calibration by what its provider reported."""
        return self.gates[gate].learn(known, shape, reported, base)

    def gate(self, move: Mapping[str, Any], state: State) -> str:
        """Which gate a call goes through."""
        if not judges(move):
            return REVIEW if move["kind"] == "critique" and REVIEW in self.gates else OWN
        held = move["kind"] == "critique" and STRUCTURED in self.gates
        return STRUCTURED if held and not state["unstructured"] else PLAIN


def plan(setup: Setup, state: State, stopped: bool) -> list[Task] | Stop:
    """The tasks of the next step, or why the run ends.

    Raises BudgetTooSmall before anything was spent, if not one draft can be paid for; NoAnswer
    if the run ends without one.
    """
    planned = (_plan if state["limits"] else _open_ended)(setup, state, stopped)
    if isinstance(planned, Stop) and state["best"] is None:
        if not state["spent"]["calls"] and planned.reason in DIMENSIONS:
            raise BudgetTooSmall(state["limits"], least(setup, state))
        raise NoAnswer(
            state["errors"] or [f"stopped before the first reply ({planned.reason})"],
            state["spent"],
        )
    return planned


def _open_ended(setup: Setup, state: State, stopped: bool) -> list[Task] | Stop:
    """Without a budget: as within one that is doubled whenever it is used up, so that whoever stops
    the run has no less than a run with a quarter of its spend for a known budget (Russell &
    Zilberstein 1991). The first one apart, a horizon that pays for a move is at most four times
    what was spent, however long the drafts are: an endless one must not stake the run."""
    need = least(setup, {**state, "limits": {"tokens": 0}})
    spent = state["spent"]["tokens"]
    ahead = _ROUND * prospects.tokens(view(setup, state, judging=False), "draft")
    used_up = spent + min(ahead, spent)
    for doubled in range(_DOUBLINGS):
        horizon: Limits = {"tokens": (need["tokens"] + _OPENING) * 2**doubled}
        if horizon["tokens"] > used_up:
            planned = _plan(setup, {**state, "limits": horizon}, stopped)
            if not isinstance(planned, Stop):
                return [{**task, "limits": {}} for task in planned]
            if planned.reason not in ("tokens", "judge"):
                return planned
    return Stop("tokens")


def least(setup: Setup, state: State) -> Limits:
    """The smallest budget that pays for one draft, in the dimensions of the run's own."""
    prompt = draft.prompt(state, setup.asked, as_dict(Draft()), 0.0, None)
    gate = setup.gates[OWN]
    bound = gate.bound(gate.shape(list(prompt)), _known(state, OWN)) + state["overhead"]
    amounts = gate.amounts(bound, MIN_ROOM)
    return {
        d: max(amounts[d], limit) if limit >= amounts[d] else amounts[d]
        for d, limit in state["limits"].items()
    }


def view(setup: Setup, state: State, judging: bool = True) -> View:
    best = state["best"]
    return View(
        candidates=state["candidates"],
        best=best,
        pairs=state["pairs"],
        principles=state["principles"],
        payoffs=state["payoffs"],
        profile=setup.profile,
        ballots=state["ballots"],
        judged=state["judging"],
        contests=contests(state) if judging and setup.decides == "judge" else [],
        judging=judging,
        whole=setup.asked.extract is scoring.whole,
        recalled=bool(state["examples"]),
        compared=[(first, second) for first, second, _ in state["matches"]],
        decides=setup.decides,
        made=state["made"],
        spent=state["spent"],
        left=left(state["limits"], state["spent"]),
    )


def _plan(setup: Setup, state: State, stopped: bool) -> list[Task] | Stop:
    if stopped or state["interrupted"]:
        return Stop("interrupted")
    if state["remaining_steps"] <= _STEPS:
        return Stop("steps")
    if state["failures"] >= _PATIENCE:
        return Stop("errors")
    if (enough := _enough(setup, state)) and not _compares(setup, state):
        return enough
    rest = left(state["limits"], state["spent"])
    for dimension in ("seconds", *DIMENSIONS):  # a call cut by the clock uses up its tokens too
        if rest.get(dimension, 1) <= 0:
            return Stop(dimension)
    need = _last_call_need(setup, state)
    scarce = any(rest[d] < 2 * need[d] for d in need if d in rest)
    if scarce and (last := _last_call(setup, state, rest)):
        return last
    moves = _moves(setup, state, rest)
    if not moves or isinstance(moves[0], Stop):
        stop = moves[0] if moves and isinstance(moves[0], Stop) else Stop()
        return _last_call(setup, state, rest) or replace(stop, reason=str(stop.reason))
    if setup.until and (stop_now := outweighed(setup.until, view(setup, state), moves)):
        return _last_call(setup, state, rest) or stop_now
    slicer = _Slicer(setup, state, _calls(moves))
    open_ = rest if setup.decides != "judge" else _comparable(setup, state, rest, slicer.moves)
    return (
        slicer.tasks(_reserved(need, open_))
        or _last_call(setup, state, rest)
        or slicer.tasks(open_)
        or Stop(_short_of(setup, state, open_))
    )


def _enough(setup: Setup, state: State) -> Stop | None:
    """Whether the answer in hand is perfect, or good enough for the caller."""
    best = state["best"]
    if best is not None and best["score"] is not None and best["score"] >= 1.0:
        return Stop("perfect", best["score"])
    return reached(setup.until, view(setup, state)) if setup.until else None


def _moves(setup: Setup, state: State, rest: Limits) -> list[Move]:
    """What the strategy wants, or has wanted and not got; without the judge, if its share does not
    pay for what it shall do."""
    if owed := state.get("owed"):
        return [Draft(**{name: move[name] for name in vars(Draft())}) for move in owed]
    moves = list(setup.strategy(view(setup, state)))
    calls = _calls(moves)
    asks = calls and all(judges(as_dict(move)) for move in calls)
    if asks and not _Slicer(setup, state, calls).tasks(rest):
        return list(setup.strategy(view(setup, state, judging=False)))
    return moves


def _compares(setup: Setup, state: State) -> bool:
    """The strategy asks for nothing but comparisons although a scorer decides: it wants to know of
    the judge, not of a better answer."""
    moves = setup.strategy(view(setup, state)) if setup.decides == "scorer" else []
    return bool(moves) and all(isinstance(m, Critique) and m.second is not None for m in moves)


def _calls(moves: Sequence[Move]) -> list[Draft | Critique | Refine | Learn]:
    return [move for move in moves if not isinstance(move, Stop)]


def _comparable(
    setup: Setup, state: State, rest: Limits, moves: Sequence[Draft | Critique | Refine | Learn]
) -> Limits:
    """What is left for these moves under a judge. An answer that could not be compared any more
    would be paid for in vain: so the next comparison is held back from other moves, and nothing is
    left for them if it cannot be paid for."""
    best = state["best"]
    if best is None and rest.get("calls", 0) >= 4:
        return {**rest, "calls": rest["calls"] - 2}
    if best is None or not best["complete"] or any(judges(as_dict(m)) for m in moves):
        return rest
    compared = _comparison(setup, state, rest)
    return _without(setup, rest, compared) if compared else dict.fromkeys(rest, 0)


def _comparison(setup: Setup, state: State, rest: Limits) -> list[Task]:
    """The next comparison, as far as it can be told by now."""
    assert state["best"] is not None
    best = state["best"]["id"]
    pair = next(iter(contests(state, 1)), (best, best))
    return _Slicer(setup, state, [Critique(*pair)]).tasks(rest)


def _without(setup: Setup, rest: Limits, tasks: Sequence[Task]) -> Limits:
    """What these comparisons leave for others, if their replies are short."""
    prices = setup.gates[tasks[0]["gate"]].prices
    bound, room = sum(t["prompt_bound"] for t in tasks), GOOD_ROOM * len(tasks)
    need: Limits = {
        "tokens": bound + room,
        "output_tokens": room,
        "usd": prices.most(bound, room) if prices else 0.0,
        "calls": len(tasks),
    }
    return {d: max(0, amount - need.get(d, 0)) for d, amount in rest.items()}


def _short_of(setup: Setup, state: State, rest: Limits) -> str:
    """Why no further move can be paid for: the dimension that it would overrun, or "judge" if the
    judge's share of the budget is used up."""
    if setup.decides == "judge" and state["best"] is not None:
        whole = replace(setup, judge=replace(setup.judge, share=1.0))
        all_left = left(state["limits"], state["spent"])
        if not _comparison(setup, state, all_left) and _comparison(whole, state, all_left):
            return "judge"
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
    gate = setup.gates[OWN]
    return gate.amounts(gate.bound(gate.shape(prompt), _known(state, OWN)), GOOD_ROOM)


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
    moves: Sequence[Draft | Critique | Refine | Learn]

    def tasks(self, rest: Limits) -> list[Task]:
        """Rather fewer moves than such without the lessons that they are to show."""
        comfort = max(GOOD_ROOM, self.state["least_room"])
        for taught in (True, False):
            for n in range(len(self.moves), 0, -1):
                if tasks := self._first(n, rest, comfort, taught):
                    return tasks
        for move in self.moves:
            for room in (comfort, MIN_ROOM):
                if tasks := self._sliced([(move, 1.0)], rest, room):
                    return tasks
        return []

    def _first(self, n: int, rest: Limits, room: int, taught: bool) -> list[Task]:
        """The first n moves at their shares; at larger ones if there are fewer than was asked."""
        grow = len(self.moves) / n
        shares = [min(1 / n, (m.share or 1 / len(self.moves)) * grow) for m in self.moves[:n]]
        return self._sliced(list(zip(self.moves[:n], shares, strict=True)), rest, room, taught)

    def _sliced(
        self,
        planned: Sequence[tuple[Draft | Critique | Refine | Learn, float]],
        rest: Limits,
        room: int,
        taught: bool = False,
    ) -> list[Task]:
        calls = [
            (move, part / len(orders), swapped)
            for move, part in self._together(planned)
            for orders in [_orders(move)]
            for swapped in orders
        ]
        planned_moves = [move for move, *_ in calls]
        agents = sum("agent" in move for move in planned_moves)
        most_calls = rest.get("calls", math.inf)
        if len(calls) + agents > most_calls and len(calls) > min(1, most_calls):
            return []
        judged = sum(judges(move) for move in planned_moves)
        tasks: list[Task] = []
        ordinal = self.state["ordinal"]
        for move, part, swapped in calls:
            slice_ = share(rest, part)
            if judges(move):
                most = share(self._allowance(), 1 / judged)
                slice_ = {d: min(amount, most.get(d, amount)) for d, amount in slice_.items()}
            if "agent" in move and "calls" in rest:
                slice_["calls"] += math.floor((rest["calls"] - len(calls)) * part)
            task = self._task(ordinal, move, slice_, swapped, room, taught)
            if task is None:
                return []
            tasks.append(task)
            ordinal += places(move)
        return tasks

    def _together(
        self, planned: Sequence[tuple[Draft | Critique | Refine | Learn, float]]
    ) -> list[tuple[dict[str, Any], float]]:
        """The moves as data; equal drafts side by side as one request for several choices, where
        those can be had. Until it is known that the prompt is billed once, it is reserved for each."""
        once = _once(self.setup, self.state)
        told: list[tuple[dict[str, Any], float]] = []
        for i, (asked, part) in enumerate(planned):
            move = self._as_dict(asked)
            drafts = move["kind"] == "draft" and move["conclude"] is None and "agent" not in move
            if i and drafts and once is not False and planned[i - 1][0] == asked:
                move, before = told.pop()
                n, part = move.get("choices", 1) + 1, min(1.0, before + part)
                move = {**move, "choices": n, "billed": 1 if once else n}
            told.append((move, part))
        return told

    def _as_dict(self, move: Draft | Critique | Refine | Learn) -> dict[str, Any]:
        drafts = isinstance(move, Draft) and move.conclude is None
        return as_dict(move) | ({"agent": True} if drafts and self.setup.drafter else {})

    def _task(
        self,
        ordinal: int,
        move: dict[str, Any],
        slice_: Limits,
        swapped: bool,
        least_room: int,
        taught: bool,
    ) -> Task | None:
        """The call in full: the most detailed prompt that leaves room enough for the reply."""
        state, name = self.state, self.setup.gate(move, self.state)
        gate, judged = self.setup.gates[name], judges(move)
        overhead = state["overhead"] if "agent" in move else 0
        if "agent" in move:
            move = {**move, "agent": least_room > MIN_ROOM, "overhead": overhead}
        within = move["kind"] in ("draft", "refine") and move.get("conclude") is None
        n, billed = move.get("choices", 1), move.get("billed", 1)
        if n > billed:
            least_room = self._snug(least_room)
        allowance = _lessons_allowance(share(slice_, billed / n), gate)
        teaches = "pairs" in move and move.get("conclude") is None
        known = lessons(state, move, allowance) if teaches else Lessons()
        for detail in DETAILS:
            shown = bool(detail and known.text(detail))
            if taught and known.any() and not shown:
                continue
            build = self._prompt(move, detail, swapped, allowance, name)
            shape = gate.shape(build(99_999))
            bound = gate.bound(shape, _known(state, name), within) + overhead
            paid = output_room(slice_, bound * billed, gate.prices)
            paid = None if paid is None else paid // n
            usual = min(bound, math.ceil(self._length.most) if self._length else bound)
            wanted = {1.0: usual, 0.0: 0}.get(detail, GOOD_ROOM)
            if paid is not None and paid < (least_room if judged else max(wanted, least_room)):
                continue
            if move.get("agent") and overhead:
                tools_room = output_room(share(slice_, 0.5), bound, gate.prices)
                if tools_room is not None and tools_room < GOOD_ROOM:
                    continue
            if judged:
                most = max(_VERDICT, 2 * state["least_room"])
                paid = most if paid is None else min(paid, most)
            room = gate.cap(paid)
            prompt = build(room)
            if "pairs" in move:
                move = {**move, "taught": shown}
            return Task(
                ordinal=ordinal,
                step=state["ordinal"],
                move=move,
                swapped=swapped,
                gate=name,
                slice=slice_,
                prompt=prompt,
                prompt_bound=bound * billed,
                room=None if room is None else room * n,
                shape=gate.shape(prompt),
                wait=min(state["wait"] * 2 ** max(0, state["failures"] - 1), 30.0),
                run_id=state["run_id"],
                thread=state["thread"],
                plan="",
                chosen={},
                question=question_of(state["messages"]).text,
                spent=state["spent"],
                limits=state["limits"],
                growth=_known(state, name)["growth"],
            )
        return None

    @cached_property
    def _length(self) -> prospects.Reply | None:
        """Of a draft's reply, as far as it is known."""
        return prospects.reply(view(self.setup, self.state, judging=False))

    def _snug(self, comfort: int) -> int:
        """Output tokens that do for one of several choices, once the length of replies is known."""
        if self._length is None or self.state["least_room"] > GOOD_ROOM:
            return comfort
        return min(comfort, max(MIN_ROOM, math.ceil(2 * self._length.most)))

    def _allowance(self) -> Limits:
        """What the judge may still spend."""
        limits, spent = self.state["limits"], self.state["judging"]["spent"]
        shared: Limits = {d: limits[d] for d in limits if d in ("tokens", "output_tokens", "usd")}
        return left(share(shared, self.setup.judge.share), spent)

    def _prompt(
        self,
        move: dict[str, Any],
        detail: float,
        swapped: bool,
        allowance: int | None,
        gate: str,
    ) -> Any:
        state, asked = self.state, self.setup.asked
        if move["kind"] in ("draft", "refine"):
            node = draft if move["kind"] == "draft" else refine
            return lambda room: list(node.prompt(state, asked, move, detail, room, allowance))
        if move["kind"] == "learn":
            return lambda _: list(learn.prompt(state, asked, move, detail))
        rubric, held = self.setup.judge.rubric, gate == STRUCTURED
        return lambda _: list(critique.prompt(state, asked, move, detail, swapped, rubric, held))


def _once(setup: Setup, state: State) -> bool | None:
    """Whether a request for several choices is billed its prompt once, by its provider's reports or
    by what is known of it; None if that is to be found out."""
    return _known(state, OWN).get("once", setup.gates[OWN].once)


def _known(state: State, gate: str) -> Calibration:
    return state["calibrations"].get(gate) or uncalibrated()


def _lessons_allowance(slice_: Limits, gate: Gate) -> int | None:
    """Input tokens of a slice that preference pairs may take."""
    paid = [slice_["tokens"]] if "tokens" in slice_ else []
    if "usd" in slice_ and gate.prices and gate.prices.input:
        paid.append(slice_["usd"] * 1e6 / gate.prices.input)
    return int(_LESSONS * min(paid)) if paid else None


def _orders(move: Mapping[str, Any]) -> tuple[bool, ...]:
    """A comparison is asked in both orders; anything else once."""
    compares = move["kind"] == "critique" and move["second"] is not None
    return (False, True) if compares else (False,)
