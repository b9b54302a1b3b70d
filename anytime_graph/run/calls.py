"""A call as plain data: its plan, its receipt and its outcome.

All of it goes into checkpoints and the ledger, so it holds only dicts, lists, numbers and texts.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from langchain_core.messages import AnyMessage
from typing_extensions import TypedDict, TypeIs

from anytime_graph.budget import Limits, Spend, nothing
from anytime_graph.models.tokens import Calibration, Shape
from anytime_graph.run.pairs import Candidate, Shown

Role = Literal["own", "review", "judge", "structured", "near end"]
"""Which meter a call goes through: "own", the run's model; "review", that model without bound options such
as tools; "judge", the judge's model; "structured", the judge's model held to a JSON schema; "near end", the
model for answers near the end."""
OWN: Role = "own"
REVIEW: Role = "review"
JUDGE: Role = "judge"
STRUCTURED: Role = "structured"
NEAR_END: Role = "near end"
PATIENCE = 3
"""After this many steps in a row that failed entirely, a run ends; after this many refused calls in a row,
an agent's draft. Refused calls cost nothing, so their number needs a bound."""
PLACES = 1_000
"""The most model calls that an agent may make in a draft. Each has its own place in the run."""


class DraftMove(TypedDict):
    """See planning.moves.Draft. with_pairs: its prompt shows preference pairs or principles."""

    kind: Literal["draft"]
    pairs: Shown
    memory: Shown
    share: float | None
    conclude: int | None
    again: NotRequired[bool]
    with_pairs: bool


class RefineMove(TypedDict):
    """See planning.moves.Refine. with_pairs: as for a draft."""

    kind: Literal["refine"]
    of: int
    pairs: Shown
    memory: Shown
    share: float | None
    with_pairs: bool


class CombineMove(TypedDict):
    """See planning.moves.Merge and Evolve. of: the candidates that its prompt shows."""

    kind: Literal["merge", "evolve"]
    of: list[int]
    share: float | None


class CritiqueMove(TypedDict):
    """See planning.moves.Critique and Choose. swapped: the second candidate is shown first. among: all
    candidates of a choice, in the order in which they are shown; `first` and `second` are its first two."""

    kind: Literal["critique"]
    first: int
    second: int | None
    share: float | None
    swapped: bool
    among: NotRequired[list[int]]


class LearnMove(TypedDict):
    """See planning.moves.Learn."""

    kind: Literal["learn"]
    chosen: int | None
    rejected: int | None
    share: float | None


PlannedMove = DraftMove | RefineMove | CombineMove | CritiqueMove | LearnMove
ANSWERS = ("draft", "refine", "merge", "evolve")
"""The kinds of moves that bring answers."""


class AgentDraft(TypedDict):
    """A draft by an agent. may_return: the agent may give its slice back if it is too small for its tools.
    overhead: input tokens that the agent adds to the prompt. calibration: how far prompts are known to exceed
    their bounds."""

    may_return: bool
    overhead: int
    calibration: Calibration


class AgentCall(TypedDict):
    """One of the model calls of an agent's draft. draft: the draft's ordinal. request: a digest of the
    request. last: the agent had to answer in it, so its tool calls are not carried out."""

    draft: int
    request: str
    last: bool


Caller = Literal["agent", "last", "tool", "middleware"]
"""Who makes a call of an agent's run; see metering.metered.AgentPayer."""


Made = Caller | Literal["nested", "tool_call"]
"""What kind of call it is: "nested", one that a graph within makes and has in its own run; "tool_call", no
call of a model, but one of a tool, with its price."""


class AgentMove(TypedDict):
    kind: Made


class RunCall(TypedDict):
    """A call of an agent's run, which nothing plans. step: its ordinal. request: a digest of the request."""

    ordinal: int
    step: int
    move: AgentMove
    request: str


class PlannedCall(TypedDict):
    """One metered call, planned before any money is spent.

    ordinal: its place among the calls of the question. step: the ordinal of the step's first call.
    role: which meter it goes through. slice: the most that it may spend.
    max_input, max_output: the reservation in tokens, for all of its choices; None: not limited.
    n: choices that the request asks for, each at its own place from `ordinal` on.
    prompt_copies: the number of choices for which the prompt is reserved. choice: which choice this is,
    once the reply was split into its choices. bare: the shape of the prompt without the line that says
    how long a reply may be, if it has that line.
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
    bare: NotRequired[Shape]
    agent: NotRequired[AgentDraft]
    agent_call: NotRequired[AgentCall]


class Chosen(TypedDict, total=False):
    """What the context chose for a question. The graph's defaults apply where a key is absent."""

    model: str
    strategy: str


