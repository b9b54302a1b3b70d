"""What a strategy sees of a run, and what it can ask for: the view and the moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from anytime_graph.budget import Limits, Spend
from anytime_graph.run.calls import CritiqueMove, DraftMove, LearnMove, PlannedMove, RefineMove
from anytime_graph.run.pairs import Candidate, Pair, Shown
from anytime_graph.run.state import Decides, Judging, Payoff


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
    profile: on earlier questions. ballots: without a scorer, how many drafts gave
    each answer; under a vote, refinements count too. judged: the judge so far. made: moves
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
    decides: Decides
    made: Mapping[str, int]
    spent: Spend
    left: Limits


Strategy = Callable[[View], Sequence[Move]]


def planned_move(
    move: Draft | Critique | Refine | Learn, with_pairs: bool = False, swapped: bool = False
) -> PlannedMove:
    """A move as plain data, for the state. with_pairs: of a draft or a refinement, its prompt shows
    preference pairs. swapped: of a comparison, the second candidate is shown first."""
    match move:
        case Draft():
            return DraftMove(
                kind="draft",
                pairs=move.pairs,
                memory=move.memory,
                share=move.share,
                conclude=move.conclude,
                with_pairs=with_pairs,
            )
        case Refine():
            return RefineMove(
                kind="refine",
                of=move.of,
                pairs=move.pairs,
                memory=move.memory,
                share=move.share,
                with_pairs=with_pairs,
            )
        case Critique():
            return CritiqueMove(
                kind="critique",
                first=move.first,
                second=move.second,
                share=move.share,
                swapped=swapped,
            )
        case Learn():
            return LearnMove(
                kind="learn", chosen=move.chosen, rejected=move.rejected, share=move.share
            )


def draft_again(move: DraftMove) -> Draft:
    """The move that a planned draft was made from."""
    return Draft(
        pairs=move["pairs"],
        memory=move["memory"],
        share=move["share"],
        conclude=move["conclude"],
    )
