"""Measures whether a judge can be trusted: how often it agrees with a scorer, and with itself.

It also counts how often the judge prefers the first or the longer answer. Each share has a confidence
interval. The evidence is in a ledger: comparisons, each asked in both orders, and the answers that were
compared. Reading it costs nothing; `audit_questions` buys new evidence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from statistics import NormalDist, fmean
from typing import Any, NamedTuple

from anytime_graph.batch.series import Progress, ask_each, distinct, model_name, thread_name
from anytime_graph.budget import Budget, Prices, Spend, total
from anytime_graph.checkpoints import Checkpoints, Ledger
from anytime_graph.checkpoints.records import spend_of
from anytime_graph.graph import create_anytime_graph
from anytime_graph.interrupt import StopSignal
from anytime_graph.metrics import Interval, wilson
from anytime_graph.models.providers import describe
from anytime_graph.nodes.critique import chosen, split_verdict
from anytime_graph.planning.moves import Critique, Draft, Move, Stop, View
from anytime_graph.run.calls import STRUCTURED, shown_order
from anytime_graph.run.upgrade import planned_call
from anytime_graph.scoring import BadScore, Judge, Scorer, as_score, normal, verdict_of

_DRAFTS = 4
_DRAFTING = 0.4
"""The part of a question's budget for its drafts; the rest is for comparing them."""
_FEW = 20
"""With fewer comparisons than this, the verdict says that they are few."""
_LEVEL = 0.95
"""The confidence level of the intervals."""


@dataclass(frozen=True)
class Audit:
    """What a judge's comparisons show. Shares are in [0, 1], with 95% intervals; None if there is
    nothing to count.

    questions, comparisons: how many were examined. calls: two for each comparison that was asked in
    both orders. unread: calls without a verdict: in flight, cut, failed, or unclear. unkept: calls
    whose texts were not kept (record="usage").
    agreement: calls that name the answer with the higher score. agreement_decided: the same among
    decided comparisons. decided: comparisons in which both orders name the same answer, which makes
    a preference. itself: comparisons in which both orders say the same, ties included. first: calls
    that name the answer shown first. longer: calls that name the longer answer. scorer_longer:
    comparisons in which the scorer prefers the longer answer. length: correlation in [-1, 1]
    between the verdict and the difference in length.
    sizes: the number of comparisons behind each of these. spent: the cost of the comparisons; from
    audit_questions, also of the drafts. errors: failures of scorers.
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
        """In words: whether to let this model judge, and what it prefers."""
        return " ".join([_judgement(self), *_leanings(self)])

    def as_dict(self) -> dict[str, Any]:
        """As JSON; an interval is {"low", "mean", "high"}."""
        fields = {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }
        return {**fields, "errors": list(self.errors), "verdict": self.verdict}


def audit(ledger: Ledger, thread: str | None = None, scorer: Scorer | None = None) -> Audit:
    """Audit the comparisons in a ledger: those of a thread, or all. Makes no calls.

    scorer: (question, answer) -> score in [0, 1], for answers without a score; it gets the answer
    as text. Only answers with different scores show whether the judge is right. Intervals are
    Wilson's. A comparison counts once, even if only one of its orders can be read. Comparisons of
    one question count for fewer if their results are alike. The interval of a single question says
    nothing about others. Choices among three answers or more are left out. Raises ValueError for an
    unknown thread, LedgerError.
    """
    if thread is not None and not ledger.runs(thread):
        raise ValueError(f"thread={thread!r}: a thread of this ledger is needed")
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
    keys: Mapping[str, str] | None = None,
) -> Audit:
    """Have a model answer questions and a judge compare the answers, and audit the comparisons.

    scorer: a function that knows which answer is better. budget: for each question; about 40% goes
    into drafts, the rest into comparing those whose scores differ. judge: another model, or a
    rubric; its share does not matter here. answer, prices: as for create_anytime_graph. progress:
    called with (questions that are over, all). stop: an event that ends the audit early; the next
    audit asks the rest. keys: whose the questions are, for quotas and bills, such as {"user": "ann"}.

    Each question has a thread, named by the arguments above. An audit that is run again after a
    crash continues, and pays for nothing twice. Raises ValueError for a bad argument or a ledger that
    keeps no texts, and what the graph raises.
    """
    if not callable(scorer):
        raise ValueError(f"scorer={scorer!r}: a function (question, answer) -> score is needed")
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
    app = graph.compile(checkpointer=checkpoints.saver).with_config(configurable=dict(keys or {}))
    judging = model_name(model if judge.model is None else judge.model)
    setting = (model_name(model), judging, judge.rubric, budget.limits(), _told(answer))
    threads = [(thread_name("audit", q, *setting), q) for q in distinct(questions)]
    asked = ask_each(app, ledger, threads, budget, {}, stop, progress)
    errors = [error for *_, error in asked if error]
    calls = [call for thread, _ in threads for call in ledger.critiques(thread)]
    result = _audited(ledger, calls, scorer, rescore=True)
    spent = total(run["spent"] for thread, _ in threads for run in ledger.runs(thread))
    return replace(result, spent=spent, errors=(*errors, *result.errors))


def _told(answer: Any) -> str:
    """What threads are named by, the same in every process: a function's own text holds its address."""
    if isinstance(answer, type) or not callable(answer):
        return str(answer)
    return f"{answer.__module__}.{getattr(answer, '__qualname__', type(answer).__qualname__)}"