class RunInfo(TypedDict):
    """What a spoke needs to know about the run. thread, plan: the ledger lets a call reserve only under the
    lease of this thread and the hub's latest plan. spent, limits: at the time of the plan."""

    run_id: int
    thread: str
    plan: str
    chosen: Chosen
    question: str
    spent: Spend
    limits: Limits


class Assignment(TypedDict):
    """What the hub sends to a spoke. prompt: None for a call that was made before a crash; its prompt is
    lost, so only its reply can be read. wait: seconds to wait before the call, after a refusal."""

    call: PlannedCall
    prompt: list[AnyMessage] | None
    wait: float
    run: RunInfo
    form: NotRequired[int]


Ended = Literal["stop", "length", "blocked", "cut", "error"]


class Receipt(TypedDict):
    """How a call ended and what it is charged.

    ended: by itself ("stop"), at the cap ("length"), by the provider for another reason such as a
    filter or a refusal ("blocked"), cut by the meter ("cut"), or by a failure ("error"). blocked: that
    reason, in the provider's word.
    spend: what it is charged. reported: input tokens by the provider's report; None without a credible
    report. billed_once: whether a request for several choices was billed its prompt once; None if this
    call does not show it.
    starved: it used up its cap before any text came, or was refused because it would. failed: it brought
    no answer. refused: the provider rejects the request itself. unserved: it was refused or never left, so
    it costs nothing. closed: the provider will refuse all other calls too. lost: it was not made, or was in
    flight when its process ended. interrupted: the caller stopped it. recalled: it was read from the
    journal instead of made. withheld: it was not made because a quota does not pay for it. oversized: it was
    refused with the smallest output too, so that only a smaller prompt may help.
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
    blocked: NotRequired[str | None]
    withheld: NotRequired[bool]
    oversized: NotRequired[bool]


def receipt(started: float, ended_at: float) -> Receipt:
    """The receipt of a call that cost nothing and ended by itself, to be filled in."""
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
    """What a spoke brings back: the call, its receipt, and what its reply means.

    candidate: the answer in it. preferred, why: a judgement; from `Learn` only the reason.
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
    """Whether the judge makes the call: comparisons, reasons and principles, but not the reviews of
    self-refinement."""
    if move["kind"] == "critique":
        return move["second"] is not None
    return move["kind"] == "learn"


def shown_order(move: CritiqueMove) -> list[int]:
    """The candidates of a judgement in the order in which they are shown. The second order of a choice is
    the first one rotated by half of its length: [4, 2, 7] and [2, 7, 4]. So no candidate has one place twice."""
    order = move.get("among") or [i for i in (move["first"], move["second"]) if i is not None]
    half = len(order) // 2 if move["swapped"] else 0
    return [*order[half:], *order[:half]]


def seeks_answer(move: PlannedMove) -> bool:
    """Whether a call is to bring a new answer, not one forced out of cut reasoning."""
    return move["kind"] in ANSWERS and concluded(move) is None


def combines(move: PlannedMove) -> TypeIs[CombineMove]:
    """Whether an answer is made from several candidates."""
    return move["kind"] in ("merge", "evolve")


def made_from(move: PlannedMove) -> list[int]:
    """The ids of the candidates that an answer is made from."""
    if combines(move):
        return list(move["of"])
    of = move["of"] if move["kind"] == "refine" else concluded(move)
    return [] if of is None else [of]


def concluded(move: PlannedMove) -> int | None:
    """The id of the candidate out of whose cut reasoning an answer is forced."""
    return move["conclude"] if move["kind"] == "draft" else None


def kind_of(move: PlannedMove) -> str:
    """The kind of a move in the statistics; see `kind`."""
    return kind(move["kind"], bool(move.get("with_pairs")))


def kind(node: str, with_pairs: bool) -> str:
    """ "draft" or "refine"; with pairs in the prompt, "taught draft" or "taught refine"."""
    return f"taught {node}" if with_pairs else node


def places(call: PlannedCall) -> int:
    """How many places in its run a call takes."""
    if "choice" in call:
        return 1
    return PLACES if "agent" in call else call["n"]
