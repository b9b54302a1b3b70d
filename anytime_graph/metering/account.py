"""What may still be spent: a tree of accounts, in which every call is reserved before it is made.

An account draws on its parent: a cell's on its benchmark's, a tool call's on the agent's, a sub-agent's
on that of the tool call it runs in. A call is reserved in its account and in all above it, under one
lock, so calls that run side by side cannot overspend together.

    run = Account({"tokens": 1_000})
    tool = Account({"tokens": 800}, parent=run)
    tool.hold(reservation)             # 300 tokens: 500 are left in tool, 700 in run
    tool.settle(reservation, spend)    # 120 tokens: 680 are left in tool, 880 in run
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import BaseMessage

from anytime_graph.budget import BudgetTooSmall, Limits, Spend, left, nothing, output_room, total
from anytime_graph.metering.meter import Meter
from anytime_graph.metering.request import Request
from anytime_graph.models.tokens import Calibration, Shape, uncalibrated

_MARK = "anytime_spent"


class Account:
    """What may still be spent by a run of an agent, by one of its tool calls or drafts, or by a
    benchmark and its cells.

    limits: no more than what the parent has left. spent: what was booked, children included; its
    seconds are those in which calls were active. running: all of its time counts as active.
    due: what of it no state holds yet. reserve: what only the last call may use.
    growth: how far prompts exceeded their bounds, by model. tool_call: the id of the tool call, if
    it is one's.
    """

    def __init__(
        self,
        limits: Limits,
        spent: Spend | None = None,
        parent: Account | None = None,
        tool_call: str | None = None,
        running: bool = False,
    ) -> None:
        self.parent = parent
        self.tool_call = tool_call
        self.chain: list[Account] = [self, *(parent.chain if parent else ())]
        self.lock: threading.RLock = parent.lock if parent else threading.RLock()
        self.growth: dict[str, float] = parent.growth if parent else {}
        self.spent = total([spent or nothing()])
        self.due = nothing()
        self.reserve: Limits = {}
        self._held = nothing()
        self._active = int(running)
        self._since = time.monotonic()
        self._opened = uuid4().hex
        self._recalled = self._closed = False
        above = parent.left() if parent else {}
        used = cast("Mapping[str, float]", self._used())
        self.limits = limits | {
            d: min(limits.get(d, math.inf), amount + used[d]) for d, amount in above.items()
        }

    def left(self, last: bool = False) -> Limits:
        """What is left here and in every account above. last: the reserve included."""
        with self.lock:
            if self._closed:
                return dict.fromkeys(self.limits, 0)
            kept = {} if last else self.reserve
            own = left({d: a - kept.get(d, 0) for d, a in self.limits.items()}, self._used())
            above = self.parent.left() if self.parent else {}
            return {d: min(amount, above.get(d, math.inf)) for d, amount in own.items()}

    def scarcest(self) -> str:
        """The dimension of which the least part is left."""
        rest = self.left()
        return min(rest, key=lambda d: rest[d] / (self.limits[d] or 1.0))

    def hold(self, amounts: Spend) -> None:
        """Reserve a call."""
        with self.lock:
            for account in self.chain:
                if not account._active:
                    account._since = time.monotonic()
                account._active += 1
                account._held = total([account._held, amounts])

    def settle(self, amounts: Spend, spend: Spend) -> None:
        """Book what a call came to in place of its reservation."""
        with self.lock:
            for account in self.chain:
                if account._closed:
                    break
                account._book(amounts, spend, 1)
            self.owe(spend)

    def close(self) -> Spend:
        """What it cost in all, at its end. Calls that outlive it are charged in full. Without
        seconds, which pass for all at once: they are booked above."""
        with self.lock:
            held, active, self._closed = self._held, self._active, True
            for account in self.chain if held["calls"] else ():
                account._book(held, held, active if account is self else held["calls"])
            return {**self.spent, "seconds": 0.0}

    def book(self, spend: Spend) -> None:
        """Add what was spent in this account's name where it could not be reserved here."""
        with self.lock:
            for account in self.chain:
                account.spent = total([account.spent, {**spend, "seconds": 0.0}])

    def known(self, meter: Meter) -> Calibration:
        """How far prompts to this model are known to exceed their bounds."""
        return {**uncalibrated(), "growth": self.growth.get(meter.name, 1.0)}

    def learn(self, meter: Meter, shape: Shape, reported: int) -> None:
        """Take in the provider's report of a prompt."""
        learned = meter.tokenizer.learn(self.known(meter), shape, reported, base=False)
        self.growth[meter.name] = learned["growth"]

    def mark(self, message: BaseMessage) -> None:
        """Note in a reply what the tool calls that it was made in have spent: if they are interrupted,
        nothing but the messages of their sub-agents is kept."""
        marks = [[a.tool_call, a._opened, a.spent] for a in self.chain if a.tool_call]
        if marks:
            message.response_metadata[_MARK] = marks

    def recall(self, prompt: Sequence[BaseMessage]) -> None:
        """Book, once, what tool calls had spent before they were interrupted."""
        marks = [mark for message in prompt for mark in message.response_metadata.get(_MARK, ())]
        with self.lock:
            for account in self.chain if marks else ():
                of = [m for m in marks if m[0] == account.tool_call and m[1] != account._opened]
                if of and not account._recalled:
                    account._recalled = True
                    account.spent = total([account.spent, of[-1][2]])

    def owe(self, spend: Spend) -> None:
        """What this account spent itself, or a tool call that could not hand it to the state."""
        with self.lock:
            self.due = total([self.due, {**spend, "seconds": 0.0}])

    def collect(self) -> Spend:
        """What is due, once."""
        with self.lock:
            due, self.due = self.due, nothing()
            return due

    def _book(self, amounts: Spend, spend: Spend, calls: int) -> None:
        """Replace the reservations of so many calls by what they cost."""
        held = cast("Mapping[str, Any]", amounts)
        self._held = cast(
            Spend, {d: a - held[d] for d, a in cast("dict[str, Any]", self._held).items()}
        )
        self._active -= calls
        active = 0.0 if self._active else time.monotonic() - self._since
        self.spent = total([self.spent, {**spend, "seconds": active}])
        self.due = total([self.due, {**nothing(), "seconds": active}])

    def _used(self) -> Spend:
        """Booked and reserved; the time of calls under way included."""
        active = time.monotonic() - self._since if self._active else 0.0
        return {**total([self.spent, self._held]), "seconds": self.spent["seconds"] + active}


