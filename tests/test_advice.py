"""What was measured, shown and made use of: profiles of a ledger, advice from a benchmark's records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph import Budget, create_anytime_graph, load_profile, open_checkpoints
from anytime_graph.advice import expected, measured
from anytime_graph.cli import main
from anytime_graph.state import paid, payoff
from tests.server import Reply, Server

BENCH = Path(__file__).parent / "data" / "bench"


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def more(folder: Path, questions: int, strategy: str, budget: int, score: float) -> None:
    """The recorded benchmark, and as many questions on which a strategy came to a score."""
    file = folder / "records.jsonl"
    if not file.exists():
        file.write_bytes((BENCH / "run" / "records.jsonl").read_bytes())
    rows = map(json.loads, file.read_text().splitlines())
    row = next(r for r in rows if r["strategy"] == "pdp")
    own = {"strategy": strategy, "budgets": [budget], "scores": [score]}
    with file.open("a") as records:
        for i in range(questions):
            records.write(json.dumps({**row, **own, "question": f"q{i}", "cell": f"c{i}"}) + "\n")


def test_two_questions_do_not_tell() -> None:
    told = run("advise", str(BENCH / "run"), "--quality", "0.9")
    assert told.exit_code == 0
    assert told.stdout.startswith("not known")
    assert "best_of_n at 300 tokens: 0.50 [0.06, 0.94] on 2 questions" in told.stdout
    assert "(preparation)" not in told.stdout
    assert run("advise", str(BENCH / "run"), "--quality", "0.99").stdout.startswith("nothing that")
    assert run("advise", str(BENCH / "paper"), "--quality", "0.01").exit_code == 0


def test_the_least_budget_that_reaches_it_is_named(tmp_path: Path) -> None:
    for budget, score in ((1_200, 0.97), (2_400, 0.98), (150, 0.2)):
        more(tmp_path, 200, "adaptive", budget, score)
    told = run("advise", str(tmp_path), "--quality", "0.9", "--task", "constraints")
    first, cheaper, *rest = told.stdout.splitlines()
    assert first.startswith("reached by adaptive at 1,200 tokens: 0.97 [0.9")
    assert cheaper == "more questions would tell of these, which are cheaper"
    assert len(rest) == 8
    assert not any("adaptive" in line for line in rest)
    rows = json.loads(run("advise", str(tmp_path), "--quality", "0.9", "--json").stdout)["measured"]
    assert [r["reaches"] for r in rows if r["strategy"] == "adaptive"] == ["no", "yes", "yes"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "aime"], "--task 'aime': the records are of constraints"),
        (["--model", "gpt"], "--model 'gpt': the records are of local"),
        (["--quality", "0"], "--quality"),
        ([str(BENCH / "paper")], "both protocols"),
        ([str(BENCH)], "no records.jsonl"),
    ],
)
def test_what_cannot_be_advised_on_is_said(words: list[str], told: str) -> None:
    done = run("advise", str(BENCH / "run"), "--quality", "0.5", *words)
    assert done.exit_code == 2
    assert told in done.output


def test_a_benchmark_that_writes_is_only_read(tmp_path: Path) -> None:
    more(tmp_path, 1, "adaptive", 150, 0.2)
    file = tmp_path / "records.jsonl"
    with file.open("a") as records:
        records.write('{"cell": "torn')
    before = file.read_bytes()
    assert run("advise", str(tmp_path), "--quality", "0.5").exit_code == 0
    assert file.read_bytes() == before
    file.write_text("[1]\n")
    done = run("advise", str(tmp_path), "--quality", "0.5")
    assert done.exit_code == 2
    assert "no records of a benchmark" in done.output


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    quality=st.floats(0.01, 1),
)
def test_advice_follows_from_the_interval(scores: list[float], quality: float) -> None:
    records: Any = [
        {
            "protocol": "run",
            "strategy": "pdp",
            "budgets": [300],
            "scores": [score],
            "question": str(i // 2),
        }
        for i, score in enumerate(scores)
    ]
    (found,) = measured(records, quality)
    assert found.questions == (len(scores) + 1) // 2
    assert found.quality.low - 1e-9 <= found.quality.mean <= found.quality.high + 1e-9
    sure = {"yes": found.quality.low >= quality, "no": found.quality.high < quality}
    assert sure.get(found.reaches, not any(sure.values()))


def test_the_profiles_of_a_ledger_are_shown_and_saved(server: Server, tmp_path: Path) -> None:
    db, file = tmp_path / "a.db", tmp_path / "profiles.json"
    server.script = lambda request, i: Reply(text=f"<answer>{2 + request['seed'] % 5}</answer>")
    with open_checkpoints(db) as store:
        app = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(calls=8),
            scorer=lambda question, answer: int(answer) / 10,
            ledger=store.ledger,
        ).compile(store.saver)
        asked: Any = {"messages": [("user", "Why do rivers bend?")]}
        for thread in ("rivers-1", "bikes-1", "bikes-2"):
            app.invoke(asked, {"configurable": {"thread_id": thread}})
    words = ["profile", "--db", str(db), "--task", "rivers", "--task", "bikes"]
    shown = run(*words, "--save", str(file))
    assert shown.exit_code == 0
    assert "taught refine" in shown.stdout
    assert shown.stdout.count("best score so far, against tokens spent") == 2
    rows = json.loads(run(*words, "--json").stdout)
    assert [row["task"] for row in rows] == ["rivers", "bikes"]
    for row in rows:
        assert load_profile(file, "scripted", row["task"]) == row["kinds"]
    assert rows[1]["kinds"]["draft"]["tries"] == 2 * rows[0]["kinds"]["draft"]["tries"]
    assert run("profile", "--db", str(db), "--model", "other").stderr.startswith("no answers")


def test_the_curve_of_a_profile_rises_to_the_best_of_many() -> None:
    drafts = paid(paid(None, payoff(0.2, tokens=100)), payoff(0.6, tokens=300))
    points, tokens = expected({"draft": drafts})
    heights = [point["score"] or 0.0 for point in points]
    assert heights[0] == pytest.approx(0.4)
    assert heights == sorted(heights)
    assert 0.6 < heights[-1] <= 1.0
    assert [point["spent"]["tokens"] for point in points][:2] == [200, 400]
    assert tokens == 3_200
    assert expected({}) == ([], 0)
