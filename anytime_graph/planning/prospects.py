"""What each kind of move can be expected to bring, and to cost, by what the run has shown.

One estimate for all who need it: the strategies that choose what pays, the rules that stop a run, and
the slices that replies are held to. Where the run has shown little, the prior fills in: the profile of the model and task, if there
is one, else a weak one that a few answers outgrow. Pure functions of the View.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from statistics import NormalDist
from typing import NamedTuple

from anytime_graph.budget import GOOD_ROOM
from anytime_graph.planning.moves import View
from anytime_graph.run.state import Payoff, add_payoffs, payoff

NONE = payoff(0.0, tries=0)
KINDS = ("draft", "taught draft", "refine", "taught refine")
"""Of answers, as payoffs name them."""
_MEAN, _SPREAD = 0.5, 0.25
"""Of the scores of drafts, before any was seen; as if from one draft, or, once more than `_FADES` were
seen, from a part of one: after 8 drafts a quarter, lest drafts that are all alike seem to promise much."""
_FADES = 4
_ALIKE = 0.05
"""Of the scores of drafts, at the least, for a few drafts that are alike prove little."""
_SHIFT = 0.15
"""Standard deviation, among questions, of what lessons change in a draft's score."""
_TAUGHT = 0.5
"""Where a taught draft's score is expected before one was seen: this part of the way from the mean of
bare drafts to the best one, which it is shown."""
_CHANGE = 0.4
"""Standard deviation of what a refinement changes, times the score that it builds on and its gap to
a perfect one: of an answer without merit a refinement is but a dearer draft."""
_STEP = 0.4
"""The same under a judge, in standard deviations between drafts: that at a score of 1/2."""
_DEARER = {"draft": 1.0, "taught draft": 1.4, "refine": 1.5, "taught refine": 1.9, "compare": 1.5}
"""Tokens, relative to a draft, before they were seen."""
_USUAL = 500.0
"""Tokens of a draft before one was seen."""
FIRST = 768
"""Tokens of a slice for a draft while nothing tells how long replies are."""
_MOST, _LONGER = 1.25, 1.5
"""Times the mean length of replies: what is long enough for most; how much longer than the mean one may
become, twice that while only one is known."""
_BOUND = 1.25
"""Times what a prompt comes to, that is held for it before it is sent."""
_UNLIMITED = 32
"""Drafts that there is enough for, if nothing is limited."""
_NORMAL = NormalDist()
_SURES = [0.5 + (i + 0.5) / 20 for i in range(10)]
_LEANS = [(i + 0.5) / 10 - 1 for i in range(20)]


class Prospect(NamedTuple):
    """gain: the expected rise of the best score; under a judge, of its unknown quality, in standard
    deviations between drafts; under a vote, of the chance to be right. tokens: the expected cost."""

    gain: float
    tokens: float

    @property
    def rate(self) -> float:
        return self.gain / max(1.0, self.tokens)


def prospects(view: View) -> dict[str, Prospect]:
    """Of each kind of answer."""
    gains = {"scorer": _scored, "judge": _judged, "vote": _voted}[view.decides](view)
    return {kind: Prospect(gain, tokens(view, kind)) for kind, gain in gains.items()}


def tokens(view: View, kind: str) -> float:
    """What a move of this kind costs."""
    seen, known = view.payoffs.get(kind), view.profile.get(kind)
    if kind == "compare":
        told = view.judged["comparisons"]
        cost = float(view.judged["spent"]["tokens"])
    else:
        told, cost = (seen["tries"], float(seen["tokens"])) if seen else (0, 0.0)
    if known and known["tries"]:
        prior = known["tokens"] / known["tries"]
    else:
        prior = _DEARER[kind] * (_USUAL if kind == "draft" else tokens(view, "draft"))
        if kind == "draft" and told:
            return cost / told
    return (cost + prior) / (told + 1)


class ReplyLength(NamedTuple):
    """Output tokens of an answer. most: what is long enough for most. ample: for all but those that run
    on and on."""

    most: float
    ample: float


