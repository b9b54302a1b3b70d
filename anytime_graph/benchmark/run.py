"""The protocol "run": measures the answer that the graph returns at each budget."""

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
    no_gains,
)
from anytime_graph.benchmark.tape import CellModel, NotRecorded
from anytime_graph.budget import Budget, BudgetTooSmall, NoAnswer, Prices, nothing
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.memory import Namespace, memory_of
from anytime_graph.graph import Context, create_anytime_graph
from anytime_graph.interrupt import contained
from anytime_graph.metrics import mean
from anytime_graph.models.providers import describe
from anytime_graph.run.calls import concluded, kind_of
from anytime_graph.run.pairs import Example, Pair
from anytime_graph.run.upgrade import planned_call
from anytime_graph.scoring import Score, Scorer, as_score
from anytime_graph.tasks import Question, Task

log = logging.getLogger(__name__)

NAMESPACE: Namespace = ("benchmark",)


class Unmeasured(RuntimeError):
    """A cell was not measured, as calls failed or it was interrupted. It may be run again."""


class Lost(Unmeasured):
    """The worker of a cell died, which is not the provider's failure."""


@dataclass(frozen=True)
class Lesson:
    """The preference pairs and principles from a training question."""

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
        return cell.budgets[0], cell.budgets[0] * dearest_price(self.prices) / 1e6

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Lesson | None]:
        """Run the cell from its beginning; calls that were bought before are replayed. Raises
        Unmeasured, or NotRecorded if a replay lacks a call."""
        scorer = SafeScorer(cell.question)
        decide = cell.settings.decide
        self.ledger.forget(cell.name)
        failures = self.ledger.failures
        graph = create_anytime_graph(
            model.model(),
            budget=Budget(tokens=cell.budgets[0]),
            scorer=scorer if decide == "scorer" else decide,
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
        reason, spent, judged, lesson = "", nothing(), 0, None
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
            lesson = Lesson(cell.question.prompt, out["pairs"], out["principles"])
        require_measured(model)
        if self.ledger.failures > failures:  # a call was not made, and the run continued without it
            raise Unmeasured(self.ledger.last_failure)
        measured = self._answers_measured(cell.name, scorer)
        record = record_of(
            cell,
            model,
            **measured,
            spent=spent,
            judging=judged,
            unscored=scorer.unscored,
            pairs=len(lesson.pairs) if lesson else 0,
            stop_reason=reason,
        )
        return record, lesson

    def _answers_measured(self, thread: str, scorer: SafeScorer) -> dict[str, Any]:
        """What the answers of the thread's last run are worth, as fields of its record."""
        runs = self.ledger.runs(thread)
        answers = self.ledger.answers(runs[-1]["id"]) if runs else []
        points = self.ledger.curve(thread) if runs else []
        scores = {a["ordinal"]: scorer.value(a["answer"]) for a in answers}
        arrived = [(a["tokens"], "any", scores[a["ordinal"]]) for a in answers]
        held_since = [(p["tokens"], "held", scores[p["ordinal"]]) for p in points]
        curve: list[tuple[int, float, float]] = []
        held = best = 0.0
        for tokens, kind, score in sorted(arrived + held_since, key=lambda e: e[0]):
            held, best = (score if kind == "held" else held), max(best, score)
            if curve and curve[-1][0] == tokens:
                curve.pop()
            if not curve or curve[-1][1:] != (held, best):
                curve.append((tokens, held, best))
        texts = {a["ordinal"]: a["answer"] for a in answers}
        return {
            "curve": curve,
            "scores": [held],
            "oracle": [best],
            "brought": gains_by_kind(self.ledger.calls(runs[-1]["id"]) if runs else [], scores),
            "chance": mean(list(scores.values())) if scores else 0.0,
            **scorer.seen([texts[p["ordinal"]] for p in points[-1:]] or [None]),
        }


def gains_by_kind(
    calls: Sequence[Mapping[str, Any]], scores: Mapping[int, float]
) -> dict[str, CallGains]:
    """The gains of a run's calls after the first OPENING, by kind. calls: rows of the ledger, as
    planned. scores: those of the answers, by ordinal."""
    by_kind: dict[str, CallGains] = {}
    best = 0.0
    for n, call in enumerate(calls):
        score = scores.get(call["ordinal"], 0.0)
        if n >= OPENING:
            move = planned_call(call)["move"]
            kind = "forced answer" if concluded(move) is not None else kind_of(move)
            gains = by_kind.setdefault(kind, no_gains())
            gains["calls"] += 1
            gains["scores"] += score
            gains["better"] += score > best
            gains["rise"] += max(0.0, score - best)
            gains["tokens"] += call["tokens"]
        best = max(best, score)
    return by_kind


def require_measured(model: CellModel) -> None:
    """Check that a result is not due to failed calls or to a stop, which can look like many things.
    Raises Unmeasured or NotRecorded."""
    if model.missing:
        raise NotRecorded(f"not in the recording: {model.missing[0]}")
    if model.stop is not None and model.stop.is_set():
        raise Unmeasured("interrupted")
    if model.failures:
        raise Unmeasured(model.failures[-1])


def record_of(cell: Cell, model: CellModel, **measured: Any) -> Record:
    """The record of a cell: its identity, defaults, and what was measured."""
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
    """The scorer of a question, which may fail, for example on a reply that was cut. unscored: how
    often it failed on an answer, which then counts 0."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.unscored = 0

    def __call__(self, question: str, answer: Any) -> Any:
        return self.question.scorer(question, answer)

    def value(self, answer: str | None) -> float:
        """The true score."""
        scorer = self.question.quality or self.question.scorer
        return self._verdict(scorer, answer).value if answer else 0.0

    def verdict(self, answer: str) -> Score:
        """What the run is told."""
        return self._verdict(self.question.scorer, answer)

    def seen(self, answers: Sequence[str | None]) -> dict[str, Any]:
        """The scorer's own scores as a field of a record, if they differ from the true ones."""
        if self.question.quality is None:
            return {}
        return {"seen": [self.verdict(answer).value if answer else 0.0 for answer in answers]}

    def _verdict(self, scorer: Scorer, answer: str) -> Score:
        try:
            with contained():
                verdict: Any = scorer(self.question.prompt, answer)
            return as_score(verdict)
        except Exception as error:
            log.warning("the scorer failed: %s", describe(error))
            self.unscored += 1
            return Score(0.0)


class FixedMemory:
    """A memory of the lessons of training questions, in their order. It learns nothing more."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self.lessons = lessons
        self._memory = memory_of(InMemoryStore())
        for n, lesson in enumerate(lessons):
            self._memory.learn(NAMESPACE, lesson.question, lesson.pairs, lesson.principles, n)

    def recall(
        self, namespace: Namespace, question: str, limit: int = 3, *, besides: Collection[int] = ()
    ) -> list[Example]:
        return self._memory.recall(namespace, question, limit)

    def learn(self, *args: Any) -> None: ...

    def forget(self, *args: Any, **options: Any) -> int:
        return 0


def dearest_price(prices: Prices | None) -> float:
    """The higher of the input and output prices, in USD per million tokens; 0 without prices."""
    return max(prices.input, prices.output) if prices else 0.0
