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
from collections.abc import Awaitable
from typing import Any, Literal, cast
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command, Send
from pydantic import BaseModel
from typing_extensions import TypedDict

from anytime_graph.budget import Budget, BudgetTooSmall, Limits, NoAnswer, Prices, as_budget, more
from anytime_graph.live import Improvement, Lives
from anytime_graph.metering import Reply, Stop, acall, call, describe, gate
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.nodes import critique, draft, finish, refine
from anytime_graph.nodes.answers import asked
from anytime_graph.planning import Setup, plan
from anytime_graph.scoring import BadScore, Extractor, Scorer, Verdict, as_score, is_async
from anytime_graph.state import (
    Candidate,
    Decides,
    Input,
    Outcome,
    Output,
    State,
    Task,
    fold,
    fresh,
    merged,
    question_of,
)
from anytime_graph.strategies import Strategy
from anytime_graph.strategies import resolve as resolve_strategy

log = logging.getLogger(__name__)


class Context(TypedDict, total=False):
    """What may be set for each invocation.

    budget: for questions asked in it, unless the input names one.
    stop: an object with `is_set()`, such as a threading.Event; once set, calls in flight are cut
    and the best answer so far is returned.
    """

    budget: Any
    stop: Any


def create_anytime_graph(
    model: str | BaseChatModel | Runnable[Any, Any],
    *,
    budget: Budget | None = None,
    scorer: Scorer | Literal["judge", "vote"] | None = None,
    strategy: str | Strategy = "pdp",
    answer: str | Extractor | type[BaseModel] = "tags",
    prices: Prices | None = None,
    width: int = 8,
) -> StateGraph[State, Context, Input, Output]:
    """Turn a chat model into an anytime reasoner. Returns an uncompiled graph.

    model: a chat model, "provider:name", "local" (the embedded model) or "local:FILE.gguf".
    budget: what one question may cost, unless input or context say otherwise.
    scorer: (question, answer) -> score in [0, 1], "judge" (the model compares its own answers,
        each pair in both orders) or "vote" (agreement). Default: "vote" for the strategy
        "self_consistency", else "judge".
    strategy: single, best_of_n, self_consistency, self_refine, pdp_positive, pdp, or a function
        from View to moves.
    answer: how answers are found in replies: "tags" (<answer> blocks are asked for), "whole",
        a function from reply to answer, or a pydantic model.
    prices: US dollars per million tokens; default: looked up by the model's name when a budget
        in USD needs them (extra `prices`).
    width: how many candidates and pairs the state keeps.

    The compiled graph takes {"messages": [...], "budget": Budget(...)} and returns `messages`
    (with the answer last), `best`, `spent`, `stop_reason`, `curve` and more (see Output). A new
    user message is a new question; a budget alone thinks on. Raises ValueError here for a bad
    argument, and when it runs BudgetTooSmall (nothing was spent) or NoAnswer (all calls failed).
    """
    if not isinstance(width, int) or width < 2:
        raise ValueError(f"width={width!r}: a whole number, 2 or more")
    if isinstance(scorer, str) and scorer not in ("judge", "vote"):
        raise ValueError(f"scorer={scorer!r}: a function, 'judge' or 'vote'")
    if not (scorer is None or isinstance(scorer, str) or callable(scorer)):
        raise ValueError(f"scorer={scorer!r}: a function (question, answer) -> score is needed")
    if budget is not None:
        budget = as_budget(budget)
    default: Decides = "vote" if strategy == "self_consistency" else "judge"
    decides: Decides = (
        default if scorer is None else scorer if isinstance(scorer, str) else "scorer"
    )
    question_asked = asked(answer)
    rules = resolve_strategy(strategy)
    chat_model = resolve_model(model)
    if prices is None:
        prices = prices_of(chat_model)
    run = _Run(
        Setup(
            gate=gate(chat_model, prices),
            asked=question_asked,
            strategy=rules,
            decides=decides,
            scorer=scorer if callable(scorer) else None,
            width=width,
        ),
        budget,
        answer if isinstance(answer, type) else None,
    )
    if budget is not None:
        run.affordable(budget)
    graph: StateGraph[State, Context, Input, Output] = StateGraph(
        State, context_schema=Context, input_schema=Input, output_schema=Output
    )
    graph.add_node("budget", run.hub, destinations=("draft", "critique", "refine", "finish"))
    graph.add_edge(START, "budget")
    for name in ("draft", "critique", "refine"):
        graph.add_node(name, _Spoke(run))
        graph.add_edge(name, "budget")
    graph.add_node("finish", run.finish)
    graph.add_edge("finish", END)
    return graph


