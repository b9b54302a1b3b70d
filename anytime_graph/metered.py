"""Chat models whose calls are charged to the budget of the agent that they work for."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig

from anytime_graph.accounts import desk
from anytime_graph.budget import Prices
from anytime_graph.metering import acall, call
from anytime_graph.models import resolve_model

_PRICES = "anytime_prices"


def metered(model: str | BaseChatModel, prices: Prices | None = None) -> BaseChatModel:
    """A chat model whose calls are charged to the budget of the agent that it works for: give it to
    tools, and to middlewares that call models of their own. Where no agent with a
    TokenBudgetMiddleware is at work, it is the model itself.

    model: a chat model or its name, as for create_anytime_graph. prices: US dollars per million
    tokens; default: looked up by the model's name. A call that does not fit raises BudgetTooSmall;
    the agent is told, and goes on. Raises ValueError if it is no chat model.
    """
    resolved = resolve_model(model)
    if not isinstance(resolved, BaseChatModel):
        raise ValueError(
            f"model={type(resolved).__name__}: a LangChain chat model is needed, with nothing bound "
            "to it, or a string such as 'openai:gpt-4.1-mini' or 'local'"
        )
    plain = _plain(resolved)
    charged = _turned(plain, _metered_kind(type(plain)))
    vars(charged)[_PRICES] = prices or vars(resolved).get(_PRICES)
    return charged


def _plain(model: BaseChatModel) -> BaseChatModel:
    """The model as it was before `metered`, with what was set since."""
    if _PRICES not in vars(model):
        return model
    plain = _turned(model, type(model).__bases__[0])
    del vars(plain)[_PRICES]
    return plain


def _turned(model: BaseChatModel, kind: type[BaseChatModel]) -> BaseChatModel:
    """A copy of the model that is of another class with the same fields."""
    copy = model.model_copy()
    object.__setattr__(copy, "__class__", kind)
    return copy


@functools.cache
def _metered_kind(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """A subclass that differs in who makes the calls: to LangChain, and to middlewares that look
    at the class, the profile or the fields of a model, it is what it was."""
    changed = {
        "generate": _generate,
        "agenerate": _agenerate,
        # Streamed, it is called as a model that cannot be: through the methods above.
        "_stream": BaseChatModel._stream,
        "_astream": BaseChatModel._astream,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    made = types.new_class(kind.__name__, (kind,), {}, lambda body: body.update(changed))
    return cast("type[BaseChatModel]", made)


def _generate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    plain, prices, at = _plain(self), vars(self)[_PRICES], desk()
    if at is None:
        return plain.generate(messages, stop, callbacks, **options)
    config, options = _split(callbacks, stop, options)
    replies = []
    for prompt in messages:
        with at.order(plain, prompt, options, prices) as order:
            if order.task is not None:
                order.reply = call(order.gate, order.task, config, None, heard=order.heard)
        replies.append(order.message)
    return _result(replies)


async def _agenerate(
    self: BaseChatModel,
    messages: list[list[BaseMessage]],
    stop: list[str] | None = None,
    callbacks: Any = None,
    **options: Any,
) -> LLMResult:
    plain, prices, at = _plain(self), vars(self)[_PRICES], desk()
    if at is None:
        return await plain.agenerate(messages, stop, callbacks, **options)
    config, options = _split(callbacks, stop, options)
    replies = []
    for prompt in messages:
        with at.order(plain, prompt, options, prices) as order:
            if order.task is not None:
                order.reply = await acall(order.gate, order.task, config, None, heard=order.heard)
        replies.append(order.message)
    return _result(replies)


def _split(
    callbacks: Any, stop: list[str] | None, options: dict[str, Any]
) -> tuple[RunnableConfig, dict[str, Any]]:
    """What concerns the run, and what is sent."""
    config: dict[str, Any] = {"callbacks": callbacks}
    for name in ("tags", "metadata", "run_name", "run_id"):
        config[name] = options.pop(name, None)
    options.pop("ls_structured_output_format", None)
    if stop is not None:
        options["stop"] = stop
    given = {key: value for key, value in config.items() if value is not None}
    return cast(RunnableConfig, given), options


def _result(messages: Sequence[AIMessage]) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=m)] for m in messages])
