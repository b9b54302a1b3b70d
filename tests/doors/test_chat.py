"""ChatAnytime: the books of a whole invocation in one message, tools, schemas, traces, streams."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, SecretStr, ValidationError, field_serializer

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    Draft,
    NoAnswer,
    Prices,
    Score,
    create_anytime_graph,
)
from anytime_graph.chat import IMPROVEMENT, ChatAnytime
from tests.kit.marks import torture
from tests.kit.server import Reply, Server, serving
from tests.kit.waiting import auntil

QUESTION = "Why do rivers bend?"


def numbered(request: dict[str, Any], i: int) -> Reply:
    return Reply(f"answer number {i}")


def by_number(question: str, answer: str) -> float:
    return int(answer.split()[-1]) / 100


def weather(city: str) -> str:
    """The weather in a city."""
    return "sunny"


class Place(BaseModel):
    """A place."""

    name: str
    people: int


class Named(BaseModel):
    """A place whose people are not always known."""

    name: str
    people: int | None = None


WHOLE = '{"name": "Rome", "people": 2800000}'


def chat(server: Server, **options: Any) -> ChatAnytime:
    given: dict[str, Any] = {"budget": Budget(tokens=4_000), "scorer": by_number}
    return ChatAnytime(model=server.model(), **given | options)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.script = numbered
        yield server


# --- the books


@settings(max_examples=torture or 10)
@given(
    tokens=st.integers(200, 3_000),
    lengths=st.lists(st.one_of(st.none(), st.integers(1, 60)), min_size=1, max_size=6),
    tools=st.booleans(),
)
def test_an_invocation_never_overspends_and_says_what_it_cost(
    endless: Server, tokens: int, lengths: list[int | None], tools: bool
) -> None:
    """Whatever the replies' lengths (None: they fill any limit), with tools and without."""
    endless.calls.clear()
    endless.script = lambda request, i: Reply(
        (n := lengths[i % len(lengths)]) and "word " * n,
        tools=[("weather", {"city": "Rome"})] if "tools" in request and i % 3 == 2 else [],
    )
    model = ChatAnytime(model=endless.model(), budget=Budget(tokens=tokens))
    asked = model.bind_tools([weather]) if tools else model
    try:
        message = asked.invoke(QUESTION)
    except (BudgetTooSmall, NoAnswer):
        assert endless.settled().served <= tokens
        return
    assert endless.settled().served == message.usage_metadata["total_tokens"] <= tokens
    assert message.usage_metadata["input_tokens"] == sum(c.prompt for c in endless.calls)
    assert message.response_metadata["anytime"]["spent"]["calls"] == len(endless.calls)


@pytest.fixture(scope="module")
def endless() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_the_reply_is_the_best_one_and_says_how_it_came_about(server: Server) -> None:
    message = chat(server, budget=Budget(calls=6)).invoke(QUESTION)
    told = message.response_metadata["anytime"]
    assert message.content == "answer number 5"
    assert (told["score"], told["stop_reason"]) == (0.05, "calls")
    assert (told["spent"]["calls"], told["spent"]["tokens"]) == (6, server.served)
    assert message.response_metadata["model_name"] == "scripted"
    assert message.response_metadata["finish_reason"] == "stop"


def test_usage_has_the_details_that_are_known(server: Server) -> None:
    server.script = lambda request, i: Reply("so 1", reasoning=5, cached=2)
    usage = chat(server, budget=Budget(calls=3)).invoke(QUESTION).usage_metadata
    assert usage["output_token_details"] == {"reasoning": 15}
    assert usage["input_token_details"] == {"cache_read": 6}


def test_sync_and_async_are_the_same(server: Server) -> None:
    model = chat(server, strategy="self_refine", budget=Budget(calls=5))
    first = model.invoke(QUESTION)
    made = len(server.calls)
    server.script = lambda request, i: numbered(request, i - made)
    second = asyncio.run(model.ainvoke(QUESTION))
    assert first.content == second.content
    assert first.usage_metadata == second.usage_metadata
    assert [c.text for c in server.calls[:made]] == [c.text for c in server.calls[made:]]


