"""What differs between the providers' chat model classes: output caps, retries, replies and errors.

Facts are keyed by package, so that no provider's package is imported. docs/models.md shows what the
tests see of them at the wire.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import import_module
from math import isfinite
from traceback import walk_tb
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import BaseModel

from anytime_graph.budget import Unpayable
from anytime_graph.interrupt import CannotPause, Exited
from anytime_graph.models.departures import Departure, Gate
from anytime_graph.models.restated import restating, restating_in
from anytime_graph.models.statuses import status_in
from anytime_graph.text import as_written

Hear = Callable[[Mapping[str, Any]], None]
"""Is told of a report of usage as the provider sent it."""
CAP_FIELDS = ("max_tokens", "max_output_tokens", "num_predict")
"""Names of the output cap across LangChain's model classes; the first that a class has is used."""
_NAMES = ("model_name", "model", "model_id")
_ADDRESSES = (
    *("base_url", "openai_api_base", "anthropic_api_url", "endpoint_url", "endpoint"),
    *("groq_api_base", "openrouter_api_base"),
)
_HOMES = {
    "langchain_google_genai": "https://generativelanguage.googleapis.com",
    "langchain_aws": "https://bedrock-runtime.us-east-1.amazonaws.com",
    "langchain_groq": "https://api.groq.com",
    "langchain_openrouter": "https://openrouter.ai",
    "langchain_ollama": "http://localhost",
}
"""Where clients send whose models need not say it; of Amazon's regions, one of them."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CAPS = {*CAP_FIELDS, "max_completion_tokens", "max_new_tokens", "maxTokens"}
_LOOSE = {
    *("n", "candidate_count", "best_of", "num_return_sequences", "num_generations"),
    *("stream", "max_retries", "retries"),
}
"""Options that multiply what a call buys, or hide its usage."""
_LIST_PRICE = {
    "service_tier": ("auto", "default", "standard", "standard_only", "on_demand", "flex", "batch"),
    "inference_geo": ("global",),
    "speed": ("standard",),
    "modalities": (["text"],),
    "response_modalities": (["TEXT"],),
    "performance_config": ({"latency": "standard"},),
    "models": (),
    "fallbacks": (),
}
"""Options that change the price, and their values at which it is the listed one or less. A router may take
any of the models that it is given."""
_SEARCHES = re.compile(
    r":online$|deep-research|(^|/)compound|search-(preview|api)"
    r"|[:&](enable_web_(search|scraping)|character_slug)=(?!off|false)"
)
"""Names of models that look things up by themselves, and pay for what they find. Venice's end in options."""
_CLIENT_TOOLS = ("function", "custom")
_FUNCTION_LISTS = {"function_declarations", "functionDeclarations"}
_FUNCTION_KEYS = {"input_schema", "parameters", "toolSpec", "cachePoint"}
"""Keys of tools without a type that the caller carries out."""
_ADDING = (
    *("previous_response_id", "use_previous_response_id", "conversation"),
    *("cached_content", "cachedContent", "prompt", "prompt_id", "character_slug"),
    *(
        "data_sources",
        "dataSources",
        "vector_store_ids",
        "files",
    ),  # Azure's, LiteLLM's, Open WebUI's
)
_HOSTED = (
    *_ADDING,
    *("web_search_options", "search_parameters", "plugins", "mcp_servers", "container"),
    *("enable_search", "enable_code_interpreter"),  # Qwen's
    *("enable_enhancement", "force_search_enhancement", "enable_deep_search"),  # Hunyuan's
    *("enable_web_search", "enable_web_scraping"),  # Venice's
    *("web_search", "search_settings", "connectors"),  # Qianfan's, Groq's, Cohere's
)
"""Options by which the provider adds to a prompt what the request does not hold."""
_OFF = ("off", "none")
"""Values of such options at which nothing is added."""
_NOT_CARRIED_OUT = (
    *_ADDING,
    *("bash", "text_editor", "computer", "memory", "local_shell", "shell", "apply_patch"),
)
"""What a provider adds to a prompt that is no tool, and its kinds of tools that the caller carries out."""
_BESIDE = re.compile(r"compact|advisor")
"""What a provider bills beside the reply, and leaves out of the usage that its clients read."""
HOLDERS = ("model_kwargs", "extra_body", "generation_config")
_NESTING = (*HOLDERS, "google", "venice_parameters", "additional_model_request_fields")
"""The same, with those whose other options only their provider knows."""
MADE_WITH = (
    *("system", "response_schema", "output_config", "additional_model_request_fields"),
    *HOLDERS,
)
"""Fields of models whose values are sent, and read, with each prompt."""
_BEDROCKS = {
    **dict.fromkeys(("model_id", "modelId"), "model"),
    **{"serviceTier": "service_tier", "performanceConfig": "performance_config"},
    "additionalModelRequestFields": "additional_model_request_fields",
}
"""Bedrock's other names of options."""
_REPLACING = {
    "langchain_ollama": ("options",),
    "langchain_aws": ("inferenceConfig", "inference_config"),
}
"""Call options that replace the ones in which the client sends the cap."""
_QUIET = {"langchain_openrouter": {"retries": None}}
"""Call options that turn off retries which the client sets up in its constructor."""
_BINDING = {"langchain_xai": {"use_responses_api": True, "store": False, "seed": None}}
"""Fields that make the cap hold for hidden reasoning too; left alone if the first is set. The cap of
xAI's chat completions limits only the visible output. (Its Responses API takes no seed.)"""
_THINKING = ("thinking", "additional_model_request_fields", "additionalModelRequestFields")
_LEAST_THOUGHT = 1_024
"""The smallest thinking budget that Anthropic accepts."""
_LEAST_ADVICE = 20_000
"""The smallest task budget that Anthropic accepts."""
_SAYS = ("reasoning", "thinking", "reasoning_content")
_FINISHES = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_FULL = re.compile(
    r"(length|max_tokens|max_output_tokens|model_length|model_context_window_exceeded)\1*", re.I
)
"""Providers' words for a reply that ended at its cap; LangChain joins a word that comes twice."""
_NATURAL = re.compile(
    r"(stop|stop_sequence|tool_calls?|function_call|end_turn|tool_use|completed?|eos|eos_token)\1*",
    re.I,
)
"""Providers' words for a reply that the model ended."""
_CLOSING = ("completed", "incomplete", "failed")
"""Statuses of a reply of the Responses API that has ended."""
REFUSAL = "refusal"
"""The word for a reply in which the model refuses to answer. Anthropic sends it; OpenAI sends the
refusal in a field of its own."""
_TELLING = dict.fromkeys(
    (
        *("langchain_openai", "langchain_anthropic", "langchain_google_genai", "langchain_groq"),
        *("langchain_mistralai", "langchain_ollama", "langchain_aws", "langchain_openrouter"),
    ),
    True,
)
"""Clients that say why a reply ended, so that a reply without a reason broke off."""
_TO_EVERYBODY = (
    *(".openai.com", ".azure.com", ".anthropic.com", ".googleapis.com", ".amazonaws.com"),
    *(".mistral.ai", ".groq.com", ".x.ai", ".deepseek.com", ".cohere.com", ".cerebras.ai"),
)
"""Hosts at which models get no instructions but the user's."""
_COUNTED = {
    "langchain_openai": "engine",
    "langchain_anthropic": "anthropic",
    "langchain_google_genai": "google",
}
"""Clients that can ask how many tokens a prompt is; through OpenAI's, engines such as llama.cpp."""
_RESPONSES = (
    *("reasoning", "include", "truncation", "context_management"),
    *("use_previous_response_id", "previous_response_id", "text"),
)
"""Fields and options that make langchain-openai use the Responses API."""
_CHAT = ("types.chat.ChatCompletion", "types.chat.ChatCompletionChunk")
_PUT_OFF = {
    "langchain_openai": ("openai", _CHAT),
    "langchain_groq": ("groq", _CHAT),
    "langchain_anthropic": ("anthropic", ("types.Message", "types.RawMessageStreamEvent")),
}
"""Clients that build the classes of a reply when the first one comes, and where the SDK has these."""
_RESPONSES_OWN = tuple(
    f"types.responses.{kind}" for kind in ("Response", "ParsedResponse", "ResponseStreamEvent")
)
_CHOICES = {"langchain_openai": True}
"""Clients that can ask for several choices (see `with_n_choices`), by chat completions."""
_MAYBE_SERVED = (408, 424, 499)
"""Statuses that blame the request but may come after the model has worked: Bedrock says 408 when its
model took too long and 424 when it failed, and gateways say 499 when the client hung up."""
_TURNED_AWAY = (501, 503, 505, 511, 521, 523, 525, 526, 529, 530)
"""Statuses that blame the server and say that it did not accept the request. Those above 520, but for 529,
are Cloudflare's for a server that it did not reach."""
_WORD = re.compile(
    r"(?:ResponseError\(code=')?(\w+)(?:: |')|OpenRouter API returned an error.*\(code: (\w+)\)$",
    re.S,
)
"""How LangChain's errors of type ValueError tell the word."""
_PARAMETER = r"[a-z_]{1,40}(?:[.\[](?:\d{1,3}|[a-z_]{1,40})\]?){0,6}"
"""The name of a parameter, which is no key and hardly a word of a prompt."""
_PARAMETERS = tuple(
    re.compile(form)
    for form in (
        rf"^({_PARAMETER}): ",
        rf"^[A-Za-z ]{{0,40}}(?:parameter|argument)s?\b[^\w\n]{{1,4}}(?:supplied\W+)?({_PARAMETER})\b",
    )
)
"""How messages name a parameter at their head."""
_NO_OPTION = re.compile(r"unexpected keyword argument '\w{1,40}'$")
"""How Python says that a client has no such option."""
NO_ENTRY = (401, 403)
"""Statuses that every other request of the same caller will get too."""
NO_SUCH_THING = 404
_CONNECTING = (
    *("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"),
    *("UnsupportedProtocol", "LocalProtocolError", "InvalidURL", "TooManyRedirects"),
)
_UNSENT = {
    "builtins": ("UnicodeEncodeError", "ConnectionRefusedError"),
    "socket": ("gaierror",),
    **dict.fromkeys(("httpx", "httpx2", "httpcore", "httpcore2"), _CONNECTING),
    "requests": (
        *("ConnectTimeout", "InvalidURL", "MissingSchema", "InvalidSchema", "InvalidHeader"),
        "TooManyRedirects",
    ),
    "urllib3": ("NewConnectionError", "ConnectTimeoutError", "LocationParseError"),
    "aiohttp": ("ClientConnectorError", "ConnectionTimeoutError", "InvalidURL"),
    "botocore": (
        *("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"),
        *("NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ParamValidationError"),
    ),
    "google": ("DefaultCredentialsError", "RefreshError"),
}
"""Errors that end a request before it has left, or before a server took it. (Only requests are encoded; replies
are decoded.)"""
_HIDING = {
    "builtins": ("ConnectionError",),
    "requests": ("ConnectionError",),
    "urllib3": ("MaxRetryError",),
}
"""Errors that have their cause only as their context: Ollama's client raises the first."""
_RESPONDS = re.compile(r"codex|^(gpt|o\d).*-(pro|sol)")
"""Names of models that OpenAI serves only by the Responses API."""
_NO_LESS = re.compile(r"(^|/)(gpt-|chatgpt-|o\d)")
"""Names of models of OpenAI's, which refuses a smaller cap than 16 tokens wherever they are served."""
_FURTHER = "-choice-"
_CALLBACKS = "langchain_core.callbacks.manager"
_MODELS = "langchain_core.language_models.chat_models"
_CALLING = ("stream", "astream", "invoke", "ainvoke", "generate", "agenerate")
_CALLERS = ("langchain_core", "langchain_google_genai")
"""The methods of chat models that wait for their rate limiter before they send, and the packages whose do."""
_SENDING = ("_stream", "_astream", "_generate", "_agenerate")
_SENDERS = (
    "langchain_core",
    "langchain_openai",
    "langchain_anthropic",
    "langchain_groq",
    "langchain_xai",
    "langchain_mistralai",
    "langchain_ollama",
    "langchain_openrouter",
    "langchain_deepseek",
)
"""Packages whose chat models send nothing but by the HTTP client that they hold."""
_CLIENTS = {
    False: ("root_client", "client", "_client"),
    True: ("root_async_client", "async_client", "_async_client"),
}
"""The fields in which they hold it, sync and async, perhaps within their SDK's client."""


