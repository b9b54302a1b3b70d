"""Fills a memory of preferences from example questions, before the first real question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langgraph.store.base import BaseStore

from anytime_graph.batch.series import Progress, ask_each, distinct, thread_name
from anytime_graph.budget import Budget, Prices, Spend, total
from anytime_graph.checkpoints import Checkpoints, Ledger
from anytime_graph.checkpoints.memory import Memory, Namespace, encoded, memory_of
from anytime_graph.graph import create_anytime_graph
from anytime_graph.interrupt import StopSignal
from anytime_graph.planning.moves import Strategy
from anytime_graph.run.pairs import Example
from anytime_graph.scoring import Judge, Scorer


@dataclass(frozen=True)
class Warmed:
    """A question that was asked. score: that of its best answer, in [0, 1]; None without a scorer.
    pairs: how many were learned from it. error: why it has no answer."""

    question: str
    thread: str
    score: float | None
    pairs: int
    stop_reason: str | None
    spent: Spend
    error: str | None


@dataclass(frozen=True)
class WarmUp:
    """The result of a warm-up. questions: those that were asked, in order. left: how many were not
    asked, because it was stopped. spent: the cost of all questions, including earlier runs of the
    same warm-up."""

    questions: tuple[Warmed, ...]
    left: int

    @property
    def spent(self) -> Spend:
        return total(q.spent for q in self.questions)

    @property
    def pairs(self) -> int:
        return sum(q.pairs for q in self.questions)


def warm_up(
    questions: Iterable[str],
    scorer: Scorer | Judge | Literal["judge"],
    budget: Budget,
    *,
    model: Any,
    checkpoints: Checkpoints,
    memory: Ledger | BaseStore | Memory | None = None,
    namespace: Namespace = (),
    strategy: str | Strategy = "best_of_n",
    answer: Any = "tags",
    prices: Prices | None = None,
    judge: Judge | None = None,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
    keys: Mapping[str, str] | None = None,
) -> WarmUp:
    """Answer example questions and remember which answers were better, for later questions.

    scorer: (question, answer) -> score in [0, 1]; with `lambda q, a: checks[q](a)` each question has
    its own check. With a Judge or "judge" the model compares answers. budget: for each question.
    memory: the memory to fill; default: the ledger of `checkpoints`. namespace: whose pairs these
    are; pass the same in the context of later questions. model, strategy, answer, prices, judge: as
    for create_anytime_graph. progress: called with (questions that are over, all). stop: an event
    that ends the warm-up early; the next warm-up asks the rest. keys: whose the questions are, for quotas and
    bills, such as {"user": "ann"}.

    No question is shown the pairs of another, so their order does not matter. Each has its own thread,
    named by namespace and question. A second run, for example after a crash, continues the question
    that was cut short and pays nothing for those that are over, even if other arguments have changed.
    A question that no call answered is listed in the result; the next run asks it again with a full
    budget. For sync code; if an event loop is running, call it in a thread.

    Raises ValueError for a bad argument, BudgetTooSmall, LedgerError, ThreadBusy.
    """
    ledger, space = checkpoints.ledger, encoded(namespace)
    if ledger.record != "all" and memory in (None, ledger):
        raise ValueError('checkpoints: a memory needs texts; open them with record="all"')
    if not (callable(scorer) or isinstance(scorer, Judge) or scorer == "judge"):
        raise ValueError(f"scorer={scorer!r}: a function (question, answer) -> score, or 'judge'")
    graph = create_anytime_graph(
        model,
        budget=budget,
        scorer=scorer,
        strategy=strategy,
        answer=answer,
        prices=prices,
        judge=judge,
        ledger=ledger,
        memory=_WriteOnly(memory_of(ledger if memory is None else memory)),
    )
    app = graph.compile(checkpointer=checkpoints.saver).with_config(configurable=dict(keys or {}))
    threads = [(thread_name("warm-up", space, q), q) for q in distinct(questions)]
    context: Any = {"namespace": list(namespace)}
    warmed = [
        _warmed(ledger, *asked)
        for asked in ask_each(app, ledger, threads, budget, context, stop, progress)
    ]
    return WarmUp(tuple(warmed), left=len(threads) - len(warmed))


def _warmed(ledger: Ledger, thread: str, question: str, error: str | None) -> Warmed:
    run, best = ledger.runs(thread)[-1], ledger.best(thread)
    return Warmed(
        question=question,
        thread=thread,
        score=best["score"] if best else None,
        pairs=len(ledger.pairs(run["id"])),
        stop_reason=run["stop_reason"],
        spent=run["spent"],
        error=error,
    )


class _WriteOnly:
    """A memory that recalls nothing, so that no question is shown the pairs of another."""

    def __init__(self, memory: Memory) -> None:
        self.learn, self.forget = memory.learn, memory.forget

    def recall(self, *args: Any, **options: Any) -> list[Example]:
        return []
