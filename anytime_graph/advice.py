"""The command line over what was measured: a ledger's performance profiles, and which budget and
strategy reach a quality by a benchmark's records."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, Literal, NamedTuple

import click

from anytime_graph import options, terminal
from anytime_graph.benchmark.cells import PREPARATION, UNITS, Record
from anytime_graph.budget import Spend, nothing
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.export import line
from anytime_graph.metrics import Interval, wilson
from anytime_graph.profiles import Profile, profile_of, save_profile
from anytime_graph.state import Point
from anytime_graph.threads import as_json_option, opened, told

_DRAFTS = 16
"""That the curve of a profile goes up to."""
_NEEDED = {"protocol", "task", "model", "strategy", "question", "budgets", "scores"}


@click.command()
@options.database
@click.option("--model", help="Only runs of this model.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="PREFIX",
    help="A kind of task: threads whose names begin so. Repeatable. [default: all threads as one]",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put them into this file, for load_profile, beside those that it holds of others.",
)
@as_json_option
def profile(
    db: str, model: str | None, tasks: Sequence[str], save: Path | None, as_json: bool
) -> None:
    """Show what drafts and refinements brought, by model and kind of task.

    Only runs that a scorer rated count. The curve is the expected best of so many drafts, their
    scores taken as normal.

    \b
    anytime-graph profile --task rivers --task bikes --save profiles.json
    """
    with told(as_json), opened(db) as store:
        found = _profiles(store.ledger, model, tasks or [""])
        for (name, task), learned in found.items() if save else ():
            save_profile(save or "", learned, name, task)
    if as_json:
        rows = [{"model": m, "task": t, "kinds": kinds} for (m, t), kinds in found.items()]
        click.echo(line(rows))
    elif not found:
        click.echo("no answers that a scorer rated", err=True)
    for (name, task), learned in () if as_json else found.items():
        terminal.profiled(name, task, learned)
        click.echo(terminal.curve(*expected(learned)) + "\n")


def _profiles(
    ledger: Ledger, model: str | None, tasks: Iterable[str]
) -> dict[tuple[str, str], Profile]:
    names = {run["model"] for row in ledger.threads() for run in ledger.runs(row["thread"])}
    return {
        (name, task): learned
        for name in sorted(names if model is None else {model})
        for task in tasks
        if (learned := profile_of(ledger, name, task))
    }


def expected(learned: Profile) -> tuple[list[Point], int]:
    """The best score of one draft, of two and so on, against the tokens that they take."""
    if (drafts := learned.get("draft")) is None:
        return [], 0
    mean, tokens = (drafts[what] / drafts["tries"] for what in ("worth", "tokens"))
    spread = math.sqrt(max(0.0, drafts["squares"] / drafts["tries"] - mean**2))
    points = []
    for n in range(1, _DRAFTS + 1):
        middle = NormalDist().inv_cdf((n - 0.375) / (n + 0.25))  # of the largest of n (Blom 1958)
        score = min(1.0, mean + spread * middle)
        points.append(Point(candidate=n, score=score, spent=_of(round(n * tokens))))
    return points, round(_DRAFTS * tokens)


def _of(tokens: int) -> Spend:
    return {**nothing(), "tokens": tokens}


class Measured(NamedTuple):
    """A strategy at a budget. quality: over questions, 95 % for all that were measured at once.
    reaches: whether that is a quality asked for, or the data do not tell."""

    strategy: str
    budget: int
    unit: str
    questions: int
    quality: Interval
    reaches: Literal["yes", "no", "unknown"]

    def __str__(self) -> str:
        low, mean, high = self.quality.low, self.quality.mean, self.quality.high
        at = f"{self.strategy} at {self.budget:,} {self.unit}"
        return f"{at}: {mean:.2f} [{low:.2f}, {high:.2f}] on {self.questions} questions"


@click.command()
@click.argument(
    "directories",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--task", help="As the benchmark named it.")
@click.option("--model", help="As the benchmark named it.")
@click.option(
    "--quality", required=True, type=click.FloatRange(0, 1, min_open=True), help="To be reached."
)
@as_json_option
def advise(
    directories: Sequence[Path], task: str | None, model: str | None, quality: float, as_json: bool
) -> None:
    """Say which budget and strategy reach a mean quality, by what `anytime-graph bench --out` left in
    DIRECTORIES.

    The least budget is named at which the interval of a strategy is above the quality; if some may
    reach it but the data do not tell, that is said. Intervals are Wilson's, which are sensible for few
    questions too, at 95 % for all strategies and budgets together.

    \b
    anytime-graph advise runs/today --task aime_2024 --quality 0.9
    """
    with told(as_json):
        records = [row for directory in directories for row in _records(directory)]
        chosen = [_the("task", task, records), _the("model", model, records)]
        found = measured([r for r in records if [r["task"], r["model"]] == chosen], quality)
    able, maybe = ([m for m in found if m.reaches == reaches] for reaches in ("yes", "unknown"))
    best = min(able, key=lambda m: (m.budget, -m.quality.mean), default=None)
    cheaper = [m for m in maybe if best is None or m.budget < best.budget]
    if as_json:
        rows = [{**m._asdict(), "quality": m.quality._asdict()} for m in found]
        click.echo(line({"task": chosen[0], "model": chosen[1], "measured": rows}))
        return
    if best is not None:
        click.echo(f"reached by {best}")
    elif cheaper:
        click.echo(f"not known: the data do not tell whether {quality:g} is reached")
    else:
        click.echo(f"nothing that was measured reaches {quality:g}; the best is")
        click.echo(f"  {max(found, key=lambda m: m.quality.mean)}")
    if cheaper:
        click.echo("more questions would tell of" + (" these, which are cheaper" if best else ""))
        for m in sorted(cheaper, key=lambda m: -m.quality.mean):
            click.echo(f"  {m}")


def measured(records: Sequence[Record], quality: float) -> list[Measured]:
    """Each strategy at each budget, the seeds of a question taken together. Raises ValueError if
    both protocols are among the records, whose budgets are not of one kind."""
    protocol, *others = {record["protocol"] for record in records}
    if others:
        raise ValueError("records of both protocols, with other budgets each: give one directory")
    scores: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for budget, score in zip(record["budgets"], record["scores"], strict=True):
            scores[record["strategy"], budget][record["question"]].append(score)
    found = []
    for (strategy, budget), questions in sorted(scores.items(), key=lambda item: item[0][::-1]):
        n, level = len(questions), 1 - 0.05 / len(scores)
        of = wilson(min(n, math.fsum(fmean(seeds) for seeds in questions.values())), n, level)
        reaches: Literal["yes", "no", "unknown"] = (
            "yes" if of.low >= quality else "no" if of.high < quality else "unknown"
        )
        found.append(Measured(strategy, budget, UNITS[protocol], n, of, reaches))
    return found


def _records(directory: Path) -> list[Record]:
    """Only read: a benchmark may be writing them. Raises ValueError for what are none."""
    file = directory / "records.jsonl"
    if not file.is_file():
        raise ValueError(f"{directory}: no records.jsonl; name a directory of bench --out")
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    try:
        rows = [json.loads(row) for row in whole.splitlines()]
    except ValueError:
        rows = [None]
    if not all(isinstance(row, Mapping) and row.keys() >= _NEEDED for row in rows):
        raise ValueError(f"{file}: these are no records of a benchmark")
    return [row for row in rows if row["strategy"] != PREPARATION]


def _the(what: Literal["task", "model"], given: str | None, records: Sequence[Any]) -> str:
    names: list[str] = sorted({record[what] for record in records})
    if given is None and len(names) == 1:
        return names[0]
    if given not in names:
        known = ", ".join(names) or "nothing yet"
        raise ValueError(f"--{what} {given!r}: the records are of {known}")
    return given


COMMANDS = (profile, advise)
