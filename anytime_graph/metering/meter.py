"""A chat model made ready for metering, so that its calls can be capped, counted and priced."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.utils.function_calling import convert_to_openai_tool

from anytime_graph.budget import (
    FIRST_ROOM,
    MIN_ROOM,
    Budget,
    Limits,
    Prices,
    Spend,
    Unpayable,
    lowest,
    nothing,
    output_room,
)
from anytime_graph.metering.learned import Learned, learned
from anytime_graph.models import counting, prices_of, providers, tokens
from anytime_graph.models.providers import unbound
from anytime_graph.models.tokens import Calibration, Shape, Tokenizer

_SHAPING = {"tools", "tool_choice", "parallel_tool_calls", "response_format", "stop"}
"""Request options that shape an answer."""
_OF_TOOLS = {"tool_choice", "parallel_tool_calls"}
"""Request options that are an error without tools."""
_UNKNOWN_CEILING = 32_768
"""Output tokens asked for at most of a model whose ceiling is not known; reasoning models are served
with as many."""


@dataclass(frozen=True)
class Meter:
    """A chat model made ready for metering.

    model: it makes no hidden retries and reports usage in streams. Its output is capped; where its
        class has no field for a cap, its stream is cut. bound: what was bound to it.
    ceiling: output tokens that the model never exceeds. name: the provider's name for it.
    billed_once: whether a request for several choices is billed its prompt once. None: not known yet.
        False also where such requests cannot be made.
    binding: the model as it was passed, within its bindings.
    ask: how its prompts are counted; None if they are not.
    own_tools: those that its provider carries out.
    """

    model: BaseChatModel
    bound: Mapping[str, Any]
    ceiling: int | None
    name: str
    tokenizer: Tokenizer
    prices: Prices | None
    billed_once: bool | None = False
    binding: Any = None
    ask: counting.Ask | None = None
    own_tools: tuple[str, ...] = ()

    def config(self, config: RunnableConfig) -> RunnableConfig:
        """The config of a call, merged with what `with_config` and `with_listeners` bound to the model."""
        binding = self.binding
        while isinstance(binding, RunnableBinding):
            if binding.config:
                config = merge_configs(binding.config, config)
            if binding.config_factories:
                config = merge_configs(config, *(make(config) for make in binding.config_factories))
            binding = binding.bound
        return config

    @cached_property
    def known(self) -> Learned:
        """What its server's refusals have taught."""
        return learned(self.model)

    @property
    def may_preface(self) -> bool:
        """Whether its server may put instructions of its own before a prompt, and does not count them."""
        counted = self.ask is not None and not self.known.counts.off
        return not counted and providers.may_preface(self.model)

    @cached_property
    def first_room(self) -> int:
        """The fewest output tokens of a first call."""
        return FIRST_ROOM if providers.short_caps(self.model, self.bound) else MIN_ROOM

    def cap(self, paid: int | None, max_input: int = 0) -> int | None:
        """The output cap of a call beside such a prompt: the tokens that are paid for, or fewer if the
        model writes no more or its window takes no more."""
        most = self.ceiling if paid is None else self.ceiling or _UNKNOWN_CEILING
        return lowest(paid, most, self.known.beside(max_input))

    def room(self, slice_: Limits, max_input: int) -> int | None:
        """Output tokens that a slice pays for after such a prompt, as far as the window takes them; None
        if neither limits them."""
        return lowest(output_room(slice_, max_input, self.prices), self.known.beside(max_input))

    def max_input(
        self, prompt: list[Any], calibration: Calibration, within: bool = False
    ) -> tuple[Shape, int]:
        """A prompt's shape, and the most input tokens that it can be billed: its count where its server
        counts it, else its bound. within: see Tokenizer.bound."""
        shape = self.tokenizer.shape(prompt)
        known = tokens.beside(calibration, self.known.calibration)
        bound = self.tokenizer.bound(shape, known, within)
        counted = self._counted(prompt, bound) if shape[-1] == 0 else None
        return shape, bound if counted is None else counted

    def _counted(self, prompt: list[Any], bound: int) -> int | None:
        """The prompt's count. None if it is not known, or of a request that is not sent as it is asked
        about, because the server does not take a part of it."""
        if self.ask is None or self.known.counts.off or self.known.refused:
            return None
        sent = providers.sendable(prompt)
        if (key := counting.digest(self.model, self.bound, sent)) is None:
            return None
        return self.known.counts.of(self.ask, sent, key, tokens.MOST_GROWTH * bound)

    def heard(self, prompt: Sequence[BaseMessage], reported: int) -> bool:
        """Take in what was billed for a prompt. A count that was too low is the last one. Returns whether the
        server adds more to prompts than was known."""
        more = self.known.learn(self.tokenizer, self.tokenizer.shape(prompt), reported)
        if self.ask is not None and not self.known.counts.off:
            key = counting.digest(self.model, self.bound, providers.sendable(list(prompt)))
            self.known.counts.heard(key or "", reported)
        return more

    def check_price(self, budget: str) -> None:
        """Raise Unpayable for this budget in USD if the model's price is not known."""
        if self.prices is not None:
            return
        dearer = providers.surcharges(providers.sent_options(self.model, self.bound))
        asked = f" with {', '.join(dearer)}" if dearer else ""
        raise Unpayable(
            f"{budget}: the price of {self.name!r}{asked} is not known; pass "
            "prices=Prices(input=..., output=...) in dollars per million tokens"
            + ("" if dearer else ", or install anytime-graph[prices]")
        )

    def check_tools(self, limit: str) -> None:
        """Raise Unpayable under this limit of tool calls, or of their price, if the provider carries out
        tools itself: how often it does is not known before a call."""
        if self.own_tools:
            raise Unpayable(
                f"{limit}: the provider of {self.name!r} carries out {', '.join(self.own_tools)} itself, "
                "as often as it likes; give the agent a tool of your own for that, or leave this limit out"
            )

    def reservation(self, max_input: int, max_output: int | None) -> Spend:
        """The most that a call can cost: its prompt at the dearest price, its output at the cap."""
        return self.priced(max_input, max_output or 0, written=max_input)

    def priced(self, paid: int, output: int, cached: int = 0, written: int = 0) -> Spend:
        """What one call costs. paid: input tokens; `cached` of them came from the provider's cache,
        `written` went into it. output: output tokens."""
        return {
            **nothing(),
            "tokens": paid + output,
            "input_tokens": paid,
            "output_tokens": output,
            "cached_tokens": cached,
            "usd": self.prices.usd(paid, output, cached, written) if self.prices else 0.0,
            "calls": 1,
        }


