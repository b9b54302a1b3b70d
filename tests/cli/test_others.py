"""Ledgers that somebody else wrote: any value in any column is an answer or one error, never a traceback."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.kit.commands import Command, told
from tests.kit.marks import torture
from tests.kit.server import Reply, Server

MODEL = ["--model", "openai:scripted"]
RULES = ["--include", "fox", "--include", "river", "--words", "3-9"]
TEXTS = ["A fox.", "A river.", "A river and a fox.", "A bend.", "Verdict: A"]
EVIL = "<img src=x onerror=alert(1)>\x1b]52;c;aGk=\x07\u202e[/nothing]"
READING = [
    ["threads"],
    ["threads", "--json", "--search", "river"],
    ["show", "t"],
    ["show", "t", "--json"],
    ["show", "t", "--html", "page.html"],
    ["best", "t"],
    *(
        ["export", "--all", "--as", form]
        for form in ("dpo", "dpo-chat", "openai", "answers", "runs")
    ),
    ["plot", "t", "-o", "curve.svg"],
    ["profile"],
    ["audit"],
    ["spend", "--by", "user,model,node,tool,thread"],
    ["quota", "show"],
]
CHANGING = [
    ["resume", "t", "--calls", "+1", *MODEL],
    ["solve", "Why do rivers bend?", "--thread", "u", "--calls", "1", "--memory", *MODEL],
    ["batch", "questions.txt", "--calls", "6", *MODEL],
    ["forget", "--yes"],
    ["rm", "t", "--yes"],
]


@pytest.fixture
def written(server: Server, command: Command, tmp_path: Path) -> Path:
    """A ledger of real runs, with rows in every table."""
    server.script = lambda request, i: Reply(text=TEXTS[i % len(TEXTS)])
    Path("questions.txt").write_text("Why do rivers bend?\nWhy are foxes red?\n")
    user = ["--key", "user=ann", "--db", "anytime.db", *MODEL]
    for words in (
        ["quota", "set", "--calls", "1000", "--per", "user", "--window", "1d"],
        [
            "solve",
            "Why do rivers bend?",
            "--thread",
            "t",
            "--calls",
            "5",
            "--memory",
            *RULES,
            *user,
        ],
        ["solve", "Why do rivers bend?", "--thread", "j", "--calls", "6", *user],
        ["batch", "questions.txt", "--calls", "4", *user],
    ):
        done = command(*words)
        assert done.exit_code == 0, done.output
    return shutil.copy("anytime.db", "written.db")


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("runs", "limits", "[1]"),
        ("runs", "limits", '{"tokens": "many"}'),
        ("runs", "limits", '{"tokens": 1' + "0" * 400 + "}"),
        ("runs", "inherited", '{"tokens": 1}'),
        ("runs", "conversation", '[{"role": "user", "content": 5}]'),
        ("runs", "question", b"\xff"),
        ("runs", "started", 1e300),
        ("calls", "errors", '"nope"'),
        ("calls", "errors", "[5]"),
        ("calls", "tokens", "many"),
        ("calls", "task", '{"move": 5}'),
        ("calls", "changed", float("inf")),
        ("answers", "score", "x"),
        ("answers", "answer", b"\x80\xff"),
        ("answers", "parents", '["x"]'),
        ("answers", "ordinal", "x"),
        ("pairs", "why", b"\x80"),
        ("curve", "tokens", "x"),
        ("leases", "holder", "x"),
        ("quotas", "limits", "[1]"),
        ("quotas", "every", "never"),
    ],
)
def test_what_anytime_graph_did_not_write_is_one_error_that_says_where(
    command: Command, written: Path, table: str, column: str, value: Any
) -> None:
    with closing(sqlite3.connect("anytime.db")) as db, db:
        if table == "leases":
            db.execute("INSERT INTO leases VALUES ('t', 'x', 1e12)")
        one = f"rowid = (SELECT min(rowid) FROM {table})"
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {one}", [value])
    refused = []
    for words in [*READING, *CHANGING[:3]]:
        done = command(*words)
        assert done.exit_code in (0, 1, 2), (words, done.output)
        if done.exit_code == 2 and "anytime.db: table " in told(done):
            assert f"table '{table}', column '{column}' holds " in told(done)
            refused.append(words)
    assert refused or table == "leases"


@pytest.mark.parametrize("table", ["anytime_schema", "runs", "checkpoints"])
def test_a_view_in_the_place_of_a_table_is_not_read(
    command: Command, written: Path, table: str
) -> None:
    """A view may never come to its end."""
    with closing(sqlite3.connect("anytime.db")) as db, db:
        db.execute(f"ALTER TABLE {table} RENAME TO kept")
        db.execute(f"CREATE VIEW {table} AS SELECT * FROM kept")
    for words in READING:
        done = command(*words)
        assert done.exit_code == 2, done.output
        assert f"'{table}' is a view in it" in told(done)


texts = st.text(max_size=12) | st.sampled_from([EVIL, "[", "[" * 3_000, "{}", "null", "1e999"])
plain = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | texts
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            texts | st.sampled_from(["kind", "role", "content", "tokens"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, before: Any) -> Any:
    """JSON like this, with a part of it in another shape."""
    if isinstance(before, dict | list) and before and draw(st.booleans()):
        keys = list(before) if isinstance(before, dict) else list(range(len(before)))
        key, after = draw(st.sampled_from(keys)), before.copy()
        if draw(st.booleans()):
            del after[key]
        else:
            after[key] = draw(changed(before[key]))
        return after
    return draw(nested)


@st.composite
def values(draw: st.DrawFn, before: Any) -> Any:
    """A value of SQLite in place of another."""
    try:
        parsed = json.loads(before)
    except (TypeError, ValueError):
        parsed = None
    if isinstance(parsed, dict | list) and draw(st.integers(0, 3)):
        return json.dumps(draw(changed(parsed)))
    return draw(
        st.integers(-(2**63), 2**63 - 1)
        | st.floats()
        | st.sampled_from([1e300, 2**62, 0, -1])
        | texts
        | st.binary(max_size=4)
        | nested.map(json.dumps)
    )


def rewritten(db: sqlite3.Connection, data: st.DataObject) -> str:
    """Put a value into a column of a table; which."""
    named = "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE 'CREATE TABLE%'"
    tables = [
        n for (n,) in db.execute(named) if "_fts" not in n and n not in ("checkpoints", "writes")
    ]
    table = data.draw(
        st.sampled_from([t for t in tables if db.execute(f"SELECT 1 FROM {t}").fetchone()])
    )
    column = data.draw(
        st.sampled_from([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
    )
    rows = [rowid for (rowid,) in db.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
    row = data.draw(st.sampled_from(rows))
    (before,) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", [row]).fetchone()
    value = data.draw(values(before))
    if isinstance(value, str):
        value = value.encode(errors="replace").decode()
    with suppress(sqlite3.IntegrityError):
        db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", [value, row])
    return f"{table}.{column} = {value!r}"


@pytest.mark.parametrize("commands", [READING, CHANGING], ids=["reading", "changing"])
def test_any_value_in_any_column(
    command: Command, written: Path, commands: list[list[str]]
) -> None:
    @settings(max_examples=torture or 15, phases=[Phase.generate], report_multiple_bugs=False)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        shutil.copy(written, "anytime.db")
        with closing(sqlite3.connect("anytime.db")) as db, db:
            what = rewritten(db, data)
        for words in commands:
            Path("page.html").unlink(missing_ok=True)
            done = command(*words)
            assert done.exit_code in (0, 1, 2), (what, words, done.output)
            assert not set(done.output) & set("\x1b\x07\u202e"), (what, words)
            if Path("page.html").exists():
                assert "<img" not in Path("page.html").read_text(encoding="utf-8"), what

    holds()
