"""What each kind of move is expected to bring and to cost, by what the run has shown.

One estimate serves the strategies that choose what pays, the rules that stop a run, and the slices
that replies are held to. While the run has shown little, a prior fills in: the profile of the model and
task if there is one, else a weak one that a few answers outgrow. Pure functions of the View.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from statistics import NormalDist, median
from typing import NamedTuple

from anytime_graph.budget import GOOD_ROOM, MIN_ROOM
from anytime_graph.planning.moves import View
from anytime_graph.run.state import Payoff, add_payoffs, payoff

NONE = payoff(0.0, tries=0)
"""The payoff of a kind of answer that was not tried."""
KINDS = ("draft", "taught draft", "refine", "taught refine")
"""The kinds of answers, as payoffs name them."""
_MEAN, _SPREAD = 0.5, 0.25
"""Prior mean and standard deviation of the scores of drafts."""
_FADES = 4
"""The prior counts as one draft until this many drafts were seen, then less: after 8, as a quarter.
Otherwise drafts that are all alike would seem to promise much."""
_LEAST_SPREAD = 0.05
"""The least standard deviation of the scores of drafts: a few equal scores prove little."""
_SHIFT = 0.15
"""Standard deviation, among questions, of what lessons change in a draft's score."""
_TAUGHT = 0.5
"""A taught draft is shown the best draft. Before one was seen, its score is expected this part of the
way from the mean of bare drafts to the best."""
_CHANGE = 0.4
"""Standard deviation of what a refinement changes, as a multiple of the score that it starts from times
the gap to a perfect score. A refinement of an answer without merit is only a dearer draft."""
_STEP = 0.4
"""Under a judge, the standard deviation of what a refinement changes, in standard deviations between
drafts: _CHANGE at a score of 1/2, 0.4 * 0.5 * 0.5 / _SPREAD."""
_DEARER = {
    "draft": 1.0,
    "taught draft": 1.4,
    "refine": 1.5,
    "taught refine": 1.9,
    "merge": 2.5,
    "evolve": 2.5,
    "compare": 1.5,
}
"""Prior tokens of each kind of move, relative to a draft."""
_USUAL = 500.0
"""Prior tokens of a draft."""
FIRST = 768
"""Tokens of a draft's slice while the length of replies is unknown."""
_MOST, _LONGER = 1.25, 1.5
"""As multiples of the mean length of replies: what is long enough for most; and how much longer than the
mean a reply may be. Twice that while only one length is known."""
_BOUND = 1.25
"""A prompt is bounded at about this multiple of its tokens before it is sent."""
_UNLIMITED = 32
"""Without limits, a run plans as if this many drafts could be paid for."""
_SHORT, _DIFFERENT = 100, 8
"""Characters of an answer with which others can be expected to agree; and how many of that length may all
differ before none is expected to agree."""
_NORMAL = NormalDist()
_RIGHTS = [0.5 + (i + 0.5) / 20 for i in range(10)]
_LEANS = [(i + 0.5) / 10 - 1 for i in range(20)]
"""The grid of judges: chances to be right from .525 to .975, leans towards a place from -.95 to .95."""


class Prospect(NamedTuple):
    """gain: the expected rise of the best score; under a judge, of its unknown quality, in standard
    deviations between drafts; under a vote, of the chance to be right. tokens: the expected cost."""

    gain: float
    tokens: float

    @property
    def rate(self) -> float:
        return self.gain / max(1.0, self.tokens)


def prospects(view: View) -> dict[str, Prospect]:
    """The prospect of each kind of answer."""
    if view.decides == "scorer":
        gains = _scored(view)
    else:
        gains = _voted(view) if votes_decide(view) else _judged(view)
    return {kind: Prospect(gain, tokens(view, kind)) for kind, gain in gains.items()}


def best_prospect(view: View) -> Prospect:
    """That of the kind of answer which promises most for its cost."""
    return max(prospects(view).values(), key=lambda prospect: prospect.rate)


def votes_decide(view: View) -> bool:
    """Whether drafts are told apart by their votes. Under agreement that is so if two of them agreed, or if
    answers are short and few were seen; not of texts, which cannot agree."""
    if view.decides != "agreement":
        return view.decides == "vote"
    if max(view.ballots.values(), default=0) > 1:
        return True
    lengths = [len(c["answer"]) for c in view.candidates if c["complete"]]
    few = sum(view.ballots.values()) < _DIFFERENT
    return not lengths or (few and median(lengths) <= _SHORT)


def judge_decides(view: View) -> bool:
    """Whether the next answers are told apart by the judge."""
    return view.decides == "judge" or (view.decides == "agreement" and not votes_decide(view))


