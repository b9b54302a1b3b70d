"""The ledger (P4, P5, P6), over SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send

from anytime_graph import (
    Budget,
    LedgerError,
    NoAnswer,
    Quota,
    Until,
    afork,
    fork,
    open_checkpoints,
)
from anytime_graph.checkpoints import Checkpoints, schema
from anytime_graph.checkpoints.memory import encoded, memory_of
from anytime_graph.checkpoints.sqlite import SqliteStore
from anytime_graph.metering import clock
from anytime_graph.metering.learned import forget
from anytime_graph.planning.moves import Draft, Stop, Strategy
from tests.kit.ledgers import ASK, ON, digit, graph, sql
from tests.kit.server import Call, Reply, Server, by_place
from tests.kit.waiting import PATIENCE, auntil, until


class TestBooks:
    def test_state_ledger_and_provider_agree(
        self, served: Server, store: Checkpoints, target: str
    ) -> None:
        app = graph(served, store, budget=Budget(tokens=1_500))
        out = app.compile(checkpointer=store.saver).invoke(ASK, ON)
        (run,) = store.ledger.runs("rivers")
        assert run["spent"]["tokens"] == out["spent"]["tokens"] == served.settled().served
        assert run["spent"]["calls"] == out["spent"]["calls"] == len(served.calls)
        assert 0 < run["spent"]["seconds"] <= out["spent"]["seconds"]
        assert (run["question"], run["stop_reason"]) == ("Why do rivers bend?", "tokens")
        (((tokens,),), ((answer, score),)) = (
            sql(target, "SELECT sum(tokens) FROM spend_by_node WHERE thread = 'rivers'"),
            sql(target, "SELECT answer, score FROM best_answers WHERE thread = 'rivers'"),
        )
        assert tokens == served.served
        assert (answer, score) == (out["best"]["answer"], out["best"]["score"])
        best = store.ledger.best("rivers")
        assert best
        assert (best["answer"], best["ordinal"]) == (answer, out["best"]["id"])
        curve = [(p["ordinal"], p["score"], p["tokens"]) for p in store.ledger.curve("rivers")]
        assert curve == [(p["candidate"], p["score"], p["spent"]["tokens"]) for p in out["curve"]]
        known = {
            (p["chosen_ordinal"], p["rejected_ordinal"]) for p in store.ledger.pairs(run["id"])
        }
        assert known >= {(p["chosen_id"], p["rejected_id"]) for p in out["pairs"]} != set()
        assert len(store.ledger.answers(run["id"])) > 8 == len(out["candidates"])

    def test_a_reservation_is_durable_before_its_request_leaves(
        self, served: Server, store: Checkpoints, target: str
    ) -> None:
        seen: list[Any] = []

        def script(request: dict[str, Any], i: int) -> Reply:
            place = f"SELECT state, tokens FROM calls WHERE ordinal = {request['seed']}"
            seen.extend(sql(target, place))
            return by_place(request, i)

        served.script = script
        out = graph(served, store).compile(checkpointer=store.saver).invoke(ASK, ON)
        assert [state for state, _ in seen] == ["reserved"] * out["spent"]["calls"]
        full = sum(reserved for _, reserved in seen)
        assert full >= served.settled().served
        assert sql(target, "SELECT count(*) FROM calls WHERE state = 'reserved'") == [(0,)]

    def test_reservations_and_paid_replies_wait_for_the_disk(
        self, served: Server, tmp_path: Path
    ) -> None:
        """So that a power cut loses none. What else is written waits with the next of them."""
        with open_checkpoints(tmp_path / "anytime.db") as store:
            assert isinstance(store.ledger.store, SqliteStore)
            made: list[str] = []
            store.ledger.store._db.conn.set_trace_callback(made.append)
            out = graph(served, store).compile(checkpointer=store.saver).invoke(ASK, ON)
        waits = False
        paid: dict[str, list[bool]] = {"INSERT INTO calls": [], "SET state = 'settled'": []}
        for statement in made:
            if statement.startswith("PRAGMA synchronous="):
                waits = statement.endswith("FULL")
            for part, waited in paid.items():
                if part in statement:
                    waited.append(waits)
        assert list(paid.values()) == [[True] * out["spent"]["calls"]] * 2

    def test_failures_and_lies_are_booked_in_full(self, served: Server, store: Checkpoints) -> None:
        bad = [Reply(error="break"), Reply(error=500), Reply(text="hm " * 9, usage="none")]
        served.script = lambda request, i: bad[i] if i < 3 else by_place(request, i)
        out = graph(served, store).compile(checkpointer=store.saver).invoke(ASK, ON)
        (run,) = store.ledger.runs("rivers")
        assert 900 >= run["spent"]["tokens"] == out["spent"]["tokens"] >= served.settled().served
        told = [e for call in store.ledger.calls(run["id"]) for e in call["errors"]]
        assert told == [e for e in out["errors"] if "in flight" not in e]

    def test_no_answer_is_on_record(self, server: Server, store: Checkpoints) -> None:
        server.script = lambda request, i: Reply(error=500)
        with pytest.raises(NoAnswer):
            graph(server, store).compile(checkpointer=store.saver).invoke(ASK, ON)
        (run,) = store.ledger.runs("rivers")
        assert run["stop_reason"] == "errors"
        assert store.ledger.best("rivers") is None
        assert not store.ledger.threads()[0]["running"]


class TestResuming:
    def test_a_question_whose_state_is_lost_is_not_paid_twice(
        self, served: Server, store: Checkpoints
    ) -> None:
        first = graph(served, store).compile(checkpointer=InMemorySaver()).invoke(ASK, ON)
        calls = len(served.settled().calls)
        again = graph(served, store).compile(checkpointer=InMemorySaver()).invoke(ASK, ON)
        assert len(served.settled().calls) == calls
        keys = ("best", "candidates", "pairs", "curve", "stop_reason", "spent")
        assert [_timeless(again[k]) for k in keys] == [_timeless(first[k]) for k in keys]

    def test_another_strategy_first_learns_what_was_done(
        self, served: Server, store: Checkpoints
    ) -> None:
        first = graph(served, store).compile(checkpointer=InMemorySaver()).invoke(ASK, ON)
        calls = len(served.settled().calls)
        other = graph(served, store, strategy="self_refine", budget=Budget(tokens=1_200))
        out = other.compile(checkpointer=InMemorySaver()).invoke(ASK, ON)
        assert first["spent"]["tokens"] < out["spent"]["tokens"] == served.settled().served <= 1_200
        assert out["spent_by"]["draft"] == first["spent_by"]["draft"] | {
            "seconds": out["spent_by"]["draft"]["seconds"]
        }
        assert len(served.calls) > calls
        assert len({c.request["seed"] for c in served.calls}) == len(served.calls)

    def test_a_question_asked_again_after_a_crash_goes_on(
        self, served: Server, store: Checkpoints
    ) -> None:
        app = graph(served, store).compile(checkpointer=store.saver)
        for _ in app.stream(ASK, ON, stream_mode="custom"):
            break
        out = app.invoke(ASK, ON)
        (run,) = store.ledger.runs("rivers")
        assert run["spent"]["tokens"] == out["spent"]["tokens"] <= 900
        assert out["spent"]["tokens"] >= served.settled().served
        assert len({c.request["seed"] for c in served.calls}) == len(served.calls)
        assert [m.type for m in out["messages"]] == ["human", "ai"]

    def test_a_lost_state_finds_the_trunk_not_a_branch(
        self, served: Server, store: Checkpoints
    ) -> None:
        app = graph(served, store).compile(checkpointer=store.saver)
        trunk = app.invoke(ASK, ON)
        app.invoke(None, fork(app, ON, Budget(tokens=1_000)))
        calls = len(served.settled().calls)
        again = graph(served, store).compile(checkpointer=InMemorySaver()).invoke(ASK, ON)
        assert len(served.settled().calls) == calls
        assert again["spent"]["tokens"] == trunk["spent"]["tokens"]

    def test_scoring_counts_as_active_time_in_every_life(
        self, served: Server, store: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, scored = clock.now, []

        def slow(question: str, answer: str) -> float:
            scored.append(answer)
            return digit(question, answer).value

        monkeypatch.setattr(clock, "now", lambda: now() + 60 * len(scored))
        for life in (1, 2):
            options: Any = {"scorer": slow, "budget": Budget(seconds=90), "strategy": "single"}
            out = graph(served, store, **options).compile().invoke(ASK, ON)
            assert out["spent"]["seconds"] >= 60
            assert store.ledger.runs("rivers")[0]["spent"]["seconds"] >= 60, life
        assert len(scored) == 1

    def test_a_lost_state_with_a_larger_budget_goes_on(
        self, served: Server, store: Checkpoints
    ) -> None:
        graph(served, store).compile(checkpointer=InMemorySaver()).invoke(ASK, ON)
        before = served.settled().served
        app = graph(served, store, budget=Budget(tokens=1_800)).compile()
        out = app.invoke(ASK, ON)
        assert 900 < out["spent"]["tokens"] == served.settled().served <= 1_800
        assert served.served > before
        assert len({c.request["seed"] for c in served.calls}) == len(served.calls)

    def test_other_questions_and_threads_are_runs_of_their_own(
        self, served: Server, store: Checkpoints
    ) -> None:
        app = graph(served, store).compile(checkpointer=store.saver)
        app.invoke(ASK, ON)
        app.invoke({"messages": [("user", "And glaciers?")]}, ON)
        app.invoke(ASK, ON)  # asked again, deliberately: the conversation has gone on
        app.invoke(ASK, {"configurable": {"thread_id": "other"}})
        graph(served, store).compile().invoke(ASK)
        assert len(store.ledger.runs("rivers")) == 3
        assert [t["runs"] for t in store.ledger.threads()] == [1, 1, 3]
        spent = sum(
            r["spent"]["tokens"]
            for t in store.ledger.threads()
            for r in store.ledger.runs(t["thread"])
        )
        assert spent == served.settled().served

    def test_a_cancelled_call_is_charged_in_full_and_its_text_used(
        self, server: Server, target: str
    ) -> None:
        def script(request: dict[str, Any], i: int) -> Reply:
            slow = "early <answer>8</answer> " + "and so on " * 90
            return Reply(text=slow, pace=0.02) if request["seed"] == 4 else by_place(request, i)

        server.script = script
        flowing = threading.Event()
        server.watch = lambda event, call: (
            flowing.set() if call.request["seed"] == 4 and call.output > 5 else None
        )

        async def lives() -> dict[str, Any]:
            async with open_checkpoints(target) as store:
                app = graph(server, store).compile(checkpointer=store.saver)
                task = asyncio.create_task(app.ainvoke(ASK, ON))
                await asyncio.to_thread(flowing.wait, PATIENCE)
                await auntil(lambda: _partial(target))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert [*await asyncio.to_thread(sql, target, states)] == [(4, "abandoned")]
                return dict(await app.ainvoke(None, ON))

        states = "SELECT ordinal, state FROM calls WHERE state <> 'settled'"
        out = asyncio.run(lives())
        assert server.settled().served <= out["spent"]["tokens"] <= 900
        assert len({c.request["seed"] for c in server.calls}) == len(server.calls)
        assert sql(target, states) == [(4, "abandoned")]
        assert sql(target, "SELECT answer FROM answers WHERE ordinal = 4") == [("8",)]
        assert any("cancelled in flight; charged in full" in e for e in out["errors"])

    def test_a_reply_that_had_come_when_its_call_was_cancelled_is_paid_by_its_report_and_used(
        self, server: Server, target: str
    ) -> None:
        class Hears(AsyncCallbackHandler):
            async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
                if kwargs["chunk"].message.usage_metadata:
                    asyncio.get_running_loop().call_later(0.05, reported.set)

        server.script = lambda request, i: Reply("so <answer>1.0</answer>", error="mute")
        reported = asyncio.Event()

        async def lives() -> dict[str, Any]:
            async with open_checkpoints(target) as store:
                app = graph(server, store, strategy="single").compile(checkpointer=store.saver)
                task = asyncio.create_task(app.ainvoke(ASK, {**ON, "callbacks": [Hears()]}))
                await reported.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return dict(await app.ainvoke(None, ON))

        out = asyncio.run(lives())
        assert out["spent"]["tokens"] == server.settled().served
        assert out["best"]["answer"] == "1.0"
        assert len(server.calls) == 1
        assert sql(target, "SELECT state FROM calls") == [("settled",)]

    def test_what_streams_in_is_kept_while_the_stream_stalls(
        self, server: Server, store: Checkpoints, target: str
    ) -> None:
        stalled = threading.Event()

        def stall(event: str, call: Call) -> None:
            if event == "word" and call.output == 6:
                stalled.wait(PATIENCE)

        server.script, server.watch = by_place, stall
        server.script = lambda request, i: Reply(text="one two three four five six seven")
        app = graph(server, store, strategy="single").compile(checkpointer=store.saver)
        with ThreadPoolExecutor() as pool:
            running = pool.submit(app.invoke, ASK, ON)
            until(lambda: _partial(target).startswith("one two three four five"))
            stalled.set()
            running.result()

    def test_a_scored_answer_keeps_its_score(self, served: Server, store: Checkpoints) -> None:
        asked: list[str] = []

        def once(question: str, answer: str) -> float:
            asked.append(answer)
            return digit(question, answer).value

        for _ in range(2):
            app = graph(served, store, scorer=once).compile(checkpointer=InMemorySaver())
            out = app.invoke(ASK, ON)
        assert len(asked) == out["spent"]["calls"] - out["judging"]["spent"]["calls"]

    def test_another_plan_reserves_nothing(self, served: Server, store: Checkpoints) -> None:
        """A task that a crash left over from an earlier plan makes no call."""
        app = graph(served, store).compile(checkpointer=store.saver)
        app.invoke(ASK, ON)
        states = list(app.get_state_history(ON))
        calls = len(served.settled().calls)
        early = next(s for s in reversed(states) if s.next and s.values.get("ordinal") == 0)
        out = app.invoke(None, early.config)  # LangGraph's own time travel
        assert len(served.settled().calls) == calls
        assert out["spent"]["tokens"] == served.served

    def test_fork_is_a_run_with_books_of_its_own(self, served: Server, store: Checkpoints) -> None:
        app = graph(served, store).compile(checkpointer=store.saver)
        out = app.invoke(ASK, ON)
        states = list(app.get_state_history(ON))
        middle = next(s for s in states if s.values.get("ordinal") == 4)
        calls = len(served.settled().calls)
        other = graph(served, store, strategy="best_of_n").compile(checkpointer=store.saver)
        forked = other.invoke(None, fork(other, middle.config, Budget(tokens=800)))
        trunk, branch = store.ledger.runs("rivers")
        own = sum(c.served for c in served.settled().calls[calls:])
        assert own > 0
        assert branch["parent_id"] == trunk["id"]
        assert branch["spent"]["tokens"] == forked["spent"]["tokens"] <= 800
        assert branch["inherited"]["tokens"] + own == forked["spent"]["tokens"]
        assert trunk["spent"]["tokens"] == out["spent"]["tokens"]
        assert forked["best"]["score"] == max(
            a["score"] for a in store.ledger.answers(branch["id"])
        )
        assert store.ledger.forget("rivers")
        assert store.ledger.threads() == []

    def test_fork_async_and_its_errors(self, served: Server, target: str) -> None:
        async def branch() -> None:
            async with open_checkpoints(target) as store:
                app = graph(served, store).compile(checkpointer=store.saver)
                with pytest.raises(ValueError, match="no question was begun"):
                    await afork(app, ON)
                await app.ainvoke(ASK, ON)
                out = await app.ainvoke(None, await afork(app, ON, Budget(tokens=1_200)))
                assert 900 < out["spent"]["tokens"] <= 1_200
                assert len(await asyncio.to_thread(store.ledger.runs, "rivers")) == 2

        asyncio.run(branch())

    def test_a_copied_thread_is_a_run_of_its_own(self, served: Server, store: Checkpoints) -> None:
        app = graph(served, store).compile(checkpointer=store.saver)
        app.invoke(ASK, ON)
        copy: Any = {"configurable": {"thread_id": "copy"}}
        app.update_state(copy, app.get_state(ON).values, as_node="finish")
        out = app.invoke({"budget": Budget(tokens=300)}, copy)
        (trunk,), (branch,) = store.ledger.runs("rivers"), store.ledger.runs("copy")
        assert branch["parent_id"] == trunk["id"]
        assert trunk["spent"]["tokens"] <= 900 < branch["spent"]["tokens"] == out["spent"]["tokens"]

    def test_instances_of_one_node_with_one_question_keep_books_of_their_own(
        self, served: Server, store: Checkpoints
    ) -> None:
        think = graph(served, store, budget=Budget(tokens=400)).compile()
        outer = StateGraph(MessagesState)
        outer.add_node("think", think)
        fan = lambda state: [Send("think", state)] * 3  # noqa: E731
        outer.add_conditional_edges(START, fan, ["think"])
        outer.compile(checkpointer=store.saver).invoke(ASK, ON)  # type: ignore[arg-type]
        spent = [t["spent"]["tokens"] for t in store.ledger.threads()]
        assert len(spent) == 3
        assert sum(spent) == served.settled().served
        assert max(spent) <= 400

    def test_nodes_of_a_parent_graph_keep_books_of_their_own(
        self, served: Server, store: Checkpoints
    ) -> None:
        outer = StateGraph(MessagesState)
        for name in ("think", "doubt"):
            outer.add_node(name, graph(served, store, budget=Budget(tokens=400)).compile())
            outer.add_edge(START, name)
            outer.add_edge(name, END)
        outer.compile(checkpointer=store.saver).invoke(ASK, ON)  # type: ignore[arg-type]
        threads = sorted(t["thread"].partition("#")[0] for t in store.ledger.threads())
        assert threads == ["rivers/doubt", "rivers/think"]
        spent = [t["spent"]["tokens"] for t in store.ledger.threads()]
        assert sum(spent) == served.settled().served
        assert max(spent) <= 400


def test_a_history_that_cannot_be_read_says_whose_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with open_checkpoints(file) as store:
        saver: Any = store.saver
        saver.conn.close()
        with pytest.raises(LedgerError, match=re.escape(str(file))):
            list(saver.list(ON))


class TestPrivacy:
    def test_usage_alone_keeps_no_words(self, served: Server, target: str, tmp_path: Path) -> None:
        secret = "Where is the treasure of Rackham?"
        served.script = lambda request, i: Reply(text=f"<answer>island {request['seed']}</answer>")
        with open_checkpoints(target, record="usage") as store:
            app = graph(served, store).compile(checkpointer=InMemorySaver())
            out = app.invoke({"messages": [("user", secret)]}, ON)
            (run,) = store.ledger.runs("rivers")
            assert run["spent"]["tokens"] == out["spent"]["tokens"] == served.settled().served
            assert len(store.ledger.answers(run["id"])) == out["spent"]["calls"]
            dump = json.dumps(
                [
                    store.ledger.threads(),
                    store.ledger.runs("rivers"),
                    *(
                        f(run["id"])
                        for f in (store.ledger.calls, store.ledger.answers, store.ledger.pairs)
                    ),
                ]
            )
        if not target.startswith("postgresql"):
            dump += "".join(p.read_bytes().decode("latin-1") for p in tmp_path.iterdir())
        assert "treasure" not in dump
        assert "island" not in dump

    def test_usage_alone_keeps_why_a_run_ended_unless_the_caller_worded_it(
        self, served: Server, target: str
    ) -> None:
        def stopping(reason: str) -> Strategy:
            return lambda view: [Stop(reason)] if view.best else [Draft()]

        wanted: dict[str, dict[str, Any]] = {
            "target": {"until": Until(target=0.5)},
            "blocked": {"strategy": stopping("blocked: a word")},
            "other": {"strategy": stopping("found the treasure")},
        }
        served.script = lambda request, i: Reply(text="<answer>a</answer>")
        with open_checkpoints(target, record="usage") as store:
            for reason, given in wanted.items():
                app = graph(served, store, scorer=lambda q, a: 0.5, **given).compile()
                app.invoke(ASK, {"configurable": {"thread_id": reason}})
                (run,) = store.ledger.runs(reason)
                assert run["stop_reason"] == reason

    def test_hostile_names_and_texts_are_only_data(
        self, served: Server, store: Checkpoints
    ) -> None:
        name = "x'; DROP TABLE runs; --"
        question = "Robert'); DROP TABLE answers;-- \" :run %s %(run)s \x1b[31m"
        served.script = lambda request, i: Reply(text="'); DELETE FROM calls; -- 100% :now NEAR(")
        app = graph(served, store).compile(checkpointer=store.saver)
        app.invoke({"messages": [("user", question)]}, {"configurable": {"thread_id": name}})
        assert store.ledger.threads()[0]["question"] == question
        assert store.ledger.search("delete")
        for words in ('"', "NEAR(", "a OR", "* -", "';", "100%", "a\0b", ""):
            store.ledger.search(words)
        assert store.ledger.forget(name)
        assert not store.ledger.forget(name)

    @pytest.mark.parametrize("sync", [True, False])
    def test_what_the_database_refuses_is_not_tried_again(
        self, served: Server, target: str, sync: bool
    ) -> None:
        refusing = "ALTER TABLE calls ADD CHECK (kind <> 'draft')"
        if not target.startswith("postgresql"):
            refusing = "CREATE TRIGGER t BEFORE INSERT ON calls BEGIN SELECT RAISE(ABORT, ''); END"

        def asked() -> None:
            with open_checkpoints(target) as store:
                sql(target, refusing)
                graph(served, store).compile(checkpointer=store.saver).invoke(ASK, ON)

        async def aasked() -> None:
            async with open_checkpoints(target) as store:
                await asyncio.to_thread(sql, target, refusing)
                await graph(served, store).compile(checkpointer=store.saver).ainvoke(ASK, ON)

        with pytest.raises(NoAnswer) as told:
            asked() if sync else asyncio.run(aasked())
        assert all("not made: " in cause for cause in told.value.causes)
        assert served.calls == []

    def test_a_clients_options_that_are_none_are_not_kept(
        self, served: Server, store: Checkpoints
    ) -> None:
        app = graph(served, store, budget=Budget(calls=1)).compile(checkpointer=store.saver)
        app.invoke(ASK, {**ON, "metadata": {"anytime_options": [1]}})
        assert store.ledger.runs("rivers")[0]["options"] is None

    @pytest.mark.parametrize("name", ["thread_id", "user", "tenant"])
    def test_an_id_that_no_index_takes_is_refused_before_anything_is_spent(
        self, served: Server, store: Checkpoints, name: str
    ) -> None:
        quotas = [Quota(Budget(calls=9), per="user", window="1d")]
        app = graph(served, store, quotas=quotas).compile(checkpointer=store.saver)
        for size in (1_000, 1_001, 20_000):
            long = "\u00e9" * (size // 2) + "x" * (size % 2)
            on: Any = {"configurable": {"thread_id": "t", "user": "ann", name: long}}
            if size == 1_000:
                app.invoke({**ASK, "budget": Budget(calls=1)}, on)
                made = len(served.calls)
                continue
            with pytest.raises(ValueError, match=f"{name}=.*at most 1,000 bytes.* has {size:,}"):
                app.invoke({"messages": [("user", "And why?")]}, on)
        assert len(served.calls) == made == 1
        with pytest.raises(ValueError, match=r"who=.*at most 1,000 bytes"):
            store.ledger.quotas.keep(quotas[0], "x" * 1_001)
        with pytest.raises(ValueError, match=r"name=.*at most 1,000 bytes"):
            store.ledger.share("x" * 1_001)

    def test_a_long_question_is_kept_whole_and_found_by_its_beginning(
        self, served: Server, store: Checkpoints
    ) -> None:
        question = " ".join(f"word{n}" for n in range(110_000))
        app = graph(served, store, budget=Budget(calls=1)).compile(checkpointer=store.saver)
        app.invoke({"messages": [("user", question)]}, ON)
        assert store.ledger.runs("rivers")[0]["question"] == question
        assert store.ledger.best("rivers")
        assert [hit["thread"] for hit in store.ledger.search("word0 word5000")] == ["rivers"]

    def test_characters_that_no_database_takes_are_replaced(
        self, served: Server, store: Checkpoints
    ) -> None:
        served.script = lambda request, i: Reply(text="a\0b")
        app = graph(served, store, scorer=lambda q, a: 0.5).compile(checkpointer=InMemorySaver())
        app.invoke({"messages": [("user", "x\0y")]}, ON)
        best = store.ledger.best("rivers")
        assert best
        assert best["answer"] == "a\ufffdb"
        assert store.ledger.threads()[0]["question"] == "x\ufffdy"

    def test_encrypted_checkpoints(
        self, served: Server, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"sixteen byte key")
        with open_checkpoints(target, record="usage", serde=serde) as store:
            app = graph(served, store).compile(checkpointer=store.saver)
            app.invoke(ASK, ON)
            out = app.invoke({"budget": Budget(tokens=200)}, ON)
        assert 900 < out["spent"]["tokens"] == served.settled().served
        paid = len(served.calls)
        other = EncryptedSerializer.from_pycryptodome_aes(key=b"another key of 16"[:16])
        for wrong in (None, other):
            with open_checkpoints(target, record="usage", serde=wrong) as store:
                app = graph(served, store).compile(checkpointer=store.saver)
                with pytest.raises(LedgerError, match="its checkpoints are encrypted"):
                    app.invoke({"budget": Budget(tokens=200)}, ON)
        assert len(served.calls) == paid

    def test_no_word_of_a_deleted_thread_or_memory_stays_in_the_file(
        self, served: Server, tmp_path: Path
    ) -> None:
        served.script = lambda request, i: Reply(text=f"<answer>{i % 9} syphilis</answer>")
        ask: Any = {"messages": [("user", "What ails zebulon?")]}
        with open_checkpoints(tmp_path / "a.db") as store:
            for thread in ("kept", "deleted"):
                app = graph(
                    served, store, memory=store.ledger, scorer=lambda q, a: int(a[0]) / 9
                ).compile(checkpointer=store.saver)
                on: Any = {"configurable": {"thread_id": thread}}
                app.invoke(ASK if thread == "kept" else ask, on, context={"namespace": ["acme"]})
            assert store.ledger.search("zebulon")
        mark = hashlib.sha256(encoded(("acme",)).encode()).hexdigest()[:8].encode()
        assert mark in (tmp_path / "a.db").read_bytes(), "it stands by each word of a memory"
        with open_checkpoints(tmp_path / "a.db") as store:
            assert memory_of(store.ledger).forget(("acme",)) > 0
        assert mark not in (tmp_path / "a.db").read_bytes()
        with open_checkpoints(tmp_path / "a.db") as store:
            assert store.ledger.forget("deleted")
            store.saver.delete_thread("deleted")
            assert store.ledger.search("rivers")
        left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert b"zebulon" not in left
        assert b"syphilis" in left, "the other thread's answers"

    def test_strict_serialization(self, served: Server, target: str) -> None:
        program = """
