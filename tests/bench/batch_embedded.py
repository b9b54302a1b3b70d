"""A batch on the embedded model, at equal spend against a budget for each question, and against a page of
code that drafts for each open question in turn.

`python -m tests.bench.batch_embedded [RUNS [QUESTIONS]]`: each run has other questions of three kinds of sums.
"Checker": a scorer knows the right answer. "Vote": nothing does, and equal answers decide. What the shares
have spent is the budget of the batch, and of the page of code, which may overspend by its last call.
The last columns are the difference in right answers to the shares, with a 95 % interval over runs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console
from rich.progress import track
from rich.table import Table

from anytime_graph import Budget, BudgetTooSmall, NoAnswer, create_anytime_graph
from anytime_graph.batch import batch
from anytime_graph.local import local_model
from anytime_graph.metrics import paired
from anytime_graph.scoring import as_score
from anytime_graph.tasks import Question, load
from anytime_graph.tasks.gym import figure

_SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "examples": 3}
_TASKS: dict[str, dict[str, Any]] = {
    "chain_sum": {"max_digits": 2},
    "products": {"max_digits": 1},
    "basic_arithmetic": {"max_digits": 1},
}
_SHARES = (400, 1_600)


class _Result(NamedTuple):
    right: float
    spent: float


def _questions(run: int, count: int) -> list[Question]:
    tasks = (
        load(f"reasoning_gym:{name}", count=count // len(_TASKS), seed=run + 1, **_SUMS, **own)
        for name, own in _TASKS.items()
    )
    return list({q.prompt: q for task in tasks for q in task.questions}.values())


def _is_right(question: Question, answer: str | None) -> bool:
    return answer is not None and as_score(question.scorer(question.prompt, answer)).value == 1.0


def _graph(questions: Sequence[Question], model: ChatOpenAI, checker: bool) -> Any:
    by_text = {q.prompt: q for q in questions}
    scorer = (lambda text, answer: by_text[text].scorer(text, answer)) if checker else None
    return create_anytime_graph(model, answer=figure, scorer=scorer)


def _apart(questions: Sequence[Question], model: ChatOpenAI, checker: bool, share: int) -> _Result:
    app, right, spent = _graph(questions, model, checker).compile(), 0, 0
    for question in questions:
        try:
            out = app.invoke({"messages": question.conversation, "budget": Budget(tokens=share)})
        except (BudgetTooSmall, NoAnswer) as failure:
            spent += failure.spent["tokens"] if isinstance(failure, NoAnswer) else 0
            continue
        right += _is_right(question, out["best"]["answer"])
        spent += out["spent"]["tokens"]
    return _Result(right, spent)


def _together(
    questions: Sequence[Question], model: ChatOpenAI, checker: bool, total: int
) -> _Result:
    app = _graph(questions, model, checker).compile(checkpointer=InMemorySaver())
    done = batch(app, [q.conversation for q in questions], Budget(tokens=total), workers=2)
    answers = [q.answer for q in done.questions]
    right = sum(_is_right(q, answer) for q, answer in zip(questions, answers, strict=True))
    return _Result(right, done.spent["tokens"])


def _in_turn(
    questions: Sequence[Question], model: ChatOpenAI, checker: bool, total: int
) -> _Result:
    """The page of code."""
    answers: list[list[str | None]] = [[] for _ in questions]
    spent, turns = 0, 0
    rest = list(range(len(questions)))
    while rest and spent < total:
        at = rest.pop(0)
        reply = model.bind(seed=turns).invoke(questions[at].conversation)
        spent += reply.usage_metadata["total_tokens"] if reply.usage_metadata else 0
        answers[at].append(figure(str(reply.text)))
        turns += 1
        if not (checker and _is_right(questions[at], answers[at][-1])):
            rest.append(at)
    if checker:
        return _Result(len(questions) - len(rest), spent)
    voted = [Counter(a for a in found if a).most_common(1) for found in answers]
    right = [_is_right(q, v[0][0] if v else None) for q, v in zip(questions, voted, strict=True)]
    return _Result(sum(right), spent)


def main(runs: int = 5, count: int = 60) -> None:
    model = local_model(max_tokens=64)
    rivals: dict[str, Callable[..., _Result]] = {"batch": _together, "in turn": _in_turn}
    table = Table("decides", "tokens a question", box=None, pad_edge=False)
    for name in ("shares: right", "spent", *rivals, *(f"{name}: more right" for name in rivals)):
        table.add_column(name, justify="right")
    cells = [(checker, share) for checker in (True, False) for share in _SHARES]
    for checker, share in track(cells, "On the embedded model ..."):
        apart, others = [], {name: list[_Result]() for name in rivals}
        for run in range(runs):
            questions = _questions(run, count)
            apart.append(_apart(questions, model, checker, share))
            for name, rival in rivals.items():
                others[name].append(rival(questions, model, checker, int(apart[-1].spent)))
        differences = [
            paired([r.right for r in results], [r.right for r in apart])
            for results in others.values()
        ]
        table.add_row(
            "checker" if checker else "vote",
            f"{share:,}",
            f"{mean(r.right for r in apart):.1f}",
            f"{mean(r.spent for r in apart):,.0f}",
            *(
                f"{mean(r.right for r in results):.1f} ({mean(r.spent for r in results):,.0f})"
                for results in others.values()
            ),
            *(f"{more:+.1f} [{low:+.1f}, {high:+.1f}]" for more, low, high, _ in differences),
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
