"""Advice from the records of a benchmark: the strategy and budget that reach a quality."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from anytime_graph.benchmark.cells import PREPARATION, UNITS, Protocol, Record, upgraded_record
from anytime_graph.metrics import Interval, mean, reaches, wilson

_REQUIRED_FIELDS = set(Record.__annotations__) - {"brought", "chance", "seen", "cut"}
Verdict = Literal["enough", "likely", "unknown", "out of reach"]


@dataclass(frozen=True)
class MeasuredQuality:
    """A strategy at a budget. quality: its interval holds for all choices at once. It is computed
    as if each score were 0 or 1, which spreads most, so it may be too wide but never too narrow.
    tokens, usd: the mean cost of a question, in the paper's protocol with all its checkpoints."""

    strategy: str
    budget: int
    quality: Interval
    questions: int
    tokens: float
    usd: float


@dataclass(frozen=True)
class Advice:
    """The advice for one task and model.

    verdict: "enough": `choice` is the cheapest whose interval is above the quality. "likely": the
    cheapest whose mean is. "unknown": the highest, and some interval contains the quality. "out of
    reach": the highest, and every interval is below the quality.
    """

    task: str
    model: str
    protocol: Protocol
    decide: str
    verdict: Verdict
    choice: MeasuredQuality

    def sentence(self, quality: float) -> str:
        """The advice in words."""
        c, n = self.choice, self.choice.questions
        measured = (
            f"{c.strategy} at {c.budget:,} {UNITS[self.protocol]}: {c.quality.mean:.3f} "
            f"[{c.quality.low:.3f}, {c.quality.high:.3f}], about {c.tokens:,.0f} tokens a question"
            + (f", {c.usd:.4f} USD" if c.usd else "")
        )
        uncertain = f"{n} questions are too few to be sure; measure more with a larger --samples"
        return {
            "enough": f"Use {measured}.",
            "likely": f"Probably {measured}. {uncertain}.",
            "unknown": f"Not known. The highest measured is {measured}. {uncertain}, or larger --budgets.",
            "out of reach": f"Nothing measured reaches {quality:g}. The highest is {measured}. Larger "
            "--budgets, another model or another strategy would have to be measured.",
        }[self.verdict]


def advise(records: Iterable[Record], quality: float) -> list[Advice]:
    """The advice for a quality, for each task and model in the records. Raises ValueError if the
    quality is not in (0, 1]."""
    if not 0 < quality <= 1:
        raise ValueError(f"quality={quality!r}: a number above 0, up to 1, is needed")
    groups = defaultdict[tuple[str, str, Protocol, str], list[Record]](list)
    for r in records:
        if r["strategy"] != PREPARATION:
            groups[r["task"], r["model"], r["protocol"], r["decide"]].append(r)
    return [
        Advice(*of, *_judged_choice(_measured_qualities(own), quality))
        for of, own in groups.items()
    ]


def recorded(directory: Path) -> list[Record]:
    """The records of a benchmark, which may still be running. Raises ValueError if there are none."""
    file = directory / "records.jsonl"
    if not file.is_file():
        raise ValueError(f"{directory}: no records.jsonl; name the --out directory of a benchmark")
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    try:
        rows: list[Any] = [json.loads(row) for row in whole.splitlines()]
    except ValueError:
        rows = [None]
    rows = [upgraded_record(row, file) if isinstance(row, dict) else None for row in rows]
    if not all(isinstance(row, dict) and row.keys() >= _REQUIRED_FIELDS for row in rows):
        raise ValueError(f"{file}: these are no records of a benchmark")
    return [cast("Record", row) for row in rows]


def _judged_choice(
    choices: Sequence[MeasuredQuality], quality: float
) -> tuple[Verdict, MeasuredQuality]:
    def cheapest(good: Sequence[MeasuredQuality]) -> MeasuredQuality:
        return min(good, key=lambda c: (c.budget, c.tokens))

    if sure := [c for c in choices if reaches(c.quality.low, quality)]:
        return "enough", cheapest(sure)
    if likely := [c for c in choices if reaches(c.quality.mean, quality)]:
        return "likely", cheapest(likely)
    highest = max(choices, key=lambda c: (c.quality.mean, -c.budget))
    near = any(reaches(c.quality.high, quality) for c in choices)
    return "unknown" if near else "out of reach", highest


def _measured_qualities(records: Sequence[Record]) -> list[MeasuredQuality]:
    scores = defaultdict[tuple[str, int], dict[str, list[float]]](lambda: defaultdict(list))
    costs = defaultdict[tuple[str, int], list[Record]](list)
    for record in records:
        for budget, score in zip(record["budgets"], record["scores"], strict=True):
            scores[record["strategy"], budget][record["question"]].append(score)
            costs[record["strategy"], budget].append(record)
    return [
        MeasuredQuality(
            strategy,
            budget,
            _wilson_interval(list(map(mean, by_question.values())), 1 - 0.05 / len(scores)),
            len(by_question),
            mean([r["spent"]["tokens"] for r in costs[strategy, budget]]),
            mean([r["spent"]["usd"] for r in costs[strategy, budget]]),
        )
        for (strategy, budget), by_question in scores.items()
    ]


def _wilson_interval(values: Sequence[float], level: float) -> Interval:
    return wilson(min(len(values), math.fsum(values)), len(values), level)
