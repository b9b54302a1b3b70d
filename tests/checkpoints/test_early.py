"""Threads of versions from before the sets in tests/data/stored: killed while they drafted."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest

from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from anytime_graph.run.forms import UnknownForm
from anytime_graph.run.upgrade import migrated_assignment, migrated_state, planned_call
from tests.kit.places import DATA
from tests.kit.server import Reply, Server

EARLY = sorted((DATA / "early").iterdir())


def script(request: dict[str, Any], i: int) -> Reply:
    judging = "ANSWER A" in str(request["messages"])
    return Reply("Reason.\nVerdict: A" if judging else f"so <answer>{i % 10}</answer> it is")


def scorer(question: str, answer: str) -> float:
    return min(0.9, 0.1 * int("".join(c for c in answer if c.isdigit()) or 0))


def left(file: Path, folder: Path) -> Path:
    target = folder / "anytime.db"
    target.write_bytes(lzma.decompress(file.read_bytes()))
    return target


@pytest.mark.parametrize("file", EARLY, ids=lambda file: file.name)
@pytest.mark.parametrize("thread", ["killed", "killed-scorer"])
def test_a_killed_thread_goes_on(server: Server, tmp_path: Path, file: Path, thread: str) -> None:
    server.script = script
    on: Any = {"configurable": {"thread_id": thread}}
    with open_checkpoints(left(file, tmp_path)) as store:
        (run,) = store.ledger.runs(thread)
        paid = run["spent"]["tokens"]
        app = create_anytime_graph(
            server.model(),
            budget=Budget(tokens=6_000),
            scorer=scorer if thread.endswith("scorer") else None,
            ledger=store.ledger,
        ).compile(checkpointer=store.saver)
        for given in (None, {"budget": Budget(tokens=500)}):
            out = app.invoke(given, on)
            assert out["stop_reason"] in ("tokens", "judge", "perfect", "agreed")
            assert out["best"] is not None
            assert out["spent"]["tokens"] == paid + server.settled().served


@pytest.mark.parametrize(
    ("read", "stored"),
    [
        (migrated_assignment, {"move": {"kind": "draft"}}),
        (planned_call, {"task": '{"move": {"kind": "draft"}}'}),
        (migrated_state, {"question_id": "q", "thread": "rivers"}),
        (migrated_state, {"returned": [{"ordinal": 0}]}),
    ],
)
def test_what_cannot_be_read_says_so(read: Any, stored: dict[str, Any]) -> None:
    with pytest.raises(UnknownForm, match=r"an early version .* cannot read it \(KeyError: "):
        read(stored)


def test_candidates_and_pairs_get_the_fields_that_they_lack() -> None:
    candidate = {"id": 0, "answer": "7", "text": "so 7", "score": None}
    pair = {"chosen": "7 it is", "rejected": "8 it is", "why": "", "by": "judge", "gap": 1.0}
    now: Any = migrated_state(
        {
            "question_id": "q",
            "limits": {"tokens": 900},
            "best": candidate,
            "candidates": [candidate],
            "pairs": [pair],
        }
    )
    assert now["best"] == now["candidates"][0] == {**candidate, "right": None, "taught": False}
    assert now["pairs"][0]["why_by"] == "nobody"
    assert now["pairs"][0]["better"] in pair["chosen"]
