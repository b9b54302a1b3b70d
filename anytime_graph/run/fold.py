"""Folds the outcomes of a step into the state of a run, as a pure function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from anytime_graph.budget import nothing, total
from anytime_graph.models.tokens import Calibration, Tokenizer, uncalibrated
from anytime_graph.run.calls import (
    ANSWERS,
    PATIENCE,
    STRUCTURED,
    Outcome,
    PlannedMove,
    concluded,
    judges,
    kind,
    kind_of,
    made_from,
    places,
    seeks_answer,
    shown_order,
)
from anytime_graph.run.pairs import Candidate, Pair, explained, judged_pair, scored_pairs
from anytime_graph.run.ranking import Match, both_orders, champion, next_match, strengths
from anytime_graph.run.state import (
    Decides,
    Judging,
    Payoff,
    Point,
    State,
    add_payoffs,
    conclusions,
    merged,
    payoff,
)
from anytime_graph.scoring import normal

_KEPT = 64
"""Errors, ballots and curve points kept in the state."""


def fold(state: State, width: int, decides: Decides, tokenizers: Mapping[str, Tokenizer]) -> State:
    """The state after the replies in `returned`. Their order of arrival does not matter. tokenizers: by
    role, to correct the calibrations."""
    outcomes = sorted(state.get("returned", []), key=lambda o: o["call"]["ordinal"])
    if not outcomes:
        return State()
    return merged(_booked(state, outcomes, tokenizers), _ranked(state, outcomes, width, decides))


def _booked(
    state: State, outcomes: Sequence[Outcome], tokenizers: Mapping[str, Tokenizer]
) -> State:
    """What the calls cost, how they ended, and what the next calls learn from that."""
    receipts = [o["receipt"] for o in outcomes]
    spent_by, made, least_room = dict(state["spent_by"]), dict(state["made"]), state["least_room"]
    for outcome, receipt in zip(outcomes, receipts, strict=True):
        call, node = outcome["call"], outcome["call"]["move"]["kind"]
        spent_by[node] = total([spent_by.get(node, nothing()), receipt["spend"]])
        if receipt["starved"]:
            least_room = max(least_room, 2 * (call["max_output"] or 0))
        elif not receipt["lost"] and (not receipt["failed"] or node == "learn"):
            made[node] = made.get(node, 0) + 1
    spent = total([state["spent"], *(r["spend"] for r in receipts)])
    active = union((r["started"], r["ended_at"]) for r in receipts)
    forced = [of for o in outcomes if (of := concluded(o["call"]["move"])) is not None]
    again = all(of == state["concluded"] for of in forced)
    agents = [o["call"]["agent"] for o in outcomes if "agent" in o["call"]]
    called = any(r["spend"]["calls"] or r["unserved"] for r in receipts)
    waits = [r["retry_after"] for r in receipts if r["failed"]]
    return State(
        spent={**spent, "seconds": state["spent"]["seconds"] + active},
        spent_by=spent_by,
        made=made,
        concluded=forced[-1] if forced else state["concluded"],
        conclusions=len(forced) + (conclusions(state) if again else 0),
        errors=[*state["errors"], *(e for r in receipts for e in r["errors"])][-_KEPT:],
        ordinal=max(o["call"]["ordinal"] + places(o["call"]) for o in outcomes),
        calibrations=_calibrated(state["calibrations"], outcomes, tokenizers),
        unstructured=state["unstructured"]
        or any(o["receipt"]["refused"] and o["call"]["role"] == STRUCTURED for o in outcomes),
        least_room=least_room,
        overhead=max([state["overhead"], *(agent["overhead"] for agent in agents)]),
        owed=_owed(outcomes),
        largest=_largest(state.get("largest", {}), outcomes),
        failures=_failures(state["failures"], outcomes),
        withheld=any(r.get("withheld", False) for r in receipts),
        refusals=state.get("refusals", 0) + sum(r["unserved"] for r in receipts),
        wait=max(waits, default=0.0) if called else state["wait"],
        interrupted=any(r["interrupted"] for r in receipts),
    )


def _ranked(state: State, outcomes: Sequence[Outcome], width: int, decides: Decides) -> State:
    """The candidates with the new ones, which of them is best, and what the step has shown of them."""
    spent, candidates = state["spent"], list(state["candidates"])
    for outcome in outcomes:
        spent = total([spent, outcome["receipt"]["spend"]])
        if "candidate" in outcome:
            candidates.append({**outcome["candidate"], "spent": spent})
    new = {c["id"] for c in candidates if c["id"] >= state["ordinal"]}
    candidates, ballots = _reviewed(candidates, outcomes), state["ballots"]
    rulings = _rulings(outcomes, candidates)
    new_matches, judged_pairs = _compared(candidates, rulings, state["best"])
    earlier = [Match(*match) for match in state["matches"]]
    matches = [*earlier, *new_matches]
    if decides != "scorer":  # under a judge, refinements of an answer are no votes for it
        voters = [c for c in candidates if c["id"] in new and is_vote(decides, c["node"])]
        ballots = _add_ballots(ballots, voters)
        candidates = [
            {**c, "votes": ballots.get(normal(c["answer"]), 0) if c["complete"] else 0}
            for c in candidates
        ]
    best = _best(state["best"], candidates, ballots, earlier, new_matches, decides)
    if decides == "judge":
        best, candidates, matches = _concluded(best, candidates, matches)
    if best is not None:
        best = next(c for c in [*candidates, best] if c["id"] == best["id"])
    pairs = _reasoned(state["pairs"], outcomes)
    if decides == "scorer":
        pairs = scored_pairs(candidates, pairs, width)
    elif decides != "vote":
        pairs = [*judged_pairs, *pairs][:width]
    arrived = [c for c in candidates if c["id"] in new] if decides == "scorer" else []
    kept = _trimmed(candidates, best, width, decides, matches)
    ids = {c["id"] for c in kept}
    last = next((m for m in reversed(matches) if best is not None and best["id"] in m[:2]), None)
    learned = (o["principles"] for o in outcomes if o.get("principles"))
    return State(
        best=best,
        candidates=kept,
        matches=[list(m) for m in matches if m is last or {m.first, m.second} <= ids][-_KEPT:],
        pairs=pairs,
        principles=next(learned, state["principles"]),
        judging=_updated_judging(state["judging"], outcomes, candidates, rulings),
        payoffs=_paid_off(state, best, outcomes),
        ballots=ballots,
        curve=_extended_curve(state["curve"], [*arrived, *([best] if best else [])]),
        unscored=decides == "scorer" and bool(new) and all(c["score"] is None for c in candidates),
        blocked=None if best is not None and best["complete"] else _blocked(outcomes),
    )


def _best(
    incumbent: Candidate | None,
    candidates: Sequence[Candidate],
    ballots: Mapping[str, int],
    earlier: Sequence[Match],
    new: Sequence[Match],
    decides: Decides,
) -> Candidate | None:
    """The best answer, by who decides. earlier, new: the judge's comparisons; each new one may replace the
    incumbent."""
    if decides == "scorer":
        return max(candidates, key=_by_score, default=None)
    if decides == "vote":
        return _elected(incumbent, candidates, ballots, earlier)
    if decides == "agreement":
        leader = _elected(incumbent, candidates, ballots, earlier, least=1)
    else:
        leader = _incumbent(incumbent, candidates, earlier)
    if leader is None:
        return None
    winner = champion([*earlier, *new], leader["id"], since=len(earlier))
    best = next((c for c in candidates if c["id"] == winner), leader)
    outvoted = decides == "agreement" and _standing(best) != _standing(leader)
    return leader if outvoted else best


def _failures(before: int, outcomes: Sequence[Outcome]) -> int:
    """Steps in a row that failed entirely. A provider that refuses all further calls ends the patience
    at once, unless it only refuses verdicts as JSON. A step whose calls were all lost says nothing."""
    if any(o["receipt"]["closed"] and o["call"]["role"] != STRUCTURED for o in outcomes):
        return PATIENCE
    if all(o["receipt"]["lost"] for o in outcomes):
        return before
    return before + 1 if all(map(_fruitless, outcomes)) else 0


def _fruitless(outcome: Outcome) -> bool:
    """Whether a call brought nothing that another of its kind would not fail to bring too."""
    came, candidate = outcome["receipt"], outcome.get("candidate")
    if came.get("blocked"):
        return candidate is None or not candidate["complete"]
    return (came["failed"] and candidate is None) or came["unserved"]


def _blocked(outcomes: Sequence[Outcome]) -> str | None:
    """Why the provider ended each answer of a step; None if it let one of them be."""
    answers = [o for o in outcomes if o["call"]["move"]["kind"] in ANSWERS]
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
        call, receipt, role = outcome["call"], outcome["receipt"], outcome["call"]["role"]
        known = by_role.get(role) or uncalibrated()
        if receipt["reported"] is not None:
            own = kind_of(call["move"]) == "draft" and "agent" not in call
            base = call.get("bare", call["shape"]) if own else None
            known = tokenizers[role].learn(known, call["shape"], receipt["reported"], base)
            by_role[role] = known
        if (once := receipt["billed_once"]) is not None:
            by_role[role] = {**known, "once": once and known.get("once") is not False}
    return by_role


def contests(state: State, most: int = 2) -> list[tuple[int, int]]:
    """The comparisons of the incumbent with other answers that tell most about which is best. Each answer
    is compared with the incumbent once."""
    best = state["best"]
    if best is None:
        return []
    distinct = {normal(c["answer"]): c["id"] for c in [*state["candidates"], best] if not c["lost"]}
    matches = [Match(*match) for match in state["matches"]]
    pairs: list[tuple[int, int]] = []
    while len(pairs) < most and (
        pair := next_match(distinct.values(), matches, best["id"], doubt=0.0)
    ):
        if pair in pairs:
            break
        pairs.append(pair)
        matches.append(Match(*pair, None))
    return pairs


def tied(state: State) -> list[int]:
    """The incumbent, and the other answers with as many votes that were not compared with it."""
    best = state["best"]
    if best is None or not best["complete"]:
        return []
    met = {i for match in state["matches"] if best["id"] in match[:2] for i in match[:2]}
    known = {normal(c["answer"]) for c in state["candidates"] if c["id"] in met}
    equals = {normal(best["answer"]): best["id"]}
    for c in state["candidates"]:
        if _standing(c) == _standing(best) and (answer := normal(c["answer"])) not in known:
            equals.setdefault(answer, c["id"])
    return list(equals.values())


def _standing(c: Candidate) -> int:
    """The votes for an answer under agreement. A refinement, which has no vote, stands for itself."""
    return max(1, c["votes"]) if c["complete"] else 0


def _by_score(c: Candidate) -> tuple[float, bool, int]:
    return (-1.0 if c["score"] is None else c["score"], c["complete"], -c["id"])


def _elected(
    best: Candidate | None,
    candidates: Sequence[Candidate],
    ballots: Mapping[str, int],
    earlier: Sequence[Match],
    least: int = 0,
) -> Candidate | None:
    """The winner of the vote: of equals, a complete answer, then the incumbent if the judge has compared it,
    then the answer that was given first. So it does not matter in which steps the same drafts were made.
    least: votes that a complete answer counts for, though it has fewer."""
    order = {answer: -n for n, answer in enumerate(ballots)}
    compared = best is not None and any(best["id"] in match[:2] for match in earlier)

    def votes(c: Candidate) -> tuple[int, bool, bool, int, bool, int]:
        incumbent = best is not None and c["id"] == best["id"]
        standing = max(least * c["complete"], c["votes"])
        given = order.get(normal(c["answer"]), -len(order))
        return standing, c["complete"], incumbent and compared, given, incumbent, -c["id"]

    return max(candidates, key=votes, default=None)


def _incumbent(
    best: Candidate | None, candidates: Sequence[Candidate], matches: Sequence[Match]
) -> Candidate | None:
    """The incumbent before new comparisons: the first answer. One that was cut gives way to the first
    complete answer, unless it has been in a comparison."""
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


class Ruling(NamedTuple):
    """What the judge said of the same candidates in both orders. ids: in the first order. winner: None for
    a tie. place: that both orders named, if that was not the same candidate's; else None."""

    ids: list[int]
    winner: int | None
    place: int | None
    why: str


