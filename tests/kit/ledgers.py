"""A run that keeps a ledger, and the ledger as other processes read it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import psycopg
from psycopg.rows import dict_row

from anytime_graph import Budget, Score, create_anytime_graph
from anytime_graph.checkpoints import Checkpoints
from tests.kit.server import Server
from tests.kit.waiting import PATIENCE

ASK = {"messages": [("user", "Why do rivers bend?")]}
ON: Any = {"configurable": {"thread_id": "rivers"}}


def digit(question: str, answer: str) -> Score:
    value = int(answer) / 10 if answer.isdigit() else 0.0
    return Score(value, f"{answer} is too little")


def graph(server: Server, store: Checkpoints | None, **options: Any) -> Any:
    return create_anytime_graph(
        options.pop("model", None) or server.model(seed=0),
        **{"budget": Budget(tokens=900), "scorer": digit, **options},
        ledger=store and store.ledger,
    )


def sql(target: str, query: str) -> list[tuple[Any, ...]]:
    """Read, or change, as another process would."""
    if target.startswith("postgresql"):
        options = {"options": "-c search_path=anytime"}
        with psycopg.connect(target, autocommit=True, **options) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(query)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []
    connection = sqlite3.connect(target, timeout=PATIENCE)
    try:
        rows = connection.execute(query).fetchall()
        connection.commit()
        return rows
    finally:
        connection.close()


def ledger(target: str, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Rows as they lie in the database; none where a table was not made yet."""
    if not target.startswith("postgresql"):
        with closing(sqlite3.connect(target)) as connection:
            connection.row_factory = sqlite3.Row
            made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'")
            rows = connection.execute(query, parameters) if made.fetchone() else []
            return [dict(row) for row in rows]
    with psycopg.connect(
        target, options="-c search_path=anytime", row_factory=dict_row
    ) as connection:
        try:
            return connection.execute(query.replace("?", "%s"), parameters).fetchall()
        except psycopg.errors.UndefinedTable:
            return []
