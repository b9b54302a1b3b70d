"""The memory of preferences, over the ledger in SQLite and PostgreSQL and over LangGraph's stores."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

from anytime_graph import open_checkpoints
from anytime_graph.checkpoints import Checkpoints, memory
from anytime_graph.checkpoints.ledger import Ledger
from anytime_graph.checkpoints.likeness import keys
from anytime_graph.checkpoints.memory import Example, Memory, Namespace, encoded, memory_of
from anytime_graph.checkpoints.store import plain
from anytime_graph.run.pairs import Pair
from tests.kit.ledgers import ASK, ON, graph, sql
from tests.kit.marks import torture
from tests.kit.paraphrases import generate
from tests.kit.postgres import fresh
from tests.kit.server import Server

US, THEM = ("acme", "ann"), ("acme",)
RIVERS, COOKING = "Why do rivers bend?", "How long does rice cook?"
run_ids = itertools.count(1)


def pair(better: str, gap: float = 0.5, worse: str = "worse", **more: Any) -> Pair:
    known: Any = {
        "chosen": better,
        "rejected": worse,
        "chosen_id": 1,
        "rejected_id": 2,
        "why": "because",
        "by": "scorer",
        "gap": gap,
        "better": better,
        "worse": worse,
        "why_by": "scorer",
    }
    return known | more  # type: ignore[no-any-return]


class Remembered:
    """A memory, and the way runs get into it."""

    def __init__(self, source: Any) -> None:
        self.ledger = source.ledger if isinstance(source, Checkpoints) else None
        self.memory: Memory = memory_of(self.ledger or source)

    def learn(
        self,
        namespace: Namespace,
        question: str,
        *pairs: Pair | str,
        principles: Sequence[str] = (),
        age: float = 0.0,
        run_id: int | None = None,
    ) -> int:
        """A run ends, `age` seconds ago; returns its id."""
        run_id = run_id or next(run_ids)
        known = [pair(p) if isinstance(p, str) else p for p in pairs]
        with patch.object(memory, "time", SimpleNamespace(time=lambda: time.time() - age)):
            if self.ledger:
                plant(self.ledger, run_id, namespace, question, known, principles, age)
            self.memory.learn(namespace, question, known, list(principles), run_id)
        return run_id

    def better(self, namespace: Namespace, question: str, *of: Any, **named: Any) -> list[str]:
        return [e["better"] for e in self.memory.recall(namespace, question, *of, **named)]


def plant(
    ledger: Ledger,
    run_id: int,
    namespace: Namespace,
    question: str,
    pairs: Sequence[Pair],
    principles: Sequence[str],
    age: float,
) -> None:
    """The rows of a run that is over."""
    space, run = encoded(namespace), {"run": run_id}
    with ledger.store.transaction(durable=False) as execute:
        execute(
            "INSERT INTO runs (id, thread, asked, question, model, strategy, decides, limits, "
            "inherited, plan, started, changed, namespace, principles) VALUES (:run, 't', '', "
            ":question, '', '', '', '{}', '{}', '', 0, 0, :space, :principles) ON CONFLICT (id) DO NOTHING",
            {
                **run,
                "question": plain(question),
                "space": space,
                "principles": json.dumps(list(principles)),
            },
        )
        execute(
            "INSERT INTO memory (run_id, terms) VALUES (:run, :terms) "
            "ON CONFLICT (run_id) DO NOTHING",
            {**run, "terms": " ".join(keys(space, question))},
        )
        for n, known in enumerate(pairs):
            for ordinal in (2 * n, 2 * n + 1):
                execute(
                    "INSERT INTO answers (run_id, ordinal, node, complete, parents, created) "
                    "VALUES (:run, :ordinal, 'draft', 1, '[]', 0) "
                    "ON CONFLICT (run_id, ordinal) DO NOTHING",
                    {**run, "ordinal": ordinal},
                )
            placed: Any = {**known, "chosen_id": 2 * n, "rejected_id": 2 * n + 1}
            ledger._pair(execute, run_id, placed)
        then = {**run, "then": time.time() - age}
        execute("UPDATE pairs SET created = :then WHERE run_id = :run", then)


@contextmanager
def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """A ledger's checkpoints, or a store."""
    with ExitStack() as stack:
        if kind.startswith("Postgre"):
            database = stack.enter_context(fresh(request.getfixturevalue("postgres")))
        if kind == "InMemoryStore":
            yield InMemoryStore()
        elif kind == "SqliteStore":
            kept = stack.enter_context(SqliteStore.from_conn_string(":memory:"))
            kept.setup()
            yield kept
        elif kind == "PostgresStore":
            from langgraph.store.postgres import PostgresStore

            held = stack.enter_context(PostgresStore.from_conn_string(database))
            held.setup()
            yield held
        else:
            where = database if kind == "PostgreSQL" else folder / "a.db"
            yield stack.enter_context(open_checkpoints(where))


