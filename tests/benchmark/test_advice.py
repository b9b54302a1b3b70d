"""What a quality takes, by the records of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.benchmark.advice import advise
from anytime_graph.benchmark.cells import Record
from anytime_graph.cli import main


def record(strategy: str, budget: int, question: int, score: float, **other: Any) -> Record:
    given = {
        "cell": f"{strategy}-{budget}-{question}-{other.get('seed', 0)}",
        "protocol": "run",
        "task": "constraints",
        "model": "scripted",
        "decide": "scorer",
        "strategy": strategy,
        "question": str(question),
        "seed": 0,
        "budgets": [budget],
        "scores": [score],
        "oracle": [score],
        "curve": [],
        "spent": {"tokens": budget // 2, "usd": 0.0},
        "judging": 0,
        "answering": 0,
        "unscored": 0,
        "pairs": 0,
        "stop_reason": "done",
        **other,
    }
    return cast(Record, given)


def measured(right: dict[tuple[str, int], int], n: int = 100) -> list[Record]:
    """So many of n questions right, by strategy and budget."""
    return [
        record(strategy, budget, i, float(i < k))
        for (strategy, budget), k in right.items()
        for i in range(n)
    ]


def test_a_quality_that_only_rounding_keeps_away_is_reached() -> None:
    records = [record("single", 100, i, score) for i, score in enumerate([0.7, 0.8, 0.9])]
    assert advise(records, 0.8)[0].verdict == "likely"


CURVES = {("single", 100): 40, ("single", 200): 45, ("pdp", 100): 45, ("pdp", 200): 75}


@pytest.mark.parametrize(
    ("quality", "verdict", "strategy", "budget"),
    [
        (0.25, "enough", "single", 100),
        (0.45, "enough", "pdp", 200),
        (0.6, "enough", "pdp", 200),
        (0.75, "likely", "pdp", 200),
        (0.8, "unknown", "pdp", 200),
        (0.99, "out of reach", "pdp", 200),
    ],
)
def test_the_smallest_budget_that_will_do(
    quality: float, verdict: str, strategy: str, budget: int
) -> None:
    (advice,) = advise(measured(CURVES), quality)
    assert advice.verdict == verdict
    assert (advice.choice.strategy, advice.choice.budget) == (strategy, budget)
    assert advice.choice.tokens == budget // 2


def test_tasks_models_and_judges_are_told_apart_and_seeds_are_of_one_question() -> None:
    records = [
        record("single", 100, 1, score, seed=seed, task=task)
        for task, scores in {"a": (0.0, 1.0), "b": (1.0, 1.0)}.items()
        for seed, score in enumerate(scores)
    ]
    records += [record("single", 100, 1, 0.25, decide="judge", task="b")]
    found = advise(records, 0.9)
    assert [(a.task, a.decide, a.choice.quality.mean) for a in found] == [
        ("a", "scorer", 0.5),
        ("b", "scorer", 1.0),
        ("b", "judge", 0.25),
    ]
    assert all(a.choice.questions == 1 for a in found)
    assert found[1].verdict == "likely", "one question tells nothing for sure"


def test_enough_is_seldom_said_of_what_is_not() -> None:
    """Eight choices, each right with a chance just below what is asked for."""
    draw, wrong = Random(5), 0
    for _ in range(300):
        right = {
            (s, b): sum(draw.random() < 0.69 for _ in range(30))
            for s in ("single", "pdp")
            for b in (100, 200, 400, 800)
        }
        (advice,) = advise(measured(right, n=30), 0.7)
        wrong += advice.verdict == "enough"
    assert wrong <= 0.05 * 300


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.floats(0.01, 1),
)
def test_advice_is_consistent(scores: list[float], quality: float) -> None:
    (advice,) = advise([record("pdp", 100, i, s) for i, s in enumerate(scores)], quality)
    low, mean, high = advice.choice.quality
    assert 0 <= low <= mean + 1e-9
    assert mean <= high + 1e-9 <= 1 + 2e-9
    above = {"enough": low >= quality, "likely": mean >= quality > low}
    below = {"unknown": high >= quality > mean, "out of reach": quality > high}
    assert (above | below)[advice.verdict]


def test_the_command(tmp_path: Path) -> None:
    rows = "".join(json.dumps(r) + "\n" for r in measured(CURVES))
    (tmp_path / "records.jsonl").write_text(rows)

    def said(*words: str, exit_code: int) -> str:
        done = CliRunner().invoke(main, ["advise", str(tmp_path), *words])
        assert done.exit_code == exit_code, done.output
        return done.output

    found = said("--quality", "0.6", exit_code=0)
    assert "Use pdp at 200 tokens: 0.750 [0.6" in found
    assert "about 100 tokens a question" in found
    assert "Not known" in said("--quality", "0.8", exit_code=1)
    assert "a number above 0, up to 1" in said("--quality", "80", exit_code=2)
    assert "no records of task 'trip'" in said("--quality", "0.8", "--task", "trip", exit_code=2)
    for junk in ("junk\n", '{"task": "trip"}\n', "[]\n"):
        (tmp_path / "records.jsonl").write_text(junk)
        assert "these are no records" in said("--quality", "0.8", exit_code=2)
    (tmp_path / "records.jsonl").write_text(f'{rows}{{"torn": ')
    assert "Use pdp" in said("--quality", "0.6", exit_code=0)
    assert (tmp_path / "records.jsonl").read_text().endswith('"torn": '), "it may be being written"
    (tmp_path / "records.jsonl").unlink()
    assert "no records.jsonl" in said("--quality", "0.6", exit_code=2)
