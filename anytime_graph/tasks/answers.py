"""Finds the final answer in a reply, and compares it. Nothing in a reply is ever evaluated.

The final answer is the last `\\boxed{...}` or line "Answer: ..." (also "The answer is ..."). A reply
with neither is an answer only if it is unambiguous: one number, or one letter.
"""

from __future__ import annotations

import re
from fractions import Fraction

from anytime_graph.scoring import normal

_LINE = re.compile(r"\banswer\b[*_ ]*+(?:\bis\b[* ]*+:?|:|=)[*_ ]*+(?=\S)([^\n]+)", re.IGNORECASE)
_BRACE = re.compile(r"(\\(?:boxed|fbox)\s*)?\{|\}")
_NUMBER = re.compile(
    r"(?<![\w.])(-?)(?:"
    r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}"
    r"|((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE]([-+]?\d{1,3}))?(?:/(\d+))?"
    r")(?![\w/]|\.\d)"
)
_SIGN = re.compile(r"(?<!\w)-([$\u20ac\u00a3])(?=[\d.])")
_DASH = re.compile(r"(?<![\w.)}\]])\u2013(?=[\d.\\])")
_POWER = re.compile(r"(?<=\d)\s?(?:\\times|\\cdot|\*|\u00d7)\s?10\^\{?([-+]?\d{1,3})\}?(?!\d)")
_OPERATED = re.compile(
    r"(?:\^\{?|(?:sqrt|\u221a|\b(?:ln|log|sin|cos|tan))\W{0,2}|(?:\u00b1|\\pm)\s?|\}\{"
    r"|(?<![A-Za-z])[A-Za-z]\s?[-+*/]\s?)$"
)
_OPERATES = re.compile(
    r"\s?(?:\\(?:pi|sqrt|ln|log|sin|cos|tan)(?![a-z])|[\u221a\u03c0]|\^(?!\{?\\circ)"
    r"|[-+*]\s?[b-hj-zB-HJ-Z](?![A-Za-z]))"
)
"""What stands before, or after, a number that is only a part of an expression: a power, a root, "n + 1"."""
_LETTER = re.compile(
    r"[\W_]*(?:(?:option|choice|text)\b[\W_]*)?([A-Z])"
    r"(?=$|[).:,;\]}*`\n$]|\s[-\u2013\u2014]\s|\s\()",
    re.IGNORECASE,
)
_FONT = re.compile(r"\\(?:text|math)(?:bf|rm|it)?\{")
_ANOTHER = re.compile(r"[\W_]*(?:(?:or|and)\b[\W_]*)?[A-HJ-Z]\b(?!')")
_LISTED = re.compile(r"\b(?:or|and)\b|[,;]\s")
_LONGEST = 400


def final(text: str) -> str | None:
    """The last closed box that is not empty, or the rest of the last answer line."""
    box = _last_box(text)
    lines = [(m.start(), m[1]) for m in _LINE.finditer(text) if m[1].strip(" *_.")]
    last = max([*([box] if box else []), *lines[-1:]], default=None)
    if last is None:
        return None
    inside = _last_box(last[1])
    return (inside or last)[1].strip()


def tail(text: str) -> str:
    """All text after the last "Answer:", for answers of several lines; without one, the text."""
    return re.split(r"\banswer[*_ ]*:[*_ ]*", text, flags=re.IGNORECASE)[-1].strip()


def number(text: str) -> Fraction | None:
    """The one number in the text, exactly: "025", "$1,024$", "\\frac{1}{2}", "25.0 cm". With several
    numbers, the one after the last "=" of the last line: "3 + 4 = 7". None without a number, with
    more than one value, or for a part of an expression: "\\sqrt{2}", "n + 1"."""
    text = _plain_numbers(text)
    values = _values(text)
    if len(values) > 1:
        line = text.rstrip().rsplit("\n", 1)[-1]
        before, equals, tail = line.rpartition("=")
        listed = "=" in before and _LISTED.search(line)
        values = _values(tail) if equals and not listed else set()
    return values.pop() if len(values) == 1 else None


def numeric(reply: str) -> Fraction | None:
    """The number that a reply gives as its answer."""
    return number(answer if (answer := final(reply)) is not None else reply)


def letter(reply: str, letters: str = "ABCD") -> str | None:
    """The choice that a reply gives as its answer: "B", "(b)", "Answer: B) because", "\\boxed{B}"."""
    answer = end if (end := final(reply)) is not None else reply.strip()
    answer = _FONT.sub("", answer)
    match = _LETTER.match(answer)
    if match and _ANOTHER.match(answer, match.end()):
        return None
    if match and (match[1].isupper() or len(answer.strip("()[]{}.:*_ ")) == 1):
        return chosen if (chosen := match[1].upper()) in letters else None
    return None


def is_number(text: str) -> bool:
    """Whether the text is a number and nothing else but a sign of a currency."""
    bare = _plain_numbers(text).strip("$\u20ac\u00a3 \n")
    return _NUMBER.fullmatch(bare) is not None and number(text) is not None


def same(reply: str, expected: str) -> bool:
    """Whether a reply gives the expected answer. A number is compared by value; other text without
    regard to case, spaces and final full stops."""
    if is_number(expected):
        return numeric(reply) == number(expected)
    found = (final(reply) or "").strip("*_ ").replace("\\%", "%")
    return normal(expected) in (normal(reply), normal(found))


def _plain_numbers(text: str) -> str:
    """The text with its numbers in plain characters: "\u2212$5" is "$-5", "3 \\times 10^5" is "3e5"."""
    text = text.replace("\\!", "").replace("{,}", ",").replace("\u2212", "-").replace("\\$", "$")
    return _POWER.sub(r"e\1", _DASH.sub("-", _SIGN.sub(r"\1-", text)))


def _last_box(text: str) -> tuple[int, str] | None:
    """(position, content) of the box that is closed last and not empty. Braces may be nested."""
    open_: list[tuple[int, int] | None] = []
    boxes = []
    for m in _BRACE.finditer(text):
        if m[0] == "}":
            box = open_.pop() if open_ else None
            if box:
                boxes.append((*box, m.start()))
        else:
            open_.append((m.start(), m.end()) if m[1] else None)
    filled = ((at, text[start:end]) for at, start, end in reversed(boxes))
    return next(((at, inside) for at, inside in filled if inside.strip()), None)


def _values(text: str) -> set[Fraction | None]:
    """The values of the numbers in a text, no more than two of them."""
    written: set[tuple[str, bool]] = set()
    values: set[Fraction | None] = set()
    for match in _NUMBER.finditer(text):
        before, after = (
            text[max(0, match.start() - 8) : match.start()],
            text[match.end() : match.end() + 8],
        )
        part = bool(_OPERATED.search(before) or _OPERATES.match(after))
        if (match[0], part) not in written:
            written.add((match[0], part))
            values.add(None if part else _value(match))
        if len(values) > 1:
            break
    return values


def _value(match: re.Match[str]) -> Fraction | None:
    sign, top, bottom, plain, power, divisor = match.groups()
    if len(match[0]) > _LONGEST:
        return None
    value = Fraction(top) if top else Fraction(plain.replace(",", ""))
    value *= Fraction(10) ** int(power or 0)
    below = int(bottom or divisor or 1)
    if not below:
        return None
    return (-value if sign else value) / below