LEDGERS = ["SQLite", "PostgreSQL"]
KINDS = [*LEDGERS, "InMemoryStore", "SqliteStore", "PostgresStore"]


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Any]:
    with opened(request.param, request, tmp_path_factory.mktemp("memory")) as found:
        yield found


@pytest.fixture
def remembered(source: Any) -> Remembered:
    """One that is empty."""
    found = Remembered(source)
    found.memory.forget()
    return found


class TestRecall:
    def test_a_like_question_brings_its_pairs(self, remembered: Remembered) -> None:
        flow = pair("flow", gap=0.25, by="judge", why="why it is")
        remembered.learn(US, RIVERS, flow, principles=["Name forces."])
        remembered.learn(US, COOKING, "ten minutes")
        (told,) = remembered.memory.recall(US, "What bends a river?")
        assert told == Example(
            question=RIVERS,
            better="flow",
            worse="worse",
            why="why it is",
            by="judge",
            gap=0.25,
            principles=["Name forces."],
        )
        assert remembered.better(US, "Is rice cooking for long?") == ["ten minutes"]
        assert remembered.better(US, "Who painted this picture?") == []
        assert remembered.better(US, "") == remembered.better(US, "?!") == []
        assert remembered.better(US, RIVERS, 0) == []

    def test_each_question_gives_one_pair_before_any_gives_two(
        self, remembered: Remembered
    ) -> None:
        remembered.learn(US, RIVERS, pair("a1", 0.2), pair("a2", 0.9), pair("a3", 0.5))
        remembered.learn(US, "Why do rivers bend in valleys?", pair("b1", 0.1), pair("b2", 0.3))
        remembered.learn(US, "How do rivers reach the sea?", "c1")
        assert remembered.better(US, RIVERS, 1) == ["a2"]
        assert remembered.better(US, RIVERS) == ["a2", "b2", "c1"]
        assert remembered.better(US, RIVERS, 9) == ["a2", "b2", "c1", "a3", "b1", "a1"]

    def test_one_question_asked_by_many_runs_is_one(self, remembered: Remembered) -> None:
        for n in range(9):
            remembered.learn(US, RIVERS, pair(f"a{n}", n / 10))
        remembered.learn(US, RIVERS, pair("a8", 0.8))
        remembered.learn(US, "Why do rivers bend in valleys?", "b")
        assert remembered.better(US, RIVERS, 2) == ["a8", "b"]
        assert len(remembered.better(US, RIVERS, 20)) == 10

    def test_runs_can_be_left_out(self, remembered: Remembered) -> None:
        present, parent = (remembered.learn(US, RIVERS, name) for name in ("present", "parent"))
        remembered.learn(US, RIVERS, "earlier")
        assert remembered.better(US, RIVERS, besides=[present, parent]) == ["earlier"]

    def test_no_pair_is_remembered_twice(self, remembered: Remembered) -> None:
        run_id = remembered.learn(US, RIVERS, "a")
        for _ in range(2):
            remembered.learn(US, RIVERS, "a", "b", run_id=run_id)
        assert sorted(remembered.better(US, RIVERS, 9)) == ["a", "b"]
        remembered.learn(US, RIVERS, run_id=run_id)
        assert sorted(remembered.better(US, RIVERS, 9)) == ["a", "b"]
        assert remembered.memory.forget(US) == 2

    def test_what_is_told_is_short(self, remembered: Remembered) -> None:
        question, long = RIVERS + " Say more." * 5_000, "word " * 50_000
        remembered.learn(
            US, question, pair(long, worse=long + "end", why=long), pair("a", worse="a")
        )
        remembered.learn(US, RIVERS, "b", principles=[long] * 9)
        for told in remembered.memory.recall(US, question, 9):
            texts = [v for v in told.values() if isinstance(v, str)]
            assert max(map(len, [*texts, *told["principles"]])) <= 300
            assert len(told["principles"]) <= 5
            assert told["better"] != told["worse"]

    def test_the_same_question_is_found_in_any_language(self, remembered: Remembered) -> None:
        questions = [
            "Warum mäandern große Flüsse?",
            "Почему реки изгибаются?",
            "لماذا تنحني الأنهار؟",
            "河流为什么会弯曲？",
            "Who are you?",
            "C++ or C#?",
            "see https://example.org/a_b?c=d#e and foo.bar@example.org, v1.2.3",
            "3.14159",
        ]
        for question in questions:
            remembered.learn(US, question, question)
        for question in questions:
            assert remembered.better(US, question, 1) == [question]
        assert remembered.better(US, "河流弯曲的原因", 1) == ["河流为什么会弯曲？"]

    def test_any_text_is_only_data(self, remembered: Remembered) -> None:
        texts = [
            *('"', "'", "''; DROP TABLE pairs; --", "NEAR(", "a OR", "* -", "100% :word %s"),
            *("a\0b", "\ud800 lone", "x" * 70_000, "[^a", "question : rivers", "\\", "\\'", "!"),
            *("rivers AND NOT bend", "& | ! <->", "²", "\u200b", "a:* & b", "{terms} : x"),
        ]
        for text in texts:
            remembered.learn(US, text, pair(text, worse=f"not {text}", why=text))
            remembered.memory.recall(US, text)
        assert remembered.better(US, "a lone text") == ["? lone"]

        @settings(max_examples=torture or 12)
        @given(st.text(st.characters(), max_size=40))
        def asked(text: str) -> None:
            remembered.learn(THEM, text, "a")
            remembered.memory.recall(THEM, text)

        asked()

    @pytest.mark.parametrize("namespace", ["ann", ("ann", ""), ("ann", 1), None])
    def test_namespaces_are_checked(self, remembered: Remembered, namespace: Any) -> None:
        with pytest.raises(ValueError, match="a tuple of strings"):
            remembered.memory.recall(namespace, RIVERS)
        assert encoded(["ann"]) == encoded(("ann",)) == '["ann"]'  # type: ignore[arg-type]


