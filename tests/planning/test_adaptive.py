"""Depth that follows the question: the adaptive strategy, stopping rules, open-ended runs, profiles.
Each statement of docs/theory.md has its simulation here."""

from __future__ import annotations

import heapq
import json
import math
import statistics
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import (
    Budget,
    Draft,
    Prices,
    Until,
    create_anytime_graph,
    load_profile,
    open_checkpoints,
    profile_of,
    save_profile,
)
from anytime_graph.budget import Limits
from anytime_graph.cli import main
from anytime_graph.metrics import wilson
from anytime_graph.planning.moves import Stop, planned_move
from anytime_graph.planning.plan import plan
from anytime_graph.planning.profiles import expected_best
from anytime_graph.planning.prospects import (
    agreement,
    chance_of_more,
    fitting,
    prospects,
    reply_length,
    rise,
    slice_,
    tokens_left,
    verdicts,
    vote_gain,
)
from anytime_graph.planning.strategies import STRATEGIES, pdp
from anytime_graph.planning.until import outweighed
from anytime_graph.run.ranking import both_orders
from anytime_graph.run.state import Payoff, add_payoffs
from anytime_graph.run.state import payoff as one_answer
from tests.bench.simulation import (
    DRAFT,
    KINDS,
    NAMES,
    Kind,
    asked,
    cell,
    normal,
    setup,
    simulate,
)
from tests.kit.marks import some, torture
from tests.kit.runs import drafts, seen
from tests.kit.samples import FILE
from tests.kit.server import Reply, Server

ASK: Any = {"messages": [("user", "Why do rivers bend?")]}
PRICES = Prices(input=2.0, output=8.0)
RUNS = 12
FEW = RUNS if torture else 6


def quarter(question: str, answer: str) -> float:
    return 0.25


def digit(question: str, answer: str) -> float:
    return int(answer) / 10


def digits(server: Server, *values: int) -> None:
    """The n-th call of a run answers with the n-th digit, those after them with the last."""
    server.script = lambda request, i: Reply(
        text=f"so <answer>{values[min(request['seed'], len(values) - 1)]}</answer> it is"
    )


# --- adaptive -----------------------------------------------------------------------------------


def test_adaptive_is_above_every_fixed_strategy_over_the_grid() -> None:
    # An answer to a vote is right or wrong, so its means need more runs than those of scores.
    found = {
        (kind, budget, name): statistics.fmean(
            cell((kind, budget, name, 4 * RUNS if kind == "vote" else RUNS))
        )
        for kind in KINDS
        for budget in ((2, 8) if torture else (4,))
        for name in NAMES
    }
    means = {n: statistics.fmean(v for (_, _, s), v in found.items() if s == n) for n in NAMES}
    assert max(means, key=lambda n: means[n]) == "adaptive", means
    for kind, budget, name in found:
        assert found[kind, budget, "adaptive"] > 0.88 * found[kind, budget, name]


