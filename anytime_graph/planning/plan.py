"""The budget edge: what to do next, or why the run ends.

Pure: state in, planned calls or a stop reason out. What each call may spend is cut in `slices`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import cast

from anytime_graph import prompts
from anytime_graph.budget import (
    DIMENSIONS,
    GOOD_ROOM,
    TOOL_CALLS,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    Short,
    least,
    left,
    total,
)
from anytime_graph.planning import prospects
from anytime_graph.planning.answers import conversation
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
from anytime_graph.planning.slices import Planned, Slices, least_call, needed
from anytime_graph.planning.until import outweighed, reached
from anytime_graph.planning.view import view
from anytime_graph.run.calls import PATIENCE, PlannedMove, judges, seeks_answer
from anytime_graph.run.fold import contests, tied
from anytime_graph.run.state import State, conclusions

_RESERVE, _RESERVE_CUT = 0.2, 0.5
"""The largest part of what is left that is held back for a last call that forces an answer: as long as no
reply has come, and once one was cut before its answer."""
_OPENING = 4_096
"""Output tokens of the first horizon of a run without a budget."""
_ROUND, _DOUBLINGS = 8, 64
"""Drafts that a horizon must still pay for, so that none is cut for nothing; how often it may double."""
QUOTA = "quota"
"""Why a run ends, or does not begin, that only quotas do not pay for."""
_STEPS = 3
"""Graph steps that another round takes: the calls, the fold, the finish."""
_ALL_CUT = 8
"""Replies after which no other is expected to be whole, if all were cut."""
_AT_LIMIT = 0.9
"""The part of a limit that cut replies take on average at least, if it is what cuts them, and not their slices."""


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


@dataclass(frozen=True)
class _Edge:
    """The budget edge at one state of a run. own: its limits without what quotas take off; of these
    the judge has its share."""

    setup: Setup
    state: State
    own: Limits

    @cached_property
    def slices(self) -> Slices:
        """What its calls may spend."""
        return Slices(self.setup, self.state, self.own)

    @property
    def view(self) -> View:
        """What the strategy may know."""
        return self.slices.view

    @property
    def rest(self) -> Limits:
        """What is left of the budget."""
        return self.slices.rest

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
        calls = self.slices.calls(moves, self._reserved(open_))
        if setup.decides == "agreement" and not self._long_enough(calls):
            calls = self._overdue() or calls
        return (
            calls
            or self._last_call()
            or self.slices.calls(moves, open_)
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
        if calling and all(map(judges, calling)) and not self.slices.calls(calling, self.rest):
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
                if len(calls := self.slices.calls(fewer, open_)) == n and self._long_enough(calls):
                    return fewer, open_
        return moves, self._without([])

    def _without(self, comparison: Sequence[Planned]) -> Limits:
        """What is left besides a comparison; nothing if there is none to be paid for."""
        if not comparison:
            return dict.fromkeys(self.rest, 0)
        first = comparison[0].call
        judge = self.setup.meters[first["role"]]
        letter = self.setup.decides != "judge"
        room = self.slices.verdict_room(first["move"]) if letter else GOOD_ROOM
        held = total(judge.reservation(p.call["max_input"], room) for p in comparison)
        return left(self.rest, held)

    def _long_enough(self, calls: Sequence[Planned]) -> bool:
        """Whether most replies would fit their calls, as far as their length is known."""
        most = self.slices.length.most if self.slices.length else 0.0
        rooms = (c.call["max_output"] for c in calls if seeks_answer(c.call["move"]))
        return all(room is None or room >= most for room in rooms)

    def _comparison(self, new: int = 1, part: float = 1.0) -> list[Planned]:
        """The next comparison, as far as it is known; else one of the same length. new: answers that are
        still to come. part: of what is left that it may take."""
        assert self.state["best"] is not None
        best = self.state["best"]["id"]
        if self.setup.decides == "agreement":
            among = (*(tied(self.state) or [best]), *[best] * new)
            return self.slices.beyond_share([planned_move(Choose(among, share=part))])
        pair = next(iter(contests(self.state, 1)), (best, best))
        move = planned_move(Critique(*pair))
        return self.slices.calls([move], self.rest) or self.slices.beyond_share([move])

    def _overdue(self) -> list[Planned]:
        """When nothing else can be bought, or only replies that will be cut: the comparison that is due, even if
        it exceeds the judge's share. Of answers that are equal, as many as can be paid for."""
        if self.setup.decides == "judge":
            wanted = _calling(moves_of(self.setup.strategy, self.view))
            due = bool(wanted) and all(map(judges, wanted))
            return self.slices.beyond_share(wanted) if due else []
        equals = tied(self.state) if self.setup.decides == "agreement" else []
        for n in range(len(equals), 1, -1):
            if calls := self.slices.beyond_share([planned_move(Choose(tuple(equals[:n])))]):
                return calls
        return []

    def _short_of(self, moves: Sequence[PlannedMove], rest: Limits) -> str:
        """Why no further move can be paid for: the dimension that it would overrun, or "judge" if the
        judge's share of the budget is used up."""
        setup, state = self.setup, self.state
        yielding = replace(self, setup=replace(setup, yields=True))
        if all(map(judges, moves)) and yielding.slices.beyond_share(moves):
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
        calls = self.slices.calls(move, beside) if pays else []
        return calls or self.slices.calls(move, self.rest)

    def _tries_need(self, tries: Sequence[Draft]) -> Limits:
        """The least that these tries take; nothing if there are none."""
        protocol, asked = self.setup.answers.protocol, conversation(self.state)
        shortest = {
            False: prompts.conclude(asked, protocol, "word " * 40, 0.0),
            True: prompts.conclude_again(asked, protocol),
        }
        needs = [
            needed(self.setup, self.state, shortest[each.again], GOOD_ROOM, last=True)
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


def _calling(moves: Sequence[Move]) -> list[PlannedMove]:
    """The moves that make calls, as plain data."""
    return [planned_move(move) for move in moves if not isinstance(move, Stop)]


def _with_share(move: PlannedMove, part: float) -> PlannedMove:
    changed = move.copy()
    changed["share"] = min(1.0, part)
    return changed
