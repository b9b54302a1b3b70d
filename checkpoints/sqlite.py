"""Ledger and LangGraph's saver over one SQLite file, through sqlite-utils."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from anytime_graph.checkpoints import schema
from anytime_graph.checkpoints.columns import check_types, tables
from anytime_graph.checkpoints.schema import LedgerError
from anytime_graph.checkpoints.store import Execute

PATIENCE = 30.0
"""Seconds to wait for another process's transaction."""
_LANGGRAPH = {
    "checkpoints",
    "writes",
    "store",
    "store_migrations",
    "store_vectors",
    "vector_migrations",
}
_CLOSED = ("no active connection", "Connection closed")
"""What aiosqlite says of a connection that was closed."""
_REFUSALS = (
    *(sqlite3.DataError, sqlite3.IntegrityError),
    *(sqlite3.ProgrammingError, sqlite3.NotSupportedError),
)
_REMEDY = {
    "full": "the disk is full; free some space, then resume",
    "readonly": "it cannot be written; check the permissions of the file and its folder",
    "malformed": "the file is damaged; restore a copy, or save what `sqlite3 FILE .recover` finds",
    "not a database": "this is not a SQLite database; name another file",
    "locked": f"another process kept it locked for {PATIENCE:g} s",
    "unable to open": "it cannot be opened; check the folder and its permissions",
}


class SqliteStore:
    """A file with the ledger's tables; safe for threads and for several processes."""

    clock = "((julianday('now') - 2440587.5) * 86400.0)"
    mentions = """SELECT rowid AS run_id FROM memory_fts WHERE memory_fts MATCH '"' || :key || '"'
        LIMIT :most"""

    def __init__(self, path: str | Path) -> None:
        from sqlite_utils import Database

        self.where = str(path)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: dict[str, os.stat_result] = {}
        with self.explained():
            _make(path)
            connection = connect(path)
            try:
                self._db = Database(connection)
                self._prepare()
                at = os.path.abspath(path)
                files = (name for name in (at, f"{at}-wal") if os.path.exists(name))
                self._files = {name: os.stat(name) for name in files}
            except BaseException:
                connection.close()
                raise

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[Any]:
        """Yields execute(sql, params) -> rows as dicts. All of it is kept, or nothing. durable: it
        survives a power cut at once, else with the next that is."""
        schema.same_process(self.where, self._pid)
        with self._lock, self.explained():
            self._in_place()
            try:
                self._db.conn.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._db.conn.execute("BEGIN IMMEDIATE")
                yield self._execute
                self._db.commit()
            except BaseException:
                self._db.rollback()
                raise

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Yields the same for single SELECTs."""
        schema.same_process(self.where, self._pid)
        with self._lock, self.explained():
            yield self._execute

    def _in_place(self) -> None:
        """Refuse to write to files that are no longer those at the path: nobody would read what is
        written, and other processes would keep other books. SQLite does not notice."""
        for name, opened in self._files.items():
            try:
                there = os.path.samestat(os.stat(name), opened)
            except FileNotFoundError:
                there = False
            if not there:
                raise LedgerError(
                    f"{self.where}: {os.path.basename(name)} was deleted, moved or replaced while it "
                    "was open; put it back, or open it again"
                )

    def turn(self) -> AbstractContextManager[Any]:
        """The saver of this process takes turns with the ledger, which is far quicker than two
        connections that find the file locked."""
        return self._lock

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _execute(self, sql: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        cursor = self._db.execute(sql, dict(parameters))
        if cursor.description is None:
            return []
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        check_types(self.where, sql, rows)
        return rows

    def matching(self, table: str) -> str:
        return f"{table}.rowid IN (SELECT rowid FROM {table}_fts WHERE {table}_fts MATCH :words)"

    def words(self, text: str) -> str:
        return " ".join('"{}"'.format(word.replace('"', '""')) for word in text.split())

    def purge(self, execute: Execute) -> None:
        """After a deletion: the words of what was deleted leave the full-text indexes, which only mark them."""
        for index in self._db.table_names(fts5=True):
            execute(f"INSERT INTO {index} ({index}) VALUES ('optimize')", {})

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns the driver's errors into LedgerErrors that say what and how."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _ledger_error(self.where, error) from error
        except ValueError as error:
            if str(error) not in _CLOSED:
                raise
            raise LedgerError(f"{self.where}: it was closed while a run was under way") from error

    def _prepare(self) -> None:
        schema.refuse_newer(self.where, self._version())
        _wal(self._db.conn)
        with self.transaction():
            schema.upgrade(
                self._version(), self._db.execute, "INTEGER PRIMARY KEY", self._searchable
            )

    def _version(self) -> int:
        if views := {*tables(), *_LANGGRAPH}.intersection(self._db.view_names()):
            raise LedgerError(
                f"{self.where}: {min(views)!r} is a view in it, which anytime-graph did not write; name another file"
            )
        if self._db.table("anytime_schema").exists():
            rows = self._execute("SELECT max(version) AS version FROM anytime_schema", {})
            return schema.version_in(self.where, rows)
        if foreign := sorted(set(self._db.table_names()) - _LANGGRAPH):
            raise LedgerError(
                f"{self.where}: this file belongs to something else (it holds the tables "
                f"{', '.join(foreign[:5])}); name another file"
            )
        return 0

    def _searchable(self, name: str, column: str) -> None:
        self._db.table(name).enable_fts([column], create_triggers=True)
        # The column never changes; this trigger would index it again at every update of its row.
        self._db.execute(f"DROP TRIGGER {name}_au")


def connect(path: str | Path, autocommit: bool = True) -> sqlite3.Connection:
    """A connection whose commits survive a power cut and which waits for its turn. What it deletes is
    overwritten."""
    connection = sqlite3.connect(
        path,
        timeout=PATIENCE,
        check_same_thread=False,
        isolation_level=None if autocommit else "DEFERRED",
    )
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: str | Path) -> None:
    """Make the file, for its owner only. One that is there is left alone: when any descriptor of a file is
    closed, the process loses all of its locks on it. Then another process, as it closes the file, would take
    away the log that connections of this one still write to."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None


def _ledger_error(where: str, error: Exception) -> LedgerError:
    said = str(error).strip()
    remedy = next((remedy for sign, remedy in _REMEDY.items() if sign in said), None)
    if isinstance(error, OSError):
        said, remedy = error.strerror or said, "see to the path and its permissions"
    return LedgerError(
        f"{where}: {said}" + (f": {remedy}" if remedy else ""), isinstance(error, _REFUSALS)
    )


def _wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging. The switch needs the file for itself for a moment and does
    not wait by itself."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
