"""Makes texts harmless, shorter, or quoted, and finds the name that a wrong one was meant for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from rich.text import Text

# Control characters but tab and line feed, marks that reverse the writing direction, lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_MARKS = 16
"""The most characters in a column of a terminal: accents and the like have no width of their own."""


def harmless(text: str) -> str:
    """The text with the characters that a terminal would obey (escapes, reversals) as U+FFFD."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))


def clipped(text: str, width: int) -> str:
    """The text on one line, harmless, cut to `width` terminal columns."""
    line = " ".join(text.split())
    if len(line) > (most := _MARKS * width):
        line = f"{line[:most]}\N{HORIZONTAL ELLIPSIS}"
    shown = Text(harmless(line))
    shown.truncate(width, overflow="ellipsis")
    return shown.plain


def clip(text: str, length: int) -> str:
    """The text, or its head and tail around " ... " if it is longer than `length` characters."""
    if len(text) <= length:
        return text
    half = max(1, (length - 5) // 2)
    return f"{text[:half]} ... {text[-half:]}"


def head_of(text: str, length: int) -> str:
    """The text, or its head and " ..." if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def fenced(parts: Sequence[tuple[str, str]]) -> str:
    """Texts between fences that none of them contains, so that no text can close its fence."""
    runs = (run for _, text in parts for run in re.findall("={5,}", text))
    fence = "=" * max(5, 1 + max(map(len, runs), default=0))
    return "\n".join(f"{fence} {name}\n{text}\n{fence} END" for name, text in parts)


def meant(given: object, names: Iterable[str]) -> str:
    """For an error: "did you mean 'pdp'? " if one of the names is like this one, else nothing."""
    near = closest(given, names)
    return "" if near is None else f"did you mean {near!r}? "


def closest(given: object, names: Iterable[str], alike: float = 0.6) -> str | None:
    """The name that is most like this one. alike: from 0 to 1, the least that counts."""
    return next(iter(get_close_matches(str(given).strip().lower(), names, 1, alike)), None)
