"""The journal of a run's calls: it writes each call to the ledger before and after the call is made.

A call's place is its run and its ordinal there. Its reservation is durable before the request is sent,
and no place ever gets a second request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from anytime_graph.budget import Spend
from anytime_graph.checkpoints.leases import Hold
from anytime_graph.checkpoints.ledger import Ledger
from anytime_graph.checkpoints.quotas import SharedQuotas
from anytime_graph.metering.request import Entry, Place, Reply, Request, journal_around
from anytime_graph.run.calls import PlannedCall, RunCall, RunInfo
from anytime_graph.run.pairs import Candidate
from anytime_graph.scoring import Score


class RunJournal(NamedTuple):
    """A node's access to the ledger while it holds the thread. shared: the quotas that pay for its calls."""

    ledger: Ledger
    hold: Hold
    shared: SharedQuotas

    def of(self, call: PlannedCall, run: RunInfo) -> CallJournal:
        """The journal of one planned call."""
        whole = "agent_call" in call
        return CallJournal(self.ledger, self.hold, call, run["plan"], self.shared, whole)

    def keep(self, call: PlannedCall, run_id: int, candidate: Candidate, fresh: bool) -> None:
        """Append an answer. fresh: its call was made just now, and its time includes the scoring.
        Raises JournalError."""
        # A choice has the place of its request.
        made_at = Place(run_id, call["ordinal"] - call.get("choice", 0))
        self.ledger.keep(self.hold, made_at, candidate, fresh)

    def score(self, call: PlannedCall, run_id: int) -> Score | None:
        """The score that the answer at the call's place got before. Raises JournalError."""
        return self.ledger.score(run_id, call["ordinal"])


@dataclass(frozen=True)
class CallJournal:
    """The journal of one call, as metering needs it; see metering.request.Journal. plan: of its run. whole:
    its reply is kept as a message, because an agent may get it again after a crash."""

    ledger: Ledger
    hold: Hold
    call: PlannedCall | RunCall
    plan: str
    shared: SharedQuotas
    whole: bool

    def recall(self, place: Place) -> Entry | None:
        return self.ledger.recall(place)

    def reserve(
        self, request: Request, amounts: Spend, model: str, so_far: Callable[[], str]
    ) -> bool:
        """Returns False if the run has another plan by now."""
        payers = self.shared.payers()
        return self.ledger.reserve(
            self.hold, self.call, self.plan, request, amounts, model, so_far, payers
        )

    def settle(self, place: Place, reply: Reply) -> None:
        self.ledger.settle(place, reply, self.shared.payers(), self.whole)


def kept_above(ledger: Ledger) -> bool:
    """Whether the call at hand is made within one that the ledger has already, as a metered model's is."""
    outer = journal_around()
    return isinstance(outer, CallJournal) and outer.ledger is ledger
