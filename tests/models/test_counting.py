"""Prompts are counted by the server that bills them: exactly, for nothing, and never on its word alone."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from anytime_graph import Budget, BudgetTooSmall, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.local import local_model
from anytime_graph.metering import learned
from anytime_graph.metering.call import call
from anytime_graph.metering.meter import Meter, meter
from anytime_graph.metering.request import Request
from anytime_graph.models.tokens import uncalibrated
from tests.kit.providers import PROVIDERS, Usage, speaking
from tests.kit.server import Reply, Server, counting, prompt_tokens

FEW = [
    ("system", "Answer each question. Write 'Answer: ...'"),
    *(("user", "What is 26 + 17?"), ("ai", "Answer: 43")) * 4,
    ("user", "What is 85 + 58?"),
]
ASK: Any = {"messages": FEW}
TRUE = prompt_tokens([{"content": text} for _, text in FEW])
"""This endpoint's tokens of the bare question; the bound is 169."""
TIGHT = TRUE + 20
Counting = Callable[[str, dict[str, Any]], Any]


def asked(server: Server, tokens: int = TIGHT, sync: bool = True, **options: Any) -> dict[str, Any]:
    options = {"budget": Budget(tokens=tokens), "strategy": "single", **options}
    app = create_anytime_graph(server.model(), **options).compile()
    return app.invoke(ASK) if sync else asyncio.run(app.ainvoke(ASK))


@pytest.fixture(params=["llamacpp", "vllm"])
def engine(request: pytest.FixtureRequest, server: Server) -> Server:
    server.engine = request.param
    return server


def questions(server: Server) -> int:
    """How often it was asked to count."""
    return len([path for path in server.counted if path != "/v1/models"])


def borne_out(server: Server) -> Server:
    """The server after a first report, which vLLM's counts need."""
    if server.engine == "vllm":
        asked(server, 400)
        server.calls.clear()
    return server


# --- servers that count


@pytest.mark.parametrize("sync", [True, False])
def test_a_counted_prompt_needs_no_more_than_it_is(engine: Server, sync: bool) -> None:
    out = asked(borne_out(engine), sync=sync)
    assert out["spent"]["tokens"] == engine.settled().served <= TIGHT
    assert (out["spent"]["calls"], len(engine.calls)) == (1, 1)
    assert engine.calls[0].limit == TIGHT - TRUE
    with pytest.raises(BudgetTooSmall) as error:
        asked(engine, TRUE + 7)
    assert error.value.least.tokens == TRUE + 8


def test_a_prompt_is_counted_once(engine: Server) -> None:
    asked(borne_out(engine))
    before = questions(engine)
    asked(engine)
    assert questions(engine) == before > 0


@pytest.mark.parametrize("engine", [None, "somebody"])
def test_nobody_is_asked_who_is_not_known_to_count(server: Server, engine: str | None) -> None:
    server.engine = engine
    with pytest.raises(BudgetTooSmall):
        asked(server)
    asked(server, 400)
    asked(server, 400)
    assert server.counted == ["/v1/models"]


def test_no_request_is_made_where_exact_counts_are_off(engine: Server) -> None:
    with pytest.raises(BudgetTooSmall):
        asked(engine, exact_counts=False)
    asked(engine, 400, exact_counts=False)
    chat = ChatAnytime(
        model=engine.model(), budget=Budget(calls=1), exact_counts=False, strategy="single"
    )
    chat.invoke("Why do rivers bend?")
    assert engine.counted == []


def test_counting_leaves_the_event_loop_free(server: Server) -> None:
    server.engine, free = "llamacpp", threading.Event()

    def count(path: str, body: dict[str, Any]) -> Any:
        return counting(path, body) if free.wait(4) else 500

    async def main() -> dict[str, Any]:
        app = create_anytime_graph(
            server.model(), budget=Budget(tokens=TIGHT), strategy="single"
        ).compile()
        run = asyncio.create_task(app.ainvoke(ASK))
        while not server.counted:
            await asyncio.sleep(0)
        free.set()
        return await run

    server.count = count
    assert asyncio.run(main())["spent"]["tokens"] <= TIGHT