def compare_all(view: View) -> list[Move]:
    """The strategy of an audit: drafts at equal slices, a second time if the first all have the same
    score, then a comparison of each two answers with different scores, neighbours first."""
    drafts = _drafts(view)
    if view.best is None:
        return drafts
    by_answer = {normal(c["answer"]): c for c in view.candidates if not c["lost"]}
    scores = sorted((c["id"], c["score"]) for c in by_answer.values() if c["score"] is not None)
    places = sorted(combinations(range(len(scores)), 2), key=lambda at: (at[1] - at[0], at))
    pairs = [(scores[a][0], scores[b][0]) for a, b in places if scores[a][1] != scores[b][1]]
    if not pairs and view.made.get("draft", 0) <= len(drafts):
        return drafts
    wanted: list[Move] = [Critique(*pair) for pair in pairs if pair not in view.compared]
    return wanted if wanted and view.judging else [Stop()]


def _drafts(view: View) -> list[Move]:
    """As many as can all be compared within a budget of calls. n drafts have n (n - 1) / 2 pairs,
    each compared twice, so with the drafts they need n * n calls: 3 drafts need 9."""
    n = max(2, min(_DRAFTS, math.isqrt(int(view.left.get("calls", 99)))))
    return [Draft(memory=None, share=_DRAFTING / n)] * n


# --- reading the record -------------------------------------------------------------------------


class _Comparison(NamedTuple):
    """Two answers that the judge compared. verdicts: in the original order and in the swapped one; 1
    for the first answer, -1 for the second, 0 for a tie, None without a verdict. gap, longer: by how
    much the first has the higher score and is longer; None if that is not known."""

    question: int
    verdicts: tuple[int | None, int | None]
    gap: float | None
    longer: float | None

    @property
    def named(self) -> list[int]:
        """The verdicts that name an answer."""
        return [v for v in self.verdicts if v]

    @property
    def winner(self) -> int:
        """1 or -1 if both orders name that answer, else 0."""
        return (self.verdicts[0] or 0) if self.verdicts[0] == self.verdicts[1] else 0


