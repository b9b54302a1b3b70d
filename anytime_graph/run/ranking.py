"""Who is best, from few and noisy comparisons: strengths, what to compare next, who is champion.

The judge is asked in both orders, so a comparison is two calls: either may be wrong, and both lean
towards the place shown first. Pure functions over plain matches; candidates may arrive at any time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

PRIOR = 0.5
"""Precision of the normal prior of a log-strength: two strangers are likely within e^2 of each
other, so that a pair of calls moves strengths, but never by much."""
DOUBT = 2.0
"""Standard errors of which a challenger is given the benefit."""
MEETINGS = 8
"""Comparisons after which the judge is held to be unable to tell a pair apart."""


class Match(NamedTuple):
    """A comparison. winner: None for a tie."""

    first: int
    second: int
    winner: int | None


def both_orders(first: int, second: int, said: int | None, swapped: int | None) -> Match:
    """What a comparison comes to. said, swapped: whom the judge preferred with `first` and with
    `second` shown first. A lean towards a place makes ties, never a winner."""
    return Match(first, second, said if said == swapped else None)


def strengths(ids: Iterable[int], matches: Sequence[Match]) -> dict[int, float]:
    """Log-strengths, of mean 0, of `ids` and of all who are in `matches`: the most probable under
    Bradley & Terry (1952) with a normal prior.

    A win is two calls won, a tie one call each: that is the likelihood of the calls themselves,
    so ties need no parameter of their own as in Rao & Kupper (1967) or Davidson (1970), which a
    few matches could not tell. The likelihood alone has a finite maximum only if wins lead from
    everyone to everyone (Hunter 2004); the prior keeps it finite always, and leaves candidates
    without matches at 0, so that an arrival changes nobody else's strength.
    """
    order, levels, _ = _fit(ids, matches)
    return dict(zip(order, levels, strict=True))


def next_match(
    ids: Iterable[int], matches: Sequence[Match], incumbent: int, doubt: float = DOUBT
) -> tuple[int, int] | None:
    """Whom to compare the incumbent with: who would be furthest ahead of it if `DOUBT` standard
    errors were in their favour (an upper confidence bound, as in Zoghi et al. 2014, on the
    difference of strengths). Only the incumbent is challenged, for only it can lose its place.

    None if it leads all others by `doubt` standard errors (0: each is asked about once; 2: until
    it is clear) or has met those that it does not `MEETINGS` times, which bounds the comparisons
    of each pair. But who was in no match is always asked about, for the prior is no evidence, and
    so is an equal that it never met.
    """
    others = [i for i in dict.fromkeys(ids) if i != incumbent]
    order, levels, spread = _fit([*others, incumbent], matches)
    at = {i: k for k, i in enumerate(order)}
    held = at[incumbent]
    played = {i for m in matches for i in m[:2]}
    met = Counter(m.first + m.second - incumbent for m in matches if incumbent in m[:2])

    def hope(other: int, doubt: float = DOUBT) -> float:
        k = at[other]
        error = math.sqrt(spread[held][held] + spread[k][k] - 2 * spread[held][k])
        return round(levels[k] - levels[held] + doubt * error, 9)

    def asks(i: int) -> bool:
        ahead = hope(i, doubt)
        return i not in played or ahead > 0 or (ahead == 0 and not met[i])

    open_ = (i for i in others if met[i] < MEETINGS and asks(i))
    challenger = max(open_, key=hope, default=None)
    return None if challenger is None else (incumbent, challenger)


def champion(matches: Sequence[Match], incumbent: int, since: int = 0) -> int:
    """Who holds the place after `matches`, if `incumbent` held it before those from `since` on.

    It falls only to one that has just beaten it in both orders (P3), and only if that one is the
    stronger by all matches so far: else noise would unseat the best again and again.
    """
    for n, match in enumerate(matches[since:], since + 1):
        if match.winner is not None and match.winner != incumbent and incumbent in match[:2]:
            level = {i: round(x, 9) for i, x in strengths((), matches[:n]).items()}
            incumbent = max(incumbent, match.winner, key=level.__getitem__)
    return incumbent


def _fit(
    ids: Iterable[int], matches: Sequence[Match]
) -> tuple[list[int], list[float], list[list[float]]]:
    """Who, their log-strengths, and the covariance of these (Laplace's approximation): by Newton's
    method, in steps too short to overshoot, since the log-posterior is concave."""
    order = list(dict.fromkeys([*ids, *(i for m in matches for i in m[:2])]))
    at = {i: k for k, i in enumerate(order)}
    won: Counter[tuple[int, int]] = Counter()
    for first, second, winner in matches:
        for one, other in ((first, second), (second, first)):
            won[at[one], at[other]] += 1 if winner is None else 2 * (winner == one)
    calls = [(i, j, won[i, j], won[i, j] + won[j, i]) for i, j in won if i < j]
    levels, spread = [0.0] * len(order), [[0.0]]
    for _ in range(100):
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
    """Of a positive definite matrix (Gauss & Jordan, without pivoting). Quickest if who met most
    comes last, for then most of it stays zero."""
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
