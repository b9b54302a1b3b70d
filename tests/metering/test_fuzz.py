"""P1, P2, P5 whatever a server does: random ends, pieces, reports, statuses, blocks and broken streams,
through every provider's client and every door. `make torture` runs many more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import torture
from tests.kit.providers import PROVIDERS, Json, Provider, Usage, Wire, speaking

pytestmark = [  # of google-genai with aiohttp, in its own code
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'ClientResponse.json' was never:RuntimeWarning"),
]

QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}
BUDGET = 1_500
AT_CAP = ("length", "max_tokens", "MAX_TOKENS", "max_output_tokens")
"""How the wire formats say that a reply ended at its cap, which the fuzz replaces."""


@dataclass(frozen=True)
class Fault:
    """What a server does to one reply. status: an HTTP status in its place. finish: why it ended.
    torn: the part of its bytes that arrive. odd: a part that no client knows, put among the events."""

    status: int | None = None
    finish: Any = "stop"
    torn: float = 1.0
    odd: Json | None = None
    text: tuple[str, ...] = ("so ", "<answer>7</answer>")
    reasoning: int = 0
    reports: bool = True


pieces = st.lists(
    st.sampled_from(["so ", "<answer>7</answer>", "<answer>", "\n", "(", "", "\ud83d\ude00", "<b>"])
    | st.text(max_size=5).map(lambda t: t.encode(errors="replace").decode()),
    max_size=6,
).map(tuple)
faults = st.builds(
    Fault,
    status=st.none() | st.none() | st.sampled_from([400, 401, 404, 408, 413, 422, 429, 500, 502, 503, 529]),
    finish=st.sampled_from(["stop", "length", "content_filter", "SAFETY", "error", "", None, 7]),
    torn=st.just(1.0) | st.floats(0, 1),
    odd=st.none() | st.sampled_from([{}, {"type": "ping"}, {"choices": []}, {"type": "new_block"}]),
    text=pieces,
    reasoning=st.integers(0, 5),
    reports=st.booleans(),
)  # fmt: skip


def ending(tree: Any, finish: Any) -> Any:
    """The events with another reason for the end."""
    if isinstance(tree, dict):
        return {key: ending(value, finish) for key, value in tree.items()}
    if isinstance(tree, list):
        return [ending(each, finish) for each in tree]
    return finish if tree in AT_CAP else tree


class Faulty:
    """A wire that plays faults in turn, and keeps the books of what a provider would bill."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.billed = 0

    def play(self, provider: Provider, script: list[Fault]) -> None:
        self.billed = 0

        def events(request: Json, text: Any, used: Usage) -> list[Json]:
            fault = script[len(self.wire.requests) % len(script)]
            words = len(fault.text) + fault.reasoning + 1
            used = Usage(input=30, cached=0, output=words, reasoning=fault.reasoning)
            sent = provider.events(request, list(fault.text), used)
            if not fault.reports:
                sent = [without_usage(event) for event in sent]
            if fault.odd is not None and provider.name != "AWS Bedrock":
                sent.insert(1, fault.odd)
            self.billed += used.input + used.output
            return [ending(event, fault.finish) for event in sent]

        def spoil(request: Json, sent: bytes) -> bytes:
            fault = script[len(self.wire.requests) % len(script)]
            self.wire.fail = script[(len(self.wire.requests) + 1) % len(script)].status
            return sent[: int(len(sent) * fault.torn)]

        self.wire.requests.clear()
        self.wire.provider = replace(provider, events=events)
        self.wire.spoil = spoil
        self.wire.fail = script[1 % len(script)].status


def without_usage(event: Json) -> Json:
    usage = ("usage", "usageMetadata", "x_groq", "eval_count", "prompt_eval_count")
    return {
        key: without_usage(value) if isinstance(value, dict) else value
        for key, value in event.items()
        if key not in usage
    }


def graph(model: Any, sync: bool) -> Json:
    app = create_anytime_graph(model, budget=Budget(tokens=BUDGET, seconds=60)).compile()
    out: Json = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
    assert out["best"] is not None
    return dict(out["spent"])


def chat(model: Any, sync: bool) -> Json:
    anytime = ChatAnytime(model=model, budget=Budget(tokens=BUDGET, seconds=60), strategy="single")
    reply = anytime.invoke("Why?") if sync else asyncio.run(anytime.ainvoke("Why?"))
    return dict(reply.response_metadata["anytime"]["spent"])


def agent(model: Any, sync: bool) -> Json:
    middleware = [TokenBudgetMiddleware(Budget(tokens=BUDGET, seconds=60))]
    app = create_agent(model, [], middleware=middleware)
    out: Json = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
    assert out["stop_reason"]
    return dict(out["spent"])


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    with speaking() as wire:
        yield Faulty(wire)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.name.split(":")[0])
@given(
    script=st.lists(faults, min_size=1, max_size=5),
    door=st.sampled_from([graph, chat, agent]),
    sync=st.booleans(),
)
@settings(max_examples=torture or 2)
def test_the_books_hold_what_was_billed_and_never_more_than_the_budget(
    faulty: Faulty, provider: Provider, script: list[Fault], door: Any, sync: bool
) -> None:
    faulty.play(provider, script)
    try:
        spent = door(provider.model(faulty.wire.url), sync)
    except NoAnswer as error:
        spent = dict(error.spent)
    except Exception:
        if door is agent:  # without an answer, its caller gets what the client raised
            return
        raise
    assert faulty.billed <= spent["tokens"] <= BUDGET, json.dumps([str(f) for f in script])
