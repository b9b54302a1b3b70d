"""The audit of a judge: known accuracies and leanings at the wire are found in the record."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from anytime_graph import Budget, Judge, create_anytime_graph, open_checkpoints
from anytime_graph.audit import Audit, audit, audit_questions
from anytime_graph.budget import total
from anytime_graph.planning.moves import Choose, Draft, Move, Stop, View
from tests.kit.judging import (
    QUALITY,
    Says,
    better,
    comparing,
    drafted,
    quality,
    right,
    scripted,
    sides,
    two,
)
from tests.kit.ledgers import ASK, ON
from tests.kit.server import Reply, Server


def audited(server: Server, file: Path, says: Says, n: int = 8, **more: Any) -> Audit:
    scripted(server, says)
    questions = [f"Name river number {i}." for i in range(n)]
    with open_checkpoints(file) as store:
        return audit_questions(
            questions,
            server.model(seed=0),
            quality,
            Budget(tokens=20_000),
            store,
            **{"answer": "whole", **more},
        )


def covers(interval: Any, value: float) -> bool:
    return bool(interval.low <= value <= interval.high)


# --- what judges are found to be


def test_known_accuracy_is_covered(server: Server, tmp_path: Path) -> None:
    p = 0.8
    found = audited(server, tmp_path / "a.db", right(p), n=16)
    assert found.comparisons > 70
    assert found.calls == 2 * found.comparisons == 2 * found.sizes["decided"]
    both, neither = p * p, (1 - p) ** 2
    assert covers(found.agreement, p)
    assert covers(found.agreement_decided, both / (both + neither))
    assert covers(found.decided, both + neither)
    assert covers(found.itself, both + neither)
    assert covers(found.first, 0.5)
    assert "better than chance" in found.verdict
    assert "leans" not in found.verdict
    assert found.spent["tokens"] == server.served
    assert found.spent["calls"] == len(server.calls)


def test_a_perfect_judge(server: Server, tmp_path: Path) -> None:
    found = audited(server, tmp_path / "a.db", lambda a, b, draw: better(a, b), n=6)
    assert found.agreement.mean == found.agreement_decided.mean == found.itself.mean == 1.0  # type: ignore[union-attr]
    assert found.agreement.low > 0.85  # type: ignore[union-attr]
    assert found.agreement == found.agreement_decided, "two orders of one pair are one observation"
    assert found.verdict.startswith("Where both orders agree, it agrees with the scorer in 100%")


def test_a_judge_that_throws_a_coin(server: Server, tmp_path: Path) -> None:
    found = audited(server, tmp_path / "a.db", right(0.5))
    assert covers(found.agreement, 0.5)
    assert covers(found.itself, 0.5)
    assert covers(found.length, 0.0)
    assert "cannot be told from chance: do not let this model judge" in found.verdict


def test_a_judge_that_goes_by_the_place(server: Server, tmp_path: Path) -> None:
    found = audited(server, tmp_path / "a.db", lambda a, b, draw: "A", n=6)
    assert (found.itself.mean, found.decided.mean, found.first.mean) == (0.0, 0.0, 1.0)  # type: ignore[union-attr]
    assert found.agreement.mean == 0.5  # type: ignore[union-attr]
    assert found.agreement_decided is None
    assert "never named the better answer in both orders" in found.verdict
    assert "leans to the answer shown first" in found.verdict


def test_a_lean_to_the_place_is_covered(server: Server, tmp_path: Path) -> None:
    lean = 0.4

    def says(a: str, b: str, draw: random.Random) -> str:
        return "A" if draw.random() < lean else better(a, b)

    found = audited(server, tmp_path / "a.db", says)
    assert covers(found.first, lean + (1 - lean) / 2)
    assert covers(found.agreement, 1 - lean / 2)
    assert found.agreement_decided.mean == 1.0  # type: ignore[union-attr]
    assert "better than chance" in found.verdict


def test_a_judge_that_goes_by_length(server: Server, tmp_path: Path) -> None:
    def says(a: str, b: str, draw: random.Random) -> str:
        return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"

    found = audited(server, tmp_path / "a.db", says)
    assert (found.longer.mean, found.itself.mean) == (1.0, 1.0)  # type: ignore[union-attr]
    assert found.length.low > 0.5  # type: ignore[union-attr]
    assert covers(found.agreement, found.scorer_longer.mean)  # type: ignore[union-attr]
    assert "leans to the longer answer (100%" in found.verdict


def test_a_judge_that_prefers_the_worse(server: Server, tmp_path: Path) -> None:
    found = audited(server, tmp_path / "a.db", right(0.0), n=3)
    assert "worse than chance" in found.verdict


# --- fresh questions


def test_an_audit_that_is_run_again_pays_for_nothing(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = audited(
        server, tmp_path / "a.db", right(0.8), n=3, progress=lambda *of: told.append(of)
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    paid = len(server.calls)
    assert audited(server, tmp_path / "a.db", right(0.8), n=3) == first
    assert len(server.calls) == paid
    longer = audited(server, tmp_path / "a.db", right(0.8), n=4)
    assert longer.questions == 4
    assert longer.spent["tokens"] == server.served


def test_a_function_that_finds_answers_has_one_name_in_every_process(
    server: Server, tmp_path: Path
) -> None:
    """Its address, which differs, is not a part of the threads' names."""

    def finding() -> Callable[[str], str]:
        def found(text: str) -> str:
            return text

        return found

    for each in [finding(), finding()]:
        audited(server, tmp_path / "a.db", right(0.8), n=1, answer=each)
    with open_checkpoints(tmp_path / "a.db") as store:
        assert len(store.ledger.threads()) == 1


