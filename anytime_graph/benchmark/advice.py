"""From a benchmark's records to what a quality takes: which strategy, at which budget."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from anytime_graph.benchmark.cells import PREPARATION, UNITS, Protocol, Record, migrated
from anytime_graph.metrics import Interval, mean, wilson

_NEEDED = set(Record.__annotations__) - {"brought", "cut"}
Verdict = Literal["enough", "likely", "unknown", "out of reach"]


@dataclass(frozen=True)
class Choice:
    """A strategy at a budget. quality: with an interval that holds for all choices at once; of
    scores between 0 and 1 it is too wide, never too narrow, as none spread more than such that are 0
    or 1. tokens, usd: what a question costs on average (of the paper's protocol: all its checkpoints)."""

    strategy: str
    budget: int
    quality: Interval
    questions: int
    tokens: float
    usd: float


@dataclass(frozen=True)
class Advice:
    """For one task and model.

    verdict: "enough": the cheapest choice whose interval is above the quality; "likely": the
    cheapest whose mean is; "unknown": the highest, whose interval still holds the quality; "out of
    reach": the highest, and no interval comes so far.
    """

    task: str
    model: str
    protocol: Protocol
    decide: str
    verdict: Verdict
    choice: Choice

    def told(self, quality: float) -> str:
        c, n = self.choice, self.choice.questions
        found = (
            f"{c.strategy} at {c.budget:,} {UNITS[self.protocol]}: {c.quality.mean:.3f} "
            f"[{c.quality.low:.3f}, {c.quality.high:.3f}], about {c.tokens:,.0f} tokens a question"
            + (f", {c.usd:.4f} USD" if c.usd else "")
        )
        more = f"{n} questions do not tell for sure; measure more with a larger --samples"
        return {
            "enough": f"Use {found}.",
            "likely": f"Probably {found}. {more}.",
            "unknown": f"Not known. The highest measured is {found}. {more}, or larger --budgets.",
            "out of reach": f"Nothing measured comes to {quality:g}. The highest is {found}. Larger "
            "--budgets, another model or another strategy would have to be measured.",
        }[self.verdict]


def advise(records: Iterable[Record], quality: float) -> list[Advice]:
    """What `quality` takes, for each task and model in the records. Raises ValueError if it is not
    in (0, 1]."""
    if not 0 < quality <= 1:
        raise ValueError(f"quality={quality!r}: a number above 0, up to 1, is needed")
    groups = defaultdict[tuple[str, str, Protocol, str], list[Record]](list)
    for r in records:
        if r["strategy"] != PREPARATION:
            groups[r["task"], r["model"], r["protocol"], r["decide"]].append(r)
    return [Advice(*of, *_chosen(_choices(own), quality)) for of, own in groups.items()]


def recorded(directory: Path) -> list[Record]:
    """The records of a benchmark, which may still be writing. Raises ValueError for what are none."""
    file = directory / "records.jsonl"
    if not file.is_file():
        raise ValueError(f"{directory}: no records.jsonl; name the --out directory of a benchmark")
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    try:
        rows: list[Any] = [json.loads(row) for row in whole.splitlines()]
    except ValueError:
        rows = [None]
    rows = [migrated(row, file) if isinstance(row, dict) else None for row in rows]
    if not all(isinstance(row, dict) and row.keys() >= _NEEDED for row in rows):
        raise ValueError(f"{file}: these are no records of a benchmark")
    return [cast("Record", row) for row in rows]


def _chosen(choices: Sequence[Choice], quality: float) -> tuple[Verdict, Choice]:
    def cheapest(good: Sequence[Choice]) -> Choice:
        return min(good, key=lambda c: (c.budget, c.tokens))

    if surely := [c for c in choices if c.quality.low >= quality]:
        return "enough", cheapest(surely)
    if likely := [c for c in choices if c.quality.mean >= quality]:
        return "likely", cheapest(likely)
    highest = max(choices, key=lambda c: (c.quality.mean, -c.budget))
    near = any(c.quality.high >= quality for c in choices)
    return "unknown" if near else "out of reach", highest


def _choices(records: Sequence[Record]) -> list[Choice]:
    scores = defaultdict[tuple[str, int], dict[str, list[float]]](lambda: defaultdict(list))
    costs = defaultdict[tuple[str, int], list[Record]](list)
    for record in records:
        for budget, score in zip(record["budgets"], record["scores"], strict=True):
            scores[record["strategy"], budget][record["question"]].append(score)
            costs[record["strategy"], budget].append(record)
    return [
        Choice(
            strategy,
            budget,
            _interval(list(map(mean, by_question.values())), 1 - 0.05 / len(scores)),
            len(by_question),
            mean([r["spent"]["tokens"] for r in costs[strategy, budget]]),
            mean([r["spent"]["usd"] for r in costs[strategy, budget]]),
        )
        for (strategy, budget), by_question in scores.items()
    ]


def _interval(values: Sequence[float], level: float) -> Interval:
    return wilson(min(len(values), math.fsum(values)), len(values), level)
