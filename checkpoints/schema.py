"""The ledger's tables, in SQL that SQLite and PostgreSQL share.

Times are Unix seconds; columns that hold JSON are text.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from anytime_graph.metering.request import JournalError

VERSION = 4
"""1: the tables. 2: full-text search and the views. 3: the memory of preferences. 4: planned calls and
replies in the form of run.calls; run.upgrade reads older ones."""

SPEND = (
    "tokens",
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "usd",
    "seconds",
)
"""The columns of a call's spend."""

_TABLES = (
    "CREATE TABLE anytime_schema (version bigint NOT NULL)",
    "INSERT INTO anytime_schema VALUES (0)",
    """CREATE TABLE runs (
        id {key},
        thread text NOT NULL,
        asked text NOT NULL,
        question text,
        conversation text,
        model text NOT NULL,
        strategy text NOT NULL,
        decides text NOT NULL,
        options text,
        limits text NOT NULL,
        inherited text NOT NULL,
        plan text NOT NULL,
        parent_id bigint REFERENCES runs(id),
        stop_reason text,
        started double precision NOT NULL,
        changed double precision NOT NULL)""",
    "CREATE INDEX runs_by_thread ON runs (thread, started)",
    """CREATE TABLE calls (
        id {key},
        run_id bigint NOT NULL REFERENCES runs(id),
        ordinal bigint NOT NULL,
        step bigint NOT NULL,
        kind text NOT NULL,
        state text NOT NULL,
        request_hash text NOT NULL,
        request text,
        reserved_input bigint NOT NULL,
        reserved_output bigint,
        text text,
        ended text,
        tokens bigint NOT NULL,
        input_tokens bigint NOT NULL,
        output_tokens bigint NOT NULL,
        reasoning_tokens bigint NOT NULL,
        cached_tokens bigint NOT NULL,
        usd double precision NOT NULL,
        seconds double precision NOT NULL,
        errors text NOT NULL,
        started double precision NOT NULL,
        changed double precision NOT NULL,
        task text NOT NULL,
        reply text,
        UNIQUE (run_id, ordinal))""",
    """CREATE TABLE answers (
        id {key},
        run_id bigint NOT NULL REFERENCES runs(id),
        call_id bigint REFERENCES calls(id),
        ordinal bigint NOT NULL,
        node text NOT NULL,
        answer text,
        score double precision,
        feedback text,
        complete bigint NOT NULL,
        parents text NOT NULL,
        created double precision NOT NULL,
        UNIQUE (run_id, ordinal))""",
    "CREATE INDEX answers_by_call ON answers (call_id)",
    "ALTER TABLE runs ADD COLUMN best_id bigint REFERENCES answers(id)",
    """CREATE TABLE pairs (
        id {key},
        run_id bigint NOT NULL REFERENCES runs(id),
        chosen_id bigint NOT NULL REFERENCES answers(id),
        rejected_id bigint NOT NULL REFERENCES answers(id),
        why text,
        decided_by text NOT NULL,
        gap double precision NOT NULL,
        created double precision NOT NULL,
        UNIQUE (run_id, chosen_id, rejected_id))""",
    """CREATE TABLE curve (
        id {key},
        run_id bigint NOT NULL REFERENCES runs(id),
        answer_id bigint NOT NULL REFERENCES answers(id),
        score double precision,
        tokens bigint NOT NULL,
        output_tokens bigint NOT NULL,
        usd double precision NOT NULL,
        calls bigint NOT NULL,
        seconds double precision NOT NULL,
        UNIQUE (run_id, answer_id))""",
    """CREATE TABLE leases (
        thread text PRIMARY KEY, holder text NOT NULL, expires double precision NOT NULL)""",
)
VIEWS = {
    "best_answers": """
        SELECT r.thread, r.id AS run_id, r.question, a.answer, a.score, r.stop_reason,
            (SELECT sum(c.tokens) FROM calls c WHERE c.run_id = r.id) AS tokens
        FROM runs r LEFT JOIN answers a ON a.id = r.best_id
        WHERE r.id = (SELECT n.id FROM runs n WHERE n.thread = r.thread
            ORDER BY n.started DESC, n.id DESC LIMIT 1)""",
    "spend_by_node": """
        SELECT r.thread, c.run_id, c.kind AS node, count(*) AS calls, sum(c.tokens) AS tokens,
            sum(c.input_tokens) AS input_tokens, sum(c.output_tokens) AS output_tokens,
            sum(c.usd) AS usd, sum(c.seconds) AS seconds
        FROM calls c JOIN runs r ON r.id = c.run_id
        GROUP BY r.thread, c.run_id, c.kind""",
}
SEARCHED = {"runs": "question", "answers": "answer"}
"""The columns under full-text search, by table."""
_MEMORY = "CREATE TABLE memory (run_id {key} REFERENCES runs(id), terms text NOT NULL)"
"""Runs with pairs to remember, found by the terms of their questions."""
ADDED = (
    "ALTER TABLE runs ADD COLUMN namespace text NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN principles text",
    "ALTER TABLE pairs ADD COLUMN better text",
    "ALTER TABLE pairs ADD COLUMN worse text",
    "ALTER TABLE pairs ADD COLUMN why_by text",
)
"""Columns since version 3."""


def upgrade(
    version: int, execute: Callable[[str], object], key: str, search: Callable[[str, str], object]
) -> None:
    """Bring tables of this version into today's; 0: there are none. key: how the database declares
    a key of its own making. search: puts a table's column under full-text search."""
    if version < 1:
        for statement in _TABLES:
            execute(statement.format(key=key))
    if version < 2:
        for table, column in SEARCHED.items():
            search(table, column)
        for name, sql in VIEWS.items():
            execute(f"CREATE VIEW {name} AS {sql}")
    if version < 3:
        for statement in (_MEMORY.format(key=key), *ADDED):
            execute(statement)
        search("memory", "terms")
    if version < VERSION:
        execute(f"UPDATE anytime_schema SET version = {VERSION}")


class LedgerError(JournalError):
    """The ledger cannot be opened, read or written. The message says why, and what to do."""


def refuse_newer(where: str, version: int) -> None:
    if version > VERSION:
        raise LedgerError(
            f"{where}: its schema is version {version}, this anytime-graph knows {VERSION}; "
            "upgrade anytime-graph to open it"
        )


def same_process(where: str, pid: int) -> None:
    """Connections and leases do not survive a fork."""
    if os.getpid() != pid:
        raise LedgerError(f"{where}: it was opened before this process was forked; open it again")
