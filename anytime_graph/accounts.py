"""What an agent's run may still spend, and the calls that are made from it.

An account draws on the account of its caller: a tool call's on the agent's, a sub-agent's on that of
the tool call it runs in. A call is reserved in its account and in all above it, under one lock,
before it is made, so calls that run side by side cannot overspend together.
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.runtime import get_runtime

from anytime_graph import calls, prompts
from anytime_graph.budget import (
    BudgetTooSmall,
    Limits,
    Prices,
    Spend,
    nothing,
    output_room,
    total,
)
from anytime_graph.metering import Gate, Heard, Reply, gate, reports_its_end
from anytime_graph.models import prices_of
from anytime_graph.state import GOOD_ROOM, MIN_ROOM, OWN, Task
from anytime_graph.tokens import Calibration, Shape, uncalibrated

_LEAST_MATERIAL = 40
"""Characters of earlier material below which a last call shows none."""
_MARK = "anytime_spent"
_MOST_OPEN = 4_096
"""Invocations whose accounts are kept in mind."""


class Account:
    """What may still be spent by one invocation of an agent, or by one of its tool calls.

    limits: no more than what the parent has left. spent: what was booked, sub-agents and tools
    included; its seconds are those in which calls were active. due: what of it no state holds yet.
    reserve: what only the last call may use. growth: how far prompts exceeded their bounds, by model.
    tool_call: the id of the tool call, if it is one's.
    """

    def __init__(
        self,
        limits: Limits,
        spent: Spend | None = None,
        parent: Account | None = None,
        tool_call: str | None = None,
    ) -> None:
        self.parent = parent
        self.tool_call = tool_call
        self.chain: list[Account] = [self, *(parent.chain if parent else ())]
        self.lock: threading.RLock = parent.lock if parent else threading.RLock()
        self.growth: dict[str, float] = parent.growth if parent else {}
        self.spent = total([spent or nothing()])
        self.due = nothing()
        self.reserve: Limits = {}
        self._held: Limits = {}
        self._since = 0.0
        self._opened = uuid4().hex
        self._recalled = self._closed = False
        above = parent.left() if parent else {}
        self.limits = limits | {
            d: min(limits.get(d, math.inf), amount + self._used(d)) for d, amount in above.items()
        }

    def left(self, last: bool = False) -> Limits:
        """What is left here and in every account above. last: the reserve included."""
        with self.lock:
            if self._closed:
                return dict.fromkeys(self.limits, 0)
            above = self.parent.left() if self.parent else {}
            kept = {} if last else self.reserve
            return {
                d: max(0, min(limit - self._used(d) - kept.get(d, 0), above.get(d, math.inf)))
                for d, limit in self.limits.items()
            }

    def scarcest(self) -> str:
        """The dimension of which the least part is left."""
        rest = self.left()
        return min(rest, key=lambda d: rest[d] / (self.limits[d] or 1.0))

    def hold(self, amounts: Limits) -> None:
        """Reserve a call."""
        with self.lock:
            for account in self.chain:
                if not account._held.get("calls"):
                    account._since = time.monotonic()
                account._held = {d: account._held.get(d, 0) + a for d, a in amounts.items()}

    def settle(self, amounts: Limits, spend: Spend) -> None:
        """Book what a call came to in place of its reservation."""
        with self.lock:
            for account in self.chain:
                if account._closed:
                    break
                account._book(amounts, spend)
            self.owe(spend)

    def close(self) -> Spend:
        """A tool call's cost, at its end, but for its seconds, which pass for all at once: they are
        the turn's to book. A call that outlives the tool call is charged in full."""
        with self.lock:
            held, self._closed = dict(self._held), True
            for account in self.chain if held.get("calls") else ():
                account._book(held, whole(held))
            return {**self.spent, "seconds": 0.0}

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

    def _book(self, amounts: Limits, spend: Spend) -> None:
        self._held = {d: held - amounts[d] for d, held in self._held.items()}
        active = 0.0 if self._held["calls"] else time.monotonic() - self._since
        self.spent = total([self.spent, {**spend, "seconds": active}])
        self.due = total([self.due, {**nothing(), "seconds": active}])

    def _used(self, dimension: str) -> float:
        booked = cast("Mapping[str, float]", self.spent)[dimension]
        if dimension != "seconds":
            return booked + self._held.get(dimension, 0)
        return booked + (time.monotonic() - self._since if self._held.get("calls") else 0.0)


class Short(BudgetTooSmall):
    """A call that what is left cannot pay for. dimension: what it is short of."""

    def __init__(self, rest: Limits, need: Limits, dimension: str) -> None:
        super().__init__(rest, {d: max(a, need[d]) for d, a in rest.items()}, "one call")
        self.dimension = dimension


