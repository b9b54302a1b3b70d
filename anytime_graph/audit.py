"""Whether a judge's preferences mean anything: how often it agrees with a scorer, with itself when
the order is swapped, and with mere length; each with a confidence interval.

The evidence is what a ledger holds: comparisons, each asked in both orders, and the answers that
were compared. Reading it costs nothing; `audit_questions` buys fresh evidence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple, cast

from anytime_graph.batch import Progress, asked, checked, named, thread_name
from anytime_graph.budget import Budget, Prices, Spend, nothing, total
from anytime_graph.checkpoints import Checkpoints, Ledger
from anytime_graph.graph import create_anytime_graph
from anytime_graph.interrupt import StopSignal
from anytime_graph.metrics import Interval, wilson
from anytime_graph.models.providers import describe
from anytime_graph.nodes.critique import split_verdict
from anytime_graph.planning.moves import Critique, Draft, Move, Stop, View
from anytime_graph.run.calls import STRUCTURED
from anytime_graph.run.upgrade import planned_call
from anytime_graph.scoring import BadScore, Judge, Scorer, as_score, normal, verdict_of

_DRAFTS = 4
_DRAFTING = 0.4
"""The part of the budget that the drafts of a question may take; the rest is for comparing them."""
_FEW = 20
"""Comparisons below which an audit says that there were few."""
_LEVEL = 0.95


@dataclass(frozen=True)
class Audit:
    """What a judge's comparisons come to. Shares are in [0, 1], with 95% intervals; None where there
    is nothing to count.

    questions, comparisons: how many were looked at; calls: of the comparisons, two each where both
    orders were asked. unread: calls without a verdict: in flight, cut, failed, or unclear. unkept:
    calls whose texts were not kept (record="usage").
    agreement: calls that name the answer with the higher score. agreement_decided: the same for
    verdicts that both orders agree in, which are those that make a preference. decided:
    comparisons with such a verdict. itself: comparisons in which both orders say the same, ties
    too. first: calls that name the answer shown first. longer: calls that name the longer answer;
    scorer_longer: how often the scorer does. length: correlation in [-1, 1] between the verdict and
    the difference in length.
    sizes: comparisons behind each of these. spent: on the comparisons; by audit_questions, on the
    drafts too. errors: scorers that failed.
    """

    questions: int
    comparisons: int
    calls: int
    unread: int
    unkept: int
    agreement: Interval | None
    agreement_decided: Interval | None
    decided: Interval | None
    itself: Interval | None
    first: Interval | None
    longer: Interval | None
    scorer_longer: Interval | None
    length: Interval | None
    sizes: Mapping[str, int]
    spent: Spend
    errors: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """In words: whether to let this model judge, and what it goes by."""
        return " ".join([_judgement(self), *_leanings(self)])

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: an interval as {"low", "mean", "high"}."""
        told = {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }
        return {**told, "errors": list(self.errors), "verdict": self.verdict}


def audit(ledger: Ledger, thread: str | None = None, scorer: Scorer | None = None) -> Audit:
    """Audit the comparisons in a ledger: those of a thread, or all. Nothing is bought.

    scorer: (question, answer) -> score in [0, 1], for answers that have no score yet; it is given
    the answer as text. Only answers with different scores can tell whether the judge is right.
    Intervals are Wilson's. A comparison counts once, however many of its orders are read, and
    comparisons of one question for less than so many where they go together; the interval of a
    single question says nothing about others. Raises ValueError for a thread that is not there,
    LedgerError.
    """
    if thread is not None and not ledger.runs(thread):
        raise ValueError(f"thread={thread!r}: the ledger has none of that name")
    return _audited(ledger, ledger.critiques(thread), scorer, rescore=False)


