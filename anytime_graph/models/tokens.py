"""How many tokens a text can be, estimated before the provider counts them.

A prompt must be bounded before it is sent. tiktoken counts the prompts of OpenAI's models. For all
others a linear estimate over eleven kinds of text is taken at three standard deviations. Weights
and deviations were fitted over five tokenizers (SmolLM2, cl100k, o200k, Claude's and DeepSeek's)
on prose, code, JSON, digits, hex, German, Russian, Chinese, Japanese and emoji. UTF-8 bytes are
the ceiling, which no byte-level tokenizer exceeds. The provider's reports then correct the bound.
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
"""Tokens of the long preambles that some chat templates add, by a part of the model's name."""
_FAMILY_TOOLS = {"claude": 600}
_TOOLS = 100
"""Tokens that providers and chat templates add to the schemas of tools."""
_MOST_GROWTH = 8.0
"""A report that is more times the bound than this says nothing about the tokenizer."""
_MEDIA = {"image", "image_url", "input_image", "audio", "input_audio", "video", "file", "media"}
_NOT_TEXT = 3_000
"""Tokens allowed for an image or another block of media."""

Shape = list[float]
"""Counts of a text's kinds, then bytes, then messages and blocks that are not text."""


class Calibration(TypedDict):
    """What the provider's reports say about its tokenizer. Plain data, kept in the state.

    growth: the largest ratio of a report to its bound (1.0: never above it).
    shape, tokens: the last reported draft prompt, which later prompts of the question contain.
    once: whether a request for several choices is billed its prompt once and reported in full.
    """

    growth: float
    shape: Shape
    tokens: int
    once: NotRequired[bool]


def uncalibrated() -> Calibration:
    return Calibration(growth=1.0, shape=[], tokens=0)


@dataclass(frozen=True)
class Tokenizer:
    """Bounds the tokens of prompts to one model.

    count: the exact count of a text, where there is one. family: the model's name. tools: the model
    is given tools. extra: text that travels with each prompt (tools, schemas).
    """

    count: Counter | None = None
    family: str = ""
    tools: bool = False
    extra: str = ""

    def shape(self, prompt: Sequence[BaseMessage]) -> Shape:
        """Measure a prompt."""
        parts, media = [self.extra], 0
        for message in prompt:
            content = message.content
            for block in [content] if isinstance(content, str) else content:
                if isinstance(block, str):
                    parts.append(block)
                elif isinstance(block.get("text"), str):
                    parts.append(block["text"])
                elif _MEDIA & {block.get("type")}:
                    media += 1
                else:
                    parts.append(json.dumps(block, default=str, ensure_ascii=False))
            for kind in ("tool_calls", "invalid_tool_calls"):
                if calls := getattr(message, kind, None):
                    parts.append(json.dumps(calls, default=str))
        text = "\n".join(part for part in parts if part)
        if self.count is None:
            kinds = _counts(text)
        else:
            kinds = [float(self.count(text))] + [0.0] * (len(_KINDS) - 1)
        return [*kinds, _size(text), float(len(prompt)), float(media)]

    def bound(self, of: Shape, calibration: Calibration, within: bool = False) -> int:
        """The most tokens that the provider will report for a prompt of this shape. within: the prompt
        contains the calibrated draft prompt, so only the difference is uncertain."""
        loose = math.ceil(self._upper(of) * calibration["growth"])
        if not (within and calibration["shape"]):
            return loose
        extra = [max(0.0, a - b) for a, b in zip(of, calibration["shape"], strict=True)]
        if not any(extra):
            return calibration["tokens"]
        added = _upper(extra, self.count is not None, 0)
        return min(loose, calibration["tokens"] + math.ceil(added * calibration["growth"]))

    def learn(self, calibration: Calibration, of: Shape, reported: int, base: bool) -> Calibration:
        """The calibration corrected by what the provider reported. base: this was a draft prompt."""
        growth = min(_MOST_GROWTH, max(calibration["growth"], reported / self._upper(of)))
        if base:
            return {**calibration, "growth": growth, "shape": of, "tokens": reported}
        return {**calibration, "growth": growth}

    def _upper(self, of: Shape) -> float:
        return _upper(of, self.count is not None, _preamble(self.family, self.tools))


def max_tokens(text: str) -> int:
    """The most tokens that a text is, by any common tokenizer."""
    return math.ceil(_upper([*_counts(text), _size(text), 0, 0], False, 0))


def typical(text: str) -> float:
    """About how many tokens a text is; additive over its parts."""
    return sum(_matches(pattern, text) * mean for pattern, mean, _ in _KINDS)


def min_tokens(text: str) -> int:
    """The fewest tokens that a text can be: tokenizers split between words and after three digits.
    "In 1969 ..." is 1 word and 4 digits: 1 + 4/3, rounded up, is 3."""
    words, digits = _matches(_WORDS, text), _matches(_DIGITS, text)
    return math.ceil(words + digits / 3 + _matches(_NON_ASCII, text) / 4)


def repeated(text: str) -> int:
    """Characters that only continue a run of one mark or of whitespace. Tokenizers join such runs, and
    `max_tokens` counts them so, but a model may still write them one by one."""
    return _matches(_REPEATED, text)


def openai_counter(model: str) -> Counter | None:
    """tiktoken's count for one of OpenAI's models, or None where its vocabulary cannot be had
    (tiktoken fetches it at first use; offline, an estimate replaces it)."""
    import tiktoken

    try:
        encoding = tiktoken.encoding_for_model(model)
    except Exception:  # a KeyError for an unknown model; the network library's own when offline
        return None
    return lambda text: len(encoding.encode(text, disallowed_special=()))


_NON_ASCII = re.compile(r"[^\x00-\x7f]")
_REPEATED = re.compile(r"(?s)(.)(?=\1)|\s(?=\s)")


@functools.lru_cache(maxsize=32)
def _counts(text: str) -> list[float]:
    """Counts of each kind. Cached, because planning measures the same prompt several times."""
    return [float(_matches(pattern, text)) for pattern, _, _ in _KINDS]


def _matches(pattern: re.Pattern[str], text: str) -> int:
    return len(pattern.findall(text))


def _size(text: str) -> float:
    return float(len(text.encode(errors="replace")))


def _preamble(family: str, tools: bool) -> int:
    """Tokens that the model's chat template adds to every prompt."""
    for_tools = next((n for part, n in _FAMILY_TOOLS.items() if part in family), _TOOLS)
    own = next((n for part, n in _FAMILY_PROMPT.items() if part in family), 0)
    return own + for_tools * tools


def _upper(of: Shape, exact: bool, preamble: int) -> float:
    """The most tokens of this shape, uncorrected.

    A prompt of one message of 100 lower-case words of up to four letters: mean 80, of the tokenizers
    (100 * 0.05)^2 = 25, of chance 80 + 0.006 * 80^2 = 118; 80 + 3 * sqrt(143) = 116 tokens of text.
    The chat template adds 28 + 6, so the bound is 150.
    """
    *kinds, size, messages, media = of
    if exact:
        return kinds[0] + (_OPENAI_PROMPT + _OPENAI_MESSAGE * messages) + _NOT_TEXT * media
    template = (_PER_PROMPT + preamble if messages else 0) + _PER_MESSAGE * messages
    mean = sum(n * w for n, (_, w, _) in zip(kinds, _KINDS, strict=True))
    between = sum((n * sd) ** 2 for n, (_, _, sd) in zip(kinds, _KINDS, strict=True))
    text = mean + 3 * math.sqrt(between + mean + 0.006 * mean * mean)
    return min(text, size) + template + _NOT_TEXT * media