@pytest.mark.parametrize("strategy", [n for n in NAMES if n != "single"])
@given(
    tokens=st.integers(DRAFT // 2, 8 * DRAFT),
    kind=st.sampled_from(["easy", "hard", "bimodal", "refinable", "teachable"]),
    seed=st.integers(0, 1_000),
)
def test_no_strategy_brings_less_than_one_call_of_the_same_budget(
    strategy: str, tokens: int, kind: str, seed: int
) -> None:
    """However many drafts a strategy wants, the first replies are as whole as a single one would be."""
    limits: Limits = {"tokens": tokens}
    one, found = (
        simulate(setup(KINDS[kind], name), KINDS[kind], seed, limits).at(tokens)
        for name in ("single", strategy)
    )
    assert found >= one


@pytest.mark.parametrize("strategy", NAMES)
@given(tokens=st.integers(200, 20_000), output=st.floats(0.1, 100), cheaper=st.floats(0.01, 1))
def test_dollars_begin_with_the_calls_of_the_tokens_that_they_pay_for(
    strategy: str, tokens: int, output: float, cheaper: float
) -> None:
    """Before anything was spent, the price is known all the same. A fifth may be held back for a last call
    that is too dear in tokens."""
    kind, prices = KINDS["easy"], Prices(input=output * cheaper, output=output)
    rules = setup(kind, strategy)
    priced = replace(rules, meters={r: replace(m, prices=prices) for r, m in rules.meters.items()})
    rooms = []
    for limits in ({"tokens": tokens}, {"usd": tokens * output / 1e6}):
        calls = plan(priced, asked("Why?", cast(Limits, limits)), stopped=False)
        assert not isinstance(calls, Stop)
        rooms.append([c.call["max_output"] or 0 for c in calls])
    in_tokens, in_dollars = rooms
    assert len(in_dollars) == len(in_tokens)
    held = tokens / 5 + 1
    assert all(d >= t - held for d, t in zip(in_dollars, in_tokens, strict=True))


def test_dollars_that_bought_no_tokens_are_planned_with_too() -> None:
    """A tool has its price, and the call that asked for it may have been refused."""
    state = asked("Why?", {"usd": 0.01})
    state["spent"] = {**state["spent"], "usd": 0.002}
    rules = setup(KINDS["easy"], "adaptive")
    priced = replace(rules, meters={r: replace(m, prices=PRICES) for r, m in rules.meters.items()})
    assert not isinstance(plan(priced, state, stopped=False), Stop)


@pytest.mark.parametrize(
    ("kind", "mostly"), [("hard", "draft"), ("refinable", "refine"), ("bimodal", "draft")]
)
def test_adaptive_does_what_pays(kind: str, mostly: str) -> None:
    made: Counter[str] = Counter()
    for seed in range(6):
        run = simulate(setup(KINDS[kind], "adaptive"), KINDS[kind], seed, {"tokens": 24 * DRAFT})
        for name, payoff in run.state["payoffs"].items():
            made[name] += payoff["tokens"]
    assert made.most_common(1)[0][0] == mostly


@pytest.mark.parametrize("answer", ["tags", "whole"])
def test_replies_that_run_on_do_not_take_the_budget(server: Server, answer: str) -> None:
    """Every other reply fills whatever it is given."""
    short = "so it goes, " * 10 + "and <answer>3</answer> it is"
    server.script = lambda request, i: Reply(text=short if i % 2 else None)
    out = (
        create_anytime_graph(
            server.model(),
            budget=Budget(tokens=4_000),
            scorer=lambda question, answer: 0.3 if "3" in answer else 0.0,
            strategy="adaptive",
            answer=answer,
        )
        .compile()
        .invoke(ASK)
    )
    limits = [c.limit for c in server.settled().calls]
    assert max(limits) < 1_600
    assert sum(limits[2:]) / len(limits[2:]) < 320
    assert len(limits) > 12
    assert out["best"]["score"] == 0.3


@pytest.mark.parametrize("strategy", ["adaptive", "best_of_n", "self_consistency", "pdp"])
@pytest.mark.parametrize("tokens", [200, 300, 450, 700])
def test_fewer_drafts_with_the_instructions_come_before_more_without(
    server: Server, strategy: str, tokens: int
) -> None:
    """In full, a prompt takes 78 tokens, and 14 without a word about tags."""
    server.script = lambda request, i: Reply(f"so it is <answer>{i % 3}</answer>")
    graph = create_anytime_graph(server.model(), strategy=strategy, scorer=digit)
    graph.compile().invoke({**ASK, "budget": Budget(tokens=tokens)})
    calls = server.settled().calls
    assert "<answer>" in calls[0].text
    assert sum(call.served for call in calls) <= tokens


def test_adaptive_leaves_a_judge_that_names_a_place() -> None:
    kind = Kind("judge", normal(0.5, 0.15), lean=1.0)
    ended = [
        simulate(setup(kind, "adaptive"), kind, seed, {"tokens": 200 * DRAFT}) for seed in range(4)
    ]
    assert [run.reason for run in ended] == ["undecided"] * 4
    assert all(run.state["spent"]["tokens"] < 100 * DRAFT for run in ended)


def test_adaptive_leaves_a_judge_that_only_ties(server: Server) -> None:
    server.script = lambda request, i: Reply(
        text="Alike.\nVerdict: tie" if "Verdict" in str(request) else f"<answer>{i}</answer>"
    )
    app = create_anytime_graph(
        server.model(seed=0), budget=Budget(tokens=400_000), strategy="adaptive", scorer="judge"
    ).compile()
    out = app.invoke(ASK, {"recursion_limit": 2_000})
    assert out["stop_reason"] == "undecided"
    assert out["judging"]["agreed"] == out["judging"]["flips"] == 0
    assert out["spent"]["tokens"] < 100_000


def test_adaptive_keeps_to_calls_and_dollars_too(server: Server) -> None:
    digits(server, 1, 3, 2, 4)
    for budget in (Budget(calls=6), Budget(usd=0.01), Budget(output_tokens=60)):
        app = create_anytime_graph(
            server.model(seed=0), budget=budget, scorer=digit, strategy="adaptive", prices=PRICES
        ).compile()
        out = app.invoke(ASK)
        assert out["best"]["score"] == 0.4
        assert out["spent"]["calls"] >= 4


# --- the estimate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "kind", "gain"),
    [
        ({}, "draft", 0.019),
        ({}, "taught draft", 0.058),
        ({"taught_draft": drafts(0.3)}, "draft", 0.016),
        ({"taught_draft": drafts(0.3)}, "taught draft", 0.020),
        ({}, "refine", 0.038),
        ({"refine": drafts(0.6)}, "refine", 0.027),
        ({"refine": drafts(0.6)}, "taught refine", 0.027),
        ({"taught_refine": drafts(0.6)}, "taught refine", 0.027),
    ],
)
def test_what_a_move_brings_is_as_worked_out(
    more: dict[str, Payoff], kind: str, gain: float
) -> None:
    found = prospects(seen(draft=drafts(0.2, 0.4, 0.6), **more))
    assert found[kind].gain == pytest.approx(gain, abs=0.0005)


def test_how_long_a_reply_is_is_as_worked_out() -> None:
    two = drafts(0.4, 0.6, tokens=(300, 500))
    ten = drafts(*[0.4] * 10, tokens=(300, 500))
    cut = drafts(0.0, 0.0, tokens=(500,), cut=True)
    assert reply_length(seen()) is None
    assert reply_length(seen(draft=two)) == pytest.approx((500, 1_300))
    assert reply_length(seen(draft=ten)) == pytest.approx((500, 1_060))
    assert reply_length(seen(draft=two, whole=True)) == pytest.approx((500, 850))
    assert reply_length(seen(draft=ten, whole=True)) == pytest.approx((500, 730))
    assert reply_length(seen(draft=cut, left=3_000)) == pytest.approx((625, 1_000))
    assert reply_length(seen(draft=cut)) == pytest.approx((625, 2_500))
    assert reply_length(seen(draft=cut, whole=True)) == pytest.approx((625, 250))
    assert slice_(seen(), "draft") == 768
    assert slice_(seen(draft=two), "draft") == pytest.approx(1_550)
    assert slice_(seen(draft=two, left=1_800), "draft") == 1_800
    told = replace(seen(), profile={"draft": two})  # counts as one draft
    assert reply_length(told) == pytest.approx((500, 1_600))
    assert reply_length(seen(taught_draft=two)) == reply_length(seen(draft=two))