def test_each_of_a_batch_has_its_own_budget(server: Server) -> None:
    model = chat(server, budget=Budget(calls=2))
    replies = model.batch([QUESTION, "Why is it wet?"])
    assert [m.response_metadata["anytime"]["spent"]["calls"] for m in replies] == [2, 2]


def test_the_budget_can_be_configured_for_a_call(server: Server) -> None:
    model = chat(server).configurable_fields(budget=ConfigurableField(id="budget"))
    reply = model.invoke(QUESTION, {"configurable": {"budget": Budget(calls=1)}})
    assert reply.response_metadata["anytime"]["spent"]["calls"] == 1


def test_a_cached_answer_is_not_bought_again(server: Server) -> None:
    model = chat(server, budget=Budget(calls=2), cache=InMemoryCache())
    first, made = model.invoke(QUESTION), len(server.calls)
    assert model.invoke(QUESTION).content == first.content
    assert len(server.calls) == made
    model.model_copy(update={"budget": Budget(calls=1)}).invoke(QUESTION)
    assert len(server.calls) == made + 1


# --- errors


def test_a_budget_too_small_is_refused_before_anything_is_spent(server: Server) -> None:
    with pytest.raises(BudgetTooSmall) as refused:
        chat(server, budget=Budget(tokens=5)).invoke(QUESTION)
    assert refused.value.least.tokens > 5
    assert server.calls == []


def test_no_answer_keeps_its_causes_and_what_it_cost(server: Server) -> None:
    server.script = lambda request, i: Reply(error=500)
    with pytest.raises(NoAnswer) as failed:
        chat(server).invoke(QUESTION)
    assert "HTTP 500" in failed.value.causes[0]
    assert failed.value.spent["calls"] == len(server.calls)


