"""The commands over a ledger, on ledgers that real runs have written."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from click.testing import Result

from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from anytime_graph.cli import display
from anytime_graph.text import clipped, harmless
from tests.kit.commands import Command, begun, environment, told
from tests.kit.forks import forked
from tests.kit.kills import ended as gone
from tests.kit.server import Reply, Server

COMMANDS = ["threads", "show", "best", "export", "plot", "resume", "rm"]
RULES = ["--include", "fox", "--include", "river", "--include", "bend", "--words", "3-9"]
TABLES = ["runs", "calls", "answers", "curve", "checkpoints", "writes"]
TEXTS = ["A fox.", "A river.", "A river and a fox.", "A bend.", "The river and the fox bend."]


def improving(request: dict[str, Any], i: int) -> Reply:
    return Reply(text=TEXTS[i % len(TEXTS)])


@pytest.fixture
def solve(command: Command) -> Command:
    def invoke(thread: str, *words: str, question: str = "Why do rivers bend?") -> Result:
        own = ["--db", "anytime.db"] if "--db" not in words else []
        model = ["--model", "openai:scripted"]
        done = command("solve", question, "--thread", thread, *model, *own, *words)
        assert done.exit_code == 0, done.output
        return done

    return invoke


# --- reading


def test_threads_are_listed_newest_first(server: Server, command: Command, solve: Command) -> None:
    server.script = improving
    solve("rivers", "--calls", "5", *RULES)
    solve("foxes", "--calls", "1", question="Why are foxes red?\nReally?")
    done = command("threads")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["thread", "foxes", "rivers"]
    assert "Why are foxes red? Really?" in done.stdout
    listed = json.loads(command("threads", "--json").stdout)
    rivers = listed[1]
    assert (rivers["score"], rivers["answer"]) == (1.0, TEXTS[-1])
    assert rivers["stop_reason"] == "perfect"
    assert sum(row["tokens"] for row in listed) == server.served
    assert sum(row["calls"] for row in listed) == len(server.calls)
    assert [row["running"] for row in listed] == [False, False]
    assert f"{rivers['tokens']:,}" in lines[2]
    assert {"1.00", "perfect"} <= set(lines[2])


def test_threads_are_found_by_their_words(server: Server, command: Command, solve: Command) -> None:
    server.script = lambda request, i: Reply(text="They meander." if i == 0 else "Camouflage!")
    solve("rivers", "--calls", "1", "--answer", "whole")
    solve("foxes", "--calls", "1", "--answer", "whole", question="Why are foxes red?")

    def found(words: str) -> list[str]:
        listed = json.loads(command("threads", "--search", words, "--json").stdout)
        return [row["thread"] for row in listed]

    assert found("rivers") == found("MEANDER") == ["rivers"]
    assert found("why") == ["foxes", "rivers"]
    assert found("camouflage meander") == []
    for wild in ('"', "AND", "a*b(", "NOT x:y", "-", "'; --", "%s"):
        assert found(wild) == []
    assert "no thread contains the words 'zebra'" in command("threads", "--search", "zebra").stderr


def test_show_tells_what_happened(server: Server, command: Command, solve: Command) -> None:
    server.script = improving
    solve("rivers", "--calls", "4", *RULES, "--price", "1,4")
    solve("rivers", "--tokens", "400", question="And glaciers?")
    story = command("show", "rivers").stdout
    for part in (
        "Why do rivers bend?",
        "And glaciers?",
        "run 1 of 2",
        "strategy adaptive, the scorer decides",
        "scripted",
        "Answer 0: draft",
        "A river and a fox.",
        "to mend: The text must contain 'bend'",
        "over",
        "by the scorer",
        "Stopped by: calls",
        "4 of 4 calls",
        "of 400 tokens",
        "complete",
        ", the best",
    ):
        assert part in story
    assert story.index("Why do rivers bend?") < story.index("And glaciers?")
    out = json.loads(command("show", "rivers", "--json").stdout)
    first, second = out["runs"]
    assert out["running"] is False
    assert [c["kind"] for c in first["calls"]] == ["draft", "draft", "draft", "draft"]
    assert sum(c["tokens"] for r in out["runs"] for c in r["calls"]) == server.served
    assert {a["answer"] for a in first["answers"]} == set(TEXTS[:4])
    assert first["pairs"][0]["why"]
    assert first["spent"]["usd"] > 0
    assert second["limits"] == {"tokens": 400}


def test_show_tells_who_decides_without_a_scorer(
    server: Server, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    server.script = lambda request, i: Reply("<answer>7</answer>")
    command(
        "solve", "How many?", "--db", "anytime.db", "--thread", "t", "--model", "openai:scripted"
    )
    assert "the votes decide, among equals the judge" in command("show", "t").stdout


def test_show_draws_a_page(server: Server, command: Command, solve: Command) -> None:
    server.script = improving
    solve("rivers", "--calls", "4", *RULES)
    done = command("show", "rivers", "--html", "rivers.html")
    assert (done.exit_code, done.stdout) == (0, "rivers.html\n")
    assert "A river and a fox." in Path("rivers.html").read_text(encoding="utf-8")
    assert command("show", "rivers", "--html", "nowhere/a.html").exit_code != 0
    assert "choose one of --json and --html" in told(
        command("show", "rivers", "--html", "a.html", "--json")
    )


def test_best_is_the_answer_and_nothing_else(
    server: Server, command: Command, solve: Command
) -> None:
    answer = "Water\r\n\tcuts — \x1b[31mbends\x1b[0m\u2028and [bold]fills[/bold]. \U0001f98a"
    server.script = lambda request, i: Reply(text=answer)
    done = solve("rivers", "--calls", "1", "--answer", "whole")
    assert done.stdout_bytes.decode() == answer + "\n"
    assert command("best", "rivers").stdout_bytes.decode() == answer + "\n"


def test_what_a_model_wrote_is_shown_and_not_obeyed(
    server: Server, command: Command, solve: Command
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m[bold red]x[/] [/nothing] :boom: \u202egnp.exe\x08 fox"
    server.script = lambda request, i: Reply(text=f"{evil} {i}")
    thread = "t\x1b[31m[bold]"
    solve(thread, "--calls", "3", "--include", "fox", "--include", evil[:9], question=evil)
    for words in (["threads"], ["show", thread]):
        shown = command(*words).stdout
        assert "[bold red]x[/] [/nothing] :boom:" in shown
        assert not set(shown) & set("\x1b\x07\x9b\x08\u202e\r")
        as_json = command(*words, "--json").stdout
        assert not set(as_json) & set("\x1b\x07\x9b\x08\u202e\r")
        told = json.loads(as_json)
        question = told[0]["question"] if words == ["threads"] else told["runs"][0]["question"]
        assert question.startswith(evil.strip())
    assert command("best", thread).stdout.startswith(evil)


def test_harmless_text_reads_the_same() -> None:
    assert harmless("é\t日本\r\n👩‍👩‍👧 -") == "é\t日本\n👩‍👩‍👧 -"
    assert harmless("a\x1b[2Jb\ud800\u202ec\x85") == "a�[2Jb��c�"
    assert clipped("a \n b" + "c" * 99, 9) == "a bccccc…"
    assert clipped("a" + "\u0301" * 500 + "b", 9) == "a" + "\u0301" * 143 + "…"


def test_a_terminal_gets_a_harmless_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anytime_graph.cli import display

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    display.say("a\x1b[2Jb")
    assert capsys.readouterr().out == "a�[2Jb\n"


# --- what is not there


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str, command: Command) -> None:
    done = command(name, "--help")
    assert done.exit_code == 0
    assert f"anytime-graph {name} " in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["threads"],
        ["show", "t"],
        ["best", "t"],
        ["export", "t", "--as", "dpo"],
        ["plot", "t", "-o", "x.png"],
        ["resume", "t"],
        ["rm", "t", "--yes"],
        ["profile"],
        ["audit"],
        ["forget", "--yes"],
        ["quota", "show"],
        ["spend"],
    ],
    ids=lambda words: str(words[0]),
)
def test_a_ledger_that_is_not_there_is_told_and_not_made(
    words: list[str], command: Command, solve: Command, tmp_path: Path
) -> None:
    for db, message in (
        ("nowhere.db", "there is no such file"),
        ("", "name a file"),
        (str(tmp_path), "this is a folder; name a file in it"),
        ("/dev/null", "this is not a file"),
        ("mysql://nobody:secret@127.0.0.1/x", "--db 'mysql://...': a SQLite file is needed"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "127.0.0.1"),
        (__file__, "not a SQLite database"),
    ):
        done = command(*words, "--db", db)
        assert done.exit_code == 2
        assert message in told(done)
        assert "secret" not in done.output
        assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "anytime.db").touch()
    done = command(*words)
    assert (done.exit_code, "this file is empty" in told(done)) == (2, True)
    assert (tmp_path / "anytime.db").stat().st_size == 0
    solve("other", "--calls", "1")
    done = command(*words)
    of_a_thread = "t" in words
    assert done.exit_code == (1 if of_a_thread else 0)
    assert ("there is no thread 't'" in told(done)) is of_a_thread
    assert "did you mean 'other'?" in told(command("best", "othr"))
    assert not (tmp_path / "x.png").exists()


def test_no_answer_yet_is_exit_code_1(server: Server, command: Command, tmp_path: Path) -> None:
    server.script = lambda request, i: Reply(error=401)
    words = ["--model", "openai:scripted", "--db", "anytime.db", "--thread", "t"]
    assert command("solve", "Why?", *words).exit_code == 1
    for words in (["best", "t"], ["plot", "t", "-o", "x.png"]):
        done = command(*words)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "no answer yet" in told(done)
    assert "Stopped by: errors" in command("show", "t").stdout
    assert "errors" in command("threads").stdout
    server.script = lambda request, i: Reply(text="A fox.")
    done = command("resume", "t")
    assert (done.exit_code, done.stdout) == (0, "A fox.\n"), done.output


# --- going on


def test_resume_thinks_on_as_the_question_was_asked(
    server: Server, command: Command, solve: Command
) -> None:
    server.script = improving
    solve("rivers", "--calls", "3", *RULES, "--strategy", "best_of_n", "--price", "1,4")
    before = json.loads(command("show", "rivers", "--json").stdout)["runs"][0]
    done = command("resume", "rivers", "--calls", "+2")
    assert (done.exit_code, done.stdout) == (0, TEXTS[-1] + "\n"), done.output
    (run,) = json.loads(command("show", "rivers", "--json").stdout)["runs"]
    assert run["options"] == before["options"]
    assert run["options"]["strategy"] == run["strategy"] == "best_of_n"
    assert run["options"]["include"] == ["fox", "river", "bend"]
    assert (run["limits"], run["decides"]) == ({"calls": 5}, "scorer")
    assert run["spent"]["usd"] == pytest.approx(
        sum(c.prompt * 1e-6 + c.output * 4e-6 for c in server.calls)
    )
    assert len(server.calls) == run["spent"]["calls"]


def test_resume_with_nothing_left_says_so(server: Server, command: Command, solve: Command) -> None:
    solve("rivers", "--calls", "2")
    made = len(server.calls)
    done = command("resume", "rivers")
    assert (done.exit_code, done.stdout) == (0, "fine\n")
    assert "what is left of its calls pays for no further step" in told(done)
    assert len(server.calls) == made <= 2


def test_resume_refuses_what_would_not_help(
    server: Server, command: Command, solve: Command
) -> None:
    solve("rivers", "--calls", "2")
    made = len(server.calls)
    for words, message in (
        (["--tokens", "+100"], "--tokens: the thread's budget does not limit its tokens"),
        (["--calls", "-1"], "--calls -1: a budget is from 0"),
        (["--calls", "some"], "not a valid integer"),
    ):
        done = command("resume", "rivers", *words)
        assert done.exit_code == 2
        assert message in told(done)
    assert len(server.calls) == made


def test_resume_goes_on_with_the_scorer_in_a_file(
    server: Server, command: Command, solve: Command, tmp_path: Path
) -> None:
    (tmp_path / "check.py").write_text("def longer(q, a):\n    return len(a) / 50\n")
    server.script = lambda request, i: Reply(text="x" * (i + 1))
    solve("t", "--check", "check.py:longer", "--calls", "3", "--answer", "whole")
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    done = command("resume", "t", "--calls", "+2", "--db", "../anytime.db", "--json")
    out = json.loads(done.stdout)
    assert (out["answer"], out["score"]) == ("xxxxx", 0.1)


@pytest.mark.parametrize(
    "option", ["check", "model", "judge", "price", "matches", "namespace", "memory", "keys"]
)
def test_what_somebody_else_wrote_into_the_ledger_is_not_run(
    server: Server, command: Command, solve: Command, tmp_path: Path, option: str
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(
        f"import os\nos.mkdir({str(ran)!r})\ndef f(q, a): return 0.5\n"
    )
    dear = {"model": "openai:dear", "judge": "openai:dear", "price": "0,0", "matches": "(a+)+$"}
    whose = {"namespace": "bob", "memory": True, "keys": ["user=bob", "tenant=b b"]}
    theirs = {"check": f"{tmp_path}/theirs.py:f", **dear, **whose}
    written = {"matches": "--matches '(a+)+$'", "memory": "--memory"}
    written["keys"] = "--key user=bob --key 'tenant=b b'"
    solve("t", "--calls", "2")
    made = len(server.calls)
    with closing(sqlite3.connect("anytime.db")) as db, db:
        (kept,) = db.execute("SELECT options FROM runs").fetchone()
        changed = json.dumps({**json.loads(kept), option: theirs[option]})
        db.execute("UPDATE runs SET options = ?", [changed])
    done = command("resume", "t", "--calls", "+2")
    assert done.exit_code == 2
    assert written.get(option, f"--{option} {theirs[option]}") in told(done)
    assert not ran.exists()
    assert len(server.calls) == made
    own = ["--model", "openai:scripted", "--judge", "openai:scripted", "--price", "1,2", "--key"]
    own += ["user=ann", "--memory", "--namespace", "ann"]
    rule = ["--matches", "fox"] if option == "matches" else ["--check", theirs["check"]]
    done = command("resume", "t", "--calls", "+2", *own, *rule)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "option", ["strategy", "answer", "words", "include", "rubric", "ends_with"]
)
@pytest.mark.parametrize("value", [[1], {"a": 1}, 1.5, "zzz"])
def test_options_in_the_ledger_that_are_none_are_an_error(
    command: Command, solve: Command, option: str, value: Any
) -> None:
    solve("t", "--calls", "2")
    with closing(sqlite3.connect("anytime.db")) as db, db:
        changed = json.dumps({option: value})
        db.execute("UPDATE runs SET options = ?", [changed])
    done = command("resume", "t", "--calls", "+2", "--model", "openai:scripted")
    fine = value == "zzz" and option in ("rubric", "ends_with")
    assert done.exit_code == (0 if fine else 2), done.output


@pytest.mark.parametrize("table", ["checkpoints", "writes"])
def test_no_code_in_a_checkpoint_is_run(
    server: Server, command: Command, solve: Command, tmp_path: Path, table: str
) -> None:
    """LangGraph's serializer would import what a checkpoint names, and call it."""
    solve("t", "--calls", "2")
    ran = tmp_path / "ran"
    code = ormsgpack.Ext(0, ormsgpack.packb(("os", "mkdir", str(ran))))
    plain = ormsgpack.OPT_NON_STR_KEYS

    def with_code(kept: bytes) -> bytes:
        state = ormsgpack.unpackb(kept, ext_hook=ormsgpack.Ext, option=plain)
        state["channel_values"]["more"] = code
        return ormsgpack.packb(state, option=plain)

    with closing(sqlite3.connect("anytime.db")) as db, db:
        if table == "writes":
            db.execute("UPDATE writes SET type = 'msgpack', value = ?", [ormsgpack.packb(code)])
        else:
            db.create_function("with_code", 1, with_code)
            db.execute("UPDATE checkpoints SET checkpoint = with_code(checkpoint)")
    done = command("resume", "t", "--calls", "+2")
    assert not ran.exists()
    assert done.exit_code in (0, 2), done.output


