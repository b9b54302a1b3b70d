"""The graph: a hub that folds and plans, spokes that each make one metered call.

START -> budget -.-> draft x k | critique x k | refine x k | finish -> END
draft, critique, refine -> budget
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from secrets import randbits
from typing import Any, Literal, cast
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, RemoveMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_executor_for_config
from langgraph.config import get_stream_writer
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel
from langgraph.runtime import get_runtime
from langgraph.store.base import BaseStore
from langgraph.types import Command, Send
from langsmith import get_current_run_tree
from pydantic import BaseModel
from typing_extensions import TypedDict

from anytime_graph.budget import (
    Budget,
    BudgetTooSmall,
    Limits,
    NoAnswer,
    Prices,
    Spend,
    as_budget,
    more,
)
from anytime_graph.checkpoints import Access, Ledger, LedgerError
from anytime_graph.checkpoints.leases import Hold
from anytime_graph.checkpoints.preferences import Memory, encoded, memory_of
from anytime_graph.drafters import Drafter
from anytime_graph.drafters import adraft as agents_adraft
from anytime_graph.drafters import draft as agents_draft
from anytime_graph.live import Improvement, Lives
from anytime_graph.metering import (
    Gate,
    Reply,
    Stop,
    acall,
    call,
    choices,
    describe,
    gate,
    held_to,
    unshaped,
)
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.moves import Strategy
from anytime_graph.nodes import critique, draft, finish, learn, refine
from anytime_graph.nodes.answers import Asked, asked
from anytime_graph.pairs import Candidate
from anytime_graph.planning import Setup, plan
from anytime_graph.profiles import checked
from anytime_graph.scoring import (
    BadScore,
    Extractor,
    Judge,
    Score,
    Scorer,
    Verdict,
    as_score,
    is_async,
    verdict_of,
)
from anytime_graph.state import (
    OWN,
    PLAIN,
    REVIEW,
    STRUCTURED,
    Chosen,
    Decides,
    Input,
    Outcome,
    Output,
    Payoff,
    State,
    Task,
    asked_of,
    conversation_of,
    fold,
    fresh,
    merged,
    once,
    question_of,
)
from anytime_graph.stopping import Until
from anytime_graph.strategies import resolve as resolve_strategy
from anytime_graph.tokens import Calibration, uncalibrated

log = logging.getLogger(__name__)


class Context(TypedDict, total=False):
    """What may be set for each invocation, or kept with an assistant: all but `stop` is JSON.

    budget: for questions asked in it, unless the input names one; a Budget or its dimensions.
    model: for questions asked in it, by its name among those the graph was built with.
    strategy: for questions asked in it, by name.
    namespace: whose preference pairs the memory recalls and remembers, such as [tenant, user];
        default: those of the empty namespace.
    stop: an object with `is_set()`, such as a threading.Event; once set, calls in flight are cut
    and the best answer so far is returned.
    """

    budget: Budget | dict[str, float] | None
    model: str | None
    strategy: str | None
    namespace: Any
    stop: Any


def create_anytime_graph(
    model: str | BaseChatModel | Runnable[Any, Any] | Mapping[str, Any],
    *,
    budget: Budget | None = None,
    scorer: Scorer | Judge | Literal["judge", "vote"] | None = None,
    strategy: str | Strategy = "pdp",
    answer: str | Extractor | type[BaseModel] | Asked = "tags",
    prices: Prices | None = None,
    width: int = 8,
    ledger: Ledger | None = None,
    memory: Ledger | BaseStore | Memory | None = None,
    judge: Judge | None = None,
    until: Until | None = None,
    profile: Mapping[str, Payoff] | None = None,
    drafter: Drafter | None = None,
) -> StateGraph[State, Context, Input, Output]:
    """Turn a chat model into an anytime reasoner. Returns an uncompiled graph.

    model: a chat model, "provider:name", "local" (the embedded model) or "local:FILE.gguf"; or
        several of these by name, of which the context chooses one. The first is the default; the
        others are made when they are first chosen.
    budget: what one question may cost, unless input or context say otherwise. Without one, a run is
        open-ended if `until` says when it ends: on a schedule of doubled budgets.
    scorer: (question, answer) -> score in [0, 1], "judge" (the model compares its own answers,
        each pair in both orders; a Judge is short for "judge" and judge=) or "vote" (agreement).
        Default: "vote" for the strategy "self_consistency", else "judge".
    strategy: single, best_of_n, self_consistency, self_refine, pdp_positive, pdp, leap, adaptive,
        or a function from View to moves.
    answer: how answers are found in replies: "tags" (<answer> blocks are asked for), "whole",
        a function from reply to answer, or a pydantic model.
    prices: US dollars per million tokens; default: looked up by the model's name when a budget
        in USD needs them (extra `prices`).
    width: how many candidates and pairs the state keeps.
    ledger: the record that makes runs resumable to the last paid call; see open_checkpoints.
    memory: where preference pairs of earlier questions are recalled from, and this one's are
        remembered, within the context's namespace: the same ledger, one of LangGraph's stores, or
        a Memory.
    judge: who compares answers and gives reasons: another model, a rubric, another share of the
        budget. If the scorer is a function, that decides, and the judge is heard only for reasons
        and where a strategy asks for comparisons.
    drafter: has drafts made by an agent: a function from a chat model to a Runnable that takes and
        returns {"messages": [...]}, such as `lambda model: create_agent(model, tools)`. It is called
        for each draft, with `model` metered: its calls are paid from that draft's slice.
    until: when to stop before the budget does.
    profile: what drafts and refinements brought on earlier questions; see profiles.

    The compiled graph takes {"messages": [...], "budget": Budget(...)} and returns `messages`
    (with the answer last), `best`, `spent`, `stop_reason`, `curve` and more (see Output). A new
    user message is a new question; a budget alone thinks on. Raises ValueError here for a bad
    argument, and when it runs BudgetTooSmall (nothing was spent), NoAnswer (all calls failed)
    or, with a ledger, ThreadBusy (somebody else is running the thread).
    """
    if not isinstance(width, int) or width < 2:
        raise ValueError(f"width={width!r}: a whole number, 2 or more")
    if isinstance(scorer, str) and scorer not in ("judge", "vote"):
        raise ValueError(f"scorer={scorer!r}: a function, 'judge' or 'vote'")
    if not (scorer is None or isinstance(scorer, str | Judge) or callable(scorer)):
        raise ValueError(f"scorer={scorer!r}: a function (question, answer) -> score is needed")
    if budget is not None:
        budget = as_budget(budget)
    if isinstance(memory, Ledger) and memory is not ledger:
        raise ValueError("memory: a ledger remembers what it records; pass it as ledger= too")
    if not (drafter is None or callable(drafter)):
        raise ValueError(
            f"drafter={type(drafter).__name__}: a function from a chat model to a Runnable is needed, "
            "as in lambda model: create_agent(model, tools)"
        )
    if isinstance(scorer, Judge):
        if judge is not None:
            raise ValueError("judge: it is given as scorer= too; give it once")
        judge, scorer = scorer, "judge"
    question_asked = asked(answer)
    models = dict(model) if isinstance(model, Mapping) else None
    if models is not None and not (models and all(isinstance(name, str) for name in models)):
        raise ValueError(f"model={model!r}: name at least one model, as in {{'small': ...}}")
    if models is not None and prices is not None:
        raise ValueError("prices: they cannot hold for several models; leave them to be looked up")
    heard, learned = judge or Judge(), checked(profile or {})

    def setup(chosen: Chosen) -> Setup:
        rules = chosen.get("strategy", strategy)
        chat_model = resolve_model(_named(models, model, chosen))
        usual: Decides = "vote" if rules == "self_consistency" else "judge"
        by = usual if scorer is None else scorer
        decides: Decides = by if isinstance(by, str) else "scorer"
        known = prices or prices_of(chat_model)
        if until is not None:
            until.check(decides, known)
        return Setup(
            gates=_gates(chat_model, known, heard),
            asked=question_asked,
            strategy=resolve_strategy(rules),
            decides=decides,
            scorer=None if isinstance(by, str) else by,
            judge=heard,
            width=width,
            until=until,
            profile=learned,
            drafter=drafter,
        )

    run = _Run(
        setup,
        budget,
        answer if isinstance(answer, type) else None,
        ledger,
        memory,
        strategy if isinstance(strategy, str) else getattr(strategy, "__name__", "custom"),
    )
    default = run.setup({})
    if budget is not None:
        affordable(default, budget)
    graph: StateGraph[State, Context, Input, Output] = StateGraph(
        State, context_schema=Context, input_schema=Input, output_schema=Output
    )
    graph.add_node("budget", run.hub, destinations=(*SPOKES, "finish"))
    graph.add_edge(START, "budget")
    for name in SPOKES:
        graph.add_node(name, _Spoke(run))
        graph.add_edge(name, "budget")
    graph.add_node("finish", run.finish)
    graph.add_edge("finish", END)
    return graph


def _gates(model: BaseChatModel | Any, prices: Prices | None, judge: Judge) -> dict[str, Gate]:
    own = gate(model, prices)
    judging = unshaped(model)
    bare = its_own = own if judging is model else gate(judging, prices)
    if judge.model is not None:
        judging = resolve_model(judge.model)
        its_own = gate(judging, judge.prices or prices_of(judging))
    gates = {OWN: own, PLAIN: its_own}
    if bare is not own:
        gates[REVIEW] = bare
    if (held := held_to(judging, critique.VERDICT)) is not None:
        gates[STRUCTURED] = gate(held, its_own.prices)
    return gates


def _named(models: Mapping[str, Any] | None, model: Any, chosen: Chosen) -> Any:
    """The model that was chosen, of those there are: no name is resolved that the context brings."""
    name = chosen.get("model")
    if models is None and name is not None:
        raise ValueError(
            f"context model={name!r}: this graph has one model; build it with "
            "model={'name': ..., ...} to let the context choose"
        )
    if models is not None:
        name = next(iter(models)) if name is None else name
        if name not in models:
            raise ValueError(f"context model={name!r}: one of {', '.join(models)}")
        return models[name]
    return model


SPOKES = ("draft", "critique", "refine", "learn")
Life = tuple[Hashable, str]
_INSTANCES = 4_096


def _drafting(setup: Setup, task: Task) -> tuple[Drafter, Gate, Task, str]:
    assert setup.drafter is not None
    return setup.drafter, setup.gates[task["gate"]], task, setup.asked.protocol.conclude()


class _Run:
    """The nodes of one graph, over its setups: one for each choice of the context."""

    def __init__(
        self,
        make: Callable[[Chosen], Setup],
        budget: Budget | None,
        schema: type[BaseModel] | None,
        ledger: Ledger | None,
        memory: Ledger | BaseStore | Memory | None,
        strategy: str,
    ) -> None:
        self.make, self.budget, self.schema, self.ledger = make, budget, schema, ledger
        self.memory = None if memory is None else memory_of(memory)
        self.remembers = memory is not None and memory is ledger
        self.strategy = strategy
        self.lives = Lives()
        self._instances: OrderedDict[tuple[Hashable, str], list[str]] = OrderedDict()
        self._counting = threading.Lock()
        self._setups: dict[tuple[str | None, str | None], Setup] = {}
        self._making = threading.Lock()

    def setup(self, chosen: Chosen) -> Setup:
        """Made when it is first asked for, which may load a model."""
        with self._making:
            if (key := _key(chosen)) not in self._setups:
                self._setups[key] = self.make(chosen)
            return self._setups[key]

    async def asetup(self, chosen: Chosen) -> Setup:
        if (made := self._setups.get(_key(chosen))) is not None:
            return made
        return await asyncio.to_thread(self.setup, chosen)

    # --- the hub

    def hub(self, state: State, config: RunnableConfig) -> Command[Any]:
        """Fold what came back; begin a new question; take in a budget to think on with; then go
        over the budget edge. An error here leaves the state as it was, so that the step can be
        run again."""
        messages, repeated = once(state["messages"])
        state = merged(state, State(messages=cast("list[AnyMessage]", messages)))
        question, asked = question_of(messages), asked_of(messages)
        digest = hashlib.sha256(question.text.encode(errors="replace")).hexdigest()[:16]
        question_id = f"{question.id}:{digest}"
        kept = state["thread"] if question_id == state.get("question_id") else None
        thread = thread_of(config, asked) or kept or uuid4().hex
        if self.ledger is None:
            update, sends = self._turn(state, config, question_id, asked, thread, None)
        else:
            hold = self._entered(config, thread, kept, state.get("budget"))
            try:
                access = Access(self.ledger, hold)
                update, sends = self._turn(state, config, question_id, asked, hold.thread, access)
            except Exception:
                self.ledger.release(hold)
                raise
            finally:
                self.ledger.leave(hold, _root(config))
        if repeated:
            update["messages"] = cast("list[AnyMessage]", [RemoveMessage(id) for id in repeated])
        return Command(update={**update, "returned": None}, goto=sends)

    def _entered(self, config: RunnableConfig, thread: str, kept: str | None, granted: Any) -> Hold:
        """The hold of this invocation. Where a parent graph asks the same question of several
        instances of this graph, each has a thread of its own: told apart by their budgets, so that
        none resumes the run of one that was given more, and else numbered."""
        assert self.ledger is not None
        life = _life(config)
        if kept is not None and "#" in thread and kept.startswith(thread):
            thread = kept
        elif "#" in thread and kept is None:
            amounts = {} if granted is None else as_budget(granted).limits()
            share = "".join(f"/{d}={amount!r}" for d, amount in amounts.items())
            thread = self._instance(thread + share, life)
        return self.ledger.enter(thread, _root(config), life)

    def _instance(self, thread: str, life: Life) -> str:
        """The thread, numbered if another instance in the same invocation has it."""
        with self._counting:
            space = self._instances.setdefault((life[0], thread), [])
            while len(self._instances) > _INSTANCES:
                self._instances.popitem(last=False)
            if life[1] not in space:
                space.append(life[1])
            n = space.index(life[1])
        return f"{thread}.{n + 1}" if n else thread

    def _turn(
        self,
        state: State,
        config: RunnableConfig,
        question_id: str,
        asked: str,
        thread: str,
        access: Access | None,
    ) -> tuple[State, list[Send]]:
        granted, chosen = state.get("budget"), state.get("chosen")
        if question_id != state.get("question_id"):
            begun = access.ledger.find(thread, asked) if access else None
            chosen = _chosen()
            setup = self.setup(chosen)
            run_id, limits = begun or randbits(53), self._limits(setup, granted)
            update = fresh(question_id, chosen, run_id, thread, limits)
            update["calibrations"] = _grown(state.get("calibrations", {}))
            update |= self._recalled(question_of(state["messages"]).text, update["run_id"])
        else:
            chosen = _chosen() if chosen is None else chosen
            setup = self.setup(chosen)
            update = fold(state, setup.width, setup.decides, setup.learn)
            update["chosen"] = chosen
            if thread != state["thread"]:  # a copy of another thread's state
                update |= State(thread=thread, run_id=randbits(53), parent_run=state["run_id"])
            if granted is not None:
                grant = affordable(setup, as_budget(granted))
                update["limits"] = more(state["limits"], grant, state["spent"])
                update |= State(interrupted=False, failures=0, wait=0.0, concluded=None)
        now = merged(state, update)
        sends, plan_id = self._next(setup, state, now, config, asked, access)
        for send in sends:
            send.arg |= {"plan": plan_id, "chosen": chosen}
        if any(send.node == "finish" for send in sends):
            update["errors"] = now["errors"] + self._remembered(now)
        _noted("budget", now["best"], now["spent"])
        if (best := now["best"]) is not None:
            live = self.lives[now["run_id"]]
            _announce(live.settle(best, now["spent"], now["limits"]))
        return update, sends

    def _next(
        self,
        setup: Setup,
        state: State,
        now: State,
        config: RunnableConfig,
        asked: str,
        access: Access | None,
    ) -> tuple[list[Send], str]:
        """What to do next, written to the ledger before it is done: first, what the ledger knows
        and the state does not; else what the budget edge says."""
        plan_id = uuid4().hex
        if access is None:
            return self._edge(setup, now), plan_id
        ledger, hold = access
        record = self._record(setup, now, config, asked)
        try:
            sends = self._recorded(now, ledger) or self._edge(setup, now)
            stop = sends[0].arg["stop_reason"] if sends[0].node == "finish" else None
            ledger.save(hold, record, state, now, plan_id, stop)
        except NoAnswer:
            ledger.save(hold, record, state, now, plan_id, "errors")
            raise
        except LedgerError as error:
            if now["best"] is None:
                raise
            log.warning("%s", error)
            ledger.release(hold)
            return self._finish(now, f"ledger: {error}"), plan_id
        return sends, plan_id

    def _recorded(self, now: State, ledger: Ledger) -> list[Send]:
        """Tasks for calls that the ledger holds and a crash kept from the state."""
        here = {k: now[k] for k in ("run_id", "thread", "spent", "limits")}
        question = question_of(now["messages"]).text
        return [
            Send(
                task["move"]["kind"],
                {**task, **here, "question": question, "prompt": [], "wait": 0.0},
            )
            for task in ledger.unknown(now["run_id"], now["ordinal"])
        ]

    def _record(
        self, setup: Setup, now: State, config: RunnableConfig, asked: str
    ) -> dict[str, Any]:
        return {
            "asked": asked,
            "question": question_of(now["messages"]).text,
            "conversation": conversation_of(now["messages"]),
            "model": setup.gates[OWN].name,
            "strategy": (now["chosen"] or {}).get("strategy", self.strategy),
            "decides": setup.decides,
            "namespace": encoded(tuple(now["namespace"])) if self.remembers else "",
            "options": (config.get("metadata") or {}).get("anytime_options"),
        }

    def _recalled(self, question: str, run_id: int) -> State:
        """What the memory has for a new question. A memory that fails costs its pairs, not the
        run; a bad namespace is an error before anything is spent."""
        if self.memory is None:
            return State()
        namespace = _context().get("namespace") or ()
        encoded(namespace)
        try:
            examples = self.memory.recall(tuple(namespace), question, besides=[run_id])
        except Exception as error:
            log.warning("the memory failed: %s", describe(error))
            return State(namespace=list(namespace), errors=[f"memory: {describe(error)}"])
        return State(namespace=list(namespace), examples=examples)

    def _remembered(self, state: State) -> list[str]:
        """Remember the question's pairs, unless the ledger has done so; what went wrong."""
        if self.memory is None or self.remembers or not state["pairs"]:
            return []
        namespace, question = tuple(state["namespace"]), question_of(state["messages"]).text
        learned = (state["pairs"], state["principles"], state["run_id"])
        try:
            self.memory.learn(namespace, question, *learned)
        except Exception as error:
            log.warning("the memory failed: %s", describe(error))
            return [f"memory: {describe(error)}"]
        return []

    def _edge(self, setup: Setup, state: State) -> list[Send]:
        """The budget edge: tasks with their slices, or the finish with its reason."""
        stop = _stop()
        try:
            planned = plan(setup, state, stop is not None and stop.is_set())
        except (BudgetTooSmall, NoAnswer):
            raise
        except Exception as error:  # a strategy of the user's: the answer in hand is not lost
            if state["best"] is None:
                raise
            log.warning("the strategy failed: %s", describe(error))
            return self._finish(state, f"strategy: {describe(error)}")
        if isinstance(planned, list):
            return [Send(task["move"]["kind"], task) for task in planned]
        return self._finish(state, planned.reason, planned.estimate)

    def _finish(self, state: State, reason: str, estimate: float | None = None) -> list[Send]:
        final = {k: state[k] for k in ("best", "answer_id", "run_id")}
        if all(m.id != state["answer_id"] for m in state["messages"]):
            final["answer_id"] = None
        return [Send("finish", {**final, "stop_reason": reason, "stop_estimate": estimate})]

    def finish(self, state: State) -> dict[str, Any]:
        self.lives.forget(state["run_id"])
        return finish.answer(state)

    # --- the spokes

    def spoke(self, task: Task, config: RunnableConfig) -> State:
        if self.ledger is None:
            return self._spoke(task, config, None)
        hold = self.ledger.enter(task["thread"], _root(config), _life(config))
        try:
            return self._spoke(task, config, Access(self.ledger, hold))
        finally:
            self.ledger.leave(hold, _root(config))

    def _spoke(self, task: Task, config: RunnableConfig, access: Access | None) -> State:
        with self.lives[task["run_id"]].active(task) as before:
            if self._needless(task, config):
                return State(returned=[])
            task, inner = _in_time(task, before), _config(task, config)
            setup = self.setup(task["chosen"])
            if "agent" in task["move"]:
                task, reply = agents_draft(*_drafting(setup, task), inner, _stop(), access)
            else:
                reply = call(setup.gates[task["gate"]], task, inner, _stop(), access)
            several = choices(task, reply)
            if len(several) == 1:
                return State(returned=[self._outcome(setup, *several[0], access)])
            with get_executor_for_config(config) as pool:  # choices are scored side by side
                scored = [pool.submit(self._outcome, setup, *each, access) for each in several]
                return State(returned=[outcome.result() for outcome in scored])

    def _needless(self, task: Task, config: RunnableConfig) -> bool:
        """An answer that was not asked for yet when a sibling's reached the target, because the caller
        has few run at once. What is in flight is let finish: cut off, it would be charged in full."""
        waited = config.get("max_concurrency") and task["move"]["kind"] in ("draft", "refine")
        reached = self.lives[task["run_id"]].reached
        return bool(waited and task["prompt"] and reached == task["plan"])

    def _outcome(self, setup: Setup, task: Task, reply: Reply, access: Access | None) -> Outcome:
        outcome = self._absorbed(setup, task, reply)
        if (scorer := setup.scorer) and "candidate" in outcome:
            try:
                if not _rated(task, reply, outcome, access):
                    _rate(outcome, verdict_of(scorer, task["question"], self._subject(outcome)))
            except Exception as error:
                _unrated(outcome, error)
        _keep(task, reply, outcome, access)
        return self._returned(task, outcome, reply.recalled)

    async def aspoke(self, task: Task, config: RunnableConfig) -> State:
        if self.ledger is None:
            return await self._aspoke(task, config, None)
        root, ledger, broken = _root(config), self.ledger, True
        hold = await _held(
            ledger, asyncio.to_thread(ledger.enter, task["thread"], root, _life(config)), root
        )
        try:
            state = await self._aspoke(task, config, Access(ledger, hold))
            broken = False
        finally:
            ledger.leave(hold, root, broken)
        return state

    async def _aspoke(self, task: Task, config: RunnableConfig, access: Access | None) -> State:
        with self.lives[task["run_id"]].active(task) as before:
            if self._needless(task, config):
                return State(returned=[])
            task, inner = _in_time(task, before), _config(task, config)
            setup = await self.asetup(task["chosen"])
            if "agent" in task["move"]:
                drafted = agents_adraft(*_drafting(setup, task), inner, _stop(), access)
                task, reply = await drafted
            else:
                reply = await acall(setup.gates[task["gate"]], task, inner, _stop(), access)
            made = (self._aoutcome(setup, *each, access) for each in choices(task, reply))
            return State(returned=await asyncio.gather(*made))

    async def _aoutcome(
        self, setup: Setup, task: Task, reply: Reply, access: Access | None
    ) -> Outcome:
        outcome = self._absorbed(setup, task, reply)
        if (scorer := setup.scorer) and "candidate" in outcome:
            try:
                if not (
                    reply.recalled and await asyncio.to_thread(_rated, task, reply, outcome, access)
                ):
                    verdict = _averdict(scorer, task["question"], self._subject(outcome))
                    _rate(outcome, await verdict)
            except Exception as error:
                _unrated(outcome, error)
        if access is not None:
            await asyncio.to_thread(_keep, task, reply, outcome, access)
        return self._returned(task, outcome, reply.recalled)

    def _absorbed(self, setup: Setup, task: Task, reply: Reply) -> Outcome:
        """What the reply means, by the kind of its move."""
        outcome = Outcome(
            ordinal=task["ordinal"],
            move=task["move"],
            swapped=task["swapped"],
            gate=task["gate"],
            spend=reply.spend,
            started=reply.started,
            ended=reply.ended_at,
            shape=task["shape"],
            reported=reply.reported,
            room=task["room"],
            starved=reply.starved,
            failed=reply.failed,
            refused=reply.refused,
            lost=reply.lost,
            interrupted=reply.interrupted,
            retry_after=reply.retry_after,
            errors=reply.errors,
            once=reply.once,
        )
        if task["move"]["kind"] == "critique":
            if (judgement := critique.absorb(task, reply)) is not None:
                outcome["preferred"], outcome["why"] = judgement
            return outcome
        if task["move"]["kind"] == "learn":
            learned = learn.absorb(task, reply)
            if isinstance(learned, str):
                outcome["why"] = learned
            else:
                outcome["principles"] = learned
            return outcome
        absorb = draft.absorb if task["move"]["kind"] == "draft" else refine.absorb
        if (candidate := absorb(task, reply, setup.asked)) is not None:
            outcome["candidate"] = candidate
        return outcome

    def _returned(self, task: Task, outcome: Outcome, recalled: bool) -> Outcome:
        if not recalled:
            outcome["ended"] = time.time()
        live = self.lives[task["run_id"]]
        live.charge(outcome["spend"])
        _noted(outcome["move"]["kind"], outcome.get("candidate"), outcome["spend"])
        if "candidate" in outcome:
            until = self.setup(task["chosen"]).until
            enough = until.target if until and until.target is not None else 1.0
            if (outcome["candidate"]["score"] or 0.0) >= enough:
                live.reached = task["plan"]
            _announce(live.offer(outcome["candidate"], task["limits"]))
        return outcome

    def _subject(self, outcome: Outcome) -> Any:
        """What the scorer is shown: the answer, or the instance of the schema that it fits."""
        answer = outcome["candidate"]["answer"]
        if self.schema is None or not outcome["candidate"]["complete"]:
            return answer
        return self.schema.model_validate_json(answer)

    # --- budgets

    def _limits(self, setup: Setup, granted: Budget | dict[str, Any] | None) -> Limits:
        granted = granted if granted is not None else _context().get("budget")
        budget = self.budget if granted is None else as_budget(granted)
        if budget is None:
            if setup.until is not None:
                return {}
            raise ValueError(
                "budget: none given; pass budget=Budget(tokens=8_000) to create_anytime_graph, "
                "put one into the input or the context, or say with until=Until(...) when to stop "
                "without one"
            )
        return affordable(setup, budget).limits()


