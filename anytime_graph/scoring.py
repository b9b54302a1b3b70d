"""Scorers: what tells a better answer from a worse one, and how answers are found in replies."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import json
import math
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from anytime_graph.budget import Prices


@dataclass(frozen=True)
class Score:
    """value: in [0, 1], higher is better. feedback: what is still wrong, for the next refinement.
    right: what is right, and must stay so."""

    value: float
    feedback: str | None = None
    right: str | None = None


@dataclass(frozen=True)
class Judge:
    """Decides by comparing answers, each two in both orders; a verdict that flips is a tie.

    model: a second model as judge (anything that create_anytime_graph takes); default: the model
    itself. prices: of a second model; default: looked up by its name. rubric: what to judge by.
    share: the part of the tokens or USD that the judge may spend, reasons for pairs included.
    Raises ValueError for a share outside (0, 1].
    """

    model: Any = None
    prices: Prices | None = None
    rubric: str | None = None
    share: float = 0.3

    def __post_init__(self) -> None:
        if not (isinstance(self.share, int | float) and 0 < self.share <= 1):
            raise ValueError(f"Judge(share={self.share!r}): a part of the budget, as in 0.3")
        if not (self.rubric is None or isinstance(self.rubric, str)):
            raise ValueError(f"Judge(rubric={self.rubric!r}): a text is needed")


Verdict = float | bool | Score
Scorer = Callable[[str, Any], Verdict | Awaitable[Verdict]]
"""(question, answer) -> score; sync or async. The answer is a string, or an instance of the
pydantic model given as `answer=`."""

Extractor = Callable[[str], str | None]
"""Reply text -> the answer in it, or None."""


class BadScore(ValueError):
    """A scorer returned something that is no score."""


def as_score(verdict: object) -> Score:
    """Read what a scorer returned. Raises BadScore for anything but a number in [0, 1]."""
    score = verdict if isinstance(verdict, Score) else Score(cast(float, verdict))
    value: Any = score.value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise BadScore(f"scorer returned a {type(value).__name__}, not a number") from None
    if isinstance(value, str) or not (math.isfinite(number) and 0 <= number <= 1):
        raise BadScore(f"scorer returned {value!r:.40}; a score is a number in [0, 1]")
    feedback, right = (None if n is None else str(n) for n in (score.feedback, score.right))
    return Score(number, feedback, right)


def scorer_in(reference: str) -> Scorer:
    """The scorer that FILE.py:FUNCTION names; the file is run. Raises ValueError."""
    path, colon, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location("check", path) if colon else None
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"check {reference!r}: FILE.py:FUNCTION, of a file that exists")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"check {reference!r}: {path} has no function {name!r}")
    return cast(Scorer, function)


def is_async(scorer: Scorer) -> bool:
    return inspect.iscoroutinefunction(scorer) or inspect.iscoroutinefunction(
        getattr(scorer, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


def verdict_of(scorer: Scorer, question: str, subject: Any) -> Verdict:
    """What a scorer, sync or async, says; outside of any event loop of the caller's."""
    verdict = scorer(question, subject)
    return _waited(verdict) if inspect.isawaitable(verdict) else verdict


def _waited(verdict: Awaitable[Verdict]) -> Verdict:
    """Wait for an async scorer in a thread of its own, where no event loop can be running."""
    outcome: list[Verdict] = []
    failure: list[Exception] = []

    async def wait() -> Verdict:
        return await verdict

    def run() -> None:
        try:
            outcome.append(asyncio.run(wait()))
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="scorer")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


# --- finding the answer -----------------------------------------------------------------------

_JSON_START = re.compile(r"[{\[]")
_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def tagged(text: str) -> str | None:
    """The last complete, non-empty <answer> block: replies repeat it whenever it improves."""
    blocks = [b.strip() for b in _BLOCK.findall(text)]
    return next((b for b in reversed(blocks) if b), None)


def whole(text: str) -> str | None:
    """The reply as a whole, for writing tasks and models that keep to no format."""
    return text.strip() or None


def parsed(schema: type[BaseModel], text: str) -> str | None:
    """The last piece of JSON in the text that fits the schema, as it was written."""
    decoder = json.JSONDecoder()
    found: str | None = None
    start = _JSON_START.search(text)
    while start:
        at = start.start()
        try:
            _, end = decoder.raw_decode(text, at)
            schema.model_validate_json(text[at:end])
            found = text[at:end]
        except (ValueError, RecursionError):
            end = at + 1
        start = _JSON_START.search(text, end)
    return found


def normal(answer: str) -> str:
    """The form in which answers are compared for a vote: case, spaces and final stops do not count."""
    text = " ".join(answer.lower().split()).rstrip(".")
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()


