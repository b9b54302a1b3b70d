"""The budget edge: what to do next, and how much of what is left each move may spend.

Pure: state in, planned calls or a stop reason out. Slices never add up to more than what is left, and
every call carries the reservation that it will be held to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple, cast

from langchain_core.messages import AnyMessage

from anytime_graph import prompts, scoring
from anytime_graph.budget import (
    DIMENSIONS,
    GOOD_ROOM,
    MIN_ROOM,
    TOOL_CALLS,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    Short,
    least,
    left,
    lowest,
    output_room,
    share,
    total,
)
from anytime_graph.metering.meter import Meter
from anytime_graph.models.tokens import Calibration, Shape, uncalibrated
from anytime_graph.planning import prospects
from anytime_graph.planning.answers import conversation, pair_context
from anytime_graph.planning.moves import (
    Choose,
    Critique,
    Draft,
    Move,
    Stop,
    View,
    moves_of,
    planned_move,
)
from anytime_graph.planning.setup import Setup
from anytime_graph.planning.until import outweighed, reached
from anytime_graph.prompts import DETAILS, Lessons
from anytime_graph.run.calls import (
    PATIENCE,
    STRUCTURED,
    AgentDraft,
    PlannedCall,
    PlannedMove,
    combines,
    judges,
    places,
    seeks_answer,
)
from anytime_graph.run.fold import contests, tied
from anytime_graph.run.state import State, conclusions

_RESERVE, _RESERVE_CUT = 0.2, 0.5
"""The largest part of what is left that is held back for a last call that forces an answer: as long as no
reply has come, and once one was cut before its answer."""
_LESSONS = 0.4
"""The part of a slice that preference pairs may take in a prompt."""
_VERDICT = 256
"""The most output tokens of a judgement, unless its model was seen to need more."""
_OPENING = 4_096
"""Output tokens of the first horizon of a run without a budget."""
_ROUND, _DOUBLINGS = 8, 64
"""Drafts that a horizon must still pay for, so that none is cut for nothing; how often it may double."""
QUOTA = "quota"
"""Why a run ends, or does not begin, that only quotas do not pay for."""
_STEPS = 3
"""Graph steps that another round takes: the calls, the fold, the finish."""
_LONG_REPLY = 99_999
"""A prompt that says how long a reply may be is bounded as if it were this long, the longest text."""
_LINE = 5
"""It says so if this cap may cut a reply, the line takes at most a fifth of the room for one, and the replies
that it may save cost more than the line."""
_ALL_CUT = 8
"""Replies after which no other is expected to be whole, if all were cut."""
_AT_LIMIT = 0.9
"""The part of a limit that cut replies take on average at least, if it is what cuts them, and not their slices."""
_USUAL = 128
"""Output tokens below which any reply may be cut, as long as nothing is known of their length."""


class Planned(NamedTuple):
    """A call and its prompt."""

    call: PlannedCall
    prompt: list[AnyMessage]


def plan(
    setup: Setup, state: State, stopped: bool, quotas: Limits | None = None
) -> list[Planned] | Stop:
    """The calls of the next step, or why the run ends. quotas: what quotas leave.

    Raises BudgetTooSmall before any call was made, if not one draft can be paid for (Short with the
    dimension "quota" if only the quotas do not pay for it); NoAnswer if the run ends without an
    answer.
    """
    state = {**state, "interrupted": stopped or state["interrupted"]}
    planned = _step(setup, state, quotas or {})
    if isinstance(planned, Stop) and state["best"] is None:
        called = state["spent"]["calls"] or state.get("refusals")
        if not called and planned.reason == QUOTA:
            raise Short(quotas or {}, least_call(setup, state), QUOTA)
        if not called and planned.reason in DIMENSIONS:
            limits, need = state["limits"], least_call(setup, state)
            raise BudgetTooSmall(limits, {d: max(need[d], limits[d]) for d in limits})
        causes = state["errors"] or [f"stopped before the first reply ({planned.reason})"]
        raise NoAnswer(causes, state["spent"], planned.reason)
    return planned


def _step(setup: Setup, state: State, quotas: Limits) -> list[Planned] | Stop:
    """The calls of the next step, or why the run ends: "quota" if it would go on without quotas."""
    if state.get("withheld"):
        return Stop(QUOTA)
    if state["limits"].keys() - {TOOL_CALLS}:
        planned = _Edge(setup, _within(state, quotas), state["limits"]).step()
    else:
        planned = _open_ended(setup, state, quotas)
    used_up = isinstance(planned, Stop) and planned.reason in (*DIMENSIONS, "judge")
    if quotas and used_up and not isinstance(_step(setup, state, {}), Stop):
        return Stop(QUOTA)
    return planned


def _within(state: State, quotas: Limits) -> State:
    """The state with what quotas leave as limits: after 300 tokens and with 500 left, 800 at most."""
    spent = cast("Mapping[str, float]", state["spent"])
    within = {d: amount + spent[d] for d, amount in quotas.items()}
    return {**state, "limits": least([state["limits"], within])}


def _open_ended(setup: Setup, state: State, quotas: Limits) -> list[Planned] | Stop:
    """A run without a budget has a horizon that doubles whenever it is used up. Stopped at any moment,
    it is then as good as a run with a known budget of a quarter of its spend (Russell & Zilberstein
    1991).

    If the least budget is 104 tokens, the horizons are 4,200, 8,400, 16,800 and so on. With 3,000
    tokens spent and drafts of 500, the next horizon must exceed 3,000 + min(8 * 500, 3,000) = 6,000,
    so it is 8,400. Without the min, drafts that never end would stake ever more.
    """
    setup = replace(setup, near_end_at=math.inf)  # no end is known
    need = least_call(setup, state)["tokens"]
    spent = state["spent"]["tokens"]
    ahead = _ROUND * prospects.tokens(view(setup, state, judging=False), "draft")
    for doubled in range(_DOUBLINGS):
        horizon = (need + _OPENING) * 2**doubled
        if horizon > spent + min(ahead, spent):
            limits: Limits = {"tokens": horizon, **state["limits"]}
            within = _within({**state, "limits": limits}, quotas)
            planned = _Edge(setup, within, limits).step()
            if not isinstance(planned, Stop) or planned.reason not in ("tokens", "judge"):
                return planned
    return Stop("tokens")


def least_call(
    setup: Setup,
    state: State,
    room: int | None = None,
    besides: int = 0,
    detail: float = 0.0,
) -> Limits:
    """What the smallest draft takes of each dimension. room: its output tokens. besides: input tokens
    that come on top of its prompt. detail: 1 for a prompt in full."""
    prompt = setup.prompt_of(state, planned_move(Draft()), Lessons(), detail, None, False)
    least = _least_room(setup, state) if room is None else room
    return _need(setup, state, prompt, least, state["overhead"] + besides)


def _least_room(setup: Setup, state: State) -> int:
    """The least output tokens of a draft. If all that its server said so far is that a cap was too small, more
    than that."""
    if state["spent"]["calls"]:
        return MIN_ROOM
    if state["least_room"] > GOOD_ROOM:
        return state["least_room"]
    return MIN_ROOM if setup.drafter else setup.meters[setup.answering(state, False)].first_room


def _need(
    setup: Setup,
    state: State,
    prompt: list[AnyMessage],
    max_output: int,
    overhead: int = 0,
    last: bool = False,
) -> Limits:
    """What a call for an answer takes of each dimension; of time, an instant."""
    role = setup.answering(state, last)
    own = setup.meters[role]
    _, bound = own.max_input(prompt, _calibration(state, role))
    amounts = cast("Mapping[str, float]", own.reservation(bound + overhead, max_output))
    return {d: amounts[d] for d in DIMENSIONS} | {"seconds": 0.001}


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
        prompt_once=_billed_once(setup, state) is True,
    )


def _billed_once(setup: Setup, state: State) -> bool | None:
    """Whether the prompt of several choices is billed once; None if it is not known, False also if choices cannot
    be had."""
    role = setup.answering(state)
    own = setup.meters[role]
    if "n" in own.known.refused or setup.drafter is not None:
        return False
    return _calibration(state, role).get("once", own.billed_once)


class _Order(NamedTuple):
    """A call before its slice is cut: `n` times the same move, for `part` of what is left.
    prompt_copies: for how many of the n its prompt is reserved."""

    move: PlannedMove
    part: float
    n: int = 1
    prompt_copies: int = 1


@dataclass(frozen=True)
class _Edge:
    """The budget edge at one state of a run. own: its limits without what quotas take off; of these
    the judge has its share."""

    setup: Setup
    state: State
    own: Limits

    @cached_property
    def view(self) -> View:
        """What the strategy may know."""
        return view(self.setup, self.state)

    @cached_property
    def rest(self) -> Limits:
        """What is left of the budget."""
        return left(self.state["limits"], self.state["spent"])

    def step(self) -> list[Planned] | Stop:
        """The calls of the next step, or why the run ends within its limits."""
        setup, state, rest = self.setup, self.state, self.rest
        if state["interrupted"]:
            return Stop("interrupted")
        if state["remaining_steps"] <= _STEPS:
            return Stop("steps")
        if reason := state.get("blocked"):
            return Stop(f"blocked: {reason}")
        if state.get("unscored") and rest.get("seconds", 1) > 0:
            return Stop("scorer")
        if state["failures"] >= PATIENCE:
            return Stop("errors")
        if (enough := self._enough()) and not self._only_compares():
            return enough
        for dimension in ("seconds", *DIMENSIONS):  # a call cut by the clock uses up its tokens too
            if dimension != TOOL_CALLS and rest.get(dimension, 1) <= 0:
                return Stop(dimension)
        need = self._tries_need(self._tries)
        scarce = any(rest[d] < 2 * need[d] for d in need if d in rest)
        if scarce and (last := self._last_call()):
            return last
        moves = self._all_cut() or self._moves()
        if isinstance(moves, Stop):
            return self._last_call() or moves
        if setup.until and (stop := outweighed(setup.until, self.view, moves)):
            return self._last_call() or stop
        moves, open_ = self._comparable(moves)
        calls = self._calls(moves, self._reserved(open_))
        if setup.decides == "agreement" and not self._long_enough(calls):
            calls = self._overdue() or calls
        return (
            calls
            or self._last_call()
            or self._calls(moves, open_)
            or self._overdue()
            or Stop(self._short_of(moves, open_))
        )

    # --- what to do

    def _enough(self) -> Stop | None:
        """Whether the best answer is perfect, or good enough for the caller."""
        best, until = self.state["best"], self.setup.until
        if best is not None and best["score"] is not None and best["score"] >= 1.0:
            return Stop("perfect", best["score"])
        return reached(until, self.view) if until else None

    def _all_cut(self) -> Stop | None:
        """An end, if all answers are cut at a limit that no budget widens, the model's own or its server's,
        also those that were told of it. With a scorer, a cut answer may be worth something."""
        best, meter = self.state["best"], self.setup.meters[self.setup.answering(self.state)]
        if best is None or best["score"] or (best["complete"] and best["node"] != "conclude"):
            return None
        seen = self.view.payoffs.values()
        tries, cut, written, whole = (
            sum(p[n] for p in seen) for n in ("tries", "cut", "written", "whole")
        )
        own = meter.ceiling is not None and written - whole >= _AT_LIMIT * meter.ceiling * cut
        if not own and meter.known.ceiling is None:
            return None
        return Stop("length") if cut >= max(_ALL_CUT, tries / 2) else None

    def _only_compares(self) -> bool:
        """The strategy asks for nothing but comparisons although a scorer decides: it wants to know
        about the judge, not to find a better answer."""
        if self.setup.decides != "scorer":
            return False
        moves = moves_of(self.setup.strategy, self.view)
        return bool(moves) and all(isinstance(m, Critique) and m.second is not None for m in moves)

    def _moves(self) -> list[PlannedMove] | Stop:
        """What the strategy wants now, or wanted before and did not get. If the judge's share does not
        pay for what the judge is to do, the strategy is asked again, without the judge."""
        if owed := self.state.get("owed"):
            return owed
        moves = moves_of(self.setup.strategy, self.view)
        calling = _calling(moves)
        if calling and all(map(judges, calling)) and not self._calls(calling, self.rest):
            moves = moves_of(self.setup.strategy, view(self.setup, self.state, judging=False))
        first = moves[0] if moves else Stop()
        if isinstance(first, Stop):
            return replace(first, reason=str(first.reason))
        return _calling(moves)

    def _comparable(self, moves: list[PlannedMove]) -> tuple[list[PlannedMove], Limits]:
        """The moves and what is left for them. An answer that can no longer be told apart from others is
        paid for in vain. So where the judge does that, the next comparison is held back from other moves,
        and nothing is left for them if it cannot be paid for. If it can with fewer new answers, there are
        fewer."""
        best, rest, decides = self.state["best"], self.rest, self.setup.decides
        if decides == "judge" and best is None and rest.get("calls", 0) >= 4:
            return moves, {**rest, "calls": rest["calls"] - 2}
        judged = prospects.judge_decides(self.view)
        if not judged or best is None or not best["complete"] or any(map(judges, moves)):
            return moves, rest
        if decides == "judge":
            return moves, self._without(self._comparison())
        # A choice among two in both orders, with 1,643 tokens left: 1,640 for whole texts, 884 for shortened
        # ones. A half pays for neither, so the whole would be taken; three quarters leave 759 for a draft.
        for n, part in product(range(len(moves), 0, -1), (0.5, 0.75, 1.0)):
            open_ = self._without(self._comparison(n, part))
            scale = min((open_[d] / rest[d] for d in rest if rest[d]), default=1.0)
            if scale > 0:
                fewer = [_with_share(move, (move["share"] or 1 / n) / scale) for move in moves[:n]]
                if len(calls := self._calls(fewer, open_)) == n and self._long_enough(calls):
                    return fewer, open_
        return moves, self._without([])

    def _without(self, comparison: Sequence[Planned]) -> Limits:
        """What is left besides a comparison; nothing if there is none to be paid for."""
        if not comparison:
            return dict.fromkeys(self.rest, 0)
        first = comparison[0].call
        judge = self.setup.meters[first["role"]]
        room = GOOD_ROOM if self.setup.decides == "judge" else self._verdict_room(first["move"])
        held = total(judge.reservation(p.call["max_input"], room) for p in comparison)
        return left(self.rest, held)

    def _long_enough(self, calls: Sequence[Planned]) -> bool:
        """Whether most replies would fit their calls, as far as their length is known."""
        most = self._length.most if self._length else 0.0
        rooms = (c.call["max_output"] for c in calls if seeks_answer(c.call["move"]))
        return all(room is None or room >= most for room in rooms)

    def _comparison(self, new: int = 1, part: float = 1.0) -> list[Planned]:
        """The next comparison, as far as it is known; else one of the same length. new: answers that are
        still to come. part: of what is left that it may take."""
        assert self.state["best"] is not None
        best = self.state["best"]["id"]
        if self.setup.decides == "agreement":
            among = (*(tied(self.state) or [best]), *[best] * new)
            return self._beyond_share([planned_move(Choose(among, share=part))])
        pair = next(iter(contests(self.state, 1)), (best, best))
        move = planned_move(Critique(*pair))
        return self._calls([move], self.rest) or self._beyond_share([move])

    def _overdue(self) -> list[Planned]:
        """When nothing else can be bought, or only replies that will be cut: the comparison that is due, even if
        it exceeds the judge's share. Of answers that are equal, as many as can be paid for."""
        if self.setup.decides == "judge":
            wanted = _calling(moves_of(self.setup.strategy, self.view))
            return self._beyond_share(wanted) if wanted and all(map(judges, wanted)) else []
        equals = tied(self.state) if self.setup.decides == "agreement" else []
        choices = [planned_move(Choose(tuple(equals[:n]))) for n in range(len(equals), 1, -1)]
        return next(filter(None, (self._beyond_share([each]) for each in choices)), [])

    def _beyond_share(self, moves: Sequence[PlannedMove]) -> list[Planned]:
        """Calls of the judge, even if they exceed its share."""
        return (self._without_share if self._yields else self)._calls(moves, self.rest)

    @property
    def _yields(self) -> bool:
        """Whether the judge's share may be exceeded, and is not yet lifted."""
        return self.setup.yields and self.setup.judge.share < 1

    @property
    def _without_share(self) -> _Edge:
        return replace(self, setup=replace(self.setup, judge=replace(self.setup.judge, share=1.0)))

    def _short_of(self, moves: Sequence[PlannedMove], rest: Limits) -> str:
        """Why no further move can be paid for: the dimension that it would overrun, or "judge" if the
        judge's share of the budget is used up."""
        setup, state = self.setup, self.state
        yielding = replace(self, setup=replace(setup, yields=True))
        if all(map(judges, moves)) and yielding._beyond_share(moves):
            return "judge"
        judged = setup.decides in ("judge", "agreement") and state["best"] is not None
        if judged and not self._comparison() and yielding._comparison():
            return "judge"
        need = least_call(setup, state)
        return next((d for d in DIMENSIONS if d in rest and rest[d] < need[d]), next(iter(rest)))

    # --- the last call, which forces an answer out of the best reply

    @cached_property
    def _tries(self) -> list[Draft]:
        """What may still be tried to force an answer out of the best reply, which was cut before it held one;
        each in a form of its own, so that the second does not repeat the fault of the first. Before the first
        reply: what may be tried then."""
        best, state = self.state["best"], self.state
        if self.setup.answers.protocol.kind == "whole" or (best is not None and best["complete"]):
            return []
        of = 0 if best is None else best["id"]
        if best is not None and best["node"] == "conclude":
            (of,) = best["parents"]
        made = conclusions(state) if state["concluded"] == of else 0
        return [Draft(conclude=of), Draft(conclude=of, again=True)][made:]

    def _last_call(self) -> list[Planned]:
        """The next try, beside what the one after it takes, and a quarter of the time, if both can be paid for."""
        if self.state["best"] is None or not self._tries:
            return []
        first, *later = self._tries
        move, need = [planned_move(first)], self._tries_need(later)
        if later and "seconds" in self.rest:
            need["seconds"] = self.rest["seconds"] / 4
        beside: Limits = {d: amount - need.get(d, 0) for d, amount in self.rest.items()}
        enough = self._tries_need([first])
        pays = all(beside[d] >= amount for d, amount in enough.items() if d in beside)
        return (self._calls(move, beside) if pays else []) or self._calls(move, self.rest)

    def _tries_need(self, tries: Sequence[Draft]) -> Limits:
        """The least that these tries take; nothing if there are none."""
        protocol, asked = self.setup.answers.protocol, conversation(self.state)
        shortest = {
            False: prompts.conclude(asked, protocol, "word " * 40, 0.0),
            True: prompts.conclude_again(asked, protocol),
        }
        needs = [
            _need(self.setup, self.state, shortest[each.again], GOOD_ROOM, last=True)
            for each in tries
        ]
        return {d: sum(need[d] for need in needs) for d in needs[0]} if needs else {}

    def _reserved(self, rest: Limits) -> Limits:
        """What is left when the last call is held back, with its second try if that can be. It may take a part
        of each dimension: a fifth, or a half once a reply was cut. Of time, a fifth is held back: 1,000 tokens
        and 60 seconds, less a last call of 150 tokens, are 850 tokens and 48 seconds; less one of 250 tokens,
        they stay as they are as long as no reply was cut."""
        part = _RESERVE if self.state["best"] is None else _RESERVE_CUT
        for tries in (self._tries, self._tries[:1]):
            need = self._tries_need(tries)
            if need and all(need[d] <= part * rest[d] for d in need if d in rest):
                held = need | ({"seconds": _RESERVE * rest["seconds"]} if "seconds" in rest else {})
                return {d: amount - held.get(d, 0) for d, amount in rest.items()}
        return rest

    # --- slices

    def _calls(self, moves: Sequence[PlannedMove], rest: Limits) -> list[Planned]:
        """As many of the moves as `rest` pays for. Fewer moves with the lessons that they are to show
        come before more moves without; so do fewer with the instructions."""
        comfort = max(GOOD_ROOM, self.state["least_room"])
        for with_pairs, instructed in ((True, True), (False, True), (False, False)):
            for n in range(len(moves), 0, -1):
                # Of 4 moves at a quarter each, 2 get a half each if only 2 can be paid for.
                equal, grow = 1 / len(moves), len(moves) / n
                orders = [_Order(m, min(1 / n, (m["share"] or equal) * grow)) for m in moves[:n]]
                if calls := self._sliced(orders, rest, comfort, with_pairs, instructed):
                    return calls
        for move in moves:
            for min_output in (comfort, _least_room(self.setup, self.state)):
                if calls := self._sliced([_Order(move, 1.0)], rest, min_output):
                    return calls
        if self._yields and all(map(_chooses, moves)):
            orders = [_Order(move, move["share"] or 1.0) for move in moves]
            return self._without_share._sliced(orders, rest, comfort)
        return []

    def _sliced(
        self,
        orders: Sequence[_Order],
        rest: Limits,
        min_output: int,
        with_pairs: bool = False,
        instructed: bool = False,
    ) -> list[Planned]:
        """All of these calls, or none if `rest` does not pay for all."""
        orders = [each for order in self._together(orders) for each in _both_orders(order)]
        agents = sum(self._by_agent(order.move) for order in orders)
        most_calls = rest.get("calls", math.inf)
        if len(orders) + agents > most_calls and len(orders) > min(1, most_calls):
            return []
        judged = sum(judges(order.move) for order in orders)
        planned: list[Planned] = []
        tools, asking = rest.get(TOOL_CALLS, 0), agents
        ordinal = self.state["ordinal"]
        for order in orders:
            slice_ = share(rest, order.part)
            if judges(order.move):
                most = share(self._judge_rest(), 1 / judged)
                slice_ = {d: min(amount, most.get(d, amount)) for d, amount in slice_.items()}
            if self._by_agent(order.move) and "calls" in rest:
                # Of 10 calls, two agents at a half each get 1 + 4: each call of a step gets one first.
                slice_["calls"] += math.floor((rest["calls"] - len(orders)) * order.part)
            if TOOL_CALLS in rest:
                # Of 3 tool calls, two agents get 1 and then 2; other calls need none.
                slice_[TOOL_CALLS] = tools // asking if self._by_agent(order.move) else 0
                tools, asking = tools - slice_[TOOL_CALLS], asking - self._by_agent(order.move)
            call = self._planned(ordinal, order, slice_, min_output, with_pairs, instructed)
            if call is None:
                return []
            planned.append(call)
            ordinal += places(call.call)
        return planned

    def _together(self, orders: Sequence[_Order]) -> list[_Order]:
        """Equal drafts side by side become one request for several choices, where those can be had.
        Until it is known that the prompt is billed once, it is reserved for each choice."""
        once = _billed_once(self.setup, self.state)
        if once is False:
            return list(orders)
        merged: list[_Order] = []
        for order in orders:
            if _from_start(order.move) and merged and merged[-1].move == order.move:
                same = merged.pop()
                n, part = same.n + 1, min(1.0, same.part + order.part)
                order = _Order(order.move, part, n, prompt_copies=1 if once else n)
            merged.append(order)
        return merged

    def _by_agent(self, move: PlannedMove) -> bool:
        return self.setup.drafter is not None and _from_start(move)

    def _planned(
        self,
        ordinal: int,
        order: _Order,
        slice_: Limits,
        min_output: int,
        with_pairs: bool,
        instructed: bool,
    ) -> Planned | None:
        """The call in full, with the most detailed prompt that leaves room enough for the reply; None
        if no prompt does."""
        state, move, n, copies = self.state, order.move, order.n, order.prompt_copies
        role, judged, by_agent = self.setup.role(move, state), judges(move), self._by_agent(move)
        meter, calibration = self.setup.meters[role], _calibration(state, role)
        overhead = state["overhead"] if by_agent else 0
        largest = state.get("largest", {}).get(role, math.inf)
        may_return = by_agent and min_output > MIN_ROOM
        if may_return and slice_.get("calls", 2) < 2:
            return None  # a tool takes a second call, in which the agent answers
        if n > copies:
            min_output = self._choice_room(min_output)
        if judged:
            min_output = min(min_output, self._verdict_room(move))
        allowance = _lessons_allowance(share(slice_, copies / n), meter)
        lessons = pair_context(state, move, allowance)

        def prompt(detail: float, max_output: int | None) -> list[AnyMessage]:
            fewer, structured = _fewer(move, detail), role == STRUCTURED
            return self.setup.prompt_of(state, fewer, lessons, detail, max_output, structured)

        def measured(messages: list[AnyMessage]) -> tuple[Shape, int]:
            shape, bound = meter.max_input(messages, calibration, seeks_answer(move))
            return shape, bound + overhead

        def room_beside(bound: int) -> int | None:
            room = output_room(slice_, bound * copies, meter.prices)
            return lowest(None if room is None else room // n, meter.known.beside(bound))

        # Without details, the tags are not asked for either.
        tagged = self.setup.answers.protocol.kind == "tags" and seeks_answer(move)
        for detail in DETAILS[:-1] if instructed and tagged else DETAILS:
            shown = bool(detail and lessons.text(detail))
            if with_pairs and lessons.any() and not shown:
                continue
            messages = prompt(detail, None)
            shape, bound = measured(messages)
            if detail and bound > largest:
                continue
            room = room_beside(bound)
            # In full, a prompt must leave a reply as much room as it takes, or as most replies need.
            usual = min(bound, math.ceil(self._length.most)) if self._length else bound
            wanted = 0 if judged else {1.0: usual, 0.0: 0}.get(detail, GOOD_ROOM)
            if room is not None and room < max(wanted, min_output):
                continue
            # An agent gets at most half of its slice for its first call.
            if may_return and overhead:
                tools_room = output_room(share(slice_, 0.5), bound, meter.prices)
                if tools_room is not None and tools_room < GOOD_ROOM:
                    continue
            if judged:
                room = lowest(room, self._verdict_room(move))
            cap = meter.cap(room, bound)
            bare = None
            if cap is not None and seeks_answer(move) and self._may_be_cut(cap, meter):
                _, longer = measured(prompt(detail, _LONG_REPLY))
                line, less = longer - bound, room_beside(longer)
                fits = less is None or less >= max(wanted, min_output)
                part = copies / n  # of the prompt, that each choice pays
                pays = _LINE * line <= cap and self._worth_telling(cap, bound * part, line * part)
                if fits and line > 0 and (pays or cap == meter.known.ceiling):
                    bare, messages = shape, prompt(detail, meter.cap(less, longer))
                    shape, exact = measured(messages)
                    bound = max(longer, exact)
                    cap = meter.cap(room_beside(bound), bound)
            sent = _fewer(move, detail)
            if sent["kind"] == "draft" or sent["kind"] == "refine":
                sent["with_pairs"] = shown
            call = PlannedCall(
                ordinal=ordinal,
                step=state["ordinal"],
                move=sent,
                role=role,
                slice=slice_,
                max_input=bound * copies,
                max_output=None if cap is None else cap * n,
                shape=shape,
                n=n,
                prompt_copies=copies,
            )
            if bare is not None:
                call["bare"] = bare
            if by_agent:
                growth = calibration["growth"]
                call["agent"] = AgentDraft(may_return=may_return, overhead=overhead, growth=growth)
            return Planned(call, messages)
        return None

    def _verdict_room(self, move: PlannedMove) -> int:
        """The most output tokens of a judgement. The letter of a choice needs twice what letters took so far:
        after two verdicts of 10 tokens in all, 2 * 10/2 = 10, so the least that a call may write."""
        least_room, judging = self.state["least_room"], self.state["judging"]
        if move["kind"] != "critique" or "among" not in move:
            return max(_VERDICT, 2 * least_room)
        if least_room > GOOD_ROOM or not judging["comparisons"]:
            return max(GOOD_ROOM, 2 * least_room if least_room > GOOD_ROOM else 0)
        seen = judging["spent"]["output_tokens"] / (2 * judging["comparisons"])
        return max(MIN_ROOM, math.ceil(2 * seen))

    @cached_property
    def _length(self) -> prospects.ReplyLength | None:
        """How long the replies of drafts are, as far as it is known."""
        return prospects.reply_length(self.view)

    def _may_be_cut(self, cap: int, meter: Meter) -> bool:
        """Whether a reply may well take more output tokens than its cap. If the model has that cap anyway,
        whoever set it knows the question, until it cuts a draft."""
        drafts = ("draft", "taught draft")
        cut = any(payoff["cut"] for kind, payoff in self.view.payoffs.items() if kind in drafts)
        if cap == meter.ceiling and not cut:
            return False
        if cut and cap == meter.known.ceiling:
            return True
        return cap < (_USUAL if self._length is None else self._length.ample)

    def _worth_telling(self, cap: int, prompt: float, line: float) -> bool:
        """Whether a prompt is to say how long its reply may be, as half of the replies that it would lose cost
        more than the line does. Of replies of 97 and 5 tokens, .16 are expected to take more than 150; beside a
        prompt of 50, half of .16 * 200 are 16, and a line of 22 is too dear."""
        lost = prospects.chance_of_more(self.view, cap)
        return lost is None or lost * (prompt + cap) / 2 > line

    def _choice_room(self, comfort: int) -> int:
        """Output tokens that are enough for one of several choices, once the length of replies is
        known."""
        if self._length is None or self.state["least_room"] > GOOD_ROOM:
            return comfort
        return min(comfort, max(MIN_ROOM, math.ceil(2 * self._length.most)))

    def _judge_rest(self) -> Limits:
        """What the judge may still spend: of 10,000 tokens and a share of .3, 3,000 less its spend."""
        limits, spent = self.own, self.state["judging"]["spent"]
        shared: Limits = {d: limits[d] for d in limits if d in ("tokens", "output_tokens", "usd")}
        return left(share(shared, self.setup.judge.share), spent)


def _calling(moves: Sequence[Move]) -> list[PlannedMove]:
    """The moves that make calls, as plain data."""
    return [planned_move(move) for move in moves if not isinstance(move, Stop)]


def _with_share(move: PlannedMove, part: float) -> PlannedMove:
    changed = move.copy()
    changed["share"] = min(1.0, part)
    return changed


def _fewer(move: PlannedMove, detail: float) -> PlannedMove:
    """The move with as many of the candidates that it is to combine as its prompt shows: of three in full
    detail all, in half detail the first two, and then the first."""
    fewer = move.copy()
    if combines(fewer):
        fewer["of"] = fewer["of"][: max(1, math.ceil(detail * len(fewer["of"])))]
    return fewer


def _chooses(move: PlannedMove) -> bool:
    """Whether the judge is to choose among several answers; without that they were paid for in vain. To read
    four of them in two orders takes twice their tokens, so a few choices use up a share of .3."""
    return move["kind"] == "critique" and "among" in move


def _from_start(move: PlannedMove) -> bool:
    """Whether a move drafts an answer from the start."""
    return move["kind"] == "draft" and move["conclude"] is None


def _both_orders(order: _Order) -> list[_Order]:
    """A comparison is asked in both orders; anything else once."""
    if order.move["kind"] != "critique" or order.move["second"] is None:
        return [order]
    swapped = order.move.copy()
    swapped["swapped"] = True
    return [_Order(move, order.part / 2) for move in (order.move, swapped)]


def _calibration(state: State, role: str) -> Calibration:
    return state["calibrations"].get(role) or uncalibrated()


def _lessons_allowance(slice_: Limits, meter: Meter) -> int | None:
    """Input tokens of a slice that preference pairs may take: of 1,000 tokens, 400."""
    amounts = [slice_["tokens"]] if "tokens" in slice_ else []
    if (window := meter.known.window) is not None:
        amounts.append(window)
    if "usd" in slice_ and meter.prices and meter.prices.input:
        amounts.append(slice_["usd"] * 1e6 / meter.prices.input)
    return int(_LESSONS * min(amounts)) if amounts else None
