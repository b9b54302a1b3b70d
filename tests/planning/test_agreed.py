"""Without a scorer, drafts that all say the same end a run: more of them would only repeat it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.store.memory import InMemoryStore

from anytime_graph import Budget, Draft, Move, Until, View, create_anytime_graph
from anytime_graph.planning import strategies
from anytime_graph.planning.prospects import agreement
from tests.kit.marks import torture
from tests.kit.server import Reply, Server, serving

ASK: Any = {"messages": [("user", "What is the capital of France?")]}
PARIS = "<answer>Paris</answer>"
AGAIN = [
    "best_of_n",
    "self_consistency",
    "self_refine",
    "pdp",
    "pdp_positive",
    "leap",
    "merge",
    "adaptive",
]
"""Strategies that ask for more than one answer."""
DRAFTING = [name for name in AGAIN if name != "self_refine"]


def app(server: Server, strategy: Any, scorer: Any = None, tokens: int = 8_000, **more: Any) -> Any:
    return create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=tokens),
        strategy=strategy,
        scorer=scorer,
        **more,
    ).compile()


def asked(server: Server, *arguments: Any, **more: Any) -> dict[str, Any]:
    server.calls.clear()
    made: dict[str, Any] = app(server, *arguments, **more).invoke(ASK, {"recursion_limit": 900})
    server.settled()
    return made


def answers(server: Server, *said: str) -> None:
    """The n-th call of a run gets the n-th of these, and again from the first; a judge, a tie."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if "Verdict" in str(request["messages"]):
            return Reply(text="Alike.\nVerdict: tie")
        return Reply(text=f"<answer>{said[request['seed'] % len(said)]}</answer>")

    server.script = script


@pytest.mark.pairwise(4)
@pytest.mark.parametrize("scorer", [None, "judge", "vote"])
@pytest.mark.parametrize("answer", ["tags", "whole"])
@pytest.mark.parametrize("strategy", AGAIN)
def test_equal_answers_end_the_run(
    server: Server, strategy: str, answer: str, scorer: str | None
) -> None:
    server.script = lambda request, i: Reply(text=PARIS)
    out = asked(server, strategy, scorer, answer=answer)
    assert len(server.calls) <= 8
    assert out["stop_reason"] == "agreed"
    assert out["best"]["answer"] == ("Paris" if answer == "tags" else PARIS)
    if strategy != "self_refine":
        assert out["stop_estimate"] == agreement({"Paris": out["best"]["votes"]}) >= 0.99


@pytest.mark.parametrize("strategy", AGAIN)
def test_equal_answers_end_an_asynchronous_run(server: Server, strategy: str) -> None:
    server.script = lambda request, i: Reply(text=PARIS)
    out = asyncio.run(app(server, strategy).ainvoke(ASK))
    assert len(server.settled().calls) <= 8
    assert (out["stop_reason"], out["best"]["answer"]) == ("agreed", "Paris")


@pytest.mark.pairwise
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("strategy", AGAIN)
def test_equal_answers_count_where_few_are_kept(server: Server, strategy: str, width: int) -> None:
    server.script = lambda request, i: Reply(text=PARIS)
    assert asked(server, strategy, width=width)["stop_reason"] == "agreed"
    assert len(server.calls) <= 8


def test_a_confidence_above_is_not_waited_for(server: Server) -> None:
    """Nor without a budget."""
    server.script = lambda request, i: Reply(text=PARIS)
    out = (
        create_anytime_graph(server.model(seed=0), scorer="vote", until=Until(confidence=0.9999))
        .compile()
        .invoke(ASK)
    )
    assert (out["stop_reason"], len(server.settled().calls)) == ("agreed", 8)


@pytest.mark.pairwise
@pytest.mark.parametrize("strategy", DRAFTING)
@pytest.mark.parametrize("scorer", ["judge", "vote"])
def test_contested_answers_do_not_end_the_run(server: Server, strategy: str, scorer: str) -> None:
    answers(server, "Paris", "Lyon")
    out = asked(server, strategy, scorer, tokens=3_000)
    assert out["stop_reason"] != "agreed"
    assert len(server.calls) > 12


def test_the_judge_is_heard_before_the_many(server: Server) -> None:
    """Most drafts say the same, but the judge prefers another: nothing is agreed on."""

    def script(request: dict[str, Any], i: int) -> Reply:
        text = request["messages"][-1]["content"]
        if "Verdict" in str(request["messages"]):
            first = text.rfind("Lyon") < text.rfind("Paris")
            return Reply(text=f"Better.\nVerdict: {'A' if first else 'B'}")
        return Reply(text="<answer>Lyon</answer>" if request["seed"] == 1 else PARIS)

    server.script = script
    out = asked(server, "best_of_n", "judge", tokens=4_000)
    assert out["best"]["answer"] == "Lyon"
    assert out["stop_reason"] != "agreed"
    assert out["spent_by"]["draft"]["calls"] > 12


