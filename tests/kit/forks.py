"""Processes that have their imports done: they begin in milliseconds, and die as others do."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.kit.lives import program
from tests.kit.places import ROOT
from tests.kit.waiting import PATIENCE

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.kit.lives", "tests.kit.pipelines"])


def prepared(target: Callable[..., object], *args: Any, daemon: bool = True) -> ForkServerProcess:
    """A process that is to be started."""
    with chdir(ROOT):  # from elsewhere its server would import nothing, and not say so
        forkserver.ensure_running()
    return forks.Process(target=target, args=args, daemon=daemon)


@contextmanager
def forking(
    code: str | list[str],
    folder: Path,
    variables: dict[str, str],
    stdin: str = "",
    stdout: str = "stdout",
) -> Iterator[ForkServerProcess]:
    """A program that runs, or the command line with these words, in a folder, with these environment
    variables alone; what it says is in the folder's files "stdout", or another, and "stderr"."""
    (folder / "stdin").write_text(stdin)
    process = prepared(program, code, str(folder), variables, stdout, daemon=False)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def forked(
    code: str | list[str],
    folder: Path,
    variables: dict[str, str],
    stdin: str = "",
    stdout: str = "stdout",
) -> subprocess.CompletedProcess[str]:
    """Such a program that has run."""
    with forking(code, folder, variables, stdin, stdout) as process:
        process.join(PATIENCE)
    out = (folder / stdout).read_text() if stdout == "stdout" else ""
    assert process.exitcode is not None
    return subprocess.CompletedProcess(code, process.exitcode, out, (folder / "stderr").read_text())
