"""What the ledger asks of a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

Execute = Callable[[str, Mapping[str, Any]], list[dict[str, Any]]]
"""SQL with :named parameters, in the dialect that SQLite and PostgreSQL share -> rows."""


class Store(Protocol):
    """clock: SQL for the time in Unix seconds, by the database's own clock. mentions: SQL for the
    `run_id` of at most :most remembered runs that have the term :key."""

    where: str
    clock: str
    mentions: str

    def transaction(self, durable: bool = True) -> AbstractContextManager[Execute]: ...
    def reading(self) -> AbstractContextManager[Execute]: ...
    def turn(self) -> AbstractContextManager[Any]: ...
    def explained(self) -> AbstractContextManager[None]: ...
    def matching(self, table: str) -> str: ...
    def words(self, text: str) -> str: ...
    def purge(self, execute: Execute) -> None: ...
    def close(self) -> None: ...


LONGEST = 1_000
"""Bytes of an id in UTF-8. An index of PostgreSQL holds 2,704 in a row, some of them of two ids."""


def storable(name: str, value: object) -> None:
    """Raises ValueError for an id that no database can hold as it is."""
    indexable(name, value)
    if plain(str(value)) != str(value):
        raise ValueError(f"{name}={value!r}: an id without NUL and lone surrogates is needed")


def indexable(name: str, value: object) -> None:
    """Raises ValueError for an id that is too long for the index of a database."""
    if (size := len(str(value).encode(errors="replace"))) > LONGEST:
        raise ValueError(
            f"{name}={str(value)[:20]!r}...: an id of at most {LONGEST:,} bytes is needed, this one has {size:,}"
        )


def plain(text: str) -> str:
    """Text as every database takes it: without lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
