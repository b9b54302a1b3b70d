"""Scores answers, and finds answers in replies."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import math
import re
import runpy
import sysconfig
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

from pydantic import BaseModel

from anytime_graph.budget import Prices, is_part
from anytime_graph.interrupt import (
    GRACE,
    CannotPause,
    Exited,
    TimeIsUp,
    athread,
    awithin,
    contained,
    in_thread,
    within,
)
from anytime_graph.text import composed, head_of


class BadScore(ValueError):
    """A scorer returned something other than a score."""


@dataclass(frozen=True)
class Score:
    """A scorer's verdict. value: in [0, 1]; higher is better. feedback: what is still wrong, for the next
    refinement. right: what is right and must stay. Raises BadScore, a ValueError, for anything else."""

    value: float
    feedback: str | None = None
    right: str | None = None

    def __post_init__(self) -> None:
        if _number(self.value) is None:
            raise BadScore(f"Score(value={self.value!r:.40}): a number in [0, 1] is needed")
        for name in ("feedback", "right"):
            if not isinstance(text := getattr(self, name), str | None):
                raise BadScore(f"Score({name}={text!r:.40}): a text or None is needed")


@dataclass(frozen=True)
class Judge:
    """Decides by comparing answers, shown in two orders; a verdict that flips is a tie.

    model: a second model as judge (anything that create_anytime_graph takes); default: the model
    itself. prices: of the second model; default: looked up by its name. rubric: a text that says what
    to prefer. share: the part of the tokens or USD that the judge may spend, on reasons too.
    Raises ValueError for a share outside (0, 1].
    """

    model: Any = None
    prices: Prices | None = None
    rubric: str | None = None
    share: float = 0.3

    def __post_init__(self) -> None:
        if not is_part(self.share):
            raise ValueError(
                f"Judge(share={self.share!r}): a part of the budget is needed, as in 0.3"
            )
        if not (self.rubric is None or isinstance(self.rubric, str)):
            raise ValueError(f"Judge(rubric={self.rubric!r}): a text is needed")


Verdict = float | bool | Score
Scorer = Callable[[str, Any], Verdict | Awaitable[Verdict]]
"""(question, answer) -> score, sync or async. The answer is a string, or an instance of the pydantic
model given as `answer=`."""

Extractor = Callable[[str], str | None]
"""Reply text -> the answer in it, or None."""


_ROUNDING = 1e-12
"""The most that sums of a scorer's own may be off by."""
_SAID = 200
"""Characters of an error's message that are told."""
_PYTHON = sysconfig.get_path("stdlib")


def as_score(verdict: object) -> Score:
    """A scorer's verdict as a Score. Raises BadScore for anything but a number in [0, 1]."""
    if isinstance(verdict, Score):
        return replace(verdict, value=cast(float, _number(verdict.value)))
    if (number := _number(verdict)) is None:
        raise BadScore(f"scorer returned {verdict!r:.40}; a score is a number in [0, 1]")
    return Score(number)