def reply_length(view: View) -> ReplyLength | None:
    """By the drafts that came to their end, the profile's mean as one more; None without any.

    300 and 500 tokens have a mean of 400: 500 are enough for most, and 400 * (1 + 1.5 * (1 + 1/2)) =
    1,300 ample; after ten such drafts, 400 * (1 + 1.5 * (1 + 1/10)) = 1,060. Where a reply that is cut
    is an answer all the same, it may exceed the mean by half as much: 850, and 730. Where most
    slices are used up, no length is known: 500 tokens each become 1,000, or a quarter of what is left
    if that is more, unless they bring answers all the same: then they stay at 500, or, of texts that have no end, become
    250, for more of them.
    """
    drafts, known = _drafts(view.payoffs), _drafts(view.profile)
    if drafts["tries"] and (ended := drafts["tries"] - drafts["cut"]) < max(1, drafts["cut"]):
        written = drafts["written"] / drafts["tries"]
        if view.whole or (view.best and view.best["complete"]):
            return ReplyLength(_MOST * written, written / 2 if view.whole else written)
        if not ended:
            return ReplyLength(_MOST * written, max(2 * written, tokens_left(view) / 4))
    ended, total = drafts["tries"] - drafts["cut"], float(drafts["whole"])
    if known["tries"] > known["cut"]:
        ended, total = ended + 1, total + known["whole"] / (known["tries"] - known["cut"])
    if not ended:
        return None
    longer = _LONGER / 2 if view.whole else _LONGER
    return ReplyLength(_MOST * total / ended, (1 + longer * (1 + 1 / ended)) * total / ended)


def slice_(view: View, kind: str) -> float:
    """Tokens that a move of this kind may use: what is not written costs nothing, but a reply that runs
    on is not worth all that is left. What would pay for no other draft is given as well.

    With replies as above (1,300 are ample) and prompts of 200 tokens, 1.25 * 200 + 1,300 = 1,550 of
    10,000; all of 1,800, as the 250 beyond would not pay for the prompt of another.
    """
    left, length = tokens_left(view), reply_length(view)
    if length is None:
        return min(FIRST, left)
    prompt = _prompt(view, "draft")
    held = _BOUND * _prompt(view, kind) + max(GOOD_ROOM, length.ample)
    return left if left - held < _BOUND * prompt + GOOD_ROOM else held


def tokens_left(view: View) -> float:
    """As far as what is limited tells; as good as unlimited if nothing does."""
    spent, usual = view.spent, tokens(view, "draft")
    made = max(1, spent["tokens"])
    worth = {
        "tokens": 1.0,
        "output_tokens": made / max(1, spent["output_tokens"]),
        "usd": made / spent["usd"] if spent["usd"] else 0.0,
        "calls": usual,
    }
    told = [amount * worth[d] for d, amount in view.left.items() if worth.get(d)]
    return max(1.0, min(told, default=_UNLIMITED * usual))


def _prompt(view: View, kind: str) -> float:
    """What the prompt of a move of this kind comes to; before one was seen, what the whole move does."""
    seen = view.payoffs.get(kind)
    return (seen["tokens"] - seen["written"]) / seen["tries"] if seen else tokens(view, kind)


def _drafts(payoffs: Mapping[str, Payoff]) -> Payoff:
    """Bare and taught ones together: lessons lengthen their prompts, not their replies."""
    return add_payoffs(payoffs.get("draft", NONE), payoffs.get("taught draft", NONE))


def rise(mean: float, spread: float, best: float, most: float = 1.0) -> float:
    """E[max(0, min(X, most) - best)] of a normal X: the expected improvement (Mockus 1978; as the
    index of Pandora's boxes in Weitzman 1979) of a score that ends at `most`."""
    if spread < 1e-9:
        return max(0.0, min(mean, most) - best)

    def beyond(x: float) -> float:
        z = (x - mean) / spread
        return spread * (_NORMAL.pdf(z) - z * _NORMAL.cdf(-z))

    return max(0.0, beyond(best) - (beyond(most) if most < math.inf else 0.0))


def agreement(ballots: Mapping[str, int]) -> float:
    """The posterior probability that the leader of a vote would lead among infinitely many, at least.

    Answers are taken as drawn from a Dirichlet process of concentration 1, so the shares of the
    answers seen and of all others together are Dirichlet(votes..., 1) (Ferguson 1973), and two of
    them compare as a Beta, at 1/2 an exact binomial sum. The chances that a rival is ahead are added
    up (Bonferroni). Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860) compares the first
    two only. 0 without votes.
    """
    votes = sorted(ballots.values(), reverse=True)
    if not votes:
        return 0.0
    lead, *others = votes
    return max(0.0, 1.0 - sum(_behind(lead, rival) for rival in (*others, 1)))


