"""Processes that have their imports done: they begin in milliseconds, and die as others do."""

from __future__ import annotations

import multiprocessing
import subprocess
from pathlib import Path

from tests.kit.lives import program
from tests.kit.waiting import PATIENCE

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.kit.lives", "tests.kit.pipelines"])


def forked(
    code: str | list[str], folder: Path, variables: dict[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program, or the command line with these words, in a folder, with these environment
    variables alone."""
    (folder / "stdin").write_text(stdin)
    process = forks.Process(target=program, args=(code, str(folder), variables))
    process.start()
    process.join(PATIENCE)
    process.kill()
    process.join()
    said = ((folder / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode is not None
    return subprocess.CompletedProcess(code, process.exitcode, *said)
