"""Measures of anytime reasoning, and the confidence in them.

Pure arithmetic on lists of numbers; it needs nothing else from the package. A curve is given as two lists
of equal length: `budgets`, strictly ascending, in any unit (tokens, seconds), and `qualities`, one for
each budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, product
from numbers import Integral, Real
from random import Random
from statistics import NormalDist
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """An estimate, and the bounds of its confidence interval."""

    low: float
    mean: float
    high: float


class Difference(NamedTuple):
    """The mean of a - b, the bounds of its confidence interval, and the p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float


def mean(values: Sequence[float]) -> float:
    """The mean. Raises ValueError for an empty list, or a value that is not a finite number."""
    return math.fsum(_numbers("values", values, least=1)) / len(values)


def best_so_far(qualities: Sequence[float]) -> list[float]:
    """Q*_t = max over i <= t of Q_i: [.2, .5, .4] becomes [.2, .5, .5]. Raises ValueError for an empty list,
    or a value that is not a finite number."""
    return list(accumulate(_numbers("qualities", qualities, least=1), max))


def anytime_index(
    budgets: Sequence[float],
    qualities: Sequence[float],
    q_max: float = 1.0,
    origin: bool = False,
    oracle: bool = True,
) -> float:
    """How early quality comes, in [0, 1]: the area under the best-so-far curve, as a part of the area under
    a curve that is `q_max` throughout.

        sum_{t<T} (Q*_t + Q*_{t+1}) / 2 * (b_{t+1} - b_t)  /  ((b_T - b_1) * q_max)

    At budgets 1, 2 and 4, qualities 0, .5 and 1 have the area .25 * 1 + .75 * 2 = 1.75 of 3: .583.
    The Anytime Index of Zhang et al. 2026 (arXiv 2601.11038). What the paper leaves open is a parameter
    here, so report which values were used:

    q_max: the most that quality can be, in the unit of `qualities`; `max(qualities)` measures only
    the shape of the curve.
    origin: whether the curve starts at (0, 0).
    oracle: True, the paper's index: `qualities` are those of the answers made at each budget, and the
    curve holds the best of them so far, which only an oracle that knows the true quality can pick. For
    the index of what a program **returned**, pass the true qualities of the answers that it would have
    returned at each budget, and oracle=False: the same area without the maximum, because such a curve
    can fall.

    Raises ValueError for fewer than two budgets, budgets that do not ascend, qualities outside
    [0, q_max], or lists of different lengths.
    """
    xs, ys = _curve(budgets, qualities)
    if not (math.isfinite(q_max) and q_max > 0):
        raise ValueError(f"q_max={q_max!r}: a finite number above 0, such as 1.0, is needed")
    for at, y in enumerate(ys):
        if not 0 <= y <= q_max:
            raise ValueError(
                f"qualities[{at}]={y!r}: qualities lie between 0 and q_max={q_max!r}; "
                f"give the task's largest quality as q_max"
            )
    if origin:
        if xs[0] <= 0:
            raise ValueError(
                f"budgets[0]={xs[0]!r}: with origin=True the curve starts at budget 0, so the first "
                f"budget given must be above 0"
            )
        xs, ys = [0.0, *xs], [0.0, *ys]
    if oracle:
        ys = best_so_far(ys)
    width = xs[-1] - xs[0]
    area = math.fsum(
        (ys[t] / q_max + ys[t + 1] / q_max) / 2 * ((xs[t + 1] - xs[t]) / width)
        for t in range(len(xs) - 1)
    )
    return min(1.0, area)


def gain_per_token(budgets: Sequence[float], qualities: Sequence[float]) -> float:
    """(Q_T - Q_1) / (b_T - b_1): the slope from the first point to the last, in quality per unit of
    budget. It is negative if quality fell; pass `best_so_far(qualities)` for the gain of the best.
    Raises ValueError as anytime_index does."""
    xs, ys = _curve(budgets, qualities)
    return (ys[-1] - ys[0]) / (xs[-1] - xs[0])


def budget_to_reach(
    budgets: Sequence[float], qualities: Sequence[float], quality: float
) -> float | None:
    """The first budget at which `quality` was reached, or None if it never was. Nothing is interpolated,
    because no answer was measured between two budgets. Raises ValueError as anytime_index does."""
    xs, ys = _curve(budgets, qualities, least=1)
    if not math.isfinite(quality):
        raise ValueError(f"quality={quality!r}: a finite number is needed")
    return next((x for x, y in zip(xs, ys, strict=True) if reaches(y, quality)), None)


def reaches(value: float, least: float) -> bool:
    """Whether a value is at least this, but for rounding: 0.7 + 0.1 reaches 0.8."""
    return value >= least or _equal(value, least)