def affordable(setup: Setup, budget: Budget) -> Budget:
    """Raises ValueError for a budget in USD if the prices are not known."""
    unpriced = next((g.name for g in setup.gates.values() if g.prices is None), None)
    if budget.usd is not None and unpriced:
        raise ValueError(
            f"budget usd={budget.usd}: the price of {unpriced!r} is not known; pass "
            "prices=Prices(input=..., output=...) in dollars per million tokens, or install "
            "anytime-graph[prices]"
        )
    return budget


def fork(
    app: Pregel[Any, Any, Any, Any], config: RunnableConfig, budget: Budget | None = None
) -> RunnableConfig:
    """Branch off from an earlier checkpoint of a thread: `app.invoke(None, fork(app, config))`.

    app: a compiled anytime graph, which may have another strategy or model. config: of the
    checkpoint, as in `app.get_state_history(...)`. budget: what the branch may have cost in the
    end, its past included; the same as before if not given. In the ledger a branch is a run of its
    own. Raises ValueError if no question was begun at that checkpoint.
    """
    snapshot = app.get_state(config)
    return app.update_state(snapshot.config, _branch(snapshot.values, budget), as_node="draft")


async def afork(
    app: Pregel[Any, Any, Any, Any], config: RunnableConfig, budget: Budget | None = None
) -> RunnableConfig:
    """`fork` for an async graph."""
    snapshot = await app.aget_state(config)
    values = _branch(snapshot.values, budget)
    return await app.aupdate_state(snapshot.config, values, as_node="draft")


