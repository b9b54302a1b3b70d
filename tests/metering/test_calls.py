"""P5: no tool is run with arguments that its model did not finish, whatever a reply's end is called
and in whichever wire format it came; and none that came whole is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import custom_tool

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering import tool_calls as calls
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import some, torture
from tests.kit.wires import (
    DONE,
    FINISHES,
    FORMATS,
    NATURAL,
    Json,
    Sent,
    Wire,
    anthropic,
    anthropic_whole,
    chat,
    chat_whole,
    freeform,
    freeform_whole,
    responses,
    responses_whole,
    speaking,
)

QUESTION: Any = {"messages": [("user", "Clean up.")]}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with speaking() as wire:
        yield wire


# --- what must hold


class Shed:
    """A tool that notes with which arguments it was run."""

    def __init__(self) -> None:
        self.ran: list[Json] = []

    def tool(self) -> Callable[..., str]:
        def remove(path: Any = None, more: Any = None) -> str:
            """Remove what is at a path."""
            self.ran.append({"path": path, "more": more})
            return "removed"

        return remove


def in_agent(wire: Wire, shed: Shed) -> Json:
    middleware = [TokenBudgetMiddleware(Budget(tokens=20_000, calls=8))]
    out: Json = create_agent(wire.model(), [shed.tool()], middleware=middleware).invoke(QUESTION)
    return out


def in_draft(wire: Wire, shed: Shed) -> Json:
    def drafter(model: Any) -> Any:
        return create_agent(model, [shed.tool()])

    app = create_anytime_graph(
        wire.model(), budget=Budget(calls=3), drafter=drafter, strategy="single"
    )
    out: Json = app.compile().invoke(QUESTION)
    return out


def in_chat(wire: Wire, shed: Shed) -> list[Json]:
    model = ChatAnytime(model=wire.model(), budget=Budget(calls=2)).bind_tools([shed.tool()])
    return [call["args"] for call in model.invoke("Clean up.").tool_calls]


WAYS: list[Any] = [in_agent, in_draft, in_chat]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def replies(draw: st.DrawFn) -> tuple[Json, Sent]:
    """Arguments, and a reply with as much of them as came."""
    arguments = {"path": draw(values), "more": draw(values)}
    text = json.dumps(arguments, ensure_ascii=draw(st.booleans()))
    text = text.encode(errors="replace").decode()
    arguments = json.loads(text)
    come = text[: draw(st.just(len(text)) | st.integers(0, len(text)))]
    cuts = sorted(draw(st.sets(st.integers(0, len(come)), max_size=6)))
    pieces = (come[a:b] for a, b in zip([0, *cuts], [*cuts, len(come)], strict=True))
    finish = draw(st.sampled_from(FINISHES) | st.text("abc_", min_size=1, max_size=9))
    said = draw(st.sampled_from(["", "Let me see. "]))
    return arguments, Sent(tuple(pieces), finish, said)


def due(arguments: Json, sent: Sent, send: Any) -> list[Json]:
    """With what a tool is to be run. To langchain-openai, a whole response without arguments has no
    valid call, and of one that streams it may have left them out; of a whole completion it does not tell
    whether it had any."""
    if not sent.arguments:
        unsaid = send is chat_whole and sent.finish is None
        ended = unsaid or (sent.finish in NATURAL and send not in (responses, responses_whole))
        return [{"path": None, "more": None}] if ended else []
    try:
        return [arguments] if json.loads(sent.arguments) == arguments else []
    except ValueError:
        return []


@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
@given(case=replies())
@settings(max_examples=torture or 10)
def test_an_agent_runs_its_tool_with_the_arguments_as_sent_or_not_at_all(
    wire: Wire, send: Any, case: tuple[Json, Sent]
) -> None:
    arguments, sent = case
    wire.send, wire.reply, shed = send, sent, Shed()
    out = in_agent(wire, shed)
    assert shed.ran == due(arguments, sent, send)
    assert out["messages"][-1].text == DONE
    assert (out["stop_reason"] == "done") == bool(shed.ran)


@pytest.mark.pairwise(5)
@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("finish", FINISHES, ids=str)
def test_half_of_the_arguments_reach_no_tool_by_any_way(
    wire: Wire, send: Any, finish: str | None
) -> None:
    arguments = {"path": "/data/old/tmp", "more": 1}
    text = json.dumps(arguments)
    # of what filled its room or broke off, and such a reply, an agent alone goes on from what is whole
    unfinished = finish == "length" or (finish is None and send is responses)
    for come in (text[:15], text):
        wire.send, wire.reply = send, Sent((come[:12], come[12:]), finish)
        for way in some(WAYS, 3, FORMATS.index(send) + FINISHES.index(finish)):
            shed = Shed()
            try:
                out = way(wire, shed)
            except NoAnswer:
                out = {}
            ran = out if isinstance(out, list) else shed.ran
            if come != text:
                assert not ran
            elif way is in_agent or not unfinished:
                assert ran == [arguments]


GARBLED = [
    '{"path": "/data"}{"path": "/data"}',
    '{"path": "/data"}]',
    '{"path": "/data"} and so on',
    '{"path": "/data",}',
    '{"path": NaN}',
    '{"path": [-Infinity]}',
    '{"path": {"to": 1e999}}',
]
TWICE = ['{"path": "/data", "path": "/data/old"}', '{"path": [{"to": 1, "t\\u006f": 1}]}']
"""Of whole messages, only the Responses API's have them as they were sent."""
NO_OBJECTS = ['["/data"]', '"/data"', "null"]
"""Of whole messages, langchain-openai takes none of these, or takes it for no arguments."""