def test_media_are_not_counted(engine: Server) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content: list[Any] = [{"type": "text", "text": "What is this?"}, image]
    app = create_anytime_graph(
        engine.model(), budget=Budget(tokens=2_000), media_tokens=500, strategy="single"
    ).compile()
    app.invoke({"messages": [HumanMessage(content)]})
    assert engine.counted == []


# --- servers that lie, refuse or hang


def _telling(kept: Callable[[int], int], pieces: bool = True) -> Counting:
    """Counts fewer tokens than there are, or leaves out the pieces that would bear them out."""

    def count(path: str, body: dict[str, Any]) -> Any:
        told = counting(path, body)
        if path == "/tokenize":
            n = kept(len(told["tokens"]))
            listed = told["tokens"][:n] if pieces else [*range(n)]
            told = {"count": n, "tokens": listed}
        return told

    return count


def _says(told: Any) -> Counting:
    return lambda path, body: told


LIARS = {
    "half": _telling(lambda n: n // 2),
    "one less": _telling(lambda n: n - 1),
    "none": _telling(lambda n: 0),
    "no pieces": _telling(lambda n: n, pieces=False),
    "half without pieces": _telling(lambda n: n // 2, pieces=False),
    "far too many": _telling(lambda n: 10**5, pieces=False),
    "text": _says({"prompt": 7, "tokens": "many", "count": "many"}),
    "nothing": _says({}),
    "list": _says([]),
    "short template": lambda path, body: counting(
        path, {"messages": [{"content": "hi"}]} if path == "/apply-template" else body
    ),
    **{str(status): _says(status) for status in (400, 401, 404, 429, 500, 503)},
    "junk": _says("junk"),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", LIARS)
def test_what_is_not_borne_out_is_not_believed(engine: Server, kind: str) -> None:
    """The bound decides: it refuses a budget that the true prompt would have overspent, or not."""
    engine.count = LIARS[kind]
    engine.script = lambda request, i: Reply(text=None)
    with pytest.raises(BudgetTooSmall):
        asked(engine)
    for tokens in (400, 300, 1_000):
        out = asked(engine, tokens)
        assert out["spent"]["tokens"] == engine.settled().served <= tokens
        engine.calls.clear()


@pytest.mark.parametrize("kind", ["404", "junk", "none"])
def test_who_cannot_count_is_asked_once(engine: Server, kind: str) -> None:
    engine.count = LIARS[kind]
    for _ in range(3):
        asked(engine, 400)
    assert questions(engine) <= 2


def test_a_count_without_pieces_is_used_once_a_report_has_borne_it_out(engine: Server) -> None:
    engine.count = LIARS["no pieces"]
    with pytest.raises(BudgetTooSmall):
        asked(engine)
    asked(engine, 400)
    assert asked(engine)["spent"]["tokens"] <= TIGHT


def test_a_count_that_was_too_low_is_the_last(server: Server) -> None:
    """Pieces may add up to the prompt and yet be too few: here all words are one."""
    server.engine = "llamacpp"

    def count(path: str, body: dict[str, Any]) -> Any:
        told = counting(path, body)
        if path == "/tokenize":
            first, *rest = (token["piece"] for token in told["tokens"])
            half = len(rest) // 3
            pieces = [first + "".join(rest[:half]), *rest[half:]]
            told = {"tokens": [{"id": 0, "piece": piece} for piece in pieces]}
        return told

    server.count = count
    asked(server, 1_000)
    with pytest.raises(BudgetTooSmall):
        asked(server)


def test_a_server_that_hangs_takes_a_tenth_of_the_time_and_counts_as_time(engine: Server) -> None:
    engine.count = _says("hang")
    out = asked(engine, budget=Budget(tokens=400, seconds=3))
    assert 0.3 <= out["spent"]["seconds"] <= 3
    assert out["spent"]["calls"] == len(engine.calls) == 1
    asked(engine, 400)
    assert questions(engine) == 1


# --- providers that count


@pytest.mark.parametrize(
    ("name", "counts"), [("Anthropic", {"input_tokens": 28}), ("Google", {"totalTokens": 18})]
)
@pytest.mark.parametrize("exact", [True, None])
def test_providers_count_where_that_is_asked_for(
    name: str, counts: dict[str, int], exact: bool | None
) -> None:
    """Of 28 tokens by Anthropic's estimate, and of 18 of Google's with 11 for its template, 29 are
    reserved. A first report bears them out."""
    provider = next(p for p in PROVIDERS if p.name == name)
    with speaking() as wire:
        wire.provider, wire.counts = provider, counts
        wire.used = Usage(input=29, cached=0, output=9, reasoning=0)
        model = provider.model(wire.url)
        options: dict[str, Any] = {"strategy": "single", "answer": "whole", "exact_counts": exact}

        def spent(tokens: int) -> int:
            budget = Budget(tokens=tokens, calls=1)
            app = create_anytime_graph(model, budget=budget, **options).compile()
            out = app.invoke({"messages": [("user", "Why do rivers bend?")]})
            return int(out["spent"]["tokens"])

        with pytest.raises(BudgetTooSmall):
            spent(29 + 16)
        assert spent(400) == 29 + 9
        if exact:
            assert spent(29 + 16) == 29 + 9
            assert wire.counted == 1
        else:
            assert wire.counted == 0


# --- the embedded model


@pytest.fixture(scope="module")
def embedded() -> Meter:
    return meter(local_model(temperature=0.0), None, None, None)


def billed(embedded: Meter, prompt: list[BaseMessage]) -> tuple[int, int]:
    """What the embedded model counts, and what it bills."""
    learned.forget()
    _, counted = embedded.max_input(prompt, uncalibrated())
    reply = call(embedded, Request(prompt=prompt, max_input=counted, max_output=1), {})
    reported = reply.receipt["reported"]
    assert reported is not None
    return counted, reported


def test_the_embedded_model_counts_what_it_bills(embedded: Meter) -> None:
    texts = (
        *("Why?", "85 + 58 = 143, 9999999", "  two  spaces\n\n\tand a tab ", "Größe, être, ñ"),
        *(
            "日本語と漢字",
            "🙂👩‍👩‍👧",
            "<|im_end|>\n<|im_start|>system",
            "def f(x):\n    return x",
            "\ud83d",
        ),
    )
    ratios = []
    for i, text in enumerate(texts):
        prompt: list[BaseMessage] = [HumanMessage(text)]
        if i % 3 == 1:
            prompt.insert(0, SystemMessage("Be brief."))
        if i % 3 == 2:
            prompt += [AIMessage("I see."), HumanMessage([{"type": "text", "text": "Go on."}])]
        counted, reported = billed(embedded, prompt)
        assert counted == reported, text
        ratios.append(counted / reported)
    assert statistics.mean(ratios) == 1.0


@pytest.mark.parametrize("sync", [True, False])
def test_the_embedded_model_answers_where_the_bound_would_refuse(sync: bool) -> None:
    model, budget = local_model(seed=3), Budget(tokens=160)
    with pytest.raises(BudgetTooSmall):
        create_anytime_graph(model, budget=budget, exact_counts=False).compile().invoke(ASK)
    app = create_anytime_graph(model, budget=budget).compile()
    out = app.invoke(ASK) if sync else asyncio.run(app.ainvoke(ASK))
    assert out["best"]["answer"]
    assert out["spent"]["input_tokens"] / out["spent"]["calls"] <= 144
    assert out["spent"]["tokens"] <= 160
