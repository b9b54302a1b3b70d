"""Metered calls outside a graph, one after the other, each with its own place in the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import randbits
from typing import Any
from uuid import uuid4

from langchain_core.messages import BaseMessage, HumanMessage

from anytime_graph.budget import Spend, nothing
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.journal import RunJournal
from anytime_graph.metering.account import Account
from anytime_graph.metering.call import call
from anytime_graph.metering.meter import Meter
from anytime_graph.metering.request import Place, Reply, Request
from anytime_graph.models.tokens import uncalibrated
from anytime_graph.run.calls import OWN, PlannedCall, PlannedMove, RunInfo
from anytime_graph.run.pairs import Candidate
from anytime_graph.run.state import State, conversation_digest, conversation_of, fresh


class OverCeiling(ValueError):
    """A call costs more than is left of its cell's ceiling."""


@dataclass
class Places:
    """The calls of one thread, paid from one account. Open with `opened`."""

    meter: Meter
    journal: RunJournal
    state: State
    run: RunInfo
    record: dict[str, Any]
    stop: threading.Event | None
    account: Account
    ordinal: int = 0

    @classmethod
    @contextmanager
    def opened(
        cls,
        ledger: Ledger,
        ready: Meter,
        *,
        thread: str,
        strategy: str,
        question: str,
        tokens: float,
        stop: threading.Event | None,
    ) -> Iterator[Places]:
        """Begin a new run on the thread, and release the thread at the end. Raises ThreadBusy."""
        messages: list[BaseMessage] = [HumanMessage(question)]
        state = fresh(question, {}, randbits(53), thread, {"tokens": tokens})
        record = {
            "asked": conversation_digest(messages),
            "question": question,
            "conversation": conversation_of(messages),
            "model": ready.name,
            "strategy": strategy,
            "decides": "scorer",
            "options": None,
        }
        run = RunInfo(
            run_id=state["run_id"],
            thread=thread,
            plan=uuid4().hex,
            chosen={},
            question=question,
            spent=nothing(),
            limits=state["limits"],
        )
        hold = ledger.enter(thread, None, object())
        try:
            journal, account = RunJournal(ledger, hold, ledger.shared(())), Account(state["limits"])
            ledger.save(hold, record, State(), state, run["plan"], None)
            yield cls(ready, journal, state, run, record, stop, account)
        finally:
            ledger.leave(hold)
            ledger.release(hold)

    def call(
        self, move: PlannedMove, prompt: Sequence[BaseMessage], max_output: int
    ) -> tuple[PlannedCall, Reply]:
        """Make the next call. Raises OverCeiling before the call if it may exceed what is left."""
        ordinal, self.ordinal = self.ordinal, self.ordinal + 1
        shape, max_input = self.meter.max_input(list(prompt), uncalibrated())
        cap = self.meter.cap(max_output)
        amounts, rest = self.meter.reservation(max_input, max_output), self.account.left()
        if amounts["tokens"] > rest["tokens"]:
            raise OverCeiling(
                f"call {ordinal}: {max_input} + {max_output} tokens do not fit the "
                f"{rest['tokens']:.0f} that are left for its cell"
            )
        place = Place(self.run["run_id"], ordinal)
        planned = PlannedCall(
            ordinal=ordinal,
            step=ordinal,
            move=move,
            role=OWN,
            slice=rest,
            max_input=max_input,
            max_output=cap,
            shape=shape,
            n=1,
            prompt_copies=1,
        )
        request = Request(
            prompt=prompt,
            max_input=max_input,
            max_output=cap,
            place=place,
            kind=move["kind"],
        )
        config: Any = {"run_name": move["kind"], "metadata": {"ordinal": ordinal}}
        self.account.hold(amounts)
        journal = self.journal.of(planned, self.run)
        reply = call(self.meter, request, config, self.stop, journal)
        self.account.settle(amounts, reply.receipt["spend"])
        return planned, reply

    def keep(self, planned: PlannedCall, candidate: Candidate) -> None:
        self.journal.keep(planned, self.run["run_id"], candidate, fresh=True)

    def close(self, reason: str) -> None:
        """End the run, for this reason."""
        ledger, hold, _ = self.journal
        ledger.save(hold, self.record, self.state, self.state, self.run["plan"], reason)

    @property
    def spent(self) -> Spend:
        return self.account.spent
