"""What workers buy for a benchmark, in PostgreSQL: each call is written there before it is made and
when it is answered, and copied from there into the file of the recording.

A cell is sent out under a grant, within which one worker may work once. It holds the cell's lock over
the connection that it writes its calls through: while the lock is held the worker may still spend, and
once it is not, no call that is not written down can leave. So the driver settles a grant under that
lock, whatever became of the worker, and knows all that was bought under it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from anytime_graph.benchmark.recording import POLL, Recorded, RecordedReply, Recording
from anytime_graph.benchmark.run import Unmeasured
from anytime_graph.budget import Prices, Spend
from anytime_graph.checkpoints import LedgerError
from anytime_graph.checkpoints.postgres import PostgresStore, alone
from anytime_graph.checkpoints.store import Store

_TABLES = (
    "CREATE TABLE IF NOT EXISTS benchmark_grants (id text PRIMARY KEY, benchmark text NOT NULL, "
    "cell text NOT NULL, begun boolean NOT NULL DEFAULT false)",
    "CREATE TABLE IF NOT EXISTS benchmark_calls (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY "
    "KEY, benchmark text NOT NULL, cell text NOT NULL, take text, row text NOT NULL, "
    "UNIQUE (benchmark, take))",
    "CREATE INDEX IF NOT EXISTS benchmark_calls_cell ON benchmark_calls (benchmark, cell)",
)
"""take: the key of a row that is one. cell: empty for what was copied here from the file."""
_LOCK = "(hashtextextended(CAST(%s AS text), 0))"
_OPTIONS = (
    "-c search_path=anytime -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 "
    "-c tcp_keepalives_count=4"
)
"""The server lets go of what a machine held that is gone, in half a minute."""


class Grants:
    """The driver's side: grants of one recording, and what was bought under them."""

    def __init__(self, url: str, store: PostgresStore, recording: Recording) -> None:
        self.url, self.store, self.recording = url, store, recording
        self.benchmark = recording.share()

    @classmethod
    @contextmanager
    def opened(cls, url: str, recording: Recording) -> Iterator[Grants]:
        """With all that earlier workers have bought. Waits for those that are still at work. Raises
        LedgerError, or ValueError for another database than before."""
        store = PostgresStore(url)
        try:
            with store.explained(), alone(url), store.transaction() as execute:
                for statement in _TABLES:
                    execute(statement, {})
            grants = cls(url, store, recording)
            grants._catch_up()
            yield grants
        finally:
            store.close()

    def give(self, cell: str) -> str:
        grant = uuid4().hex
        with self.store.transaction() as execute:
            execute(
                "INSERT INTO benchmark_grants (id, benchmark, cell) VALUES (:id, :benchmark, :cell)",
                {"id": grant, "benchmark": self.benchmark, "cell": cell},
            )
        return grant

    def settle(self, grant: str, cell: str) -> Spend:
        """End a grant, and take in what was bought under it; waits while a worker has it. Returns what
        that cost."""
        while True:
            with self.store.transaction() as execute:
                lock = _LOCK.replace("%s", ":cell")
                (lent,) = execute(f"SELECT pg_try_advisory_xact_lock{lock} AS mine", {"cell": cell})
                if lent["mine"]:
                    execute("DELETE FROM benchmark_grants WHERE id = :id", {"id": grant})
                    rows = execute(
                        "SELECT id, row FROM benchmark_calls WHERE benchmark = :benchmark AND "
                        "cell = :cell ORDER BY id",
                        {"benchmark": self.benchmark, "cell": cell},
                    )
                    break
            time.sleep(POLL)
        return self.recording.copy({row["id"]: json.loads(row["row"]) for row in rows})

    def _catch_up(self) -> None:
        ours = {"benchmark": self.benchmark}
        with self.store.reading() as execute:
            open_ = execute(
                "SELECT id, cell FROM benchmark_grants WHERE benchmark = :benchmark", ours
            )
        for grant in open_:
            self.settle(grant["id"], grant["cell"])
        with self.store.transaction() as execute:
            rows = execute(
                "SELECT id, cell, take, row FROM benchmark_calls WHERE benchmark = :benchmark "
                "ORDER BY id",
                ours,
            )
            if not self.recording.rows <= {row["id"] for row in rows}:
                raise ValueError(f"--ledger: the calls of {self.recording.file} are in another")
            self.recording.copy({r["id"]: json.loads(r["row"]) for r in rows if r["cell"]})
            there = {row["take"] for row in rows}
            for take in self.recording.replies():
                if take.key not in there:
                    execute(
                        "INSERT INTO benchmark_calls (benchmark, cell, take, row) VALUES "
                        "(:benchmark, '', :take, :row)",
                        ours | {"take": take.key, "row": json.dumps({"take": asdict(take)})},
                    )


