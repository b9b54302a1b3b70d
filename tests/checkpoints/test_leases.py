"""One invocation at a time runs a thread; many threads run on one store."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import RunControl
from langgraph.types import interrupt

from anytime_graph import Budget, Draft, ThreadBusy, View, open_checkpoints
from anytime_graph.checkpoints import Checkpoints, quotas
from tests.kit.commands import environment
from tests.kit.forks import forked, forking
from tests.kit.kills import ended
from tests.kit.ledgers import ASK, ON, graph, sql
from tests.kit.server import Reply, Server, by_place
from tests.kit.waiting import PATIENCE, auntil, until, waits_for_the_file


def thread(n: int) -> Any:
    return {"configurable": {"thread_id": f"thread {n}"}}


def slowly(request: dict[str, Any], i: int) -> Reply:
    """The first four at once, the rest so that they can be caught in flight."""
    text = f"<answer>{request['seed'] * 7 % 10}</answer> and so on and on"
    return Reply(text=text, pace=0.03 if request["seed"] > 3 else 0)


def once_each(server: Server) -> bool:
    places = Counter(c.request["seed"] for c in server.settled().calls)
    return set(places.values()) == {1}


def test_two_invocations_of_a_thread_never_both_pay(server: Server, store: Checkpoints) -> None:
    gate, begun = threading.Event(), threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        begun.set()
        gate.wait(PATIENCE)
        return by_place(request, i)

    server.script = script
    app = graph(server, store).compile(checkpointer=store.saver)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(app.invoke, ASK, ON)
        begun.wait(PATIENCE)
        assert store.ledger.threads()[0]["running"]
        with pytest.raises(ThreadBusy, match="'rivers' is already running"):
            app.invoke(ASK, ON)
        gate.set()
        out = running.result()
    assert out["spent"]["tokens"] == server.settled().served <= 900
    assert len({c.request["seed"] for c in server.calls}) == len(server.calls)


def test_a_lease_from_elsewhere_holds_until_it_expires(
    served: Server, store: Checkpoints, target: str
) -> None:
    holder = "4711 elsewhere boot/pid:[1] 99 abcd ef01"
    sql(target, f"INSERT INTO leases VALUES ('rivers', '{holder}', {time.time() + 60})")
    app = graph(served, store).compile(checkpointer=store.saver)
    with pytest.raises(ThreadBusy, match="process 4711 on elsewhere"):
        app.invoke(ASK, ON)
    assert not served.settled().calls
    sql(target, f"UPDATE leases SET expires = {time.time() - 1}")
    assert app.invoke(ASK, ON)["best"]


def test_a_run_that_was_taken_over_pays_nothing_more(
    served: Server, store: Checkpoints, target: str
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if i == 4:
            sql(target, "UPDATE leases SET holder = '1 elsewhere boot/pid:[1] 9 abcd ef01'")
        return by_place(request, i)

    served.script = script
    app = graph(served, store, strategy="best_of_n").compile(checkpointer=store.saver)
    with pytest.raises(ThreadBusy, match="taken over"):
        app.invoke(ASK, ON)
    in_flight = len(served.settled().calls)
    assert in_flight < 9
    assert sql(target, "SELECT count(*) FROM calls WHERE state <> 'settled'") == [(0,)]


def test_a_thread_is_free_after_errors_breaks_and_interruptions(
    served: Server, store: Checkpoints, target: str
) -> None:
    app = graph(served, store).compile(checkpointer=store.saver)
    with pytest.raises(ValueError, match="cannot pay"):
        app.invoke({**ASK, "budget": Budget(tokens=5)}, ON)
    for _ in app.stream(ASK, ON, stream_mode="custom"):
        break
    stop = threading.Event()
    stop.set()
    app.invoke({"budget": Budget(tokens=100)}, ON, context={"stop": stop})
    with open_checkpoints(target) as second:
        app = graph(served, second).compile(checkpointer=second.saver)
        assert app.invoke({"budget": Budget(tokens=50)}, ON)["best"]


def test_newcomers_never_end_the_run(server: Server, store: Checkpoints, target: str) -> None:
    """They try all the time, also between its steps, here and from another ledger."""
    tried = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        assert i == 0 or tried.wait(PATIENCE)
        return Reply(text=by_place(request, i).text, pace=0.005)

    server.script = script
    with open_checkpoints(target) as other, ThreadPoolExecutor() as pool:
        running = pool.submit(graph(server, store).compile(store.saver).invoke, ASK, ON)
        with server.changed:
            assert server.changed.wait_for(lambda: server.calls, PATIENCE)
        refused = 0
        while not running.done():
            for mine in (store, other):
                try:
                    graph(server, mine).compile(mine.saver).invoke(ASK, ON)
                except ThreadBusy:
                    refused += 1
                    tried.set()
        out = running.result()
    assert refused
    first, *later = store.ledger.runs("rivers")
    assert (out["stop_reason"], out["spent"]["tokens"]) == ("tokens", first["spent"]["tokens"])
    booked = sum(run["spent"]["tokens"] for run in (first, *later))
    assert booked == server.settled().served


def test_many_threads_on_one_store(served: Server, store: Checkpoints) -> None:
    app = graph(served, store, budget=Budget(tokens=300)).compile(checkpointer=store.saver)
    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(lambda n: app.invoke(ASK, thread(n)), range(12)))
    assert {out["stop_reason"] for out in outs} == {"tokens"}
    assert sum(out["spent"]["tokens"] for out in outs) == served.settled().served
    booked = [t["spent"]["tokens"] for t in store.ledger.threads()]
    assert sorted(booked) == sorted(out["spent"]["tokens"] for out in outs)


def test_many_tasks_on_one_store(served: Server, target: str) -> None:
    async def storm() -> list[Any]:
        async with open_checkpoints(target) as store:
            app = graph(served, store, budget=Budget(tokens=300)).compile(store.saver)
            return await asyncio.gather(*(app.ainvoke(ASK, thread(n)) for n in range(8)))

    outs = asyncio.run(storm())
    assert {out["stop_reason"] for out in outs} == {"tokens"}
    assert sum(out["spent"]["tokens"] for out in outs) == served.settled().served


def test_a_task_cancelled_while_it_waits_for_the_lease_leaves_it(
    server: Server, tmp_path: Path
) -> None:
    server.script = slowly
    path = str(tmp_path / "anytime.db")

    async def cancelled(app: Any, after: Any, given: Any) -> None:
        task = asyncio.create_task(app.ainvoke(given, ON, durability="sync"))
        await after()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def flowing() -> None:
        await auntil(lambda: len(server.calls) >= 6)

    async def lives() -> Any:
        async with open_checkpoints(path) as store:
            await cancelled(graph(server, store).compile(store.saver), flowing, ASK)
        async with open_checkpoints(path) as store:
            app = graph(server, store).compile(store.saver)
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            await cancelled(app, partial(auntil, waits_for_the_file), None)
            other.close()
            return await app.ainvoke(None, ON)

    assert asyncio.run(lives())["spent"]["tokens"] >= server.settled().served
    assert once_each(server)


def test_a_lease_that_comes_after_the_end_of_its_event_loop_is_given_back(
    served: Server, tmp_path: Path
) -> None:
    path = str(tmp_path / "anytime.db")
    with open_checkpoints(path) as store:
        app = graph(served, store).compile(InMemorySaver())
        paused = graph(served, store).compile(InMemorySaver(), interrupt_before=["draft"])
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

        async def cancelled() -> None:
            await paused.ainvoke(ASK, ON)
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(paused.ainvoke(None, ON))
            await auntil(waits_for_the_file)
            task.cancel()
            threading.Timer(0.2, other.close).start()

        asyncio.run(cancelled())
        assert asyncio.run(app.ainvoke(ASK, ON))["stop_reason"] == "tokens"


def test_ctrl_c_while_the_file_is_locked_leaves_no_transaction(
    served: Server, tmp_path: Path
) -> None:
    path = tmp_path / "anytime.db"
    with open_checkpoints(path) as store:
        app = graph(served, store).compile(checkpointer=InMemorySaver())
        app.invoke(ASK, ON)
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        asker = threading.get_ident()

        def interrupt() -> None:
            until(lambda: asker in waits_for_the_file())
            os.kill(os.getpid(), signal.SIGINT)
            other.execute("COMMIT")

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            app.invoke({"budget": Budget(tokens=100)}, ON)
        thread.join()
        assert app.invoke(None, ON)["best"]
        other.execute("BEGIN IMMEDIATE")
        other.close()


def put_to_sleep(pid: int, path: str) -> None:
    """Stop a process at an instant at which it does not hold the file's write lock."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T"))
        try:
            with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)