def audit_questions(
    questions: Iterable[str],
    model: Any,
    scorer: Scorer,
    budget: Budget,
    checkpoints: Checkpoints,
    judge: Judge | None = None,
    *,
    answer: Any = "tags",
    prices: Prices | None = None,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
) -> Audit:
    """Have a model answer questions and a judge compare the answers, and audit that.

    scorer: a function that knows which answer is better. budget: for each question; about 40% goes
    into drafts, the rest into comparing those whose scores differ. judge: another model, or a
    rubric; its share does not matter here. answer, prices: as for create_anytime_graph. progress:
    called with (questions that are over, all). stop: an event that ends it early with what there
    is; the rest is left to the next time.

    Each question has a thread, named by all that makes the audit what it is: to run it again after
    a crash goes on, and pays for nothing twice. Raises ValueError for a bad argument, a scorer that
    is no function, or a ledger that keeps no texts; else as the graph does.
    """
    if not callable(scorer):
        raise ValueError(f"scorer={scorer!r}: a function is needed, to know who is right")
    ledger, judge = checkpoints.ledger, replace(judge or Judge(), share=1.0)
    if ledger.record != "all":
        raise ValueError('checkpoints: an audit reads verdicts; open them with record="all"')
    graph = create_anytime_graph(
        model,
        budget=budget,
        scorer=scorer,
        judge=judge,
        strategy=compare_all,
        answer=answer,
        prices=prices,
        ledger=ledger,
    )
    app = graph.compile(checkpointer=checkpoints.saver)
    judging = named(model if judge.model is None else judge.model)
    setting = (named(model), judging, judge.rubric, budget.limits(), str(answer))
    threads = [(thread_name("audit", q, *setting), q) for q in checked(questions)]
    errors = [
        error for *_, error in asked(app, ledger, threads, budget, {}, stop, progress) if error
    ]
    names = [thread for thread, _ in threads]
    calls = [call for name in names for call in ledger.critiques(name)]
    found = _audited(ledger, calls, scorer, rescore=True)
    spent = total(run["spent"] for name in names for run in ledger.runs(name))
    return replace(found, spent=spent, errors=(*errors, *found.errors))


def compare_all(view: View) -> list[Move]:
    """The strategy of an audit: drafts at equal slices, twice if the first are all worth the same,
    then a comparison of each two answers with different scores, neighbours first."""
    drafts = _drafts(view)
    if view.best is None:
        return drafts
    distinct = {normal(c["answer"]): c for c in view.candidates if not c["lost"]}
    known = sorted((c["id"], c["score"]) for c in distinct.values() if c["score"] is not None)
    ranked = sorted(combinations(range(len(known)), 2), key=lambda at: (at[1] - at[0], at))
    pairs = [(known[a][0], known[b][0]) for a, b in ranked if known[a][1] != known[b][1]]
    if not pairs and view.made.get("draft", 0) <= len(drafts):
        return drafts
    wanted: list[Move] = [Critique(*pair) for pair in pairs if pair not in view.compared]
    return wanted if wanted and view.judging else [Stop()]


def _drafts(view: View) -> list[Move]:
    """As many as can all be compared within a budget of calls: n drafts make n (n - 1) calls."""
    n = max(2, min(_DRAFTS, math.isqrt(int(view.left.get("calls", 99)))))
    return [Draft(memory=None, share=_DRAFTING / n)] * n


# --- reading the record -------------------------------------------------------------------------


class _Compared(NamedTuple):
    """A comparison. said: for the order as it was and for the swapped one, 1 if it named the first
    answer, -1 if the second, 0 for a tie, None without a verdict. gap, more: by how much the
    first's score is higher and its text longer, None if that is not known."""

    question: int
    said: tuple[int | None, int | None]
    gap: float | None
    more: int | None

    @property
    def named(self) -> list[int]:
        return [s for s in self.said if s]

    @property
    def winner(self) -> int:
        """1 or -1 if both orders name that answer, else 0."""
        return (self.said[0] or 0) if self.said[0] == self.said[1] else 0


def _audited(
    ledger: Ledger, critiques: Sequence[dict[str, Any]], scorer: Scorer | None, rescore: bool
) -> Audit:
    """rescore: ask the scorer about answers that have a score, too."""
    asked_about: dict[tuple[int, int, int, int], dict[bool, dict[str, Any]]] = defaultdict(dict)
    questions: dict[int, str | None] = {}
    for call in critiques:
        planned = planned_call(call)
        move = planned["move"]
        if move["kind"] == "critique" and move["second"] is not None:
            place = (call["run_id"], call["step"], move["first"], move["second"])
            asked_about[place][move["swapped"]] = {**call, "role": planned["role"]}
            questions[call["run_id"]] = call["question"]
    errors: list[str] = []
    answers = {
        run: _Answers(ledger.answers(run), question, scorer, rescore, errors)
        for run, question in questions.items()
    }
    compared = [
        _Compared(
            run,
            (_said(orders.get(False), False), _said(orders.get(True), True)),
            answers[run].gap(first, second),
            answers[run].more(first, second),
        )
        for (run, _, first, second), orders in asked_about.items()
    ]
    calls = [call for orders in asked_about.values() for call in orders.values()]
    return _counted(compared, calls, tuple(errors))


