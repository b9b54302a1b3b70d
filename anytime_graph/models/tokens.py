"""How many tokens a text can be, estimated before the provider counts them.

A prompt must be bounded before it is sent. tiktoken counts the prompts of OpenAI's models. For all
others a text is cut into pieces: words, single marks, runs. Of common words it is known how many
tokens they are at the most, in nine tokenizers (words.txt). Any other piece has a mean, fitted to the
one of the nine that needs most, and a ceiling, no more than its UTF-8 bytes, which no byte-level
tokenizer exceeds. Means hold on average over different pieces only. So what repeats counts in
proportion to its ceiling. The provider's reports then correct the bound.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from string import ascii_lowercase
from typing import Any, NotRequired, cast

from langchain_core.messages import BaseMessage
from typing_extensions import TypedDict

from anytime_graph.text import as_written, composed

CountTokens = Callable[[str], int]
"""An exact token count, such as tiktoken's."""

_WRITTEN = (  # pattern, the fewest tokens per match in ordinary text, by the tokenizer that needs fewest
    (re.compile(r"[A-Za-z\xaa-\u0dff\u10a0-\u10ff\u1e00-\u1fff]+"), 0.9),
    (re.compile(r"[0-9]{1,3}"), 0.9),
    (re.compile(r"(?:([!-/:-@\[-`{-~])(?!\1)){1,4}(?![A-Za-z!-/:-@\[-`{-~])"), 0.55),
    (re.compile(r"[\u0e00-\u109f\u1100-\u1dff\u3041-\ud7ff]"), 0.32),
    (re.compile(r"([\u0e00-\u109f\u1100-\u1dff\u3041-\ud7ff])(?=\1)"), 0.6),
    (re.compile(r"([\u2e80-\u3040\uf900-\uffff])(?!\1)"), 0.32),
    (re.compile(r"([\U00010000-\U0010ffff])(?!\1)"), 0.5),
)
"""Words, also of languages that o200k has long tokens for; numbers; marks that no word follows, which would take
them in; characters of scripts without spaces, which have no tokens in common where one repeats."""
_DIGITS = re.compile(r"[0-9]")
_PIECES = re.compile(
    r"((?: |(?<![^\W_]))[A-Z]?[a-z]+(?![^\W_])|(?<=[^\W_]) (?:[!-/:-@\[-`{-~]|\.\.\.)(?![!-/:-@\[-`{-~]))"
    r"| ?(?:[A-Z]?[a-z]+|[A-Z]+)|([ =#*_-])\2+|(?s:.)"
)
"""Words and marks that stand alone, with the space before them; parts of words; runs of marks that
tokenizers join; single characters."""
_JOINED = 15
"""Marks in such a run that each tokenizer takes for one token."""
_LONG = 24
"""Letters of the longest words that are words."""
_FOLLOWERS = (
    "bcdfghiklmnprstuvyz aeiloru acehiklortu aeiorsu abcdefgiklmnoprstuvwxy aefiloru aehilnorsu "
    "aeiortuy abcdefgklmnoprstvz aeu aeios adeilostuy abeimopu acdefgiknostuvy abcdfgiklmnoprstuvw "
    "aehiloprstu u abcdegiklmnorstuvy acehiklmopstu aehilorstuy abcdegilmnprst aeio aeio  aes aei"
)
"""For each letter from a to z those that often follow it in the words of European languages."""
_COMMON = {
    first + second
    for first, followers in zip(ascii_lowercase, _FOLLOWERS.split(" "), strict=True)
    for second in followers
}
_SEAMS = re.compile(r"(?<=[a-z0-9])[A-Z]|(?<=[A-Za-z])[0-9]|(?<=[0-9])[a-z]")
"""Where pieces of one word meet, as in base64: tokens end elsewhere, so some pieces take one more."""
_MARKS = {**dict.fromkeys("0123456789", 1.0), " ": 1.0, "\n": 0.75}
"""Mean tokens of digits and blanks; other marks of ASCII have 0.85."""
_FOREIGN = (  # characters of many vocabularies, their mean tokens; of others, the mean is the ceiling
    (re.compile("[\xa0-\u017f]"), 1.5),
    (re.compile("[\u0391-\u03c9\u0410-\u044f\u05d0-\u05ea\u0621-\u064a]"), 1.2),
    (re.compile("[\u0904-\u094d\u0e01-\u0e4d\u2010-\u2044\u3001-\u3011\u3041-\u30fe]"), 1.85),
    (re.compile("[\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f]"), 1.85),
    (re.compile("[\U0001f300-\U0001f6ff\U0001f900-\U0001f9ff]"), 2.8),
)
_HAN = 1.85
"""Mean tokens of a frequent Chinese character: one of the first level of GB 2312."""
_PER_MESSAGE = 5
_PER_PROMPT = 30
"""Of chat templates: <|im_start|>, role, newline, <|im_end|> and newline are 5. Llama 3's adds 1 for the
begin, 5 for a system message of its own, 20 for two dates in it, 4 for the head of the reply."""
_OPENAI_MESSAGE, _OPENAI_PROMPT = 4, 7
"""OpenAI's own chat format, around texts that tiktoken counts."""
_FAMILY_PROMPT = {"gpt-oss": 80}
"""Tokens of the long preambles that some chat templates add, by a part of the model's name."""
_FAMILY_TOOLS = {"claude": 600}
_TOOLS = 100
"""Tokens that providers and chat templates add to the schemas of tools."""
MOST_GROWTH = 8.0
"""A report that is more times the bound than this says nothing about the tokenizer."""
_USUAL_GROWTH = 2.0
"""A report that is more times the bound than this may be of a prompt to which the server adds its own."""
_TEXTUAL = {
    *("text", "input_text", "output_text", "refusal", "reasoning", "thinking", "redacted_thinking"),
    *("tool_use", "tool_result", "tool_call", "tool_call_chunk", "invalid_tool_call"),
    *("input_json_delta", "function_call", "function_call_output", "custom_tool_call"),
    *("custom_tool_call_output", "json", "search_result", "cachePoint", "cache_point"),
    *("guardContent", "reasoningContent", "toolUse", "toolResult", "reasoning_content"),
    "non_standard",
}
"""Blocks of a message that hold nothing but what is written in them, by type or, where they have none,
by key. Of others the provider may make any number of tokens."""
_HOLDING = {
    **dict.fromkeys(("content", "output", "outputs", "value", "guardContent"), "blocks"),
    **dict.fromkeys(("source", "toolResult"), "within"),
}
"""Keys of a block whose values are blocks, or hold them."""
_SCREENSHOTS = ("computer_call_output",)
_IMAGES = {"image", "image_url", "input_image", "image_generation_call", *_SCREENSHOTS}
_MEDIA = _IMAGES | {"audio", "input_audio", "video", "file", "input_file", "media", "document"}
_LARGEST_IMAGE = {"gpt-4o-mini": 48_169, "gpt-4o": 1_445, "gpt-4.1": 6_144, "claude": 5_000}
"""Tokens of the largest image, as OpenAI and Anthropic document them, by a part of the model's name.
gpt-4o-mini: 2,833 and 5,667 for each of 8 tiles; gpt-4o: 85 and 170 for each."""

