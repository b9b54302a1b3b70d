"""The arithmetic of the measures: by hand, against a second implementation, and by simulation."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.metrics import (
    anytime_index,
    best_so_far,
    bootstrap,
    budget_to_reach,
    gain_per_token,
    mean,
    paired,
    wilson,
)

BUDGETS = [256, 512, 1024, 2048, 4096]
RISING = [0.1, 0.3, 0.5, 0.6, 0.7]

finite = st.floats(-1e6, 1e6)
curves = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(0, 1)),
    min_size=2,
    max_size=12,
    unique_by=lambda p: p[0],
).map(lambda points: tuple(map(list, zip(*sorted(points), strict=True))))


def area_by_small_steps(budgets: list[float], qualities: list[float]) -> float:
    """The index by walking the budget axis in whole steps, one interpolated height at a time."""
    best = [max(qualities[: i + 1]) for i in range(len(qualities))]
    total = 0.0
    for i in range(len(budgets) - 1):
        left, right = int(budgets[i]), int(budgets[i + 1])
        for x in range(left, right):
            middle = (x + 0.5 - left) / (right - left)
            total += best[i] + middle * (best[i + 1] - best[i])
    return total / (budgets[-1] - budgets[0])


def test_the_index_by_hand() -> None:
    # (.2 * 256 + .4 * 512 + .55 * 1024 + .65 * 2048) / 3840
    assert anytime_index(BUDGETS, RISING) == pytest.approx(2150.4 / 3840) == pytest.approx(0.56)
    assert anytime_index(BUDGETS, RISING, q_max=0.7) == pytest.approx(0.8)
    # with (0, 0): .05 * 256 more, over 4096
    assert anytime_index(BUDGETS, RISING, origin=True) == pytest.approx(2163.2 / 4096)
    assert anytime_index([0, 10], [0.2, 0.4]) == pytest.approx(0.3)


def test_a_curve_that_falls_counts_its_best_or_what_was_returned() -> None:
    assert best_so_far([0.2, 0.8, 0.4]) == [0.2, 0.8, 0.8]
    assert anytime_index([0, 1, 2], [0.2, 0.8, 0.4]) == pytest.approx(0.65)
    assert anytime_index([0, 1, 2], [0.2, 0.8, 0.4], oracle=False) == pytest.approx(0.55)


@given(curves)
def test_the_index_is_the_area_under_the_best_so_far(curve: Any) -> None:
    assert anytime_index(*curve) == pytest.approx(area_by_small_steps(*curve), abs=1e-9)


@given(curves, st.booleans(), st.booleans())
def test_the_index_lies_between_0_and_1_and_the_oracle_never_below_the_returned(
    curve: Any, origin: bool, oracle: bool
) -> None:
    budgets, qualities = curve
    index = anytime_index(budgets, qualities, origin=origin, oracle=oracle)
    assert 0 <= index <= 1
    assert index <= anytime_index(budgets, qualities, origin=origin) + 1e-12
    assert anytime_index(budgets, [1.0] * len(budgets), oracle=oracle) == pytest.approx(1)


@given(curves, st.data(), st.booleans())
def test_a_curve_nowhere_below_another_has_no_lower_index(
    curve: Any, data: st.DataObject, origin: bool
) -> None:
    budgets, qualities = curve
    better = [data.draw(st.floats(q, 1)) for q in qualities]
    assert (
        anytime_index(budgets, better, origin=origin)
        >= anytime_index(budgets, qualities, origin=origin) - 1e-12
    )


@given(curves, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_units_of_budget_and_quality_do_not_matter(
    curve: Any, per_token: float, percent: float
) -> None:
    budgets, qualities = curve
    scaled = [b * per_token for b in budgets], [q * percent for q in qualities]
    for origin in (False, True):
        assert anytime_index(*scaled, q_max=percent * (1 + 1e-12), origin=origin) == pytest.approx(
            anytime_index(budgets, qualities, origin=origin), abs=1e-9
        )


def test_gain_per_token() -> None:
    assert gain_per_token(BUDGETS, RISING) == pytest.approx(0.6 / 3840)
    assert gain_per_token([0, 10], [0.5, 0.4]) == pytest.approx(-0.01)


def test_the_budget_that_reaches_a_quality_is_one_that_was_measured() -> None:
    assert budget_to_reach(BUDGETS, RISING, 0.55) == 2048
    assert budget_to_reach(BUDGETS, RISING, 0.1) == 256
    assert budget_to_reach(BUDGETS, RISING, 0.71) is None
    assert budget_to_reach([5], [1.0], 1.0) == 5
    assert budget_to_reach([5], [0.7 + 0.1], 0.8) == 5


nan = math.nan


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: anytime_index([1, 2], [0.5]), "qualities has 1 values, budgets has 2"),
        (lambda: anytime_index([1], [0.5]), "budgets has 1 values: at least 2"),
        (lambda: anytime_index([], []), "budgets has 0 values"),
        (lambda: anytime_index([2, 1], [0, 1]), r"budgets\[1\]=1.0 after 2.0: budgets must ascend"),
        (lambda: anytime_index([1, 1], [0, 1]), r"budgets\[1\]=1.0 after 1.0"),
        (lambda: anytime_index([-1, 1], [0, 1]), r"budgets\[0\]=-1.0: budgets are 0 or more"),
        (lambda: anytime_index([1, nan], [0, 1]), r"budgets\[1\]=nan: a finite number"),
        (lambda: anytime_index([1, 2], [0, nan]), r"qualities\[1\]=nan: a finite number"),
        (lambda: anytime_index([1, 2], [0, "1"]), r"qualities\[1\]='1': a finite number"),  # type: ignore[list-item]
        (lambda: anytime_index([1, 2], [0, 1.5]), r"qualities\[1\]=1.5: .*q_max=1.0"),
        (lambda: anytime_index([1, 2], [-0.1, 1]), r"qualities\[0\]=-0.1"),
        (lambda: anytime_index([1, 2], [0, 0], q_max=0), "q_max=0: a finite number above 0"),
        (lambda: anytime_index([1, 2], [0, 0], q_max=nan), "q_max=nan"),
        (lambda: anytime_index([0, 2], [0, 1], origin=True), r"budgets\[0\]=0.0: with origin=True"),
        (lambda: best_so_far([]), "qualities has 0 values"),
        (lambda: gain_per_token([1], [1]), "budgets has 1 values"),
        (lambda: budget_to_reach([1], [1], nan), "quality=nan"),
        (lambda: bootstrap([]), r"values_per_question=\[\]"),
        (lambda: bootstrap([0.1, nan]), r"values_per_question\[1\]=nan"),
        (lambda: bootstrap([0.1], level=95), "level=95: between 0 and 1"),
        (lambda: bootstrap([0.1], resamples=0), "resamples=0: a whole number"),
        (lambda: paired([1, 2], [1]), "b has 1 values, a has 2"),
        (lambda: paired([], []), "a has 0 values"),
        (lambda: paired([nan], [1]), r"a\[0\]=nan"),
        (lambda: wilson(3, 2), "successes=3: between 0 and n=2"),
        (lambda: wilson(0, 0), "n=0"),
        (lambda: wilson(1, 2, level=1), "level=1"),
    ],
)
def test_bad_input_is_named_with_what_would_do(call: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_the_bootstrap_repeats_takes_any_statistic_and_holds_the_estimate() -> None:
    draw = Random(1)
    values = [draw.random() for _ in range(40)]
    interval = bootstrap(values)
    assert interval == bootstrap(values)
    assert interval != bootstrap(values, seed=1)
    assert interval.low < interval.mean == mean(values) < interval.high
    curves = [(BUDGETS, [q * value for q in RISING]) for value in values]
    index = bootstrap(
        curves, lambda some: mean([anytime_index(*curve) for curve in some]), resamples=200
    )
    assert index.low < index.mean < index.high
    assert bootstrap([0.5] * 3) == (0.5, 0.5, 0.5)


def test_the_bootstrap_covers_about_as_often_as_it_says() -> None:
    draw = Random(7)
    covered = 0
    for trial in range(200):
        sample = [draw.random() ** 2 for _ in range(40)]  # mean 1/3
        low, _, high = bootstrap(sample, level=0.9, seed=trial, resamples=300)
        covered += low <= 1 / 3 <= high
    assert wilson(covered, 200, level=0.999).low <= 0.9 <= wilson(covered, 200, level=0.999).high


def test_the_permutation_test_by_hand() -> None:
    # differences 1, 2, 3: of 8 sign patterns 2 have a sum as large as 6
    assert paired([2, 3, 4], [1, 1, 1]).p == pytest.approx(2 / 8)
    assert paired([2, 3, 4], [1, 1, 1]).mean == pytest.approx(2)
    assert paired([1, 2, 3], [1, 2, 3]) == (0, 0, 0, 1)
    a, b = [0.9, 0.8, 0.4, 0.6] * 10, [0.5, 0.3, 0.4, 0.5] * 10
    better, worse = paired(a, b), paired(b, a)
    assert better.p == pytest.approx(1 / 10_001)
    assert 0 < better.low < better.mean == pytest.approx(0.25) == -worse.mean


def test_what_only_rounding_tells_apart_is_no_difference() -> None:
    same = paired([0.1 + 0.2] * 8, [0.3] * 8)
    assert same == paired([0.3] * 8, [0.3] * 8)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    assert paired([0.3 + 1e-9] * 8, [0.3] * 8).p < 0.05


def test_drawn_flips_agree_with_all_of_them() -> None:
    draw = Random(3)
    a, b = ([draw.gauss(0.2 * shift, 1) for _ in range(12)] for shift in (1, 0))
    assert paired(a, b, resamples=4_000).p == pytest.approx(
        paired(a, b, resamples=4_096).p, abs=0.03
    )


def test_the_p_value_is_spread_evenly_when_nothing_differs() -> None:
    draw = Random(11)
    ps = [
        paired(
            [draw.gauss(0, 1) for _ in range(20)],
            [draw.gauss(0, 1) for _ in range(20)],
            resamples=200,
            seed=trial,
        ).p
        for trial in range(300)
    ]
    gaps = [abs((i + 1) / len(ps) - p) for i, p in enumerate(sorted(ps))]
    assert max(gaps) < 1.95 / math.sqrt(len(ps))  # Kolmogorov-Smirnov at .001
    assert wilson(sum(p <= 0.05 for p in ps), len(ps), level=0.999).low <= 0.05


def test_wilson_by_hand() -> None:
    low, share, high = wilson(8, 10)
    assert (low, share, high) == pytest.approx((0.4902, 0.8, 0.9433), abs=1e-4)
    assert wilson(0, 10) == (0.0, 0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10).low == pytest.approx(1 - wilson(0, 10).high)


@given(st.integers(1, 500), st.data(), st.floats(0.5, 0.999))
def test_a_proportion_lies_in_its_interval(n: int, data: st.DataObject, level: float) -> None:
    low, share, high = wilson(data.draw(st.integers(0, n)), n, level)
    assert 0 <= low <= share <= high <= 1
