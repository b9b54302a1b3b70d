"""What a server refuses costs nothing, and the call is made again in another form, smaller or later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from itertools import count
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableLambda
from openai import APIStatusError

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering import learned
from anytime_graph.metering.account import Account
from anytime_graph.metering.metered import AgentPayer, paying_from
from anytime_graph.metering.request import Request
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.marks import torture
from tests.kit.server import Reply, Server, said, serving
from tests.kit.waiting import auntil
from tests.kit.wires import (
    Json,
    Sent,
    anthropic,
    anthropic_whole,
    chat,
    chat_whole,
    response,
    responses,
    responses_whole,
    speaking,
    sse,
    whole,
)

Q: Any = {"messages": [("user", "Why do rivers bend?")]}
ANSWER = Reply("so <answer>erosion</answer> it is")
Door = Callable[[BaseChatModel, Budget], tuple[str, int]]


def by_graph(model: BaseChatModel, budget: Budget, **options: Any) -> tuple[str, int]:
    app = create_anytime_graph(model, budget=budget, **options).compile()
    out = app.invoke(Q, {"recursion_limit": 3_000})
    return out["best"]["answer"], out["spent"]["tokens"]


def by_async_graph(model: BaseChatModel, budget: Budget) -> tuple[str, int]:
    app = create_anytime_graph(model, budget=budget, strategy="single").compile()
    out = asyncio.run(app.ainvoke(Q))
    return out["best"]["answer"], out["spent"]["tokens"]


def by_chat(model: BaseChatModel, budget: Budget) -> tuple[str, int]:
    reply = ChatAnytime(model=model, budget=budget).invoke("Why do rivers bend?")
    assert reply.usage_metadata is not None
    return reply.text, reply.usage_metadata["total_tokens"]


def by_agent(model: BaseChatModel, budget: Budget) -> tuple[str, int]:
    middleware = [TokenBudgetMiddleware(budget)]
    agent = create_agent(model, [], system_prompt="Be brief.", middleware=middleware)
    out = agent.invoke(Q)
    return out["messages"][-1].text, out["spent"]["tokens"]


DOORS = pytest.mark.parametrize("door", [by_graph, by_async_graph, by_chat, by_agent])


def has_system(request: dict[str, Any]) -> bool:
    return any(message["role"] == "system" for message in request["messages"])


def choosing(request: dict[str, Any]) -> bool:
    return request.get("n", 1) > 1


class Slow:
    """The clock of a machine on which each request takes a minute."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_patience_is_for_waiting_and_not_for_a_slow_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Waits of 1 ms, 2 ms and so on fill a patience of 0.25 s with eight."""
    clock = Slow()
    monkeypatch.setattr(learned, "time", clock)
    sent = httpx.Request("POST", "http://127.0.0.1/v1")
    refused = APIStatusError("busy", response=httpx.Response(429, request=sent), body=None)
    form = learned.Form([], cast(BaseChatModel, None), {})
    for seconds, attempts in ((None, 8), (150.0, 3)):
        request = Request(prompt=[], max_input=1, max_output=1, seconds=seconds)
        calls = learned.Attempts(request, form, learned.Learned())
        made = 0
        while not made or calls.again(refused):
            calls.next()
            clock.now += 60
            made += 1
        assert (made, calls.hopeless) == (attempts, True)


PARTS: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "system": (has_system, "System role not supported"),
    "unnamed": (has_system, "Bad request"),
    "roles": (has_system, "Conversation roles must alternate user/assistant/user/assistant/..."),
    "reports": (lambda r: "stream_options" in r, "Unrecognized request argument: stream_options"),
    "stream": (
        lambda r: bool(r.get("stream")),
        "Your organization must be verified to stream this model.",
    ),
    "seed": (lambda r: "seed" in r, "[{'loc': ('body', 'seed'), 'msg': 'Extra inputs'}]"),
    "n": (choosing, "Unrecognized request argument supplied: n"),
    "cap": (
        lambda r: "max_completion_tokens" in r,
        "max_completion_tokens: Extra inputs are not permitted",
    ),
}


@pytest.mark.pairwise(4)
@DOORS
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_refused_is_left_out_from_then_on(
    server: Server, part: str, door: Door
) -> None:
    refuses, says = PARTS[part]
    server.script = lambda r, i: Reply(error=400, says=says) if refuses(r) else ANSWER
    model = server.model(n=None, seed=7)
    text, spent = door(model, Budget(tokens=6_000))
    assert "erosion" in text
    assert server.settled().served <= spent <= 6_000
    if part != "reports":
        assert spent == server.served
    most = 1 + 4  # one request for several choices, then as many as are made side by side
    assert sum(call.refused for call in server.calls) <= most
    asked = len(server.calls)
    door(model, Budget(tokens=6_000))
    assert not any(call.refused for call in server.calls[asked:]), "it is learned"
    for call in server.calls:
        if not call.refused:
            assert "rivers" in call.text