@pytest.mark.parametrize(
    ("left", "price", "tokens"),
    [
        ({"usd": 0.01}, 2e-6, 5_000),
        ({"usd": 0.01}, 8e-6, 1_250),
        ({"usd": 0.01, "tokens": 900}, 8e-6, 900),
        ({"calls": 4, "seconds": 1}, 8e-6, 2_000),
        ({"usd": 0.01}, 0.0, 16_000),  # as without limits
    ],
)
def test_what_is_left_is_worth_as_many_tokens_as_worked_out(
    left: Limits, price: float, tokens: int
) -> None:
    view = replace(seen(draft=drafts(0.5)), left=left, usd_per_token=price)
    assert tokens_left(view) == pytest.approx(tokens)


def test_as_many_drafts_fit_as_get_whole_slices() -> None:
    unknown = seen(2_400)
    assert [fitting(unknown, 4, part) for part in (1.0, 0.5, 0.1)] == [3, 1, 1]
    known = seen(8_000, draft=drafts(0.2, 0.4, tokens=(300, 500)))
    assert slice_(known, "draft") == 1_550
    assert [fitting(known, n, part) for n, part in ((4, 1.0), (9, 1.0), (4, 0.5))] == [4, 5, 2]
    assert fitting(replace(unknown, left={"calls": 2}), 4, 1.0) == 4
    short = seen(264, draft=drafts(0.5, tokens=(6,)))  # with a prompt of 200
    assert fitting(short, 4, 1.0) == 1
    shared = replace(short, prompt_once=True)
    assert [fitting(replace(shared, left={"tokens": t}), 9, 1.0) for t in (264, 346, 347)] == [
        1,
        4,
        4,
    ]


def test_how_likely_a_reply_is_longer_is_as_worked_out() -> None:
    two, many = drafts(0.4, 0.6, tokens=(97, 5)), drafts(*[0.4] * 10, tokens=(97, 5))
    assert chance_of_more(seen(), 150) is None
    assert chance_of_more(seen(draft=two), 150) == pytest.approx(0.16, abs=0.005)
    assert chance_of_more(seen(draft=many), 150) == pytest.approx(0.08, abs=0.005)
    assert chance_of_more(seen(draft=drafts(0.0, tokens=(500,), cut=True)), 150) is None
    told = replace(seen(), profile={"draft": two})  # counts as one draft
    assert chance_of_more(told, 51) == 0.5


def test_a_strategy_and_a_rule_go_by_the_same_estimate() -> None:
    """pdp chooses what the estimate puts first, and `Until` stops by its rate."""
    run = seen(draft=drafts(0.2, 0.4, 0.5, 0.6), taught_draft=drafts(0.3), refine=drafts(0.7))
    run = replace(run, made={"draft": 5}, recalled=True)
    found = prospects(run)
    best = max(("draft", "taught draft", "taught refine"), key=lambda kind: found[kind].rate)
    asked = pdp(run)
    assert [type(move).__name__.lower() for move in asked] == [best.split()[-1]] * len(asked)
    stop = outweighed(Until(min_gain=9.0), run, [planned_move(Draft())])
    assert stop is not None
    assert stop.estimate == 1_000 * found["draft"].rate


# --- stopping rules -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_target_stops_every_strategy(strategy: str, server: Server) -> None:
    digits(server, 7)
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=20_000),
        scorer=digit,
        strategy=strategy,
        until=Until(target=0.7),
    ).compile()
    out = app.invoke(ASK)
    assert (out["stop_reason"], out["stop_estimate"]) == ("target", 0.7)
    assert out["spent"]["tokens"] < 2_000


def test_a_target_that_only_rounding_keeps_away_is_reached(server: Server) -> None:
    digits(server, 7)
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(calls=8),
        scorer=lambda question, answer: 0.7 + 0.1,
        strategy="best_of_n",
        until=Until(target=0.8),
    ).compile()
    out = app.invoke(ASK)
    assert out["stop_reason"] == "target"


def test_no_rule_is_on_unless_asked_for_but_the_perfect_score(server: Server) -> None:
    options: dict[str, Any] = {"budget": Budget(calls=9), "scorer": digit, "strategy": "best_of_n"}
    digits(server, 7)
    out = create_anytime_graph(server.model(seed=0), **options).compile().invoke(ASK)
    assert (out["stop_reason"], out["stop_estimate"]) == ("calls", None)
    digits(server, 7, 10)
    out = create_anytime_graph(server.model(seed=0), **options).compile().invoke(ASK)
    assert (out["stop_reason"], out["stop_estimate"]) == ("perfect", 1.0)


