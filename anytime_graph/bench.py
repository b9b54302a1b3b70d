"""Benchmarks: strategies on a task's questions, at equal budgets, whatever they spend it on.

Protocol "run": what the graph returns at each budget, as a user lives it. Every run goes through a
ledger, so that a benchmark that was killed goes on where it was and pays for nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, cast

from langchain_core.language_models import BaseChatModel
from typing_extensions import TypedDict

from anytime_graph.budget import Budget, BudgetTooSmall, NoAnswer, Prices, Spend
from anytime_graph.checkpoints import Checkpoints, Ledger
from anytime_graph.checkpoints.preferences import Namespace, memory_of
from anytime_graph.graph import create_anytime_graph
from anytime_graph.pairs import Example
from anytime_graph.scoring import as_score
from anytime_graph.strategies import STRATEGIES
from anytime_graph.tasks import Question, Task

Decide = Literal["scorer", "judge", "vote"]
MEMORY = "+memory"


@dataclass(frozen=True)
class Cell:
    """One run: a strategy (with "+memory" behind its name if it may recall) on a question, within
    a budget, with a seed."""

    strategy: str
    budget: Budget
    question: Question
    seed: int

    @property
    def key(self) -> str:
        """What tells it from all other cells of the same task and model."""
        limits = json.dumps(self.budget.limits(), sort_keys=True)
        return f"{self.strategy} {limits} {self.question.id} {self.seed}"


class Record(TypedDict):
    """What a cell came to. score: the true one of the answer that was returned, 0 if there was none.
    oracle: the best true score of all its answers. curve: (tokens spent, score of the answer held,
    best score so far) whenever one of the two scores changed."""

    task: str
    model: str
    decide: Decide
    strategy: str
    limits: dict[str, float]
    question: str
    seed: int
    score: float
    oracle: float
    curve: list[tuple[int, float, float]]
    spent: Spend
    judge_tokens: int
    stop_reason: str


def cells(
    task: Task, strategies: Sequence[str], budgets: Sequence[Budget], seeds: Sequence[int]
) -> list[Cell]:
    """All cells, question by question, so that an early end leaves whole comparisons. Raises
    ValueError for a strategy that there is not."""
    for name in strategies:
        if name.removesuffix(MEMORY) not in STRATEGIES:
            raise ValueError(f"strategy {name!r}: one of {', '.join(STRATEGIES)}, or NAME{MEMORY}")
    return [
        Cell(strategy, budget, question, seed)
        for seed, question in product(seeds, task.questions)
        for budget, strategy in product(budgets, strategies)
    ]


@dataclass(frozen=True)
class Bench:
    """What all cells share. decide: who chooses the answer to return; the true score is measured
    in any case. lessons: the namespace of the memory's pairs; it is read, never written."""

    task: Task
    model: BaseChatModel
    checkpoints: Checkpoints
    decide: Decide = "scorer"
    prices: Prices | None = None
    lessons: Namespace = ()

    def run(self, cell: Cell) -> Record:
        """Run the cell, or go on with it where it was."""
        truth = _Truth(cell.question)
        graph = create_anytime_graph(
            seeded(self.model, cell),
            budget=cell.budget,
            scorer=truth if self.decide == "scorer" else self.decide,
            strategy=cell.strategy.removesuffix(MEMORY),
            answer=self.task.answer,
            prices=self.prices,
            ledger=self.checkpoints.ledger,
            memory=_ReadOnly(self.checkpoints.ledger) if MEMORY in cell.strategy else None,
        )
        app = graph.compile(checkpointer=self.checkpoints.saver)
        name = str(getattr(self.model, "model_name", ""))
        what = f"{name} {self.task.name} {self.decide} {cell.key}"
        thread = f"bench-{hashlib.sha256(what.encode()).hexdigest()[:24]}"
        reason, spent, judged = "", None, 0
        try:
            out = app.invoke(
                {"messages": [("user", cell.question.prompt)]},
                {"configurable": {"thread_id": thread}, "recursion_limit": 10_000},
                context={"namespace": list(self.lessons)},
            )
        except BudgetTooSmall:
            reason = "too small"
        except NoAnswer as failure:
            reason, spent = "no answer", failure.spent
        else:
            reason, spent = out["stop_reason"], out["spent"]
            judged = out["judging"]["spent"]["tokens"]
        curve = self._curve(thread, truth)
        return Record(
            task=self.task.name,
            model=name,
            decide=self.decide,
            strategy=cell.strategy,
            limits=cell.budget.limits(),
            question=cell.question.id,
            seed=cell.seed,
            score=curve[-1][1] if curve else 0.0,
            oracle=curve[-1][2] if curve else 0.0,
            curve=curve,
            spent=spent or cast(Spend, {}),
            judge_tokens=judged,
            stop_reason=reason,
        )

    def _curve(self, thread: str, truth: _Truth) -> list[tuple[int, float, float]]:
        ledger = self.checkpoints.ledger
        runs = ledger.runs(thread)
        if not runs:
            return []
        answers = ledger.answers(runs[-1]["id"])
        scores = {a["ordinal"]: truth.of(a["answer"]) for a in answers}
        arrived = [(a["tokens"], "any", scores[a["ordinal"]]) for a in answers]
        held_since = [(p["tokens"], "held", scores[p["ordinal"]]) for p in ledger.curve(thread)]
        curve: list[tuple[int, float, float]] = []
        held = best = 0.0
        for tokens, kind, score in sorted(arrived + held_since, key=lambda e: e[0]):
            held, best = (score if kind == "held" else held), max(best, score)
            if curve and curve[-1][0] == tokens:
                curve.pop()
            if not curve or curve[-1][1:] != (held, best):
                curve.append((tokens, held, best))
        return curve


class _Truth:
    """The question's scorer, for answers as texts."""

    def __init__(self, question: Question) -> None:
        self.question = question

    def __call__(self, question: str, answer: Any) -> Any:
        return self.question.scorer(question, answer)

    def of(self, answer: str | None) -> float:
        if not answer:
            return 0.0
        verdict = self.question.scorer(self.question.prompt, answer)
        return as_score(verdict).value


class _ReadOnly:
    """A ledger's memory for questions that must not learn from one another."""

    def __init__(self, ledger: Ledger) -> None:
        self._memory = memory_of(ledger)

    def recall(
        self, namespace: Namespace, question: str, limit: int = 3, *, besides: Collection[int] = ()
    ) -> list[Example]:
        return self._memory.recall(namespace, question, limit, besides=besides)

    def learn(self, *args: Any) -> None: ...

    def forget(self, *args: Any, **options: Any) -> int:
        return 0


def seeded(model: BaseChatModel, cell: Cell) -> BaseChatModel:
    """The model with a seed of the question's own, the same for all strategies: what they ask in
    the same words is answered in the same words."""
    if "seed" not in type(model).model_fields:
        return model
    seed = zlib.crc32(f"{cell.question.id} {cell.seed}".encode()) % 2**30
    return model.model_copy(update={"seed": seed})
