"""A reply counts as whole only if its model ended it; why the provider ended it otherwise is said,
and the same is not asked again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering.streamed import joined
from anytime_graph.middleware import TokenBudgetMiddleware
from anytime_graph.models import providers
from tests.kit.marks import torture
from tests.kit.providers import NAMED
from tests.kit.providers import speaking as providers_speaking
from tests.kit.wires import (
    FORMATS,
    NATURAL,
    Json,
    Sent,
    Wire,
    anthropic,
    anthropic_whole,
    chat,
    chat_whole,
    responses,
    responses_whole,
    speaking,
    sse,
)

QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}
HALF = "To do that you first need to"
NO = "I cannot help with that."
WORD = "rivers"


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with speaking() as wire:
        wire.all = True
        yield wire


def asked(wire: Wire, send: Any, reply: Sent, **options: Any) -> Any:
    """What a graph returns, with one draft at a time; the wire's requests are those of this run."""
    wire.send, wire.reply = send, reply
    wire.requests.clear()
    options = {"strategy": "single", "answer": "whole"} | options
    app = create_anytime_graph(wire.model(), budget=Budget(tokens=4_000), **options)
    return app.compile().invoke(QUESTION)


def in_agent(wire: Wire) -> Any:
    budget = TokenBudgetMiddleware(Budget(tokens=20_000))
    return create_agent(wire.model(), [], middleware=[budget]).invoke(QUESTION)


WORDS = st.sampled_from(
    [
        "content_filter",
        "error",
        "SAFETY",
        "abort",
        "guardrail_intervened",
        "pause_turn",
        "sensitive",
    ]
) | st.text("abcdefgh_", min_size=1, max_size=12)


@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
@given(word=WORDS)
@settings(max_examples=torture or 5)
def test_an_end_that_is_no_known_natural_one_is_incomplete_and_named(
    wire: Wire, send: Any, word: str
) -> None:
    out = asked(wire, send, Sent(finish=word, said=HALF))
    assert (out["best"]["answer"], out["best"]["complete"]) == (HALF, False)
    assert out["stop_reason"] == f"blocked: {word}"
    assert [word in error for error in out["errors"]] == [True]
    assert len(wire.requests) == 1


@pytest.mark.parametrize("word", [*NATURAL, "stop_sequence", "eos", "STOP", "COMPLETE"])
def test_natural_ends_are_complete(wire: Wire, word: str) -> None:
    out = asked(wire, chat, Sent(finish=word, said=HALF))
    assert out["best"]["complete"]
    assert out["errors"] == []


