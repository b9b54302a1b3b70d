"""What a request asks for besides text, another model or a dearer tier: bounded, priced or refused before
any call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from anytime_graph import Budget, NoAnswer, Prices, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering.meter import meter
from anytime_graph.middleware import TokenBudgetMiddleware
from anytime_graph.models import prices_of
from anytime_graph.models.tokens import uncalibrated
from tests.kit.providers import NAMED
from tests.kit.server import Reply, Server, serving

DATA = "QUJDRA+z" * 10_000
URL_IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
BLOCKS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    {"type": "image", "url": "https://example.org/a.png"},
    {"type": "file", "url": "https://example.org/y.pdf", "mime_type": "application/pdf"},
    {"type": "document", "source": {"type": "url", "url": "https://example.org/y.pdf"}},
    {"type": "document", "source": {"type": "base64", "data": DATA}},
    {"type": "input_file", "file_id": "file-1"},
    {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
    {"type": "video", "file_id": "v"},
    {"document": {"format": "pdf", "source": {"s3Location": {"uri": "s3://a/b"}}}},
    {"type": "tomorrow", "of": "an unknown kind"},
    {"type": "document", "source": {"type": "content", "content": [URL_IMAGE]}},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]},
    {"type": "non_standard", "value": {"type": "input_file", "file_id": "file-1"}},
    {"toolResult": {"toolUseId": "t", "content": [{"image": {"format": "png"}}]}},
    {"guardContent": {"image": {"format": "png", "source": {"bytes": DATA}}}},
]
HOSTED: list[dict[str, Any]] = [
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]},
    {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
    {"tools": [{"url_context": {}}]},
    {"tools": [{"type": "tomorrow_20991231", "name": "t"}]},
    {"tools": [SimpleNamespace(google_search={})]},
    {"tools": [{"function_declarations": [], "google_search": {}}]},
    {"previous_response_id": "resp_1"},
    {"use_previous_response_id": True},
    {"extra_body": {"cached_content": "c"}},
    {"web_search_options": {"search_context_size": "low"}},
    {"web_search_options": {}},
    {"model": "openai/gpt-4.1:online"},
    {"model": "default:strip_thinking_response=true&enable_web_search=auto"},
    {"extra_body": {"data_sources": [{"type": "azure_search", "parameters": {}}]}},
    {"model_kwargs": {"extra_body": {"enable_search": True}}},
    {"extra_body": {"venice_parameters": {"enable_web_search": "on"}}},
    {"extra_body": {"venice_parameters": {"character_slug": "alan-watts"}}},
    {"extra_body": {"extra_body": {"google": {"cached_content": "cachedContents/c"}}}},
    {"extra_body": {"vector_store_ids": ["v"]}},
    {"extra_body": {"files": [{"type": "collection", "id": "c"}]}},
    {"additionalModelRequestFields": {"tools": [{"type": "web_search_20250305"}]}},
    {"model_kwargs": {"extra_body": {"mcp_servers": [{"type": "url", "url": "u"}]}}},
]
PRICES = Prices(input=1, output=1)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.script = lambda request, i: Reply(text="so <answer>7</answer>")
        yield running


def asking(block: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [HumanMessage([{"type": "text", "text": "What is it?"}, block])]}


def test_what_was_said_aloud_and_is_sent_as_an_id_is_refused_unless_a_bound_is_given(
    server: Server,
) -> None:
    spoken = AIMessage("", additional_kwargs={"audio": {"id": "audio_1"}})
    asked: Any = {"messages": [("user", "Say hello."), spoken, ("user", "And in French?")]}
    app = create_anytime_graph(server.model(), budget=Budget(tokens=9_000)).compile()
    with pytest.raises(ValueError, match="media_tokens=None: 'audio'"):
        app.invoke(asked)
    assert not server.calls


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(iter(block.values()), ""))
def test_what_is_not_text_is_refused_at_every_door_unless_a_bound_is_given(
    server: Server, block: dict[str, Any]
) -> None:
    budget, asked = Budget(tokens=50_000), asking(block)
    doors = (
        lambda: create_anytime_graph(server.model(), budget=budget).compile().invoke(asked),
        lambda: ChatAnytime(model=server.model(), budget=budget).invoke(asked["messages"]),
        lambda: create_agent(server.model(), middleware=[TokenBudgetMiddleware(budget)]).invoke(
            asked
        ),
    )
    for door in doors:
        with pytest.raises(ValueError, match="media_tokens"):
            door()
    assert not server.calls


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(iter(block.values()), ""))
def test_a_bound_that_the_user_gives_takes_the_place_of_the_data(
    server: Server, block: dict[str, Any]
) -> None:
    ready = meter(server.model(), None, media_tokens=4_000)
    _, most = ready.max_input(asking(block)["messages"], uncalibrated())
    assert 4_000 < most < 4_100


def test_the_bound_reaches_the_calls_of_each_door(server: Server) -> None:
    short, enough = Budget(tokens=9_000), Budget(tokens=11_000)
    image = asking(BLOCKS[0])

    def invoked(budget: Budget) -> list[int]:
        server.calls.clear()
        options: Any = {"budget": budget, "media_tokens": 10_000}
        doors = (
            lambda: create_anytime_graph(server.model(), **options).compile().invoke(image),
            lambda: ChatAnytime(model=server.model(), **options).invoke(image["messages"]),
            lambda: create_agent(
                server.model(), middleware=[TokenBudgetMiddleware(**options)]
            ).invoke(image),
        )
        made = []
        for door in doors:
            before = len(server.calls)
            with contextlib.suppress(ValueError, NoAnswer):
                door()
            made.append(len(server.calls) - before)
        return made

    assert invoked(short) == [0, 0, 0]
    assert 0 not in invoked(enough)


def test_an_image_has_the_largest_size_that_its_provider_documents(server: Server) -> None:
    mini = meter(server.model().model_copy(update={"model_name": "gpt-4o-mini"}), None)
    _, most = mini.max_input(asking(BLOCKS[0])["messages"], uncalibrated())
    assert 48_169 < most < 48_300


@pytest.mark.parametrize("options", HOSTED, ids=str)
def test_what_the_provider_adds_itself_is_refused_unless_a_bound_is_given(
    server: Server, options: dict[str, Any]
) -> None:
    model = server.model().bind(**options)
    with pytest.raises(ValueError, match="media_tokens"):
        create_anytime_graph(model, budget=Budget(tokens=9_000))
    plain = meter(server.model(), None).max_input([HumanMessage("hi")], uncalibrated())[1]
    bounded = meter(model, None, media_tokens=4_000)
    assert bounded.max_input([HumanMessage("hi")], uncalibrated())[1] > plain + 4_000


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"enable_search": False}},
        {"extra_body": {"venice_parameters": {"enable_web_search": "off"}}},
        {"extra_body": {"venice_parameters": {"include_venice_system_prompt": False}}},
        {"model": "default:enable_web_search=off"},
        {"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}},
    ],
    ids=str,
)
def test_an_option_by_which_a_provider_adds_nothing_needs_no_bound(
    server: Server, options: dict[str, Any]
) -> None:
    meter(server.model().bind(**options), None)


def test_what_a_provider_adds_is_seen_where_its_model_was_made_with_it(server: Server) -> None:
    data = {"data_sources": [{"type": "azure_search", "parameters": {}}]}
    fields: Any = {"azure_endpoint": server.url, "azure_deployment": "gpt-4.1"}
    fields |= {"api_key": "none", "api_version": "2024-10-21", "extra_body": data}
    with pytest.raises(ValueError, match="'data_sources' may add any number of tokens"):
        create_anytime_graph(AzureChatOpenAI(**fields), budget=Budget(tokens=9_000))


def test_results_of_tools_and_older_calls_are_looked_into(server: Server) -> None:
    ready = meter(server.model(), None)
    picture = {"type": "tool_result", "tool_use_id": "t", "content": [BLOCKS[0]]}
    with pytest.raises(ValueError, match="image_url"):
        ready.max_input([HumanMessage([picture])], uncalibrated())
    legacy = {"function_call": {"name": "f", "arguments": '{"a": ' + "1" * 3_000 + "}"}}
    _, most = ready.max_input([AIMessage("", additional_kwargs=legacy)], uncalibrated())
    assert most > 3_000


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_result", "content": {"type": "web_fetch_result", "content": URL_IMAGE}},
        {"type": "code_interpreter_call", "id": "ci_1", "outputs": [{"type": "image", "url": "u"}]},
        {"type": "image_generation_call", "id": "ig_1"},
    ],
    ids=lambda block: block["type"],
)
def test_what_a_providers_tools_have_found_is_looked_into(
    server: Server, block: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="media_tokens=None: 'image"):
        meter(server.model(), None).max_input([AIMessage([block])], uncalibrated())
    ready = meter(server.model(), None, media_tokens=4_000)
    assert ready.max_input([AIMessage([block])], uncalibrated())[1] > 4_000


def test_what_looks_like_an_image_in_a_tools_arguments_is_text(server: Server) -> None:
    given = {"output": [URL_IMAGE], "content": [URL_IMAGE], "value": URL_IMAGE}
    called = AIMessage(
        [{"type": "tool_use", "id": "t", "name": "draw", "input": given}],
        tool_calls=[{"name": "draw", "args": given, "id": "t", "type": "tool_call"}],
        additional_kwargs={"function_call": {"name": "draw", "arguments": str(given)}},
    )
    assert meter(server.model(), None).max_input([called], uncalibrated())[1] < 1_000


def test_a_screenshot_that_a_tool_gives_as_an_address_is_an_image(server: Server) -> None:
    shown = ToolMessage(
        "https://example.org/a.png",
        tool_call_id="c",
        additional_kwargs={"type": "computer_call_output"},
    )
    with pytest.raises(ValueError, match="computer_call_output"):
        meter(server.model(), None).max_input([shown], uncalibrated())


def thought(tokens: int | None, **more: Any) -> AIMessage:
    """A reply whose reasoning is with the provider, and is sent back as an id."""
    report: Any = {"input_tokens": 40, "output_tokens": 2_000, "total_tokens": 2_040}
    report |= {} if tokens is None else {"output_token_details": {"reasoning": tokens}}
    block = {"type": "reasoning", "id": "rs_1", "summary": [], **more}
    return AIMessage([block], usage_metadata=report)


def test_reasoning_that_is_sent_as_an_id_counts_as_it_was_reported(server: Server) -> None:
    ready = meter(server.model(), None)

    def most(message: AIMessage) -> int:
        return ready.max_input([message], uncalibrated())[1]

    assert 1_900 < most(thought(1_900)) < 2_000
    assert 2_000 < most(thought(None)) < 2_100
    assert most(thought(1_900, encrypted_content="QUJD")) < 200
    silent = thought(None).model_copy(update={"usage_metadata": None})
    with pytest.raises(ValueError, match="media_tokens=None: 'reasoning'"):
        most(silent)


def test_a_schema_given_as_a_class_counts_as_it_is_sent(server: Server) -> None:
    class Verbose(BaseModel):
        """A class."""

        field: int = Field(description="word " * 2_000)

    ready = meter(server.model().bind(tools=[Verbose]), None)
    assert ready.max_input([HumanMessage("hi")], uncalibrated())[1] > 2_000


TEXT = "word " * 2_000
SCHEMA = {"type": "object", "properties": {"x": {"type": "string", "description": TEXT}}}


TOOL = {"name": "f", "description": TEXT, "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("AWS Bedrock", {"system": [TEXT]}),
        ("AWS Bedrock", {"additional_model_request_fields": {"tools": [TOOL]}}),
        ("AWS Bedrock", {"output_config": {"format": SCHEMA}}),
        ("Anthropic", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ("Google", {"response_schema": SCHEMA, "response_mime_type": "application/json"}),
    ],
)
def test_what_a_model_was_made_with_counts_as_it_is_sent(name: str, fields: Any) -> None:
    model = NAMED[name].model("http://127.0.0.1:9", **fields)
    assert meter(model, None).max_input([HumanMessage("hi")], uncalibrated())[1] > 2_000


COMPACT = {"edits": [{"type": "compact_20260112"}]}


@pytest.mark.parametrize(
    ("name", "own", "bound"),
    [
        ("Anthropic", {"context_management": COMPACT}, {}),
        ("Anthropic", {}, {"context_management": COMPACT}),
        ("Anthropic", {"model_kwargs": {"extra_body": {"context_management": COMPACT}}}, {}),
        ("OpenAI, responses API", {"context_management": [{"type": "compaction"}]}, {}),
        ("Anthropic", {}, {"tools": [{"type": "advisor_20260301", "name": "advisor"}]}),
    ],
)
def test_what_a_provider_bills_beside_its_report_is_refused(
    name: str, own: Any, bound: Any
) -> None:
    model: Any = NAMED[name].model("http://127.0.0.1:9", **own)
    with pytest.raises(ValueError, match="leave it out"):
        meter(model.bind(**bound), None, media_tokens=9_000)
    clears = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    meter(NAMED["Anthropic"].model("http://127.0.0.1:9", context_management=clears), None)


# --- prices


def priced(server: Server, **fields: Any) -> Any:
    return server.model(**fields).model_copy(update={"model_name": "gpt-4.1-nano"})


DEARER = prices_of(type("Named", (), {"model_name": "gpt-4.1"})())


@pytest.mark.parametrize(
    "asked",
    [
        lambda model: model.bind(model="gpt-4.1"),
        lambda model: model.bind(extra_body={"model": "gpt-4.1"}),
        lambda model: model.model_copy(update={"extra_body": {"model": "gpt-4.1"}}),
    ],
)
def test_the_price_is_that_of_the_model_that_is_asked_for(server: Server, asked: Any) -> None:
    model = asked(priced(server))
    assert DEARER is not None
    assert prices_of(model) == DEARER
    out = (
        create_anytime_graph(model, budget=Budget(usd=0.01))
        .compile()
        .invoke({"messages": [("user", "Why do rivers bend?")]})
    )
    billed = sum(DEARER.usd(c.prompt, c.output) for c in server.settled().calls)
    assert {c.request["model"] for c in server.calls} == {"gpt-4.1"}
    assert billed == pytest.approx(out["spent"]["usd"])
    assert billed <= 0.01


def test_a_middleware_that_asks_for_another_model_pays_its_price(server: Server) -> None:
    class Dearer(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model_settings={"model": "gpt-4.1"}))

    budget = TokenBudgetMiddleware(Budget(usd=0.01), prices=Prices(input=0.01, output=0.01))
    agent = create_agent(priced(server), middleware=[budget, Dearer()])
    out = agent.invoke({"messages": [("user", "hi")]})
    assert DEARER is not None
    billed = sum(DEARER.usd(c.prompt, c.output) for c in server.settled().calls)
    assert billed == pytest.approx(out["spent"]["usd"])


@pytest.mark.parametrize(
    "options",
    [
        {"service_tier": "priority"},
        {"extra_body": {"service_tier": "priority"}},
        {"extra_body": {"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}},
        {"extra_body": {"speed": "fast"}},
        {"extra_body": {"models": ["gpt-4.1-nano", "gpt-4.1"]}},
    ],
    ids=str,
)
def test_a_dearer_tier_asks_for_its_price(server: Server, options: dict[str, Any]) -> None:
    for model in (priced(server, **options), priced(server).bind(**options)):
        with pytest.raises(ValueError, match="prices=Prices"):
            create_anytime_graph(model, budget=Budget(usd=0.01))
        create_anytime_graph(model, budget=Budget(usd=0.01), prices=PRICES)
    for tier in ("auto", "default", "flex"):
        assert prices_of(priced(server, service_tier=tier)) is not None


@pytest.mark.parametrize("name", ["model_id", "modelId"])
def test_bedrock_is_asked_for_another_model_by_names_of_its_own(name: str) -> None:
    made: Any = NAMED["AWS Bedrock"].model("http://127.0.0.1:9", model="claude-haiku-4-5")
    other = NAMED["AWS Bedrock"].model("http://127.0.0.1:9", model=CLAUDE)
    assert prices_of(other) not in (None, prices_of(made))
    assert prices_of(made.bind(**{name: CLAUDE})) == prices_of(other)


CLAUDE = "claude-opus-4-1"


@pytest.mark.parametrize(
    ("name", "own", "bound"),
    [
        ("AWS Bedrock", {"performance_config": {"latency": "optimized"}}, {}),
        ("AWS Bedrock", {}, {"performanceConfig": {"latency": "optimized"}}),
        ("AWS Bedrock", {}, {"serviceTier": "priority"}),
        ("AWS Bedrock", {"service_tier": "priority"}, {}),
        ("Anthropic", {"model_kwargs": {"extra_body": {"speed": "fast"}}}, {}),
        ("Anthropic", {}, {"model_kwargs": {"extra_body": {"speed": "fast"}}}),
    ],
)
def test_a_dearer_tier_is_seen_by_whatever_name_it_is_asked_for(
    name: str, own: Any, bound: Any
) -> None:
    model: Any = NAMED[name].model("http://127.0.0.1:9", model=CLAUDE)
    dearer: Any = NAMED[name].model("http://127.0.0.1:9", model=CLAUDE, **own)
    assert prices_of(model) is not None
    assert prices_of(dearer.bind(**bound)) is None
    usual = {"performanceConfig": {"latency": "standard"}, "serviceTier": "flex"}
    assert prices_of(model.bind(**usual)) is not None


class Rerouted(httpx2.HTTPTransport):
    """Sends what is meant for any address to a server here."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.here = httpx2.URL(url)

    def handle_request(self, request: Any) -> Any:
        at = {"scheme": self.here.scheme, "host": self.here.host, "port": self.here.port}
        request.url = request.url.copy_with(**at)
        return super().handle_request(request)


