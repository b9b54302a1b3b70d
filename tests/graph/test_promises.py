"""P1, P2, P3, P5, P7, P8 over random models, budgets and strategies."""

from __future__ import annotations

import asyncio
import random
import zlib
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from langgraph.store.memory import InMemoryStore

from anytime_graph import Budget, BudgetTooSmall, NoAnswer, Prices, Score, create_anytime_graph
from anytime_graph.checkpoints.memory import memory_of
from anytime_graph.planning.strategies import SCORED, STRATEGIES
from anytime_graph.run.pairs import Pair
from tests.kit.marks import torture
from tests.kit.server import Reply, Server, serving

PRICES = Prices(input=2.0, output=8.0, cached_input=0.5)

replies = st.builds(
    Reply,
    text=st.one_of(
        st.none(),
        st.just(""),
        st.integers(1, 120).map(lambda n: "some words " * n),
        st.integers(0, 9).map(lambda n: f"so <answer>{n}</answer> it is"),
        st.sampled_from(
            [
                "first\nVerdict: A",
                "Verdict: B",
                "even\nVerdict: tie",
                '{"reason": "so", "verdict": "B"}',
                "?!",
                "- a rule",
                "Verdict: good",
            ]
        ),
    ),
    usage=st.sampled_from(["true"] * 6 + ["none", {"prompt_tokens": -1, "completion_tokens": 0}]),
    reasoning=st.sampled_from([0, 0, 0, 20, 400]),
    error=st.sampled_from([None] * 8 + [400, 429, 500, "drop", "break", "junk"]),
    piece=st.sampled_from([1, 1, 4]),
    more=st.sampled_from([[], ["so <answer>4</answer> it is", "", "some words " * 30, None]]),
)
scripts = st.lists(replies, min_size=1, max_size=12)
budgets = st.one_of(
    st.builds(Budget, tokens=st.integers(0, 6_000)),
    st.builds(Budget, output_tokens=st.integers(0, 1_500)),
    st.builds(Budget, usd=st.floats(0, 0.02)),
    st.builds(Budget, calls=st.integers(0, 12)),
    st.builds(
        Budget,
        tokens=st.integers(50, 5_000),
        calls=st.integers(1, 12),
        usd=st.floats(0.0005, 0.02),
        seconds=st.just(60.0),
    ),
)
scorers = st.sampled_from(["judge", "vote", "random", "broken", None])


def follow(script: list[Reply]) -> Any:
    """Replies by the call's place in the run, which its seed tells, so that the order in which
    siblings arrive does not matter. Without a limit an endless text ends."""

    def reply(request: dict[str, Any], i: int) -> Reply:
        chosen = script[request["seed"] % len(script)]
        if chosen.text is None and request.get("max_completion_tokens") is None:
            return Reply(text="enough " * 50)
        return chosen

    return reply


def scored(kind: str | None, seen: list[float]) -> Any:
    if kind not in ("random", "broken"):
        return kind

    def score(question: str, answer: str) -> Any:
        value = zlib.crc32(answer.encode()) % 100 / 101
        if kind == "broken" and value < 0.5:
            return random.Random(value).choice(
                [float("nan"), "rubbish", None, 7, 1 / 0 if value > 0.25 else -1]
            )
        seen.append(value)
        return Score(value, "do better") if value > 0.7 else value

    return score


def remembering() -> InMemoryStore:
    """A store with pairs of an earlier question like the one that is asked."""
    store = InMemoryStore()
    told = {"chosen": "b", "rejected": "w", "chosen_id": 0, "rejected_id": 1, "gap": 0.5}
    more = {"better": "they bend " * 20, "worse": "no idea", "why": "it says why"}
    pair = Pair(**told, **more, by="judge", why_by="judge")  # type: ignore[typeddict-item]
    memory_of(store).learn((), "Why do rivers bend so?", [pair], ["Say why."], 1)
    return store


def outcome(
    server: Server,
    sync: bool,
    budget: Budget,
    strategy: str,
    kind: Any,
    helped: bool,
    script: list[Reply],
) -> Any:
    """helped: by a memory, and by a schema for verdicts."""
    seen: list[float] = []
    server.calls.clear()
    server.script = follow(script)
    app = create_anytime_graph(
        server.model(n=None, seed=0, profile={"structured_output": helped}),
        budget=budget,
        memory=remembering() if helped else None,
        strategy=strategy,
        scorer=scored(kind, seen),
        prices=PRICES,
    ).compile()
    question = {"messages": [("user", "Why do rivers bend?")]}
    try:
        out = app.invoke(question) if sync else asyncio.run(app.ainvoke(question))
    except BudgetTooSmall as refusal:
        assert not server.settled().calls
        return ("too small", str(refusal))
    except NoAnswer as failure:
        server.settled()
        spent, best = failure.spent, None
    else:
        server.settled()
        spent, best = out["spent"], out["best"]
        assert out["messages"][-1].text == best["answer"]
        assert out["stop_reason"]
    if helped and len(server.calls) > 1 and best and (budget.calls or 0) > 3:
        assert budget.tokens or any(
            "they bend" in c.text or "Say why." in c.text for c in server.calls
        )
    served = sum(c.prompt + c.output for c in server.calls)
    cost = sum(PRICES.usd(c.prompt, c.output) for c in server.calls)
    asked = sum(not c.refused for c in server.calls)
    for dimension, true, slack in (  # P1
        ("tokens", served, 0),
        ("output_tokens", sum(c.output for c in server.calls), 0),
        ("usd", cost, 1e-9),
        ("calls", asked, 0),
    ):
        limit = budget.limits().get(dimension)
        note(f"{dimension}: {true} of {limit}, booked {spent[dimension]}")
        assert limit is None or true <= limit + slack
        assert limit is None or spent[dimension] <= limit + slack
    assert spent["calls"] == asked  # P5
    if all(c.reported for c in server.calls):
        assert spent["tokens"] == served
        assert spent["usd"] == pytest.approx(cost)
    if budget.tokens is not None or budget.usd is not None:
        assert spent["tokens"] >= served
    texts = [c for c in server.calls if c.output and c.reported]
    if best is None:  # P2
        assert not any(_said(server, c) for c in texts)
    elif kind in ("random", "broken") and seen:  # P3
        assert best["score"] == max(seen)
    return (best["answer"] if best else None, spent | {"seconds": 0})


def _said(server: Server, call: Any) -> bool:
    reply = server.script(call.request, 0)
    visible = call.output - min(reply.reasoning, call.output)
    return reply.error is None and visible > 0 and reply.text != ""


@settings(max_examples=torture or 20)
@given(
    budget=budgets,
    strategy=st.sampled_from([*sorted(STRATEGIES), "evolve"]),
    kind=scorers,
    helped=st.booleans(),
    script=scripts,
)
def test_promises_hold_and_sync_equals_async(
    budget: Budget, strategy: str, kind: Any, helped: bool, script: list[Reply]
) -> None:
    if strategy in SCORED and kind != "broken":
        kind = "random"
    with serving() as server:
        first = outcome(server, True, budget, strategy, kind, helped, script)
    with serving() as server:  # of which nothing is known yet either
        second = outcome(server, False, budget, strategy, kind, helped, script)
    assert first == second
