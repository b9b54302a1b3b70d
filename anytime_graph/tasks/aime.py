"""The task AIME 2024: thirty mathematics problems, from the Hub or a file of the user.

This package contains none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from anytime_graph.scoring import Score
from anytime_graph.tasks.answers import numeric
from anytime_graph.tasks.files import from_hub, records
from anytime_graph.tasks.task import Question, Task, column, sampled

HUB = ("Maxwell-Jia/AIME_2024", None)


def aime_2024(file: str = "", *, count: int | None = None, seed: int = 0) -> Task:
    """American Invitational Mathematics Examination 2024: 30 problems, integers from 0 to 999. A file
    needs the columns id, problem (or question) and answer."""
    rows = records(file) if file else from_hub("aime_2024", *HUB)
    return Task(
        "aime_2024",
        "mathematics problems whose answer is an integer from 0 to 999",
        sampled(partial(_aime_question, rows, file or HUB[0]), len(rows), count, seed),
        "tags",
        "accuracy",
    )


def _aime_question(rows: Sequence[Mapping[str, Any]], source: str, at: int) -> Question:
    where = f"{source}, row {at + 1}"
    problem = str(column(rows[at], ("problem", "question"), where))
    key = numeric(str(column(rows[at], ("answer",), where)))
    if key is None or key.denominator != 1:
        raise ValueError(f"{where}: the answer must be an integer")
    return Question(
        str(column(rows[at], ("id",), where)),
        f"{problem}\n\nThe answer is an integer from 0 to 999.",
        partial(_integer, int(key)),
    )


def _integer(key: int, question: str, answer: str) -> Score:
    number = numeric(answer)
    if number is None:
        return Score(0.0, "It does not end in one number. Give the final answer as one integer.")
    if number.denominator != 1 or not 0 <= number <= 999:
        return Score(0.0, f"{number!s:.20} is not an integer from 0 to 999.")
    return Score(1.0) if number == key else Score(0.0, f"{number} is not the answer.")