Shape = list[float]
"""Of a prompt: mean tokens of its text, the square of their spread, their ceiling; then the number of
messages, and the tokens of blocks that are not text."""


class Calibration(TypedDict):
    """What the provider's reports say about its tokenizer, and about what its server adds to each prompt, such
    as instructions of its own. Plain data, kept in the state.

    growth: the largest ratio of a report to its bound (1.0: never above it).
    shape, tokens: the last reported draft prompt, which later prompts of the question contain.
    once: whether a request for several choices is billed its prompt once and reported in full.
    preface: the most tokens by which a report was above its bound that no usual tokenizer explains. least: the
    smallest report; the server puts no more than that before a prompt.
    """

    growth: float
    shape: Shape
    tokens: int
    once: NotRequired[bool]
    preface: NotRequired[int]
    least: NotRequired[int]


def uncalibrated() -> Calibration:
    return Calibration(growth=1.0, shape=[], tokens=0)


@dataclass(frozen=True)
class Tokenizer:
    """Bounds the tokens of prompts to one model.

    count: the exact count of a text, where there is one. family: the model's name. tools: the model
    is given tools. extra: text that travels with each prompt (tools, schemas).
    media_tokens: the user's bound of what an image, a document or the like can add. hosted: what else
    the provider adds to each prompt, of which each counts as one of those: its own tools, for example.
    """

    count: CountTokens | None = None
    family: str = ""
    tools: bool = False
    extra: str = ""
    media_tokens: int | None = None
    hosted: tuple[str, ...] = ()

    def shape(self, prompt: Sequence[BaseMessage]) -> Shape:
        """Measure a prompt. Raises ValueError for what cannot be bounded."""
        texts, media = [self.extra], float(sum(map(self._added, self.hosted)))
        for message in prompt:
            written: list[str] = []
            known = _with_the_provider(message)
            media += self._added("reasoning") if known is None else known
            for block in _blocks(message):
                if (kind := _not_text(block, message)) is not None:
                    media += self._added(kind)
                else:
                    written.append(_written(block))
            texts.append("\n".join(part for part in written if part))

        messages = float(len(prompt) or 1)  # of nothing, a template still makes tokens
        if self.count is not None:
            exact = float(sum(map(self.count, texts)))
            return [exact, 0.0, exact, messages, media]
        return [*_measured(*filter(None, texts)), messages, media]

    def _added(self, kind: str) -> int:
        """The most tokens that something of this kind adds to a prompt."""
        if self.media_tokens is not None:
            return self.media_tokens
        if kind in _IMAGES:
            for part, most in _LARGEST_IMAGE.items():
                if part in self.family:
                    return most
        raise ValueError(
            f"media_tokens=None: {kind!r} may add any number of tokens to a prompt for "
            f"{self.family or 'this model'!r}; pass media_tokens=, the most that one of them adds"
        )

    def bound(self, of: Shape, calibration: Calibration, within: bool = False) -> int:
        """The most tokens that the provider will report for a prompt of this shape. within: the prompt
        contains the calibrated draft prompt, so only the difference is uncertain."""
        upper = self._upper(of)
        loose = math.ceil(max(upper * calibration["growth"], upper + _preface(calibration)))
        if not (within and calibration["shape"]):
            return loose
        extra = [max(0.0, a - b) for a, b in zip(of, calibration["shape"], strict=True)]
        if not any(extra):
            return calibration["tokens"]
        added = _upper(extra, self.count is not None, 0)
        return min(loose, calibration["tokens"] + math.ceil(added * calibration["growth"]))

    def learn(
        self, calibration: Calibration, of: Shape, reported: int, base: Shape | None = None
    ) -> Calibration:
        """The calibration corrected by what the provider reported. base: the part of a draft prompt that
        later prompts contain.

        A report of 2,100 for a prompt of at most 100 is no tokenizer's: the server adds up to 2,000 to each
        prompt. One of 700 may be either's, so prompts of at most 1,000 are then bounded by 7,000; a report of
        1,600 for one of those is explained by what is added, and leaves twice its ratio: 3,200.
        """
        growth, preface, upper = calibration["growth"], _preface(calibration), self._upper(of)
        ratio, explained = reported / upper, reported <= upper + preface
        if growth < ratio <= _USUAL_GROWTH:
            growth = ratio
        elif explained:
            growth = min(growth, max(_USUAL_GROWTH, 2 * ratio))
        elif ratio > _USUAL_GROWTH:
            preface = math.ceil(reported - upper)
            growth = max(growth, ratio) if ratio <= MOST_GROWTH else growth
        least = min(calibration.get("least", reported), reported)
        learned: Calibration = {**calibration, "growth": growth, "preface": preface, "least": least}
        if base is not None:
            learned |= {"shape": base, "tokens": reported}
        return learned

    def _upper(self, of: Shape) -> float:
        return _upper(of, self.count is not None, _preamble(self.family, self.tools))


