"""A chat model that reasons within a budget, for use wherever LangChain takes a chat model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext, suppress
from contextvars import Context, copy_context
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, TypeVar, cast

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.language_models import BaseChatModel, LangSmithParams, ModelProfile
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, UsageMetadata
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, subtract_usage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableParallel, RunnableSequence
from langchain_core.runnables.config import set_config_context
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tracers import BaseTracer
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_json_markdown
from langgraph.config import get_stream_writer
from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    SkipValidation,
    field_validator,
    model_validator,
)

from anytime_graph.budget import TOOL_CALLS, Budget, Prices, Spend
from anytime_graph.checkpoints import Ledger
from anytime_graph.graph import create_anytime_graph, usual
from anytime_graph.interrupt import contained, to_its_end
from anytime_graph.metering.meter import rebound
from anytime_graph.metering.metered import current_payer, paying_from
from anytime_graph.metering.quota import Quota
from anytime_graph.metering.request import Reply
from anytime_graph.metering.tool_calls import broken
from anytime_graph.models import providers, resolve_model
from anytime_graph.models.providers import describe, unbound
from anytime_graph.planning.answers import answer_format
from anytime_graph.planning.moves import Draft, Move, Stop, Strategy, View
from anytime_graph.planning.strategies import resolve
from anytime_graph.run.announcements import Improvement
from anytime_graph.run.context import told
from anytime_graph.scoring import Extractor, Judge, Scorer, Verdict

IMPROVEMENT = "anytime_improvement"
"""Name of the custom event for a better answer."""
_STEPS = 10_000
"""Most graph steps of one invocation. Its budget ends it long before."""
_THINK = "Think hard about a question that can be understood on its own, and answer it."


class ChatAnytime(BaseChatModel):
    """A chat model that gives the best answer that another model finds within a budget.

    model: a chat model, "provider:name" or "local". budget: what each invocation may cost.
    scorer, strategy, prices, media_tokens, exact_counts, width, judge: as in create_anytime_graph.
    answer: "whole" (the reply as the model writes it), "tags" (the model is asked to reason and to
    mark its answer), or a function from reply to answer. temperature, max_tokens, stop: for each
    call, as in other chat models.
    ledger: records each invocation as a run of its own. quotas: as in create_anytime_graph; whose a
    call is, the graph around it tells or its metadata, as in invoke(question, {"metadata": {"user":
    "ann"}}).

    The result is the best reply, as its provider sent it. Its `usage_metadata` is the total of all
    calls, and `response_metadata["anytime"]` has `stop_reason`, `score` and `spent`. A reply that
    calls tools is returned at once. A stream yields the final answer as one chunk; better answers on
    the way come as custom events named "anytime_improvement".

    Raises ValueError for a bad argument; when invoked, BudgetTooSmall or QuotaExceeded (nothing was
    spent) and NoAnswer (all calls failed).
    """

    model: Any
    budget: Budget
    scorer: SkipValidation[Scorer | Judge | Literal["judge", "vote", "agreement"] | None] = None
    strategy: SkipValidation[str | Strategy] = "adaptive"
    answer: SkipValidation[str | Extractor] = "whole"
    prices: Prices | None = None
    media_tokens: int | None = None
    exact_counts: bool | None = None
    width: int = 8
    judge: SkipValidation[Judge | None] = None
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    ledger: SkipValidation[Ledger | None] = None
    quotas: SkipValidation[Sequence[Quota]] = ()
    disable_streaming: bool | Literal["tool_calling"] = True
    """LangChain would stream without the run's callbacks, so that no trace showed the inner calls."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True
    )
    _form: _Form | None = PrivateAttr(None)

    @field_validator("model", mode="before")
    @classmethod
    def _named(cls, model: Any) -> Any:
        return resolve_model(model)

    @model_validator(mode="after")
    def _checked(self) -> Self:
        """Let bad arguments fail here and not in the first invocation."""
        if isinstance(self.answer, type):
            raise ValueError(
                f"answer={self.answer.__name__}: for answers of a type use with_structured_output"
            )
        if self.budget.limits().keys() == {TOOL_CALLS}:
            raise ValueError(
                f"budget {self.budget}: a chat model makes no tool calls itself; give it a budget in "
                "tokens, usd, calls or seconds, and count tool calls in the agent, with "
                f"TokenBudgetMiddleware(Budget({self.budget}))"
            )
        self._graph(self.model, self.strategy, self.scorer, self.answer, self.prices)
        return self

    def _graph(
        self, model: Any, strategy: Any, scorer: Any, answer: Any, prices: Prices | None
    ) -> Any:
        return create_anytime_graph(
            model,
            budget=self.budget,
            scorer=scorer,
            strategy=strategy,
            answer=answer,
            prices=prices,
            media_tokens=self.media_tokens,
            exact_counts=self.exact_counts,
            width=self.width,
            judge=self.judge,
            ledger=self.ledger,
            quotas=self.quotas,
        ).compile(checkpointer=False)

    # --- its description, which is that of the inner model

    @property
    def _inner(self) -> BaseChatModel:
        return cast(BaseChatModel, unbound(self.model)[0])

    @property
    def _llm_type(self) -> str:
        return "anytime"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        told = ("budget", "scorer", "strategy", "answer", "prices", "media_tokens", "exact_counts")
        return {name: repr(getattr(self, name)) for name in (*told, "width", "judge")}

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        inner = self._inner._get_invocation_params(**self._options(stop, kwargs))
        return {**inner, **super()._get_invocation_params(stop=stop, **kwargs)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._inner._get_ls_params(**self._options(stop, kwargs))

    @property
    def model_name(self) -> str | None:
        """The inner model's. LangChain's agents ask by it what a model can do."""
        return providers.model_name(self._inner)

    def _resolve_model_profile(self) -> ModelProfile | None:
        return self._inner.profile

    def get_token_ids(self, text: str) -> list[int]:
        return self._inner.get_token_ids(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        return self._inner.get_num_tokens_from_messages(messages, tools)

    # --- tools and structured output, as the inner model has them

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools as the inner model does. A first reply that calls tools is returned as it is. If
        the first reply is an answer, it is improved within the budget, and later replies that call
        tools are dropped."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self._holding(self._inner.bind_tools(tools, **kwargs))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """As the inner model does it, with the same options, such as `method`. A reply that does not
        parse, or lacks required keys, is not a candidate. Scorers get the parsed answer."""
        chain = _sequence(self._inner.with_structured_output(schema, **kwargs))
        parser = chain.steps[1] if len(chain.steps) == 2 else RunnableSequence(*chain.steps[1:])
        described = convert_to_json_schema(schema)
        required = described.get("required", ())
        of_text = any(isinstance(step, JsonOutputParser) for step in chain.steps)
        form = _Form(parser, frozenset(required), of_text, _defaults(described))
        if include_raw:
            chain = _sequence(
                self._inner.with_structured_output(schema, include_raw=True, **kwargs)
            )
        head, *rest = chain.steps
        if isinstance(head, RunnableParallel):
            head = RunnableParallel({k: self._holding(v, form) for k, v in head.steps__.items()})
        else:
            head = self._holding(head, form)
        return RunnableSequence(head, *rest)

    def _holding(
        self, bound: Runnable[Any, Any], form: _Form | None = None
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model in place of the inner one, with what was bound to the inner one."""
        inner, kwargs = unbound(bound)
        if not isinstance(inner, BaseChatModel):
            raise NotImplementedError(
                f"{type(self._inner).__name__} binds tools and schemas in a way of its own "
                f"({type(bound).__name__}), which ChatAnytime cannot take over"
            )
        _, own = unbound(self.model)
        holder = self.model_copy(update={"model": rebound(self.model, inner, own)})
        holder._form = form
        return holder.bind(**kwargs)

    def as_tool(
        self,
        args_schema: type[BaseModel] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
    ) -> BaseTool:
        """A tool that puts a question to this model. (Runnable's own takes no chat model alone, for
        what one can be asked is more than a tool's arguments; it does take chains with one.)"""
        if args_schema is not None or arg_types is not None:
            return super().as_tool(
                args_schema, name=name, description=description, arg_types=arg_types
            )

        def think(question: str) -> str:
            return str(self.invoke(question).text)

        async def athink(question: str) -> str:
            return str((await self.ainvoke(question)).text)

        return StructuredTool.from_function(
            think, athink, name=name or "think", description=description or _THINK
        )

    # --- answering

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn, app = self._turn(stop, kwargs)
        reported, writer = _Reported(), _writer()
        config = _config(run_manager, reported, self._whose(run_manager))

        def answered() -> dict[str, Any]:
            out: dict[str, Any] = {}
            parts = app.stream(_asked(messages), config, stream_mode=_MODES)
            for mode, part in parts:
                if mode == "values":
                    out = part
                elif not turn.calling:
                    writer(part)
                    if run_manager is not None:
                        outer = _below(run_manager, run_manager.handlers)
                        dispatch_custom_event(IMPROVEMENT, part, config=outer)
            return out

        with _apart(config) as context:
            result = _result(turn, context.run(answered))
        if run_manager is not None:
            _tracers(run_manager).on_llm_end(reported.rest(result))
        return result

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn, app = self._turn(stop, kwargs)
        reported, writer = _Reported(), _writer()
        whose = await asyncio.to_thread(self._whose, run_manager) if self.ledger else {}
        config = _config(run_manager, reported, whose)

        async def answered() -> dict[str, Any]:
            out: dict[str, Any] = {}
            async with aclosing(app.astream(_asked(messages), config, stream_mode=_MODES)) as parts:
                async for mode, part in parts:
                    if mode == "values":
                        out = part
                    elif not turn.calling:
                        writer(part)
                        if run_manager is not None:
                            outer = _below(run_manager, run_manager.handlers)
                            await adispatch_custom_event(IMPROVEMENT, part, config=outer)
            return out

        with _apart(config) as context:
            answering = asyncio.create_task(answered(), context=context)
            result = _result(turn, await to_its_end(answering, cancel=True))
        if run_manager is not None:
            await _tracers(run_manager).on_llm_end(reported.rest(result))
        return result

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """One chunk with the final answer, because streamed text cannot be taken back."""
        yield _chunk(self.invoke(input, config, stop=stop, **kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """One chunk with the final answer, because streamed text cannot be taken back."""
        yield _chunk(await self.ainvoke(input, config, stop=stop, **kwargs))

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        """For `stream_events(version="v3")`, which gives it the run's callbacks."""
        message = self._generate(*args, **kwargs).generations[0].message
        yield ChatGenerationChunk(message=_chunk(cast(AIMessage, message)))

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        message = (await self._agenerate(*args, **kwargs)).generations[0].message
        yield ChatGenerationChunk(message=_chunk(cast(AIMessage, message)))

    def _options(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The options of each call: bound to the model, set on this model, or given now."""
        own = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": stop or self.stop or None,
        }
        set_here = {name: value for name, value in own.items() if value is not None}
        return {**unbound(self.model)[1], **set_here, **kwargs}

    def _whose(self, run_manager: _Run) -> dict[str, str]:
        """The keys that quotas and bills are by. The graph inside knows nothing of what is around."""
        if self.ledger is None:
            return {}
        metadata = {} if run_manager is None else run_manager.metadata
        return self.ledger.keys(self.quotas, lambda name: told(name, metadata))

    def _turn(self, stop: list[str] | None, kwargs: dict[str, Any]) -> tuple[_Turn, Any]:
        """The graph of one invocation, and how its replies are read."""
        options = self._options(stop, kwargs)
        inner, prices, name = self._inner, self.prices, options.get("model")
        field = providers.name_field(inner)
        if isinstance(name, str) and field is not None:  # another model: its own price and profile
            del options["model"]
            inner, prices = inner.model_copy(update={field: name, "profile": None}), None
        turn = _Turn(
            form=self._form,
            tools=bool(options.get("tools")) and self._form is None,
            json=options.get("response_format") not in (None, {"type": "text"}),
            scorer=self.scorer or usual(self.strategy),
            strategy=resolve(self.strategy),
        )
        app = self._graph(
            rebound(self.model, inner, options),
            turn.moves,
            turn.score if callable(self.scorer) else turn.scorer,
            replace(answer_format("whole" if self._form else self.answer), read=turn.read),
            prices,
        )
        return turn, app


@dataclass(frozen=True)
class _Form:
    """The form of structured answers. parser: the inner model's own. of_text: the parser reads JSON
    from the text, and would complete JSON that was cut. defaults: of the fields that may be left out."""

    parser: Runnable[Any, Any]
    required: frozenset[str]
    of_text: bool
    defaults: Mapping[str, Any]

    def parsed(self, message: AIMessage) -> Any:
        """The answer in a message. Raises ValueError, or what the parser raises, if there is none."""
        if self.of_text:
            parse_json_markdown(message.text, parser=partial(json.loads, strict=False))
        answer = self.parser.invoke(message, {"callbacks": []})
        if answer is None:
            raise ValueError("nothing to parse")
        if isinstance(answer, dict) and not self.required <= answer.keys():
            raise ValueError(f"without {', '.join(sorted(self.required - answer.keys()))}")
        return answer


class _Turn:
    """One invocation: which replies are answers, and the messages in which they came.

    form: that of structured answers. tools: the first reply may call tools. json: answers are JSON.
    """

    def __init__(
        self, *, form: _Form | None, tools: bool, json: bool, scorer: Any, strategy: Strategy
    ) -> None:
        self.form, self.tools, self.json = form, tools, json
        self.scorer, self.strategy = scorer, strategy
        self.messages: dict[int, AIMessage] = {}
        self.parsed: dict[str, Any] = {}
        self.calling = False
        self._answered = False

    def read(self, ordinal: int, reply: Reply) -> Reply | None:
        """The reply, with a structured answer or tool calls as JSON in its text; None if it is no answer."""
        errors, message = reply.receipt["errors"], reply.message
        if self.json:
            message = providers.with_parsed(message)
        self.messages[ordinal] = message
        if self.tools and reply.called:
            halves = reply.uncut and broken(message)
            if reply.uncut and not halves and not self._answered:
                return self._call(reply, message)
            why = "they did not come whole" if halves else "it is no answer"
            errors.append(f"reply {ordinal} calls tools: {why}")
            return None
        if self.form is None and not self.json:
            self._answered = self._answered or bool(reply.text.strip())
            return reply
        if not reply.whole:
            errors.append(f"reply {ordinal} ended before its answer did")
            return None
        try:
            with contained():
                own = message.additional_kwargs
                answer = self.form.parsed(message) if self.form else own["parsed"]
        except Exception as error:  # the schema, and with it the parser, may be the user's
            errors.append(f"reply {ordinal} is no such answer: {describe(error)}")
            return None
        self._answered = True
        text = _as_ballot(answer, self.form.defaults if self.form else {}, message)
        self.parsed[text] = answer
        return replace(reply, text=text)

    def _call(self, reply: Reply, message: AIMessage) -> Reply:
        self.calling = True
        called = [*message.tool_calls, *message.invalid_tool_calls]
        return replace(reply, text=json.dumps(called, ensure_ascii=False))

    def score(self, question: str, answer: str) -> Verdict | Awaitable[Verdict]:
        if self.calling:
            return 0.0
        return cast(Scorer, self.scorer)(question, self.parsed.get(answer, answer))

    def moves(self, view: View) -> Sequence[Move]:
        """The strategy's moves. With tools, one draft comes first; if it calls tools, it is the last."""
        if self.calling:
            return [Stop("tool_calls")]
        if self.tools and view.best is None:
            return [Draft()]
        return self.strategy(view)


class _Reported(BaseCallbackHandler):
    """The usage that tracers see in the runs below this model's run."""

    def __init__(self) -> None:
        self.usages: list[UsageMetadata] = []

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for generation in response.generations[0]:
            message = getattr(generation, "message", None)
            if (usage := getattr(message, "usage_metadata", None)) is not None:
                self.usages.append(usage)

    def rest(self, result: ChatResult) -> LLMResult:
        """The result for tracers. Its usage is what no run below has shown, so that the runs of a
        trace add up to the bill. Of 100 tokens, with runs of 34, 34 and one that was cut, the rest
        is 32."""
        message = cast(AIMessage, result.generations[0].message)
        rest = message.usage_metadata
        for usage in self.usages:
            with suppress(TypeError, ValueError):  # figures that are no numbers
                rest = subtract_usage(rest, usage)
        unshown = message.model_copy(update={"usage_metadata": rest})
        return LLMResult(generations=[[ChatGeneration(message=unshown)]])


_Manager = TypeVar("_Manager", CallbackManagerForLLMRun, AsyncCallbackManagerForLLMRun)


def _tracers(run_manager: _Manager) -> _Manager:
    """A manager of this run for the tracers that see the runs below. They are taken out of the run's
    own manager, because they get another result at the end of the run."""
    inherited = run_manager.inheritable_handlers
    apart = copy(run_manager)
    apart.handlers = [
        h for h in run_manager.handlers if isinstance(h, BaseTracer) and h in inherited
    ]
    run_manager.handlers = [h for h in run_manager.handlers if h not in apart.handlers]
    return apart


_Run = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
_MODES = ["custom", "values"]


def _asked(messages: Sequence[BaseMessage]) -> dict[str, Any]:
    """The graph's input. Messages are copied, because the graph gives them ids, and those that repeat
    an id lose it, because the graph would replace the first by the second."""
    seen: set[str | None] = set()
    copies = []
    for message in messages:
        id = None if message.id in seen else message.id
        seen.add(id)
        copies.append(message.model_copy(update={"id": id}))
    return {"messages": copies}


def _config(run_manager: _Run, reported: _Reported, whose: dict[str, str]) -> RunnableConfig:
    """The config of the graph inside; it does not depend on a graph around this model. Tracers see the
    inner calls as child runs; other handlers would take them for this run's tokens and usage."""
    handlers: list[BaseCallbackHandler] = [reported]
    if run_manager is not None:
        handlers += [h for h in run_manager.inheritable_handlers if isinstance(h, BaseTracer)]
    below = _below(run_manager, handlers)
    return {**below, "recursion_limit": _STEPS, "configurable": whose}


def _below(run_manager: _Run, handlers: list[BaseCallbackHandler]) -> RunnableConfig:
    """The config for what happens within a run of this model. The handlers get its events."""
    if run_manager is None:
        return RunnableConfig(callbacks=handlers)
    is_async = isinstance(run_manager, AsyncCallbackManagerForLLMRun)
    manager = (AsyncCallbackManager if is_async else CallbackManager)(
        handlers,
        handlers,
        parent_run_id=run_manager.run_id,
        inheritable_tags=run_manager.inheritable_tags,
        inheritable_metadata=run_manager.inheritable_metadata,
    )
    return RunnableConfig(callbacks=manager)


def _writer() -> Callable[[Improvement], None]:
    """Writes to the custom stream of the LangGraph node in which this model is called, if any."""
    try:
        outer, writer = copy_context(), get_stream_writer()
    except (RuntimeError, KeyError):
        return lambda event: None
    return lambda event: outer.run(writer, event)


@contextmanager
def _apart(config: RunnableConfig) -> Iterator[Context]:
    """A context for the run inside, without the graph in which this model is called, except for who pays
    there, and without handlers that are set for whole blocks of code, such as that of
    get_usage_metadata_callback."""
    payer = current_payer()
    with paying_from(payer) if payer else nullcontext(), set_config_context(config) as context:
        for variable, value in list(context.items()):
            if isinstance(value, BaseCallbackHandler) and not isinstance(value, BaseTracer):
                context.run(variable.set, None)
        yield context


def _result(turn: _Turn, out: Mapping[str, Any]) -> ChatResult:
    best, spent = out["best"], out["spent"]
    message = turn.messages.get(best["id"])
    if turn.form is None and not turn.json and not turn.calling:
        if message is None or message.text.strip() != best["text"]:
            message = AIMessage(best["answer"])
        elif best["answer"] != best["text"]:
            message = message.model_copy(update={"content": best["answer"]})
    assert message is not None, "an answer was read from a message"
    summary = {
        "stop_reason": "tool_calls" if turn.calling else out["stop_reason"],
        "score": None if turn.calling else best["score"],
        "spent": spent,
    }
    own = {k: v for k, v in message.response_metadata.items() if k != "token_usage"}
    update = {"usage_metadata": _usage(spent), "response_metadata": {**own, "anytime": summary}}
    return ChatResult(generations=[ChatGeneration(message=message.model_copy(update=update))])


def _usage(spent: Spend) -> UsageMetadata:
    usage = UsageMetadata(
        input_tokens=spent["input_tokens"],
        output_tokens=spent["output_tokens"],
        total_tokens=spent["tokens"],
    )
    if spent["cached_tokens"]:
        usage["input_token_details"] = InputTokenDetails(cache_read=spent["cached_tokens"])
    if spent["reasoning_tokens"]:
        usage["output_token_details"] = OutputTokenDetails(reasoning=spent["reasoning_tokens"])
    return usage


def _chunk(message: AIMessage) -> AIMessageChunk:
    parts = message.model_dump(exclude={"type"})
    return AIMessageChunk(**parts, chunk_position="last")


def _sequence(chain: Runnable[Any, Any]) -> RunnableSequence[Any, Any]:
    if isinstance(chain, RunnableSequence) and len(chain.steps) > 1:
        return chain
    raise NotImplementedError(
        f"a {type(chain).__name__} for structured output, where a model and its parser are expected"
    )


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a JSON schema's own properties."""
    properties = schema.get("properties")
    own = properties.items() if isinstance(properties, dict) else ()
    return {k: p["default"] for k, p in own if isinstance(p, dict) and "default" in p}


def _as_ballot(answer: Any, defaults: Mapping[str, Any], message: AIMessage) -> str:
    """An answer as the text by which it is compared: with its defaults, so that those who say them agree with
    those who do not. A schema may not be able to write what it has read; then as it came."""
    if isinstance(answer, dict):
        answer = {**defaults, **answer}
    form = {"default": _as_data, "sort_keys": True, "ensure_ascii": False}
    try:
        with contained():
            return json.dumps(answer, **cast(Any, form))
    except Exception:  # serializers are the user's own code
        called = [(call["name"], call["args"]) for call in message.tool_calls]
        return message.text or json.dumps(called, **cast(Any, form))


def _as_data(value: Any) -> Any:
    """An instance of a schema, of either of pydantic's versions, as plain data."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value.dict()
