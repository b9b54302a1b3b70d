"""The task of a user's own questions, from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from anytime_graph.scoring import Score, Scorer, scorer_in
from anytime_graph.tasks.answers import same
from anytime_graph.tasks.files import records
from anytime_graph.tasks.task import Question, Task, column, sampled


def jsonl(
    file: str,
    *,
    check: str | Scorer | None = None,
    answer: Literal["tags", "whole"] = "tags",
    count: int | None = None,
    seed: int = 0,
) -> Task:
    """A JSON Lines, CSV or Parquet file with a question (or prompt) in each row, and optionally an
    id.

    check: a scorer, or FILE.py:FUNCTION, a function (question, answer) -> number in [0, 1]. Without
    it each row needs the correct `answer`. A number is compared by value; other text without regard
    to case, spaces and final full stops.
    """
    if answer not in ("tags", "whole"):
        raise ValueError(f"answer={answer!r}: 'tags' or 'whole'")
    rows = records(file)
    scorer = scorer_in(check) if isinstance(check, str) else check
    return Task(
        f"jsonl:{file}",
        f"questions of {file}",
        sampled(partial(_own_question, rows, file, scorer), len(rows), count, seed),
        answer,
        "csr" if scorer else "accuracy",
    )


def _own_question(
    rows: Sequence[Mapping[str, Any]], file: str, scorer: Scorer | None, at: int
) -> Question:
    row, where = rows[at], f"{file}, row {at + 1}"
    text = str(column(row, ("question", "prompt"), where))
    if scorer is None:
        key = column(row, ("answer",), f"{where}, without check=")
        listed = isinstance(key, list | dict)
        key = json.dumps(key, ensure_ascii=False, default=str) if listed else str(key)
        scorer = partial(_same, key)
    name = row.get("id")
    return Question(str(at + 1 if name in (None, "") else name), text, scorer)


def _same(expected: str, question: str, answer: str) -> Score:
    return Score(1.0) if same(answer, expected) else Score(0.0, "That is not the answer.")
