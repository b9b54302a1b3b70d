"""Makes texts harmless, shorter, or quoted, and finds the name that a wrong one was meant for."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

# Control characters but tab and line feed, marks that reverse the writing direction, lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_PILED = re.compile(r"([^\w\s\x00-\x7f]{31,})")
"""More marks in a row than any writing needs: to put them in order takes time in the square of their number."""
_PILE = 32
_MARKS = 16
"""The most characters in a column of a terminal: accents and the like have no width of their own."""


def harmless(text: str) -> str:
    """The text with the characters that a terminal would obey (escapes, reversals) as U+FFFD."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))


def decoded(path: str | Path) -> str:
    """The text in a file, as it is but for a byte order mark. Raises ValueError with the line that is not
    UTF-8."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: this is not UTF-8; save the file as UTF-8"
        ) from None


def lines_of(path: str | Path) -> list[str]:
    """The lines of a file of text. Raises ValueError if it is not UTF-8."""
    return StringIO(decoded(path), newline=None).read().split("\n")  # JSON has U+2028 within a line


def is_text(text: str) -> bool:
    """Whether a text is one for other programs too. Bytes from the command line that are no text are
    lone surrogates here."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def composed(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """The text in a form of Unicode in which an accent and its letter are one character, but for more than
    30 marks in a row."""
    if text.isascii():
        return text
    pieces = _PILED.split(text)
    pieces[1::2] = (
        "".join(
            unicodedata.normalize(form, pile[at : at + _PILE]) for at in range(0, len(pile), _PILE)
        )
        for pile in pieces[1::2]
    )
    pieces[::2] = (unicodedata.normalize(form, piece) for piece in pieces[::2])
    return "".join(pieces)


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


def as_written(args: Any) -> str:
    """The arguments of a tool call as a model writes them. Clients that get them as data write "\\u0440" for each
    letter of other scripts than the Latin one, six times as much."""
    given: object = args
    if isinstance(args, str):
        if "\\u" not in args:
            return args
        try:
            given = json.loads(args)
        except (ValueError, RecursionError):  # a part of them, or none
            return args
    return json.dumps(given, ensure_ascii=False)


def meant(given: object, names: Iterable[str]) -> str:
    """For an error: "did you mean 'pdp'? " if one of the names is like this one, else nothing."""
    near = closest(given, names)
    return "" if near is None else f"did you mean {near!r}? "


def closest(given: object, names: Iterable[str], alike: float = 0.6) -> str | None:
    """The name that is most like this one. alike: from 0 to 1, the least that counts."""
    return next(iter(get_close_matches(str(given).strip().lower(), names, 1, alike)), None)
