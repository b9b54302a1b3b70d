"""The budget edge: what to do next, and how much of what is left each move may spend.

Pure: state in, planned calls or a stop reason out. Slices never add up to more than what is left, and
every call carries the reservation that it will be held to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

from langchain_core.messages import AnyMessage

from anytime_graph import prompts, scoring
from anytime_graph.budget import (
    DIMENSIONS,
    GOOD_ROOM,
    MIN_ROOM,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    left,
    output_room,
    share,
    total,
)
from anytime_graph.metering.meter import Meter
from anytime_graph.models.tokens import Calibration, uncalibrated
from anytime_graph.planning import prospects
from anytime_graph.planning.answers import conversation, pair_context
from anytime_graph.planning.moves import (
    Critique,
    Draft,
    Learn,
    Move,
    Refine,
    Stop,
    View,
    draft_again,
    planned_move,
)
from anytime_graph.planning.setup import Setup
from anytime_graph.planning.until import outweighed, reached
from anytime_graph.prompts import DETAILS, Lessons
from anytime_graph.run.calls import (
    OWN,
    PATIENCE,
    STRUCTURED,
    AgentDraft,
    PlannedCall,
    PlannedMove,
    Role,
    judges,
    places,
)
from anytime_graph.run.fold import contests
from anytime_graph.run.state import State

_RESERVE = 0.2
"""The largest part of what is left that is held back for a last call that forces an answer."""
_LESSONS = 0.4
"""The part of a slice that preference pairs may take in a prompt."""
_VERDICT = 256
"""Output tokens of a judgement, at most, unless its model was seen to need more."""
_OPENING, _ROUND, _DOUBLINGS = 4_096, 8, 64
"""Without a budget: output tokens of the first horizon; drafts that one should still pay for, lest
they be cut for nothing; how often it is doubled at the most."""
_STEPS = 3
"""Graph steps that another round takes: the calls, the fold, the finish."""


class Planned(NamedTuple):
    """A call and its prompt."""

    call: PlannedCall
    prompt: list[AnyMessage]


Asked = Draft | Critique | Refine | Learn
"""Moves that make calls."""


def plan(setup: Setup, state: State, stopped: bool) -> list[Planned] | Stop:
    """The calls of the next step, or why the run ends.

    Raises BudgetTooSmall before anything was asked, if not one draft can be paid for; NoAnswer
    if the run ends without one.
    """
    planned = (_plan if state["limits"] else _open_ended)(setup, state, stopped)
    if isinstance(planned, Stop) and state["best"] is None:
        asked = state["spent"]["calls"] or state.get("refusals")
        if not asked and planned.reason in DIMENSIONS:
            raise BudgetTooSmall(state["limits"], least(setup, state))
        raise NoAnswer(
            state["errors"] or [f"stopped before the first reply ({planned.reason})"],
            state["spent"],
        )
    return planned


def _open_ended(setup: Setup, state: State, stopped: bool) -> list[Planned] | Stop:
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
                return planned
            if planned.reason not in ("tokens", "judge"):
                return planned
    return Stop("tokens")


def least(setup: Setup, state: State) -> Limits:
    """The smallest budget that pays for one draft, in the dimensions of the run's own."""
    own, prompt = setup.meters[OWN], setup.ask(state, planned_move(Draft()), 0.0)
    _, bound = own.max_input(prompt, _known(state, OWN))
    need = _need(own, bound + state["overhead"], MIN_ROOM)
    return {d: max(need[d], limit) for d, limit in state["limits"].items()}


def _need(meter: Meter, max_input: int, max_output: int) -> Limits:
    """What a call takes of each dimension, of time an instant at the least."""
    amounts = cast("Mapping[str, float]", meter.reservation(max_input, max_output))
    return {d: amounts[d] or 0.001 if d == "seconds" else amounts[d] for d in DIMENSIONS}


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
        whole=setup.answers.extract is scoring.whole_reply,
        recalled=bool(state["examples"]),
        compared=[(first, second) for first, second, _ in state["matches"]],
        decides=setup.decides,
        made=state["made"],
        spent=state["spent"],
        left=left(state["limits"], state["spent"]),
    )