@pytest.mark.parametrize("strategy", ["adaptive", "self_consistency"])
def test_confidence_stops_a_vote(strategy: str, server: Server) -> None:
    digits(server, 4)
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(calls=40),
        scorer="vote",
        strategy=strategy,
        until=Until(confidence=0.95),
    ).compile()
    out = app.invoke(ASK)
    assert out["stop_reason"] == "confidence"
    assert out["stop_estimate"] == agreement({"4": out["best"]["votes"]}) >= 0.95
    assert 5 <= out["spent"]["calls"] <= 8


@pytest.mark.parametrize("strategy", ["adaptive", "best_of_n", "pdp", "self_refine"])
def test_min_gain_and_price_stop_where_nothing_rises(strategy: str, server: Server) -> None:
    digits(server, 2)
    for until in (Until(min_gain=0.4), Until(price=0.002)):
        app = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(tokens=60_000),
            scorer=quarter,
            strategy=strategy,
            prices=PRICES,
            until=until,
        ).compile()
        out = app.invoke(ASK, {"recursion_limit": 2_000})
        assert out["stop_reason"] == ("min_gain" if until.min_gain else "price")
        assert out["stop_estimate"] < (until.min_gain or 0.0)
        assert out["spent"]["calls"] > 1
        assert out["spent"]["tokens"] < 30_000


def test_a_dearer_price_thinks_longer() -> None:
    kind, spent = KINDS["hard"], []
    for gain in (0.5, 0.1, 0.02):
        rules = setup(kind, "best_of_n", until=Until(min_gain=gain))
        runs = [simulate(rules, kind, seed, {"tokens": 60 * DRAFT}) for seed in range(RUNS)]
        spent.append(statistics.fmean(run.state["spent"]["tokens"] for run in runs))
    assert spent[0] < spent[1] < spent[2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "give one of"),
        ({"target": 1.5}, "target=1.5"),
        ({"target": 0}, "target=0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"min_gain": -1}, "min_gain=-1"),
        ({"min_gain": True}, "min_gain=True"),
        ({"price": float("inf")}, "price=inf"),
        ({"price": "much"}, "price='much'"),
    ],
)
def test_a_rule_out_of_range_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Until(**given)


@pytest.mark.parametrize(
    ("until", "scorer", "told"),
    [
        (Until(target=0.9), "judge", "needs a score"),
        (Until(confidence=0.9), digit, "needs a vote"),
        (Until(min_gain=0.1), "judge", "needs a scorer or a vote"),
        (Until(price=1.0), digit, "needs the model's prices"),
    ],
)
def test_a_rule_with_nothing_to_go_by_is_refused(
    until: Until, scorer: Any, told: str, server: Server
) -> None:
    with pytest.raises(ValueError, match=told):
        create_anytime_graph(server.model(), budget=Budget(calls=1), scorer=scorer, until=until)


# --- without a budget ---------------------------------------------------------------------------


def test_without_a_budget_a_run_needs_an_end(server: Server) -> None:
    app = create_anytime_graph(server.model(seed=0), scorer=digit).compile()
    with pytest.raises(ValueError, match=r"until=Until\(...\)"):
        app.invoke(ASK, context={"stop": threading.Event()})
    with pytest.raises(ValueError, match=r"until=Until\(...\)"):
        Budget()
    assert not server.calls


@pytest.mark.parametrize("strategy", ["adaptive", "best_of_n", "pdp"])
def test_an_open_run_goes_on_until_its_rule_holds(strategy: str, server: Server) -> None:
    digits(server, *([1] * 60), 9)
    app = create_anytime_graph(
        server.model(seed=0), scorer=digit, strategy=strategy, until=Until(target=0.9)
    ).compile()
    out = app.invoke(ASK, {"recursion_limit": 2_000})
    assert out["stop_reason"] == "target"
    assert out["limits"] == {}
    assert all(call.limit is not None for call in server.calls)


def test_an_open_run_thinks_on_for_what_it_is_given(server: Server) -> None:
    digits(server, *([1] * 9), 9, 1)
    app = create_anytime_graph(
        server.model(seed=0), scorer=digit, strategy="best_of_n", until=Until(target=0.9)
    ).compile(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 2_000}
    first = app.invoke(ASK, config)
    assert (first["stop_reason"], first["limits"]) == ("target", {})
    app = create_anytime_graph(
        server.model(seed=0), scorer=digit, strategy="best_of_n", until=Until(target=1.0)
    ).compile(app.checkpointer)
    more: Any = {"budget": Budget(calls=3)}
    out = app.invoke(more, config)
    assert out["stop_reason"] == "calls"
    assert out["spent"]["calls"] == first["spent"]["calls"] + 3 == out["limits"]["calls"]


def test_an_open_run_ends_at_the_event(server: Server) -> None:
    stop, asked = threading.Event(), iter(range(99))

    def watch(event: str, call: Any) -> None:
        if event == "asked" and next(asked) == 11:
            stop.set()

    server.watch = watch
    digits(server, 3)
    app = create_anytime_graph(
        server.model(seed=0), scorer=digit, strategy="adaptive", until=Until(target=0.9)
    ).compile()
    out = app.invoke(ASK, {"recursion_limit": 2_000}, context={"stop": stop})
    assert (out["stop_reason"], out["best"]["score"]) == ("interrupted", 0.3)


