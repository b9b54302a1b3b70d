"""How many tokens a text can be, before anyone has counted them.

A prompt must be bounded before it is sent. For OpenAI's models tiktoken counts it. For all
others a linear estimate over eleven kinds of text is taken at three standard deviations. Weights
and deviations were fitted over five tokenizers (SmolLM2, cl100k, o200k, Claude's and DeepSeek's)
on prose, code, JSON, digits, hex, German, Russian, Chinese, Japanese and emoji; UTF-8 bytes are
the ceiling, which no byte-level tokenizer exceeds. The provider's own reports then correct it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NotRequired

from langchain_core.messages import BaseMessage
from typing_extensions import TypedDict

Counter = Callable[[str], int]
"""An exact token count, such as tiktoken's."""

_KINDS = (  # pattern, mean tokens per match, standard deviation between tokenizers
    (re.compile(r"[A-Za-z]+"), 0.8, 0.05),
    (re.compile(r"(?<=[A-Za-z]{4})[A-Za-z]"), 0.09, 0.09),
    (re.compile(r"(?<=[A-Za-z])[A-Z0-9]|(?<=[0-9])[A-Za-z]"), 0.35, 0.3),
    (re.compile(r"(?i)[bcdfghjklmnpqrstvwxz]{4}"), 2.0, 1.8),
    (re.compile(r"[0-9]"), 1.0, 0.25),
    (re.compile(r"([!-/:-@\[-`{-~])(?!\1)"), 0.95, 0.1),
    (re.compile(r"\n\s*|[ \t]{2,}"), 1.1, 0.3),
    (re.compile(r"[\x80-\u07ff]"), 1.3, 0.8),
    (re.compile(r"[\u0800-\uffff]"), 1.25, 0.3),
    (re.compile(r"[\U00010000-\U0010ffff]"), 2.5, 0.35),
    (re.compile(r"[\x00-\x08\x0e-\x1f\x7f]"), 1.0, 0.0),
)
_WORDS, _DIGITS = _KINDS[0][0], _KINDS[4][0]
_PER_MESSAGE = 6
_PER_PROMPT = 28
_OPENAI_MESSAGE, _OPENAI_PROMPT = 4, 7
"""OpenAI's own chat format, around texts that tiktoken counts."""
_FAMILY_PROMPT = {"gpt-oss": 80}
"""Chat templates that add a long preamble of their own, by a part of the model's name."""
_FAMILY_TOOLS = {"claude": 600}
_TOOLS = 100
"""What providers and chat templates say about tools, beside their schemas."""
_MOST_GROWTH = 8.0
"""A report further above the bound than this says nothing about the tokenizer."""
_MEDIA = {"image", "image_url", "input_image", "audio", "input_audio", "video", "file", "media"}
_NOT_TEXT = 3_000
"""Tokens allowed for an image or another block of media."""

Shape = list[float]
"""Counts of a text's kinds, then bytes, then messages and blocks that are not text."""


class Calibration(TypedDict):
    """What the provider's reports have taught about its tokenizer. Plain data; kept in the state.

    growth: how much larger than the bound a report was, at worst (1.0: never).
    shape, tokens: the last reported draft prompt, which later prompts of the question contain.
    once: whether a request for several choices is billed its prompt once, and reported in full.
    """

    growth: float
    shape: Shape
    tokens: int
    once: NotRequired[bool]


def uncalibrated() -> Calibration:
    return Calibration(growth=1.0, shape=[], tokens=0)


@dataclass(frozen=True)
class Tokenizer:
    """What is known of a model's tokenizer. count: its exact count, where there is one. family: the
    model's name. tools: the model is given tools. extra: text that travels with each prompt."""

    count: Counter | None = None
    family: str = ""
    tools: bool = False
    extra: str = ""

    def shape(self, prompt: Sequence[BaseMessage]) -> Shape:
        return shape(prompt, self.extra, self.count)

    def bound(self, of: Shape, known: Calibration, within: bool = False) -> int:
        """See the function `bound`."""
        exact = self.count is not None
        return bound(of, known, exact=exact, family=self.family, tools=self.tools, within=within)

    def learn(self, known: Calibration, of: Shape, reported: int, base: bool) -> Calibration:
        """See the function `learn`."""
        exact = self.count is not None
        return learn(
            known, of, reported, exact=exact, family=self.family, tools=self.tools, base=base
        )