def _branch(values: dict[str, Any], budget: Budget | None) -> State:
    if "run_id" not in values:
        raise ValueError("config: at this checkpoint no question was begun; invoke to ask one")
    limits = values["limits"] if budget is None else as_budget(budget).limits()
    return State(
        run_id=randbits(53),
        parent_run=values["run_id"],
        limits=limits,
        chosen=None,
        calibrations=_grown(values["calibrations"]),
        interrupted=False,
        failures=0,
        wait=0.0,
    )


def _grown(calibrations: dict[str, Calibration]) -> dict[str, Calibration]:
    """What calibrations hold for another prompt, or from another model: how far bounds missed."""
    return {
        name: {**uncalibrated(), "growth": known["growth"]} for name, known in calibrations.items()
    }


class _Spoke(Runnable[Task, State]):
    """A spoke as LangGraph takes a node that is both sync and async."""

    def __init__(self, run: _Run) -> None:
        self.run = run

    def invoke(self, input: Task, config: RunnableConfig | None = None, **kwargs: Any) -> State:
        return self.run.spoke(input, config or {})

    async def ainvoke(
        self, input: Task, config: RunnableConfig | None = None, **kwargs: Any
    ) -> State:
        return await self.run.aspoke(input, config or {})


def _context() -> Context:
    given = get_runtime(Context).context
    return given if isinstance(given, dict) else {}  # a parent graph's context may be its own


