"""Searches texts for regular expressions in a process of its own, which ends itself if that takes too long.

On some texts some expressions are searched for without end, and hold up every thread of their process
meanwhile. This module is run as a script in that process, so it imports only the standard library.
"""

from __future__ import annotations

import atexit
import faulthandler
import itertools
import json
import os
import re
import subprocess
import sys
from contextlib import suppress

SECONDS = 5.0
"""How long a search may take."""
_IDLE: dict[int, list[subprocess.Popen[bytes]]] = {}
"""Processes that wait for the next search, by the process that began them: a fork has none of its own."""


def found(pattern: str, text: str, flags: int = 0) -> bool:
    """Whether the expression is found in the text. Raises TimeoutError, which says so, if that takes longer
    than SECONDS, and ValueError for what is no regular expression."""
    return bool(_searched(pattern, text, flags, 1))


def count(pattern: str, text: str, flags: int = 0) -> int:
    """How often it is found. Raises the same."""
    return _searched(pattern, text, flags, None)


def _searched(pattern: str, text: str, flags: int, most: int | None) -> int:
    idle = _IDLE.setdefault(os.getpid(), [])
    process = idle.pop() if idle else _begun()
    request = json.dumps([pattern, text, flags, most, SECONDS])
    try:
        line = _answer(process, request.encode() + b"\n")
    except BaseException:
        _end(process)
        raise
    if not line:
        _end(process)
        raise TimeoutError(f"to look for {pattern!r:.60} took more than {SECONDS:g} seconds")
    idle.append(process)
    answer = json.loads(line)
    if isinstance(answer, str):
        raise ValueError(f"{pattern!r:.60}: {answer}")
    return int(answer)


def _begun() -> subprocess.Popen[bytes]:
    """A process that is ready for a search."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and this file
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _answer(process, b"")
    except BaseException:
        _end(process)
        raise
    return process


def _answer(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The line that a process answers with; nothing if it has ended."""
    if process.stdin is None or process.stdout is None:
        return b""
    with suppress(BrokenPipeError):
        process.stdin.write(request)
        process.stdin.flush()
    return process.stdout.readline()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(BrokenPipeError), process:
        pass


@atexit.register
def _end_all() -> None:
    for process in _IDLE.pop(os.getpid(), []):
        _end(process)


# --- the other process --------------------------------------------------------------------------


def _serve() -> None:
    """Answer each line of input with how often its expression is found, or with what is wrong with it."""
    print(flush=True)
    with open(os.devnull, "w") as nowhere:
        for line in sys.stdin.buffer:
            pattern, text, flags, most, seconds = json.loads(line)
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            try:
                each = itertools.islice(re.finditer(pattern, text, flags), most)
                answer: int | str = sum(1 for _ in each)
            except (re.error, RecursionError, OverflowError, MemoryError) as error:
                answer = f"{error}"
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
