"""Rules that end a run, under any strategy, once thinking on is no longer worth it.

Pure functions of the View.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from anytime_graph.budget import Prices
from anytime_graph.metrics import reaches
from anytime_graph.planning.moves import Stop, View
from anytime_graph.planning.prospects import agreement, prospects
from anytime_graph.run.calls import PlannedMove, kind
from anytime_graph.run.state import Decides


@dataclass(frozen=True, kw_only=True)
class Until:
    """Stop as soon as one of these rules holds. The run's `stop_reason` is then the name of the rule,
    and `stop_estimate` the figure that it rests on.

    target: the best score is at least this, in (0, 1].
    confidence: the answer that most drafts agree on would also lead among infinitely many drafts, with
        this posterior probability, in (0, 1). That is agreement, not truth. Needs a vote.
    min_gain: the next answer is expected to raise the score (under a vote: the chance to be right)
        by less than this per 1,000 tokens.
    price: the next answer is expected to cost more than it brings, if quality 1.0 instead of 0.0 is
        worth this many US dollars. Needs prices.

    Raises ValueError for a number outside these ranges, or if no rule is given.
    """

    target: float | None = None
    confidence: float | None = None
    min_gain: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        ranges = {"target": (1.0, "in (0, 1]"), "confidence": (math.nextafter(1, 0), "in (0, 1)")}
        rules = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if not rules:
            raise ValueError(f"Until(): give one of {', '.join(f.name for f in fields(self))}")
        for name, value in rules.items():
            high, allowed = ranges.get(name, (sys.float_info.max, "above 0, and finite"))
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value <= high):
                raise ValueError(f"Until({name}={value!r}): a number {allowed} is needed")

    def check(self, decides: Decides, prices: Prices | None) -> None:
        """Raises ValueError for a rule that lacks what it needs."""
        measured, counted = decides in ("scorer", "vote"), decides in ("vote", "agreement")
        priced = prices is not None
        needs = (
            ("target", decides == "scorer", "a score: pass scorer= a function"),
            ("confidence", counted, 'a vote: pass scorer="vote"'),
            ("min_gain", measured, "a scorer or a vote: a judge only ranks answers"),
            ("price", measured, "a scorer or a vote: a judge only ranks answers"),
            ("price", priced, "the model's prices: pass prices=Prices(input=..., output=...)"),
        )
        for name, met, need in needs:
            if getattr(self, name) is not None and not met:
                raise ValueError(f"until: {name}={getattr(self, name)!r} needs {need}")


def reached(until: Until, view: View) -> Stop | None:
    """Whether the best answer is good enough."""
    if view.best is None:
        return None
    score = view.best["score"]
    if until.target is not None and score is not None and reaches(score, until.target):
        return Stop("target", score)
    if until.confidence is not None and (sure := agreement(view.ballots)) >= until.confidence:
        return Stop("confidence", sure)
    return None


def outweighed(until: Until, view: View, moves: Sequence[PlannedMove]) -> Stop | None:
    """Whether the next answer costs more than it brings. It is one of the kinds that `moves` ask for; if
    they only prepare an answer, the kind that promises most.

    At $2 per million tokens, an answer of 500 tokens costs $0.001. With price=0.5 and an expected gain
    of .001 it brings $0.0005, so the run stops; stop_estimate is -0.0005.
    """
    if view.best is None or (until.min_gain is None and until.price is None):
        return None
    expected = prospects(view)
    answers = [m for m in moves if m["kind"] == "draft" or m["kind"] == "refine"]
    kinds = {kind(m["kind"], bool(m["pairs"] and view.pairs)) for m in answers} or expected.keys()
    following = [expected[name] for name in expected if name in kinds]
    if until.min_gain is not None:
        gain = 1_000 * max(p.rate for p in following)
        if gain < until.min_gain:
            return Stop("min_gain", gain)
    if until.price is not None:
        worth = max(p.gain * until.price - p.tokens * view.usd_per_token for p in following)
        if worth < 0:
            return Stop("price", worth)
    return None
