"""Cuts what is left of a budget into slices: as many of the wanted moves as it pays for, each as a call with its
prompt and its reservation.

Slices never add up to more than what is left, and every call carries the reservation that it will be held to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

from langchain_core.messages import AnyMessage

from anytime_graph.budget import (
    DIMENSIONS,
    GOOD_ROOM,
    MIN_ROOM,
    TOOL_CALLS,
    Limits,
    left,
    lowest,
    output_room,
    share,
)
from anytime_graph.metering.meter import Meter
from anytime_graph.models.tokens import Shape, without_prompt
from anytime_graph.planning import prospects
from anytime_graph.planning.answers import pair_context
from anytime_graph.planning.moves import Draft, View, planned_move
from anytime_graph.planning.setup import Setup
from anytime_graph.planning.view import billed_once, calibration, view
from anytime_graph.prompts import DETAILS, Lessons
from anytime_graph.run.calls import (
    STRUCTURED,
    AgentDraft,
    PlannedCall,
    PlannedMove,
    Role,
    combines,
    judges,
    places,
    seeks_answer,
)
from anytime_graph.run.state import State

_LESSONS = 0.4
"""The part of a slice that preference pairs may take in a prompt."""
_VERDICT = 256
"""The most output tokens of a judgement, unless its model was seen to need more."""
_LONG_REPLY = 99_999
"""A prompt that says how long a reply may be is bounded as if it were this long, the longest text."""
_LINE = 5
"""It says so if this cap may cut a reply, the line takes at most a fifth of the room for one, and the replies
that it may save cost more than the line."""
_USUAL = 128
"""Output tokens below which any reply may be cut, as long as nothing is known of their length."""


class Planned(NamedTuple):
    """A call and its prompt."""

    call: PlannedCall
    prompt: list[AnyMessage]


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
    return needed(setup, state, prompt, least, state["overhead"] + besides)


def _least_room(setup: Setup, state: State) -> int:
    """The least output tokens of a draft. If all that its server said so far is that a cap was too small, more
    than that."""
    if state["spent"]["calls"]:
        return MIN_ROOM
    if state["least_room"] > GOOD_ROOM:
        return state["least_room"]
    return MIN_ROOM if setup.drafter else setup.meters[setup.answering(state, False)].first_room


def needed(
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
    _, bound = own.max_input(prompt, calibration(state, role))
    amounts = cast("Mapping[str, float]", own.reservation(bound + overhead, max_output))
    return {d: amounts[d] for d in DIMENSIONS} | {"seconds": 0.001}


class _Order(NamedTuple):
    """A call before its slice is cut: `n` times the same move, for `part` of what is left.
    prompt_copies: for how many of the n its prompt is reserved."""

    move: PlannedMove
    part: float
    n: int = 1
    prompt_copies: int = 1


@dataclass(frozen=True)
class Slices:
    """What the calls of one step may spend. own: the limits of the run without what quotas take off; of these
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

    @cached_property
    def length(self) -> prospects.ReplyLength | None:
        """How long the replies of drafts are, as far as it is known."""
        return prospects.reply_length(self.view)

    # --- the judge's share

    @property
    def yields(self) -> bool:
        """Whether the judge's share may be exceeded, and is not yet lifted."""
        return self.setup.yields and self.setup.judge.share < 1

    @property
    def without_share(self) -> Slices:
        return replace(self, setup=replace(self.setup, judge=replace(self.setup.judge, share=1.0)))

    def beyond_share(self, moves: Sequence[PlannedMove]) -> list[Planned]:
        """Calls of the judge, even if they exceed its share."""
        return (self.without_share if self.yields else self).calls(moves, self.rest)

    def _judge_rest(self) -> Limits:
        """What the judge may still spend: of 10,000 tokens and a share of .3, 3,000 less its spend."""
        limits, spent = self.own, self.state["judging"]["spent"]
        shared: Limits = {d: limits[d] for d in limits if d in ("tokens", "output_tokens", "usd")}
        return left(share(shared, self.setup.judge.share), spent)

    # --- as many calls as can be paid for

    def calls(self, moves: Sequence[PlannedMove], rest: Limits) -> list[Planned]:
        """As many of the moves as `rest` pays for. Fewer moves with the lessons that they are to show
        come before more moves without; so do fewer with the instructions."""
        comfort = max(GOOD_ROOM, self.state["least_room"])
        for with_pairs, instructed in ((True, True), (False, True), (False, False)):
            for n in range(len(moves), 0, -1):
                # Of 4 moves at a quarter each, 2 get a half each if only 2 can be paid for.
                equal, grow = 1 / len(moves), len(moves) / n
                orders = [_Order(m, min(1 / n, (m["share"] or equal) * grow)) for m in moves[:n]]
                if calls := self._all(orders, rest, comfort, with_pairs, instructed):
                    return calls
        for move in moves:
            for min_output in (comfort, _least_room(self.setup, self.state)):
                if calls := self._all([_Order(move, 1.0)], rest, min_output):
                    return calls
        if self.yields and all(map(_chooses, moves)):
            orders = [_Order(move, move["share"] or 1.0) for move in moves]
            return self.without_share._all(orders, rest, comfort)
        return []

    def _all(
        self,
        orders: Sequence[_Order],
        rest: Limits,
        min_output: int,
        with_pairs: bool = False,
        instructed: bool = False,
    ) -> list[Planned]:
        """All of these calls, or none if `rest` does not pay for all."""
        orders = [each for order in self._together(orders) for each in _both_orders(order)]
        agents = sum(self.by_agent(order.move) for order in orders)
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
            if self.by_agent(order.move) and "calls" in rest:
                # Of 10 calls, two agents at a half each get 1 + 4: each call of a step gets one first.
                slice_["calls"] += math.floor((rest["calls"] - len(orders)) * order.part)
            if TOOL_CALLS in rest:
                # Of 3 tool calls, two agents get 1 and then 2; other calls need none.
                slice_[TOOL_CALLS] = tools // asking if self.by_agent(order.move) else 0
                tools, asking = tools - slice_[TOOL_CALLS], asking - self.by_agent(order.move)
            sliced = _Sliced(self, order, ordinal, slice_, min_output, with_pairs, instructed)
            if (call := sliced.planned()) is None:
                return []
            planned.append(call)
            ordinal += places(call.call)
        return planned

    def _together(self, orders: Sequence[_Order]) -> list[_Order]:
        """Equal drafts side by side become one request for several choices, where those can be had.
        Until it is known that the prompt is billed once, it is reserved for each choice."""
        once = billed_once(self.setup, self.state)
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

    def by_agent(self, move: PlannedMove) -> bool:
        """Whether an agent drafts the answer."""
        return self.setup.drafter is not None and _from_start(move)

    # --- room for a reply

    def verdict_room(self, move: PlannedMove) -> int:
        """The most output tokens of a judgement. The letter of a choice needs twice what letters took so far:
        after two verdicts of 10 tokens in all, 2 * 10/2 = 10, so the least that a call may write."""
        least_room, judging = self.state["least_room"], self.state["judging"]
        if move["kind"] != "critique" or "among" not in move:
            return max(_VERDICT, 2 * least_room)
        if least_room > GOOD_ROOM or not judging["comparisons"]:
            return max(GOOD_ROOM, 2 * least_room if least_room > GOOD_ROOM else 0)
        seen = judging["spent"]["output_tokens"] / (2 * judging["comparisons"])
        return max(MIN_ROOM, math.ceil(2 * seen))

    def choice_room(self, comfort: int) -> int:
        """Output tokens that are enough for one of several choices, once the length of replies is
        known."""
        if self.length is None or self.state["least_room"] > GOOD_ROOM:
            return comfort
        return min(comfort, max(MIN_ROOM, math.ceil(2 * self.length.most)))

    def may_be_cut(self, cap: int, meter: Meter) -> bool:
        """Whether a reply may well take more output tokens than its cap. If the model has that cap anyway,
        whoever set it knows the question, until it cuts a draft."""
        drafts = ("draft", "taught draft")
        cut = any(payoff["cut"] for kind, payoff in self.view.payoffs.items() if kind in drafts)
        if cap == meter.ceiling and not cut:
            return False
        if cut and cap == meter.known.ceiling:
            return True
        return cap < (_USUAL if self.length is None else self.length.ample)

    def worth_telling(self, cap: int, prompt: float, line: float) -> bool:
        """Whether a prompt is to say how long its reply may be, as half of the replies that it would lose cost
        more than the line does. Of replies of 97 and 5 tokens, .16 are expected to take more than 150; beside a
        prompt of 50, half of .16 * 200 are 16, and a line of 22 is too dear."""
        lost = prospects.chance_of_more(self.view, cap)
        return lost is None or lost * (prompt + cap) / 2 > line


