"""When thinking on is no longer worth it: rules that end a run before its budget does, under any
strategy. Pure functions of the View."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from anytime_graph.budget import Prices
from anytime_graph.planning.moves import Stop, View
from anytime_graph.planning.prospects import Prospect, agreement, prospects
from anytime_graph.run.calls import PlannedMove, kind


@dataclass(frozen=True, kw_only=True)
class Until:
    """Stop as soon as one of these holds; the run's `stop_reason` is then its name, and
    `stop_estimate` the figure it rested on.

    target: the best score is at least this, in (0, 1].
    confidence: the answer most agree on is the one that most would agree on among infinitely many
        drafts, with this posterior probability, in (0, 1): agreement, not truth. Needs a vote.
    min_gain: the next answer is expected to raise the score (under a vote: the chance to be right)
        by less than this per 1,000 tokens.
    price: what quality 1.0 instead of 0.0 is worth, in US dollars: the next answer is expected to
        cost more than it brings. Needs prices.

    Raises ValueError for a number outside these ranges, or if none is given.
    """

    target: float | None = None
    confidence: float | None = None
    min_gain: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        most = {"target": (1.0, "in (0, 1]"), "confidence": (math.nextafter(1, 0), "in (0, 1)")}
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if not given:
            raise ValueError(f"Until(): give one of {', '.join(f.name for f in fields(self))}")
        for name, value in given.items():
            high, told = most.get(name, (math.inf, "above 0, and finite"))
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and 0 < value <= high):
                raise ValueError(f"Until({name}={value!r}): a number {told} is needed")

    def check(self, decides: Literal["scorer", "judge", "vote"], prices: Prices | None) -> None:
        """Raises ValueError for a rule that has nothing to go by."""
        wrong = {
            "target": decides != "scorer" and "a score: pass scorer= a function",
            "confidence": decides != "vote" and 'a vote: pass scorer="vote"',
            "min_gain": decides == "judge" and "a scorer or a vote: a judge only ranks answers",
            "price": (decides == "judge" and "a scorer or a vote: a judge only ranks answers")
            or (prices is None and "the model's prices: pass prices=Prices(input=..., output=...)"),
        }
        for name, need in wrong.items():
            if getattr(self, name) is not None and need:
                raise ValueError(f"until: {name}={getattr(self, name)!r} needs {need}")


def reached(until: Until, view: View) -> Stop | None:
    """Whether the answer in hand will do."""
    if view.best is None:
        return None
    score = view.best["score"]
    if until.target is not None and score is not None and score >= until.target:
        return Stop("target", score)
    if until.confidence is not None:
        sure = agreement(view.ballots)
        if sure >= until.confidence:
            return Stop("confidence", sure)
    return None


def outweighed(until: Until, view: View, moves: Sequence[PlannedMove]) -> Stop | None:
    """Whether the next answer costs more than it brings, of the kinds that `moves` ask for; where
    they only prepare one, of the kind that promises most."""
    if view.best is None or (until.min_gain is None and until.price is None):
        return None
    found = prospects(view)
    answers = [m for m in moves if m["kind"] == "draft" or m["kind"] == "refine"]
    asked = {kind(m["kind"], bool(m["pairs"] and view.pairs)) for m in answers}
    next_ = [p for name, p in found.items() if name in asked] or list(found.values())
    if until.min_gain is not None:
        gain = 1_000 * max(p.rate for p in next_)
        if gain < until.min_gain:
            return Stop("min_gain", gain)
    if until.price is not None:
        dollars = view.spent["usd"] / max(1, view.spent["tokens"])

        def net(of: Prospect) -> float:
            assert until.price is not None
            return of.gain * until.price - of.tokens * dollars

        if (worth := max(map(net, next_))) < 0:
            return Stop("price", worth)
    return None
