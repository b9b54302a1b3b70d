"""A run ends when its seconds do, or when its host asks for it, whatever scorers and agents do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import RunControl

from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from anytime_graph.metering import clock as metering_clock
from tests.kit.marks import both
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE, Clock

QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}
ON: Any = {"configurable": {"thread_id": "1"}}
AMPLE = Budget(seconds=PATIENCE)


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set once the run has returned. What waits for it was abandoned."""
    over = threading.Event()
    yield over
    over.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of runs."""
    clock = Clock()
    monkeypatch.setattr(metering_clock, "now", clock.now)
    return clock


def replying(clock: Clock, late: int) -> Any:
    """A model whose replies are "good", but for this one, which is "late": the second after that call began
    is the last of the run."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if i == late:
            clock.ahead = PATIENCE - 1
        return Reply(f"<answer>{'late' if i == late else 'good'}</answer>")

    return script


def invoked(app: Any, sync: bool, given: Any = QUESTION, config: Any = None, **options: Any) -> Any:
    if sync:
        return app.invoke(given, config, **options)
    return asyncio.run(app.ainvoke(given, config, **options))


def run(server: Server, sync: bool, budget: Budget = AMPLE, **options: Any) -> Any:
    options = {"strategy": "best_of_n"} | options
    return invoked(create_anytime_graph(server.model(), budget=budget, **options).compile(), sync)


def hanging(kind: str, on: str, over: threading.Event) -> Any:
    """A scorer that never ends on some answers."""

    def score(question: str, answer: str) -> float:
        if on in answer:
            over.wait()
        return 0.5

    async def ascore(question: str, answer: str) -> float:
        if on in answer:
            await asyncio.Event().wait()
        return 0.5

    async def stubborn(question: str, answer: str) -> float:
        while on in answer and not over.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return 0.5

    def given(question: str, answer: str) -> Any:
        return ascore(question, answer)

    return {"sync": score, "async": ascore, "stubborn": stubborn, "awaitable": given}[kind]


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("kind", ["sync", "async", "stubborn", "awaitable"])
@pytest.mark.parametrize("strategy", ["best_of_n", "single"])
def test_a_scorer_that_hangs_is_abandoned_and_the_best_answer_returned(
    server: Server, over: threading.Event, clock: Clock, kind: str, strategy: str, sync: bool
) -> None:
    server.script = replying(clock, late=0 if strategy == "single" else 1)
    out = run(server, sync, strategy=strategy, scorer=hanging(kind, "late", over))
    assert not over.is_set()
    assert out["stop_reason"] == "seconds"
    (error,) = [error for error in out["errors"] if "time is up" in error]
    assert error.startswith("scorer on candidate ")
    assert __file__ in error
    best = ("late", None) if strategy == "single" else ("good", 0.5)
    assert (out["best"]["answer"], out["best"]["score"]) == best


@both
def test_a_score_from_before_a_crash_is_asked_for_again_within_the_seconds(
    server: Server, over: threading.Event, sync: bool, tmp_path: Any
) -> None:
    """The scorer's own time counts, although the reply is an earlier process's."""
    failing = [True]

    def score(question: str, answer: str) -> float:
        if failing:
            raise KeyboardInterrupt
        over.wait()
        return 0.5

    server.script = lambda request, i: Reply("<answer>good</answer>")
    with open_checkpoints(str(tmp_path / "a.db")) as store:
        app = create_anytime_graph(
            server.model(),
            budget=Budget(seconds=3),
            strategy="single",
            scorer=score,
            ledger=store.ledger,
        ).compile(InMemorySaver())
        with pytest.raises(KeyboardInterrupt):
            invoked(app, True, config=ON)
        failing.clear()
        out = invoked(app, sync, None, ON)
    assert (out["best"]["answer"], out["stop_reason"]) == ("good", "seconds")
    assert len(server.calls) == 1


