"""What a file, a disk or a long run can do to the ledger; what other tools see in it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import traceback
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import Any

import pytest
import sqlite_utils
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import NodeError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    Draft,
    LedgerError,
    NoAnswer,
    Score,
    Stop,
    View,
    create_anytime_graph,
    open_checkpoints,
)
from anytime_graph.budget import nothing
from anytime_graph.checkpoints.target import check_address
from tests.kit.ledgers import ASK, ON, graph
from tests.kit.marks import both, torture
from tests.kit.server import Reply, Server, by_place

ON_A_DISK_OF_ITS_OWN = """
import json, subprocess, sys
from langchain_openai import ChatOpenAI
from anytime_graph import Budget, LedgerError, create_anytime_graph, open_checkpoints
url, folder, scenario = sys.argv[1:]
on = {"configurable": {"thread_id": "rivers"}}
ask = {"messages": [("user", "Why do rivers bend?")]}
model = ChatOpenAI(model="scripted", base_url=url, api_key="none", seed=0)
mount = lambda options: subprocess.run(["mount", *options, folder], check=True)
mount(["-t", "tmpfs", "-o", "size=1500k", "tmpfs"])
score = lambda question, answer: int(answer) / 10

def run(store, budget):
    graph = create_anytime_graph(model, budget=Budget(tokens=6_000), scorer=score, strategy="pdp", ledger=store.ledger)
    out = graph.compile(checkpointer=store.saver).invoke(budget, on)
    print(json.dumps([out["best"]["score"], out["stop_reason"], out["spent"]["tokens"]]))

if scenario == "full":
    with open_checkpoints(folder + "/a.db") as store:
        run(store, ask)
    mount(["-o", "remount,size=50m"])
    with open_checkpoints(folder + "/a.db") as store:
        run(store, {"budget": Budget(tokens=0)})
else:
    with open_checkpoints(folder + "/a.db"):
        pass
    mount(["-o", "remount,ro"])
    try:
        open_checkpoints(folder + "/a.db").__enter__()
    except LedgerError as error:
        print(json.dumps(str(error)))