def _rulings(outcomes: Sequence[Outcome], candidates: Sequence[Candidate]) -> list[Ruling]:
    """The step's comparisons that were made in both orders. A preference counts only if it survives the
    change of the order."""
    known = {c["id"] for c in candidates}
    asked: dict[tuple[int, ...], dict[bool, Outcome]] = {}
    for o in outcomes:
        move = o["call"]["move"]
        if move["kind"] == "critique" and move["second"] is not None and not o["receipt"]["lost"]:
            ids = tuple(shown_order({**move, "swapped": False}))
            asked.setdefault(ids, {})[move["swapped"]] = o
    rulings = []
    for ids, orders in asked.items():
        if len(set(ids)) == len(ids) and len(orders) == 2 and known.issuperset(ids):
            named = [orders[swapped].get("preferred") for swapped in (False, True)]
            same = both_orders(ids[0], ids[1], *named).winner
            places = [_place(orders[swapped], ids) for swapped in (False, True)]
            place = places[0] if same is None and places[0] == places[1] else None
            why = orders[False].get("why") or orders[True].get("why") or ""
            rulings.append(Ruling(list(ids), same, place, why))
    return rulings


def _place(asked: Outcome, ids: Sequence[int]) -> int | None:
    """The place of the candidate that was named."""
    move, named = asked["call"]["move"], asked.get("preferred")
    assert move["kind"] == "critique"
    return None if named is None or named not in ids else shown_order(move).index(named)