def tokens(view: View, kind: str) -> float:
    """The expected cost of a move of this kind: the mean of those seen, with the prior as one more. Drafts
    of 300 and 500 tokens make 400; a first taught draft is expected at 1.4 * 400 = 560, and after one of
    600 at (600 + 560) / 2 = 580."""
    if kind == "compare":
        tries, cost = view.judged["comparisons"], float(view.judged["spent"]["tokens"])
    else:
        seen = view.payoffs.get(kind, NONE)
        tries, cost = seen["tries"], float(seen["tokens"])
    known = view.profile.get(kind)
    if known and known["tries"]:
        prior = known["tokens"] / known["tries"]
    elif kind == "draft":
        if tries:
            return cost / tries
        prior = _USUAL
    else:
        prior = _DEARER[kind] * tokens(view, "draft")
    return (cost + prior) / (tries + 1)


class ReplyLength(NamedTuple):
    """Output tokens of an answer. most: enough for most answers. ample: enough for all but those that
    run on and on."""

    most: float
    ample: float


def reply_length(view: View) -> ReplyLength | None:
    """By the drafts that ended by themselves, with the profile's mean as one more; None without any.

    Drafts of 300 and 500 tokens have a mean of 400. 500 are enough for most, and
    400 * (1 + 1.5 * (1 + 1/2)) = 1,300 are ample; after ten such drafts, 400 * (1 + 1.5 * (1 + 1/10)) =
    1,060. Where a cut reply is still an answer, it may exceed the mean by half as much: 850, and 730.

    Where most drafts use up their slices, no length is known. After slices of 500 tokens, the next get
    1,000, or a quarter of what is left if that is more. If cut replies bring answers all the same,
    slices stay at 500. If a cut reply is an answer as a whole, they shrink to 250, to get more of them.
    """
    drafts = _drafts(view.payoffs)
    if drafts["tries"] and (ended := drafts["tries"] - drafts["cut"]) < max(1, drafts["cut"]):
        written = drafts["written"] / drafts["tries"]
        if view.whole or (view.best and view.best["complete"]):
            return ReplyLength(_MOST * written, written / 2 if view.whole else written)
        if not ended:
            return ReplyLength(_MOST * written, max(2 * written, tokens_left(view) / 4))
    ended, total = _lengths(view)
    if not ended:
        return None
    longer = _LONGER / 2 if view.whole else _LONGER
    return ReplyLength(_MOST * total / ended, (1 + longer * (1 + 1 / ended)) * total / ended)


def chance_of_more(view: View, tokens: float) -> float | None:
    """The chance that a draft takes more output tokens than these; None as long as no length is known.

    As if lengths were exponential, with a mean about which the drafts that ended by themselves, and the profile's
    mean as one more, are all that is known: after n of them of S tokens in all it is (1 + tokens / S) ** -n. After
    97 and 5, that is (1 + 150 / 102) ** -2 = .16 for 150; after ten such drafts, (1 + 150 / 510) ** -10 = .08.
    """
    ended, total = _lengths(view)
    return (1 + tokens / total) ** -ended if ended and total else None


def slice_(view: View, kind: str) -> float:
    """Tokens that a move of this kind may use. What is not written costs nothing, but a reply that runs
    on is not worth all that is left. A rest that pays for no other draft is added to the slice.

    With replies as above (1,300 are ample) and prompts of 200 tokens, the slice is 1.25 * 200 + 1,300 =
    1,550 of 10,000. Of 1,800 it is all, as the other 250 are less than 1.25 * 200 + 64.
    """
    left, length = tokens_left(view), reply_length(view)
    if length is None:
        return min(FIRST, left)
    prompt = _prompt(view, "draft")
    held = _BOUND * _prompt(view, kind) + max(GOOD_ROOM, length.ample)
    return left if left - held < _BOUND * prompt + GOOD_ROOM else held


def fitting(view: View, n: int, part: float) -> int:
    """How many of n drafts can be made side by side out of this part of what is left, each with a whole slice;
    at least one. As long as no length is known, 2,400 tokens are enough for three: 3 * 768 = 2,304. With
    replies of which 24 tokens are ample, 264 are enough for four that share a prompt of 132: 1.25 * 132 +
    4 * 24 = 261. A limit of calls cuts no reply, so it does not count."""
    view = replace(view, left={d: amount for d, amount in view.left.items() if d != "calls"})
    most, length = part * tokens_left(view), reply_length(view)
    if view.prompt_once and length is not None:
        k = (most - _BOUND * _prompt(view, "draft")) / max(MIN_ROOM, length.ample)
    else:
        k = most / slice_(view, "draft")
    return max(1, min(n, int(k)))