@pytest.mark.parametrize(
    ("address", "name", "price"),
    [
        ("https://api.cerebras.ai/v1", "gpt-oss-120b", (0.35, 0.75)),
        ("https://proxy.example/v1", "gpt-oss-120b", (0.35, 0.75)),
        ("https://api.z.ai/api/paas/v4", "GLM-4.7", (0.6, 2.2)),
    ],
)
def test_the_price_is_that_of_who_serves_the_model_or_else_the_dearest(
    server: Server, address: str, name: str, price: tuple[float, float]
) -> None:
    """By its name alone, gpt-oss-120b would be the one at $0.039 and $0.18."""
    client = httpx2.Client(transport=Rerouted(server.url))
    model = ChatOpenAI(model=name, base_url=address, api_key=SecretStr("none"), http_client=client)
    dollars = 0.001
    out = create_anytime_graph(model, budget=Budget(usd=dollars), exact_counts=False)
    spent = out.compile().invoke({"messages": [("user", "Why do rivers bend?")]})["spent"]
    calls = server.settled().calls
    billed = sum(call.prompt * price[0] + call.output * price[1] for call in calls) / 1e6
    assert calls
    assert billed == pytest.approx(spent["usd"])
    assert billed <= dollars


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Groq", "openai/gpt-oss-120b"),
        ("OpenRouter", "openai/gpt-oss-120b"),
        ("AWS Bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ],
)
def test_a_client_that_is_given_no_address_sends_to_its_provider(name: str, model: str) -> None:
    provider = NAMED[name]
    elsewhere = ChatOpenAI(model=model, base_url="https://proxy.example", api_key=SecretStr("none"))
    at_home = {
        field: None for field in ("base_url", "endpoint_url") if field in provider.options("")
    }
    known, unknown = prices_of(provider.model("", model=model, **at_home)), prices_of(elsewhere)
    assert known is not None
    assert unknown is not None
    assert known.input < unknown.input


