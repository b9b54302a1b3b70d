"""P1, P5 through every provider's real client: its requests carry the cap, one request is one call,
and the books are what the provider reported.

A loopback server answers in each provider's wire format. The table in docs/models.md is made of what
it captured; `python -m tests.models.test_providers` writes it anew.
"""

from __future__ import annotations

import gc
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from anytime_graph import Budget, NoAnswer, Prices, create_anytime_graph
from anytime_graph.metering import learned
from anytime_graph.models import providers, resolve_model
from tests.kit.marks import some
from tests.kit.places import ROOT
from tests.kit.providers import (
    CAP,
    NAMED,
    PROVIDERS,
    QUESTION,
    TEXT,
    Json,
    Provider,
    Usage,
    Wire,
    anthropic,
    chat,
    chat_usage,
    eventstream,
    speaking,
    sse,
)

pytestmark = [  # of google-genai with aiohttp, in its own code
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'ClientResponse.json' was never:RuntimeWarning"),
]

every = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name.split(":")[0])


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
        "tool_calls": 0,
    }


@pytest.mark.parametrize("name", ["Anthropic", "AWS Bedrock"])
def test_what_is_written_to_a_cache_costs_what_that_costs(wire: Wire, name: str) -> None:
    wire.provider, wire.used = NAMED[name], Usage(written=40)
    prices = Prices(input=3.0, output=15.0, cached_input=0.3, cache_write=3.75)
    out = wire.ask(wire.provider.model(wire.url), budget=Budget(usd=0.1, calls=1), prices=prices)
    [error] = out["errors"]
    assert "the provider cut the reply after 77" in error
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


def test_what_may_be_a_picture_costs_what_a_picture_does(wire: Wire) -> None:
    """The report does not tell its tokens from those of text, which cost $2.5: 400 tokens of output are
    0.012 dollars, not 0.001."""
    wire.provider = NAMED["Google"]
    model = NAMED["Google"].model(wire.url, model="gemini-2.5-flash-image")
    out = wire.ask(model, budget=Budget(usd=0.1, calls=1))
    [request], spent = wire.requests, out["spent"]
    assert request["generationConfig"]["maxOutputTokens"] * 30 / 1e6 <= 0.1
    paid = spent["input_tokens"] * 0.3 + spent["output_tokens"] * 30
    assert spent["usd"] == pytest.approx(paid / 1e6)


PRICES = Prices(input=1.0, output=1.0)
COMPUTED = (91 + CAP) / 1e6


def elsewhere(cost: float) -> Json:
    """OpenRouter's report of what its provider takes."""
    parts = ("prompt", "completions")
    halves = {f"upstream_inference_{part}_cost": cost / 2 for part in parts}
    return {"upstream_inference_cost": cost, **halves}


def reporting(name: str, wire: Wire, **more: Any) -> Any:
    """A model whose provider reports more of its usage."""
    usage = chat_usage(wire.used) | more
    events = chat({}, wire.text, wire.used, {})
    report = {"choices": [], "usage": usage, "id": "c", "object": "chat.completion.chunk"}
    return wire.say(name, [*events, report | {"created": 0, "model": "m"}])


@pytest.mark.parametrize("name", ["OpenRouter", "OpenAI", "DeepSeek"])
@pytest.mark.parametrize(
    ("more", "booked"),
    [
        ({"cost": 0.002}, 0.002),
        ({"cost": 0.001, "cost_details": elsewhere(0.019)}, 0.02),
        ({"cost": 0.002, "cost_details": elsewhere(0.002)}, 0.002),
        ({"cost": 0.00001}, COMPUTED),
        ({"cost": 0}, COMPUTED),
        ({"cost": -3}, COMPUTED),
        ({"cost": None, "cost_details": None}, COMPUTED),
    ],
    ids=str,
)
def test_a_cost_that_the_provider_states_is_booked_if_it_is_more(
    wire: Wire, name: str, more: Json, booked: float
) -> None:
    model = reporting(name, wire, **more)
    out = wire.ask(model, budget=Budget(usd=0.1, calls=1), prices=PRICES)
    assert out["spent"]["usd"] == pytest.approx(booked)
    assert not any("cost" in error for error in out["errors"])


