"""The task Trip Planning of NATURAL PLAN, from its official file, which the user provides.

The paper is Zheng et al. 2024, arXiv 2406.04520.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from anytime_graph.scoring import Score
from anytime_graph.tasks import trips
from anytime_graph.tasks.task import Question, Task, column, sampled

_VISIT = re.compile(r"(?<!\d)\d+-(\d{1,9})(?!\d)")
_DAY = re.compile(r"day\s+(\d{1,9})(?!\d)", re.IGNORECASE)
_FLIGHT = re.compile(r"from\s+(\w+)\s+to\s+(\w+)", re.IGNORECASE)


def natural_plan_trip(
    file: str, *, score: Literal["csr", "exact"] = "csr", count: int | None = None, seed: int = 0
) -> Task:
    """The examples of a `trip_planning.json`.

    score: "csr" is the share of the constraints met, which accepts every correct plan. "exact" is the
    official score: 1 if cities and days are those of the one golden plan, else 0.

    Raises ValueError for a file of another form, and for a question whose fields contradict its prompt.
    """
    if score not in ("csr", "exact"):
        raise ValueError(f"score={score!r}: 'csr' or 'exact'")
    path = Path(file)
    if not file or not path.is_file():
        raise ValueError(f"natural_plan_trip:{file}: the path of a trip_planning.json is needed")
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))
        if not examples or not all(isinstance(e, dict) for e in examples.values()):
            raise ValueError
    except (ValueError, AttributeError):
        raise ValueError(f"{file}: a JSON object of examples by name is needed") from None
    names = list(examples)
    return Task(
        "natural_plan_trip",
        "plans of trips under constraints, from NATURAL PLAN",
        sampled(partial(_natural_plan_question, examples, names, score), len(names), count, seed),
        "tags",
        "csr" if score == "csr" else "accuracy",
    )


def _natural_plan_question(
    examples: Mapping[str, Mapping[str, Any]], names: Sequence[str], score: str, at: int
) -> Question:
    name = names[at]
    prompt, cities, days = (
        str(column(examples[name], (field,), name))
        for field in ("prompt_0shot", "cities", "durations")
    )
    problem = trips.parse(prompt)
    golden = list(zip(cities.split("**"), (int(d) for d in days.split("**")), strict=False))
    if cities.count("**") != days.count("**") or sorted(golden) != sorted(problem.stays):
        raise ValueError(f"{name}: its cities and durations contradict its prompt")
    scorer = (
        partial(trips.score, problem) if score == "csr" else partial(_exact, golden, problem.days)
    )
    return Question(name, f"{prompt}\n\n{trips.CONVENTIONS}", scorer)


def exact_match(golden: Sequence[tuple[str, int]], total: int, answer: str) -> bool:
    """The official score: whether cities and days equal those of the golden plan, in order. They are
    read from the flights of the plan; the last day is that of the last stay. Text after a stay that
    ends on day `total` does not count."""
    flights: list[tuple[int, str, str]] = []
    end = None
    for line in answer.splitlines():
        if stay := _VISIT.search(line):
            end = int(stay[1])
            if end == total:
                break
        if (day := _DAY.search(line)) and (flight := _FLIGHT.search(line, day.end())):
            flights.append((int(day[1]), flight[1], flight[2]))
    if end is None or not flights:
        return False
    cities = [flights[0][1], *(to for _, _, to in flights)]
    turns = [1, *(day for day, _, _ in flights), end]
    stays = [(city, turns[i + 1] - turns[i] + 1) for i, city in enumerate(cities)]
    return stays[: len(golden)] == list(golden)


def _exact(golden: Sequence[tuple[str, int]], total: int, question: str, answer: str) -> Score:
    return Score(float(exact_match(golden, total, answer)))
