"""What a strategy sees of a run, and what it can ask for: the view and the moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anytime_graph.budget import Limits, Spend
from anytime_graph.pairs import Candidate, Pair, Shown
from anytime_graph.state import Judging, Payoff


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Answer afresh. pairs: what to show of this question's preference pairs. memory: what to show
    of those that the memory recalled from earlier questions. share: of what is left, as a cap."""

    pairs: Shown = None
    memory: Shown = "chosen"
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
    """Improve a candidate. pairs, memory: as for a draft."""

    of: int
    pairs: Shown = None
    memory: Shown = "chosen"
    share: float | None = None


@dataclass(frozen=True)
class Learn:
    """Have the judge say why a pair's chosen answer is the better one; or, without ids, which
    principles the pairs teach (LEAP, Zhang et al. 2024, arXiv 2402.05403)."""

    chosen: int | None = None
    rejected: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Stop:
    """End the run. reason, estimate: become its `stop_reason` and `stop_estimate`."""

    reason: str = "done"
    estimate: float | None = None


Move = Draft | Critique | Refine | Learn | Stop


@dataclass(frozen=True, kw_only=True)
class View:
    """What a strategy may know.

    candidates: those the state keeps, oldest first. best: the incumbent. pairs: most telling first.
    contests: pairs of ids whose comparison would tell most about who is best (empty unless the
    judge decides). compared: pairs of ids that were compared, whoever decides. judging: whether the
    judge can still be asked, for its share of the budget is bounded. whole: whether a reply as it
    stands, be it cut, is an answer. recalled: whether the memory had pairs of earlier questions.
    principles: what was learned from the pairs. payoffs: what drafts and refinements have brought,
    profile: on earlier questions. ballots: votes by answer. judged: the judge so far. made: moves
    that brought a reply, by kind. spent, left: amounts by dimension; `left` has the limited ones
    only.
    """

    candidates: Sequence[Candidate]
    best: Candidate | None
    pairs: Sequence[Pair]
    contests: Sequence[tuple[int, int]]
    judging: bool
    whole: bool
    recalled: bool = False
    compared: Sequence[tuple[int, int]] = ()
    principles: Sequence[str]
    payoffs: Mapping[str, Payoff]
    profile: Mapping[str, Payoff]
    ballots: Mapping[str, int]
    judged: Judging
    decides: Literal["scorer", "judge", "vote"]
    made: Mapping[str, int]
    spent: Spend
    left: Limits


Strategy = Callable[[View], Sequence[Move]]


def as_dict(move: Draft | Critique | Refine | Learn) -> dict[str, Any]:
    """A move as plain data, for the state."""
    return {"kind": type(move).__name__.lower(), **vars(move)}
