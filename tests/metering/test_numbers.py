"""Odd numbers: clear errors, and parts that never exceed the whole."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph import NearEnd, Prices, Quota, Until
from anytime_graph.benchmark.recording import Recording
from anytime_graph.budget import DIMENSIONS, Budget, checked_parts, nothing, share
from anytime_graph.metering.metered import last_call_reserve
from anytime_graph.metering.quota import Standing, booked, checked_quotas
from anytime_graph.planning.profiles import checked
from anytime_graph.run.state import payoff


@pytest.mark.parametrize("amount", [10**400, 10**30, math.inf, -math.inf, math.nan, -1, "9", True])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_budget_that_is_no_amount_is_named(dimension: str, amount: Any) -> None:
    with pytest.raises(ValueError, match=f"^{dimension}="):
        Budget(**{dimension: amount})


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (("5",), {}, r"Budget\('5'\): name what it limits, as in Budget\(tokens=8_000\)"),
        ((), {"token": 5}, r"Budget\(token=...\): a budget has tokens, output_tokens, "),
    ],
)
def test_a_budget_is_given_by_the_names_of_its_dimensions(
    given: Any, named: Any, said: str
) -> None:
    with pytest.raises(TypeError, match=f"^{said}"):
        Budget(*given, **named)


class Figure(float):
    """As numpy's are, which checkpoints cannot store."""


def test_amounts_and_prices_are_kept_as_numbers_that_can_be_stored() -> None:
    budget, prices = Budget(tokens=Figure(9), usd=Figure(0.5)), Prices(input=Figure(2), output=1)  # type: ignore[arg-type]
    assert [type(n) for n in (*budget.limits().values(), prices.input)] == [float] * 3
    assert type(prices.usd(1, 1)) is float


NO_NUMBERS = ["9", b"9", [], 1j, Decimal("9"), Decimal("sNaN"), 10**400, math.nan, math.inf, -1]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    ("of", "name"),
    [
        *((Prices, f.name) for f in fields(Prices)),
        *((Until, f.name) for f in fields(Until)),
    ],
)
def test_what_is_no_price_and_no_rule_is_named(of: Any, name: str, value: Any) -> None:
    rest = {"input": 1, "output": 1} if of is Prices else {}
    with pytest.raises(ValueError, match=name):
        of(**{**rest, name: value})


@pytest.mark.parametrize("value", [None, 3, 1j, Decimal("0.5")], ids=repr)
def test_parts_to_warn_at_are_a_list_of_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^warn_at="):
        checked_parts(value)


@given(st.floats(0, 1e6), st.integers(0, 10**15), st.integers(1, 300))
def test_equal_parts_never_exceed_the_whole(usd: float, tokens: int, n: int) -> None:
    parts = Budget(usd=usd, tokens=tokens).split(n)
    assert sum(part.usd or 0 for part in parts) <= usd
    assert sum(part.tokens or 0 for part in parts) <= tokens
    slices = [share({"usd": usd, "tokens": tokens}, 1 / n) for _ in range(n)]
    assert sum(part["usd"] for part in slices) <= usd
    assert sum(part["tokens"] for part in slices) <= tokens


@pytest.mark.parametrize("at", [0, -0.1, 1.01, math.nan, True, "0.8", None])
def test_the_end_of_a_budget_begins_at_a_part_of_it(at: Any) -> None:
    with pytest.raises(ValueError, match=r"^near_end at=.*: a part of the budget is needed"):
        NearEnd("cheap", at=at)
    assert [NearEnd("cheap", at=part).at for part in (0.01, 1)] == [0.01, 1]


def test_the_last_call_is_one_call_and_has_its_part_of_all_else() -> None:
    limits = {"tokens": 900, "seconds": 60, "calls": 10, "tool_calls": 4}
    kept = {"tokens": 450, "seconds": 30, "calls": 1}
    assert last_call_reserve(0.5, limits) == kept
    assert last_call_reserve(kept, limits) == kept


@pytest.mark.parametrize(
    ("window", "meant"),
    [("7 days", "7d"), ("30 minutes", "30min"), ("12 Hours", "12h"), ("90sec", "90s")],
)
def test_a_window_in_another_spelling_is_told_the_right_one(window: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"window={window!r}: did you mean '{meant}'"):
        Quota(Budget(calls=1), window=window)
    Quota(Budget(calls=1), window=meant)


@pytest.mark.parametrize(
    "quotas", [5, None, "day", Quota(Budget(usd=1), window="1d"), [Budget(usd=1)]], ids=repr
)
def test_what_is_no_list_of_quotas_is_named(quotas: Any) -> None:
    with pytest.raises(ValueError, match=r"quotas=.*: a list is needed"):
        checked_quotas(quotas)


def test_what_one_quota_leaves_is_what_was_not_booked_within_its_window() -> None:
    quota = Quota(Budget(tokens=100), window="60s")
    books = {at: booked({**nothing(), "tokens": 30}) for at in (939, 940, 1000)}
    standing = Standing([quota], "", 1000.5, books, {1000: books[1000]})
    assert standing.left() == {"tokens": 40}
    assert standing.left(free=True) == {"tokens": 70}


def test_a_profile_of_nothing_is_refused() -> None:
    none: Any = {**payoff(0.0, 0.0, 0, 0, False), "tries": 0, "worth": 0, "squares": 0}
    with pytest.raises(ValueError, match="tries: 1 or more are needed"):
        checked({"draft": none})


@pytest.mark.parametrize("amount", ["NaN", "-5", "Infinity", "true", '"9"', "1e400"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_recording_with_an_impossible_cost_is_refused(
    tmp_path: Path, amount: str, at: int
) -> None:
    pair = ["1", "1"]
    pair[at] = amount
    file = tmp_path / "calls.jsonl"
    file.write_text('{{"ask": "k", "reserved": [{}, {}]}}\n'.format(*tuple(pair)))
    with pytest.raises(ValueError, match="not a recording"):
        Recording(file)


def test_a_recording_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_text('{"take": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    with pytest.raises(ValueError, match="line 1") as refused:
        Recording(file)
    file.write_text(json.dumps({"ask": "k", "reserved": [1, 0.5]}) + "\n")
    Recording(file).close()  # while the error, and what it refers to, is still there
    assert "line 1" in str(refused.value)
