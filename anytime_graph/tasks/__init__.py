"""Tasks with answers that a program can check, to measure anytime reasoning.

    task = load("trip", count=20, cities=6)
    for question in task.questions:
        score = question.scorer(question.prompt, ask(question.prompt))

The generated tasks ("constraints", "trip") need nothing else. The other tasks need a package, a file
of the user, or access to the Hugging Face Hub. This package contains none of their questions. Where a
question has a `quality`, the scorer sees only a part of what counts, and `quality` the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from anytime_graph.tasks.aime import aime_2024
from anytime_graph.tasks.code import humaneval, mbpp
from anytime_graph.tasks.gpqa import gpqa_diamond
from anytime_graph.tasks.gym import reasoning_gym
from anytime_graph.tasks.instructions import ifeval
from anytime_graph.tasks.natural_plan import natural_plan_trip
from anytime_graph.tasks.own import jsonl
from anytime_graph.tasks.task import Question, Task
from anytime_graph.tasks.trips import trip
from anytime_graph.tasks.writing import constraints
from anytime_graph.text import meant

__all__ = ["TASKS", "Question", "Task", "load"]

TASKS: dict[str, Callable[..., Task]] = {
    "constraints": constraints,
    "trip": trip,
    "natural_plan_trip": natural_plan_trip,
    "aime_2024": aime_2024,
    "gpqa_diamond": gpqa_diamond,
    "reasoning_gym": reasoning_gym,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "ifeval": ifeval,
    "jsonl": jsonl,
}
"""The function that makes each task. Its file or name, if it takes one, follows a colon."""


def load(name: str, **options: Any) -> Task:
    """The task of that name: "constraints", "trip", "natural_plan_trip:FILE", "aime_2024[:FILE]",
    "gpqa_diamond[:FILE]", "reasoning_gym:NAME", "humaneval", "mbpp:FILE", "ifeval:FILE" or
    "jsonl:FILE".

    options: those of the function that makes the task. All tasks take `count`, the number of
    questions (by default all of a file), and `seed`. Equal options give equal questions.

    Raises ValueError for an unknown name or option.
    """
    kind, _, target = name.partition(":")
    if kind not in TASKS:
        raise ValueError(
            f"task {name!r}: there is none of that name; {meant(kind, TASKS)}the names are "
            f"{', '.join(TASKS)}"
        )
    make = TASKS[kind]
    parameters = list(inspect.signature(make).parameters.values())
    slot = parameters.pop(0) if parameters[0].kind is not inspect.Parameter.KEYWORD_ONLY else None
    if target and slot is None:
        raise ValueError(f"task {name!r}: {kind} takes nothing behind a colon")
    if not target and slot and slot.default is inspect.Parameter.empty:
        raise ValueError(f"task {name!r}: needs a {slot.name}, {kind}:{slot.name.upper()}")
    known = {p.name for p in parameters}
    unknown = [] if "parameters" in known else [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"task {name!r}: no option {unknown[0]!r}; {meant(unknown[0], known)}it takes "
            f"{', '.join(sorted(known))}"
        )
    return make(*([target] if target else []), **options)
