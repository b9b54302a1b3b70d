"""Processes that have their imports done: they begin in milliseconds, and die as others do."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.kit.lives import program
from tests.kit.waiting import PATIENCE

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.kit.lives", "tests.kit.pipelines"])


@contextmanager
def forking(
    code: str | list[str], folder: Path, variables: dict[str, str], stdin: str = ""
) -> Iterator[ForkServerProcess]:
    """A program that runs, or the command line with these words, in a folder, with these environment
    variables alone; what it says is in the folder's files "stdout" and "stderr"."""
    (folder / "stdin").write_text(stdin)
    process = forks.Process(target=program, args=(code, str(folder), variables))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def forked(
    code: str | list[str], folder: Path, variables: dict[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Such a program that has run."""
    with forking(code, folder, variables, stdin) as process:
        process.join(PATIENCE)
    said = ((folder / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode is not None
    return subprocess.CompletedProcess(code, process.exitcode, *said)
