"""Warming a memory up: what it learns, what it costs, and that a kill costs nothing twice."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.memory import InMemoryStore

from anytime_graph import (
    Budget,
    Judge,
    Quota,
    WarmUp,
    create_anytime_graph,
    open_checkpoints,
    warm_up,
)
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.checkpoints.memory import StoreMemory
from tests.kit.commands import begun
from tests.kit.judging import drafted, quality, right, scripted
from tests.kit.server import Reply, Server

RIVERS = ["Why do rivers bend?", "Why do rivers freeze?", "Why do rivers flood?"]
US = ("acme", "ann")

DOOMED = f"""
from anytime_graph import Budget, open_checkpoints, warm_up
from langchain_openai import ChatOpenAI
from tests.kit.judging import quality

model = ChatOpenAI(model="scripted", seed=0)
with open_checkpoints("a.db") as store:
    warm_up({RIVERS!r}, quality, Budget(calls=3, tokens=3_000), model=model, checkpoints=store, namespace={US!r}, answer="whole")
"""


def warmed(server: Server, target: Any, questions: list[str] = RIVERS, **more: Any) -> WarmUp:
    options: dict[str, Any] = {"namespace": US, "answer": "whole", "model": server.model(seed=0)}
    options |= {"budget": Budget(calls=3, tokens=3_000), "scorer": quality, **more}
    with open_checkpoints(target) as store:
        return warm_up(questions, checkpoints=store, **options)


def answering(request: dict[str, Any], i: int) -> Reply:
    return Reply(text=drafted(request["seed"], request["messages"][-1]["content"]))


def asking(server: Server, target: Any, **more: Any) -> list[str]:
    """What the drafts of a new question are shown by the system."""
    before = len(server.calls)
    with open_checkpoints(target) as store:
        graph = create_anytime_graph(
            server.model(seed=0),
            budget=Budget(calls=2),
            scorer=quality,
            answer="whole",
            strategy="pdp",
            ledger=store.ledger,
            **({"memory": store.ledger} | more),
        )
        app = graph.compile(checkpointer=store.saver)
        app.invoke(
            {"messages": [("user", "Why do rivers meander?")]},
            {"configurable": {"thread_id": f"new{before}"}},
            context={"namespace": list(US)},
        )
    messages = [call.request["messages"] for call in server.calls[before:]]
    return [said[0]["content"] for said in messages if said[0]["role"] == "system"]


def test_what_was_learned_is_shown_to_a_new_question(server: Server, target: str) -> None:
    server.script = answering
    assert not any("Better:" in shown for shown in asking(server, target))
    before = server.served
    told: list[tuple[int, int]] = []
    done = warmed(server, target, progress=lambda *of: told.append(of))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert done.spent["tokens"] == server.served - before
    assert (done.left, [q.question for q in done.questions]) == (0, RIVERS)
    assert [q.stop_reason for q in done.questions] == ["calls"] * 3
    for q in done.questions:
        assert q.score == max(quality("", drafted(seed, q.question)) for seed in range(3))
        assert q.pairs == 1
    assert not any("Better:" in call.text for call in server.calls), "no example shows another's"
    shown = asking(server, target)
    assert len(shown) == 2
    assert all('Better: "quality' in text for text in shown)
    assert warmed(server, target).questions == done.questions


def test_a_store_is_filled_too(server: Server, tmp_path: Path) -> None:
    server.script = answering
    store = InMemoryStore()
    done = warmed(server, tmp_path / "a.db", memory=store)
    assert done.pairs == StoreMemory(store).forget(US) == 3


def answered(store: Checkpoints, thread: str) -> int:
    """How many answers of a thread's run are on the disk."""
    runs = store.ledger.runs(thread)
    return len(store.ledger.answers(runs[-1]["id"])) if runs else 0


def test_a_kill_costs_nothing_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = answering
    whole = warmed(server, tmp_path / "whole.db")
    server.calls.clear()
    server.script = lambda r, i: Reply(text=None, pace=0.01) if i == 4 else answering(r, i)
    monkeypatch.chdir(tmp_path)
    with (
        begun(server, DOOMED, calls=6) as process,
        open_checkpoints(tmp_path / "a.db") as store,
    ):
        while answered(store, whole.questions[1].thread) < 2:
            assert process.is_alive()
    server.settled()
    done = warmed(server, tmp_path / "a.db")
    bought = Counter((c.request["seed"], c.text) for c in server.settled().calls)
    assert set(bought.values()) == {1}
    assert done.spent["calls"] == len(server.calls) == 9
    assert done.spent["tokens"] >= server.served
    for kept, before in zip(done.questions, whole.questions, strict=True):
        assert kept.question == RIVERS[1] or kept.pairs == before.pairs
        assert kept.question == RIVERS[1] or kept.score == before.score
    assert warmed(server, tmp_path / "a.db") == done
    assert len(server.calls) == 9
    assert all('Better: "quality' in shown for shown in asking(server, tmp_path / "a.db"))