def _plan(setup: Setup, state: State, stopped: bool) -> list[Planned] | Stop:
    if stopped or state["interrupted"]:
        return Stop("interrupted")
    if state["remaining_steps"] <= _STEPS:
        return Stop("steps")
    if state["failures"] >= PATIENCE:
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
        slicer.calls(_reserved(need, open_))
        or _last_call(setup, state, rest)
        or slicer.calls(open_)
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
        return [draft_again(move) for move in owed if move["kind"] == "draft"]
    moves = list(setup.strategy(view(setup, state)))
    calls = _calls(moves)
    asks = calls and all(judges(planned_move(move)) for move in calls)
    if asks and not _Slicer(setup, state, calls).calls(rest):
        return list(setup.strategy(view(setup, state, judging=False)))
    return moves


def _compares(setup: Setup, state: State) -> bool:
    """The strategy asks for nothing but comparisons although a scorer decides: it wants to know of
    the judge, not of a better answer."""
    moves = setup.strategy(view(setup, state)) if setup.decides == "scorer" else []
    return bool(moves) and all(isinstance(m, Critique) and m.second is not None for m in moves)


def _calls(moves: Sequence[Move]) -> list[Asked]:
    return [move for move in moves if not isinstance(move, Stop)]


def _comparable(setup: Setup, state: State, rest: Limits, moves: Sequence[Asked]) -> Limits:
    """What is left for these moves under a judge. An answer that could not be compared any more
    would be paid for in vain: so the next comparison is held back from other moves, and nothing is
    left for them if it cannot be paid for."""
    best = state["best"]
    if best is None and rest.get("calls", 0) >= 4:
        return {**rest, "calls": rest["calls"] - 2}
    if best is None or not best["complete"] or any(judges(planned_move(m)) for m in moves):
        return rest
    compared = _comparison(setup, state, rest)
    return _without(setup, rest, compared) if compared else dict.fromkeys(rest, 0)


def _comparison(setup: Setup, state: State, rest: Limits) -> list[Planned]:
    """The next comparison, as far as it can be told by now."""
    assert state["best"] is not None
    best = state["best"]["id"]
    pair = next(iter(contests(state, 1)), (best, best))
    return _Slicer(setup, state, [Critique(*pair)]).calls(rest)


def _without(setup: Setup, rest: Limits, compared: Sequence[Planned]) -> Limits:
    """What these comparisons leave for others, if their replies are short."""
    judge = setup.meters[compared[0].call["role"]]
    spends = (judge.reservation(p.call["max_input"], GOOD_ROOM) for p in compared)
    return left(rest, total(spends))


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
    return not complete and setup.answers.protocol.kind != "whole"


def _last_call(setup: Setup, state: State, rest: Limits) -> list[Planned]:
    """One short call that forces an answer out of the best reply."""
    best = state["best"]
    if best is None or not _answerless(setup, state):
        return []
    return _Slicer(setup, state, [Draft(conclude=best["id"])]).calls(rest)


def _last_call_need(setup: Setup, state: State) -> Limits:
    """What that call takes at the least; nothing once there is an answer."""
    if not _answerless(setup, state):
        return {}
    own, before = setup.meters[OWN], conversation(state)
    prompt = prompts.conclude(before, setup.answers.protocol, "word " * 40, 0.0)
    _, bound = own.max_input(list(prompt), _known(state, OWN))
    return _need(own, bound, GOOD_ROOM)


def _reserved(need: Limits, rest: Limits) -> Limits:
    """What is left when that call is held back, if it takes no more than a fifth of it; of time,
    a fifth."""
    if not need or any(need[d] > _RESERVE * rest[d] for d in need if d in rest):
        return rest
    held = need | ({"seconds": _RESERVE * rest["seconds"]} if "seconds" in rest else {})
    return {d: amount - held.get(d, 0) for d, amount in rest.items()}