@pytest.mark.parametrize("cost", ["NaN", "much", {"total_cost": "x"}, [1], 1e308], ids=str)
def test_a_cost_that_cannot_be_is_not_believed(wire: Wire, cost: Any) -> None:
    model = reporting("OpenAI", wire, cost=cost)
    out = wire.ask(model, budget=Budget(usd=0.1, calls=1), prices=PRICES)
    assert out["spent"]["usd"] == pytest.approx(COMPUTED)
    told = any("a cost that no call can have" in error for error in out["errors"])
    assert told == (cost == 1e308)


def test_a_cost_beyond_the_reservation_is_booked_and_told(wire: Wire) -> None:
    model = reporting("OpenAI", wire, cost={"total_cost": 0.25, "currency": "USD"})
    out = wire.ask(model, budget=Budget(usd=0.1, calls=1), prices=PRICES)
    assert out["spent"]["usd"] == 0.25
    assert any("stated a cost of $0.25; reserved were $0.0" in e for e in out["errors"])


def test_a_stated_cost_is_read_of_a_reply_that_is_not_streamed(wire: Wire) -> None:
    message = {"role": "assistant", "content": "so <answer>7</answer>"}
    reply = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
    reply |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    reply |= {"usage": chat_usage(wire.used) | {"cost": 0.03}}
    model = wire.say("OpenAI", json.dumps(reply).encode())
    wire.headers = {"content-type": "application/json"}
    model = model.model_copy(update={"disable_streaming": True})
    out = wire.ask(model, budget=Budget(usd=0.1, calls=1), prices=PRICES)
    assert out["spent"]["usd"] == 0.03
    assert not wire.requests[0]["stream"]


@pytest.mark.parametrize(
    "more",
    [
        {"cache_creation_input_tokens": 40},
        {"prompt_tokens_details": {"cached_tokens": 11, "cache_creation_tokens": 40}},
        {"prompt_tokens_details": {"cached_tokens": 11, "cache_write_tokens": 40}},
    ],
    ids=str,
)
def test_what_a_gateway_says_was_written_to_a_cache_costs_what_that_costs(
    wire: Wire, more: Json
) -> None:
    model = reporting("OpenAI", wire, **more)
    prices = Prices(input=3.0, output=15.0, cached_input=0.3, cache_write=3.75)
    out = wire.ask(model, budget=Budget(usd=0.1, calls=1), prices=prices)
    fresh = wire.used.input - 11 - 40
    cost = fresh * 3 + 11 * 0.3 + 40 * 3.75 + wire.used.output * 15
    assert out["spent"]["usd"] == pytest.approx(cost / 1e6)


def test_a_report_beside_no_delta_is_read(wire: Wire) -> None:
    events = chat({}, wire.text, wire.used, {})
    *_, last = events
    last |= {"usage": chat_usage(wire.used)}
    last["choices"][0] |= {"delta": None, "finish_reason": "stop"}
    out = wire.ask(wire.say("OpenAI", events))
    assert out["best"]["answer"] == "7"
    assert out["spent"]["tokens"] == wire.used.input + wire.used.output
    assert out["errors"] == []


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize(
    "left", [(), ("input_tokens",), ("input_tokens", "cache_read_input_tokens")]
)
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_what_anthropic_reports_at_the_beginning_counts_where_the_end_does_not_tell_it(
    wire: Wire, sync: bool, left: tuple[str, ...], ends: bytes
) -> None:
    wire.used = Usage(written=40)
    events = anthropic({}, wire.text, wire.used)
    for event in events:
        if event["type"] == "message_delta":
            event["usage"] = {k: event["usage"][k] for k in ("output_tokens", *left)}
    sent = NAMED["Anthropic"].send(events).replace(b"\n", ends)
    prices = Prices(input=3.0, output=15.0, cached_input=0.3, cache_write=3.75)
    out = wire.ask(wire.say("Anthropic", sent), sync, budget=Budget(usd=0.1), prices=prices)
    assert out["best"]["answer"] == "7"
    assert out["spent"]["input_tokens"] == wire.used.input
    assert out["spent"]["cached_tokens"] == wire.used.cached
    fresh = wire.used.input - wire.used.cached - 40
    cost = fresh * 3 + wire.used.cached * 0.3 + 40 * 3.75 + wire.used.output * 15
    assert out["spent"]["usd"] == pytest.approx(cost / 1e6)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_no_split_of_the_input_is_dearer_than_what_is_held(
    paid: int, made: int, read: float, written: float
) -> None:
    prices = Prices(input=3.0, output=15.0, cached_input=0.3, cache_write=3.75)
    taken = int(written * (paid - int(read * paid)))
    assert prices.usd(paid, made, int(read * paid), taken) <= prices.most(paid, made) + 1e-12


