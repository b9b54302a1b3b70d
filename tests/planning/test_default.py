"""The default decides by itself: by agreement where answers can agree, by a choice among several where not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction
from functools import partial
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph import Budget, Judge, create_anytime_graph
from anytime_graph.nodes.critique import chosen
from anytime_graph.planning.moves import Choose, Draft, Move, Stop, View, planned_move
from anytime_graph.run.calls import shown_order
from anytime_graph.run.state import Decides
from anytime_graph.scoring import normal
from tests.bench.simulation import DRAFT, KINDS, setup, simulate
from tests.kit.server import Reply, Server

ASK: Any = {"messages": [("user", "What is the capital of France?")]}
WORDS = [
    "river",
    "bend",
    "slow",
    "water",
    "stone",
    "outer",
    "bank",
    "sand",
    "inner",
    "years",
    "loop",
    "flood",
    "lake",
]


def asked(server: Server, tokens: int = 8_000, **options: Any) -> dict[str, Any]:
    app = create_anytime_graph(server.model(seed=0), budget=Budget(tokens=tokens), **options)
    out: dict[str, Any] = app.compile().invoke(ASK, {"recursion_limit": 900})
    server.settled()
    return out


def choosing(request: dict[str, Any]) -> bool:
    return "Verdict" in str(request["messages"])


def best_letter(request: dict[str, Any]) -> str:
    text = request["messages"][-1]["content"]
    found = re.findall(r"ANSWER ([A-Z]).*?quality (\d+)", text, re.DOTALL)
    return str(max(found, key=lambda each: int(each[1]))[0])


def essay(request: dict[str, Any], i: int, words: int = 280, honest: bool = True) -> Reply:
    """Drafts that never agree, of about 280 tokens; a judge that is right, or names the first."""
    if choosing(request):
        return Reply(text=f"Verdict: {best_letter(request) if honest else 'A'}")
    prose = " ".join(Random(request["seed"]).choices(WORDS, k=words))
    return Reply(text=f"<answer>quality {request['seed'] * 37 % 101} {prose}</answer>")


# --- answers that can agree ----------------------------------------------------------------------


@pytest.mark.parametrize("every", [5, 3])
def test_one_answer_against_many_that_differ_is_soon_returned(server: Server, every: int) -> None:
    """Two of five drafts, or one of three, say the same; the rest all differ."""

    def script(request: dict[str, Any], i: int) -> Reply:
        seed = request["seed"]
        agrees = seed % 5 < 2 if every == 5 else seed % 3 == 0
        return Reply(text=f"<answer>{'Paris' if agrees else f'Town {seed}'}</answer>")

    server.script = script
    out = asked(server)
    assert (out["best"]["answer"], out["stop_reason"]) == ("Paris", "agreed")
    assert 0.9 <= out["stop_estimate"] < 1
    assert len(server.calls) <= 20


def test_numbers_agree_however_they_are_written(server: Server) -> None:
    forms = ["1,000", "1000", "1000.0", "1000."]
    server.script = lambda request, i: Reply(
        text=f"By all that is known it is <answer>{forms[request['seed'] % 4]}</answer> in all."
    )
    out = asked(server)
    assert out["stop_reason"] == "agreed"
    assert len(server.calls) <= 8


def test_an_answer_whose_tag_is_not_closed_agrees_with_the_others(server: Server) -> None:
    server.script = lambda request, i: Reply(
        text=f"By all that is known it is <answer>42{'</answer>' if i % 2 else ''}"
    )
    out = asked(server)
    assert (out["best"]["answer"], out["stop_reason"]) == ("42", "agreed")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,000.0", "1000", True),
        ("+5", "5.", True),
        ("-0", "0", True),
        ("12,34", "1234", False),
        ('{"b": [1, 2.0], "a": "X"}', '{"a":"x","b":[1.0,2]}', True),
        ("[1, 2]", "[2, 1]", False),
        ("{2, 1.0}", "{1,2,2}", True),
        ("0.1234567891", "0.1234567892", False),
        ("1" * 30, "1" * 29 + "2", False),
        ("\u22125", "-5.0", True),
        (".50", "0.5", True),
        ("$42$", "**42**.", True),
        (r"\boxed{1,000}", "`1000`", True),
        (r"\(x + 1\)", "x + 1", True),
        (r"\text{Paris}", "Paris.", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("$5 or $6", "5 or $6", False),
        ("**a** or **b**", "a** or **b", False),
        ("x\u00b2", "x2", False),
        ("1/2", "0.50", True),
        (r"\(\frac{2}{6}\)", "1/3", True),
        (r"$\boxed{-\frac12}$", "-.5", True),
        ("2/4", "1/2", False),
        ("4/2", "2", False),
        ("1/3", "0.3333333333", False),
        ("1e3", "1,000", True),
        (r"2.5 \times 10^{-3}", "0.0025", True),
        ("1e-05", "0.00001", True),
        ("10^3", "1000", True),
        ("12e3", "12000", False),
        ("1e400", "1" + "0" * 400, True),
        ("1" * 40 + ".5", "1" * 40 + ".50", True),
        ("0,123", "123", False),
        ("1.000", "1000", False),
        ("50%", r"50.0 \%", True),
        ("50%", "50 percent", True),
        ("50%", "0.5", False),
        ("50%", "50", False),
        ("$5", "5.00 dollars", True),
        ("-\u20ac1,000", "-1000 EUR", True),
        ("$5", "5", False),
        ("$5", "\u20ac5", False),
        ("\u00a35", "5 pounds", False),
        ("1,000 km", "1000 km", True),
        ("1.10 km", "1.1 km", False),
        ('{"a": 0.12345678901234567890}', '{"a": 0.12345678901234567891}', False),
        ('{"a": 1e3}', '{"a": 1000}', True),
        ('{"a": "1e3"}', '{"a": 1e3}', False),
        ("{1/2, 0.5, 3}", "{3, 0.5}", True),
    ],
)
def test_values_are_compared_as_what_they_are(one: str, other: str, same: bool) -> None:
    assert (normal(one) == normal(other)) == same


@given(
    st.one_of(
        st.text(),
        st.text("*`$.\\()-\u22125{} "),
        st.text("0123456789,.e+-/^%$\u20ac{}\\ "),
        st.integers().map(str),
        st.floats(allow_nan=False).map(str),
        st.fractions().map(str),
        st.lists(st.fractions().map(str), min_size=1).map(lambda f: f"{{{', '.join(f)}}}"),
    )
)
def test_the_form_of_an_answer_is_its_own_form(answer: str) -> None:
    assert normal(normal(answer)) == normal(answer)


@st.composite
def written(draw: st.DrawFn) -> tuple[Fraction, str]:
    """A number in one of the ways in which it can be written."""
    value = draw(
        st.one_of(
            st.fractions(max_denominator=99).filter(lambda f: abs(f) < 10**9),
            st.builds(Fraction, st.decimals(-(10**9), 10**9, places=3)),
            st.builds(
                lambda n, power: n * Fraction(10) ** power,
                st.integers(-20, 20),
                st.integers(-80, 80),
            ),
        )
    )
    forms = [rf"\frac{{{value.numerator}}}{{{value.denominator}}}".replace(r"\frac{-", r"-\frac{")]
    forms = forms if max(abs(value.numerator), value.denominator) < 10**18 else []
    if value.denominator > 1 and abs(value.numerator) < 10**18 and value.denominator < 10**18:
        forms.append(str(value))
    with localcontext(prec=200, Emin=-999, Emax=999) as context:
        context.traps[Inexact] = True
        with suppress(Inexact):
            exact = Decimal(value.numerator) / value.denominator
            trimmed = exact.normalize()
            digits = f"{exact:f}"
            forms += [
                digits,
                f"{exact:,f}",
                f"**{digits}**",
                f"${digits}$",
                f"{digits}{'' if '.' in digits else '.0'}0",
            ]
            if trimmed:
                mantissa, _, power = f"{trimmed:e}".partition("e")
                forms += [f"{mantissa}e{power}", rf"\({mantissa} \times 10^{{{int(power)}}}\)"]
    return value, draw(st.sampled_from(forms))


@given(written(), written())
def test_numbers_are_one_answer_if_and_only_if_their_values_are(
    one: tuple[Fraction, str], other: tuple[Fraction, str]
) -> None:
    assert (normal(one[1]) == normal(other[1])) == (one[0] == other[0])
    assert [Fraction(normal(form)) for _, form in (one, other)] == [one[0], other[0]]


def test_a_tie_that_nothing_else_can_settle_is_put_to_the_judge(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if choosing(request):
            return Reply(text=f"Verdict: {best_letter(request)}")
        reasoning = " ".join(Random(request["seed"]).choices(WORDS, k=800))
        return Reply(text=f"{reasoning} <answer>quality {1 + request['seed'] % 2}</answer>")

    server.script = script
    out = asked(server, 4_500)
    votes = {c["answer"]: c["votes"] for c in out["candidates"] if c["complete"]}
    assert votes == {"quality 1": 2, "quality 2": 2}
    assert out["judging"]["comparisons"] == 1
    assert out["best"]["answer"] == "quality 2"


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "drafts"), [(1_700, 2), (2_000, 2), (2_400, 3), (4_000, 5), (8_000, 7)]
)
def test_drafts_that_are_paid_for_are_told_apart(server: Server, tokens: int, drafts: int) -> None:
    server.script = essay
    out = asked(server, tokens)
    made = [c.request["seed"] for c in server.calls if not choosing(c.request)]
    assert len(made) >= drafts
    best = re.findall(r"\d+", out["best"]["answer"])[0]
    assert int(best) == max(seed * 37 % 101 for seed in made)
    assert all(c.served - c.request["max_completion_tokens"] < tokens for c in server.calls)
    assert out["judging"]["spent"]["output_tokens"] <= 8 * out["judging"]["spent"]["calls"]


def test_a_choice_is_confirmed_in_another_order(server: Server) -> None:
    """A judge that names the first place moves nothing."""
    server.script = partial(essay, honest=False)
    out = asked(server)
    assert out["judging"]["comparisons"] == out["judging"]["flips"] == out["judging"]["firsts"] > 0
    assert out["best"]["id"] == 0


def test_a_share_that_is_named_holds(server: Server) -> None:
    server.script = essay
    out = asked(server, 8_000, judge=Judge(share=0.2))
    assert out["judging"]["spent"]["tokens"] <= 1_600
    server.calls.clear()
    out = asked(server, 4_000)
    assert out["judging"]["spent"]["tokens"] > 0.25 * 4_000


@pytest.mark.parametrize("tokens", [4_000, 16_000, 40_000])
def test_no_answer_is_bought_that_is_never_compared(server: Server, tokens: int) -> None:
    """With a judge that is always right, the best of all answers is returned, however many there are."""
    server.script = essay
    out = asked(server, tokens)
    written = [c.request["seed"] * 37 % 101 for c in server.calls if not choosing(c.request)]
    assert out["best"]["answer"].startswith(f"quality {max(written)} ")


# --- against fixed strategies, simulated ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_what_a_choice_made_best_stays_so_without_another(seed: int) -> None:
    """Also when the answer that it was compared with is long forgotten."""
    asked_of = replace(KINDS["judge good"], decides="agreement")
    held: list[int] = []

    def one_choice(view: View) -> Sequence[Move]:
        if view.judged["comparisons"]:
            assert view.best is not None
            held.append(view.best["id"])
            return [Draft(share=0.05)] if len(held) < 12 else [Stop()]
        return [Choose((0, 2))] if len(view.candidates) == 3 else [Draft(share=0.05)]

    run = simulate(setup(asked_of, one_choice), asked_of, seed, {"tokens": 40 * DRAFT})
    assert (len(held), run.reason) == (12, "done")
    assert len(set(held)) == 1
    assert len(run.state["candidates"]) == 8


def test_more_budget_brings_better_texts() -> None:
    asked_of = replace(KINDS["judge good"], decides="agreement", text=" so it goes" * 20)
    rules = setup(asked_of, "adaptive", yields=True)
    small, large, larger = (
        fmean(
            simulate(rules, asked_of, seed, {"tokens": budget * DRAFT}).at(budget * DRAFT)
            for seed in range(12)
        )
        for budget in (4, 16, 64)
    )
    assert small < large < larger


@pytest.mark.parametrize(
    ("kind", "strategy", "decides", "least"),
    [
        ("vote", "self_consistency", "vote", 0.0),
        ("judge good", "best_of_n", "judge", 0.0),
        ("judge useless", "single", "judge", -0.03),
    ],
)
def test_the_default_is_no_worse_than_the_strategy_for_the_question(
    kind: str, strategy: str, decides: Decides, least: float
) -> None:
    """By the Anytime Index. It votes where votes decide, chooses among texts, and a judge that is worth nothing
    costs it little."""
    asked_of = replace(KINDS[kind], text="" if kind == "vote" else " so it goes" * 20)

    def index(name: str, by: Decides) -> float:
        rules = setup(replace(asked_of, decides=by), name, yields=True)
        runs = [
            simulate(rules, replace(asked_of, decides=by), seed, {"tokens": 8 * DRAFT})
            for seed in range(16)
        ]
        return fmean(run.index(8 * DRAFT) for run in runs)

    assert index("adaptive", "agreement") >= index(strategy, decides) + least


# --- the choice among several --------------------------------------------------------------------


@given(st.sets(st.integers(0, 50), min_size=2, max_size=8))
def test_no_candidate_has_one_place_twice(among: set[int]) -> None:
    move = planned_move(Choose(tuple(among)))
    assert move["kind"] == "critique"
    first, second = shown_order(move), shown_order({**move, "swapped": True})
    assert set(first) == set(second) == among
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_who_is_shown_first_is_chance() -> None:
    firsts = Counter(
        shown_order(planned_move(Choose((i, i + 1, i + 2))))[0] - i for i in range(300)
    )  # type: ignore[arg-type]
    assert all(70 < firsts[k] < 130 for k in range(3))


@pytest.mark.parametrize(
    ("text", "whole", "letter"),
    [
        ("Verdict: B", True, "b"),
        ("**Verdict: C**\nbecause", False, "c"),
        ("**Verdict**: **Answer C**", True, "c"),
        ("Verdict: tie", True, "tie"),
        ("It is B.\nVerdict: A", True, "a"),
        ("Verdict: A", False, None),
        ("It is B.\nVerdict: A", False, None),
        ("Verdict: AB", True, None),
        ("", True, None),
    ],
)
def test_a_verdict_is_a_line_of_its_own(text: str, whole: bool, letter: str | None) -> None:
    assert chosen(text, whole) == letter


@pytest.mark.parametrize("among", [2, 3, 4, 7])
@pytest.mark.parametrize(("right", "lean"), [(0.8, 0.0), (0.8, 0.5), (0.5, 0.3)])
def test_how_often_a_choice_is_right_and_wrong_is_as_proven(
    among: int, right: float, lean: float
) -> None:
    """docs/theory.md. A call names the first place with probability `lean`; else the best answer with
    probability `right`, and each other with an equal part of the rest."""
    rng, n, found = Random(f"{among} {right} {lean}"), 4_000, Counter[bool]()
    for i in range(n):
        ids = tuple(range(i, i + among))
        best, move = rng.choice(ids), planned_move(Choose(ids))
        assert move["kind"] == "critique"
        named = []
        for swapped in (False, True):
            order = shown_order({**move, "swapped": swapped})
            other = rng.choice([j for j in ids if j != best])
            by_answer = best if rng.random() < right else other
            named.append(order[0] if rng.random() < lean else by_answer)
        if named[0] == named[1]:
            found[named[0] == best] += 1
    a, e = (1 - lean) * right, (1 - lean) * (1 - right) / (among - 1)
    better = a * a + 2 * lean * a / among
    worse = (among - 1) * (e * e + 2 * lean * e / among)
    assert found[True] / n == pytest.approx(better, abs=0.03)
    assert found[False] / n == pytest.approx(worse, abs=0.03)
    assert worse <= (among - 1) * e * e + 2 * lean * e + 1e-9