def test_a_warm_up_that_is_stopped_between_questions_goes_on(
    server: Server, tmp_path: Path
) -> None:
    server.script = answering
    stop = threading.Event()

    def told(done: int, of: int) -> None:
        if done == 2:
            stop.set()

    done = warmed(server, tmp_path / "a.db", stop=stop, progress=told)
    assert (done.left, done.spent["calls"], len(server.calls)) == (1, 6, 6)
    done = warmed(server, tmp_path / "a.db")
    assert (done.left, done.spent["calls"], len(server.calls)) == (0, 9, 9)


def test_a_question_that_a_quota_ended_goes_on_once_the_quota_pays(
    server: Server, tmp_path: Path
) -> None:
    server.script = answering
    reasons = []
    for calls in (2, 9):
        with open_checkpoints(tmp_path / "a.db") as store:
            store.ledger.quotas.keep(Quota(Budget(calls=calls), window="1d"))
        done = warmed(server, tmp_path / "a.db", RIVERS[:1])
        reasons += [q.stop_reason for q in done.questions]
    assert reasons == ["quota", "calls"]
    assert done.spent["calls"] == len(server.calls) == 3


def test_a_warm_up_that_is_stopped_before_a_reply_asks_that_question_anew(
    server: Server, tmp_path: Path
) -> None:
    stop = threading.Event()

    def hanging(request: dict[str, Any], i: int) -> Reply:
        if i == 5:
            stop.set()
        return Reply(error="hang") if i >= 3 else answering(request, i)

    server.script = hanging
    done = warmed(server, tmp_path / "a.db", stop=stop)
    assert done.left == 1
    assert (done.questions[1].score, done.questions[1].spent["calls"]) == (None, 3)
    assert done.questions[1].error
    server.script = answering
    done = warmed(server, tmp_path / "a.db")
    assert (done.left, done.spent["calls"], len(server.calls)) == (0, 12, 12)
    assert not any(q.error for q in done.questions)


def test_a_question_without_an_answer_is_asked_anew(server: Server, tmp_path: Path) -> None:
    """With its budget anew: what failures are charged as a precaution is no reason to give up."""
    server.script = lambda r, i: Reply(error=401) if "freeze" in str(r) else answering(r, i)
    budget = Budget(tokens=2_500)
    done = warmed(server, tmp_path / "a.db", budget=budget)
    assert [bool(q.error) for q in done.questions] == [False, True, False]
    assert (done.questions[1].score, done.questions[1].pairs) == (None, 0)
    server.script = answering
    again = warmed(server, tmp_path / "a.db", budget=budget)
    assert [again.questions[0], again.questions[2]] == [done.questions[0], done.questions[2]]
    assert (again.questions[1].error, again.questions[1].pairs > 0) == (None, True)
    assert again.questions[1].spent["tokens"] <= 5_000


def test_namespaces_are_apart(server: Server, tmp_path: Path) -> None:
    server.script = answering
    warmed(server, tmp_path / "a.db", namespace=("acme", "bob"))
    assert len(server.calls) == 9
    assert not any("Better:" in shown for shown in asking(server, tmp_path / "a.db"))
    warmed(server, tmp_path / "a.db")
    assert len(server.calls) == 9 + 2 + 9


def test_the_model_itself_may_judge(server: Server, tmp_path: Path) -> None:
    scripted(server, right(1.0))
    with open_checkpoints(tmp_path / "a.db") as store:
        done = warm_up(
            RIVERS[:1],
            Judge(rubric="Be strict."),
            Budget(calls=8),
            model=server.model(seed=0),
            checkpoints=store,
            answer="whole",
        )
    assert done.pairs > 0
    assert any("Be strict." in call.text for call in server.calls)


def test_wrong_arguments_are_refused(server: Server, tmp_path: Path) -> None:
    for scorer, named, message in (
        ("vote", {}, "scorer='vote'"),
        (None, {}, "scorer=None"),
        (quality, {"namespace": ("",)}, "namespace="),
        (quality, {"strategy": "none"}, "strategy="),
    ):
        with open_checkpoints(tmp_path / "a.db") as store, pytest.raises(ValueError, match=message):
            warm_up(
                RIVERS,
                scorer,  # type: ignore[arg-type]
                Budget(calls=3),
                model=server.model(),
                checkpoints=store,
                **named,  # type: ignore[arg-type]
            )
    with (
        open_checkpoints(tmp_path / "u.db", record="usage") as store,
        pytest.raises(ValueError, match='record="all"'),
    ):
        warm_up(RIVERS, quality, Budget(calls=3), model=server.model(), checkpoints=store)
    assert server.calls == []
