"""Where checkpoints are opened: a SQLite file or a PostgreSQL database, whose password no error shows."""

from __future__ import annotations

import os
import re

from anytime_graph.checkpoints.schema import LedgerError
from anytime_graph.checkpoints.store import plain

_SCHEMES = ("postgresql://", "postgres://")
_NEARLY = re.compile(
    r"\s*[A-Za-z][\w+.-]+:/|.*://|\s*postgres\w*:|.*password\s*=|\s*\w+\s*=\s*\S+\s+\w+\s*=",
    re.IGNORECASE | re.DOTALL,
)
"""What begins or looks like the address of a database; "C:/" does not."""


def is_address(target: object) -> bool:
    """Whether it is the address of a PostgreSQL database, and not a file."""
    return str(target).startswith(_SCHEMES)


def check_target(target: object) -> None:
    """Raises ValueError for what is neither a file that lasts nor the text of an address."""
    text = str(target)
    if not isinstance(target, str | os.PathLike) or text.strip() in ("", ":memory:"):
        given = text if isinstance(target, os.PathLike) else target
        raise ValueError(f"target={given!r}: name a file; checkpoints need one to last")
    if plain(text) != text:
        raise ValueError(
            f"target={_without_password(text)!r}: a name without NUL and lone surrogates is needed"
        )
    if not is_address(target) and _NEARLY.match(text):
        raise ValueError(
            f"target={_without_password(text)!r}: a SQLite file is needed, or the address "
            "postgresql://USER@HOST/DATABASE"
        )


def check_address(url: str) -> None:
    """Raises LedgerError for an address in which a part of the password would be taken for the host, the port or
    the database, and shown."""
    before, _, path = url.partition("://")[2].partition("/")
    user, _, hosts = before.rpartition("@")
    hosts = re.sub(r"\[[^]]*\]", "", hosts.partition("?")[0])
    if "@" in user or "@" in path.partition("?")[0] or re.search(r":\d*[^\d,]", hosts):
        raise LedgerError(
            "not a PostgreSQL address: postgresql://USER@HOST:PORT/DATABASE is needed; within a name or a "
            "password, @ is written as %40, / as %2F, : as %3A"
        )


def _without_password(target: str) -> str:
    """The beginning of what may be an address, without all that may be a password."""
    return re.sub(r"(?s)(:/*|=).*", r"\1...", target)
