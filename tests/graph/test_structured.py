"""Answers as instances of the caller's model: made at the end of a run, kept as JSON only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from pydantic import BaseModel, field_validator

from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from tests.kit.server import Reply, Server

ASK: Any = {"messages": [("user", "Which city?")]}
THREAD: Any = {"configurable": {"thread_id": "cities"}}


class City(BaseModel):
    name: str
    people: int


class Named(BaseModel):
    """City as it might be after a change: what was found before does not fit."""

    name: str
    people: int

    @field_validator("people")
    @classmethod
    def _none(cls, people: int) -> int:
        raise RuntimeError("changed")


ULM = '{"name": "Ulm", "people": 5}'


@pytest.mark.parametrize("how", ["memory", "ledger"])
def test_the_output_has_the_answer_as_an_instance(
    how: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the thread goes on; checkpoints hold plain data, so nothing is logged when they are read."""
    server.script = lambda request, i: Reply(ULM)
    with open_checkpoints(tmp_path / "a.db") as store:
        graph = create_anytime_graph(
            server.model(),
            budget=Budget(calls=1),
            answer=City,
            scorer=lambda q, a: 0.5,
            strategy="single" if how == "memory" else "best_of_n",
            ledger=store.ledger if how == "ledger" else None,
        )
        app = graph.compile(store.saver)
        out = app.invoke(ASK, THREAD)
        assert out["structured_response"] == City(name="Ulm", people=5)
        stored = app.get_state(THREAD).values
        assert stored["best"]["answer"] == ULM
        assert "structured_response" not in stored
        again = app.invoke({"messages": [HumanMessage("And now?")]}, THREAD)
        assert isinstance(again["structured_response"], City)
        on = app.invoke({"budget": Budget(calls=1)}, THREAD)
        assert on["structured_response"] == City(name="Ulm", people=5)
    assert not caplog.records


def test_where_nothing_parsed_complete_and_errors_say_so(server: Server) -> None:
    server.script = lambda request, i: Reply("Ulm, I think.")
    app = create_anytime_graph(
        server.model(), budget=Budget(calls=2), answer=City, strategy="best_of_n", scorer="vote"
    ).compile()
    out = app.invoke(ASK)
    assert out["structured_response"] is None
    assert out["best"]["complete"] is False
    assert any("no JSON in it fits City" in error for error in out["errors"])


def test_a_model_that_has_changed_costs_no_answer(server: Server, tmp_path: Path) -> None:
    server.script = lambda request, i: Reply(ULM)

    def built(schema: type[BaseModel]) -> Any:
        return create_anytime_graph(
            server.model(),
            budget=Budget(calls=1),
            answer=schema,
            scorer=lambda q, a: 0.5,
            strategy="single",
        )

    with open_checkpoints(tmp_path / "a.db") as store:
        built(City).compile(store.saver).invoke(ASK, THREAD)
        later = built(Named).compile(store.saver).invoke({"budget": Budget(calls=1)}, THREAD)
    assert later["best"]["answer"] == ULM
    assert later["structured_response"] is None


def test_without_a_model_there_is_no_instance(server: Server) -> None:
    app = create_anytime_graph(server.model(), budget=Budget(calls=1)).compile()
    assert app.invoke(ASK)["structured_response"] is None


@pytest.mark.parametrize("able", [True, False])
def test_replies_are_held_to_the_schema_where_the_provider_can(able: bool, server: Server) -> None:
    """Drafts and refinements only: a review is text."""
    server.script = lambda request, i: Reply(ULM if i != 1 else "Name a larger city.")
    app = create_anytime_graph(
        server.model(profile={"structured_output": able}),
        budget=Budget(calls=3),
        answer=City,
        strategy="self_refine",
        scorer=lambda q, a: 0.5,
    ).compile()
    out = app.invoke(ASK)
    assert out["structured_response"] == City(name="Ulm", people=5)
    held = ["response_format" in call.request for call in server.calls]
    assert held == [able, False, able]
    if able:
        form = server.calls[0].request["response_format"]["json_schema"]["schema"]
        assert form["required"] == ["name", "people"]


def test_a_server_that_refuses_the_schema_is_asked_without_it(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if "response_format" in request:
            return Reply(error=400, says="response_format is not supported")
        return Reply(ULM)

    server.script = script
    app = create_anytime_graph(
        server.model(profile={"structured_output": True}),
        budget=Budget(calls=1),
        answer=City,
        strategy="single",
    ).compile()
    assert app.invoke(ASK)["structured_response"] == City(name="Ulm", people=5)