@pytest.mark.pairwise(3)
@every
@pytest.mark.parametrize("fail", [500, 429, "drop"])
def test_a_failed_call_is_one_request(
    wire: Wire, provider: Provider, fail: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the client's retries as they are by default, and whichever way it is called. A run without
    patience does not ask again after a refusal."""
    monkeypatch.setattr(learned, "_PATIENCE", 0.0)
    wire.provider, wire.fail = provider, fail
    model = provider.model(wire.url)
    for sync in (True, False):
        with pytest.raises(
            NoAnswer, match=f"HTTP {fail}" if fail != "drop" else "draft 0: .*Error"
        ):
            wire.ask(model, sync)
        assert len(wire.requests) == 1


SLOW: Json = {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}}
PLAIN = json.dumps(SLOW).encode()
PIECE = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
PING = b': OPENROUTER PROCESSING\n\nevent: ping\ndata: {"type": "ping"}\n\n'
UNMEASURED = {"content-length": None}
WITHHELD: dict[str, tuple[bytes, dict[str, str | None]]] = {
    "JSON": (PLAIN, {}),
    "JSON of no stated length": (b"\n" + PLAIN, {"content-type": "application/json", **UNMEASURED}),
    "JSON that is called a stream": (json.dumps(SLOW, indent=1).encode(), UNMEASURED),
    "compressed JSON": (gzip.compress(PLAIN), {"content-encoding": "gzip", **UNMEASURED}),
    "an event": (b"data: " + PLAIN + b"\n\ndata: [DONE]\n\n", UNMEASURED),
    "the end of an event": (PING + b"data: " + PLAIN, UNMEASURED),
    "a chunk": (PING + sse([{"object": "chat.completion.chunk", "choices": [PIECE]} | SLOW]), {}),
    "lines that end in CR LF": (b"id: 1\r\ndata: " + PLAIN + b"\r\n\r\n", UNMEASURED),
}


FOREIGN = {
    "AWS Bedrock": [*WITHHELD],
    "Ollama": [form for form in WITHHELD if "JSON" not in form],
    "Google": ["the end of an event", "a chunk", "lines that end in CR LF"],
}
"""What clients do not read, whatever it says: Bedrock's wants checksums, Ollama's no events, and Google's
no lines but of data. They are charged for it."""
PLACES = [(p, form) for p in PROVIDERS for form in WITHHELD if form not in FOREIGN.get(p.name, ())]


@pytest.mark.parametrize(
    ("provider", "form"), PLACES, ids=[f"{p.name.split(':')[0]}-{form}" for p, form in PLACES]
)
def test_an_error_in_place_of_a_reply_costs_nothing(
    wire: Wire, provider: Provider, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gateways send it, with status 200."""
    sync = PLACES.index((provider, form)) % 2 == 0
    monkeypatch.setattr(learned, "_PATIENCE", 90.0)
    sent, wire.headers = WITHHELD[form]
    later = wire.headers, {}

    def spoiled(request: Json, reply: bytes) -> bytes:
        wire.headers = later[min(len(wire.requests), 2) - 1]
        return reply if len(wire.requests) > 1 else sent

    wire.provider, wire.spoil = provider, spoiled
    out = wire.ask(provider.model(wire.url), sync)
    assert len(wire.requests) == 2
    assert out["spent"]["tokens"] == sum(Usage()[i] for i in (0, 2))


REFUSED = (400, 401, 402, 403, 404, 413, 422, 429, 503, 529)
BODIES = {"a page": b"<html>no</html>", "nothing": b"", "no text": b"\xff\xfe"}
DECODING = ("AWS Bedrock", "Google")
"""Clients that fail on what is no text before they look at the status."""


@every
@pytest.mark.parametrize("body", BODIES)
def test_a_refusal_costs_nothing_whatever_words_come_with_it(
    wire: Wire, provider: Provider, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As proxies send it, which know no provider's format."""
    monkeypatch.setattr(learned, "_PATIENCE", 0.0)
    wire.provider, wire.spoil = provider, lambda request, sent: BODIES[body]
    wire.headers = {"content-type": "text/html"}
    skipped = provider.name in DECODING and body == "no text"
    first = PROVIDERS.index(provider) + [*BODIES].index(body)
    for i, status in enumerate(() if skipped else some(REFUSED, 4, first)):
        learned.forget()
        wire.fail = status
        with pytest.raises(NoAnswer, match=f"HTTP {status}") as failure:
            wire.ask(provider.model(wire.url), i % 2 == 0)
        assert (failure.value.spent["tokens"], failure.value.spent["calls"]) == (0, 0)


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_an_error_that_bedrock_streams_in_place_of_a_reply_costs_nothing_if_it_refuses(
    wire: Wire, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "_PATIENCE", 0.0)
    wire.provider, events = NAMED["AWS Bedrock"], [{"throttlingException": {"message": "no"}}]
    for kind, paid in {
        **{"throttlingException": False, "serviceUnavailableException": False},
        **{"validationException": False, "internalServerException": True},
        "modelStreamErrorException": True,
    }.items():
        events = [{kind: {"message": "no"}}]
        wire.spoil = lambda request, sent, events=events: eventstream(events, "exception")
        with pytest.raises(NoAnswer) as failure:
            wire.ask(wire.provider.model(wire.url), sync)
        assert bool(failure.value.spent["tokens"]) == paid, kind


def test_what_is_served_is_no_error_because_of_a_part_of_that_name(wire: Wire) -> None:
    """A choice that says something was written by the model, and an empty error is none."""
    for name, odd in {
        "OpenRouter": {"error": {"code": 429, "message": "no"}},
        "OpenAI": {"error": {}},
        "Mistral": {"error": None},
    }.items():
        wire.provider = NAMED[name]

        def spoiled(request: Json, sent: bytes, odd: Json = odd) -> bytes:
            first, rest = sent.split(b"\n\n", 1)
            return sse([json.loads(first[6:]) | odd]) + rest

        wire.spoil = spoiled
        assert wire.ask(wire.provider.model(wire.url))["spent"]["tokens"] >= sum(
            Usage()[i] for i in (0, 2)
        )


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_a_reply_that_breaks_off_at_its_head_is_paid_for_and_what_came_is_kept(
    wire: Wire, sync: bool
) -> None:
    for name in ("OpenRouter", "Mistral", "OpenAI", "Anthropic", "Groq", "Ollama"):
        wire.provider = NAMED[name]
        wire.spoil = lambda request, sent: sent[: sent.index(b"</answer>") + 20]
        wire.headers = {"content-length": "99999"}
        out = wire.ask(wire.provider.model(wire.url), sync)
        assert out["spent"]["output_tokens"] == CAP
        wire.spoil = lambda request, sent: sent[:5]
        with pytest.raises(NoAnswer) as failure:
            wire.ask(wire.provider.model(wire.url), sync)
        assert failure.value.spent["output_tokens"] == CAP


def test_a_metered_model_keeps_the_client_of_the_one_that_it_was_made_of(wire: Wire) -> None:
    """The SDK closes a client that nobody holds."""
    wire.provider = NAMED["Groq"]
    model, _ = providers.meterable(NAMED["Groq"].model(wire.url), {})
    gc.collect()
    assert "".join(chunk.text for chunk in model.stream("Why?")) == "".join(TEXT)


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
        learned.forget()  # where earlier replies ended
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
            {
                "additionalModelRequestFields": {
                    "reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}
                }
            },
            "takes no output cap",
        ),
        (
            "AWS Bedrock",
            {},
            {"model_id": "us.amazon.nova-2-lite-v1:0", "reasoning_effort": "high"},
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


def first_calls() -> None:
    """The first call of a process by each client. Prints the classes that had to be built for it."""

    def unbuilt() -> set[type[BaseModel]]:
        found, kinds = set(), [BaseModel]
        while kinds:
            kinds += (below := kinds.pop().__subclasses__())
            found.update(kind for kind in below if not kind.__pydantic_complete__)
        return found

    with speaking() as wire:
        for name in ("OpenAI", "OpenAI, responses API", "Groq", "Anthropic"):
            wire.provider = NAMED[name]
            model = wire.provider.model(wire.url)
            budget = Budget(output_tokens=CAP, calls=1)
            app = create_anytime_graph(model, budget=budget, strategy="single").compile()
            before = unbuilt()
            app.invoke(QUESTION)
            print(*(kind.__qualname__ for kind in before - unbuilt()), sep="\n", end="")


def test_no_class_of_a_reply_is_left_to_the_first_call() -> None:
    """Some clients build them at the first reply, which fails if threads do so at once."""
    script = "from tests.models import test_providers; test_providers.first_calls()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("name", "fields", "bound"),
    [
        ("gpt-4.1-mini", {}, {}),
        ("gpt-4.1-mini", {"use_responses_api": True}, {}),
        ("gpt-5.2-pro", {}, {}),
        ("gpt-5.2-pro", {"use_responses_api": False}, {}),
        ("gpt-5.1-codex-mini", {}, {}),
        ("gpt-5", {"reasoning": {"effort": "low"}}, {}),
        ("gpt-5", {"output_version": "responses/v1"}, {}),
        ("gpt-5", {"output_version": "v1"}, {}),
        ("gpt-5", {}, {"tools": [{"type": "web_search"}]}),
        ("gpt-5", {}, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("gpt-5", {}, {"web_search_options": {}}),
        ("gpt-5", {}, {"previous_response_id": "resp_1"}),
    ],
)
def test_which_requests_go_by_the_responses_api_is_known(
    name: str, fields: dict[str, Any], bound: dict[str, Any]
) -> None:
    """As the client decides it, which it does in private."""
    model = ChatOpenAI(model=name, api_key=SecretStr("unused"), **fields)
    assert providers.by_responses(model, bound) == model._use_responses_api(
        {"model": name, **bound}
    )


# --- errors


@every
def test_where_nobody_answers_is_told(provider: Provider) -> None:
    app = create_anytime_graph(provider.model("http://127.0.0.1:9"), budget=Budget(tokens=900))
    with pytest.raises(NoAnswer, match=r"ConnectionError at 127\.0\.0\.1:9|ConnectError at 127"):
        app.compile().invoke(QUESTION)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("OpenAI", {"message": "No.", "param": "temperature", "code": "unsupported_value"}, "temperature"),
        ("OpenAI", {"message": "Invalid.", "param": "messages.[0].content"}, None),
        ("OpenAI", {"message": "Invalid.", "param": "messages[0].content"}, "messages[0].content"),
        ("OpenAI", {"message": "Unsupported parameter: 'top_p' is no use."}, "top_p"),
        ("OpenAI", {"message": "Unrecognized request argument supplied: top_k"}, "top_k"),
        ("DeepSeek", {"message": "top_p: must be below 1"}, "top_p"),
        ("Anthropic", {"type": "invalid_request_error", "message": "temperature: range: 0..1"}, "temperature"),
        ("Anthropic", {"type": "invalid_request_error", "message": "Why do rivers bend?"}, None),
        ("OpenAI", {"message": "sk-Secret01: is no key", "param": "sk-Secret01"}, None),
        ("OpenAI", {"message": "No. The parameter: rivers_bend", "param": None}, None),
    ],
)  # fmt: skip
def test_the_parameter_that_is_refused_is_told_and_nothing_of_the_message(
    wire: Wire, name: str, error: Json, told: str | None
) -> None:
    body = json.dumps({"type": "error", "error": error}).encode()
    wire.fail, model = 400, wire.say(name, body)
    with pytest.raises(NoAnswer) as failure:
        wire.ask(model, budget=Budget(tokens=900))
    causes = " ".join(failure.value.causes)
    assert re.findall(r"\((\S+)\)", causes) == (
        [] if told is None else [told] * len(failure.value.causes)
    )
    assert not any(word in causes for word in ("Secret", "rivers", "range", "no use"))


if __name__ == "__main__":
    path = ROOT / "docs" / "models.md"
    with speaking() as at:
        made = page({p.name: captured(at, p) for p in PROVIDERS})
    old = path.read_text()
    start, end = old.index("| provider"), old.index("## Reasoning")
    path.write_text(f"{old[:start]}{made}\n{old[end:]}")