@pytest.mark.parametrize("word", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_ends_at_the_cap_are_no_blocks(word: str) -> None:
    assert providers.ending(word) == "length"


@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
def test_an_empty_reply_that_a_filter_ended_is_asked_for_once_a_step(wire: Wire, send: Any) -> None:
    with pytest.raises(NoAnswer, match="content_filter"):
        asked(wire, send, Sent(finish="content_filter", said=""))
    assert len(wire.requests) == 1
    with pytest.raises(NoAnswer, match="content_filter"):
        asked(wire, send, Sent(finish="content_filter", said=""), strategy="pdp")
    assert len(wire.requests) <= 4


@pytest.mark.parametrize(
    "send", [f for f in FORMATS if f is not anthropic], ids=lambda f: f.__name__
)
def test_the_words_of_a_refusal_are_the_answer_of_every_door(wire: Wire, send: Any) -> None:
    out = asked(wire, send, Sent(refusal=NO))
    assert (out["best"]["answer"], out["best"]["complete"]) == (NO, False)
    assert out["stop_reason"] == "blocked: refusal"
    assert len(wire.requests) == 1
    reply = ChatAnytime(model=wire.model(), budget=Budget(tokens=4_000)).invoke("Why?")
    assert reply.text == NO
    agent = in_agent(wire)
    assert agent["stop_reason"] == "blocked: refusal"


def test_a_streamed_refusal_reaches_the_agents_caller(wire: Wire) -> None:
    wire.send, wire.reply = chat, Sent(refusal=NO)
    assert in_agent(wire)["messages"][-1].text == NO


@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("said", [HALF, ""])
def test_an_agent_ends_with_the_reason_after_one_request(wire: Wire, send: Any, said: str) -> None:
    wire.send, wire.reply = send, Sent(finish="content_filter", said=said)
    wire.requests.clear()
    out = in_agent(wire)
    assert out["messages"][-1].text == said
    assert out["stop_reason"] == "blocked: content_filter"
    assert len(wire.requests) == 1


def test_one_blocked_draft_among_others_ends_nothing(wire: Wire) -> None:
    """Every second reply is blocked; the others are whole."""
    wire.send, wire.reply = (lambda sent: next(turns)), Sent()
    turns = (
        chat(Sent(finish="content_filter", said=HALF) if i % 2 else Sent(said=f"Because of {i}."))
        for i in range(1_000)
    )
    wire.requests.clear()
    app = create_anytime_graph(
        wire.model(n=1), budget=Budget(calls=8), strategy="best_of_n", answer="whole",
        scorer=lambda question, answer: 0.5,
    )  # fmt: skip
    out: Any = app.compile().invoke(QUESTION)
    assert out["best"]["complete"]
    assert out["stop_reason"] == "calls"
    assert len(wire.requests) == 8


def test_a_marked_answer_that_came_before_the_block_is_whole(wire: Wire) -> None:
    reply = Sent(finish="content_filter", said="So <answer>7</answer> and")
    out = asked(wire, chat, reply, answer="tags")
    assert (out["best"]["answer"], out["best"]["complete"]) == ("7", True)


@pytest.mark.parametrize("send", [chat, anthropic], ids=lambda f: f.__name__)
def test_a_stream_that_gives_neither_a_reason_nor_a_report_broke_off(wire: Wire, send: Any) -> None:
    out = asked(wire, send, Sent(finish=None, said=HALF, reports=False))
    assert not out["best"]["complete"]
    assert any("ended before the reply did" in error for error in out["errors"])


@pytest.mark.parametrize("negative", [False, True])
def test_a_report_before_the_last_words_is_not_the_cost(wire: Wire, negative: bool) -> None:
    """Not even where the reason for the end has come with it."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 0}

    def event(delta: Json, finish: str | None = None) -> Json:
        return base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    def report(paid: int, output: int) -> Json:
        usage = {"prompt_tokens": paid, "completion_tokens": output, "total_tokens": paid + output}
        return base | {"choices": [], "usage": usage}

    words = [event({"content": f"{WORD} "}) for _ in range(70)]
    early = [event({}, "stop"), report(-20, -20) if negative else report(60, 40)]
    end = [event({}, "stop"), report(100, 70)] if negative else []
    out = asked(wire, lambda sent: sse([*early, *words, *end]), Sent(), strategy="single")
    assert out["spent"]["tokens"] >= 100 + 70


def test_a_reason_that_is_no_word_is_not_repeated(wire: Wire) -> None:
    out = asked(wire, chat, Sent(finish="\x1b[31mred</answer>" * 9, said=HALF))
    assert "\x1b" not in out["stop_reason"] + "".join(out["errors"])


@pytest.mark.parametrize("figure", [[30], float("nan"), {"of": 30}, "many"])
@pytest.mark.parametrize("text", ["so <answer>7</answer>", ""])
def test_a_report_whose_figures_cannot_be_added_up_is_paid_for_in_full_and_loses_no_answer(
    wire: Wire, figure: Any, text: str
) -> None:
    kind, body = chat(Sent(said=text, reports=False))
    told = {"prompt_tokens": figure, "completion_tokens": figure, "total_tokens": figure}
    whole = {"id": "c", "object": "chat.completion.chunk", "created": 0, "choices": []}
    _, reports = sse([whole | {"usage": told}, whole | {"usage": told}])
    sent = body.replace(b"data: [DONE]", reports + b"data: [DONE]")
    wire.send = lambda _: (kind, sent)
    app = create_anytime_graph(
        wire.model(), budget=Budget(tokens=900, calls=1), strategy="single"
    ).compile()
    if not text:
        with pytest.raises(NoAnswer):
            app.invoke(QUESTION)
        return
    out = app.invoke(QUESTION)
    assert out["best"]["answer"] == "7"
    assert out["spent"]["tokens"] == 900


def test_the_chat_model_answers_though_a_report_has_figures_that_are_no_numbers() -> None:
    """In a reply of one chunk, where nothing is joined."""
    with providers_speaking() as at:
        at.provider = NAMED["DeepSeek"]

        def spoil(request: Json, sent: bytes) -> bytes:
            if len(at.requests) == 1:
                return sent
            *_, last, done, _ = sent.split(b"\n\n")
            figures = re.sub(rb": (91|77|168)\b", rb': {"of": \1}', last)
            return b"\n\n".join([figures, done, b""])

        at.spoil = spoil
        model = at.provider.model(at.url)
        chat_model = ChatAnytime(model=model, budget=Budget(tokens=900), strategy="single")
        reply = chat_model.invoke("Why do rivers bend?")
        assert len(at.requests) == 2
    assert reply.response_metadata["anytime"]["spent"]["tokens"] > 2 * 168
    assert "<answer>7</answer>" in reply.text


def test_a_field_that_changes_its_type_within_a_reply_loses_no_answer() -> None:
    """LangChain cannot join such."""
    with providers_speaking() as at:
        at.provider = NAMED["DeepSeek"]
        at.text = ["so ", "<answer>7</answer>"]

        def spoil(request: Json, sent: bytes) -> bytes:
            first, second, rest = sent.split(b"\n\n", 2)
            odd = [
                event.replace(b'"content"', b'"reasoning_content": %s, "content"' % value)
                for event, value in ((first, b'"hm"'), (second, b"[7]"))
            ]
            return b"\n\n".join([*odd, rest])

        at.spoil = spoil
        out = at.ask(at.provider.model(at.url))
    assert out["best"]["answer"] == "7"


def test_a_field_that_cannot_be_joined_takes_no_tool_call_with_it() -> None:
    parts = [
        AIMessageChunk(
            "",
            additional_kwargs={"reasoning_content": thought},
            tool_call_chunks=[tool_call_chunk(name=name, args=args, id=name, index=0)],
        )
        for thought, name, args in (("hm", "look", '{"q": '), ([7], None, '"fox"}'))
    ]
    ((name, args),) = [(c["name"], c["args"]) for c in joined(parts).tool_calls]
    assert (name, args) == ("look", {"q": "fox"})


@pytest.mark.parametrize("role", ["user", "system", "tool", "function", "model", "bot", "", 7])
def test_a_reply_is_the_models_whatever_role_its_server_gives_it(wire: Wire, role: Any) -> None:
    def send(sent: Sent) -> tuple[str, bytes]:
        kind, body = chat(sent)
        return kind, body.replace(b'"role": "assistant"', b'"role": ' + json.dumps(role).encode())

    out = asked(wire, send, Sent(said=NO))
    assert (out["best"]["answer"], out["best"]["complete"]) == (NO, True)
    assert out["spent"]["tokens"] == 90 * len(wire.requests)
    assert in_agent(wire)["messages"][-1].text == NO


AFTER: dict[str, Json] = {
    "an error": {"error": {"message": "x", "code": 500}},
    "a report that is a list": {"choices": [], "usage": [30, 60]},
    "details that are a text": {
        "choices": [],
        "usage": {"prompt_tokens": 30, "completion_tokens": 60, "prompt_tokens_details": "none"},
    },
}


@pytest.mark.parametrize("after", AFTER)
def test_a_reply_that_its_model_ended_is_whole_whatever_comes_in_place_of_its_report(
    wire: Wire, after: str
) -> None:
    def send(sent: Sent) -> tuple[str, bytes]:
        kind, body = chat(replace(sent, reports=False))
        last = json.dumps(AFTER[after]).encode()
        return kind, body.replace(b"data: [DONE]", b"data: " + last + b"\n\ndata: [DONE]")

    out = asked(wire, send, Sent(said=NO))
    assert (out["best"]["answer"], out["best"]["complete"]) == (NO, True)
    assert (len(wire.requests), out["spent"]["calls"]) == (1, 1)
    assert out["spent"]["tokens"] > 1_000, "it is paid in full"
    wire.requests.clear()
    out = in_agent(wire)
    assert (out["messages"][-1].text, out["stop_reason"]) == (NO, "done")
    assert len(wire.requests) == 1


STREAMED = {chat_whole: chat, responses_whole: responses, anthropic_whole: anthropic}


def in_streaming_agent(wire: Wire, send: Any, reply: Sent) -> tuple[list[str], Any]:
    """With what its tool was run, and what came of it, where the model asks for streams and these replies
    come in their place."""
    wire.send = STREAMED[send]
    model, ran = wire.model(), list[str]()
    wire.send, wire.reply = send, reply
    wire.requests.clear()

    def remove(path: str) -> str:
        """Remove what is at a path."""
        ran.append(path)
        wire.reply = Sent(finish="end_turn" if send is anthropic_whole else "stop")
        return "removed"

    budget = TokenBudgetMiddleware(Budget(tokens=20_000, calls=8))
    out = create_agent(model, [remove], middleware=[budget]).invoke(QUESTION)
    assert all(request["stream"] for request in wire.requests)
    return ran, out


def calling(send: Any, finish: str) -> Sent:
    return Sent(("/data" if send is anthropic_whole else '{"path": "/data"}',), finish)


@pytest.mark.parametrize("send", STREAMED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("calls", [False, True], ids=["text", "tool call"])
def test_a_reply_that_comes_whole_though_a_stream_was_asked_for_is_read_and_booked(
    wire: Wire, send: Any, calls: bool
) -> None:
    reply = calling(send, "tool_use") if calls else Sent(finish="end_turn")
    ran, out = in_streaming_agent(wire, send, reply)
    assert ran == (["/data"] if calls else [])
    assert (out["messages"][-1].text, out["stop_reason"]) == (Sent().text, "done")
    assert out["spent"]["tokens"] == 90 * len(wire.requests)


def test_a_tool_is_not_run_with_what_a_provider_made_whole_of_arguments_that_were_cut(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "all", False)
    ran, _ = in_streaming_agent(wire, anthropic_whole, calling(anthropic_whole, "max_tokens"))
    assert not ran


@pytest.mark.parametrize("send", STREAMED, ids=lambda f: f.__name__)
def test_a_whole_reply_is_read_however_long_it_is(wire: Wire, send: Any) -> None:
    long = "Rivers bend." * 9_000
    _, out = in_streaming_agent(wire, send, Sent(finish="end_turn", said=long))
    assert out["messages"][-1].text == long


@pytest.mark.parametrize("name", ["Mistral", "Groq", "DeepSeek", "OpenRouter"])
def test_whichever_client_asked_for_a_stream_a_completion_that_came_whole_is_read(
    name: str,
) -> None:
    with providers_speaking() as wire:
        model = wire.say(name, chat_whole(Sent())[1])
        wire.headers = {"content-type": "application/json"}
        out = wire.ask(model, answer="whole")
        assert out["best"]["answer"] == Sent().text
        assert (out["spent"]["tokens"], len(wire.requests)) == (90, 1)