def test_an_error_with_an_answer_in_hand_costs_no_answer(server: Server) -> None:
    server.script = lambda request, i: Reply("answer number 1") if i == 0 else Reply(error=500)
    assert chat(server, strategy="self_refine").invoke(QUESTION).content == "answer number 1"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strategy": "pdq"}, "strategy='pdq'"),
        ({"scorer": 3}, "scorer=3"),
        ({"width": 1}, "width=1"),
        ({"budget": "much"}, "budget"),
        ({"answer": Place}, "with_structured_output"),
        ({"timeout": 3}, "timeout"),
        ({"model": 7}, "model=int"),
    ],
)
def test_bad_arguments_fail_at_construction(
    server: Server, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        ChatAnytime(**{"model": server.model(), "budget": Budget(calls=1)} | options)


def test_errors_show_no_key(server: Server) -> None:
    inner = server.model(default_headers={"x-secret": "s3cret"})
    with pytest.raises(ValidationError) as error:
        ChatAnytime(model=inner, budget=Budget(calls=1), width=0)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


def test_it_is_no_model_for_a_budget_to_hold(server: Server) -> None:
    with pytest.raises(ValueError, match="within its own budget"):
        create_anytime_graph(chat(server))


def test_another_model_needs_its_own_price(server: Server) -> None:
    model = chat(server, budget=Budget(usd=0.1), prices=Prices(input=1, output=2))
    assert model.invoke(QUESTION).response_metadata["anytime"]["spent"]["usd"] <= 0.1
    with pytest.raises(ValueError, match="the price of 'another'"):
        model.invoke(QUESTION, model="another")


def test_cancelling_closes_the_connection(server: Server) -> None:
    server.script = lambda request, i: Reply(text=None, ignore_limit=True, pace=0.01)
    model = ChatAnytime(model=server.model(), budget=Budget(calls=1))

    async def cancelled() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.create_task(model.ainvoke(QUESTION))
        server.watch = lambda event, call: loop.call_soon_threadsafe(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        server.watch = lambda event, call: None

    asyncio.run(cancelled())
    assert [call.closed_early for call in server.settled().calls] == [True]


class Pieces(httpx.AsyncBaseTransport):
    """A server whose pieces come when the test says so. deaf: a wait that is cancelled gives one too."""

    def __init__(self, deaf: bool = False) -> None:
        self.asked, self.deaf = asyncio.Event(), deaf
        self.pieces: asyncio.Queue[str] = asyncio.Queue()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def sent() -> AsyncIterator[bytes]:
            self.asked.set()
            while True:
                try:
                    piece = await self.pieces.get()
                except asyncio.CancelledError:
                    if not self.deaf:
                        raise
                    piece = "so"
                delta = {"role": "assistant", "content": piece}
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                chunk = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
                yield f"data: {json.dumps(chunk)}\n\n".encode()

        return httpx.Response(200, content=sent(), headers={"content-type": "text/event-stream"})


async def left_by(network: Pieces, passes: int, **options: Any) -> set[asyncio.Task[Any]]:
    """The tasks that go on after a call was cancelled, with a piece coming some passes of the loop later."""
    inner = ChatOpenAI(
        model="m",
        api_key=SecretStr("none"),
        http_async_client=httpx.AsyncClient(transport=network),
        **options,
    )
    model = ChatAnytime(model=inner, budget=Budget(tokens=1_000), strategy="single")
    task = asyncio.create_task(model.ainvoke(QUESTION))
    await network.asked.wait()
    task.cancel()
    for _ in range(passes):
        await asyncio.sleep(0)
    network.pieces.put_nowait("so")
    with pytest.raises(asyncio.CancelledError):
        await task
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_call_ends_that_is_cancelled_just_when_a_piece_comes(passes: int) -> None:
    """In Python 3.11, a wait for a piece may swallow that."""
    assert not asyncio.run(left_by(Pieces(), passes))


def test_a_call_ends_whose_client_swallows_every_cancellation() -> None:
    """So does that wait, if many pieces have come while the event loop stood still."""
    assert not asyncio.run(left_by(Pieces(deaf=True), 20, stream_chunk_timeout=None))


@pytest.mark.parametrize("times", [2, 30])
def test_a_call_ends_that_is_cancelled_again_and_again(server: Server, times: int) -> None:
    """A scope of anyio does so in every pass of the event loop, until what is in it has ended."""
    server.script = lambda request, i: Reply(text=None, ignore_limit=True, pace=0.01)
    model = ChatAnytime(model=server.model(), budget=Budget(tokens=1_000))

    async def left() -> set[asyncio.Task[Any]]:
        task = asyncio.create_task(model.ainvoke(QUESTION))
        await auntil(lambda: server.calls)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert not asyncio.run(left())
    assert [call.closed_early for call in server.settled().calls] == [True]


def test_nothing_is_left_at_work_by_a_call_that_is_cancelled_while_it_tells_of_an_answer(
    server: Server,
) -> None:
    class Slow(AsyncCallbackHandler):
        async def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
            reached.set()
            await asyncio.Event().wait()

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text=None, ignore_limit=True, pace=0.01) if i else Reply("fine")

    server.script, reached = script, asyncio.Event()
    model = ChatAnytime(
        model=server.model(),
        budget=Budget(calls=4),
        scorer=lambda question, answer: 0.5,
        strategy="best_of_n",
    )

    async def cancelled() -> set[asyncio.Task[Any]]:
        task = asyncio.create_task(model.ainvoke(QUESTION, {"callbacks": [Slow()]}))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert not asyncio.run(cancelled())


# --- who decides


class City(BaseModel):
    name: str


@pytest.mark.parametrize("tokens", [250, 700])
def test_structured_answers_without_a_scorer_are_counted(server: Server, tokens: int) -> None:
    names = ["Rome", *["Paris"] * 8]
    server.script = lambda request, i: Reply(text=json.dumps({"name": names[i]}))
    model = ChatAnytime(model=server.model(), budget=Budget(tokens=tokens))
    structured = model.with_structured_output(City, method="json_schema")
    assert structured.invoke("A big city?") == City(name="Paris")
    assert not any("Compare" in call.text for call in server.calls)


def test_strategies_of_ones_own_can_go_by_agreement_too(server: Server) -> None:
    names = ["Rome", "Paris", "Paris"]
    server.script = lambda request, i: Reply(text=names[i])
    model = ChatAnytime(
        model=server.model(),
        budget=Budget(calls=3),
        strategy=lambda view: [Draft()] * 3 if view.best is None else [],
        scorer="agreement",
    )
    assert model.invoke(QUESTION).text == "Paris"


# --- what goes in


def test_what_is_asked_for_reaches_the_model_and_not_its_judge(server: Server) -> None:
    model = ChatAnytime(
        model=server.model(), budget=Budget(calls=6), scorer="judge", temperature=0.5
    )
    model.invoke(QUESTION, stop=["END"], presence_penalty=0.25)
    drafts = [c.request for c in server.calls if "Compare two answers" not in c.text]
    verdicts = [c.request for c in server.calls if "Compare two answers" in c.text]
    assert drafts
    assert verdicts
    assert all(r["stop"] == ["END"] for r in drafts)
    assert not any("stop" in r for r in verdicts)
    assert {r["presence_penalty"] for r in [*drafts, *verdicts]} == {0.25}
    assert {r["temperature"] for r in [*drafts, *verdicts]} == {0.5}


def test_a_conversation_goes_in_as_it_is_and_stays_as_it_was(server: Server) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    same = HumanMessage("one", id="1")
    messages = [
        SystemMessage("Be brief."),
        same,
        AIMessage("two", id="x"),
        same,
        AIMessage("three"),
        HumanMessage([{"type": "text", "text": "And this?"}, picture], name="ann"),
    ]
    before = [m.model_dump() for m in messages]
    chat(server, budget=Budget(calls=1), media_tokens=1_000).invoke(messages)
    sent = server.calls[0].request["messages"]
    assert [m["role"] for m in sent] == ["system", *["user", "assistant"] * 2, "user"]
    assert [m["content"] for m in sent[:5]] == ["Be brief.", "one", "two", "one", "three"]
    assert sent[5]["content"][:2] == messages[5].content
    assert sent[5]["name"] == "ann"
    assert [m.model_dump() for m in messages] == before


def test_an_answer_can_be_asked_for_in_tags(server: Server) -> None:
    server.script = lambda request, i: Reply(f"Well. <answer>{i}</answer>")
    message = chat(server, answer="tags", budget=Budget(calls=2)).invoke(QUESTION)
    assert message.content == "1"
    assert "<answer>" in server.calls[0].text


def test_it_is_known_by_the_model_inside(server: Server) -> None:
    inner = server.model(temperature=0.5, profile={"max_input_tokens": 9})
    model = ChatAnytime(model=inner, budget=Budget(calls=1))
    assert model._get_ls_params() == inner._get_ls_params()
    assert model.profile == inner.profile
    assert model.get_num_tokens_from_messages.__self__ is model
    assert model._get_invocation_params()["model"] == "scripted"


# --- tools


def calling(request: dict[str, Any], i: int) -> Reply:
    """Calls a tool at first; answers when it has been told."""
    if not any(message["role"] == "tool" for message in request["messages"]):
        return Reply("Let me see. ", tools=[("weather", {"city": "Rome"})])
    return numbered(request, i)


def test_a_reply_that_calls_tools_is_returned_as_it_is(server: Server) -> None:
    server.script = calling
    message = chat(server).bind_tools([weather]).invoke(QUESTION)
    assert len(server.calls) == 1
    assert message.content == "Let me see. "
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("weather", {"city": "Rome"})]
    assert message.response_metadata["anytime"]["stop_reason"] == "tool_calls"
    assert message.usage_metadata["total_tokens"] == server.served


