"""Runs a function in a process of its own, which is ended once nobody waits for it any more.

A thread cannot be ended, so a function that hangs is abandoned in its thread. A process can be ended,
whatever it does. This module is run as a script in that process, so it imports only the standard library.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

Sync = TypeVar("Sync")

_APART = "anytime_in_process"
"""The attribute that holds the function which is to run in a process."""
_IMPORTING = "ANYTIME_IN_PROCESS_IMPORTING"
"""The environment variable that is set while the caller's program is imported there."""
_DEATH_SIGNAL = 1


def in_process(function: Sync) -> Sync:
    """The sync function, or the tool made from one, so that each call of it runs in a process of its own.
    The process is ended when the seconds of the run or of the agent are used up, even if it hangs in
    C code; nothing that it began is left running. For `scorer=` and for tools:

        create_anytime_graph(model, scorer=in_process(score), budget=Budget(seconds=60))
        create_agent(model, [in_process(search)], middleware=[TokenBudgetMiddleware(...)])

    It must stand at the top of a module, and what it is given and returns must be picklable. An error
    that it raises comes back with its type and message. It is no sandbox: the process may do what this
    one may, and what it returns is believed. Raises ValueError if it cannot be run so.
    """
    from langchain_core.tools import BaseTool

    given: Any = function
    if isinstance(given, BaseTool):
        inner = getattr(given, "func", None)
        if inner is None or getattr(given, "coroutine", None) is not None:
            raise ValueError(
                f"in_process: tool {given.name}: one made from a sync function is needed"
            )
        return cast(Sync, given.model_copy(update={"func": in_process(inner)}))
    reference, name = _found_by(given)

    @functools.wraps(given, updated=())
    def apart(*args: Any, **kwargs: Any) -> Any:
        return _call_apart(name, pickle.dumps((reference, args, kwargs)))

    setattr(apart, _APART, given)
    return cast(Sync, apart)


def _found_by(function: Any) -> tuple[Any, str]:
    """What another process finds a function by, and its name."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    runs = (function, getattr(type(function), "__call__", None))  # noqa: B004 - an object whose __call__ is async
    if not callable(function) or any(map(inspect.iscoroutinefunction, runs)):
        raise ValueError(f"in_process: {name}: a sync function is needed, or a tool made from one")
    if inspect.isfunction(function):
        if "<" in name:
            raise ValueError(
                f"in_process: {name}: another process cannot import it; define it at the top of a module"
            )
        return (function.__module__, name), name
    try:
        pickle.dumps(function)
    except Exception as error:
        raise ValueError(f"in_process: {name}: it cannot be pickled: {error}") from None
    return function, name


def _call_apart(name: str, call: bytes) -> Any:
    """What the call returns or raises in a process of its own."""
    from anytime_graph.interrupt import when_abandoned

    if _IMPORTING in os.environ:
        raise RuntimeError(
            "in_process: the program is being imported in another process; what begins runs must stand under "
            "`if __name__ == '__main__':`"
        )
    main = sys.modules["__main__"] if b"__main__" in call else None
    module, file = (
        getattr(getattr(main, "__spec__", None), "name", None),
        getattr(main, "__file__", None),
    )
    setting = {"path": sys.path, "module": module, "file": file, "call": call}
    command = [sys.executable, "-P", __file__, str(os.getpid())]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        when_abandoned(lambda: _end_process(process) if process.poll() is None else None)
        try:
            out, _ = process.communicate(pickle.dumps(setting))
        except BaseException:  # Ctrl-C ends it too
            _end_process(process)
            process.wait()  # after Ctrl-C, `with` does not
            raise
    if not out:
        _end_process(process)
        raise RuntimeError(f"{name}: its process ended with exit code {process.returncode}")
    value, error = pickle.loads(out)  # noqa: S301 - of our own process
    if error is not None:
        raise error
    return value


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """End the process, and all that it began."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


# --- the other process --------------------------------------------------------------------------


def _answer_call() -> None:
    """Make the call that stands in the input, and write what came of it. What it prints goes to stderr."""
    _end_with(int(sys.argv[1]))
    setting = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that began this one
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        outcome = _result_of(setting)
    except BaseException as error:  # such as SystemExit
        outcome = _error_told(error)
    sys.stdout.flush()
    results.write(outcome)
    results.flush()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _result_of(setting: Mapping[str, Any]) -> bytes:
    sys.path[:] = setting["path"]
    _import_program(setting["module"], setting["file"])
    reference, args, kwargs = pickle.loads(setting["call"])  # noqa: S301 - of the process that began this one
    function = _function_named(*reference) if isinstance(reference, tuple) else reference
    return pickle.dumps((function(*args, **kwargs), None))


def _error_told(error: BaseException) -> bytes:
    """The error, as another process can raise it. Ctrl-C does not reach this process, so that it is not the
    user who ends the run by a KeyboardInterrupt."""
    if not isinstance(error, KeyboardInterrupt):
        with suppress(Exception):
            text = pickle.dumps((None, error))
            pickle.loads(text)  # noqa: S301 - just made here, to see that it can be read
            return text
    return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))


def _import_program(module: str | None, file: str | None) -> None:
    """Import the caller's program, as a process of `multiprocessing` does."""
    from multiprocessing import spawn

    os.environ[_IMPORTING] = "1"
    if module is not None:
        spawn.prepare({"init_main_from_name": module})
    elif file is not None:
        spawn.prepare({"init_main_from_path": file})
    del os.environ[_IMPORTING]


def _function_named(module: str, name: str) -> Callable[..., Any]:
    """The function of this name, or the one that was given to `in_process` in a decorator there."""
    found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    each: Any = found
    while each is not None:
        if (inner := getattr(each, _APART, None)) is not None:
            return cast(Callable[..., Any], inner)
        each = getattr(each, "__wrapped__", None) or getattr(each, "func", None)
    return cast(Callable[..., Any], getattr(found, "func", found))  # func: of a tool


def _end_with(parent: int) -> None:
    """Make sure that this process ends when the one that began it is gone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    _answer_call()