# --- before a call


def model_name(model: Any) -> str | None:
    """The name by which the provider knows a chat model."""
    names = (getattr(model, field, None) for field in _NAMES)
    return next((name for name in names if isinstance(name, str) and name), None)


def unbound(model: Any) -> tuple[Any, dict[str, Any]]:
    """The model within its bindings, and the options that are bound to it."""
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        bound = {**model.kwargs, **bound}
        model = model.bound
    return model, bound


def sent_options(model: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request that its price and its bound depend on, the last that counts."""
    names = ("model", *_LIST_PRICE, *_HOSTED, "tools", "audio", "context_management")
    fields = {name: getattr(model, name, None) for name in names if name != "model"}
    sent = {**fields, "model": model_name(model)}
    held = {name: getattr(model, name, None) for name in _NESTING}
    for options in (_unheld({}, held), _unheld(bound, bound)):
        sent |= {k: v for k, v in options.items() if k in names}
    # Web searches are asked for by options of which all may be left at their defaults: {}.
    on = {k: v for k, v in sent.items() if v or (k in _HOSTED and isinstance(v, dict))}
    return {k: v for k, v in on.items() if not (k in _HOSTED and v in _OFF)}


def _unheld(options: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Request options by the names that are known, with those in the options that hold others, at any
    depth."""
    found = {_BEDROCKS.get(name, name): value for name, value in options.items()}
    inside = {_BEDROCKS.get(name, name): value for name, value in held.items()}
    for inner in (inside.get(name) for name in _NESTING):
        if isinstance(inner, Mapping):
            found |= _unheld(inner, inner)
    return found


def surcharges(sent: Mapping[str, Any]) -> list[str]:
    """What a request with these options asks for that may cost more than the price that is listed."""
    dearer = [
        f"{name}={sent[name]!r:.40}"
        for name, usual in _LIST_PRICE.items()
        if name in sent and sent[name] not in usual
    ]
    return [*dearer, *(["audio"] if "audio" in sent else []), *hosted(sent)]


def hosted(sent: Mapping[str, Any]) -> tuple[str, ...]:
    """What the provider itself adds to a prompt of a request with these options, such as what its own
    tools find."""
    kinds = [_hosted_kind(tool) for tool in sent.get("tools", ())]
    searches = [name] if _SEARCHES.search(name := str(sent.get("model", ""))) else []
    return (*filter(None, kinds), *(name for name in _HOSTED if name in sent), *searches)


def own_tools(sent: Mapping[str, Any]) -> tuple[str, ...]:
    """The tools in a request with these options that the provider itself carries out."""
    return tuple(kind for kind in hosted(sent) if not kind.startswith(_NOT_CARRIED_OUT))


def _hosted_kind(tool: Any) -> str | None:
    """The kind of a tool that the caller does not carry out, as far as can be told."""
    if not isinstance(tool, dict):
        return None if isinstance(tool, BaseTool) or callable(tool) else type(tool).__name__
    if (kind := tool.get("type")) is not None:
        return None if kind in _CLIENT_TOOLS else str(kind)
    if _FUNCTION_LISTS & tool.keys():  # Google's tools, several in one
        return next((key for key in tool if key not in _FUNCTION_LISTS), None)
    return None if _FUNCTION_KEYS & tool.keys() else next(iter(tool), "tool")


def name_field(model: BaseChatModel) -> str | None:
    """The field of a model's class that holds that name."""
    return next((field for field in _NAMES if field in type(model).model_fields), None)


def address(model: Any) -> str:
    """Where a model is served; empty if its class does not say."""
    found = (getattr(model, field, None) for field in _ADDRESSES)
    root = getattr(getattr(model, "root_client", None), "base_url", None)
    return next((str(url) for url in (root, *found) if url), "")


def served_at(model: Any) -> str:
    """The same, or where its client sends by default; empty if neither is known."""
    return address(model) or _facts(model, _HOMES) or ""


def host(model: Any) -> str:
    """The host of OpenAI's client in a model; empty if it has none."""
    root = getattr(getattr(model, "root_client", None), "base_url", None)
    return str(getattr(root, "host", ""))


def may_preface(model: BaseChatModel) -> bool:
    """Whether a model's server may put instructions of its own before a prompt, as presets of Ollama and
    gateways do. Who serves a model to everybody alike does not."""
    name = urlsplit(address(model)).hostname
    return name is not None and not name.endswith(_TO_EVERYBODY)


def counted_by(model: BaseChatModel) -> str | None:
    """Who counts the prompts of a model before they are sent, if anybody does; see models.counting."""
    return _facts(model, _COUNTED) or None


def cap_field(model: BaseChatModel) -> str | None:
    """The field of a model's class that caps the output."""
    return next((name for name in CAP_FIELDS if name in type(model).model_fields), None)


def short_caps(model: BaseChatModel, bound: Mapping[str, Any]) -> bool:
    """Whether a model takes an output cap below 16 tokens, as far as is known."""
    named = _NO_LESS.search(str(sent_options(model, bound).get("model", "")))
    return not (named or by_responses(model, bound))


def own_caps(model: BaseChatModel, bound: Mapping[str, Any]) -> list[int]:
    """The output caps that a model and its bound options already have."""
    values = [bound.get(name) for name in _CAPS] + [getattr(model, name, None) for name in _CAPS]
    values.append((getattr(model, "profile", None) or {}).get("max_output_tokens"))
    return [value for value in values if isinstance(value, int) and value > 0]


def meterable(
    model: BaseChatModel, bound: Mapping[str, Any]
) -> tuple[BaseChatModel, dict[str, Any]]:
    """A copy of the model, and of its bound options, that makes no hidden retries, reports usage in
    streams, makes one choice, takes no reply from a cache and has no cap besides `cap_field`. Raises
    ValueError if that is not possible."""
    _refuse(model, bound)
    _build_replies(model, bound)
    fields, field = type(model).model_fields, cap_field(model)
    rivals = _CAPS - {field} if field else set()
    update: dict[str, Any] = {name: None for name in rivals if name in fields}
    binding = _facts(model, _BINDING)
    if binding and getattr(model, next(iter(binding))) is None:
        update |= binding
    declined = (
        "stream_usage" in model.model_fields_set and getattr(model, "stream_usage", None) is False
    )
    if "stream_usage" in fields and not declined:
        update["stream_usage"] = True
    if "n" in fields and getattr(model, "n", None) not in (None, 1):
        update["n"] = 1
    for name in HOLDERS:
        if isinstance(held := getattr(model, name, None), dict):
            update[name] = _uncapped(held)
    if "max_retries" in fields:
        update["max_retries"] = 0
    update["cache"] = False  # a reply that is not bought is no new draft
    metered = model.model_copy(update=update | clients(model, max_retries=0))
    for name in [key for key in metered.__dict__ if key not in fields]:
        if isinstance(getattr(type(metered), name, None), functools.cached_property):
            del metered.__dict__[name]
    for name in ("_client", "_async_client"):
        if isinstance(getattr(type(metered), name, None), functools.cached_property):  # Anthropic's
            metered.__dict__[name] = _with_options(getattr(metered, name))
        elif hasattr(client := getattr(metered, name, None), "_client"):  # Ollama's
            setattr(metered, name, restating_in(client, "_client"))
    return metered, _uncapped(bound) | _facts(model, _QUIET)


_built: set[Any] = set()
_building = threading.Lock()


def _build_replies(model: Any, bound: Mapping[str, Any]) -> None:
    """Build the classes of a model's replies before its first call. Threads whose first replies come at
    once would build them at once, which fails before pydantic 2.14, when the replies are paid for."""
    if not (put_off := _facts(model, _PUT_OFF)):
        return
    sdk, names = put_off
    # Another version of the SDK may have them elsewhere, and what is bound may be no option.
    with _building, suppress(ImportError, AttributeError, TypeError):
        if by_responses(model, bound):
            names = _RESPONSES_OWN
        for name in names:
            module, _, kind = f"{sdk}.{name}".rpartition(".")
            _build(getattr(import_module(module), kind))


def _build(kind: Any) -> None:
    """Build a class, and those of its fields."""
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in _built:
        _built.add(kind)
        kind.model_rebuild()
        for field in kind.model_fields.values():
            _build(field.annotation)
    for part in get_args(kind):
        _build(part)


def by_responses(model: BaseChatModel, bound: Mapping[str, Any]) -> bool:
    """Whether langchain-openai sends requests with these options by OpenAI's Responses API. How it decides
    that is private."""
    told = getattr(model, "use_responses_api", None)
    if isinstance(told, bool):
        return told
    fields = any(getattr(model, name, None) or name in bound for name in _RESPONSES)
    tools = any(map(_hosted_kind, bound.get("tools", ())))
    version = getattr(model, "output_version", None) == "responses/v1"
    name = model_name(model) or ""
    called = bool(bound.get("tools")) and name.lower().startswith("gpt-6")
    return fields or tools or version or called or bool(_RESPONDS.search(name))


def schema_in_body(model: BaseChatModel, bound: Mapping[str, Any]) -> dict[str, Any]:
    """The bound options, with a schema for the reply moved into the request's body. As an option of its
    own, langchain-openai would parse the reply, lose its usage report, and fail on one that was cut."""
    form = bound.get("response_format")
    if form is None or by_responses(model, bound) or "extra_body" not in type(model).model_fields:
        return dict(bound)
    if isinstance(form, type):
        function = convert_to_openai_function(form, strict=True)
        function["schema"] = function.pop("parameters")
        form = {"type": "json_schema", "json_schema": function}
    body = {**(getattr(model, "extra_body", None) or {}), **(bound.get("extra_body") or {})}
    rest = {key: value for key, value in bound.items() if key != "response_format"}
    return {**rest, "extra_body": {**body, "response_format": form}}


def with_parsed(message: AIMessage) -> AIMessage:
    """A reply with its JSON, if it is some, where langchain-openai's own parsers look for it."""
    try:
        answer = json.loads(message.text)
    except (ValueError, RecursionError):
        answer = None
    if answer is None:
        return message
    extra = {**message.additional_kwargs, "parsed": answer}
    return message.model_copy(update={"additional_kwargs": extra})


def advised(model: BaseChatModel, tokens: float | None) -> dict[str, Any]:
    """Options with which a provider shows the model itself a budget of tokens. None elsewhere, or where it
    is smaller than the provider takes."""
    takes = any(kind.__name__ == "ChatAnthropic" for kind in type(model).__mro__)
    if not takes or "output_config" not in type(model).model_fields:
        return {}
    if tokens is None or tokens < _LEAST_ADVICE:
        return {}
    budget = {"type": "tokens", "total": int(tokens)}
    return {
        "output_config": {**(getattr(model, "output_config", None) or {}), "task_budget": budget}
    }


def clients(model: BaseChatModel, **options: Any) -> dict[str, Any]:
    """The HTTP clients that a model holds, with other options. SDKs in OpenAI's style offer
    `with_options`, which shares the connections of the original. Some models hold only a client's
    chat completions, which know their client."""
    update: dict[str, Any] = {}
    for field, name in (("root_client", "client"), ("root_async_client", "async_client")):
        completions = getattr(model, name, None)
        root: Any = getattr(model, field, None) or getattr(completions, "_client", None)
        if hasattr(completions, "send"):  # Mistral's is an HTTP client
            update[name] = restating(completions)
        elif (
            config := getattr(completions, "sdk_configuration", None)
        ) is not None:  # OpenRouter's
            sdk: Any = copy.copy(completions)
            sdk.sdk_configuration = restating_in(config, "client", "async_client")
            sdk.__dict__.pop("chat", None)  # which is made with the configuration
            sdk.original = completions  # which would close its clients if nobody held it
            update[name] = sdk
        elif hasattr(root, "with_options"):
            root = _with_options(root, **options)
            update |= {field: root} if hasattr(model, field) else {}
            update |= {name: root.chat.completions} if completions is not None else {}
    return update


def telling(model: BaseChatModel, departure: Departure, asynchronous: bool) -> BaseChatModel:
    """The model, for a call whose request's departure is told, as far as it can be."""
    if not _made_of(model, _CALLING, _CALLERS):
        departure.unseen()
    elif not (_made_of(model, _SENDING, _SENDERS) and _sends_by_view(model, asynchronous)):
        return model.model_copy(update={"rate_limiter": Gate(departure, model.rate_limiter)})
    return model


def _made_of(model: BaseChatModel, methods: Iterable[str], packages: Iterable[str]) -> bool:
    """Whether these methods of a model come from these packages."""
    modules = (getattr(type(model), name).__module__ for name in methods)
    return all(module.partition(".")[0] in packages for module in modules)


def _sends_by_view(model: BaseChatModel, asynchronous: bool) -> bool:
    """Whether the HTTP client that a model holds is a view; see models.restated."""
    config = getattr(getattr(model, "client", None), "sdk_configuration", None)  # OpenRouter's
    held = (getattr(config or model, name, None) for name in _CLIENTS[asynchronous])
    client = next((client for client in held if client is not None), None)
    for _ in range(2):
        client = getattr(client, "_client", client)
    return getattr(client, "restates", False) is True


def _with_options(client: Any, **options: Any) -> Any:
    """A copy of an SDK's client with these options, and with an HTTP client that tells errors by their status."""
    if (http := getattr(client, "_client", None)) is not None:
        options["http_client"] = restating(http)
    return client.with_options(**options)


def with_output_cap(
    model: BaseChatModel, bound: Mapping[str, Any], room: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the model, and its bound options, for a call that may write `room` tokens."""
    held = {name: value for name in _THINKING if (value := getattr(model, name, None))}
    update = {name: _thinking_within(value, room) for name, value in held.items()}
    if field := cap_field(model):
        update[field] = room
    own = {name: _thinking_within(bound[name], room) for name in _THINKING if name in bound}
    return update, {**bound, **own}


def _thinking_within(options: Any, room: int) -> Any:
    """The options with a thinking budget below the output cap, as Anthropic demands. A larger one becomes
    half the cap: 2,500 of 5,000 tokens. If that is too small for Anthropic, there is no thinking."""
    if not isinstance(options, dict):
        return options
    budget = options.get("budget_tokens")
    if isinstance(budget, int) and budget >= room:
        half = room // 2
        return (
            {**options, "budget_tokens": half} if half >= _LEAST_THOUGHT else {"type": "disabled"}
        )
    return {key: _thinking_within(value, room) for key, value in options.items()}


def _facts(model: BaseChatModel, table: Mapping[str, Any]) -> Any:
    """The entry of a table for a model's class, or for one of its base classes."""
    packages = (base.__module__.partition(".")[0] for base in type(model).__mro__)
    return next((table[package] for package in packages if package in table), {})


def _uncapped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Request options without those that would loosen the cap, at any depth."""
    return {
        key: _uncapped(value) if key in HOLDERS and isinstance(value, dict) else value
        for key, value in options.items()
        if key not in _CAPS | _LOOSE
    }


def _refuse(model: BaseChatModel, bound: Mapping[str, Any]) -> None:
    """Raise ValueError if the client would drop the cap, or make retries that cannot be turned off."""
    name = type(model).__name__
    for key in _facts(model, _REPLACING):
        if key in bound:
            raise ValueError(
                f"model={name}: {key}= is bound to it and would take the place of the output cap; "
                "give what it holds to the model's constructor"
            )
    config = getattr(getattr(getattr(model, "client", None), "meta", None), "config", None)
    if config is not None and (config.retries or {}).get("total_max_attempts") != 1:
        raise ValueError(
            f"model={name}: its AWS client retries by itself, out of the budget's sight; construct "
            "it with max_retries=0, or the client with Config(retries={'total_max_attempts': 1})"
        )
    own = getattr(model, "additional_model_request_fields", None) or {}
    asked, sent = _unheld(bound, bound), sent_options(model, bound)
    options = {**own, **asked, **(asked.get("additional_model_request_fields") or {})}
    nova = options.get("reasoningConfig") or {"maxReasoningEffort": options.get("reasoning_effort")}
    known = str(sent.get("model") or "")
    if "nova" in known and nova.get("maxReasoningEffort") == "high":
        raise ValueError(
            f"model={name}: {known} takes no output cap at reasoning effort 'high'; "
            "'medium' would do"
        )
    edits = sent.get("context_management") or ()
    edits = edits.get("edits") or () if isinstance(edits, Mapping) else edits
    for part in (*edits, *sent.get("tools", ())):
        kind = str(part.get("type")) if isinstance(part, Mapping) else ""
        if kind not in _CLIENT_TOOLS and _BESIDE.search(kind):
            raise ValueError(
                f"model={name}: its provider bills {kind!r} beside the reply and does not count it in "
                "the usage that it reports, so no budget can hold it; leave it out"
            )


def supports_n(model: BaseChatModel, bound: Mapping[str, Any]) -> bool:
    """Whether a metered model can give several replies to one request: through OpenAI's chat
    completions, and only if no options are bound to it."""
    if not _facts(model, _CHOICES) or bound:
        return False
    if by_responses(model, bound) or getattr(model, "include_response_headers", None):
        return False
    unstreamed = "streaming" in model.model_fields_set and not getattr(model, "streaming", True)
    if unstreamed or model.disable_streaming:
        return False
    return getattr(model, "output_version", None) in (None, "v0")


def with_n_choices(model: Any, n: int, id: str, hear: Hear) -> dict[str, Any]:
    """The fields of the model for a request of n choices whose streamed pieces name their choice in
    their id: langchain-openai drops a choice's index, and uses its delta's id as the message's. hear: is
    told of reports of usage."""
    spoken = _as_spoken(hear)
    return {"n": n, **_reading(model, lambda piece: _split_by_choice(spoken(piece), id))}


def with_refusals(model: Any, hear: Hear) -> dict[str, Any]:
    """The fields of a model whose client would drop a streamed refusal, so that it keeps it. hear: is told of
    reports of usage."""
    raw = by_responses(model, {}) or getattr(model, "include_response_headers", None)
    if not _facts(model, _CHOICES) or raw:
        return {}
    if not hasattr(model.client, "create") or not hasattr(model.async_client, "create"):
        return {}
    spoken = _as_spoken(hear)
    return _reading(model, lambda piece: [spoken(piece)])


def _reading(model: Any, parts: Callable[[Any], Iterable[Any]]) -> dict[str, Any]:
    """The clients of a model, which hand on the parts of each piece that they stream."""

    class Client:
        def create(self, **request: Any) -> Any:
            reply = model.client.create(**request)
            return _read(reply, parts) if request.get("stream") else reply

        def __getattr__(self, name: str) -> Any:
            return getattr(model.client, name)

    class AsyncClient:
        async def create(self, **request: Any) -> Any:
            reply = await model.async_client.create(**request)
            return _aread(reply, parts) if request.get("stream") else reply

        def __getattr__(self, name: str) -> Any:
            return getattr(model.async_client, name)

    return {"client": Client(), "async_client": AsyncClient()}


def choice_index(id: str | None) -> int:
    """Which of several choices a message is, by its id."""
    return int((id or "").partition(_FURTHER)[2] or 0)


@contextmanager
def _read(stream: Any, parts: Callable[[Any], Iterable[Any]]) -> Iterator[Iterator[Any]]:
    with stream as pieces:
        yield (part for piece in pieces for part in parts(piece))


@asynccontextmanager
async def _aread(
    stream: Any, parts: Callable[[Any], Iterable[Any]]
) -> AsyncIterator[AsyncIterator[Any]]:
    async with stream as pieces:
        yield (part async for piece in pieces for part in parts(piece))


def _as_spoken(hear: Hear) -> Callable[[Any], dict[str, Any]]:
    """A function over the pieces of a stream that shows what a choice refuses as its text, and as
    the reason of its end, and keeps a piece that langchain-openai would drop with its report."""
    refused: set[Any] = set()

    def spoken(piece: Any) -> dict[str, Any]:
        fields: dict[str, Any] = (
            piece if isinstance(piece, dict) else piece.model_dump(warnings=False)
        )
        if fields.get("object") == "error":  # older vLLM's
            raise ValueError(fields)
        if isinstance(usage := fields.get("usage"), dict):
            hear(usage)
        for choice in fields.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("delta", delta) is None and (usage or choice.get("finish_reason")):
                choice["delta"] = delta
            if words := delta.get("refusal"):
                refused.add(choice.get("index"))
                delta["content"] = (delta.get("content") or "") + words
            if choice.get("finish_reason") and choice.get("index") in refused:
                choice["finish_reason"] = REFUSAL
        return fields

    return spoken


def _split_by_choice(fields: dict[str, Any], id: str) -> Iterator[dict[str, Any]]:
    """One piece of the stream for each choice in it; the last has the usage."""
    choices = fields.get("choices") or [{"index": 0, "delta": {}}]
    for i, choice in enumerate(choices, 1):
        n = choice.get("index")
        further = f"{_FURTHER}{n}" if isinstance(n, int) and n > 0 else ""
        delta = {**(choice.get("delta") or {}), "id": id + further}
        usage = fields.get("usage") if i == len(choices) else None
        yield {**fields, "choices": [{**choice, "delta": delta}], "usage": usage}


# --- what comes back


def reasoning(chunk: BaseMessage) -> str:
    """Reasoning text that a provider shows beside the reply; it is billed as output."""
    if isinstance(chunk.content, str):
        return _reasoning_text(chunk.additional_kwargs.get("reasoning_content"))
    return "".join(
        _reasoning_text(block)
        for block in chunk.content
        if isinstance(block, dict) and block.get("type") in _SAYS
    )


def refusal(chunk: BaseMessage) -> str:
    """The words with which the model refuses, where they stand apart from the text."""
    words = [chunk.additional_kwargs.get(REFUSAL)]
    if isinstance(chunk.content, list):
        words += [b.get(REFUSAL) for b in chunk.content if isinstance(b, dict)]
    return "".join(part for part in words if isinstance(part, str))


def called(chunk: BaseMessage) -> str:
    """The text of tool calls, which is billed as output."""
    kinds = ("tool_calls", "invalid_tool_calls")
    calls = getattr(chunk, "tool_call_chunks", None) or [
        call for kind in kinds for call in getattr(chunk, kind, None) or ()
    ]
    return "".join(
        f"{call.get('name') or ''}{as_written(call.get('args'))}"
        for call in calls
        if call.get("args") is not None or call.get("name")
    )


def _reasoning_text(part: Any) -> str:
    """The text in a block of reasoning, at any depth."""
    if isinstance(part, dict):
        part = [part[key] for key in (*_SAYS, "text") if key in part]
    if isinstance(part, list):
        return "".join(map(_reasoning_text, part))
    return part if isinstance(part, str) else ""


def stated_cost(report: Mapping[str, Any]) -> float:
    """Dollars that a provider says a reply costs, in its report of usage; 0 if it does not say. Where it is
    served by the caller's own account elsewhere, OpenRouter's cost is only its fee, and what it costs there comes
    to it: a fee of 0.95 and 19 there are 19.95. Perplexity's cost has parts."""
    told, details = report.get("cost"), report.get("cost_details")
    cost = _in_dollars(told.get("total_cost") if isinstance(told, Mapping) else told)
    details = details if isinstance(details, Mapping) else {}
    elsewhere = _in_dollars(details.get("upstream_inference_cost"))
    return cost + elsewhere if elsewhere > cost else cost


def _in_dollars(amount: Any) -> float:
    with suppress(TypeError, ValueError):
        return number if isfinite(number := float(amount)) and number > 0 else 0.0
    return 0.0


def written_to_cache(report: Mapping[str, Any]) -> int:
    """Input that went into a provider's cache, by the names that LiteLLM and other gateways have for it."""
    details = report.get("prompt_tokens_details")
    inner = details.get("cache_creation_tokens") if isinstance(details, Mapping) else 0
    counts = (report.get("cache_creation_input_tokens"), inner)
    return max((n for n in counts if isinstance(n, int)), default=0)


def finish(metadata: Mapping[str, Any]) -> str | None:
    """Why a reply ended, in the provider's word."""
    reasons = [metadata.get(key) for key in _FINISHES]
    reasons.append((metadata.get("incomplete_details") or {}).get("reason"))
    blocked = (metadata.get("prompt_feedback") or {}).get("block_reason")  # Google's, an enum
    reasons.append(getattr(blocked, "value", blocked))
    if metadata.get("status") in _CLOSING:
        reasons.append(metadata["status"])
    return next((reason for reason in reasons if isinstance(reason, str)), None)


def ending(reason: str) -> Literal["stop", "length", "blocked"]:
    """How a reply ended, by the provider's word. A word that is not known to be harmless means that
    something other than the model ended it, such as a filter: "blocked"."""
    if _FULL.fullmatch(reason):
        return "length"
    return "stop" if _NATURAL.fullmatch(reason) else "blocked"


def ended_naturally(metadata: Mapping[str, Any]) -> bool:
    """Whether the provider says that the model ended the reply."""
    reason = finish(metadata)
    return reason is not None and ending(reason) == "stop"


def tells_endings(model: BaseChatModel) -> bool:
    """Whether the model's client says why a whole reply ended."""
    return bool(_facts(model, _TELLING))


def blamed(error: BaseException, served: bool) -> BaseException | None:
    """The error as far as it may tell of the request; None if it cannot. One that a callback raised does not,
    but the client's own that it hides. served: the server has begun a reply; then only its words do."""
    while error is not None and _raised_in(error, _CALLBACKS):
        hidden = error.__context__
        while hidden is not None and not _raised_in(hidden, _MODELS):
            hidden = hidden.__context__
        error = cast(BaseException, hidden)
    if not served or error is None:
        return error
    by_words = status(error) is not None and not any(map(_numbered, _causes(error)))
    return error if by_words else None


def _raised_in(error: BaseException, module: str) -> bool:
    frames = walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == module for frame, _ in frames)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def unserved(error: BaseException | None) -> bool:
    """Whether a request that ended in this error, before any of its reply came, cannot have cost
    anything: the server refused it, or it never left. False for errors of an unknown kind."""
    if (http := status(error)) is not None:
        return (http < 500 and http not in _MAYBE_SERVED) or http in _TURNED_AWAY
    while error is not None:
        kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__]
        if any(name in _UNSENT.get(package, ()) for package, name in kinds):
            return True
        package, name = kinds[0]
        hiding = name in _HIDING.get(package, ())
        error = error.__cause__ or (error.__context__ if hiding else None)
    return False


