"""A loopback endpoint that answers in each provider's wire format, and the clients that speak to it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple
from zlib import crc32

from langchain_core.language_models import BaseChatModel

from anytime_graph import Budget, create_anytime_graph
from tests.kit.loopback import Handler, listening

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


def eventstream(events: list[Json], of: str = "event") -> bytes:
    """AWS's binary messages: lengths, headers, payload, checksums. of: "exception" for errors."""

    def number(value: int, size: int = 4) -> bytes:
        return value.to_bytes(size, "big")

    def header(name: str, value: str) -> bytes:
        return bytes([len(name)]) + name.encode() + b"\7" + number(len(value), 2) + value.encode()

    sent = b""
    for event in events:
        [(kind, payload)] = event.items()
        headers = header(f":{of}-type", kind) + header(":message-type", of)
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
NAMED = {provider.name: provider for provider in PROVIDERS}

# --- the wire


@dataclass
class Wire:
    """A loopback endpoint that answers each request as `provider` would. fail: an HTTP status, or
    "drop" to close before any byte. spoil: what becomes of a reply on its way. headers: in place of its own;
    None leaves one out. ports: the connections' own, by request."""

    url: str
    spoil: Callable[[Json, bytes], bytes] = lambda request, sent: sent
    provider: Provider = field(default_factory=lambda: PROVIDERS[0])
    text: Text = field(default_factory=lambda: TEXT)
    used: Usage = field(default_factory=Usage)
    fail: int | str | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    requests: list[Json] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    counts: Json = field(default_factory=dict)
    counted: int = 0

    def say(self, name: str, *replies: list[Json] | bytes) -> BaseChatModel:
        """Answer with these events, or bytes, in turn, the last again and again. Gives the model."""
        self.provider = provider = NAMED[name]

        def spoiled(request: Json, sent: bytes) -> bytes:
            reply = replies[min(len(self.requests), len(replies)) - 1]
            return reply if isinstance(reply, bytes) else provider.send(reply)

        self.spoil = spoiled
        return provider.model(self.url)

    def ask(self, model: Any, sync: bool = True, cap: int = CAP, **more: Any) -> Json:
        """One budgeted call; what it spent, or NoAnswer."""
        self.requests.clear()
        options = {"budget": Budget(output_tokens=cap, calls=1), **more}
        app = create_anytime_graph(model, strategy="single", **options).compile()
        out: Json = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
        return out


@contextmanager
def speaking(protocol: str = "HTTP/1.0") -> Iterator[Wire]:
    """protocol: with "HTTP/1.1" connections are kept for the next request."""
    wire: Wire

    class Answering(Handler):
        protocol_version = protocol

        def _told(self, counts: Json) -> None:
            sent = json.dumps(counts).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path.partition("?")[0].endswith(("count_tokens", ":countTokens")):
                wire.counted += 1
                return self._told(wire.counts)
            wire.requests.append(request)
            wire.ports.append(self.client_address[1])
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
            sent = wire.spoil(request, sent)
            self.send_response(status)
            headers = {"content-type": kind, "content-length": str(len(sent)), "retry-after": "0"}
            for name, value in (headers | wire.headers).items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

    with listening(Answering) as url:
        wire = Wire(url)
        yield wire
