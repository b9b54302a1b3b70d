"""What a version of this library leaves behind: threads in every state, a ledger, a memory, an agent's
thread, a profile, a benchmark. Later versions must read it: see test_stored.py.

`python -m tests.kit.stored NAME` makes tests/data/stored/NAME with the code that is checked out, so it is
run at the commit whose files it shall keep, never later; with names behind it, of these threads only.
"eab4559" was made there, before states, planned calls and agents' threads said of which form they are;
"99d5669" of THREADS without those that it could not have, in the first half of this history. A set holds

- anytime.db.xz: threads, ledger and LangGraph's store in SQLite; anytime.sql.xz: the same in
  PostgreSQL, as pg_dump writes it;
- figures.json.xz: what the command line and the graphs say of both;
- profile.json, and bench/: the --out directory of a benchmark.

Only the public API is used here, so that this file stays true. The model is the server of the tests.
Ids and times are new in each set; which threads there are, how they end and what they cost is not.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.store.base import BaseStore

from anytime_graph import Budget, Prices, create_anytime_graph, fork, open_checkpoints
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.places import DATA
from tests.kit.postgres import fresh, running
from tests.kit.server import Reply, Server, serving
from tests.kit.waiting import PATIENCE

SETS = DATA / "stored"
SPACE = ("acme", "ann")
QUESTION = "Why do rivers bend?"
SIMILAR = "Why do rivers bend so much?"
BUDGET = Budget(calls=8, tokens=4_000)
MORE = Budget(calls=4, tokens=2_000)
AGENT_BUDGET = Budget(tokens=3_000)
KILLED = {"killed": 4, "thinking": 10, "drafting": 2, "choosing": 2, "commanded": 3}
"""Threads whose process is killed while its n-th request is in flight and all others are over."""
THREADS = (
    "scored", "judged", "voted", "killed", "thinking", "stopped", "forked", "drafting", "choosing",
    "remembered", "shelved", "agent", "commanded",
)  # fmt: skip
MODEL = ["--model", "openai:scripted"]
BENCH = [
    *MODEL, "--task", "constraints", "--strategy", "single,pdp", "--budgets", "256,768",
    "--samples", "2",
]  # fmt: skip


# --- the model


def script(request: dict[str, Any], i: int) -> Reply:
    """A digit for an answer, by how many came before it; the judge prefers the larger digit."""
    said = "\n".join(str(m["content"]) for m in request["messages"])
    looked_up = any(m["role"] == "tool" for m in request["messages"])
    if request.get("tools") and not looked_up:
        return Reply("Let me look.", tools=[("look_up", {"topic": "rivers"})])
    if "Compare two answers" in said:
        first, second = re.findall(r"The river bends (\d)", said)[-2:]
        verdict = "A" if first > second else "B" if second > first else "tie"
        if "response_format" in request:
            return Reply(json.dumps({"reason": "It says more.", "verdict": verdict}))
        return Reply(f"It says more.\nVerdict: {verdict}")
    answers = [f"so <answer>The river bends {(i + n) * 7 % 10}</answer>" for n in range(4)]
    text, *more = answers[: request.get("n") or 1]
    return Reply(text, more=list(more))


def score(question: str, answer: str) -> float:
    found = re.search(r"\d", answer)
    return int(found[0]) / 10 if found else 0.0


@tool
def look_up(topic: str) -> str:
    """Look up what is known about a topic."""
    return f"{topic} bend, " * 3


# --- the programs


def model(url: str, n: int | None = 1) -> ChatOpenAI:
    return ChatOpenAI(model="scripted", base_url=url, api_key="none", max_retries=0, n=n)


def graph(name: str, url: str, store: Any, shelf: BaseStore | None = None) -> Any:
    """The compiled graph, or agent, of a thread."""
    if name == "agent":
        budget = TokenBudgetMiddleware(AGENT_BUDGET, per="thread")
        return create_agent(model(url), [look_up], middleware=[budget], checkpointer=store.saver)
    options: dict[str, Any] = {
        "judged": {"scorer": "judge", "strategy": "best_of_n"},
        "forked": {"scorer": score, "strategy": "self_refine"},
        "voted": {"strategy": "self_consistency"},
        "drafting": {
            "scorer": score,
            "strategy": "single",
            "drafter": lambda metered: create_agent(metered, [look_up]),
        },
        "choosing": {"scorer": score, "strategy": "best_of_n"},
        "remembered": {"scorer": score, "strategy": "pdp", "memory": store.ledger},
        "shelved": {"scorer": score, "strategy": "pdp", "memory": shelf},
    }.get(name, {"scorer": score, "strategy": "pdp"})
    return create_anytime_graph(
        model(url, None if name == "choosing" else 1),
        budget=BUDGET,
        prices=Prices(input=1.0, output=4.0),
        ledger=store.ledger,
        **options,
    ).compile(checkpointer=store.saver)


def on(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def ask(question: str = QUESTION) -> Any:
    return {"messages": [("user", question)]}


@contextmanager
def shelved(target: str) -> Iterator[BaseStore]:
    """LangGraph's store in the same file or database."""
    if target.startswith("postgresql"):
        from langgraph.store.postgres import PostgresStore

        with PostgresStore.from_conn_string(target) as store:
            store.setup()
            yield store
    else:
        from langgraph.store.sqlite import SqliteStore

        with SqliteStore.from_conn_string(target) as store:
            store.setup()
            yield store