def test_two_parts_are_refused_one_after_the_other(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        for refuses, says in (PARTS["system"], PARTS["seed"]):
            if refuses(request):
                return Reply(error=422, says=says)
        return ANSWER

    server.script = script
    _, spent = by_graph(server.model(seed=7), Budget(tokens=1_000), strategy="single")
    assert [call.refused for call in server.calls[:3]] == [True, True, False]
    assert spent == server.served


def test_system_text_reaches_the_model_as_the_users(server: Server) -> None:
    server.script = lambda r, i: Reply(error=400) if has_system(r) else ANSWER
    by_agent(server.model(), Budget(tokens=3_000))
    (message,) = server.calls[-1].request["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("Be brief.\n\nWhy do rivers bend?")


def test_a_schema_that_is_refused_goes_into_the_message(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": {"type": "object"}}}
    server.script = lambda r, i: (
        Reply(error=400, says="response_format is not supported by this model")
        if "response_format" in r
        else ANSWER
    )
    model: Any = server.model().bind(response_format=form)
    _, spent = by_graph(model, Budget(tokens=2_000), strategy="single")
    assert '{"type": "object"}' in server.calls[1].text
    assert spent == server.settled().served


def test_a_strict_schema_that_is_refused_is_sent_as_a_loose_one(server: Server) -> None:
    schema = {"type": "object", "properties": {"strict": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": schema}}
    server.script = lambda r, i: (
        Reply(error=400, says="json_schema.strict: Extra inputs are not permitted")
        if r.get("response_format", {}).get("json_schema", {}).get("strict")
        else ANSWER
    )
    model: Any = server.model().bind(response_format=form)
    _, spent = by_graph(model, Budget(tokens=2_000), strategy="single")
    assert [call.refused for call in server.calls[:2]] == [True, False]
    assert server.calls[1].request["response_format"]["json_schema"]["schema"] == schema
    assert spent == server.settled().served


def test_an_option_is_sent_only_with_what_it_is_for(server: Server) -> None:
    """The last call has no tools, and then the option is an error."""
    server.script = lambda r, i: (
        Reply(error=400, says="'parallel_tool_calls' is only allowed when 'tools' are specified")
        if "parallel_tool_calls" in r and not r.get("tools")
        else ANSWER
    )
    model: Any = server.model().bind(parallel_tool_calls=False)
    by_graph(model, Budget(tokens=1_000), strategy="single")
    assert not any(call.refused for call in server.calls)


def test_a_form_that_was_taken_is_not_doubted(server: Server) -> None:
    server.script = lambda r, i: Reply(error=400) if i == 1 else ANSWER
    by_graph(server.model(), Budget(calls=4, tokens=4_000), strategy="self_refine")
    assert server.calls[1].refused
    assert all(has_system(call.request) for call in server.calls)


# --- the window

WINDOW = 8_192
SAYS = {
    "vllm": "This model's maximum context length is 8192 tokens. However, you requested {all} tokens "
    "({prompt} in the messages, {cap} in the completion).",
    "later vllm": "'max_tokens' or 'max_completion_tokens' is too large: {cap}. This model's maximum "
    "context length is 8192 tokens and your request has {prompt} input tokens ({cap} > 8192 - {prompt}).",
    "tgi": "`inputs` tokens + `max_new_tokens` must be <= 8192. Given: {prompt} `inputs` tokens and "
    "{cap} `max_new_tokens`",
    "anthropic": "input length and `max_tokens` exceed context limit: {prompt} + {cap} > 8192, decrease "
    "input length or `max_tokens` and try again",
    "qwen": "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]",
    "zhipu": "Prompt 超长",
    "untold": "The requested context length is too long.",
    "at the head": "Maximum context length exceeded.",
    "together": "The total number of tokens ({all}) exceeds the model's limit of 8192.",
}


def windowed(
    says: str, reply: Reply = ANSWER, status: int = 400
) -> Callable[[dict[str, Any], int], Reply]:
    def script(request: dict[str, Any], i: int) -> Reply:
        prompt = sum(len(str(m["content"]).split()) for m in request["messages"]) + 10
        cap = request["max_completion_tokens"]
        if prompt + cap <= WINDOW:
            return reply
        return Reply(error=status, says=says.format(prompt=prompt, cap=cap, all=prompt + cap))

    return script


@pytest.mark.pairwise(4)
@DOORS
@pytest.mark.parametrize("says", SAYS)
def test_a_request_too_large_for_the_window_is_made_smaller_at_once(
    server: Server, says: str, door: Door
) -> None:
    server.script = windowed(SAYS[says])
    text, spent = door(server.model(), Budget(tokens=100_000))
    assert "erosion" in text
    assert spent == server.settled().served
    caps = [call.limit or 0 for call in server.calls]
    served = [call.limit or 0 for call in server.calls if not call.refused]
    assert max(caps) <= 32_768
    assert max(served) > WINDOW // 4, "it is not made smaller than needed"
    asked = len(server.calls)
    door(server.model(), Budget(tokens=100_000))
    assert not any(call.refused for call in server.calls[asked:]), "it is learned"


CEILINGS = {
    "openai": "max_tokens is too large: {cap}. This model supports at most 4096 completion tokens, "
    "whereas you provided {cap}.",
    "anthropic": "max_tokens: {cap} > 4096, which is the maximum allowed number of output tokens",
    "deepseek": "Invalid max_tokens value, the valid range of max_tokens is [1, 4096]",
    "openrouter": "This request requires more credits, or fewer max_tokens. You requested up to {cap} "
    "tokens, but can only afford 4096.",
}


@pytest.mark.parametrize("says", CEILINGS)
def test_a_cap_above_the_models_own_is_lowered_to_it(server: Server, says: str) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        cap = request["max_completion_tokens"]
        status = 402 if says == "openrouter" else 400
        return ANSWER if cap <= 4096 else Reply(error=status, says=CEILINGS[says].format(cap=cap))

    server.script = script
    by_graph(server.model(), Budget(tokens=50_000), strategy="single")
    assert [call.limit for call in server.calls[1:2]] == [4096]


LARGER = "Request too large for m on tokens per min (TPM): Limit 8192, Requested {all}."


@pytest.mark.pairwise
@DOORS
@pytest.mark.parametrize(
    ("status", "says"),
    [(429, f"{LARGER} The input or output tokens must be reduced."), (413, LARGER)],
)
def test_what_is_larger_than_a_minute_allows_is_made_smaller_and_not_waited_for(
    server: Server, status: int, says: str, door: Door
) -> None:
    server.script = windowed(says, status=status)
    text, spent = door(server.model(), Budget(tokens=100_000, seconds=60))
    assert "erosion" in text
    assert spent == server.settled().served
    assert sum(call.refused for call in server.calls) <= 2 * 4  # in two steps, side by side


# --- what is refused without a status of its own

REDIRECTED = (302, 409, 418, 425, 451, 501, 521)


@pytest.mark.parametrize("status", REDIRECTED)
def test_what_nobody_can_have_served_costs_nothing(server: Server, status: int) -> None:
    server.script = lambda r, i: ANSWER if i else Reply(error=status, says="no")
    _, spent = by_graph(server.model(), Budget(tokens=2_000), strategy="best_of_n")
    assert len(server.calls) > 1
    assert spent == server.settled().served


@pytest.mark.parametrize("location", ["/v1/chat/completions", "http://127.0.0.1:9/v1"])
def test_a_redirection_that_leads_nowhere_costs_nothing(server: Server, location: str) -> None:
    server.script = lambda r, i: Reply(error=307, says="", headers={"location": location})
    with pytest.raises(NoAnswer) as failure:
        by_graph(server.model(), Budget(tokens=2_000), strategy="single")
    assert failure.value.spent["tokens"] == server.settled().served == 0


def failed(code: str) -> list[Json]:
    begun = {"status": "in_progress", "usage": None}
    error = {"code": code, "message": "no"}
    return [
        {"type": "response.created", "response": response(Sent(), []) | begun},
        {
            "type": "response.failed",
            "response": response(Sent(), []) | {"status": "failed", "error": error, "usage": None},
        },
    ]


MESSAGE = "Rate limit reached for requests"
INSTEAD: dict[str, tuple[Any, Any]] = {
    "a status": (chat, [{"error": {"message": "no", "code": 429}}]),
    "a status as text": (chat, [{"error": {"message": "no", "code": "503"}}]),
    "a word": (
        chat,
        [{"error": {"message": "no", "type": "tokens", "code": "rate_limit_exceeded"}}],
    ),
    "a message": (chat, [{"error": {"message": MESSAGE, "type": None, "code": None}}]),
    "a text": (chat, [{"error": MESSAGE}]),
    "older vllm": (chat, [{"object": "error", "message": "no", "type": "Error", "code": 429}]),
    "anthropic": (
        anthropic,
        [{"type": "error", "error": {"type": "overloaded_error", "message": "no"}}],
    ),
    "a failed response": (responses, failed("rate_limit_exceeded")),
    "an event": (responses, [{"type": "error", "code": "rate_limit_exceeded", "message": "no"}]),
}


@pytest.mark.parametrize("instead", INSTEAD)
def test_a_refusal_in_place_of_a_reply_costs_nothing_and_is_waited_for(
    instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    send, events = INSTEAD[instead]
    with speaking() as wire:
        wire.send, first = send, [sse(events)]
        model = wire.model()
        wire.send = lambda sent: first.pop() if first else send(sent)
        app = create_anytime_graph(model, budget=Budget(calls=1), strategy="single").compile()
        out = app.invoke(Q)
    assert len(wire.requests) == 2
    assert (out["spent"]["tokens"], out["spent"]["calls"]) == (90, 1)


BODIES: dict[str, Any] = {
    "a status": {"error": {"message": "no", "code": 429}},
    "a status as text": {"error": {"message": "no", "type": "None", "code": "429"}},
    "a word": {"error": {"message": "no", "type": "tokens", "code": "rate_limit_exceeded"}},
    "a message": {"error": {"message": MESSAGE, "type": None, "code": None}},
    "a text": {"error": MESSAGE},
    "vllm": {"object": "error", "message": "no", "type": "RateLimitError", "code": 429},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
    "google": [{"error": {"code": 503, "message": "no", "status": "UNAVAILABLE"}}],
}
SENDERS = (chat, chat_whole, responses, responses_whole, anthropic, anthropic_whole)


@pytest.mark.pairwise(4)
@pytest.mark.parametrize("send", SENDERS, ids=lambda send: send.__name__)
@pytest.mark.parametrize("body", BODIES)
def test_an_error_as_the_whole_reply_is_a_refusal_whatever_its_status(
    body: str, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    sync = (SENDERS.index(send) + [*BODIES].index(body)) % 2
    with speaking() as wire:
        wire.send, first = send, [whole(BODIES[body])]
        model = wire.model()
        wire.send = lambda sent: first.pop() if first else send(sent)
        app = create_anytime_graph(model, budget=Budget(calls=1), strategy="single").compile()
        out = app.invoke(Q) if sync else asyncio.run(app.ainvoke(Q))
    assert len(wire.requests) == 2
    assert (out["spent"]["tokens"], out["spent"]["calls"]) == (90, 1)


@pytest.mark.parametrize("send", SENDERS, ids=lambda send: send.__name__)
def test_an_error_as_the_whole_reply_ends_a_run_shrinks_a_call_or_is_paid_for_as_with_its_status(
    send: Any,
) -> None:
    def asked(error: Json, **beside: Any) -> Any:
        wire.requests.clear()
        replies = [whole({"error": error} | beside)]
        wire.send = lambda sent: replies.pop() if replies else send(sent)
        app = create_anytime_graph(model, budget=Budget(tokens=9_000), strategy="single").compile()
        return app.invoke(Q)

    with speaking() as wire:
        wire.send = send
        model = wire.model()
        with pytest.raises(NoAnswer, match="HTTP 401") as failure:
            asked({"message": "Incorrect API key provided", "type": "invalid_request_error"})
        assert (failure.value.spent["tokens"], len(wire.requests)) == (0, 1)
        out = asked({"message": "This model's maximum context length is 2048 tokens.", "code": 400})
        assert out["spent"]["tokens"] == 90
        small, large = (
            next(v for k, v in request.items() if "max" in k) for request in wire.requests[::-1]
        )
        assert small < 2_048 < large
        used = {"usage": {"input_tokens": 30, "output_tokens": 60, "total_tokens": 90}}
        for paid, beside in (
            ({"message": "Bad gateway", "code": 502}, {}),
            ({"message": "Something went wrong"}, {}),
            ({"message": "no", "code": 429}, used),
        ):
            out = asked(paid, **beside)
            assert (out["spent"]["tokens"] > 2_000, out["spent"]["calls"]) == (True, 2)


def test_an_error_within_a_reply_is_paid_for_whatever_it_is_called() -> None:
    said = {"index": 0, "delta": {"role": "assistant", "content": "so "}, "finish_reason": None}
    begun = {"id": "c", "object": "chat.completion.chunk", "created": 0, "choices": [said]}
    with speaking() as wire:
        model = wire.model()
        wire.send = lambda sent: sse([begun, {"error": {"message": "no", "code": 429}}])
        app = create_anytime_graph(model, budget=Budget(tokens=500), strategy="single").compile()
        out = app.invoke(Q)
    assert out["spent"]["tokens"] > 400


def test_a_cap_that_is_too_small_is_made_no_smaller_and_nothing_is_learned(server: Server) -> None:
    too_small = (
        "Could not finish the message because max_tokens was reached; try higher max_tokens."
    )

    def script(request: dict[str, Any], i: int) -> Reply:
        enough = request["max_completion_tokens"] > 2_000
        return ANSWER if enough else Reply(error=400, says=too_small)

    server.script = script
    with pytest.raises(NoAnswer):
        by_graph(server.model(), Budget(tokens=1_500), strategy="single")
    assert len(server.calls) == 1
    text, _ = by_graph(server.model(), Budget(tokens=9_000), strategy="single")
    assert "erosion" in text


@settings(max_examples=torture or 12)
@given(
    budget=st.floats(3, 7).map(lambda digits: int(10**digits)),
    door=st.sampled_from([by_graph, by_chat, by_agent]),
    says=st.sampled_from(sorted(SAYS)),
)
def test_a_larger_budget_never_brings_less(budget: int, door: Door, says: str) -> None:
    learned.forget()
    with serving() as server:
        server.script = windowed(SAYS[says])
        text, spent = door(server.model(), Budget(tokens=budget))
        assert "erosion" in text
        assert spent == server.settled().served <= budget


@pytest.mark.parametrize("says", ["maximum context length is 8192 tokens", SAYS["untold"]])
def test_the_last_call_does_not_repeat_what_was_too_large(server: Server, says: str) -> None:
    def fetch(url: str) -> str:
        """Fetch a page."""
        return "Erosion bends rivers. " * 6_000

    def script(request: dict[str, Any], i: int) -> Reply:
        if i == 0:
            return Reply("", tools=[("fetch", {"url": "r"})])
        return windowed(says)(request, i)

    server.script = script
    middleware = [TokenBudgetMiddleware(Budget(tokens=100_000))]
    out = create_agent(server.model(max_tokens=500), [fetch], middleware=middleware).invoke(Q)
    assert "erosion" in out["messages"][-1].text
    assert out["spent"]["tokens"] == server.settled().served
    sizes = [call.prompt for call in server.calls if not call.refused]
    assert len(sizes) == 2


# --- what no waiting helps

UNPAID = {
    "openai": (429, "You exceeded your current quota, please check your plan and billing details."),
    "openai's limit": (400, "Billing hard limit has been reached"),
    "anthropic": (400, "Your credit balance is too low to access the Anthropic API."),
    "bare": (402, ""),
    "deepseek": (402, "Insufficient Balance"),
    "openrouter": (402, "Insufficient credits. Add more using https://openrouter.ai/credits"),
    "huggingface": (402, "You have exceeded your monthly included credits."),
    "moonshot": (429, "Your account is suspended, please check your plan and billing details"),
    "zhipu": (429, "余额不足或无可用资源包,请充值。"),
    "dashscope": (400, "Access denied, please make sure your account is in good standing."),
    "litellm": (400, "Budget has been exceeded! Current cost: 2.0, Max budget: 1.0"),
    "google by the day": (
        429,
        "You exceeded your current quota, please check your plan and billing details. quotaId: "
        "GenerateRequestsPerDayPerProjectPerModel-FreeTier Please retry in 34.07s.",
    ),
}


@pytest.mark.pairwise(4)
@DOORS
@pytest.mark.parametrize("says", UNPAID)
def test_what_the_account_does_not_pay_for_ends_a_run_at_once_by_its_name(
    server: Server, says: str, door: Door
) -> None:
    status, words = UNPAID[says]
    server.script = lambda r, i: Reply(error=status, says=words)
    with pytest.raises((NoAnswer, APIStatusError)) as failure:  # an agent raises its client's
        door(server.model(), Budget(tokens=6_000, seconds=60))
    assert len(server.calls) == 1
    if isinstance(failure.value, NoAnswer):
        assert failure.value.spent["tokens"] == 0
        assert "does not pay for it" in str(failure.value)


def test_a_limit_by_the_minute_is_waited_for_though_it_speaks_of_billing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    words = f"{UNPAID['openai'][1]} quotaId: GenerateRequestsPerMinute. Please retry in 0.05s."
    server.script = lambda r, i: ANSWER if i else Reply(error=429, says=words)
    _, spent = by_graph(server.model(), Budget(tokens=4_000), strategy="single")
    assert spent == server.settled().served


# --- waiting


def dated(seconds: float) -> dict[str, str]:
    """As a server says it whose clock is an hour ahead."""
    now = time.time() + 3_600
    at = formatdate(now + seconds, usegmt=True)
    return {"retry-after": at, "date": formatdate(now, usegmt=True)}


WAITS: dict[str, dict[str, str]] = {
    "seconds": {"retry-after": "0.05"},
    "ms": {"retry-after-ms": "50"},
    "at once": {"retry-after": "0"},
    "a clock that is ahead": dated(0),
    "openai": {
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "9m0s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "50ms",
    },
}


@pytest.mark.pairwise
@DOORS
@pytest.mark.parametrize("form", WAITS)
@pytest.mark.parametrize("status", [429, 503, 529])
def test_refusals_that_waiting_ends_do_not_end_a_run(
    server: Server, form: str, status: int, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    server.script = lambda r, i: ANSWER if i >= 8 else Reply(error=status, headers=WAITS[form])
    text, spent = door(server.model(), Budget(tokens=4_000))
    assert "erosion" in text
    assert spent == server.settled().served


def test_what_one_run_learns_of_a_limit_the_next_one_waits_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves_from: list[float] = []

    def script(request: dict[str, Any], i: int) -> Reply:
        if not serves_from:
            serves_from.append(time.monotonic() + 0.5)
        if time.monotonic() < serves_from[0]:
            return Reply(error=429, retry_after=0.6)
        return ANSWER

    server.script = script
    with pytest.raises(NoAnswer, match="HTTP 429"):
        by_graph(server.model(), Budget(tokens=1_000), strategy="single")
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    by_graph(server.model(), Budget(tokens=1_000), strategy="single")
    assert [call.refused for call in server.calls] == [True, False]


def test_refusals_under_way_side_by_side_count_once_and_those_that_follow_each_once() -> None:
    """However the requests overlap, the wait grows."""
    known = learned.Learned()
    sent = [time.monotonic()] * 2
    for turn in range(8):
        known.put_off(0.0, sent[turn % 2])
        sent[turn % 2] = time.monotonic()
    assert known.streak == 4


# --- calls that are given up


async def given_up(model: BaseChatModel) -> None:
    """A call that is cancelled while it waits for a server that has refused it."""
    call = asyncio.create_task(model.ainvoke("Why?"))
    await auntil(lambda: learned.learned(model).until)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    learned.forget()


def test_a_tools_call_that_is_given_up_while_it_waits_costs_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    server.script = lambda request, i: Reply(error=429, headers={"retry-after": "20"})
    payer = AgentPayer(Account({"tokens": 3_000}), "tool")
    with paying_from(payer):
        asyncio.run(given_up(metered(server.model())))
    assert payer.account.left() == {"tokens": 3_000}
    assert payer.account.spent["calls"] == server.settled().served == 0


def test_a_drafts_call_that_is_given_up_while_it_waits_costs_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    server.script = lambda request, i: (
        ANSWER if i else Reply(error=429, headers={"retry-after": "20"})
    )

    def drafter(model: BaseChatModel) -> RunnableLambda[Any, str]:
        async def draft(state: Any) -> str:
            if not server.calls:
                await given_up(model)
            return str((await model.ainvoke(state["messages"])).text)

        return RunnableLambda(draft)

    budget: Any = {"budget": Budget(tokens=3_000), "strategy": "single"}
    app = create_anytime_graph(server.model(), drafter=drafter, **budget).compile()
    out = asyncio.run(app.ainvoke(Q))
    assert out["best"]["answer"] == "erosion"
    assert (out["spent"]["calls"], out["spent"]["tokens"]) == (1, server.settled().served)


# --- the size, of which the refusal has no word

SILENT = [
    (400, ""),
    (400, "too large"),
    (413, ""),
    (413, "Payload Too Large"),
    (422, "Bad request"),
]


def sized(request: dict[str, Any]) -> tuple[int, int]:
    """Words of the prompt, and the cap."""
    prompt = sum(len(said(message["content"]).split()) for message in request["messages"]) + 10
    return prompt, request["max_completion_tokens"]


def within(
    most: int, status: int, says: str, **reply: Any
) -> Callable[[dict[str, Any], int], Reply]:
    """A server that refuses a prompt and a cap that are more than this together."""

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(error=status, says=says) if sum(sized(request)) > most else ANSWER

    return script


def forms(server: Server) -> list[tuple[str, int | None]]:
    """The requests that were refused, as far as their seeds do not make them differ."""
    return [(call.text, call.limit) for call in server.calls if call.refused]


@pytest.mark.pairwise(3)
@DOORS
@pytest.mark.parametrize(("status", "says"), SILENT)
def test_a_refusal_without_a_word_of_the_size_is_followed_by_a_smaller_request(
    server: Server, status: int, says: str, door: Door
) -> None:
    server.script = within(4_000, status, says)
    text, spent = door(server.model(), Budget(tokens=20_000))
    assert "erosion" in text
    assert spent == server.settled().served
    refused = [(has_system(call.request), call.limit) for call in server.calls if call.refused]
    assert 0 < len(refused) == len(set(refused)) <= 4
    served = [call.limit or 0 for call in server.calls if not call.refused]
    assert max(served) > 1_000, "it is not made smaller than needed"
    for _ in range(2):
        door(server.model(), Budget(tokens=20_000))
    asked = len(server.calls)
    door(server.model(), Budget(tokens=20_000))
    assert not any(call.refused for call in server.calls[asked:]), "it is learned"


@pytest.mark.pairwise(3)
@DOORS
@pytest.mark.parametrize(("status", "says"), [*SILENT, (400, "Unsupported value: 'temperature'")])
def test_what_a_server_refuses_in_every_form_is_asked_once_in_each(
    server: Server, status: int, says: str, door: Door
) -> None:
    server.script = lambda request, i: Reply(error=status, says=says)
    with pytest.raises((NoAnswer, APIStatusError), match=str(status)) as failure:
        door(server.model(), Budget(tokens=20_000))
    if isinstance(failure.value, NoAnswer):
        assert failure.value.spent["tokens"] == 0
    known = [(repr(call.request["messages"]), call.limit) for call in server.calls]
    assert len(known) == len(set(known)) <= 24


@pytest.mark.parametrize(("status", "says"), SILENT)
def test_where_the_prompt_is_too_large_fewer_examples_are_shown_and_the_answer_in_hand_stays(
    server: Server, status: int, says: str
) -> None:
    answers = count()

    def script(request: dict[str, Any], i: int) -> Reply:
        if sized(request)[0] > 250:
            return Reply(error=status, says=says)
        filler = " ".join(["pebble"] * 150)
        return Reply(f"{filler} <answer>try {next(answers)} {filler}</answer>", piece=50)

    server.script = script
    scores = iter([0.4, *(n / 1_000 for n in range(1, 400))])
    app = create_anytime_graph(
        server.model(),
        budget=Budget(tokens=20_000),
        strategy="pdp",
        scorer=lambda question, answer: next(scores),
    ).compile()
    out = app.invoke(Q, {"recursion_limit": 3_000})
    assert out["best"]["score"] == 0.4
    assert out["spent"]["tokens"] == server.settled().served
    refused = forms(server)
    assert 0 < len(refused) == len(set(refused))
    first = next(i for i, call in enumerate(server.calls) if call.refused)
    taught = [
        c for c in server.calls[first:] if not c.refused and c.prompt > server.calls[0].prompt
    ]
    assert taught, "smaller prompts that show something are made and taken"


@pytest.mark.parametrize(("status", "says"), SILENT)
def test_calls_side_by_side_do_not_repeat_what_the_first_of_them_was_refused(
    server: Server, status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_TRIAL", 90.0)
    server.script = lambda r, i: Reply(error=status, says=says) if i == 0 else ANSWER
    by_graph(server.model(), Budget(tokens=20_000), strategy="best_of_n")
    (first,) = [call.limit or 0 for call in server.calls if call.refused]
    siblings = [call for call in server.calls[1:4] if has_system(call.request)]
    assert all(call.limit in (first, first // 2) for call in siblings)
    assert sum(call.limit == first for call in siblings) == 0


@pytest.mark.parametrize(("refused", "taken"), [(4, 5), (5, 4)])
def test_what_siblings_are_sent_does_not_depend_on_which_of_them_is_first(
    refused: int, taken: int
) -> None:
    """Of the fifth and the sixth draft, which have the same prompt and cap, one is refused. One after the other,
    the sixth could know what became of the fifth; side by side it cannot."""
    sent = []
    for at_once in (1, 4):
        with serving() as server:
            server.script = lambda request, i: (
                Reply(error=413)
                if request["seed"] == refused and request["max_completion_tokens"] > 8_000
                else ANSWER
            )
            scores = count(1)
            graph = create_anytime_graph(
                server.model(seed=0),
                budget=Budget(tokens=20_000, calls=7),
                strategy="leap",
                scorer=lambda question, answer, scores=scores: next(scores) / 100,
            )
            graph.compile().invoke(Q, {"max_concurrency": at_once})
            sent.append(sorted((call.request["seed"], call.limit) for call in server.calls))
    assert sent[0] == sent[1]
    caps = {seed: [cap or 0 for of, cap in sent[0] if of == seed] for seed in (refused, taken)}
    assert (len(caps[refused]), len(caps[taken])) == (2, 1)
    assert max(caps[refused]) == max(caps[taken]) > 8_000


def test_one_lone_refusal_teaches_nothing_of_the_size(server: Server) -> None:
    server.script = lambda r, i: Reply(error=413) if i == 0 else ANSWER
    by_graph(server.model(), Budget(tokens=20_000), strategy="single")
    asked = len(server.calls)
    by_graph(server.model(), Budget(tokens=20_000), strategy="single")
    assert server.calls[asked].limit == server.calls[0].limit


@pytest.mark.parametrize(("status", "says"), SILENT)
def test_an_agents_last_call_is_smaller_than_what_was_refused_without_a_word(
    server: Server, status: int, says: str
) -> None:
    def fetch(url: str) -> str:
        """Fetch a page."""
        return "Erosion bends rivers. " * 6_000

    def script(request: dict[str, Any], i: int) -> Reply:
        if i == 0:
            return Reply("", tools=[("fetch", {"url": "r"})])
        return within(4_000, status, says)(request, i)

    server.script = script
    middleware = [TokenBudgetMiddleware(Budget(tokens=100_000))]
    out = create_agent(server.model(max_tokens=500), [fetch], middleware=middleware).invoke(Q)
    assert "erosion" in out["messages"][-1].text
    assert out["spent"]["tokens"] == server.settled().served
    assert len(forms(server)) == len({*forms(server)})


@pytest.mark.parametrize(("status", "says"), SILENT)
def test_a_middleware_that_tries_again_sends_no_form_twice(
    server: Server, status: int, says: str
) -> None:
    server.script = lambda r, i: Reply(error=status, says=says)
    again = ModelRetryMiddleware(max_retries=2, initial_delay=0, on_failure="error")
    middleware = [TokenBudgetMiddleware(Budget(tokens=20_000)), again]
    with pytest.raises(APIStatusError, match=str(status)):
        create_agent(server.model(), [], middleware=middleware).invoke(Q)
    assert len(forms(server)) == len({*forms(server)})


AZURE = {"message": "The response was filtered", "code": "content_filter", "param": "prompt"}
INNER = {"message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
XAI = {"code": "no permission", "error": "Content violates usage guidelines. Model: grok-3"}
UNUSED = {"message": "it is no JSON", "code": "json_validate_failed", "failed_generation": "{"}


@pytest.mark.parametrize("strategy", ["single", "best_of_n", "pdp"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": AZURE}),
        (400, {"error": INNER}),
        (400, {"error": {"message": "Content Exists Risk"}}),
        (403, XAI),
    ],
)
def test_a_prompt_that_a_filter_has_read_is_paid_and_not_sent_again(
    server: Server, strategy: str, status: int, body: Json
) -> None:
    """What the provider bills is the prompt; nothing was written."""
    server.script = lambda request, i: Reply(error=status, says=body)
    app = create_anytime_graph(server.model(), budget=Budget(tokens=4_000), strategy=strategy)
    with pytest.raises(NoAnswer) as failure:
        app.compile().invoke(Q, {"max_concurrency": 1})
    spent = failure.value.spent
    assert spent["calls"] == len(server.calls) <= 4
    assert spent["tokens"] == spent["input_tokens"] > 0
    assert failure.value.stop_reason.startswith("blocked: ") or status == 403


def test_a_reply_that_its_provider_throws_away_is_paid(server: Server) -> None:
    server.script = lambda request, i: Reply(error=400, says={"error": UNUSED}) if not i else ANSWER
    app = create_anytime_graph(server.model(), budget=Budget(tokens=4_000), strategy="best_of_n")
    out = app.compile().invoke(Q, {"max_concurrency": 1})
    assert out["best"]["answer"] == "erosion"
    assert out["spent"]["calls"] == len(server.calls)
    assert out["spent"]["output_tokens"] > sum(call.output for call in server.calls)


def test_what_a_refusal_repeats_of_the_prompt_is_no_filter(server: Server) -> None:
    """It is refused for its form, so it costs nothing, and is sent in another one."""
    says = "unsupported: system role in 'content violates the content_filter'"
    server.script = lambda request, i: (
        Reply(error=400, says=says) if request["messages"][0]["role"] == "system" else ANSWER
    )
    app = create_anytime_graph(server.model(), budget=Budget(tokens=4_000), strategy="single")
    out = app.compile().invoke(Q)
    assert out["best"]["answer"] == "erosion"
    assert out["spent"]["tokens"] == server.served