def _key(chosen: Chosen) -> tuple[str | None, str | None]:
    return chosen.get("model"), chosen.get("strategy")


def _chosen() -> Chosen:
    """What the context chooses, as plain data."""
    context, chosen = _context(), Chosen()
    for key in ("model", "strategy"):
        if (name := context.get(key)) is not None:
            if not isinstance(name, str):
                raise ValueError(f"context {key}={name!r}: its name is needed")
            chosen[key] = name
    return chosen


def _life(config: RunnableConfig) -> Life:
    """What all nodes of one invocation of this graph share, and no two invocations."""
    spaces = str((config.get("configurable") or {}).get("checkpoint_ns") or "")
    return get_runtime().control, spaces.rpartition("|")[0]


async def _held(ledger: Ledger, entering: Awaitable[Hold], root: str | None) -> Hold:
    """Wait to enter; if cancelled meanwhile, leave as soon as it was entered."""
    future = asyncio.ensure_future(entering)

    def undo(entered: asyncio.Future[Hold]) -> None:
        if not entered.cancelled() and entered.exception() is None:
            ledger.leave(entered.result(), root, broken=True)

    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(undo)
        raise


def _rated(task: Task, reply: Reply, outcome: Outcome, access: Access | None) -> bool:
    """Whether the answer got its score in an earlier life; then it has it again."""
    if access is None or not reply.recalled:
        return False
    entry = access.ledger.recall(task)
    if entry is None or entry.verdict is None:
        return False
    _rate(outcome, Score(*entry.verdict))
    return True


