"""Metered calls one after the other, each at a place of its own in the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from secrets import randbits
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage

from anytime_graph.budget import Spend, nothing, total
from anytime_graph.checkpoints import Access, Ledger
from anytime_graph.metering import Gate, Reply, call
from anytime_graph.models.tokens import uncalibrated
from anytime_graph.run.pairs import Candidate
from anytime_graph.run.state import OWN, State, Task, asked_of, conversation_of, fresh


class TooDear(ValueError):
    """A call does not fit what its cell may cost."""


@dataclass
class Places:
    """The calls of one thread, within `tokens` for all of them."""

    gate: Gate
    access: Access
    state: State
    plan: str
    run: dict[str, Any]
    stop: threading.Event | None
    tokens: float
    spends: list[Spend] = field(default_factory=list)

    @classmethod
    @contextmanager
    def opened(
        cls,
        ledger: Ledger,
        ready: Gate,
        *,
        thread: str,
        strategy: str,
        question: str,
        tokens: float,
        stop: threading.Event | None,
    ) -> Iterator[Places]:
        """A new run on the thread; it is released at the end. Raises ThreadBusy."""
        asked: list[BaseMessage] = [HumanMessage(question)]
        state = fresh(question, {}, randbits(53), thread, {"tokens": tokens})
        run = {
            "asked": asked_of(asked),
            "question": question,
            "conversation": conversation_of(asked),
            "model": ready.name,
            "strategy": strategy,
            "decides": "scorer",
            "options": None,
        }
        hold = ledger.enter(thread, None, object())
        try:
            places = cls(ready, Access(ledger, hold), state, uuid4().hex, run, stop, tokens)
            ledger.save(hold, run, State(), state, places.plan, None)
            yield places
        finally:
            ledger.leave(hold, None)
            ledger.release(hold)

    def call(
        self, move: dict[str, Any], prompt: Sequence[BaseMessage], room: int
    ) -> tuple[Task, Reply]:
        """Make the next call. Raises TooDear, before it is made, if it may exceed the rest."""
        ordinal, messages = len(self.spends), cast("list[AnyMessage]", list(prompt))
        shape = self.gate.shape(messages)
        bound = self.gate.bound(shape, uncalibrated())
        if self.spent["tokens"] + bound + room > self.tokens:
            raise TooDear(
                f"call {ordinal}: {bound} + {room} tokens do not fit the {self.tokens:.0f} that its "
                "cell may cost"
            )
        task = Task(
            ordinal=ordinal,
            step=ordinal,
            move=move,
            swapped=False,
            gate=OWN,
            slice={},
            prompt=messages,
            prompt_bound=bound,
            room=self.gate.cap(room),
            shape=shape,
            wait=0.0,
            run_id=self.state["run_id"],
            thread=self.state["thread"],
            plan=self.plan,
            chosen={},
            question=self.run["question"],
            spent=self.spent,
            limits=self.state["limits"],
        )
        told: Any = {"run_name": move["kind"], "metadata": {"ordinal": ordinal}}
        reply = call(self.gate, task, told, self.stop, self.access)
        self.spends.append(reply.spend)
        return task, reply

    def keep(self, task: Task, candidate: Candidate) -> None:
        self.access.ledger.keep(self.access.hold, task, candidate, fresh=True)

    def close(self, reason: str) -> None:
        """The run is over, for this reason."""
        self.access.ledger.save(
            self.access.hold, self.run, self.state, self.state, self.plan, reason
        )

    @property
    def spent(self) -> Spend:
        return total(self.spends) if self.spends else nothing()