def live(name: str, target: str, url: str) -> None:
    """What the process of a thread does."""
    with contextlib.ExitStack() as stack:
        shelf = stack.enter_context(shelved(target)) if name == "shelved" else None
        store = stack.enter_context(open_checkpoints(target))
        app = graph(name, url, store, shelf)
        if name == "stopped":
            stop = threading.Event()
            for _ in app.stream(ask(), on(name), context={"stop": stop}, stream_mode="custom"):
                stop.set()
        elif name in ("remembered", "shelved"):
            app.invoke(ask(), on(name), context={"namespace": list(SPACE)})
        elif name == "agent":
            app.invoke(ask(), on(name))
        else:
            app.invoke({**ask(), "budget": BUDGET}, on(name))
        if name == "thinking":
            app.invoke({"budget": MORE}, on(name))
        if name == "forked":
            early = [s for s in app.get_state_history(on(name)) if s.values.get("candidates")][-1]
            app.invoke(None, fork(app, early.config, Budget(calls=6)))


# --- the making


def made(target: str, threads: Sequence[str]) -> None:
    """All threads, each by a process of its own."""
    for name in threads:
        with serving() as server:
            process = subprocess.Popen(_command(name, target, server), env=_environment(server))
            if name in KILLED:
                _killed(process, server, KILLED[name])
            elif process.wait():
                raise SystemExit(f"{name}: its process failed")


def _command(name: str, target: str, server: Server) -> list[str]:
    server.script = script
    if name in KILLED:
        server.script = _holding(KILLED[name])
    if name == "commanded":
        words = ["solve", QUESTION, "--db", target, "--thread", name, "--calls", "6"]
        rules = ["--include", "river", "--strategy", "self_refine", "--words", "9-12"]
        return [sys.executable, "-m", "anytime_graph", *words, *rules, *MODEL]
    return [sys.executable, "-m", "tests.kit.stored", "live", name, target, server.url]


def _environment(server: Server) -> dict[str, str]:
    return {**os.environ, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url}


def _holding(nth: int) -> Any:
    def reply(request: dict[str, Any], i: int) -> Reply:
        return Reply(error="hang") if i == nth - 1 else script(request, i)

    return reply


def _killed(process: subprocess.Popen[bytes], server: Server, nth: int) -> None:
    with server.changed:
        asked = server.changed.wait_for(
            lambda: len(server.calls) >= nth and server.open == 1, timeout=PATIENCE
        )
    time.sleep(1)  # until what came back is in the checkpoint
    process.kill()
    process.wait()
    if not asked:
        raise SystemExit(f"request {nth} was never made alone: {len(server.calls)}")


