"""The state of a run, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from langchain_core.messages import AnyMessage, BaseMessage
from langgraph.channels import EphemeralValue, UntrackedValue
from langgraph.graph.message import add_messages
from langgraph.managed import RemainingSteps
from pydantic import BaseModel
from typing_extensions import TypedDict

from anytime_graph.budget import GOOD_ROOM, Budget, Limits, Spend, nothing
from anytime_graph.models.tokens import Calibration
from anytime_graph.run.calls import Chosen, Outcome, PlannedMove
from anytime_graph.run.pairs import Candidate, Example, Pair

Decides = Literal["scorer", "judge", "vote", "agreement"]
"""Who chooses the best answer. "agreement": the vote of the drafts, and among equals the judge."""


class Judging(TypedDict):
    """The judge so far. spent: on comparisons, reasons and principles. comparisons: how many were made in
    both orders. agreed: in how many both orders named the same answer; flips: the same place. firsts:
    how many flips named the first place. longer, shorter: how often the longer or the shorter answer
    was preferred."""

    spent: Spend
    comparisons: int
    agreed: int
    flips: int
    firsts: int
    longer: int
    shorter: int


class Payoff(TypedDict):
    """What a kind of answer has brought. tries: answers asked for. worth: the sum of their scores; under a
    judge, how many became the best. change: the sum of what refinements changed in the scores of their
    parents. squares, changes: the sums of the squares of both. tokens: what they cost. written: their
    output tokens, or all tokens that an agent used. cut: how many used up their slice. whole: the
    `written` of the others."""

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
    """A point of the curve of quality against spend: a new best answer."""

    candidate: int
    score: float | None
    spent: Spend


def gather(kept: list[Outcome], new: list[Outcome] | None) -> list[Outcome]:
    """Reducer that collects what the calls of a step bring. None empties it."""
    return [] if new is None else [*kept, *new]


if TYPE_CHECKING:
    from langchain_core.messages import MessageLikeRepresentation

    # What `add_messages` takes; a served schema shows what it makes of that.
    Messages = Sequence[MessageLikeRepresentation]
else:
    Messages = list[AnyMessage]


class Input(TypedDict, total=False):
    """What a run takes.

    messages: a new user message is a new question, in any form that LangChain takes for one. budget:
    what the question may cost; for a question that has run before, how much more.
    """

    messages: Annotated[Messages, add_messages]
    budget: Annotated[Budget | dict[str, float] | None, EphemeralValue]


class Output(TypedDict):
    """What a run returns.

    messages: the conversation, with the best answer last. best: the best answer with all that is known
    of it. structured_response: with `answer=Model` the best answer as an instance of it; None without,
    or if no reply held one. It is made when the run ends and is in no checkpoint. spent: what the run
    has spent. stop_reason: a dimension of the budget that was used up, or another reason; see the glossary.
    stop_estimate: the figure that the stop rests on, such as the score reached. curve: each answer that
    became the best, with its score and the spend by then. candidates: the answers that the state keeps.
    pairs: preferences among answers. principles: rules that the pairs taught. judging: what the judge
    did and spent. spent_by: the spend by kind of call. errors: what went wrong on the way. limits: the
    budget, by dimension.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    best: Candidate | None
    structured_response: Annotated[BaseModel | None, UntrackedValue]
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