def tokens_left(view: View) -> float:
    """What is left, in tokens: the least by all limits. With 1,000 tokens spent for $0.002, $0.01 are worth
    5,000 tokens; before, with output at $8 a million, 1,250. With drafts of 500, 4 calls are worth 2,000."""
    spent, usual = view.spent, tokens(view, "draft")
    used = max(1, spent["tokens"])
    worth = {
        "tokens": 1.0,
        "output_tokens": used / max(1, spent["output_tokens"]),
        "usd": 1 / view.usd_per_token if view.usd_per_token else 0.0,
        "calls": usual,
    }
    amounts = [amount * worth[d] for d, amount in view.left.items() if worth.get(d)]
    return max(1.0, min(amounts, default=_UNLIMITED * usual))


def _prompt(view: View, kind: str) -> float:
    """Tokens of the prompt of a move of this kind; before one was seen, of the whole move."""
    seen = view.payoffs.get(kind)
    return (seen["tokens"] - seen["written"]) / seen["tries"] if seen else tokens(view, kind)


def _drafts(payoffs: Mapping[str, Payoff]) -> Payoff:
    """Bare and taught ones together: lessons lengthen their prompts, not their replies."""
    return add_payoffs(payoffs.get("draft", NONE), payoffs.get("taught draft", NONE))


def _lengths(view: View) -> tuple[int, float]:
    """(drafts that ended by themselves, their output tokens in all), with the profile's mean as one more."""
    drafts, known = _drafts(view.payoffs), _drafts(view.profile)
    ended, total = drafts["tries"] - drafts["cut"], float(drafts["whole"])
    if known["tries"] > known["cut"]:
        return ended + 1, total + known["whole"] / (known["tries"] - known["cut"])
    return ended, total


def rise(mean: float, spread: float, best: float, most: float = 1.0) -> float:
    """E[max(0, min(X, most) - best)] of a normal X: the expected improvement (Mockus 1978; the index of
    Pandora's boxes in Weitzman 1979) of a score that is at most `most`. Of mean .5 and spread .25, it is
    .25 * .399 = .1 above a best of .5, less .002 beyond a most of 1."""
    if spread < 1e-9:
        return max(0.0, min(mean, most) - best)

    def beyond(x: float) -> float:
        z = (x - mean) / spread
        return spread * (_NORMAL.pdf(z) - z * _NORMAL.cdf(-z))

    return max(0.0, beyond(best) - (beyond(most) if most < math.inf else 0.0))


def agreement(ballots: Mapping[str, int]) -> float:
    """The posterior probability, or a lower bound of it, that the leader of a vote would lead among
    infinitely many drafts. 0 without votes.

    A draft is taken to be a slip, whose answer never comes again, with an unknown probability, uniform in
    [0, 1]. Other answers are drawn from a Dirichlet process of concentration 1. So the shares of those
    seen, and of all others together, are Dirichlet(votes..., 1) (Ferguson 1973). Two of them compare as
    a Beta, at 1/2 an exact binomial sum. The chances that each rival is ahead are added up (Bonferroni).
    Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860) compares the first two only.

    After 7 equal answers of 7, the one rival is an answer not seen yet: 1 - 1/2**7 = .992. After 7 and 12
    others that came once each, one of the 12 is expected to be no slip: 1 - (1 + 1)/2**7 = .984.
    """
    votes = sorted(ballots.values(), reverse=True)
    if not votes or votes[0] == 1:  # of a single answer, P(no slip) * P(in the lead) = 1/2 * 1/2
        return 0.25 if len(votes) == 1 else 0.0
    lead, *others = votes
    rivals = [_behind(lead, votes) for votes in others if votes > 1]
    singles = 1 + _no_slips(len(others) - len(rivals))  # one more: the answers not seen yet
    return max(0.0, 1.0 - sum(rivals) - singles * _behind(lead, 1))


@lru_cache(maxsize=512)
def _no_slips(singles: int) -> float:
    """How many of the answers that came once are expected to be no slips. That it is k has a posterior in
    proportion to 1/k!: of 2, (0/1 + 1/1 + 2/2) / (1/1 + 1/1 + 1/2) = .8; of many, 1."""
    weights = [1 / math.factorial(k) for k in range(min(singles, 20) + 1)]
    return sum(k * weight for k, weight in enumerate(weights)) / sum(weights)


def _behind(lead: int, rival: int) -> float:
    """P(Beta(lead, rival) < 1/2)."""
    n = lead + rival - 1
    ahead: int = sum(math.comb(n, k) for k in range(lead, n + 1))
    return ahead / (1 << n)