def _audited(
    ledger: Ledger, critiques: Sequence[dict[str, Any]], scorer: Scorer | None, rescore: bool
) -> Audit:
    """rescore: ask the scorer also about answers that have a score."""
    calls_of: dict[tuple[int, int, int, int], dict[bool, dict[str, Any]]] = defaultdict(dict)
    questions: dict[int, str | None] = {}
    for call in critiques:
        planned = planned_call(call)
        move = planned["move"]
        # A choice is a comparison only if it is between two.
        if (
            move["kind"] == "critique"
            and len(order := shown_order({**move, "swapped": False})) == 2
        ):
            place = (call["run_id"], call["step"], order[0], order[1])
            calls_of[place][move["swapped"]] = {**call, "planned": planned}
            questions[call["run_id"]] = call["question"]
    rows = {run: {row["ordinal"]: row for row in ledger.answers(run)} for run in questions}
    errors: list[str] = []

    def length(run: int, ordinal: int) -> int | None:
        text = rows[run].get(ordinal, {}).get("answer")
        return None if text is None else len(text)

    @cache
    def score(run: int, ordinal: int) -> float | None:
        row = rows[run].get(ordinal, {})
        stored: float | None = row.get("score")
        question, text = questions[run], row.get("answer")
        if scorer is None or question is None or text is None:
            return stored
        if stored is not None and not rescore:
            return stored
        try:
            return as_score(verdict_of(scorer, question, text)).value
        except Exception as error:
            reason = str(error) if isinstance(error, BadScore) else describe(error)
            errors.append(f"scorer on answer {ordinal}: {reason}")
            return stored

    comparisons = [
        _Comparison(
            run,
            (_verdict(calls.get(False), swapped=False), _verdict(calls.get(True), swapped=True)),
            _minus(score(run, first), score(run, second)),
            _minus(length(run, first), length(run, second)),
        )
        for (run, _, first, second), calls in calls_of.items()
    ]
    calls = [call for orders in calls_of.values() for call in orders.values()]
    return _counted(comparisons, calls, tuple(errors))


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _verdict(call: Mapping[str, Any] | None, swapped: bool) -> int | None:
    """The verdict in a call, as in _Comparison.verdicts, read as the graph reads it."""
    if call is None or call["state"] != "settled" or call["ended"] != "stop":
        return None
    planned, text = call["planned"], call["text"] or ""
    if "among" in planned["move"]:
        word = chosen(text, whole=True)
    else:
        _, word = split_verdict(text, structured=planned["role"] == STRUCTURED)
    verdict = {"a": 1, "b": -1, "tie": 0}.get(word or "")
    return -verdict if verdict is not None and swapped else verdict


# --- counting -----------------------------------------------------------------------------------


def _counted(
    comparisons: Sequence[_Comparison], calls: Sequence[Mapping[str, Any]], errors: tuple[str, ...]
) -> Audit:
    both = [c for c in comparisons if None not in c.verdicts]
    named = [c for c in comparisons if c.named]
    scored = [c for c in named if c.gap]
    lengths = [c for c in named if c.longer]
    unequal = [c for c in comparisons if c.gap and c.longer]
    won = [c for c in scored if c.winner]
    values = {
        "agreement": [(c, fmean(v * (c.gap or 0) > 0 for v in c.named)) for c in scored],
        "agreement_decided": [(c, float(c.winner * (c.gap or 0) > 0)) for c in won],
        "decided": [(c, float(c.winner != 0)) for c in both],
        "itself": [(c, float(c.verdicts[0] == c.verdicts[1])) for c in both],
        # In the original order the first answer is shown first (1), in the swapped one the second.
        "first": [
            (c, fmean(v == shown for v, shown in zip(c.verdicts, (1, -1), strict=True) if v))
            for c in named
        ],
        "longer": [(c, fmean(v * (c.longer or 0) > 0 for v in c.named)) for c in lengths],
        "scorer_longer": [(c, float((c.gap or 0) * (c.longer or 0) > 0)) for c in unequal],
    }
    read = [c for c in comparisons if c.longer is not None and c.verdicts != (None, None)]
    kept = [call for call in calls if call["request"] is not None]
    return Audit(
        questions=len({c.question for c in comparisons}),
        comparisons=len(comparisons),
        calls=len(calls),
        unread=len(kept) - sum(v is not None for c in comparisons for v in c.verdicts),
        unkept=len(calls) - len(kept),
        **{name: _interval(of) for name, of in values.items()},
        length=_correlation([(sum(c.named), c.longer or 0) for c in read]),
        sizes={**{name: len(of) for name, of in values.items()}, "length": len(read)},
        spent=total(map(spend_of, calls)),
        errors=errors,
    )