class State(TypedDict, total=False):
    """The channels of a run. Those of the output come first; see there.

    budget: what the caller grants with this input; gone once it is counted into `limits`.
    returned: replies of the step; the fold empties it. chosen: None where a branch may choose again.
    concluded: the candidate out of whose cut reasoning an answer was forced. conclusions: how often that was
    tried. ordinal: of the next call.
    made: moves that brought a reply, by kind. ballots: see View. matches: the judge's comparisons among
    the candidates, as [first, second, winner or None]. payoffs: by kind of answer. calibrations: by role.
    unstructured: the judge's provider refused to hold verdicts to a schema. examples: pairs that the
    memory recalled for this question. namespace: in which it was asked. owner: the authenticated user whose
    thread it is, if there is one. least_room: output tokens that a
    call needs, as starved calls have shown. overhead: input tokens that an agent adds to the
    prompt of a draft. owed: moves that a request for several choices left undone. failures: steps in a
    row that failed entirely. blocked: why the provider ended every answer of the last step, if there
    is no whole answer. unscored: the scorer failed on every answer. withheld: a quota did not pay for a
    call of the last step. largest: input tokens of the largest prompts to try, by role, where larger ones
    were refused. refusals: calls that were refused and cost nothing. wait: seconds that a
    provider asked for. anytime_form: the form of the state; see upgrade.py.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    best: Candidate | None
    structured_response: Annotated[BaseModel | None, UntrackedValue]
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
    budget: Annotated[Budget | dict[str, float] | None, EphemeralValue]
    returned: Annotated[list[Outcome], gather]
    question_id: str
    chosen: Chosen | None
    run_id: int
    parent_run: int | None
    thread: str
    answer_id: str | None
    concluded: int | None
    conclusions: int
    ordinal: int
    made: dict[str, int]
    ballots: dict[str, int]
    matches: list[Any]
    payoffs: dict[str, Payoff]
    calibrations: dict[str, Calibration]
    unstructured: bool
    examples: list[Example]
    namespace: list[str]
    owner: str | None
    least_room: int
    overhead: int
    owed: list[PlannedMove]
    failures: int
    largest: dict[str, int]
    refusals: int
    blocked: str | None
    unscored: bool
    withheld: bool
    wait: float
    interrupted: bool
    anytime_form: int
    remaining_steps: RemainingSteps


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
        largest={},
        refusals=0,
        **unstopped(),
    )


def unstopped() -> State:
    """What a run that has stopped forgets, to go on: what kept it from making calls."""
    return State(
        interrupted=False, failures=0, blocked=None, unscored=False, withheld=False, wait=0.0
    )


def payoff(
    worth: float,
    change: float = 0.0,
    tokens: int = 0,
    written: int = 0,
    cut: bool = False,
    tries: int = 1,
) -> Payoff:
    """The payoff of one answer."""
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


def add_payoffs(known: Payoff | None, more: Payoff) -> Payoff:
    """The sum of both, field by field."""
    if known is None:
        return more
    added = cast("Mapping[str, float]", more)
    return cast("Payoff", {k: v + added[k] for k, v in cast("dict[str, float]", known).items()})


def conclusions(state: State) -> int:
    """How often it was tried to force an answer out of `concluded`. States of earlier versions do not say so:
    once then."""
    return state.get("conclusions", int(state["concluded"] is not None))


def question_of(messages: Sequence[BaseMessage]) -> BaseMessage:
    """The last user message."""
    for message in reversed(messages):
        if message.type == "human":
            return message
    raise ValueError("messages: a user message is needed, as in {'messages': [('user', question)]}")


def without_repeats(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[str]]:
    """The messages without repetitions of an unanswered question, and the ids of those left out. A program
    that asks again after a crash causes them."""
    kept: list[BaseMessage] = []
    dropped = []
    for message in messages:
        last = kept[-1] if kept else None
        if last and message.type == last.type == "human" and message.content == last.content:
            dropped.append(str(kept.pop().id))
        kept.append(message)
    return kept, dropped


def conversation_of(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation up to the question, as role and content."""
    roles = {"human": "user", "ai": "assistant"}
    last = max(i for i, m in enumerate(messages) if m.type == "human")
    return [{"role": roles.get(m.type, m.type), "content": m.content} for m in messages[: last + 1]]


def conversation_digest(messages: Sequence[BaseMessage]) -> str:
    """A digest of the conversation up to the question. It identifies the question once its message ids are
    lost."""
    text = json.dumps(conversation_of(messages), default=str, sort_keys=True)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def merged(state: Mapping[str, Any], update: State) -> State:
    """The state with an update applied, to be read within a node."""
    return cast("State", {**state, **update})