@pytest.mark.parametrize("address", ["https://api.perplexity.ai", "https://proxy.example/v1"])
def test_a_price_for_each_request_is_asked_for(address: str) -> None:
    model = ChatOpenAI(model="sonar", base_url=address, api_key=SecretStr("none"))
    with pytest.raises(ValueError, match="prices=Prices"):
        create_anytime_graph(model, budget=Budget(usd=0.01))


def test_a_price_that_changes_with_the_hour_is_that_of_the_dearest() -> None:
    found = prices_of(type("Named", (), {"model_name": "deepseek-reasoner"})())
    assert found is not None
    assert found.output > 2


@pytest.mark.parametrize("kind", ["web_search", "code_interpreter", "file_search"])
def test_tools_that_the_provider_carries_out_are_refused_where_tool_calls_are_limited_or_priced(
    server: Server, kind: str
) -> None:
    tool = {"type": kind}
    limited, tokens = Budget(tokens=50_000, tool_calls=3), Budget(tokens=50_000)
    given: Any = {"media_tokens": 1_000}
    asked: Any = {"messages": [("user", "Why?")]}

    def agent(budget: Budget, **more: Any) -> Any:
        middleware = TokenBudgetMiddleware(budget, **given, **more)
        return create_agent(server.model(), [tool], middleware=[middleware]).invoke(asked)

    def drafts(budget: Budget) -> Any:
        def drafter(model: Any) -> Any:
            return create_agent(model, [tool])

        graph = create_anytime_graph(server.model(), budget=budget, drafter=drafter, **given)
        return graph.compile().invoke(asked)

    with pytest.raises(ValueError, match=r"budget tool_calls: the provider of .* as often as it"):
        agent(limited)
    with pytest.raises(ValueError, match=r"tool_prices: the provider of .* as often as it"):
        agent(tokens, tool_prices={"web_search": 0.01})
    with pytest.raises(ValueError, match="budget tool_calls=3: the provider of"):
        create_anytime_graph(server.model().bind(tools=[tool]), budget=limited, **given)
    with pytest.raises(NoAnswer, match="budget tool_calls: the provider of"):
        drafts(limited)
    assert not server.calls


def test_a_providers_kind_of_tool_that_the_caller_carries_out_is_like_others(
    server: Server,
) -> None:
    tools = [{"type": "bash_20250124", "name": "bash"}]
    ready = meter(server.model().bind(tools=tools), None, media_tokens=100)
    ready.check_tools("budget tool_calls=3")
