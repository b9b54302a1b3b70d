"""One budget for many questions, spent where the next tokens promise most.

    app = graph.compile(checkpointer=store.saver)
    done = batch(app, questions, Budget(tokens=100_000))

Each question is a thread of the graph. It first gets one answer, then more whenever its expected gain per
token is the greatest. So a question that is settled leaves its money to the others.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

from anytime_graph.batch.series import Asked, conversation, thread_name, told, unscored
from anytime_graph.budget import (
    DIMENSIONS,
    GOOD_ROOM,
    MIN_ROOM,
    TOOL_CALLS,
    Budget,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    Spend,
    as_budget,
    nothing,
)
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.batches import SharedBatch, Taken
from anytime_graph.interrupt import StopSignal, aside, to_its_end
from anytime_graph.metering.account import Account
from anytime_graph.metering.quota import QuotaExceeded
from anytime_graph.nodes.compiled import AnytimeGraph
from anytime_graph.planning import prospects
from anytime_graph.planning.setup import Setup, affordable, bounding
from anytime_graph.planning.slices import least_call
from anytime_graph.planning.view import view
from anytime_graph.run.calls import OWN, PATIENCE, Chosen
from anytime_graph.run.context import Context
from anytime_graph.run.state import Payoff, State, add_payoffs, fresh, payoff, question_of
from anytime_graph.run.upgrade import migrated_state
from anytime_graph.text import clipped

_OPEN = ("judge", "interrupted", "quota", "scorer", *DIMENSIONS)
"""The reasons to stop that more budget removes, or time, or another scorer."""
_PATIENCE = 0.5
"""Seconds between looks at what other processes do, while there is nothing to do here before they are done."""
_MORE = 1.1
"""How many times as much a question must get, at least, to be tried once more after a step without a call."""
_SHARING = 8
"""Among how many questions at most what is left is shared before they have an answer: of 100,000 tokens, a first
answer needs no eighth."""
_LOOKS = 16
"""How many questions a decision looks at, so that it takes as long among 10,000 as among 100."""


class Progress(NamedTuple):
    """Where a batch stands. answered: questions with an answer. over: questions for which more budget
    would do nothing. gain: the expected gain of the next 1,000 tokens, in the measure of `Until.min_gain`;
    infinite while a question waits for its first answer."""

    questions: int
    answered: int
    over: int
    spent: Spend
    gain: float


@dataclass(frozen=True)
class Answered:
    """One question. question: its text; of a conversation, that of its last message. thread: its thread_id,
    where `app.get_state` has all of it. answer: None if no call brought one; `error` then says why. score: by
    the graph's scorer, if it has one. spent: in all, earlier runs of the batch included. stop_reason: as in the
    graph's output if more budget would do nothing; else the batch's. gain: as in Progress, for this question."""

    question: str
    thread: str
    answer: str | None
    score: float | None
    stop_reason: str | None
    spent: Spend
    gain: float
    error: str | None = None


@dataclass(frozen=True)
class Batch:
    """The questions in their order. stop_reason: "done" if no question can gain from more, "interrupted",
    the dimension of the budget that ran out, or "quota" if only quotas do not pay for more."""

    questions: tuple[Answered, ...]
    spent: Spend
    stop_reason: str


def batch(
    app: Pregel[Any, Any, Any, Any],
    questions: Iterable[Asked],
    budget: Budget,
    *,
    name: str = "batch",
    workers: int = 8,
    context: Context | None = None,
    stop: StopSignal | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Batch:
    """Answer many questions within one budget.

    app: an anytime graph, compiled with a checkpointer. Give it a ledger too, so that a batch that was
    killed buys nothing twice. questions: texts, or conversations (instructions, solved examples, earlier turns)
    that end in a user message; each counts once. budget: what the batch may have cost in the end; what these
    questions cost in earlier runs under the same `name` is included, so a larger one continues where it pays.
    Its seconds are those of this run alone, by the clock. workers: questions that are worked on at once.
    context: for all questions. stop: once it is set, calls in flight are cut; the best answers so far are
    returned. progress: is called at the start, after each step, and while others are waited for.

    While it can be paid for, every question gets one answer before any gets a second. Processes that are
    given the same questions and name, with one ledger, work on them together; each returns the whole batch.
    Raises ValueError for a bad argument, BudgetTooSmall if the budget cannot pay for any first answer,
    LedgerError, ThreadBusy if a question is asked by others than a batch.
    """
    allocation = _Allocation(app, questions, budget, name, workers, context, stop, progress)
    running: dict[Future[_Reply], _Step] = {}
    with allocation.shared(), ThreadPoolExecutor(workers, "anytime-batch") as pool:
        for question in allocation.questions:
            allocation.learn(question, app.get_state(question.config))
        allocation.tell()
        try:
            while True:
                while len(running) < workers:
                    for question in allocation.news():
                        allocation.learn(question, app.get_state(question.config))
                    step = allocation.next()
                    if step is None:
                        break
                    if allocation.taken(step):
                        work = pool.submit(copy_context().run, _ran, app, step, allocation.context)
                        running[work] = step
                if not (running or allocation.awaited):
                    return allocation.result()
                ended = _finished(running, allocation.awaited)
                for future in ended:
                    step = running.pop(future)
                    allocation.put_back(step)
                    allocation.settle(step, future.result())
                if not ended:
                    allocation.tell()
        except BaseException:
            allocation.stop.halted = True
            raise


async def abatch(
    app: Pregel[Any, Any, Any, Any],
    questions: Iterable[Asked],
    budget: Budget,
    *,
    name: str = "batch",
    workers: int = 8,
    context: Context | None = None,
    stop: StopSignal | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Batch:
    """`batch` for an async graph."""
    allocation = await asyncio.to_thread(
        _Allocation, app, questions, budget, name, workers, context, stop, progress
    )
    running: dict[asyncio.Task[_Reply], _Step] = {}

    async def learn(questions: Iterable[_Question]) -> None:
        for question in questions:
            found = await app.aget_state(question.config)
            await aside(allocation.learn, question, found)

    try:
        await aside(allocation.join)
        await learn(allocation.questions)
        allocation.tell()
        while True:
            while len(running) < workers:
                await learn(await aside(allocation.news))
                step = allocation.next()
                if step is None:
                    break
                if await aside(allocation.taken, step):
                    running[asyncio.create_task(_aran(app, step, allocation.context))] = step
            if not (running or allocation.awaited):
                return allocation.result()
            ended = await _afinished(running, allocation.awaited)
            for task in ended:
                step = running.pop(task)
                await aside(allocation.put_back, step)
                allocation.settle(step, task.result())
            if not ended:
                allocation.tell()
    finally:
        await to_its_end(asyncio.create_task(_ended(allocation, running)))


async def _ended(allocation: _Allocation, running: Iterable[asyncio.Task[_Reply]]) -> None:
    """Leave the batch to others, with no step at work."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await aside(allocation.quit)


