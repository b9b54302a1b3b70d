"""Strategies: pure functions from a view of the run to the next moves.

A strategy neither counts money nor calls models. It names what it would do next, best first;
the budget edge gives each move a slice of what is left, drops moves that cannot be paid for,
and asks again when the replies are in. It runs until it says Stop or the budget ends.

    def two_then_polish(view: View) -> list[Move]:
        if len(view.candidates) < 2:
            return [Draft(share=0.3), Draft(share=0.3)]
        return [Refine(view.best["id"])]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from anytime_graph.budget import Limits, Spend
from anytime_graph.state import Candidate, Pair, Shown


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Answer afresh. pairs: which preference pairs to show. share: of what is left, as a cap."""

    pairs: Shown = None
    share: float | None = None
    conclude: int | None = None
    """Not to answer afresh, but to force an answer out of this candidate's cut reasoning."""


@dataclass(frozen=True)
class Critique:
    """Compare two candidates (asked in both orders), or review one."""

    first: int
    second: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Refine:
    """Improve a candidate."""

    of: int
    pairs: Shown = None
    share: float | None = None


@dataclass(frozen=True)
class Stop:
    """End the run. reason: becomes its `stop_reason`."""

    reason: str = "done"


Move = Draft | Critique | Refine | Stop


@dataclass(frozen=True, kw_only=True)
class View:
    """What a strategy may know.

    candidates: those the state keeps, oldest first. best: the incumbent. pairs: most telling first.
    contests: pairs of ids whose comparison would tell most about who is best (empty unless the judge
    decides). made: moves that brought a reply, by kind. spent, left: amounts by
    dimension; `left` has the limited ones only.
    """

    candidates: Sequence[Candidate]
    best: Candidate | None
    pairs: Sequence[Pair]
    contests: Sequence[tuple[int, int]]
    decides: Literal["scorer", "judge", "vote"]
    made: Mapping[str, int]
    spent: Spend
    left: Limits


Strategy = Callable[[View], Sequence[Move]]


def single(view: View) -> list[Move]:
    """One chain of thought (the paper's Base); another only if it was cut before an answer."""
    return [Stop()] if view.best and view.best["complete"] else [Draft()]


def best_of_n(view: View, n: int = 4) -> list[Move]:
    """Drafts, n at a time, as many as the budget buys; the scorer or the judge picks."""
    if comparisons := _comparisons(view):
        return comparisons
    part = 0.5 if view.decides == "judge" else 1.0
    return [Draft(share=part / n)] * n


def self_consistency(view: View, n: int = 4) -> list[Move]:
    """Drafts, n at a time, as many as the budget buys; the answer most drafts agree on
    (Wang et al. 2022, arXiv 2203.11171)."""
    return best_of_n(view, n)


def self_refine(view: View) -> list[Move]:
    """Draft, review, refine, over and over (Madaan et al. 2023, arXiv 2303.17651), but a
    refinement replaces the incumbent only if it is better."""
    if view.best is None:
        return [Draft(share=0.25)]
    if comparisons := _comparisons(view):
        return comparisons
    if view.best["satisfied"]:
        return [Stop("satisfied")]
    if view.best["feedback"] is None:
        return [Critique(view.best["id"], share=0.25)]
    return [Refine(view.best["id"], share=0.25)]


def pdp(view: View, n: int = 4, shown: Shown = "both") -> list[Move]:
    """Preference Data Prompting (Zhang et al. 2026, arXiv 2601.11038): n drafts at equal
    slices, pairs synthesized from them, then rounds of one refinement and one fresh draft with
    the pairs in context."""
    if view.best is None:
        return [Draft(share=0.5 / n)] * n
    if comparisons := _comparisons(view):
        return comparisons
    return [
        Refine(view.best["id"], pairs=shown, share=0.25),
        Draft(pairs=shown, share=0.25),
    ]


pdp_positive: Strategy = partial(pdp, shown="chosen")
"""PDP(+): the winners of the pairs only."""

STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "best_of_n": best_of_n,
    "self_consistency": self_consistency,
    "self_refine": self_refine,
    "pdp_positive": pdp_positive,
    "pdp": pdp,
}


def resolve(strategy: str | Strategy) -> Strategy:
    if callable(strategy):
        return strategy
    try:
        return STRATEGIES[strategy]
    except (KeyError, TypeError):
        raise ValueError(
            f"strategy={strategy!r}: one of {', '.join(STRATEGIES)}, or a function from View to moves"
        ) from None


def _comparisons(view: View) -> list[Move]:
    return [Critique(first, second, share=0.3) for first, second in view.contests]


def as_dict(move: Draft | Critique | Refine) -> dict[str, Any]:
    """A move as plain data, for the state."""
    return {"kind": type(move).__name__.lower(), **vars(move)}
