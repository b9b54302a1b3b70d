"""Whose a question is, as the context of an invocation or an object tells it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from anytime_graph.run.context import Context, told
from anytime_graph.run.state import Input


class Items(SimpleNamespace):
    """Its facts can be had as items only, as those of some servers' users."""

    def __getitem__(self, name: str) -> Any:
        return {"tenant": "acme", "project": 7, "user": ""}[name]


@pytest.mark.parametrize(
    ("key", "value"), [("tenant", "acme"), ("project", "7"), ("user", None), ("team", None)]
)
def test_a_key_is_told_by_an_attribute_an_item_or_a_mapping(key: str, value: str | None) -> None:
    facts = {"tenant": "acme", "project": 7, "user": ""}
    holders: list[Any] = [Items(), SimpleNamespace(**facts), facts]
    assert [told(key, holder) for holder in holders] == [value] * 3


class Told(TypedDict):
    tenant: str | None


def test_without_a_server_the_context_tells_a_key_before_the_config_does() -> None:
    graph = StateGraph(Told, context_schema=Context)
    graph.add_node("ask", lambda _: {"tenant": told("tenant", {"tenant": "last"})})
    app = graph.add_edge(START, "ask").compile()

    def of(context: Context, **configurable: str) -> Any:
        config: Any = {"configurable": configurable}
        return app.invoke({"tenant": None}, config, context=context)["tenant"]

    assert of({"tenant": "first"}, tenant="second") == "first"
    assert of({}, tenant="second") == "second"
    assert of({}) == "last"


@pytest.mark.parametrize("given", [Input, Context])
def test_nothing_of_an_input_or_a_context_is_required(given: type[Any]) -> None:
    """Which a served graph's schemas say."""
    app = StateGraph(given, context_schema=given).add_node("ask", lambda _: None)
    schema = app.add_edge(START, "ask").compile().get_context_jsonschema()
    assert schema is not None
    assert schema["properties"].keys() == given.__annotations__.keys()
    assert "required" not in schema
