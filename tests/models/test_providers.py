"""P1, P5 through every provider's real client: its requests carry the cap, one request is one call,
and the books are what the provider reported.

A loopback server answers in each provider's wire format. The table in docs/models.md is made of what
it captured; `python -m tests.models.test_providers` writes it anew.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any, NamedTuple
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel

from anytime_graph import Budget, NoAnswer, Prices, create_anytime_graph
from anytime_graph.models import resolve_model
from tests.kit.places import ROOT

pytestmark = [  # of google-genai with aiohttp, in its own code
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'ClientResponse.json' was never:RuntimeWarning"),
]

Json = dict[str, Any]
Text = list[Any]
QUESTION = {"messages": [("user", "Why do rivers bend?")]}
CAP = 77
TEXT: Text = ["so ", "<answer>7</answer>", " it is"]


class Usage(NamedTuple):
    """What is billed: input with what a cache gave and took in, output with reasoning."""

    input: int = 91
    cached: int = 11
    output: int = CAP
    reasoning: int = 23
    written: int = 0


# --- the wire formats: the events of a streamed reply, and how they are sent


def chat(request: Json, text: Text, used: Usage, last: Json | None = None) -> list[Json]:
    """OpenAI's chat completions: a report only if it is asked for, unless the last chunk has it."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}

    def choice(delta: Json, finish: str | None = None) -> Json:
        return base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    events = [choice({"role": "assistant", "content": piece}) for piece in text]
    events.append(choice({}, "length") | (last or {}))
    if last is None and (request.get("stream_options") or {}).get("include_usage"):
        events.append(base | {"choices": [], "usage": chat_usage(used)})
    return events


def chat_usage(used: Usage) -> Json:
    return {
        "prompt_tokens": used.input,
        "completion_tokens": used.output,
        "total_tokens": used.input + used.output,
        "prompt_tokens_details": {"cached_tokens": used.cached},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning},
    }


def deepseek(request: Json, text: Text, used: Usage) -> list[Json]:
    usage = chat_usage(used) | {"prompt_cache_hit_tokens": used.cached}
    del usage["prompt_tokens_details"]
    return chat(request, text, used, {"usage": usage})


def groq(request: Json, text: Text, used: Usage) -> list[Json]:
    return chat(request, text, used, {"x_groq": {"id": "r", "usage": chat_usage(used)}})


def mistral(request: Json, text: Text, used: Usage) -> list[Json]:
    usage = chat_usage(used)
    del usage["prompt_tokens_details"], usage["completion_tokens_details"]
    return chat(request, text, used, {"usage": usage})


def responses(request: Json, text: Text, used: Usage) -> list[Json]:
    """OpenAI's responses, which xAI speaks too."""
    at = {"output_index": 0, "content_index": 0, "item_id": "m"}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "in_progress"}
    whole = {"id": "resp_1", "object": "response", "created_at": 0, "model": "m", "tools": []}
    whole |= {"parallel_tool_calls": True, "tool_choice": "auto", "output": []}
    usage = {
        "input_tokens": used.input,
        "input_tokens_details": {"cached_tokens": used.cached},
        "output_tokens": used.output,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.input + used.output,
    }
    end = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    events: list[Json] = [
        {"type": "response.created", "response": whole | {"status": "in_progress"}},
        {"type": "response.output_item.added", "item": item | {"content": []}, **at},
        *(
            {"type": "response.output_text.delta", "delta": piece, "logprobs": [], **at}
            for piece in text
        ),
        {"type": "response.incomplete", "response": whole | end | {"usage": usage}},
    ]
    return [event | {"sequence_number": i} for i, event in enumerate(events)]


def anthropic(request: Json, text: Text, used: Usage) -> list[Json]:
    usage = {
        "input_tokens": used.input - used.cached - used.written,
        "cache_read_input_tokens": used.cached,
        "cache_creation_input_tokens": used.written,
    }
    thought = {"output_tokens_details": {"thinking_tokens": used.reasoning}}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage | {"output_tokens": 1}}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": piece},
            }
            for piece in text
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": usage | {"output_tokens": used.output} | thought,
        },
        {"type": "message_stop"},
    ]


