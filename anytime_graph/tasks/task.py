"""The classes of a task and its questions, and functions to generate or sample questions."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeVar, overload

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage

from anytime_graph.scoring import Extractor, Scorer

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question and its scorer. id: unique in its task, and equal in every run. scorer: (question,
    answer) -> Score; it needs only the answer. examples: solved questions, (question, answer), shown
    before it as turns of the conversation. quality: the true score of an answer, if the scorer sees
    only a part of what counts. The repr shows neither texts nor the correct answer."""

    id: str
    prompt: str = field(repr=False)
    scorer: Scorer = field(repr=False)
    examples: Sequence[tuple[str, str]] = field(default=(), repr=False)
    quality: Scorer | None = field(default=None, repr=False)

    @property
    def conversation(self) -> list[AnyMessage]:
        """The messages of the examples, and the question as the last message."""
        turns: list[AnyMessage] = []
        for question, answer in self.examples:
            turns += [HumanMessage(question), AIMessage(answer)]
        return [*turns, HumanMessage(self.prompt)]


@dataclass(frozen=True)
class Task:
    """Questions of one kind, and how their answers are found and measured.

    answer: the `answer=` of create_anytime_graph. metric: the meaning of the mean score, the
    constraint satisfaction rate ("csr"), accuracy, or the share of the assertions that hold.
    """

    name: str
    about: str
    questions: Sequence[Question] = field(repr=False)
    answer: Literal["tags", "whole"] | Extractor
    metric: Literal["csr", "accuracy", "assertions"]


class Lazy(Sequence[T]):
    """A sequence that makes its items each time they are read. `make` must give equal items for equal
    indices."""

    def __init__(self, make: Callable[[int], T], indices: Sequence[int]) -> None:
        self._make = make
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Lazy[T]: ...
    def __getitem__(self, at: int | slice) -> T | Lazy[T]:
        if isinstance(at, slice):
            return Lazy(self._make, self._indices[at])
        return self._make(self._indices[at])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._indices)


def generated(make: Callable[[Random], T], count: int, seed: int) -> Lazy[T]:
    """`count` items, each with its own random numbers, so item 7 does not depend on `count`."""
    whole_number("count", count, least=1)
    return Lazy(lambda at: make(dice(f"{seed}/{at}")), range(count))


def sampled(make: Callable[[int], T], total: int, count: int | None, seed: int) -> Lazy[T]:
    """All `total` items for count=None, else a seeded sample, in order. Each is made once here too, so that
    a row that is wrong is told before anything is spent."""
    indices: Sequence[int] = range(total)
    if count is not None:
        whole_number("count", count, least=1)
        if count > total:
            raise ValueError(f"count={count}: there are {total} questions; give {total} or fewer")
        indices = sorted(dice(seed).sample(range(total), count))
    for at in indices:
        make(at)
    return Lazy(make, indices)


def dice(seed: int | str) -> Random:
    """A random number generator with this seed."""
    return Random(seed)  # noqa: S311 - the same questions for the same seed


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value. Raises ValueError if it is not a whole number within the bounds."""
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{name}={value!r:.60}: a whole number is needed, {bounds}")
    return value


def column(row: Mapping[str, Any], names: Iterable[str], where: str) -> Any:
    """The value of the first named column in the row, without regard to case. Raises ValueError, which
    shows nothing of the row: in a file without a header, even column names are content."""
    by_name = {str(key).lower(): value for key, value in row.items()}
    for name in names:
        if by_name.get(name) not in (None, ""):
            return by_name[name]
    raise ValueError(f"{where}: a column {' or '.join(map(repr, names))} is needed")


def listed(row: Mapping[str, Any], name: str, where: str, least: int = 0) -> list[Any]:
    """The list in this column; text is read as JSON, or as Python writes a list. A column that is not
    there, or empty, is an empty list. Raises ValueError."""
    found = given = row.get(name)
    for read in (json.loads, ast.literal_eval):
        if isinstance(found, str):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(found)
    found = [] if given in (None, "") else found
    if not isinstance(found, list) or len(found) < least:
        raise ValueError(f"{where}: {name}={given!r:.60}: a list is needed, of {least} or more")
    return found