def bootstrap(
    values_per_question: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float] = mean,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2_000,
) -> Interval:
    """How much a figure over questions would vary with other questions of the same kind.

    The percentile interval (Efron 1979): `statistic` of `resamples` samples of the questions, drawn
    with replacement. `Interval.mean` is the statistic of the given values. Each value belongs to one
    question, and need not be a number if `statistic` accepts it. Runs of one question belong together,
    so pass their mean, or a list of them. Intervals from fewer than about 20 questions are too narrow.
    Raises ValueError for no values, or numbers that are not finite.
    """
    values = list(values_per_question)
    if not values:
        raise ValueError(
            "values_per_question=[]: at least one question is needed, and 20 for an interval"
        )
    if statistic is mean:
        values = _numbers("values_per_question", values)
    _check_level(level)
    _check_count("resamples", resamples)
    draw = Random(seed)  # noqa: S311 - statistics
    drawn = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - level) / 2
    return Interval(_quantile(drawn, tail), statistic(values), _quantile(drawn, 1 - tail))


def paired(
    a: Sequence[float],
    b: Sequence[float],
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Difference:
    """Whether `a` differs from `b` on the same questions: a[i] and b[i] are values of question i.

    p: two-sided sign-flip permutation test of the mean difference (Fisher 1935; Pitman 1937): how
    often a difference at least as large arises if chance decides which value of each question is a's.
    All 2^n flips are tried if they are no more than `resamples`; else that many are drawn, and the
    observed flip counts as one more, so that p is never 0. The interval is bootstrap's. Raises
    ValueError for lists that are empty or of different lengths.
    """
    xs, ys = _numbers("a", a, least=1), _numbers("b", b)
    if len(xs) != len(ys):
        raise ValueError(
            f"b has {len(ys)} values, a has {len(xs)}: each question needs one of each"
        )
    _check_count("resamples", resamples)
    gaps = [0.0 if _equal(x, y) else x - y for x, y in zip(xs, ys, strict=True)]
    low, middle, high = bootstrap(gaps, level=level, seed=seed, resamples=min(resamples, 2_000))
    moved = [abs(gap) for gap in gaps if gap]
    bar = abs(math.fsum(gaps)) - 1e-9 * math.fsum(moved)
    if 2 ** len(moved) <= resamples:
        flips = [abs(_signed(moved, signs)) >= bar for signs in product((0, 1), repeat=len(moved))]
        return Difference(middle, low, high, sum(flips) / len(flips))
    draw = Random(seed)  # noqa: S311 - statistics
    extreme = sum(
        abs(_signed(moved, map(int, f"{draw.getrandbits(len(moved)):0{len(moved)}b}"))) >= bar
        for _ in range(resamples)
    )
    return Difference(middle, low, high, (1 + extreme) / (1 + resamples))


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927), within [0, 1] and sensible for 0 of n too.
    `Interval.mean` is successes / n. A partial success may count in part. Raises ValueError unless
    0 <= successes <= n and n >= 1."""
    _check_count("n", n)
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes!r}: between 0 and n={n} is needed")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = successes / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Interval(low, share, high)


def _curve(
    budgets: Sequence[float], qualities: Sequence[float], least: int = 2
) -> tuple[list[float], list[float]]:
    xs, ys = _numbers("budgets", budgets, least), _numbers("qualities", qualities)
    if len(xs) != len(ys):
        raise ValueError(
            f"qualities has {len(ys)} values, budgets has {len(xs)}: one for each budget is needed"
        )
    if xs[0] < 0:
        raise ValueError(f"budgets[0]={xs[0]!r}: budgets are 0 or more")
    for at in range(1, len(xs)):
        if xs[at] <= xs[at - 1]:
            raise ValueError(
                f"budgets[{at}]={xs[at]!r} after {xs[at - 1]!r}: budgets must ascend, each once"
            )
    return xs, ys


def _numbers(name: str, values: Sequence[float], least: int = 0) -> list[float]:
    for at, value in enumerate(values):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name}[{at}]={value!r:.60}: a finite number is needed")
    if len(values) < least:
        raise ValueError(f"{name} has {len(values)} values: at least {least} are needed")
    return [float(value) for value in values]


def _equal(one: float, other: float) -> bool:
    """Whether two values differ by no more than what rounding makes of them, as 0.1 + 0.2 and 0.3."""
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-15)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: between 0 and 1 is needed, such as 0.95")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: a whole number of at least 1 is needed")


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile, linear between the order statistics: of [1, 3], that at 0.25 is 1.5."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def _signed(sizes: Sequence[float], signs: Iterable[int]) -> float:
    return sum(size if sign else -size for size, sign in zip(sizes, signs, strict=True))