# --- checkable writing constraints -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Scores a text by the fraction of the stated constraints that it meets; the feedback names
    the ones it does not. Counts are (least, most) pairs, or one number for exactly that many.

    matches: a regular expression that must be found. json: a pydantic model that the whole
    text must parse as.
    """

    sentences: int | tuple[int, int] | None = None
    words: int | tuple[int, int] | None = None
    include: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    starts_with: str | None = None
    ends_with: str | None = None
    matches: str | None = None
    json: type[BaseModel] | None = None
    _checks: tuple[tuple[str, Callable[[str], bool]], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("include", "forbid"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
            elif not all(isinstance(item, str) and item for item in value):
                raise ValueError(f"{name}={value!r}: a tuple of non-empty strings is needed")
            else:
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "_checks", tuple(self._build()))
        if not self._checks:
            raise ValueError("Constraints(): state at least one constraint")

    def _build(self) -> list[tuple[str, Callable[[str], bool]]]:
        checks: list[tuple[str, Callable[[str], bool]]] = []
        for name, count in (("sentences", count_sentences), ("words", count_words)):
            if (wanted := getattr(self, name)) is not None:
                low, high = _range(name, wanted)
                amount = str(low) if low == high else f"{low} to {high}"
                checks.append((f"have {amount} {name}", _between(count, low, high)))
        for word in self.include:
            checks.append((f"contain {word!r}", partial(_contains, word)))
        for word in self.forbid:
            checks.append((f"not contain {word!r}", partial(_lacks, word)))
        if (start := self.starts_with) is not None:
            checks.append((f"start with {start!r}", lambda t: t.lower().startswith(start.lower())))
        if (end := self.ends_with) is not None:
            checks.append((f"end with {end!r}", lambda t: t.lower().endswith(end.lower())))
        if self.matches is not None:
            try:
                pattern = re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"matches={self.matches!r}: {error}") from None
            checks.append((f"match {self.matches!r}", lambda t: bool(pattern.search(t))))
        if (schema := self.json) is not None:
            checks.append((f"be JSON for {schema.__name__}", lambda t: _fits(schema, t)))
        return checks

    def describe(self) -> str:
        """The constraints as an instruction to put into a question."""
        rules = [rule for rule, _ in self._checks if "contain " not in rule]
        for verb, parts in (("contain", self.include), ("not contain", self.forbid)):
            if parts:
                rules.append(f"{verb} " + ", ".join(map(repr, parts)))
        return "The text must " + "; ".join(rules) + "."

    def __call__(self, question: str, answer: str | BaseModel) -> Score:
        text = answer.model_dump_json() if isinstance(answer, BaseModel) else answer.strip()
        failed = [rule for rule, holds in self._checks if not holds(text)] if text else None
        if failed is None:
            return Score(0.0, "The text is empty.")
        value = 1 - len(failed) / len(self._checks)
        if not failed:
            return Score(1.0)
        found = [
            f"it has {(n := count(text))} {name.removesuffix('s') if n == 1 else name}"
            for name, count in (("sentences", count_sentences), ("words", count_words))
            if any(rule.endswith(name) for rule in failed)
        ]
        known = f" ({', '.join(found)})" if found else ""
        held = [rule for rule, _ in self._checks if rule not in failed]
        return Score(
            value,
            "The text must " + "; it must ".join(failed) + known + ".",
            f"It does already: {'; '.join(held)}." if held else None,
        )


def count_words(text: str) -> int:
    return len(re.findall(r"\w+(?:['’-]\w+)*", text))


def count_sentences(text: str) -> int:
    return len([s for s in re.split(r"[.!?…]+(?=\s|$)|\n{2,}", text) if re.search(r"\w", s)])


def _range(name: str, wanted: int | tuple[int, int]) -> tuple[int, int]:
    low, high = (
        wanted if isinstance(wanted, tuple | list) and len(wanted) == 2 else (wanted, wanted)
    )
    if not (isinstance(low, int) and isinstance(high, int) and 0 <= low <= high):
        raise ValueError(f"{name}={wanted!r}: a number, or (least, most)")
    return low, high


def _between(count: Callable[[str], int], low: int, high: int) -> Callable[[str], bool]:
    return lambda text: low <= count(text) <= high


def _lacks(part: str, text: str) -> bool:
    return not _contains(part, text)


def _contains(part: str, text: str) -> bool:
    edges = (r"\b" if part[0].isalnum() else "", r"\b" if part[-1].isalnum() else "")
    return re.search(edges[0] + re.escape(part) + edges[1], text, re.IGNORECASE) is not None


def _fits(schema: type[BaseModel], text: str) -> bool:
    try:
        schema.model_validate_json(text)
    except ValidationError:
        return False
    return True
