"""An agent keeps to its budget whatever its tools and its provider do, and still gives an answer."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRequest,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    ToolRetryMiddleware,
    after_agent,
    after_model,
    before_agent,
    before_model,
)
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.runtime import RunControl
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    NearEnd,
    NoAnswer,
    Prices,
    create_anytime_graph,
    open_checkpoints,
)
from anytime_graph.chat import ChatAnytime
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.marks import both, torture
from tests.kit.server import LIES, REFUSALS, Call, Reply, Server, serving
from tests.kit.waiting import PATIENCE
from tests.kit.wires import speaking, sse

ANSWER = "Rivers bend because water erodes the outer bank."
QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}


@tool
def look_up(topic: str, size: int = 20) -> str:
    """Look up what is known about a topic, in about as many words as asked for."""
    return f"{topic} bend, " * size


def calling(*tools: tuple[str, dict[str, Any]], text: str = "Let me look.") -> Any:
    """A model that calls these tools for as long as it has any."""

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text=text, tools=list(tools)) if request.get("tools") else Reply(text=ANSWER)

    return script


def agent(server: Server, *tools: Any, budget: Budget, **options: Any) -> Any:
    mine = {k: options.pop(k) for k in ("per", "reserve", "prices") if k in options}
    middleware = [TokenBudgetMiddleware(budget, **mine), *options.pop("inside", ())]
    model = options.pop("model", None) or server.model()
    return create_agent(model, list(tools) or [look_up], middleware=middleware, **options)


def run(app: Any, given: Any = QUESTION, sync: bool = True, **options: Any) -> dict[str, Any]:
    return app.invoke(given, **options) if sync else asyncio.run(app.ainvoke(given, **options))


def last(out: dict[str, Any]) -> str:
    message = out["messages"][-1]
    assert isinstance(message, AIMessage)
    assert not message.tool_calls
    return str(message.text)


FORGED = {"tokens": -100_000, "calls": -9}


@pytest.mark.parametrize(
    "marks",
    [
        [[None, "x", FORGED]],
        [["call_1_0", "x", FORGED]],
        [["call_1_0", "x", {"tokens": float("nan")}], ["call_1_0", "x", {"mine": 1}]],
        [1, ["x"], ["call_1_0", "x", "y"]],
        1,
    ],
    ids=repr,
)
def test_what_a_message_says_of_earlier_spends_never_raises_a_budget(
    server: Server, marks: Any
) -> None:
    """Messages may come from anybody: those of the agent, and those that a tool gives a sub-agent."""
    forged: Any = AIMessage("Before.", response_metadata={"anytime_spent": marks})
    helper, helped = agent(server, look_up, budget=Budget(tokens=300)), list[Any]()

    @tool
    def delegate(question: str) -> str:
        """Ask a helper."""
        helped.append(helper.invoke({"messages": [forged, ("user", question)]}))
        return last(helped[-1])

    def script(request: dict[str, Any], i: int) -> Reply:
        offered = [each["function"]["name"] for each in request.get("tools") or ()]
        if "delegate" in offered and i == 0:
            return Reply(text="", tools=[("delegate", {"question": "Why?"})])
        return Reply(text=None)

    server.script = script
    out = run(
        agent(server, delegate, budget=Budget(tokens=900)),
        {"messages": [forged, ("user", "Why do rivers bend?")]},
    )
    assert server.served <= 900
    assert [h["spent"]["tokens"] <= 300 for h in helped] == [True]
    assert last(out).startswith("word")


# --- the cap, and the answer from the reserve


@given(
    tokens=st.integers(500, 20_000),
    sizes=st.lists(st.sampled_from([1, 10, 100, 1_000]), min_size=1, max_size=4),
    mode=st.sampled_from(["sync", "async", "stream", "astream", "whole"]),
    reserve=st.sampled_from([0.1, 0.2, 0.5]),
    said=st.sampled_from(["", "Let me look.", "so I think " * 30, None]),
    fills=st.booleans(),
)
@settings(max_examples=torture or 9)
def test_an_agent_that_never_ends_keeps_to_its_budget_and_answers(
    endless: Server,
    tokens: int,
    sizes: list[int],
    mode: str,
    reserve: float,
    said: str | None,
    fills: bool,
) -> None:
    endless.calls.clear()
    calls = [("look_up", {"topic": "rivers", "size": size}) for size in sizes]

    def script(request: dict[str, Any], i: int) -> Reply:
        if request.get("tools"):
            return Reply(text=said, tools=calls, piece=20)
        return Reply(text=None, piece=20) if fills else Reply(text=ANSWER)

    endless.script = script
    model = endless.model(disable_streaming=mode == "whole")
    app = agent(endless, budget=Budget(tokens=tokens), reserve=reserve, model=model)
    if mode == "stream":
        out = [*app.stream(QUESTION, stream_mode="values")][-1]
    elif mode == "astream":

        async def gathered() -> Any:
            return [state async for state in app.astream(QUESTION, stream_mode="values")][-1]

        out = asyncio.run(gathered())
    else:
        out = run(app, sync=mode != "async")
    assert endless.served <= tokens
    assert out["spent"]["tokens"] == endless.served
    assert out["spent"]["calls"] == len(endless.calls)
    assert out["stop_reason"] == "tokens"
    assert last(out).startswith("word") if fills else last(out) == ANSWER


@pytest.fixture(scope="module")
def endless() -> Any:
    with serving() as server:
        yield server


@both
def test_an_agent_that_ends_by_itself_is_left_alone(server: Server, sync: bool) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        tools: list[Any] = [("look_up", {"topic": "rivers"})] if i < 2 else []
        return Reply(text="Let me look." if tools else ANSWER, tools=tools)

    server.script = script
    out = run(agent(server, budget=Budget(tokens=5_000)), sync=sync)
    assert last(out) == ANSWER
    assert out["stop_reason"] == "done"
    assert out["spent"]["tokens"] == server.served
    assert len(server.calls) == 3
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "ai", "tool", "ai"]


def test_the_model_is_told_what_remains_and_nobody_else(server: Server) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    out = run(agent(server, budget=Budget(tokens=3_000, calls=4)))
    assert "3 calls" in server.calls[0].text
    assert "2 calls" in server.calls[1].text
    assert not any("What remains" in m.text for m in out["messages"])


def test_what_remains_is_told_in_plain_digits(server: Server) -> None:
    server.script = lambda request, i: Reply(text=ANSWER)
    run(agent(server, budget=Budget(tokens=1_234_567, seconds=86_400), reserve=0.0))
    assert re.search(r"included: 1234567 tokens, 86[34]\d\d seconds\.", server.calls[0].text)


def test_the_last_call_has_no_tools_and_what_was_found(server: Server) -> None:
    server.script = calling(("look_up", {"topic": "the Danube"}))
    out = run(agent(server, budget=Budget(calls=3), system_prompt="Be brief."))
    request = server.calls[-1].request
    assert "tools" not in request
    assert [m["role"] for m in request["messages"]] == ["system", "user"]
    assert "the Danube bend" in server.calls[-1].text
    assert "Be brief." in server.calls[-1].text
    assert last(out) == ANSWER
    assert out["stop_reason"] == "calls"
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    "budget",
    [
        Budget(tokens=2_000),
        Budget(output_tokens=300),
        Budget(usd=0.002),
        Budget(calls=4),
        Budget(tokens=50_000, output_tokens=400, usd=0.1, calls=30, seconds=30.0),
    ],
    ids=str,
)
def test_every_dimension_holds(server: Server, budget: Budget) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    out = run(agent(server, budget=budget, prices=Prices(input=0.4, output=1.6)))
    spent = out["spent"]
    assert all(spent[d] <= most for d, most in budget.limits().items())
    assert spent["tokens"] == server.served
    assert spent["output_tokens"] == sum(c.output for c in server.calls)
    assert spent["usd"] == pytest.approx(
        sum(c.prompt * 0.4 + c.output * 1.6 for c in server.calls) / 1e6
    )
    assert out["stop_reason"] in budget.limits()
    assert last(out) == ANSWER


@both
def test_time_is_held_and_its_reserve_answers(server: Server, sync: bool) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text=None, pace=0.01) if request.get("tools") else Reply(text=ANSWER)

    server.script = script
    out = run(agent(server, budget=Budget(seconds=2.0), reserve=0.5), sync=sync)
    assert server.settled().calls[0].closed_early
    assert out["stop_reason"] == "seconds"
    assert last(out) == ANSWER


def idle(state: Any, runtime: Any) -> None:
    """What a middleware of another's does here does not matter, but that it takes a step."""


