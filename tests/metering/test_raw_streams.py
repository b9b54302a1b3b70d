"""P1, P2, P5 at the raw streams of the clients that report as they go, make objects of tool calls, or say
in places of their own why they end."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.metering import learned
from anytime_graph.metering.call import acall, call
from anytime_graph.metering.meter import meter_for
from anytime_graph.metering.request import Reply, Request
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import both
from tests.kit.providers import (
    NAMED,
    QUESTION,
    Json,
    Usage,
    Wire,
    anthropic,
    bedrock,
    eventstream,
    google,
    mistral,
    ollama,
    responses,
    speaking,
    sse_named,
)

pytestmark = [  # of google-genai with aiohttp, in its own code
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'ClientResponse.json' was never:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:NEW_ONE is not a valid FinishReason:UserWarning"),
]

USED = Usage(input=30, cached=0, output=20, reasoning=0)
TOKENS = 900
TOOL: Json = {"name": "remove", "description": "", "input_schema": {"type": "object"}}


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setattr(learned, "_PATIENCE", 0.0)
    with speaking() as wire:
        yield wire


def asked(model: Any, sync: bool = True, **options: Any) -> Json:
    budget = Budget(tokens=TOKENS)
    app = create_anytime_graph(model, budget=budget, strategy="single", answer="whole").compile()
    out: Json = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
    return out


def called(model: Any, sync: bool, **bound: Any) -> Reply:
    """One call, which reserves 60 tokens for its prompt and 40 for its reply."""
    meter = meter_for(model, bound, None, None)
    request = Request(prompt=[HumanMessage("Why?")], max_input=60, max_output=40)
    return call(meter, request, {}) if sync else asyncio.run(acall(meter, request, {}))


def in_agent(model: Any) -> tuple[list[str], str]:
    """What its tool was run with, and why the run ended."""
    ran = list[str]()

    def remove(path: str = "everything") -> str:
        """Remove what is at a path."""
        ran.append(path)
        return "removed"

    middleware = [TokenBudgetMiddleware(Budget(tokens=9_000))]
    out = create_agent(model, [remove], middleware=middleware).invoke(QUESTION)
    return ran, out["stop_reason"]


# --- reports that come while the reply does


def of_google(finish: str | None = "STOP", **part: Any) -> list[Json]:
    """Reports the running total in every chunk."""
    events = google({}, ["It is ", "seven."], USED)
    candidate = events[-1]["candidates"][0]
    candidate["finishReason"] = finish
    if part:
        candidate["content"]["parts"] = [part]
    return events


def of_ollama(finish: str = "stop", **message: Any) -> list[Json]:
    events = ollama({}, ["It is ", "seven."], USED)
    events[-1]["done_reason"] = finish
    events[0]["message"] |= message
    return events


def of_mistral() -> list[Json]:
    events = mistral({}, ["It is ", "seven."], USED)
    events[-1]["choices"][0]["finish_reason"] = "stop"
    return events


def running(events: list[Json]) -> list[Json]:
    """The events, each with a report of what has been used so far."""
    return [
        e | of_chat(i) | {"prompt_eval_count": 30, "eval_count": i} for i, e in enumerate(events, 1)
    ]


def of_chat(output: int) -> Json:
    return {
        "usage": {"prompt_tokens": 30, "completion_tokens": output, "total_tokens": 30 + output}
    }


STREAMS = {
    "Google": of_google(),
    "Ollama": running(of_ollama()),
    "Mistral": running(of_mistral()),
}


@both
@pytest.mark.parametrize("name", STREAMS)
def test_a_report_beside_the_words_is_no_end_of_the_reply(
    wire: Wire, name: str, sync: bool
) -> None:
    """Of a stream that ends between two events, it is less than the cost."""
    out = asked(wire.say(name, STREAMS[name]), sync)
    assert (out["best"]["complete"], out["errors"]) == (True, [])
    assert out["spent"]["tokens"] < 60
    out = asked(wire.say(name, STREAMS[name][:1]), sync)
    assert (out["best"]["answer"], out["best"]["complete"]) == ("It is", False)
    assert out["spent"]["tokens"] == TOKENS
    assert "ended before the reply did" in out["errors"][0]


def test_a_last_total_with_a_smaller_prompt_is_read(wire: Wire) -> None:
    """As Gemini 2.0 sends it. The larger figure counts."""
    events = copy.deepcopy(of_google())
    events[-1]["usageMetadata"] |= {"promptTokenCount": 25, "totalTokenCount": 45}
    out = asked(wire.say("Google", events))
    assert (out["spent"]["input_tokens"], out["spent"]["output_tokens"]) == (30, 20)
    assert out["errors"] == []


# --- why it ended


@pytest.mark.parametrize("reports", [True, False])
def test_a_prompt_that_google_blocks_is_told_and_not_sent_again(wire: Wire, reports: bool) -> None:
    told: Json = {"promptFeedback": {"blockReason": "SAFETY"}}
    used = {"usageMetadata": {"promptTokenCount": 30, "totalTokenCount": 30}}
    model = wire.say("Google", [told | (used if reports else {})])
    with pytest.raises(NoAnswer, match="the provider ended the reply: SAFETY") as failure:
        asked(model)
    assert failure.value.spent["tokens"] == (30 if reports else TOKENS)
    assert in_agent(model) == ([], "blocked: SAFETY")
    assert len(wire.requests) == 2


# --- tool calls


def google_calls(finish: str, **more: Any) -> list[Json]:
    return of_google(finish, functionCall={"name": "remove", "args": {"path": "/data"}} | more)


def ollama_calls(finish: str) -> list[Json]:
    call = {"function": {"name": "remove", "arguments": {"path": "/data"}}}
    return of_ollama(finish, tool_calls=[call])


@pytest.mark.parametrize(
    ("name", "calls", "words", "end"),
    [
        ("Google", google_calls, ["MALFORMED_FUNCTION_CALL", "SAFETY", "NEW_ONE"], of_google()),
        ("Ollama", ollama_calls, ["unload", "error"], of_ollama()),
    ],
)
def test_an_object_that_the_provider_made_of_a_tool_call_counts_if_the_model_ended_the_reply(
    wire: Wire, name: str, calls: Any, words: list[str], end: list[Json]
) -> None:
    """Nobody can tell what it was made of."""
    assert in_agent(wire.say(name, calls("STOP"), end)) == (["/data"], "done")
    for word in words:
        wire.requests.clear()
        assert in_agent(wire.say(name, calls(word), end)) == ([], f"blocked: {word}")
        assert len(wire.requests) == 2
    wire.requests.clear()
    assert in_agent(wire.say(name, calls("MAX_TOKENS" if name == "Google" else "length"), end)) == (
        [],
        "length",
    )


def test_a_tool_call_whose_arguments_come_bit_by_bit_from_google_is_not_run_without_them(
    wire: Wire,
) -> None:
    """Its client does not read them."""
    bits = [
        {"name": "remove", "willContinue": True},
        {"partialArgs": [{"jsonPath": "$.path", "stringValue": "/data"}]},
    ]
    events = of_google()
    for event, bit in zip(events, bits, strict=True):
        event["candidates"][0]["content"]["parts"] = [{"functionCall": bit}]
    wire.requests.clear()
    assert in_agent(wire.say("Google", events, of_google())) == ([], "error: the reply broke off")


def test_a_tool_call_of_the_responses_api_is_not_run_without_the_arguments_that_come_at_its_end(
    wire: Wire,
) -> None:
    """Its client reads only those that stream, and OpenAI sends "{}" where there are none."""
    begun, *_, end = responses({}, [], USED)
    end = {**end, "type": "response.completed"}
    end["response"] |= {"status": "completed", "incomplete_details": None}
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_0", "name": "remove"}
    at: Json = {"output_index": 0, "item_id": "fc_1"}

    def calls(*pieces: str) -> list[Json]:
        kind = "response.function_call_arguments"
        streamed = ({"type": f"{kind}.delta", "delta": piece, **at} for piece in pieces)
        arguments = "".join(pieces) or '{"path": "/data"}'
        events = [
            begun,
            {"type": "response.output_item.added", "item": item | {"arguments": ""}, **at},
            *streamed,
            {"type": f"{kind}.done", "arguments": arguments, **at},
            {"type": "response.output_item.done", "item": item | {"arguments": arguments}, **at},
            end,
        ]
        return [event | {"sequence_number": i} for i, event in enumerate(events)]

    name = "OpenAI, responses API"
    assert in_agent(wire.say(name, calls("{", "}"), [begun, end]))[0] == ["everything"]
    wire.requests.clear()
    ran, reason = in_agent(wire.say(name, calls(), [begun, end]))
    assert (ran, reason) == ([], "error: the reply broke off")


def of_anthropic(*events: Json) -> list[Json]:
    """What comes before the blocks of a reply, these, and its end."""
    begun, *_, delta, stop = anthropic({}, [], USED)
    return [begun, *events, delta | {"delta": {"stop_reason": "tool_use"}}, stop]


def block(kind: str, id: str, index: int) -> Json:
    content = {"type": kind, "id": id, "name": "remove", "input": {}}
    return {"type": "content_block_start", "index": index, "content_block": content}


def bit(arguments: str, index: int) -> Json:
    delta = {"type": "input_json_delta", "partial_json": arguments}
    return {"type": "content_block_delta", "index": index, "delta": delta}


PATH = '{"path": "/data"}'
MIXED: dict[str, tuple[Json, ...]] = {
    "two at one index": (
        *(block("tool_use", "a", 0), bit(PATH, 0)),
        *(block("tool_use", "b", 0), bit(PATH, 0)),
    ),
    "two at one index, then the arguments of one": (
        *(block("tool_use", "a", 0), block("tool_use", "b", 0), bit(PATH, 0)),
    ),
    "the arguments after the start of another block": (
        *(block("tool_use", "a", 0), block("server_tool_use", "b", 1), bit(PATH, 0)),
    ),
}


@pytest.mark.parametrize("mixed", MIXED)
def test_a_tool_is_not_run_with_the_arguments_of_another_call_or_with_none_of_its_own(
    wire: Wire, mixed: str
) -> None:
    """LangChain joins what has the same index, and Anthropic's client what comes after a start."""
    end = of_anthropic()
    said = {"type": "text", "text": "All is clean."}
    end.insert(1, {"type": "content_block_start", "index": 0, "content_block": said})
    end[-2] = end[-2] | {"delta": {"stop_reason": "end_turn"}}
    model = wire.say("Anthropic", of_anthropic(block("tool_use", "a", 0), bit(PATH, 0)), end)
    assert in_agent(model) == (["/data"], "done")
    wire.requests.clear()
    model = wire.say("Anthropic", of_anthropic(*MIXED[mixed]), end)
    assert in_agent(model) == ([], "error: the reply broke off")