@dataclass(frozen=True)
class _Ordered:
    """A call before its slice is filled: `n` times the same move, for `part` of what is left."""

    move: Asked
    part: float
    n: int = 1
    prompt_copies: int = 1
    swapped: bool = False


@dataclass(frozen=True)
class _Slicer:
    """Cuts what is left into slices for as many of the moves as it pays for."""

    setup: Setup
    state: State
    moves: Sequence[Asked]

    def calls(self, rest: Limits) -> list[Planned]:
        """Rather fewer moves than such without the lessons that they are to show."""
        comfort = max(GOOD_ROOM, self.state["least_room"])
        for with_pairs in (True, False):
            for n in range(len(self.moves), 0, -1):
                if calls := self._first(n, rest, comfort, with_pairs):
                    return calls
        for move in self.moves:
            for min_output in (comfort, MIN_ROOM):
                if calls := self._sliced([_Ordered(move, 1.0)], rest, min_output):
                    return calls
        return []

    def _first(self, n: int, rest: Limits, min_output: int, with_pairs: bool) -> list[Planned]:
        """The first n moves at their shares; at larger ones if there are fewer than was asked."""
        grow = len(self.moves) / n
        ordered = [
            _Ordered(m, min(1 / n, (m.share or 1 / len(self.moves)) * grow)) for m in self.moves[:n]
        ]
        return self._sliced(ordered, rest, min_output, with_pairs)

    def _sliced(
        self,
        ordered: Sequence[_Ordered],
        rest: Limits,
        min_output: int,
        with_pairs: bool = False,
    ) -> list[Planned]:
        calls = [each for one in self._together(ordered) for each in _both_orders(one)]
        agents = sum(self._by_agent(one.move) for one in calls)
        most_calls = rest.get("calls", math.inf)
        if len(calls) + agents > most_calls and len(calls) > min(1, most_calls):
            return []
        judged = sum(judges(planned_move(one.move)) for one in calls)
        planned: list[Planned] = []
        ordinal = self.state["ordinal"]
        for one in calls:
            slice_ = share(rest, one.part)
            if judges(planned_move(one.move)):
                most = share(self._allowance(), 1 / judged)
                slice_ = {d: min(amount, most.get(d, amount)) for d, amount in slice_.items()}
            if self._by_agent(one.move) and "calls" in rest:
                slice_["calls"] += math.floor((rest["calls"] - len(calls)) * one.part)
            call = self._planned(ordinal, one, slice_, min_output, with_pairs)
            if call is None:
                return []
            planned.append(call)
            ordinal += places(call.call)
        return planned

    def _together(self, ordered: Sequence[_Ordered]) -> list[_Ordered]:
        """Equal drafts side by side as one request for several choices, where those can be had.
        Until it is known that the prompt is billed once, it is reserved for each."""
        once = _billed_once(self.setup, self.state)
        found: list[_Ordered] = []
        for one in ordered:
            drafts = isinstance(one.move, Draft) and one.move.conclude is None
            several = drafts and once is not False and not self._by_agent(one.move)
            if several and found and found[-1].move == one.move:
                before = found.pop()
                n, part = before.n + 1, min(1.0, before.part + one.part)
                one = replace(before, part=part, n=n, prompt_copies=1 if once else n)
            found.append(one)
        return found

    def _by_agent(self, move: Asked) -> bool:
        fresh = isinstance(move, Draft) and move.conclude is None
        return fresh and self.setup.drafter is not None

    def _planned(
        self, ordinal: int, one: _Ordered, slice_: Limits, min_output: int, with_pairs: bool
    ) -> Planned | None:
        """The call in full: the most detailed prompt that leaves room enough for the reply."""
        state, move = self.state, planned_move(one.move, swapped=one.swapped)
        role, judged, by_agent = (
            self.setup.role(move, state),
            judges(move),
            self._by_agent(one.move),
        )
        meter, known = self.setup.meters[role], _known(state, role)
        overhead = state["overhead"] if by_agent else 0
        may_return = by_agent and min_output > MIN_ROOM
        answering = isinstance(one.move, Refine) or (
            isinstance(one.move, Draft) and one.move.conclude is None
        )
        n, copies = one.n, one.prompt_copies
        if n > copies:
            min_output = self._choice_room(min_output)
        allowance = _lessons_allowance(share(slice_, copies / n), meter)
        lessons = Lessons()
        if answering and move["kind"] in ("draft", "refine"):
            lessons = pair_context(state, move, allowance)
        for detail in DETAILS:
            shown = bool(detail and lessons.text(detail))
            if with_pairs and lessons.any() and not shown:
                continue
            prompt = self._prompt(move, role, detail, 99_999, allowance)
            shape = meter.tokenizer.shape(prompt)
            bound = meter.tokenizer.bound(shape, known, answering) + overhead
            paid = output_room(slice_, bound * copies, meter.prices)
            paid = None if paid is None else paid // n
            if (beside := meter.known.beside(bound)) is not None:
                beside = max(MIN_ROOM, beside)  # the server has the last word
                paid = beside if paid is None else min(paid, beside)
            usual = min(bound, math.ceil(self._length.most) if self._length else bound)
            wanted = {1.0: usual, 0.0: 0}.get(detail, GOOD_ROOM)
            if paid is not None and paid < (min_output if judged else max(wanted, min_output)):
                continue
            if may_return and overhead:
                tools_room = output_room(share(slice_, 0.5), bound, meter.prices)
                if tools_room is not None and tools_room < GOOD_ROOM:
                    continue
            if judged:
                most = max(_VERDICT, 2 * state["least_room"])
                paid = most if paid is None else min(paid, most)
            cap = meter.cap(paid, bound)
            prompt = self._prompt(move, role, detail, cap, allowance)
            call = PlannedCall(
                ordinal=ordinal,
                step=state["ordinal"],
                move=planned_move(one.move, shown, one.swapped),
                role=role,
                slice=slice_,
                max_input=bound * copies,
                max_output=None if cap is None else cap * n,
                shape=meter.tokenizer.shape(prompt),
                n=n,
                prompt_copies=copies,
            )
            if by_agent:
                call["agent"] = AgentDraft(
                    may_return=may_return, overhead=overhead, growth=known["growth"]
                )
            return Planned(call, prompt)
        return None

    @cached_property
    def _length(self) -> prospects.ReplyLength | None:
        """Of a draft's reply, as far as it is known."""
        return prospects.reply_length(view(self.setup, self.state, judging=False))

    def _choice_room(self, comfort: int) -> int:
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
        move: PlannedMove,
        role: Role,
        detail: float,
        max_output: int | None,
        allowance: int | None,
    ) -> list[AnyMessage]:
        held = role == STRUCTURED
        return self.setup.ask(self.state, move, detail, max_output, allowance, held)


def _both_orders(one: _Ordered) -> list[_Ordered]:
    """A comparison is asked in both orders; anything else once."""
    if not (isinstance(one.move, Critique) and one.move.second is not None):
        return [one]
    return [replace(one, part=one.part / 2, swapped=swapped) for swapped in (False, True)]


def _billed_once(setup: Setup, state: State) -> bool | None:
    """Whether a request for several choices is billed its prompt once, by its provider's reports or
    by what is known of it; None if that is to be found out."""
    own = setup.meters[OWN]
    return False if "n" in own.known.refused else _known(state, OWN).get("once", own.billed_once)


def _known(state: State, role: str) -> Calibration:
    return state["calibrations"].get(role) or uncalibrated()


def _lessons_allowance(slice_: Limits, meter: Meter) -> int | None:
    """Input tokens of a slice that preference pairs may take."""
    paid = [slice_["tokens"]] if "tokens" in slice_ else []
    if (window := meter.known.window) is not None:
        paid.append(window)
    if "usd" in slice_ and meter.prices and meter.prices.input:
        paid.append(slice_["usd"] * 1e6 / meter.prices.input)
    return int(_LESSONS * min(paid)) if paid else None