@both
@pytest.mark.parametrize(
    "hooks", [(), (before_model,), (after_model,), (before_model, after_model), (after_agent,)]
)
@pytest.mark.parametrize("limit", range(10, 17))
def test_an_agent_answers_before_langgraphs_limit_of_steps_ends_it(
    server: Server, limit: int, hooks: tuple[Any, ...], sync: bool
) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    inside = [hook(name=f"idle{i}")(idle) for i, hook in enumerate(hooks)]
    app = agent(server, budget=Budget(tokens=50_000), inside=inside)
    out = run(app, sync=sync, config={"recursion_limit": limit})
    assert (last(out), out["stop_reason"]) == (ANSWER, "steps")
    assert out["spent"]["tokens"] == server.settled().served
    assert len(server.calls) >= 2, "there was room for a round"


@both
def test_an_agent_that_is_resumed_with_a_smaller_limit_of_steps_goes_on(
    server: Server, sync: bool
) -> None:
    def look_up(topic: str) -> str:
        """Look up what is known about a topic."""
        return str(interrupt("May I?"))

    look = calling(("look_up", {"topic": "rivers"}))
    server.script = lambda request, i: look(request, i) if i < 2 else Reply(ANSWER)
    app = agent(server, look_up, budget=Budget(tokens=50_000), checkpointer=InMemorySaver())
    on: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 500}
    run(app, sync=sync, config=on)
    for _ in range(2):
        on["recursion_limit"] = 10
        out = run(app, Command(resume="yes"), sync=sync, config=on)
    assert (last(out), out["stop_reason"]) == (ANSWER, "done")
    assert len(server.calls) == 3


@pytest.mark.parametrize("limit", [4, 5])
def test_an_agent_without_steps_for_a_round_answers_at_once(server: Server, limit: int) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    out = run(agent(server, budget=Budget(tokens=50_000)), config={"recursion_limit": limit})
    assert (last(out), out["stop_reason"]) == (ANSWER, "steps")
    assert len(server.calls) == 1


@pytest.mark.parametrize("limit", [6, 25])
def test_an_agent_that_keeps_to_langgraphs_limit_of_steps_is_left_alone(
    server: Server, limit: int
) -> None:
    look = calling(("look_up", {"topic": "rivers"}))
    server.script = lambda request, i: look(request, i) if i == 0 else Reply(ANSWER)
    out = run(agent(server, budget=Budget(tokens=50_000)), config={"recursion_limit": limit})
    assert last(out) == ANSWER
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(text="Look.", error="hang"), "seconds"),
        (Reply(text="", error="mute"), "seconds"),
        (Reply(text="Look again.", error="break"), "error: the reply broke off"),
        (Reply(text=""), "error: the reply was empty"),
    ],
    ids=["silent", "silent_after_its_report", "broken", "empty"],
)
@both
def test_what_ends_a_reply_is_named(server: Server, reply: Reply, reason: str, sync: bool) -> None:
    first = Reply(text="Look.", tools=[("look_up", {"topic": "rivers"})])
    server.script = lambda request, i: first if i == 0 else reply
    out = run(agent(server, budget=Budget(seconds=0.5, tokens=9_000)), sync=sync)
    assert out["stop_reason"] == reason
    assert last(out).startswith("Look")


def test_too_small_a_budget_is_refused_before_anything_is_spent(server: Server) -> None:
    with pytest.raises(BudgetTooSmall, match="cannot pay for one call") as small:
        run(agent(server, budget=Budget(tokens=60)))
    assert not server.calls
    least = small.value.least
    server.script = calling(("look_up", {"topic": "rivers"}))
    assert last(run(agent(server, budget=least)))
    assert server.served <= least.tokens


def test_a_prompt_of_no_message_is_bounded_too(server: Server) -> None:
    out = run(agent(server, budget=Budget(tokens=2_000)), {"messages": []})
    assert out["stop_reason"] == "done"
    assert out["spent"]["tokens"] == server.settled().served
    assert len(server.calls) == 1


def test_without_a_reserve_the_last_text_is_the_end(server: Server) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}), text="I think it is erosion.")
    out = run(agent(server, budget=Budget(calls=2), reserve=0))
    assert len(server.calls) == 2
    assert last(out) == "I think it is erosion."
    assert out["stop_reason"] == "calls"


def test_a_reserve_may_be_stated(server: Server) -> None:
    server.script = calling(("look_up", {"topic": "rivers", "size": 30}))
    out = run(agent(server, budget=Budget(tokens=4_000), reserve=Budget(tokens=2_000)))
    assert sum(c.served for c in server.calls[:-1]) <= 2_000
    assert last(out) == ANSWER


def test_half_a_tool_call_is_not_made(server: Server) -> None:
    """A reply that is cut within the arguments, after a call that is complete."""
    made: list[str] = []

    @tool
    def write(text: str) -> str:
        """Write a text."""
        made.append(text)
        return "done"

    long = {"text": "word " * 5_000}
    server.script = calling(("write", {"text": "short"}), ("write", long))
    for streams in (True, False):
        model = server.model(disable_streaming=not streams)
        out = run(agent(server, write, budget=Budget(tokens=3_000), model=model))
        assert last(out) == ANSWER
        assert set(made) <= {"short"}
    made.clear()
    server.script = calling(("write", long))
    assert last(run(agent(server, write, budget=Budget(tokens=3_000)))) == ANSWER
    assert not made


# --- providers that do not keep to the rules


@both
def test_a_provider_that_ignores_the_cap_is_cut(server: Server, sync: bool) -> None:
    server.script = lambda request, i: Reply(text=None, ignore_limit=True, pace=0.0005)
    out = run(agent(server, budget=Budget(tokens=1_000)), sync=sync)
    assert server.settled().served <= 1_000 + 32 * len(server.calls)
    assert out["spent"]["tokens"] >= server.served
    assert last(out).startswith("word")


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize("lie", LIES)
def test_lies_about_usage_never_lower_the_books(server: Server, lie: str) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        tools: list[Any] = [("look_up", {"topic": "rivers"})] if request.get("tools") else []
        return Reply(text="the river runs to the sea " * 6, tools=tools, usage=LIES[lie])

    server.script = script
    out = run(agent(server, budget=Budget(tokens=3_000)))
    assert server.served <= 3_000
    assert out["spent"]["tokens"] >= server.served
    assert last(out).startswith("the river")


