"""LangGraph's SQLite saver, opened with care."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langgraph.checkpoint.sqlite import SqliteSaver


@contextmanager
def open_saver(path: str | Path) -> Iterator[SqliteSaver]:
    """LangGraph's saver over a file, which only its owner may read; made if it is not there.

    Raises ValueError if the file cannot be opened or is no SQLite database, ImportError without
    the extra `sqlite`.
    """
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError:
        raise ImportError(
            "checkpoints in SQLite need: pip install 'anytime-graph[sqlite]'"
        ) from None
    file = Path(path)
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(file, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise ValueError(f"{file}: cannot be opened for writing ({error})") from None
    try:
        saver = SqliteSaver(connection)
        saver.setup()
        yield saver
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{file}: not a usable SQLite database ({error})") from None
    finally:
        connection.close()
