"""Drafts by an agent: its model goes through the gate, within what the draft's slice still allows.

A draft has PLACES places in its run. Each call of its agent is a metered call at one of them:
bounded, reserved, capped and settled like any other, so that what the agent spends is known call by
call. When a draft is made again after a crash, the calls that the ledger holds of it are charged at
once, and the agent is given the recorded reply wherever it asks the same again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    messages_from_dict,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, PrivateAttr

from anytime_graph.budget import Limits, Spend, nothing, output_room, share, total
from anytime_graph.checkpoints import Access
from anytime_graph.metering import Gate, Reply, Stop, acall, call, describe, gate, recalled
from anytime_graph.state import GOOD_ROOM, MIN_ROOM, PATIENCE, PLACES, Task
from anytime_graph.tokens import Calibration, Shape, uncalibrated

Drafter = Callable[[BaseChatModel], Runnable[Any, Any]]
"""From a metered chat model to what drafts with it. That is given {"messages": [...]} and returns
the like, whose last message is the draft, or a message, or a text."""

_QUIET: RunnableConfig = {"callbacks": []}


class DraftError(RuntimeError):
    """Raised to an agent whose model call failed, or could not be paid for and was not made."""


class MeteredModel(BaseChatModel):
    """A chat model whose every call is paid from one draft's slice, or is not made."""

    cache: Any = False
    _draft: _Draft = PrivateAttr()

    def __init__(self, draft: _Draft) -> None:
        super().__init__(profile=getattr(draft.gate.model, "profile", None))
        self._draft = draft

    @property
    def _llm_type(self) -> str:
        return "metered"

    def bind_tools(
        self, tools: Sequence[Any], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        bound = cast(Any, self._draft.gate.model.bind_tools(tools, **kwargs))
        return self.bind(**bound.kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        draft, asked = self._draft, _Asked(messages, kwargs | ({"stop": stop} if stop else {}))
        if (reply := draft.again(asked)) is None:
            through, task = draft.planned(asked)
            reply = draft.paid(task, call(through, task, _QUIET, draft, draft.access))
        return _result(reply)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        draft, asked = self._draft, _Asked(messages, kwargs | ({"stop": stop} if stop else {}))
        if (reply := draft.again(asked)) is None:
            through, task = draft.planned(asked)
            reply = draft.paid(task, await acall(through, task, _QUIET, draft, draft.access))
        return _result(reply)


def draft(
    drafter: Drafter,
    gate: Gate,
    task: Task,
    last: str,
    config: RunnableConfig,
    stop: Stop | None,
    access: Access | None,
) -> tuple[Task, Reply]:
    """Have the agent draft. Returns its answer and what it cost as one reply, and the task as far as
    its calls tell more of it. last: what an agent is told when it may use no more tools."""
    under_way = _Draft(gate, task, last, stop, access)
    if not task["prompt"]:
        return under_way.recorded()
    try:
        answer = drafter(MeteredModel(under_way)).invoke({"messages": task["prompt"]}, config)
        return under_way.ended(_text(answer))
    except KeyboardInterrupt:
        return under_way.ended(None, interrupted=True)
    except Exception as error:
        return under_way.ended(None, error)


async def adraft(
    drafter: Drafter,
    gate: Gate,
    task: Task,
    last: str,
    config: RunnableConfig,
    stop: Stop | None,
    access: Access | None,
) -> tuple[Task, Reply]:
    """The same, on the event loop."""
    under_way = await asyncio.to_thread(_Draft, gate, task, last, stop, access)
    if not task["prompt"]:
        return under_way.recorded()
    try:
        agent = drafter(MeteredModel(under_way))
        return under_way.ended(_text(await agent.ainvoke({"messages": task["prompt"]}, config)))
    except Exception as error:
        return under_way.ended(None, error)


class _Asked(NamedTuple):
    """A request of the agent's: messages, and what it bound to the model."""

    messages: list[BaseMessage]
    given: Mapping[str, Any]

    def digest(self) -> str:
        """What it is known by in another life, in which messages have other ids."""
        said = [
            (m.type, m.content, getattr(m, "tool_calls", None), getattr(m, "tool_call_id", None))
            for m in self.messages
        ]
        text = json.dumps([said, self.given], default=str, sort_keys=True)
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()


class _Draft:
    """A draft under way: what its slice still allows, and what its calls brought. To those it is the
    Stop as well, so that none outlasts it."""

    def __init__(
        self, gate: Gate, task: Task, last: str, stop: Stop | None, access: Access | None
    ) -> None:
        self.gate, self.task, self.last, self.stop, self.access = gate, task, last, stop, access
        self._lock = threading.Lock()
        self._rest: Limits = dict(task["slice"])
        self._place, self._wait = task["ordinal"], task["wait"]
        self._known: Calibration = {**uncalibrated(), "growth": task.get("growth", 1.0)}
        self._worst: tuple[Shape, int | None] = (task["shape"], None)
        self._overhead = int(task["move"]["overhead"])
        self._over = False
        self._refused = 0
        self._errors: list[str] = []
        self._replies: list[Reply] = []
        self._in_flight: dict[int, Task] = {}
        self._earlier: dict[str, list[Reply]] = {}
        self._began = time.time()
        if access is not None:
            self._remember(access)

    def _remember(self, access: Access) -> None:
        """Take in, and charge, the calls that the ledger holds of this draft."""
        for known in access.ledger.within(self.task["run_id"], self._place, PLACES):
            task = cast(Task, {**self.task, **known})
            if (reply := recalled(self.gate, task, access)) is None:
                continue
            self._place = task["ordinal"] + 1
            self._replies.append(reply)
            self._spend(reply, {})
            if reply.message is not None:
                self._earlier.setdefault(task["move"]["request"], []).append(reply)
        if self._replies:
            active = max(r.ended_at for r in self._replies) - self._replies[0].started
            self._began -= max(0.0, active)

    # --- its calls

    def is_set(self) -> bool:
        return self._over or (self.stop is not None and self.stop.is_set())

    def again(self, asked: _Asked) -> Reply | None:
        """The reply to the same request in an earlier life; it is charged already."""
        with self._lock:
            earlier = self._earlier.get(asked.digest())
            return earlier.pop(0) if earlier else None

    def planned(self, asked: _Asked) -> tuple[Gate, Task]:
        """The call with its reservation, which the rest of the slice pays for. As long as tools may
        be used, a call gets half of the rest; once that is too little, the agent is told to answer.
        A draft that could not use its tools even once gives its slice back, if more is to be had.
        Raises DraftError if the call cannot be paid for."""
        model = self.gate.model.bind(**self.gate.kwargs, **asked.given)
        through = gate(model, self.gate.prices)
        with self._lock:
            rest = self._left()
            messages, final = asked.messages, False
            shape, bound, room = self._bound(through, messages, rest)
            if "tools" in asked.given:
                less = output_room(share(rest, 0.5), bound, through.prices)
                final = rest.get("calls", 2) < 2 or (less is not None and less < GOOD_ROOM)
                told = [*messages, HumanMessage(self.last)]
                at_last = self._bound(through, told, rest)
                if not self._replies:
                    self._overhead += at_last[1] - self.task["prompt_bound"]
                    if final and self.task["move"]["agent"]:
                        self._refuse("its slice does not pay for a call with tools and one more")
                if final:
                    messages, (shape, bound, room) = told, at_last
                else:
                    room = less
            self._affordable(rest, bound, room)
            ceilings = (through.ceiling, self.gate.ceiling, room)
            cap = min((c for c in ceilings if c is not None), default=None)
            place, wait, self._wait = self._place, self._wait, 0.0
            self._place += 1
            move = {**self.task["move"], "within": self.task["ordinal"], "final": final}
            task: Task = {
                **self.task,
                "ordinal": place,
                "move": {**move, "request": asked.digest()},
                "slice": rest,
                "prompt": cast("list[AnyMessage]", messages),
                "prompt_bound": bound,
                "room": cap,
                "shape": shape,
                "wait": wait,
            }
            self._in_flight[place] = task
            self._take(self._reserved(task), -1)
        return through, task

    def paid(self, task: Task, reply: Reply) -> Reply:
        """Settle with the slice. Raises DraftError if the call failed."""
        with self._lock:
            if self._in_flight.pop(task["ordinal"], None) is None:
                raise DraftError("the draft has ended")
            self._replies.append(reply)
            self._spend(reply, self._reserved(task))
            if reply.reported is not None:
                before, shape = self._known["growth"], task["shape"]
                self._known = self.gate.learn(self._known, shape, reply.reported, base=False)
                if self._known["growth"] > before or self._worst[1] is None:
                    self._worst = (shape, reply.reported)
            self._refused = self._refused + 1 if reply.free else 0
            self._wait = max(self._wait, reply.retry_after)
            self._over |= reply.interrupted or reply.closed
        if reply.failed:
            raise DraftError("the call failed")
        return reply

    def _bound(
        self, through: Gate, messages: list[BaseMessage], of: Limits
    ) -> tuple[Shape, int, int | None]:
        shape = through.shape(messages)
        bound = through.bound(shape, self._known)
        return shape, bound, output_room(of, bound, through.prices)

    def _left(self) -> Limits:
        seconds = self.task["slice"].get("seconds")
        passed = {} if seconds is None else {"seconds": seconds - (time.time() - self._began)}
        return {d: max(0, amount) for d, amount in (self._rest | passed).items()}

    def _affordable(self, rest: Limits, bound: int, room: int | None) -> None:
        if self._over or self._place >= self.task["ordinal"] + PLACES:
            self._refuse("it may make no further call")
        if self._refused >= PATIENCE:
            self._refuse(f"its last {self._refused} calls were refused")
        for dimension in ("calls", "seconds"):
            if rest.get(dimension, 1) <= 0:
                self._refuse(f"its slice has no {dimension} left")
        if room is not None and room < MIN_ROOM:
            left_over = ", ".join(f"{d}={amount:g}" for d, amount in rest.items())
            self._refuse(
                f"its next prompt, of up to {bound} tokens, does not fit what is left of its "
                f"slice ({left_over})"
            )

    def _refuse(self, why: str) -> None:
        self._errors.append(f"draft {self.task['ordinal']}: {why}")
        raise DraftError(why)

    def _reserved(self, task: Task) -> Limits:
        bound, room, prices = task["prompt_bound"], task["room"] or 0, self.gate.prices
        usd = prices.most(bound, room) if prices else 0.0
        return {"tokens": bound + room, "output_tokens": room, "usd": usd, "calls": 1}

    def _total(self, abandoned: Sequence[Task]) -> Spend:
        full = [
            {**nothing(), **self._reserved(task), "input_tokens": task["prompt_bound"]}
            for task in abandoned
        ]
        return total([*(r.spend for r in self._replies), *cast("list[Spend]", full)])

    def _spend(self, reply: Reply, reserved: Limits) -> None:
        """Give a reservation back, and take what the call cost."""
        self._take(reserved, 1)
        self._take(cast("Limits", reply.spend), -1)

    def _take(self, amounts: Limits, sign: int) -> None:
        for d in self._rest:
            if d != "seconds":
                self._rest[d] += sign * amounts.get(d, 0)

    # --- its end

    def recorded(self) -> tuple[Task, Reply]:
        """What the ledger holds of a draft whose request is lost with the state: its answer, if it
        had come to one."""
        last = self._replies[-1] if self._replies else None
        done = last is not None and last.message and not last.message["data"].get("tool_calls")
        return self.ended(last.text if last is not None and done else "")

    def ended(
        self, text: str | None, error: Exception | None = None, interrupted: bool = False
    ) -> tuple[Task, Reply]:
        """The draft as one reply. text: None if it did not come to its end; then what its last call
        said may hold an answer."""
        with self._lock:
            self._over = True
            replies, abandoned = self._replies, list(self._in_flight.values())
            self._in_flight = {}
        now, errors = time.time(), [*(e for r in replies for e in r.errors), *self._errors]
        errors += [
            f"draft {task['ordinal']}: in flight when its draft ended; charged in full"
            for task in abandoned
        ]
        if error is not None and not isinstance(error, DraftError):
            errors.append(f"draft {self.task['ordinal']}: {describe(error)}")
        said = next((r for r in reversed(replies) if r.text.strip()), None)
        broken = text is None
        text = (said.text if said else "") if text is None else text
        whole = replies[-1].ended if replies else "stop"
        reply = Reply(
            text=text,
            message_id=said.message_id if said else None,
            ended="error" if broken else whole,
            spend={**self._total(abandoned), "seconds": now - self._began},
            reported=self._worst[1],
            starved=False,
            failed=broken or not text.strip(),
            interrupted=interrupted or any(r.interrupted for r in replies),
            retry_after=max((r.retry_after for r in replies), default=0.0),
            errors=errors,
            started=self._began,
            ended_at=now,
            lost=not text.strip() and any(r.lost for r in replies),
            refused=broken and any(r.refused for r in replies),
            free=any(r.free for r in replies) and not any(r.spend["calls"] for r in replies),
            closed=any(r.closed for r in replies),
            recalled=bool(replies) and all(r.recalled for r in replies),
        )
        move = {**self.task["move"], "overhead": self._overhead}
        return {**self.task, "move": move, "shape": self._worst[0]}, reply


def _result(reply: Reply) -> ChatResult:
    (message,) = messages_from_dict([reply.message]) if reply.message else [AIMessage(reply.text)]
    return ChatResult(generations=[ChatGeneration(message=message)])


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