def test_an_audit_that_was_stopped_goes_on(server: Server, tmp_path: Path) -> None:
    class Soon:
        def is_set(self) -> bool:
            return len(server.calls) >= 20

    stopped = audited(server, tmp_path / "a.db", right(0.8), n=3, stop=Soon())
    assert 0 < stopped.questions < 3
    whole = audited(server, tmp_path / "a.db", right(0.8), n=3)
    assert whole.questions == 3
    assert whole.spent["tokens"] >= server.settled().served
    assert whole.spent["calls"] == len(server.calls)


def test_another_judge_by_its_rubric_is_another_audit(server: Server, tmp_path: Path) -> None:
    judge = Judge(
        server.model(seed=0).model_copy(update={"model_name": "strict"}), rubric="Be strict."
    )
    audited(server, tmp_path / "a.db", right(1.0), n=1)
    before = len(server.calls)
    found = audited(server, tmp_path / "a.db", right(1.0), n=1, judge=judge)
    compared = [c for c in server.calls[before:] if comparing(c.request)]
    assert {c.request["model"] for c in compared} == {"strict"}
    assert all("Be strict." in c.text for c in compared)
    assert found.calls == len(compared) < len(server.calls) - before


def test_a_perfect_answer_does_not_end_the_comparing(server: Server, tmp_path: Path) -> None:
    """The scorer gives 1.0 to some: an ordinary run would stop there."""
    scripted(server, right(1.0))
    with open_checkpoints(tmp_path / "a.db") as store:
        found = audit_questions(
            ["A river?", "A lake?"],
            server.model(seed=0),
            lambda q, a: quality(q, a) > 0.5,
            Budget(tokens=20_000),
            store,
            answer="whole",
        )
    assert found.comparisons > 2
    assert found.agreement.mean == 1.0  # type: ignore[union-attr]


@pytest.mark.parametrize("calls", [3, 6, 9, 16])
def test_a_budget_of_calls_is_kept(server: Server, tmp_path: Path, calls: int) -> None:
    scripted(server, right(1.0))
    with open_checkpoints(tmp_path / "a.db") as store:
        found = audit_questions(
            ["A river?"], server.model(seed=0), quality, Budget(calls=calls), store, answer="whole"
        )
    assert len(server.calls) <= calls
    assert found.comparisons == {3: 0, 6: 1, 9: 3, 16: 6}[calls]


