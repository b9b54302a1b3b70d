"""Counts the tokens of a prompt by asking the server that will bill it. It is free, and no call.

llama.cpp's server lists the tokens: if these spell the prompt, their number is exact. vLLM, Anthropic
and Google tell a number; it is used once a report has borne one out. Whoever refuses, is too slow, says
what cannot be, or bills more than it counted is not asked again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cachetools import LRUCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, convert_to_openai_messages

from anytime_graph.interrupt import TimeIsUp, within
from anytime_graph.models import providers, tokens

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that a count may take."""
_KEPT = 1_024
"""Counts that are kept of each model."""
_ESTIMATED = 1.02
"""Anthropic calls its counts estimates that may be off by little."""
_MESSAGE, _PROMPT = 4, 7
"""Tokens that Google may add to a message and to a prompt, whose text alone it counts."""
_ENGINES = ("llamacpp", "vllm")
"""What servers that count say of who owns their models."""


class Count(NamedTuple):
    """tokens: what the server counted. spelled: it listed them, and they spell the prompt."""

    tokens: int
    spelled: bool = False


class Uncounted(Exception):
    """The server does not count prompts, or not believably."""


Ask = Callable[[Sequence[BaseMessage], float], Count]
"""Asks for the count of a prompt, within so many seconds. Raises Uncounted, or what the client raises."""


@dataclass
class Patience:
    """What counting may take within a block. seconds: in all; None: not limited. used: so far."""

    seconds: float | None
    used: float = 0.0

    def rest(self) -> float:
        """The most that the next count may take."""
        return _PATIENCE if self.seconds is None else min(_PATIENCE, self.seconds - self.used)


_patience: ContextVar[Patience | None] = ContextVar("anytime_counting", default=None)


@contextmanager
def patience(seconds: float | None) -> Iterator[Patience]:
    """Counting within takes at most so many seconds, and tells how many it took."""
    token = _patience.set(held := Patience(seconds))
    try:
        yield held
    finally:
        _patience.reset(token)


