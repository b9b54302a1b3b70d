"""Commands as they are run: their environment, what they tell, and processes under way."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from click.testing import Result

from tests.kit.forks import forking
from tests.kit.server import Server
from tests.kit.waiting import PATIENCE

COMMAND = [sys.executable, "-W", "error", "-m", "anytime_graph"]

Command = Callable[..., Result]


def environment(server: Server | None) -> dict[str, str]:
    own = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": server.url} if server else {}
    return {**os.environ, **own, "COLUMNS": "100"}


def told(done: Result) -> str:
    """Standard error as one line, without the frames that click may draw."""
    return " ".join(done.stderr.replace("│", " ").split())


@contextmanager
def begun(
    server: Server, code: str | list[str], calls: int, under_way: int = 1
) -> Iterator[ForkServerProcess]:
    """A process that runs a command or a program here, once so many calls were asked for and so many
    of them are being served."""
    with forking(code, Path.cwd(), environment(server)) as process:
        with server.changed:
            assert server.changed.wait_for(
                lambda: server.open == under_way and len(server.calls) == calls, timeout=PATIENCE
            )
        yield process
