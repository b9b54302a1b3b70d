"""The calls of a benchmark's workers, in PostgreSQL, and the grants that limit what they spend.

A worker writes each call to the database before it makes the call and after the reply. The driver
copies the rows into the file of the recording.

A cell is sent out under a grant, which one worker may use once. The worker holds the cell's lock on
the same connection that writes its calls. While it holds the lock it may spend; without the lock it
can make no call that is not written down. So the driver settles a grant under that lock, even if
the worker died, and sees everything that was bought under it.
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
"""take: the key of the reply, if the row holds one. cell: empty for rows copied from the file."""
_LOCK = "(hashtextextended(CAST(%s AS text), 0))"
_OPTIONS = (
    "-c search_path=anytime -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 "
    "-c tcp_keepalives_count=4"
)
"""The server frees the locks of a lost machine within half a minute."""


class Grants:
    """The driver's side: the grants of one recording, and the calls made under them."""

    def __init__(self, url: str, store: PostgresStore, recording: Recording) -> None:
        self.url, self.store, self.recording = url, store, recording
        self.benchmark = recording.share()

    @classmethod
    @contextmanager
    def opened(cls, url: str, recording: Recording) -> Iterator[Grants]:
        """Open the grants, after the calls of earlier workers are copied. Waits for workers that are
        still running. Raises LedgerError, or ValueError if the database is not the one used before."""
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
        """Create a grant for the cell; returns its name."""
        grant = uuid4().hex
        with self.store.transaction() as execute:
            execute(
                "INSERT INTO benchmark_grants (id, benchmark, cell) VALUES (:id, :benchmark, :cell)",
                {"id": grant, "benchmark": self.benchmark, "cell": cell},
            )
        return grant

    def settle(self, grant: str, cell: str) -> Spend:
        """End a grant, and copy the calls made under it. Waits while a worker uses it. Returns what
        the calls cost."""
        while True:
            with self.store.transaction() as execute:
                lock = _LOCK.replace("%s", ":cell")
                (lock_row,) = execute(
                    f"SELECT pg_try_advisory_xact_lock{lock} AS mine", {"cell": cell}
                )
                if lock_row["mine"]:
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
        of_benchmark = {"benchmark": self.benchmark}
        with self.store.reading() as execute:
            open_ = execute(
                "SELECT id, cell FROM benchmark_grants WHERE benchmark = :benchmark", of_benchmark
            )
        for grant in open_:
            self.settle(grant["id"], grant["cell"])
        with self.store.transaction() as execute:
            rows = execute(
                "SELECT id, cell, take, row FROM benchmark_calls WHERE benchmark = :benchmark "
                "ORDER BY id",
                of_benchmark,
            )
            if not self.recording.rows <= {row["id"] for row in rows}:
                raise ValueError(
                    f"--ledger: the calls of {self.recording.file} are in another database"
                )
            self.recording.copy({r["id"]: json.loads(r["row"]) for r in rows if r["cell"]})
            stored_keys = {row["take"] for row in rows}
            for reply in self.recording.replies():
                if reply.key not in stored_keys:
                    execute(
                        "INSERT INTO benchmark_calls (benchmark, cell, take, row) VALUES "
                        "(:benchmark, '', :take, :row)",
                        of_benchmark
                        | {"take": reply.key, "row": json.dumps({"take": asdict(reply)})},
                    )


class WorkerRecording(Recorded):
    """The worker's side: the replies that it gets and buys for one cell."""

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
        """Use the grant until the block ends. Raises Unmeasured if the grant has ended, or was used
        before."""
        import psycopg

        with (
            store.explained(),
            psycopg.connect(
                url, autocommit=True, connect_timeout=10, options=_OPTIONS
            ) as connection,
        ):
            recording = cls(store, connection, benchmark, cell, prices)
            if not recording._wait_for_lock(cell, stop):
                raise Unmeasured("interrupted")
            begun = (
                "UPDATE benchmark_grants SET begun = true WHERE id = %s AND NOT begun RETURNING id"
            )
            if connection.execute(begun, [grant]).fetchone() is None:
                raise Unmeasured("its grant was withdrawn")
            yield recording

    def claim(self, key: str, stop: threading.Event | None) -> RecordedReply | None:
        """As in Recorded, but among all workers."""
        reply = super().claim(key, stop)
        if reply is not None:
            return reply
        try:
            reply = (
                self._stored_reply(key) if self._wait_for_lock(self._lock_name(key), stop) else None
            )
        except LedgerError:
            super().release(key)
            raise
        if reply is not None:
            self.release(key)
        return reply

    def release(self, key: str) -> None:
        super().release(key)
        with self._store.explained():
            self._connection.execute(f"SELECT pg_advisory_unlock{_LOCK}", [self._lock_name(key)])

    def _keep(self, row: dict[str, Any]) -> None:
        with self._store.explained():
            self._connection.execute(
                "INSERT INTO benchmark_calls (benchmark, cell, take, row) VALUES (%s, %s, %s, %s)",
                [self._benchmark, self._cell, row.get("take", {}).get("key"), json.dumps(row)],
            )
        super()._keep(row)

    def _stored_reply(self, key: str) -> RecordedReply | None:
        with self._store.explained():
            stored = self._connection.execute(
                "SELECT row FROM benchmark_calls WHERE benchmark = %s AND take = %s",
                [self._benchmark, key],
            ).fetchone()
        if stored is None:
            return None
        reply = self._replies[key] = RecordedReply(**json.loads(stored[0])["take"])
        return reply

    def _wait_for_lock(self, name: str, stop: threading.Event | None) -> bool:
        """Wait for the lock of this name; False if a stop came first."""
        while True:
            with self._store.explained():
                cursor = self._connection.execute(f"SELECT pg_try_advisory_lock{_LOCK}", [name])
                if cursor.fetchone()[0]:
                    return True
            if stop is not None and stop.is_set():
                return False
            time.sleep(POLL)

    def _lock_name(self, key: str) -> str:
        return f"{self._benchmark} {key}"