def test_a_process_that_slept_through_its_lease_changes_nothing(
    server: Server, tmp_path: Path
) -> None:
    program = """
import anytime_graph.checkpoints.leases as leases
from langchain_openai import ChatOpenAI
from anytime_graph import ThreadBusy, open_checkpoints
from tests.kit.ledgers import ASK, ON, graph
leases.LEASE = 1.0
with open_checkpoints("anytime.db") as store:
    model = ChatOpenAI(model="scripted", seed=0)
    try:
        graph(None, store, model=model).compile(store.saver).invoke(ASK, ON)
    except ThreadBusy as error:
        print(error)
"""
    server.script = slowly
    path = str(tmp_path / "anytime.db")
    with forking(program, tmp_path, environment(server)) as sleeper:
        assert sleeper.pid
        with server.changed:
            assert server.changed.wait_for(lambda: len(server.calls) >= 6, PATIENCE)
        put_to_sleep(sleeper.pid, path)
        with open_checkpoints(path) as store:
            app = graph(server, store).compile(store.saver)
            out = None
            while out is None:
                with suppress(ThreadBusy):
                    out = app.invoke(None, ON)
            os.kill(sleeper.pid, signal.SIGCONT)
            assert ended(sleeper) == 0
            assert "was taken over" in (tmp_path / "stdout").read_text()
            state = app.get_state(ON)
            assert (state.next, state.values["stop_reason"]) == ((), "tokens")
            assert state.values["messages"][-1].text == out["best"]["answer"]
            assert store.ledger.runs("rivers")[0]["spent"]["tokens"] == out["spent"]["tokens"]
    assert once_each(server)


