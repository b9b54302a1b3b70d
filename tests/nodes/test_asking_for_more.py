"""A run whose budget is used up asks a human for more, and goes on with what it is given."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command

from anytime_graph import Budget, create_anytime_graph
from tests.kit.asking import ASK, ON, graph, script
from tests.kit.forks import forked
from tests.kit.marks import both, torture
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server, serving


def run(app: Any, given: Any, sync: bool = True, config: Any = ON) -> Any:
    return app.invoke(given, config) if sync else asyncio.run(app.ainvoke(given, config))


def asked(out: Any) -> Any:
    (question,) = out["__interrupt__"]
    return question.value


def seeds(server: Server) -> list[int]:
    """The places at which calls were made, in order: one that comes twice was bought twice."""
    return sorted(call.request["seed"] for call in server.settled().calls)


@both
def test_it_asks_before_it_ends_and_thinks_on_with_what_it_is_given(
    server: Server, sync: bool
) -> None:
    app = graph(server, Budget(calls=2)).compile(InMemorySaver())
    question = asked(run(app, ASK, sync))
    assert (question["stop_reason"], question["answer"]) == ("calls", "river 1")
    assert (question["spent"]["calls"], question["limits"]) == (2, {"calls": 2})
    assert question["gain_of"] == "score"
    assert min(question["gain_per_1000_tokens"], question["next_tokens"]) > 0

    question = asked(run(app, Command(resume={"calls": 3}), sync))
    assert (question["answer"], question["limits"]) == ("river 4", {"calls": 5})
    out = run(app, Command(resume=Budget(calls=1)), sync)
    out = run(app, Command(resume=0), sync)
    assert (out["best"]["answer"], out["messages"][-1].text) == ("river 5", "river 5")
    assert (out["stop_reason"], out["spent"]["calls"]) == ("calls", 6)
    assert seeds(server) == [*range(6)]


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("answer", [0, "stop", False, None])
def test_an_answer_that_grants_nothing_ends_the_run(
    server: Server, sync: bool, answer: Any
) -> None:
    app = graph(server, Budget(tokens=400)).compile(InMemorySaver())
    asked(run(app, ASK))
    calls = len(server.calls)
    out = run(app, Command(resume=answer), sync)
    assert (out["stop_reason"], len(server.calls)) == ("tokens", calls)
    assert out["messages"][-1].text == out["best"]["answer"]


@both
def test_an_answer_may_name_the_question_by_its_id(server: Server, sync: bool) -> None:
    """And what the saver keeps of it is plain data."""
    saver = InMemorySaver()
    app = graph(server, Budget(calls=2)).compile(saver)
    out = run(app, ASK, sync)
    answers: Any = ((Budget(usd=1), 2), (Budget(calls=1), 3), ({"calls": 1}, 4), (None, 4))
    for answer, calls in answers:
        (question,) = out["__interrupt__"]
        out = run(app, Command(resume={question.id: answer}), sync)
        assert out["spent"]["calls"] == calls
    kept = str([step.pending_writes for step in saver.list(ON)])
    assert "__resume__" in kept
    assert "Budget(" not in kept
    assert (out["stop_reason"], seeds(server)) == ("calls", [*range(4)])


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("more", "resume='more'"),
        (-5, "tokens=-5"),
        (True, "tokens=True"),
        ({"usd": 3}, "resume={'usd': 3}: more tokens are needed"),
        ({"tokens": 0, "calls": 4}, "resume={'tokens': 0, 'calls': 4}: more tokens"),
        (9_999, "budget tokens=9999: at most tokens=1000"),
    ],
)
def test_after_an_answer_that_does_not_do_it_asks_again_and_says_why(
    server: Server, answer: Any, fault: str
) -> None:
    app = graph(server, Budget(tokens=400), most=Budget(tokens=1_000)).compile(InMemorySaver())
    before = asked(run(app, ASK))
    calls = len(server.calls)
    for _ in range(2):
        again = asked(run(app, Command(resume=answer)))
        assert again["fault"].startswith(fault)
    assert (len(server.calls), {**again, "fault": None}) == (calls, before)
    after = asked(run(app, Command(resume=500)))
    assert (after["limits"], after["fault"]) == ({"tokens": 900}, None)
    assert after["spent"]["tokens"] > before["spent"]["tokens"]


def test_what_ends_otherwise_is_not_asked_about(server: Server) -> None:
    app = graph(server, Budget(calls=9)).compile(InMemorySaver())
    server.script = lambda request, i: Reply(text="<answer>river 100</answer>")
    assert run(app, ASK)["stop_reason"] == "perfect"


def test_who_is_asked_needs_a_checkpointer_and_nothing_is_spent_without(server: Server) -> None:
    with pytest.raises(ValueError, match=r"on_exhausted='ask'.*checkpointer"):
        run(graph(server, Budget(calls=2)).compile(), ASK)
    assert not server.calls
    with pytest.raises(ValueError, match="on_exhausted='beg'"):
        create_anytime_graph(server.model(), on_exhausted="beg")  # type: ignore[arg-type]


def test_a_run_that_asks_is_drawn_with_the_question_and_others_are_not(server: Server) -> None:
    drawn = graph(server, Budget(calls=2)).compile().get_graph()
    assert {(e.source, e.target) for e in drawn.edges if "ask" in (e.source, e.target)} == {
        ("budget", "ask"),
        ("ask", "budget"),
        ("ask", "finish"),
    }
    usual = create_anytime_graph(server.model()).compile().get_graph()
    assert "ask" not in usual.nodes


@both
@pytest.mark.parametrize("called", ["as a node", "within a node"])
def test_a_graph_within_another_asks_through_it(server: Server, sync: bool, called: str) -> None:
    inner = graph(server, Budget(calls=2)).compile()

    def within(state: MessagesState) -> Any:
        return {"messages": inner.invoke({"messages": state["messages"]})["messages"][-1:]}

    async def awithin(state: MessagesState) -> Any:
        out = await inner.ainvoke({"messages": state["messages"]})
        return {"messages": out["messages"][-1:]}

    outer: Any = StateGraph(MessagesState)
    outer.add_node("river", inner if called == "as a node" else (within if sync else awithin))
    outer.add_edge(START, "river")
    outer.add_edge("river", END)
    app = outer.compile(InMemorySaver())
    assert asked(run(app, ASK, sync))["answer"] == "river 1"
    assert asked(run(app, Command(resume={"calls": 2}), sync))["answer"] == "river 3"
    (question,) = app.get_state(ON).interrupts
    ends: Any = "stop" if called == "as a node" else {question.id: None}
    assert run(app, Command(resume=ends), sync)["messages"][-1].text == "river 3"
    assert seeds(server) == [*range(4)]


def test_a_stream_shows_the_question_and_the_answers_after_it(server: Server) -> None:
    app = graph(server, Budget(calls=2)).compile(InMemorySaver())
    modes = ["updates", "custom"]
    first = list(app.stream(ASK, ON, stream_mode=modes))
    assert "__interrupt__" in first[-1][1]
    more = list(app.stream(Command(resume={"calls": 2}), ON, stream_mode=modes))
    better = [event["answer"] for mode, event in more if mode == "custom"]
    assert better[-1] == "river 3"
    assert "__interrupt__" in more[-1][1]


PROCESS = """
import json, sys
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from anytime_graph import Budget, open_checkpoints
from tests.kit.server import Server
from tests.kit.asking import ASK, ON, graph

