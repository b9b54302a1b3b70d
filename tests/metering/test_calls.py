"""P5: no tool is run with arguments that its model did not finish, whatever a reply's end is called
and in whichever wire format it came; and none that came whole is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering import tool_calls as calls
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import torture

Json = dict[str, Any]
QUESTION: Any = {"messages": [("user", "Clean up.")]}
DONE = "All is clean."

numbers = count()

NATURAL = ["stop", "tool_calls", "end_turn", "tool_use", "completed"]
FINISHES = [*NATURAL, "length", "content_filter", "error", "insufficient_system_resource", None]


@dataclass(frozen=True)
class Sent:
    """A reply. pieces: of the arguments of its one tool call; None: it says that it is done.
    finish: why it ends; None: that is not said. said: text before the call."""

    pieces: tuple[str, ...] | None
    finish: str | None = "stop"
    said: str = ""

    @property
    def arguments(self) -> str:
        return "".join(self.pieces or ())


# --- the wire formats


def sse(events: list[Json], end: bytes = b"") -> tuple[str, bytes]:
    kinds = (f"event: {e['type']}\n" if "type" in e else "" for e in events)
    parts = zip(kinds, events, strict=True)
    body = b"".join(f"{kind}data: {json.dumps(event)}\n\n".encode() for kind, event in parts)
    return "text/event-stream", body + end


def whole(body: Json) -> tuple[str, bytes]:
    return "application/json", json.dumps(body).encode()


def chat(sent: Sent) -> tuple[str, bytes]:
    def event(delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion.chunk", "created": 0, "choices": [choice]}

    events = [event({"role": "assistant", "content": DONE if sent.pieces is None else sent.said})]
    for i, piece in enumerate(("", *(sent.pieces or ())) if sent.pieces is not None else ()):
        begun = {"index": 0} if i else {"index": 0, "id": "call_0", "type": "function"}
        function = {"arguments": piece} if i else {"name": "remove", "arguments": piece}
        events.append(event({"tool_calls": [begun | {"function": function}]}))
    events += [event({}, sent.finish)] if sent.finish else []
    usage = {"prompt_tokens": 90, "completion_tokens": 60, "total_tokens": 150}
    return sse([*events, event({}) | {"choices": [], "usage": usage}], b"data: [DONE]\n\n")


def chat_whole(sent: Sent) -> tuple[str, bytes]:
    function = {"name": "remove", "arguments": sent.arguments}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    message: Json = {"role": "assistant", "content": DONE if sent.pieces is None else sent.said}
    message |= {} if sent.pieces is None else {"tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": sent.finish}
    usage = {"prompt_tokens": 90, "completion_tokens": 60, "total_tokens": 150}
    return whole({"id": "c", "object": "chat.completion", "created": 0} | {
        "model": "m", "choices": [choice], "usage": usage,
    })  # fmt: skip


def response(sent: Sent, output: list[Json]) -> Json:
    ended = sent.pieces is None or sent.finish in NATURAL
    status: Json = {"status": "completed" if ended else "incomplete"}
    if not ended:
        reason = "max_output_tokens" if sent.finish == "length" else sent.finish
        status |= {"incomplete_details": {"reason": reason}}
    usage = {"input_tokens": 90, "output_tokens": 60, "total_tokens": 150}
    usage |= {"input_tokens_details": {"cached_tokens": 0}}  # type: ignore[dict-item]
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}  # type: ignore[dict-item]
    return {"id": f"resp_{next(numbers)}", "object": "response", "created_at": 0, "model": "m", "tools": []} | {
        "parallel_tool_calls": True, "tool_choice": "auto", "output": output, "usage": usage,
    } | status  # fmt: skip


def responses(sent: Sent) -> tuple[str, bytes]:
    at: Json = {"output_index": 1, "item_id": "fc_1"}
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_0", "name": "remove"}
    says: Json = {"output_index": 0, "content_index": 0, "item_id": "m", "logprobs": []}
    begun = {"status": "in_progress", "usage": None}
    events: list[Json] = [
        {"type": "response.created", "response": response(sent, []) | begun},
        {
            "type": "response.output_text.delta",
            "delta": DONE if sent.pieces is None else sent.said,
        }
        | says,
    ]
    if sent.pieces is not None:
        added = {"type": "response.output_item.added", "item": item | {"arguments": ""}, **at}
        kind = "response.function_call_arguments.delta"
        events += [added, *({"type": kind, "delta": piece, **at} for piece in sent.pieces)]
    if sent.finish is not None:
        last = response(sent, [])
        events.append({"type": f"response.{last['status']}", "response": last})
    return sse([event | {"sequence_number": i} for i, event in enumerate(events)])


def responses_whole(sent: Sent) -> tuple[str, bytes]:
    text = {"type": "output_text", "text": DONE if sent.pieces is None else sent.said}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    output: list[Json] = [message | {"content": [text | {"annotations": []}]}]
    if sent.pieces is not None:
        call = {"type": "function_call", "id": "fc_1", "call_id": "call_0", "name": "remove"}
        output.append(call | {"arguments": sent.arguments})
    return whole(response(sent, output))


def anthropic(sent: Sent) -> tuple[str, bytes]:
    usage = {"input_tokens": 90, "output_tokens": 1}
    message: Json = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    said = DONE if sent.pieces is None else sent.said
    text, call = {"type": "text", "text": ""}, {"type": "tool_use", "id": "toolu_0"}
    events: list[Json] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": text},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": said},
        },
        {"type": "content_block_stop", "index": 0},
    ]
    if sent.pieces is not None:
        block = call | {"name": "remove", "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in sent.pieces]
        events.append({"type": "content_block_start", "index": 1, "content_block": block})
        events += [{"type": "content_block_delta", "index": 1, "delta": d} for d in deltas]
        events.append({"type": "content_block_stop", "index": 1})
    reason = "max_tokens" if sent.finish == "length" else sent.finish
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"input_tokens": 90, "output_tokens": 60},
        }
    )
    return sse([*events, {"type": "message_stop"}])


@dataclass
class Wire:
    """A loopback endpoint. reply: what requests with tools are answered with, as long as no tool was
    run."""

    url: str
    send: Callable[[Sent], tuple[str, bytes]] = chat
    reply: Sent = field(default_factory=lambda: Sent(None))
    requests: list[Json] = field(default_factory=list)

    def model(self) -> Any:
        if self.send is anthropic:
            return ChatAnthropic(model="claude-m", base_url=self.url, api_key="none", max_retries=0)  # type: ignore[call-arg,arg-type]
        return ChatOpenAI(
            model="m",
            base_url=self.url,
            api_key="none",  # type: ignore[arg-type]
            disable_streaming=self.send in (chat_whole, responses_whole),
            use_responses_api=self.send in (responses, responses_whole),
        )


FORMATS = (chat, chat_whole, responses, responses_whole, anthropic)


@contextmanager
def speaking() -> Iterator[Wire]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            wire.requests.append(request)
            calling = request.get("tools") and "removed" not in json.dumps(request)
            kind, body = wire.send(wire.reply if calling else Sent(None))
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    wire = Wire(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield wire
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


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


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats(allow_nan=False),
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
    valid call; and of a whole completion it does not tell whether it had any."""
    if not sent.arguments:
        unsaid = send is chat_whole and sent.finish is None
        ended = unsaid or (sent.finish in NATURAL and send is not responses_whole)
        return [{"path": None, "more": None}] if ended else []
    try:
        return [arguments] if json.loads(sent.arguments) == arguments else []
    except ValueError:
        return []