@pytest.mark.parametrize("strategy", ["adaptive", "best_of_n", "pdp", "self_refine"])
def test_stopped_at_any_moment_it_holds_what_a_quarter_of_the_spend_buys(strategy: str) -> None:
    """The factor of the doubling schedule, over kinds of questions, at moments drawn at random."""
    first = ["adaptive", "best_of_n", "pdp", "self_refine"].index(strategy)
    for name in some([*KINDS], 2, first):
        kind = KINDS[name]
        rules, gaps = setup(kind, strategy), []
        for seed in range(FEW):
            opened = simulate(rules, kind, seed, {}, until=24 * DRAFT)
            rng = Random(f"{name}, {seed}")
            moments = [DRAFT * rng.uniform(4, 24) for _ in range(3)]
            known = [simulate(rules, kind, seed, {"tokens": int(m / 4)}) for m in moments]
            mine = [opened.at(m) - k.at(math.inf) for m, k in zip(moments, known, strict=True)]
            gaps.append(statistics.fmean(mine))
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        assert statistics.fmean(gaps) >= -2 * error - 0.01, name


@pytest.mark.parametrize("strategy", ["single", "adaptive", "best_of_n", "self_refine", "pdp"])
def test_an_open_run_stakes_no_more_than_three_times_what_it_spent(
    strategy: str, server: Server
) -> None:
    """Nor does it stand still: with replies that fill any limit, the limits grow."""
    stop, staked = threading.Event(), list[tuple[int, int]]()

    def watch(event: str, call: Any) -> None:
        spent = sum(c.served for c in server.calls if c.output)
        if event == "asked":
            staked.append((call.prompt + call.limit, spent))
        if spent > 30_000:
            stop.set()

    server.watch = watch
    server.script = lambda request, i: Reply(text=None, piece=1_000)
    app = create_anytime_graph(
        server.model(seed=0), scorer=lambda q, a: 0.1, strategy=strategy, until=Until(target=0.9)
    ).compile()
    out = app.invoke(ASK, {"recursion_limit": 2_000}, context={"stop": stop})
    assert out["stop_reason"] == "interrupted"
    assert all(stake <= max(5_000, 3 * spent) for stake, spent in staked)
    assert max(staked)[0] >= 4 * staked[0][0]


@pytest.mark.parametrize("strategy", ["adaptive", "best_of_n"])
def test_an_open_run_cuts_no_draft_at_the_end_of_a_horizon(strategy: str, server: Server) -> None:
    stop = threading.Event()

    def watch(event: str, call: Any) -> None:
        if len(server.calls) > 30:
            stop.set()

    server.watch = watch
    server.script = lambda request, i: Reply(text="so " * 600 + "<answer>1</answer>", piece=100)
    app = create_anytime_graph(
        server.model(seed=0), scorer=digit, strategy=strategy, until=Until(target=0.9)
    ).compile()
    out = app.invoke(ASK, {"recursion_limit": 2_000}, context={"stop": stop})
    assert out["stop_reason"] == "interrupted"
    assert all(c.output < c.limit for c in server.calls)


# --- profiles -----------------------------------------------------------------------------------


def payoff(tries: int, score: float, spread: float, tokens: int, change: float = 0.0) -> Any:
    return {
        "tries": tries,
        "worth": tries * score,
        "squares": tries * (score**2 + spread**2),
        "change": tries * change,
        "changes": tries * (change**2 + spread**2),
        "tokens": tries * tokens,
        "written": tries * tokens // 2,
        "cut": 0,
        "whole": tries * tokens // 2,
    }


REFINES = {"draft": payoff(50, 0.35, 0.08, 400), "refine": payoff(50, 0.6, 0.06, 700, 0.08)}
"""Learned where refinements pay."""
DRAFTS = {"draft": payoff(50, 0.5, 0.15, 400), "refine": payoff(50, 0.4, 0.1, 700, -0.15)}
"""Learned where they harm."""


def test_a_profile_is_learned_from_a_ledger_and_kept_in_a_file(
    server: Server, tmp_path: Path
) -> None:
    digits(server, 2, 4, 3, 6, 5, 7)
    with open_checkpoints(tmp_path / "a.db") as store:
        app = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(calls=32),
            scorer=digit,
            strategy="pdp",
            ledger=store.ledger,
        ).compile(store.saver)
        out = app.invoke(ASK, {"configurable": {"thread_id": "rivers-1"}})
        learned = profile_of(store.ledger, "scripted", threads="rivers")
        assert profile_of(store.ledger, "another") == profile_of(store.ledger, threads="x") == {}
    answers = [c for c in server.calls if "Think step by step" in c.text]
    assert learned.keys() >= {"draft", "taught draft", "taught refine"}
    assert sum(p["tries"] for p in learned.values()) == len(answers)
    assert sum(p["tokens"] for p in learned.values()) == sum(c.served for c in answers)
    assert sum(p["written"] for p in learned.values()) == sum(c.output for c in answers)
    assert learned["draft"]["worth"] >= 1.5
    assert out["best"]["score"] == 0.7
    file = tmp_path / "profiles.json"
    save_profile(file, learned, "scripted", "rivers")
    save_profile(file, REFINES, "scripted", "texts")
    assert load_profile(file, "scripted", "rivers") == learned
    assert load_profile(file, "scripted", "texts") == REFINES
    with pytest.raises(KeyError, match="it has 'scripted' on 'rivers', 'scripted' on 'texts'"):
        load_profile(file, "other")
    create_anytime_graph(server.model(), profile=load_profile(file, "scripted", "rivers"))


def test_a_profile_whose_numbers_do_not_agree_is_refused() -> None:
    good = REFINES["draft"]
    for bad in ({"whole": good["written"] + 1}, {"written": good["tokens"] + 1}, {"cut": 51}):
        with pytest.raises(ValueError, match="cannot be of the same 50 answers"):
            create_anytime_graph("local", profile={"draft": {**good, **bad}})