def test_an_answer_in_the_presence_of_tools_is_improved_on(server: Server) -> None:
    """And a later reply that calls tools is no answer, whatever it says beside."""
    server.script = lambda request, i: (
        Reply("answer number 90", tools=[("weather", {})]) if i == 1 else numbered(request, i)
    )
    message = chat(server, budget=Budget(calls=4)).bind_tools([weather]).invoke(QUESTION)
    assert message.content == "answer number 3"
    assert message.tool_calls == []
    assert len(server.calls) == 4


def test_a_call_whose_arguments_were_cut_is_never_returned(server: Server) -> None:
    server.script = lambda request, i: Reply("", tools=[("weather", {"city": "a b c " * 400})])
    with pytest.raises(NoAnswer):
        chat(server, budget=Budget(tokens=900)).bind_tools([weather]).invoke(QUESTION)
    assert 0 < server.settled().served <= 900


def test_a_scorer_sees_answers_only(server: Server) -> None:
    server.script, seen = calling, []
    chat(server, scorer=lambda q, a: seen.append(a)).bind_tools([weather]).invoke(QUESTION)
    assert seen == []


def test_in_an_agent(server: Server) -> None:
    """Tools are called, the answer is improved on, nothing of it enters the agent's checkpoints,
    and each message is streamed once."""
    server.script, saver = calling, InMemorySaver()
    agent = create_agent(chat(server, budget=Budget(calls=3)), [weather], checkpointer=saver)
    streamed: dict[str, list[Any]] = {"messages": [], "custom": []}
    parts = agent.stream(
        {"messages": [("user", QUESTION)]},
        {"configurable": {"thread_id": "1"}},
        stream_mode=["messages", "custom"],
        subgraphs=True,
    )
    for _, mode, part in parts:
        streamed[mode].append(part)
    said = [message for message, _ in streamed["messages"]]
    assert [type(m) for m in said] == [AIMessage, ToolMessage, AIMessage]
    assert [e["answer"] for e in streamed["custom"]][-1] == said[-1].content == "answer number 3"
    assert len(server.calls) == 4
    assert list(saver.storage["1"]) == [""]


