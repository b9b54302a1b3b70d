"""The ledger's tables, as data that SQLite and PostgreSQL share. Times are Unix seconds; columns
that hold JSON are text."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from anytime_graph.metering.request import JournalError

VERSION = 4
"""1: the tables. 2: full-text search and the views. 3: the memory of preferences. 4: planned calls and
replies in the form of run.calls; older ones are read by run.upgrade."""

SPEND = {
    "tokens": int,
    "input_tokens": int,
    "output_tokens": int,
    "reasoning_tokens": int,
    "cached_tokens": int,
    "usd": float,
    "seconds": float,
}


@dataclass(frozen=True)
class Table:
    """columns: types by name; `id` is the key. refers: tables by the column that points there.
    unique: columns that identify a row. optional: columns that may be null."""

    columns: dict[str, type]
    refers: dict[str, str] = field(default_factory=dict)
    unique: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    key: str = "id"


TABLES = {
    "runs": Table(
        {
            "id": int,
            "thread": str,
            "asked": str,
            "question": str,
            "conversation": str,
            "model": str,
            "strategy": str,
            "decides": str,
            "options": str,
            "limits": str,
            "inherited": str,
            "plan": str,
            "parent_id": int,
            "best_id": int,
            "stop_reason": str,
            "started": float,
            "changed": float,
        },
        refers={"parent_id": "runs", "best_id": "answers"},
        optional=("question", "conversation", "options", "parent_id", "best_id", "stop_reason"),
    ),
    "calls": Table(
        {
            "id": int,
            "run_id": int,
            "ordinal": int,
            "step": int,
            "kind": str,
            "state": str,
            "request_hash": str,
            "request": str,
            "reserved_input": int,
            "reserved_output": int,
            "text": str,
            "ended": str,
            **SPEND,
            "errors": str,
            "started": float,
            "changed": float,
            "task": str,
            "reply": str,
        },
        refers={"run_id": "runs"},
        unique=("run_id", "ordinal"),
        optional=("request", "reserved_output", "text", "ended", "reply"),
    ),
    "answers": Table(
        {
            "id": int,
            "run_id": int,
            "call_id": int,
            "ordinal": int,
            "node": str,
            "answer": str,
            "score": float,
            "feedback": str,
            "complete": int,
            "parents": str,
            "created": float,
        },
        refers={"run_id": "runs", "call_id": "calls"},
        unique=("run_id", "ordinal"),
        optional=("call_id", "answer", "score", "feedback"),
    ),
    "pairs": Table(
        {
            "id": int,
            "run_id": int,
            "chosen_id": int,
            "rejected_id": int,
            "why": str,
            "decided_by": str,
            "gap": float,
            "created": float,
        },
        refers={"run_id": "runs", "chosen_id": "answers", "rejected_id": "answers"},
        unique=("run_id", "chosen_id", "rejected_id"),
        optional=("why",),
    ),
    "curve": Table(
        {
            "id": int,
            "run_id": int,
            "answer_id": int,
            "score": float,
            "tokens": int,
            "output_tokens": int,
            "usd": float,
            "calls": int,
            "seconds": float,
        },
        refers={"run_id": "runs", "answer_id": "answers"},
        unique=("run_id", "answer_id"),
        optional=("score",),
    ),
    "leases": Table({"thread": str, "holder": str, "expires": float}, key="thread"),
}

MEMORY = Table({"run_id": int, "terms": str}, refers={"run_id": "runs"}, key="run_id")
"""Since version 3, runs with pairs to remember, found by the terms of their questions."""

ADDED = (
    "ALTER TABLE runs ADD COLUMN namespace text NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN principles text",
    "ALTER TABLE pairs ADD COLUMN better text",
    "ALTER TABLE pairs ADD COLUMN worse text",
    "ALTER TABLE pairs ADD COLUMN why_by text",
)
"""Columns since version 3."""

SEARCHED = {"runs": "question", "answers": "answer"}
"""The columns under full-text search."""

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

INDEXES = {"runs": ("thread", "started"), "answers": ("call_id",)}


class LedgerError(JournalError):
    """The ledger cannot be opened, read or written. The message says what and how."""


def refuse_newer(where: str, version: int) -> None:
    if version > VERSION:
        raise LedgerError(
            f"{where}: its schema is version {version}, this anytime-graph knows {VERSION}; "
            "upgrade anytime-graph to open it"
        )


def same_process(where: str, pid: int) -> None:
    """Connections and leases do not survive a fork."""
    if os.getpid() != pid:
        raise LedgerError(f"{where}: it was opened before this process was forked; open it anew")