@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
@given(case=replies())
@settings(max_examples=torture or 20)
def test_an_agent_runs_its_tool_with_the_arguments_as_sent_or_not_at_all(
    wire: Wire, send: Any, case: tuple[Json, Sent]
) -> None:
    arguments, sent = case
    wire.send, wire.reply, shed = send, sent, Shed()
    out = in_agent(wire, shed)
    assert shed.ran == due(arguments, sent, send)
    assert out["messages"][-1].text == DONE
    assert (out["stop_reason"] == "done") == bool(shed.ran)


@pytest.mark.parametrize("send", FORMATS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("finish", FINISHES, ids=str)
def test_half_of_the_arguments_reach_no_tool_by_any_way(
    wire: Wire, send: Any, finish: str | None
) -> None:
    arguments = {"path": "/data/old/tmp", "more": 1}
    text = json.dumps(arguments)
    for come in (text[:15], text):
        wire.send, wire.reply = send, Sent((come[:12], come[12:]), finish)
        ran: list[Any] = []
        for way in (in_agent, in_draft, in_chat):
            shed = Shed()
            try:
                out = way(wire, shed)
            except NoAnswer:
                out = {}
            ran.append(out if isinstance(out, list) else shed.ran)
        if come != text:
            assert all(not each for each in ran)
        elif finish != "length":
            assert ran == [[arguments]] * 3
        else:  # a draft that filled its room, and a reply that did, are not gone on from
            assert ran[0] == [arguments]


GARBLED = [
    '{"path": "/data"}{"path": "/data"}',
    '{"path": "/data"}]',
    '{"path": "/data"} and so on',
    '{"path": "/data",}',
]
NO_OBJECTS = ['["/data"]', '"/data"', "null"]
"""Of whole messages, langchain-openai takes none of these, or takes it for no arguments."""


@pytest.mark.parametrize(
    ("send", "text"),
    [
        *((send, text) for send in FORMATS for text in GARBLED),
        *((send, text) for send in (chat, responses, anthropic) for text in NO_OBJECTS),
    ],
)
def test_what_is_no_object_of_arguments_reaches_no_tool(wire: Wire, send: Any, text: str) -> None:
    wire.send, wire.reply = send, Sent((text,), "tool_calls")
    for way in (in_agent, in_draft, in_chat):
        shed = Shed()
        try:
            out = way(wire, shed)
        except NoAnswer:
            out = {}
        assert not shed.ran
        assert not out or isinstance(out, dict)


def test_a_call_that_came_whole_is_made_and_its_broken_neighbour_is_told_of() -> None:
    chunks = [
        AIMessageChunk("", tool_call_chunks=[chunk(0, "a", "remove", '{"path": 1}')]),
        AIMessageChunk("", tool_call_chunks=[chunk(1, "b", "remove", '{"path": "/da')]),
    ]
    message = calls.with_whole_calls(chunks[0] + chunks[1])
    assert [c["args"] for c in message.tool_calls] == [{"path": 1}]
    assert [c["args"] for c in message.invalid_tool_calls] == ['{"path": "/da']
    assert not calls.broken(message)


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