def test_in_an_async_agent(server: Server) -> None:
    server.script = calling
    agent = create_agent(chat(server, budget=Budget(calls=3)), [weather])

    async def stream() -> list[Any]:
        state = {"messages": [("user", QUESTION)]}
        return [part async for part in agent.astream(state, stream_mode=["messages", "custom"])]

    parts = asyncio.run(stream())
    said = [part[0] for mode, part in parts if mode == "messages"]
    assert [type(m) for m in said] == [AIMessage, ToolMessage, AIMessage]
    assert [part["answer"] for mode, part in parts if mode == "custom"][-1] == said[-1].content


def test_an_agents_structured_answer(server: Server) -> None:
    place = json.dumps({"name": "Rome", "people": 3})
    server.script = lambda request, i: Reply(place if i else '{"name": ')
    inner = server.model(profile={"structured_output": True, "tool_calling": True})
    model = ChatAnytime(model=inner, budget=Budget(calls=3), scorer=lambda q, a: 0.5)
    out = create_agent(model, response_format=Place).invoke({"messages": [("user", QUESTION)]})
    assert out["structured_response"] == Place(name="Rome", people=3)


@pytest.mark.parametrize("name", ["scripted", "gpt-4.1"])
def test_an_agent_asks_for_structure_as_the_models_name_allows(server: Server, name: str) -> None:
    """By a tool, or, of a model that LangChain knows by its name, by a schema."""
    place: Any = {"name": "Rome", "people": 3}
    server.script = lambda request, i: (
        Reply("", tools=[("Place", place)]) if request["tools"] else Reply(json.dumps(place))
    )
    inner = server.model().model_copy(update={"model_name": name, "profile": None})
    model = ChatAnytime(model=inner, budget=Budget(calls=3), scorer=lambda q, a: 0.5)
    out = create_agent(model, response_format=Place).invoke({"messages": [("user", QUESTION)]})
    assert out["structured_response"] == Place(**place)
    assert all(bool(c.request["tools"]) == (name == "scripted") for c in server.calls)


# --- structured output


def placed(request: dict[str, Any], i: int) -> Reply:
    """The first is none, the second lacks a key; by text or by tool, as asked."""
    place: Any = [{"people": "many"}, {"name": "Rome"}, {"name": "Rome", "people": i}][min(i, 2)]
    if "tools" in request:
        return Reply("", tools=[("Place", place)])
    return Reply(json.dumps(place))


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Place, Place.model_json_schema()], ids=["class", "schema"])
def test_what_does_not_fit_the_schema_is_no_candidate(
    server: Server, method: str, schema: Any
) -> None:
    server.script, seen = placed, []

    def score(question: str, answer: Any) -> float:
        seen.append(answer)
        return (answer["people"] if isinstance(answer, dict) else answer.people) / 10

    model = chat(server, scorer=score, budget=Budget(calls=5))
    found = model.with_structured_output(schema, method=method).invoke(QUESTION)
    wanted = {"name": "Rome", "people": 4}
    assert found == (Place(**wanted) if schema is Place else wanted)
    assert len(server.calls) == 5
    assert len(seen) == 3
    assert all(isinstance(answer, Place if schema is Place else dict) for answer in seen)
    form = "tools" if method == "function_calling" else "response_format"
    assert all(form in call.request for call in server.calls)


