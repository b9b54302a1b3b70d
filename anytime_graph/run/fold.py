"""Folds the outcomes of a step into the state of a run, as a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from anytime_graph.budget import nothing, total
from anytime_graph.models.tokens import Calibration, Tokenizer, uncalibrated
from anytime_graph.run.calls import (
    PATIENCE,
    STRUCTURED,
    Outcome,
    PlannedMove,
    concluded,
    judges,
    kind,
    kind_of,
    places,
    seeks_answer,
)
from anytime_graph.run.pairs import Candidate, Pair, explained, judged_pair, scored_pairs
from anytime_graph.run.ranking import Match, both_orders, champion, next_match, strengths
from anytime_graph.run.state import Decides, Judging, Payoff, Point, State, add_payoffs, payoff
from anytime_graph.scoring import normal

_KEPT = 64
"""Errors, ballots and curve points kept in the state."""


def fold(state: State, width: int, decides: Decides, tokenizers: Mapping[str, Tokenizer]) -> State:
    """The state after the replies in `returned`. Their order of arrival does not matter. tokenizers: by
    role, to correct the calibrations."""
    outcomes = sorted(state.get("returned", []), key=lambda o: o["call"]["ordinal"])
    if not outcomes:
        return State()
    spent, spent_by, made = state["spent"], dict(state["spent_by"]), dict(state["made"])
    least_room, seconds = state["least_room"], spent["seconds"]
    candidates = list(state["candidates"])
    for outcome in outcomes:
        call, came = outcome["call"], outcome["receipt"]
        node = call["move"]["kind"]
        spent = total([spent, came["spend"]])
        spent_by[node] = total([spent_by.get(node, nothing()), came["spend"]])
        if came["starved"]:
            least_room = max(least_room, 2 * (call["max_output"] or 0))
        elif not came["lost"] and (not came["failed"] or node == "learn"):
            made[node] = made.get(node, 0) + 1
        if "candidate" in outcome:
            candidates.append({**outcome["candidate"], "spent": spent})
    times = ((o["receipt"]["started"], o["receipt"]["ended_at"]) for o in outcomes)
    spent["seconds"] = seconds + union(times)

    best, pairs, ballots = state["best"], _reasoned(state["pairs"], outcomes), state["ballots"]
    earlier = [Match(*match) for match in state["matches"]]
    candidates = _reviewed(candidates, outcomes)
    new_matches, judged_pairs = _compared(candidates, outcomes)
    matches = [*earlier, *new_matches]
    if decides == "scorer":
        best = max(candidates, key=_by_score, default=None)
        pairs = scored_pairs(candidates, pairs, width)
    elif decides == "vote":
        new = [c for c in candidates if c["id"] >= state["ordinal"]]
        best, candidates, ballots = _vote(best, candidates, new, ballots)
    else:
        best = _incumbent(best, candidates, earlier)
        if best is not None and new_matches:
            winner = champion(matches, best["id"], since=len(earlier))
            best = next(c for c in candidates if c["id"] == winner)
        pairs = [*judged_pairs, *pairs][:width]
        best, candidates, matches = _concluded(best, candidates, matches)
        drafted = [c for c in candidates if c["id"] >= state["ordinal"] and c["node"] == "draft"]
        ballots = _add_ballots(ballots, drafted)
        candidates = [_with_votes(c, ballots) for c in candidates]
    if best is not None:
        best = next(c for c in [*candidates, best] if c["id"] == best["id"])
    arrived = [c for c in candidates if c["id"] >= state["ordinal"]] if decides == "scorer" else []
    curve = _extended_curve(state["curve"], [*arrived, *([best] if best else [])])
    forced = [of for o in outcomes if (of := concluded(o["call"]["move"])) is not None]
    receipts = [o["receipt"] for o in outcomes]
    fruitless = all(map(_fruitless, outcomes))
    called = any(came["spend"]["calls"] or came["unserved"] for came in receipts)
    waits = [came["retry_after"] for came in receipts if came["failed"]]
    idle = all(came["lost"] for came in receipts)
    failures = state["failures"] if idle else state["failures"] + 1 if fruitless else 0
    if any(o["receipt"]["closed"] and o["call"]["role"] != STRUCTURED for o in outcomes):
        failures = max(failures, PATIENCE)
    candidates_kept = _trimmed(candidates, best, width, decides, matches)
    ids = {c["id"] for c in candidates_kept}
    return State(
        best=best,
        spent=spent,
        spent_by=spent_by,
        made=made,
        concluded=forced[-1] if forced else state["concluded"],
        candidates=candidates_kept,
        matches=[list(m) for m in matches if {m.first, m.second} <= ids][-_KEPT:],
        pairs=pairs,
        principles=next(
            (o["principles"] for o in outcomes if o.get("principles")), state["principles"]
        ),
        judging=_updated_judging(state["judging"], outcomes, candidates, new_matches),
        payoffs=_paid_off(state, best, outcomes),
        ballots=ballots,
        curve=curve,
        errors=[*state["errors"], *(e for came in receipts for e in came["errors"])][-_KEPT:],
        ordinal=max(o["call"]["ordinal"] + places(o["call"]) for o in outcomes),
        calibrations=_calibrated(state["calibrations"], outcomes, tokenizers),
        unstructured=state["unstructured"]
        or any(o["receipt"]["refused"] and o["call"]["role"] == STRUCTURED for o in outcomes),
        least_room=least_room,
        overhead=max(
            [
                state["overhead"],
                *(o["call"]["agent"]["overhead"] for o in outcomes if "agent" in o["call"]),
            ]
        ),
        owed=_owed(outcomes),
        failures=failures,
        blocked=None if best is not None and best["complete"] else _blocked(outcomes),
        refusals=state.get("refusals", 0) + sum(came["unserved"] for came in receipts),
        wait=max(waits, default=0.0) if called else state["wait"],
        interrupted=any(came["interrupted"] for came in receipts),
    )


def _fruitless(outcome: Outcome) -> bool:
    """Whether a call brought nothing that another of its kind would not fail to bring too."""
    came, candidate = outcome["receipt"], outcome.get("candidate")
    if came.get("blocked"):
        return candidate is None or not candidate["complete"]
    return (came["failed"] and candidate is None) or came["unserved"]


def _blocked(outcomes: Sequence[Outcome]) -> str | None:
    """Why the provider ended each answer of a step; None if it let one of them be."""
    answers = [o for o in outcomes if o["call"]["move"]["kind"] in ("draft", "refine")]
    reasons = [o["receipt"].get("blocked") for o in answers]
    return reasons[0] if all(reasons) and reasons else None


def _calibrated(
    calibrations: Mapping[str, Calibration],
    outcomes: Sequence[Outcome],
    tokenizers: Mapping[str, Tokenizer],
) -> dict[str, Calibration]:
    """The calibrations, corrected by what the providers reported."""
    by_role = dict(calibrations)
    for outcome in outcomes:
        call, came, role = outcome["call"], outcome["receipt"], outcome["call"]["role"]
        known = by_role.get(role) or uncalibrated()
        if came["reported"] is not None:
            bare = kind_of(call["move"]) == "draft" and "agent" not in call
            known = tokenizers[role].learn(known, call["shape"], came["reported"], base=bare)
            by_role[role] = known
        if (once := came["billed_once"]) is not None:
            by_role[role] = {**known, "once": once and known.get("once") is not False}
    return by_role


def contests(state: State, most: int = 2) -> list[tuple[int, int]]:
    """The comparisons of the incumbent with others that tell most about which is best. Each other
    answer is compared once."""
    best = state["best"]
    if best is None:
        return []
    distinct = {normal(c["answer"]): c["id"] for c in [*state["candidates"], best] if not c["lost"]}
    known = [Match(*match) for match in state["matches"]]
    pairs: list[tuple[int, int]] = []
    while len(pairs) < most and (
        pair := next_match(distinct.values(), known, best["id"], doubt=0.0)
    ):
        if pair in pairs:
            break
        pairs.append(pair)
        known.append(Match(*pair, None))
    return pairs


def _by_score(c: Candidate) -> tuple[float, bool, int]:
    return (-1.0 if c["score"] is None else c["score"], c["complete"], -c["id"])


def _incumbent(
    best: Candidate | None, candidates: Sequence[Candidate], matches: Sequence[Match]
) -> Candidate | None:
    """The incumbent before new comparisons: the first answer. One that was cut off gives way to the
    first complete answer, unless it has been in a comparison."""
    if best is not None and (
        best["complete"] or any(best["id"] in (m.first, m.second) for m in matches)
    ):
        return best
    whole = [c for c in candidates if c["complete"] and c["node"] != "conclude"]
    return min(whole or ([best] if best else candidates), key=lambda c: c["id"], default=None)


def _reasoned(pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> list[Pair]:
    """The pairs with the reasons that the judge gave."""
    reasons = {}
    for o in outcomes:
        move = o["call"]["move"]
        if move["kind"] == "learn" and not o["receipt"]["lost"]:
            reasons[move["chosen"], move["rejected"]] = o.get("why", "")
    return [
        explained(p, reasons[ids]) if (ids := (p["chosen_id"], p["rejected_id"])) in reasons else p
        for p in pairs
    ]


def _updated_judging(
    judging: Judging,
    outcomes: Sequence[Outcome],
    candidates: Sequence[Candidate],
    matches: Sequence[Match],
) -> Judging:
    lengths = {c["id"]: len(c["answer"]) for c in candidates}
    won = [
        lengths[m.winner] - lengths[m.first + m.second - m.winner]
        for m in matches
        if m.winner is not None
    ]
    sides: dict[tuple[int, int], dict[bool, int]] = {}
    for o in outcomes:
        move = o["call"]["move"]
        named = o.get("preferred")
        if move["kind"] == "critique" and move["second"] is not None and named is not None:
            sides.setdefault((move["first"], move["second"]), {})[move["swapped"]] = named
    paid_to_judge = (o["receipt"]["spend"] for o in outcomes if judges(o["call"]["move"]))
    flips = [s[False] == first for (first, _), s in sides.items() if len({*s.values()}) == 2]
    return Judging(
        spent=total([judging["spent"], *paid_to_judge]),
        comparisons=judging["comparisons"] + len(matches),
        agreed=judging["agreed"] + len(won),
        flips=judging["flips"] + len(flips),
        firsts=judging["firsts"] + sum(flips),
        longer=judging["longer"] + sum(gap > 0 for gap in won),
        shorter=judging["shorter"] + sum(gap < 0 for gap in won),
    )


def _owed(outcomes: Sequence[Outcome]) -> list[PlannedMove]:
    """The moves to make one by one: the rest of several choices, where the provider made fewer than
    requested."""
    owed = []
    for o in outcomes:
        if o["receipt"]["billed_once"] is False and not o["receipt"]["failed"]:
            first, n = o["call"]["ordinal"], o["call"]["n"]
            came = sum(first <= other["call"]["ordinal"] < first + n for other in outcomes)
            owed += [o["call"]["move"]] * (n - came)
    return owed


def _paid_off(
    state: State, best: Candidate | None, outcomes: Sequence[Outcome]
) -> dict[str, Payoff]:
    """Payoffs by kind, with this step's. Under a judge an answer pays off when it becomes the best,
    which is a step after it came."""
    payoffs = dict(state["payoffs"])
    scores = {c["id"]: c["score"] or 0.0 for c in state["candidates"]}
    each = 0
    for o in outcomes:
        call, spend = o["call"], o["receipt"]["spend"]
        move, cap = call["move"], call["max_output"]
        if seeks_answer(move) and (spend["calls"] or "candidate" in o):
            score = (o["candidate"]["score"] or 0.0) if "candidate" in o else 0.0
            change = score - scores.get(move["of"], 0.0) if move["kind"] == "refine" else 0.0
            written = spend["output_tokens"]
            cut = cap is not None and written >= cap
            if "choice" in call:  # the first bears the cost of all
                each = each if call["choice"] else written // call["n"]
                cut, written = "candidate" in o and not o["candidate"]["complete"], each
            used = spend["tokens"] if "agent" in call else written
            own = payoff(score, change, spend["tokens"], used, cut)
            payoffs[kind_of(move)] = add_payoffs(payoffs.get(kind_of(move)), own)
    before = state["best"]
    risen = best is not None and before is not None and best["id"] != before["id"]
    if best is not None and risen and best["score"] is None and best["node"] != "conclude":
        named = kind(best["node"], best["taught"])
        payoffs[named] = add_payoffs(payoffs.get(named), payoff(1.0, tries=0))
    return payoffs


def _reviewed(candidates: list[Candidate], outcomes: Sequence[Outcome]) -> list[Candidate]:
    """The candidates with reviews (critiques of one candidate) as their feedback."""
    notes = {}
    for o in outcomes:
        move = o["call"]["move"]
        if move["kind"] == "critique" and move["second"] is None and "why" in o:
            notes[move["first"]] = o
    return [
        {
            **c,
            "feedback": notes[c["id"]]["why"],
            "satisfied": notes[c["id"]]["preferred"] == c["id"],
        }
        if c["id"] in notes
        else c
        for c in candidates
    ]


def _compared(
    candidates: Sequence[Candidate], outcomes: Sequence[Outcome]
) -> tuple[list[Match], list[Pair]]:
    """The step's comparisons, both orders of each in one. A preference counts, and makes a pair, only
    if it survives the swap."""
    compared: dict[tuple[int, int], dict[bool, Outcome]] = {}
    for o in outcomes:
        move = o["call"]["move"]
        if move["kind"] == "critique" and move["second"] is not None and not o["receipt"]["lost"]:
            compared.setdefault((move["first"], move["second"]), {})[move["swapped"]] = o
    by_id = {c["id"]: c for c in candidates}
    matches, pairs = [], []
    for (first, second), orders in compared.items():
        if first == second or len(orders) < 2 or not {first, second} <= by_id.keys():
            continue
        preferred, swapped = (orders[order].get("preferred") for order in (False, True))
        matches.append(match := both_orders(first, second, preferred, swapped))
        if match.winner is not None:
            loser = second if match.winner == first else first
            reasons = (orders[order].get("why") for order in (False, True))
            why = next(filter(None, reasons), "")
            pairs.append(judged_pair(by_id[match.winner], by_id[loser], why))
    return matches, pairs


def _concluded(
    best: Candidate | None, candidates: list[Candidate], matches: list[Match]
) -> tuple[Candidate | None, list[Candidate], list[Match]]:
    """Put an answer that was forced out of the incumbent's cut reasoning in the incumbent's place, with
    its comparisons."""
    if best is None or best["complete"]:
        return best, candidates, matches
    old = best["id"]
    forced = (c for c in candidates if c["node"] == "conclude" and c["parents"] == [old])
    new = next((c for c in forced if c["complete"]), None)
    if new is None:
        return best, candidates, matches
    inherited = [Match._make(new["id"] if i == old else i for i in match) for match in matches]
    return new, [{**c, "lost": True} if c["id"] == old else c for c in candidates], inherited


def _add_ballots(ballots: Mapping[str, int], new: Sequence[Candidate]) -> dict[str, int]:
    """How many candidates gave each answer; those that were cut off do not count."""
    counts = Counter(ballots)
    counts.update(normal(c["answer"]) for c in new if c["complete"])
    return dict(counts.most_common(_KEPT) if len(counts) > _KEPT else counts)


def _with_votes(c: Candidate, ballots: Mapping[str, int]) -> Candidate:
    return {**c, "votes": ballots.get(normal(c["answer"]), 0) if c["complete"] else 0}


def _vote(
    best: Candidate | None,
    candidates: list[Candidate],
    new: Sequence[Candidate],
    ballots: dict[str, int],
) -> tuple[Candidate | None, list[Candidate], dict[str, int]]:
    ballots = _add_ballots(ballots, new)
    counted = [_with_votes(c, ballots) for c in candidates]
    if best is not None:
        best = _with_votes(best, ballots)
    leader = max(counted, key=lambda c: (c["votes"], c["complete"], -c["id"]), default=None)
    if best is None or (
        leader and (leader["votes"], leader["complete"]) > (best["votes"], best["complete"])
    ):
        best = leader
    return best, counted, ballots


def _trimmed(
    candidates: Sequence[Candidate],
    best: Candidate | None,
    width: int,
    decides: Decides,
    matches: Sequence[Match],
) -> list[Candidate]:
    """At most `width` candidates: the incumbent, then the better ones (scorer), or those that the judge
    has not compared, the stronger and the newer ones."""
    if len(candidates) <= width:
        return sorted(candidates, key=lambda c: c["id"])
    level = strengths((c["id"] for c in candidates), matches) if decides == "judge" else {}
    met = {i for match in matches for i in match[:2]} if decides == "judge" else set()

    def worth(c: Candidate) -> tuple[bool, bool, bool, float, int]:
        score = -1.0 if c["score"] is None or decides != "scorer" else c["score"]
        incumbent = best is not None and c["id"] == best["id"]
        return (incumbent, not c["lost"], c["id"] not in met, level.get(c["id"], score), c["id"])

    return sorted(sorted(candidates, key=worth, reverse=True)[:width], key=lambda c: c["id"])


def _extended_curve(curve: list[Point], incumbents: Sequence[Candidate]) -> list[Point]:
    """The curve with a point for each new incumbent. A long curve loses points in its middle."""
    for c in incumbents:
        risen = not curve or (c["score"] or 0.0) > (curve[-1]["score"] or 0.0) or c["score"] is None
        if risen and (not curve or curve[-1]["candidate"] != c["id"]):
            curve = [*curve, Point(candidate=c["id"], score=c["score"], spent=c["spent"])]
    return curve if len(curve) <= _KEPT else [*curve[: _KEPT // 2], *curve[_KEPT // 2 + 1 :]]


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of time spans: parallel calls share their seconds. (0, 3) and (2, 5) are 5
    seconds, not 6."""
    length, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length