class _Answers:
    """The answers of a run, by their place there."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        question: str | None,
        scorer: Scorer | None,
        rescore: bool,
        errors: list[str],
    ) -> None:
        self._rows = {row["ordinal"]: row for row in rows}
        self._question, self._scorer, self._rescore = question, scorer, rescore
        self._errors = errors
        self._scores: dict[int, float | None] = {}

    def gap(self, first: int, second: int) -> float | None:
        one, other = self._score(first), self._score(second)
        return None if one is None or other is None else one - other

    def more(self, first: int, second: int) -> int | None:
        one, other = (self._rows.get(at, {}).get("answer") for at in (first, second))
        return None if one is None or other is None else len(one) - len(other)

    def _score(self, at: int) -> float | None:
        if at not in self._scores:
            self._scores[at] = self._scored(at)
        return self._scores[at]

    def _scored(self, at: int) -> float | None:
        row = self._rows.get(at)
        known: float | None = row["score"] if row else None
        text = row["answer"] if row else None
        if self._scorer is None or self._question is None or text is None:
            return known
        if known is not None and not self._rescore:
            return known
        try:
            return as_score(verdict_of(self._scorer, self._question, text)).value
        except Exception as error:
            what = str(error) if isinstance(error, BadScore) else describe(error)
            self._errors.append(f"scorer on answer {at}: {what}")
            return known


def _said(call: Mapping[str, Any] | None, swapped: bool) -> int | None:
    """What a call named, as in _Compared.said; as the graph itself reads it."""
    if call is None or call["state"] != "settled" or call["ended"] != "stop":
        return None
    _, told = split_verdict(call["text"] or "", structured=call["role"] == STRUCTURED)
    place = {"a": 1, "b": -1, "tie": 0}.get(told or "")
    return -place if place is not None and swapped else place


# --- counting -----------------------------------------------------------------------------------


def _counted(
    compared: Sequence[_Compared], calls: Sequence[Mapping[str, Any]], errors: tuple[str, ...]
) -> Audit:
    both = [c for c in compared if None not in c.said]
    uneven = [c for c in compared if c.gap and c.named]
    lengths = [c for c in compared if c.more and c.named]
    unequal = [c for c in compared if c.gap and c.more]
    won = [c for c in uneven if c.winner]
    values = {
        "agreement": [(c, _part(s * (c.gap or 0) > 0 for s in c.named)) for c in uneven],
        "agreement_decided": [(c, float(c.winner * (c.gap or 0) > 0)) for c in won],
        "decided": [(c, float(c.winner != 0)) for c in both],
        "itself": [(c, float(c.said[0] == c.said[1])) for c in both],
        "first": [(c, _part(_shown_first(c))) for c in compared if c.named],
        "longer": [(c, _part(s * (c.more or 0) > 0 for s in c.named)) for c in lengths],
        "scorer_longer": [(c, float((c.gap or 0) * (c.more or 0) > 0)) for c in unequal],
    }
    told = [c for c in compared if c.more is not None and c.said != (None, None)]
    kept = [call for call in calls if call["request"] is not None]
    return Audit(
        questions=len({c.question for c in compared}),
        comparisons=len(compared),
        calls=len(calls),
        unread=len(kept) - sum(s is not None for c in compared for s in c.said),
        unkept=len(calls) - len(kept),
        **{name: _share(of) for name, of in values.items()},
        length=_correlation([(sum(s or 0 for s in c.said), c.more or 0) for c in told]),
        sizes={**{name: len(of) for name, of in values.items()}, "length": len(told)},
        spent=total(_spend(call) for call in calls),
        errors=errors,
    )


def _part(holds: Iterable[bool]) -> float:
    told = list(holds)
    return sum(told) / len(told)


def _shown_first(c: _Compared) -> list[bool]:
    return [named == place for named, place in zip(c.said, (1, -1), strict=True) if named]


def _spend(call: Mapping[str, Any]) -> Spend:
    return cast("Spend", {name: call.get(name, 1) for name in nothing()})


def _share(of: Sequence[tuple[_Compared, float]]) -> Interval | None:
    """The mean, with Wilson's interval for as many independent comparisons as these are worth: those
    of one question go together, which widens it (the design effect of a cluster sample, Kish 1965)."""
    if not of:
        return None
    n, mean = len(of), sum(value for _, value in of) / len(of)
    drift: dict[int, float] = defaultdict(float)
    for c, value in of:
        drift[c.question] += value - mean
    clusters, alone = len(drift), n * mean * (1 - mean)
    effect = 1.0
    if clusters > 1 and alone:
        effect = sum(d * d for d in drift.values()) / alone * clusters / (clusters - 1)
    worth = max(1, round(n / max(1.0, effect)))
    return wilson(mean * worth, worth, _LEVEL)


def _correlation(points: Sequence[tuple[float, float]]) -> Interval | None:
    """Pearson's, each comparison counted both ways round, as it is chance which answer comes first;
    with Fisher's interval. None if there is no spread, or fewer than 5."""
    across = sum(x * x for x, _ in points) * sum(y * y for _, y in points)
    if len(points) < 5 or not across:
        return None
    r = max(-1.0, min(1.0, sum(x * y for x, y in points) / math.sqrt(across)))
    if abs(r) == 1.0:
        return Interval(r, r, r)
    half = NormalDist().inv_cdf((1 + _LEVEL) / 2) / math.sqrt(len(points) - 3)
    return Interval(math.tanh(math.atanh(r) - half), r, math.tanh(math.atanh(r) + half))


