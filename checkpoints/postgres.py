"""The ledger over PostgreSQL, through psycopg and a pool. Its tables stand in a schema of their
own, `anytime`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

from anytime_graph.checkpoints import schema
from anytime_graph.checkpoints.schema import LedgerError

_TYPES = {int: "bigint", float: "double precision", str: "text"}
POOL: dict[str, Any] = {"min_size": 1, "max_size": 8, "timeout": 30}
_SETUP_LOCK = 0x616E7974
_NEED = "checkpoints in PostgreSQL need: pip install 'anytime-graph[postgres]'"


class PostgresStore:
    """A database with the ledger's tables; safe for threads and for several processes."""

    clock = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    mentions = """SELECT run_id FROM memory WHERE string_to_array(terms, ' ') @> ARRAY[:key]
        LIMIT :most"""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
            from psycopg.rows import dict_row
            from psycopg_pool import ConnectionPool, PoolTimeout
        except ImportError:
            raise ImportError(_NEED) from None
        self._errors = (psycopg.Error, PoolTimeout)
        self._pid = os.getpid()
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error as error:
            raise LedgerError(f"not a PostgreSQL address: {error}") from None
        self.where = f"PostgreSQL {parts.get('host', 'localhost')}/{parts.get('dbname', '')}"
        with self.explained():
            with alone(url), psycopg.connect(url) as connection:
                self._prepare(connection.cursor(row_factory=dict_row))
            options = {"row_factory": dict_row, "options": "-c search_path=anytime"}
            check = ConnectionPool.check_connection
            self._pool = ConnectionPool(url, kwargs=options, open=True, check=check, **POOL)

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[Any]:
        """Yields execute(sql, params) -> rows as dicts. All of it is kept, or nothing. durable: it
        survives a power cut at once, else with the next that is."""
        schema.same_process(self.where, self._pid)
        with self.explained(), self._pool.connection() as connection:

            def execute(sql: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
                cursor = connection.execute(_dialect(sql), parameters)
                return [] if cursor.description is None else cursor.fetchall()

            if not durable:
                connection.execute("SET LOCAL synchronous_commit = off")
            yield execute

    reading = transaction

    def turn(self) -> AbstractContextManager[Any]:
        """Savers need not wait for the ledger here."""
        return nullcontext()

    def close(self) -> None:
        self._pool.close()

    def matching(self, table: str) -> str:
        return f"{table}.search @@ plainto_tsquery('simple', :words)"

    def words(self, text: str) -> str:
        return text

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns the driver's errors into LedgerErrors that say what and how."""
        try:
            yield
        except self._errors as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise LedgerError(f"{self.where}: {said[0]}") from error

    def _prepare(self, cursor: Any) -> None:
        cursor.execute("CREATE SCHEMA IF NOT EXISTS anytime")
        cursor.execute("SET LOCAL search_path = anytime")
        version = self._version(cursor)
        schema.refuse_newer(self.where, version)
        if version < 1:
            for name, table in schema.TABLES.items():
                for statement in _definition(name, table):
                    cursor.execute(statement)
            cursor.execute("ALTER TABLE runs ADD FOREIGN KEY (best_id) REFERENCES answers(id)")
            cursor.execute("CREATE TABLE anytime_schema (version bigint NOT NULL)")
            cursor.execute("INSERT INTO anytime_schema VALUES (0)")
        if version < 2:
            for name, column in schema.SEARCHED.items():
                cursor.execute(
                    f"ALTER TABLE {name} ADD COLUMN search tsvector GENERATED ALWAYS AS "
                    f"(to_tsvector('simple', coalesce({column}, ''))) STORED"
                )
                cursor.execute(f"CREATE INDEX ON {name} USING gin (search)")
            for name, sql in schema.VIEWS.items():
                cursor.execute(f"CREATE VIEW {name} AS {sql}")
        if version < 3:
            for statement in (
                *_definition("memory", schema.MEMORY),
                "CREATE INDEX ON memory USING gin (string_to_array(terms, ' ')) "
                "WITH (fastupdate = off)",
                *schema.ADDED,
            ):
                cursor.execute(statement)
        if version < schema.VERSION:
            cursor.execute("UPDATE anytime_schema SET version = %s", [schema.VERSION])

    def _version(self, cursor: Any) -> int:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'anytime'"
        )
        tables = {row["table_name"] for row in cursor.fetchall()}
        if "anytime_schema" in tables:
            return int(cursor.execute("SELECT version FROM anytime_schema").fetchone()["version"])
        if tables:
            raise LedgerError(
                f"{self.where}: its schema `anytime` belongs to something else (it holds the "
                f"tables {', '.join(sorted(tables)[:5])}); name another database"
            )
        return 0


def saver_options() -> dict[str, Any]:
    """Connections as LangGraph's saver wants them."""
    from psycopg.rows import dict_row

    return {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


@contextmanager
def alone(url: str) -> Iterator[None]:
    """One process at a time sets up a database. Waiting inside a statement would block another's
    CREATE INDEX CONCURRENTLY, so this asks again and again."""
    import psycopg

    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        while True:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_SETUP_LOCK]).fetchone()
            if row and row[0]:
                break
            time.sleep(0.02)
        yield


def _definition(name: str, table: schema.Table) -> Iterator[str]:
    columns = []
    for column, kind in table.columns.items():
        definition = f"{column} {_TYPES[kind]}"
        if column == table.key:
            definition += " PRIMARY KEY"
            if kind is int and name != "runs":
                definition = f"{column} bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"
        elif column not in table.optional:
            definition += " NOT NULL"
        if (to := table.refers.get(column)) and (name, column) != ("runs", "best_id"):
            definition += f" REFERENCES {to}(id)"
        columns.append(definition)
    if table.unique:
        columns.append(f"UNIQUE ({', '.join(table.unique)})")
    yield f"CREATE TABLE {name} ({', '.join(columns)})"
    if indexed := schema.INDEXES.get(name):
        yield f"CREATE INDEX ON {name} ({', '.join(indexed)})"


@lru_cache(maxsize=256)
def _dialect(sql: str) -> str:
    """The shared SQL with psycopg's placeholders."""
    return re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", sql.replace("%", "%%"))