def meter(
    model: Any,
    prices: Prices | None,
    media_tokens: int | None = None,
    exact_counts: bool | None = False,
) -> Meter:
    """Make a model ready. media_tokens: see Tokenizer. exact_counts: see counting.asking. Raises ValueError
    if it is no chat model, if its output cannot be limited, or if nothing bounds what its provider
    adds to a prompt."""
    binding = model
    model, bound = unbound(model)
    if not isinstance(model, BaseChatModel):
        raise ValueError(
            f"model={type(model).__name__}: pass a LangChain chat model, or a string such as "
            "'openai:gpt-4.1-mini' or 'local'"
        )
    if isinstance(getattr(model, "budget", None), Budget):
        raise ValueError(
            f"model={type(model).__name__}: it makes calls of its own, within its own budget; pass "
            "the model inside it"
        )
    streams = (
        type(model)._stream is not BaseChatModel._stream
        or type(model)._astream is not BaseChatModel._astream
    )
    if providers.cap_field(model) is None and not streams:
        raise ValueError(
            f"model={type(model).__name__}: it neither streams nor has a field to cap its output "
            f"({', '.join(providers.CAP_FIELDS)}), so no budget can hold it"
        )
    own = providers.own_caps(model, bound)
    if not bound.get("tools"):
        bound = {key: value for key, value in bound.items() if key not in _OF_TOOLS}
    copy, bound = providers.meterable(model, providers.schema_in_body(model, bound))
    held = (getattr(copy, field, None) for field in providers.MADE_WITH)
    beside = [part for part in (bound, *held) if part]
    sent = providers.sent_options(model, bound)
    name = str(sent.get("model") or type(model).__name__)
    by_openai = providers.host(model) == "api.openai.com"  # where tiktoken's counts hold
    several = getattr(model, "n", 1) != 1 and providers.supports_n(copy, bound)
    tokenizer = Tokenizer(
        count=tokens.openai_counter(name) if by_openai else None,
        family=name,
        tools=bool(bound.get("tools")),
        extra=json.dumps(beside, default=_as_sent, ensure_ascii=False) if beside else "",
        media_tokens=media_tokens,
        hosted=providers.hosted(sent),
    )
    tokenizer.shape([])
    return Meter(
        model=copy,
        bound=bound,
        ceiling=min(own, default=None),
        name=name,
        tokenizer=tokenizer,
        prices=prices,
        billed_once=(True if by_openai else None) if several else False,
        binding=binding,
        ask=counting.asking(copy, bound, exact_counts),
        own_tools=providers.own_tools(sent),
    )