class _Sized(NamedTuple):
    """A prompt before it is sent. bound: its input tokens at most. cap: output tokens of the reply, None if nothing
    limits them. bare: its shape without the line that tells the cap, if it has that line."""

    messages: list[AnyMessage]
    shape: Shape
    bound: int
    cap: int | None
    bare: Shape | None = None


@dataclass(frozen=True)
class _Sliced:
    """One call with its slice. min_output: output tokens that are enough for its reply. with_pairs: only a
    prompt that shows the lessons will do; instructed: only one with the instructions."""

    slices: Slices
    order: _Order
    ordinal: int
    slice: Limits
    min_output: int
    with_pairs: bool
    instructed: bool

    def planned(self) -> Planned | None:
        """The call in full, with the most detailed prompt that leaves room enough for the reply; None
        if no prompt does."""
        if self._may_return and self.slice.get("calls", 2) < 2:
            return None  # a tool takes a second call, in which the agent answers
        largest = self.slices.state.get("largest", {}).get(self._role, math.inf)
        for detail in self._details():
            messages = self._prompt(detail)
            shape, bound = self._measured(messages)
            least = self._least(detail, bound)
            if (detail == 0 or bound <= largest) and self._pays(bound, least):
                room = self._room(bound)
                if judges(self._move):
                    room = lowest(room, self.slices.verdict_room(self._move))
                sized = _Sized(messages, shape, bound, self._meter.cap(room, bound))
                return self._sent(detail, self._told(detail, sized, least))
        return None

    # --- the prompt

    def _details(self) -> Iterator[float]:
        """How detailed its prompt may be, the most detailed first."""
        # Without details, the tags are not asked for either.
        tagged = self.slices.setup.answers.protocol.kind == "tags" and seeks_answer(self._move)
        for detail in DETAILS[:-1] if self.instructed and tagged else DETAILS:
            if self._shown(detail) or not (self.with_pairs and self._lessons.any()):
                yield detail

    def _shown(self, detail: float) -> bool:
        """Whether a prompt shows lessons."""
        return bool(detail and self._lessons.text(detail))

    def _prompt(self, detail: float, max_output: int | None = None) -> list[AnyMessage]:
        fewer, structured = _fewer(self._move, detail), self._role == STRUCTURED
        setup, state = self.slices.setup, self.slices.state
        return setup.prompt_of(state, fewer, self._lessons, detail, max_output, structured)

    def _measured(self, messages: list[AnyMessage]) -> tuple[Shape, int]:
        known = calibration(self.slices.state, self._role)
        shape, bound = self._meter.max_input(messages, known, seeks_answer(self._move))
        return shape, bound + self._overhead

    def _told(self, detail: float, sized: _Sized, least: int) -> _Sized:
        """The prompt with a line that says how long its reply may be, where that pays."""
        meter, cap, slices = self._meter, sized.cap, self.slices
        if cap is None or not seeks_answer(self._move) or not slices.may_be_cut(cap, meter):
            return sized
        _, longer = self._measured(self._prompt(detail, _LONG_REPLY))
        line, less = longer - sized.bound, self._room(longer)
        if line <= 0 or (less is not None and less < least):
            return sized
        part = self.order.prompt_copies / self.order.n  # of the prompt, that each choice pays
        worth = slices.worth_telling(cap, sized.bound * part, line * part)
        if not (_LINE * line <= cap and worth) and cap != meter.known.ceiling:
            return sized
        messages = self._prompt(detail, meter.cap(less, longer))
        shape, exact = self._measured(messages)
        bound = max(longer, exact)
        return _Sized(messages, shape, bound, meter.cap(self._room(bound), bound), sized.shape)

    # --- room for the reply

    def _room(self, bound: int) -> int | None:
        """Output tokens of each choice beside a prompt; None if nothing limits them."""
        room = output_room(self.slice, bound * self.order.prompt_copies, self._meter.prices)
        room = None if room is None else room // self.order.n
        return lowest(room, self._meter.known.beside(bound))

    def _least(self, detail: float, bound: int) -> int:
        """Output tokens that a prompt must leave. In full, it must leave a reply as much room as it takes, or as
        most replies need."""
        least, judged, length = self.min_output, judges(self._move), self.slices.length
        if self.order.n > self.order.prompt_copies:
            least = self.slices.choice_room(least)
        if judged:
            return min(least, self.slices.verdict_room(self._move))
        usual = min(bound, math.ceil(length.most)) if length else bound
        return max(least, {1.0: usual, 0.0: 0}.get(detail, GOOD_ROOM))

    def _pays(self, bound: int, least: int) -> bool:
        """Whether the slice pays for the prompt with that much room. An agent gets at most half of its slice for
        its first call."""
        room = self._room(bound)
        if room is not None and room < least:
            return False
        if not (self._may_return and self._overhead):
            return True
        half = output_room(share(self.slice, 0.5), bound, self._meter.prices)
        return half is None or half >= GOOD_ROOM

    # --- the call

    def _sent(self, detail: float, sized: _Sized) -> Planned:
        order, state, cap = self.order, self.slices.state, sized.cap
        move = _fewer(self._move, detail)
        if move["kind"] == "draft" or move["kind"] == "refine":
            move["with_pairs"] = self._shown(detail)
        call = PlannedCall(
            ordinal=self.ordinal,
            step=state["ordinal"],
            move=move,
            role=self._role,
            slice=self.slice,
            max_input=sized.bound * order.prompt_copies,
            max_output=None if cap is None else cap * order.n,
            shape=sized.shape,
            n=order.n,
            prompt_copies=order.prompt_copies,
        )
        if sized.bare is not None:
            call["bare"] = sized.bare
        if self._by_agent:
            known = without_prompt(calibration(state, self._role))
            call["agent"] = AgentDraft(
                may_return=self._may_return, overhead=self._overhead, calibration=known
            )
        return Planned(call, sized.messages)

    # --- what it is

    @property
    def _move(self) -> PlannedMove:
        return self.order.move

    @cached_property
    def _role(self) -> Role:
        return self.slices.setup.role(self._move, self.slices.state)

    @cached_property
    def _meter(self) -> Meter:
        return self.slices.setup.meters[self._role]

    @cached_property
    def _by_agent(self) -> bool:
        return self.slices.by_agent(self._move)

    @property
    def _overhead(self) -> int:
        """Input tokens that an agent adds to the prompt."""
        return self.slices.state["overhead"] if self._by_agent else 0

    @property
    def _may_return(self) -> bool:
        """Whether the agent may come back from tools with another call."""
        return self._by_agent and self.min_output > MIN_ROOM

    @cached_property
    def _lessons(self) -> Lessons:
        part = share(self.slice, self.order.prompt_copies / self.order.n)
        return pair_context(self.slices.state, self._move, _lessons_allowance(part, self._meter))


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


def _lessons_allowance(slice_: Limits, meter: Meter) -> int | None:
    """Input tokens of a slice that preference pairs may take: of 1,000 tokens, 400."""
    amounts = [slice_["tokens"]] if "tokens" in slice_ else []
    if (window := meter.known.window) is not None:
        amounts.append(window)
    if "usd" in slice_ and meter.prices and meter.prices.input:
        amounts.append(slice_["usd"] * 1e6 / meter.prices.input)
    return int(_LESSONS * min(amounts)) if amounts else None
