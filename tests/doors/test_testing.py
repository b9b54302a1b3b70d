"""The scripted model plays its replies in order, to an app and to a metered run alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.tool import tool_call

from anytime_graph import Budget, create_anytime_graph
from anytime_graph.middleware import TokenBudgetMiddleware
from anytime_graph.testing import ScriptedModel

QUESTION = {"messages": [("user", "Why do rivers bend?")]}


def test_copies_share_the_order_and_the_last_reply_repeats() -> None:
    model = ScriptedModel(replies=["one", "two", "three"])
    copies = [model.model_copy(), model.bind(stop=["x"]), model.with_config(tags=["t"]), model]
    assert [copy.invoke("?").text for copy in copies] == ["one", "two", "three", "three"]
    assert [messages[0].text for messages in model.asked] == ["?"] * 4


def test_a_stream_brings_words_and_the_usage_of_the_whole() -> None:
    model = ScriptedModel(replies=[" The  river\nbends. "])
    chunks = list(model.stream("Why do rivers bend?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == " The  river\nbends. "
    assert len([chunk for chunk in chunks if chunk.text]) == 3
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 3
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata == model.invoke("Why do rivers bend?").usage_metadata


def test_a_reply_above_the_cap_is_cut() -> None:
    said = ScriptedModel(replies=["a b c d"], max_tokens=2).invoke("?")
    assert (said.text, said.response_metadata["finish_reason"]) == ("a b", "length")


def test_async_calls_play_the_same_replies() -> None:
    async def both(model: ScriptedModel) -> list[str]:
        first = await model.ainvoke("?")
        return [first.text, "".join([chunk.text async for chunk in model.astream("?")])]

    assert asyncio.run(both(ScriptedModel(replies=["one", "two"]))) == ["one", "two"]


def score(question: str, answer: str) -> float:
    return {"one": 0.1, "two": 0.2, "three": 1.0}[answer]


def run(model: ScriptedModel) -> Any:
    app = create_anytime_graph(
        model, budget=Budget(tokens=4_000), scorer=score, strategy="best_of_n", answer="whole"
    ).compile()
    return app.invoke(QUESTION, {"max_concurrency": 1})


def test_a_run_plays_the_script_and_books_its_usage() -> None:
    model = ScriptedModel(replies=["one", "two", "three"])
    out = run(model)
    assert (out["best"]["answer"], out["stop_reason"]) == ("three", "perfect")
    read = sum(sum(len("".join(m.text.split())) for m in each) // 4 + 1 for each in model.asked)
    assert (out["spent"]["input_tokens"], out["spent"]["output_tokens"]) == (read, 3)


def test_an_error_of_the_script_is_a_failed_call() -> None:
    def failing(messages: list[BaseMessage]) -> Exception:
        return TimeoutError("no line")

    out = run(ScriptedModel(replies=["one", failing, "three"]))
    assert out["best"]["answer"] == "three"
    assert out["errors"] == ["draft 1: TimeoutError"]


def test_an_agent_calls_the_tools_that_the_script_calls() -> None:
    def depth(river: str) -> str:
        """The depth of a river."""
        return f"{river}: 8 m"

    call = AIMessage("", tool_calls=[tool_call(name="depth", args={"river": "Danube"}, id="1")])
    model = ScriptedModel(
        replies=[call, lambda messages: f"Found: {messages[-1].text.split(chr(10))[0]}"]
    )
    budget = TokenBudgetMiddleware(Budget(tokens=4_000))
    out = create_agent(model, [depth], middleware=[budget]).invoke(QUESTION)
    assert out["messages"][-1].text == "Found: Danube: 8 m"
    assert out["stop_reason"] == "done"


@pytest.mark.parametrize("replies", [[], "one"])
def test_a_script_without_replies_is_refused(replies: object) -> None:
    with pytest.raises(ValueError, match="replies="):
        ScriptedModel(replies=replies)