MARKUP = "<img src=x onerror=alert(1)>\x1b]52;c;aGk=\x07\x1b[2J\u202e[/nothing]"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("answers", "parents", json.dumps([MARKUP])),
        ("answers", "parents", "[1e999]"),
        ("answers", "ordinal", MARKUP),
        ("answers", "node", MARKUP),
        ("calls", "ordinal", MARKUP),
        ("calls", "kind", MARKUP),
        ("calls", "model", MARKUP),
        ("pairs", "decided_by", MARKUP),
        ("pairs", "why", MARKUP),
        ("runs", "strategy", MARKUP),
        ("runs", "limits", "[" * 100_000),
    ],
)
def test_what_somebody_wrote_into_a_shared_ledger_is_neither_markup_nor_obeyed(
    server: Server, command: Command, solve: Command, table: str, column: str, value: str
) -> None:
    server.script = improving
    solve("t", "--calls", "4", *RULES)
    with closing(sqlite3.connect("anytime.db")) as db, db:
        changed = db.execute(
            f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT max(rowid) FROM {table})",
            [value],
        )
        assert changed.rowcount == 1
    page = command("show", "t", "--html", "page.html")
    assert page.exit_code in (0, 2), page.output
    if page.exit_code == 0:
        assert "<img" not in Path("page.html").read_text(encoding="utf-8")
    for words in (["show", "t"], ["threads"], ["best", "t"], ["profile"]):
        done = command(*words)
        assert done.exit_code in (0, 2), done.output
        assert not set(done.output) & set("\x1b\x07\u202e"), words