@pytest.mark.parametrize(
    ("send", "text"),
    [
        *((send, text) for send in FORMATS for text in GARBLED),
        *((send, text) for send in (chat, responses, anthropic) for text in NO_OBJECTS),
        *((send, text) for send in (chat, responses, responses_whole, anthropic) for text in TWICE),
    ],
)
def test_what_is_no_object_of_arguments_reaches_no_tool(wire: Wire, send: Any, text: str) -> None:
    wire.send, wire.reply = send, Sent((text,), "tool_calls")
    for way in some(WAYS, 3, FORMATS.index(send) + (GARBLED + NO_OBJECTS + TWICE).index(text)):
        shed = Shed()
        try:
            out = way(wire, shed)
        except NoAnswer:
            out = {}
        assert not shed.ran
        assert not out or isinstance(out, dict)


@pytest.mark.parametrize("send", [freeform, freeform_whole, anthropic_whole])
@pytest.mark.parametrize("finish", ["tool_use", "max_tokens", "content_filter", "refusal"])
def test_what_no_text_shows_to_be_whole_counts_only_in_a_reply_that_its_model_ended(
    wire: Wire, send: Any, finish: str
) -> None:
    """Free text, and objects that a provider made of what there was."""
    wire.send, wire.reply = send, Sent(("/data",), finish)
    ran: list[str] = []

    def remove(path: str) -> str:
        """Remove what is at a path."""
        ran.append(path)
        return "removed"

    middleware = [TokenBudgetMiddleware(Budget(tokens=20_000, calls=8))]
    tools = [tool(remove) if send is anthropic_whole else custom_tool(remove)]
    create_agent(wire.model(), tools, middleware=middleware).invoke(QUESTION)
    assert ran == (["/data"] if finish == "tool_use" else [])


def test_free_text_of_a_stream_that_broke_off_is_not_run() -> None:
    at = {"index": 0, "id": "a", "name": "remove", "args": '{"__arg1": "/data"}'}
    block = {"type": "custom_tool_call", "call_id": "a", "input": "/data", "index": 0}
    cut: Any = AIMessageChunk([block], tool_call_chunks=[at | {"type": "tool_call_chunk"}])  # type: ignore[arg-type]
    assert calls.broken(calls.with_whole_calls(cut))


def test_a_call_that_came_whole_is_made_and_its_broken_neighbour_is_told_of() -> None:
    chunks = [
        AIMessageChunk("", tool_call_chunks=[chunk(0, "a", "remove", '{"path": 1}')]),
        AIMessageChunk("", tool_call_chunks=[chunk(1, "b", "remove", '{"path": "/da')]),
    ]
    message = calls.with_whole_calls(chunks[0] + chunks[1])
    assert [c["args"] for c in message.tool_calls] == [{"path": 1}]
    assert [c["args"] for c in message.invalid_tool_calls] == ['{"path": "/da']
    assert not calls.broken(message)


def test_a_call_that_did_not_come_whole_leaves_the_content_and_all_else_stays() -> None:
    content: Any = [
        {"type": "text", "text": "Tidying."},
        *({"type": "tool_use", "id": id, "name": "remove", "input": {}} for id in "ab"),
    ]
    parts: Any = [chunk(0, "a", "remove", '{"path": 1}'), chunk(1, "b", "remove", '{"path": "/da')]
    message = calls.with_whole_calls(AIMessageChunk(content, tool_call_chunks=parts))
    assert message.content == content[:2]


def test_a_client_that_tells_nothing_of_a_replys_end_may_call_without_arguments() -> None:
    message = AIMessage("", tool_calls=[{"id": "a", "name": "remove", "args": {}}])
    assert calls.with_whole_calls(message) is message
    cut = message.model_copy(update={"response_metadata": {"finish_reason": "length"}})
    assert calls.broken(calls.with_whole_calls(cut))


def test_fragments_that_no_index_joins_are_no_calls() -> None:
    """Some servers leave the index out: then the start of a call has no arguments."""
    parts = [("remove", ""), (None, '{"path": '), (None, "{}"), (None, "}")]
    chunks = [
        AIMessageChunk("", tool_call_chunks=[chunk(None, name and "a", name, args)])
        for name, args in parts
    ]
    end = AIMessageChunk("", response_metadata={"finish_reason": "tool_calls"})
    message = calls.with_whole_calls(chunks[0] + [*chunks[1:], end])
    assert message.tool_calls == []
    assert calls.broken(message)


@pytest.mark.parametrize("finish", ["tool_calls", "tool_callstool_calls", "length", None])
def test_raw_calls_in_a_message_count_as_they_were_sent(finish: str | None) -> None:
    raw = [
        {"id": "a", "function": {"name": "remove", "arguments": '{"path": 1}'}},
        {"id": "b", "function": {"name": "remove", "arguments": '{"path": "/da'}},
        {"id": "c", "function": {"name": "remove", "arguments": "[]"}},
        {"id": "d", "function": {"name": "remove", "arguments": "{}"}},
    ]
    said = {"finish_reason": finish} if finish else {}
    message = calls.with_whole_calls(
        AIMessage("", additional_kwargs={"tool_calls": raw}, response_metadata=said)
    )
    assert [c["id"] for c in message.tool_calls] == ["a", "d"]
    assert {c["id"] for c in message.invalid_tool_calls} == {"b", "c"}
    assert "tool_calls" not in message.additional_kwargs
    empty = [{"id": "a", "name": "remove", "args": ""}]
    chunked: Any = AIMessageChunk("", tool_call_chunks=empty, response_metadata=said)  # type: ignore[arg-type]
    assert bool(calls.with_whole_calls(chunked).tool_calls) == (finish not in ("length", None))


def chunk(index: int | None, id: str | None, name: str | None, args: str) -> Any:
    return {"index": index, "id": id, "name": name, "args": args, "type": "tool_call_chunk"}