def meter_for(
    model: Any, options: Mapping[str, Any], prices: Prices | None, media_tokens: int | None = None
) -> Meter:
    """The meter of a call with these options. prices: the model's own; if the options ask for another
    model or tier, those are looked up."""
    asked = model.bind(**options)
    before = providers.sent_options(*unbound(model)) | {"tools": None}
    now = providers.sent_options(*unbound(asked)) | {"tools": None}
    if prices is None or before != now:
        prices = prices_of(asked)
    return meter(asked, prices, media_tokens)


def _as_sent(part: Any) -> Any:
    """A schema or a tool that was given as a class or function, as it is sent."""
    try:
        return convert_to_openai_tool(part)
    except (TypeError, ValueError):
        return str(part)


def rebound(
    binding: Any, model: Runnable[Any, Any], options: Mapping[str, Any]
) -> Runnable[Any, Any]:
    """Another model in these bindings: with their config, and with these options instead of theirs."""
    if not isinstance(binding, RunnableBinding):
        return model.bind(**options) if options else model
    inner = rebound(binding.bound, model, {})
    return binding.model_copy(update={"bound": inner, "kwargs": dict(options)})


def without_tools(model: Any) -> Any:
    """The model without options that shape its answers, such as tools: judgements and reviews are no
    answers. The same object if it has none."""
    bare, bound = unbound(model)
    kept = {key: value for key, value in bound.items() if key not in _SHAPING}
    if len(kept) == len(bound):
        return model
    return rebound(model, bare, kept)


def with_json_schema(model: Any, schema: Mapping[str, Any]) -> Runnable[Any, Any] | None:
    """The model bound so that its replies are JSON for the schema; None if its profile does not say
    that its provider supports that."""
    binding = model
    model, bound = unbound(model)
    if not (getattr(model, "profile", None) or {}).get("structured_output"):
        return None
    try:
        chain = model.with_structured_output(dict(schema), method="json_schema")
    except (
        NotImplementedError,
        TypeError,
        ValueError,
    ):  # it has no such method, or none for this schema
        return None
    head = getattr(chain, "first", None)
    if not isinstance(head, RunnableBinding) or "tools" in head.kwargs:
        return None
    if (form := head.kwargs.get("response_format")) is not None:
        options = providers.schema_in_body(model, {**bound, "response_format": form})
        return rebound(binding, model, options)
    return rebound(binding, head.bound, {**head.kwargs, **bound})
