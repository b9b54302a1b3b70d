"""The protocol "run": what the graph returns at each budget, as a user lives it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.store.memory import InMemoryStore

from anytime_graph.benchmark.cells import (
    MEMORY,
    OPENING,
    PREPARATION,
    CallGains,
    Cell,
    Record,
    nought,
)
from anytime_graph.benchmark.tape import CellModel, NotRecorded
from anytime_graph.budget import Budget, BudgetTooSmall, NoAnswer, Prices, nothing
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.memory import Namespace, memory_of
from anytime_graph.graph import Context, create_anytime_graph
from anytime_graph.models.providers import describe
from anytime_graph.run.calls import concluded, kind_of
from anytime_graph.run.pairs import Example, Pair
from anytime_graph.run.upgrade import planned_call
from anytime_graph.scoring import Score, as_score
from anytime_graph.tasks import Question, Task

log = logging.getLogger(__name__)

NAMESPACE: Namespace = ("benchmark",)


class Unmeasured(RuntimeError):
    """A cell came to nothing for the provider's failures, or was interrupted; it may be run again."""


class Lost(Unmeasured):
    """Its worker died, which says nothing of the provider."""


@dataclass(frozen=True)
class Learned:
    """What a training question taught."""

    question: str
    pairs: Sequence[Pair]
    principles: Sequence[str]


@dataclass(frozen=True)
class RunProtocol:
    """Measures cells of the protocol "run". Each is a thread of the ledger."""

    task: Task
    ledger: Ledger
    prices: Prices | None = None
    stop: threading.Event | None = None

    def ceiling(self, cell: Cell) -> tuple[float, float]:
        """The most that a cell can cost, in tokens and USD."""
        return cell.budgets[0], cell.budgets[0] * dearest(self.prices) / 1e6

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Learned | None]:
        """Run the cell from its beginning; what was bought for it before is on the tape. Raises
        Unmeasured, or NotRecorded in a replay that misses a call."""
        truth = SafeScorer(cell.question)
        decide = cell.settings.decide
        self.ledger.forget(cell.name)
        failures = self.ledger.failures
        graph = create_anytime_graph(
            model.model(),
            budget=Budget(tokens=cell.budgets[0]),
            scorer=truth if decide == "scorer" else decide,
            strategy=cell.strategy.removesuffix(MEMORY),
            answer=self.task.answer,
            prices=self.prices,
            ledger=self.ledger,
            memory=memory,
        )
        config: RunnableConfig = {
            "configurable": {"thread_id": cell.name},
            "recursion_limit": 10_000,
        }
        reason, spent, judged, learned = "", nothing(), 0, None
        try:
            out: Any = graph.compile().invoke(
                {"messages": cell.question.conversation},
                config,
                context=Context(namespace=list(NAMESPACE), stop=self.stop),
            )
        except BudgetTooSmall:
            reason = "too small"
        except NoAnswer as failure:
            reason, spent = "no answer", failure.spent
        else:
            reason, spent = out["stop_reason"], out["spent"]
            judged = out["judging"]["spent"]["tokens"]
            learned = Learned(cell.question.prompt, out["pairs"], out["principles"])
        check(model)
        if self.ledger.failures > failures:  # a call was not made, and the run went on to others
            raise Unmeasured(self.ledger.last_failure)
        curve, kinds = self._course(cell.name, truth)
        record = record_of(
            cell,
            model,
            scores=[curve[-1][1] if curve else 0.0],
            oracle=[curve[-1][2] if curve else 0.0],
            curve=curve,
            spent=spent,
            judging=judged,
            unscored=truth.unscored,
            pairs=len(learned.pairs) if learned else 0,
            stop_reason=reason,
            brought=kinds,
        )
        return record, learned

    def _course(
        self, thread: str, truth: SafeScorer
    ) -> tuple[list[tuple[int, float, float]], dict[str, CallGains]]:
        """The curve of the thread's last run, and what its calls brought."""
        runs = self.ledger.runs(thread)
        if not runs:
            return [], {}
        answers = self.ledger.answers(runs[-1]["id"])
        scores = {a["ordinal"]: truth.of(a["answer"]) for a in answers}
        arrived = [(a["tokens"], "any", scores[a["ordinal"]]) for a in answers]
        held_since = [
            (p["tokens"], "held", scores[p["ordinal"]]) for p in self.ledger.curve(thread)
        ]
        curve: list[tuple[int, float, float]] = []
        held = best = 0.0
        for tokens, kind, score in sorted(arrived + held_since, key=lambda e: e[0]):
            held, best = (score if kind == "held" else held), max(best, score)
            if curve and curve[-1][0] == tokens:
                curve.pop()
            if not curve or curve[-1][1:] != (held, best):
                curve.append((tokens, held, best))
        return curve, brought(self.ledger.calls(runs[-1]["id"]), scores)


