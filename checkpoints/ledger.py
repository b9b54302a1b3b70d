"""The ledger: the record of calls, answers and pairs outside the graph's state, written ahead.

A call's place is its run and its ordinal there. Its reservation is durable before the request
leaves; at one place no second request is ever made. What the graph's state has lost in a crash is
read from here, so the ledger, not the state, is the authority on what was spent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from anytime_graph.budget import Spend, nothing, total
from anytime_graph.checkpoints.schema import SPEND, LedgerError
from anytime_graph.state import Candidate, Pair, Point, State, Task

log = logging.getLogger(__name__)

Execute = Callable[[str, Mapping[str, Any]], list[dict[str, Any]]]
LEASE = 15.0
"""Seconds for which a lease holds unless it is renewed."""
_BEAT = 0.5
"""Seconds between looks at what has streamed in."""
_ROOTS = 4_096
_PLANNED = ("ordinal", "step", "move", "swapped", "slice", "prompt_bound", "room", "shape")
_JSON = ("options", "limits", "inherited", "conversation", "errors", "parents", "request")


class Store(Protocol):
    """clock: SQL for the time in Unix seconds, by the database's own clock."""

    where: str
    clock: str

    def transaction(self) -> AbstractContextManager[Execute]: ...
    def reading(self) -> AbstractContextManager[Execute]: ...
    def turn(self) -> AbstractContextManager[Any]: ...
    def explained(self) -> AbstractContextManager[None]: ...
    def matching(self, table: str) -> str: ...
    def words(self, text: str) -> str: ...
    def close(self) -> None: ...


class ThreadBusy(RuntimeError):
    """Somebody else is running the thread. It ends with them, or some seconds after they die."""


@dataclass(frozen=True)
class Entry:
    """What stands at a place. reply: what was settled, None if the call was in flight when its
    process ended. text: what arrived. verdict: score and feedback, if it was scored."""

    reply: dict[str, Any] | None
    text: str
    started: float
    changed: float
    verdict: tuple[float, str | None] | None


@dataclass
class _Hold:
    life: object
    at_work: int = 0