@given(
    field=st.sampled_from(sorted(REFINES["draft"])),
    value=st.sampled_from(
        [math.nan, math.inf, -math.inf, -51, 10**30, 1e300, None, "9", [], {}, True]
    ),
)
def test_a_profile_of_junk_is_refused(field: str, value: Any) -> None:
    bad = {"draft": {**REFINES["draft"], field: value}}
    with pytest.raises(ValueError, match="profile, draft"):
        create_anytime_graph("local", profile=bad)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[" * 100_000,
        "null",
        "{}",
        '{"version": 2, "profiles": []}',
        '{"version": 1, "profiles": [1]}',
        '{"version": 1, "profiles": [{"model": 1, "task": "", "kinds": {}}]}',
        '{"version": 1, "profiles": [{"model": "m", "task": "", "kinds": {"sing": {}}}]}',
        '{"version": 1, "profiles": [{"model": "m", "task": "", "kinds": {"draft": {"tries": NaN}}}]}',
        " " * 2_000_000,
    ],
    ids=range(11),
)
def test_a_file_of_junk_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"p\.json"):
        load_profile(file, "m")
    with pytest.raises(ValueError, match=r"p\.json"):
        save_profile(file, REFINES, "m")
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("refinable", REFINES, DRAFTS), ("refinement harmful", DRAFTS, REFINES)],
)
def test_a_profile_helps_and_a_wrong_one_is_outgrown(name: str, right: Any, wrong: Any) -> None:
    kind, tokens = KINDS[name], 24 * DRAFT
    index = {
        told: statistics.fmean(
            simulate(
                setup(kind, "adaptive", profile=profile), kind, seed, {"tokens": tokens}
            ).index(tokens)
            for seed in range(2 * RUNS)
        )
        for told, profile in (("none", {}), ("right", right), ("wrong", wrong))
    }
    assert index["right"] > index["none"]
    assert index["wrong"] > 0.85 * index["none"]


def command(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def test_the_profiles_of_a_ledger_are_shown_and_saved(server: Server, tmp_path: Path) -> None:
    db, file = tmp_path / "a.db", tmp_path / "profiles.json"
    server.script = lambda request, i: Reply(text=f"<answer>{2 + request['seed'] % 5}</answer>")
    with open_checkpoints(db) as store:
        app = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(calls=32),
            scorer=lambda question, answer: int(answer) / 10,
            strategy="pdp",
            ledger=store.ledger,
        ).compile(store.saver)
        asked: Any = {"messages": [("user", "Why do rivers bend?")]}
        for thread in ("rivers-1", "bikes-1", "bikes-2"):
            app.invoke(asked, {"configurable": {"thread_id": thread}})
    words = ["profile", "--db", str(db), "--task", "rivers", "--task", "bikes"]
    shown = command(*words, "--save", str(file))
    assert shown.exit_code == 0
    assert "taught refine" in shown.stdout
    assert shown.stdout.count("best score so far, against tokens spent") == 2
    rows = json.loads(command(*words, "--json").stdout)
    assert [row["task"] for row in rows] == ["rivers", "bikes"]
    for row in rows:
        assert load_profile(file, "scripted", row["task"]) == row["kinds"]
    assert rows[1]["kinds"]["draft"]["tries"] == 2 * rows[0]["kinds"]["draft"]["tries"]
    assert command("profile", "--db", str(db), "--model", "other").stderr.startswith("no answers")


def test_the_curve_of_a_profile_rises_to_the_best_of_many() -> None:
    drafts = add_payoffs(one_answer(0.2, tokens=100), one_answer(0.6, tokens=300))
    points, tokens = expected_best({"draft": drafts})
    heights = [point["score"] or 0.0 for point in points]
    assert heights[0] == pytest.approx(0.4)
    assert heights == sorted(heights)
    assert 0.6 < heights[-1] <= 1.0
    assert [point["spent"]["tokens"] for point in points][:2] == [200, 400]
    assert tokens == 3_200
    assert expected_best({}) == ([], 0)


# --- theory -------------------------------------------------------------------------------------


@given(
    mean=st.floats(0, 1),
    spread=st.floats(0.01, 0.5),
    cost=st.floats(0.001, 0.2),
    horizon=st.integers(1, 12),
)
def test_drafting_while_a_draft_brings_more_than_it_costs_is_optimal(
    mean: float, spread: float, cost: float, horizon: int
) -> None:
    """Against dynamic programming over the best score so far, with scores on a grid."""
    grid = [i / 20 for i in range(21)]
    weights = [
        max(
            1e-9,
            rise(mean, spread, x - 0.05) - 2 * rise(mean, spread, x) + rise(mean, spread, x + 0.05),
        )
        for x in grid
    ]
    chances = [w / sum(weights) for w in weights]

    def gain(best: float) -> float:
        return sum(p * max(0.0, x - best) for p, x in zip(chances, grid, strict=True))

    optimal, ours = list(grid), list(grid)
    for _ in range(horizon):
        on = [
            sum(p * v[max(i, j)] for j, p in enumerate(chances)) - cost
            for v in (optimal, ours)
            for i in range(21)
        ]
        optimal = [max(b, v) for b, v in zip(grid, on[:21], strict=True)]
        ours = [v if gain(b) > cost else b for b, v in zip(grid, on[21:], strict=True)]
    assert ours == pytest.approx(optimal, abs=1e-9)