def without_prompt(calibration: Calibration) -> Calibration:
    """What it says of other prompts too."""
    kept = {key: calibration[key] for key in ("preface", "least") if key in calibration}
    return cast(Calibration, {**uncalibrated(), "growth": calibration["growth"], **kept})


def beside(calibration: Calibration, other: Calibration) -> Calibration:
    """A calibration with what another one knows of what the server adds."""
    if "least" not in other:
        return calibration
    preface = max(calibration.get("preface", 0), other.get("preface", 0))
    least = min(calibration.get("least", other["least"]), other["least"])
    return {**calibration, "preface": preface, "least": least}


def _preface(calibration: Calibration) -> int:
    """The most tokens that the server puts before each prompt, as far as it is known."""
    preface = calibration.get("preface", 0)
    return min(preface, calibration.get("least", preface))


def check_media_tokens(given: int | None) -> int | None:
    """The user's bound. Raises ValueError if it is none."""
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 0):
        raise ValueError(f"media_tokens={given!r}: a whole number of tokens is needed, 0 or more")
    return given


def max_tokens(text: str) -> int:
    """The most tokens that a text is, by any common tokenizer."""
    return math.ceil(_upper([*_measured(text), 0, 0], False, 0))


def written(text: str) -> float:
    """About how many tokens a model wrote in an ordinary text, at the least; additive over its parts. Of prose,
    code and data, .25 to .95 of what four real tokenizers count, in 17 languages."""
    return sum(_matches(pattern, text) * fewest for pattern, fewest in _WRITTEN)


