"""Scores answers, and finds answers in replies."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
import runpy
import sysconfig
import time
import traceback
import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
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
from anytime_graph.text import head_of


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
    """Decides by comparing two answers at a time, in both orders; a verdict that flips is a tie.

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
    function = runpy.run_path(path, run_name="check").get(name)
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


def failure(scorer: Scorer, error: BaseException) -> str:
    """What went wrong in a scorer, and where: "ZeroDivisionError: division by zero (rules.py, line 7)".
    Of what it called, the line in the user's own code; without one, where the scorer begins."""
    named = error.named if isinstance(error, Exited) else error
    said = ""
    with suppress(Exception):  # its text is the user's own code
        said = head_of(" ".join(str(named).split()), _SAID)
    kind = "" if isinstance(named, BadScore | TimeIsUp | CannotPause) else type(named).__name__
    made: Any = inspect.unwrap(scorer)
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
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18}|(?=\.\d))(?:\.\d{1,9})?", re.ASCII)
_MARKUP = re.compile(
    r"\*\*([^*]+)\*\*|`([^`]+)`|\$([^$]+)\$|\\\(([^\\]+)\\\)|\\(?:boxed|text)\{([^{}]+)\}"
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


def whole_reply(text: str) -> str | None:
    """The whole reply as the answer, for writing tasks and models that follow no format."""
    return text.strip() or None


def parsed(schema: type[BaseModel], text: str) -> str | None:
    """The last piece of JSON in the text that fits the schema, as it was written."""
    answer, done = None, 0
    unfit: set[int] = set()  # hashes, for blocks in blocks are far more text than the text
    for start, end in _blocks(text):
        if start >= done and (known := hash(block := text[start:end])) not in unfit:
            try:
                schema.model_validate_json(block)
            except (ValueError, RecursionError):
                unfit.add(known)
            else:
                answer, done = block, end
    return answer


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
    ("**42**", "$42$") do not count. Numbers are compared as such ("1,000.0" is 1000), and so are JSON
    ({"b": 2, "a": 1.0} is {"a":1,"b":2}) and sets ("{2, 1}" is {1,2})."""
    text = _canonical(_bare(unicodedata.normalize("NFC", " ".join(answer.lower().split()))))
    return text if len(text) <= 200 else hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _bare(text: str) -> str:
    """The text without final full stops, and without marks around the whole."""
    while match := _MARKUP.fullmatch(text := text.strip().rstrip(".").rstrip()):
        text = match[match.lastindex or 0]
    return text


def _canonical(text: str) -> str:
    number = text.replace("\u2212", "-")
    if _NUMBER.fullmatch(number):
        return f"{Decimal(number.replace(',', '')).normalize() + 0:f}"
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.dumps(
            _plain(json.loads(text)), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
    except (ValueError, RecursionError):
        items = _SET.fullmatch(text)
        return (
            f"{{{','.join(sorted({_canonical(i.strip()) for i in items[1].split(',')}))}}}"
            if items
            else text
        )


def _plain(value: Any) -> Any:
    """JSON without the difference between 1.0 and 1."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