def right(prior: tuple[float, float], wrong: int) -> float:
    """The chance that a draft is right after so many that were wrong."""
    a, b = prior
    return a / (a + b + wrong)


def expected(
    priors: list[tuple[float, float]], costs: list[int], budget: int, greedy: bool, part: float
) -> float:
    """How many questions get a right answer: by the best of all ways to spend the budget, each next draft
    depending on all replies so far, or by the largest gain per token until such a draft is too dear. Of
    that draft's gain, this part of what is left of the budget counts."""

    @cache
    def of(wrong: tuple[int, ...], left: int) -> float:
        """wrong: for each question, how many drafts were; -1 once one was right."""
        open_ = [i for i, n in enumerate(wrong) if n >= 0]
        if greedy:
            open_ = sorted(open_, key=lambda i: -right(priors[i], wrong[i]) / costs[i])[:1]
        values = [0.0]
        for i in open_:
            chance = right(priors[i], wrong[i])
            if costs[i] > left:
                values.append(part * chance * left / costs[i])
                continue
            over, on = (
                of((*wrong[:i], n, *wrong[i + 1 :]), left - costs[i]) for n in (-1, wrong[i] + 1)
            )
            values.append(chance * (1 + over) + (1 - chance) * on)
        return max(values)

    return of((0,) * len(priors), budget)


@given(
    priors=st.lists(st.tuples(st.floats(0.2, 3), st.floats(0.2, 5)), min_size=3, max_size=3),
    costs=st.one_of(st.just([1, 1, 1]), st.lists(st.integers(1, 4), min_size=3, max_size=3)),
    budget=st.integers(1, 12),
)
def test_no_way_to_spend_a_budget_is_better_by_a_draft_than_gain_per_token(
    priors: list[tuple[float, float]], costs: list[int], budget: int
) -> None:
    best = expected(priors, costs, budget, greedy=False, part=0)
    greedy, bound = (expected(priors, costs, budget, greedy=True, part=part) for part in (0, 1))
    assert greedy - 1e-9 <= best <= bound + 1e-9
    assert bound == greedy or len(set(costs)) > 1


@pytest.mark.parametrize("profile", [{}, {"draft": drafts(*[1.0] * 6, *[0.0] * 4)}])
def test_the_gain_of_a_draft_never_rises_while_a_checker_says_wrong(profile: Any) -> None:
    views = (seen(best=0.0, draft=drafts(*[0.0] * n)) for n in range(1, 200))
    gains = [prospects(replace(view, profile=profile))["draft"].gain for view in views]
    assert gains == sorted(gains, reverse=True)


@given(mean=st.floats(-1, 2), spread=st.floats(0, 1), best=st.floats(0, 1))
def test_the_expected_rise_is_that_of_a_score_that_ends_at_1(
    mean: float, spread: float, best: float
) -> None:
    drawn = [
        max(
            0.0,
            min(1.0, statistics.NormalDist(mean, max(spread, 1e-12)).inv_cdf((i + 0.5) / 400))
            - best,
        )
        for i in range(400)
    ]
    assert rise(mean, spread, best) == pytest.approx(statistics.fmean(drawn), abs=0.01)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_agreement_bounds_the_posterior_from_below(votes: list[int]) -> None:
    """Against draws of which answers were slips, and of the shares of the others: those seen and all not
    seen together."""
    rng, n, drafts = Random(str(votes)), 1_500, sum(votes)
    leader, *others = sorted(votes, reverse=True)
    singles, leads = votes.count(1), 0

    def likely(slips: int) -> float:
        """Their number's posterior weight: the ways to choose them, the rate's integral, and the process."""
        rate = math.factorial(slips) * math.factorial(drafts - slips) / math.factorial(drafts + 1)
        return math.comb(singles, slips) * rate / math.factorial(drafts - slips)

    weights = [likely(slips) for slips in range(singles + 1)]
    for _ in range(n):
        slips = rng.choices(range(singles + 1), weights)[0]
        at = set(rng.sample([i for i, v in enumerate([leader, *others]) if v == 1], slips))
        kept = [0.0 if i in at else float(v) for i, v in enumerate([leader, *others])]
        shares = [rng.gammavariate(v, 1.0) if v else 0.0 for v in (*kept, 1.0)]
        leads += 0 < shares[0] == max(shares)
    assert agreement(dict(enumerate(votes))) <= leads / n + 4 * math.sqrt(0.25 / n)  # type: ignore[arg-type]
    if not others and leader > 1:
        assert agreement({"a": leader}) == 1 - 2**-leader


def test_a_vote_among_answers_that_all_differ_promises_ever_less() -> None:
    alone, two, *more = (vote_gain(dict.fromkeys(range(n), 1)) for n in range(1, 40))
    assert two > alone > min(more)
    assert more == sorted(more, reverse=True)


# How often a draft is right, and among how many wrong answers the others are.
MIXTURES: dict[str, list[tuple[float, int]]] = {
    "half hopeless": [(0.5, 4), (0.0, 1_000)],
    "slips": [(0.1, 1_000), (0.2, 1_000), (0.3, 1_000), (0.5, 1_000)],
    "mixed": [(p, m) for p in (0.0, 0.2, 0.4, 0.6, 0.9) for m in (1, 3, 1_000)],
}