def test_a_store_does_not_survive_a_fork(tmp_path: Path) -> None:
    program = """
import os
from anytime_graph import LedgerError, open_checkpoints
with open_checkpoints("anytime.db") as store:
    if os.fork():
        os.wait()
    else:
        try:
            store.ledger.threads()
        except LedgerError as error:
            print(error, flush=True)
        os._exit(0)
"""
    done = forked(program, tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "open it again" in done.stdout


@pytest.mark.pairwise
@pytest.mark.parametrize("sync", [True, False])
def test_a_store_closed_under_a_run_costs_no_answer(
    server: Server, target: str, sync: bool
) -> None:
    opening, closed = open_checkpoints(target), threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        """The first four at once, the rest when the store is closed."""
        assert request["seed"] < 4 or closed.wait(PATIENCE)
        return Reply(text=f"<answer>{request['seed'] * 7 % 10}</answer>")

    server.script = script

    async def alone() -> Any:
        store = await opening.__aenter__()
        task = asyncio.create_task(graph(server, store).compile(store.saver).ainvoke(ASK, ON))
        await auntil(lambda: len(server.calls) >= 5)
        await opening.__aexit__(None, None, None)
        closed.set()
        return await task

    if sync:
        store = opening.__enter__()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(graph(server, store).compile(store.saver).invoke, ASK, ON)
            with server.changed:
                assert server.changed.wait_for(lambda: len(server.calls) >= 5, PATIENCE)
            opening.__exit__(None, None, None)
            closed.set()
            out = running.result()
    else:
        out = asyncio.run(alone())
    assert out["stop_reason"].startswith("ledger: ")
    assert out["best"]["score"] == max(c["score"] for c in out["candidates"])


def test_a_store_that_is_closed_between_calls_costs_no_answer(
    served: Server, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of the ledger is read before the next step; quotas are read anew each time."""
    monkeypatch.setattr(quotas, "_FRESH", 0.0)
    opening, scored = open_checkpoints(target), list[str]()
    store = opening.__enter__()

    def scorer(question: str, answer: str) -> float:
        scored.append(answer)
        if len(scored) == 2:
            opening.__exit__(None, None, None)
        return int(answer) / 10

    def one(view: View) -> list[Draft]:
        return [Draft()]

    out = graph(served, store, scorer=scorer, strategy=one).compile().invoke(ASK, ON)
    assert out["stop_reason"].startswith("ledger: ")
    assert out["best"]["score"] == max(int(answer) / 10 for answer in scored)


def test_one_control_for_two_invocations_does_not_let_both_pay_for_a_thread(
    server: Server, store: Checkpoints
) -> None:
    control, begun, ended = RunControl(), threading.Event(), threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        begun.set()
        assert ended.wait(PATIENCE)
        return by_place(request, i)

    server.script = script
    app = graph(server, store).compile(store.saver)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(app.invoke, ASK, ON, control=control)
        assert begun.wait(PATIENCE)
        try:
            with pytest.raises(ThreadBusy):
                app.invoke(ASK, ON, control=control)
        finally:
            ended.set()
        assert running.result()["best"]
    assert once_each(server)


def test_connections_that_were_cut_are_replaced(served: Server, database: str) -> None:
    import psycopg

    with open_checkpoints(database) as store:
        app = graph(served, store).compile(checkpointer=store.saver)
        app.invoke(ASK, thread(0))
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                "datname = current_database() AND pid <> pg_backend_pid()"
            )
        for n in range(1, 4):
            assert app.invoke(ASK, thread(n))["stop_reason"] == "tokens"


# --- pauses


def pause(server: Server, store: Checkpoints, way: str) -> None:
    """Let a run stop in one of the ways after which nothing of it runs."""

    def asks(question: str, answer: str) -> float:
        return float(interrupt("What is it worth?")) if way == "interrupt" else 0.5

    before = ["draft"] if way == "breakpoint" else None
    built = graph(server, store, scorer=asks, strategy="best_of_n", budget=Budget(calls=4))
    if way == "nested":
        inner = built.compile(interrupt_before=["draft"])
        built = StateGraph(MessagesState)
        built.add_node("anytime", inner)
        built.add_edge(START, "anytime")
    app = built.compile(store.saver, interrupt_before=before)
    if way == "broken off":
        for _ in app.stream(ASK, ON, stream_mode="custom"):
            break
    else:
        app.invoke(ASK, ON)


@pytest.mark.pairwise
@pytest.mark.parametrize("way", ["breakpoint", "interrupt", "nested", "broken off"])
def test_a_paused_thread_is_free_at_once(
    served: Server, store: Checkpoints, target: str, way: str
) -> None:
    """No lease is left: a process on another machine, which knows no more, would get the thread."""
    pause(served, store, way)
    assert sql(target, "SELECT count(*) FROM leases") == [(0,)]


@pytest.mark.parametrize("way", ["breakpoint", "broken off"])
def test_a_paused_thread_is_free_at_once_in_async_graphs(
    served: Server, target: str, way: str
) -> None:
    async def lives() -> None:
        async with open_checkpoints(target) as store:
            before = ["draft"] if way == "breakpoint" else None
            app = graph(served, store).compile(store.saver, interrupt_before=before)
            async with aclosing(app.astream(ASK, ON, stream_mode="custom")) as parts:
                async for _ in parts:
                    break
            assert sql(target, "SELECT count(*) FROM leases") == [(0,)]

    asyncio.run(lives())


def test_the_end_of_an_invocation_frees_its_own_threads_where_no_node_is_at_work(
    store: Checkpoints, target: str
) -> None:
    leases = store.ledger.leases
    holds = {thread: leases.enter(thread, thread[0]) for thread in ("a1", "a2", "b1", "b2")}
    for thread in ("a1", "b1"):
        leases.leave(holds[thread])
    leases.end(lambda life: life == "a")
    kept = sql(target, "SELECT thread FROM leases ORDER BY thread")
    assert [thread for (thread,) in kept] == ["a2", "b1", "b2"]
    assert [thread for thread, hold in holds.items() if hold.ended] == ["a1"]


def test_steps_from_one_breakpoint_to_the_next_do_not_wait(
    served: Server, store: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may wait for an invocation to count as gone: that takes for ever here."""
    monkeypatch.setattr("anytime_graph.checkpoints.leases.GRACE", 1e9)
    app = graph(served, store, budget=Budget(calls=6)).compile(
        store.saver, interrupt_before=["draft", "refine", "critique"]
    )
    out = app.invoke(ASK, ON)
    while app.get_state(ON).next:
        out = app.invoke(None, ON)
    assert out["stop_reason"] == "calls"
    assert once_each(served)


def test_a_reader_who_stays_away_keeps_nobody_out(
    served: Server, store: Checkpoints, target: str
) -> None:
    app = graph(served, store).compile(checkpointer=store.saver)
    reading = app.stream(ASK, ON, stream_mode="custom")
    next(reading)
    until(lambda: sql(target, "SELECT count(*) FROM leases") == [(0,)])
    assert app.invoke(None, ON)["best"]
    with suppress(ThreadBusy):
        list(reading)
    assert once_each(served)