@dataclass
class Counts:
    """The counts of one model at one address. off: nobody is asked any more. proven: a report has
    borne out a count."""

    off: bool = False
    proven: bool = False
    _kept: LRUCache[str, Count] = field(default_factory=lambda: LRUCache(_KEPT), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def of(self, ask: Ask, prompt: Sequence[BaseMessage], key: str, most: float) -> int | None:
        """The tokens of a prompt; None if they are not known. key: see `digest`. most: no prompt of its
        length has more."""
        if self.off:
            return None
        with self._lock:
            count = self._kept.get(key)
        if count is None:
            held = _patience.get() or Patience(None)
            if held.rest() <= 0:
                return None
            began = time.monotonic()
            try:
                count = _in_time(ask, prompt, held.rest())
                _check(count, prompt, most)
            except Exception as error:
                self.off = True
                log.debug("prompts are not counted: %s", providers.describe(error))
                return None
            finally:
                held.used += time.monotonic() - began
            with self._lock:
                self._kept[key] = count
        return count.tokens if count.spelled or self.proven else None

    def heard(self, key: str, reported: int) -> None:
        """Take in what was billed for a prompt."""
        with self._lock:
            count = self._kept.get(key)
        if count is not None and reported > 0:
            self.proven = True
            self.off = self.off or reported > count.tokens


def digest(
    model: BaseChatModel, bound: Mapping[str, Any], prompt: Sequence[BaseMessage]
) -> str | None:
    """What the count of a prompt is known by; None if what is sent with it is no JSON."""
    try:
        text = json.dumps(_body(model, bound, prompt), sort_keys=True)
    except (TypeError, ValueError):
        return None
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def asking(model: BaseChatModel, bound: Mapping[str, Any], exact: bool | None) -> Ask | None:
    """How the prompts of a model are counted; None if they are not. exact: True: wherever somebody
    counts; None: only by servers on this machine; False: nowhere."""
    by = None if exact is False else providers.counted_by(model)
    if by == "engine":
        host = providers.host(model)
        ours = host in providers.LOOPBACK or (exact and host not in ("", "api.openai.com"))
        return _by_engine(model, bound) if ours else None
    if by is None or not exact:
        return None
    return (_by_anthropic if by == "anthropic" else _by_google)(model, bound)


def _in_time(ask: Ask, prompt: Sequence[BaseMessage], seconds: float) -> Count:
    """The count, if it comes in time. A client's own time limit may begin again with each byte."""
    try:
        return within(seconds, lambda: ask(prompt, seconds))
    except TimeIsUp:
        raise Uncounted("it took too long") from None


def _check(count: Count, prompt: Sequence[BaseMessage], most: float) -> None:
    """Raise Uncounted for what no tokenizer can have counted."""
    least = tokens.min_tokens("\n".join(message.text for message in prompt))
    whole = isinstance(count.tokens, int) and not isinstance(count.tokens, bool)
    if not whole or not max(1, least / 2) <= count.tokens <= most:
        raise Uncounted(f"{count.tokens!r:.40} tokens for a text of {least} or more")


def _body(
    model: BaseChatModel, bound: Mapping[str, Any], prompt: Sequence[BaseMessage]
) -> dict[str, Any]:
    """What a request with this prompt holds that may change its tokens."""
    body: dict[str, Any] = {"model": providers.model_name(model)}
    if (effort := getattr(model, "reasoning_effort", None)) is not None:
        body["reasoning_effort"] = effort
    for held in (*(getattr(model, name, None) for name in ("model_kwargs", "extra_body")), bound):
        body |= {key: value for key, value in (held or {}).items() if key != "extra_body"}
    body |= bound.get("extra_body") or {}
    return body | {"messages": [_sent(message) for message in prompt]}


def _sent(message: BaseMessage) -> Any:
    """A message as OpenAI's clients send it: blocks stay blocks."""
    text = isinstance(message.content, str)
    return convert_to_openai_messages(message, text_format="string" if text else "block")


# --- who counts


def _by_engine(model: Any, bound: Mapping[str, Any]) -> Ask:
    """llama.cpp and vLLM count beside the address of their models. Their paths are not those of OpenAI's
    API, so nobody else is asked: an unknown server might take the request for a call."""
    client = model.root_client
    beside = str(client.base_url).rstrip("/").removesuffix("/v1")

    @functools.cache
    def engine() -> str:
        models = client.with_options(timeout=_PATIENCE).get("/models", cast_to=object)
        owners = {entry.get("owned_by") for entry in models["data"]}
        if len(owners) != 1 or (owner := owners.pop()) not in _ENGINES:
            raise Uncounted("neither llama.cpp nor vLLM")
        return str(owner)

    def ask(prompt: Sequence[BaseMessage], seconds: float) -> Count:
        counted_by, body = engine(), _body(model, bound, prompt)
        post = functools.partial(
            client.with_options(base_url=beside, timeout=seconds).post, cast_to=object
        )
        if counted_by == "vllm":
            told = post("/tokenize", body=body)
            if told["count"] != len(told["tokens"]):
                raise Uncounted("its count is not that of its tokens")
            return Count(told["count"])
        text = post("/apply-template", body=body)["prompt"]
        if len(text) < sum(len(message.text.strip()) for message in prompt):
            raise Uncounted("its template leaves out a part of the prompt")
        asked = {"content": text, "add_special": True, "parse_special": True}
        listed = post("/tokenize", body=asked | {"with_pieces": True})["tokens"]
        return Count(len(listed), _spell(listed, text))

    return ask


def _spell(listed: Sequence[Any], text: str) -> bool:
    """Whether the tokens show that they are the text, or more: tokenizers add marks of their own. A piece
    is a text or, where it is only a part of a character, bytes. Raises Uncounted if they are too
    short."""
    if not all(isinstance(token, dict) for token in listed):
        return False
    if sum(len(token["piece"]) for token in listed) < len(text):
        raise Uncounted("its tokens do not add up to the prompt")
    return True


def _by_anthropic(model: Any, bound: Mapping[str, Any]) -> Ask:
    options = {"thinking": getattr(model, "thinking", None), **bound}
    sent = {k: options[k] for k in ("thinking", "tool_choice") if options.get(k)}

    def ask(prompt: Sequence[BaseMessage], seconds: float) -> Count:
        counted = model.get_num_tokens_from_messages(
            list(prompt), bound.get("tools"), timeout=seconds, **sent
        )
        return Count(math.ceil(_ESTIMATED * counted))

    return ask


def _by_google(model: Any, bound: Mapping[str, Any]) -> Ask:
    """Its client counts texts."""

    def ask(prompt: Sequence[BaseMessage], seconds: float) -> Count:
        body = _body(model, bound, prompt)
        texts = [message.text for message in prompt]
        beside = {key: body[key] for key in body.keys() - {"model", "messages"}}
        counted = model.get_num_tokens(
            "\n".join([*texts, *([json.dumps(beside)] if beside else [])])
        )
        return Count(counted + _MESSAGE * len(prompt) + _PROMPT)

    return ask
