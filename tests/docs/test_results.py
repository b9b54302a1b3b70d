"""The figures in the documentation are those of the committed records."""

from __future__ import annotations

import gzip
import json
from statistics import fmean
from typing import Any

import pytest

from tests.kit.places import ROOT

RESULTS = (ROOT / "docs/results.md").read_text()
FUNCTIONS, SUMS = (600, 1_200, 2_400), (400, 800, 1_600)
CHECKED, VOTED = (
    ("single", "best_of_n", "pdp", "adaptive"),
    ("single", "self_consistency", "adaptive"),
)


def cell(report: str, decide: str, strategy: str, budget: int) -> str:
    """The mean quality of the answers returned, and of the tokens: .57 (379)."""
    with gzip.open(ROOT / f"docs/results/{report}/records.jsonl.gz", "rt") as file:
        rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    wanted = (decide, strategy, [budget])
    runs = [r for r in rows if (r["decide"], r["strategy"], r["budgets"]) == wanted]
    quality = fmean(run["curve"][-1][1] if run["curve"] else 0.0 for run in runs)
    return f"{quality:.2f} ({fmean(run['spent']['tokens'] for run in runs):,.0f})".lstrip("0")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize("budget", FUNCTIONS)
def test_the_table_of_functions(budget: int) -> None:
    found = {name: cell("humaneval", "scorer", name, budget) for name in CHECKED}
    assert row(f"{budget:,}", *found.values()) in RESULTS
    told = row(f"{budget:,}", *(found[name] for name in ("single", "best_of_n", "adaptive")))
    assert told in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("report", ["embedded", "qwen-0.5b"])
@pytest.mark.parametrize(("decide", "strategies"), [("scorer", CHECKED), ("vote", VOTED)])
def test_the_table_of_sums(report: str, decide: str, strategies: tuple[str, ...]) -> None:
    for strategy in strategies:
        cells = (cell(report, decide, strategy, budget) for budget in SUMS)
        assert row(f"`{strategy}`", *cells) in RESULTS