# --- saying -------------------------------------------------------------------------------------

_INSTEAD = "do not let this model judge; use a scorer or vote."


def _judgement(found: Audit) -> str:
    if not found.comparisons:
        return "Nothing was compared, so nothing can be said: give questions, or another thread."
    if found.unkept == found.calls:
        return 'Nothing can be said: the texts were not kept (record="usage").'
    if found.decided is None and found.agreement is None:
        return "Nothing can be said: no comparison brought a verdict that can be read."
    if found.agreement is None:
        return (
            "Whether it is right can not be said: no two answers that were compared have different "
            "scores; give a scorer (--check, or constraints) that tells them apart."
        )
    if found.agreement_decided is None:
        return f"It never named the better answer in both orders, nor the worse one: {_INSTEAD}"
    n, agrees = found.sizes["agreement_decided"], found.agreement_decided
    told = f"Where both orders agree, it agrees with the scorer in {percent(agrees)}"
    few = f" Few comparisons tell ({n}); more would tell better." if n < _FEW else ""
    if agrees.high < 0.5:
        return f"{told}: worse than chance: {_INSTEAD}{few}"
    if agrees.low <= 0.5:
        return f"{told}: that cannot be told from chance: {_INSTEAD}{few}"
    return f"{told}: better than chance.{few}"


def _leanings(found: Audit) -> list[str]:
    told = []
    if (decided := found.decided) and found.agreement_decided and decided.high < 0.5:
        told.append(f"Both orders agree in only {percent(decided)} of the comparisons.")
    if (first := found.first) and not first.low <= 0.5 <= first.high:
        place = "first" if first.mean > 0.5 else "second"
        told.append(f"It leans to the answer shown {place} ({percent(first)} name the first).")
    longer, scorer = found.longer, found.scorer_longer
    if longer and not longer.low <= 0.5 <= longer.high:
        side = "longer" if longer.mean > 0.5 else "shorter"
        by = f"; the scorer, {percent(scorer)}" if scorer else ""
        told.append(f"It leans to the {side} answer ({percent(longer)} name the longer{by}).")
    return told


def percent(share: Interval) -> str:
    """An interval in words, as in "71% (53 to 84%)"."""
    low, mean, high = (round(100 * x) for x in share)
    return f"{mean}% ({low} to {high}%)"