def min_tokens(text: str) -> int:
    """The fewest tokens that a text can be: tokenizers split between words and after three digits, and join
    runs of a mark. "In 1969 ..." is 1 word and 4 digits: 1 + 4/3, rounded up, is 3."""
    words, digits = _matches(_SPACED, text), _matches(_DIGITS, text)
    return math.ceil(words + digits / 3 + _matches(_UNSPACED, text) / 4)


def repeated(text: str) -> int:
    """Characters that only continue a run of one mark or of whitespace. Tokenizers join such runs, and
    `max_tokens` counts them so, but a model may still write them one by one."""
    return _matches(_REPEATED, text)


def openai_counter(model: str) -> CountTokens | None:
    """tiktoken's count for one of OpenAI's models, or None where its vocabulary cannot be had
    (tiktoken fetches it at first use; offline, an estimate replaces it)."""
    import tiktoken

    try:
        encoding = tiktoken.encoding_for_model(model)
    except Exception:  # a KeyError for an unknown model; the network library's own when offline
        return None
    return lambda text: len(encoding.encode(text, disallowed_special=()))


_SPACED = re.compile(r"[A-Za-z\xaa-\u0dff\u1e00-\u1fff]+")
"""Words of alphabets that put spaces between them: o200k has one token for most of Vietnamese."""
_UNSPACED = re.compile(r"([^\x00-\u0dff\u1e00-\u1fff])(?!\1)")
"""Other characters, the last of each run: 64 times U+2500 are 4 tokens of o200k."""
_REPEATED = re.compile(r"(?s)(.)(?=\1)|\s(?=\s)")


def _blocks(message: BaseMessage) -> Iterator[Any]:
    """What is sent of a message, with the blocks within its blocks."""
    content = message.content
    queue: list[Any] = [content] if isinstance(content, str) else [*content]
    while queue:
        block = queue.pop()
        if isinstance(block, dict):
            inner, block = _unfolded(block)
            queue += inner
        yield block
    for name in ("tool_calls", "invalid_tool_calls"):
        yield from getattr(message, name, None) or ()
    if message.name:
        yield f"\n{message.name}"  # which takes a mark of its own
    beside = {k: v for k, v in message.additional_kwargs.items() if v and k != "tool_calls"}
    if isinstance(call := beside.get("function_call"), dict) and "arguments" in call:
        beside["function_call"] = {**call, "arguments": as_written(call["arguments"])}
    if message.type == "tool" and beside.get("type") in _SCREENSHOTS and isinstance(content, str):
        yield {"type": beside["type"]}  # sent as the address of an image
    if message.type != "ai":
        return
    if beside.pop("audio", None):
        yield {"type": "audio"}  # sent as an id: what was said is with the provider
    if beside:
        yield {"type": "non_standard", "value": beside}


