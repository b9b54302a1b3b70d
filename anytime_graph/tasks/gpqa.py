"""The task GPQA-Diamond: science questions with four choices, from the Hub or a file of the user.

The paper is Rein et al. 2023, arXiv 2311.12022. Its authors ask that no example appear in plain text
online. So this package contains none, ids are hashes, and no error, repr or feedback shows the text of
a question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from anytime_graph.scoring import Score
from anytime_graph.tasks.answers import letter
from anytime_graph.tasks.files import from_hub, records
from anytime_graph.tasks.task import Question, Task, column, sampled

HUB = ("Idavidrein/gpqa", "gpqa_diamond")
_WRONG = ("incorrect answer 1", "incorrect answer 2", "incorrect answer 3")


def gpqa_diamond(file: str = "", *, count: int | None = None, seed: int = 0) -> Task:
    """198 science questions with four choices, shuffled by a hash of the question. A file needs the
    columns Question, Correct Answer and Incorrect Answer 1 to 3."""
    rows = records(file) if file else from_hub("gpqa_diamond", *HUB)
    return Task(
        "gpqa_diamond",
        "graduate-level science questions with four choices",
        sampled(partial(_gpqa_question, rows, file or HUB[0]), len(rows), count, seed),
        "tags",
        "accuracy",
    )


def _gpqa_question(rows: Sequence[Mapping[str, Any]], source: str, at: int) -> Question:
    where = f"{source}, row {at + 1}"
    text = str(column(rows[at], ("question",), where)).strip()
    right = str(column(rows[at], ("correct answer",), where)).strip()
    wrong = [str(column(rows[at], (name,), where)).strip() for name in _WRONG]
    choices = sorted(enumerate([right, *wrong]), key=lambda c: _sha256(f"{text}\n{c[0]}\n{c[1]}"))
    choice_list = "\n".join(
        f"({name}) {choice}" for name, (_, choice) in zip("ABCD", choices, strict=True)
    )
    key = "ABCD"[[place for place, _ in choices].index(0)]
    return Question(
        _sha256(text)[:16],
        f"{text}\n\n{choice_list}\n\nThe answer is one letter: A, B, C or D.",
        partial(_choice, key),
    )


def _choice(key: str, question: str, answer: str) -> Score:
    choice = letter(answer)
    if choice is None:
        return Score(0.0, "It does not end in one choice. Give the final answer as one letter.")
    return Score(1.0) if choice == key else Score(0.0, f"{choice} is not the answer.")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