class _Run:
    """The nodes of one graph, over its setup."""

    def __init__(self, setup: Setup, budget: Budget | None, schema: type[BaseModel] | None) -> None:
        self.setup, self.budget, self.schema = setup, budget, schema
        self.lives = Lives()

    # --- the hub

    def hub(self, state: State) -> Command[Any]:
        """Fold what came back; begin a new question; take in a budget to think on with; then go
        over the budget edge. An error here leaves the state as it was, so that the step can be
        run again."""
        question, granted = question_of(state["messages"]), state.get("budget")
        digest = hashlib.sha256(question.text.encode(errors="replace")).hexdigest()[:16]
        question_id = f"{question.id}:{digest}"
        if question_id != state.get("question_id"):
            update = fresh(question_id, uuid4().hex, self._limits(granted))
            if "calibration" in state:
                growth = state["calibration"]["growth"]
                update["calibration"] = {**update["calibration"], "growth": growth}
        else:
            update = fold(state, self.setup.width, self.setup.decides, self.setup.gate.learn)
            if granted is not None:
                update["limits"] = more(state["limits"], self.affordable(as_budget(granted)))
                update |= State(interrupted=False, failures=0, wait=0.0, concluded=None)
        now = merged(state, update)
        sends = self._edge(now)
        if (best := now["best"]) is not None:
            live = self.lives[now["run_id"]]
            _announce(live.settle(best, now["spent"], now["limits"]))
        return Command(update={**update, "returned": None}, goto=sends)

    def _edge(self, state: State) -> list[Send]:
        """The budget edge: tasks with their slices, or the finish with its reason."""
        stop = _stop()
        try:
            planned = plan(self.setup, state, stop is not None and stop.is_set())
        except (BudgetTooSmall, NoAnswer):
            raise
        except Exception as error:  # a strategy of the user's: the answer in hand is not lost
            if state["best"] is None:
                raise
            log.warning("the strategy failed: %s", describe(error))
            planned = f"strategy: {describe(error)}"
        if not isinstance(planned, str):
            return [Send(task["move"]["kind"], task) for task in planned]
        final = {k: state[k] for k in ("best", "answer_id", "run_id")}
        if all(m.id != state["answer_id"] for m in state["messages"]):
            final["answer_id"] = None
        return [Send("finish", {**final, "stop_reason": planned})]

    def finish(self, state: State) -> dict[str, Any]:
        self.lives.forget(state["run_id"])
        return finish.answer(state)

    # --- the spokes

    def spoke(self, task: Task, config: RunnableConfig) -> State:
        with self.lives[task["run_id"]].active(task) as before:
            reply = call(self.setup.gate, _in_time(task, before), _config(task, config), _stop())
            outcome = self._absorbed(task, reply)
            if (scorer := self.setup.scorer) and "candidate" in outcome:
                try:
                    _rate(outcome, _verdict(scorer, task["question"], self._subject(outcome)))
                except Exception as error:
                    _unrated(outcome, error)
        return self._returned(task, outcome)

    async def aspoke(self, task: Task, config: RunnableConfig) -> State:
        with self.lives[task["run_id"]].active(task) as before:
            reply = await acall(
                self.setup.gate, _in_time(task, before), _config(task, config), _stop()
            )
            outcome = self._absorbed(task, reply)
            if (scorer := self.setup.scorer) and "candidate" in outcome:
                try:
                    _rate(
                        outcome, await _averdict(scorer, task["question"], self._subject(outcome))
                    )
                except Exception as error:
                    _unrated(outcome, error)
        return self._returned(task, outcome)

    def _absorbed(self, task: Task, reply: Reply) -> Outcome:
        """What the reply means, by the kind of its move."""
        outcome = Outcome(
            ordinal=task["ordinal"],
            move=task["move"],
            swapped=task["swapped"],
            spend=reply.spend,
            started=reply.started,
            ended=reply.ended_at,
            shape=task["shape"],
            reported=reply.reported,
            room=task["room"],
            starved=reply.starved,
            failed=reply.failed,
            interrupted=reply.interrupted,
            retry_after=reply.retry_after,
            errors=reply.errors,
        )
        if task["move"]["kind"] == "critique":
            if (judgement := critique.absorb(task, reply)) is not None:
                outcome["preferred"], outcome["why"] = judgement
            return outcome
        absorb = draft.absorb if task["move"]["kind"] == "draft" else refine.absorb
        if (candidate := absorb(task, reply, self.setup.asked)) is not None:
            outcome["candidate"] = candidate
        return outcome

    def _returned(self, task: Task, outcome: Outcome) -> State:
        outcome["ended"] = time.time()
        live = self.lives[task["run_id"]]
        live.charge(outcome["spend"])
        if "candidate" in outcome:
            _announce(live.offer(outcome["candidate"], task["limits"]))
        return State(returned=[outcome])

    def _subject(self, outcome: Outcome) -> Any:
        """What the scorer is shown: the answer, or the instance of the schema that it fits."""
        answer = outcome["candidate"]["answer"]
        if self.schema is None or not outcome["candidate"]["complete"]:
            return answer
        return self.schema.model_validate_json(answer)

    # --- budgets

    def _limits(self, granted: Budget | dict[str, Any] | None) -> Limits:
        granted = granted if granted is not None else _context().get("budget")
        if granted is None:
            if self.budget is None:
                raise ValueError(
                    "budget: none given; pass budget=Budget(tokens=8_000) to create_anytime_graph, "
                    "or put one into the input or the context"
                )
            return self.budget.limits()
        return self.affordable(as_budget(granted)).limits()

    def affordable(self, budget: Budget) -> Budget:
        """Raises ValueError for a budget in USD if the prices are not known."""
        if budget.usd is not None and self.setup.gate.prices is None:
            raise ValueError(
                f"budget usd={budget.usd}: the price of {self.setup.gate.name!r} is not known; pass "
                "prices=Prices(input=..., output=...) in dollars per million tokens, or install "
                "anytime-graph[prices]"
            )
        return budget


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