def _compared(
    candidates: Sequence[Candidate], rulings: Sequence[Ruling], best: Candidate | None
) -> tuple[list[Match], list[Pair]]:
    """The rulings as matches, and the pairs that they make. The winner of a choice has beaten each of the
    others; without one, the incumbent is equal to each. Its pair is with the incumbent, or the first other."""
    by_id = {c["id"]: c for c in candidates}
    matches, pairs = [], []
    for ids, winner, _, why in rulings:
        incumbent = best["id"] if best is not None and best["id"] in ids else ids[0]
        if len(ids) == 2:
            matches.append(Match(ids[0], ids[1], winner))
        else:
            one = incumbent if winner is None else winner
            others = sorted((i for i in ids if i != one), key=lambda i: i != incumbent)
            matches += [Match(one, other, winner) for other in others]
        if winner is not None:
            loser = incumbent if winner != incumbent else next(i for i in ids if i != winner)
            pairs.append(judged_pair(by_id[winner], by_id[loser], why))
    return matches, pairs


def _updated_judging(
    judging: Judging,
    outcomes: Sequence[Outcome],
    candidates: Sequence[Candidate],
    rulings: Sequence[Ruling],
) -> Judging:
    lengths = {c["id"]: len(c["answer"]) for c in candidates}
    gaps = [
        lengths[r.winner] - fmean(lengths[i] for i in r.ids if i != r.winner)
        for r in rulings
        if r.winner is not None
    ]
    flips = [r.place == 0 for r in rulings if r.place is not None]
    spends = (o["receipt"]["spend"] for o in outcomes if judges(o["call"]["move"]))
    return Judging(
        spent=total([judging["spent"], *spends]),
        comparisons=judging["comparisons"] + len(rulings),
        agreed=judging["agreed"] + len(gaps),
        flips=judging["flips"] + len(flips),
        firsts=judging["firsts"] + sum(flips),
        longer=judging["longer"] + sum(gap > 0 for gap in gaps),
        shorter=judging["shorter"] + sum(gap < 0 for gap in gaps),
    )


