"""The cells that a benchmark measures, and the records that they leave."""

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
from anytime_graph.planning.strategies import SCORED, STRATEGIES, resolve
from anytime_graph.run.forms import KEY, Upgrade, upgraded
from anytime_graph.tasks import Question, Task
from anytime_graph.text import meant

Decide = Literal["scorer", "judge", "vote"]
Protocol = Literal["run", "paper"]
MEMORY = "+memory"
PREPARATION = "(preparation)"
"""Stands in the records of cells that make preference data for the others."""
MODES = ("base", "leap", "pdp_positive", "pdp")
"""The paper's strategies: a chain of thought alone, or with principles, with better answers, or
with pairs in its prompt."""
OPENING = 4
"""Most strategies begin with this many drafts, and differ only after them."""
UNITS: dict[Protocol, str] = {"run": "tokens", "paper": "generated tokens"}


@dataclass(frozen=True)
class Settings:
    """What the cells of a benchmark have in common.

    task, options: the name of the task, and its options. model: the name that was given. budgets:
    ascending; in `run` the tokens of a run, in `paper` the checkpoints in generated tokens.
    training: the number of questions for preference data, with `training_budget` tokens each.
    trajectories: chains of thought on each training question (`paper`). room: output tokens of a
    forced answer (`paper`).
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
                f"budgets={','.join(map(str, self.budgets))}: ascending whole numbers from 1 are needed, "
                "as in 256,512,1024"
            )
        for name in ("training", "trajectories", "room"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if self.training_budget < 0:
            raise ValueError(f"training_budget={self.training_budget}: at least 1 is needed")

    @property
    def prepared_at(self) -> int:
        """Tokens for each training question; by default the largest budget of a test question."""
        return self.training_budget or self.budgets[-1]


@dataclass(frozen=True)
class Cell:
    """A strategy on a question with a seed: in `run` within one budget, in `paper` a chain of
    thought through all checkpoints. lessons: the strategy whose preference data the cell is shown,
    or None. prepares: whether the cell makes such data."""

    settings: Settings
    strategy: str
    question: Question
    seed: int
    budgets: tuple[int, ...]
    lessons: str | None = None
    prepares: bool = False

    @property
    def name(self) -> str:
        """A digest of everything that the result depends on, except the model's replies."""
        s = self.settings
        identity: list[Any] = [s.protocol, s.task, sorted(s.options.items()), s.model, s.decide]
        identity += [self.strategy, list(self.budgets), self.question.id, self.seed, self.prepares]
        if s.protocol == "paper":
            identity.append(s.room)
        if self.lessons or self.prepares:
            identity += [self.lessons, s.training, s.prepared_at, s.trajectories]
        text = json.dumps(identity, default=str)
        return f"bench-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:24]}"

    @property
    def model_seed(self) -> int:
        """The seed of the question, equal for all strategies and budgets: equal requests then get
        equal replies."""
        return zlib.crc32(f"{self.question.id} {self.seed}".encode()) % 2**30

    def __str__(self) -> str:
        budgets = ",".join(map(str, self.budgets))
        return f"{self.strategy} at {budgets}, question {self.question.id}, seed {self.seed}"


class CallGains(TypedDict):
    """What calls of a kind gained. scores: the sum of the true scores of their answers. better: how
    many answers beat all earlier ones of their run; rise: by how much, summed. tokens: their cost."""

    calls: int
    scores: float
    better: int
    rise: float
    tokens: int


def no_gains() -> CallGains:
    return CallGains(calls=0, scores=0.0, better=0, rise=0.0, tokens=0)