def _scored(view: View) -> dict[str, float]:
    """The mean of the rises with a profile and without: what a wrong profile gives up on is still tried."""
    cold, informed = _rises(view, {}), _rises(view, view.profile)
    return {kind: (gain + informed[kind]) / 2 for kind, gain in cold.items()}


def _rises(view: View, profile: Mapping[str, Payoff]) -> dict[str, float]:
    """Scores of drafts are taken as normal, and so is what refinements change. Each mean, and each mean
    square, is of the answers seen and one more: the profile's, or else the prior. For taught drafts the
    prior is half way from bare drafts to the best; for taught refinements, what bare ones change. Drafts
    of both kinds share one spread, and so do refinements.

    Bare drafts of .2, .4 and .6, with a prior of .5: the mean is 1.7/4 = .425, the spread
    sqrt((.56 + .3125)/4 - .425**2) = .194, and the next is expected to rise by .019 above the best, .6.
    A taught draft is expected at .425 + (.6 - .425)/2 = .513, with hypot(.194, .15) = .245, and to rise
    by .058. After a taught draft of .3 the spread is .180, and a bare one is expected to rise by .016; a
    taught one, at (.3 + .513)/2 = .406 with hypot(.180, .106) = .209, by .020. A refinement of the .6 is
    expected to change nothing, with a spread of .4 * .6 * .4 = .096, and to rise by .038; after one that
    changed nothing, with .068, by .027.
    """
    best = (view.best["score"] or 0.0) if view.best else 0.0

    def prior(kind: str, mean: float, square: float = 0.0) -> tuple[float, float]:
        """The profile's mean and mean square, or else those given."""
        tries, total, squares = _sums(profile, kind)
        return (total / tries, squares / tries) if tries else (mean, square)

    def pooled(
        usual: tuple[float, float], *kinds: str, fades: float = math.inf
    ) -> tuple[int, float, float]:
        """How many were seen; the mean and mean square of what they brought, with the usual one as one
        more. That one counts in full until `fades` were seen, then less."""
        seen = [_sums(view.payoffs, kind) for kind in kinds]
        tries, total, squares = (sum(column) for column in zip(*seen, strict=True))
        weight = min(1.0, (fades / max(1, tries)) ** 2)
        n, (mean, square) = tries + weight, usual
        return int(tries), (total + weight * mean) / n, (squares + weight * square) / n

    usual = prior("draft", _MEAN, _MEAN**2 + _SPREAD**2)
    _, common, square = pooled(usual, "draft", "taught draft", fades=_FADES)
    spread = max(_LEAST_SPREAD, math.sqrt(max(0.0, square - common**2)))
    bare, mean, _ = pooled(usual, "draft", fades=_FADES)
    # The next of n + 1 equal draws is the best with a chance of 1 / (n + 1), and rises to 1 at most.
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


def _sums(payoffs: Mapping[str, Payoff], kind: str) -> tuple[int, float, float]:
    """Tries of a kind, and the sums of what they brought and of its squares: scores of drafts, changes by
    refinements."""
    seen = payoffs.get(kind, NONE)
    if kind.endswith("refine"):
        return seen["tries"], seen["change"], seen["changes"]
    return seen["tries"], seen["worth"], seen["squares"]


@lru_cache(maxsize=512)
def verdicts(agreed: int, firsts: int, seconds: int) -> tuple[float, float]:
    """How often both orders of a comparison name the better answer, and how often the worse: posterior
    means over a grid of judges.

    agreed, firsts, seconds: comparisons whose orders agreed; whose orders both named the answer shown
    first; shown second. A call is taken to go by the place with probability |lean|, else by the answers,
    and then to be right with probability a in [1/2, 1]. So agreement proves little about a judge that
    errs by chance, whose flips go either way, and much about one that only leans. Errors that are the
    same in both orders go unseen.

    Of a = .8 and lean = .5, a call is right by the answers with .5 * .8 = .4 and wrong with .1. Both
    orders name the better answer with .4 * (.5 + .4) = .36, the worse with .1 * (.5 + .1) = .06, the
    first place with .5 + .4 * .1 = .54 and the second with .04.
    """
    judges = []
    for lean, chance in product(_LEANS, _RIGHTS):
        right, wrong = (1 - abs(lean)) * chance, (1 - abs(lean)) * (1 - chance)
        tie = right * wrong
        place = abs(lean) + tie
        better, worse = right * (abs(lean) + right), wrong * (abs(lean) + wrong)
        first, second = (place, tie) if lean > 0 else (tie, place)
        counts = ((agreed, better + worse), (firsts, first), (seconds, second))
        judges.append((sum(n * math.log(p) for n, p in counts), better, worse))
    most = max(likely for likely, *_ in judges)
    weights = [math.exp(likely - most) for likely, *_ in judges]
    right = sum(w * better for w, (_, better, _) in zip(weights, judges, strict=True))
    wrong = sum(w * worse for w, (_, _, worse) in zip(weights, judges, strict=True))
    return right / sum(weights), wrong / sum(weights)