@pytest.mark.parametrize(
    ("mixture", "least"), [("half hopeless", -0.05), ("slips", 0.05), ("mixed", 0.02)]
)
def test_votes_go_where_they_tell(mixture: str, least: float) -> None:
    """Of 60 questions with six votes each, against equal shares."""

    def right(rule: Callable[[Counter[int]], float], seed: int) -> int:
        kinds = Random(seed).choices(MIXTURES[mixture], k=60)
        draws = [Random(f"{seed}/{i}") for i in range(60)]
        ballots: list[Counter[int]] = [Counter() for _ in kinds]
        queue = [(-math.inf, i) for i in range(60)]
        for _ in range(6 * 60):
            if not queue:
                break
            _, i = heapq.heappop(queue)
            (chance, wrong), draw = kinds[i], draws[i]
            ballots[i][0 if draw.random() < chance else 1 + draw.randrange(wrong)] += 1
            if 1 - agreement(ballots[i]) > min(0.1, 0.005 * ballots[i].total()):
                heapq.heappush(queue, (-rule(ballots[i]), i))
        return sum(found.most_common(1)[0][0] == 0 for found in ballots)

    def more(seed: int) -> float:
        return (right(vote_gain, seed) - right(lambda votes: -votes.total(), seed)) / 60

    assert statistics.fmean(map(more, range(RUNS))) > least


def test_answers_that_come_once_are_mostly_slips() -> None:
    assert agreement({"a": 7}) == pytest.approx(0.992, abs=0.001)
    ballots = {"a": 7} | dict.fromkeys("bcdefghijklm", 1)
    assert agreement(ballots) == pytest.approx(0.984, abs=0.001)
    assert agreement({"a": 7} | dict.fromkeys("bcdefghijklm", 2)) < 0.7


def drawn(rng: Random) -> list[float]:
    """Shares of answers under a Dirichlet process of concentration 1: broken off a stick."""
    shares, rest = [], 1.0
    while rest > 1e-4:
        part = rng.random()
        shares.append(rest * part)
        rest *= 1 - part
    return shares


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_confidence_stop_errs_no_more_often_than_it_says(confidence: float) -> None:
    """However often it looks: questions from the prior, stopped at the first vote that will do."""
    rng, wrong, stopped = Random(0), 0, 0
    for _ in range(1_500):
        shares, slips, votes = drawn(rng), rng.random(), Counter[str]()
        for i in range(60):
            slip = rng.random() < slips
            votes[f"slip {i}" if slip else str(rng.choices(range(len(shares)), shares)[0])] += 1
            if agreement(votes) >= confidence:
                stopped += 1
                wrong += votes.most_common(1)[0][0] != str(shares.index(max(shares)))
                break
    assert stopped > 700
    assert wilson(wrong, stopped).low <= 1 - confidence


def test_confidence_is_as_right_as_all_samples_for_fewer_tokens() -> None:
    """On recorded replies of the embedded model."""
    questions: dict[str, list[dict[str, Any]]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        questions.setdefault(row["question"], []).append(row)
    right, all_right, spent, whole = 0, 0, 0, 0
    for rows in questions.values():
        votes: Counter[str] = Counter()
        truth = {row["answer"]: row["correct"] for row in rows}
        all_right += truth[Counter(row["answer"] for row in rows).most_common(1)[0][0]]
        whole += sum(row["tokens"] for row in rows)
        for row in rows:
            votes[row["answer"]] += 1
            spent += row["tokens"]
            if agreement(votes) >= 0.95:
                break
        right += truth[votes.most_common(1)[0][0]]
    n = len(questions)
    print(f"right {right}/{n} for {spent} tokens; all samples {all_right}/{n} for {whole}")
    assert n >= 30
    assert wilson(all_right, n).low <= right / n <= wilson(all_right, n).high
    assert spent < whole


@pytest.mark.parametrize("lean", [0.0, 0.4, -0.7])
@pytest.mark.parametrize("right", [0.55, 0.75, 0.95])
def test_what_a_judge_in_both_orders_tells_of_itself(right: float, lean: float) -> None:
    """How often it is right, and wrong, follows from where it flips, though nobody told the truth;
    but only if its errors are not the same in both orders."""
    rng = Random(1)

    def said(*shown: int) -> int:
        if rng.random() < abs(lean):
            return shown[lean < 0]
        return 1 if rng.random() < right else 2

    told, true = [], []
    for _ in range(20):
        calls = [(said(1, 2), said(2, 1)) for _ in range(150)]
        seen = Counter(calls)
        flips = seen[1, 2], seen[2, 1]
        told.append(verdicts(150 - sum(flips), *flips))
        winners = Counter(both_orders(1, 2, *call).winner for call in calls)
        true.append((winners[1] / 150, winners[2] / 150))
    for estimates, shares in zip(zip(*told, strict=True), zip(*true, strict=True), strict=True):
        assert statistics.fmean(estimates) == pytest.approx(statistics.fmean(shares), abs=0.07)


def test_a_judge_that_is_wrong_in_both_orders_looks_right() -> None:
    alike = [both_orders(1, 2, 2, 2) for _ in range(20)]
    better, worse = verdicts(sum(m.winner is not None for m in alike), 0, 0)
    assert better > 0.8
    assert worse < 0.05


def test_a_draft_by_hand_is_a_strategy_still(server: Server) -> None:
    digits(server, 2, 5)
    app = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=2), scorer=digit, strategy=lambda view: [Draft()]
    ).compile()
    assert app.invoke(ASK)["best"]["score"] == 0.5