def _keep(task: Task, reply: Reply, outcome: Outcome, access: Access | None) -> None:
    if access is None or "candidate" not in outcome:
        return
    try:
        access.ledger.keep(access.hold, task, outcome["candidate"], fresh=not reply.recalled)
    except LedgerError as error:
        outcome["errors"].append(str(error))


def _root(config: RunnableConfig) -> str | None:
    thread_id = (config.get("configurable") or {}).get("thread_id")
    return None if thread_id is None else str(thread_id)


def thread_of(config: RunnableConfig, asked: str) -> str | None:
    """The ledger's name for a thread: LangGraph's; within a parent graph with the node's path and
    the question, for there several may run at once. None without a thread id."""
    root = _root(config)
    spaces = str((config.get("configurable") or {}).get("checkpoint_ns") or "").split("|")[:-1]
    path = "/".join(space.partition(":")[0] for space in spaces)
    return f"{root}/{path}#{asked[:12]}" if root and path else root


def _stop() -> Stop | None:
    return cast("Stop | None", _context().get("stop"))


def _config(task: Task, config: RunnableConfig) -> RunnableConfig:
    """How the call shows in traces. Drafts and refinements stream their tokens; the tokens of
    judgements, reviews and forced answers are nobody's reading."""
    kind = task["move"]["kind"]
    inner = kind in ("critique", "learn") or task["move"].get("conclude") is not None
    tags = [*(config.get("tags") or []), kind, *([TAG_NOSTREAM] if inner else [])]
    metadata = {**(config.get("metadata") or {}), "ordinal": task["ordinal"]}
    return {**config, "run_name": kind, "tags": tags, "metadata": metadata}


