"""What the processes of a batch know of each other: who works on which question, and what is held for it.

Each change of a batch has a number. A process takes a question only if it has seen the latest one, so
that two never take the same question, or the same money.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from anytime_graph.budget import Spend
from anytime_graph.checkpoints.columns import read_column
from anytime_graph.checkpoints.leases import Leases
from anytime_graph.checkpoints.schema import LedgerError
from anytime_graph.checkpoints.store import Execute, Store


class Taken(NamedTuple):
    """A question that a process works on. before: what it had cost. held: what this may cost more."""

    before: Spend
    held: Spend


class SharedBatch:
    """A batch, as one process shares it. elsewhere: what others work on, by thread."""

    def __init__(self, store: Store, leases: Leases, name: str) -> None:
        self._store, self._leases = store, leases
        self._lock = threading.Lock()  # from before a question is taken until that is known here
        self._left = False
        self._own: set[str] = set()
        self.elsewhere: dict[str, Taken] = {}
        leases.live()
        with store.transaction() as execute:
            (row,) = execute(
                "INSERT INTO batches (name, change) VALUES (:name, 0) "
                "ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id, change",
                {"name": name},
            )
        self._id, self._seen = row["id"], row["change"]

    def news(self) -> list[str]:
        """The threads that another process has taken or left, or died over, since this was last asked.
        It holds none of those that are not `elsewhere`."""
        with self._store.reading() as execute:
            # One statement, so that no change falls between the rows and the latest number.
            rows = execute(
                "SELECT b.change AS latest, s.thread, s.change, s.holder, s.taken FROM batches b "
                "LEFT JOIN batch_steps s ON s.batch_id = b.id AND "
                "(s.change > :seen OR s.holder IS NOT NULL) WHERE b.id = :batch",
                {"batch": self._id, "seen": self._seen},
            )
            others = [r for r in rows if r["thread"] is not None and r["thread"] not in self._own]
            elsewhere = self._alive(execute, others)
        told = []
        for row in others:
            thread = row["thread"]
            if row["change"] > self._seen or (thread in self.elsewhere) != (thread in elsewhere):
                told.append(thread)
        self.elsewhere = elsewhere
        self._seen = rows[0]["latest"]
        return told

    def _alive(self, execute: Execute, rows: Sequence[Mapping[str, Any]]) -> dict[str, Taken]:
        """What processes that may live work on."""
        holders = {row["holder"] for row in rows if row["holder"] is not None}
        alive = {holder for holder in holders if self._leases.lives(holder, execute)}
        return {
            row["thread"]: Taken(*read_column(self._store.where, "taken", row["taken"]))
            for row in rows
            if row["holder"] in alive
            or (row["holder"] is not None and self._leases.lives(row["thread"], execute))
        }

    def take(self, thread: str, taken: Taken) -> bool:
        """Begin to work on a question. False if there are news."""
        with self._lock:
            if self._left:
                return False
            with self._store.transaction(durable=False) as execute:
                if self._next(execute, "AND change = :seen") is None:
                    return False
                execute(
                    "INSERT INTO batch_steps (batch_id, thread, change, holder, taken) "
                    "VALUES (:batch, :thread, :change, :holder, :taken) ON CONFLICT (batch_id, thread) "
                    "DO UPDATE SET change = :change, holder = :holder, taken = :taken",
                    {
                        "batch": self._id,
                        "thread": thread,
                        "change": self._seen + 1,
                        "holder": self._leases.mine(),
                        "taken": json.dumps(taken),
                    },
                )
            self._seen += 1
            self._own.add(thread)
            return True

    def put_back(self, *threads: str) -> None:
        """The work on these questions is over, and what it cost is in the ledger."""
        with self._lock, self._store.transaction(durable=False) as execute:
            change = self._next(execute)
            for thread in threads:
                execute(
                    "UPDATE batch_steps SET holder = NULL, taken = NULL, change = :change WHERE "
                    "batch_id = :batch AND thread = :thread AND holder = :holder",
                    {
                        "batch": self._id,
                        "thread": thread,
                        "change": change,
                        "holder": self._leases.mine(),
                    },
                )
        self._own.difference_update(threads)
        if change == self._seen + 1:
            self._seen = change

    def quit(self) -> None:
        """Put all back, and take nothing more."""
        with self._lock:
            self._left = True
        if self._own:
            with suppress(LedgerError):
                self.put_back(*self._own)

    def _next(self, execute: Execute, only: str = "") -> int | None:
        """Within a transaction: the number of the next change. It waits until others have written theirs.
        only: SQL for what must be so, else it is None."""
        rows = execute(
            f"UPDATE batches SET change = change + 1 WHERE id = :batch {only} RETURNING change",
            {"batch": self._id, "seen": self._seen},
        )
        return rows[0]["change"] if rows else None