def test_options_of_another_thread_or_user_are_not_taken(
    command: Command, solve: Command, tmp_path: Path
) -> None:
    solve("mine", "--calls", "2")
    solve("theirs", "--calls", "2")
    with closing(sqlite3.connect("anytime.db")) as db, db:
        db.execute(
            "UPDATE runs SET options = (SELECT options FROM runs WHERE thread = 'theirs') "
            "WHERE thread = 'mine'"
        )
    assert "give them again" in told(command("resume", "mine", "--calls", "+1"))
    key = tmp_path / "config" / "anytime-graph" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.unlink()
    assert "give them again" in told(command("resume", "theirs", "--calls", "+1"))


def test_a_thread_of_a_program_needs_a_model(server: Server, command: Command) -> None:
    with open_checkpoints("anytime.db") as store:
        graph = create_anytime_graph(server.model(), budget=Budget(calls=1), ledger=store.ledger)
        app = graph.compile(checkpointer=store.saver)
        app.invoke({"messages": [("user", "Why?")]}, {"configurable": {"thread_id": "t"}})
    done = command("resume", "t", "--calls", "+3")
    assert done.exit_code == 2
    assert "give --model (it was scripted)" in told(done)
    done = command("resume", "t", "--calls", "+3", "--model", "openai:scripted")
    assert (done.exit_code, done.stdout) == (0, "fine\n"), done.output
    assert len(server.calls) == 4