def _number(value: Any) -> float | None:
    """A value as a score, if it is a number in [0, 1], but for rounding: .7 + .2 + .1 is 1."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, str | bytes):
            number = float(value)
            number = next((end for end in (0.0, 1.0) if abs(number - end) < _ROUNDING), number)
            return number if 0 <= number <= 1 else None
    return None


def scorer_in(reference: str) -> Scorer:
    """The scorer that FILE.py:FUNCTION names. The file is run. Raises ValueError if there is none."""
    path, colon, name = reference.rpartition(":")
    if not (colon and path.endswith(".py") and Path(path).is_file()):
        raise ValueError(f"check {reference!r}: FILE.py:FUNCTION is needed, of a file that exists")
    try:
        with contained():
            function = runpy.run_path(path, run_name="check").get(name)
    except Exception as error:  # the user's own code
        named = error.named if isinstance(error, Exited) else error
        place: int | None = None
        told = str(named)
        for frame, line in traceback.walk_tb(named.__traceback__):
            place = line if _users(frame) else place
        if isinstance(named, SyntaxError):
            place, told = named.lineno, named.msg
        said = head_of(" ".join(told.split()), _SAID)
        where = path if place is None else f"{path}, line {place}"
        raise ValueError(f"check {reference!r}: {where}: {type(named).__name__}: {said}") from error
    if not callable(function):
        raise ValueError(f"check {reference!r}: {path} has no function {name!r}")
    return cast(Scorer, function)


def check_signature(scorer: Scorer) -> None:
    """Raises ValueError if the scorer cannot be called with a question and an answer."""
    try:
        signature = inspect.signature(scorer)
    except (TypeError, ValueError):
        return  # written in C: it does not say
    try:
        signature.bind("question", "answer")
    except TypeError:
        name = getattr(scorer, "__name__", type(scorer).__name__)
        raise ValueError(
            f"scorer={name}{signature}: a function (question, answer) -> score is needed"
        ) from None


def failure(of: Callable[..., Any], error: BaseException) -> str:
    """What went wrong in a scorer or a strategy, and where: "ZeroDivisionError: division by zero (rules.py,
    line 7)". Of what it called, the line in the user's own code; without one, where that function begins."""
    named = error.named if isinstance(error, Exited) else error
    said = ""
    with suppress(Exception):  # its text is the user's own code
        said = head_of(" ".join(str(named).split()), _SAID)
    kind = "" if isinstance(named, BadScore | TimeIsUp | CannotPause) else type(named).__name__
    made: Any = inspect.unwrap(of)
    code = getattr(made, "__code__", None) or getattr(made.__call__, "__code__", None)
    place = (code.co_filename, code.co_firstlineno) if code else None
    for frame, line in traceback.walk_tb((named.__cause__ or named).__traceback__):
        if _users(frame):
            place = frame.f_code.co_filename, line
    where = f" ({place[0]}, line {place[1]})" if place else ""
    return ": ".join(part for part in (kind, said) if part) + where


def _users(frame: FrameType) -> bool:
    """Whether a frame is of the user's own code: neither ours, nor Python's, nor installed."""
    file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
    ours = module.partition(".")[0] == __package__
    return not (ours or file.startswith((_PYTHON, "<frozen")) or "site-packages" in file)