class Ledger:
    """Calls, answers, pairs and curves over a store.

    record: "all" keeps prompts, replies, questions and answers; "usage" keeps numbers only, so
    that after a crash a reply that had not reached a checkpoint stays paid but is lost.
    """

    def __init__(self, store: Store, record: Literal["all", "usage"] = "all") -> None:
        if record not in ("all", "usage"):
            raise ValueError(f"record={record!r}: 'all' or 'usage'")
        self.store, self.record = store, record
        self.failure: str | None = None
        self._me = f"{_process()} {secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._holds: dict[str, _Hold] = {}
        self._roots: dict[str, None] = {}
        self._streaming: dict[tuple[int, int], Callable[[], str]] = {}
        self._flushed: dict[tuple[int, int], int] = {}
        self._closed = threading.Event()
        self._beating: threading.Thread | None = None
        _OPEN[self._me] = self

    def close(self) -> None:
        self._closed.set()
        if self._beating is not None:
            self._beating.join()
        with suppress(LedgerError), self._write() as execute:
            execute("DELETE FROM leases WHERE holder = :me", {"me": self._me})
        self.store.close()

    def give_up(self, config: Mapping[str, Any], error: LedgerError) -> None:
        """A checkpoint could not be written. For a thread that runs here nothing more is spent,
        so that its run ends with what it has; for any other this raises."""
        if config["configurable"]["thread_id"] not in self._roots:
            raise error
        log.warning("%s", error)
        self.failure = str(error)

    # --- leases: one invocation at a time runs a thread

    def enter(self, thread: str, root: str | None, life: object) -> None:
        """A node begins to work on the thread. root: LangGraph's id for it. life: the same object
        for all nodes of one invocation. Raises ThreadBusy if another invocation, here or
        elsewhere, is running it."""
        with self._lock:
            hold = self._holds.get(thread)
            if hold is None or hold.life is not life:
                if hold is not None and hold.at_work:
                    raise ThreadBusy(f"thread {thread!r} is already running in this process")
                if not any(hold.at_work for hold in self._holds.values()):
                    self.failure = None
                self._take(thread)
                if root is not None:
                    self._roots.pop(root, None)
                    self._roots[root] = None
                    if len(self._roots) > _ROOTS:
                        self._roots.pop(next(iter(self._roots)))
                self._holds[thread] = hold = _Hold(life)
            hold.at_work += 1
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, daemon=True, name="ledger")
                self._beating.start()

    def leave(self, thread: str) -> None:
        with self._lock:
            if (hold := self._holds.get(thread)) is not None:
                hold.at_work -= 1

    def release(self, thread: str) -> None:
        """The run has ended: others may have the thread at once."""
        with self._lock:
            self._holds.pop(thread, None)
        with suppress(LedgerError), self._write() as execute:
            execute(
                "DELETE FROM leases WHERE thread = :thread AND holder = :me",
                {"thread": thread, "me": self._me},
            )

    def at_work(self, thread: str) -> bool:
        with self._lock:
            hold = self._holds.get(thread)
            return hold is not None and hold.at_work > 0

    def _take(self, thread: str) -> None:
        with self._write() as execute:
            rows = execute(
                f"SELECT holder, expires, {self.store.clock} AS now FROM leases "
                "WHERE thread = :thread",
                {"thread": thread},
            )
            seen = rows[0] if rows else {"holder": None, "expires": None}
            free = not rows or seen["expires"] <= seen["now"]
            if not free and _alive(seen["holder"], thread, self._me):
                raise _busy(thread, seen["holder"])
            taken = execute(
                "INSERT INTO leases (thread, holder, expires) "
                f"VALUES (:thread, :me, {self.store.clock} + {LEASE}) ON CONFLICT (thread) DO UPDATE "
                f"SET holder = :me, expires = {self.store.clock} + {LEASE} "
                "WHERE leases.holder = :holder AND leases.expires = :expires RETURNING thread",
                {"thread": thread, "me": self._me, **{k: seen[k] for k in ("holder", "expires")}},
            )
            if not taken:
                raise _busy(thread, None)

    def _renew(self, execute: Execute, thread: str) -> None:
        """Within a write: it stands only if the lease is still ours."""
        mine = execute(
            f"UPDATE leases SET expires = {self.store.clock} + {LEASE} "
            "WHERE thread = :thread AND holder = :me RETURNING thread",
            {"thread": thread, "me": self._me},
        )
        if not mine:
            raise ThreadBusy(f"thread {thread!r} was taken over after its lease had expired")

    # --- the hub's side

    def find(self, thread: str, asked: str) -> int | None:
        """The run of a question on a thread, if it was begun before."""
        with self.store.reading() as execute:
            rows = execute(
                "SELECT id FROM runs WHERE thread = :thread AND asked = :asked "
                "ORDER BY started DESC, id DESC LIMIT 1",
                {"thread": thread, "asked": asked},
            )
        return rows[0]["id"] if rows else None

    def unknown(self, run_id: int, ordinal: int) -> list[dict[str, Any]]:
        """The calls of the first step at or after `ordinal`: what a state that stands there has
        not seen."""
        with self.store.reading() as execute:
            rows = execute(
                "SELECT task FROM calls WHERE run_id = :run AND ordinal >= :ordinal AND step = "
                "(SELECT min(step) FROM calls WHERE run_id = :run AND ordinal >= :ordinal) "
                "ORDER BY ordinal",
                {"run": run_id, "ordinal": ordinal},
            )
        return [json.loads(row["task"]) for row in rows]

    def save(
        self, run: Mapping[str, Any], before: State, now: State, plan: str, stop: str | None
    ) -> None:
        """The run as the hub leaves it. Tasks of an earlier plan can reserve nothing from here on.
        stop: why it ends; then the thread is released."""
        keeps, run_id = self.record == "all", now["run_id"]
        with self._write() as execute:
            self._renew(execute, now["thread"])
            begun = execute("SELECT id FROM runs WHERE id = :run", {"run": run_id})
            execute(
                "INSERT INTO runs (id, thread, asked, question, conversation, model, strategy, "
                "decides, options, limits, inherited, plan, parent_id, stop_reason, started, "
                "changed) VALUES (:id, :thread, :asked, :question, :conversation, :model, "
                ":strategy, :decides, :options, :limits, :inherited, :plan, :parent, :stop, :now, "
                ":now) ON CONFLICT (id) DO UPDATE SET limits = :limits, plan = :plan, "
                "stop_reason = :stop, strategy = :strategy, model = :model, changed = :now",
                {
                    "id": run_id,
                    "thread": now["thread"],
                    "asked": run["asked"],
                    "question": run["question"] if keeps else None,
                    "conversation": json.dumps(run["conversation"]) if keeps else None,
                    "model": run["model"],
                    "strategy": run["strategy"],
                    "decides": run["decides"],
                    "options": json.dumps(run["options"]) if run["options"] else None,
                    "limits": json.dumps(now["limits"]),
                    "inherited": json.dumps(now["spent"] if now.get("parent_run") else nothing()),
                    "plan": plan,
                    "parent": now.get("parent_run"),
                    "stop": stop,
                    "now": time.time(),
                },
            )
            if now.get("parent_run") and not begun:
                self._inherit(execute, now)
            if (best := now["best"]) is not None:
                execute(
                    "UPDATE runs SET best_id = (SELECT id FROM answers WHERE run_id = :run AND "
                    "ordinal = :best) WHERE id = :run",
                    {"run": run_id, "best": best["id"]},
                )
            known = before if begun and before.get("run_id") == run_id else State()
            for point in now["curve"]:
                if point not in known.get("curve", []):
                    self._point(execute, run_id, point)
            for pair in now["pairs"]:
                if pair not in known.get("pairs", []):
                    self._pair(execute, run_id, pair)
            if stop is not None:
                execute("DELETE FROM leases WHERE thread = :thread", {"thread": now["thread"]})
        if stop is not None:
            with self._lock:
                self._holds.pop(now["thread"], None)

    def _inherit(self, execute: Execute, now: State) -> None:
        """A fork has the answers that its state holds, and the calls that they came from."""
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
        execute(
            "INSERT INTO pairs (run_id, chosen_id, rejected_id, why, decided_by, gap, created) "
            "SELECT :run, c.id, r.id, :why, :by, :gap, :now FROM answers c, answers r "
            "WHERE c.run_id = :run AND c.ordinal = :chosen AND r.run_id = :run AND "
            "r.ordinal = :rejected ON CONFLICT (run_id, chosen_id, rejected_id) DO NOTHING",
            {
                "run": run_id,
                "chosen": pair["chosen_id"],
                "rejected": pair["rejected_id"],
                "why": pair["why"] if self.record == "all" else None,
                "by": pair["by"],
                "gap": pair["gap"],
                "now": time.time(),
            },
        )

    # --- the spokes' side

    def recall(self, task: Task) -> Entry | None:
        """What stands at the task's place."""
        with self.store.reading() as execute:
            rows = execute(
                "SELECT c.reply, c.text, c.started, c.changed, a.score, a.feedback FROM calls c "
                "LEFT JOIN answers a ON a.run_id = c.run_id AND a.ordinal = c.ordinal "
                "WHERE c.run_id = :run AND c.ordinal = :ordinal",
                {"run": task["run_id"], "ordinal": task["ordinal"]},
            )
        if not rows:
            return None
        row = rows[0]
        return Entry(
            reply=json.loads(row["reply"]) if row["reply"] else None,
            text=row["text"] or "",
            started=row["started"],
            changed=row["changed"],
            verdict=None if row["score"] is None else (row["score"], row["feedback"]),
        )

    def reserve(self, task: Task, spend: Spend, model: str, so_far: Callable[[], str]) -> bool:
        """Write the reservation, durably, before the request leaves. False if the run was planned
        anew meanwhile: then the call must not be made. so_far: the reply as far as it has come."""
        request = [{"role": m.type, "content": m.content} for m in task["prompt"]]
        asked = json.dumps([model, task["room"], request], default=str)
        place = {"run": task["run_id"], "ordinal": task["ordinal"]}
        with self._write() as execute:
            self._renew(execute, task["thread"])
            made = execute(
                "INSERT INTO calls (run_id, ordinal, step, kind, state, request_hash, request, "
                "reserved_input, reserved_output, tokens, input_tokens, output_tokens, "
                "reasoning_tokens, cached_tokens, usd, seconds, errors, started, changed, task) "
                "SELECT :run, :ordinal, :step, :kind, 'reserved', :hash, :request, :bound, "
                "CAST(:room AS bigint), "
                ":tokens, :input_tokens, :output_tokens, 0, 0, :usd, 0, '[]', :now, :now, :task "
                "FROM runs WHERE id = :run AND plan = :plan "
                "ON CONFLICT (run_id, ordinal) DO NOTHING RETURNING id",
                {
                    **place,
                    **spend,
                    "step": task["step"],
                    "kind": task["move"]["kind"],
                    "hash": hashlib.sha256(asked.encode(errors="replace")).hexdigest(),
                    "request": json.dumps(request, default=str) if self.record == "all" else None,
                    "bound": task["prompt_bound"],
                    "room": task["room"],
                    "plan": task["plan"],
                    "now": time.time(),
                    "task": json.dumps({key: task[key] for key in _PLANNED}),  # type: ignore[literal-required]
                },
            )
        if made and self.record == "all":
            self._streaming[task["run_id"], task["ordinal"]] = so_far
        return bool(made)

    def settle(self, task: Task, reply: Mapping[str, Any], abandoned: bool = False) -> None:
        """Write what the call brought and cost. A call that was not made has no place to settle."""
        self._streaming.pop((task["run_id"], task["ordinal"]), None)
        self._flushed.pop((task["run_id"], task["ordinal"]), None)
        place = {"run": task["run_id"], "ordinal": task["ordinal"]}
        keeps, spend = self.record == "all", reply["spend"]
        if not spend["calls"]:
            with self._write() as execute:
                execute(
                    "DELETE FROM calls WHERE run_id = :run AND ordinal = :ordinal AND "
                    "state = 'reserved'",
                    place,
                )
            return
        rest = {k: v for k, v in reply.items() if k != "text"}
        columns = ", ".join(f"{name} = :{name}" for name in SPEND)
        with self._write() as execute:
            execute(
                f"UPDATE calls SET state = :state, text = :text, ended = :ended, errors = :errors, "
                f"reply = :reply, changed = :now, {columns} "
                "WHERE run_id = :run AND ordinal = :ordinal AND state = 'reserved'",
                {
                    **place,
                    "state": "abandoned" if abandoned else "settled",
                    "text": reply["text"] if keeps else None,
                    "ended": reply["ended"],
                    "errors": json.dumps(reply["errors"]),
                    "reply": json.dumps(rest),
                    "now": time.time(),
                    **spend,
                },
            )

    def keep(self, task: Task, candidate: Candidate) -> None:
        """Append an answer; under a scorer it is the best at once if its score is the highest."""
        keeps = self.record == "all"
        place = {"run": task["run_id"], "ordinal": task["ordinal"]}
        with self._write() as execute:
            execute(
                "INSERT INTO answers (run_id, call_id, ordinal, node, answer, score, feedback, "
                "complete, parents, created) SELECT :run, id, :ordinal, :node, :answer, "
                "CAST(:score AS double precision), :feedback, :complete, :parents, :now FROM calls WHERE run_id = :run AND "
                "ordinal = :ordinal ON CONFLICT (run_id, ordinal) DO UPDATE SET score = :score, "
                "feedback = :feedback",
                {
                    **place,
                    "node": candidate["node"],
                    "answer": candidate["answer"] if keeps else None,
                    "score": candidate["score"],
                    "feedback": candidate["feedback"] if keeps else None,
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

    # --- while calls stream

    def _beat(self) -> None:
        """Keep what has streamed in, and the leases of runs at work."""
        renewed = 0.0
        while not self._closed.wait(_BEAT):
            try:
                self._flush()
                if time.monotonic() - renewed > LEASE / 3:
                    self._renew_all()
                    renewed = time.monotonic()
            except LedgerError as error:
                log.warning("%s", error)

    def _flush(self) -> None:
        for place, so_far in list(self._streaming.items()):
            text = so_far()
            if len(text) == self._flushed.get(place, 0):
                continue
            with self._write() as execute:
                execute(
                    "UPDATE calls SET text = :text, changed = :now WHERE run_id = :run AND "
                    "ordinal = :ordinal AND state = 'reserved'",
                    {"text": text, "now": time.time(), "run": place[0], "ordinal": place[1]},
                )
            self._flushed[place] = len(text)

    def _renew_all(self) -> None:
        with self._lock:
            threads = [thread for thread, hold in self._holds.items() if hold.at_work]
        for thread in threads:
            with suppress(ThreadBusy), self._write() as execute:
                self._renew(execute, thread)

    # --- reading: plain dicts, also while another process is running the thread

    def threads(self) -> list[dict[str, Any]]:
        """A summary of each thread's newest question, newest first."""
        rows = self._rows(
            "SELECT r.*, a.answer, a.score, (SELECT count(*) FROM runs n WHERE n.thread = r.thread) "
            "AS runs, (SELECT count(*) FROM leases l WHERE l.thread = r.thread AND l.expires > "
            f"{self.store.clock}) AS running FROM runs r LEFT JOIN answers a ON a.id = r.best_id "
            "WHERE r.id = (SELECT n.id FROM runs n WHERE n.thread = r.thread "
            "ORDER BY n.started DESC, n.id DESC LIMIT 1) ORDER BY r.changed DESC, r.id"
        )
        for row in rows:
            row["spent"] = self._spent(row)
            row["running"] = bool(row["running"])
        return rows

    def runs(self, thread: str) -> list[dict[str, Any]]:
        """The questions of a thread, oldest first, each with its `spent`."""
        rows = self._rows(
            "SELECT * FROM runs WHERE thread = :thread ORDER BY started, id", thread=thread
        )
        for row in rows:
            row["spent"] = self._spent(row)
        return rows

    def best(self, thread: str) -> dict[str, Any] | None:
        """The best answer to the newest question of a thread."""
        rows = self._rows(
            "SELECT a.* FROM runs r LEFT JOIN answers a ON a.id = r.best_id "
            "WHERE r.thread = :thread ORDER BY r.started DESC, r.id DESC LIMIT 1",
            thread=thread,
        )
        return rows[0] if rows and rows[0]["id"] is not None else None

    def curve(self, thread: str) -> list[dict[str, Any]]:
        """Best-so-far quality against spend, for the newest question of a thread."""
        return self._rows(
            "SELECT p.*, a.ordinal, a.answer FROM curve p JOIN answers a ON a.id = p.answer_id "
            "WHERE p.run_id = (SELECT id FROM runs WHERE thread = :thread "
            "ORDER BY started DESC, id DESC LIMIT 1) ORDER BY p.tokens, p.id",
            thread=thread,
        )

    def calls(self, run_id: int) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM calls WHERE run_id = :run ORDER BY ordinal", run=run_id)

    def answers(self, run_id: int) -> list[dict[str, Any]]:
        """Each with `tokens` and `usd`: what the run had spent when it stood."""
        return self._rows(
            "SELECT a.*, (SELECT CAST(sum(c.tokens) AS bigint) FROM calls c WHERE c.run_id = :run "
            "AND c.ordinal <= a.ordinal) AS tokens, (SELECT sum(c.usd) FROM calls c WHERE c.run_id = :run AND "
            "c.ordinal <= a.ordinal) AS usd FROM answers a WHERE a.run_id = :run ORDER BY a.ordinal",
            run=run_id,
        )

    def pairs(self, run_id: int) -> list[dict[str, Any]]:
        return self._rows(
            "SELECT p.*, c.answer AS chosen, r.answer AS rejected, c.ordinal AS chosen_ordinal, "
            "r.ordinal AS rejected_ordinal FROM pairs p JOIN answers c ON c.id = p.chosen_id "
            "JOIN answers r ON r.id = p.rejected_id WHERE p.run_id = :run ORDER BY p.id",
            run=run_id,
        )

    def search(self, words: str) -> list[dict[str, Any]]:
        """Answers in which, or in whose question, all the words occur; newest first."""
        if not words.strip():
            return []
        return self._rows(
            "SELECT runs.thread, runs.id AS run_id, runs.question, answers.answer, answers.score "
            "FROM answers JOIN runs ON runs.id = answers.run_id WHERE "
            f"{self.store.matching('answers')} OR {self.store.matching('runs')} "
            "ORDER BY answers.created DESC, answers.id DESC",
            words=self.store.words(words),
        )

    def forget(self, thread: str) -> bool:
        """Delete a thread's record; its checkpoints are the saver's to delete."""
        of = "(SELECT id FROM runs WHERE thread = :thread)"
        with self._write() as execute:
            found = execute(
                "SELECT id FROM runs WHERE thread = :thread LIMIT 1", {"thread": thread}
            )
            execute("UPDATE runs SET best_id = NULL WHERE thread = :thread", {"thread": thread})
            execute(
                f"UPDATE runs SET parent_id = NULL WHERE parent_id IN {of}",
                {"thread": thread},
            )
            execute(
                "UPDATE answers SET call_id = NULL WHERE call_id IN (SELECT id FROM calls "
                f"WHERE run_id IN {of})",
                {"thread": thread},
            )
            for table in ("curve", "pairs", "answers", "calls"):
                execute(f"DELETE FROM {table} WHERE run_id IN {of}", {"thread": thread})
            execute("DELETE FROM runs WHERE thread = :thread", {"thread": thread})
            execute("DELETE FROM leases WHERE thread = :thread", {"thread": thread})
        return bool(found)

    def _spent(self, run: Mapping[str, Any]) -> Spend:
        columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in SPEND)
        own = self._rows(
            f"SELECT {columns}, count(*) AS calls FROM calls WHERE run_id = :run",
            run=run["id"],
        )[0]
        numbers = nothing()
        for name in numbers:
            numbers[name] = type(numbers[name])(own[name])  # type: ignore[literal-required]
        return total([run["inherited"], numbers])

    def _rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        with self.store.reading() as execute:
            rows = execute(sql, parameters)
        return [
            {
                k: json.loads(v) if k in _JSON and v is not None else v
                for k, v in row.items()
                if k != "search"
            }
            for row in rows
        ]

    @contextmanager
    def _write(self) -> Iterator[Execute]:
        if self.failure is not None:
            raise LedgerError(self.failure)
        with self.store.transaction() as execute:
            yield execute


_OPEN: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()


def _busy(thread: str, holder: str | None) -> ThreadBusy:
    who = "another process" if holder is None else "process {} on {}".format(*holder.split()[:2])
    return ThreadBusy(
        f"thread {thread!r} is being run by {who}; wait until it has ended, or {LEASE:g} s after it "
        "has died"
    )


def _process() -> str:
    """This process, so that another on the same machine can tell whether it still lives."""
    pid = os.getpid()
    return f"{pid} {socket.gethostname() or '?'} {_machine()} {_started(pid) or '-'}"


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return f"{boot.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "-"


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _alive(holder: str, thread: str, me: str) -> bool:
    """Whether a lease's holder may still be at work."""
    pid, _, machine, started, _ = holder.split()
    if machine == "-" or machine != _machine():
        return True
    if int(pid) == os.getpid():
        ledger = _OPEN.get(holder)
        return holder != me and ledger is not None and ledger.at_work(thread)
    return _started(int(pid)) == started