def google(request: Json, text: Text, used: Usage) -> list[Json]:
    """Every chunk carries the running totals."""
    pieces = text or [""]
    visible = used.output - used.reasoning
    counts = [visible * (i + 1) // len(pieces) for i in range(len(pieces))]
    return [
        {
            "candidates": [
                {"content": {"role": "model", "parts": [{"text": piece}]}, "index": 0}
                | ({"finishReason": "MAX_TOKENS"} if count == visible else {})
            ],
            "usageMetadata": {
                "promptTokenCount": used.input,
                "cachedContentTokenCount": used.cached,
                "candidatesTokenCount": count,
                "thoughtsTokenCount": used.reasoning,
                "totalTokenCount": used.input + count + used.reasoning,
            },
        }
        for piece, count in zip(pieces, counts, strict=True)
    ]


def ollama(request: Json, text: Text, used: Usage) -> list[Json]:
    base = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": False}
    counts = {"prompt_eval_count": used.input, "eval_count": used.output}
    end = {"done": True, "done_reason": "length"} | counts
    lines = [base | {"message": {"role": "assistant", "content": piece}} for piece in text]
    return [*lines, base | {"message": {"role": "assistant", "content": ""}} | end]


def bedrock(request: Json, text: Text, used: Usage) -> list[Json]:
    usage = {
        "inputTokens": used.input - used.cached - used.written,
        "cacheReadInputTokens": used.cached,
        "cacheWriteInputTokens": used.written,
        "outputTokens": used.output,
        "totalTokens": used.input + used.output,
    }
    return [
        {"messageStart": {"role": "assistant"}},
        *(
            {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": piece}}}
            for piece in text
        ),
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "max_tokens"}},
        {"metadata": {"usage": usage, "metrics": {"latencyMs": 1}}},
    ]


def sse(events: list[Json]) -> bytes:
    return b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)


def sse_done(events: list[Json]) -> bytes:
    return sse(events) + b"data: [DONE]\n\n"


