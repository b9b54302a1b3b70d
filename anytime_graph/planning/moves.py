"""What a strategy sees of a run, and what it can ask for: the view and the moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, cast

from anytime_graph.budget import Limits, Spend
from anytime_graph.run.calls import PlannedMove
from anytime_graph.run.pairs import Candidate, Pair, Shown
from anytime_graph.run.state import Decides, Judging, Payoff


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Answer the question from the start.

    pairs: what to show of this question's preference pairs. memory: what to show of the pairs that
    the memory recalled from earlier questions. share: the part of what is left that it may spend.
    conclude: the id of a candidate whose reasoning was cut; an answer is forced out of it, instead of
    answering from the start. again: it is the second try of that, in another form.
    """

    kind: ClassVar = "draft"
    pairs: Shown = None
    memory: Shown = "chosen"
    share: float | None = None
    conclude: int | None = None
    again: bool = False


@dataclass(frozen=True)
class Critique:
    """Compare two candidates (asked in both orders), or review one."""

    kind: ClassVar = "critique"
    first: int
    second: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Choose:
    """Have the judge choose the best of several candidates, all shown at once (asked in two orders)."""

    kind: ClassVar = "critique"
    among: tuple[int, ...]
    share: float | None = None


@dataclass(frozen=True)
class Refine:
    """Improve a candidate. pairs, memory, share: as for a draft."""

    kind: ClassVar = "refine"
    of: int
    pairs: Shown = None
    memory: Shown = "chosen"
    share: float | None = None


@dataclass(frozen=True)
class Merge:
    """Make one better answer from several candidates, which are shown as material (Recursive
    Self-Aggregation, Venkatraman et al. 2025, arXiv 2509.26626). It needs no scorer.

    of: their ids, the most important first; those that do not fit are left out. share: as for a draft.
    """

    kind: ClassVar = "merge"
    of: Sequence[int]
    share: float | None = None


@dataclass(frozen=True)
class Evolve:
    """Make one better answer from several candidates, shown with their scores and with what a scorer found
    wrong and right in each (Mind Evolution, Lee et al. 2025, arXiv 2501.09891). Of one that scored 0,
    only what was found is shown, not its text: it has nothing to keep (arXiv 2606.31511).

    of, share: as for a merge.
    """

    kind: ClassVar = "evolve"
    of: Sequence[int]
    share: float | None = None


@dataclass(frozen=True)
class Learn:
    """Have the judge say why a pair's chosen answer is the better one; or, without ids, which
    principles the pairs teach (LEAP, Zhang et al. 2024, arXiv 2402.05403)."""

    kind: ClassVar = "learn"
    chosen: int | None = None
    rejected: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Stop:
    """End the run. reason, estimate: become its `stop_reason` and `stop_estimate`."""

    reason: str = "done"
    estimate: float | None = None


CallingMove = Draft | Critique | Choose | Refine | Merge | Evolve | Learn
"""The moves that make calls."""
Move = CallingMove | Stop


@dataclass(frozen=True, kw_only=True)
class View:
    """What a strategy may know.

    candidates: those that the state keeps, oldest first. best: the incumbent. pairs: the one with the
    widest gap first. principles: rules learned from the pairs. recalled: whether the memory had pairs
    of earlier questions.
    decides: who chooses the best answer. contests: pairs of ids whose comparison would tell most about
    which is best; empty unless the judge decides. tied: under agreement, the ids of the incumbent and of
    other answers with as many votes that were not compared with it. compared: pairs of ids that were compared. judging:
    whether the judge may still be asked, because its share of the budget is limited. judged: the
    judge so far. ballots: without a scorer, how many drafts gave each answer; merged answers count too,
    unless the judge decides, and refinements under a vote.
    whole: whether any reply is an answer, even one that was cut. payoffs: what drafts and refinements
    have brought in this run; profile: on earlier questions. made: moves that brought a reply, by kind.
    spent: amounts by dimension. left: of the limited dimensions only. usd_per_token: of what was spent;
    before that, the price of output; 0 if it is not known. prompt_once: whether equal drafts side by side
    are known to share the cost of their prompt.
    """

    candidates: Sequence[Candidate]
    best: Candidate | None
    pairs: Sequence[Pair]
    contests: Sequence[tuple[int, int]]
    judging: bool
    whole: bool
    recalled: bool = False
    compared: Sequence[tuple[int, int]] = ()
    tied: Sequence[int] = ()
    principles: Sequence[str]
    payoffs: Mapping[str, Payoff]
    profile: Mapping[str, Payoff]
    ballots: Mapping[str, int]
    judged: Judging
    decides: Decides
    made: Mapping[str, int]
    spent: Spend
    left: Limits
    usd_per_token: float = 0.0
    prompt_once: bool = False


Strategy = Callable[[View], Sequence[Move]]


def moves_of(strategy: Strategy, view: View) -> list[Move]:
    """What a strategy wants. Raises ValueError if it returns anything else."""
    returned: Any = strategy(view)
    moves: list[Move] = list(returned) if isinstance(returned, Iterable) else []
    if not isinstance(returned, Iterable) or not all(isinstance(m, Move) for m in moves):
        name = getattr(strategy, "__name__", type(strategy).__name__)
        raise ValueError(
            f"strategy={name}(...) returned {returned!r:.80}: a list of moves is needed, as in [Draft()]"
        )
    return moves


def planned_move(move: CallingMove) -> PlannedMove:
    """A move as plain data, for the state. Whether its prompt shows preference pairs, and which of two
    candidates it shows first, is set when the call is planned."""
    planned: dict[str, Any] = {"kind": move.kind, **vars(move)}
    if isinstance(move, Choose):
        first, second, *_ = order = _shuffled(move.among)
        planned |= {"first": first, "second": second, "among": order, "swapped": False}
    if isinstance(move, Merge | Evolve):
        planned["of"] = list(move.of)
        if not move.of:
            raise ValueError(f"{type(move).__name__}(of={move.of!r}): ids of candidates are needed")
    elif isinstance(move, Draft | Refine):
        planned["with_pairs"] = False
    elif isinstance(move, Critique):
        planned["swapped"] = False
    return cast(PlannedMove, planned)


def _shuffled(ids: Sequence[int]) -> list[int]:
    """The ids in an order that is chance, but the same each time."""
    return sorted(ids, key=lambda i: sha256(f"{sorted(ids)}: {i}".encode()).digest())
