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

import math
from collections.abc import Sequence
from functools import partial

from anytime_graph.moves import Critique, Draft, Learn, Move, Refine, Stop, Strategy, View
from anytime_graph.pairs import Shown
from anytime_graph.prospects import (
    FIRST,
    NONE,
    prospects,
    reply,
    slice_,
    tokens,
    tokens_left,
)

_AT_ONCE = 4
"""Drafts side by side, at the most."""
_TOO_LITTLE = 0.01
"""Standard deviations between drafts that a comparison must promise, or the judge is left alone."""
_STAKE = 0.125
"""The part of what is left that one step of several drafts may take."""
_QUARTER = 0.25
"""The part of what is left that a reply of unknown length may take, or any reply, lest it be cut."""


def single(view: View) -> list[Move]:
    """One chain of thought (the paper's Base); another only if it was cut before an answer."""
    return [Stop()] if view.best and view.best["complete"] else [Draft()]


def best_of_n(view: View, n: int = 4) -> list[Move]:
    """Drafts, n at a time, as many as the budget buys; the scorer or the judge picks."""
    part = 0.5 if view.decides == "judge" else 1.0
    return _comparisons(view) or _drafts(view, n, "chosen", part / n)


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
    """Preference Data Prompting (Zhang et al. 2026, arXiv 2601.11038): n drafts at equal slices,
    pairs synthesized from them, then whatever promises the largest rise per token by what was seen so
    far: a fresh draft or a refinement with the pairs in context, or a bare draft."""
    if comparisons := _comparisons(view):
        return comparisons
    if (missing := n - view.made.get("draft", 0)) > 0 or view.best is None:
        return _opening(view, max(1, missing), shown)
    if shown == "both" and view.judging and (reasons := _reasons(view)):
        return reasons
    found, part = prospects(view), partial(_share, view, least=_QUARTER)
    moves: dict[str, Move] = {
        "taught draft": Draft(pairs=shown, memory=shown, share=part("taught draft")),
        "taught refine": Refine(
            view.best["id"], pairs=shown, memory=shown, share=part("taught refine")
        ),
        "draft": Draft(memory=None, share=part("draft")),
    }
    if not view.pairs and not view.recalled:
        del moves["taught draft"]
    tried = set(view.payoffs)
    if "refine" in tried:  # with no pairs to show, or no room for them
        tried.add("taught refine")
    if view.pairs and view.made["draft"] <= n:  # what earlier questions taught may have been tried
        tried.discard("taught draft")
    cheap = _STAKE * tokens_left(view)
    untried = [k for k in moves if k not in tried]
    due = [k for k in untried if k == "taught draft" or found[k].tokens <= cheap]
    known = [k for k in moves if k in tried or k == "draft"]
    kind = due[0] if due else max(known, key=lambda k: found[k].rate)
    return [moves[kind]] * (1 if view.decides == "judge" else _at_once(view, kind))


pdp_positive: Strategy = partial(pdp, shown="chosen")
"""PDP(+): the winners of the pairs only."""


def leap(view: View, n: int = 4) -> list[Move]:
    """LEAP (Zhang et al. 2024, arXiv 2402.05403): n drafts, a few short principles learned from
    where they went wrong, then drafts with the principles in context."""
    if comparisons := _comparisons(view):
        return comparisons
    if (missing := n - view.made.get("draft", 0)) > 0 or view.best is None:
        return _opening(view, max(1, missing), "principles")
    if view.pairs and view.judging and not view.made.get("learn"):
        return [Learn(share=0.25)]
    part = _share(view, "taught draft", _QUARTER)
    return [Draft(pairs="principles", memory="principles", share=part)] * 2


def adaptive(view: View) -> Sequence[Move]:
    """The move with the largest expected gain per token: a bare draft, one taught by pairs, a
    refinement, bare or taught, a comparison, or an end where the judge cannot tell answers apart."""
    if view.best is None:
        if view.whole and reply(view) is None and tokens_left(view) < 2 * FIRST:
            return _drafts(view, 2, "chosen", _QUARTER)
        return [Draft(share=_share(view, "draft", _QUARTER))]
    if view.decides == "vote":
        return _drafts(view, _at_once(view, "draft"), "chosen", _share(view, "draft"))
    found = prospects(view)
    if view.decides == "judge":
        most = max(p.gain for p in found.values())
        if most < _TOO_LITTLE:
            return [Stop("undecided", most)]
        if view.contests:
            return [Critique(*view.contests[0])]
        checked = tokens(view, "compare")
        found = {kind: p._replace(tokens=p.tokens + checked) for kind, p in found.items()}
    lessons = view.pairs or view.recalled
    open_ = [kind for kind in found if lessons or not kind.startswith("taught")]
    kind = max(open_, key=lambda k: found[k].rate)
    pairs: Shown = "both" if kind.startswith("taught") else None
    if kind.endswith("refine"):
        return [Refine(view.best["id"], pairs=pairs, memory=pairs, share=_share(view, kind))]
    n = 1 if view.decides == "judge" else _at_once(view, kind)
    return [Draft(pairs=pairs, memory=pairs, share=_share(view, kind))] * n


STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "best_of_n": best_of_n,
    "self_consistency": self_consistency,
    "self_refine": self_refine,
    "pdp_positive": pdp_positive,
    "pdp": pdp,
    "leap": leap,
    "adaptive": adaptive,
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


def _opening(view: View, n: int, memory: Shown) -> list[Move]:
    """Drafts for half of what is left; for up to all of it, if a judge need not be paid and half would
    cut them."""
    most = 0.5 if view.decides == "judge" else 1.0
    part = min(most, max(0.5, n * slice_(view, "draft") / tokens_left(view)))
    return _drafts(view, n, memory, part / n)


def _drafts(view: View, n: int, memory: Shown, share: float) -> list[Move]:
    """Half of them are shown what the memory recalled, until scores tell which of them pay."""
    shown, bare = Draft(memory=memory, share=share), Draft(memory=None, share=share)
    taught, others = (view.payoffs.get(k, NONE)["tries"] for k in ("taught draft", "draft"))
    if not view.recalled:
        return [bare] * n
    if view.decides == "scorer" and taught and others:
        found = prospects(view)
        return [shown if found["taught draft"].rate > found["draft"].rate else bare] * n
    due = min(n, max(0, math.ceil((n + taught + others) / 2) - taught))
    first, then = [shown] * due, [bare] * (n - due)
    return [*first, *then] if taught <= others else [*then, *first]


def _comparisons(view: View) -> list[Move]:
    return [Critique(first, second, share=0.3) for first, second in view.contests]


def _reasons(view: View) -> list[Move]:
    """The two most telling pairs are asked about, if only their scores tell them apart, and if calls
    are left to make use of it."""
    if view.left.get("calls", 4) < 4:
        return []
    return [
        Learn(pair["chosen_id"], pair["rejected_id"], share=0.1)
        for pair in view.pairs[:2]
        if pair["why_by"] == "score"
    ]


def _share(view: View, kind: str, least: float = 0.0) -> float:
    """What a move of this kind may use, as a part of what is left."""
    return max(least, slice_(view, kind) / tokens_left(view))


def _at_once(view: View, kind: str) -> int:
    """Drafts that together take a small part of what is left, and no more than were seen so far."""
    seen = view.payoffs[kind]["tries"] if kind in view.payoffs else 0
    return int(max(1, min(_AT_ONCE, seen, _STAKE * tokens_left(view) / tokens(view, kind))))
