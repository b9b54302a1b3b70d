"""What a benchmark measures: its cells, and the record that each of them leaves."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from anytime_graph.budget import Spend
from anytime_graph.checkpoints.export import line
from anytime_graph.forms import KEY, Upgrade, upgraded
from anytime_graph.planning.strategies import STRATEGIES
from anytime_graph.tasks import Question, Task

Decide = Literal["scorer", "judge", "vote"]
Protocol = Literal["run", "paper"]
MEMORY = "+memory"
PREPARATION = "(preparation)"
"""The strategy of cells that make the preference data which others are shown."""
MODES = ("base", "leap", "pdp_positive", "pdp")
"""The paper's: one chain of thought; with principles, with winners, with pairs in its prompt."""
OPENING = 4
"""Calls that most strategies begin with, all drafts; only behind them do they part."""
UNITS: dict[Protocol, str] = {"run": "tokens", "paper": "generated tokens"}


@dataclass(frozen=True)
class Settings:
    """What the cells of a benchmark have in common, and what tells them from those of another.

    task: its name. options: those that it was made with. model: as it was named. budgets:
    ascending; in `run` tokens a run may spend on input and output, in `paper` the checkpoints in
    generated tokens. training: questions that preference data is made from, `training_budget`
    tokens on each; trajectories: chains of thought on each of them (`paper`). room: output tokens
    of a forced answer (`paper`).
    """

    protocol: Protocol
    task: str
    model: str
    budgets: tuple[int, ...]
    decide: Decide = "scorer"
    options: Mapping[str, Any] = field(default_factory=dict)
    training: int = 3
    training_budget: int = 0
    trajectories: int = 4
    room: int = 256

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.budgets, self.budgets[1:], strict=False))
        if not self.budgets or self.budgets[0] < 1 or not rising:
            raise ValueError(
                f"budgets={','.join(map(str, self.budgets))}: whole numbers from 1 that ascend, "
                "as in 256,512,1024"
            )
        for name in ("training", "trajectories", "room"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if self.training_budget < 0:
            raise ValueError(f"training_budget={self.training_budget}: at least 1 is needed")

    @property
    def prepared_at(self) -> int:
        """Tokens for each training question; those of a test question if none were named."""
        return self.training_budget or self.budgets[-1]


@dataclass(frozen=True)
class Cell:
    """A strategy on a question with a seed: in `run` within one budget, in `paper` a chain of
    thought through all checkpoints. lessons: the strategy whose preference data it is shown, if
    any. prepares: it makes such data itself."""

    settings: Settings
    strategy: str
    question: Question
    seed: int
    budgets: tuple[int, ...]
    lessons: str | None = None
    prepares: bool = False

    @property
    def name(self) -> str:
        """A digest of all that its result depends on, but for what the model answers."""
        s = self.settings
        made: list[Any] = [s.protocol, s.task, sorted(s.options.items()), s.model, s.decide]
        made += [self.strategy, list(self.budgets), self.question.id, self.seed, self.prepares]
        if s.protocol == "paper":
            made.append(s.room)
        if self.lessons or self.prepares:
            made += [self.lessons, s.training, s.prepared_at, s.trajectories]
        told = json.dumps(made, default=str)
        return f"bench-{hashlib.sha256(told.encode(errors='replace')).hexdigest()[:24]}"

    @property
    def model_seed(self) -> int:
        """The question's own, the same for all strategies and budgets: what they ask in the same
        words is answered in the same words."""
        return zlib.crc32(f"{self.question.id} {self.seed}".encode()) % 2**30

    def __str__(self) -> str:
        budgets = ",".join(map(str, self.budgets))
        return f"{self.strategy} at {budgets}, question {self.question.id}, seed {self.seed}"


class CallGains(TypedDict):
    """What calls of a kind brought. scores: sum of the true scores of their answers. better: answers
    above all before them in their run; rise: by how much, in sum. tokens: what the calls cost."""

    calls: int
    scores: float
    better: int
    rise: float
    tokens: int


def nought() -> CallGains:
    return CallGains(calls=0, scores=0.0, better=0, rise=0.0, tokens=0)


class Record(TypedDict):
    """What a cell came to; no text of a question or an answer.

    scores: at each of its budgets, the true score of the answer that was held there. oracle: the
    best true score of all answers up to there. curve: in `run`, (tokens spent, score held, best
    score so far) whenever one of the two scores changed. answering: tokens for forced answers.
    judging: tokens for the judge. unscored: answers that the scorer failed on, which count 0. pairs: preference pairs
    that were made of it. brought: in `run`, by kind of call, behind the first OPENING. cut: how
    prefixes were cut ("pieces", "tokenizer", "estimate").
    spent: as the cell was charged, whoever paid for a reply first.
    """

    cell: str
    protocol: Protocol
    task: str
    model: str
    decide: Decide
    strategy: str
    question: str
    seed: int
    budgets: list[int]
    scores: list[float]
    oracle: list[float]
    curve: list[tuple[int, float, float]]
    spent: Spend
    judging: int
    answering: int
    unscored: int
    pairs: int
    stop_reason: str
    brought: NotRequired[dict[str, CallGains]]
    cut: NotRequired[str]


def cells(
    settings: Settings, task: Task, strategies: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """All cells, question by question, so that an early end leaves whole comparisons. Raises
    ValueError for a strategy that the protocol does not have."""
    if not strategies or not seeds:
        raise ValueError("strategies and seeds: at least one of each is needed")
    for given in (strategies, seeds):
        if len(set(given)) < len(given):
            raise ValueError(f"{','.join(map(str, given))}: each is to be named once")
    lessons = {name: _lessons(settings.protocol, name) for name in strategies}
    shares = [(b,) for b in settings.budgets] if settings.protocol == "run" else [settings.budgets]
    return [
        Cell(settings, strategy, question, seed, budgets, lessons[strategy])
        for seed, question in product(seeds, task.questions)
        for budgets, strategy in product(shares, strategies)
    ]


def _lessons(protocol: Protocol, strategy: str) -> str | None:
    """Which strategy makes the preference data that this one is shown."""
    if protocol == "paper":
        if strategy not in MODES:
            raise ValueError(f"strategy {strategy!r}: the paper's are {', '.join(MODES)}")
        return None if strategy == "base" else "leap" if strategy == "leap" else "pdp"
    own = strategy.removesuffix(MEMORY)
    if own not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r}: one of {', '.join(STRATEGIES)}, or NAME{MEMORY}")
    return None if own == strategy else "leap" if own == "leap" else "pdp"


def preparations(settings: Settings, lessons: str, questions: Sequence[Question]) -> list[Cell]:
    """The cells that make preference data of these training questions."""
    budgets = (settings.prepared_at,)
    return [Cell(settings, lessons, q, 0, budgets, prepares=True) for q in questions]


UPGRADES: tuple[Upgrade, ...] = ()
"""Of a record, from each form to the next; see forms.py."""


def migrated(row: Mapping[str, Any], file: Path) -> Record:
    """A record of the file in today's form. Raises NewerForm."""
    record = upgraded(row, UPGRADES, str(file))
    del record[KEY]
    return cast("Record", record)


class Records:
    """A file of records, one a line, only ever appended to. A last line that a kill has torn is
    dropped; a line that is not a record is a ValueError."""

    def __init__(self, file: Path) -> None:
        self._file = file
        found = (migrated(row, file) for row in lines(file))
        self._of: dict[str, Record] = {record["cell"]: record for record in found}

    def __contains__(self, cell: str) -> bool:
        return cell in self._of

    def __getitem__(self, cell: str) -> Record:
        return self._of[cell]

    def add(self, record: Record) -> None:
        append(self._file, {**record, KEY: len(UPGRADES)} if UPGRADES else record)
        self._of[record["cell"]] = record


def lines(file: Path) -> Iterator[Any]:
    """The rows of a JSON Lines file, without one torn at its end, which is cut off the file. Raises
    ValueError for any other that is no JSON object."""
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    for n, text in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError
        except ValueError:
            raise ValueError(f"{file}, line {n}: not a JSON object; remove the line") from None
        yield row


def append(file: Path, *rows: Any) -> None:
    """Rows at the end of a file that only its owner may read; on their way to the disk, so that a
    kill of this process loses none of them."""
    data = "".join(line(row) + "\n" for row in rows).encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