def sse_named(events: list[Json]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


def ndjson(events: list[Json]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def eventstream(events: list[Json]) -> bytes:
    """AWS's binary messages: lengths, headers, payload, checksums."""

    def number(value: int, size: int = 4) -> bytes:
        return value.to_bytes(size, "big")

    def header(name: str, value: str) -> bytes:
        return bytes([len(name)]) + name.encode() + b"\7" + number(len(value), 2) + value.encode()

    sent = b""
    for event in events:
        [(kind, payload)] = event.items()
        headers = header(":event-type", kind) + header(":message-type", "event")
        headers += header(":content-type", "application/json")
        body = json.dumps(payload).encode()
        prelude = number(len(headers) + len(body) + 16) + number(len(headers))
        message = prelude + number(crc32(prelude)) + headers + body
        sent += message + number(crc32(message))
    return sent


KINDS = {ndjson: "application/x-ndjson", eventstream: "application/vnd.amazon.eventstream"}

# --- the providers


@dataclass
class Provider:
    """One row of the table.

    string: for `create_anytime_graph`, if there is one. options: how its client is made and pointed
    at a URL. effort: options that set a reasoning effort. tells: which details of a report its client
    passes on. notes: what a reader must know.
    """

    name: str
    string: str | None
    package: str
    client: str
    options: Callable[[str], Json]
    events: Callable[[Json, Text, Usage], list[Json]]
    send: Callable[[list[Json]], bytes]
    effort: Json
    notes: str
    tells: tuple[str, ...] = ("cached", "reasoning")

    def model(self, url: str, **more: Any) -> BaseChatModel:
        module, _, name = self.client.rpartition(".")
        return getattr(import_module(module), name)(**(self.options(url) | more))


def openai(model: str, **more: Any) -> Callable[[str], Json]:
    return lambda url: {"model": model, "base_url": url, "api_key": "none", **more}


def aws(url: str) -> Json:
    return {
        "model": "us.anthropic.claude-sonnet-5",
        "endpoint_url": url,
        "region_name": "us-east-1",
        "aws_access_key_id": "none",
        "aws_secret_access_key": "none",
        "max_retries": 0,
    }


def azure(url: str) -> Json:
    return {
        "azure_endpoint": url,
        "azure_deployment": "gpt-4.1",
        "api_version": "2025-04-01-preview",
        "api_key": "none",
    }


PROVIDERS = [
    Provider(
        "OpenAI",
        "openai:gpt-4.1",
        "langchain-openai",
        "langchain_openai.ChatOpenAI",
        openai("gpt-4.1"),
        chat,
        sse_done,
        {"reasoning_effort": "low"},
        "prompts counted by tiktoken",
    ),
    Provider(
        "OpenAI, responses API",
        None,
        "langchain-openai",
        "langchain_openai.ChatOpenAI",
        openai("gpt-5", use_responses_api=True),
        responses,
        sse_named,
        {"reasoning_effort": "low"},
        "`use_responses_api=True`; takes no `seed`",
    ),
    Provider(
        "OpenAI-compatible: gpt-oss, LLaMA-3.3, ...",
        "openai:openai/gpt-oss-120b",
        "langchain-openai",
        "langchain_openai.ChatOpenAI",
        openai("openai/gpt-oss-120b"),
        chat,
        sse_done,
        {"reasoning_effort": "low"},
        "`base_url=` or `OPENAI_BASE_URL`; at a server that does not know the field, the stream is cut",
    ),
    Provider(
        "Azure OpenAI",
        "azure_openai:gpt-4.1",
        "langchain-openai",
        "langchain_openai.AzureChatOpenAI",
        azure,
        chat,
        sse_done,
        {"reasoning_effort": "low"},
        "a deployment's name does not give a price: pass `prices=`",
    ),
    Provider(
        "Anthropic",
        "anthropic:claude-sonnet-5",
        "langchain-anthropic",
        "langchain_anthropic.ChatAnthropic",
        openai("claude-sonnet-5"),
        anthropic,
        sse_named,
        {"reasoning_effort": "low"},
        "a thinking budget is kept below the cap; pass the price of a one-hour cache (`cache_write=`)",
    ),
    Provider(
        "Google",
        "google_genai:gemini-3.8-flash",
        "langchain-google-genai",
        "langchain_google_genai.ChatGoogleGenerativeAI",
        openai("gemini-3.8-flash"),
        google,
        sse,
        {"thinking_level": "low"},
        "running totals in every chunk",
    ),
    Provider(
        "AWS Bedrock",
        "bedrock_converse:us.anthropic.claude-sonnet-5",
        "langchain-aws",
        "langchain_aws.ChatBedrockConverse",
        aws,
        bedrock,
        eventstream,
        {"model": "openai.gpt-oss-120b-1:0", "reasoning_effort": "low"},
        "a model that you construct needs `max_retries=0`; Nova at effort `high` takes no cap: refused",
        ("cached",),
    ),
    Provider(
        "xAI",
        "xai:grok-3",
        "langchain-xai",
        "langchain_xai.ChatXAI",
        lambda url: {"model": "grok-3", "xai_api_base": url, "api_key": "none"},
        responses,
        sse_named,
        {"model": "grok-3-mini", "reasoning_effort": "low"},
        "uses its responses API: not stored, no `seed`; with `use_responses_api=False` its cap leaves out "
        "hidden reasoning (grok-3 has none)",
    ),
    Provider(
        "Mistral",
        "mistralai:mistral-large-latest",
        "langchain-mistralai",
        "langchain_mistralai.ChatMistralAI",
        lambda url: {"model": "mistral-large-latest", "endpoint": url, "api_key": "none"},
        mistral,
        sse_done,
        {"model_kwargs": {"reasoning_effort": "high"}},
        "its client passes on neither cached nor reasoning tokens; they are in the totals",
        (),
    ),
    Provider(
        "DeepSeek",
        "deepseek:deepseek-chat",
        "langchain-deepseek",
        "langchain_deepseek.ChatDeepSeek",
        lambda url: {"model": "deepseek-chat", "api_base": url, "api_key": "none"},
        deepseek,
        sse_done,
        {"reasoning_effort": "high"},
        "its cap holds for the chain of thought too",
    ),
    Provider(
        "Groq",
        "groq:openai/gpt-oss-120b",
        "langchain-groq",
        "langchain_groq.ChatGroq",
        openai("openai/gpt-oss-120b"),
        groq,
        sse_done,
        {"reasoning_effort": "low"},
        "",
    ),
    Provider(
        "OpenRouter",
        "openrouter:openai/gpt-oss-120b",
        "langchain-openrouter",
        "langchain_openrouter.ChatOpenRouter",
        openai("openai/gpt-oss-120b"),
        chat,
        sse_done,
        {"reasoning": {"effort": "low"}},
        "its SDK asks for pydantic below 2.13",
    ),
    Provider(
        "Ollama",
        "ollama:llama3.3",
        "langchain-ollama",
        "langchain_ollama.ChatOllama",
        lambda url: {"model": "llama3.3", "base_url": url},
        ollama,
        ndjson,
        {"model": "gpt-oss", "reasoning": "low"},
        "its report has no details",
        (),
    ),
]
every = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name.split(":")[0])
NAMED = {provider.name: provider for provider in PROVIDERS}

# --- the wire


@dataclass
class Wire:
    """A loopback endpoint that answers each request as `provider` would. fail: an HTTP status, or
    "drop" to close before any byte."""

    url: str
    provider: Provider = field(default_factory=lambda: PROVIDERS[0])
    text: Text = field(default_factory=lambda: TEXT)
    used: Usage = field(default_factory=Usage)
    fail: int | str | None = None
    requests: list[Json] = field(default_factory=list)

    def ask(self, model: Any, sync: bool = True, cap: int = CAP, **more: Any) -> Json:
        """One budgeted call; what it spent, or NoAnswer."""
        self.requests.clear()
        options = {"budget": Budget(output_tokens=cap, calls=1), **more}
        app = create_anytime_graph(model, strategy="single", **options).compile()
        out: Json = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
        return out


@contextmanager
def speaking() -> Iterator[Wire]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            wire.requests.append(request)
            if wire.fail == "drop":
                return self.connection.shutdown(socket.SHUT_RDWR)
            status, kind, provider = 200, "text/event-stream", wire.provider
            if wire.fail == "torn":
                events = provider.events(request, wire.text, wire.used)
                sent, kind = provider.send(events[:3]), KINDS.get(provider.send, kind)
            elif isinstance(wire.fail, int):
                status, kind = wire.fail, "application/json"
                body = json.dumps({"error": {"message": "no", "code": status, "status": "NO"}})
                sent = body.encode()
            else:
                sent = provider.send(provider.events(request, wire.text, wire.used))
                kind = KINDS.get(provider.send, kind)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(sent)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(sent)

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


@pytest.fixture
def wire() -> Iterator[Wire]:
    with speaking() as wire:
        yield wire


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values in a JSON document by their paths."""
    if isinstance(tree, dict):
        inner = {f"{path}.{key}" if path else key: value for key, value in tree.items()}
        return {p: v for key, value in inner.items() for p, v in leaves(value, key).items()}
    return {path: tree}


# --- the table


@dataclass(frozen=True)
class Facts:
    """Where a provider's client puts the cap and the effort, and where the reply reports what was
    used: paths in the JSON documents at the wire."""

    cap: tuple[str, ...]
    effort: tuple[str, ...]
    report: dict[str, str]


def captured(wire: Wire, provider: Provider) -> Facts:
    wire.provider = provider
    wire.ask(provider.model(wire.url))
    [plain] = map(leaves, wire.requests)
    wire.ask(provider.model(wire.url, **provider.effort))
    [request] = wire.requests
    [effort] = [v for k, v in leaves(provider.effort).items() if k != "model"]
    after = leaves(request)
    return Facts(
        cap=tuple(path for path, value in after.items() if value == CAP),
        effort=tuple(
            path
            for path, value in after.items()
            if value != plain.get(path) and str(value).lower() == effort
        ),
        report=reported(provider, request),
    )


def reported(provider: Provider, request: Json) -> dict[str, str]:
    """The place in the last report that moves with each kind of usage, by that kind."""
    places: dict[str, str] = {}
    for kind in ("input", "output", *provider.tells):
        used = Usage()._replace(**{kind: getattr(Usage(), kind) + 1})
        old, new = (map(leaves, provider.events(request, TEXT, u)) for u in (Usage(), used))
        differing = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        a, b = differing[-1]
        moved = {path for path in a if a[path] != b[path] and "total" not in path.lower()}
        [places[kind]] = moved - set(places.values())
    return places


def page(facts: dict[str, Facts]) -> str:
    """The tables of docs/models.md."""
    write = [["provider", "string", "package", "reasoning effort", "notes"]]
    wire = [["provider", "cap", "effort", "input", "output", "cached", "reasoning"]]
    for provider in PROVIDERS:
        seen = facts[provider.name]
        [effort] = [f"{k}={v!r}" for k, v in provider.effort.items() if k != "model"]
        strings = (provider.string or "", provider.package, effort.replace("'", '"'))
        write.append([provider.name, *map(code, strings), provider.notes])
        report = [seen.report.get(kind, "") for kind in ("input", "output", "cached", "reasoning")]
        wire.append([provider.name, *map(code, (*seen.cap, *seen.effort, *report))])
    return f"{grid(write)}\n\n## At the wire\n\n{WIRE}\n\n{grid(wire)}\n"


WIRE = """Where the request carries the cap and the effort, and where the last event of the reply's stream
reports what was used:"""


def grid(rows: list[list[str]]) -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def code(word: str) -> str:
    return f"`{word}`" if word else ""


# --- what must hold


@every
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_the_request_carries_the_cap_and_the_books_hold_the_report(
    wire: Wire, provider: Provider, sync: bool
) -> None:
    wire.provider = provider
    out = wire.ask(provider.model(wire.url), sync)
    [request] = wire.requests
    assert [value for value in leaves(request).values() if value == CAP] == [CAP]
    assert out["best"]["answer"] == "7"
    assert out["errors"] == []
    told = {kind: getattr(wire.used, kind) for kind in provider.tells}
    spent = {key: value for key, value in out["spent"].items() if key not in ("usd", "seconds")}
    assert spent == {
        "tokens": wire.used.input + wire.used.output,
        "input_tokens": wire.used.input,
        "output_tokens": wire.used.output,
        "cached_tokens": told.get("cached", 0),
        "reasoning_tokens": told.get("reasoning", 0),
        "calls": 1,
    }


@pytest.mark.parametrize("name", ["Anthropic", "AWS Bedrock"])
def test_what_is_written_to_a_cache_costs_what_that_costs(wire: Wire, name: str) -> None:
    wire.provider, wire.used = NAMED[name], Usage(written=40)
    prices = Prices(input=3.0, output=15.0, cached_input=0.3, cache_write=3.75)
    out = wire.ask(wire.provider.model(wire.url), budget=Budget(usd=0.1, calls=1), prices=prices)
    assert out["errors"] == []
    fresh = wire.used.input - wire.used.cached - 40
    cost = fresh * 3 + wire.used.cached * 0.3 + 40 * 3.75 + wire.used.output * 15
    assert out["spent"]["usd"] == pytest.approx(cost / 1e6)


@pytest.mark.parametrize("name", ["Anthropic", "AWS Bedrock"])
def test_a_call_holds_what_it_would_cost_to_write_all_of_its_prompt(wire: Wire, name: str) -> None:
    """Whether it is, only the reply tells: one that is lost is charged in full."""
    wire.provider, wire.fail = NAMED[name], "torn"
    prices = Prices(input=3.0, output=15.0, cache_write=6.0)
    out = wire.ask(wire.provider.model(wire.url), budget=Budget(usd=0.1, calls=1), prices=prices)
    spent, [request] = out["spent"], wire.requests
    cap = max(value for value in leaves(request).values() if isinstance(value, int))
    whole = (spent["input_tokens"] * 6 + cap * 15) / 1e6
    assert spent["usd"] == pytest.approx(whole)
    assert 0.09 < whole <= 0.1


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_no_split_of_the_input_is_dearer_than_what_is_held(
    paid: int, made: int, read: float, written: float
) -> None:
    prices = Prices(input=3.0, output=15.0, cached_input=0.3, cache_write=3.75)
    taken = int(written * (paid - int(read * paid)))
    assert prices.usd(paid, made, int(read * paid), taken) <= prices.most(paid, made) + 1e-12


@every
@pytest.mark.parametrize("fail", [500, 429, "drop"])
def test_a_failed_call_is_one_request(wire: Wire, provider: Provider, fail: int | str) -> None:
    """With the client's retries as they are by default, and whichever way it is called."""
    wire.provider, wire.fail = provider, fail
    model = provider.model(wire.url)
    for sync in (True, False):
        with pytest.raises(
            NoAnswer, match=f"HTTP {fail}" if fail != "drop" else "draft 0: .*Error"
        ):
            wire.ask(model, sync)
        # A refusal is free, so the run itself asks again: once in each of three steps.
        assert len(wire.requests) == (3 if fail == 429 else 1)


@every
def test_hidden_reasoning_that_uses_up_the_cap_is_charged(wire: Wire, provider: Provider) -> None:
    """A reply that says it ended at the cap did, though providers stop a token short of it."""
    spent = CAP - 1
    wire.provider, wire.text, wire.used = provider, [], Usage(output=spent, reasoning=spent)
    with pytest.raises(NoAnswer, match=f"starved: {spent} output tokens"):
        wire.ask(provider.model(wire.url, **provider.effort))
    assert [v for v in leaves(wire.requests[0]).values() if v == CAP] == [CAP]


def test_the_page_shows_what_was_captured(wire: Wire) -> None:
    shown = (ROOT / "docs" / "models.md").read_text()
    assert page({p.name: captured(wire, p) for p in PROVIDERS}) in shown, (
        "`python -m tests.models.test_providers` writes docs/models.md anew"
    )


@pytest.mark.parametrize("provider", [p for p in PROVIDERS if p.string], ids=lambda p: p.string)
def test_a_string_makes_that_client(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "AZURE_OPENAI", "ANTHROPIC", "GOOGLE", "XAI", "MISTRAL", "DEEPSEEK"):
        monkeypatch.setenv(f"{name}_API_KEY", "none")
    for name in (
        "GROQ_API_KEY",
        "OPENROUTER_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1")
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-04-01-preview")
    model = resolve_model(provider.string)
    assert f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}" == provider.client
    create_anytime_graph(model, budget=Budget(tokens=500))