class WorkerRecording(Recorded):
    """A worker's side: what it hears and buys for one cell."""

    def __init__(
        self,
        store: Store,
        connection: Any,
        benchmark: str,
        cell: str,
        prices: Prices | None,
    ) -> None:
        super().__init__(prices)
        self._store, self._connection = store, connection
        self._benchmark, self._cell = benchmark, cell

    @classmethod
    @contextmanager
    def opened(
        cls,
        store: Store,
        url: str,
        grant: str,
        benchmark: str,
        cell: str,
        prices: Prices | None,
        stop: threading.Event,
    ) -> Iterator[WorkerRecording]:
        """For as long as the grant is worked on. Raises Unmeasured if it has ended or was begun."""
        import psycopg

        with (
            store.explained(),
            psycopg.connect(
                url, autocommit=True, connect_timeout=10, options=_OPTIONS
            ) as connection,
        ):
            lent = cls(store, connection, benchmark, cell, prices)
            if not lent._alone(cell, stop):
                raise Unmeasured("interrupted")
            begun = (
                "UPDATE benchmark_grants SET begun = true WHERE id = %s AND NOT begun RETURNING id"
            )
            if connection.execute(begun, [grant]).fetchone() is None:
                raise Unmeasured("its grant was withdrawn")
            yield lent

    def claim(self, key: str, stop: threading.Event | None) -> RecordedReply | None:
        """The same among all workers."""
        take = super().claim(key, stop)
        if take is not None:
            return take
        try:
            take = self._found(key) if self._alone(self._name(key), stop) else None
        except LedgerError:
            super().release(key)
            raise
        if take is not None:
            self.release(key)
        return take

    def release(self, key: str) -> None:
        super().release(key)
        with self._store.explained():
            self._connection.execute(f"SELECT pg_advisory_unlock{_LOCK}", [self._name(key)])

    def _keep(self, row: dict[str, Any]) -> None:
        with self._store.explained():
            self._connection.execute(
                "INSERT INTO benchmark_calls (benchmark, cell, take, row) VALUES (%s, %s, %s, %s)",
                [self._benchmark, self._cell, row.get("take", {}).get("key"), json.dumps(row)],
            )
        super()._keep(row)

    def _found(self, key: str) -> RecordedReply | None:
        with self._store.explained():
            found = self._connection.execute(
                "SELECT row FROM benchmark_calls WHERE benchmark = %s AND take = %s",
                [self._benchmark, key],
            ).fetchone()
        if found is None:
            return None
        take = self._replies[key] = RecordedReply(**json.loads(found[0])["take"])
        return take

    def _alone(self, name: str, stop: threading.Event | None) -> bool:
        """Wait for a lock of this name; False if a stop came first."""
        while True:
            with self._store.explained():
                asked = self._connection.execute(f"SELECT pg_try_advisory_lock{_LOCK}", [name])
                if asked.fetchone()[0]:
                    return True
            if stop is not None and stop.is_set():
                return False
            time.sleep(POLL)

    def _name(self, key: str) -> str:
        return f"{self._benchmark} {key}"
