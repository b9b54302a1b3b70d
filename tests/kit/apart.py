"""Functions that processes of their own find here; it imports little, so that they begin quickly."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable
from typing import Any, NoReturn

HANGS = "ANYTIME_TEST_HANGS"
"""The variable with the named pipe in which a function tells that it hangs."""


def double(n: int) -> tuple[int, int]:
    print("doubling")
    return n + n, os.getpid()


def score(question: str, answer: str) -> float:
    return len(answer) / 100


def hang(*given: Any, alone: bool = False) -> NoReturn:
    """Hang in C code that holds the interpreter's lock, beside a process that hangs too."""
    pipe = os.open(os.environ[HANGS], os.O_WRONLY)
    if not alone:
        subprocess.Popen(["sleep", "infinity"], pass_fds=[pipe])
    os.write(pipe, b"!")
    while True:
        ctypes.PyDLL(None).pause()


def search(q: str) -> str:
    """Search the web."""
    hang()


class Odd(Exception):
    """It cannot be made from its message alone."""

    def __init__(self, n: int, why: str) -> None:
        super().__init__(f"{n} is odd: {why}")


def fail(how: str) -> Any:
    if how == "ValueError":
        raise ValueError("7 is odd")
    if how == "Odd":
        raise Odd(7, "it is prime")
    if how == "SystemExit":
        raise SystemExit(3)
    if how == "lambda":
        return lambda: 7
    os._exit(3)


def loud(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(lambda *given: f"{function(*given)}!")


class Scorer:
    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, question: str, answer: str) -> float:
        return max(self.least, score(question, answer))


class Ending:
    """A scorer that takes one answer only."""

    def __init__(self, by: type[BaseException]) -> None:
        self.by = by

    def __call__(self, question: str, answer: str) -> float:
        if answer != "good":
            raise self.by
        return 0.9
