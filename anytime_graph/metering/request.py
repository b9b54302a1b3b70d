"""The request that a call needs, the reply that it brings, and the journal that records both."""

from __future__ import annotations

import contextvars
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from langchain_core.messages import AIMessage, BaseMessage

from anytime_graph.budget import Spend
from anytime_graph.metering.quota import Standings
from anytime_graph.run.calls import Caller, Receipt


class Place(NamedTuple):
    """The place of a call: its run, and its ordinal among the calls of that run."""

    run_id: int
    ordinal: int


_NEAR = 16
"""Tokens by which a reply that ended at its cap may be shorter."""
NOWHERE = Place(0, 0)
"""The place of a call that no journal records."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that a call needs.

    max_input, max_output: its reservation in tokens, for all of its choices together; None: the
        output is not limited.
    seconds: the call is cut after this time. wait: seconds to hold back before it.
    n: choices asked for. prompt_copies: how many of them the prompt is reserved for; 1 once the
        provider is known to bill the prompt of such a request once.
    place: where the journal records it; its ordinal is added to the model's seed.
    step: the plan that it is part of; siblings wait for the first request to a new server.
    kind: what its errors call it. without: parts that are left out; see metering.learned.
    granted: what its payer leaves of the reply, before a journal records it.
    barred: says, just before it is sent, why it must not be; refused: is told at once that it was refused, and
        whether its siblings waited to know; see metering.learned.
    """

    prompt: Sequence[BaseMessage]
    max_input: int
    max_output: int | None
    seconds: float | None = None
    wait: float = 0.0
    n: int = 1
    prompt_copies: int = 1
    place: Place = NOWHERE
    step: str = ""
    kind: str = "call"
    without: frozenset[str] = frozenset()
    granted: Callable[[Reply], Reply] | None = None
    barred: Callable[[], Exception | None] | None = None
    refused: Callable[[Exception, bool], None] | None = None

    def ended_early(self, came: Receipt) -> bool:
        """Whether the provider ended the reply at a limit of its own, well below this request's."""
        most, told = self.max_output, came["reported"] is not None and self.n == 1
        cut = told and came["ended"] == "length" and most is not None
        return cut and came["spend"]["output_tokens"] + _NEAR < (most or 0)

    @property
    def text(self) -> str:
        """The prompt's texts, for lower bounds."""
        return "\n".join(message.text for message in self.prompt)


@dataclass(frozen=True)
class Reply:
    """What a call brought.

    text: what arrived, cut or whole. message: the same as a message, with only those tool calls whose
        arguments arrived whole. called: the model called tools, whole or not.
    others: the further choices of a request for several; the first bears the cost of all.
    chunks: the stream as it arrived. error: what the client raised.
    """

    text: str
    message: AIMessage
    receipt: Receipt
    called: bool = False
    others: tuple[Reply, ...] = ()
    chunks: Sequence[BaseMessage] = ()
    error: Exception | None = None

    @property
    def whole(self) -> bool:
        """Whether the model ended it."""
        return self.receipt["ended"] == "stop"

    @property
    def uncut(self) -> bool:
        """Whether it ended by itself or by a filter; neither a cap nor we cut it."""
        return self.receipt["ended"] in ("stop", "blocked")

    def noted(self, *errors: str) -> Reply:
        """The reply with these errors added."""
        receipt = self.receipt
        return replace(self, receipt={**receipt, "errors": [*receipt["errors"], *errors]})


class JournalError(RuntimeError):
    """The journal cannot be read or written; the message says why."""


class Entry(NamedTuple):
    """What a journal holds at a place. reply: None if the call was in flight when its process ended.
    text: what had arrived by then. reserved: what that call is charged. started, changed: Unix times
    between which the call was under way."""

    reply: Reply | None
    text: str
    reserved: Spend
    started: float
    changed: float


class Journal(Protocol):
    """Records a call before it is made, and after."""

    def recall(self, place: Place) -> Entry | None:
        """The entry at this place, if a call was reserved there. Raises JournalError."""
        ...

    def reserve(
        self, request: Request, amounts: Spend, model: str, so_far: Callable[[], str]
    ) -> bool:
        """Write the reservation durably before the request leaves. Returns False if the call must not
        be made. so_far: gives the text that has arrived. Raises JournalError, and Withheld while
        quotas do not pay for the call."""
        ...

    def settle(self, place: Place, reply: Reply) -> None:
        """Write what the call brought and cost. Raises JournalError."""
        ...


_JOURNAL: contextvars.ContextVar[Journal | None] = contextvars.ContextVar(
    "anytime_call", default=None
)


@contextmanager
def made_for(journal: Journal | None) -> Iterator[None]:
    """The journal's call is made within. A model that is metered makes it through another payer."""
    token = _JOURNAL.set(journal)
    try:
        yield
    finally:
        _JOURNAL.reset(token)


def journal_around() -> Journal | None:
    """The journal of the call that a metered model makes for a graph."""
    return _JOURNAL.get()


Take = Callable[[int], int]
"""Books tool calls before they run, as many as are left. Returns how many those are."""


class Shared(Protocol):
    """Quotas that payers in other processes draw on too. None of its methods give anything where no
    quota holds; they raise JournalError, and ValueError if it is not told whose a call is."""

    def beside(self, above: Shared) -> Shared:
        """These and other quotas, which must all pay. Raises ValueError if another ledger keeps those."""
        ...

    def standings(self) -> Standings | None:
        """How the accounts stand that pay for calls made here."""
        ...

    def journal(self) -> Journal | None:
        """The journal of one call that nothing else records."""
        ...

    def take(self, tool_calls: int) -> int:
        """Book tool calls before they run, as many as the quotas leave. Returns how many those are."""
        ...


class RunRecord(Protocol):
    """The calls of an agent's run, or in a draft, as a ledger keeps them."""

    def again(self, digest: str) -> Request | None:
        """A call that was settled before the process ended, at its place, if its request was equal;
        each is given once."""
        ...

    def place(self, kind: Caller, digest: str) -> Place:
        """A place for a call. kind: who makes it; see metered.AgentPayer."""
        ...

    def journal(self, request: Request, shared: Shared) -> Journal:
        """The journal of the call at a place. shared: the quotas that pay for it."""
        ...

    def tool_begins(
        self, tool: str, call: str, usd: float, shared: Shared, seconds: float
    ) -> Place | None:
        """Book a call of a tool at its price, here and in the quotas that pay for it, before it is made.
        Returns its place, if it has one. call: its id. seconds: how long it may wait for what calls elsewhere
        give back. Raises JournalError, and QuotaExceeded."""
        ...

    def tool_paused(self, call: str) -> Place | None:
        """The place of a tool call that asked a human, and goes on: it is paid already."""
        ...

    def tool_ended(self, place: Place, usd: float, pauses: bool = False) -> None:
        """Settle it, with the time that it took. pauses: it asks a human. Raises JournalError."""
        ...


def digest_of(prompt: Sequence[BaseMessage], options: Mapping[str, Any]) -> str:
    """A digest by which another process recognizes an equal request. Message ids do not count."""
    messages = [
        (m.type, m.content, getattr(m, "tool_calls", None), getattr(m, "tool_call_id", None))
        for m in prompt
    ]
    text = json.dumps([messages, options], default=str, sort_keys=True)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