def _stop() -> Stop | None:
    return cast("Stop | None", _context().get("stop"))


def _config(task: Task, config: RunnableConfig) -> RunnableConfig:
    """How the call shows in traces. Drafts and refinements stream their tokens; the tokens of
    judgements, reviews and forced answers are nobody's reading."""
    kind = task["move"]["kind"]
    inner = kind == "critique" or task["move"].get("conclude") is not None
    tags = [*(config.get("tags") or []), kind, *([TAG_NOSTREAM] if inner else [])]
    metadata = {**(config.get("metadata") or {}), "ordinal": task["ordinal"]}
    return {**config, "run_name": kind, "tags": tags, "metadata": metadata}


def _in_time(task: Task, before: float) -> Task:
    """The task with the time that its siblings, run before it, have left it."""
    if "seconds" not in task["slice"] or not before:
        return task
    rest = max(0.0, task["slice"]["seconds"] - before)
    return {**task, "slice": {**task["slice"], "seconds": rest}}


def _announce(event: Improvement | None) -> None:
    if event is not None:
        get_stream_writer()(event)


def _verdict(scorer: Scorer, question: str, subject: Any) -> Verdict:
    verdict = scorer(question, subject)
    return _waited(verdict) if inspect.isawaitable(verdict) else verdict


async def _averdict(scorer: Scorer, question: str, subject: Any) -> Verdict:
    if is_async(scorer):
        return await cast(Awaitable[Verdict], scorer(question, subject))
    verdict = await asyncio.to_thread(scorer, question, subject)
    return await verdict if inspect.isawaitable(verdict) else verdict


def _waited(verdict: Awaitable[Verdict]) -> Verdict:
    """Wait for an async scorer in a thread of its own, where no event loop can be running."""
    outcome: list[Verdict] = []
    failure: list[Exception] = []

    async def wait() -> Verdict:
        return await verdict

    def run() -> None:
        try:
            outcome.append(asyncio.run(wait()))
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="scorer")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _rate(outcome: Outcome, verdict: Verdict) -> None:
    score = as_score(verdict)
    candidate: Candidate = {
        **outcome["candidate"],
        "score": score.value,
        "feedback": score.feedback,
    }
    outcome["candidate"] = candidate


def _unrated(outcome: Outcome, error: Exception) -> None:
    """A scorer that fails costs this score, not the run."""
    what = str(error) if isinstance(error, BadScore) else describe(error)
    outcome["errors"].append(f"scorer on candidate {outcome['ordinal']}: {what}")
    log.debug("scorer failed", exc_info=error)
