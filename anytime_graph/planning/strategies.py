"""Strategies: pure functions from a view of the run to the next moves.

A strategy neither counts money nor calls models. It names the moves that it wants next, best first.
The budget edge gives each move a slice of what is left, drops moves that cannot be paid for, and asks
again when the replies are in, until the strategy returns Stop or the budget ends.

    def two_then_polish(view: View) -> list[Move]:
        if len(view.candidates) < 2:
            return [Draft(share=0.3), Draft(share=0.3)]
        return [Refine(view.best["id"])]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from anytime_graph.planning.moves import (
    Choose,
    Critique,
    Draft,
    Evolve,
    Learn,
    Merge,
    Move,
    Refine,
    Stop,
    Strategy,
    View,
)
from anytime_graph.planning.prospects import (
    FIRST,
    NONE,
    agreement,
    fitting,
    judge_decides,
    prospects,
    reply_length,
    slice_,
    tokens,
    tokens_left,
    votes_decide,
)
from anytime_graph.planning.tree_search import expanded, require_treequest
from anytime_graph.run.pairs import Candidate, Shown
from anytime_graph.run.state import Decides
from anytime_graph.scoring import normal
from anytime_graph.text import meant

_AT_ONCE = 4
"""The most drafts side by side."""
_CUT = 3
"""Drafts in a row, each allowed all that is left, after which the next would be cut too."""
_LEAST_GAIN = 0.01
"""In standard deviations between drafts. A judge whose comparisons promise less is not asked."""
_STAKE = 0.125
"""The part of what is left that one step of several drafts may take."""
_AGREED = 0.99
"""Posterior probability from which no other answer is expected to lead: after 7 equal drafts of 7."""
_DOUBT, _MOST_DOUBT = 0.005, 0.1
"""What is left of doubt about an agreement is worth drawing as many drafts again if it exceeds this for each
of them: after 6 equal drafts it is .016 and need not exceed .03. It is also if it exceeds the most."""
_LIST = 4
"""Candidates that are best compared at once."""
_PARENTS = 3
"""Candidates that one answer is made from."""
_QUARTER = 0.25
"""The part of what is left that a reply may take: one of unknown length, or one that must not be cut."""


def single(view: View) -> list[Move]:
    """One chain of thought (the paper's Base); another only if it was cut before an answer, and no more after
    three of them."""
    if view.best and view.best["complete"]:
        return [Stop()]
    return [Stop("length")] if view.payoffs.get("draft", NONE)["cut"] >= _CUT else [Draft()]


def best_of_n(view: View, n: int = 4) -> list[Move]:
    """Drafts, up to n at a time, as many as the budget pays for; the scorer or the judge picks the best."""
    part = 0.5 if view.decides == "judge" else 1.0
    return _comparisons(view) or _agreed(view) or _side_by_side(view, n, "chosen", part)


def self_consistency(view: View, n: int = 4) -> list[Move]:
    """Drafts, up to n at a time, as many as the budget pays for; the answer that most of them agree on is the
    best (Wang et al. 2022, arXiv 2203.11171)."""
    return best_of_n(view, n)


def self_refine(view: View) -> list[Move]:
    """Draft, then review and refine in turn (Madaan et al. 2023, arXiv 2303.17651). A refinement replaces
    the incumbent only if it is better."""
    if view.best is None:
        return [Draft(share=_share(view, "draft", _QUARTER))]
    if comparisons := _comparisons(view):
        return comparisons
    if view.best["satisfied"]:
        return [Stop("satisfied")]
    if _unchanged(view):
        return [Stop("agreed")]
    if view.best["feedback"] is None:
        return [Critique(view.best["id"], share=0.25)]
    return [Refine(view.best["id"], share=_share(view, "refine", _QUARTER))]


def pdp(view: View, n: int = 4, shown: Shown = "both") -> list[Move]:
    """Preference Data Prompting (Zhang et al. 2026, arXiv 2601.11038): n drafts at equal slices, pairs
    made from them, then the move that promises the largest rise per token: a draft or a refinement with
    the pairs in its prompt, or a bare draft."""
    if (opening := _opening(view, n, shown)) or view.best is None:
        return opening
    if shown == "both" and view.judging and (reasons := _reasons(view)):
        return reasons
    part = partial(_share, view, least=_QUARTER)
    moves: dict[str, Move] = {
        "taught draft": Draft(pairs=shown, memory=shown, share=part("taught draft")),
        "taught refine": Refine(
            view.best["id"], pairs=shown, memory=shown, share=part("taught refine")
        ),
        "draft": Draft(memory=None, share=part("draft")),
    }
    if not view.pairs and not view.recalled:
        del moves["taught draft"]
    if view.decides == "vote":  # a refinement would vote for the answer that it was made from
        del moves["taught refine"]
    tried = set(view.payoffs)
    if "refine" in tried:  # one was asked for with pairs, but there were none, or no room for them
        tried.add("taught refine")
    if (
        view.pairs and view.made["draft"] <= n
    ):  # taught drafts so far had pairs of earlier questions
        tried.discard("taught draft")
    # Each kind is tried once, a dear one only when it takes no more than an eighth of what is left.
    expected, cheap = prospects(view), _STAKE * tokens_left(view)
    untried = [k for k in moves if k not in tried]
    due = [k for k in untried if k == "taught draft" or expected[k].tokens <= cheap]
    known = [k for k in moves if k in tried or k == "draft"]
    kind = due[0] if due else max(known, key=lambda k: expected[k].rate)
    return [moves[kind]] * _at_once(view, kind)


pdp_positive: Strategy = partial(pdp, shown="chosen")
"""PDP(+): PDP that shows only the better side of each pair."""


def leap(view: View, n: int = 4) -> list[Move]:
    """LEAP (Zhang et al. 2024, arXiv 2402.05403): n drafts, a few short principles learned from their
    mistakes, then drafts with the principles in the prompt."""
    if opening := _opening(view, n, "principles"):
        return opening
    if view.pairs and view.judging and not view.made.get("learn"):
        return [Learn(share=0.25)]
    part = _share(view, "taught draft", _QUARTER)
    return [Draft(pairs="principles", memory="principles", share=part)] * fitting(view, 2, 1.0)


def merge(view: View, n: int = 4) -> list[Move]:
    """Recursive Self-Aggregation (Venkatraman et al. 2025, arXiv 2509.26626): n drafts, then answers that
    are made from the n newest, each time without another one of them. Merged answers are among the
    newest of the next."""
    if opening := _opening(view, n, "chosen"):
        return opening
    merged = {c["id"] for c in view.candidates if c["node"] == "merge"}
    if judge_decides(view) and merged & set(view.tied) and (choice := _choice(view)):
        return choice
    by_text = {c["text"]: c for c in view.candidates if c["complete"]}
    newest = sorted(by_text.values(), key=lambda c: c["id"])[-n:]
    if len(newest) < 2:
        return _drafts(view, 1, "chosen", _share(view, "draft", _QUARTER))
    k, made = _at_once(view, "merge"), view.made.get("merge", 0)
    moves: list[Move] = []
    for i in range(made, made + k):
        left_out = newest[i % len(newest)] if len(newest) > _PARENTS else None
        of = sorted((c for c in newest if c is not left_out), key=partial(_fitness, view))
        moves.append(Merge([c["id"] for c in of], share=_part(view, "merge", k)))
    return moves


def evolve(view: View, n: int = 4) -> list[Move]:
    """Mind Evolution (Lee et al. 2025, arXiv 2501.09891) on one island: n drafts, then answers that are made
    from the best one and two others in turn, with their scores and what the scorer found."""
    if opening := _opening(view, n, "chosen"):
        return opening
    telling = (c for c in view.candidates if c["score"] or c["feedback"])
    distinct = {normal(c["answer"]): c for c in telling}
    ranked = sorted(distinct.values(), key=partial(_fitness, view))
    if not ranked:
        return _drafts(view, 1, "chosen", _share(view, "draft", _QUARTER))
    first, *others = ranked
    k, made = _at_once(view, "evolve"), view.made.get("evolve", 0)
    moves: list[Move] = []
    for i in range(made, made + k):
        turn = [*others[i % len(others) :], *others[: i % len(others)]] if others else []
        of = [first, *sorted(turn[: _PARENTS - 1], key=partial(_fitness, view))]
        moves.append(Evolve([c["id"] for c in of], share=_part(view, "evolve", k)))
    return moves


def ab_mcts(view: View) -> list[Move]:
    """AB-MCTS-A (Inoue et al. 2025, arXiv 2503.04412), as the package treequest decides it: its tree says
    whether to draft, or which answer to refine."""
    of = expanded(view.candidates)
    if of is None:
        return [Draft(share=_share(view, "draft", _QUARTER))]
    return [Refine(of, share=_share(view, "refine", _QUARTER))]


def adaptive(view: View) -> Sequence[Move]:
    """The move with the largest expected gain per token: a draft or a refinement, each bare or taught by
    pairs, or a comparison. An end, if drafts agree, or if the judge cannot tell answers apart."""
    if view.best is None:
        if view.whole and reply_length(view) is None and tokens_left(view) < 2 * FIRST:
            return _drafts(view, 2, "chosen", _QUARTER)
        return [Draft(share=_share(view, "draft", _QUARTER))]
    if votes_decide(view):
        return _settled(view) or _drafts(
            view, _at_once(view, "draft"), "chosen", _share(view, "draft")
        )
    expected = prospects(view)
    if view.decides != "scorer":
        gain = max(p.gain for p in expected.values())
        if gain < _LEAST_GAIN:
            return [Stop("undecided", gain)]
        if view.contests:
            return [Critique(*view.contests[0])]
        if choice := _choice(view):
            return choice
        if agreed := _agreed(view):
            return agreed
        # An answer has no use until it was compared, so its comparison is a part of its cost.
        checked = tokens(view, "compare")
        expected = {k: p._replace(tokens=p.tokens + checked) for k, p in expected.items()}
    lessons = view.pairs or view.recalled
    open_ = [k for k in expected if lessons or not k.startswith("taught")]
    payable = [k for k in open_ if k == "draft" or expected[k].tokens <= tokens_left(view)]
    kind = max(payable, key=lambda k: expected[k].rate)
    pairs: Shown = "both" if kind.startswith("taught") else None
    if kind.endswith("refine"):
        return [Refine(view.best["id"], pairs=pairs, memory=pairs, share=_share(view, kind))]
    n = _at_once(view, kind)
    if view.decides == "agreement":
        n = max(1, _LIST - len(view.tied))
    return [Draft(pairs=pairs, memory=pairs, share=_share(view, kind))] * n


STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "best_of_n": best_of_n,
    "self_consistency": self_consistency,
    "self_refine": self_refine,
    "pdp_positive": pdp_positive,
    "pdp": pdp,
    "leap": leap,
    "merge": merge,
    "adaptive": adaptive,
}
SCORED: dict[str, Strategy] = {"evolve": evolve, "ab_mcts": ab_mcts}
"""Those that need a scorer."""


def resolve(strategy: str | Strategy, decides: Decides = "scorer") -> Strategy:
    """The strategy of that name, or the function itself. Raises ValueError for another name, or if the
    strategy needs a scorer and there is none; ImportError if it needs a package that is not installed."""
    if callable(strategy):
        return strategy
    by_name = STRATEGIES | SCORED
    if not isinstance(strategy, str) or strategy not in by_name:
        raise ValueError(
            f"strategy={strategy!r}: {meant(strategy, by_name)}one of {', '.join(by_name)}, or a "
            "function from View to moves, is needed"
        )
    if strategy in SCORED and decides != "scorer":
        raise ValueError(f"strategy={strategy!r}: it needs scores: pass scorer= a function")
    if strategy == "ab_mcts":
        require_treequest()
    return by_name[strategy]


def _opening(view: View, n: int, memory: Shown) -> list[Move]:
    """What comes before pairs can teach: due comparisons, an end, or what is missing of n drafts, which get
    half of what is left."""
    if due := _comparisons(view) or _agreed(view):
        return due
    missing = n - view.made.get("draft", 0)
    if missing <= 0 and view.best is not None:
        return []
    return _side_by_side(view, max(1, missing), memory, 0.5)


def _side_by_side(view: View, n: int, memory: Shown, part: float) -> list[Move]:
    """n drafts at a time for this part of what is left. If it would cut them, they get up to all, half of it under
    a judge, and if that would cut them too, there are fewer. Of 8,000 tokens, half is 1,000 for each of
    four; if their slices are 1,550, they get 4 * 1,550 = 6,200. Of 2,000, one gets 1,550."""
    most = 0.5 if view.decides == "judge" else 1.0
    k, whole = fitting(view, n, most), _share(view, "draft")
    return _drafts(view, k, memory, max(part / n, whole if k == 1 else min(most / k, whole)))


def _drafts(view: View, n: int, memory: Shown, share: float) -> list[Move]:
    """n drafts, half of them with what the memory recalled, until scores tell which kind pays. After 3
    taught and 1 bare draft, 4 more are 1 taught and 3 bare: 4 and 4 in all."""
    shown, bare = Draft(memory=memory, share=share), Draft(memory=None, share=share)
    if not view.recalled:
        return [bare] * n
    taught, others = (view.payoffs.get(k, NONE)["tries"] for k in ("taught draft", "draft"))
    if view.decides == "scorer" and taught and others:
        expected = prospects(view)
        return [shown if expected["taught draft"].rate > expected["draft"].rate else bare] * n
    due = min(n, max(0, math.ceil((n + taught + others) / 2) - taught))
    first, then = [shown] * due, [bare] * (n - due)
    return [*first, *then] if taught <= others else [*then, *first]


def _comparisons(view: View) -> list[Move]:
    return [Critique(first, second, share=0.3) for first, second in view.contests]


def _agreed(view: View) -> list[Move]:
    """Without a scorer, an end: so many drafts agree on the incumbent's answer that more of them would only
    repeat it."""
    if view.decides == "scorer" or view.best is None or not view.ballots:
        return []
    led = view.best["votes"] >= max(view.ballots.values())
    sure = agreement(view.ballots) if led else 0.0
    return [Stop("agreed", sure)] if sure >= _AGREED else []


def _settled(view: View) -> list[Move]:
    """An end, if drafts agree so far that as many again are not expected to change the answer."""
    sure = agreement(view.ballots)
    doubt = min(_MOST_DOUBT, _DOUBT * sum(view.ballots.values()))
    return [Stop("agreed", sure)] if 1 - sure <= doubt else []


def _choice(view: View) -> list[Move]:
    """A comparison of the answers that nothing else tells apart, once they are enough, or a refinement is
    among them."""
    refined = any(c["node"] == "refine" for c in view.candidates if c["id"] in view.tied[1:])
    if not view.judging or len(view.tied) < (2 if refined else _LIST):
        return []
    return [Choose(tuple(view.tied[: 2 * _LIST]), share=0.5)]


def _fitness(view: View, c: Candidate) -> tuple[float, bool, int, int]:
    """To sort candidates by, the best first: by scores, without them the incumbent, by votes, the newer."""
    incumbent = view.best is not None and c["id"] == view.best["id"]
    return (-(c["score"] or 0.0), not incumbent, -c["votes"], -c["id"])


def _unchanged(view: View) -> bool:
    """Without a scorer, whether a refinement left the incumbent's answer unchanged."""
    best = view.best
    return view.decides != "scorer" and any(
        best is not None
        and c["node"] == "refine"
        and c["parents"] == [best["id"]]
        and c["complete"]
        and normal(c["answer"]) == normal(best["answer"])
        for c in view.candidates
    )


def _reasons(view: View) -> list[Move]:
    """Ask why, for the two pairs with the widest gaps, if only their scores tell the sides apart and if
    calls are left to use the reasons."""
    if view.left.get("calls", 4) < 4:
        return []
    return [
        Learn(pair["chosen_id"], pair["rejected_id"], share=0.1)
        for pair in view.pairs[:2]
        if pair["why_by"] == "score"
    ]


def _share(view: View, kind: str, least: float = 0.0) -> float:
    """What a move of this kind may spend, as a part of what is left, and at least `least` of it."""
    return max(least, slice_(view, kind) / tokens_left(view))


def _part(view: View, kind: str, k: int) -> float:
    """What one of k answers made from several may spend, as a part of what is left. A quarter seldom holds
    all that its prompt is to show, so one by itself gets half."""
    return _share(view, kind, max(_QUARTER, 0.5 / k))


def _at_once(view: View, kind: str) -> int:
    """How many moves of this kind to make side by side: together they take an eighth of what is left, and
    they are no more than were seen so far. Of 10,000 tokens, 1,250 pay for two of 500 each. One, if the
    judge compares it with the best before the next."""
    if judge_decides(view):
        return 1
    seen = view.payoffs.get(kind, NONE)["tries"]
    return int(max(1, min(_AT_ONCE, seen, _STAKE * tokens_left(view) / tokens(view, kind))))