# --- refusals


@both
def test_what_is_refused_after_its_reply_began_may_have_been_served(wire: Wire, sync: bool) -> None:
    """Though no word of it came yet. That the Responses API took a request is no part of a reply."""
    overloaded: Json = {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}
    throttled = eventstream([{"throttlingException": {"message": "no"}}], "exception")
    limited = {"type": "error", "code": "rate_limit_exceeded", "message": "no", "param": None}
    for name, head, refusal, bound, served in (
        ("Anthropic", anthropic, sse_named([overloaded]), {}, True),
        ("Anthropic", anthropic, sse_named([overloaded]), {"tools": [TOOL]}, True),
        ("AWS Bedrock", bedrock, throttled, {}, True),
        (
            "OpenAI, responses API",
            responses,
            sse_named([limited | {"sequence_number": 1}]),
            {},
            False,
        ),
    ):
        learned.forget()
        begun = NAMED[name].send(head({}, [], USED)[:1])
        reply = called(wire.say(name, begun + refusal), sync, **bound)
        assert reply.receipt["spend"]["tokens"] == (100 if served else 0), name
        learned.forget()
        assert called(wire.say(name, refusal), sync, **bound).receipt["unserved"], name


@pytest.mark.parametrize(
    "name", ["OpenAI", "Anthropic", "Google", "Mistral", "Ollama", "AWS Bedrock"]
)
def test_how_long_a_server_asks_to_wait_is_read_through_every_client(wire: Wire, name: str) -> None:
    model = wire.say(name, [])
    for status, told, seconds in ((429, "3", 3.0), (503, "2.5", 2.5), (529, "1m", 30.0)):
        learned.forget()
        wire.fail, wire.headers = status, {"retry-after": told}
        assert called(model, True).receipt["retry_after"] == seconds
