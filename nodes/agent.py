"""Drafts by an agent: its model's calls are paid from the draft's slice.

A draft has PLACES places in its run. Each call of its agent is a metered call at one of them:
bounded, reserved, capped and settled like any other, so that what the agent spends is known call by
call. When a draft is made again after a crash, the calls that the ledger holds of it are charged at
once, and the agent is given the recorded reply wherever it asks the same again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from pydantic import BaseModel

from anytime_graph import clock
from anytime_graph.budget import GOOD_ROOM, MIN_ROOM, Limits, Prices, Spend, share, total
from anytime_graph.checkpoints.journal import CallJournal, RunJournal
from anytime_graph.interrupt import StopSignal, contained
from anytime_graph.metering.account import Account, Short, planned
from anytime_graph.metering.call import recalled
from anytime_graph.metering.meter import Meter, priced
from anytime_graph.metering.metered import Reservation, paid_by, paying_from
from anytime_graph.metering.request import Place, Reply, Request
from anytime_graph.metering.tool_calls import broken
from anytime_graph.models.providers import describe
from anytime_graph.models.tokens import Shape
from anytime_graph.planning.setup import Drafter, Setup
from anytime_graph.run.calls import (
    PATIENCE,
    PLACES,
    AgentCall,
    AgentDraft,
    Assignment,
    PlannedCall,
    Receipt,
    receipt,
)


class DraftError(RuntimeError):
    """Raised to an agent whose model call failed, or could not be paid for and was not made."""


def draft(
    setup: Setup,
    assigned: Assignment,
    config: RunnableConfig,
    stop: StopSignal | None,
    journal: RunJournal | None,
) -> tuple[PlannedCall, Reply]:
    """Have the agent draft. Returns the call as far as the agent's calls tell more of it, and its
    answer and what it cost as one reply."""
    payer = DraftPayer(setup, assigned, stop, journal)
    if assigned["prompt"] is None:
        return payer.recorded()
    try:
        with contained(), payer.working() as agent:
            return payer.ended(_text(agent.invoke({"messages": assigned["prompt"]}, config)))
    except KeyboardInterrupt:
        return payer.ended(None, interrupted=True)
    except Exception as error:
        return payer.ended(None, error)


async def adraft(
    setup: Setup,
    assigned: Assignment,
    config: RunnableConfig,
    stop: StopSignal | None,
    journal: RunJournal | None,
) -> tuple[PlannedCall, Reply]:
    """The same, on the event loop."""
    payer = await asyncio.to_thread(DraftPayer, setup, assigned, stop, journal)
    if assigned["prompt"] is None:
        return payer.recorded()
    try:
        with contained(), payer.working() as agent:
            return payer.ended(_text(await agent.ainvoke({"messages": assigned["prompt"]}, config)))
    except Exception as error:
        return payer.ended(None, error)


class DraftPayer:
    """Pays the calls of one draft's agent from the draft's slice, and gathers what they bring. To
    those calls it is the stop signal as well, so that none outlasts the draft."""

    def __init__(
        self,
        setup: Setup,
        assigned: Assignment,
        stop: StopSignal | None,
        journal: RunJournal | None,
    ) -> None:
        assert setup.drafter is not None
        self.call, self.run, self._stop, self._journal = (
            assigned["call"],
            assigned["run"],
            stop,
            journal,
        )
        self.meter = setup.meters[self.call["role"]]
        self.stop: StopSignal | None = self
        self._drafter: Drafter = setup.drafter
        self._last_words = setup.answers.protocol.conclude()
        self._agent: AgentDraft = self.call["agent"]
        self._place, self._wait = self.call["ordinal"], assigned["wait"]
        self._worst: tuple[Shape, int | None] = (self.call["shape"], None)
        self._over = False
        self._refused = 0
        self._errors: list[str] = []
        self._replies: list[Reply] = []
        self._in_flight: dict[int, Reservation] = {}
        self._earlier: dict[str, list[AIMessage]] = {}
        self._calls: dict[int, PlannedCall] = {}
        self._remember()
        before = self._active()
        spent: Spend = {**total(r.receipt["spend"] for r in self._replies), "seconds": before}
        self.account = Account(self.call["slice"], spent, running=True)
        self.account.growth[self.meter.name] = self._agent["growth"]
        self._began = clock.now() - before

    def _remember(self) -> None:
        """Take in the calls that the ledger holds of this draft."""
        if self._journal is None:
            return
        run_id = self.run["run_id"]
        for call in self._journal.ledger.within(run_id, self._place, PLACES):
            request = _request(call, Place(run_id, call["ordinal"]))
            reply = recalled(self.meter, request, self._journal.of(call, self.run))
            if reply is None:
                continue
            self._place = call["ordinal"] + 1
            self._replies.append(reply)
            came = reply.receipt
            if not came["failed"] and (reply.text.strip() or reply.uncut):
                made = call["agent_call"]
                message = _for_agent(reply, made["last"])
                self._earlier.setdefault(made["request"], []).append(message)

    def _active(self) -> float:
        """Seconds for which the recorded calls kept the draft at work."""
        if not self._replies:
            return 0.0
        ended_at = max(r.receipt["ended_at"] for r in self._replies)
        return max(0.0, ended_at - self._replies[0].receipt["started"])

    @contextmanager
    def working(self) -> Iterator[Any]:
        """The agent, while it drafts: agents and tools within draw on the draft's account."""
        with paying_from(self):
            yield self._drafter(paid_by(self, self.meter.model, self.meter.prices))

    # --- its calls

    def is_set(self) -> bool:
        return self._over or (self._stop is not None and self._stop.is_set())

    def journal(self, reserved: Reservation) -> CallJournal | None:
        if self._journal is None:
            return None
        return self._journal.of(self._calls[reserved.place], self.run)

    def reserve(
        self,
        model: BaseChatModel,
        prompt: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Reservation:
        """Reserve a call from the rest of the slice. As long as tools may be used, a call gets half of
        the rest; once that is too little, the agent is told to answer. A draft that could not use
        its tools even once gives its slice back, if more is to be had. The reply to the same request
        before a crash is given again; it is charged already. Raises DraftError if the call cannot be
        paid for."""
        ready = priced(
            model.bind(**self.meter.bound),
            options,
            prices,
            self.meter.tokenizer.media_tokens,
        )
        digest = _digest(prompt, options)
        with self.account.lock:
            if earlier := self._earlier.get(digest):
                return Reservation(ready, message=earlier.pop(0))
            if self._over or self._place >= self.call["ordinal"] + PLACES:
                self._refuse("it may make no further call")
            if self._refused >= PATIENCE:
                self._refuse(f"its last {self._refused} calls were refused")
            rest = self.account.left()
            shape, request, last = self._planned(ready, prompt, rest)
            place, self._place = self._place, self._place + 1
            wait, self._wait = self._wait, 0.0
            request = replace(
                request,
                place=Place(self.run["run_id"], place),
                max_output=self.meter.cap(request.max_output),
                wait=wait,
                kind="draft",
            )
            self._calls[place] = {
                **self.call,
                "ordinal": place,
                "slice": rest,
                "max_input": request.max_input,
                "max_output": request.max_output,
                "shape": shape,
                "agent_call": AgentCall(draft=self.call["ordinal"], request=digest, last=last),
            }
            reserved = self._in_flight[place] = Reservation(ready, shape, request)
            self.account.hold(reserved.amounts)
            return reserved

    def settle(self, reserved: Reservation) -> None:
        """A call that was given up is charged in full when the draft ends. Raises DraftError if the
        call failed, or the draft has ended."""
        if (reply := reserved.reply) is None:
            return
        came = reply.receipt
        with self.account.lock:
            if self._in_flight.pop(reserved.place, None) is None:
                raise DraftError("the draft has ended")
            self.account.settle(reserved.amounts, came["spend"])
            self._replies.append(reply)
            if came["reported"] is not None:
                before = self.account.growth[self.meter.name]
                self.account.learn(self.meter, reserved.shape, came["reported"])
                if self.account.growth[self.meter.name] > before or self._worst[1] is None:
                    self._worst = (reserved.shape, came["reported"])
            self._refused = self._refused + 1 if came["unserved"] else 0
            self._wait = max(self._wait, came["retry_after"])
            self._over |= came["interrupted"] or came["closed"]
        if reply.uncut and broken(reply.message):
            self._errors.append(f"draft {reserved.place}: its tool calls did not come whole")
            raise DraftError("its tool calls did not come whole")
        if came["failed"] or came["lost"]:
            raise DraftError("the call failed")
        reserved.message = _for_agent(reply, self._calls[reserved.place]["agent_call"]["last"])

    def _planned(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> tuple[Shape, Request, bool]:
        """The next call, and whether it is the last, in which the agent is told to answer."""
        known = self.account.calibration(self.meter)
        if not ready.bound.get("tools"):
            return *self._fitting(ready, prompt, rest), False
        told = [*prompt, HumanMessage(self._last_words)]
        if not self._replies:
            _, at_last = ready.max_input(told, known)
            self._agent = {
                **self._agent,
                "overhead": self._agent["overhead"] + at_last - self.call["max_input"],
            }
        if rest.get("calls", 2) >= 2:
            with suppress(Short):
                half = share(rest, 0.5)
                found = planned(ready, prompt, half, known, min_output=GOOD_ROOM, half=False)
                return *found, False
        if not self._replies and self._agent["may_return"]:
            self._refuse("its slice does not pay for a call with tools and one more")
        return *self._fitting(ready, told, rest), True

    def _fitting(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> tuple[Shape, Request]:
        known = self.account.calibration(self.meter)
        try:
            return planned(ready, prompt, rest, known, min_output=MIN_ROOM, half=False)
        except Short as short:
            amounts = ", ".join(f"{d}={amount:g}" for d, amount in rest.items())
            self._refuse(
                f"its next call needs {short.least} and does not fit what is left of its slice "
                f"({amounts})"
            )

    def _refuse(self, why: str) -> NoReturn:
        self._errors.append(f"draft {self.call['ordinal']}: {why}")
        raise DraftError(why)

    # --- its end

    def recorded(self) -> tuple[PlannedCall, Reply]:
        """What the ledger holds of a draft whose request is lost with the state: its answer, if it
        had come to one."""
        last = self._replies[-1] if self._replies else None
        done = last is not None and not last.message.tool_calls
        return self.ended(last.text if last is not None and done else "")

    def ended(
        self, text: str | None, error: Exception | None = None, interrupted: bool = False
    ) -> tuple[PlannedCall, Reply]:
        """The draft as one reply. text: None if it did not come to its end; then the last text that
        its model wrote may hold an answer."""
        with self.account.lock:
            self._over = True
            replies, abandoned = self._replies, sorted(self._in_flight)
            self._in_flight = {}
            spend = self.account.close()
        came = [reply.receipt for reply in replies]
        errors = [*(e for one in came for e in one["errors"]), *self._errors]
        errors += [
            f"draft {place}: in flight when its draft ended; charged in full" for place in abandoned
        ]
        if error is not None and not isinstance(error, DraftError):
            errors.append(f"draft {self.call['ordinal']}: {describe(error)}")
        wrote = next((r for r in reversed(replies) if r.text.strip()), None)
        broken = text is None
        text = (wrote.text if wrote else "") if text is None else text
        empty, now = not text.strip(), clock.now()
        known: Receipt = {
            **receipt(self._began, now),
            "ended": "error" if broken else came[-1]["ended"] if came else "stop",
            "spend": {**spend, "seconds": now - self._began},
            "reported": self._worst[1],
            "failed": broken or empty,
            "interrupted": interrupted or any(one["interrupted"] for one in came),
            "retry_after": max((one["retry_after"] for one in came), default=0.0),
            "errors": errors,
            "lost": empty and any(one["lost"] for one in came),
            "refused": broken and any(one["refused"] for one in came),
            "unserved": any(one["unserved"] for one in came)
            and not any(one["spend"]["calls"] for one in came),
            "closed": any(one["closed"] for one in came),
            "blocked": came[-1].get("blocked") if came and not broken else None,
            "recalled": bool(came) and all(one["recalled"] for one in came),
        }
        call: PlannedCall = {**self.call, "agent": self._agent, "shape": self._worst[0]}
        message = AIMessage(text, id=wrote.message.id if wrote else None)
        return call, Reply(text, message, known)


def _request(call: PlannedCall, place: Place) -> Request:
    """A call of an earlier process, whose prompt is lost."""
    return Request(
        prompt=(),
        max_input=call["max_input"],
        max_output=call["max_output"],
        place=place,
        kind="draft",
    )


def _digest(prompt: Sequence[BaseMessage], options: Mapping[str, Any]) -> str:
    """What a request is known by in another process, in which messages have other ids."""
    messages = [
        (m.type, m.content, getattr(m, "tool_calls", None), getattr(m, "tool_call_id", None))
        for m in prompt
    ]
    text = json.dumps([messages, options], default=str, sort_keys=True)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _for_agent(reply: Reply, last: bool) -> AIMessage:
    """The reply as the agent gets it. Tool calls of one that was cut are not to be carried out, nor
    those of one that was to be the last."""
    if reply.uncut and not last:
        return reply.message
    if reply.receipt["ended"] in ("cut", "error"):
        return AIMessage(reply.text)
    kept = reply.message
    return AIMessage(reply.text, id=kept.id, usage_metadata=kept.usage_metadata)


def _text(answer: Any) -> str:
    if isinstance(answer, Mapping):
        structured = answer.get("structured_response")
        if isinstance(structured, BaseModel):
            return structured.model_dump_json()
        answer = (answer.get("messages") or [None])[-1]
    if isinstance(answer, BaseMessage):
        return answer.text
    if isinstance(answer, str):
        return answer
    raise TypeError(f"drafter: it returned {type(answer).__name__}, not messages, nor a text")
