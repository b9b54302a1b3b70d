"""Commands as they are run: their environment, what they tell, and processes under way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from click.testing import Result

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
def begun(server: Server, *words: str, calls: int) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a command, once so many calls were asked for and one is being served."""
    with subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(server),
    ) as process:
        try:
            with server.changed:
                assert server.changed.wait_for(
                    lambda: server.open == 1 and len(server.calls) == calls, timeout=PATIENCE
                )
            yield process
        finally:
            process.kill()
