"""Scores answers, and finds answers in replies."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import math
import re
import runpy
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from anytime_graph.budget import Prices


@dataclass(frozen=True)
class Score:
    """A scorer's verdict. value: in [0, 1]; higher is better. feedback: what is still wrong, for the next
    refinement. right: what is right and must stay."""

    value: float
    feedback: str | None = None
    right: str | None = None


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
        if not (isinstance(self.share, int | float) and 0 < self.share <= 1):
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


class BadScore(ValueError):
    """A scorer returned something other than a score."""


def as_score(verdict: object) -> Score:
    """A scorer's verdict as a Score. Raises BadScore for anything but a number in [0, 1]."""
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
    """The scorer that FILE.py:FUNCTION names. The file is run. Raises ValueError if there is none."""
    path, colon, name = reference.rpartition(":")
    if not (colon and path.endswith(".py") and Path(path).is_file()):
        raise ValueError(f"check {reference!r}: FILE.py:FUNCTION is needed, of a file that exists")
    function = runpy.run_path(path, run_name="check").get(name)
    if not callable(function):
        raise ValueError(f"check {reference!r}: {path} has no function {name!r}")
    return cast(Scorer, function)


def is_async(scorer: Scorer) -> bool:
    return inspect.iscoroutinefunction(scorer) or inspect.iscoroutinefunction(
        getattr(scorer, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


def verdict_of(scorer: Scorer, question: str, subject: Any) -> Verdict:
    """The verdict of a sync or async scorer. An async one runs in a thread of its own, so that it may be
    called while an event loop is running."""
    verdict = scorer(question, subject)
    if not inspect.isawaitable(verdict):
        return verdict

    async def wait() -> Verdict:
        return await verdict

    pool = ThreadPoolExecutor(1, thread_name_prefix="scorer")
    try:
        return pool.submit(asyncio.run, wait()).result()
    except asyncio.CancelledError:
        # This one is an Exception, so it costs a score, not the thread's work.
        raise CancelledError from None
    finally:
        pool.shutdown(wait=False)


# --- finding the answer -----------------------------------------------------------------------

_JSON_START = re.compile(r"[{\[]")
_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def tagged(text: str) -> str | None:
    """The last complete, non-empty <answer> block; replies repeat the block when the answer improves."""
    blocks = [b.strip() for b in _BLOCK.findall(text)]
    return next((b for b in reversed(blocks) if b), None)


def whole_reply(text: str) -> str | None:
    """The whole reply as the answer, for writing tasks and models that follow no format."""
    return text.strip() or None


def parsed(schema: type[BaseModel], text: str) -> str | None:
    """The last piece of JSON in the text that fits the schema, as it was written."""
    decoder = json.JSONDecoder()
    answer: str | None = None
    start = _JSON_START.search(text)
    while start:
        at = start.start()
        try:
            _, end = decoder.raw_decode(text, at)
            schema.model_validate_json(text[at:end])
            answer = text[at:end]
        except (ValueError, RecursionError):
            end = at + 1
        start = _JSON_START.search(text, end)
    return answer


def normal(answer: str) -> str:
    """The form in which a vote compares answers: case, spaces and final full stops do not count."""
    text = " ".join(answer.lower().split()).rstrip(".")
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()
