"""A call as plain data: what was planned before it, and what came of it.

All of it goes into checkpoints and the ledger, so it holds nothing but dicts, lists, numbers and texts.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from langchain_core.messages import AnyMessage
from typing_extensions import TypedDict

from anytime_graph.budget import Limits, Spend, nothing
from anytime_graph.models.tokens import Shape
from anytime_graph.run.pairs import Candidate, Shown

Role = Literal["own", "review", "judge", "structured"]
"""Which of the meters a call goes through. The model's own, and for reviews without the tools and the
like that are bound to it; the judge's, plain or held to a schema."""
OWN: Role = "own"
REVIEW: Role = "review"
PLAIN: Role = "judge"
STRUCTURED: Role = "structured"
PATIENCE = 3
"""Steps in a row that may fail as a whole before the run gives up, or calls of a draft that may be
refused: what costs nothing is bounded by its number."""
PLACES = 1_000
"""Model calls that an agent may make in a draft; each has a place of its own in the run."""


class DraftMove(TypedDict):
    """See planning.moves.Draft. with_pairs: its prompt shows preference pairs or principles."""

    kind: Literal["draft"]
    pairs: Shown
    memory: Shown
    share: float | None
    conclude: int | None
    with_pairs: bool


class RefineMove(TypedDict):
    """See planning.moves.Refine. with_pairs: as of a draft."""

    kind: Literal["refine"]
    of: int
    pairs: Shown
    memory: Shown
    share: float | None
    with_pairs: bool


class CritiqueMove(TypedDict):
    """See planning.moves.Critique. swapped: the second candidate is shown first."""

    kind: Literal["critique"]
    first: int
    second: int | None
    share: float | None
    swapped: bool


class LearnMove(TypedDict):
    """See planning.moves.Learn."""

    kind: Literal["learn"]
    chosen: int | None
    rejected: int | None
    share: float | None


PlannedMove = DraftMove | RefineMove | CritiqueMove | LearnMove


class AgentDraft(TypedDict):
    """A draft by an agent. may_return: it gives its slice back if that is too small for its tools.
    overhead: input tokens that the agent adds to the prompt. growth: see tokens.Calibration."""

    may_return: bool
    overhead: int
    growth: float


class AgentCall(TypedDict):
    """One of the model calls of an agent's draft. draft: its ordinal. request: digest of what was
    asked. last: the agent was told to answer, so tool calls are not carried out."""

    draft: int
    request: str
    last: bool


class PlannedCall(TypedDict):
    """One metered call, planned before any money is spent.

    ordinal: its place among the calls of the question. step: the ordinal of its first sibling.
    role: which meter it goes through. slice: the most it may spend.
    max_input, max_output: the reservation in tokens, for all of its choices; None: not limited.
    n: choices that the request asks for, each at a place of its own from `ordinal` on.
    prompt_copies: how many of them the prompt is reserved for. choice: which of them this is, once
    they are told apart.
    """

    ordinal: int
    step: int
    move: PlannedMove
    role: Role
    slice: Limits
    max_input: int
    max_output: int | None
    shape: Shape
    n: int
    prompt_copies: int
    choice: NotRequired[int]
    agent: NotRequired[AgentDraft]
    agent_call: NotRequired[AgentCall]


class Chosen(TypedDict, total=False):
    """What the context chose for a question; the graph's defaults for what is absent."""

    model: str
    strategy: str


class RunInfo(TypedDict):
    """What a spoke needs to know of the run. thread, plan: under which thread's lease and which of
    the hub's plans the ledger lets it reserve. spent, limits: when this was planned."""

    run_id: int
    thread: str
    plan: str
    chosen: Chosen
    question: str
    spent: Spend
    limits: Limits


class Assignment(TypedDict):
    """What the hub sends to a spoke. prompt: None for a call that was made before a crash and whose
    prompt is lost: only its reply is to be had. wait: seconds to hold back after a refusal."""

    call: PlannedCall
    prompt: list[AnyMessage] | None
    wait: float
    run: RunInfo
    form: NotRequired[int]


Ended = Literal["stop", "length", "cut", "error"]


class Receipt(TypedDict):
    """What a call came to.

    ended: by itself ("stop"), at the cap ("length"), cut by us ("cut"), or by a failure ("error").
    spend: what it is charged. reported: input tokens by the provider's report, None without a
    believable one. billed_once: whether a request for several choices was billed its prompt once;
    None if this call does not tell.
    starved: it used up its cap before any text came. failed: it brought no answer. refused: the
    provider finds fault with the request itself. unserved: it cannot have been served, since it was
    refused or never left, so it costs nothing. closed: the provider will refuse all others too. lost: it was not made, or was in flight when its
    process ended. interrupted: the caller stopped it. recalled: it was not made now, but read from
    the journal.
    retry_after: seconds to wait before the next call. started, ended_at: Unix time.
    """

    ended: Ended
    spend: Spend
    reported: int | None
    billed_once: bool | None
    starved: bool
    failed: bool
    refused: bool
    unserved: bool
    closed: bool
    lost: bool
    interrupted: bool
    recalled: bool
    retry_after: float
    errors: list[str]
    started: float
    ended_at: float


def receipt(started: float, ended_at: float) -> Receipt:
    """Of a call that cost nothing and came to its end; to be filled in."""
    return Receipt(
        ended="stop",
        spend=nothing(),
        reported=None,
        billed_once=None,
        starved=False,
        failed=False,
        refused=False,
        unserved=False,
        closed=False,
        lost=False,
        interrupted=False,
        recalled=False,
        retry_after=0.0,
        errors=[],
        started=started,
        ended_at=ended_at,
    )


class Outcome(TypedDict):
    """What a spoke brings back: the call, what it came to, and what its reply means.

    candidate: the answer in it. preferred, why: a judgement; the reason alone of `Learn`.
    principles: what `Learn` found.
    """

    call: PlannedCall
    receipt: Receipt
    candidate: NotRequired[Candidate]
    preferred: NotRequired[int | None]
    why: NotRequired[str]
    principles: NotRequired[list[str]]
    form: NotRequired[int]


def judges(move: PlannedMove) -> bool:
    """Whether a call is the judge's: comparisons, reasons, principles; not the reviews of
    self-refinement, which are its feedback."""
    if move["kind"] == "critique":
        return move["second"] is not None
    return move["kind"] == "learn"


def seeks_answer(move: PlannedMove) -> bool:
    """Whether a call tries for a fresh answer: not to force one out of cut reasoning."""
    if move["kind"] == "draft":
        return move["conclude"] is None
    return move["kind"] == "refine"


def concluded(move: PlannedMove) -> int | None:
    """The candidate that an answer is forced out of."""
    return move["conclude"] if move["kind"] == "draft" else None


def kind_of(move: PlannedMove) -> str:
    """As statistics tell kinds of answers apart; see `kind`."""
    if move["kind"] == "draft" or move["kind"] == "refine":
        return kind(move["kind"], move["with_pairs"])
    return move["kind"]


def kind(node: str, with_pairs: bool) -> str:
    """ "draft" and "refine", or "taught draft" and "taught refine" whose prompt showed lessons."""
    return f"taught {node}" if with_pairs else node


def places(call: PlannedCall) -> int:
    """How many places in its run a call takes; a choice, one."""
    if "choice" in call:
        return 1
    return PLACES if "agent" in call else call["n"]