@both
def test_a_draft_by_an_agent_that_hangs_is_abandoned(
    server: Server, over: threading.Event, sync: bool
) -> None:
    class Agent:
        def __init__(self, model: Any) -> None:
            self.model = model

        def invoke(self, given: Any, config: Any = None) -> Any:
            reply = self.model.invoke(given["messages"])
            over.wait()
            return reply

        async def ainvoke(self, given: Any, config: Any = None) -> Any:
            reply = await self.model.ainvoke(given["messages"])
            await asyncio.Event().wait()
            return reply

    server.script = lambda request, i: Reply("<answer>good</answer>")
    out = run(server, sync, Budget(seconds=2.5), drafter=Agent, scorer=lambda q, a: 0.5)
    assert not over.is_set()
    assert out["best"]["answer"] == "good"
    assert out["stop_reason"] in ("seconds", "errors")


def test_without_seconds_a_scorer_runs_where_the_call_was_made(server: Server) -> None:
    names: list[str] = []

    def score(question: str, answer: str) -> float:
        names.append(threading.current_thread().name)
        return 1.0

    for budget in (Budget(calls=1), Budget(calls=1, seconds=PATIENCE)):
        run(server, True, budget, strategy="single", scorer=score)
    assert names[0] != "timed"
    assert names[1] == "timed"


# --- LangGraph's drain


def draining(server: Server, at: int) -> RunControl:
    """A control by which a drain is requested while the model makes this call."""
    control = RunControl()

    def script(request: dict[str, Any], i: int) -> Reply:
        if i == at:
            control.request_drain("deploy")
        return Reply(f"<answer>{i}</answer>")

    server.script = script
    return control


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("at", [0, 5])
def test_a_drain_ends_a_run_with_its_best_answer(
    server: Server, sync: bool, saved: bool, at: int
) -> None:
    graph = create_anytime_graph(
        server.model(), budget=Budget(calls=30), strategy="best_of_n", scorer=lambda q, a: 0.5
    )
    app = graph.compile(InMemorySaver() if saved else None)
    out = invoked(app, sync, config=ON, control=draining(server, at))
    assert (out["stop_reason"], out["best"]["score"]) == ("drained", 0.5)
    assert at < len(server.calls) < 30
    assert out["messages"][-1].text == out["best"]["answer"]
    if saved:  # it thinks on
        out = invoked(app, sync, {"budget": Budget(calls=2)}, ON)
        assert out["stop_reason"] == "calls"


@both
def test_in_a_parent_graph_a_drain_keeps_the_answer(server: Server, sync: bool) -> None:
    ran: list[str] = []

    def after(state: MessagesState) -> dict[str, Any]:
        ran.append("after")
        return {}

    graph = create_anytime_graph(
        server.model(), budget=Budget(calls=30), strategy="best_of_n", scorer=lambda q, a: 0.5
    )
    parent: Any = StateGraph(MessagesState)
    parent.add_node("ask", graph.compile()).add_node("after", after)
    parent.add_edge(START, "ask").add_edge("ask", "after")
    app = parent.compile(InMemorySaver())
    with pytest.raises(GraphDrained, match="deploy"):
        invoked(app, sync, config=ON, control=draining(server, 0))
    assert len(server.calls) < 30
    assert not ran
    calls = len(server.calls)
    out = invoked(app, sync, None, ON)
    assert out["messages"][-1].type == "ai"
    assert (ran, len(server.calls)) == (["after"], calls)


@both
def test_what_is_drained_before_it_begins_buys_nothing(server: Server, sync: bool) -> None:
    control = RunControl()
    control.request_drain()
    app = create_anytime_graph(server.model(), budget=Budget(calls=30)).compile(InMemorySaver())
    with pytest.raises(GraphDrained):
        invoked(app, sync, config=ON, control=control)
    assert not server.calls
    assert invoked(app, sync, None, ON)["messages"][-1].type == "ai"
