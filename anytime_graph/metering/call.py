"""One metered call of a chat model, bounded before it is made, cut at its bound, and charged.

It is charged what the provider reports or, without a credible report, its whole reservation. A call
that cannot have been served costs nothing. No other module of this package calls a chat model.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.utils.utils import LC_ID_PREFIX

from anytime_graph.budget import MIN_ROOM, Limits, Spend, Unpayable, lowest, nothing, output_room
from anytime_graph.interrupt import StopSignal, contained
from anytime_graph.metering import clock
from anytime_graph.metering.bill import Bill, bill
from anytime_graph.metering.learned import (
    Attempts,
    Form,
    RefusedBefore,
    Trial,
    Underestimated,
    shaped,
)
from anytime_graph.metering.meter import Meter
from anytime_graph.metering.quota import PATIENCE, Standings, Withheld
from anytime_graph.metering.request import Entry, Journal, JournalError, Reply, Request, made_for
from anytime_graph.metering.streamed import StreamedChoice, StreamedReply
from anytime_graph.models import providers, refusals
from anytime_graph.models.departures import Departure, departing
from anytime_graph.run.calls import Ended, Receipt, receipt

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL = 0.05
_UNBOUNDED = 10**9
"""The room of a call whose output nothing limits."""
_GRACE = 5.0
"""Seconds after the deadline at which an abandoned connection closes by itself."""


def call(
    meter: Meter,
    request: Request,
    config: RunnableConfig,
    stop: StopSignal | None = None,
    journal: Journal | None = None,
) -> Reply:
    """Make the call. If it has a time limit or may be stopped, it runs in a thread of its own, so that
    a silent server cannot hold it. A journal records its reservation before and its reply after; a
    call that the journal holds already is not made again."""
    if (earlier := recalled(meter, request, journal)) is not None:
        return earlier
    attempts, replies = _attempts(meter, request), list[Reply]()
    while not replies or _again(attempts, replies[-1]):
        replies.append(_attempt(meter, attempts.next(), config, stop, journal))
    return _joined(replies, attempts)


def _attempt(
    meter: Meter,
    request: Request,
    config: RunnableConfig,
    stop: StopSignal | None,
    journal: Journal | None,
) -> Reply:
    under_way = _Call(meter, request, stop)
    done = threading.Event()

    def pump() -> None:
        try:
            with contained(), made_for(journal), departing(under_way.departure):
                prompt, model, bound = under_way.capped(asynchronous=False)
                under_way.drain(model.stream(list(prompt), under_way.config(config), **bound))
        except Exception as error:
            under_way.fail(error)
        finally:
            done.set()

    try:
        for seconds in under_way.waits():
            time.sleep(seconds)
        while pause := under_way.reserve(journal):
            time.sleep(pause)
        if not under_way.made:
            return under_way.settle()
        if under_way.patience() is None:
            pump()
        else:
            run = contextvars.copy_context().run
            threading.Thread(target=run, args=(pump,), daemon=True, name="metered-call").start()
            while not done.wait(under_way.patience()) and not under_way.over():
                pass
    except KeyboardInterrupt:
        under_way.interrupt()
    except BaseException:
        under_way.tried()
        raise
    reply = under_way.settle()
    if not done.is_set():
        under_way.departure.hang_up()
    return _booked(reply, request, journal)


async def acall(
    meter: Meter,
    request: Request,
    config: RunnableConfig,
    stop: StopSignal | None = None,
    journal: Journal | None = None,
) -> Reply:
    """The same, on the event loop. Cancelling it closes the connection; the CancelledError has the `cost` of
    the call by then, which the journal keeps with what has arrived."""
    try:
        earlier = await _beside(journal, recalled, meter, request, journal)
    except asyncio.CancelledError as error:
        vars(error)["cost"] = nothing()
        raise
    if earlier is not None:
        return earlier
    attempts, replies = _attempts(meter, request), list[Reply]()
    while not replies or _again(attempts, replies[-1]):
        replies.append(await _aattempt(meter, attempts.next(), config, stop, journal))
    return _joined(replies, attempts)


async def _aattempt(
    meter: Meter,
    request: Request,
    config: RunnableConfig,
    stop: StopSignal | None,
    journal: Journal | None,
) -> Reply:
    under_way = _Call(meter, request, stop)

    async def pump() -> None:
        try:
            with contained(), made_for(journal), departing(under_way.departure):
                prompt, model, bound = under_way.capped(asynchronous=True)
                stream = model.astream(list(prompt), under_way.config(config), **bound)
                await under_way.adrain(stream)
        except Exception as error:
            under_way.fail(error)

    async def attempted() -> None:
        for seconds in under_way.waits():
            await asyncio.sleep(seconds)
        while pause := await _beside(journal, under_way.reserve, journal):
            await asyncio.sleep(pause)
        if not under_way.made:
            return
        work = asyncio.create_task(pump())
        try:
            while not work.done() and not under_way.over():
                await asyncio.wait({work}, timeout=under_way.patience())
        finally:
            under_way.left = True
            await _let_end(work, cancel=True)

    try:
        await attempted()
    except asyncio.CancelledError as error:
        reply = under_way.given_up(journal)
        vars(error)["cost"] = reply.receipt["spend"]
        if under_way.made and journal is not None:
            with suppress(asyncio.CancelledError):
                await _let_end(_set_off(_booked, reply, request, journal))
        raise
    except BaseException:
        under_way.tried()
        raise
    reply = under_way.settle()
    if not under_way.made:
        return reply
    try:
        return await _beside(journal, _booked, reply, request, journal)
    except asyncio.CancelledError as error:
        vars(error)["cost"] = reply.receipt["spend"]
        raise


async def _beside(journal: Journal | None, work: Callable[..., T], *given: Any) -> T:
    """Do this, beside the event loop if it needs the journal. If this is cancelled, the work comes to its end
    all the same."""
    if journal is None:
        return work(*given)
    task = _set_off(work, *given)
    try:
        await asyncio.wait({task})
    finally:
        await _let_end(task)
    return task.result()


def _set_off(work: Callable[..., T], *given: Any) -> asyncio.Task[T]:
    task = asyncio.create_task(asyncio.to_thread(work, *given))
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return task


async def _let_end(task: asyncio.Task[Any], cancel: bool = False) -> None:
    """Wait for the end of a task, but not long, however often this is cancelled meanwhile. A moment in which the
    event loop stood still, on a busy machine, counts as one of twenty, however long it was.

    cancel: cancel it, twice if need be. In Python 3.11 `asyncio.wait_for`, in which clients wait for the next
    piece, swallows a cancellation that comes together with one; a call that was left ends with its next piece.
    """
    moments, cancelled = 20, None
    while not task.done() and moments:
        if cancel and moments in (20, 10):
            task.cancel()
        try:
            await asyncio.wait({task}, timeout=0.05)
            moments -= 1
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def recalled(meter: Meter, request: Request, journal: Journal | None) -> Reply | None:
    """The reply that the journal holds at this place. If a process ended while the call was in flight,
    it is what had arrived by then, charged in full."""
    if journal is None:
        return None
    try:
        entry = journal.recall(request.place)
    except JournalError as error:
        return _unmade(request, error)
    if entry is None:
        return None
    if entry.reply is not None:
        return _given_again(entry.reply, entry.changed)
    return _booked(_in_flight(meter, request, entry), request, journal)


def _attempts(meter: Meter, request: Request) -> Attempts:
    return Attempts(request, Form(request.prompt, meter.model, meter.bound), meter.known)


def _again(attempts: Attempts, reply: Reply) -> bool:
    """Whether the call is made again after this reply: it was refused, and may be taken in another
    form, smaller or later."""
    came = reply.receipt
    if came["unserved"] and not came["interrupted"] and reply.error is not None:
        return not came["closed"] and attempts.again(reply.error)
    if reply.chunks:
        attempts.served(came)
    return False


def _joined(replies: Sequence[Reply], attempts: Attempts) -> Reply:
    """The last reply, with what went wrong before it, as of one call. It closes the run if later calls would
    be refused as well."""
    last, began = replies[-1].receipt, replies[0].receipt["started"]
    known: Receipt = {
        **last,
        "started": began,
        "spend": {**last["spend"], "seconds": last["ended_at"] - began},
        "closed": last["closed"] or attempts.hopeless,
        "errors": [error for reply in replies for error in reply.receipt["errors"]],
    }
    if attempts.oversized:
        known["oversized"] = True
    error = replies[-1].error
    if isinstance(error, RefusedBefore):
        error = attempts.refusal or error
    return replace(replies[-1], receipt=known, error=error)


def _given_again(reply: Reply, changed: float) -> Reply:
    """A settled reply, as it is given again. changed: when the journal last wrote about it."""
    known = reply.receipt
    receipt: Receipt = {
        **known,
        "interrupted": False,
        "retry_after": 0.0,
        "recalled": True,
        "ended_at": max(known["ended_at"], changed),
    }
    others = tuple(_given_again(other, changed) for other in reply.others)
    return replace(reply, receipt=receipt, others=others)


def _in_flight(meter: Meter, request: Request, entry: Entry) -> Reply:
    """The reply of a call that was in flight when its process ended."""
    call = _Call(meter, request, None)
    call.made = call.receipt["lost"] = True
    call.cut = "in flight when its process ended; charged in full"
    call.streamed.feed(AIMessage(entry.text))
    reply = call.settle()
    spend = reply.receipt["spend"] if request.max_output is None else entry.reserved
    times: Receipt = {
        **reply.receipt,
        "spend": {**spend, "seconds": max(0.0, entry.changed - entry.started)},
        "started": entry.started,
        "ended_at": entry.changed,
        "recalled": True,
    }
    return replace(reply, text=entry.text, receipt=times, chunks=())


def _unmade(request: Request, error: JournalError) -> Reply:
    now = clock.now()
    unmade: Receipt = {
        **receipt(now, now),
        "ended": "error",
        "failed": True,
        "lost": True,
        "errors": [f"{request.kind} {request.place.ordinal}: not made: {error}"],
    }
    return Reply("", AIMessage(""), unmade, error=error)


def _booked(reply: Reply, request: Request, journal: Journal | None) -> Reply:
    """What the payer grants of the reply, written into the journal. If the journal fails, the reply notes
    it: it is paid for."""
    if request.granted is not None:
        reply = request.granted(reply)
    if journal is None:
        return reply
    try:
        journal.settle(request.place, reply)
    except JournalError as error:
        return reply.noted(str(error))
    return reply


class _Call:
    """One call under way: it decides when to begin and when to end, and makes the reply."""

    def __init__(self, meter: Meter, request: Request, stop: StopSignal | None) -> None:
        self.meter, self.stop = meter, stop
        self.request = replace(request, prompt=providers.sendable(list(request.prompt)))
        now = clock.now()
        self.receipt = receipt(now, now)
        self._began = time.monotonic()
        self.run_id = uuid4()
        self.streamed = StreamedReply(request.n, request.max_output, str(self.run_id))
        self.cut: str | None = None
        self.made = self.overran = self.ended = self.left = False
        self.billed_once: bool | None = None
        self.filtered: str | None = None
        self._wanted = request.max_output or 0
        self.error: Exception | None = None
        self.errors: list[str] = []
        self.trial: Trial | None = None
        self.departure = Departure()
        self.given_back: Journal | None = None

    # --- before the call

    def waits(self) -> Iterator[float]:
        """Seconds to sleep, in turn, before a call that follows a refusal, or that is not the first one
        to its server; none once time is out or a stop came."""
        yield from self._own_waits()
        barred = self.request.barred
        if self.error is None and barred is not None and (error := barred()) is not None:
            self.error = error  # what the server said is told by the call that it refused
            self.receipt.update({"failed": True, "refused": True, "unserved": True})

    def _own_waits(self) -> Iterator[float]:
        until = time.monotonic() + self.request.wait
        while not self.over() and (rest := until - time.monotonic()) > 0:
            yield min(rest, _POLL)
        if self.cut == "out of time" and self.request.wait:
            self.cut = "out of time, because the provider had asked to wait"
        known, step, whole = self.meter.known, self.request.step, self.meter.may_preface
        while not self.over():
            if (above := known.underestimated(step)) is not None:
                self.error = above
                self.errors.append(str(above))
                self.receipt.update({"failed": True, "unserved": True})
                return
            first, own = known.enter(step, whole)
            if own or first is None:
                self.trial = first
                return
            while not (first.over or self.over()) and time.monotonic() < first.until:
                yield _POLL / 5
            if self.cut is None and first.refusal is not None:  # the first tells why
                self.error = first.refusal
                self.receipt.update({"failed": True, "closed": True, "lost": True})
                return
            if not whole:
                return

    def tried(self, refusal: Exception | None = None) -> None:
        """Tell the calls that wait for this one."""
        if self.trial is not None and not self.trial.over:
            self.trial.refusal, self.trial.over = refusal, True

    def reserve(self, journal: Journal | None) -> float:
        """Write the reservation. Returns 0 once it is decided whether the call is made (see `made`);
        while a quota is held by calls that may give back, the seconds after which to ask again."""
        if self.over() or self.error is not None:
            return 0
        granted = True
        while journal is not None:
            try:
                granted = journal.reserve(self.request, self.amounts, self.meter.name, self.so_far)
            except JournalError as error:
                granted, self.receipt["failed"], self.error = False, True, error
                self.errors.append(f"not made: {error}")
            except Withheld as withheld:
                if pause := self._cut_down(withheld.standings):
                    return pause
                if self.error is None:
                    continue
                granted = False
            self.receipt["lost"] = not granted
            break
        self.made = granted
        if granted and self.given_back is not None:
            _booked(self.settle(), self.request, self.given_back)
        return 0

    @property
    def amounts(self) -> Spend:
        """The most that the call can cost."""
        return self.meter.reservation(self.request.max_input, self.request.max_output)

    def _cut_down(self, standings: Standings) -> float:
        """Make the call smaller, so that quotas pay for it. While calls elsewhere may give back what
        they hold, it waits rather than lose more than half of its room: returns seconds to wait. If
        it stays too small to be made, `error` says so.

        Of 1,000 output tokens wanted, 700 that are left are taken at once. Of 300, it waits until
        500 are left; after some seconds it takes the 300.
        """
        request, least = self.request, MIN_ROOM * self.request.n
        room, at_best = (self._room(standings.left(free)) for free in (False, True))
        if request.max_output is not None:
            room = min(room, request.max_output - 1)  # it did not fit as it was
        waited = time.monotonic() - self._began
        if at_best >= max(least, room + 1) and room < self._wanted / 2 and waited < PATIENCE:
            return _POLL
        if room < least:
            need = self.meter.reservation(request.max_input, least)
            self.error = standings.exceeded(need)
            self.errors.append(f"not made: {self.error}")
            self.receipt["failed"] = self.receipt["withheld"] = True
            return 0
        cap = room if request.max_output else self.meter.cap(room, request.max_input)
        self.request = replace(request, max_output=cap)
        self.streamed = StreamedReply(request.n, cap, str(self.run_id))
        return 0

    def _room(self, rest: Limits) -> int:
        """Output tokens of this call that `rest` pays for; below 0 it pays for none."""
        if rest.get("calls", 1) < 1:
            return -1
        paid = output_room(rest, self.request.max_input, self.meter.prices)
        room = lowest(paid, self.request.max_output)
        return _UNBOUNDED if room is None else room

    def so_far(self) -> str:
        """The text that has arrived; of several choices, the first one's."""
        return self.streamed.choices()[0].text

    def capped(self, asynchronous: bool) -> Form:
        """The request as it is sent: the model has this call's output cap and, where it takes one, its
        time limit; what its server does not take is left out; it tells the departure."""
        update: dict[str, Any] = {}
        model, bound, request = self.meter.model, self.meter.bound, self.request
        if request.max_output is not None:
            update, bound = providers.with_output_cap(model, bound, request.max_output // request.n)
        if isinstance(seed := getattr(model, "seed", None), int):
            update["seed"] = seed + request.place.ordinal
        if request.seconds is not None:
            own = getattr(model, "request_timeout", None)
            patience = request.seconds + _GRACE
            patience = min(own, patience) if isinstance(own, int | float) else patience
            update |= providers.clients(model, timeout=patience)
        model = model.model_copy(update=update)
        if request.n > 1:
            id, hear = f"{LC_ID_PREFIX}-{self.run_id}", self.streamed.hear
            model = model.model_copy(update=providers.with_n_choices(model, request.n, id, hear))
        else:
            model = model.model_copy(update=providers.with_refusals(model, self.streamed.hear))
        refused = self.meter.known.refused | request.without
        form = shaped(Form(request.prompt, model, providers.sendable(dict(bound))), refused)
        return form._replace(model=providers.telling(form.model, self.departure, asynchronous))

    def config(self, config: RunnableConfig) -> RunnableConfig:
        """The config of the run. The first of several choices is known by the run's id."""
        config = self.meter.config(config)
        return {**config, "run_id": self.run_id} if self.request.n > 1 else config

    # --- while it runs

    def patience(self) -> float | None:
        """Seconds until the call must be looked at again even if nothing arrives."""
        seconds = self.request.seconds
        rest = None if seconds is None else seconds - (time.monotonic() - self._began)
        if self.stop is not None:
            rest = _POLL if rest is None else min(rest, _POLL)
        return None if rest is None else max(0.0, rest)

    def over(self) -> bool:
        """Whether the call must end now."""
        if self.cut is None:
            seconds = self.request.seconds
            if self.stop is not None and self.stop.is_set():
                self.interrupt()
            elif seconds is not None and time.monotonic() - self._began >= seconds:
                self.cut = "out of time"
        return self.cut is not None

    def interrupt(self) -> None:
        self.cut, self.receipt["interrupted"] = "stopped", True

    def given_up(self, journal: Journal | None) -> Reply:
        """The reply of a call that is cancelled. If its reservation is still being written, that is given back
        right after."""
        self.given_back = journal
        if self.departure.give_up():
            self.receipt["unserved"] = True
        elif not (self.ended or self.streamed.reported or self.receipt["failed"]):
            self.cut = self.cut or "cancelled in flight; charged in full"
            self.receipt["lost"] = True
        return self.settle()

    def drain(self, stream: Iterator[Any]) -> None:
        try:
            for chunk in stream:
                if self._feed(chunk):
                    return
            self.ended = True
        finally:
            if close := getattr(stream, "close", None):
                close()

    async def adrain(self, stream: AsyncIterator[Any]) -> None:
        try:
            async for chunk in stream:
                if self._feed(chunk):
                    return
            self.ended = True
        finally:
            if close := getattr(stream, "aclose", None):
                await close()

    def _feed(self, chunk: Any) -> bool:
        """Take in a piece of the reply; True to cut the stream."""
        self.meter.known.answers = True
        if self.trial is not None and not self.trial.whole:
            self.tried()
        if self.left or self.over():
            return True
        if self.streamed.feed(chunk):
            self.cut = f"the provider ignored the limit of {self.request.max_output} output tokens"
            self.overran = True
        return self.cut is not None

    def fail(self, error: Exception) -> None:
        if self.cut is not None:
            return
        if self.streamed.reported:
            self.ended = True  # only the end of the stream is missing
            return
        if self.streamed.whole:  # only the usage report that follows it is missing
            self.streamed.unreadable = self.ended = True
            return
        self.error = error
        told = providers.blamed(error, self.departure.served)
        status = providers.status(told)
        check = refusals.to_check(told, self.meter.model) if told else ""
        self.errors.append(f"{providers.describe(error)}{check}")
        refused = status is not None and not providers.transient(status)
        self.filtered = refusals.filtered(told) if told else None
        worked = self.filtered or (told is not None and refusals.wrote(told))
        unserved = self.departure.give_up() or (
            not self.streamed.begun and not worked and providers.unserved(told)
        )
        # A provider that does not know requests for several choices may say "no such thing" to those.
        barred = (*providers.NO_ENTRY, providers.NO_SUCH_THING)
        closed = status in (providers.NO_ENTRY if self.request.n > 1 else barred)
        closed = closed or (told is not None and refusals.unpaid(told))
        closed = closed or type(error) is Unpayable
        silent = status is None and not self.streamed.pieces and not unserved
        if self.request.n > 1 and (refused or silent):
            self.billed_once = False
        self.receipt.update(
            {
                "failed": True,
                "refused": refused,
                "unserved": unserved,
                "closed": closed,
                "starved": refused and refusals.cap_too_small(error),
                "retry_after": refusals.retry_after(error),
            }
        )
        if unserved and self.request.refused is not None:
            self.request.refused(error, self.trial is not None)
        self.tried(error if closed else None)
        log.debug("call %s failed: %s", self.request.place.ordinal, providers.describe(error))

    # --- when it has ended

    def settle(self) -> Reply:
        """The reply. What still arrives after this does not count."""
        if self.streamed.reported and not self.overran:
            self.ended, self.cut = True, None  # it was whole, and its cost known, when it was cut
        shared, now, streamed = self.receipt, clock.now(), self.streamed
        if self.made and not streamed.chunks and self.departure.give_up():
            shared["unserved"] = True
        if self.ended and self._broke_off():
            self.ended, self.cut = False, "the stream ended before the reply did"
        if not self.ended and not shared["failed"] and self.cut is None:
            self.cut = "cut"
        charged = Bill(nothing())
        if self.made and not shared["unserved"]:
            if self.filtered and not streamed.chunks:  # the prompt was read, and nothing written
                charged = Bill(self.meter.reservation(self.request.max_input, 0))
            else:
                charged = bill(self.meter, self.request, streamed, self.ended, streamed.over)
            self._heard(charged)
        self.tried()
        self.errors += charged.errors
        spend: Spend = {**charged.spend, "seconds": max(0.0, now - shared["started"])}
        ended: Ended = (
            "error" if shared["failed"] else "cut" if self.cut else self._own_end(charged)
        )
        shared = {**shared, "ended": ended, "ended_at": now}
        if self.request.ended_early({**shared, "spend": spend, "reported": charged.reported}):
            most, came = self.request.max_output, spend["output_tokens"]
            self.errors.append(f"the provider cut the reply after {came} of {most} output tokens")
        first, *others = (
            self._choice(i, part, shared, spend) for i, part in enumerate(streamed.choices())
        )
        once = self.billed_once if charged.billed_once is None else charged.billed_once
        paid: Receipt = {
            **first.receipt,
            "spend": spend,
            "reported": charged.reported,
            "billed_once": once,
        }
        return replace(
            first,
            receipt=paid,
            others=tuple(others),
            chunks=tuple(streamed.chunks),
            error=self.error,
        )

    def _heard(self, charged: Bill) -> None:
        """Keep what the bill tells of the server."""
        reported, reserved, known = charged.reported, self.request.max_input, self.meter.known
        if reported is not None and self.request.n == 1:
            more = self.meter.heard(self.request.prompt, reported)
            if more and reported > reserved:
                known.show(self.request.step, Underestimated(reported, reserved))
        known.heard |= bool(self.streamed.chunks)

    def _choice(self, i: int, part: StreamedChoice, of: Receipt, spend: Spend) -> Reply:
        """One choice as a reply. of: the call's receipt, whose `ended` an unfinished choice shares."""
        errors, ended, failed = [] if i else list(self.errors), of["ended"], of["failed"]
        if self.request.n > 1 and part.finish is not None:
            ended = providers.ending(part.finish)
        empty = not part.text.strip()
        word = part.finish or "" if ended == "blocked" else self.filtered
        blocked = None if word is None else providers.legible(word)
        starved = ended == "length" and empty
        if starved:
            errors.append(
                f"starved: {spend['output_tokens']} output tokens, "
                f"{spend['reasoning_tokens']} of them reasoning, and no text"
            )
        message = self.streamed.message(part)
        called = self.streamed.called or bool(message.tool_calls)
        if empty and ended == "stop" and not called:
            failed = True
            errors.append("the reply was empty")
        if ended == "blocked":
            errors.append(f"the provider ended the reply: {blocked}")
            failed = failed or (empty and not called)
        if self.cut and not i and (empty or self.cut not in ("stopped", "out of time")):
            errors.append(self.cut)
        name = f"{self.request.kind} {self.request.place.ordinal + i}"
        own: Receipt = {
            **of,
            "ended": ended,
            "starved": starved or of["starved"],
            "failed": failed,
            "blocked": blocked,
            "errors": [f"{name}: {error}" for error in errors],
        }
        return Reply(part.text, message, own, called)

    def _broke_off(self) -> bool:
        """Whether the stream ended although the reply did not: a client that says why replies end gave
        no reason, and no report came last, or such come all the time."""
        streamed = self.streamed
        reported = streamed.unreadable or (streamed.closed and not streamed.running)
        silent = streamed.finish is None and not reported
        return silent and providers.tells_endings(self.meter.model)

    def _own_end(self, charged: Bill) -> Ended:
        """How the reply ended by the provider's word or, if there is none, by its report."""
        finish, cap = self.streamed.finish, self.request.max_output
        if finish is not None:
            return providers.ending(finish)
        if charged.reported is None or cap is None:
            return "stop"
        return "length" if charged.spend["output_tokens"] >= cap else "stop"