@dataclass
class Order:
    """A call that is reserved, and what came of it.

    task: how it is to be made; None: it did not fit, and `short` tells why. message: what its
    caller gets. unfinished: the budget, or a connection that broke, and not the model or its user,
    ended the reply before it could be used. broke: it broke off, be it within its tool calls.
    """

    gate: Gate
    task: Task | None = None
    amounts: Limits = field(default_factory=dict)
    short: Short | None = None
    heard: Heard = field(default_factory=Heard)
    reply: Reply | None = None
    message: AIMessage = field(default_factory=lambda: AIMessage(""))
    unfinished: bool = False
    broke: bool = False

    @property
    def spend(self) -> Spend:
        """What it is charged; all that was reserved, if it was given up."""
        return whole(self.amounts) if self.reply is None else self.reply.spend


@dataclass
class Desk:
    """Where metered models make their calls.

    kind: "agent": a turn of its model; "last": the call in which it sums up; "tool": a call within
    a tool; "middleware": one that a middleware makes in a node of its own. share: what the agent
    keeps for its last call, of its limits or by dimension. question: what the last call answers.
    latest: the latest call, of those that are made one at a time.
    """

    account: Account
    kind: Literal["agent", "last", "tool", "middleware"]
    share: float | Limits = 0.0
    question: BaseMessage | None = None
    latest: Order | None = None

    @contextmanager
    def order(
        self,
        model: BaseChatModel,
        prompt: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Iterator[Order]:
        """Reserve a call, to be made within, and settle it after. One that does not fit raises
        Short in a tool; elsewhere, where that would be retried or end the run, it has no task.
        Raises what the client raised."""
        ready = gate(model.bind(**options), prices or prices_of(model))
        if ready.prices is None and "usd" in self.account.limits:
            raise ValueError(
                f"budget usd: the price of {ready.name!r} is not known; pass "
                "prices=Prices(input=..., output=...) in dollars per million tokens, or install "
                "anytime-graph[prices]"
            )
        self.account.recall(prompt)
        order = self.latest = self._reserved(ready, prompt)
        try:
            yield order
        finally:
            if order.task is not None:
                self.account.settle(order.amounts, order.spend)
        if order.task is not None and order.reply is not None:
            self._receive(order, order.task, order.reply)

    def _reserved(self, ready: Gate, prompt: Sequence[BaseMessage]) -> Order:
        with self.account.lock:
            try:
                order = self._planned(ready, prompt)
            except Short as short:
                if self.kind == "tool":
                    raise
                # A summary that is not made is what was to be summed up.
                text = prompts.said(prompt[-1]) if self.kind == "middleware" else ""
                return Order(ready, short=short, message=AIMessage(text))
            self.account.hold(order.amounts)
            return order

    def _planned(self, ready: Gate, prompt: Sequence[BaseMessage]) -> Order:
        """Any call but the last writes at most half of what is left: one that fails is charged all
        that it might have written, and others may run beside it."""
        account, last = self.account, self.kind == "last"
        if self.kind == "agent":
            account.reserve = self._reserve(ready, prompt)
        rest = account.left(last)
        messages: list[Any] = list(prompt)
        if last:
            messages = self._sum_up(ready, prompt, rest)
        elif self.kind == "agent" and ready.kwargs.get("tools"):
            messages = prompts.told(prompt, rest)
        shape = ready.shape(messages)
        bound = ready.bound(shape, self._known(ready))
        least = ready.cap(MIN_ROOM if last else GOOD_ROOM) or 0
        need = ready.amounts(bound, least)
        for dimension, amount in rest.items():
            if amount < need[dimension]:
                raise Short(rest, need, dimension)
        room = output_room(rest, bound, ready.prices)
        if room is not None and not last:
            room = max(least, room // 2)
        task = _task(ready, messages, shape, bound, ready.cap(room), rest)
        return Order(ready, task, ready.amounts(bound, task["room"] or 0))

    def _receive(self, order: Order, task: Task, reply: Reply) -> None:
        if reply.interrupted:
            raise KeyboardInterrupt
        if order.heard.error is not None:
            raise order.heard.error
        ready, growth, room = order.gate, self.account.growth, task["room"]
        order.message = message = order.heard.message()
        self.account.mark(message)
        ours = room is not None and (ready.ceiling is None or room < ready.ceiling)
        cut = reply.ended == "cut" or (reply.ended == "length" and ours)
        silent = ready.name in growth and not reports_its_end(message)
        order.broke = silent or (calls.broken(message) and not cut)
        empty = not message.text.strip()
        order.unfinished = not message.tool_calls and (cut or order.broke or empty)
        if reply.reported is not None:
            known = ready.learn(self._known(ready), task["shape"], reply.reported, base=False)
            growth[ready.name] = known["growth"]

    # --- the last call

    def _reserve(self, ready: Gate, prompt: Sequence[BaseMessage]) -> Limits:
        """What the last call is kept: what was asked for, but at the least what its shortest prompt
        and a short reply take."""
        asked = asked_for(self.share, self.account.limits)
        if not asked:
            return {}
        bare = replace(ready, kwargs={}, extra="")
        shortest = bare.shape(prompts.sum_up(prompt, 0, False, self.question))
        need = bare.amounts(bare.bound(shortest, self._known(bare)), GOOD_ROOM)
        return {d: max(need[d], asked.get(d, 0)) for d in self.account.limits}

    def _sum_up(self, ready: Gate, prompt: Sequence[BaseMessage], rest: Limits) -> list[Any]:
        """The last prompt, with as much of the material as leaves a quarter to the reply."""
        wanted = max(GOOD_ROOM, (output_room(rest, 0, ready.prices) or 0) // 4)
        full = allowance = sum(len(prompts.said(m)) for m in prompt)
        while allowance > _LEAST_MATERIAL:
            fitting = prompts.sum_up(prompt, allowance, 4 * allowance >= full, self.question)
            bound = ready.bound(ready.shape(fitting), self._known(ready))
            room = output_room(rest, bound, ready.prices)
            if room is None or room >= wanted:
                return fitting
            allowance //= 2
        return prompts.sum_up(prompt, 0, False, self.question)

    def _known(self, ready: Gate) -> Calibration:
        return {**uncalibrated(), "growth": self.account.growth.get(ready.name, 1.0)}


def whole(amounts: Limits) -> Spend:
    """A reservation as a spend."""
    prompt = amounts["tokens"] - amounts["output_tokens"]
    return cast(Spend, {**nothing(), **amounts, "input_tokens": prompt, "seconds": 0.0})


def asked_for(share: float | Limits, limits: Limits) -> Limits:
    """The reserve that was asked for: of calls, one is enough. Nothing if there is no last call."""
    if isinstance(share, int | float):
        share = {d: amount * share for d, amount in limits.items()} if share else {}
    return {d: min(1, amount) if d == "calls" else amount for d, amount in share.items()}


def _task(
    ready: Gate, messages: list[Any], shape: Shape, bound: int, room: int | None, rest: Limits
) -> Task:
    return Task(
        ordinal=0,
        step=0,
        move={"kind": "call"},
        swapped=False,
        gate=OWN,
        slice=rest,
        prompt=messages,
        prompt_bound=bound,
        room=room,
        shape=shape,
        wait=0.0,
        run_id=0,
        thread="",
        plan="",
        chosen={},
        question="",
        spent=nothing(),
        limits=rest,
    )


# --- whose account it is

_DESK: contextvars.ContextVar[Desk | None] = contextvars.ContextVar("anytime_desk", default=None)
_open: OrderedDict[Hashable, Account] = OrderedDict()
_opening = threading.Lock()


@contextmanager
def at(desk: Desk) -> Iterator[Desk]:
    """Calls of metered models within, in whatever thread or task, are made at this desk."""
    token = _DESK.set(desk)
    try:
        yield desk
    finally:
        _DESK.reset(token)


def desk() -> Desk | None:
    """Where a metered model makes its calls: at the innermost desk around it, or, in a node of an
    agent below that, on the agent's account."""
    around, account = _DESK.get(), opened()
    if account is None or (around is not None and account in around.account.chain):
        return around
    return Desk(account, "middleware")


def caller() -> Account | None:
    """The account of the tool call that an agent's run is part of."""
    around = _DESK.get()
    return around.account if around else None


def opened() -> Account | None:
    """The account of the agent's invocation that a node belongs to."""
    place = _place()
    with _opening:
        return None if place is None else _open.get(place)


def enter(account: Account) -> Account:
    """Make it the account of this invocation, for all of the agent's nodes."""
    place = _place()
    with _opening:
        _open[place] = account
        _open.move_to_end(place)
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)
    return account


def _place() -> Hashable | None:
    """What all nodes of one invocation of a graph share, and no two invocations at a time; None
    outside of a graph."""
    try:
        runtime = get_runtime()
    except (RuntimeError, KeyError):
        return None
    info = runtime.execution_info if runtime else None
    return (runtime.control, info.checkpoint_ns.rpartition("|")[0]) if info else None
