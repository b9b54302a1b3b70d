"""Drafts by an agent: the calls of its model are paid from the draft's slice.

A draft has PLACES places in its run. Each call of its agent is a metered call at one of them:
bounded, reserved, capped and settled like any other. When a draft is repeated after a crash, its
recorded calls are charged at once, and the agent gets the recorded reply to an equal request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from pydantic import BaseModel

from anytime_graph.budget import (
    GOOD_ROOM,
    MIN_ROOM,
    TOOL_CALLS,
    Limits,
    Prices,
    Short,
    Spend,
    in_digits,
    nothing,
    share,
    total,
)
from anytime_graph.checkpoints.agents import book_tool, settle_tool
from anytime_graph.checkpoints.journal import CallJournal, RunJournal, kept_above
from anytime_graph.checkpoints.quotas import SharedQuotas
from anytime_graph.interrupt import StopSignal, awithin, contained, within
from anytime_graph.metering import clock
from anytime_graph.metering.account import Account, planned
from anytime_graph.metering.call import recalled
from anytime_graph.metering.meter import Meter, meter_for
from anytime_graph.metering.metered import (
    Reservation,
    current_payer,
    is_metered,
    paid_by,
    paying_from,
    with_tool_calls_held,
)
from anytime_graph.metering.request import Place, Reply, Request, Shared, digest_of
from anytime_graph.metering.tool_calls import broken
from anytime_graph.models.providers import describe
from anytime_graph.models.tokens import Shape
from anytime_graph.planning.setup import Setup
from anytime_graph.run.calls import (
    PATIENCE,
    PLACES,
    AgentCall,
    AgentDraft,
    AgentMove,
    Assignment,
    Caller,
    PlannedCall,
    Receipt,
    receipt,
)


class DraftError(RuntimeError):
    """Raised in an agent whose model call failed, or was not made because it could not be paid
    for."""


def draft(
    setup: Setup,
    assigned: Assignment,
    config: RunnableConfig,
    stop: StopSignal | None,
    journal: RunJournal | None,
) -> tuple[PlannedCall, Reply]:
    """Have the agent draft. Returns the call, with what the agent's calls showed about it, and one
    reply with the agent's answer and the cost of all its calls."""
    payer = DraftPayer(setup, assigned, stop, journal)
    if assigned["prompt"] is None:
        return payer.recorded()
    try:
        with contained(), payer.working() as agent:
            given = {"messages": assigned["prompt"]}
            answer = within(payer.seconds(), lambda: agent.invoke(given, config))
            return payer.ended(_text(answer))
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
    """`draft` on the event loop."""
    payer = await asyncio.to_thread(DraftPayer, setup, assigned, stop, journal)
    if assigned["prompt"] is None:
        return payer.recorded()
    try:
        with contained(), payer.working() as agent:
            given = {"messages": assigned["prompt"]}
            answer = await awithin(payer.seconds(), lambda: agent.ainvoke(given, config))
            return payer.ended(_text(answer))
    except Exception as error:
        return payer.ended(None, error)


