"""Models by name: what a stranger is told who has no key, or who misses the name; and models in
LangChain's wrappers."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from langchain.chat_models import init_chat_model
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from anytime_graph import Budget, Judge, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering.metered import metered
from anytime_graph.models import resolve_model
from anytime_graph.models.resolve import _PROVIDERS
from tests.kit.server import Server

ASK: Any = {"messages": [("user", "Name a river.")]}
KEYS = {
    "openai": "OPENAI_API_KEY",
    "azure_openai": "AZURE_OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google_genai": "GOOGLE_API_KEY",
    "xai": "XAI_API_KEY",
    "mistralai": "MISTRAL_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "groq": "GROQ_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
}


@pytest.mark.parametrize("provider", KEYS)
def test_without_a_key_the_variable_is_named_and_the_model(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (*KEYS.values(), "GEMINI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=KEYS[provider]) as refused:
        create_anytime_graph(f"{provider}:some-model", budget=Budget(calls=1))
    assert f"model='{provider}:some-model'" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gpt-4.1-mini", "openai:gpt-4.1-mini"),
        ("o4-mini", "openai:o4-mini"),
        ("claude-sonnet-5", "anthropic:claude-sonnet-5"),
        ("gemini-3.8-flash", "google_genai:gemini-3.8-flash"),
        ("grok-3", "xai:grok-3"),
        ("llama3.3", "ollama:llama3.3"),
        ("llama3.2:1b", "ollama:llama3.2:1b"),
        ("mixtral-8x22b", "mistralai:mixtral-8x22b"),
        ("model.Q4.gguf", "local:model.Q4.gguf"),
        ("opnai:gpt-4.1", "openai:gpt-4.1"),
        ("anthropc:claude-sonnet-5", "anthropic:claude-sonnet-5"),
        ("google:gemini-3.8-flash", "google_genai:gemini-3.8-flash"),
        ("gogle-ai:gemini-3.8-flash", "google_genai:gemini-3.8-flash"),
        ("claude:claude-sonnet-5", "anthropic:claude-sonnet-5"),
        ("openai/gpt-4.1", "openai:gpt-4.1"),
        ("opnai/gpt-4.1", "openai:gpt-4.1"),
        ("gpt4o-mini", "openai:gpt-4o-mini"),
        ("weights/model.gguf", "local:weights/model.gguf"),
        ("lokal", "local"),
    ],
)
def test_a_name_that_is_missed_brings_the_one_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}\\?$") as refused:
        resolve_model(given)
    assert str(refused.value).startswith(f"model={given!r}: ")


@pytest.mark.parametrize("provider", [p for p in _PROVIDERS if p != "local"])
def test_one_wrong_letter_in_a_provider_is_understood(provider: str) -> None:
    for typo in (provider[:-1], provider[1:], f"{provider}x"):
        if typo not in _PROVIDERS:
            with pytest.raises(ValueError, match=f"did you mean {provider}:m\\?"):
                resolve_model(f"{typo}:m")


def test_a_provider_alone_brings_the_form_of_a_name() -> None:
    for given in ("anthropic", "openai:", "opnai"):
        provider = "anthropic" if given == "anthropic" else "openai"
        with pytest.raises(ValueError, match=f"did you mean {provider}:NAME"):
            resolve_model(given)


def test_the_name_that_was_meant_is_told_where_langchain_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(ValueError, match=r"did you mean openai:gpt-4.1\?$"):
        resolve_model("opnai:gpt-4.1")
    with pytest.raises(ImportError, match=r"install anytime-graph\[agents\]"):
        resolve_model("anthropic:claude-sonnet-5")


def test_a_name_like_no_other_brings_what_is_needed() -> None:
    with pytest.raises(ValueError, match="'provider:name' is needed"):
        resolve_model("wat")
    with pytest.raises(ValueError, match="model='zzz:m'"):
        resolve_model("zzz:m")


def test_retries_are_left_to_the_run_and_other_bindings_are_kept(server: Server) -> None:
    """Of two refused drafts none is asked for again below the budget."""
    inner = server.model().bind(stop=["@@"]).with_retry().with_config(tags=["mine"]).with_retry()
    heard: list[Any] = []
    model = inner.with_config(metadata={"by": "me"})
    app = create_anytime_graph(model, budget=Budget(calls=2), strategy="best_of_n").compile()
    for _, part in app.stream(ASK, stream_mode=["values", "messages"]):
        heard.append(part)
    assert [call.request["stop"] for call in server.calls] == [["@@"]] * 2
    told = [part[1] for part in heard if isinstance(part, tuple)]
    assert told
    assert all("mine" in m["tags"] and m["by"] == "me" for m in told)


def test_a_model_with_nothing_but_retries_is_the_model_itself(server: Server) -> None:
    model = server.model()
    assert resolve_model(model.with_retry()) is model
    assert type(metered(model.with_retry()).with_retry()).__name__ == "RunnableRetry"
    assert ChatAnytime(model=model.with_retry(), budget=Budget(calls=1)).model is model


def test_what_holds_more_than_a_model_is_refused_with_what_to_do(server: Server) -> None:
    model = server.model()
    both = model.with_fallbacks([model])
    for wrapped, told in (
        (both, "model={'first': ..., 'second': ...}"),
        (both.with_config(tags=["x"]), "model={'first': ..., 'second': ...}"),
        (model | StrOutputParser(), "answer="),
    ):
        with pytest.raises(ValueError, match=r"^model=Runnable") as refused:
            create_anytime_graph(wrapped, budget=Budget(calls=1))
        assert told in str(refused.value)
        with pytest.raises(ValueError, match=r"^model=Runnable"):
            create_anytime_graph(model, budget=Budget(calls=1), judge=Judge(wrapped))
    assert not server.calls


def test_a_model_that_is_chosen_when_it_is_called_is_refused_with_what_to_do(
    server: Server,
) -> None:
    options: Any = {"base_url": server.url, "api_key": "none"}
    made = init_chat_model("openai:m", configurable_fields=("temperature",), **options)
    plain = server.model()
    for model in (
        made,
        made.bind_tools([]),
        init_chat_model(configurable_fields="any"),
        plain.configurable_fields(temperature=ConfigurableField("t")),
        plain.configurable_alternatives(ConfigurableField("m"), other=plain).bind(stop=["x"]),
    ):
        doors = (
            lambda model=model: create_anytime_graph(model, budget=Budget(calls=1)),
            lambda model=model: create_anytime_graph(
                plain, budget=Budget(calls=1), judge=Judge(model)
            ),
            lambda model=model: ChatAnytime(model=model, budget=Budget(calls=1)),
            lambda model=model: metered(model),
        )
        for door in doors:
            with pytest.raises(ValueError, match="is not known before it is made") as refused:
                door()
            assert "model={'first': ..., 'second': ...}" in str(refused.value)
    assert not server.calls


class OnlyAsync(ChatOpenAI):
    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("async only")

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("async only")


def test_a_model_that_is_only_async_is_said_to_be_asked_by_ainvoke(server: Server) -> None:
    model = OnlyAsync(model="m", base_url=server.url, api_key=SecretStr("none"), n=1)
    app = create_anytime_graph(model, budget=Budget(calls=2), strategy="single").compile()
    with pytest.raises(NoAnswer, match="asked by ainvoke"):
        app.invoke(ASK)
    assert not server.calls
    assert asyncio.run(app.ainvoke(ASK))["best"]["answer"] == "fine"
