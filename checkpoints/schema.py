"""The ledger's tables, in SQL that SQLite and PostgreSQL share.

Times are Unix seconds; columns that hold JSON are text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anytime_graph.metering.request import JournalError

VERSION = 10
"""1: the tables. 2: full-text search and the views. 3: the memory of preferences. 4: planned calls and
replies in the form of run.calls; run.upgrade reads older ones. 5: quotas and bills. 6: tool calls. 7: tools on the bill.
8: no call on the bill twice. 9: batches that several processes share. 10: in PostgreSQL only the beginning of a long text is
under full-text search."""

KEYS = ("user", "tenant", "project")
"""Keys that are recorded of each run that tells them, besides those that quotas are per."""
SPEND = (
    "tokens",
    "input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "usd",
    "seconds",
    "tool_calls",
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
_BOOKED = """tokens bigint NOT NULL, output_tokens bigint NOT NULL, nanodollars bigint NOT NULL,
        calls bigint NOT NULL"""
QUOTAS = (
    """CREATE TABLE quotas (per text NOT NULL, who text NOT NULL, span text NOT NULL,
        every text NOT NULL, limits text NOT NULL, PRIMARY KEY (per, who, span))""",
    """CREATE TABLE quota_accounts (id {key}, per text NOT NULL, who text NOT NULL,
        span text NOT NULL, UNIQUE (per, who, span))""",
    f"""CREATE TABLE quota_steps (account_id bigint NOT NULL REFERENCES quota_accounts(id),
        step bigint NOT NULL, {_BOOKED}, PRIMARY KEY (account_id, step))""",
    f"""CREATE TABLE quota_holds (call text NOT NULL, holder text NOT NULL,
        account_id bigint NOT NULL REFERENCES quota_accounts(id), step bigint NOT NULL, {_BOOKED},
        PRIMARY KEY (call, account_id))""",
    "CREATE INDEX quota_holds_by_account ON quota_holds (account_id)",
)
"""Quotas, the accounts that they hold, what is booked there by step of time, and the part of it that
calls under way hold. quotas.who: the value of the key; empty: for all. See checkpoints/quotas.py."""
BILLS = (
    """CREATE TABLE labels (run_id bigint NOT NULL REFERENCES runs(id), name text NOT NULL,
        value text NOT NULL, PRIMARY KEY (run_id, name))""",
    "ALTER TABLE calls ADD COLUMN model text",
    "ALTER TABLE calls ADD COLUMN delivered double precision",
    "CREATE INDEX calls_by_start ON calls (started)",
    """CREATE INDEX calls_undelivered ON calls (id)
        WHERE delivered IS NULL AND state <> 'reserved'""",
)
"""labels: whose a run is, by key. calls.model: of its own, such as the judge's; NULL in calls of earlier
versions, which were the run's. calls.delivered: see Ledger.deliver."""
TOOL_CALLS = tuple(
    f"ALTER TABLE {table} ADD COLUMN tool_calls bigint NOT NULL DEFAULT 0"
    for table in ("calls", "quota_steps", "quota_holds")
)
MODEL = "CASE WHEN c.kind <> 'tool_call' THEN coalesce(c.model, r.model) END"
TOOL = "CASE WHEN c.kind = 'tool_call' THEN c.model END"
"""The model of a call, and the tool of a tool call, whose name is in the same column."""
LEASE_NAME = """CASE WHEN r.strategy = 'agent' THEN r.thread || ' ' || substr(r.asked, 1, 18)
    ELSE r.thread END"""
"""The name of a run's lease: an agent, and the graphs that work for it, may be on one thread."""
BILLED = "c.kind <> 'nested'"
"""A graph's call that its agent's run has too is on the bill once."""
TOOLS = (
    "DROP VIEW IF EXISTS bills",
    f"""CREATE VIEW bills AS
        SELECT c.id AS call_id, c.started,
            (SELECT value FROM labels WHERE run_id = r.id AND name = 'user') AS "user",
            (SELECT value FROM labels WHERE run_id = r.id AND name = 'tenant') AS tenant,
            (SELECT value FROM labels WHERE run_id = r.id AND name = 'project') AS project,
            {MODEL} AS model, c.kind AS node, {TOOL} AS tool, r.thread, c.state,
            c.tokens, c.input_tokens, c.output_tokens, c.reasoning_tokens, c.cached_tokens, c.usd,
            c.seconds, c.tool_calls
        FROM calls c JOIN runs r ON r.id = c.run_id WHERE {BILLED}""",
)
"""bills: one row for each call; one that is not settled stands at its reservation."""

BATCHES = (
    "CREATE TABLE batches (id {key}, name text NOT NULL UNIQUE, change bigint NOT NULL)",
    """CREATE TABLE batch_steps (batch_id bigint NOT NULL REFERENCES batches(id), thread text NOT NULL,
        change bigint NOT NULL, holder text, taken text, PRIMARY KEY (batch_id, thread))""",
)
"""batches.change: how many changes there were. batch_steps: the latest step of each question; while
it runs, who works on it, what it had cost and what is held for it (JSON). See checkpoints/batches.py."""
STATEMENTS = (*_TABLES, _MEMORY, *ADDED, *QUOTAS, *BILLS, *TOOL_CALLS, *BATCHES)
"""What makes all tables and columns."""


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
    if version < 5:
        for statement in (*QUOTAS, *BILLS):
            execute(statement.replace("{key}", key))
    if version < 6:
        for statement in TOOL_CALLS:
            execute(statement)
    if version < 8:
        for statement in TOOLS:
            execute(statement)
    if version < 9:
        for statement in BATCHES:
            execute(statement.replace("{key}", key))
    if version < VERSION:
        execute(f"UPDATE anytime_schema SET version = {VERSION}")


class LedgerError(JournalError):
    """The ledger cannot be opened, read or written. The message says why, and what to do. lasting: the same would
    fail again, as a value that the database refuses does."""

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


def version_in(where: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """The version that the table of it states. Raises LedgerError if it states none."""
    version = rows[0]["version"] if rows else None
    if not isinstance(version, int):
        raise LedgerError(
            f"{where}: its table 'anytime_schema' holds no version, so anytime-graph did not leave it like that"
        )
    return version


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