def spoken(target: str, *words: str) -> str:
    """What the command line says."""
    from click.testing import CliRunner

    from anytime_graph.cli import main

    done = CliRunner().invoke(main, [*words, "--db", target], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def figures(target: str, threads: Sequence[str] = THREADS) -> dict[str, Any]:
    """What the command line says of all that is stored, without what is internal."""
    listed = json.loads(spoken(target, "threads", "--json"))
    story = {row["thread"]: shown(target, row["thread"]) for row in listed}
    forms = ("dpo", "dpo-chat", "openai", "answers")
    return {
        "threads": listed,
        "show": story,
        "export": {form: _rows(spoken(target, "export", "--all", "--as", form)) for form in forms},
        "audit": json.loads(spoken(target, "audit", "--json")),
        **(
            {}
            if tuple(threads) != THREADS
            else {"profile": json.loads(spoken(target, "profile", "--json"))}
        ),
        "states": _states(target, threads),
        "search": json.loads(spoken(target, "threads", "--search", "bends 7", "--json")),
    }


def _states(target: str, threads: Sequence[str]) -> dict[str, Any]:
    """Where each thread stands, as its graph or agent says."""
    found = {}
    with open_checkpoints(target) as store:
        for name in threads:
            values = graph(name, "http://127.0.0.1:9", store).get_state(on(name)).values
            found[name] = {
                "said": [[m.type, str(m.text)] for m in values["messages"]],
                "spent": values["spent"],
                "stop_reason": values.get("stop_reason"),
            }
    return found


_CALL = ("ordinal", "kind", "state", "text", "tokens", "input_tokens", "output_tokens", "errors")
_ANSWER = ("ordinal", "answer", "score", "tokens")
_PAIR = ("chosen", "rejected", "why", "decided_by", "gap")
_ASKED = ("question", "model", "strategy", "limits", "spent", "stop_reason", "judging")


def shown(target: str, thread: str) -> list[dict[str, Any]]:
    def some(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
        return [{name: row[name] for name in names} for row in rows]

    told = json.loads(spoken(target, "show", thread, "--json"))
    return [
        {
            **{name: run[name] for name in _ASKED},
            "calls": some(run["calls"], _CALL),
            "answers": some(run["answers"], _ANSWER),
            "pairs": some(run["pairs"], _PAIR),
        }
        for run in told["runs"]
    ]


def _rows(text: str) -> list[Any]:
    return [
        {k: v for k, v in json.loads(row).items() if k not in ("id", "run_id", "call_id")}
        for row in text.splitlines()
    ]


# --- what was made, in files


def packed_sqlite(file: Path) -> bytes:
    """The file on its own, without the name of this machine."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE leases SET holder = replace(holder, ?, 'elsewhere')", [socket.gethostname()]
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode=DELETE")
    return _packed(file.read_bytes())


def _packed(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def packed_postgres(url: str) -> bytes:
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE anytime.leases SET holder = replace(holder, %s, 'elsewhere')",
            [socket.gethostname()],
        )
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_dump")))
    words = ["--inserts", "--no-owner", "--no-privileges", "--no-comments", url]
    dump = subprocess.run([*debian[-1:], *words], check=True, capture_output=True).stdout
    kept = [row for row in dump.splitlines() if not row.startswith((b"\\", b"--"))]
    return _packed(b"\n".join(kept) + b"\n")


def unpacked(name: str, kind: str, target: str) -> None:
    """Put what a set holds into a new SQLite file, or an empty database."""
    if kind == "sqlite":
        Path(target).write_bytes(lzma.decompress((SETS / name / "anytime.db.xz").read_bytes()))
        return
    dump = lzma.decompress((SETS / name / "anytime.sql.xz").read_bytes())
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(dump)


def benchmark(folder: Path) -> None:
    with serving() as server:
        server.script = lambda request, i: Reply(f"A fox by the river, {i * 7 % 10} times.")
        words = ["bench", *BENCH, "--out", str(folder)]
        command = [sys.executable, "-m", "anytime_graph", *words]
        subprocess.run(command, check=True, env=_environment(server), stdout=subprocess.DEVNULL)


def main(name: str, *only: str) -> None:
    threads = only or THREADS
    out = SETS / name
    out.mkdir(parents=True)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "anytime.db")
        made(str(file), threads)
        told["sqlite"] = figures(str(file), threads)
        (out / "anytime.db.xz").write_bytes(packed_sqlite(file))
        with running() as server, fresh(server) as url:
            made(url, threads)
            told["postgresql"] = figures(url, threads)
            (out / "anytime.sql.xz").write_bytes(packed_postgres(url))
        if not only:
            _beside(out, file)
    (out / "figures.json.xz").write_bytes(_packed(json.dumps(told, indent=1).encode()))


def _beside(out: Path, file: Path) -> None:
    """The profile and the benchmark."""
    from anytime_graph.planning.profiles import profile_of, save_profile

    with open_checkpoints(file) as store:
        save_profile(out / "profile.json", profile_of(store.ledger), "scripted", "rivers")
    benchmark(file.with_name("bench"))
    (out / "bench").mkdir()
    for kept in ("calls.jsonl", "records.jsonl", "report.md"):
        shutil.copy(file.with_name("bench") / kept, out / "bench" / kept)


if __name__ == "__main__":
    if sys.argv[1] == "live":
        live(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