def _interval(values: Sequence[tuple[_Comparison, float]]) -> Interval | None:
    """The mean, with Wilson's interval for the number of independent comparisons that these are worth.

    Comparisons of one question are often alike, which widens the interval (the design effect of a
    cluster sample, Kish 1965). Two questions with 4 comparisons each, all right in one and all wrong
    in the other, have a mean of 0.5, a drift of +2 and -2, and an effect of 8 / (8 * 0.25) * 2 = 8:
    the 8 comparisons are worth 1.
    """
    if not values:
        return None
    n, average = len(values), fmean(value for _, value in values)
    drift: dict[int, float] = defaultdict(float)
    for c, value in values:
        drift[c.question] += value - average
    clusters, spread = len(drift), n * average * (1 - average)
    effect = 1.0
    if clusters > 1 and spread:
        effect = sum(d * d for d in drift.values()) / spread * clusters / (clusters - 1)
    worth = max(1, round(n / max(1.0, effect)))
    return wilson(average * worth, worth, _LEVEL)


def _correlation(points: Sequence[tuple[float, float]]) -> Interval | None:
    """Pearson's, with Fisher's interval; None without spread or with fewer than 5 points. Each point
    also counts mirrored, because it is chance which answer comes first, so both means are 0."""
    norm = sum(x * x for x, _ in points) * sum(y * y for _, y in points)
    if len(points) < 5 or not norm:
        return None
    r = max(-1.0, min(1.0, sum(x * y for x, y in points) / math.sqrt(norm)))
    if abs(r) == 1.0:
        return Interval(r, r, r)
    half = NormalDist().inv_cdf((1 + _LEVEL) / 2) / math.sqrt(len(points) - 3)
    return Interval(math.tanh(math.atanh(r) - half), r, math.tanh(math.atanh(r) + half))


# --- the verdict in words ------------------------------------------------------------------------

_INSTEAD = "do not let this model judge; use a scorer or vote."


def _judgement(audit: Audit) -> str:
    if not audit.comparisons:
        return "Nothing was compared, so nothing can be said: give questions, or another thread."
    if audit.unkept == audit.calls:
        return 'Nothing can be said: the texts were not kept (record="usage").'
    if audit.decided is None and audit.agreement is None:
        return "Nothing can be said: no comparison has a verdict that can be read."
    if audit.agreement is None:
        return (
            "Whether it is right cannot be said: no two answers that were compared have different "
            "scores; give a scorer (--check, or constraints) that tells them apart."
        )
    if audit.agreement_decided is None:
        return f"It never named the better answer in both orders, nor the worse one: {_INSTEAD}"
    n, agrees = audit.sizes["agreement_decided"], audit.agreement_decided
    start = f"Where both orders agree, it agrees with the scorer in {percent(agrees)}"
    few = f" Few comparisons show this ({n}); more would make it clearer." if n < _FEW else ""
    if agrees.high < 0.5:
        return f"{start}: worse than chance: {_INSTEAD}{few}"
    if agrees.low <= 0.5:
        return f"{start}: that cannot be told from chance: {_INSTEAD}{few}"
    return f"{start}: better than chance.{few}"


def _leanings(audit: Audit) -> list[str]:
    sentences = []
    if (decided := audit.decided) and audit.agreement_decided and decided.high < 0.5:
        sentences.append(f"Both orders agree in only {percent(decided)} of the comparisons.")
    if (first := audit.first) and not first.low <= 0.5 <= first.high:
        place = "first" if first.mean > 0.5 else "second"
        sentences.append(f"It leans to the answer shown {place} ({percent(first)} name the first).")
    longer, scorer = audit.longer, audit.scorer_longer
    if longer and not longer.low <= 0.5 <= longer.high:
        side = "longer" if longer.mean > 0.5 else "shorter"
        by = f"; the scorer, {percent(scorer)}" if scorer else ""
        sentences.append(f"It leans to the {side} answer ({percent(longer)} name the longer{by}).")
    return sentences


def percent(share: Interval) -> str:
    """An interval as a text, such as "71% (53 to 84%)"."""
    low, mean, high = (round(100 * x) for x in share)
    return f"{mean}% ({low} to {high}%)"
