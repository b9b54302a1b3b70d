"""The state of a run: plain data, and one pure function that folds replies into it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, Protocol, cast

from langchain_core.messages import AnyMessage, BaseMessage
from langgraph.channels import EphemeralValue
from langgraph.graph.message import add_messages
from langgraph.managed import RemainingSteps
from typing_extensions import TypedDict

from anytime_graph.budget import Budget, Limits, Spend, nothing, total
from anytime_graph.pairs import Candidate, Example, Pair, explained, judged_pair, scored_pairs
from anytime_graph.ranking import Match, both_orders, champion, next_match, strengths
from anytime_graph.scoring import normal
from anytime_graph.tokens import Calibration, Shape, uncalibrated

Decides = Literal["scorer", "judge", "vote"]


class Chosen(TypedDict, total=False):
    """What the context chose for a question; the graph's defaults for what is absent."""

    model: str
    strategy: str


class Task(TypedDict):
    """One metered call, planned before any money is spent: what a node receives.

    ordinal: its place among the calls of the question. step: the ordinal of its first sibling.
    slice: the most it may spend. spent, limits: the run's, when this was planned.
    prompt_bound, room: the reservation, in input tokens and output tokens (None: not limited); of a
    request for several choices, in all. Its move says how many ("choices") and how often the prompt
    is reserved ("billed"); that of one of them, which it is ("choice").
    wait: seconds to hold back after a refusal. thread, plan: under which thread's lease and which of
    the hub's plans the ledger lets it reserve. gate: which of the gates it goes through, of the setup
    that was chosen. growth: for an agent's draft, see Calibration; the move's "agent" is True if it may
    give its slice back where that is too small for its tools.
    """

    ordinal: int
    step: int
    move: dict[str, Any]
    swapped: bool
    gate: str
    slice: Limits
    prompt: list[AnyMessage]
    prompt_bound: int
    room: int | None
    shape: Shape
    wait: float
    run_id: int
    thread: str
    plan: str
    chosen: Chosen
    question: str
    spent: Spend
    limits: Limits
    growth: NotRequired[float]


class Outcome(TypedDict):
    """What a task brought back. once: of a request for several choices, see Calibration. refused:
    the provider finds fault with the request itself. lost: the call was in flight when its process ended, or was not made at all; no fault of the provider's."""

    ordinal: int
    move: dict[str, Any]
    swapped: bool
    gate: str
    spend: Spend
    started: float
    ended: float
    shape: Shape
    reported: int | None
    room: int | None
    starved: bool
    failed: bool
    refused: bool
    lost: bool
    interrupted: bool
    retry_after: float
    errors: list[str]
    candidate: NotRequired[Candidate]
    preferred: NotRequired[int | None]
    why: NotRequired[str]
    principles: NotRequired[list[str]]
    once: NotRequired[bool | None]


class Judging(TypedDict):
    """The judge so far. spent: on comparisons, reasons and principles. comparisons: asked in both
    orders; agreed: of those, how many named one answer twice; flips: how many the same place; firsts:
    of these, the first shown.
    longer, shorter: how often the longer, the shorter answer was preferred."""

    spent: Spend
    comparisons: int
    agreed: int
    flips: int
    firsts: int
    longer: int
    shorter: int


class Payoff(TypedDict):
    """What a kind of answer has brought. tries: answers asked for. worth: sum of their scores; under
    a judge, how many became the best. change: sum of how far refinements score above what they
    refine. squares, changes: sums of the squares of both. tokens: what they cost; written: those that
    depend on the reply, its own, or all that an agent used. cut: how many used up their slice. whole:
    what the others have written."""

    tries: int
    worth: float
    squares: float
    change: float
    changes: float
    tokens: int
    written: int
    cut: int
    whole: int


class Point(TypedDict):
    """A point of the quality-against-spend curve: a new incumbent."""

    candidate: int
    score: float | None
    spent: Spend


def gather(kept: list[Outcome], new: list[Outcome] | None) -> list[Outcome]:
    """Collects what the tasks of a step return; None empties it."""
    return [] if new is None else [*kept, *new]