def brought(
    calls: Sequence[Mapping[str, Any]], scores: Mapping[int, float]
) -> dict[str, CallGains]:
    """By kind, what the calls of a run brought behind the first OPENING. calls: rows of the ledger, as
    planned; scores: of the answers, by ordinal."""
    found: dict[str, CallGains] = {}
    best = 0.0
    for n, call in enumerate(calls):
        score = scores.get(call["ordinal"], 0.0)
        if n >= OPENING:
            move = planned_call(call)["move"]
            kind = "forced answer" if concluded(move) is not None else kind_of(move)
            of = found.setdefault(kind, nought())
            of["calls"] += 1
            of["scores"] += score
            of["better"] += score > best
            of["rise"] += max(0.0, score - best)
            of["tokens"] += call["tokens"]
        best = max(best, score)
    return found


def check(model: CellModel) -> None:
    """Whether what a cell came to is a measurement of anything but the provider's failures, or of a
    stop, which can look like many things. Raises Unmeasured or NotRecorded."""
    if model.missing:
        raise NotRecorded(f"not in the recording: {model.missing[0]}")
    if model.stop is not None and model.stop.is_set():
        raise Unmeasured("interrupted")
    if model.failures:
        raise Unmeasured(model.failures[-1])


def record_of(cell: Cell, model: CellModel, **measured: Any) -> Record:
    own: Mapping[str, Any] = {
        "cell": cell.name,
        "protocol": cell.settings.protocol,
        "task": cell.settings.task,
        "model": model.facts.name,
        "decide": cell.settings.decide,
        "strategy": PREPARATION if cell.prepares else cell.strategy,
        "question": cell.question.id,
        "seed": cell.seed,
        "budgets": list(cell.budgets),
        "curve": [],
        "judging": 0,
        "answering": 0,
        "unscored": 0,
        "pairs": 0,
    }
    return cast("Record", {**own, **measured})


class SafeScorer:
    """The question's scorer, for answers as texts. unscored: answers that it failed on, which
    count 0, as a user's scorer may take for granted that a reply was not cut."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.unscored = 0

    def __call__(self, question: str, answer: Any) -> Any:
        return self.question.scorer(question, answer)

    def of(self, answer: str | None) -> float:
        return self.verdict(answer).value if answer else 0.0

    def verdict(self, answer: str) -> Score:
        try:
            verdict: Any = self.question.scorer(self.question.prompt, answer)
            return as_score(verdict)
        except Exception as error:
            log.warning("the scorer failed: %s", describe(error))
            self.unscored += 1
            return Score(0.0)


class FixedMemory:
    """A memory of what training questions taught, in their order; it learns from no others."""

    def __init__(self, learned: Sequence[Learned]) -> None:
        self.learned = learned
        self._memory = memory_of(InMemoryStore())
        for n, one in enumerate(learned):
            self._memory.learn(NAMESPACE, one.question, one.pairs, one.principles, n)

    def recall(
        self, namespace: Namespace, question: str, limit: int = 3, *, besides: Collection[int] = ()
    ) -> list[Example]:
        return self._memory.recall(namespace, question, limit)

    def learn(self, *args: Any) -> None: ...

    def forget(self, *args: Any, **options: Any) -> int:
        return 0


def dearest(prices: Prices | None) -> float:
    """USD for a million tokens of the dearer kind; 0 if nothing is known."""
    return max(prices.input, prices.output) if prices else 0.0
