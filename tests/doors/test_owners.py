"""What clients of LangGraph's server may not write, and whose a thread is, without the server: the
`configurable` is what the server would give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send, StateUpdate

from anytime_graph import Budget, create_anytime_graph, fork
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.run.state import Input
from tests.kit.ledgers import ASK, graph
from tests.kit.server import Server, by_place

ONE: Any = {**ASK, "budget": {"calls": 1}}


def on(user: str | None = None, **more: Any) -> Any:
    who = {} if user is None else {"langgraph_auth_user": SimpleNamespace(identity=user)}
    return {"configurable": {"thread_id": "rivers", **who, **more}}


@pytest.mark.parametrize("asked", [ONE, {"budget": {"calls": 1}}], ids=["new", "on"])
def test_a_thread_of_another_user_is_neither_run_nor_billed(
    server: Server, store: Checkpoints, asked: Any
) -> None:
    """Where no handler of the server keeps Bob from it."""
    server.script = by_place
    app = graph(server, store).compile(checkpointer=store.saver)
    app.invoke(ONE, on("ann"))
    with pytest.raises(PermissionError, match="it belongs to another user"):
        app.invoke(asked, on("bob"))
    assert len(server.settled().calls) == 1
    (bill,) = store.ledger.spend(["user"])
    assert (bill.of, bill.spend["calls"]) == ({"user": "ann"}, 1)


def test_a_thread_that_began_without_users_is_its_first_users(server: Server) -> None:
    server.script = by_place
    app = graph(server, None).compile(InMemorySaver())
    app.invoke(ONE, on())
    app.invoke(ONE, on("ann"))
    with pytest.raises(PermissionError):
        app.invoke({"budget": {"calls": 1}}, on("bob"))
    assert app.invoke({"budget": {"calls": 1}}, on("ann"))["spent"]["calls"] == 2
    assert app.invoke({"budget": {"calls": 1}}, on())["spent"]["calls"] == 3, "a program may"


@pytest.mark.parametrize("sync", [True, False])
async def test_the_server_hands_no_writes_of_clients_to_the_books(
    server: Server, sync: bool
) -> None:
    server.script = by_place
    app = graph(server, None).compile(InMemorySaver())
    app.invoke(ONE, on())
    served = on(graph_id="anytime")
    for values, said in (
        ({"limits": {"calls": 9}}, "input 'limits': an input has budget, messages"),
        ({"messages": [], "spent": {}}, "input 'spent'"),
        (Command(update=[("run_id", 7)]), "input 'run_id'"),
        (Command(goto=Send("draft", {})), "command goto: the graph itself plans"),
    ):
        step = [[StateUpdate(values, "draft")]]
        with pytest.raises(ValueError, match=said):
            app.bulk_update_state(served, step) if sync else await app.abulk_update_state(
                served, step
            )
        with pytest.raises(ValueError, match=said):
            app.invoke(values, served) if sync else await app.ainvoke(values, served)
    assert app.get_state(on()).values["limits"] == {"calls": 1}
    app.update_state(served, {"messages": [("user", "And glaciers?")]}, as_node="finish")
    branch = fork(app, app.get_state(on()).config, Budget(calls=4))
    assert app.get_state(branch).values["limits"] == {"calls": 4}, "a program may"


def test_within_another_graph_its_books_are_no_more_open(server: Server) -> None:
    """A client names the checkpoint of the inner graph, or sends its node an input."""
    server.script = by_place
    inner = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=1), most=Budget(calls=2), strategy="best_of_n"
    )

    def around(**options: Any) -> Any:
        outer = StateGraph(Input)
        outer.add_node("ask", inner.compile(**options))
        outer.add_edge(START, "ask")
        return outer.compile(InMemorySaver())

    app = around(interrupt_before=["draft"])
    app.invoke(ASK, on(graph_id="outer"))
    (task,) = app.get_state(on(), subgraphs=True).tasks
    space = task.state.config["configurable"]["checkpoint_ns"]
    with pytest.raises(ValueError, match="input 'limits'"):
        app.update_state(
            on(graph_id="outer", checkpoint_ns=space), {"limits": {"calls": 9}}, as_node="budget"
        )
    app = around()
    app.invoke(ASK, on(graph_id="outer"))
    assert len(server.settled().calls) == 1
    sent: dict[str, Any] = {**ASK, "limits": {"calls": 9}}
    app.invoke(Command(goto=Send("ask", {**sent, "budget": {"calls": 2}})), on(graph_id="outer"))
    assert len(server.settled().calls) == 3
    with pytest.raises(ValueError, match="budget calls=3: at most calls=2 may be asked for"):
        app.invoke(
            Command(goto=Send("ask", {**sent, "budget": {"calls": 3}})), on(graph_id="outer")
        )
