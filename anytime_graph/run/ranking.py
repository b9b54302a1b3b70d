"""Ranks candidates by a few noisy comparisons: strengths, the next comparison, the champion.

A comparison is two calls, because the judge is asked in both orders. Each may be wrong, and a judge may
lean towards the answer shown first. Pure functions over plain matches; candidates may arrive at any
time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PRIOR = 0.5
"""Precision of the normal prior of a log-strength. The difference of two unknown candidates has a standard
deviation of sqrt(2 / 0.5) = 2, so one is likely to win within e^2 = 7.4 times as often as the other."""
DOUBT = 2.0
"""Standard errors that are added to a challenger's expected lead."""
MEETINGS = 8
"""Comparisons of one pair after which the judge counts as unable to decide."""


class Match(NamedTuple):
    """A comparison. winner: None for a tie."""

    first: int
    second: int
    winner: int | None


def both_orders(first: int, second: int, preferred: int | None, swapped: int | None) -> Match:
    """The match of two calls. preferred, swapped: the judge's choice with `first`, and with `second`,
    shown first. A lean towards one place makes ties, never a winner."""
    return Match(first, second, preferred if preferred == swapped else None)


def strengths(ids: Iterable[int], matches: Sequence[Match]) -> dict[int, float]:
    """Log-strengths, of mean 0, of `ids` and of all candidates in `matches`: the most probable under
    Bradley & Terry (1952) with a normal prior.

    A win counts as two calls won, a tie as one call for each. That is the likelihood of the calls
    themselves. So ties need no parameter of their own as in Rao & Kupper (1967) or Davidson (1970); a
    few matches could not determine one. The likelihood alone has a finite maximum only if wins connect
    all candidates in both directions (Hunter 2004). With the prior the maximum is always finite, and
    candidates without matches stay at 0, so a new one changes no other strength. After one match,
    the strengths are .74 and -.74: odds of e^1.48 = 4.4 for the winner.
    """
    order, levels, _ = _fit(ids, matches)
    return dict(zip(order, levels, strict=True))


def next_match(
    ids: Iterable[int], matches: Sequence[Match], incumbent: int, doubt: float = DOUBT
) -> tuple[int, int] | None:
    """The next comparison: the incumbent, and the candidate that is furthest ahead of it if `DOUBT`
    standard errors are added in the candidate's favour (an upper confidence bound on the difference of
    strengths, as in Zoghi et al. 2014). The incumbent is in every comparison, because only the incumbent
    can lose its place.

    None if the incumbent leads all others by `doubt` standard errors (0: each is compared once; 2: until
    the lead is clear). Candidates that it has met `MEETINGS` times do not count. A candidate without any
    match is always compared, because the prior is no evidence; so is an equally strong one that the
    incumbent never met.
    """
    others = [i for i in dict.fromkeys(ids) if i != incumbent]
    order, levels, spread = _fit([*others, incumbent], matches)
    at = {i: k for k, i in enumerate(order)}
    best = at[incumbent]
    played = {i for m in matches for i in m[:2]}
    met = Counter(m.first + m.second - incumbent for m in matches if incumbent in m[:2])

    def hope(other: int, doubt: float = DOUBT) -> float:
        k = at[other]
        error = math.sqrt(spread[best][best] + spread[k][k] - 2 * spread[best][k])
        return round(levels[k] - levels[best] + doubt * error, 9)

    def asks(i: int) -> bool:
        ahead = hope(i, doubt)
        return i not in played or ahead > 0 or (ahead == 0 and not met[i])

    open_ = (i for i in others if met[i] < MEETINGS and asks(i))
    challenger = max(open_, key=hope, default=None)
    return None if challenger is None else (incumbent, challenger)


def champion(matches: Sequence[Match], incumbent: int, since: int = 0) -> int:
    """The best candidate after `matches`, if `incumbent` was the best before `matches[since:]`.

    The incumbent loses its place only to a candidate that has just beaten it in both orders and is
    stronger by all matches so far. Otherwise noise would replace the best again and again.
    """
    for n, match in enumerate(matches[since:], since + 1):
        if match.winner is not None and match.winner != incumbent and incumbent in match[:2]:
            level = {i: round(x, 9) for i, x in strengths((), matches[:n]).items()}
            incumbent = max(incumbent, match.winner, key=level.__getitem__)
    return incumbent


def _fit(
    ids: Iterable[int], matches: Sequence[Match]
) -> tuple[list[int], list[float], list[list[float]]]:
    """The candidates, their log-strengths, and the covariance of these (Laplace's approximation), by
    Newton's method. The log-posterior is concave; steps of at most 0.5 cannot overshoot."""
    order = list(dict.fromkeys([*ids, *(i for m in matches for i in m[:2])]))
    at = {i: k for k, i in enumerate(order)}
    won: Counter[tuple[int, int]] = Counter()  # calls: 2 for a win, 1 each for a tie
    for first, second, winner in matches:
        for one, other in ((first, second), (second, first)):
            won[at[one], at[other]] += 1 if winner is None else 2 * (winner == one)
    calls = [(i, j, won[i, j], won[i, j] + won[j, i]) for i, j in won if i < j]
    levels, spread = [0.0] * len(order), [[0.0]]
    for _ in range(100):
        # The gradient of the log-posterior, and its negative Hessian.
        slope = [-PRIOR * level for level in levels]
        bend = [[PRIOR * (i == j) for j in range(len(order))] for i in range(len(order))]
        for i, j, mine, both in calls:
            chance = 1 / (1 + math.exp(levels[j] - levels[i]))
            pull, give = mine - both * chance, both * chance * (1 - chance)
            slope[i] += pull
            slope[j] -= pull
            bend[i][i] += give
            bend[j][j] += give
            bend[i][j] -= give
            bend[j][i] -= give
        spread = _inverse(bend)
        steps = [sum(x * y for x, y in zip(row, slope, strict=True)) for row in spread]
        longest = max(map(abs, steps), default=0.0)
        levels = [
            x + step * min(1, 0.5 / (longest or 1)) for x, step in zip(levels, steps, strict=True)
        ]
        if longest < 1e-6:
            break
    return order, levels, spread


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """The inverse of a positive definite matrix (Gauss & Jordan, without pivoting). It is fastest if the
    candidate with the most matches comes last, because most entries then stay zero."""
    rows = list(matrix)
    for k in range(len(rows)):
        pivot = 1 / rows[k][k]
        scaled = [x * pivot for x in rows[k]]
        scaled[k] = pivot
        for i, row in enumerate(rows):
            if i != k and row[k]:
                factor, row[k] = row[k], 0.0
                rows[i] = [x - factor * y for x, y in zip(row, scaled, strict=True)]
        rows[k] = scaled
    return rows
