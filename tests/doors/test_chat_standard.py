"""LangChain's standard tests for chat models, over the scripted endpoint and the embedded model.

What is left out of them is named with its reason in docs/chat.md; that is checked here too.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, ClassVar

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from langchain_tests.unit_tests.chat_models import ChatModelTests

from anytime_graph import Budget
from anytime_graph.chat import ChatAnytime
from anytime_graph.local import local_model
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server, said

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* is in beta"),  # LangChain's stream_events, version v3
    pytest.mark.filterwarnings("ignore:LANGCHAIN_TESTS_USER_AGENT"),  # nothing is downloaded
    pytest.mark.filterwarnings("ignore:.* require a filename"),  # what ChatOpenAI says of files
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1"),  # and of old models
]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
JOKE = {"properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}


def obliging(request: dict[str, Any], i: int) -> Reply:
    """As a capable model: it calls the tool that it must or may call, and fits the schema."""
    if (form := request.get("response_format")) is not None:
        return Reply(json.dumps(filled(form.get("json_schema", {}).get("schema", JOKE))))
    choice, tools = request.get("tool_choice"), request.get("tools")
    begun = len(request["messages"]) <= 2
    if tools and (choice not in (None, "auto") or begun):
        name = choice["function"]["name"] if isinstance(choice, dict) else None
        called = next(t["function"] for t in tools if name in (None, t["function"]["name"]))
        asked = re.search(r"\((\d+)\)|'([^']+)'", said(request["messages"][-1]["content"]))
        return Reply("", tools=[(called["name"], filled(called["parameters"], asked))])
    return Reply("What one says. Verdict: A")


def filled(schema: dict[str, Any], asked: re.Match[str] | None = None) -> dict[str, Any]:
    found = asked and next(group for group in asked.groups() if group)
    return {
        name: int(found or 3) if part.get("type") == "integer" else found or "some text"
        for name, part in schema.get("properties", {}).items()
    }


class Scripted:
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    model_override_value = "another"

    @pytest.fixture(autouse=True)
    def endpoint(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the tests would download from elsewhere is to be had without a network, too."""
        server.script = obliging
        self.server = server
        file = httpx.Response(200, content=PIXEL)
        monkeypatch.setattr(httpx, "get", lambda *args, **kwargs: file)

    chat_model_class = ChatAnytime

    @property
    def chat_model_params(self) -> dict[str, Any]:
        budget = Budget(tokens=30_000, calls=5)
        return {"model": self.server.model(), "budget": budget, "media_tokens": 1_000}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 100, "stop": []}


class TestUnit(Scripted, ChatModelUnitTests):
    @pytest.mark.xfail(reason="the answer stands at the end: there is nothing to stream")
    def test_init_streaming(self) -> None:
        super().test_init_streaming()


class TestIntegration(Scripted, ChatModelIntegrationTests):
    supported_usage_metadata_details: ClassVar[dict[str, list[str]]] = {
        "invoke": ["reasoning_output", "cache_read_input"],
        "stream": ["reasoning_output", "cache_read_input"],
    }

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._answered(Reply("so", reasoning=7), stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._answered(Reply("so", cached=3), stream)

    def _answered(self, reply: Reply, stream: bool) -> AIMessage:
        self.server.script = lambda request, i: reply
        try:
            model = ChatAnytime(**self.chat_model_params)
            return next(model.stream("Hello")) if stream else model.invoke("Hello")
        finally:
            self.server.script = obliging


class Embedded:
    """The embedded model, which calls no tools and sees no images."""

    chat_model_class = ChatAnytime
    has_tool_calling = False
    has_tool_choice = False
    has_structured_output = True
    structured_output_kwargs: ClassVar[dict[str, Any]] = {"method": "json_schema"}
    supports_json_mode = False
    supports_model_override = False

    @pytest.fixture(autouse=True)
    def roomy(self, request: pytest.FixtureRequest) -> None:
        self.length = 100 if "structured" in request.node.name else 24

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0.8, "max_tokens": getattr(self, "length", 24), "stop": []}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # What is kept open in one test's event loop would be found unclosed in another test.
        inner = local_model(seed=1, default_headers={"connection": "close"})
        return {"model": inner, "budget": Budget(calls=3), "strategy": "single"}


@pytest.mark.sampled("test_invoke", "test_astream", "test_structured_output")
class TestEmbedded(Embedded, ChatModelIntegrationTests):
    @pytest.mark.xfail(reason="for such models ChatOpenAI turns to tools, which it does not call")
    def test_structured_output_pydantic_2_v1(self, model: BaseChatModel) -> None:
        super().test_structured_output_pydantic_2_v1(model)


class Bare(ChatModelUnitTests):
    chat_model_class = ChatAnytime


def left_out(suite: type[ChatModelTests]) -> set[str]:
    """Tests expected to fail, features said not to be there, parameters not accepted."""
    of = suite()
    expected = {
        name
        for name in dir(suite)
        if any(mark.name == "xfail" for mark in getattr(getattr(suite, name), "pytestmark", ()))
    }
    flags = {name for name, kind in vars(ChatModelTests).items() if isinstance(kind, property)}
    off = {name for name in flags - {"chat_model_params"} if getattr(of, name) is False}
    standard = Bare().standard_chat_model_params
    return expected | off | (standard.keys() - of.standard_chat_model_params.keys())


def test_docs_name_what_is_left_out() -> None:
    page = (ROOT / "docs" / "chat.md").read_text()
    _, *parts = re.split(r"^### Left out", page, flags=re.MULTILINE)
    scripted, embedded = (set(re.findall(r"^- `(\w+)`.*: .+", p, re.MULTILINE)) for p in parts)
    assert scripted == left_out(TestUnit) == left_out(TestIntegration) | {"test_init_streaming"}
    assert scripted | embedded == left_out(TestEmbedded) | {"test_init_streaming"}