@pytest.mark.parametrize("bound", [False, True], ids=["constructed", "bound"])
@pytest.mark.parametrize("name", ["Anthropic", "AWS Bedrock"])
def test_a_thinking_budget_is_kept_below_the_cap(wire: Wire, name: str, bound: bool) -> None:
    """Anthropic refuses any other, and any below 1,024."""
    wire.provider, thought = NAMED[name], {"type": "enabled", "budget_tokens": 4_000}
    options: Json = {"thinking": thought}
    if name == "AWS Bedrock":
        options = {"additional_model_request_fields": options}
    older = "us.anthropic.claude-opus-4-5" if name == "AWS Bedrock" else "claude-haiku-4-5"
    model: Any = wire.provider.model(wire.url, model=older, **({} if bound else options))
    for cap, sent in {
        5_000: thought,
        4_000: thought | {"budget_tokens": 2_000},
        2_048: thought | {"budget_tokens": 1_024},
        2_047: {"type": "disabled"},
    }.items():
        wire.ask(model.bind(**options) if bound else model, cap=cap)
        [request] = wire.requests
        assert request.get("additionalModelRequestFields", request)["thinking"] == sent


@pytest.mark.parametrize(
    ("name", "own", "bound"),
    [
        ("OpenRouter", {"max_completion_tokens": 4_000}, {}),
        ("OpenRouter", {}, {"max_completion_tokens": 4_000, "n": 3}),
        ("Google", {"n": 3}, {}),
        ("Google", {}, {"candidate_count": 3, "max_retries": 6}),
        ("Google", {}, {"generation_config": {"max_output_tokens": 4_000, "candidate_count": 3}}),
        ("AWS Bedrock", {}, {"maxTokens": 4_000}),
        ("Groq", {"n": 3, "model_kwargs": {"max_completion_tokens": 4_000}}, {}),
    ],
)
def test_nothing_the_caller_set_loosens_the_cap(
    wire: Wire, name: str, own: Json, bound: Json
) -> None:
    wire.provider = NAMED[name]
    wire.ask(wire.provider.model(wire.url, **own).bind(**bound))
    [request] = map(leaves, wire.requests)
    assert [path for path, value in request.items() if value in (CAP, 4_000)] == [
        path for path, value in request.items() if value == CAP
    ]
    assert 3 not in request.values()
    wire.fail = 500
    with pytest.raises(NoAnswer):
        wire.ask(wire.provider.model(wire.url, **own).bind(**bound))
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("name", "own", "bound", "says"),
    [
        ("Ollama", {}, {"options": {"num_ctx": 4_096}}, "options= is bound"),
        ("AWS Bedrock", {}, {"inferenceConfig": {"maxTokens": 9}}, "inferenceConfig= is bound"),
        ("AWS Bedrock", {"max_retries": None}, {}, "max_retries=0"),
        ("AWS Bedrock", {"max_retries": 3}, {}, "max_retries=0"),
        (
            "AWS Bedrock",
            {"model": "us.amazon.nova-2-lite-v1:0"},
            {
                "additional_model_request_fields": {
                    "reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}
                }
            },
            "takes no output cap",
        ),
        (
            "AWS Bedrock",
            {"model": "us.amazon.nova-2-lite-v1:0"},
            {"reasoning_effort": "high"},
            "takes no output cap",
        ),
    ],
)
def test_a_client_out_of_reach_is_refused(name: str, own: Json, bound: Json, says: str) -> None:
    model: Any = NAMED[name].model("http://127.0.0.1:9", **own)
    with pytest.raises(ValueError, match=says):
        create_anytime_graph(model.bind(**bound), budget=Budget(tokens=500))


def test_shown_reasoning_is_weighed_by_its_words(wire: Wire) -> None:
    """Not by the notation around them, which would look like a provider that ignores the cap."""
    wire.provider = NAMED["Mistral"]
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "so "}]}
    wire.text = [[thought]] * (CAP - 20) + TEXT
    assert wire.ask(wire.provider.model(wire.url))["errors"] == []


def test_no_client_is_imported_before_it_is_wanted() -> None:
    packages = {p.client.partition(".")[0] for p in PROVIDERS} | {"langchain"}
    script = "import sys, anytime_graph; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not packages & set(done.stdout.split())


if __name__ == "__main__":
    path = ROOT / "docs" / "models.md"
    with speaking() as at:
        made = page({p.name: captured(at, p) for p in PROVIDERS})
    old = path.read_text()
    start, end = old.index("| provider"), old.index("## Reasoning")
    path.write_text(f"{old[:start]}{made}\n{old[end:]}")
