"""What each column of the ledger holds. In a file that others wrote, it may hold anything."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any

from langchain_core.messages import messages_from_dict
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from anytime_graph.budget import DIMENSIONS, LARGEST, Spend, nothing
from anytime_graph.checkpoints import schema
from anytime_graph.checkpoints.records import stored_reply
from anytime_graph.checkpoints.schema import LedgerError
from anytime_graph.run.calls import AgentMove, PlannedCall, Receipt, RunCall
from anytime_graph.run.forms import NewerForm
from anytime_graph.run.upgrade import planned_call
from anytime_graph.text import harmless

_MADE = re.compile(r"CREATE TABLE (\w+) \((.*)\)", re.DOTALL)
_ADDED = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (.*)")
_COLUMN = re.compile(r"(\w+) (text|bigint|double precision|\{key\})")
_WHOLE = ("bigint", "{key}")
_ALIASES = {
    "chosen": ("answers", "answer"),
    "rejected": ("answers", "answer"),
    "chosen_ordinal": ("answers", "ordinal"),
    "rejected_ordinal": ("answers", "ordinal"),
}
"""Columns that queries call otherwise."""


class _Block(TypedDict, total=False):
    text: str


class _KeptMessage(TypedDict):
    role: str
    content: str | list[str | _Block]


class _KeptReply(TypedDict):
    receipt: Receipt
    message_id: str | None
    message: dict[str, Any] | None
    called: bool
    others: list[dict[str, Any]]


_Dimension = Annotated[str, Field(pattern=f"^({'|'.join(DIMENSIONS)})$")]
_Amount = Annotated[float, Field(ge=0, le=LARGEST)]
_KeptSpend = Annotated[Spend, BeforeValidator(lambda spend: {"tool_calls": 0, **spend})]
"""Earlier versions counted no tool calls."""
_Held = Annotated[dict[str, float], AfterValidator(lambda held: [held[name] for name in nothing()])]
"""Spends that may be parts of a token, or without end."""
_MESSAGES = TypeAdapter[Any](list[_KeptMessage])
_TEXTS = TypeAdapter[Any](list[str])
_JSON = {
    "options": ("runs", TypeAdapter[Any](dict[str, Any])),
    "limits": ("runs", TypeAdapter[Any](dict[_Dimension, _Amount])),
    "inherited": ("runs", TypeAdapter[Any](_KeptSpend)),
    "conversation": ("runs", _MESSAGES),
    "principles": ("runs", _TEXTS),
    "request": ("calls", _MESSAGES),
    "errors": ("calls", _TEXTS),
    "parents": ("answers", TypeAdapter[Any](list[int])),
    "taken": ("batch_steps", TypeAdapter[Any](tuple[_Held, _Held])),
}
_EARLY = {"memory": None}
"""What moves of the earliest version do not tell."""
_STANDS_IN = {"kind": "learn", "chosen": None, "rejected": None, "share": None}
_OF_AGENT = TypeAdapter[Any](AgentMove)
_PLAN, _REPLY = TypeAdapter[Any](PlannedCall | RunCall), TypeAdapter[Any](_KeptReply)


def check_types(where: str, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises LedgerError for a value in the rows of a query that is not of its column's type. SQLite keeps any."""
    for name, (table, column, kind) in _meant(sql, tuple(rows[0])) if rows else ():
        for row in rows:
            if not _of_type(row[name], kind):
                raise unfit(where, table, column, row[name])


def read_column(where: str, column: str, value: Any, table: str | None = None) -> Any:
    """What a text in a column of JSON says; a value of another column, and the text of a planned call or a reply, as
    it is. Raises LedgerError for JSON that is none or not of the column's shape, and NewerForm."""
    of, shape = _JSON.get(column, ("calls", None))
    if value is None or (shape is None and column not in ("task", "reply")):
        return value
    try:
        if shape is not None:
            read = json.loads(value)
            shape.validate_python(read)
            return read
        if column == "task":
            _check_plan(planned_call({"task": value}))
        else:
            _check_reply(stored_reply({"reply": value}))
    except NewerForm:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise unfit(where, table or of, column, value) from None
    return value


def _check_plan(plan: Any) -> None:
    move = {**_EARLY, **plan["move"]}
    if (
        "agent" in plan and move["kind"] == "tool_call"
    ):  # of a draft by an agent, and planned as that is
        _OF_AGENT.validate_python(plan["move"])
        move = _STANDS_IN
    _PLAN.validate_python({**plan, "move": move})


def _check_reply(reply: Any) -> None:
    _REPLY.validate_python(reply)
    if reply["message"] is not None:
        messages_from_dict([reply["message"]])
    for other in reply["others"]:
        other["text"].encode(errors="replace")
        _check_reply(other)


def _of_type(value: Any, kind: str) -> bool:
    if value is None or not kind:
        return not isinstance(value, bytes)
    if kind == "text" or isinstance(value, str | bytes):
        return kind == "text" and isinstance(value, str)
    if kind in _WHOLE:
        return isinstance(value, int | Decimal)  # a sum, in PostgreSQL
    return math.isfinite(value) and abs(value) <= LARGEST


@lru_cache(maxsize=256)
def _meant(sql: str, names: tuple[str, ...]) -> list[tuple[str, tuple[str, str, str]]]:
    """The table, column and type of each column that a query returns; of an expression, no type."""
    columns = _columns()
    words = re.findall(
        r"\w+", f"{sql.rpartition('SELECT ')[2]} {sql}"
    )  # the last SELECT is that of the rows
    tables = [word for word in words if word in columns] or ["sqlite_schema"]
    found = []
    for name in names:
        alias, column = _ALIASES.get(name, (None, name))
        having = (table for table in tables if column in columns.get(table, ()))
        table = alias or next(having, tables[0])
        found.append((name, (table, column, columns.get(table, {}).get(column, ""))))
    return found


def tables() -> list[str]:
    return list(_columns())


@lru_cache(maxsize=1)
def _columns() -> dict[str, dict[str, str]]:
    """The type of each column, by table."""
    found: dict[str, dict[str, str]] = {}
    for statement in schema.STATEMENTS:
        if match := _MADE.match(statement) or _ADDED.match(statement):
            found.setdefault(match[1], {}).update(_COLUMN.findall(match[2]))
    return found


def unfit(where: str, table: str, column: str, value: Any) -> LedgerError:
    shown = harmless(f"{value!r:.40}")
    return LedgerError(
        f"{where}: table {table!r}, column {column!r} holds {shown}, which anytime-graph did not write"
    )