def _largest(before: Mapping[str, int], outcomes: Sequence[Outcome]) -> dict[str, int]:
    """The largest prompts to try, by role: half of one that was refused with the smallest output too."""
    largest = dict(before)
    for o in outcomes:
        if o["receipt"].get("oversized"):
            call = o["call"]
            half = call["max_input"] // call["prompt_copies"] // 2
            largest[call["role"]] = min(half, largest.get(call["role"], half))
    return largest


def _owed(outcomes: Sequence[Outcome]) -> list[PlannedMove]:
    """The moves to make one by one, where a provider made fewer choices than were requested: of 4 drafts
    in a request that brought 1, the other 3."""
    owed = []
    for o in outcomes:
        if o["receipt"]["billed_once"] is False and not o["receipt"]["failed"]:
            first, n = o["call"]["ordinal"], o["call"]["n"]
            brought = sum(first <= other["call"]["ordinal"] < first + n for other in outcomes)
            owed += [o["call"]["move"]] * (n - brought)
    return owed


def _paid_off(
    state: State, best: Candidate | None, outcomes: Sequence[Outcome]
) -> dict[str, Payoff]:
    """The payoffs by kind, with this step's. Under a judge an answer pays off when it becomes the best,
    which is a step after it came."""
    payoffs = dict(state["payoffs"])
    scores = {c["id"]: c["score"] or 0.0 for c in state["candidates"]}
    written_each = 0
    for o in outcomes:
        call, move, spend = o["call"], o["call"]["move"], o["receipt"]["spend"]
        if not seeks_answer(move) or not (spend["calls"] or "candidate" in o):
            continue
        score = (o["candidate"]["score"] or 0.0) if "candidate" in o else 0.0
        before_it = [scores.get(i, 0.0) for i in made_from(move)]
        change = score - max(before_it) if before_it else 0.0
        written, cap = spend["output_tokens"], call["max_output"]
        cut = cap is not None and written >= cap
        if "choice" in call:  # the first choice bears the cost of all: 4 of 100 tokens report 400
            written_each = written_each if call["choice"] else written // call["n"]
            cut, written = "candidate" in o and not o["candidate"]["complete"], written_each
        used = spend["tokens"] if "agent" in call else written
        answer = payoff(score, change, spend["tokens"], used, cut)
        payoffs[kind_of(move)] = add_payoffs(payoffs.get(kind_of(move)), answer)
    before = state["best"]
    risen = best is not None and before is not None and best["id"] != before["id"]
    if best is not None and risen and best["score"] is None and best["node"] != "conclude":
        name = kind(best["node"], best["taught"])
        payoffs[name] = add_payoffs(payoffs.get(name), payoff(1.0, tries=0))
    return payoffs