def test_the_raw_reply_of_a_structured_answer(server: Server) -> None:
    server.script = placed
    model = chat(server, scorer=lambda q, a: 0.1, budget=Budget(calls=4))
    out = model.with_structured_output(Place, include_raw=True).invoke(QUESTION)
    assert out["parsed"] == Place.model_validate_json(out["raw"].text)
    assert out["raw"].usage_metadata["total_tokens"] == server.served
    assert out["parsing_error"] is None


def test_a_judge_is_not_held_to_the_schema_of_the_answer(server: Server) -> None:
    server.script = lambda request, i: placed(request, 2 + i)
    model = ChatAnytime(model=server.model(), budget=Budget(calls=6), strategy="self_refine")
    for method in ("json_schema", "function_calling"):
        server.calls.clear()
        model.with_structured_output(Place, method=method).invoke(QUESTION)
        others = [c.request for c in server.calls if "material" in c.text]
        assert others
        assert not any("tools" in r or "response_format" in r for r in others)


def test_equal_structured_answers_are_one_vote(server: Server) -> None:
    spellings = ['{"name":"Rome","people":3}', '{ "people": 3, "name": "Rome" }']
    server.script = lambda request, i: Reply(
        '{"name": "Bonn", "people": 1}' if i == 0 else spellings[i % 2]
    )
    model = chat(server, scorer=None, strategy="self_consistency", budget=Budget(calls=4))
    assert model.with_structured_output(Place).invoke(QUESTION).name == "Rome"


class Size(BaseModel):
    value: int
    unit: str = "cm"


class Mute(BaseModel):
    """Reads what it cannot write."""

    value: int

    @field_serializer("value")
    def _write(self, value: int) -> int:
        raise RuntimeError("no")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Size, Size.model_json_schema()], ids=["class", "schema"])