"""


def on_a_disk_of_its_own(server: Server, folder: Path, scenario: str) -> list[Any]:
    """Run the program above where it may mount a disk that nobody else sees."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounting a small disk takes root and unshare")
    folder.mkdir()
    done = subprocess.run(
        [
            *("unshare", "--mount", sys.executable, "-c", ON_A_DISK_OF_ITS_OWN),
            *(server.url, str(folder), scenario),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_full_disk_ends_the_spending_not_the_answer(server: Server, tmp_path: Path) -> None:
    server.script = by_place
    (full, freed) = on_a_disk_of_its_own(server, tmp_path / "disk", "full")
    places = [c.request["seed"] for c in server.settled().calls]
    assert full[0] == 0.9
    assert "the disk is full; free some space, then resume" in full[1]
    assert full[2] <= freed[2] <= 6_000
    assert freed[1] == "tokens"
    assert server.served <= freed[2]
    assert len(set(places)) == len(places)


def test_a_disk_that_cannot_be_written_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    (said,) = on_a_disk_of_its_own(server, tmp_path / "disk", "readonly")
    assert "a.db" in said
    assert "permissions" in said


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    text, foreign, folder = tmp_path / "notes.txt", tmp_path / "shop.db", tmp_path / "folder"
    text.write_text("These are my notes.\n" * 100)
    with closing(sqlite3.connect(foreign)) as shop:
        shop.execute("CREATE TABLE orders (id)")
    folder.mkdir()
    for path, said in (
        (text, "this is not a SQLite database; name another file"),
        (foreign, "belongs to something else (it holds the tables orders)"),
        (folder, "Is a directory"),
        (tmp_path / "none" / "a.db", "No such file or directory"),
    ):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(LedgerError) as error:
            open_checkpoints(path).__enter__()
        assert str(path) in str(error.value)
        assert said in str(error.value)
        assert before is None or path.read_bytes() == before
    nothing_named: Any
    for nothing_named in ("", " ", ":memory:", None, b"a.db"):
        with pytest.raises(ValueError, match=r"target=.*name a file"):
            open_checkpoints(nothing_named)
    with pytest.raises(ValueError, match=r"target=.a.*x00.db.: a name without NUL"):
        open_checkpoints("a\0.db")
    with pytest.raises(ValueError, match="record='some'"):
        open_checkpoints(tmp_path / "a.db", record="some")  # type: ignore[arg-type]
    assert not (tmp_path / "a.db").exists()
    with pytest.raises(LedgerError, match="PostgreSQL"):
        open_checkpoints("postgresql://nobody@127.0.0.1:1/none").__enter__()


@pytest.mark.parametrize(
    "target",
    [
        "postgresql+psycopg://ann:se%cret@127.0.0.1/x",
        "POSTGRESQL://ann:se%cret@127.0.0.1/x",
        "mysql://ann:se%cret@127.0.0.1/x",
        Path("postgresql://ann:se%cret@127.0.0.1/x"),
        "postgresql://ann:se%cret@127.0.0.1/x",
        'postgresql://ann:a" se%cret@127.0.0.1/x',
        " postgresql://ann:secret@127.0.0.1/x",
        "postgresql:ann:secret@127.0.0.1",
        "postgresql://ann:secret@127.0.0.1/x\0",
        "postgresql://ann:se@cret@127.0.0.1:1/x",
        "postgresql://ann:se/cret@127.0.0.1:1/x",
        "postgresql://ann:7/cret@127.0.0.1:1/x",
        "postgresql://ann:secret/x",
        "host=127.0.0.1 password=secret",
        "host=127.0.0.1 password = 'secret'",
        "user=ann  passfile=secret",
        "PASSWORD=secret",
    ],
)
def test_the_password_in_an_address_is_in_no_error(
    target: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, LedgerError)) as error:
        open_checkpoints(target).__enter__()
    assert "cret" not in "".join(traceback.format_exception(error.value))
    assert re.search("address|postgresql://USER@HOST|without NUL", str(error.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["user=ann.db", "a: b.db", "a b.db", "C:.db", "user=a@b/x.db"])
def test_files_whose_names_are_no_addresses(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with open_checkpoints(path):
        assert path.is_file()


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ann:p%40%2F@a,[::1]:1,b:2/x?password=@/:",
        "postgresql://%40socket/x",
        "postgresql:///x?host=/tmp",
        "postgresql://ann:#?=p@h:/x",
        "postgresql://",
    ],
)
def test_addresses_are_taken(address: str) -> None:
    check_address(address)


def test_a_damaged_file_is_an_error_that_says_so(server: Server, tmp_path: Path) -> None:
    server.script = by_place
    path = tmp_path / "anytime.db"
    with open_checkpoints(path) as store:
        graph(server, store).compile(checkpointer=store.saver).invoke(ASK, ON)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(60 * 4096))
    with (
        pytest.raises(LedgerError, match="damaged; restore a copy"),
        open_checkpoints(path) as store,
    ):
        graph(server, store).compile(checkpointer=store.saver).invoke(ASK, ON)


