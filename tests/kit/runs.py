"""Answers, pairs and views of a run, as tests of pure functions need them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from anytime_graph.budget import nothing
from anytime_graph.planning.moves import View
from anytime_graph.planning.view import view
from anytime_graph.run.pairs import Candidate, Pair
from anytime_graph.run.state import Payoff, add_payoffs
from anytime_graph.run.state import payoff as one_answer
from tests.bench.simulation import DRAFT, Kind, normal, setup, simulate


def candidate(
    i: int, text: str, score: float | None, parents: list[int] | None = None
) -> Candidate:
    return Candidate(
        id=i,
        node="refine" if parents else "draft",
        answer=text,
        text=text,
        complete=True,
        score=score,
        feedback=f"fault {i}",
        right=None,
        satisfied=False,
        parents=parents or [],
        spent=nothing(),
        votes=0,
        lost=False,
        message_id=None,
        taught=False,
    )


def pair(better: str, worse: str, why: str = "it has more") -> Pair:
    return Pair(
        chosen=better,
        rejected=worse,
        chosen_id=0,
        rejected_id=1,
        better=better,
        worse=worse,
        why=why,
        why_by="judge",
        by="judge",
        gap=1.0,
    )


def drafts(*scores: float, tokens: Sequence[int] = (300,), cut: bool = False) -> Payoff:
    """Each with a prompt of 200 tokens."""
    lengths = itertools.cycle(tokens)
    each = [one_answer(s, 0.0, 200 + n, n, cut) for s, n in zip(scores, lengths, strict=False)]
    return reduce(add_payoffs, each)


def seen(left: int = 10_000, whole: bool = False, best: float = 0.6, **payoffs: Payoff) -> View:
    """A run that scored these. best: its score, of an answer without an end."""
    kind = Kind("scorer", normal(0.5, 0.1))
    run = simulate(setup(kind, "single"), kind, 1, {"tokens": 2 * DRAFT})
    assert run.state["best"] is not None
    known = {name.replace("_", " "): payoff for name, payoff in payoffs.items()}
    return replace(
        view(setup(kind, "single"), run.state),
        best={**run.state["best"], "score": best, "complete": False},
        payoffs=known,
        left={"tokens": left},
        whole=whole,
    )
