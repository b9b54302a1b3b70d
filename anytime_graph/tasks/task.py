"""What a task is, and the ways its questions are come by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeVar, overload

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage

from anytime_graph.scoring import Extractor, Scorer

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """id: unique in its task, and the same in every run. scorer: (question, answer) -> Score; it
    needs the answer only. examples: solved questions, (question, answer), that are shown before it as
    turns of the conversation. Neither texts nor key show in the repr."""

    id: str
    prompt: str = field(repr=False)
    scorer: Scorer = field(repr=False)
    examples: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @property
    def conversation(self) -> list[AnyMessage]:
        """The examples, and the question as the last message."""
        turns: list[AnyMessage] = []
        for asked, told in self.examples:
            turns += [HumanMessage(asked), AIMessage(told)]
        return [*turns, HumanMessage(self.prompt)]


@dataclass(frozen=True)
class Task:
    """Questions of one kind, and how their answers are found and measured.

    answer: what create_anytime_graph takes as `answer=`. metric: what the mean of the scores is, the
    constraint satisfaction rate ("csr") or accuracy.
    """

    name: str
    about: str
    questions: Sequence[Question] = field(repr=False)
    answer: Literal["tags", "whole"] | Extractor
    metric: Literal["csr", "accuracy"]


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for, anew each time: `make` must give the
    same for the same index."""

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
    """`count` items, each of dice of its own: item 7 is the same whatever `count` is."""
    whole("count", count, least=1)
    return Lazy(lambda at: make(dice(f"{seed}/{at}")), range(count))


def sampled(make: Callable[[int], T], total: int, count: int | None, seed: int) -> Lazy[T]:
    """All of `total` items for count=None, else a seeded sample, in their order."""
    if count is None:
        return Lazy(make, range(total))
    whole("count", count, least=1)
    if count > total:
        raise ValueError(f"count={count}: there are {total} questions; give {total} or fewer")
    return Lazy(make, sorted(dice(seed).sample(range(total), count)))


def dice(seed: int | str) -> Random:
    return Random(seed)  # noqa: S311 - the same questions for the same seed


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value, if it is a whole number within the bounds. Raises ValueError else."""
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{name}={value!r:.60}: a whole number is needed, {bounds}")
    return value


def column(row: Mapping[str, Any], names: Iterable[str], where: str) -> Any:
    """The first of the columns that the row has, whatever their case. Raises ValueError, which shows
    nothing of the row: without a header, the names of its columns are content."""
    low = {str(key).lower(): value for key, value in row.items()}
    for name in names:
        if low.get(name) not in (None, ""):
            return low[name]
    raise ValueError(f"{where}: a column {' or '.join(map(repr, names))} is needed")