def test_a_field_that_is_left_to_its_default_is_the_same_vote(
    server: Server, method: str, schema: Any
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        size: Any = [{"value": 1}, {"value": 2}, {"value": 2, "unit": "cm"}, {"value": 3}][i]
        return Reply("", tools=[("Size", size)]) if "tools" in request else Reply(json.dumps(size))

    server.script = script
    model = chat(server, scorer=None, strategy="self_consistency", budget=Budget(calls=4))
    found = model.with_structured_output(schema, method=method).invoke(QUESTION)
    assert (found["value"] if isinstance(found, dict) else found.value) == 2


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_that_its_schema_cannot_write_is_not_lost(server: Server, method: str) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        value: Any = {"value": i}
        return Reply("", tools=[("Mute", value)]) if "tools" in request else Reply('{"value": 2}')

    server.script = script
    model = chat(server, scorer=lambda q, a: a.value / 10, budget=Budget(calls=3))
    assert model.with_structured_output(Mute, method=method).invoke(QUESTION).value == 2


def test_no_reply_that_fits_is_no_answer(server: Server) -> None:
    server.script = lambda request, i: Reply('{"people": 3}')
    with pytest.raises(NoAnswer, match="is no such answer"):
        chat(server, budget=Budget(calls=2)).with_structured_output(Place).invoke(QUESTION)


@pytest.mark.pairwise
@pytest.mark.parametrize("method", ["json_mode", "json_schema"])
@pytest.mark.parametrize("schema", [Named, Named.model_json_schema()], ids=["class", "schema"])
@given(kept=st.integers(1, len(WHOLE) - 1), fenced=st.booleans())
@settings(max_examples=torture or 8)
def test_json_that_was_cut_is_no_answer(
    endless: Server, method: str, schema: Any, kept: int, fenced: bool
) -> None:
    """Though its end is called a natural one, and the schema would be content with less."""
    start = "```json\n" if fenced else ""
    endless.script = lambda request, i: Reply(start + WHOLE[:kept])
    model = chat(endless, scorer=lambda question, answer: 0.5, budget=Budget(calls=2))
    with pytest.raises(NoAnswer, match="is no such answer"):
        model.with_structured_output(schema, method=method).invoke(QUESTION)
    endless.script = lambda request, i: Reply(f"{start}{WHOLE}" + ("\n```" if fenced else ""))
    if method == "json_mode" or not fenced:
        assert model.with_structured_output(schema, method=method).invoke(QUESTION)


# --- streams, callbacks, traces


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.answers: list[str] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("start")

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.events.append("token")

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("end")

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append(name)
        self.answers.append(data["answer"])


def test_a_stream_is_the_answer_and_callbacks_see_one_run(server: Server) -> None:
    heard, model = Heard(), chat(server, strategy="self_refine", budget=Budget(calls=5))
    (chunk,) = model.stream(QUESTION, {"callbacks": [heard]})
    assert chunk.content == heard.answers[-1] == "answer number 4"
    assert heard.events == ["start", *[IMPROVEMENT] * 3, "end"]
    assert chunk.usage_metadata["total_tokens"] == server.served


def test_usage_is_counted_once(server: Server) -> None:
    model = chat(server, budget=Budget(calls=3))
    with get_usage_metadata_callback() as counted:
        model.invoke(QUESTION)
        asyncio.run(model.ainvoke(QUESTION))
    assert counted.usage_metadata["scripted"]["total_tokens"] == server.served


def test_a_model_in_a_chain_and_its_events(server: Server) -> None:
    chain = ChatPromptTemplate.from_template("Why {what}?") | chat(server) | StrOutputParser()

    async def events() -> list[Any]:
        return [event async for event in chain.astream_events({"what": "so"}, version="v2")]

    named = [(e["event"], e["name"]) for e in asyncio.run(events())]
    assert named.count(("on_chat_model_start", "ChatAnytime")) == 1
    assert not any(name in ("draft", "refine") for _, name in named)
    assert ("on_custom_event", IMPROVEMENT) in named


@pytest.mark.parametrize("how", ["invoke", "stream", "ainvoke", "astream"])
def test_traces_hold_every_call_below_the_model(server: Server, how: str) -> None:
    traced, model = RunCollectorCallbackHandler(), chat(server, budget=Budget(calls=3))
    chain = RunnableLambda(lambda text: text) | model
    config: Any = {"callbacks": [traced], "tags": ["mine"]}

    async def run() -> None:
        if how == "ainvoke":
            await chain.ainvoke(QUESTION, config)
        else:
            [_ async for _ in chain.astream(QUESTION, config)]

    if how.startswith("a"):
        asyncio.run(run())
    else:
        list(chain.stream(QUESTION, config)) if how == "stream" else chain.invoke(QUESTION, config)
    (root,) = traced.traced_runs
    (outer,) = [run for run in root.child_runs if run.run_type == "llm"]
    assert outer.name == "ChatAnytime"
    calls = [run for run in _below(outer) if run.run_type == "llm"]
    assert len(calls) == len(server.calls) == 3
    assert all("mine" in run.tags for run in calls)


@pytest.mark.parametrize("error", [None, "break"])
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_the_model_runs_of_a_trace_add_up_to_the_bill(
    server: Server, sync: bool, error: str | None
) -> None:
    """With a call that ended without a report (break), and so is charged in full."""
    long = Reply("word " * 20, error=error)
    server.script = lambda request, i: long if i == 1 else numbered(request, i)
    traced, model = RunCollectorCallbackHandler(), chat(server, budget=Budget(calls=3))
    config: Any = {"callbacks": [traced]}
    with get_usage_metadata_callback() as counted:
        reply = (
            model.invoke(QUESTION, config) if sync else asyncio.run(model.ainvoke(QUESTION, config))
        )
    (root,) = traced.traced_runs
    runs = [run for run in (root, *_below(root)) if run.run_type == "llm" and not run.error]
    replies = [run.outputs["generations"][0][0]["message"]["kwargs"] for run in runs]
    usages = [reply["usage_metadata"] for reply in replies if "usage_metadata" in reply]
    bill = reply.usage_metadata["total_tokens"]
    assert sum(usage["total_tokens"] for usage in usages) == bill
    assert reply.response_metadata["anytime"]["spent"]["tokens"] == bill >= server.settled().served
    assert counted.usage_metadata["scripted"]["total_tokens"] == bill


def _below(run: Any) -> list[Any]:
    return [inner for child in run.child_runs for inner in (child, *_below(child))]


def test_handlers_of_the_inner_model_hear_each_call(server: Server) -> None:
    heard = Heard()
    inner = server.model(callbacks=[heard])
    ChatAnytime(model=inner, budget=Budget(calls=2), scorer=by_number).invoke(QUESTION)
    assert heard.events.count("start") == heard.events.count("end") == 2


@pytest.mark.parametrize("door", ["chat", "graph", "judge", "schema"])
def test_the_config_that_is_bound_to_a_model_goes_with_its_calls(server: Server, door: str) -> None:
    heard, traced = Heard(), RunCollectorCallbackHandler()
    config: Any = {"callbacks": [heard, traced], "tags": ["mine"], "metadata": {"tenant": "acme"}}
    model: Any = server.model().with_config(config).bind(temperature=0.5)
    own: Any = {"budget": Budget(calls=5), "scorer": None if door == "judge" else by_number}
    own["strategy"] = "best_of_n" if door == "judge" else "adaptive"
    if door == "graph":
        create_anytime_graph(model, **own).compile().invoke({"messages": [("user", QUESTION)]})
    elif door == "schema":
        server.script, own["scorer"] = placed, lambda question, answer: 0.5
        ChatAnytime(model=model, **own).with_structured_output(Place).invoke(QUESTION)
    else:
        ChatAnytime(model=model, **own).invoke(QUESTION)
    assert heard.events.count("start") == len(server.calls) == 5
    assert all(call.request["temperature"] == 0.5 for call in server.calls)
    assert [("mine" in run.tags, run.metadata["tenant"]) for run in traced.traced_runs] == [
        (True, "acme")
    ] * 5


def test_listeners_that_are_bound_to_a_model_hear_each_call(server: Server) -> None:
    ended: list[Any] = []
    model: Any = server.model().with_listeners(on_end=ended.append)
    ChatAnytime(model=model, budget=Budget(calls=3), scorer=by_number).invoke(QUESTION)
    assert len(ended) == 3


def test_a_usage_report_that_a_user_declined_is_not_asked_for(server: Server) -> None:
    model = server.model(stream_usage=False)
    reply = ChatAnytime(model=model, budget=Budget(tokens=1_000), scorer=by_number).invoke(QUESTION)
    assert not any("stream_options" in call.request for call in server.calls)
    assert server.served <= reply.response_metadata["anytime"]["spent"]["tokens"] <= 1_000


@pytest.mark.parametrize("answer", ["whole", "tags"])
def test_instructions_in_blocks_stay_blocks(server: Server, answer: str) -> None:
    """What is marked for a provider's cache stays marked, in every draft and refinement."""
    block = {"type": "text", "text": "You know rivers.", "cache_control": {"type": "ephemeral"}}
    model = ChatAnytime(
        model=server.model(),
        budget=Budget(calls=3, output_tokens=127),
        strategy="self_refine",
        answer=answer,
        scorer=lambda question, answer: Score(0.5, "It is too short."),
    )
    model.invoke([SystemMessage([block]), HumanMessage(QUESTION)])
    heads = [call.request["messages"][0] for call in server.calls]
    assert [(head["role"], head["content"][0]) for head in heads] == [("system", block)] * 3
    assert any("can be about" in said["text"] for head in heads for said in head["content"][1:])


# --- as a tool


def test_as_a_tool(server: Server) -> None:
    tool = chat(server, budget=Budget(calls=2)).as_tool(name="ponder", description="Ponder.")
    assert (tool.name, tool.description, list(tool.args)) == ("ponder", "Ponder.", ["question"])
    assert tool.invoke({"question": QUESTION}) == "answer number 1"
    assert asyncio.run(tool.ainvoke({"question": QUESTION})) == "answer number 3"


def test_as_a_tool_of_an_agent(server: Server) -> None:
    server.script = lambda request, i: (
        Reply("", tools=[("think", {"question": "Why?"})]) if i == 0 else numbered(request, i)
    )
    tool = chat(server, budget=Budget(calls=2)).as_tool()
    out = create_agent(server.model(), [tool]).invoke({"messages": [("user", QUESTION)]})
    assert [m.content for m in out["messages"][1:]] == ["", "answer number 2", "answer number 3"]