def _noted(node: str, candidate: Candidate | None, spend: Spend) -> None:
    """Score and spend as metadata of the node's run in LangSmith, and so in what it exports."""
    run = get_current_run_tree()
    if run is not None and run.name == node:
        score = None if candidate is None else candidate["score"]
        scored = {} if score is None else {"score": score}
        run.add_metadata({**scored, "tokens": spend["tokens"], "usd": spend["usd"]})


def _in_time(task: Task, before: float) -> Task:
    """The task with the time that its siblings, run before it, have left it."""
    if "seconds" not in task["slice"] or not before:
        return task
    rest = max(0.0, task["slice"]["seconds"] - before)
    return {**task, "slice": {**task["slice"], "seconds": rest}}


def _announce(event: Improvement | None) -> None:
    if event is not None:
        get_stream_writer()(event)


async def _averdict(scorer: Scorer, question: str, subject: Any) -> Verdict:
    if is_async(scorer):
        return await cast(Awaitable[Verdict], scorer(question, subject))
    verdict = await asyncio.to_thread(scorer, question, subject)
    return await verdict if inspect.isawaitable(verdict) else verdict


def _rate(outcome: Outcome, verdict: Verdict) -> None:
    score = as_score(verdict)
    candidate: Candidate = {
        **outcome["candidate"],
        "score": score.value,
        "feedback": score.feedback,
        "right": score.right,
    }
    outcome["candidate"] = candidate


def _unrated(outcome: Outcome, error: Exception) -> None:
    """A scorer that fails costs this score, not the run."""
    what = str(error) if isinstance(error, BadScore) else describe(error)
    outcome["errors"].append(f"scorer on candidate {outcome['ordinal']}: {what}")
    log.debug("scorer failed", exc_info=error)
