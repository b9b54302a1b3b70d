"""TreeQuest's AB-MCTS-A as a strategy: its tree is made from the candidates of a run, each time."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime_graph import Budget, create_anytime_graph
from anytime_graph.planning import tree_search
from anytime_graph.planning.strategies import resolve
from anytime_graph.planning.tree_search import expanded
from anytime_graph.run.pairs import Candidate
from tests.kit.marks import torture
from tests.kit.server import Reply, Server

pytestmark = pytest.mark.skipif(find_spec("treequest") is None, reason="no treequest")

ASK: Any = {"messages": [("user", "Why do rivers bend?")]}


def candidate(i: int, of: int | None, score: float | None) -> Candidate:
    known: Any = {"id": i, "parents": [] if of is None else [of], "score": score, "text": f"t{i}"}
    return known


def grown(seed: int, n: int) -> list[Candidate]:
    """The candidates of a run of n answers, and each move that led to them checked against a tree of
    treequest's own, which is kept from step to step and draws by the same seeds."""
    import treequest

    dice, algorithm = random.Random(seed), treequest.ABMCTSA()
    tree = algorithm.init_tree()
    candidates: list[Candidate] = []
    asked: list[int | None] = []
    for i in range(n):
        of = expanded(candidates)
        score = dice.choice([0.0, 0.25, 0.5, 1.0, None])

        def answered(parent: int | None, i: int = i, score: float | None = score) -> Any:
            asked.append(parent)
            return i, score or 0.0

        with tree_search.seeded(candidates):
            tree = algorithm.step(tree, {"answer": answered})
        assert asked[i] == of
        candidates.append(candidate(i, of, score))
    return candidates


@settings(max_examples=torture or 12)
@given(st.integers(0, 10_000))
def test_it_moves_as_a_tree_that_is_kept_from_step_to_step(seed: int) -> None:
    candidates = grown(seed, 12)
    assert expanded(candidates) == expanded(candidates)
    assert expanded(candidates) in {None, *(c["id"] for c in candidates)}


def test_chance_elsewhere_neither_changes_it_nor_is_changed() -> None:
    import numpy

    candidates = grown(1, 6)
    found = set()
    for seed in range(5):
        numpy.random.seed(seed)
        found.add(expanded(candidates))
        drawn = numpy.random.random()
        numpy.random.seed(seed)
        assert numpy.random.random() == drawn
    assert len(found) == 1


def test_an_answer_whose_parent_was_forgotten_counts_as_a_draft() -> None:
    assert expanded([candidate(7, 3, 0.5)]) in {None, 7}


def test_good_answers_are_refined_and_bad_ones_left() -> None:
    """Where drafts are bad and what is made from the first is good."""
    drafts = [candidate(i, None, 0.1) for i in range(6)]
    made = [candidate(6 + i, 0, 0.9) for i in range(6)]
    chosen = [expanded([*drafts, *made, candidate(20 + n, 0, 0.9)]) for n in range(20)]
    assert sum(of in {0, *range(6, 12), *range(20, 40)} for of in chosen) > 10


def test_as_a_strategy_it_drafts_and_refines_within_the_budget(server: Server) -> None:
    server.script = lambda request, i: Reply(text=f"<answer>{request['seed'] * 7 % 10}</answer>")

    def run() -> dict[str, Any]:
        server.calls.clear()
        graph = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(tokens=3_000),
            strategy="ab_mcts",
            scorer=lambda question, answer: int(answer) / 10,
        )
        out: dict[str, Any] = graph.compile().invoke(ASK, {"recursion_limit": 500})
        assert server.settled().served == out["spent"]["tokens"] <= 3_000
        return out

    first, second = run(), run()
    assert first["spent_by"].keys() == {"draft", "refine"}
    assert len(first["candidates"]) == first["spent"]["calls"] > 8, "all are kept for the tree"
    assert [c["parents"] for c in first["candidates"]] == [
        c["parents"] for c in second["candidates"]
    ]


def test_the_package_that_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_search, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="strategy='ab_mcts': pip install treequest"):
        resolve("ab_mcts")
    with pytest.raises(ImportError, match="strategy='ab_mcts': pip install treequest"):
        create_anytime_graph("local", strategy="ab_mcts", scorer=lambda question, answer: 0.5)
