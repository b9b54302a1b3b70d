"""The task of writing short texts under rules that a program can check."""

from __future__ import annotations

from functools import partial
from random import Random

from anytime_graph.constraints import Constraints
from anytime_graph.tasks.task import Question, Task, generated, whole_number

_SUBJECTS = (  # noqa: SIM905 - a list of words reads better as text
    "a fox in the snow|a night train|the first day at school|a lighthouse keeper|"
    "a lost letter|an old bicycle|the sea in winter|a market at dawn|a clock that stopped|"
    "a garden after rain|two brothers|a mountain hut|a stray dog|the last bus|a violin maker|"
    "a power cut|a bridge over a river|a birthday cake|a visit to the dentist|"
    "moving to a new city"
).split("|")
_WORDS = (  # noqa: SIM905 - a list of words reads better as text
    "river lantern copper window bread shadow basket thunder feather harbour ladder mirror "
    "orchard pepper quilt ribbon saddle teapot umbrella velvet whistle candle engine marble"
).split()
_ENDS = ("home.", "again.", "forever.", "silence.", "tomorrow!", "alone.", "enough?")
_FORBIDDEN = ("very", ",", "was", "and", "it", "of", "the")


def constraints(*, count: int = 50, seed: int = 0, difficulty: int = 2) -> Task:
    """A short text about a subject, under rules: the number of sentences and words, words to use and to
    avoid, and the ending. A higher `difficulty` (1 to 5) has more and tighter rules. The score is the
    share of the rules met."""
    whole_number("difficulty", difficulty, 1, 5)
    return Task(
        "constraints",
        f"short texts under checkable rules, difficulty {difficulty}",
        generated(partial(_writing_question, difficulty), count, seed),
        "whole",
        "csr",
    )


def _writing_question(difficulty: int, dice: Random) -> Question:
    rules = make_rules(dice, difficulty)
    prompt = f"Write a short text about {dice.choice(_SUBJECTS)}. {rules.describe()}"
    return Question(f"{dice.getrandbits(48):012x}", prompt, rules)


def make_rules(dice: Random, difficulty: int) -> Constraints:
    """Rules that a text can meet together: 5 of them for difficulty 1 and 2, then 7, 7 and 8."""
    sentences = dice.randint(2, 4)
    words = sentences * dice.randint(9, 13)
    slack = round(words * (0.75 - 0.12 * difficulty))
    return Constraints(
        sentences=(sentences, sentences + max(0, 4 - difficulty)),
        words=(words - slack, words + slack),
        include=tuple(dice.sample(_WORDS, (difficulty + 1) // 2)),
        forbid=tuple(dice.sample(_FORBIDDEN[: 2 * difficulty - 1], 1 + difficulty // 3)),
        ends_with=dice.choice(".!?" if difficulty < 3 else _ENDS),
    )