def test_a_file_that_goes_bad_under_a_run_costs_no_answer(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "anytime.db"

    def script(request: dict[str, Any], i: int) -> Any:
        if i == 9:
            # Not the shared memory, which is mapped: to cut it short ends the process.
            for name in ("anytime.db", "anytime.db-wal"):
                with (tmp_path / name).open("r+b") as file:
                    file.write(b"junk " * ((tmp_path / name).stat().st_size // 5))
        return by_place(request, i)

    server.script = script
    with open_checkpoints(path) as store:
        app = graph(server, store, budget=Budget(tokens=1_500)).compile(checkpointer=store.saver)
        out = app.invoke(ASK, ON)
        spent = server.settled().served
        assert out["best"]["score"] == 0.9
        assert out["stop_reason"].startswith("ledger: ")
        assert out["spent"]["tokens"] >= spent


@pytest.mark.parametrize("name", ["anytime.db", "anytime.db-wal"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_taken_away_under_a_run_ends_the_spending_not_the_answer(
    server: Server, tmp_path: Path, name: str, replaced: bool
) -> None:
    """What went on into a file without a name would be in nobody's books."""
    path = tmp_path / "anytime.db"

    def script(request: dict[str, Any], i: int) -> Any:
        if i == 5:
            if replaced:
                shutil.copy(tmp_path / name, tmp_path / "copy")
                os.replace(tmp_path / "copy", tmp_path / name)
            else:
                (tmp_path / name).unlink()
        return by_place(request, i)

    server.script = script
    with open_checkpoints(path) as store:
        app = graph(server, store, budget=Budget(tokens=1_500)).compile(checkpointer=store.saver)
        out = app.invoke(ASK, ON)
        spent, calls = server.settled().served, len(server.calls)
        assert out["best"]["score"] >= 0.1
        assert f"{name} was deleted, moved or replaced" in out["stop_reason"]
        assert calls < 12, "no step after it was paid"
        assert out["spent"]["tokens"] >= spent
        with pytest.raises(LedgerError, match="deleted, moved or replaced"):
            app.invoke(ASK, {"configurable": {"thread_id": "another"}})
        assert len(server.calls) == calls


def test_only_its_owner_may_read_the_files(server: Server, tmp_path: Path) -> None:
    server.script = by_place
    old = os.umask(0)
    try:
        with open_checkpoints(tmp_path / "anytime.db") as store:
            graph(server, store).compile(checkpointer=store.saver).invoke(ASK, ON)
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600}, modes
    assert "anytime.db-wal" in modes


@pytest.mark.pairwise
@both
@pytest.mark.parametrize(
    "cause",
    [
        NoAnswer(["draft 0: HTTP 500"], {**nothing(), "tokens": 120, "calls": 1}, "tokens"),
        BudgetTooSmall({"tokens": 40, "usd": 0.1}, {"tokens": 60, "usd": 0.1}),
    ],
    ids=["NoAnswer", "BudgetTooSmall"],
)
def test_a_handler_that_runs_after_a_crash_is_given_the_error_itself(
    target: str, cause: NoAnswer | BudgetTooSmall, sync: bool
) -> None:
    """A child has no answer, and its parent ends before it has dealt with that."""
    given: list[Any] = []

    def child(state: MessagesState) -> None:
        raise cause

    def handle(state: MessagesState, error: NodeError) -> Command[Any]:
        given.append(error.error)
        if len(given) == 1:
            raise OSError("the process ends")
        return Command(goto=END)

    graph = StateGraph(MessagesState)
    graph.add_node("child", child, error_handler=handle)
    graph.add_edge(START, "child")

    def lives() -> None:
        for input in (ASK, None):
            with open_checkpoints(target) as store, suppress(OSError):
                graph.compile(store.saver).invoke(input, ON, durability="sync")

    async def alives() -> None:
        for input in (ASK, None):
            async with open_checkpoints(target) as store:
                with suppress(OSError):
                    await graph.compile(store.saver).ainvoke(input, ON, durability="sync")

    if sync:
        lives()
    else:
        asyncio.run(alives())
    facts = [(type(e), str(e), {**vars(e), "__notes__": None}) for e in given]
    assert facts[1] == facts[0]


def test_a_file_that_a_process_opens_twice_loses_nothing_to_another_process(
    server: Server, tmp_path: Path
) -> None:
    """LangGraph's server imports a module once for its graph and once for its `auth`. The other process
    reads, and is the last to close the file as far as it knows."""
    server.script = by_place
    path = tmp_path / "anytime.db"
    elsewhere = """import sqlite3, sys
file = sqlite3.connect(sys.argv[1])
print(file.execute("SELECT count(*) FROM runs").fetchone())
file.close()"""
    reading = [sys.executable, "-c", elsewhere, str(path)]

    def read() -> str:
        return subprocess.run(reading, check=True, capture_output=True, text=True).stdout.strip()

    with open_checkpoints(path) as store, open_checkpoints(path):
        app = graph(server, store).compile(checkpointer=store.saver)
        seen = []
        for name in "abc":
            app.invoke(ASK, {"configurable": {"thread_id": name}})
            seen.append(read())
    assert seen == ["(1,)", "(2,)", "(3,)"]


def test_sqlite_utils_makes_sense_of_the_file(server: Server, tmp_path: Path) -> None:
    server.script = by_place
    path = tmp_path / "anytime.db"
    with open_checkpoints(path) as store:
        out = graph(server, store).compile(checkpointer=store.saver).invoke(ASK, ON)
    with sqlite_utils.Database(path) as db:
        assert list(db.query("PRAGMA foreign_key_check")) == []
        (best,) = db.view("best_answers").rows
        assert (best["answer"], best["tokens"]) == (out["best"]["answer"], out["spent"]["tokens"])
        spent = {row["node"]: row["tokens"] for row in db.view("spend_by_node").rows}
        assert spent == {node: spend["tokens"] for node, spend in out["spent_by"].items()}
        assert [r["question"] for r in db.table("runs").search("rivers")] == ["Why do rivers bend?"]
        assert list(db.table("answers").search(out["best"]["answer"]))
        keys = {(fk.column, fk.other_table) for fk in db.table("pairs").foreign_keys}
        assert keys == {("run_id", "runs"), ("chosen_id", "answers"), ("rejected_id", "answers")}
        db.vacuum()
        assert list(db.table("runs").search("rivers"))


def test_a_long_run_keeps_its_checkpoints_small(tmp_path: Path) -> None:
    """P6: bytes per checkpoint are flat, the ledger grows with the calls and no faster."""
    steps = 10_000 if torture else 300
    early, late = slice(100, steps // 10 + 100), slice(steps - steps // 10, steps)

    def replies() -> Any:
        for i in range(steps + 1):
            yield AIMessage(f"<answer>answer {i:06}</answer>")

    path = tmp_path / "anytime.db"
    with open_checkpoints(path) as store:
        app = create_anytime_graph(
            GenericFakeChatModel(messages=replies()),
            budget=Budget(calls=steps),
            scorer=lambda question, answer: int(answer.split()[1]) / (steps + 1),
            strategy=lambda view: [Draft()],
            ledger=store.ledger,
        ).compile(checkpointer=store.saver)
        out = app.invoke(ASK, {**ON, "recursion_limit": 3 * steps})
    assert (out["spent"]["calls"], out["stop_reason"]) == (steps, "calls")
    with sqlite_utils.Database(path) as db:
        sizes = [
            row["bytes"]
            for row in db.query(
                "SELECT length(checkpoint) AS bytes FROM checkpoints ORDER BY checkpoint_id"
            )
        ][::2]
        assert len(sizes) >= steps
        assert mean(sizes[late]) < 1.1 * mean(sizes[early])
        rows = [
            row["bytes"]
            for row in db.query(
                "SELECT length(task) + length(reply) + length(request) + length(text) AS bytes "
                "FROM calls ORDER BY ordinal"
            )
        ]
        assert len(rows) == db.table("answers").count == steps
        assert mean(rows[late]) < 1.1 * mean(rows[early])
        assert all(a <= b for a, b in pairwise(p["tokens"] for p in db.table("curve").rows))


@pytest.mark.parametrize("odd", ["ri\0vers", "ri\ud800vers"], ids=["NUL", "surrogate"])
def test_ids_that_cannot_be_stored_are_refused_before_anything_is_paid(
    server: Server, target: str, odd: str
) -> None:
    on: Any = {"configurable": {"thread_id": odd}}
    with open_checkpoints(target) as store:
        app = graph(server, store).compile(checkpointer=store.saver)
        with pytest.raises(ValueError, match="an id without NUL"):
            app.invoke(ASK, on)
        on["configurable"] = {"thread_id": "t", "checkpoint_ns": odd}
        with pytest.raises(ValueError, match="an id without NUL"):
            store.saver.get_tuple(on)

    async def asked() -> None:
        async with open_checkpoints(target) as store:
            app = graph(server, store).compile(checkpointer=store.saver)
            with pytest.raises(ValueError, match="thread_id="):
                await app.ainvoke(ASK, {"configurable": {"thread_id": odd}})

    asyncio.run(asked())
    assert not server.calls


@pytest.mark.parametrize("odd", ["ri\0vers", "ri\ud800vers"], ids=["NUL", "surrogate"])
def test_a_thread_that_cannot_be_stored_is_looked_for_in_vain(target: str, odd: str) -> None:
    """A server's clients name threads."""
    with open_checkpoints(target) as store:
        ledger = store.ledger
        assert (ledger.best(odd), ledger.runs(odd), ledger.curve(odd)) == (None, [], [])
        assert ledger.critiques(odd) == []
        assert ledger.spent_by_agents(odd)["tokens"] == 0
        assert not ledger.forget(odd)


def test_a_ledger_beside_another_saver_refuses_them_too(server: Server, target: str) -> None:
    with open_checkpoints(target) as store:
        app = graph(server, store).compile(checkpointer=InMemorySaver())
        with pytest.raises(ValueError, match="thread_id='t\\\\x00'"):
            app.invoke(ASK, {"configurable": {"thread_id": "t\0"}})
    assert not server.calls


def test_nul_is_stored_wherever_it_comes_from(server: Server, target: str) -> None:
    """In the question and its id, in replies, in feedback, and in a strategy's reason."""
    odd = "\0"
    server.script = lambda request, i: Reply(f"I {odd} say <answer>{odd}{i}</answer>")

    def scorer(question: str, answer: str) -> Score:
        return Score(0.1 * int(answer[-1]), f"more {odd}, please")

    def strategy(view: View) -> list[Any]:
        return [Draft()] if view.spent["calls"] < 2 else [Stop(f"enough {odd}")]

    question = HumanMessage(f"Why {odd} do rivers bend?", id=f"{odd}1")
    with open_checkpoints(target) as store:
        app = create_anytime_graph(
            server.model(),
            budget=Budget(calls=4),
            scorer=scorer,
            strategy=strategy,
            ledger=store.ledger,
            memory=store.ledger,
        ).compile(checkpointer=store.saver)
        out = app.invoke({"messages": [question]}, ON, context={"namespace": [f"a{odd}"]})
        assert out["best"]["score"] == 0.1
        assert out["stop_reason"].startswith("enough")
        (run,) = store.ledger.runs("rivers")
        assert run["spent"]["tokens"] == server.settled().served
        more = app.invoke({"budget": Budget(calls=1)}, ON)
        assert len(store.ledger.runs("rivers")) == 1, "the same question, by its id"
        assert more["best"]


def test_checkpoints_opened_for_the_other_kind_of_call_say_what_to_write(
    server: Server, target: str
) -> None:
    def app(store: Any) -> Any:
        return graph(server, store).compile(checkpointer=store.saver)

    async def history(app: Any) -> list[Any]:
        return [state async for state in app.aget_state_history(ON)]

    with open_checkpoints(target) as store:
        made = app(store)
        for called in (made.ainvoke(ASK, ON), made.aget_state(ON), history(made)):
            with pytest.raises(
                LedgerError, match=r"`async with open_checkpoints\(...\) as store:`"
            ):
                asyncio.run(called)
        assert made.invoke(ASK, ON)["best"]

    async def other() -> None:
        async with open_checkpoints(target) as store:
            made = app(store)
            for called in (
                lambda: made.invoke(ASK, ON),
                lambda: made.get_state(ON),
                lambda: list(made.get_state_history(ON)),
            ):
                with pytest.raises(LedgerError, match=r"`with open_checkpoints\(...\) as store:`"):
                    called()
            assert await history(made)

    asyncio.run(other())


def circle() -> list[Any]:
    round_: list[Any] = []
    round_.append(round_)
    return round_


UNSTORABLE = {
    "a lock": Lock(),
    "a generator": (n for n in range(3)),
    "a function": len,
    "a circle": circle(),
    "a number of 20 digits": 10**20,
    "depth": json.loads("[" * 300 + "]" * 300),
}


@pytest.mark.pairwise(2)
@pytest.mark.parametrize("place", ["response_metadata", "additional_kwargs", "artifact"])
@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE.keys())
def test_what_cannot_be_stored_of_a_message_costs_no_answer(
    value: Any, place: str, server: Server, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """LangGraph would find out at the end of the run, and lose what was paid for."""
    known = {"file": b"\xff", "nan": float("nan"), "nul": "\0"}
    if place == "artifact":
        call = {"name": "look", "args": {}, "id": "1"}
        tool = ToolMessage("seen", tool_call_id="1", artifact=value)
        messages = [HumanMessage("Look."), AIMessage("", tool_calls=[call]), tool]
    else:
        messages = [HumanMessage("Look.", **{place: {**known, "odd": value}})]
    app = graph(server, store, budget=Budget(calls=2)).compile(store.saver)
    out = app.invoke({"messages": [*messages, HumanMessage("Why do rivers bend?")]}, ON)
    assert out["best"]["answer"]
    assert "is left out" in caplog.text
    again = app.invoke({"budget": Budget(calls=1)}, ON)
    assert (again["spent"]["calls"], len(server.calls)) == (3, 3)
    if place != "artifact":
        kept = getattr(again["messages"][0], place)
        assert (kept["file"], kept["nul"], "odd" in kept) == (b"\xff", "\0", False)


def test_a_content_that_cannot_be_stored_is_refused_before_anything_is_paid(
    server: Server, store: Any
) -> None:
    app = graph(server, store).compile(store.saver)
    content: Any = [{"type": "text", "text": "Why?", "odd": Lock()}]
    for messages in ([HumanMessage(content)], {"role": "user", "content": "Why?", "odd": Lock()}):
        with pytest.raises(ValueError, match=r"messages\[0\]: the checkpointer cannot store"):
            app.invoke({"messages": messages}, ON)
    assert server.calls == []


def test_without_a_checkpointer_a_message_stays_as_it_is(server: Server) -> None:
    lock = Lock()
    message = HumanMessage("Why do rivers bend?", response_metadata={"odd": lock})
    out = graph(server, None).compile().invoke({"messages": [message]})
    assert out["messages"][0].response_metadata["odd"] is lock
