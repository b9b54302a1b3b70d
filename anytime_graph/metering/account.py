"""What may still be spent: a tree of accounts in which every call is reserved before it is made.

An account draws on its parent: a benchmark pays its cells, an agent its tool calls, a tool call the
sub-agents that run in it. A call is reserved in its account and in all above it, under one lock, so
calls that run side by side cannot overspend together. At the root of the tree there may be quotas,
which other processes draw on too: their books are kept in a database, and a call is reserved there
just before it is made (see metering.request.Shared).

    run = Account({"tokens": 1_000})
    tool = Account({"tokens": 800}, parent=run)
    tool.hold(reservation)             # 300 tokens: 500 are left in tool, 700 in run
    tool.settle(reservation, spend)    # 120 tokens: 680 are left in tool, 880 in run
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from secrets import randbits
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import BaseMessage

from anytime_graph.budget import (
    DIMENSIONS,
    LARGEST,
    TOOL_CALLS,
    Limits,
    Short,
    Spend,
    least,
    left,
    nothing,
    output_room,
    total,
)
from anytime_graph.metering.meter import Meter
from anytime_graph.metering.quota import Standings
from anytime_graph.metering.request import JournalError, Request, RunRecord, Shared, Take
from anytime_graph.models.tokens import Calibration, Shape, uncalibrated

_MARK = "anytime_spent"


class Account:
    """What a run of an agent, one of its tool calls or drafts, a benchmark or one of its cells may
    still spend.

    limits: no more than what the parent has left. spent: what was booked, children included; its
    seconds are those in which calls and tools were active. running: all of its time counts as active.
    due: the part of `spent` that no state holds yet. reserve: what only the last call may use. closing: what
    that call takes at the least, which quotas are to leave it.
    media_tokens: see tokens.Tokenizer. tools_priced: whether tool calls cost something.
    shared: the quotas at the root, if any. record: where the calls of the run are kept, if anywhere.
    calibrations: how far prompts exceeded their bounds, by model. largest: input tokens of the largest prompts to
    try, by model, where larger ones were refused. tool_call: the id of the tool call that
    it belongs to, if any. price: of that tool, in US dollars; it is booked each time the call is opened.
    short: why a model call of that tool could not be paid for, if one could not. invocation: of an agent,
    the id of the invocation that it pays for. run: a number for the run, which its tool calls share.
    refusal: what a client raised for a request that was refused, latest.
    """

    def __init__(
        self,
        limits: Limits,
        spent: Spend | None = None,
        parent: Account | None = None,
        tool_call: str | None = None,
        running: bool = False,
        shared: Shared | None = None,
    ) -> None:
        self.parent = parent
        self.tool_call, self.price = tool_call, 0.0
        self.chain: list[Account] = [self, *(parent.chain if parent else ())]
        self.lock: threading.RLock = parent.lock if parent else threading.RLock()
        self.media_tokens: int | None = parent.media_tokens if parent else None
        self.tools_priced: bool = parent.tools_priced if parent else False
        self.calibrations: dict[str, Calibration] = parent.calibrations if parent else {}
        self.largest: dict[str, int] = parent.largest if parent else {}
        self.shared: Shared | None = _together(shared, parent.shared if parent else None)
        self.spent = total([spent or nothing()])
        self.record: RunRecord | None = parent.record if parent else None
        self.due = nothing()
        self.reserve: Limits = {}
        self.closing: Limits = {}
        self._held = nothing()
        self._running = int(running)
        self._since = time.monotonic()
        self._opened = uuid4().hex
        self._recalled = self._closed = False
        self.short: Short | None = None
        self.invocation: str | None = None
        self.refusal: Exception | None = None
        self.run: int = parent.run if parent and tool_call else randbits(53)
        above = parent.left() if parent else {}
        used = cast("Mapping[str, float]", self.spent)
        self.limits = limits | {
            d: min(limits.get(d, math.inf), amount + used[d]) for d, amount in above.items()
        }

    def left(self, last: bool = False) -> Limits:
        """What is left here and in every account above. last: include the reserve."""
        with self.lock:
            if self._closed:
                return dict.fromkeys(self.limits, 0)
            kept = {} if last else self.reserve
            own = left({d: a - kept.get(d, 0) for d, a in self.limits.items()}, self._used())
            above = self.parent.left() if self.parent else {}
            return {d: min(amount, above.get(d, math.inf)) for d, amount in own.items()}

    def rest(self, last: bool = False) -> Limits:
        """What is left here, above, and of the quotas as if calls under way elsewhere cost nothing. Of 3
        calls that a quota leaves, an agent in a tool of another one may make 1 before its last, and 2 with it."""
        own, standings = self.left(last), self.standings()
        if standings is None:
            return own
        closings = [account.closing for account in self.chain[last:]]
        kept = {d: sum(c.get(d, 0) for c in closings) for d in DIMENSIONS}
        quotas = {d: max(0, amount - kept[d]) for d, amount in standings.left(free=True).items()}
        return least([own, quotas])

    def standings(self) -> Standings | None:
        """How the quotas stand, if there are any."""
        return None if self.shared is None else self.shared.standings()

    def scarcest(self) -> str:
        """The dimension with the smallest part left, of those that end a reply if there are any."""
        rest = self.left()
        return min(rest, key=lambda d: (d == TOOL_CALLS, rest[d] / (self.limits[d] or 1.0)))

    def hold(self, amounts: Spend) -> None:
        """Reserve a call."""
        with self.lock:
            for account in self.chain:
                account._begin()
                account._held = total([account._held, amounts])

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time within counts, here and above."""
        with self.lock:
            for account in self.chain:
                account._begin()
                account._running += 1
        try:
            yield
        finally:
            with self.lock:
                for account in self.chain:
                    account._running -= 1
                    account._book(nothing(), nothing())

    def settle(self, amounts: Spend, spend: Spend) -> None:
        """Book what a call cost in place of its reservation, up to the first account that has ended: that one,
        and those above it, were charged in full when it did."""
        with self.lock:
            self._book_open(amounts, spend)
            self.owe(spend)

    def hold_tool_calls(self, wanted: int, quotas: Take | None = None) -> int:
        """Reserve the tool calls of a reply before they run, as many as are left here, above and of the
        quotas. Returns how many those are."""
        quotas = quotas or (self.shared.take if self.shared is not None else None)
        with self.lock:
            held = int(min(wanted, self.left().get(TOOL_CALLS, wanted)))
            self.hold(_tool_calls(held))
        if quotas is None or not held:
            return held
        try:
            granted = quotas(held)
        except JournalError:
            granted = 0
        self.settle(_tool_calls(held - granted), nothing())
        return granted

    def take_tool_calls(self, wanted: int, own: bool = False) -> int:
        """Book the tool calls of a reply before they run, as many as are left. Returns how many those
        are. own: the accounts above have booked them."""
        if not own:
            granted = self.hold_tool_calls(wanted, self._paid_later if self.record else None)
            self.settle(_tool_calls(granted), _tool_calls(granted))
            return granted
        with self.lock:
            rest = self.limits.get(TOOL_CALLS, math.inf) - self.spent["tool_calls"]
            granted = int(max(0, min(wanted, rest)))
            self.spent = total([self.spent, _tool_calls(granted)])
            self.owe(_tool_calls(granted))
            return granted

    def _paid_later(self, tool_calls: int) -> int:
        """As many tool calls as the quotas leave now; each is booked there once it begins, with its price. If that
        cannot be read now, each will be told so then."""
        try:
            standings = self.standings()
        except JournalError:
            return tool_calls
        left = Limits() if standings is None else standings.left()
        return int(min(tool_calls, left.get(TOOL_CALLS, tool_calls)))

    def close(self) -> Spend:
        """End it. Returns what it cost in all; calls that outlive it are charged in full. Its seconds
        are left out: other accounts share them, so they are booked above."""
        with self.lock:
            if self._held["calls"]:
                self._book_open(self._held, self._held)
            self._closed = True
            return {**self.spent, "seconds": 0.0}

    def book(self, spend: Spend) -> None:
        """Add what was spent on behalf of this account where it could not be reserved here."""
        with self.lock:
            for account in self.chain:
                account.spent = total([account.spent, {**spend, "seconds": 0.0}])

    def retell(self, spend: Spend) -> None:
        """Tell of a reply that is given again: what it cost is in the books of its run, and takes nothing of
        what is left."""
        spend = {**spend, "seconds": 0.0}
        more = cast("Mapping[str, float]", spend)
        with self.lock:
            self.owe(spend)
            for account in self.chain:
                if account.parent is None or account.record is not account.parent.record:
                    break
                account.spent = total([account.spent, spend])
                account.limits = {d: amount + more[d] for d, amount in account.limits.items()}

    def at_least(self, spent: Spend) -> Spend:
        """Raise what was spent to what a state says was, where that is more. Returns what is booked."""
        with self.lock:
            mine, theirs = cast("Mapping[str, Any]", self.spent), cast("Mapping[str, Any]", spent)
            self.spent = cast(Spend, {name: max(mine[name], theirs[name]) for name in mine})
            return self.spent

    def calibration(self, meter: Meter) -> Calibration:
        """How far prompts to this model are known to exceed their bounds."""
        return self.calibrations.get(meter.name) or uncalibrated()

    def learn(self, meter: Meter, shape: Shape, reported: int) -> bool:
        """Take in the provider's report of a prompt. Returns whether later bounds are higher for it."""
        known = self.calibration(meter)
        now = self.calibrations[meter.name] = meter.tokenizer.learn(known, shape, reported)
        return now["growth"] > known["growth"] or now.get("preface", 0) > known.get("preface", 0)

    def mark(self, message: BaseMessage) -> None:
        """Note in a reply what the tool calls around it have spent. If they are interrupted, only the
        messages of their sub-agents are kept."""
        marks = [
            [a.tool_call, a._opened, {**a.spent, "usd": a.spent["usd"] - a.price}]
            for a in self.chain
            if a.tool_call
        ]
        if marks:
            message.response_metadata[_MARK] = marks

    def recall(self, prompt: Sequence[BaseMessage]) -> None:
        """Book, once, what tool calls had spent before they were interrupted."""
        marks = [mark for message in prompt for mark in _marks(message)]
        with self.lock:
            for account in self.chain:
                earlier = [
                    spent
                    for tool_call, opened, spent in marks
                    if tool_call == account.tool_call and opened != account._opened
                ]
                if earlier and not account._recalled:
                    account._recalled = True
                    account.spent = total([account.spent, earlier[-1]])

    def owe(self, spend: Spend) -> None:
        """Add to what is due: a spend of this account, or of a tool call that could not report its
        own to the state."""
        with self.lock:
            self.due = total([self.due, {**spend, "seconds": 0.0}])

    def collect(self) -> Spend:
        """What is due; from then on nothing is."""
        with self.lock:
            due, self.due = self.due, nothing()
            return due

    @property
    def active(self) -> bool:
        """Whether its time counts now."""
        return (self._running > 0 and not self._closed) or self._held["calls"] > 0

    def _begin(self) -> None:
        """Its time counts from now on."""
        if not self.active:
            self._since = time.monotonic()

    def _book_open(self, amounts: Spend, spend: Spend) -> None:
        """Book it here and above, as far as the accounts have not ended. It is due to each agent in whose
        middleware another one works that has a budget: what a tool call has spent in all is told at its end, and
        what such an agent has is not."""
        below: Account | None = None
        for account in takewhile(lambda account: not account._closed, self.chain):
            account._book(amounts, spend)
            if below is not None and below.tool_call is None and account.tool_call is None:
                account.owe(spend)
            below = account

    def _book(self, amounts: Spend, spend: Spend) -> None:
        """Replace reserved amounts by what was spent."""
        reserved = cast("Mapping[str, Any]", amounts)
        held = cast("Mapping[str, Any]", self._held)
        self._held = cast(Spend, {d: amount - reserved[d] for d, amount in held.items()})
        active = 0.0 if self.active else time.monotonic() - self._since
        self.spent = total([self.spent, {**spend, "seconds": active}])
        self.due = total([self.due, {**nothing(), "seconds": active}])

    def _used(self) -> Spend:
        """What is booked and reserved, with the time of calls under way."""
        active = time.monotonic() - self._since if self.active else 0.0
        return {**total([self.spent, self._held]), "seconds": self.spent["seconds"] + active}