class _Reply(NamedTuple):
    """A thread after a step. error: why it brought no answer."""

    found: StateSnapshot
    error: NoAnswer | BudgetTooSmall | ValueError | None = None


@dataclass
class _Question:
    """state: of its thread; None before it was asked. spent: what the batch has booked for it. gain: per token.
    error: why its latest step brought no answer, and has none yet; failed: how many steps in a row did not. idle: how
    many steps in a row made no call. withheld: quotas do not pay for more, as this
    run of the batch has seen. elsewhere: what another process has taken, if it works on it.
    queued: whether its turn may come."""

    messages: list[BaseMessage]
    thread: str
    index: int
    state: State | None = None
    spent: Spend = field(default_factory=nothing)
    gain: float = math.inf
    error: str | None = None
    failed: int = 0
    idle: int = 0
    withheld: bool = False
    elsewhere: Taken | None = None
    queued: bool = False

    @property
    def text(self) -> str:
        return str(self.messages[-1].text)

    @property
    def answered(self) -> bool:
        return self.state is not None and self.state["best"] is not None

    @property
    def over(self) -> bool:
        """Whether more budget would do nothing, as far as this run of the batch can know."""
        return self.failed >= PATIENCE or self.withheld or self.stopped not in (None, *_OPEN)

    @property
    def stopped(self) -> str | None:
        return self.state["stop_reason"] if self.state else None

    @property
    def turn(self) -> tuple[float, int, int]:
        """Whose is smallest comes first: by gain, and of those without an answer those that did not fail."""
        return -self.gain, self.failed, self.index

    @property
    def config(self) -> RunnableConfig:
        return {"configurable": {"thread_id": self.thread}}