def status(error: BaseException | None) -> int | None:
    """The HTTP status of an error, or of what caused it."""
    told = (_numbered(each) or _stands_for(each) for each in _causes(error))
    return next(filter(None, told), None)


def _numbered(error: BaseException) -> int | None:
    """The status that an error has as a number."""
    response: Any = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for value in (
        getattr(error, "status_code", None),
        getattr(response, "status_code", None),
        metadata.get("HTTPStatusCode"),
        getattr(error, "code", None),
    ):
        if isinstance(value, int) and 300 <= value < 600:
            return value
    return None


def _stands_for(error: BaseException) -> int | None:
    """The status that an error stands for by its words: one that came in place of a reply."""
    body: Any = getattr(error, "body", None) or getattr(error, "error", None)
    words: tuple[Any, ...] = ()
    response = getattr(error, "response", None)
    if isinstance(response, dict) and isinstance(told := response.get("Error"), dict):  # AWS's
        body, words = {"message": told.get("Message")}, (told.get("Code"),)
    if isinstance(error, ValueError):
        body = next((arg for arg in error.args if isinstance(arg, dict)), None)
        words = match.groups() if (match := _WORD.match(str(error))) else ()
    return status_in(body, *words)


def describe(error: BaseException) -> str:
    """An error in one line without the provider's message, which may repeat a prompt, reply or key; with the
    parameter that it blames or, if nobody answered, where that was."""
    named = error.named if isinstance(error, Exited) else error
    if isinstance(named, CannotPause | Unpayable):
        return str(named)
    parts = [type(named).__name__]
    http, code = status(error), getattr(error, "code", None)
    if http is not None:
        parts.append(f"HTTP {http}")
    if isinstance(code, str) and re.fullmatch(r"[a-z][a-z_]{2,40}", code):
        parts.append(code)
    if http in (400, 422) and (parameter := _blamed_parameter(named)):
        parts.append(f"({parameter})")
    if http is None and (place := _unreached(named)):
        parts.append(f"at {place}")
    if isinstance(named, NotImplementedError):
        parts.append("(a model that is only async is asked by ainvoke)")
    if isinstance(named, TypeError) and (option := _NO_OPTION.search(str(named))):
        parts.append(f"({option[0]})")
    return " ".join(parts)