@pytest.mark.parametrize(
    ("error", "sync"),
    [(400, True), (500, True), ("drop", False), ("break", True), ("break", False), ("junk", True)],
)
def test_an_error_after_paid_work_brings_the_last_call(
    server: Server, error: int | str, sync: bool
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        tools: list[Any] = [("look_up", {"topic": "rivers"})] if request.get("tools") else []
        says = "the content is not acceptable"
        return Reply(text=ANSWER, tools=tools, error=error if i == 1 else None, says=says)

    server.script = script
    out = run(agent(server, budget=Budget(tokens=5_000)), sync=sync)
    assert last(out) == ANSWER
    assert out["stop_reason"].startswith("error: ")
    assert len(server.calls) == 3
    assert out["spent"]["calls"] == (2 if error == 400 else 3)
    assert server.served <= out["spent"]["tokens"] <= 5_000
    if error == 400:
        assert out["spent"]["tokens"] == server.served


FAULTS = {
    "refused": Reply(error=400, says="the content is not acceptable"),
    "failed": Reply(error=500),
    "broken": Reply(text="so", error="break"),
    "starved": Reply(text="", reasoning=10_000),
    "empty": Reply(text=""),
    "calling": Reply(text="", tools=[("look_up", {"topic": "rivers"})]),
}


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("fault", FAULTS)
def test_a_last_call_that_fails_is_tried_once_more_in_another_form(
    server: Server, sync: bool, fault: str
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if request.get("tools"):
            return Reply(text="", tools=[("look_up", {"topic": "rivers", "size": 50})])
        return Reply(text=ANSWER) if "first attempt" in str(request) else FAULTS[fault]

    server.script = script
    budget = Budget(tokens=6_000)
    model = server.model(reasoning_effort="high")
    out = run(agent(server, budget=budget, model=model, system_prompt="Be brief."), sync=sync)
    assert (last(out), out["stop_reason"]) == (ANSWER, "tokens")
    first, second = server.settled().calls[-2:]
    assert "first attempt" not in first.text
    assert len(second.text) < len(first.text)
    assert [m["role"] for m in second.request["messages"]] == ["user"]
    efforts = [call.request["reasoning_effort"] for call in (first, second)]
    assert efforts == ["high", "low"]
    assert server.served <= out["spent"]["tokens"] <= 6_000


@both
@pytest.mark.parametrize("at", [0.5, 1])
def test_near_the_end_a_cheaper_model_goes_on(server: Server, sync: bool, at: float) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    near, dear = Prices(input=0.1, output=0.4), Prices(input=4.0, output=16.0)
    cheap = server.model().model_copy(update={"model_name": "cheap"})
    middleware = TokenBudgetMiddleware(
        Budget(calls=6, usd=1.0), prices=dear, near_end=NearEnd(cheap, at=at, prices=near)
    )
    out = run(create_agent(server.model(), [look_up], middleware=[middleware]), sync=sync)
    models = [call.request["model"] for call in server.calls]
    assert models == ["scripted"] * (3 if at < 1 else 5) + ["cheap"] * (3 if at < 1 else 1)
    assert (last(out), out["stop_reason"]) == (ANSWER, "calls")
    prices = {"scripted": dear, "cheap": near}
    usd = sum(prices[c.request["model"]].usd(c.prompt, c.output) for c in server.calls)
    assert out["spent"]["usd"] == pytest.approx(usd)


def test_a_last_call_that_a_server_refuses_for_good_is_not_tried_again(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return calling(("look_up", {"topic": "x"}))(request, i) if i == 0 else Reply(error=401)

    server.script = script
    assert last(run(agent(server, budget=Budget(tokens=5_000)))) == "Let me look."
    assert len(server.calls) == 3


def test_a_provider_that_is_gone_leaves_the_last_text(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if i:
            return Reply(error=503)
        return Reply(text="It is erosion.", tools=[("look_up", {"topic": "rivers"})])

    server.script = script
    out = run(agent(server, budget=Budget(tokens=5_000)))
    assert last(out) == "It is erosion."
    assert out["stop_reason"].startswith("error: ")


def test_an_error_before_anything_was_said_is_raised(server: Server) -> None:

    server.script = lambda request, i: Reply(error=401)
    with pytest.raises(openai.AuthenticationError):
        run(agent(server, budget=Budget(tokens=5_000)))
    assert len(server.calls) == 1, "the client does not retry unseen"


@both
def test_what_was_said_before_an_error_in_mid_reply_is_not_lost(sync: bool) -> None:
    said = {"index": 0, "delta": {"role": "assistant", "content": "The outer bank erodes"}}
    begun = {"id": "c", "object": "chat.completion.chunk", "created": 0, "choices": [said]}
    with speaking() as wire:
        model = wire.model()
        wire.send = lambda sent: sse([begun, {"error": {"message": "no", "code": 500}}])
        middleware = [TokenBudgetMiddleware(Budget(tokens=3_000))]
        out = run(create_agent(model, [look_up], middleware=middleware), sync=sync)
    assert last(out) == "The outer bank erodes"
    assert out["stop_reason"] == "error: APIError HTTP 500"
    assert out["spent"]["tokens"] <= 3_000


SIZES = 8
"""In which a request is made at most that is refused without a word of why: 4,500 output tokens, 2,250 and so on."""


@given(
    mishaps=st.lists(st.sampled_from([*REFUSALS, 500, 504, "drop", None]), min_size=1, max_size=5),
    budget=st.builds(Budget, tokens=st.integers(3_000, 9_000), calls=st.integers(1, 9)),
    sync=st.booleans(),
)
@settings(max_examples=torture or 12)
def test_what_a_provider_refuses_costs_an_agent_nothing(
    mishaps: list[Any], budget: Budget, sync: bool
) -> None:
    """A middleware asks again, and the agent's own loop is what bounds it."""
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)

    def script(request: dict[str, Any], i: int) -> Reply:
        tools: list[Any] = [("look_up", {"topic": "rivers"})] if request.get("tools") else []
        return Reply(text="Let me look.", tools=tools, error=mishaps[i % len(mishaps)])

    with serving() as server:
        server.script = script
        try:
            out = run(agent(server, budget=budget, inside=[retry]), sync=sync)
        except openai.APIError:  # the model has said nothing at all
            assert not any(call.output for call in server.settled().calls)
            if not {429, 503, 529} & set(mishaps):  # those are waited for
                assert len(server.calls) <= 9 * SIZES, (
                    "a turn and a last call in two forms, each thrice"
                )
            return
        server.settled()
    billed = [call for call in server.calls if not call.refused]
    assert out["spent"]["calls"] == len(billed) <= budget.limits()["calls"]
    assert server.served <= out["spent"]["tokens"] <= budget.limits()["tokens"]
    assert billed or out["spent"]["tokens"] == 0
    assert len(server.calls) <= SIZES * (3 * (len(billed) + 2) + 1)


# --- beside other middlewares


def test_retries_inside_are_metered_each(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(error=500) if i % 2 == 0 else calling(("look_up", {"topic": "x"}))(request, i)

    server.script = script
    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.01, jitter=False)
    out = run(agent(server, budget=Budget(calls=8), inside=[retry]))
    assert len(server.calls) == out["spent"]["calls"] <= 8
    assert last(out) == ANSWER
    assert out["stop_reason"] == "calls"


def test_whatever_model_an_inner_middleware_chooses_is_metered(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if request["model"] == "scripted":
            return Reply(error=500)
        return calling(("look_up", {"topic": "rivers"}))(request, i)

    server.script = script
    model = server.model(max_tokens=100)  # what a call that fails is charged, beside its prompt
    fallback = ModelFallbackMiddleware(model.model_copy(update={"model_name": "other"}))
    out = run(agent(server, budget=Budget(tokens=20_000), model=model, inside=[fallback]))
    assert last(out) == ANSWER
    assert out["stop_reason"] == "tokens"
    assert server.served <= out["spent"]["tokens"] <= 20_000
    assert len(server.calls) == out["spent"]["calls"] > 10


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_tool_selector_and_retried_tools_are_charged_in_any_order(
    server: Server, first: bool
) -> None:
    """The tool calls a model and fails, each time."""
    model = metered(server.model(max_tokens=20))

    @tool
    def think(about: str) -> str:
        """Think about something."""
        model.invoke(f"Think about {about}.")
        raise RuntimeError("lost the thread")

    def script(request: dict[str, Any], i: int) -> Reply:
        if "response_format" in request:
            return Reply(text='{"tools": ["think"]}')
        if request.get("tools"):
            return Reply(text="", tools=[("think", {"about": "rivers"})] * 2)
        return Reply(text=ANSWER)

    server.script = script
    middleware = [
        TokenBudgetMiddleware(Budget(tokens=6_000)),
        LLMToolSelectorMiddleware(model=metered(server.model())),
        ToolRetryMiddleware(max_retries=1, initial_delay=0.01, jitter=False),
    ]
    app = create_agent(server.model(), [think], middleware=middleware[:: 1 if first else -1])
    out = app.invoke(QUESTION)
    assert last(out) == ANSWER
    assert out["spent"]["tokens"] == server.served <= 6_000
    assert out["spent"]["calls"] == len(server.calls)
    assert sum("Think about" in c.text for c in server.calls) >= 4


@both
def test_summaries_are_charged_and_the_cap_holds(server: Server, sync: bool) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        summary = not request.get("tools") and "budget of this work ends" not in str(request)
        tools: list[Any] = [("look_up", {"topic": "rivers"})] if request.get("tools") else []
        return Reply(text="A summary." if summary else ANSWER, tools=tools)

    server.script = script
    summarize = SummarizationMiddleware(
        metered(server.model()), trigger=("messages", 6), keep=("messages", 2)
    )
    out = run(agent(server, budget=Budget(tokens=6_000), inside=[summarize]), sync=sync)
    assert last(out) == ANSWER
    assert out["spent"]["tokens"] == server.served <= 6_000
    assert any("extract" in c.text.lower() for c in server.calls), "there was a summary"


def test_a_limit_of_calls_beside_it_ends_the_run_in_its_own_way(server: Server) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    limit = ModelCallLimitMiddleware(run_limit=2)
    out = run(agent(server, budget=Budget(tokens=20_000), inside=[limit]))
    assert len(server.calls) == 2
    assert out["spent"]["tokens"] == server.served
    assert out["stop_reason"] == "done"


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_a_tool_whose_result_is_the_answer_ends_the_run_with_a_reason(
    server: Server, sync: bool
) -> None:
    @tool(return_direct=True)
    def answer(text: str) -> str:
        """Answer the user."""
        return text

    server.script = calling(("answer", {"text": ANSWER}))
    out = run(agent(server, answer, budget=Budget(tokens=20_000)), sync=sync)
    assert out["messages"][-1].text == ANSWER
    assert out["stop_reason"] == "done"
    assert out["spent"]["tokens"] == server.served


class City(BaseModel):
    """A city."""

    name: str


@pytest.mark.parametrize("tools", [[look_up], []], ids=["tools", "none"])
def test_structured_answers_come_from_the_reserve_too(server: Server, tools: list[Any]) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if "look_up" in names:
            return Reply(text="", tools=[("look_up", {"topic": "Vienna"})])
        return Reply(text="", tools=[("City", {"name": "Vienna"})])

    server.script = script
    middleware = [TokenBudgetMiddleware(Budget(tokens=3_000))]
    app = create_agent(
        server.model(), tools, middleware=middleware, response_format=ToolStrategy(City)
    )
    out = app.invoke(QUESTION)
    assert out["structured_response"] == City(name="Vienna")
    assert out["spent"]["tokens"] == server.served <= 3_000


def test_a_provider_that_holds_replies_to_a_schema_is_held_to_the_budget(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if request.get("tools"):
            return Reply(text="", tools=[("look_up", {"topic": "Vienna"})])
        return Reply(text='{"name": "Vienna"}')

    server.script = script
    model = server.model(profile={"structured_output": True})
    app = agent(server, budget=Budget(tokens=3_000), model=model, response_format=City)
    out = run(app)
    assert server.calls[-1].request["response_format"]
    assert out["structured_response"] == City(name="Vienna")
    assert out["spent"]["tokens"] == server.served <= 3_000


def test_a_structured_answer_that_never_comes_ends_all_the_same(server: Server) -> None:
    server.script = lambda request, i: Reply(text="I would rather not.")
    middleware = [TokenBudgetMiddleware(Budget(tokens=2_000))]
    app = create_agent(
        server.model(), [], middleware=middleware, response_format=ToolStrategy(City)
    )
    out = app.invoke(QUESTION)
    assert server.served <= 2_000
    assert last(out) == "I would rather not."


# --- sub-agents, and tools that call models


def delegating_to(worker: Any) -> Any:
    @tool
    def delegate(task: str) -> str:
        """Have a task done by a worker."""
        return last(worker.invoke({"messages": [("user", task)]}))

    return delegate


def boss(server: Server, budget: Budget, own: Budget, parallel: int, **options: Any) -> Any:
    """An agent whose only tool is an agent; both go on for ever."""
    worker = agent(server, budget=own, name="worker")

    @tool
    async def adelegate(task: str) -> str:
        """Have a task done by two workers at once; the first that cannot go on ends it."""
        work = [worker.ainvoke({"messages": [("user", task)]}) for _ in range(2)]
        return last((await asyncio.gather(*work))[0])

    chosen = adelegate if options.pop("asynchronous", False) else delegating_to(worker)

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if "look_up" in names:
            return Reply(text="I look.", tools=[("look_up", {"topic": "rivers", "size": 30})])
        if names:
            return Reply(text="Do it.", tools=[(names[0], {"task": "rivers"})] * parallel)
        return Reply(text=ANSWER)

    server.script = script
    return agent(server, chosen, budget=budget, **options)


@given(
    tokens=st.integers(1_000, 20_000),
    own=st.integers(500, 30_000),
    parallel=st.integers(1, 4),
    sync=st.booleans(),
)
@settings(max_examples=torture or 6)
def test_sub_agents_draw_on_the_budget_of_their_caller(
    endless: Server, tokens: int, own: int, parallel: int, sync: bool
) -> None:
    endless.calls.clear()
    app = boss(endless, Budget(tokens=tokens), Budget(tokens=own), parallel, asynchronous=not sync)
    out = run(app, sync=sync)
    assert endless.settled().served <= out["spent"]["tokens"] <= tokens
    assert out["spent"]["calls"] == len(endless.calls)
    assert out["spent"]["tokens"] == endless.served or not sync
    assert last(out) == ANSWER


def test_a_sub_agent_keeps_to_its_own_budget_too(server: Server) -> None:
    out = run(boss(server, Budget(tokens=30_000, calls=12), Budget(calls=2), 1))
    kinds = [
        "last"
        if not (names := [t["function"]["name"] for t in c.request.get("tools", ())])
        else names[0]
        for c in server.calls
    ]
    assert kinds[:4] == ["delegate", "look_up", "last", "delegate"]
    assert out["spent"]["calls"] == len(server.calls) <= 12


@given(
    tokens=st.integers(700, 20_000),
    parallel=st.integers(1, 6),
    sync=st.booleans(),
    fills=st.booleans(),
)
@settings(max_examples=torture or 6)
def test_tools_that_call_models_side_by_side_do_not_overspend(
    endless: Server, tokens: int, parallel: int, sync: bool, fills: bool
) -> None:
    endless.calls.clear()
    model = metered(endless.model())

    @tool
    def think(about: str) -> str:
        """Think hard about something."""
        return str(model.invoke(f"Think hard about {about}.").text)

    @tool
    async def athink(about: str) -> str:
        """Think hard about something."""
        return "".join([piece.text async for piece in model.astream(f"Think about {about}.")])

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if names:
            return Reply(text="Hm.", tools=[(names[0], {"about": "rivers"})] * parallel)
        thinks = request["messages"][-1]["content"].startswith("Think")
        thought = None if fills else "a thought " * 20
        return Reply(text=thought, piece=20) if thinks else Reply(text=ANSWER)

    endless.script = script
    app = agent(endless, think if sync else athink, budget=Budget(tokens=tokens))
    out = run(app, sync=sync)
    assert endless.settled().served <= tokens
    assert out["spent"]["tokens"] == endless.served
    assert last(out) == ANSWER


def test_calls_side_by_side_in_one_tool_leave_each_other_room(server: Server) -> None:
    """And one that goes on when its siblings' lack of room has ended the tool is charged in full."""
    model = metered(server.model())

    @tool
    async def think(about: str) -> str:
        """Think of something in three ways."""
        ways = [model.ainvoke(f"Think about {about}.") for _ in range(3)]
        return str(sum(bool(reply.text) for reply in await asyncio.gather(*ways)))

    def script(request: dict[str, Any], i: int) -> Reply:
        if request.get("tools"):
            return Reply(text="", tools=[("think", {"about": "rivers"})])
        thinks = request["messages"][-1]["content"].startswith("Think")
        return Reply(text=None, piece=20) if thinks else Reply(text=ANSWER)

    server.script = script
    out = run(agent(server, think, budget=Budget(tokens=6_000)), sync=False)
    assert next(m for m in out["messages"] if isinstance(m, ToolMessage)).text == "3"
    assert server.settled().served <= out["spent"]["tokens"] <= 6_000
    assert last(out) == ANSWER


def test_what_outlives_its_tool_buys_no_more(server: Server) -> None:
    model, left_behind = metered(server.model()), []

    @tool
    async def start(about: str) -> str:
        """Set off to think about something for ever."""

        async def think() -> None:
            while True:
                await model.ainvoke(f"Think about {about}.")

        left_behind.append(asyncio.create_task(think()))
        await asyncio.sleep(0)
        return "on it"

    def script(request: dict[str, Any], i: int) -> Reply:
        told = any(m["role"] == "tool" for m in request["messages"])
        return Reply(text=ANSWER, tools=[("start", {"about": "x"})] if not told else [])

    async def ran() -> Any:
        out = await agent(server, start, budget=Budget(tokens=6_000)).ainvoke(QUESTION)
        return out, await asyncio.gather(*left_behind, return_exceptions=True)

    server.script = script
    out, [end] = asyncio.run(ran())
    assert isinstance(end, BudgetTooSmall)
    assert out["spent"]["calls"] == len(server.calls)
    assert server.settled().served <= out["spent"]["tokens"] <= 6_000


def test_an_anytime_graph_may_be_a_tool(server: Server) -> None:
    graph = create_anytime_graph(metered(server.model()), budget=Budget(tokens=90_000)).compile()

    @tool
    def ponder(question: str) -> str:
        """Think about a question for as long as there is a budget."""
        return str(graph.invoke({"messages": [("user", question)]})["messages"][-1].text)

    def script(request: dict[str, Any], i: int) -> Reply:
        if request.get("tools"):
            return Reply(text="", tools=[("ponder", {"question": "why"})])
        ends = "budget of this work ends" in str(request)
        return Reply(text=ANSWER if ends else "so <answer>erosion</answer> it is")

    server.script = script
    out = run(agent(server, ponder, budget=Budget(tokens=6_000)))
    assert next(m for m in out["messages"] if isinstance(m, ToolMessage)).text == "erosion"
    assert out["spent"]["tokens"] == server.served <= 6_000
    assert last(out) == ANSWER


def test_an_anytime_graph_whose_drafts_are_by_an_agent_may_be_a_tool(server: Server) -> None:
    """The calls of its drafts are made in its own slices, and paid by the agent that it works for."""
    graph = create_anytime_graph(
        metered(server.model()),
        budget=Budget(tokens=9_000),
        strategy="best_of_n",
        scorer=lambda question, answer: 0.5,
        drafter=lambda model: create_agent(model, [look_up]),
    ).compile()

    @tool
    def ponder(question: str) -> str:
        """Think about a question for as long as there is a budget."""
        return str(graph.invoke({"messages": [("user", question)]})["messages"][-1].text)

    def script(request: dict[str, Any], i: int) -> Reply:
        offered = [each["function"]["name"] for each in request.get("tools") or ()]
        if "ponder" in offered:
            return Reply(text="", tools=[("ponder", {"question": "why"})])
        if offered and request["messages"][-1]["role"] == "user":
            return Reply(text="", tools=[("look_up", {"topic": "rivers", "size": 5})])
        return Reply(text=ANSWER)

    server.script = script
    out = run(agent(server, ponder, budget=Budget(tokens=6_000)))
    assert last(out) == ANSWER
    assert out["spent"]["tokens"] == server.settled().served <= 6_000
    assert out["spent_by"]["ponder"]["calls"] > 2


@both
@pytest.mark.parametrize("tokens", [1_000, 1_060, 1_540])
def test_a_graph_as_a_tool_that_cannot_be_paid_for_ends_no_agent(
    server: Server, sync: bool, tokens: int
) -> None:
    """Though its drafts are by an agent, and it ends without an answer."""
    graph = create_anytime_graph(
        metered(server.model()),
        budget=Budget(tokens=9_000),
        strategy="single",
        drafter=lambda model: create_agent(model, [look_up]),
    ).compile()

    @tool
    def ponder(question: str) -> str:
        """Think about a question."""
        return str(graph.invoke({"messages": [("user", question)]})["messages"][-1].text)

    server.script = lambda request, i: (
        Reply(text="", tools=[("ponder", {"question": "why"})])
        if "ponder" in str(request.get("tools"))
        else Reply(text=ANSWER)
    )
    out = run(agent(server, ponder, budget=Budget(tokens=tokens)), sync=sync)
    assert last(out) == ANSWER
    assert out["spent"]["tokens"] == server.settled().served <= tokens


HELPERS: dict[str, Callable[[Any], Any]] = {
    "an agent": lambda model: create_agent(model, [look_up]),
    "an agent with a budget": lambda model: create_agent(
        model, [look_up], middleware=[TokenBudgetMiddleware(Budget(tokens=2_000))]
    ),
    "a graph": lambda model: create_anytime_graph(
        model, budget=Budget(tokens=2_000), strategy="self_refine"
    ).compile(),
    "a chat model": lambda model: (
        RunnableLambda(lambda given: given["messages"])
        | ChatAnytime(model=model, budget=Budget(tokens=2_000), strategy="self_refine")
    ),
}


@both
@pytest.mark.parametrize("hook", [before_model, after_model, before_agent, after_agent])
@pytest.mark.parametrize("kind", HELPERS)
def test_what_a_middleware_invokes_is_paid_by_its_agent(
    server: Server, kind: str, hook: Any, sync: bool
) -> None:
    """It never ends by itself, and is at work in a node of the agent's, which does."""
    helper = HELPERS[kind](metered(server.model(max_tokens=200)))

    def look(state: Any, runtime: Any) -> None:
        with suppress(BudgetTooSmall, NoAnswer):
            helper.invoke({"messages": [("user", "Is that fine?")]})

    async def alook(state: Any, runtime: Any) -> None:
        with suppress(BudgetTooSmall, NoAnswer):
            await helper.ainvoke({"messages": [("user", "Is that fine?")]})

    def script(request: dict[str, Any], i: int) -> Reply:
        helps = "Is that fine?" in str(request["messages"])
        if request.get("tools") and (helps or request["messages"][-1]["role"] == "user"):
            return Reply(text="", tools=[("look_up", {"topic": "rivers", "size": 5})])
        return Reply(text=ANSWER)

    server.script = script
    app = agent(server, budget=Budget(tokens=4_000), inside=[hook(look if sync else alook)])
    out = run(app, sync=sync)
    assert server.settled().served <= out["spent"]["tokens"] <= 4_000
    assert any("Is that fine?" in call.text for call in server.calls)
    assert last(out)


@both
@pytest.mark.parametrize("verdict", ["", None, "It is safe."], ids=["silent", "endless", "short"])
def test_what_a_middleware_asks_about_a_reply_is_not_taken_for_the_reply(
    server: Server, verdict: str | None, sync: bool
) -> None:
    """It asks about each reply, also about the last one, for which there is a prompt of its own."""
    judge = metered(server.model(max_tokens=30))
    asked = "Is this reply safe? "

    class Guard(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            response = handler(request)
            judge.invoke(asked + response.result[-1].text)
            return response

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            response = await handler(request)
            await judge.ainvoke(asked + response.result[-1].text)
            return response

    def script(request: dict[str, Any], i: int) -> Reply:
        if asked in str(request["messages"]):
            return Reply(text=verdict)
        return calling(("look_up", {"topic": "rivers"}))(request, i)

    server.script = script
    out = run(agent(server, budget=Budget(tokens=2_500), inside=[Guard()]), sync=sync)
    assert server.settled().served == out["spent"]["tokens"] <= 2_500
    assert out["stop_reason"] == "tokens"
    assert last(out) == ANSWER
    assert any(message.type == "tool" for message in out["messages"])
    judged = [call.text for call in server.calls if asked in call.text]
    assert judged[-1] == asked + ANSWER


def test_a_model_that_an_inner_middleware_sets_in_the_request_is_metered(server: Server) -> None:
    other = server.model(temperature=0.5)

    class Setting(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            with pytest.warns(DeprecationWarning, match="model"):
                request.model = other
            return handler(request)

    server.script = calling(("look_up", {"topic": "rivers"}))
    app = agent(server, budget=Budget(tokens=2_000), inside=[Setting()])
    out = run(app, config={"recursion_limit": 60})
    assert {call.request.get("temperature") for call in server.calls} == {0.5}
    assert out["spent"]["tokens"] == server.served <= 2_000
    assert last(out) == ANSWER


class Anew(AgentMiddleware[Any, Any, Any]):
    """Passes on a request that it makes itself, with another model; first asks that model on its own behalf."""

    def __init__(self, model: Any, asks: Any = None, after: int = 0) -> None:
        super().__init__()
        self.model, self.asks, self.after, self.turns = model, asks, after, 0

    def anew(self, request: Any) -> Any:
        self.turns += 1
        if self.turns <= self.after:
            return request
        names = ("messages", "system_message", "tools", "state", "runtime")
        return ModelRequest(model=self.model, **{name: getattr(request, name) for name in names})

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        if self.asks is not None:
            self.asks.invoke("Which model?")
        return handler(self.anew(request))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        if self.asks is not None:
            await self.asks.ainvoke("Which model?")
        return await handler(self.anew(request))


@both
def test_a_request_that_a_middleware_makes_anew_with_a_metered_model_is_paid(
    server: Server, sync: bool
) -> None:
    """What it asks a bare model beside that is its own business."""
    server.script = calling(("look_up", {"topic": "rivers"}))
    inside = Anew(metered(server.model()), asks=server.model(max_tokens=7))
    out = run(agent(server, budget=Budget(tokens=2_000), inside=[inside]), sync=sync)
    of_the_agent = sum(call.served for call in server.calls if call.limit != 7)
    assert out["spent"]["tokens"] == of_the_agent <= 2_000
    assert 0 < of_the_agent < server.served


def test_a_tool_that_cannot_pay_for_its_model_says_so(server: Server) -> None:
    model = metered(server.model())

    @tool
    def think(about: str) -> str:
        """Think hard about something."""
        return str(model.invoke("at length about rivers " * 400).text)

    server.script = calling(("think", {"about": "rivers"}))
    out = run(agent(server, think, budget=Budget(tokens=1_500)))
    told = next(m for m in out["messages"] if isinstance(m, ToolMessage))
    assert told.status == "error"
    assert "cannot pay" in told.text
    assert last(out) == ANSWER


@both
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("size", [1, 3_000])
def test_a_tool_gets_structured_answers_whole_or_not_at_all(
    server: Server, sync: bool, method: str, size: int
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        name = "Vienna " * size
        if "response_format" in request:
            return Reply(json.dumps({"name": name}))
        match [each["function"]["name"] for each in request.get("tools", ())]:
            case ["City"]:
                return Reply("", tools=[("City", {"name": name})])
            case [_]:
                asked = any(m["role"] == "tool" for m in request["messages"])
                return Reply(ANSWER, tools=[] if asked else [("find", {})])
        return Reply(ANSWER)

    chain = metered(server.model()).with_structured_output(City, method=cast(Any, method))

    async def asked() -> str:
        return str(await chain.ainvoke("Which city?"))

    found: Any = StructuredTool.from_function(
        lambda: str(chain.invoke("Which city?")), asked, name="find", description="Find a city."
    )
    server.script = script
    out = run(agent(server, found, budget=Budget(tokens=1_500)), sync=sync)
    (told,) = [m for m in out["messages"] if isinstance(m, ToolMessage)]
    assert told.text.startswith("name='Vienna" if size == 1 else "Not done: the budget")
    assert last(out) == ANSWER
    assert out["spent"]["tokens"] == server.settled().served <= 1_500


def test_a_call_that_a_tool_gives_up_is_charged_in_full(server: Server) -> None:
    model = metered(server.model(max_tokens=300))
    flowing, left = threading.Event(), threading.Event()

    @tool
    async def think(about: str) -> str:
        """Think hard about something."""
        thought = asyncio.ensure_future(model.ainvoke(f"Think about {about}."))
        assert await asyncio.to_thread(flowing.wait, PATIENCE)
        thought.cancel()
        with suppress(asyncio.CancelledError):
            return str((await thought).text)
        left.set()
        return "That took too long."

    def stall(event: str, call: Call) -> None:
        if event == "word" and call.text.startswith("Think") and call.output == 6:
            flowing.set()
            left.wait(PATIENCE)

    def script(request: dict[str, Any], i: int) -> Reply:
        if request["messages"][-1]["content"].startswith("Think"):
            return Reply(text=None, pace=0.01)
        tools: list[Any] = [("think", {"about": "rivers"})] if i == 0 else []
        return Reply(text=ANSWER, tools=tools)

    server.script, server.watch = script, stall
    out = run(agent(server, think, budget=Budget(tokens=3_000)), sync=False)
    assert last(out) == ANSWER
    assert out["spent"]["calls"] == len(server.calls) == 3
    assert server.settled().served + 200 < out["spent"]["tokens"] <= 3_000
    assert server.calls[1].closed_early


def test_a_metered_model_outside_of_an_agent_is_the_model_itself(server: Server) -> None:
    server.script = lambda request, i: Reply(text=ANSWER)
    model = metered(server.model())
    assert type(model).__name__ == "ChatOpenAI"
    assert isinstance(model, type(server.model()))
    assert model.invoke("hi").text == ANSWER
    assert "".join(piece.text for piece in model.stream("hi")) == ANSWER
    assert asyncio.run(model.ainvoke("hi")).text == ANSWER
    assert [m.text for m in model.batch(["hi", "ho"])] == [ANSWER, ANSWER]


@both
def test_runs_side_by_side_have_each_their_own_budget(server: Server, sync: bool) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    app = agent(server, budget=Budget(calls=3))

    @tool
    async def two(task: str) -> str:
        """Two workers at once."""
        work = [app.ainvoke({"messages": [("user", task)]}) for _ in range(2)]
        outs = await asyncio.gather(*work)
        return str([out["spent"]["calls"] for out in outs])

    if sync:
        outs = app.batch([QUESTION] * 4)
        assert [out["spent"]["calls"] for out in outs] == [3] * 4
        return

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if "two" in names and i == 0:
            return Reply(text="", tools=[("two", {"task": "rivers"})])
        return (
            Reply(text=ANSWER)
            if "two" in names
            else calling(("look_up", {"topic": "x"}))(request, i)
        )

    server.script = script
    out = run(agent(server, two, budget=Budget(calls=20)), sync=False)
    assert out["messages"][2].text == "[3, 3]"
    assert out["spent"]["calls"] == len(server.calls) == 8


# --- checkpoints


def test_a_run_that_waits_for_approval_resumes_with_what_it_had_spent(
    server: Server, tmp_path: Path
) -> None:
    """Each time from the file alone, as another process would."""
    server.script = calling(("look_up", {"topic": "rivers"}))
    thread: Any = {"configurable": {"thread_id": "rivers"}}
    given, turns, out = QUESTION, 0, {"__interrupt__": ()}
    while "__interrupt__" in out:
        with open_checkpoints(tmp_path / "agent.db") as store:
            ask = HumanInTheLoopMiddleware({"look_up": True})
            app = agent(server, budget=Budget(calls=4), inside=[ask], checkpointer=store.saver)
            out = app.invoke(given, thread)
        given, turns = Command(resume={"decisions": [{"type": "approve"}]}), turns + 1
        assert out["spent"]["calls"] == len(server.calls) <= 4
    assert turns == 4
    assert out["spent"]["tokens"] == server.served
    assert last(out) == ANSWER


@pytest.mark.parametrize("per", ["run", "thread"])
def test_a_budget_is_for_a_run_or_for_a_thread(server: Server, per: str) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    app = agent(server, budget=Budget(calls=5), per=per, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "rivers"}}
    app.invoke(QUESTION, thread)
    assert len(server.calls) == 5
    if per == "run":
        out = app.invoke({"messages": [("user", "And glaciers?")]}, thread)
        assert out["spent"]["calls"] == 5
        assert len(server.calls) == 10
    else:
        with pytest.raises(BudgetTooSmall):
            app.invoke({"messages": [("user", "And glaciers?")]}, thread)
        assert len(server.calls) == 5


def test_a_threads_budget_adds_up_over_its_invocations(server: Server) -> None:
    server.script = lambda request, i: Reply(text=ANSWER)
    app = agent(server, budget=Budget(tokens=2_000), per="thread", checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "rivers"}}
    spent = 0
    while len(server.calls) < 100:
        try:
            spent = app.invoke(QUESTION, thread)["spent"]["tokens"]
        except BudgetTooSmall:
            break
        assert spent == server.served
    assert 1_000 < spent <= 2_000


@both
def test_invocations_of_a_thread_at_once_share_its_budget(server: Server, sync: bool) -> None:
    """All four begin before the first has spent anything, and none is in another's checkpoint."""
    begun = threading.Barrier(4)

    def script(request: dict[str, Any], i: int) -> Reply:
        if i < 4:
            with suppress(threading.BrokenBarrierError):
                begun.wait(0.5)
        return Reply(text=None)

    server.script = script
    app = agent(server, budget=Budget(tokens=1_000), per="thread", checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "rivers"}}

    def ask(n: int) -> None:
        with suppress(BudgetTooSmall):
            app.invoke({"messages": [("user", f"question {n}")]}, thread)

    async def at_once() -> None:
        asked = [app.ainvoke({"messages": [("user", f"question {n}")]}, thread) for n in range(4)]
        await asyncio.gather(*asked, return_exceptions=True)

    if sync:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
    else:
        asyncio.run(at_once())
    ask(5)
    assert 300 < server.settled().served <= 1_000
    assert app.get_state(thread).values["spent"]["tokens"] <= 1_000


def test_invocations_at_once_under_one_control_are_refused_not_mixed(server: Server) -> None:
    """The first is in a tool when the second makes a call: neither pays for the other."""
    control, called, answered = RunControl(), threading.Event(), threading.Event()

    @tool
    def wait() -> str:
        """Wait."""
        called.set()
        assert answered.wait(PATIENCE)
        return "Waited."

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply("Hm.", tools=[("wait", {})]) if i == 0 else Reply(ANSWER)

    server.script = script
    app = agent(server, wait, budget=Budget(tokens=2_000))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(app.invoke, QUESTION, control=control)
        assert called.wait(PATIENCE)
        try:
            with pytest.raises(ValueError, match=r"RunControl\(\) of its own"):
                app.invoke(QUESTION, control=control)
        finally:
            answered.set()
        assert first.result()["messages"][-1].text == ANSWER
    assert len(server.calls) == 2


def test_invocations_one_after_another_under_one_control_have_their_own_budgets(
    server: Server,
) -> None:
    """Also when the first was paused for a human and goes on after the second."""
    control = RunControl()

    @tool
    def ask() -> str:
        """Ask the user."""
        return str(interrupt("Well?"))

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply("Hm.", tools=[("ask", {})]) if i == 0 else Reply(ANSWER)

    server.script = script
    app = agent(server, ask, budget=Budget(tokens=2_000), checkpointer=InMemorySaver())
    paused, other = ({"configurable": {"thread_id": name}} for name in ("paused", "other"))
    app.invoke(QUESTION, paused, control=control)
    booked = app.invoke(QUESTION, other, control=control)["spent"]["calls"]
    out = app.invoke(Command(resume="Yes."), paused, control=control)
    assert (booked, out["spent"]["calls"], len(server.calls)) == (1, 2, 3)
    assert out["messages"][-1].text == ANSWER


@pytest.mark.parametrize("own", [Budget(tokens=5_000), None], ids=["budget", "metered"])
def test_a_sub_agent_that_is_interrupted_again_and_again_keeps_to_the_budget(
    server: Server, own: Budget | None
) -> None:
    """Each time the tool that holds it runs anew, in an invocation that knows of no other."""

    @tool
    def ask(question: str) -> str:
        """Ask the user."""
        return str(interrupt(question))

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        work = {"question": "and then?", "task": "rivers"}
        return Reply(text="Hm.", tools=[(names[0], work)]) if names else Reply(text=ANSWER)

    server.script = script
    saver = InMemorySaver()
    thread: Any = {"configurable": {"thread_id": "rivers"}}
    given, turns, out = QUESTION, 0, {"__interrupt__": ()}
    while "__interrupt__" in out:
        middleware = [TokenBudgetMiddleware(own)] if own else []
        worker = create_agent(metered(server.model()), [ask], middleware=middleware, name="worker")

        app = agent(server, delegating_to(worker), budget=Budget(tokens=4_000), checkpointer=saver)
        out = app.invoke(given, thread)
        given, turns = Command(resume="on"), turns + 1
        assert server.served <= 4_000
    assert turns > 5
    assert last(out) == ANSWER
    assert out["spent"]["tokens"] == server.served
    assert out["spent"]["calls"] == len(server.calls)


def test_a_tool_that_was_done_when_its_sibling_was_interrupted_stays_paid(server: Server) -> None:
    model = metered(server.model())

    @tool
    def think(about: str) -> str:
        """Think twice about something."""
        return "".join(model.invoke(f"Think about {about}.").text for _ in range(2))

    @tool
    def ask(question: str) -> str:
        """Ask the user."""
        return str(interrupt(question))

    server.script = calling(("think", {"about": "x"}), ("ask", {"question": "?"}))
    app = agent(server, think, ask, budget=Budget(calls=9), checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "rivers"}}
    out = app.invoke(QUESTION, thread)
    while "__interrupt__" in out:
        out = app.invoke(Command(resume="yes"), thread)
    assert last(out) == ANSWER
    assert out["spent"]["calls"] == len(server.calls) == 9
    assert out["spent"]["tokens"] == server.served


def test_a_tool_may_hand_on_the_state_of_its_sub_agent(server: Server) -> None:
    """As deepagents does: what it says of the sub-agent's own budget is left out."""
    worker = agent(server, budget=Budget(calls=3), name="worker")

    @tool
    def delegate(task: str, runtime: ToolRuntime) -> Command[Any]:
        """Have a task done by a worker."""
        state = worker.invoke({"messages": [("user", task)]})
        told = ToolMessage(last(state), tool_call_id=runtime.tool_call_id)
        return Command(update={**state, "messages": [told]})

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if "look_up" in names:
            return Reply(text="", tools=[("look_up", {"topic": "rivers"})])
        told = any(m["role"] == "tool" for m in request["messages"])
        return Reply(text=ANSWER, tools=[("delegate", {"task": "x"})] if names and not told else [])

    server.script = script
    app = agent(server, delegate, budget=Budget(calls=20))
    *states, out = app.stream(QUESTION, stream_mode="values")
    assert [s["stop_reason"] for s in states if s.get("stop_reason")] == []
    assert out["stop_reason"] == "done"
    assert out["spent"]["calls"] == len(server.calls) == 5
    assert out["spent"]["tokens"] == server.served


# --- streaming


@both
def test_tokens_are_streamed_once(server: Server, sync: bool) -> None:
    server.script = calling(("look_up", {"topic": "rivers"}))
    app = agent(server, budget=Budget(calls=2))

    async def gathered() -> list[Any]:
        return [event async for event in app.astream(QUESTION, stream_mode="messages")]

    events = [*app.stream(QUESTION, stream_mode="messages")] if sync else asyncio.run(gathered())
    text: dict[str, str] = {}
    for message, _ in events:
        if message.type in ("ai", "AIMessageChunk"):
            text[message.id] = text.get(message.id, "") + message.text
    assert list(text.values()) == ["Let me look.", ANSWER]
    assert len(events) > 10


# --- arguments


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TokenBudgetMiddleware(500), "budget=500"),  # type: ignore[arg-type]
        (lambda: TokenBudgetMiddleware(Budget(tokens=5), per="day"), "per='day'"),  # type: ignore[arg-type]
        (lambda: TokenBudgetMiddleware(Budget(tokens=5), reserve=1.0), "reserve=1.0"),
        (lambda: TokenBudgetMiddleware(Budget(tokens=5), reserve=-1), "reserve=-1"),
        (lambda: TokenBudgetMiddleware(Budget(tokens=5), reserve="x"), "reserve='x'"),  # type: ignore[arg-type]
        (
            lambda: TokenBudgetMiddleware(Budget(tokens=5), reserve=Budget(tokens=9)),
            "reserve tokens=9",
        ),
        (
            lambda: TokenBudgetMiddleware(Budget(tokens=5), reserve=Budget(usd=1)),
            "reserve usd=1",
        ),
        (lambda: TokenBudgetMiddleware(Budget(tokens=5), prices=3), "prices=3"),  # type: ignore[arg-type]
        (lambda: TokenBudgetMiddleware(Budget(tokens=5), ledger="a.db"), "ledger='a.db'"),  # type: ignore[arg-type]
        (
            lambda: TokenBudgetMiddleware(Budget(tokens=5), tool_prices=["look_up"]),  # type: ignore[arg-type]
            "tool_prices=",
        ),
        (lambda: metered(5), "model=int"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_the_package_needs_no_langchain() -> None:
    code = "import anytime_graph, sys; assert not {'langchain', 'deepagents'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_dollars_need_prices(server: Server) -> None:
    with pytest.raises(ValueError, match="the price of 'scripted' is not known"):
        run(agent(server, budget=Budget(usd=1.0)))
    assert not server.calls


# --- deep agents


def test_deep_agents_keep_to_it_and_go_on_from_what_was_approved(server: Server) -> None:
    """Two sub-agents at once, which stop before each file until a user approves."""
    deepagents = pytest.importorskip("deepagents", reason="deepagents is not installed")

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if "task" in names:
            work = {"description": "rivers", "subagent_type": "general-purpose"}
            return Reply(text="Do it.", tools=[("task", work)] * 2)
        write = ("write_file", {"file_path": f"/{i}.txt", "content": "so it is"})
        return Reply(text=ANSWER, tools=[write] if names else [])

    server.script = script
    saver = InMemorySaver()
    thread: Any = {"configurable": {"thread_id": "rivers"}}
    given: Any = {"messages": [HumanMessage("Why do rivers bend?")]}
    turns, out = 0, {"__interrupt__": ()}
    while "__interrupt__" in out:
        app = deepagents.create_deep_agent(
            metered(server.model()),
            middleware=[TokenBudgetMiddleware(Budget(tokens=50_000))],
            interrupt_on={"write_file": True},
            checkpointer=saver,
        )
        out = app.invoke(given, thread)
        approve = {"decisions": [{"type": "approve"}]}
        given = Command(resume={i.id: approve for i in out.get("__interrupt__", ())})
        turns += 1
    assert turns > 2
    assert out["spent"]["tokens"] == server.settled().served <= 50_000
    assert out["spent"]["calls"] == len(server.calls) > 5
    assert last(out) == ANSWER