@lru_cache(maxsize=512)
def _level(right: float, wrong: float, drafts: int) -> float:
    """The expected quality of the incumbent after comparisons with that many drafts, in standard deviations
    between drafts. A perfect judge (right 1, wrong 0) lifts it to .40 after one, .63 after two."""
    level = 0.0
    for _ in range(drafts):
        ahead = rise(0.0, 1.0, level, math.inf)
        level += right * ahead - wrong * (level + ahead)
    return level


def _judged(view: View) -> dict[str, float]:
    """A comparison replaces the incumbent by a better answer as often as the judge is right, and by a
    worse one as often as it is wrong. What refinements are worth shows in how often they replaced it."""
    judged = view.judged
    decided = judged["agreed"] + judged["flips"]  # the others were ties, or came to nothing
    sure = (1 + decided) / (1 + judged["comparisons"])
    seconds = judged["flips"] - judged["firsts"]
    right, wrong = (sure * part for part in verdicts(judged["agreed"], judged["firsts"], seconds))
    refine, taught_refine, taught_draft = (
        view.payoffs.get(kind, NONE) for kind in ("refine", "taught refine", "taught draft")
    )

    def won(seen: Payoff, usual: float) -> float:
        """How often answers of a kind replaced the best; as if two more had done so as often as usual."""
        return (seen["worth"] + 2 * usual) / (seen["tries"] + 2)

    def stepped(taken: float, tries: int) -> float:
        """Gain by a refinement. Its change is taken as normal, with a mean that makes it better than its
        parent as often as it replaced it, corrected for the judge's errors."""
        better = min(0.95, max(0.05, (taken - wrong) / max(1e-3, right - wrong)))
        mean = _STEP * _NORMAL.inv_cdf(better)
        ahead = rise(mean, _STEP * math.sqrt(1 + 1 / (tries + 1)), 0.0, math.inf)
        return right * ahead - wrong * (ahead - mean)

    refined = won(refine, (right + wrong) / 2)
    retaught = won(taught_refine, refined)
    drafts = judged["comparisons"] - refine["tries"] - taught_refine["tries"]
    if view.decides == "agreement":  # one comparison is of several drafts
        drafts = _drafts(view.payoffs)["tries"] - len(view.tied)
    level = _level(right, wrong, max(0, drafts))
    level += refine["tries"] * max(0.0, stepped(refined, refine["tries"]))

    def drawn(spread: float) -> tuple[float, float]:
        """Gain by a draft, and how often it replaces the best."""
        ahead, better = rise(0.0, spread, level, math.inf), _NORMAL.cdf(-level / spread)
        return right * ahead - wrong * (level + ahead), right * better + wrong * (1 - better)

    bare, _ = drawn(1.0)
    taught, often = drawn(math.hypot(1.0, _SHIFT / _SPREAD / math.sqrt(taught_draft["tries"] + 1)))
    return {
        "draft": bare,
        "taught draft": taught * won(taught_draft, often) / often,
        "refine": stepped(refined, refine["tries"]),
        "taught refine": stepped(retaught, taught_refine["tries"]),
    }


def _voted(view: View) -> dict[str, float]:
    return dict.fromkeys(KINDS, vote_gain(view.ballots))


def vote_gain(ballots: Mapping[str, int]) -> float:
    """How much another vote is expected to raise the chance that the leader is right.

    Votes help only if the leader is wrong, not before a rival has caught up, and only if they are no slips, in the
    sense of `agreement`. With 3 votes against 1, the chance that the leader is wrong, .19, is spread over 3 more
    votes. 3 + .5 of these 4 are expected to be no slips, so the next one is none with a probability of
    (3.5 + 1) / (4 + 2) = .75, and promises .05. After 2 answers that differ it promises .45, after 18 that all do .1.
    """
    votes = sorted(ballots.values(), reverse=True)
    singles = votes.count(1)
    sound = sum(votes) - singles + _no_slips(singles)
    lead = votes[0] - (votes[1] if len(votes) > 1 else 0) if votes else 0
    return (1 - agreement(ballots)) / (lead + 1) * (sound + 1) / (sum(votes) + 2)
