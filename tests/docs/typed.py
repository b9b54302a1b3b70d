"""A user's program, for type checkers: `make lint` reads it against the installed form of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from anytime_graph import Budget, Candidate, Context, Output, Pair, Spend, create_anytime_graph


class City(BaseModel):
    name: str


def asked() -> str | None:
    app = create_anytime_graph(
        "openai:gpt-4.1-mini", budget=Budget(tokens=4_000), answer=City
    ).compile()
    thread = "a"
    out = app.invoke({"messages": [("user", "Where?")]}, {"configurable": {"thread_id": thread}})
    assert_type(out, Output)
    assert_type(out["best"], Candidate | None)
    assert_type(out["spent"], Spend)
    assert_type(out["pairs"], list[Pair])
    assert_type(out["structured_response"], BaseModel | None)
    for message in ({"role": "user", "content": "Where?"}, HumanMessage("Where?"), "Where?"):
        app.invoke({"messages": [message], "budget": {"tokens": 300}})
    app.invoke({"budget": Budget(calls=2)}, context=Context(strategy="single"), durability="sync")
    city = out["structured_response"]
    assert not isinstance(city, City) or assert_type(city, City).name
    return out["stop_reason"]


async def asked_async() -> float | None:
    app = create_anytime_graph({"small": "openai:gpt-4.1-mini"}, scorer="vote").compile()
    out = await app.ainvoke({"messages": [("user", "Why do rivers bend?")]})
    assert_type(out, Output)
    return None if out["best"] is None else assert_type(out["best"]["score"], float | None)


if TYPE_CHECKING:
    create_anytime_graph("local").compile().invoke({"question": "?"})  # type: ignore[call-overload]