given = json.loads({given!r})
with open_checkpoints("runs.db") as store:
    app = graph(Server({url!r}), Budget(calls=2), ledger=store.ledger).compile(store.saver)
    out = app.invoke(ASK if given is None else Command(resume=given["answer"]), ON)
    print(len(out.get("__interrupt__", ())), out["spent"]["calls"], out["best"]["answer"])
"""


def test_another_process_resumes_and_nothing_is_bought_twice(
    server: Server, tmp_path: Path
) -> None:
    server.script = script
    said = []
    for words in (None, {"answer": {"calls": 2}}, {"answer": "stop"}):
        code = PROCESS.format(given=json.dumps(words), url=server.url)
        done = forked(code, tmp_path, {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    assert said == ["1 2 river 1", "1 4 river 3", "0 4 river 3"]
    assert seeds(server) == [*range(4)]
    with closing(sqlite3.connect(tmp_path / "runs.db")) as books:
        assert books.execute("SELECT stop_reason FROM runs").fetchall() == [("calls",)]
        assert books.execute("SELECT count(*) FROM leases").fetchall() == [(0,)]


@settings(max_examples=torture or 3)
@given(
    grants=st.lists(st.integers(1, 900), max_size=4),
    ways=st.lists(st.sampled_from(["resume", "input"]), min_size=4, max_size=4),
)
def test_however_often_it_is_asked_no_token_is_spent_beyond_what_was_granted(
    grants: list[int], ways: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each part of the run is a graph of its own, as in another process, over one file."""
    folder = tmp_path_factory.mktemp("asked")
    with serving() as server:

        def parts() -> Iterator[Any]:
            for given in [ASK, *grants, "stop"]:
                with SqliteSaver.from_conn_string(str(folder / "asked.db")) as saver:
                    app = graph(server, Budget(tokens=300)).compile(saver)
                    way = ways[len(granted) % 4]
                    if isinstance(given, int):
                        granted.append(given)
                        by_input = {"budget": {"tokens": given}}
                        given = Command(resume=given) if way != "input" else by_input
                    elif given == "stop":
                        given = Command(resume=0)
                    yield run(app, given)

        granted: list[int] = []
        for out in parts():
            assert server.settled().served <= 300 + sum(granted)
            assert out["spent"]["tokens"] == server.served
        assert "__interrupt__" not in out
        places = seeds(server)
        assert len(places) == len(set(places))