def _unfolded(block: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The blocks that a block holds, and the block without them. What a tool is called with is none."""
    inner, rest = list[Any](), dict[str, Any]()
    for key, part in block.items():
        holds = _HOLDING.get(key)
        if isinstance(part, dict) and holds == "within":
            found, part = _unfolded(part)
            inner += found
        elif isinstance(part, list) and holds == "blocks":
            inner += [each for each in part if isinstance(each, str | dict)]
            continue
        elif isinstance(part, dict) and holds == "blocks":
            inner.append(part)
            continue
        rest[key] = part
    return inner, rest


def _with_the_provider(message: BaseMessage) -> int | None:
    """The tokens of reasoning that is sent back as an id; None if they are not known."""
    blocks = message.content if message.type == "ai" else ()
    if not any(map(_is_an_id, blocks)):
        return 0
    report = getattr(message, "usage_metadata", None) or {}
    details = report.get("output_token_details") or {}
    found = details.get("reasoning") or report.get("output_tokens")
    return found if isinstance(found, int) and found >= 0 else None


def _is_an_id(block: Any) -> bool:
    """Whether it is reasoning of which the request holds no more than its id."""
    reasons = isinstance(block, dict) and block.get("type") == "reasoning" and block.get("id")
    return bool(reasons) and "rs_" in str(block["id"]) and not block.get("encrypted_content")


def _not_text(block: Any, message: BaseMessage) -> str | None:
    """The kind of a block that is not text. What a model wrote is text, if it is no medium."""
    if isinstance(block, str):
        return None
    kinds = [block["type"]] if isinstance(block.get("type"), str) else list(block)
    if block.get("type") == "text-plain" and isinstance(block.get("text"), str):
        return None
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") in ("text", "content"):
        return None
    if message.type == "ai":
        return next((kind for kind in kinds if kind in _MEDIA), None)
    return next((kind for kind in kinds if kind not in _TEXTUAL), None)


def _written(block: Any) -> str:
    if isinstance(block, str):
        return block
    text = block.get("text")
    alone = isinstance(text, str) and block.get("type") != "text-plain"  # which has a title too
    return text if alone else json.dumps(block, default=str, ensure_ascii=False)


@functools.lru_cache(maxsize=32)
def _measured(*texts: str) -> tuple[float, float, float]:
    """The mean tokens of all texts of a prompt, the square of their spread, and their ceiling. Cached,
    because planning measures the same prompt several times.

    A piece that comes n times adds n * (ceiling - mean) squared to the square of the spread. So one
    piece is bounded by its ceiling, however often it repeats; k different ones by their means and
    1/sqrt(k) of the rest. 1,000 times " dap": mean 1,000, spread 1,800, ceiling 2,800. 1,000
    different words of three letters: mean 1,000, spread 57.
    """
    mean = spread = ceiling = 0.0
    texts = tuple(map(_longest, texts))
    pieces = Counter(
        (match[0], match[1] is not None) for text in texts for match in _PIECES.finditer(text)
    )
    for (piece, alone), n in pieces.items():
        usual, most, different = (alone and _common(piece)) or _piece(piece)
        mean += n * usual
        ceiling += n * most
        spread += (n * (most - usual) * different) ** 2
    seams = 0.3 * sum(_matches(_SEAMS, text) for text in texts)
    return mean + seams, spread, min(ceiling + seams, sum(map(_size, texts)))


def _common(word: str) -> tuple[float, float, float] | None:
    """The same of a common word that stands alone, which is as many tokens wherever it stands. A mark
    alone is one token with the space before it."""
    bare = word.lstrip(" ")
    if not bare.isalpha():
        return 1, 1, 0
    kind = common_words().get(bare.lower())
    if kind is None:
        return None
    most = int(kind[(len(bare) == len(word)) + 2 * bare[0].isupper()])
    return most, most, 0


@functools.cache
def common_words() -> dict[str, str]:
    """For each word how many tokens " word", "word", " Word" and "Word" are at the most, in digits."""
    lines = (files(__package__) / "words.txt").read_text(encoding="ascii").splitlines()
    return {word: kind for kind, *words in map(str.split, lines) for word in words}


def _piece(piece: str) -> tuple[float, float, float]:
    """A piece's mean and most tokens, and how often its spread counts: three times for single
    characters, for a short string that repeats may hold nine of them and not more than four words."""
    if piece[-1].isascii():
        word = piece.lstrip(" ").lower()
        if not word.isalpha():
            most = min(len(piece), 2 + len(piece) / _JOINED)
            return (1 if len(piece) > 1 else _MARKS.get(piece, 0.85)), most, 3
        n, rare = len(word), sum(pair not in _COMMON for pair in map("".join, pairwise(word)))
        capitals = piece.strip().isupper()
        length = 0.45 * n if capitals else 1 + 0.08 * max(0, n - 4)
        most = n if capitals or n > _LONG else min(n, 1 + 0.6 * n + 0.6 * rare)
        return min(max(1, length) + 0.9 * rare, most), most, 1
    size = len(piece.encode(errors="replace"))
    usual = next((mean for pattern, mean in _FOREIGN if pattern.match(piece)), size)
    if b"\xb0" <= piece.encode("gb2312", "ignore")[:1] < b"\xd8":
        usual = _HAN
    return usual, size, 3


def _longest(text: str) -> str:
    """The text in the longest of the forms into which tokenizers normalize it."""
    if text.isascii():
        return text
    return max((text, composed(text, "NFC"), composed(text, "NFKC")), key=_size)


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

    A prompt of one message of 100 words of four letters, each of them once: mean 100, spread
    sqrt(100 * 2.4^2) = 24, so 124 tokens of text. The chat template adds 30 + 5: the bound is 159.
    """
    mean, spread, ceiling, messages, media = of
    text = min(ceiling, mean + math.sqrt(spread))
    if exact:
        template = _OPENAI_PROMPT + _OPENAI_MESSAGE * messages
    else:
        template = (_PER_PROMPT + preamble if messages else 0) + _PER_MESSAGE * messages
    return text + template + media