def _blamed_parameter(error: BaseException) -> str | None:
    """The parameter of a request that a refusal blames: where OpenAI names it, or as the message begins."""
    body: Any = getattr(error, "body", None)
    body = body.get("error") or body if isinstance(body, dict) else {}
    body = body if isinstance(body, dict) else {"message": body}
    said = str(body.get("message") or error)
    found = (match[1] for form in _PARAMETERS if (match := form.search(said)))
    names = (getattr(error, "param", None), body.get("param"), *found)
    return next((n for n in names if isinstance(n, str) and re.fullmatch(_PARAMETER, n)), None)


def _unreached(error: BaseException | None) -> str | None:
    """The host and port that a request was for which ended in this error."""
    while error is not None:
        known: Any = error
        with suppress(Exception):  # httpx raises one if it has no request
            of_aws = getattr(known, "kwargs", {}).get("endpoint_url")
            url = urlsplit(str(of_aws or known.request.url))
            if url.hostname:
                return f"{url.hostname}:{url.port or (80 if url.scheme == 'http' else 443)}"
        error = error.__cause__ or error.__context__
    return None


def legible(word: str) -> str:
    """A provider's word as it may stand in an error."""
    return word if re.fullmatch(r"[\w .-]{1,60}", word) else "for a reason that is no plain word"


def transient(status: int) -> bool:
    """Whether an HTTP status does not blame the request itself."""
    return status in (408, 409, 429) or status >= 500


def clean(text: str) -> str:
    """Text without lone surrogates, which no later request could send."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sendable(value: Any) -> Any:
    """Messages or options, at any depth, with all their texts clean."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {sendable(key): sendable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [sendable(part) for part in value]
    if isinstance(value, BaseMessage):
        with suppress(RecursionError):  # so deep that no client could write it as JSON
            parts = {name: (part, sendable(part)) for name, part in vars(value).items()}
            mended = {name: new for name, (old, new) in parts.items() if new != old}
            return value.model_copy(update=mended) if mended else value
    return value