@pytest.mark.parametrize("strategy", AGAIN)
def test_a_scorer_is_not_outvoted(server: Server, strategy: str) -> None:
    server.script = lambda request, i: Reply(text=PARIS)
    out = asked(server, strategy, lambda question, answer: 0.5, tokens=3_000)
    assert out["stop_reason"] == "tokens"
    assert len(server.calls) > 12


@pytest.mark.parametrize("scorer", ["judge", "vote"])
def test_a_strategy_of_ones_own_is_not_ended(server: Server, scorer: str) -> None:
    def drafts(view: View) -> Sequence[Move]:
        return [Draft()]

    server.script = lambda request, i: Reply(text=PARIS)
    assert asked(server, drafts, scorer, tokens=3_000)["stop_reason"] == "tokens"
    assert len(server.calls) > 8


def test_a_confidence_asked_for_ends_it_earlier(server: Server) -> None:
    server.script = lambda request, i: Reply(text=PARIS)
    out = asked(server, "adaptive", "vote", until=Until(confidence=0.9))
    assert (out["stop_reason"], len(server.calls)) == ("confidence", 4)


def test_refinements_are_no_votes(server: Server) -> None:
    """Each draft says something else; each refinement says the same."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if "Verdict" in str(request["messages"]):
            return Reply(text="Alike.\nVerdict: tie")
        drafted = request["seed"] < 4 or "Paris 0" not in str(request["messages"])
        return Reply(text=f"<answer>Paris {request['seed'] if drafted else 0}</answer>")

    server.script = script
    for strategy in ("pdp", "adaptive"):
        assert asked(server, strategy, tokens=4_000)["stop_reason"] != "agreed"


@pytest.mark.parametrize("strategy", [name for name in DRAFTING if name != "leap"])
def test_what_the_memory_teaches_is_tried_before(server: Server, strategy: str) -> None:
    store: Any = InMemoryStore()

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text=f"<answer>{'x' * (request['seed'] % 5 + 1)}</answer>")

    server.script = script
    create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=4_000),
        scorer=lambda question, answer: len(answer) / 10,
        memory=store,
    ).compile().invoke(ASK)
    server.script = lambda request, i: Reply(text=PARIS)
    server.settled().calls.clear()
    remembering = create_anytime_graph(
        server.model(seed=0), budget=Budget(tokens=30_000), strategy=strategy, memory=store
    ).compile()
    out = remembering.invoke(ASK)
    assert out["stop_reason"] == "agreed"
    assert len(server.settled().calls) <= 8
    shown = Counter("xxxxx" in c.text for c in server.calls)
    assert shown[True], "lessons were recalled"
    if strategy != "adaptive":
        assert shown[False]


@pytest.mark.parametrize("scorer", [None, "vote"])
@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
def test_of_answers_with_equal_votes_the_first_is_best_in_whatever_steps_they_come(
    server: Server, at_once: int, scorer: Any
) -> None:
    """As in any count of votes; else "b", once it has led, would be best."""
    answers(server, "a", "b", "b", "a")
    strategy, budget = partial(strategies.best_of_n, n=at_once), Budget(calls=4)
    graph = create_anytime_graph(
        server.model(seed=0), budget=budget, strategy=strategy, scorer=scorer
    )
    assert graph.compile().invoke(ASK)["best"]["answer"] == "a"


@settings(max_examples=torture or 7)
@given(
    said=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=16),
    strategy=st.sampled_from(AGAIN),
    scorer=st.sampled_from(["judge", "vote"]),
)
def test_it_only_ever_ends_runs_earlier(said: list[str], strategy: str, scorer: str) -> None:
    with serving() as server:
        answers(server, *said)
        out = asked(server, strategy, scorer, tokens=2_000)
        texts = [c.text for c in server.calls]
        never = patch.object(strategies, "_AGREED", 2.0)
        with never, patch.object(strategies, "_unchanged", lambda view: False):
            before = asked(server, strategy, scorer, tokens=2_000)
        assert len(texts) <= len(server.calls)
        if out["stop_reason"] != "agreed":
            assert out["best"]["answer"] == before["best"]["answer"]
            assert len(texts) == len(server.calls)
        if scorer == "vote" and strategy != "self_refine":
            seen = Counter(said[i % len(said)] for i in range(len(texts)))
            assert out["best"]["answer"] == seen.most_common(1)[0][0], "of equals the first"