def _behind(lead: int, rival: int) -> float:
    """P(Beta(lead, rival) < 1/2)."""
    n = lead + rival - 1
    ahead: int = sum(math.comb(n, k) for k in range(lead, n + 1))
    return ahead / (1 << n)


def _scored(view: View) -> dict[str, float]:
    """By a profile and without one, half and half: a mixture of priors, so that what a wrong profile
    gives up on is tried all the same."""
    cold = _rises(view, {})
    if not view.profile:
        return cold
    told = _rises(view, view.profile)
    return {kind: (gain + told[kind]) / 2 for kind, gain in cold.items()}


def _rises(view: View, profile: Mapping[str, Payoff]) -> dict[str, float]:
    """Scores of drafts are taken as normal, and so is what refinements change. Every mean, and mean
    square, is that of what was seen and of one more: the profile's, or else the prior. That one more is
    for taught drafts half way from bare ones to the best; for taught refinements, what bare ones
    change. Drafts of both kinds have one spread, so have refinements.

    Bare drafts of .2, .4 and .6: with a prior of .5 their mean is 1.7/4 = .425, their spread
    sqrt((.56 + .3125)/4 - .425**2) = .194: the next is expected to rise by .019 above the best, .6. A
    taught one is expected at .425 + (.6 - .425)/2 = .513, with hypot(.194, .15) = .245, and to rise by
    .058. After a taught one of .3 the spread is .180, and a bare one is expected to rise by .016; a
    taught one, at (.3 + .513)/2 = .406 with hypot(.180, .106) = .209, by .020. A refinement of the
    .6 is expected to change nothing, with a spread of .4 * .6 * .4 = .096, and to rise by .038; after
    one that did change nothing, with .068, by .027.
    """
    best = (view.best["score"] or 0.0) if view.best else 0.0

    def prior(kind: str, mean: float, square: float = 0.0) -> tuple[float, float]:
        """The profile's mean and mean square, or else those given."""
        if not (known := profile.get(kind)) or not known["tries"]:
            return mean, square
        tries, total, squares = _sums(known, kind)
        return total / tries, squares / tries

    def pooled(
        one_more: tuple[float, float], *kinds: str, until: float = math.inf
    ) -> tuple[int, float, float]:
        """How many were seen, and with one more the mean and mean square of what they brought. That
        one counts in full until so many were seen, then less."""
        seen = [_sums(view.payoffs.get(kind), kind) for kind in kinds]
        tries, total, squares = (sum(column) for column in zip(*seen, strict=True))
        weight = min(1.0, (until / max(1, tries)) ** 2)
        mean, square = one_more
        of = tries + weight
        return int(tries), (total + weight * mean) / of, (squares + weight * square) / of

    usual = prior("draft", _MEAN, _MEAN**2 + _SPREAD**2)
    _, common, square = pooled(usual, "draft", "taught draft", until=_FADES)
    spread = max(_ALIKE, math.sqrt(max(0.0, square - common**2)))
    bare, mean, _ = pooled(usual, "draft", until=_FADES)
    record = (1 - best) / (bare + 1)
    halfway = mean + _TAUGHT * max(0.0, best - mean)
    shown, taught, _ = pooled(prior("taught draft", halfway), "taught draft")
    wider = math.hypot(spread, _SHIFT / math.sqrt(shown + 1))
    unchanged = prior("refine", 0.0, (_CHANGE * best * (1 - best)) ** 2)
    _, changed, square = pooled(unchanged, "refine", "taught refine")
    change_spread = math.sqrt(max(0.0, square - changed**2))
    _, change, _ = pooled(unchanged, "refine")
    _, retaught, _ = pooled(prior("taught refine", change), "taught refine")
    return {
        "draft": min(rise(mean, spread, best), record),
        "taught draft": rise(taught, wider, best),
        "refine": rise(best + change, change_spread, best),
        "taught refine": rise(best + retaught, change_spread, best),
    }


def _sums(payoff: Payoff | None, kind: str) -> tuple[int, float, float]:
    """Tries, and the sums of what counts of a kind: of refinements, what they change."""
    if payoff is None:
        return 0, 0.0, 0.0
    if kind.endswith("refine"):
        return payoff["tries"], payoff["change"], payoff["changes"]
    return payoff["tries"], payoff["worth"], payoff["squares"]