def test_wrong_arguments_are_refused(server: Server, tmp_path: Path) -> None:
    def asking(questions: Any, scorer: Any, record: Any = "all") -> None:
        with open_checkpoints(tmp_path / "a.db", record=record) as store:
            audit_questions(questions, server.model(), scorer, Budget(calls=9), store)

    for wrong, message in (
        ((["?"], "judge"), "scorer='judge'"),
        (("A river?", quality), "not one text"),
        (([], quality), "at least one"),
        ((["A river?", " "], quality), r"questions\[1\]"),
        ((["A river?"], quality, "usage"), 'record="all"'),
    ):
        with pytest.raises(ValueError, match=message):
            asking(*wrong)
    with (
        open_checkpoints(tmp_path / "a.db") as store,
        pytest.raises(ValueError, match="thread='t'"),
    ):
        audit(store.ledger, "t")
    assert server.calls == []
    with pytest.raises(ValueError, match="judge: it is given as scorer= too"):
        create_anytime_graph(server.model(), scorer=Judge(), judge=Judge())


def test_scores_that_fail_are_told(server: Server, tmp_path: Path) -> None:
    audited(server, tmp_path / "a.db", right(1.0), n=1)
    with (
        open_checkpoints(tmp_path / "a.db") as store,
        closing(sqlite3.connect(tmp_path / "a.db")) as db,
        db,
    ):
        db.execute("UPDATE answers SET score = NULL WHERE ordinal < 2")
    with open_checkpoints(tmp_path / "a.db") as store:
        found = audit(store.ledger, scorer=lambda q, a: 7)
    assert found.sizes["agreement"] == 1
    assert "scorer on answer 0: scorer returned 7" in found.errors[0]


# --- any ledger


def run_two(server: Server, file: Path, record: Any = "all", **more: Any) -> None:
    """An ordinary thread: two drafts and a comparison by the judge."""
    with open_checkpoints(file, record=record) as store:
        graph = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(tokens=20_000),
            answer="whole",
            strategy=two,
            ledger=store.ledger,
            **more,
        )
        app = graph.compile(checkpointer=store.saver)
        app.invoke({"messages": [("user", "A river?")]}, {"configurable": {"thread_id": "t"}})


def test_a_thread_of_the_judges_is_scored_afterwards(server: Server, target: str) -> None:
    scripted(server, right(1.0))
    run_two(server, target)  # type: ignore[arg-type]
    before = len(server.calls)
    with open_checkpoints(target) as store:
        alone = audit(store.ledger, "t")
        assert (alone.agreement, alone.itself.mean, alone.questions) == (None, 1.0, 1)  # type: ignore[union-attr]
        assert "give a scorer" in alone.verdict
        scored = audit(store.ledger, scorer=quality)
        waited = audit(store.ledger, "t", scorer=slowly)
    assert scored.agreement.mean == 1.0  # type: ignore[union-attr]
    assert scored == waited
    assert "Few comparisons show this (1)" in scored.verdict
    assert len(server.calls) == before
    judged = [c for c in server.calls if comparing(c.request)]
    assert scored.spent["tokens"] == sum(c.served for c in judged)
    assert json.loads(json.dumps(scored.as_dict()))["agreement"]["mean"] == 1.0


async def slowly(question: str, answer: str) -> float:
    return quality(question, answer)


def test_verdicts_held_to_a_schema_are_read(server: Server, tmp_path: Path) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if not comparing(request):
            return Reply(text=drafted(request["seed"], "x"))
        return Reply(text=json.dumps({"reason": "So.", "verdict": better(*sides(request))}))

    server.script = script
    with open_checkpoints(tmp_path / "a.db") as store:
        model = server.model(seed=0, profile={"structured_output": True})
        found = audit_questions(
            ["A river?"], model, quality, Budget(tokens=20_000), store, answer="whole"
        )
    assert (found.comparisons, found.unread, found.agreement.mean) == (6, 0, 1.0)  # type: ignore[union-attr]