def ended(server: Server, *words: str, calls: int, by: int) -> tuple[int | None, str]:
    with begun(server, list(words), calls) as process:
        assert process.pid
        os.kill(process.pid, by)
        code = gone(process)
    server.settled()
    return code, Path("stdout").read_text()


def slow(*places: int) -> Callable[[dict[str, Any], int], Reply]:
    return lambda request, i: (
        Reply(text=None, pace=0.01) if i in places else Reply(text=f"<answer>kept {i}</answer>")
    )


DOOMED = [
    "Why do rivers bend?",
    "--db",
    "anytime.db",
    "--thread",
    "t",
    "--model",
    "openai:scripted",
]


def test_resume_after_a_kill_pays_for_nothing_twice(server: Server, command: Command) -> None:
    server.script = slow(2)
    words = [*DOOMED, "--tokens", "3000", "--strategy", "self_refine"]
    ended(server, "solve", *words, calls=3, by=signal.SIGKILL)
    assert command("best", "t").stdout == "kept 0\n"
    assert "To go on: anytime-graph resume t --db anytime.db" in command("show", "t").stdout
    done = command("resume", "t")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("kept ")
    (run,) = json.loads(command("show", "t", "--json").stdout)["runs"]
    assert server.served <= run["spent"]["tokens"] <= 3000
    assert [c["state"] for c in run["calls"]].count("abandoned") == 1
    assert len(server.calls) == run["spent"]["calls"]
    assert "lost with its process" in command("show", "t").stdout