class Input(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    budget: Annotated[Budget | dict[str, Any] | None, EphemeralValue]


class Output(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    best: Candidate | None
    spent: Spend
    stop_reason: str | None
    stop_estimate: float | None
    curve: list[Point]
    candidates: list[Candidate]
    pairs: list[Pair]
    principles: list[str]
    judging: Judging
    spent_by: dict[str, Spend]
    errors: list[str]
    limits: Limits


class State(Output, Input, total=False):
    """budget: what the caller grants with this input; gone once counted into `limits`.
    returned: replies of the step, emptied by the fold. matches: the judge's comparisons among the
    candidates, as [first, second, winner or None]. calibrations: by gate. examples: pairs that the
    memory recalled for this question, and the namespace it was asked in. unstructured: the judge's
    provider refused to hold verdicts to a schema. overhead: input tokens that an agent with tools adds
    to the prompt of a draft. owed: moves that a request for several choices left undone. chosen:
    None where a branch may choose afresh."""

    returned: Annotated[list[Outcome], gather]
    question_id: str
    chosen: Chosen | None
    run_id: int
    parent_run: int | None
    thread: str
    answer_id: str | None
    concluded: int | None
    ordinal: int
    made: dict[str, int]
    ballots: dict[str, int]
    matches: list[Any]
    payoffs: dict[str, Payoff]
    calibrations: dict[str, Calibration]
    unstructured: bool
    examples: list[Example]
    namespace: list[str]
    least_room: int
    overhead: int
    owed: list[dict[str, Any]]
    failures: int
    wait: float
    interrupted: bool
    remaining_steps: RemainingSteps


OWN, REVIEW, PLAIN, STRUCTURED = "own", "review", "judge", "structured"
"""The gates: the model's own, and for reviews without the tools and the like that are bound to it;
the judge's, plain or held to a schema."""
MIN_ROOM = 16
"""Output tokens below which a call is not worth its prompt."""
GOOD_ROOM = 64
"""Output tokens that a fan-out leaves to each of its calls, or it is made smaller."""
PLACES = 1_000
"""Model calls that an agent may make in a draft; each has a place of its own in the run."""
_KEPT = 64
"""Errors, ballots and curve points kept in the state."""


def fresh(question_id: str, chosen: Chosen, run_id: int, thread: str, limits: Limits) -> State:
    """A run that has not begun."""
    return State(
        question_id=question_id,
        chosen=chosen,
        run_id=run_id,
        parent_run=None,
        thread=thread,
        concluded=None,
        limits=limits,
        answer_id=None,
        best=None,
        spent=nothing(),
        spent_by={},
        stop_reason=None,
        stop_estimate=None,
        curve=[],
        candidates=[],
        pairs=[],
        principles=[],
        judging=Judging(
            spent=nothing(), comparisons=0, agreed=0, flips=0, firsts=0, longer=0, shorter=0
        ),
        payoffs={},
        examples=[],
        namespace=[],
        errors=[],
        ordinal=0,
        made={},
        ballots={},
        matches=[],
        calibrations={},
        unstructured=False,
        least_room=GOOD_ROOM,
        overhead=0,
        owed=[],
        failures=0,
        wait=0.0,
        interrupted=False,
    )


class Learn(Protocol):
    """How a gate's calibration takes in a report; see tokens.learn."""

    def __call__(
        self, gate: str, known: Calibration, shape: Shape, reported: int, base: bool
    ) -> Calibration: ...


def fold(state: State, width: int, decides: Decides, learn: Learn) -> State:
    """The state after the replies in `returned`. Pure; order of arrival does not matter."""
    outcomes = sorted(state.get("returned", []), key=lambda o: o["ordinal"])
    if not outcomes:
        return State()
    spent, spent_by, made = state["spent"], dict(state["spent_by"]), dict(state["made"])
    calibrations, least_room = dict(state["calibrations"]), state["least_room"]
    seconds = spent["seconds"]
    candidates = list(state["candidates"])
    for outcome in outcomes:
        kind = outcome["move"]["kind"]
        spent = total([spent, outcome["spend"]])
        spent_by[kind] = total([spent_by.get(kind, nothing()), outcome["spend"]])
        if outcome["reported"] is not None:
            gate, move = outcome["gate"], outcome["move"]
            base = kind == "draft" and not move["taught"] and "agent" not in move
            known = calibrations.get(gate) or uncalibrated()
            calibrations[gate] = learn(
                gate, known, outcome["shape"], outcome["reported"], base=base
            )
        if (once := outcome.get("once")) is not None:
            known = calibrations.get(outcome["gate"]) or uncalibrated()
            calibrations[outcome["gate"]] = {
                **known,
                "once": once and known.get("once") is not False,
            }
        if outcome["starved"]:
            least_room = max(least_room, 2 * (outcome["room"] or 0))
        elif not outcome["lost"] and (not outcome["failed"] or kind == "learn"):
            made[kind] = made.get(kind, 0) + 1
        if "candidate" in outcome:
            candidates.append({**outcome["candidate"], "spent": spent})
    spent["seconds"] = seconds + union((o["started"], o["ended"]) for o in outcomes)

    best, pairs, ballots = state["best"], _reasoned(state["pairs"], outcomes), state["ballots"]
    matches = [Match(*match) for match in state["matches"]]
    new_matches: list[Match] = []
    candidates = _reviewed(candidates, outcomes)
    if decides != "judge":
        new_matches, _ = _compared(candidates, outcomes)
        matches += new_matches
    if decides == "scorer":
        best = max(candidates, key=_by_score, default=None)
        pairs = scored_pairs(candidates, pairs, width)
    elif decides == "vote":
        new = [c for c in candidates if c["id"] >= state["ordinal"]]
        best, candidates, ballots = _voted(best, candidates, new, ballots)
    else:
        best = _standing(best, candidates, matches)
        new_matches, found = _compared(candidates, outcomes)
        matches += new_matches
        if best is not None and new_matches:
            held = champion(matches, best["id"], since=len(matches) - len(new_matches))
            best = next(c for c in candidates if c["id"] == held)
        pairs = [*found, *pairs][:width]
        best, candidates, matches = _concluded(best, candidates, matches)
        drafted = [c for c in candidates if c["id"] >= state["ordinal"] and c["node"] == "draft"]
        ballots = _counted(ballots, drafted)
        candidates = [_with_votes(c, ballots) for c in candidates]
    if best is not None:
        best = next(c for c in [*candidates, best] if c["id"] == best["id"])
    arrived = [c for c in candidates if c["id"] >= state["ordinal"]] if decides == "scorer" else []
    curve = _risen(state["curve"], [*arrived, *([best] if best else [])])
    concluded = [o["move"]["conclude"] for o in outcomes if o["move"].get("conclude") is not None]
    refused = [o for o in outcomes if o["failed"]]
    fruitless = all(o["failed"] and "candidate" not in o for o in outcomes)
    idle = all(o["lost"] for o in outcomes)
    failures = state["failures"] if idle else state["failures"] + 1 if fruitless else 0
    kept = _trimmed(candidates, best, width, decides, matches)
    ids = {c["id"] for c in kept}
    return State(
        best=best,
        spent=spent,
        spent_by=spent_by,
        made=made,
        concluded=concluded[-1] if concluded else state["concluded"],
        candidates=kept,
        matches=[list(m) for m in matches if {m.first, m.second} <= ids][-_KEPT:],
        pairs=pairs,
        principles=next(
            (o["principles"] for o in outcomes if o.get("principles")), state["principles"]
        ),
        judging=_judged(state["judging"], outcomes, candidates, new_matches),
        payoffs=_paid_off(state, best, outcomes),
        ballots=ballots,
        curve=curve,
        errors=[*state["errors"], *(e for o in outcomes for e in o["errors"])][-_KEPT:],
        ordinal=max(o["ordinal"] + places(o["move"]) for o in outcomes),
        calibrations=calibrations,
        unstructured=state["unstructured"]
        or any(o["refused"] and o["gate"] == STRUCTURED for o in outcomes),
        least_room=least_room,
        overhead=max([state["overhead"], *(o["move"].get("overhead", 0) for o in outcomes)]),
        owed=_owed(outcomes),
        failures=failures,
        wait=max((o["retry_after"] for o in refused), default=0.0),
        interrupted=any(o["interrupted"] for o in outcomes),
    )


def contests(state: State, most: int = 2) -> list[tuple[int, int]]:
    """The comparisons that tell most about who is best, of the incumbent with others: each
    other answer is asked about once."""
    best = state["best"]
    if best is None:
        return []
    distinct = {normal(c["answer"]): c["id"] for c in [*state["candidates"], best] if not c["lost"]}
    known = [Match(*match) for match in state["matches"]]
    found: list[tuple[int, int]] = []
    while len(found) < most and (
        pair := next_match(distinct.values(), known, best["id"], doubt=0.0)
    ):
        if pair in found:
            break
        found.append(pair)
        known.append(Match(*pair, None))
    return found


def question_of(messages: Sequence[BaseMessage]) -> BaseMessage:
    """The last user message."""
    for message in reversed(messages):
        if message.type == "human":
            return message
    raise ValueError("messages: a user message is needed, as in {'messages': [('user', question)]}")


def once(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[str]]:
    """The messages without repetitions of an unanswered question, as a program leaves that asks it
    again after a crash; and the ids of those left out."""
    kept: list[BaseMessage] = []
    dropped = []
    for message in messages:
        if (
            kept
            and message.type == kept[-1].type == "human"
            and message.content == kept[-1].content
        ):
            dropped.append(str(kept.pop().id))
        kept.append(message)
    return kept, dropped


def conversation_of(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """What was said up to the question, as role and content."""
    roles = {"human": "user", "ai": "assistant"}
    last = max(i for i, m in enumerate(messages) if m.type == "human")
    return [{"role": roles.get(m.type, m.type), "content": m.content} for m in messages[: last + 1]]


def asked_of(messages: Sequence[BaseMessage]) -> str:
    """What a question is known by after its message ids are lost: a digest of the conversation
    up to it."""
    said = json.dumps(conversation_of(messages), default=str, sort_keys=True)
    return hashlib.sha256(said.encode(errors="replace")).hexdigest()


def _by_score(c: Candidate) -> tuple[float, bool, int]:
    return (-1.0 if c["score"] is None else c["score"], c["complete"], -c["id"])


def _standing(
    best: Candidate | None, candidates: Sequence[Candidate], matches: Sequence[Match]
) -> Candidate | None:
    """The incumbent before new comparisons: the first answer, but one that was cut off gives way to
    the first complete one, unless it won its place in a comparison."""
    if best is not None and (
        best["complete"] or any(best["id"] in (m.first, m.second) for m in matches)
    ):
        return best
    whole = [c for c in candidates if c["complete"] and c["node"] != "conclude"]
    return min(whole or ([best] if best else candidates), key=lambda c: c["id"], default=None)


def _reasoned(pairs: Sequence[Pair], outcomes: Sequence[Outcome]) -> list[Pair]:
    """The pairs with the reasons that the judge was asked for."""
    asked = {
        (o["move"]["chosen"], o["move"]["rejected"]): o.get("why", "")
        for o in outcomes
        if o["move"]["kind"] == "learn" and not o["lost"]
    }
    return [
        explained(p, asked[ids]) if (ids := (p["chosen_id"], p["rejected_id"])) in asked else p
        for p in pairs
    ]


def _judged(
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
        if o["move"]["kind"] == "critique" and (named := o.get("preferred")) is not None:
            pair = (o["move"]["first"], o["move"]["second"])
            sides.setdefault(pair, {})[o["swapped"]] = named
    flips = [s[False] == first for (first, _), s in sides.items() if len({*s.values()}) == 2]
    return Judging(
        spent=total([judging["spent"], *(o["spend"] for o in outcomes if judges(o["move"]))]),
        comparisons=judging["comparisons"] + len(matches),
        agreed=judging["agreed"] + len(won),
        flips=judging["flips"] + len(flips),
        firsts=judging["firsts"] + sum(flips),
        longer=judging["longer"] + sum(more > 0 for more in won),
        shorter=judging["shorter"] + sum(more < 0 for more in won),
    )


def judges(move: Mapping[str, Any]) -> bool:
    """Whether a call is the judge's: comparisons, reasons, principles; not the reviews of
    self-refinement, which are its feedback."""
    compares = move["kind"] == "critique" and move["second"] is not None
    return compares or move["kind"] == "learn"


def places(move: Mapping[str, Any]) -> int:
    """How many places in its run a move takes; a choice, one."""
    if "choice" in move:
        return 1
    return PLACES if "agent" in move else int(move.get("choices", 1))


def _owed(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What is to be asked for one by one: the rest of several choices, where the provider makes
    fewer, whatever is asked."""
    owed = []
    for o in outcomes:
        if o.get("once") is False and not o["failed"]:
            own = range(o["ordinal"], o["ordinal"] + o["move"]["choices"])
            owed += [o["move"]] * (len(own) - sum(other["ordinal"] in own for other in outcomes))
    return owed


def _paid_off(
    state: State, best: Candidate | None, outcomes: Sequence[Outcome]
) -> dict[str, Payoff]:
    """Payoffs with this step's, by kind. Under a judge an answer pays off when it takes the best
    one's place, which is a step after it came."""
    payoffs = dict(state["payoffs"])
    scores = {c["id"]: c["score"] or 0.0 for c in state["candidates"]}
    each = 0
    for o in outcomes:
        move = o["move"]
        tried = move["kind"] in ("draft", "refine") and move.get("conclude") is None
        if tried and (o["spend"]["calls"] or "candidate" in o):
            score = (o["candidate"]["score"] or 0.0) if "candidate" in o else 0.0
            change = score - scores.get(move["of"], 0.0) if move["kind"] == "refine" else 0.0
            written = o["spend"]["output_tokens"]
            cut = o["room"] is not None and written >= o["room"]
            if "choice" in move:  # the first bears the cost of all
                each = each if move["choice"] else written // move["choices"]
                cut, written = "candidate" in o and not o["candidate"]["complete"], each
            kind, tokens = kind_of(move["kind"], move["taught"]), o["spend"]["tokens"]
            one = payoff(score, change, tokens, tokens if "agent" in move else written, cut)
            payoffs[kind] = paid(payoffs.get(kind), one)
    before = state["best"]
    risen = best is not None and before is not None and best["id"] != before["id"]
    if best is not None and risen and best["score"] is None and best["node"] != "conclude":
        kind = kind_of(best["node"], best["taught"])
        payoffs[kind] = paid(payoffs.get(kind), payoff(1.0, tries=0))
    return payoffs


def payoff(
    worth: float,
    change: float = 0.0,
    tokens: int = 0,
    written: int = 0,
    cut: bool = False,
    tries: int = 1,
) -> Payoff:
    """Of one answer."""
    return Payoff(
        tries=tries,
        worth=worth,
        squares=worth**2,
        change=change,
        changes=change**2,
        tokens=tokens,
        written=written,
        cut=int(cut),
        whole=0 if cut else written,
    )


def paid(known: Payoff | None, more: Payoff) -> Payoff:
    """Both together."""
    if known is None:
        return more
    added = cast("Mapping[str, float]", more)
    return cast("Payoff", {k: v + added[k] for k, v in cast("dict[str, float]", known).items()})


def kind_of(node: str, taught: bool) -> str:
    """As payoffs tell kinds of answers apart: "draft" and "refine", or these "taught", whose prompt
    showed lessons."""
    return f"taught {node}" if taught else node


def _reviewed(candidates: list[Candidate], outcomes: Sequence[Outcome]) -> list[Candidate]:
    """Reviews (critiques of one candidate) become its feedback."""
    notes = {
        o["move"]["first"]: o
        for o in outcomes
        if o["move"]["kind"] == "critique" and o["move"]["second"] is None and "why" in o
    }
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
    """The step's comparisons, both orders of each in one: a preference counts only if it survives
    the swap, and makes a pair."""
    asked: dict[tuple[int, int], dict[bool, Outcome]] = {}
    for o in outcomes:
        if o["move"]["kind"] == "critique" and o["move"]["second"] is not None and not o["lost"]:
            asked.setdefault((o["move"]["first"], o["move"]["second"]), {})[o["swapped"]] = o
    by_id = {c["id"]: c for c in candidates}
    matches, pairs = [], []
    for (first, second), orders in asked.items():
        if first == second or len(orders) < 2 or not {first, second} <= by_id.keys():
            continue
        said, swapped = (orders[order].get("preferred") for order in (False, True))
        matches.append(match := both_orders(first, second, said, swapped))
        if match.winner is not None:
            loser = second if match.winner == first else first
            reasons = (orders[order].get("why") for order in (False, True))
            why = next(filter(None, reasons), "")
            pairs.append(judged_pair(by_id[match.winner], by_id[loser], why))
    return matches, pairs


def _concluded(
    best: Candidate | None, candidates: list[Candidate], matches: list[Match]
) -> tuple[Candidate | None, list[Candidate], list[Match]]:
    """An answer forced out of the incumbent's cut reasoning is the incumbent's own answer, and
    its comparisons are its own."""
    if best is None or best["complete"]:
        return best, candidates, matches
    old = best["id"]
    mine = (c for c in candidates if c["node"] == "conclude" and c["parents"] == [old])
    own = next((c for c in mine if c["complete"]), None)
    if own is None:
        return best, candidates, matches
    new = own["id"]

    def named(i: int) -> int:
        return new if i == old else i

    inherited = [
        Match(named(m.first), named(m.second), None if m.winner is None else named(m.winner))
        for m in matches
    ]
    return own, [{**c, "lost": True} if c["id"] == old else c for c in candidates], inherited


def _counted(ballots: Mapping[str, int], new: Sequence[Candidate]) -> dict[str, int]:
    """The answers with how many gave each; what was cut off gives none."""
    counts = Counter(ballots)
    counts.update(normal(c["answer"]) for c in new if c["complete"])
    return dict(counts.most_common(_KEPT) if len(counts) > _KEPT else counts)


def _with_votes(c: Candidate, ballots: Mapping[str, int]) -> Candidate:
    return {**c, "votes": ballots.get(normal(c["answer"]), 0) if c["complete"] else 0}


def _voted(
    best: Candidate | None,
    candidates: list[Candidate],
    new: Sequence[Candidate],
    ballots: dict[str, int],
) -> tuple[Candidate | None, list[Candidate], dict[str, int]]:
    ballots = _counted(ballots, new)
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
    """At most `width`: the incumbent, then the better ones (scorer), or those that the judge has
    not met, the stronger and the newer ones."""
    if len(candidates) <= width:
        return sorted(candidates, key=lambda c: c["id"])
    level = strengths((c["id"] for c in candidates), matches) if decides == "judge" else {}
    met = {i for match in matches for i in match[:2]} if decides == "judge" else set()

    def worth(c: Candidate) -> tuple[bool, bool, bool, float, int]:
        score = -1.0 if c["score"] is None or decides != "scorer" else c["score"]
        held = best is not None and c["id"] == best["id"]
        return (held, not c["lost"], c["id"] not in met, level.get(c["id"], score), c["id"])

    return sorted(sorted(candidates, key=worth, reverse=True)[:width], key=lambda c: c["id"])


def _risen(curve: list[Point], incumbents: Sequence[Candidate]) -> list[Point]:
    """The curve with a point for each new incumbent, thinned in the middle if it grows long."""
    for c in incumbents:
        risen = not curve or (c["score"] or 0.0) > (curve[-1]["score"] or 0.0) or c["score"] is None
        if risen and (not curve or curve[-1]["candidate"] != c["id"]):
            curve = [*curve, Point(candidate=c["id"], score=c["score"], spent=c["spent"])]
    return curve if len(curve) <= _KEPT else [*curve[: _KEPT // 2], *curve[_KEPT // 2 + 1 :]]


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of time spans: parallel calls share their seconds."""
    length, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length


def merged(state: Mapping[str, Any], update: State) -> State:
    """The state with an update applied, for reading on within a node."""
    return cast("State", {**state, **update})