class TestForgetting:
    def test_by_namespace_age_and_number(self, remembered: Remembered) -> None:
        for age in (300, 200, 100):
            question = f"{RIVERS} {age}"
            remembered.learn(US, question, pair(f"{age}", 0.5), pair(f"{age}b", 0.1), age=age)
        remembered.learn(THEM, RIVERS, "theirs", age=250)
        forget = remembered.memory.forget
        assert forget(("nobody",)) == forget(US, keep=6) == forget(older_than=1_000) == 0
        assert forget(US, older_than=250) == 2
        assert sorted(remembered.better(US, RIVERS, 9)) == ["100", "100b", "200", "200b"]
        assert forget(US, older_than=150, keep=4) == 2
        assert forget(keep=1) == 1
        assert len(remembered.better(US, RIVERS, 9)) == 1
        assert remembered.better(THEM, RIVERS, 9) == ["theirs"]
        assert forget(US, keep=0) == 1
        assert forget() == 1
        assert remembered.better(THEM, RIVERS, 9) == []

    @pytest.mark.parametrize(
        "wrong", [{"keep": -1}, {"older_than": -0.1}, {"older_than": float("nan")}]
    )
    def test_wrong_limits_are_refused(self, remembered: Remembered, wrong: Any) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            remembered.memory.forget(US, **wrong)


NASTY = ["a", "ab", "A", "a.b", ".", "%", "_", '"', '","', "[", "\\", "\\u0061", "'", "*", "\0"]
NASTY += ["langgraph", "anytime-preferences", "\ud800", "\ufffd", "ü", "u\u0308", " ", "null", "[]"]
namespaces = st.lists(st.sampled_from(NASTY) | st.text(min_size=1, max_size=3), max_size=3)


def test_namespaces_whose_marks_are_the_same_do_not_meet(store: Checkpoints) -> None:
    """The index tells namespaces apart by a short digest; that two share it must not matter."""
    marks: dict[str, Namespace] = {}
    for n in range(1_000_000):
        (marked,) = keys(encoded((f"tenant {n}",)), "bend")
        one, other = marks.setdefault(marked, (f"tenant {n}",)), (f"tenant {n}",)
        if one != other:
            break
    assert one != other
    remembered = Remembered(store)
    remembered.learn(one, RIVERS, "ours")
    assert remembered.better(other, RIVERS) == []
    assert remembered.better(one, RIVERS) == ["ours"]


def test_namespaces_never_meet(remembered: Remembered) -> None:
    @settings(max_examples=torture or 12)
    @given(st.lists(st.tuples(st.booleans(), namespaces.map(tuple)), max_size=8))
    def check(acts: list[tuple[bool, Namespace]]) -> None:
        remembered.memory.forget()
        model: dict[Namespace, set[str]] = {}
        for n, (learns, namespace) in enumerate(acts):
            if learns:
                remembered.learn(namespace, f"Why do rivers bend near town {n}?", str(n))
                model.setdefault(namespace, set()).add(str(n))
            else:
                assert remembered.memory.forget(namespace) == len(model.pop(namespace, ()))
            for known in {other for _, other in acts}:
                assert set(remembered.better(known, RIVERS, 50)) == model.get(known, set())

    check()


