"""The runs of agents in the ledger: each call is booked before it is made, and given again after a crash.

A run is one question on one thread, as for a graph. Whoever goes on with it finds it by these, charges
the calls that were in flight, and gets the recorded reply to a request that is equal to an earlier one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from secrets import randbits
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config

from anytime_graph.budget import Limits, Spend, nothing
from anytime_graph.checkpoints.journal import CallJournal, kept_above
from anytime_graph.checkpoints.leases import Hold
from anytime_graph.checkpoints.ledger import Ledger
from anytime_graph.checkpoints.quotas import Payers, SharedQuotas
from anytime_graph.checkpoints.records import entry_of, stored_reply
from anytime_graph.checkpoints.store import plain
from anytime_graph.metering import clock
from anytime_graph.metering.quota import PATIENCE, Withheld
from anytime_graph.metering.request import (
    Journal,
    JournalError,
    Place,
    Reply,
    Request,
    Shared,
    digest_of,
)
from anytime_graph.run.calls import AgentMove, Caller, Made, Receipt, RunCall, receipt
from anytime_graph.run.context import invocation, resumable, root, thread_of
from anytime_graph.run.upgrade import planned_call

_PAUSE = 0.05


def asked_on(ledger: Ledger, messages: Sequence[BaseMessage], before: str | None) -> str:
    """What an agent was asked, as its run is found again by. before: what it was asked last, if that is the
    same question; unless that run has ended, it goes on. Without a checkpointer nothing is resumed, so the
    same question is another run each time, as it is for each agent that a parent graph asks it. Raises
    LedgerError."""
    thread = None if before is None else thread_of(get_config(), before)
    if before is not None and thread is not None and ledger.open_run(thread, before):
        return before
    if not resumable(get_config()):
        return f"agent {digest_of(messages, {'once': uuid4().hex})}"
    first, here = f"agent {digest_of(messages, {'once': ''})}", invocation()
    assert here is not None, "an agent's run begins in a node"
    n = ledger.instance(first, here)
    return first if n == 1 else f"agent {digest_of(messages, {'once': n})}"


class AgentRun:
    """One run of an agent, in this invocation; see metering.request.RunRecord.

    thread, id: of the run. next: the ordinal of the next call. in_quotas: whether quotas pay for its
    calls, as far as was known when it was opened.
    """

    def __init__(
        self,
        ledger: Ledger,
        shared: SharedQuotas,
        asked: str,
        question: str,
        limits: Limits,
        known: int,
    ) -> None:
        """known: calls from this ordinal on may be missing in the agent's state. Raises LedgerError,
        and ThreadBusy while another invocation is at work on the run."""
        config: RunnableConfig = get_config()
        self.ledger, self.next = ledger, 0
        self.thread = thread_of(config, asked) or uuid4().hex
        self._top = root(config)
        self._lease = f"{self.thread} {asked[:18]}"  # as in schema.LEASE_NAME
        self._life = (self._lease, invocation())
        self._plan = uuid4().hex
        self._lock = threading.Lock()
        self._earlier: dict[str, list[dict[str, Any]]] = {}
        self._paused: dict[str, Place] = {}
        self._calls: dict[int, RunCall] = {}
        # An invocation that was interrupted, here, has no node at work any more.
        ledger.end(
            lambda life: isinstance(life, tuple) and life[0] == self._lease and life != self._life
        )
        with self.working():
            payers = shared.payers()
            self.in_quotas = payers is not None
            self.id = ledger.find(self.thread, asked) or randbits(53)
            self._begin(asked, question, limits, shared)
            self._remember(known, payers)

    @contextmanager
    def working(self) -> Iterator[None]:
        """A node of the agent is at work."""
        with self._held(self.ledger.enter(self._lease, self._top, self._life)):
            yield

    @asynccontextmanager
    async def aworking(self) -> AsyncIterator[None]:
        with self._held(await self.ledger.aenter(self._lease, self._top, self._life)):
            yield

    @contextmanager
    def _held(self, hold: Hold) -> Iterator[None]:
        """An invocation whose node fails or is interrupted is over."""
        self._hold, broken = hold, True
        try:
            yield
            broken = False
        finally:
            self.ledger.leave(hold, broken)

    def _begin(self, asked: str, question: str, limits: Limits, shared: SharedQuotas) -> None:
        """Write the run, with a plan of its own: earlier invocations can make no more calls."""
        keys = self.ledger.keys(shared.quotas, shared.key)
        keeps = self.ledger.record == "all"
        with self.ledger.write(durable=False) as execute:
            self.ledger.leases.renew(self._hold, execute)
            begun = execute("SELECT id FROM runs WHERE id = :run", {"run": self.id})
            execute(
                "INSERT INTO runs (id, thread, asked, question, model, strategy, decides, limits, "
                "inherited, plan, started, changed) VALUES (:run, :thread, :asked, :question, '', "
                "'agent', 'agent', :limits, :inherited, :plan, :now, :now) ON CONFLICT (id) "
                "DO UPDATE SET plan = :plan, changed = :now, stop_reason = NULL",
                {
                    "run": self.id,
                    "thread": self.thread,
                    "asked": asked,
                    "question": plain(question) if keeps else None,
                    "limits": json.dumps(limits),
                    "inherited": json.dumps(nothing()),
                    "plan": self._plan,
                    "now": time.time(),
                },
            )
            if not begun:
                self.ledger.label(execute, self.id, keys)

    def _remember(self, known: int, payers: Payers | None) -> None:
        """Charge the calls that were in flight, and collect the replies that may be given again."""
        for row in self.ledger.calls(self.id):
            self.next = row["ordinal"] + 1
            if (reply := stored_reply(row)) is None:
                self._charge(row, payers)
                continue
            request = cast(RunCall, planned_call(row))["request"]
            if row["kind"] == "tool_call":
                if reply["receipt"]["interrupted"]:
                    self._paused[request] = Place(self.id, row["ordinal"])
            elif (
                row["ordinal"] >= known
                and row["state"] == "settled"
                and reply["message"] is not None  # its text was kept
                and not reply["receipt"]["failed"]
            ):
                self._earlier.setdefault(request, []).append(row)

    def _charge(self, row: dict[str, Any], payers: Payers | None) -> None:
        """Settle a call that was in flight: at its reservation, and if that does not limit the output,
        with the most tokens that the text which arrived can be."""
        call = entry_of(row)
        spend: Spend = {**call.reserved, "seconds": max(0.0, call.changed - call.started)}
        if row["reserved_output"] is None:
            more = len(call.text.encode())
            spend["output_tokens"] += more
            spend["tokens"] += more
        lost: Receipt = {
            **receipt(call.started, call.changed),
            "spend": spend,
            "ended": "cut",
            "lost": True,
            "errors": [f"call {row['ordinal']}: in flight when its process ended; charged in full"],
        }
        reply = Reply(call.text, AIMessage(call.text), lost)
        self.ledger.settle(Place(self.id, row["ordinal"]), reply, payers)

    def spent(self, whole_thread: bool) -> Spend:
        """What the run has cost, or all runs of agents on its thread. Raises LedgerError."""
        if whole_thread:
            return self.ledger.spent_by_agents(self.thread)
        return self.ledger.spent_in(self.id)

    def end(self, stop_reason: str) -> None:
        """The agent has ended. Raises LedgerError."""
        with self.ledger.write(durable=False) as execute:
            execute(
                "UPDATE runs SET stop_reason = :reason, changed = :now, model = coalesce((SELECT model "
                "FROM calls WHERE run_id = :run AND kind = 'agent' ORDER BY ordinal LIMIT 1), model) "
                "WHERE id = :run AND plan = :plan",
                {
                    "reason": self.ledger.reason(stop_reason),
                    "now": time.time(),
                    "run": self.id,
                    "plan": self._plan,
                },
            )
        self.ledger.end(lambda life: life == self._life)

    # --- its calls: see metering.request.RunRecord

    def again(self, digest: str) -> Request | None:
        with self._lock:
            if not (earlier := self._earlier.get(digest)):
                return None
            row = earlier.pop(0)
            self._calls[row["ordinal"]] = cast(RunCall, planned_call(row))
        place = Place(self.id, row["ordinal"])
        return Request(prompt=(), max_input=0, max_output=row["reserved_output"], place=place)

    def place(self, kind: Caller, digest: str) -> Place:
        return self._next("nested" if kept_above(self.ledger) else kind, digest)

    def _next(self, made: Made, digest: str) -> Place:
        with self._lock:
            place = Place(self.id, self.next)
            self._calls[self.next] = RunCall(
                ordinal=self.next, step=self.next, move=AgentMove(kind=made), request=digest
            )
            self.next += 1
        return place

    def journal(self, request: Request, shared: Shared) -> CallJournal:
        assert isinstance(shared, SharedQuotas)
        with self._lock:
            call = self._calls.pop(request.place.ordinal)
        return CallJournal(self.ledger, self._hold, call, self._plan, shared, whole=True)

    def tool_begins(
        self, tool: str, call: str, usd: float, shared: Shared, seconds: float
    ) -> Place:
        place = self._next("tool_call", call)
        request = Request(prompt=(), max_input=0, max_output=0, place=place)
        book_tool(self.journal(request, shared), request, _of_tool(usd), tool, seconds)
        return place

    def tool_paused(self, call: str) -> Place | None:
        with self._lock:
            return self._paused.pop(call, None)

    def tool_ended(self, place: Place, usd: float, pauses: bool = False) -> None:
        settle_tool(self.ledger, place, _of_tool(usd), pauses)


def book_tool(journal: Journal, request: Request, cost: Spend, tool: str, seconds: float) -> None:
    """Book a call of a tool before it is made; see metering.request.RunRecord.tool_begins."""
    until = time.monotonic() + min(PATIENCE, seconds)
    while True:
        try:
            if not journal.reserve(request, cost, tool, str):
                raise JournalError("another invocation goes on with this run")
            return
        except Withheld as withheld:
            standings = withheld.standings
        if not standings.may_pay(cost) or time.monotonic() > until:
            raise standings.exceeded(cost)
        time.sleep(_PAUSE)


def settle_tool(ledger: Ledger, place: Place, cost: Spend, pauses: bool = False) -> None:
    """Settle a call of a tool, with the time that it took; see metering.request.RunRecord.tool_ended."""
    ended = clock.now()
    paid: Receipt = {**receipt(ended, ended), "spend": cost, "interrupted": pauses}
    ledger.settle(place, Reply("", AIMessage(""), paid))


def _of_tool(usd: float) -> Spend:
    return {**nothing(), "usd": usd, "tool_calls": 1}