def test_how_to_go_on_is_safe_to_paste_whoever_chose_the_threads_name() -> None:
    words = shlex.split(display.again("x; touch hacked $(id)", "other.db"))
    assert words == ["anytime-graph", "resume", "x; touch hacked $(id)", "--db", "other.db"]


def test_how_to_go_on_shows_no_password() -> None:
    for password in ("s3cr3t", "s3@cr3t", "s3:cr3t", "s3/cr3t"):
        shown = display.again("t", f"postgresql://ann:{password}@db.example:5432/books")
        assert "cr3t" not in shown
        assert "postgresql://ann@db.example:5432/books" in shown
    assert "cr3t" not in display.again("t", "postgresql://db/books?user=ann&password=s3cr3t")


@pytest.mark.parametrize(
    "db",
    [
        "postgresql:ann:s3cr3t@db/books",
        "host=db password=s3cr3t",
        " postgresql://ann:s3cr3t@db/books",
        "postgresql://ann:s3@cr3t@127.0.0.1:1/books",
        "postgresql://ann:s3/cr3t@127.0.0.1:1/books",
        "postgresql://ann:s3cr3t/books",
    ],
)
@pytest.mark.parametrize("words", [["threads"], ["solve", "Why?", "--thread", "t", "--calls", "1"]])
def test_what_is_nearly_an_address_is_refused_without_its_password(
    command: Command, tmp_path: Path, db: str, words: list[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = command(*words, "--db", db)
    assert done.exit_code == 2
    assert "postgresql://USER@HOST" in told(done)
    assert "cr3t" not in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_terminal_that_is_too_narrow_breaks_the_lines_of_tables_itself(
    solve: Command, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve("a-thread", "--calls", "1")
    monkeypatch.setenv("COLUMNS", "30")
    for words, shown in (
        (["threads"], ("a-thread", "thread, question", "stopped by")),
        (["show", "a-thread"], ("how it", "ended", "complete")),
        (["spend", "--by", "user,model,node"], ("user", "model", "node", "scripted", "draft")),
    ):
        out = command(*words).stdout
        assert all(word in out for word in shown), out


def test_resume_after_a_kill_with_more_budget(server: Server, command: Command) -> None:
    server.script = slow(2)
    words = [*DOOMED, "--tokens", "3000", "--strategy", "self_refine"]
    ended(server, "solve", *words, calls=3, by=signal.SIGKILL)
    done = command("resume", "t", "--tokens", "+500", "--json")
    out = json.loads(done.stdout)
    assert out["limits"] == {"tokens": 3500}
    assert server.served <= out["spent"]["tokens"] <= 3500
    assert 3 < out["spent"]["calls"] == len(server.calls)


def test_ctrl_c_and_resume(server: Server, command: Command) -> None:
    server.script = slow(1, 3)
    words = [*DOOMED, "--calls", "12", "--strategy", "self_refine"]
    interrupted = {"by": signal.SIGINT}
    assert ended(server, "solve", *words, calls=2, **interrupted) == (130, "kept 0\n")
    told_next = "To go on: anytime-graph resume t --db anytime.db\n"
    assert Path("stderr").read_text().endswith(told_next)
    assert "interrupted" in command("threads").stdout
    assert ended(server, "resume", "t", calls=4, **interrupted) == (130, "kept 0\n")
    done = command("resume", "t", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["spent"]["calls"] == len(server.calls) > 4


def test_while_somebody_else_runs_it(server: Server, command: Command) -> None:
    server.script = slow(1)
    words = [*DOOMED, "--tokens", "90000", "--strategy", "self_refine"]
    with begun(server, ["solve", *words], calls=2) as process:
        assert command("best", "t").stdout == "kept 0\n"
        assert "running" in command("threads").stdout
        story = command("show", "t").stdout
        assert "in flight" in story
        assert "Running" in story
        for words in (["resume", "t"], ["rm", "t", "--yes"], ["solve", *DOOMED]):
            done = command(*words)
            assert (done.exit_code, done.stdout) == (1, "")
            assert "thread 't' is being run" in told(done)
        assert len(server.calls) == 2
        assert process.pid
        os.kill(process.pid, signal.SIGINT)
        assert gone(process) == 130
        assert Path("stdout").read_text() == "kept 0\n"
    assert command("rm", "t", "--yes").exit_code == 0


def test_resume_asks_again_if_the_checkpoints_were_lost(
    server: Server, command: Command, solve: Command
) -> None:
    server.script = improving
    first = solve("rivers", "--calls", "3", *RULES).stdout
    with closing(sqlite3.connect("anytime.db")) as db, db:
        db.execute("DELETE FROM checkpoints")
        db.execute("DELETE FROM writes")
    done = command("resume", "rivers")
    assert (done.exit_code, done.stdout) == (0, first), done.output
    assert len(server.calls) == 3
    with closing(sqlite3.connect("anytime.db")) as db, db:
        db.execute("DELETE FROM checkpoints")
        db.execute("DELETE FROM writes")
    done = command("resume", "rivers", "--calls", "+2")
    assert (done.exit_code, done.stdout) == (0, TEXTS[-1] + "\n"), done.output
    assert len(server.calls) == 5
    assert len(json.loads(command("show", "rivers", "--json").stdout)["runs"]) == 1


def test_resume_keeps_no_texts_where_none_were_kept(server: Server, command: Command) -> None:
    with open_checkpoints("anytime.db", record="usage") as store:
        graph = create_anytime_graph(server.model(), budget=Budget(calls=1), ledger=store.ledger)
        app = graph.compile(checkpointer=store.saver)
        app.invoke({"messages": [("user", "Why?")]}, {"configurable": {"thread_id": "t"}})
    done = command("resume", "t", "--calls", "+3", "--model", "openai:scripted")
    assert (done.exit_code, done.stdout) == (0, "fine\n"), done.output
    assert "(not kept)" in command("show", "t").stdout
    assert "(not kept)" in command("threads").stdout
    assert "not kept" in told(command("best", "t"))
    (run,) = json.loads(command("show", "t", "--json").stdout)["runs"]
    assert len(run["calls"]) == 4
    assert all(c["text"] is None for c in run["calls"])


# --- pictures


def picture(command: Command, path: str, thread: str = "t") -> bytes:
    done = command("plot", thread, "-o", path)
    assert (done.exit_code, done.output) == (0, f"{path}\n"), done.output
    return Path(path).read_bytes()


@pytest.mark.parametrize("rules", [RULES, []], ids=["scores", "no scores"])
def test_plot_draws_the_curve(
    server: Server, command: Command, solve: Command, rules: list[str]
) -> None:
    """With what TeX, fonts and terminals stumble over in the question."""
    server.script = improving
    solve("t", "--calls", "8", *rules, question="Cost $x_{2 of 日本 \x1b[2J \U0001f98a & 5$?")
    png = picture(command, "curve.png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    svg = picture(command, "curve.svg").decode()
    assert "tokens spent" in svg
    assert ("score of the best answer" in svg) is bool(rules)
    assert ("which answer is the best" in svg) is not bool(rules)
    solve("limited", "--tokens", "900", *rules)
    assert "the budget, 900 tokens" in picture(command, "limited.svg", "limited").decode()
    assert "an answer" in svg or not rules


def test_plot_says_what_is_wrong(
    server: Server, command: Command, solve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve("t", "--calls", "1")
    assert "svg" in told(command("plot", "t", "-o", "curve.txt"))
    assert command("plot", "t", "-o", "nowhere/curve.png").exit_code == 2
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = command("plot", "t", "-o", "curve.png")
    assert done.exit_code == 2
    assert "anytime-graph[plots]" in told(done)


# --- deleting


def test_rm_asks_and_deletes_the_record_and_the_checkpoints(
    server: Server, command: Command, solve: Command
) -> None:
    def rows() -> dict[str, int]:
        with closing(sqlite3.connect("anytime.db")) as db:
            return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in TABLES}

    solve("kept", "--calls", "2")
    kept = rows()
    solve("t", "--calls", "2")
    solve("t", "--calls", "2", question="Really?")
    before = rows()
    done = command("rm", "t", input="n\n")
    assert done.exit_code == 1
    assert "Delete 't' (2 questions, the last: Really?)?" in done.output
    assert rows() == before
    done = command("rm", "t", input="y\n")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "deleted 't'")
    assert rows() == kept
    listed = json.loads(command("threads", "--json").stdout)
    assert [row["thread"] for row in listed] == ["kept"]
    assert command("rm", "kept", "--yes").exit_code == 0
    assert set(rows().values()) == {0}


def test_rm_deletes_no_thread_that_began_while_it_asked(
    command: Command, solve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve("t", "--calls", "1")
    with open_checkpoints("anytime.db") as store:

        def agree(*words: Any, **how: Any) -> bool:
            store.ledger.enter("t", None, object())
            return True

        monkeypatch.setattr("click.confirm", agree)
        done = command("rm", "t")
        assert (done.exit_code, "thread 't' is being run" in done.stderr) == (1, True)
        assert [row["thread"] for row in store.ledger.threads()] == ["t"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is needed")
@pytest.mark.parametrize(
    "words",
    [
        "threads",
        "threads --json",
        "export t --as runs",
        "export t --as runs -o /dev/full",
        "spend --csv",
    ],
)
def test_what_a_full_disk_does_not_take_is_one_line(solve: Command, words: str) -> None:
    solve("t", "--calls", "1")
    done = forked(words.split(), Path.cwd(), environment(None), stdout="/dev/full")
    said = "Error: the output cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    "words", [["export", "--all", "--as", "runs", "-o"], ["show", "t", "--html"]]
)
def test_nothing_is_written_over_the_ledger(
    server: Server, command: Command, solve: Command, words: list[str]
) -> None:
    solve("t", "--calls", "1")
    done = command(*words, "anytime.db")
    assert (done.exit_code, "anytime.db: that is the ledger" in done.stderr) == (2, True)
    assert command("best", "t").exit_code == 0


# --- PostgreSQL


def test_all_of_it_on_postgresql(
    server: Server, command: Command, solve: Command, database: str
) -> None:
    server.script = improving
    db = ["--db", database]
    solve("t", "--calls", "3", *RULES, *db)
    assert command("best", "t", *db).stdout == TEXTS[2] + "\n"
    done = command("resume", "t", "--calls", "+2", *db)
    assert (done.exit_code, done.stdout) == (0, TEXTS[-1] + "\n"), done.output
    (listed,) = json.loads(command("threads", "--search", "rivers", "--json", *db).stdout)
    assert (listed["tokens"], listed["calls"]) == (server.served, 5)
    assert "5 of 5 calls" in command("show", "t", *db).stdout
    exported = command("export", "t", "--as", "runs", *db).stdout
    assert "search" not in json.loads(exported)
    assert "chosen" in command("export", "--all", "--as", "dpo", *db).stdout
    assert command("plot", "t", "-o", "x.png", *db).exit_code == 0
    assert command("rm", "t", "--yes", *db).exit_code == 0
    assert "no threads" in command("threads", *db).stderr