@pytest.mark.parametrize("kind", [*LEDGERS, "InMemoryStore"])
def test_paraphrases_are_recognized(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """200 questions in other words, among 800 that share their words, and another tenant's copies."""
    case = generate(seed=0)
    with opened(kind, request, tmp_path) as source:
        remembered = Remembered(source)
        for place, question in enumerate(case.memory):
            remembered.learn(US, question, f"a{place}")
            if torture or place % 5 == 0:
                remembered.learn(THEM, question, "theirs")
        found = sum(f"a{place}" in remembered.better(US, q) for place, q in case.asked.items())
    print(f"{kind}: {found / 2:.1f} % among the first three")
    assert len(case.asked) == 200
    assert found >= 0.9 * 200


def keep(ledger: Ledger, namespace: Namespace) -> Any:
    """Runs that the ledger saves from here on are remembered in the namespace."""
    save = ledger.save

    def saving(hold: Any, run: Any, before: Any, now: Any, *rest: Any) -> None:
        now = {**now, "principles": ["Be brief."]}
        save(hold, {**run, "namespace": encoded(namespace)}, before, now, *rest)

    return patch.object(ledger, "save", saving)


class TestLedger:
    def test_runs_are_remembered_while_they_run(self, served: Server, store: Checkpoints) -> None:
        app, memory = (
            graph(served, store).compile(checkpointer=store.saver),
            memory_of(store.ledger),
        )
        early: list[Example] = []
        with keep(store.ledger, US):
            for _ in app.stream(ASK, ON):
                early = early or memory.recall(US, RIVERS)
                assert memory.recall(THEM, RIVERS) == []
        (run,) = store.ledger.runs("rivers")
        assert (run["namespace"], run["principles"]) == (encoded(US), ["Be brief."])
        assert early
        known = {(p["better"], p["worse"], p["gap"]) for p in store.ledger.pairs(run["id"])}
        told = memory.recall(US, "What bends rivers?", limit=50)
        assert {(e["better"], e["worse"], e["gap"]) for e in told} == known
        assert {(e["by"], *e["principles"]) for e in told} == {("scorer", "Be brief.")}
        assert memory.recall(US, RIVERS, besides=[run["id"]]) == []
        app.invoke(ASK, {"configurable": {"thread_id": "not to be remembered"}})
        assert len(memory.recall(US, RIVERS, limit=50)) == len(told)

    def test_a_run_stays_where_it_began(self, served: Server, store: Checkpoints) -> None:
        app = graph(served, store).compile(checkpointer=store.saver)
        with keep(store.ledger, US):
            app.invoke({**ASK, "budget": {"tokens": 500}}, ON)
        with keep(store.ledger, THEM):
            app.invoke({"budget": {"tokens": 2_000}}, ON)
        (run,) = store.ledger.runs("rivers")
        assert run["namespace"] == encoded(US)
        assert memory_of(store.ledger).recall(THEM, RIVERS) == []

    def test_an_authenticated_user_keeps_to_a_memory_of_their_own(
        self, served: Server, store: Checkpoints
    ) -> None:
        """Ann names what is Bob's, and reads and writes what is hers."""
        app = graph(served, store, memory=store.ledger).compile()
        spaces: list[str] = []
        for name, named in [("bob", ["support"]), ("ann", ["bob", "support"]), ("ann", None)]:
            thread, user = f"{name} as {named}", SimpleNamespace(identity=name)
            config: Any = {"configurable": {"thread_id": thread, "langgraph_auth_user": user}}
            app.invoke(ASK, config, context={"namespace": named})
            spaces += [run["namespace"] for run in store.ledger.runs(thread)]
        assert spaces == ['["bob", "support"]', '["ann", "bob", "support"]', '["ann"]']

    def test_a_reason_may_come_later(self, store: Checkpoints) -> None:
        remembered = Remembered(store)
        run_id = remembered.learn(US, RIVERS, pair("a", why="", why_by="nobody"))
        remembered.learn(US, RIVERS, pair("a", why="it is shorter", why_by="judge"), run_id=run_id)
        (row,) = store.ledger.pairs(run_id)
        assert (row["why"], row["why_by"], row["better"]) == ("it is shorter", "judge", "a")

    def test_what_is_forgotten_is_a_number(self, store: Checkpoints) -> None:
        remembered = Remembered(store)
        remembered.learn(US, RIVERS, "a")
        assert remembered.memory.forget(keep=2**70) == 0
        wrong: list[dict[str, Any]] = [{"keep": 1.5}, {"keep": -1}, {"older_than": "x"}]
        for bad in wrong:
            with pytest.raises(ValueError, match="of 0 or more is needed"):
                remembered.memory.forget(**bad)

    def test_forgetting_leaves_the_books(self, served: Server, store: Checkpoints) -> None:
        ledger, memory = store.ledger, memory_of(store.ledger)
        app = graph(served, store).compile(checkpointer=store.saver)
        with keep(ledger, US):
            app.invoke(ASK, ON)
        app.invoke(ASK, {"configurable": {"thread_id": "no memory"}})
        (run,) = ledger.runs("rivers")
        books = [read(run["id"]) for read in (ledger.answers, ledger.calls)]
        assert memory.forget() > 0
        assert ledger.pairs(run["id"]) == []
        assert [read(run["id"]) for read in (ledger.answers, ledger.calls)] == books
        assert ledger.runs("rivers") == [run]
        assert ledger.pairs(ledger.runs("no memory")[0]["id"]) != []
        with keep(ledger, US):
            app.invoke(ASK, {"configurable": {"thread_id": "another"}})
        assert ledger.forget("another")
        assert memory.recall(US, RIVERS) == []

    def test_texts_that_were_not_kept_are_passed_over(self, served: Server, target: str) -> None:
        with open_checkpoints(target, record="usage") as store, keep(store.ledger, US):
            graph(served, store).compile(checkpointer=store.saver).invoke(ASK, ON)
            (run,) = store.ledger.runs("rivers")
            texts = {(p["why"], p["better"], p["worse"]) for p in store.ledger.pairs(run["id"])}
            assert (texts, run["principles"]) == ({(None, None, None)}, None)
            assert memory_of(store.ledger).recall(US, RIVERS) == []

    def test_answers_stand_in_for_missing_excerpts(self, store: Checkpoints, target: str) -> None:
        remembered = Remembered(store)
        remembered.learn(US, RIVERS, "a", "b")
        sql(target, "UPDATE pairs SET better = NULL, worse = NULL, why = NULL")
        assert remembered.better(US, RIVERS) == []
        sql(target, "UPDATE answers SET answer = 'answer ' || ordinal WHERE ordinal < 2")
        (told,) = remembered.memory.recall(US, RIVERS)
        assert (told["better"], told["worse"], told["why"]) == ("answer 0", "answer 1", "")


class TestStores:
    def test_an_index_is_searched_by_meaning(self) -> None:
        meanings = {"river": [1.0, 0.0], "stream": [0.9, 0.1], "rice": [0.0, 1.0]}

        def embed(texts: Sequence[str]) -> list[list[float]]:
            return [next(v for word, v in meanings.items() if word in text) for text in texts]

        indexed = InMemoryStore(index={"dims": 2, "embed": embed, "fields": ["other"]})
        remembered = Remembered(indexed)
        remembered.learn(US, RIVERS, pair("a1", 0.1), pair("a2", 0.2))
        remembered.learn(US, COOKING, "b")
        remembered.learn(THEM, RIVERS, "theirs")
        assert remembered.better(US, "What shapes a stream?") == ["a2", "b", "a1"]

    def test_a_store_of_an_event_loop(self, tmp_path: Path) -> None:
        from langgraph.store.sqlite.aio import AsyncSqliteStore

        async def lives() -> list[str]:
            async with AsyncSqliteStore.from_conn_string(str(tmp_path / "a.db")) as kept:
                await kept.setup()
                remembered = Remembered(kept)
                await asyncio.to_thread(remembered.learn, US, RIVERS, "a")
                told = await asyncio.to_thread(remembered.better, US, RIVERS)
                assert await asyncio.to_thread(remembered.memory.forget) == 1
                return told

        assert asyncio.run(lives()) == ["a"]

    def test_forgetting_leaves_what_others_keep(self) -> None:
        kept = InMemoryStore()
        remembered = Remembered(kept)
        kept.put(("ann", "preferences"), "colour", {"likes": "green"})
        for n in range(1_100):
            remembered.learn(US if n % 2 else ("user", str(n)), RIVERS, f"{n}")
        assert remembered.memory.forget() == 1_100
        assert len(kept.search((), limit=99)) == 1


def test_memories_of_other_kinds() -> None:
    class Own:
        recall = learn = forget = lambda *of, **named: []

    own: Any = Own()
    assert memory_of(own) is own
    with pytest.raises(ValueError, match="a ledger, a LangGraph store, or a Memory"):
        memory_of("anytime.db")  # type: ignore[arg-type]