class Short(BudgetTooSmall):
    """A call that what is left cannot pay for. dimension: what it is short of."""

    def __init__(self, rest: Limits, need: Mapping[str, float], dimension: str) -> None:
        super().__init__(rest, {d: max(a, need[d]) for d, a in rest.items()}, "one call")
        self.dimension = dimension


def planned(
    meter: Meter,
    prompt: Sequence[BaseMessage],
    rest: Limits,
    known: Calibration,
    *,
    min_output: int,
    half: bool,
) -> tuple[Shape, Request]:
    """The call for this prompt that `rest` pays for, with at least `min_output` output tokens.

    half: it writes at most half of what is left after its prompt, for one that fails is charged all
    that it might have written. 1,000 tokens and a prompt of up to 300: it may write 350.
    Raises Short if `rest` does not pay for it.
    """
    messages = list(prompt)
    shape, max_input = meter.max_input(messages, known)
    least = meter.cap(min_output) or 0
    need = {**meter.reservation(max_input, least), "seconds": 0.001}
    for dimension, amount in rest.items():
        if amount < cast("Mapping[str, float]", need)[dimension]:
            raise Short(rest, cast("Mapping[str, float]", need), dimension)
    room = output_room(rest, max_input, meter.prices)
    if room is not None and half:
        room = max(least, room // 2)
    return shape, Request(
        prompt=messages,
        max_input=max_input,
        max_output=meter.cap(room),
        seconds=rest.get("seconds"),
    )
