"""The hub folds outcomes into the state, plans the next calls and sends them over the budget edge."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import randbits
from typing import Any, NamedTuple, cast
from uuid import uuid4

from langchain_core.messages import AnyMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, Send
from pydantic import BaseModel

from anytime_graph.budget import (
    Budget,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    Short,
    as_budget,
    in_digits,
    least,
    left,
    nothing,
    passed,
    raised,
)
from anytime_graph.checkpoints import Ledger, LedgerError
from anytime_graph.checkpoints.journal import RunJournal
from anytime_graph.checkpoints.leases import Hold
from anytime_graph.checkpoints.memory import Memory, encoded
from anytime_graph.checkpoints.quotas import Payers
from anytime_graph.checkpoints.store import plain
from anytime_graph.interrupt import contained
from anytime_graph.metering.quota import Quota
from anytime_graph.models.counting import patience
from anytime_graph.models.providers import describe
from anytime_graph.models.tokens import without_prompt
from anytime_graph.nodes import finish
from anytime_graph.nodes.exhausted import Exhausted, exhausted, used_up
from anytime_graph.planning.plan import QUOTA, plan
from anytime_graph.planning.setup import Setup, Setups, affordable, bounding
from anytime_graph.run.announcements import Lives, Warned, announce, note
from anytime_graph.run.asking import check_resumable, granted
from anytime_graph.run.calls import OWN, Assignment, PlannedCall, RunInfo
from anytime_graph.run.context import (
    chosen,
    context,
    drained,
    invocation,
    owner,
    root,
    served,
    stop_signal,
    thread_of,
    told,
    user,
)
from anytime_graph.run.fold import fold
from anytime_graph.run.forms import KEY
from anytime_graph.run.state import (
    State,
    conversation_digest,
    conversation_of,
    fresh,
    merged,
    question_of,
    unstopped,
    without_repeats,
)
from anytime_graph.run.upgrade import (
    ASSIGNMENT,
    FINAL,
    changes,
    migrated_final,
    migrated_state,
)
from anytime_graph.scoring import failure

log = logging.getLogger(__name__)

_ENDS = ("finish", "ask")
"""Nodes after which a run has ended, unless it gets more budget."""
_LONGEST_WAIT = 30.0
"""Most seconds to wait after refusals."""
_COUNTING = 0.1
"""The part of the time left that asking a server for the tokens of prompts may take."""


class _Visit(NamedTuple):
    """A visit of a question to the hub. digest: of the conversation up to the question. journal: with a
    ledger."""

    question_id: str
    digest: str
    thread: str
    config: RunnableConfig
    journal: RunJournal | None


@dataclass(eq=False, repr=False)
class Hub:
    """The nodes `budget`, `finish` and `ask` of one graph.

    memory: None without one; remembers: it is the ledger itself. strategy: the name of the default.
    schema: of answers. asks: whether there is a node `ask`. The others are as in create_anytime_graph.
    """

    setups: Setups
    lives: Lives
    budget: Budget | None
    most: Budget | None
    ledger: Ledger | None
    quotas: Sequence[Quota]
    memory: Memory | None
    remembers: bool
    strategy: str
    schema: type[BaseModel] | None
    asks: bool
    warn_at: Sequence[float]

    def budget_node(self, state: State, config: RunnableConfig) -> Command[Any]:
        """Fold outcomes, begin a new question or add a budget, then go over the budget edge. An
        error here leaves the state unchanged, so that the step can be run again."""
        now = migrated_state(state)
        update, sends, repeated = self._folded(now, config)
        if repeated:
            update["messages"] = cast("list[AnyMessage]", [RemoveMessage(id) for id in repeated])
        for send in sends:
            send.arg[KEY] = len(FINAL if send.node in _ENDS else ASSIGNMENT)
        return Command(update={**changes(state, now), **update, "returned": None}, goto=sends)

    def _folded(self, state: State, config: RunnableConfig) -> tuple[State, list[Send], list[str]]:
        """The update of the state, what comes next, and the ids of repeated messages to remove."""
        whose = owner(state.get("owner"))
        messages, repeated = without_repeats(state["messages"])
        state = merged(state, State(messages=cast("list[AnyMessage]", messages)))
        question, digest = question_of(messages), conversation_digest(messages)
        short = hashlib.sha256(question.text.encode(errors="replace")).hexdigest()[:16]
        question_id = plain(f"{question.id}:{short}")
        kept = state["thread"] if question_id == state.get("question_id") else None
        thread = thread_of(config, digest) or kept or uuid4().hex
        visit = _Visit(question_id, digest, thread, config, None)
        if self.ledger is None:
            update, sends = self._turn(state, visit)
        else:
            hold = self._entered(config, thread, kept, state.get("budget"))
            try:
                journal = RunJournal(self.ledger, hold, self.ledger.shared(self.quotas))
                visit = visit._replace(thread=hold.thread, journal=journal)
                update, sends = self._turn(state, visit)
            except Exception:
                self.ledger.release(hold)
                raise
            finally:
                self.ledger.leave(hold)
        if whose is not None:
            update["owner"] = whose
        return update, sends, repeated

    def _entered(self, config: RunnableConfig, thread: str, kept: str | None, grant: Any) -> Hold:
        """The hold of this invocation on its thread. kept: the thread that the question already has.

        If a parent graph asks several instances of this graph the same question, each instance has
        its own thread. Its name holds the budget, so that none resumes a run with a larger one;
        instances with equal budgets are numbered.
        """
        assert self.ledger is not None
        here = invocation()
        assert here is not None, "the hub is a node of a graph"
        if kept is not None and "#" in thread and kept.startswith(thread):
            thread = kept
        elif "#" in thread and kept is None:
            amounts = {} if grant is None else as_budget(grant).limits()
            share = "".join(f"/{d}={amount!r}" for d, amount in amounts.items())
            thread += share
            if (n := self.ledger.instance(thread, here)) > 1:
                thread += f".{n}"
        return self.ledger.enter(thread, root(config), here)

    def _turn(self, state: State, visit: _Visit) -> tuple[State, list[Send]]:
        """Begin the question, or fold the outcomes of its last step; then plan what comes next."""
        question_id, digest, thread, config, journal = visit
        given, new = state.get("budget"), question_id != state.get("question_id")
        before = None if new else state.get("chosen")
        choice = chosen() if before is None else before
        setup = self.setups[choice]
        if new:
            if self.asks:
                check_resumable(config)
            earlier = journal.ledger.find(thread, digest, user()) if journal else None
            run_id, limits = earlier or randbits(53), self._limits(setup, given)
            update = fresh(question_id, choice, run_id, thread, limits)
            calibrations = state.get("calibrations", {})
            update["calibrations"] = {r: without_prompt(c) for r, c in calibrations.items()}
            update |= self._recalled(question_of(state["messages"]).text, update["run_id"])
        else:
            update = fold(state, setup.width, setup.decides, setup.tokenizers)
            update["chosen"] = choice
            if thread != state["thread"]:  # a copy of another thread's state
                update |= State(thread=thread, run_id=randbits(53), parent_run=state["run_id"])
            if given is not None:
                grant = affordable(setup, self._allowed(given))
                update["limits"] = raised(state["limits"], grant, state["spent"])
                if update.get("failures", state["failures"]):  # its server may be mended by now
                    for meter in setup.meters.values():
                        meter.known.forget(update.get("run_id", state["run_id"]))
                update |= State(concluded=None, **unstopped())
        now = merged(state, update)
        sends = self._next(setup, state, now, visit)
        update["spent"] = now["spent"]
        if sends[0].node in _ENDS:
            update["errors"] = now["errors"] + self._remembered(now)
        note("budget", now["best"], now["spent"])
        spent = state.get("spent", nothing())
        for part in passed(self.warn_at, now["limits"], spent, now["spent"]):
            rest = left(now["limits"], now["spent"])
            announce(Warned(used=part, spent=now["spent"], remaining=rest))
        if (best := now["best"]) is not None:
            live = self.lives[now["run_id"]]
            announce(live.settle(best, now["spent"], now["limits"]))
        return update, sends

    def _next(self, setup: Setup, state: State, now: State, visit: _Visit) -> list[Send]:
        """What comes next, written to the ledger before it is carried out: first the calls that
        the ledger holds and the state lost in a crash, else what the budget edge plans."""
        run = _run_info(now, uuid4().hex)
        if (journal := visit.journal) is None:
            return self._edge(setup, now, run, None)
        ledger, hold, _ = journal
        record = self._record(setup, now, visit)
        try:
            record["keys"] = ledger.keys(self.quotas, told)
            lost = ledger.unknown(now["run_id"], now["ordinal"])
            sends = [_assigned(run, call) for call in lost] or self._edge(
                setup, now, run, journal.shared.payers()
            )
            stop = sends[0].arg["stop_reason"] if sends[0].node in _ENDS else None
            ledger.save(hold, record, state, now, run["plan"], stop)
        except NoAnswer:
            with suppress(LedgerError):  # what the answers failed of is told, and may be the ledger
                ledger.save(hold, record, state, now, run["plan"], "errors")
            raise
        except LedgerError as error:
            if now["best"] is None:
                raise
            log.warning("%s", error)
            ledger.release(hold)
            return self._finish(now, f"ledger: {error}")
        return sends

    def _record(self, setup: Setup, now: State, visit: _Visit) -> dict[str, Any]:
        options = (visit.config.get("metadata") or {}).get("anytime_options")
        return {
            "asked": visit.digest,
            "question": question_of(now["messages"]).text,
            "conversation": conversation_of(now["messages"]),
            "model": setup.meters[OWN].name,
            "strategy": (now["chosen"] or {}).get("strategy", self.strategy),
            "decides": setup.decides,
            "namespace": encoded(tuple(now["namespace"])) if self.remembers else "",
            "options": options if isinstance(options, dict) else None,  # a client's, perhaps
        }

    def _recalled(self, question: str, run_id: int) -> State:
        """The examples that the memory has for a new question. An authenticated user's namespaces
        begin with the user, so that no client reads another's. If the memory fails, the run goes on
        without examples. A bad namespace is an error before anything is spent."""
        if self.memory is None:
            return State()
        named = context().get("namespace") or ()
        encoded(named)
        whose = user()
        space = (*named,) if whose is None else (whose, *named)
        encoded(space)
        try:
            with contained():
                examples = self.memory.recall(space, question, besides=[run_id])
        except Exception as error:
            return State(namespace=list(space), errors=[_logged("memory", error)])
        return State(namespace=list(space), examples=examples)

    def _remembered(self, state: State) -> list[str]:
        """Remember the question's pairs, unless the ledger already has them. Returns the errors."""
        if self.memory is None or self.remembers or not state["pairs"]:
            return []
        namespace, question = tuple(state["namespace"]), question_of(state["messages"]).text
        lessons = (state["pairs"], state["principles"], state["run_id"])
        try:
            with contained():
                self.memory.learn(namespace, question, *lessons)
        except Exception as error:
            return [_logged("memory", error)]
        return []

    def _edge(self, setup: Setup, state: State, run: RunInfo, payers: Payers | None) -> list[Send]:
        """The budget edge: the next calls with their slices, or the finish with its reason."""
        if state["best"] is not None and drained():
            return self._finish(state, "drained")
        stop = stop_signal()
        stopped = stop is not None and stop.is_set()
        quotas = None if payers is None else payers.standings()
        rest = {} if quotas is None else quotas.left(free=True)
        if (usd := rest.get("usd")) is not None:
            affordable(setup, Budget(usd=usd))
        try:
            with contained():
                with patience(_counting_time(state)) as counting:
                    planned = plan(setup, state, stopped, rest)
                if counting.used and "seconds" in state["limits"]:
                    seconds = state["spent"]["seconds"] + counting.used
                    state["spent"] = {**state["spent"], "seconds": seconds}
                    with patience(0.0):  # what was counted is known, and the rest is bounded
                        planned = plan(setup, state, stopped, rest)
        except Short as short:
            if quotas is None or short.dimension != QUOTA:
                raise
            raise quotas.exceeded(short.need) from None
        except (BudgetTooSmall, NoAnswer):
            raise
        except Exception as error:  # the user's strategy failed: keep the best answer so far
            if state["best"] is None:
                raise
            state["errors"] = [*state["errors"], f"strategy: {failure(setup.strategy, error)}"]
            return self._finish(state, _logged("strategy", error))
        if isinstance(planned, list):
            # After 2 s and a third failed step in a row: 2 * 2 ** 2 = 8 s.
            wait = min(state["wait"] * 2 ** max(0, state["failures"] - 1), _LONGEST_WAIT)
            return [_assigned(run, call, prompt, wait) for call, prompt in planned]
        sends = self._finish(state, planned.reason, planned.estimate)
        if self.asks and used_up(state, planned):
            return [Send("ask", {**sends[0].arg, "asked": exhausted(setup, state, planned)})]
        return sends

    def _finish(self, state: State, reason: str, estimate: float | None = None) -> list[Send]:
        final = {k: state[k] for k in ("best", "answer_id", "run_id")}
        # An earlier answer that the caller has removed cannot be replaced.
        if all(m.id != state["answer_id"] for m in state["messages"]):
            final["answer_id"] = None
        return [Send("finish", {**final, "stop_reason": reason, "stop_estimate": estimate})]

    def ask(self, state: State) -> Command[Any]:
        """Ask a human whether the run may cost more. What is granted goes to the hub as a budget in the
        input does."""
        asked: Exhausted = cast(Any, state)["asked"]
        if (grant := granted(asked, self._allowed)) is None:
            return Command(goto=Send("finish", state))
        return Command(update={"budget": grant}, goto="budget")

    def finish(self, state: State) -> dict[str, Any]:
        state = migrated_final(state)
        self.lives.forget(state["run_id"])
        return finish.answer(state, self.schema)

    def _limits(self, setup: Setup, given: Budget | dict[str, Any] | None) -> Limits:
        given = given if given is not None else context().get("budget")
        budget, most = self.budget, self._most()
        if given is not None:
            asked = self._allowed(given).limits()
            budget = Budget(**cast(Any, least([asked, most.limits() if most else {}])))
        if budget is None:
            if setup.until is not None:
                return {}
            raise ValueError(
                "budget: none given; pass budget=Budget(tokens=8_000) to create_anytime_graph, "
                "put one into the input or the context, or say with until=Until(...) when to stop "
                "without one"
            )
        return affordable(setup, bounding(budget, setup.until)).limits()

    def _allowed(self, given: Budget | dict[str, Any]) -> Budget:
        """The budget that an input or a context asks for. Raises ValueError if it may not."""
        asked, most = as_budget(given), self._most()
        bounds = most.limits() if most else {}
        for dimension, amount in asked.limits().items():
            if amount > bounds.get(dimension, math.inf):
                raise ValueError(
                    f"budget {dimension}={in_digits(amount)}: at most {most} may be asked for"
                )
        return asked

    def _most(self) -> Budget | None:
        """The most that may be asked for at once."""
        return self.budget if self.most is None and served() else self.most


def _counting_time(state: State) -> float | None:
    """Seconds that counting prompts may take in a step: a tenth of what is left."""
    rest = left(state["limits"], state["spent"]).get("seconds")
    return None if rest is None else _COUNTING * rest


def _run_info(state: State, plan: str) -> RunInfo:
    return RunInfo(
        run_id=state["run_id"],
        thread=state["thread"],
        plan=plan,
        chosen=state["chosen"] or {},
        question=question_of(state["messages"]).text,
        spent=state["spent"],
        limits=state["limits"],
    )


def _assigned(
    run: RunInfo, call: PlannedCall, prompt: list[AnyMessage] | None = None, wait: float = 0.0
) -> Send:
    return Send(call["move"]["kind"], Assignment(call=call, prompt=prompt, wait=wait, run=run))


def _logged(part: str, error: Exception) -> str:
    """Log that a part which the user supplied failed, and describe it for the run's errors."""
    log.warning("the %s failed: %s", part, describe(error))
    return f"{part}: {describe(error)}"
