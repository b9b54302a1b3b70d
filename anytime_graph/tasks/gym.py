"""The tasks of the optional package `reasoning-gym` (pip install reasoning-gym)."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from importlib import import_module
from typing import Any

from anytime_graph.scoring import Score
from anytime_graph.tasks.answers import final, is_number, numeric, same, tail
from anytime_graph.tasks.task import Lazy, Question, Task, whole_number
from anytime_graph.text import meant

EVALUATED = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Tasks whose graders run a model's text as code, with `eval` or with sympy's parser."""
_EXAMPLES = 1_000_003
"""The seed of solved questions, far from the seeds of the questions asked."""


def reasoning_gym(
    name: str, *, count: int = 50, seed: int = 0, examples: int = 0, **parameters: Any
) -> Task:
    """A task of Reasoning Gym (Stojanovski et al. 2025, arXiv 2505.24760), by its name there.
    `parameters` are those of the task, such as `min_terms` and `max_digits`; they set its difficulty.

    examples: the number of solved questions shown before each question. Arithmetic is shown with its
    working ("3 + 4 = 7"). With examples the whole reply is the answer, without tags, because small
    models follow examples better than instructions.

    A task with a number as its key, or without a grader of its own, scores 0 or 1. In other tasks
    the grader scores the final answer.

    Raises ImportError without the package, and ValueError for an unknown name or parameter, a task
    whose grader runs answers as code, or a task with wrong keys.
    """
    if name in EVALUATED:
        raise ValueError(f"reasoning_gym:{name}: refused, its grader runs answers as code")
    if name == "composite":
        raise ValueError(f"reasoning_gym:{name}: refused, it can hold tasks that are refused")
    if name == "family_relationships":
        raise ValueError(
            f"reasoning_gym:{name}: refused, about one in five of its keys is reversed"
        )
    whole_number("count", count, least=1)
    whole_number("examples", examples, least=0)
    if name == "basic_arithmetic":
        parameters = _rightly_keyed(parameters)
    try:
        gym = import_module("reasoning_gym")
    except ImportError:
        raise ImportError(f"reasoning_gym:{name}: pip install reasoning-gym") from None
    if name not in gym.factory.DATASETS:
        names = sorted(set(gym.factory.DATASETS) - EVALUATED)
        raise ValueError(
            f"reasoning_gym:{name}: there is no such task; {meant(name, names)}there are "
            f"{', '.join(names[:8])}, ..."
        )
    own_options = (field.name for field in fields(gym.factory.DATASETS[name][1]))
    known = ["count", "examples", *(option for option in own_options if option != "size")]
    if unknown := [option for option in parameters if option not in known]:
        raise ValueError(
            f"reasoning_gym:{name}: no option {unknown[0]!r}; {meant(unknown[0], known)}it takes "
            f"{', '.join(known)}"
        )
    try:
        dataset = gym.create_dataset(name, size=count, seed=seed, **parameters)
        worked = gym.create_dataset(name, size=2 * examples + 1, seed=_EXAMPLES, **parameters)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"reasoning_gym:{name}: {error}") from None
    solved = {worked[at]["question"]: _solved(worked[at]) for at in range(2 * examples)}
    arithmetic = "expression" in worked[0]["metadata"]
    own = type(dataset).score_answer is not gym.dataset.ProceduralDataset.score_answer
    return Task(
        f"reasoning_gym:{name}",
        f"{name.replace('_', ' ')}, from Reasoning Gym",
        Lazy(partial(_gym_question, dataset, own, seed, solved, examples), range(count)),
        "tags" if not examples else figure if arithmetic else "whole",
        "accuracy",
    )


def figure(reply: str) -> str | None:
    """The number that a reply gives as its answer, so that "3 + 4 = 7" and "7" are one answer."""
    return None if (number := numeric(reply)) is None else str(number)


def _solved(entry: dict[str, Any]) -> str:
    expression = entry["metadata"].get("expression")
    return f"{expression} = {entry['answer']}" if expression else str(entry["answer"])


def _rightly_keyed(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, if the keys are right for them. Without parentheses the keys ignore
    precedence, and with "/" some are rounded down."""
    given = {"operators": ["+", "-", "*"], **parameters}
    operators = set(given["operators"])
    if "/" in operators or ("*" in operators and not given.get("allow_parentheses", True)):
        raise ValueError(
            "reasoning_gym:basic_arithmetic: refused, its keys are often wrong with '/' among the "
            "operators, or with '*' and allow_parentheses=False; operators=['+', '-', '*'] with "
            "parentheses, or ['+', '-'], are fine"
        )
    return {**given, "operators": list(given["operators"])}


def _gym_question(
    dataset: Any, own: bool, seed: int, solved: dict[str, str], examples: int, at: int
) -> Question:
    entry = dataset[at]
    shown = [pair for pair in solved.items() if pair[0] != entry["question"]]
    score = partial(_grade, dataset, own, entry)
    return Question(f"{seed}-{at}", entry["question"], score, shown[:examples])


def _grade(dataset: Any, own: bool, entry: dict[str, Any], question: str, answer: str) -> Score:
    key = str(entry["answer"])
    if not own:
        value = float(same(answer, key))
    elif is_number(key) and same(answer, key):
        value = 1.0
    else:
        last = tail(answer) if "\n" in key else final(answer) or answer
        try:
            graded = float(dataset.score_answer(last, entry))
        except Exception:  # some graders fail on an answer of another form
            graded = 0.0
        value = min(1.0, max(0.0, graded if not is_number(key) else math.floor(graded)))
    return Score(value, None if value == 1 else "That is not the answer.")