def is_async(scorer: Scorer) -> bool:
    return inspect.iscoroutinefunction(scorer) or inspect.iscoroutinefunction(
        getattr(scorer, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


def verdict_of(
    scorer: Scorer, question: str, subject: Any, seconds: float | None = None
) -> Verdict:
    """The verdict of a sync or async scorer. An async one runs in a thread of its own, so that it may be
    called while an event loop is running. Raises TimeIsUp if it takes longer than the seconds."""
    until = None if seconds is None else time.monotonic() + seconds
    with contained():
        verdict = within(seconds, lambda: scorer(question, subject))
    if not inspect.isawaitable(verdict):
        return verdict
    rest = None if until is None else until - time.monotonic()

    async def wait() -> Verdict:
        return await awithin(rest, lambda: verdict)

    with contained():
        patience = None if rest is None else rest + 2 * GRACE
        return in_thread(patience, lambda: asyncio.run(wait()))


async def averdict_of(
    scorer: Scorer, question: str, subject: Any, seconds: float | None = None
) -> Verdict:
    """The same on the event loop. A sync scorer runs in a thread."""

    async def judged() -> Verdict:
        with contained():
            if is_async(scorer):
                return await cast(Awaitable[Verdict], scorer(question, subject))
            threaded = asyncio.to_thread if seconds is None else athread
            verdict = await threaded(called)
            return await verdict if inspect.isawaitable(verdict) else verdict

    def called() -> Verdict | Awaitable[Verdict]:
        with contained():
            return scorer(question, subject)

    return await awithin(seconds, judged)


# --- finding the answer -----------------------------------------------------------------------

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_UNSAID = ("", "...", "\u2026")
"""What stands in a block that only shows the form of an answer, as our prompts do."""
_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"([-+]?)({_DIGITS})", re.ASCII)
_SCIENTIFIC = re.compile(r"([-+]?)([1-9](?:\.\d+)?)e([1-9]\d{0,8}|[-+]\d{1,9})", re.ASCII)
_POWER = re.compile(
    r"([-+]?)(?:(\d+(?:\.\d+)?) ?(?:\u00d7|\u00b7|\*|\\times|\\cdot) ?)?"
    r"10\^(?:([-+]?\d{1,9})|\{ ?([-+]?\d{1,9}) ?\})",
    re.ASCII,
)
_FRACTION = re.compile(r"([-+]?)([1-9]\d{0,17})/([1-9]\d{0,17})", re.ASCII)
_PLACES = 60
"""Decimal places of 1/2**59, the fraction of 18 digits that needs most."""
_LATEX_FRACTION = re.compile(
    r"([-+]?)\\[dt]?frac ?(?:\{ ?(\d{1,18}) ?\} ?\{ ?(\d{1,18}) ?\}|(\d)(\d))", re.ASCII
)
_JSON_NUMBER = re.compile(r"(-?)(\d+(?:\.\d+)?)(?:e([-+]?\d{1,9}))?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"(.*?\d) ?(?:\\?%|per ?cent)", re.DOTALL)
_SYMBOL = re.compile(r"(-?)\\?([$\u20ac\u00a3\u00a5\u20b9]) ?([\d.][^ ]*)", re.DOTALL)
_CURRENCY = re.compile(
    r"(.*?\d) ?(?:(dollars?)|(euros?|eur|\u20ac)|([\u00a3\u00a5\u20b9]))", re.DOTALL
)
_LONGEST_PLAIN = 60
"""Digits of a number that are all written; of a longer one that ends or begins in zeros, they are counted."""
_COUNTED = re.compile(r"([1-9]\d{0,2}(?:,\d{3})+)(?=(?:\.\d+)? [^\W\d_])", re.ASCII)
_MARKUP = re.compile(
    r"\*\*([^*]+)\*\*|`([^`]+)`|\$([^$]+)\$|\\\(((?:[^\\]|\\[^()])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
    r"|\\(?:boxed|text)\{((?:[^{}]|\{[^{}]*+\})+)\}"
)
"""Marks of Markdown or LaTeX around a whole answer."""
_SET = re.compile(r"\{([^{}\[\]:]+)\}")
_BRACKET = re.compile(r"[{\[]")
_JSON = re.compile(r'[{}\[\]\\]|"(?:[^"\\\x00-\x1f]++|\\.)*+("?)')
_CLOSED_BY = {"{": "}", "[": "]"}
"""What shows where JSON begins and ends: brackets and strings; and backslashes outside of them."""
_DEEPEST = 200
"""Levels of brackets above which pydantic reads no JSON."""


def tagged(text: str) -> str | None:
    """The last complete <answer> block that holds an answer; replies repeat the block when the answer
    improves. An opening tag that another one follows was only spoken of."""
    found: str | None = None
    begun: int | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            begun = tag.end()
        elif begun is not None:
            block, begun = text[begun : tag.start()].strip(), None
            found = found if block in _UNSAID else block
    return found


def unclosed(text: str) -> str | None:
    """What a reply that its model ended says behind the last tag that it opened and did not close."""
    end, found = len(text), None
    for tag in reversed(list(_TAG.finditer(text))):
        if tag[1]:
            break
        block, end = text[tag.end() : end].strip(), tag.start()
        if block not in _UNSAID:
            found = block
            break
    return found


def untagged(text: str) -> str | None:
    """A reply without a block that holds an answer, without the tags in it; None if nothing else is left."""
    left = _TAG.sub("", text).strip()
    return None if left in _UNSAID else left


def whole_reply(text: str) -> str | None:
    """The whole reply as the answer, for writing tasks and models that follow no format."""
    return text.strip() or None


def parsed(schema: type[BaseModel], text: str) -> str | None:
    """The last piece of JSON in the text that fits the schema: as it was written or, where that leaves a
    field to its default or says it in another type, with all fields as the schema has them. So answers that
    are equal instances are equal texts."""
    answer, done = None, 0
    instance: BaseModel | None = None
    unfit: set[int] = set()  # hashes, for blocks in blocks are far more text than the text
    for start, end in _blocks(text):
        if start >= done and (known := hash(block := text[start:end])) not in unfit:
            try:
                instance = schema.model_validate_json(block)
            except (ValueError, RecursionError):
                unfit.add(known)
            else:
                answer, done = block, end
    return answer if answer is None or instance is None else _said_in_full(instance, answer)


def _said_in_full(instance: BaseModel, written: str) -> str:
    """The JSON of an instance; as it was written where that says the same, or where this would not: defaults
    may be made anew each time, and a schema may write what it does not read."""
    schema = type(instance)
    with suppress(Exception):  # its defaults, validators and serializers are the user's own code
        full = instance.model_dump_json(by_alias=True, warnings=False)
        if normal(full) == normal(written):
            return written
        again, whole = (schema.model_validate_json(text) for text in (written, full))
        if whole == instance and again.model_dump_json(by_alias=True, warnings=False) == full:
            return full
    return written


def _blocks(text: str) -> list[tuple[int, int]]:
    """Where JSON in the text can begin and end, the outer before the inner.

    The text is read from each bracket that no earlier reading has passed as one. It is read at most
    twice: of two readings that are under way at once, one takes for strings what the other takes
    for the rest, as long as neither meets a backslash outside a string, which ends it.
    """
    blocks: list[tuple[int, int]] = []
    passed: set[int] = set()
    for bracket in _BRACKET.finditer(text):
        if bracket.start() not in passed:
            blocks += _read_blocks(text, bracket.start(), passed)
    return sorted(blocks)


def _read_blocks(text: str, at: int, passed: set[int]) -> Iterator[tuple[int, int]]:
    """The blocks of the bracket there, which may never be closed, of those within, and of those that
    follow before anything else that shows in JSON."""
    open_: list[tuple[int, str]] = []
    levels: list[int] = []
    for part in _JSON.finditer(text, at):
        if part[0] in _CLOSED_BY:
            if not open_ and part.start() in passed:
                return
            passed.add(part.start())
            open_.append((part.start(), _CLOSED_BY[part[0]]))
            levels.append(1)
        elif not open_:
            return
        elif part[1] is not None:
            if not part[1]:
                return  # a string that is not closed
        elif part[0] != open_[-1][1]:
            return
        else:
            (start, _), deep = open_.pop(), levels.pop()
            if deep <= _DEEPEST:
                yield start, part.end()
            if open_:
                levels[-1] = max(levels[-1], deep + 1)


def normal(answer: str) -> str:
    """The form in which a vote compares answers: case, spaces, final full stops and marks around the whole
    ("**42**", "$42$") do not count. Numbers are compared as such ("1,000.0" and "1e3" are 1000, "1/2" is
    0.5), also before a per cent sign or beside a currency's, and so are JSON ({"b": 2, "a": 1.0} is
    {"a":1,"b":2}) and sets ("{2, 1}" is {1,2}). What may differ does: "50%" and 0.5, "2/4" (a date, or a
    time) and 1/2, "$5" and 5."""
    text = _canonical(_bare(composed(" ".join(answer.lower().split()))))
    return text if len(text) <= 200 else hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _bare(text: str) -> str:
    """The text without final full stops, and without marks around the whole."""
    while match := _MARKUP.fullmatch(text := text.strip().rstrip(".").rstrip()):
        text = match[match.lastindex or 0]
    return text


def _canonical(text: str) -> str:
    if (value := _value(text)) is not None:
        return value
    if (match := _PERCENT.fullmatch(text)) and (value := _value(match[1])) is not None:
        return f"{value}%"
    if (amount := _amount(text)) is not None:
        return amount
    if text[:1] not in ("{", "["):
        return (
            _COUNTED.sub(lambda m: m[1].replace(",", ""), text, 1) if _COUNTED.match(text) else text
        )
    try:
        return _written(
            json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_none)
        )
    except (ValueError, RecursionError):
        if (items := _SET.fullmatch(text)) is None:
            return text
        return f"{{{','.join(sorted(set(map(_canonical, {i.strip() for i in items[1].split(',')}))))}}}"


def _value(text: str) -> str | None:
    """The one form of a number, however it is written; None if the text may be anything else. A fraction
    that can be shortened may be a date, and 12e3 a name."""
    number = text.replace("\u2212", "-").replace("{,}", ",").replace("\u2044", "/")
    if match := _NUMBER.fullmatch(number):
        return _decimal(match[1], match[2].replace(",", ""), 0)
    if match := _SCIENTIFIC.fullmatch(number):
        return _decimal(match[1], match[2], int(match[3]))
    if match := _POWER.fullmatch(number):
        return _decimal(match[1], match[2] or "1", int(match[3] or match[4]))
    if match := _FRACTION.fullmatch(number):
        above, below = int(match[2]), int(match[3])
        return _quotient(match[1], above, below) if math.gcd(above, below) == 1 else None
    if match := _LATEX_FRACTION.fullmatch(number):
        above, below = int(match[2] or match[4]), int(match[3] or match[5])
        return _quotient(match[1], above, below) if below else None
    return None


def _decimal(sign: str, digits: str, power: int) -> str:
    """The number of this sign, these digits with or without a point, and this power of ten."""
    whole, _, part = digits.partition(".")
    digits = (whole + part).lstrip("0")
    kept = digits.rstrip("0")
    if not kept:
        return "0"
    power += len(digits) - len(kept) - len(part)
    sign, above = ("-" if sign == "-" else ""), len(kept) + power
    if (power > 0 and above > _LONGEST_PLAIN) or -above > _LONGEST_PLAIN:
        first, rest = kept[0], kept[1:]
        return f"{sign}{first}{'.' if rest else ''}{rest}e{above - 1:+d}"
    if power >= 0:
        return sign + kept + "0" * power
    if above > 0:
        return f"{sign}{kept[:above]}.{kept[above:]}"
    return f"{sign}0.{'0' * -above}{kept}"


def _quotient(sign: str, above: int, below: int) -> str:
    """The number as a decimal if it is one, else as a fraction in its lowest terms."""
    shared = math.gcd(above, below)
    above, below = above // shared, below // shared
    if below == 1 or 10**_PLACES % below:
        return f"{sign.strip('+')}{above}/{below}" if below > 1 else _decimal(sign, str(above), 0)
    return _decimal(sign, str(above * (10**_PLACES // below)), -_PLACES)


def _amount(text: str) -> str | None:
    """An amount of money, if the text is one: "$5.00" and "5 dollars" are "$5"."""
    text = text.replace("\u2212", "-")
    if match := _SYMBOL.fullmatch(text):
        sign, symbol, digits = match.groups()
    elif match := _CURRENCY.fullmatch(text):
        digits, dollars, euros, other = match.groups()
        sign, symbol = "", "$" if dollars else "\u20ac" if euros else other
    else:
        return None
    value = _value(sign + digits)
    return None if value is None else f"{'-' * value.startswith('-')}{symbol}{value.lstrip('-')}"


class _Number(str):
    """A number in JSON, as it was written."""


def _none(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _written(value: Any) -> str:
    """JSON in one form: keys in order, no spaces, numbers by their value. Raises ValueError for a number
    with a power of ten that nobody writes."""
    if isinstance(value, dict):
        members = (f"{json.dumps(key)}:{_written(each)}" for key, each in sorted(value.items()))
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if not isinstance(value, _Number):
        return json.dumps(value)
    if (match := _JSON_NUMBER.fullmatch(value)) is None:
        raise ValueError(f"{value:.40} is too large to be told from others")
    return _decimal(match[1], match[2], int(match[3] or 0))