def _reviewed(candidates: list[Candidate], outcomes: Sequence[Outcome]) -> list[Candidate]:
    """The candidates with reviews (critiques of one candidate) as their feedback."""
    reviews = {}
    for o in outcomes:
        move = o["call"]["move"]
        if move["kind"] == "critique" and move["second"] is None and "why" in o:
            reviews[move["first"]] = o
    return [
        {**c, "feedback": review["why"], "satisfied": review["preferred"] == c["id"]}
        if (review := reviews.get(c["id"]))
        else c
        for c in candidates
    ]


def _concluded(
    best: Candidate | None, candidates: list[Candidate], matches: list[Match]
) -> tuple[Candidate | None, list[Candidate], list[Match]]:
    """An answer that was forced out of the incumbent's cut reasoning replaces the incumbent, and takes over
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


def is_vote(decides: str, node: str) -> bool:
    """Whether an answer of this kind is a vote. Under agreement or a judge, one that was made from another is
    none for it."""
    voting = {"agreement": ("draft", "conclude", "merge"), "judge": ("draft",)}.get(decides)
    return voting is None or node in voting


def _add_ballots(ballots: Mapping[str, int], new: Sequence[Candidate]) -> dict[str, int]:
    """How many candidates gave each answer; answers that were cut do not count. Of too many answers those with
    more votes are kept, and of equals the newer, because one that always went first could never win."""
    counts = Counter[str]()
    for answer, votes in ballots.items():
        counts[normal(answer)] += votes  # it may have been counted before numbers were compared
    counts.update(normal(c["answer"]) for c in new if c["complete"])
    age = {answer: n for n, answer in enumerate(counts)}
    kept = set(sorted(counts, key=lambda answer: (counts[answer], age[answer]))[-_KEPT:])
    return {answer: n for answer, n in counts.items() if answer in kept}


def _trimmed(
    candidates: Sequence[Candidate],
    best: Candidate | None,
    width: int,
    decides: Decides,
    matches: Sequence[Match],
) -> list[Candidate]:
    """At most `width` candidates, by id: the incumbent, then those with the better scores or more votes; then
    those that the judge has not compared, then the stronger; the newer of equals."""
    if len(candidates) <= width:
        return sorted(candidates, key=lambda c: c["id"])
    judged = decides in ("judge", "agreement")
    level = strengths((c["id"] for c in candidates), matches) if judged else {}
    met = {i for match in matches for i in match[:2]} if judged else set()

    def worth(c: Candidate) -> tuple[bool, bool, int, bool, float, int]:
        score = -1.0 if c["score"] is None or decides != "scorer" else c["score"]
        incumbent = best is not None and c["id"] == best["id"]
        votes = _standing(c) if decides == "agreement" else 0
        fresh, strength = c["id"] not in met, level.get(c["id"], score)
        return (incumbent, not c["lost"], votes, fresh, strength, c["id"])

    return sorted(sorted(candidates, key=worth, reverse=True)[:width], key=lambda c: c["id"])


def _extended_curve(curve: list[Point], incumbents: Sequence[Candidate]) -> list[Point]:
    """The curve with a point for each new incumbent. A long curve loses points in its middle: of 65, the
    33rd."""
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
