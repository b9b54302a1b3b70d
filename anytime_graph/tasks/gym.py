"""Tasks of the optional package `reasoning-gym` (pip install reasoning-gym)."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

from anytime_graph.scoring import Score
from anytime_graph.tasks.answers import final, is_number, numeric, same, tail
from anytime_graph.tasks.task import Lazy, Question, Task, whole

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
"""Their graders run what a model wrote as code (`eval`, or sympy's parser, which uses it)."""
_EXAMPLES = 1_000_003
"""The seed of solved questions, far from those of questions that are asked."""


def reasoning_gym(
    name: str, *, count: int = 50, seed: int = 0, examples: int = 0, **parameters: Any
) -> Task:
    """A task of Reasoning Gym (Stojanovski et al. 2025, arXiv 2505.24760), by its name there.
    `parameters` are its own and set how hard it is: `min_terms`, `max_digits` and such.

    examples: so many solved questions are shown before each, arithmetic with its working ("3 + 4 =
    7"), and a reply is then the answer, without tags: small models follow examples, not instructions.

    A task whose key is a number, or that has no grader of its own, scores 0 or 1; others score what
    their grader gives to the final answer.

    Raises ImportError without the package; ValueError for a name it does not have, a parameter the
    task does not have, a task whose grader evaluates answers as code, or one with wrong keys.
    """
    if name in EVALUATED:
        raise ValueError(f"reasoning_gym:{name}: refused, its grader runs answers as code")
    if name == "composite":
        raise ValueError(f"reasoning_gym:{name}: refused, it can hold tasks that are refused")
    if name == "family_relationships":
        raise ValueError(
            f"reasoning_gym:{name}: refused, about one in five of its keys is reversed"
        )
    whole("count", count, least=1)
    whole("examples", examples, least=0)
    if name == "basic_arithmetic":
        parameters = _rightly_keyed(parameters)
    try:
        gym = import_module("reasoning_gym")
    except ImportError:
        raise ImportError(f"reasoning_gym:{name}: pip install reasoning-gym") from None
    if name not in gym.factory.DATASETS:
        some = ", ".join(sorted(set(gym.factory.DATASETS) - EVALUATED)[:8])
        raise ValueError(f"reasoning_gym:{name}: there is no such task; there are {some}, ...")
    try:
        made = gym.create_dataset(name, size=count, seed=seed, **parameters)
        others = gym.create_dataset(name, size=2 * examples + 1, seed=_EXAMPLES, **parameters)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"reasoning_gym:{name}: {error}") from None
    solved = {others[at]["question"]: _solved(others[at]) for at in range(2 * examples)}
    arithmetic = "expression" in others[0]["metadata"]
    own = type(made).score_answer is not gym.dataset.ProceduralDataset.score_answer
    return Task(
        f"reasoning_gym:{name}",
        f"{name.replace('_', ' ')}, from Reasoning Gym",
        Lazy(partial(_question, made, own, seed, solved, examples), range(count)),
        "tags" if not examples else figure if arithmetic else "whole",
        "accuracy",
    )


def figure(reply: str) -> str | None:
    """The number that a reply gives as its answer, so that "3 + 4 = 7" and "7" are one answer."""
    return None if (found := numeric(reply)) is None else str(found)


def _solved(entry: dict[str, Any]) -> str:
    expression = entry["metadata"].get("expression")
    return f"{expression} = {entry['answer']}" if expression else str(entry["answer"])


def _rightly_keyed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Without parentheses its keys ignore precedence; with "/" some are rounded down."""
    chosen = {"operators": ["+", "-", "*"], **parameters}
    operators = set(chosen["operators"])
    if "/" in operators or ("*" in operators and not chosen.get("allow_parentheses", True)):
        raise ValueError(
            "reasoning_gym:basic_arithmetic: refused, its keys are often wrong with '/' among the "
            "operators, or with '*' and allow_parentheses=False; operators=['+', '-', '*'] with "
            "parentheses, or ['+', '-'] will do"
        )
    return {**chosen, "operators": list(chosen["operators"])}


def _question(
    made: Any, own: bool, seed: int, solved: dict[str, str], examples: int, at: int
) -> Question:
    entry = made[at]
    shown = [(asked, told) for asked, told in solved.items() if asked != entry["question"]]
    score = partial(_score, made, own, entry)
    return Question(f"{seed}-{at}", entry["question"], score, shown[:examples])


def _score(made: Any, own: bool, entry: dict[str, Any], question: str, answer: str) -> Score:
    key = str(entry["answer"])
    if not own:
        value = float(same(answer, key))
    elif is_number(key) and same(answer, key):
        value = 1.0
    else:
        given = tail(answer) if "\n" in key else final(answer) or answer
        try:
            graded = float(made.score_answer(given, entry))
        except Exception:  # some graders take for granted that an answer is of their form
            graded = 0.0
        value = min(1.0, max(0.0, graded if not is_number(key) else math.floor(graded)))
    return Score(value, None if value == 1 else "That is not the answer.")