def shape(messages: Sequence[BaseMessage], extra: str = "", count: Counter | None = None) -> Shape:
    """Measure a prompt; `extra` is text that travels with it (tools, schemas)."""
    parts, blocks = [extra], 0
    for message in messages:
        content = message.content
        for block in [content] if isinstance(content, str) else content:
            if isinstance(block, str):
                parts.append(block)
            elif isinstance(block.get("text"), str):
                parts.append(block["text"])
            elif _MEDIA & {block.get("type")}:
                blocks += 1
            else:
                parts.append(json.dumps(block, default=str, ensure_ascii=False))
        for kind in ("tool_calls", "invalid_tool_calls"):
            if calls := getattr(message, kind, None):
                parts.append(json.dumps(calls, default=str))
    text = "\n".join(part for part in parts if part)
    exact = None if count is None else [float(count(text))] + [0.0] * (len(_KINDS) - 1)
    return [
        *(exact or _counts(text)),
        float(len(text.encode(errors="replace"))),
        float(len(messages)),
        float(blocks),
    ]


def bound(
    of: Shape,
    known: Calibration,
    *,
    exact: bool = False,
    family: str = "",
    tools: bool = False,
    within: bool = False,
) -> int:
    """The most tokens the provider will report for a prompt of this shape.

    exact: the first entry of the shape is a tokenizer's count. family: the model's name.
    tools: the model is given tools. within: the prompt contains the calibrated draft prompt, so
    only the difference is uncertain.
    """
    loose = math.ceil(_upper(of, exact, _family(family, tools)) * known["growth"])
    if not (within and known["shape"]):
        return loose
    extra = [max(0.0, a - b) for a, b in zip(of, known["shape"], strict=True)]
    if not any(extra):
        return known["tokens"]
    return min(loose, known["tokens"] + math.ceil(_upper(extra, exact, 0) * known["growth"]))


def learn(
    known: Calibration,
    of: Shape,
    reported: int,
    *,
    exact: bool = False,
    family: str = "",
    tools: bool = False,
    base: bool = False,
) -> Calibration:
    """Correct the calibration by what the provider reported. base: this was a draft prompt."""
    upper = _upper(of, exact, _family(family, tools))
    growth = min(_MOST_GROWTH, max(known["growth"], reported / upper))
    if base:
        return {**known, "growth": growth, "shape": of, "tokens": reported}
    return {**known, "growth": growth}


def max_tokens(text: str) -> int:
    """The most tokens a text is, for any common tokenizer."""
    kinds = _counts(text)
    return math.ceil(_upper([*kinds, float(len(text.encode(errors="replace"))), 0, 0], False, 0))


def typical(text: str) -> float:
    """About how many tokens a text is; additive over its parts."""
    return sum(_matches(pattern, text) * mean for pattern, mean, _ in _KINDS)


def min_tokens(text: str) -> int:
    """The fewest tokens a text can be: tokenizers split between words and after three digits."""
    words, digits = _matches(_WORDS, text), _matches(_DIGITS, text)
    return math.ceil(words + digits / 3 + _matches(_NON_ASCII, text) / 4)


def repeated(text: str) -> int:
    """Characters that only go on with a run of one mark or of whitespace. Tokenizers join such runs,
    and `max_tokens` counts them so; a model may write them one by one all the same."""
    return _matches(_REPEATED, text)


def openai_counter(model: str) -> Counter | None:
    """tiktoken's count for one of OpenAI's models, or None where its vocabulary is not to be had
    (tiktoken fetches it at first use; offline, an estimate serves)."""
    import tiktoken

    try:
        encoding = tiktoken.encoding_for_model(model)
    except Exception:  # an unknown model is a KeyError; offline it is the network library's own
        return None
    return lambda text: len(encoding.encode(text, disallowed_special=()))


_NON_ASCII = re.compile(r"[^\x00-\x7f]")
_REPEATED = re.compile(r"(?s)(.)(?=\1)|\s(?=\s)")


@functools.lru_cache(maxsize=32)
def _counts(text: str) -> list[float]:
    """Counts of each kind; the budget edge asks for those of the same prompt several times."""
    return [float(_matches(pattern, text)) for pattern, _, _ in _KINDS]


def _matches(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


def _family(name: str, tools: bool = False) -> int:
    said = next((extra for part, extra in _FAMILY_TOOLS.items() if part in name), _TOOLS)
    return next((extra for part, extra in _FAMILY_PROMPT.items() if part in name), 0) + said * tools


def _upper(of: Shape, exact: bool, preamble: int) -> float:
    *kinds, size, messages, blocks = of
    if exact:
        return kinds[0] + (_OPENAI_PROMPT + _OPENAI_MESSAGE * messages) + _NOT_TEXT * blocks
    template = (_PER_PROMPT + preamble if messages else 0) + _PER_MESSAGE * messages
    mean = sum(n * w for n, (_, w, _) in zip(kinds, _KINDS, strict=True))
    between = sum((n * sd) ** 2 for n, (_, _, sd) in zip(kinds, _KINDS, strict=True))
    text = mean + 3 * math.sqrt(between + mean + 0.006 * mean * mean)
    return min(text, size) + template + _NOT_TEXT * blocks