class DraftPayer:
    """Pays the calls of one draft's agent from the draft's slice and collects their replies. It is
    also the stop signal of those calls, so that none outlasts the draft."""

    def __init__(
        self,
        setup: Setup,
        assigned: Assignment,
        stop: StopSignal | None,
        journal: RunJournal | None,
    ) -> None:
        assert setup.drafter is not None
        self.call, self.run = assigned["call"], assigned["run"]
        self.meter = setup.meters[self.call["role"]]
        self.stop: StopSignal | None = self
        self._stop, self._journal, self._drafter = stop, journal, setup.drafter
        self._around = current_payer() if is_metered(self.meter.model) else None
        self._last_words = setup.answers.protocol.conclude()
        self._agent: AgentDraft = self.call["agent"]
        self._place, self._wait = self.call["ordinal"], assigned["wait"]
        # The shape and the report of the prompt that exceeded its bound the most.
        self._worst: tuple[Shape, int | None] = (self.call["shape"], None)
        self._over, self._refused = False, 0
        self._errors: list[str] = []
        self._replies: list[Reply] = []
        self._in_flight: dict[int, Reservation] = {}
        self._recorded: dict[str, list[tuple[PlannedCall, Reply]]] = {}
        self._calls: dict[int, PlannedCall] = {}
        self._remember()
        before = self._active()
        spent: Spend = {**total(r.receipt["spend"] for r in self._replies), "seconds": before}
        self.account = Account(self.call["slice"], spent, running=True)
        if journal is not None:
            self.account.shared = journal.shared
            self.account.record = DraftRecord(self, journal)
        self.account.calibrations[self.meter.name] = self._agent["calibration"]
        self._began = clock.now() - before

    def _remember(self) -> None:
        """Collect the calls of this draft that the ledger holds."""
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
            if not reply.receipt["failed"] and (reply.text.strip() or reply.uncut):
                asked = call["agent_call"]["request"]
                self._recorded.setdefault(asked, []).append((call, reply))

    def _active(self) -> float:
        """Seconds from the start of the first recorded call to the end of the last."""
        if not self._replies:
            return 0.0
        ended_at = max(r.receipt["ended_at"] for r in self._replies)
        return max(0.0, ended_at - self._replies[0].receipt["started"])

    @contextmanager
    def working(self) -> Iterator[Any]:
        """The agent, while it drafts. Agents and tools inside it draw on the draft's account."""
        with paying_from(self):
            yield self._drafter(paid_by(self, self.meter.model, self.meter.prices))

    def seconds(self) -> float | None:
        """How long it may take."""
        return self.account.left().get("seconds")

    # --- the calls of its agent: see metering.metered.Payer

    def is_set(self) -> bool:
        return self._over or (self._stop is not None and self._stop.is_set())

    def journal(self, reserved: Reservation) -> CallJournal | None:
        if self._journal is None or reserved.request is None:
            return None
        return self._journal.of(self.planned_call(reserved.request), self.run)

    def reserve(
        self,
        model: BaseChatModel,
        prompt: Sequence[BaseMessage],
        options: Mapping[str, Any],
        prices: Prices | None,
    ) -> Reservation:
        """Reserve a call from the rest of the slice. An equal request from before a crash gets the
        recorded reply, which is charged already.

        While tools may be used, a call gets half of the rest. Once that is too little, the agent
        must answer. A draft whose slice never pays for a tool gives the slice back, if it may.
        Raises DraftError if the call cannot be paid for.
        """
        if self._around is not None:  # whoever the graph works for
            model = paid_by(self._around, model, prices)
        ready = meter_for(
            model.bind(**self.meter.bound),
            options,
            prices,
            self.meter.tokenizer.media_tokens,
        )
        if TOOL_CALLS in self.call["slice"]:
            try:
                ready.check_tools("budget tool_calls")
            except ValueError as error:
                self._refuse(str(error))
        digest = digest_of(prompt, options)
        with self.account.lock:
            if (known := self.recorded_call(digest)) is not None:
                call, reply = known
                return Reservation(ready, message=_for_agent(reply, call["agent_call"]["last"]))
            self._check_open()
            if self._refused >= PATIENCE:
                self._refuse(f"its last {self._refused} calls were refused")
            rest = self.account.left()
            shape, request, last = self._planned(ready, prompt, rest)
            place = self.next_place(digest, rest, shape, last)
            wait, self._wait = self._wait, 0.0
            request = replace(
                request,
                place=place,
                max_output=self.meter.cap(request.max_output),
                wait=wait,
                kind="draft",
            )
            reserved = self._in_flight[place.ordinal] = Reservation(ready, shape, request)
            self.account.hold(reserved.amounts)
            return reserved

    # --- the places of its calls: see DraftRecord

    def recorded_call(self, digest: str) -> tuple[PlannedCall, Reply] | None:
        """A call from before a crash whose request was equal; each is given once."""
        if not (recorded := self._recorded.get(digest)):
            return None
        call, reply = recorded.pop(0)
        self._calls[call["ordinal"]] = call
        return call, reply

    def next_place(self, digest: str, rest: Limits, shape: Shape, last: bool) -> Place:
        """A place for a call that `rest` pays for. Raises DraftError."""
        self._check_open()
        ordinal, self._place = self._place, self._place + 1
        move: Any = self.call["move"]
        if self._journal is not None and kept_above(self._journal.ledger):
            move = AgentMove(kind="nested")
        self._calls[ordinal] = {
            **self.call,
            "move": move,
            "ordinal": ordinal,
            "slice": rest,
            "shape": shape,
            "agent_call": AgentCall(draft=self.call["ordinal"], request=digest, last=last),
        }
        return Place(self.run["run_id"], ordinal)

    def _check_open(self) -> None:
        if self._over or self._place >= self.call["ordinal"] + PLACES:
            self._refuse("it may make no further call")

    def planned_call(self, request: Request) -> PlannedCall:
        """What the ledger keeps of the call at a place."""
        reserved = {"max_input": request.max_input, "max_output": request.max_output}
        return cast(PlannedCall, {**self._calls[request.place.ordinal], **reserved})

    def granted(self, reserved: Reservation, reply: Reply) -> Reply:
        if not reply.uncut or self._calls[reserved.place]["agent_call"]["last"]:
            return reply  # its tool calls are not carried out
        quotas = None if self._journal is None else self._journal.shared.take
        return with_tool_calls_held(self.account, reserved, reply, quotas)

    def settle(self, reserved: Reservation) -> None:
        """Charge a call. One without a reply stays in flight and is charged in full when the draft
        ends, unless its cost is known. Raises DraftError if the call failed or the draft has ended."""
        if (reply := reserved.reply) is None:
            with self.account.lock:
                if reserved.cost and self._in_flight.pop(reserved.place, None) is not None:
                    self.account.settle(reserved.amounts, reserved.cost)
            return
        receipt = reply.receipt
        with self.account.lock:
            if self._in_flight.pop(reserved.place, None) is None:
                raise DraftError("the draft has ended")
            self.account.settle(reserved.amounts, receipt["spend"])
            self._replies.append(reply)
            if (reported := receipt["reported"]) is not None:
                higher = self.account.learn(self.meter, reserved.shape, reported)
                if higher or self._worst[1] is None:
                    self._worst = (reserved.shape, reported)
            self._refused = self._refused + 1 if receipt["unserved"] else 0
            self._wait = max(self._wait, receipt["retry_after"])
            self._over |= receipt["interrupted"] or receipt["closed"]
        if reply.uncut and broken(reply.message):
            self._errors.append(f"draft {reserved.place}: its tool calls did not come whole")
            raise DraftError("its tool calls did not come whole")
        if receipt["failed"] or receipt["lost"]:
            raise DraftError("the call failed")
        reserved.message = _for_agent(reply, self._calls[reserved.place]["agent_call"]["last"])

    def _planned(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> tuple[Shape, Request, bool]:
        """The next call, and whether it is the last one, in which the agent must answer."""
        calibration, tools = self.account.calibration(self.meter), ready.bound.get("tools")
        last_prompt = [*prompt, *([HumanMessage(self._last_words)] if tools else [])]
        if not self._replies:
            # A prompt bounded at 300 tokens that reaches the model with a bound of 1,100 (system
            # prompt, tools, last words) has an overhead of 800.
            _, last_input = ready.max_input(last_prompt, calibration)
            overhead = self._agent["overhead"] + last_input - self.call["max_input"]
            self._agent = {**self._agent, "overhead": overhead}
        if not tools:
            return *self._fitting(ready, prompt, rest), False
        if rest.get("calls", 2) >= 2 and rest.get(TOOL_CALLS, 1) >= 1:
            with suppress(Short):
                half = share(rest, 0.5)
                request = planned(
                    ready, prompt, half, calibration, min_output=GOOD_ROOM, half=False
                )
                return *request, False
        may_return = rest.get(TOOL_CALLS, 1) >= 1 and self._agent["may_return"]
        if not self._replies and may_return:
            self._refuse("its slice does not pay for a call with tools and one more")
        return *self._fitting(ready, last_prompt, rest), True

    def _fitting(
        self, ready: Meter, prompt: Sequence[BaseMessage], rest: Limits
    ) -> tuple[Shape, Request]:
        calibration = self.account.calibration(self.meter)
        try:
            return planned(ready, prompt, rest, calibration, min_output=MIN_ROOM, half=False)
        except Short as short:
            amounts = ", ".join(f"{d}={in_digits(amount)}" for d, amount in rest.items())
            self._refuse(
                f"its next call needs {short.least} and does not fit what is left of its slice "
                f"({amounts})"
            )

    def _refuse(self, why: str) -> NoReturn:
        self._errors.append(f"draft {self.call['ordinal']}: {why}")
        raise DraftError(why)

    # --- the end

    def recorded(self) -> tuple[PlannedCall, Reply]:
        """A draft whose prompt was lost with the state, from what the ledger holds: its answer, if
        the agent had come to one."""
        last = self._replies[-1] if self._replies else None
        return self.ended(last.text if last and not last.message.tool_calls else "")

    def ended(
        self, text: str | None, error: Exception | None = None, interrupted: bool = False
    ) -> tuple[PlannedCall, Reply]:
        """The draft as one reply. text: None if the agent did not finish; then the last text of its
        model may hold an answer."""
        with self.account.lock:
            self._over = True
            replies, abandoned = self._replies, sorted(self._in_flight)
            self._in_flight = {}
            spend = self.account.close()
        receipts = [reply.receipt for reply in replies]
        errors = [*(e for r in receipts for e in r["errors"]), *self._errors]
        errors += [
            f"draft {place}: in flight when its draft ended; charged in full" for place in abandoned
        ]
        if error is not None and not isinstance(error, DraftError):
            errors.append(f"draft {self.call['ordinal']}: {describe(error)}")
        spoken = next((r for r in reversed(replies) if r.text.strip()), None)
        unfinished = text is None
        text = (spoken.text if spoken else "") if text is None else text
        empty, now = not text.strip(), clock.now()
        summary: Receipt = {
            **receipt(self._began, now),
            "ended": "error" if unfinished else receipts[-1]["ended"] if receipts else "stop",
            "spend": {**spend, "seconds": now - self._began},
            "reported": self._worst[1],
            "failed": unfinished or empty,
            "interrupted": interrupted or any(r["interrupted"] for r in receipts),
            "retry_after": max((r["retry_after"] for r in receipts), default=0.0),
            "errors": errors,
            "lost": empty and any(r["lost"] for r in receipts),
            "refused": unfinished and any(r["refused"] for r in receipts),
            "unserved": any(r["unserved"] for r in receipts)
            and not any(r["spend"]["calls"] for r in receipts),
            "closed": any(r["closed"] for r in receipts),
            "withheld": any(r.get("withheld", False) for r in receipts),
            "oversized": any(r.get("oversized", False) for r in receipts),
            "blocked": receipts[-1].get("blocked") if receipts and not unfinished else None,
            "recalled": bool(receipts) and all(r["recalled"] for r in receipts),
        }
        call: PlannedCall = {**self.call, "agent": self._agent, "shape": self._worst[0]}
        message = AIMessage(text, id=spoken.message.id if spoken else None)
        return call, Reply(text, message, summary)


@dataclass(frozen=True)
class DraftRecord:
    """What an agent with a budget of its own spends in a draft beside the draft's model: calls of its
    tools' models, and the tools' prices. See metering.request.RunRecord."""

    draft: DraftPayer
    run: RunJournal

    def again(self, digest: str) -> Request | None:
        if (known := self.draft.recorded_call(digest)) is None:
            return None
        return _request(known[0], Place(self.draft.run["run_id"], known[0]["ordinal"]))

    def place(self, kind: Caller, digest: str) -> Place:
        return self.draft.next_place(digest, self.draft.account.left(), [], last=False)

    def journal(self, request: Request, shared: Shared) -> CallJournal:
        return self._journal(self.draft.planned_call(request), shared)

    def tool_begins(
        self, tool: str, call: str, usd: float, shared: Shared, seconds: float
    ) -> Place | None:
        """The call itself was counted with the reply that asked for it."""
        if not usd:
            return None
        with self.draft.account.lock:
            place = self.place("tool", "")
        request = Request(prompt=(), max_input=0, max_output=0, place=place)
        made: Any = {**self.draft.planned_call(request), "move": AgentMove(kind="tool_call")}
        book_tool(self._journal(made, shared), request, _dollars(usd), tool, seconds)
        return place

    def tool_paused(self, call: str) -> Place | None:
        return None  # within a draft, nobody is asked

    def tool_ended(self, place: Place, usd: float, pauses: bool = False) -> None:
        settle_tool(self.run.ledger, place, _dollars(usd))

    def _journal(self, call: PlannedCall, shared: Shared) -> CallJournal:
        assert isinstance(shared, SharedQuotas)
        return self.run._replace(shared=shared).of(call, self.draft.run)


def _dollars(usd: float) -> Spend:
    return {**nothing(), "usd": usd}


def _request(call: PlannedCall, place: Place) -> Request:
    """The request of a recorded call. Its prompt was lost with the process that made it."""
    return Request(
        prompt=(),
        max_input=call["max_input"],
        max_output=call["max_output"],
        place=place,
        kind="draft",
    )


def _for_agent(reply: Reply, last: bool) -> AIMessage:
    """The reply as the agent gets it, without the tool calls of a cut reply or of the last one."""
    if reply.uncut and not last:
        return reply.message
    if reply.receipt["ended"] in ("cut", "error"):
        return AIMessage(reply.text)
    message = reply.message
    return AIMessage(reply.text, id=message.id, usage_metadata=message.usage_metadata)


def _text(answer: Any) -> str:
    """The draft in what an agent returned: messages, one message or a text. Raises TypeError."""
    if isinstance(answer, Mapping):
        structured = answer.get("structured_response")
        if isinstance(structured, BaseModel):
            return structured.model_dump_json()
        answer = (answer.get("messages") or [None])[-1]
    if isinstance(answer, BaseMessage):
        return answer.text
    if isinstance(answer, str):
        return answer
    raise TypeError(f"drafter: it returned {type(answer).__name__}, not messages or a text")