import sys
from langchain_openai import ChatOpenAI
from anytime_graph import Budget, create_anytime_graph, open_checkpoints
url, target = sys.argv[1:]
on = {"configurable": {"thread_id": "rivers"}}
with open_checkpoints(target) as store:
    model = ChatOpenAI(model="scripted", base_url=url, api_key="none", seed=0)
    graph = create_anytime_graph(model, budget=Budget(tokens=300), ledger=store.ledger)
    app = graph.compile(checkpointer=store.saver)
    app.invoke({"messages": [("user", "Why?")], "budget": Budget(tokens=700)}, on)
    out = app.invoke({"budget": Budget(tokens=200)}, on)
    assert out["limits"] == {"tokens": 900}, out["limits"]
"""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, served.url, target],
            env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestSchema:
    @pytest.mark.pairwise
    @pytest.mark.parametrize("version", [1, 2, 4, 5, 6, 8, 9])
    def test_an_older_schema_migrates(self, served: Server, target: str, version: int) -> None:
        with open_checkpoints(target) as store:
            new = _definitions(target)
            graph(served, store).compile(checkpointer=store.saver).invoke(ASK, ON)
        _to_version_nine(target)
        if version < 9:
            _to_version_eight(target)
        if version < 8:
            _to_version_six(target)
        if version < 6:
            _to_version_five(target)
        if version < 5:
            _to_version_four(target)
        if version < 4:
            _to_version_two(target)
        if version == 1:
            _to_version_one(target)
        changed = _definitions(target) != new
        assert changed or (version == 9 and not target.startswith("postgresql"))
        with open_checkpoints(target) as store:
            assert _definitions(target) == new
            assert store.ledger.search("rivers")
            graph(served, store).compile(checkpointer=store.saver).invoke(
                ASK, {"configurable": {"thread_id": "new"}}
            )
            assert len(store.ledger.search("rivers")) > len(
                store.ledger.answers(store.ledger.runs("rivers")[0]["id"])
            )
        assert sql(target, "SELECT max(version) FROM anytime_schema") == [(schema.VERSION,)]

    def test_a_newer_schema_is_refused(self, target: str) -> None:
        with open_checkpoints(target):
            pass
        sql(target, "UPDATE anytime_schema SET version = 99")
        with pytest.raises(LedgerError, match="version 99, this anytime-graph knows"):
            open_checkpoints(target).__enter__()

    def test_a_schema_without_a_version_is_refused(self, target: str) -> None:
        with open_checkpoints(target):
            pass
        sql(target, "DELETE FROM anytime_schema")
        with pytest.raises(LedgerError, match="'anytime_schema' holds no version"):
            open_checkpoints(target).__enter__()

    def test_places_are_looked_up_by_index(self, store: Checkpoints, target: str) -> None:
        """So that resuming does not take longer with the steps behind it."""
        for table in ("calls", "answers"):
            place = f"SELECT * FROM {table} WHERE run_id = 1 AND ordinal >= 5"
            if target.startswith("postgresql"):
                assert "Index" in str(_explain(target, place))
            else:
                assert "USING INDEX" in str(sql(target, "EXPLAIN QUERY PLAN " + place))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _explain(target: str, query: str) -> list[tuple[Any, ...]]:
    import psycopg

    options = "-c search_path=anytime -c enable_seqscan=off"
    with psycopg.connect(target, options=options) as connection:
        return connection.execute(f"EXPLAIN {query}").fetchall()  # type: ignore[arg-type]


def _partial(target: str) -> str:
    """What a call in flight has left in the ledger so far."""
    rows = sql(target, "SELECT text FROM calls WHERE state = 'reserved' AND text IS NOT NULL")
    return str(rows[0][0]) if rows else ""


def _definitions(target: str) -> set[tuple[Any, ...]]:
    """Every table, column and index of ours."""
    if target.startswith("postgresql"):
        columns = (
            "SELECT table_name, column_name, data_type, is_nullable, column_default, generation_expression "
            "FROM information_schema.columns WHERE table_schema = 'anytime'"
        )
        indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'anytime'"
        return {*sql(target, columns), *sql(target, indexes)}
    return {
        (name, "".join(text.replace('"', "").split()))
        for name, text in sql(target, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }


def _to_version_nine(target: str) -> None:
    if target.startswith("postgresql"):
        for table, column in schema.SEARCHED.items():
            sql(target, f"ALTER TABLE {table} DROP COLUMN search")
            whole = f"to_tsvector('simple', coalesce({column}, ''))"
            added = f"ADD COLUMN search tsvector GENERATED ALWAYS AS ({whole}) STORED"
            sql(target, f"ALTER TABLE {table} {added}")
            sql(target, f"CREATE INDEX ON {table} USING gin (search)")
    sql(target, "UPDATE anytime_schema SET version = 9")


def _to_version_eight(target: str) -> None:
    sql(target, "DROP TABLE batch_steps")
    sql(target, "DROP TABLE batches")
    sql(target, "UPDATE anytime_schema SET version = 8")


def _to_version_six(target: str) -> None:
    sql(target, "DROP VIEW bills")
    sql(target, "CREATE VIEW bills AS SELECT id AS call_id, model, tool_calls FROM calls")
    sql(target, "UPDATE anytime_schema SET version = 6")


def _to_version_five(target: str) -> None:
    sql(target, "DROP VIEW bills")
    for table in ("calls", "quota_steps", "quota_holds"):
        sql(target, f"ALTER TABLE {table} DROP COLUMN tool_calls")
    sql(target, "CREATE VIEW bills AS SELECT id AS call_id FROM calls")
    sql(target, "UPDATE anytime_schema SET version = 5")


def _to_version_four(target: str) -> None:
    sql(target, "DROP VIEW bills")
    for index in ("calls_by_start", "calls_undelivered"):
        sql(target, f"DROP INDEX {index}")
    for column in ("model", "delivered"):
        sql(target, f"ALTER TABLE calls DROP COLUMN {column}")
    for table in ("labels", "quota_holds", "quota_steps", "quota_accounts", "quotas"):
        sql(target, f"DROP TABLE {table}")
    sql(target, "UPDATE anytime_schema SET version = 4")


def _to_version_two(target: str) -> None:
    if not target.startswith("postgresql"):
        sql(target, "DROP TABLE memory_fts")
    sql(target, "DROP TABLE memory")
    for statement in schema.ADDED:
        table, column = statement.split()[2], statement.split()[5]
        sql(target, f"ALTER TABLE {table} DROP COLUMN {column}")
    sql(target, "UPDATE anytime_schema SET version = 2")


def _to_version_one(target: str) -> None:
    for view in schema.VIEWS:
        sql(target, f"DROP VIEW {view}")
    for table in schema.SEARCHED:
        if target.startswith("postgresql"):
            sql(target, f"ALTER TABLE {table} DROP COLUMN search")
        else:
            for trigger in ("ai", "ad"):
                sql(target, f"DROP TRIGGER {table}_{trigger}")
            sql(target, f"DROP TABLE {table}_fts")
    sql(target, "UPDATE anytime_schema SET version = 1")


def test_how_far_bounds_missed_is_not_forgotten_between_questions(
    server: Server, target: str
) -> None:
    """The provider counts more tokens than the prompt's bound says. The first call of the next
    question is reserved with that in mind."""
    server.script = lambda request, i: Reply(
        "<answer>7</answer>",
        usage={"prompt_tokens": 900, "completion_tokens": 5, "total_tokens": 905},
    )
    with open_checkpoints(target) as store:
        fresh: Any = {"configurable": {"thread_id": "fresh"}}
        for on in (ON, ON, fresh):
            forget()  # as in a new process
            app = graph(server, store, budget=Budget(tokens=9_000, calls=2)).compile(store.saver)
            app.invoke({"messages": [("user", "Why do rivers bend?")]}, on)
        _, later = store.ledger.runs("rivers")
        (first,) = store.ledger.runs("fresh")
        learned, unlearned = (
            store.ledger.calls(r["id"])[0]["reserved_input"] for r in (later, first)
        )
    assert learned > 2 * unlearned
