"""A batch on the embedded model against shares of the same budget for each question, and against a page of
code that drafts for each open question in turn until the budget is spent.

`python -m tests.bench.batch_embedded [RUNS [QUESTIONS]]`: each run has other questions of three kinds of sums.
"Checker": a scorer knows the right answer. "Vote": nothing does, and equal answers decide. The page of code
may overspend by its last call. The nth draft of a question has the same seed in all three, so mostly the same
text. In brackets are the tokens that were spent for a question; the last columns are the difference in
accuracy to the shares, with a 95 % interval over questions.
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
_CELLS = ((True, 200), (True, 400), (False, 400))
"""Whether a checker decides, and tokens for each question."""


class _Result(NamedTuple):
    """Whether each question was answered rightly, and the tokens spent for all."""

    right: list[float]
    spent: int


def _questions(run: int, count: int) -> list[Question]:
    tasks = (
        load(f"reasoning_gym:{name}", count=count // len(_TASKS), seed=run + 1, **_SUMS, **own)
        for name, own in _TASKS.items()
    )
    return list({q.prompt: q for task in tasks for q in task.questions}.values())


def _is_right(question: Question, answer: str | None) -> float:
    return answer is not None and as_score(question.scorer(question.prompt, answer)).value == 1.0


def _graph(questions: Sequence[Question], model: ChatOpenAI, checker: bool) -> Any:
    by_text = {q.prompt: q for q in questions}
    scorer = (lambda text, answer: by_text[text].scorer(text, answer)) if checker else None
    return create_anytime_graph(model, answer=figure, scorer=scorer)


def _apart(questions: Sequence[Question], model: ChatOpenAI, checker: bool, share: int) -> _Result:
    app, right, spent = _graph(questions, model, checker).compile(), list[float](), 0
    for question in questions:
        try:
            out = app.invoke({"messages": question.conversation, "budget": Budget(tokens=share)})
        except (BudgetTooSmall, NoAnswer) as failure:
            spent += failure.spent["tokens"] if isinstance(failure, NoAnswer) else 0
            right.append(0.0)
            continue
        right.append(_is_right(question, out["best"]["answer"]))
        spent += out["spent"]["tokens"]
    return _Result(right, spent)


def _together(
    questions: Sequence[Question], model: ChatOpenAI, checker: bool, total: int
) -> _Result:
    app = _graph(questions, model, checker).compile(checkpointer=InMemorySaver())
    done = batch(app, [q.conversation for q in questions], Budget(tokens=total), workers=2)
    answers = [q.answer for q in done.questions]
    right = [_is_right(q, answer) for q, answer in zip(questions, answers, strict=True)]
    return _Result(right, done.spent["tokens"])


def _in_turn(
    questions: Sequence[Question], model: ChatOpenAI, checker: bool, total: int
) -> _Result:
    """The page of code."""
    answers: list[list[str | None]] = [[] for _ in questions]
    spent = 0
    rest = list(range(len(questions)))
    while rest and spent < total:
        at = rest.pop(0)
        seed = (model.seed or 0) + len(answers[at])
        reply = model.bind(seed=seed).invoke(questions[at].conversation)
        spent += reply.usage_metadata["total_tokens"] if reply.usage_metadata else 0
        answers[at].append(figure(str(reply.text)))
        if not (checker and _is_right(questions[at], answers[at][-1])):
            rest.append(at)
    if checker:
        return _Result([float(at not in rest) for at in range(len(questions))], spent)
    voted = [Counter(a for a in found if a).most_common(1) for found in answers]
    right = [_is_right(q, v[0][0] if v else None) for q, v in zip(questions, voted, strict=True)]
    return _Result(right, spent)


def main(runs: int = 4, count: int = 30) -> None:
    ways: dict[str, Callable[..., _Result]] = {
        "shares": lambda *of: _apart(*of[:-1], of[-1] // len(of[0])),
        "batch": _together,
        "in turn": _in_turn,
    }
    table = Table("decides", "tokens a question", box=None, pad_edge=False)
    for name in (*ways, "batch: more", "in turn: more"):
        table.add_column(name, justify="right")
    for checker, share in track(_CELLS, "On the embedded model ..."):
        found = {name: list[_Result]() for name in ways}
        for run in range(runs):
            questions, model = _questions(run, count), local_model(max_tokens=64, seed=1_000 * run)
            for name, way in ways.items():
                found[name].append(way(questions, model, checker, share * len(questions)))
        right = {name: [x for r in results for x in r.right] for name, results in found.items()}
        spent = {name: sum(r.spent for r in results) for name, results in found.items()}
        more = [paired(right[name], right["shares"]) for name in ("batch", "in turn")]
        table.add_row(
            "checker" if checker else "vote",
            f"{share:,}",
            *(f"{mean(right[n]):.2f} ({spent[n] / len(right[n]):,.0f})" for n in ways),
            *(f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]" for gain, low, high, _ in more),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