@lru_cache(maxsize=512)
def verdicts(agreed: int, firsts: int, seconds: int) -> tuple[float, float]:
    """How often both orders of a comparison name the better answer, and how often the worse.

    agreed, firsts, seconds: comparisons whose orders agreed, or both named the answer shown first,
    or second. A call is taken to go by the place with probability |lean|, else by the answers, and
    then to be right with probability a: so agreement tells little of a judge that errs by chance,
    whose flips go either way, and much of one that only leans. Posterior means, from a even in
    [1/2, 1] and lean in [-1, 1]. Errors that are the same in both orders go unseen.
    """
    found = []
    for lean, sure in product(_LEANS, _SURES):
        right, wrong = (1 - abs(lean)) * sure, (1 - abs(lean)) * (1 - sure)
        tie = right * wrong
        place = abs(lean) + tie
        better, worse = right * (abs(lean) + right), wrong * (abs(lean) + wrong)
        first, second = (place, tie) if lean > 0 else (tie, place)
        told = ((agreed, better + worse), (firsts, first), (seconds, second))
        found.append((sum(n * math.log(chance) for n, chance in told), better, worse))
    most = max(likely for likely, *_ in found)
    weights = [math.exp(likely - most) for likely, *_ in found]
    right = sum(w * better for w, (_, better, _) in zip(weights, found, strict=True))
    wrong = sum(w * worse for w, (_, _, worse) in zip(weights, found, strict=True))
    return right / sum(weights), wrong / sum(weights)


@lru_cache(maxsize=512)
def _level(right: float, wrong: float, drafts: int) -> float:
    """Where the incumbent stands after that many drafts were held against it, in expectation."""
    level = 0.0
    for _ in range(drafts):
        ahead = rise(0.0, 1.0, level, math.inf)
        level += right * ahead - wrong * (level + ahead)
    return level


def _judged(view: View) -> dict[str, float]:
    """A comparison puts the better answer in the incumbent's place, or the worse, as often as the
    judge is right, or wrong. What refinements are worth is told by how often they got there."""
    judged = view.judged
    told = judged["agreed"] + judged["flips"]
    decided = (1 + told) / (1 + judged["comparisons"])  # the others were ties, or came to nothing
    right, wrong = (
        decided * share
        for share in verdicts(
            judged["agreed"], judged["firsts"], judged["flips"] - judged["firsts"]
        )
    )

    def won(kind: str, usual: float) -> float:
        """How often answers of a kind took the best one's place; as if `usual` twice before."""
        seen = view.payoffs.get(kind) or NONE
        return (seen["worth"] + 2 * usual) / (seen["tries"] + 2)

    def stepped(taken: float, tries: int) -> float:
        """Gain by a refinement: its change is taken as normal, of a mean that makes it better than
        its parent as often as it took that one's place, the judge's errors allowed for."""
        better = min(0.95, max(0.05, (taken - wrong) / max(1e-3, right - wrong)))
        mean = _STEP * _NORMAL.inv_cdf(better)
        ahead = rise(mean, _STEP * math.sqrt(1 + 1 / (tries + 1)), 0.0, math.inf)
        return right * ahead - wrong * (ahead - mean)

    refined = won("refine", (right + wrong) / 2)
    retaught = won("taught refine", refined)
    tried, tried_taught = (
        (view.payoffs.get(kind) or NONE)["tries"] for kind in ("refine", "taught refine")
    )
    level = _level(right, wrong, max(0, judged["comparisons"] - tried - tried_taught))
    level += tried * max(0.0, stepped(refined, tried))

    def drawn(spread: float) -> tuple[float, float]:
        """Gain by a draft, and how often it takes the place."""
        ahead, better = rise(0.0, spread, level, math.inf), _NORMAL.cdf(-level / spread)
        return right * ahead - wrong * (level + ahead), right * better + wrong * (1 - better)

    bare, _ = drawn(1.0)
    seen = view.payoffs.get("taught draft") or NONE
    taught, often = drawn(math.hypot(1.0, _SHIFT / _SPREAD / math.sqrt(seen["tries"] + 1)))
    return {
        "draft": bare,
        "taught draft": taught * won("taught draft", often) / often,
        "refine": stepped(refined, tried),
        "taught refine": stepped(retaught, tried_taught),
    }


def _voted(view: View) -> dict[str, float]:
    """More votes help only where the leader is wrong, and not before a rival has caught up."""
    votes = sorted(view.ballots.values(), reverse=True)
    lead = votes[0] - (votes[1] if len(votes) > 1 else 0) if votes else 0
    return dict.fromkeys(KINDS, (1 - agreement(view.ballots)) / (lead + 1))