class _Step(NamedTuple):
    """A question with what it is given, and what is held for it in the batch's account."""

    question: _Question
    given: dict[str, Any]
    held: Spend


class _Stop:
    """Set by the caller, when the time is over, or when the batch ends by an error."""

    def __init__(self, account: Account, stop: StopSignal | None) -> None:
        self.halted = False
        self._account, self._stop = account, stop

    def is_set(self) -> bool:
        return (
            self.halted
            or (self._stop is not None and self._stop.is_set())
            or self._account.left().get("seconds", 1) <= 0
        )


class _Allocation:
    """Decides whose turn it is, and keeps the account. It makes no call. awaited: whether others work on
    the batch.

    Open questions are in a heap by their gain. What one question shows changes a little what all others
    promise, so a gain is computed once more when its question comes up. Questions that what is left
    does not pay for wait until money comes back."""

    def __init__(
        self,
        app: Pregel[Any, Any, Any, Any],
        questions: Iterable[Asked],
        budget: Budget,
        name: str,
        workers: int,
        context: Context | None,
        stop: StopSignal | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        graph = getattr(app, "builder", None)
        if not isinstance(graph, AnytimeGraph):
            raise ValueError(f"app={type(app).__name__}: a compiled anytime graph is needed")
        if not app.checkpointer:
            raise ValueError(
                "app: compile the graph with a checkpointer, such as open_checkpoints(...).saver"
            )
        if not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers={workers!r}: a whole number, 1 or more")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"name={name!r}: a text that is not empty")
        settings = cast("Mapping[str, Any]", context or {})
        choice = {k: settings[k] for k in ("model", "strategy") if settings.get(k) is not None}
        self.setup: Setup = graph.setups[cast(Chosen, choice)]
        limits = affordable(self.setup, bounding(as_budget(budget), self.setup.until)).limits()
        if limits.get("seconds", 1) <= 0:
            raise BudgetTooSmall(limits, {"seconds": 0.001})
        self.questions = _distinct(questions, name)
        for question in self.questions:
            _weighed(question, self.setup)
        self._by_thread = {question.thread: question for question in self.questions}
        self.key = thread_name("batch", name, sorted(self._by_thread))
        self.ledger: Ledger | None = graph.ledger
        self.account = Account(limits, running=True)
        self.stop = _Stop(self.account, stop)
        self.context = cast(Context, {**settings, "stop": self.stop})
        self.seen: dict[str, Payoff] = {}
        self._progress = progress or (lambda _: None)
        self._heap: list[tuple[float, int, int]] = []
        self._waiting: list[tuple[float, int, int]] = []
        self._over: set[int] = set()
        self._answered = self._running = 0
        self._shared: SharedBatch | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Join the processes that work on this batch, if there is a ledger that tells of them."""
        try:
            self.join()
            yield
        finally:
            self.quit()

    def join(self) -> None:
        if self.ledger is not None:
            self._shared = self.ledger.share(self.key)

    def quit(self) -> None:
        if self._shared is not None:
            self._shared.quit()

    @property
    def awaited(self) -> bool:
        return bool(self._shared and self._shared.elsewhere) and not self.stop.is_set()

    def news(self) -> list[_Question]:
        """The questions that others have left, to be learned. What they may spend on others is held."""
        if self._shared is None:
            return []
        changed = [self._by_thread[thread] for thread in self._shared.news()]
        for question in changed:
            if question.elsewhere is not None:
                self.account.settle(question.elsewhere.held, nothing())
            question.elsewhere = self._shared.elsewhere.get(question.thread)
            if question.elsewhere is not None:
                self._book(question, question.elsewhere.before)
                self.account.hold(question.elsewhere.held)
        return [question for question in changed if question.elsewhere is None]

    def learn(self, question: _Question, found: StateSnapshot) -> None:
        """Take in what others, or earlier runs of the batch, have left of a question. Of one whose process
        died before the first checkpoint of its plan, only the ledger knows; it is asked again."""
        spent = nothing()
        if (state := _begun(found)) is not None:
            self._know(question, state)
            spent = state["spent"]
            self._check(question, state)
        if self.ledger is not None and (runs := self.ledger.runs(question.thread)):
            spent = _larger(spent, runs[-1]["spent"])
        if spent["calls"] > question.spent["calls"]:
            question.idle = 0
        if question.answered:
            question.error, question.failed = None, 0
        self._book(question, spent)
        question.gain = self._gain(question)
        self._queue(question)
        self._look_again()

    def _book(self, question: _Question, spent: Spend) -> None:
        """Learn what a question has cost in all."""
        self.account.book(_more(spent, question.spent))
        question.spent = spent

    def _check(self, question: _Question, state: State) -> None:
        """Raises ValueError if a thread of this batch is at another question by now, or has a budget in other
        dimensions."""
        asked = question_of(state["messages"])
        if asked.id != question.thread and asked.text != question.text:
            raise ValueError(
                f"questions[{question.index}]: its thread {question.thread} went on with another question; "
                "leave it out, or give the batch another name"
            )
        other = set(state["limits"]) - {"calls"}
        if other != set(self.account.limits) - {"calls", "seconds"}:
            raise ValueError(
                f"budget: the batch of this name began with a budget in {', '.join(sorted(other) or ['calls'])}; "
                "give one in the same dimensions, or another name"
            )

    def next(self) -> _Step | None:
        """The step that promises most per token among those that can be paid for; None if there is none
        until another one is settled, or at all."""
        if self.stop.is_set():
            return None
        if not (self._heap or self._running or self.awaited):
            self._heap, self._waiting = self._waiting, []
            heapq.heapify(self._heap)
        looks = 0
        while self._heap:
            *_, index = heapq.heappop(self._heap)
            question = self.questions[index]
            question.queued = False
            if question.over or question.elsewhere is not None:
                continue
            question.gain = self._gain(question)
            looks += 1
            if looks <= _LOOKS and self._heap and -question.gain > self._heap[0][0]:
                self._queue(question)
            elif step := self._step(question):
                return step
            else:
                question.queued = True
                heapq.heappush(self._waiting, question.turn)
        return None

    def taken(self, step: _Step) -> bool:
        """Begin a step, unless another process was faster; then there are news."""
        if self._shared and not self._shared.take(
            step.question.thread, Taken(step.question.spent, step.held)
        ):
            self._queue(step.question)
            return False
        self._running += 1
        self.account.hold(step.held)
        return True

    def put_back(self, step: _Step) -> None:
        """Leave the question of a step that has ended to whoever is next."""
        if self._shared is not None:
            self._shared.put_back(step.question.thread)

    def settle(self, step: _Step, reply: _Reply) -> None:
        """Take in what a step brought, and what it left of its money."""
        question, before = step.question, step.question.spent
        error, state = reply.error, _begun(reply.found)
        self._running -= 1
        if state is not None:
            self._know(question, state)
        bad = isinstance(error, ValueError) and not isinstance(error, BudgetTooSmall)
        if bad and error is not None and not self.account.spent["calls"]:
            raise error  # it may be that of all
        known = question.state["spent"] if question.state else before
        question.spent = _larger(before, getattr(error, "spent", known))
        cost = _more(question.spent, before)
        self.account.settle(step.held, {**cost, "seconds": 0.0})
        question.withheld = isinstance(error, QuotaExceeded) or question.stopped == "quota"
        if error is None and (why := unscored(question.state)) is not None:
            question.error, question.failed = why, PATIENCE
        elif error is None:
            question.error, question.failed = None, 0
            question.idle = 0 if cost["calls"] else question.idle + 1
        elif not (isinstance(error, NoAnswer) and self.stop.is_set()):
            question.error = str(error)  # what a stop cut goes on when the batch does
            again = isinstance(error, NoAnswer) and error.stop_reason in DIMENSIONS
            question.failed = question.failed + 1 if again else PATIENCE
        question.gain = self._gain(question)
        self._queue(question)
        self._look_again()
        self.tell()

    def _look_again(self) -> None:
        """What came back may pay for some that wait."""
        for _ in range(min(_LOOKS, len(self._waiting))):
            heapq.heappush(self._heap, heapq.heappop(self._waiting))

    def result(self) -> Batch:
        nothing_came = not (self.account.spent["calls"] or any(q.error for q in self.questions))
        if nothing_came and self._waiting:
            needs = [self._wanted(question)[0] for question in self.questions]
            least, limits = min(needs, key=lambda need: need["tokens"]), self.account.limits
            raise BudgetTooSmall(limits, {d: n for d, n in least.items() if d in limits})
        if self.stop.is_set():
            reason = "seconds" if self.account.left().get("seconds", 1) <= 0 else "interrupted"
        elif self._waiting:
            reason = self.account.scarcest()
        else:
            reason = "quota" if any(q.withheld for q in self.questions) else "done"
        ended = tuple(_answered(question, reason) for question in self.questions)
        return Batch(ended, self.account.spent, reason)

    def _know(self, question: _Question, state: State) -> None:
        """Take in the state of a thread: for the question, and for what all have shown."""
        old = question.state["payoffs"] if question.state else {}
        self._answered += (state["best"] is not None) - question.answered
        question.state = state
        for kind, new in state["payoffs"].items():
            less = cast("Mapping[str, float]", old.get(kind, payoff(0.0, tries=0)))
            more = {k: v - less[k] for k, v in cast("Mapping[str, float]", new).items()}
            self.seen[kind] = add_payoffs(self.seen.get(kind), cast(Payoff, more))

    def _queue(self, question: _Question) -> None:
        if question.over:
            self._over.add(question.index)
        elif not question.queued:
            question.queued = True
            heapq.heappush(self._heap, question.turn)

    def _gain(self, question: _Question) -> float:
        """What the next answer is expected to bring per token; above all, a first one."""
        if not question.answered or question.state is None:
            return math.inf
        seen = replace(view(self.setup, question.state), profile=self.seen)
        expected = prospects.prospects(seen)
        return max(expected[kind].rate for kind in {"draft", *seen.payoffs} & expected.keys())

    def _step(self, question: _Question) -> _Step | None:
        """A step that what is left pays for, or None.

        A thread keeps what it was given and has not spent. One with 300 tokens left that wants 1,000 is
        given 700, and 1,000 are held for it. If that did not pay for its next call, it gets 2,000, or all
        that is left if that is a tenth more than it had."""
        rest, (enough, wanted) = self.account.left(), self._wanted(question)
        limits: Limits = question.state["limits"] if question.state else {}
        spent = cast("Mapping[str, float]", question.spent)
        given, held, more = {}, {}, False
        for dimension in (*(d for d in wanted if d in rest and d != "seconds"), "calls"):
            lent = limits.get(dimension, 0) - spent[dimension]
            most = rest.get(dimension, math.inf)
            full = wanted[dimension] * (2**question.idle if dimension in rest else 1)
            fair = math.inf if question.answered else max(enough[dimension], most / self._sharers())
            amount = min(full, most, fair)
            if lent > most or amount < min(enough[dimension], full):
                return None
            given[dimension] = max(0, amount - lent)
            held[dimension] = max(amount, lent)
            more |= dimension in rest and amount > _MORE * lent
        if question.idle and not more:
            return None
        new = {} if question.state else {"messages": question.messages}
        amounts = {d: a if d == "usd" else math.ceil(a) for d, a in given.items()}
        grant = Budget(**cast(Any, amounts))
        return _Step(question, {**new, "budget": grant}, cast(Spend, {**nothing(), **held}))

    def _sharers(self) -> int:
        """Among how many questions that wait for their first answer what is left is shared. Of 700 tokens, two
        get 350 each: what one has not spent could not be given to the other."""
        return max(1, min(_SHARING, len(self.questions) - self._answered - self._running))

    def _wanted(self, question: _Question) -> tuple[Limits, Limits]:
        """The least and the most that the next step of a question may take. A first answer may be short.
        Later ones get room for what most replies need, as one that is cut would be paid for in vain."""
        state = question.state or _unasked(question)
        seen = replace(view(self.setup, state, judging=False), payoffs=self.seen)
        begun: State = {**state, "limits": {}}  # what a step is given takes a thread off its end
        need = partial(least_call, self.setup, begun)
        length = prospects.reply_length(seen)
        usual = math.ceil(length.most) if length else GOOD_ROOM
        most = max(GOOD_ROOM, length.ample if length else prospects.FIRST)
        short = max(MIN_ROOM, length.most if length and question.answered else 0)
        draft = prospects.tokens(seen, "draft")
        besides = max(prospects.tokens(seen, kind) for kind in {"draft", *state["payoffs"]}) - draft
        judged = prospects.judge_decides(seen)
        if judged and question.answered:
            besides += 1.5 * prospects.tokens(seen, "compare")
        calls = 3 if judged and question.answered else 1  # it is compared in both orders
        in_full = question.answered or self._pays_for_all(need(usual, detail=1.0))
        enough = need(math.ceil(short), math.ceil(besides))
        wanted = need(math.ceil(most), math.ceil(besides), float(in_full))
        # Tool calls are shared out among the questions that are open; none is needed.
        tools = self.account.left().get(TOOL_CALLS, 0) / (len(self._heap) + len(self._waiting) + 1)
        own = 0 if self.setup.drafter is None else math.ceil(tools)
        return {**enough, "calls": calls}, {**wanted, "calls": calls, TOOL_CALLS: own}

    def _pays_for_all(self, first: Limits) -> bool:
        """Whether every question that waits for an answer can have one that costs this. Of 6,000 tokens, 2,000
        are spent: 20 that wait can have 150 each, and 40 cannot."""
        waiting = len(self.questions) - self._answered
        spent = cast("Mapping[str, float]", self.account.spent)
        return all(
            first[dimension] * waiting <= limit - spent[dimension]
            for dimension, limit in self.account.limits.items()
            if dimension in first and dimension != "seconds"
        )

    def tell(self) -> None:
        gain = -self._heap[0][0] if self._heap else 0.0
        counts = (len(self.questions), self._answered, len(self._over))
        self._progress(Progress(*counts, self.account.spent, 1_000 * gain))


def _more(spend: Spend, before: Spend) -> Spend:
    """What was spent since."""
    old = cast("Mapping[str, Any]", before)
    return cast(Spend, {d: amount - old[d] for d, amount in cast(Any, spend).items()})


def _begun(found: StateSnapshot) -> State | None:
    """The state of a thread; None before its first plan is kept."""
    if "run_id" in found.values and cast(Any, found.metadata)["step"] > 0:
        return migrated_state(cast(Any, found.values))
    return None


def _larger(one: Spend, other: Spend) -> Spend:
    """The larger amount of each dimension."""
    amounts, others = cast("Mapping[str, Any]", one), cast("Mapping[str, Any]", other)
    return cast(Spend, {d: max(amount, others[d]) for d, amount in amounts.items()})


def _distinct(questions: Iterable[Asked], name: str) -> list[_Question]:
    """Each question once. Its messages have the same ids whoever asks, so that the ledger knows a question
    that is asked again. Raises ValueError."""
    if isinstance(questions, str):
        raise ValueError(f"questions={questions!r:.60}: a list of questions, not one text")
    found: dict[str, _Question] = {}
    for at, asked in enumerate(questions):
        messages = conversation(asked, f"questions[{at}]={asked!r:.60}")
        plain = len(messages) == 1 and isinstance(messages[0].content, str)
        thread = thread_name(name, messages[0].content if plain else told(messages))
        if thread not in found:
            ids = [*(f"{thread}/{n}" for n in range(len(messages) - 1)), thread]
            named = [m.model_copy(update={"id": i}) for m, i in zip(messages, ids, strict=True)]
            found[thread] = _Question(named, thread, len(found))
    if not found:
        raise ValueError("questions=[]: at least one is needed")
    return list(found.values())


def _weighed(question: _Question, setup: Setup) -> None:
    """Raises ValueError for a question whose tokens nothing bounds, such as one with a sound."""
    if all(isinstance(message.content, str) for message in question.messages):
        return
    try:
        setup.meters[OWN].tokenizer.shape(question.messages)
    except ValueError as error:
        raise ValueError(f"the question {clipped(question.text, 60)!r}: {error}") from None


def _unasked(question: _Question) -> State:
    """The state of a question before it is asked."""
    state = fresh("", Chosen(), 0, question.thread, {})
    return cast(State, {**state, "messages": question.messages})


def _answered(question: _Question, reason: str) -> Answered:
    """reason: why the batch ended."""
    state = question.state
    best = state["best"] if state else None
    failed = state["errors"][-1:] if state and best is None else []  # perhaps in an earlier run
    return Answered(
        question=question.text,
        thread=question.thread,
        answer=best["answer"] if best else None,
        score=best["score"] if best else None,
        stop_reason=question.stopped if question.over else reason,
        spent=question.spent,
        gain=0.0 if question.over else 1_000 * question.gain,
        error=question.error or next(iter(failed), None),
    )


def _finished(running: Mapping[Future[_Reply], _Step], awaited: bool) -> set[Future[_Reply]]:
    """Wait for a step to end here, or for a moment if others work as well."""
    if not running:
        time.sleep(_PATIENCE)
        return set()
    return wait(running, _PATIENCE if awaited else None, FIRST_COMPLETED).done


async def _afinished(
    running: Mapping[asyncio.Task[_Reply], _Step], awaited: bool
) -> set[asyncio.Task[_Reply]]:
    if not running:
        await asyncio.sleep(_PATIENCE)
        return set()
    patience = _PATIENCE if awaited else None
    done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    return done


def _ran(app: Pregel[Any, Any, Any, Any], step: _Step, context: Context) -> _Reply:
    config, failed = step.question.config, None
    try:
        app.invoke(step.given, config, context=context)
    except (NoAnswer, BudgetTooSmall, ValueError) as error:
        failed = error
    return _Reply(app.get_state(config), failed)


async def _aran(app: Pregel[Any, Any, Any, Any], step: _Step, context: Context) -> _Reply:
    config, failed = step.question.config, None
    try:
        await app.ainvoke(step.given, config, context=context)
    except (NoAnswer, BudgetTooSmall, ValueError) as error:
        failed = error
    return _Reply(await app.aget_state(config), failed)
