"""A server whose own cap on replies is lower than what is asked for: the cap is learned, the model is told of
it, and nothing is spent on the same cut again and again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent

from anytime_graph import Budget, create_anytime_graph
from anytime_graph.metering.learned import forget
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import both
from tests.kit.server import Reply, Server, serving

ASKED: Any = {"messages": [("user", "Tell me all about rivers.")]}
STRATEGIES = ("single", "best_of_n", "pdp", "self_refine", "adaptive", "merge")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        forget()
        yield server


def capped(server: Server, cap: int, obeys: str | None = None, window: int | None = None) -> None:
    """It ends every reply at its own cap, or where prompt and reply fill its window."""

    def script(request: dict[str, Any], i: int) -> Reply:
        own = cap if window is None else window - server.calls[i].prompt
        request["asked"] = request["max_completion_tokens"]
        request["max_completion_tokens"] = min(own, request["asked"])
        told = "(A reply can be about 100 tokens long" in server.calls[i].text
        return Reply(text=obeys if told else None)

    server.script = script


def asked(server: Server) -> list[int]:
    return [call.request["asked"] for call in server.calls]


def run(server: Server, sync: bool = True, **options: Any) -> Any:
    app = create_anytime_graph(
        server.model(), budget=Budget(tokens=6_000), exact_counts=False, **options
    ).compile()
    return app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))


@pytest.mark.pairwise
@both
@pytest.mark.parametrize(
    ("limit", "answer"),
    [("the server's", "tags"), ("the server's", "whole"), ("the model's own", "tags")],
)
@pytest.mark.parametrize("scorer", [None, lambda question, answer: 0.0], ids=["none", "of 0"])
@pytest.mark.parametrize("strategy", [None, *STRATEGIES, "evolve"])
def test_a_run_ends_after_few_replies_if_all_are_cut_and_worth_nothing(
    server: Server, strategy: str | None, scorer: Any, limit: str, answer: str, sync: bool
) -> None:
    own = limit == "the model's own"
    capped(server, 10**6 if own else 100)
    if strategy == "evolve":
        scorer = scorer or (lambda question, answer: 0.0)  # it needs scores
    chosen: Any = {"strategy": strategy, "scorer": scorer}
    app = create_anytime_graph(
        server.model(max_tokens=100) if own else server.model(),
        budget=Budget(tokens=6_000),
        answer=answer,
        exact_counts=False,
        **{name: value for name, value in chosen.items() if value is not None},
    ).compile()
    out = app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))
    assert out["stop_reason"] == "length"
    assert out["best"]["answer"], "what was paid for is not lost"
    assert not out["best"]["complete"]
    assert len(server.calls) <= 20
    assert out["spent"]["tokens"] == server.served <= 4_500
    assert asked(server)[-1] <= 100
    if not own:
        assert "the provider cut the reply after 100 of" in out["errors"][0]


@pytest.mark.parametrize("answer", ["tags", "whole"])
@pytest.mark.parametrize("limit", [1_000, 3_000])
def test_replies_that_their_slices_cut_do_not_end_a_run_by_their_length(
    server: Server, limit: int, answer: str
) -> None:
    server.script = lambda request, i: Reply(text=None)
    app = create_anytime_graph(
        server.model(max_tokens=limit),
        budget=Budget(tokens=8_000),
        strategy="best_of_n",
        answer=answer,
    ).compile()
    assert app.invoke(ASKED)["stop_reason"] == "tokens"
    assert len(server.calls) > 8
    assert {call.limit for call in server.calls} != {limit}


@both
def test_cut_replies_that_a_scorer_values_are_bought_on(server: Server, sync: bool) -> None:
    scores = iter(range(1, 100))
    server.script = lambda request, i: Reply(text=f"{i} " + "on and on " * 100)
    app = create_anytime_graph(
        server.model(max_tokens=80),
        budget=Budget(tokens=6_000),
        scorer=lambda question, answer: next(scores) / 100,
    ).compile()
    out = app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))
    assert out["stop_reason"] == "tokens"
    assert out["best"]["score"] > 0.2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_is_told_of_the_servers_cap_can_keep_to_it(
    server: Server, strategy: str
) -> None:
    capped(server, 100, obeys="so <answer>4</answer> it is")
    out = run(server, strategy=strategy)
    assert out["best"]["complete"]
    assert out["best"]["answer"] == "4"


def test_the_cap_is_learned_from_two_replies_that_end_alike_and_the_window_from_their_sums(
    server: Server,
) -> None:
    capped(server, 0, window=600)
    app = create_anytime_graph(
        server.model(), budget=Budget(tokens=2_500), strategy="single", exact_counts=False
    ).compile()
    for words in (5, 60):
        app.invoke({"messages": [("user", "rivers " * words)]})
    sums = [call.prompt + call.request["asked"] for call in server.calls]
    assert sums[-1] <= 600


@pytest.mark.parametrize("seed", range(3))
def test_replies_that_end_at_ever_other_lengths_teach_no_cap(server: Server, seed: int) -> None:
    """As of a model whose hidden thoughts are neither reported nor shown."""
    dice = random.Random(seed)
    lengths = iter(dice.sample(range(70, 300, 10), 20))

    def script(request: dict[str, Any], i: int) -> Reply:
        request["asked"] = request["max_completion_tokens"]
        request["max_completion_tokens"] = next(lengths)
        return Reply(text=None)

    server.script = script
    run(server, strategy="single", answer="whole")
    assert min(asked(server)) > 300


@both
def test_an_agent_is_not_told_that_its_budget_cut_what_its_server_did(
    server: Server, sync: bool
) -> None:
    capped(server, 100)
    app = create_agent(server.model(), [], middleware=[TokenBudgetMiddleware(Budget(tokens=9_000))])
    out = app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))
    assert out["stop_reason"] == "done"
    assert len(server.calls) == 1
    assert out["messages"][-1].response_metadata["finish_reason"] == "length"


@both
@pytest.mark.parametrize("limit", ["the server's", "the model's own"])
@pytest.mark.parametrize("text", ["", "I shall look."])
def test_an_agent_whose_tool_calls_are_cut_says_so(
    server: Server, text: str, limit: str, sync: bool
) -> None:
    def look(at: str) -> str:
        """Look at something."""
        raise AssertionError("what it is called with is not whole")

    def script(request: dict[str, Any], i: int) -> Reply:
        request["max_completion_tokens"] = min(20, request["max_completion_tokens"])
        return Reply(text=text, tools=[("look", {"at": "the rivers " * 40})])

    server.script = script
    own = {"max_tokens": 20} if limit == "the model's own" else {}
    middleware = [TokenBudgetMiddleware(Budget(tokens=9_000))]
    app = create_agent(server.model(**own), [look], middleware=middleware)
    out = app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))
    assert out["stop_reason"] == "length"
    assert out["spent"]["tokens"] == server.served
    assert text in out["messages"][-1].text


@both
def test_one_chain_that_the_models_own_max_tokens_cuts_is_tried_three_times(
    server: Server, sync: bool
) -> None:
    server.script = lambda request, i: Reply(text=None)
    app = create_anytime_graph(
        server.model(max_tokens=80), budget=Budget(tokens=6_000), strategy="single"
    ).compile()
    out = app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))
    assert out["stop_reason"] == "length"
    assert len(server.calls) <= 5, "and twice an answer is forced"
    assert out["spent"]["tokens"] == server.served
