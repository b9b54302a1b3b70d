"""A spoke makes one metered call, reads the reply, has the answer scored and returns the outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_executor_for_config
from langgraph.constants import TAG_NOSTREAM

from anytime_graph.budget import left
from anytime_graph.checkpoints import Ledger, LedgerError
from anytime_graph.checkpoints.journal import RunJournal
from anytime_graph.interrupt import TimeIsUp
from anytime_graph.metering import clock
from anytime_graph.metering.call import acall, call
from anytime_graph.metering.quota import Quota
from anytime_graph.metering.request import Place, Reply, Request
from anytime_graph.nodes import agent
from anytime_graph.nodes.answering import candidate
from anytime_graph.nodes.critique import judgement_of
from anytime_graph.nodes.learn import lesson_of
from anytime_graph.planning.setup import Setup, Setups
from anytime_graph.run.announcements import Lives, announce, note
from anytime_graph.run.calls import ANSWERS, Assignment, Outcome, PlannedCall, RunInfo, concluded
from anytime_graph.run.context import invocation, root, stop_signal
from anytime_graph.run.state import State
from anytime_graph.run.upgrade import OUTCOME, migrated_assignment
from anytime_graph.scoring import Scorer, Verdict, as_score, averdict_of, failure, verdict_of

log = logging.getLogger(__name__)

SPOKES = (*ANSWERS, "critique", "learn")


class _Work(NamedTuple):
    """What the outcomes of one assignment have in common. ends: when the seconds of the run end, by our
    clock; None if they are not limited."""

    setup: Setup
    run: RunInfo
    ends: float | None
    journal: RunJournal | None


@dataclass(eq=False, repr=False)
class Spoke(Runnable[Assignment, State]):
    """A node for LangGraph, sync and async. It returns its outcomes in the `returned` channel."""

    setups: Setups
    lives: Lives
    ledger: Ledger | None
    quotas: Sequence[Quota]

    # --- sync

    def invoke(
        self, input: Assignment, config: RunnableConfig | None = None, **kwargs: Any
    ) -> State:
        assigned, config = migrated_assignment(input), config or {}
        if self.ledger is None:
            return self._run_call(assigned, config, None)
        hold = self.ledger.enter(assigned["run"]["thread"], root(config), invocation())
        try:
            journal = RunJournal(self.ledger, hold, self.ledger.shared(self.quotas))
            return self._run_call(assigned, config, journal)
        finally:
            self.ledger.leave(hold)

    def _run_call(
        self, assigned: Assignment, config: RunnableConfig, journal: RunJournal | None
    ) -> State:
        run, planned = assigned["run"], assigned["call"]
        with self.lives[run["run_id"]].active(planned["step"], run["spent"]) as before:
            if self._needless(assigned, config):
                return State(returned=[])
            assigned, inner = _after_siblings(assigned, before), _call_config(planned, config)
            ends = _ends(run, before)
            planned, setup = assigned["call"], self.setups[run["chosen"]]
            if "agent" in planned:
                planned, reply = agent.draft(setup, assigned, inner, stop_signal(), journal)
            else:
                written = journal.of(planned, run) if journal else None
                meter = setup.meters[planned["role"]]
                reply = _closing(call(meter, _request(assigned), inner, stop_signal(), written))
            choices, work = _by_choice(planned, reply), _Work(setup, run, ends, journal)
            if len(choices) == 1:
                return State(returned=[self._outcome(work, *choices[0])])
            with get_executor_for_config(config) as pool:  # choices are scored side by side
                outcomes = [pool.submit(self._outcome, work, *choice) for choice in choices]
                return State(returned=[outcome.result() for outcome in outcomes])

    def _outcome(self, work: _Work, planned: PlannedCall, reply: Reply) -> Outcome:
        outcome, question = _absorbed(work, planned, reply), work.run["question"]
        if (scorer := work.setup.scorer) and "candidate" in outcome:
            try:
                if not _scored_before(work, outcome):
                    answer, seconds = _subject(work, outcome), _seconds_to(work.ends)
                    _rate(outcome, verdict_of(scorer, question, answer, seconds))
            except Exception as error:
                _unrated(work, outcome, scorer, error)
        _keep(work, outcome)
        return self._returned(work, outcome)

    # --- async

    async def ainvoke(
        self, input: Assignment, config: RunnableConfig | None = None, **kwargs: Any
    ) -> State:
        assigned, config = migrated_assignment(input), config or {}
        if self.ledger is None:
            return await self._arun_call(assigned, config, None)
        ledger, broken = self.ledger, True
        hold = await ledger.aenter(assigned["run"]["thread"], root(config), invocation())
        try:
            journal = RunJournal(ledger, hold, ledger.shared(self.quotas))
            state = await self._arun_call(assigned, config, journal)
            broken = False
        finally:
            ledger.leave(hold, broken)
        return state

    async def _arun_call(
        self, assigned: Assignment, config: RunnableConfig, journal: RunJournal | None
    ) -> State:
        run, planned = assigned["run"], assigned["call"]
        with self.lives[run["run_id"]].active(planned["step"], run["spent"]) as before:
            if self._needless(assigned, config):
                return State(returned=[])
            assigned, inner = _after_siblings(assigned, before), _call_config(planned, config)
            ends = _ends(run, before)
            planned, setup = assigned["call"], await self.setups.get(run["chosen"])
            if "agent" in planned:
                planned, reply = await agent.adraft(setup, assigned, inner, stop_signal(), journal)
            else:
                written = journal.of(planned, run) if journal else None
                meter = setup.meters[planned["role"]]
                reply = await acall(meter, _request(assigned), inner, stop_signal(), written)
                reply = _closing(reply)
            choices, work = _by_choice(planned, reply), _Work(setup, run, ends, journal)
            outcomes = (self._aoutcome(work, *choice) for choice in choices)
            return State(returned=await asyncio.gather(*outcomes))

    async def _aoutcome(self, work: _Work, planned: PlannedCall, reply: Reply) -> Outcome:
        outcome, question = _absorbed(work, planned, reply), work.run["question"]
        if (scorer := work.setup.scorer) and "candidate" in outcome:
            try:
                recalled = reply.receipt["recalled"]
                if not (recalled and await asyncio.to_thread(_scored_before, work, outcome)):
                    answer, seconds = _subject(work, outcome), _seconds_to(work.ends)
                    _rate(outcome, await averdict_of(scorer, question, answer, seconds))
            except Exception as error:
                _unrated(work, outcome, scorer, error)
        if work.journal is not None:
            await asyncio.to_thread(_keep, work, outcome)
        return self._returned(work, outcome)

    # --- both

    def _needless(self, assigned: Assignment, config: RunnableConfig) -> bool:
        """Whether a sibling's answer reached the target before this call began, which can happen
        where `max_concurrency` makes calls wait. A call in flight goes on: if cut off, it would be
        charged in full."""
        run, kind = assigned["run"], assigned["call"]["move"]["kind"]
        waited = config.get("max_concurrency") and kind in ANSWERS
        reached = self.lives[run["run_id"]].reached
        return bool(waited and assigned["prompt"] is not None and reached == run["plan"])

    def _returned(self, work: _Work, outcome: Outcome) -> Outcome:
        """Announce the outcome. A call that was made just now ends here, so that the time of its
        scoring counts."""
        receipt, run, until = outcome["receipt"], work.run, work.setup.until
        if not receipt["recalled"]:
            receipt["ended_at"] = clock.now()
        live = self.lives[run["run_id"]]
        live.charge(receipt["spend"])
        note(outcome["call"]["move"]["kind"], outcome.get("candidate"), receipt["spend"])
        if "candidate" in outcome:
            target = until.target if until else None
            if (outcome["candidate"]["score"] or 0.0) >= (1.0 if target is None else target):
                live.reached = run["plan"]
            announce(live.offer(outcome["candidate"], run["limits"]))
        return outcome


def _closing(reply: Reply) -> Reply:
    """The reply, which ends the run if the ledger would refuse all other calls too."""
    if isinstance(reply.error, LedgerError) and reply.error.lasting:
        return replace(reply, receipt={**reply.receipt, "closed": True})
    return reply


def _request(assigned: Assignment) -> Request:
    planned = assigned["call"]
    return Request(
        prompt=assigned["prompt"] or [],
        max_input=planned["max_input"],
        max_output=planned["max_output"],
        seconds=planned["slice"].get("seconds"),
        wait=assigned["wait"],
        n=planned["n"],
        prompt_copies=planned["prompt_copies"],
        place=Place(assigned["run"]["run_id"], planned["ordinal"]),
        kind=planned["move"]["kind"],
        step=assigned["run"]["plan"],
    )


def _after_siblings(assigned: Assignment, before: float) -> Assignment:
    """The assignment with `before` seconds, used by siblings that ran first, taken off its slice."""
    planned = assigned["call"]
    if "seconds" not in planned["slice"] or not before:
        return assigned
    rest = max(0.0, planned["slice"]["seconds"] - before)
    return {**assigned, "call": {**planned, "slice": {**planned["slice"], "seconds": rest}}}


def _ends(run: RunInfo, before: float) -> float | None:
    """When the seconds of the run end, by our clock; `before` of them were used by siblings."""
    seconds = left(run["limits"], run["spent"]).get("seconds")
    return None if seconds is None else clock.now() + seconds - before


def _seconds_to(ends: float | None) -> float | None:
    """Seconds until then."""
    return None if ends is None else ends - clock.now()


def _call_config(planned: PlannedCall, config: RunnableConfig) -> RunnableConfig:
    """The config that names the call in traces. Only answers stream their tokens;
    those of judgements, reviews and forced answers would confuse a reader."""
    kind = planned["move"]["kind"]
    inner = kind in ("critique", "learn") or concluded(planned["move"]) is not None
    tags = [*(config.get("tags") or []), kind, *([TAG_NOSTREAM] if inner else [])]
    metadata = {**(config.get("metadata") or {}), "ordinal": planned["ordinal"]}
    return {**config, "run_name": kind, "tags": tags, "metadata": metadata}


def _by_choice(planned: PlannedCall, reply: Reply) -> list[tuple[PlannedCall, Reply]]:
    """Each choice of a request, as if it were a call of its own. The first bears the cost of all."""
    if (n := planned["n"]) == 1:
        return [(planned, reply)]
    cap = planned["max_output"]
    part: PlannedCall = {**planned, "max_output": None if cap is None else cap // n}
    return [
        ({**part, "ordinal": planned["ordinal"] + i, "choice": i}, choice)
        for i, choice in enumerate((replace(reply, others=()), *reply.others))
    ]


def _absorbed(work: _Work, planned: PlannedCall, reply: Reply) -> Outcome:
    """The outcome of a call: what its reply means for this kind of move."""
    move, outcome = planned["move"], Outcome(call=planned, receipt=reply.receipt, form=len(OUTCOME))
    if move["kind"] == "critique":
        if (judgement := judgement_of(planned, move, reply)) is not None:
            outcome["preferred"], outcome["why"] = judgement
    elif move["kind"] == "learn":
        lesson = lesson_of(move, reply)
        if isinstance(lesson, str):
            outcome["why"] = lesson
        else:
            outcome["principles"] = lesson
    elif answer := candidate(planned, reply, work.setup.answers, work.run["spent"]):
        outcome["candidate"] = answer
    return outcome


def _subject(work: _Work, outcome: Outcome) -> Any:
    """What the scorer gets: the answer as text, or as an instance of the schema if it fits."""
    answer, schema = outcome["candidate"]["answer"], work.setup.answers.protocol.schema
    if schema is None or not outcome["candidate"]["complete"]:
        return answer
    return schema.model_validate_json(answer)


def _scored_before(work: _Work, outcome: Outcome) -> bool:
    """Whether the answer got its score before a crash. If so, the outcome gets that score again."""
    if work.journal is None or not outcome["receipt"]["recalled"]:
        return False
    score = work.journal.score(outcome["call"], work.run["run_id"])
    if score is None:
        return False
    _rate(outcome, score)
    return True


def _keep(work: _Work, outcome: Outcome) -> None:
    """Write the answer to the ledger."""
    if work.journal is None or "candidate" not in outcome:
        return
    call, run_id, fresh = outcome["call"], work.run["run_id"], not outcome["receipt"]["recalled"]
    try:
        work.journal.keep(call, run_id, outcome["candidate"], fresh)
    except LedgerError as error:
        outcome["receipt"]["errors"].append(str(error))


def _rate(outcome: Outcome, verdict: Verdict) -> None:
    score = as_score(verdict)
    outcome["candidate"] = {
        **outcome["candidate"],
        "score": score.value,
        "feedback": score.feedback,
        "right": score.right,
    }


def _unrated(work: _Work, outcome: Outcome, scorer: Scorer, error: Exception) -> None:
    """Note that the scorer failed. The candidate stays without a score; the run ends if none has one. One
    that was cut has used up the seconds of the run."""
    reason, ordinal = failure(scorer, error), outcome["call"]["ordinal"]
    receipt = outcome["receipt"]
    receipt["errors"].append(f"scorer on candidate {ordinal}: {reason}")
    if isinstance(error, TimeIsUp) and work.ends is not None:
        run = work.run
        started = work.ends - left(run["limits"], run["spent"])["seconds"]
        receipt.update({"started": started, "ended_at": clock.now()})
    log.debug("scorer failed", exc_info=error)
