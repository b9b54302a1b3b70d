"""The ledger records calls, answers and pairs outside the graph's state, and each call before it is made.

A call's place is its run and its ordinal there. Its reservation is durable before the request is sent,
and no place ever gets a second request. What the graph's state lost in a crash is read from here, so
the ledger, not the state, is the authority on what was spent.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

from cachetools import LRUCache

from anytime_graph.budget import Spend, nothing
from anytime_graph.checkpoints.batches import SharedBatch
from anytime_graph.checkpoints.history import History
from anytime_graph.checkpoints.leases import LEASE, Hold, Leases, ThreadBusy
from anytime_graph.checkpoints.likeness import keys as keys_of
from anytime_graph.checkpoints.quotas import Key, Payers, Quotas, SharedQuotas
from anytime_graph.checkpoints.records import entry_of, plan_row, reply_row
from anytime_graph.checkpoints.schema import KEYS, LEASE_NAME, SPEND, LedgerError
from anytime_graph.checkpoints.store import Execute, Store, indexable, plain, storable
from anytime_graph.metering import clock
from anytime_graph.metering.quota import Quota
from anytime_graph.metering.request import Entry, Place, Reply, Request
from anytime_graph.run.calls import PlannedCall, RunCall
from anytime_graph.run.context import Invocation, told
from anytime_graph.run.endings import MEANINGS
from anytime_graph.run.pairs import Candidate, Pair
from anytime_graph.run.state import Point, State
from anytime_graph.run.upgrade import planned_call
from anytime_graph.scoring import Score

log = logging.getLogger(__name__)

_BEAT = 0.5
"""Seconds between writes of what has streamed in."""
_ROOTS = 4_096
"""Most threads whose latest node, or whose instances in one invocation, are remembered."""
_RECENT = 60.0
"""Seconds for which a thread counts as one that runs here, after its last node."""
_OF_RUNS = ("labels", "memory", "curve", "pairs", "answers", "calls")


class Ledger(History):
    """Calls, answers, pairs and curves over a store.

    record: "all" keeps prompts, replies, questions and answers; "usage" keeps numbers only, so
    that a crash loses each reply that was paid for but had not reached a checkpoint.
    failure: the error of the store, until the next node works. failures: how many there were.
    """

    def __init__(self, store: Store, record: Literal["all", "usage"] = "all") -> None:
        super().__init__(store)
        self._lock = threading.Lock()  # never held while the database is asked
        self.record = record
        self.leases = Leases(store)
        self.quotas = Quotas(store, self.leases)
        self.failure: str | None = None
        self.failures, self.last_failure = 0, ""
        self._streaming: dict[Place, Callable[[], str]] = {}
        self._seen: LRUCache[str, float] = LRUCache(_ROOTS)
        self._instances: LRUCache[tuple[Hashable, str], list[str]] = LRUCache(_ROOTS)
        self._closed = threading.Event()
        self._beating: threading.Thread | None = None
        self._paying = False

    def close(self) -> None:
        self._closed.set()
        if self._beating is not None:
            self._beating.join()
        with suppress(LedgerError):
            self.leases.close()
        self.store.close()

    def give_up(self, root: str, error: LedgerError) -> None:
        """Handle a checkpoint that could not be written. If the thread runs here, or did a moment ago,
        nothing more is spent, so that its run ends with what it has. Otherwise raises the error."""
        with self._lock:
            seen = self._seen.get(root, -math.inf)
        if time.monotonic() - seen > _RECENT:
            raise error
        log.warning("%s", error)
        self.failure = str(error)

    def writable(self, root: str) -> None:
        """Check that a checkpoint may be written. Raises LedgerError if the store has failed a run,
        ThreadBusy if another invocation took over the thread because its run here seemed dead."""
        if root not in self._seen:
            return
        if self.failure is not None:
            raise LedgerError(self.failure)
        if self.leases.lost(root):
            raise ThreadBusy(f"thread {root!r} was taken over by another invocation")

    # --- both sides

    def instance(self, name: str, here: Invocation) -> int:
        """Which one this is, from 1 on, of those that a parent graph has asked the same in its invocation."""
        with self._lock:
            instances = self._instances.setdefault((here[0], name), [])
            if here[1] not in instances:
                instances.append(here[1])
            return instances.index(here[1]) + 1

    def enter(self, thread: str, root: str | None, life: Hashable) -> Hold:
        """A node begins to work on the thread; see Leases.enter. root: LangGraph's id of the thread."""
        storable("thread_id", thread)
        hold = self.leases.enter(thread, life)
        if hold.at_work == 1:
            self.failure = None
        hold.root = root
        with self._lock:
            if root is not None:
                self._seen[root] = math.inf
        self._begin_beating()
        return hold

    async def aenter(self, thread: str, root: str | None, life: Hashable) -> Hold:
        """`enter` beside the event loop. If cancelled meanwhile, the hold is given back as soon as it is
        there, also after the event loop."""
        entered: Future[Hold] = Future()

        def work() -> None:
            try:
                hold = self.enter(thread, root, life)
            except BaseException as error:
                with suppress(InvalidStateError):
                    entered.set_exception(error)
                return
            try:
                entered.set_result(hold)
            except InvalidStateError:
                self.leave(hold, broken=True)

        run = contextvars.copy_context().run
        asyncio.get_running_loop().run_in_executor(None, run, work)
        try:
            return await asyncio.wrap_future(entered)
        except asyncio.CancelledError:
            if not entered.cancel() and entered.exception() is None:
                self.leave(entered.result(), broken=True)
            raise

    def paying(self, quotas: Sequence[Quota], key: Key) -> Payers | None:
        """The accounts that pay for calls of this process; see Quotas.payers."""
        payers = self.quotas.payers(quotas, key)
        if payers is not None and not self._paying:
            self.quotas.begin()
            self._begin_beating()
            self._paying = True
        return payers

    def share(self, batch: str) -> SharedBatch:
        """Join the processes that work on a batch. Raises ValueError for a name that no database can hold."""
        storable("name", batch)
        shared = SharedBatch(self.store, self.leases, batch)
        self._begin_beating()
        return shared

    def keys(self, quotas: Sequence[Quota], key: Key) -> dict[str, str]:
        """The keys that a payer tells: for bills, and for these and other quotas. Raises ValueError for a value that
        is too long."""
        names = sorted({*KEYS, *self.quotas.keys(quotas)})
        told = {name: value for name in names if (value := key(name)) is not None}
        for name, value in told.items():
            indexable(name, value)
        return told

    def shared(self, quotas: Sequence[Quota]) -> SharedQuotas:
        """These quotas and those in the database, for whoever pays here."""
        here = contextvars.copy_context()
        return SharedQuotas(self.paying, quotas, lambda name: here.copy().run(told, name))

    def deliver(self, take: Callable[[dict[str, Any]], object], most: int = 1_000) -> int:
        """Hand each settled call over to a billing of your own: the row of the view `bills`, oldest
        first. Returns how many were handed over.

        A call counts as handed over once `take` has returned, and never comes again. If `take` raises,
        or the process dies within it, the same call comes again, with the same `call_id`; so book it
        by that. One process delivers at a time; raises ThreadBusy in another.
        """
        hold = self.leases.enter("bills are delivered", object())
        self._begin_beating()
        try:
            rows = self._rows(
                "SELECT b.* FROM calls c JOIN bills b ON b.call_id = c.id WHERE c.delivered IS NULL "
                "AND c.state <> 'reserved' ORDER BY c.id LIMIT :most",
                most=most,
            )
            for row in rows:
                taken: object = take(row)
                if inspect.isawaitable(taken):
                    if inspect.iscoroutine(taken):
                        taken.close()
                    raise ValueError(
                        f"take={take!r}: a sync function is needed; nothing was handed over"
                    )
                with self.store.transaction() as execute:
                    self.leases.renew(hold, execute)
                    execute(
                        "UPDATE calls SET delivered = :now WHERE id = :call",
                        {"now": time.time(), "call": row["call_id"]},
                    )
        finally:
            self.release(hold)
        return len(rows)

    def _begin_beating(self) -> None:
        with self._lock:
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, daemon=True, name="ledger")
                self._beating.start()

    def leave(self, hold: Hold, broken: bool = False) -> None:
        """The node has ended. broken: it was cancelled, and its invocation with it."""
        self.leases.leave(hold, broken)
        if hold.root is not None:
            with self._lock:
                self._seen[hold.root] = time.monotonic()

    def end(self, belongs: Callable[[Hashable], bool]) -> None:
        """Release the threads of an invocation that is over or paused."""
        with suppress(LedgerError):
            self.leases.end(belongs)

    def release(self, hold: Hold) -> None:
        """Release the thread of an invocation that ends in an error."""
        self.leases.forget(hold)
        with suppress(LedgerError), self.store.transaction() as execute:
            self.leases.drop(hold, execute)

    # --- the hub's side

    def find(self, thread: str, asked: str, user: str | None = None) -> int | None:
        """The run of a question on a thread, if it was begun before. Its branches do not count, nor
        does another user's run, if a user is named."""
        with self.store.reading() as execute:
            rows = execute(
                "SELECT id FROM runs WHERE thread = :thread AND asked = :asked AND "
                "parent_id IS NULL AND NOT EXISTS (SELECT 1 FROM labels WHERE run_id = runs.id AND "
                "name = 'user' AND value <> :user) ORDER BY started DESC, id DESC LIMIT 1",
                {"thread": thread, "asked": asked, "user": user and plain(user)},
            )
        return rows[0]["id"] if rows else None

    def open_run(self, thread: str, asked: str) -> bool:
        """Whether the run of a question on a thread was begun and has not ended."""
        with self.store.reading() as execute:
            rows = execute(
                "SELECT id FROM runs WHERE thread = :thread AND asked = :asked AND "
                "stop_reason IS NULL",
                {"thread": thread, "asked": asked},
            )
        return bool(rows)

    def unknown(self, run_id: int, ordinal: int) -> list[PlannedCall]:
        """The calls of the first step at or after `ordinal`, which a state that ends there does not
        have."""
        rows = self._rows(
            "SELECT task FROM calls WHERE run_id = :run AND ordinal >= :ordinal AND step = "
            "(SELECT min(step) FROM calls WHERE run_id = :run AND ordinal >= :ordinal) "
            "ORDER BY ordinal",
            run=run_id,
            ordinal=ordinal,
        )
        first: dict[int, PlannedCall] = {}
        for call in map(planned_call, rows):
            # The calls of an agent's draft are one draft.
            ordinal = call["agent_call"]["draft"] if "agent_call" in call else call["ordinal"]
            first.setdefault(ordinal, {**call, "ordinal": ordinal})
        return list(first.values())

    def within(self, run_id: int, first: int, places: int) -> list[PlannedCall]:
        """The calls at these places of the run, by place: those of an agent's draft."""
        rows = self._rows(
            "SELECT task FROM calls WHERE run_id = :run AND ordinal >= :first AND "
            "ordinal < :end ORDER BY ordinal",
            run=run_id,
            first=first,
            end=first + places,
        )
        return [planned_call(row) for row in rows]

    def save(
        self,
        hold: Hold,
        run: Mapping[str, Any],
        before: State,
        now: State,
        plan: str,
        stop: str | None,
    ) -> None:
        """Write the run as the hub leaves it. From then on, calls of an earlier plan cannot reserve.
        stop: why the run ends, if it does; then the thread is released."""
        keeps, run_id = self.record == "all", now["run_id"]
        principles = [plain(text) for text in now["principles"]]
        with self.write(durable=False) as execute:
            self.leases.renew(hold, execute)
            begun = execute("SELECT id FROM runs WHERE id = :run", {"run": run_id})
            (kept,) = execute(
                "INSERT INTO runs (id, thread, asked, question, conversation, model, strategy, "
                "decides, options, limits, inherited, plan, parent_id, stop_reason, started, "
                "changed, namespace, principles) VALUES (:id, :thread, :asked, :question, "
                ":conversation, :model, :strategy, :decides, :options, :limits, :inherited, :plan, "
                ":parent, :stop, :now, :now, :namespace, :principles) ON CONFLICT (id) DO UPDATE "
                "SET limits = :limits, plan = :plan, stop_reason = :stop, strategy = :strategy, "
                "model = :model, changed = :now, principles = :principles, namespace = "
                "CASE runs.namespace WHEN '' THEN :namespace ELSE runs.namespace END "
                "RETURNING namespace",
                {
                    "id": run_id,
                    "thread": now["thread"],
                    "asked": run["asked"],
                    "question": plain(run["question"]) if keeps else None,
                    "conversation": json.dumps(run["conversation"]) if keeps else None,
                    "model": run["model"],
                    "strategy": run["strategy"],
                    "decides": run["decides"],
                    "options": json.dumps(run["options"]) if keeps and run["options"] else None,
                    "limits": json.dumps(now["limits"]),
                    "inherited": json.dumps(now["spent"] if now.get("parent_run") else nothing()),
                    "plan": plan,
                    "parent": now.get("parent_run"),
                    "stop": stop and self.reason(stop),
                    "now": time.time(),
                    "namespace": run.get("namespace", ""),
                    "principles": json.dumps(principles) if keeps and principles else None,
                },
            )
            if not begun:
                self.label(execute, run_id, run.get("keys", {}))
                if now.get("parent_run"):
                    self._inherit(execute, now)
            if (best := now["best"]) is not None:
                execute(
                    "UPDATE runs SET best_id = (SELECT id FROM answers WHERE run_id = :run AND "
                    "ordinal = :best) WHERE id = :run",
                    {"run": run_id, "best": best["id"]},
                )
            written = before if begun and before.get("run_id") == run_id else State()
            for point in now["curve"]:
                if point not in written.get("curve", []):
                    self._point(execute, run_id, point)
            for pair in now["pairs"]:
                if pair not in written.get("pairs", []):
                    self._pair(execute, run_id, pair)
            if kept["namespace"] and now["pairs"]:
                self._index(execute, run_id, kept["namespace"], run["question"])
            if stop is not None:
                self.leases.drop(hold, execute)
        if stop is not None:
            self.leases.forget(hold)

    def label(self, execute: Execute, run_id: int, keys: Mapping[str, str]) -> None:
        """Within a write: tell whose a run is."""
        for name, value in keys.items():
            execute(
                "INSERT INTO labels (run_id, name, value) VALUES (:run, :name, :value)",
                {"run": run_id, "name": name, "value": plain(value)},
            )

    def reason(self, stop: str) -> str:
        """Why a run ended, as it is kept: where texts are not, by our own word without its cause."""
        if self.record == "all":
            return plain(stop)
        word = stop.partition(":")[0]
        return word if word in MEANINGS else "other"

    def remember(self, run_id: int, namespace: str, question: str) -> None:
        """Let later questions of the namespace recall the run's pairs, unless the run is in another
        namespace."""
        with self.write(durable=False) as execute:
            updated = execute(
                "UPDATE runs SET namespace = :namespace WHERE id = :run AND namespace IN "
                "('', :namespace) AND EXISTS (SELECT 1 FROM pairs WHERE run_id = :run) RETURNING id",
                {"namespace": namespace, "run": run_id},
            )
            if updated:
                self._index(execute, run_id, namespace, question)

    def _index(self, execute: Execute, run_id: int, namespace: str, question: str) -> None:
        if self.record == "all":
            execute(
                "INSERT INTO memory (run_id, terms) VALUES (:run, :terms) "
                "ON CONFLICT (run_id) DO NOTHING",
                {"run": run_id, "terms": " ".join(keys_of(namespace, question))},
            )

    def _inherit(self, execute: Execute, now: State) -> None:
        """Copy to a fork the answers that its state holds. They keep the calls that they came from."""
        held = {c["id"] for c in [*now["candidates"], *([now["best"]] if now["best"] else [])]}
        for ordinal in sorted(held):
            execute(
                "INSERT INTO answers (run_id, call_id, ordinal, node, answer, score, feedback, "
                "complete, parents, created) SELECT :run, call_id, ordinal, node, answer, score, "
                "feedback, complete, parents, created FROM answers WHERE run_id = :parent AND "
                "ordinal = :ordinal ON CONFLICT (run_id, ordinal) DO NOTHING",
                {"run": now["run_id"], "parent": now["parent_run"], "ordinal": ordinal},
            )

    def _point(self, execute: Execute, run_id: int, point: Point) -> None:
        spent = point["spent"]
        execute(
            "INSERT INTO curve (run_id, answer_id, score, tokens, output_tokens, usd, calls, "
            "seconds) SELECT :run, id, CAST(:score AS double precision), :tokens, :output_tokens, :usd, :calls, :seconds "
            "FROM answers WHERE run_id = :run AND ordinal = :ordinal "
            "ON CONFLICT (run_id, answer_id) DO NOTHING",
            {"run": run_id, "score": point["score"], "ordinal": point["candidate"], **spent},
        )

    def _pair(self, execute: Execute, run_id: int, pair: Pair) -> None:
        texts = {name: plain(pair[name]) for name in ("why", "better", "worse")}
        keeps = self.record == "all"
        execute(
            "INSERT INTO pairs (run_id, chosen_id, rejected_id, why, why_by, better, worse, "
            "decided_by, gap, created) SELECT :run, c.id, r.id, :why, :why_by, :better, :worse, "
            ":by, :gap, :now FROM answers c, answers r WHERE c.run_id = :run AND "
            "c.ordinal = :chosen AND r.run_id = :run AND r.ordinal = :rejected "
            "ON CONFLICT (run_id, chosen_id, rejected_id) DO UPDATE SET why = excluded.why, "
            "why_by = excluded.why_by, better = excluded.better, worse = excluded.worse",
            {
                **{name: (text or None) if keeps else None for name, text in texts.items()},
                "run": run_id,
                "chosen": pair["chosen_id"],
                "rejected": pair["rejected_id"],
                "why_by": pair["why_by"],
                "by": pair["by"],
                "gap": pair["gap"],
                "now": time.time(),
            },
        )

    # --- the spokes' side

    def recall(self, place: Place) -> Entry | None:
        """The call at the place, if there is one."""
        with self._noticed():
            rows = self._rows(
                "SELECT * FROM calls WHERE run_id = :run AND ordinal = :ordinal",
                run=place.run_id,
                ordinal=place.ordinal,
            )
        return entry_of(rows[0]) if rows else None

    def score(self, run_id: int, ordinal: int) -> Score | None:
        """The score of the answer there, if it has one."""
        with self.store.reading() as execute:
            rows = execute(
                "SELECT score, feedback FROM answers WHERE run_id = :run AND ordinal = :ordinal "
                "AND score IS NOT NULL",
                {"run": run_id, "ordinal": ordinal},
            )
        return Score(rows[0]["score"], rows[0]["feedback"]) if rows else None

    def reserve(
        self,
        hold: Hold,
        call: PlannedCall | RunCall,
        plan: str,
        request: Request,
        amounts: Spend,
        model: str,
        so_far: Callable[[], str],
        payers: Payers | None = None,
    ) -> bool:
        """Write the reservation durably, before the request is sent. Returns False if the run has
        another plan by now; then the call must not be made. so_far: returns the text that has
        arrived. Raises Withheld if quotas do not pay for it."""
        prompt = [{"role": m.type, "content": m.content} for m in request.prompt]
        digest = json.dumps([model, request.max_output, prompt], default=str)
        place = request.place
        with self.write() as execute:
            self.leases.renew(hold, execute)
            inserted = execute(
                "INSERT INTO calls (run_id, ordinal, step, kind, state, request_hash, request, "
                "reserved_input, reserved_output, tokens, input_tokens, output_tokens, "
                "reasoning_tokens, cached_tokens, usd, seconds, tool_calls, errors, started, changed, task, "
                "model) "
                "SELECT :run, :ordinal, :step, :kind, 'reserved', :hash, :request, :bound, "
                "CAST(:room AS bigint), "
                ":tokens, :input_tokens, :output_tokens, 0, 0, :usd, 0, :tool_calls, '[]', :now, :now, :task, "
                ":model "
                "FROM runs WHERE id = :run AND plan = :plan "
                "ON CONFLICT (run_id, ordinal) DO NOTHING RETURNING id",
                {
                    **amounts,
                    "run": place.run_id,
                    "ordinal": place.ordinal,
                    "step": call["step"],
                    "kind": call["move"]["kind"],
                    "hash": hashlib.sha256(digest.encode(errors="replace")).hexdigest(),
                    "request": json.dumps(prompt, default=str) if self.record == "all" else None,
                    "bound": request.max_input,
                    "room": request.max_output,
                    "plan": plan,
                    "now": clock.now(),
                    "task": plan_row(call),
                    "model": model,
                },
            )
            if inserted and payers is not None:
                if call["move"]["kind"] == "tool_call":  # it gives nothing back
                    payers.book(execute, amounts)
                else:
                    payers.hold(execute, _call_at(place), request, amounts)
        if inserted:
            self._streaming[place] = so_far
        return bool(inserted)

    def settle(
        self, place: Place, reply: Reply, payers: Payers | None = None, whole: bool = False
    ) -> None:
        """Write the call's reply and cost. A call that cost nothing is deleted. whole: see reply_row."""
        self._streaming.pop(place, None)
        where = {"run": place.run_id, "ordinal": place.ordinal}
        keeps, receipt, spend = self.record == "all", reply.receipt, reply.receipt["spend"]
        if not (spend["calls"] or spend["tool_calls"] or spend["usd"]):
            with self.write() as execute:
                execute(
                    "DELETE FROM calls WHERE run_id = :run AND ordinal = :ordinal AND "
                    "state = 'reserved'",
                    where,
                )
                if payers is not None:
                    payers.settle(execute, _call_at(place), spend)
            return
        kept = reply if keeps else replace(reply, others=())
        columns = ", ".join(f"{name} = :{name}" for name in SPEND)
        with self.write() as execute:
            execute(
                f"UPDATE calls SET state = :state, text = :text, ended = :ended, errors = :errors, "
                f"reply = :reply, changed = :now, {columns} "
                "WHERE run_id = :run AND ordinal = :ordinal AND state = 'reserved'",
                {
                    **where,
                    "state": "abandoned" if receipt["lost"] else "settled",
                    "text": plain(reply.text) if keeps else None,
                    "ended": receipt["ended"],
                    "errors": json.dumps(receipt["errors"]),
                    "reply": reply_row(kept, whole and keeps),
                    "now": clock.now(),
                    **spend,
                },
            )
            if payers is not None:
                payers.settle(execute, _call_at(place), spend)

    def keep(self, hold: Hold, call: Place, candidate: Candidate, fresh: bool) -> None:
        """Append an answer. With the highest score so far it becomes the best at once. call: the place
        of its call. fresh: the call was made just now, and its time includes the scoring."""
        keeps = self.record == "all"
        place = {"run": call.run_id, "ordinal": candidate["id"]}
        with self.write(durable=False) as execute:
            self.leases.renew(hold, execute)
            execute(
                "INSERT INTO answers (run_id, call_id, ordinal, node, answer, score, feedback, "
                "complete, parents, created) SELECT :run, id, :ordinal, :node, :answer, "
                "CAST(:score AS double precision), :feedback, :complete, :parents, :now FROM calls "
                "WHERE run_id = :run AND ordinal = :call ON CONFLICT (run_id, ordinal) "
                "DO UPDATE SET answer = :answer, score = :score, feedback = :feedback",
                {
                    **place,
                    "call": call.ordinal,
                    "node": candidate["node"],
                    "answer": plain(candidate["answer"]) if keeps else None,
                    "score": candidate["score"],
                    "feedback": plain(candidate["feedback"] or "") or None if keeps else None,
                    "complete": int(candidate["complete"]),
                    "parents": json.dumps(candidate["parents"]),
                    "now": time.time(),
                },
            )
            execute(
                "UPDATE runs SET best_id = (SELECT id FROM answers WHERE run_id = :run AND "
                "ordinal = :ordinal) WHERE id = :run AND (best_id IS NULL OR "
                "CAST(:score AS double precision) > "
                "coalesce((SELECT score FROM answers WHERE id = runs.best_id), -1))",
                {**place, "score": candidate["score"]},
            )
            if fresh:
                execute(
                    "UPDATE calls SET changed = :now WHERE run_id = :run AND ordinal = :call",
                    {"run": call.run_id, "call": call.ordinal, "now": clock.now()},
                )

    # --- while calls stream

    def _beat(self) -> None:
        """Renew the leases of running runs, drop those of runs that are gone, and write what has
        streamed in so far."""
        renewed = 0.0
        while not self._closed.wait(_BEAT):
            try:
                if time.monotonic() - renewed > LEASE / 3:
                    self.leases.renew_all()
                    renewed = time.monotonic()
                self.leases.free()
                self._flush()
            except LedgerError as error:
                log.warning("%s", error)

    def _flush(self) -> None:
        if not (streaming := list(self._streaming.items())):
            return
        with self.write(durable=False) as execute:
            for (run_id, ordinal), so_far in streaming:
                text = plain(so_far()) or None if self.record == "all" else None
                execute(
                    "UPDATE calls SET text = :text, changed = :now WHERE run_id = :run AND "
                    "ordinal = :ordinal AND state = 'reserved'",
                    {"text": text, "now": clock.now(), "run": run_id, "ordinal": ordinal},
                )

    def forget(self, thread: str) -> bool:
        """Delete a thread's record. Its checkpoints are in the saver, and stay. Returns whether the
        thread had runs."""
        if not isinstance(thread, str):
            raise ValueError(f"thread={thread!r}: the name of a thread is needed")
        if plain(thread) != thread:
            return False  # no database can hold it
        of = "(SELECT id FROM runs WHERE thread = :thread)"
        with self.store.transaction() as execute:
            runs = execute(f"{of[1:-1]} LIMIT 1", {"thread": thread})
            for statement in (
                f"UPDATE runs SET best_id = NULL WHERE id IN {of}",
                f"UPDATE runs SET parent_id = NULL WHERE parent_id IN {of}",
                "UPDATE answers SET call_id = NULL WHERE call_id IN "
                f"(SELECT id FROM calls WHERE run_id IN {of})",
                *(f"DELETE FROM {t} WHERE run_id IN {of}" for t in _OF_RUNS),
                "DELETE FROM leases WHERE thread = :thread OR thread IN "
                f"(SELECT {LEASE_NAME} FROM runs r WHERE r.thread = :thread)",
                "DELETE FROM runs WHERE thread = :thread",
            ):
                execute(statement, {"thread": thread})
            if runs:
                self.store.purge(execute)
        return bool(runs)

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[Execute]:
        """A transaction. durable: for reservations and replies that were paid for; the rest can be
        derived from these, or is written with the next of them. Once a write has failed, the others
        fail at once; the next invocation tries the store again."""
        if self.failure is not None:
            raise LedgerError(self.failure)
        with self._noticed(), self.store.transaction(durable) as execute:
            yield execute

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        try:
            yield
        except LedgerError as error:
            self.failure = self.last_failure = str(error)
            self.failures += 1
            raise


def _call_at(place: Place) -> str:
    """The call at a place, as quotas name it."""
    return f"{place.run_id}/{place.ordinal}"