def test_what_was_not_read_to_its_end_does_not_count(server: Server, tmp_path: Path) -> None:
    """In flight, cut, failed, unclear, ties; scores that are equal."""
    file = tmp_path / "a.db"
    audited(server, file, right(1.0), n=1)
    with closing(sqlite3.connect(file)) as db, db:
        of = "SELECT id FROM calls WHERE kind = 'critique' ORDER BY ordinal"
        ids = [row[0] for row in db.execute(of)]
        assert len(ids) == 12
        for call, change in zip(
            ids,
            [
                "state = 'reserved', ended = NULL, text = 'Verdict: A'",
                "state = 'abandoned', text = 'So. Verdict: A'",
                "ended = 'cut'",
                "ended = 'length'",
                "ended = 'error'",
                "text = 'A is the better one.'",
                "text = 'So.' || char(10) || 'Verdict: tie'",
                "text = 'So.' || char(10) || 'Verdict: tie'",
            ],
            strict=False,
        ):
            db.execute(f"UPDATE calls SET {change} WHERE id = ?", (call,))
    with open_checkpoints(file) as store:
        found = audit(store.ledger)
    assert (found.comparisons, found.calls, found.unread) == (6, 12, 6)
    assert (found.sizes["itself"], found.sizes["decided"], found.sizes["agreement"]) == (3, 3, 2)
    assert found.decided.mean == pytest.approx(2 / 3)  # type: ignore[union-attr]
    assert found.itself.mean == 1.0  # type: ignore[union-attr]
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE answers SET score = 0.5")
    with open_checkpoints(file) as store:
        level = audit(store.ledger)
    assert (level.agreement, level.scorer_longer) == (None, None)
    assert "different scores" in level.verdict


@pytest.mark.parametrize("n", [2, 3])
def test_a_choice_counts_if_it_is_between_two(server: Server, tmp_path: Path, n: int) -> None:
    """Of three, the letter B is not the second of two, and the first place is named by one in three."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if "Choose the best" not in request["messages"][0]["content"]:
            return Reply(text=f"quality {10 * (request['seed'] + 1)}")
        shown = [int(q) for q in QUALITY.findall(request["messages"][-1]["content"])]
        return Reply(text=f"Verdict: {'ABC'[shown.index(max(shown))]}")

    def choosing(view: View) -> list[Move]:
        if not view.best:
            return [Draft()] * n
        return [Stop()] if view.made.get("critique") else [Choose(tuple(range(n)))]

    server.script = script
    with open_checkpoints(tmp_path / "a.db") as store:
        graph = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(tokens=20_000),
            strategy=choosing,
            answer="whole",
            ledger=store.ledger,
        )
        graph.compile(checkpointer=store.saver).invoke(ASK, ON)
        found = audit(store.ledger, scorer=quality)
    assert sum("Choose" in str(call.request["messages"][0]) for call in server.calls) == 2
    if n == 2:
        assert (found.comparisons, found.calls, found.unread) == (1, 2, 0)
        assert found.agreement.mean == found.itself.mean == 1.0  # type: ignore[union-attr]
    else:
        assert (found.comparisons, found.calls) == (0, 0)


def test_without_texts_or_comparisons_it_says_so(server: Server, tmp_path: Path) -> None:
    scripted(server, right(1.0))
    run_two(server, tmp_path / "usage.db", record="usage")
    run_two(server, tmp_path / "scored.db", scorer=quality)
    with open_checkpoints(tmp_path / "usage.db") as store:
        found = audit(store.ledger, scorer=quality)
    assert (found.calls, found.unkept, found.unread, found.longer) == (2, 2, 0, None)
    assert 'record="usage"' in found.verdict
    with open_checkpoints(tmp_path / "none.db") as store:
        found = audit(store.ledger)
    assert found.comparisons == 0
    assert "Nothing was compared" in found.verdict
    assert found.spent == total([])