def planned(
    meter: Meter,
    prompt: Sequence[BaseMessage],
    rest: Limits,
    calibration: Calibration,
    *,
    min_output: int,
    half: bool,
) -> tuple[Shape, Request]:
    """The call for this prompt that `rest` pays for, with at least `min_output` output tokens.

    half: it may write at most half of what is left after its prompt, because a call that fails is
    charged all that it might have written. Of 1,000 tokens, a prompt of up to 300 leaves 700, and the
    call may write 350. Raises Short if `rest` does not pay for it.
    """
    messages = list(prompt)
    shape, max_input = meter.max_input(messages, calibration)
    room_needed = meter.cap(min_output) or 0
    reservation = {**meter.reservation(max_input, room_needed), "seconds": 0.001}
    need = cast("Mapping[str, float]", reservation)
    for dimension, amount in rest.items():
        if amount < need[dimension]:
            raise Short(rest, need, dimension)
    room = output_room(rest, max_input, meter.prices)
    if room is not None and half:
        room = max(room_needed, room // 2)
    return shape, Request(
        prompt=messages,
        max_input=max_input,
        max_output=meter.cap(room, max_input),
        seconds=rest.get("seconds"),
    )


def _marks(message: BaseMessage) -> Iterator[tuple[str, str, Spend]]:
    """The marks in a message. It may come from anybody, so they can only tell of a spend, never give back."""
    marks = message.response_metadata.get(_MARK)
    for mark in marks if isinstance(marks, list | tuple) else ():
        match mark:
            case [str(tool_call), str(opened), dict(spent)]:
                amounts = [
                    n for n in spent.values() if isinstance(n, int | float) and 0 <= n <= LARGEST
                ]
                if len(amounts) == len(spent) and spent.keys() <= nothing().keys():
                    yield tool_call, opened, cast(Spend, spent)


def _tool_calls(n: int) -> Spend:
    return {**nothing(), "tool_calls": n}


def _together(own: Shared | None, above: Shared | None) -> Shared | None:
    """The quotas of an account and of those above it: all must pay. Raises ValueError if they are not
    those of one ledger."""
    if own is None or above is None or own is above:
        return own or above
    return own.beside(above)