class Record(TypedDict):
    """The result of a cell, without the text of a question or an answer.

    scores: the true score of the answer held at each budget. oracle: the best true score of all
    answers up to each budget. curve: in `run`, (tokens spent, score held, best score so far) at
    each change of a score. answering: tokens for forced answers. judging: tokens for the judge.
    unscored: answers that the scorer failed on, which count 0. pairs: preference pairs made from
    the cell. brought: in `run`, the gains by kind of call after the first OPENING. chance: in `run`,
    the mean true score of all answers, which is what a random choice among them gives. seen: the
    scorer's own score of the answer held at each budget, where it sees only a part of what counts.
    cut: how prefixes were cut ("pieces", "tokenizer", "estimate"). spent: the cell's full charge,
    even if another cell paid for the reply.
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
    chance: NotRequired[float]
    seen: NotRequired[list[float]]
    cut: NotRequired[str]


def cells(
    settings: Settings, task: Task, strategies: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """All cells, question by question, so that an early end leaves complete comparisons. Raises
    ValueError for an unknown strategy, or one that needs a scorer where another decides; ImportError for
    one that needs a package."""
    if not strategies or not seeds:
        raise ValueError("strategies and seeds: at least one of each is needed")
    for values in (strategies, seeds):
        if len(set(values)) < len(values):
            raise ValueError(f"{','.join(map(str, values))}: name each only once")
    lessons = {name: _lessons(settings, name) for name in strategies}
    shares = [(b,) for b in settings.budgets] if settings.protocol == "run" else [settings.budgets]
    return [
        Cell(settings, strategy, question, seed, budgets, lessons[strategy])
        for seed, question in product(seeds, task.questions)
        for budgets, strategy in product(shares, strategies)
    ]


def _lessons(settings: Settings, strategy: str) -> str | None:
    """The strategy that makes the preference data for this one, or None."""
    if settings.protocol == "paper":
        if strategy not in MODES:
            raise ValueError(
                f"strategy {strategy!r}: {meant(strategy, MODES)}the paper's protocol has "
                f"{', '.join(MODES)}"
            )
        return None if strategy == "base" else "leap" if strategy == "leap" else "pdp"
    own = strategy.removesuffix(MEMORY)
    by_name = STRATEGIES | SCORED
    if own not in by_name:
        raise ValueError(
            f"strategy {strategy!r}: {meant(own, by_name)}one of {', '.join(by_name)}, or "
            f"NAME{MEMORY}, is needed"
        )
    resolve(own, settings.decide)
    return None if own == strategy else "leap" if own == "leap" else "pdp"


def preparations(settings: Settings, lessons: str, questions: Sequence[Question]) -> list[Cell]:
    """The cells that make preference data from the training questions."""
    budgets = (settings.prepared_at,)
    return [Cell(settings, lessons, q, 0, budgets, prepares=True) for q in questions]


UPGRADES: tuple[Upgrade, ...] = ()
"""The steps that upgrade a record from each form to the next; see forms.py."""


def upgraded_record(row: Mapping[str, Any], file: Path) -> Record:
    """A record of the file in the current form. Raises NewerForm."""
    record = upgraded(row, UPGRADES, str(file))
    del record[KEY]
    return cast("Record", record)


class Records:
    """A file with one record on each line, which only grows. A last line torn by a kill is dropped.
    Raises ValueError for a line that is not a record."""

    def __init__(self, file: Path) -> None:
        self._file = file
        records = (upgraded_record(row, file) for row in lines(file))
        self._by_cell: dict[str, Record] = {record["cell"]: record for record in records}

    def __contains__(self, cell: str) -> bool:
        return cell in self._by_cell

    def __getitem__(self, cell: str) -> Record:
        return self._by_cell[cell]

    def add(self, record: Record) -> None:
        append(self._file, {**record, KEY: len(UPGRADES)} if UPGRADES else record)
        self._by_cell[record["cell"]] = record


def lines(file: Path) -> Iterator[Any]:
    """The rows of a JSON Lines file. A torn last row is cut off the file. Raises ValueError for any
    other row that is not a JSON object."""
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
        except (ValueError, RecursionError):
            raise ValueError(f"{file}, line {n}: not a JSON object; remove the line") from None
        yield row


def append(file: Path, *rows: Any) -> None:
    """Append rows to a file that only its owner may read. When this returns the system has them, so a
    kill of this process loses none. Raises OSError, and then the file is as it was."""
    data = "".join(line(row) + "\n" for row in rows).encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        try:
            # Of what no longer fits on a disk, the first part is written without an error.
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)
