"""What an invocation brings besides its question: settings that nothing would read are not passed over."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from langgraph.graph import START, StateGraph

from anytime_graph import Budget, Context, create_anytime_graph
from anytime_graph.nodes import compiled
from anytime_graph.run.state import Input
from tests.kit.marks import both
from tests.kit.server import Server

ASK: Any = {"messages": [("user", "Name a river.")]}


@pytest.fixture
def app(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(compiled, "_warned", set())
    return create_anytime_graph(server.model(), budget=Budget(calls=1)).compile()


@both
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"context": {"buget": 1}}, "context 'buget': did you mean 'budget'\\?"),
        ({"context": {"tokens": 1}}, "context 'tokens': a context has budget, model,"),
        ({"context": Budget(calls=1)}, "context=Budget: a dict is needed, of budget, model,"),
        ({"config": {"configurable": {"model": "small"}}}, "as context={'model': ...}"),
        (
            {"config": {"configurable": {"model": "small"}}, "context": {"model": "large"}},
            "as context={'model': ...}",
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_refused_by_name(
    app: Any, server: Server, given: dict[str, Any], told: str, sync: bool
) -> None:
    with pytest.raises(ValueError, match=told):
        app.invoke(ASK, **given) if sync else asyncio.run(app.ainvoke(ASK, **given))
    assert not server.calls


@pytest.mark.parametrize("given", [{"stream_mode": "custom"}, {"stream_mode": ["messages"]}])
def test_one_thread_for_a_sync_stream_that_takes_it_is_refused(
    app: Any, server: Server, given: dict[str, Any]
) -> None:
    one: Any = {"max_concurrency": 1}
    with pytest.raises(ValueError, match=r"max_concurrency=1: .* give 2, or use astream"):
        list(app.with_config(one).stream(ASK, **given))
    assert not server.calls
    assert list(app.stream(ASK, {"max_concurrency": 2}, **given))
    assert list(app.stream(ASK, one))


def test_a_name_that_others_may_read_is_warned_of_once(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        app.with_config(configurable={"threadid": "t"}).invoke(ASK, {"configurable": {"city": 1}})
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    told = [("threadid", "did you mean 'thread_id'? "), ("city", "")]
    assert [r.args for r in caplog.records] == told


def test_names_without_end_are_not_kept_without_end(
    app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As clients of a server may send them."""
    monkeypatch.setattr(compiled, "_WARNINGS", 3)
    for n in range(3):
        app.invoke(ASK, {"configurable": {f"a{n}": 1, f"b{n}": 1}})
    assert len(caplog.records) == len(compiled._warned) == 3
    with pytest.raises(ValueError, match="as context="):
        app.invoke(ASK, {"configurable": {"c": 1, "model": "small"}})


def test_the_names_of_langgraph_and_of_a_graph_around_are_let_be(
    app: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"thread_id": "t", "checkpoint_ns": "", "langgraph_request_id": "r", "x-trace": "1"}
    app.invoke(
        ASK,
        {"configurable": {**own, "budget": Budget(calls=1)}},
        context={"budget": Budget(calls=1)},
    )
    around = StateGraph(Input, context_schema=Context)
    around.add_node("ask", app)
    around.add_edge(START, "ask")
    config: Any = {"configurable": {"thread_id": "t", "shop": 1, "model": "of the parent"}}
    around.compile().invoke(ASK, config, context={"tenant": "acme"})
    assert len(server.calls) == 2
    assert not caplog.records
