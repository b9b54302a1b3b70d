"""Scores a text by writing constraints that a program can check."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from anytime_graph.constraints import search
from anytime_graph.scoring import Score

_Check = tuple[str, Callable[[str], bool]]
"""A rule, as in "contain 'fox'", and whether a text keeps it."""
_WORD = re.compile(r"\w")
_NEXT = r"(?=\s[(*_\"'“]{0,3}[A-ZÀ-Þ])"
_ENDS = re.compile(
    r"(?<![.!?…])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\be\.g)(?<!\bi\.e)"
    rf"(?:[.!?…]+(?=\s|$)|[.!?…]+[)\]*_]+{_NEXT}|[.…]+[\"'”’]+{_NEXT})|[。！？]+|\n{{2,}}"
)


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Scores a text by the fraction of the constraints that it meets; the feedback names the others. A
    text that meets 3 of 4 scores .75.

    sentences, words: (least, most), or one number for exactly that many. include, forbid: texts that
    must, must not occur, as whole words. matches: a regular expression that must be found, which is
    looked for in a process of its own, for 5 seconds at most. json: a pydantic model that the whole
    text must parse as.

    Raises ValueError for a constraint that cannot be checked, or if there is none.
    """

    sentences: int | tuple[int, int] | None = None
    words: int | tuple[int, int] | None = None
    include: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    starts_with: str | None = None
    ends_with: str | None = None
    matches: str | None = None
    json: type[BaseModel] | None = None
    _checks: tuple[_Check, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("include", "forbid"):
            value = getattr(self, name)
            parts = (value,) if isinstance(value, str) else value
            if not isinstance(parts, Collection) or not all(
                isinstance(p, str) and p for p in parts
            ):
                raise ValueError(f"{name}={value!r}: a tuple of non-empty strings is needed")
            object.__setattr__(self, name, tuple(parts))
        for name in ("starts_with", "ends_with", "matches"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ValueError(f"{name}={value!r}: a string is needed")
        if not (
            self.json is None or (isinstance(self.json, type) and issubclass(self.json, BaseModel))
        ):
            raise ValueError(f"json={self.json!r}: a pydantic model is needed")
        object.__setattr__(self, "_checks", tuple(self._build()))
        if not self._checks:
            raise ValueError("Constraints(): at least one constraint is needed")

    def _build(self) -> list[_Check]:
        checks: list[_Check] = []
        for name, count in (("sentences", count_sentences), ("words", count_words)):
            if (wanted := getattr(self, name)) is not None:
                low, high = _range(name, wanted)
                amount = str(low) if low == high else f"{low} to {high}"
                checks.append((f"have {amount} {name}", _count_between(count, low, high)))
        for word in self.include:
            checks.append((f"contain {word!r}", partial(_contains, word)))
        for word in self.forbid:
            checks.append((f"not contain {word!r}", partial(_lacks, word)))
        if (start := self.starts_with) is not None:
            checks.append(
                (f"start with {start!r}", lambda t: _same_case(t).startswith(_same_case(start)))
            )
        if (end := self.ends_with) is not None:
            checks.append((f"end with {end!r}", lambda t: _same_case(t).endswith(_same_case(end))))
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"matches={self.matches!r}: {error}") from None
            checks.append((f"match {self.matches!r}", partial(search.found, self.matches)))
        if (schema := self.json) is not None:
            checks.append((f"be JSON for {schema.__name__}", lambda t: _fits(schema, t)))
        return checks

    def describe(self) -> str:
        """The constraints as an instruction to put into a question."""
        rules = [
            rule for rule, _ in self._checks if not rule.startswith(("contain ", "not contain "))
        ]
        for verb, parts in (("contain", self.include), ("not contain", self.forbid)):
            if parts:
                rules.append(f"{verb} " + ", ".join(map(repr, parts)))
        return "The text must " + "; ".join(rules) + "."

    def __reduce__(self) -> Any:
        """Only what was given; the checks are functions, which no other process can be sent."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return partial(Constraints, **given), ()

    def __call__(self, question: str, answer: str | BaseModel) -> Score:
        text = answer.model_dump_json() if isinstance(answer, BaseModel) else answer.strip()
        if not text:
            return Score(0.0, "The text is empty.")
        failed, slow = list[str](), list[str]()
        for rule, holds in self._checks:
            try:
                kept = holds(text)
            except TimeoutError as error:
                kept = False
                slow.append(str(error))
            failed += [] if kept else [rule]
        if not failed:
            return Score(1.0)
        counts = [
            f"it has {(n := count(text))} {name.removesuffix('s') if n == 1 else name}"
            for name, count in (("sentences", count_sentences), ("words", count_words))
            if any(rule.endswith(name) for rule in failed)
        ]
        measured = f" ({', '.join(counts + slow)})" if counts or slow else ""
        met = [rule for rule, _ in self._checks if rule not in failed]
        return Score(
            1 - len(failed) / len(self._checks),
            "The text must " + "; it must ".join(failed) + measured + ".",
            f"It does already: {'; '.join(met)}." if met else None,
        )


def count_words(text: str) -> int:
    """The words of a text; "well-known", "it's" and "3.14" are one each."""
    return len(re.findall(r"\w+(?:(?:['’\u2010\u2011-]|(?<=\d)[.,:](?=\d))\w+)*", text))


def count_sentences(text: str) -> int:
    return sum(map(bool, map(_WORD.search, _ENDS.split(text))))


def _range(name: str, wanted: int | tuple[int, int]) -> tuple[int, int]:
    low, high = (
        wanted if isinstance(wanted, tuple | list) and len(wanted) == 2 else (wanted, wanted)
    )
    whole = not any(isinstance(n, bool) or not isinstance(n, int) for n in (low, high))
    if not (whole and 0 <= low <= high):
        raise ValueError(f"{name}={wanted!r}: a number, or (least, most), is needed")
    return low, high


def _count_between(count: Callable[[str], int], low: int, high: int) -> Callable[[str], bool]:
    return lambda text: low <= count(text) <= high


def _lacks(part: str, text: str) -> bool:
    return not _contains(part, text)


def _same_case(text: str) -> str:
    """The text in small letters, with straight apostrophes."""
    return text.lower().replace("’", "'")


def _contains(part: str, text: str) -> bool:
    part, text = part.replace("’", "'"), text.replace("’", "'")
    edges = (r"\b" if part[0].isalnum() else "", r"\b" if part[-1].isalnum() else "")
    return re.search(edges[0] + re.escape(part) + edges[1], text, re.IGNORECASE) is not None


def _fits(schema: type[BaseModel], text: str) -> bool:
    try:
        schema.model_validate_json(text)
    except ValidationError:
        return False
    return True
