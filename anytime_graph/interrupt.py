"""What may end a run early, without loss of the best answer: Ctrl-C, functions that say `exit()`, and
functions that take longer than there is time."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from langgraph.errors import GraphInterrupt

P = ParamSpec("P")
T = TypeVar("T")
GRACE = 0.5
"""Seconds that what is cancelled may take to end."""


class StopSignal(Protocol):
    """Set by a caller to end a run early; a threading.Event is one."""

    def is_set(self) -> bool: ...


class Exited(Exception):
    """A function of the user's raised what would have ended more than the function. named: what it raised."""

    @property
    def named(self) -> BaseException:
        return self.__cause__ or self


class CannotPause(Exited):
    """A function of the user's called LangGraph's `interrupt()`. named: this error, which says what to do."""

    named = property(lambda self: self)


@contextmanager
def contained() -> Iterator[None]:
    """For calls of the user's functions. Raises Exited in place of SystemExit and whatever else is no Exception,
    so that `exit()` ends only the function. Ctrl-C passes, and so does the cancelling or closing of what
    runs the function, if it is not the function that raises it. Raises CannotPause for `interrupt()`."""
    task = _current_task()
    try:
        yield
    except KeyboardInterrupt:
        raise
    except GraphInterrupt as error:
        raise CannotPause(
            "interrupt() cannot pause a run within a function that the run calls, or its reply would be bought "
            "again; ask in a node of your own (docs/scoring.md#a-human-as-scorer)"
        ) from error
    except StopIteration as error:  # a thread could not hand it on to the event loop
        raise Exited from error
    except Exception:
        raise
    except BaseException as error:
        cancelled = isinstance(error, asyncio.CancelledError) and task and task.cancelling()
        closed = isinstance(error, GeneratorExit) and _current_task() is not task
        if cancelled or closed:
            raise
        raise Exited from error


def _current_task() -> asyncio.Task[Any] | None:
    with suppress(RuntimeError):  # no event loop runs here
        return asyncio.current_task()
    return None


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C sets the event that it yields; a second one interrupts as usual.

    Pass the event to the graph: `app.invoke(..., context={"stop": stop})`. Ctrl-C then cuts calls in
    flight, and the best answer so far is returned with stop_reason "interrupted". Main thread only.
    """
    stop = threading.Event()

    def on_first(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


# --- work that takes too long


class TimeIsUp(Exception):
    """Work takes longer than there is time: it was abandoned, or not begun."""

    def __init__(self, why: str = "time is up") -> None:
        super().__init__(why)


def within(seconds: float | None, work: Callable[[], T]) -> T:
    """What the work returns or raises. With a number of seconds it runs in a thread of its own, in the
    same context. Raises TimeIsUp after them: the thread is abandoned, and no process waits for it."""
    return work() if seconds is None else in_thread(seconds, work)


def in_thread(seconds: float | None, work: Callable[[], T]) -> T:
    """The same, always in a thread of its own. An error of the work's own may be a TimeoutError too."""
    with _begun(work) as future:
        wait([future], None if seconds is None else max(0.0, seconds))
        if not future.done():
            raise TimeIsUp
        return future.result()


async def awithin(seconds: float | None, work: Callable[[], Awaitable[T]]) -> T:
    """`within` on the event loop: after the seconds the work is cancelled, and abandoned if it does not end
    then."""
    if seconds is None:
        return await work()

    async def run() -> T | _Raised:
        try:
            return await work()
        except (KeyboardInterrupt, SystemExit) as error:  # a task would raise it in the event loop
            return _Raised(error)

    task = asyncio.create_task(run())
    task.add_done_callback(_retrieved)
    try:
        await asyncio.wait({task}, timeout=max(0.0, seconds))
        if not task.done():
            raise TimeIsUp
    finally:
        if not task.done():
            task.cancel()
            try:
                await asyncio.wait({task}, timeout=GRACE)
            finally:
                _abandon(task)
    result = task.result()
    if isinstance(result, _Raised):
        raise result.error
    return result


async def to_its_end(task: asyncio.Task[T], cancel: bool = False) -> T:
    """What a task returns or raises. It comes to its end however often the one who waits is cancelled, whom that
    reaches only then: a scope of anyio cancels again in every pass of the event loop, which no cleaning up would
    survive. cancel: the first cancellation is passed on to the task."""
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            if cancel and cancelled is None:
                task.cancel()
            cancelled = error
    if cancelled is None:
        return task.result()
    _retrieved(task)
    raise cancelled


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` for what must not be left half done, such as to take or leave what others wait for."""
    return await to_its_end(asyncio.create_task(asyncio.to_thread(work, *args, **kwargs)))


async def athread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread` in a thread that neither the event loop nor the process waits for at its end."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    with _begun(lambda: work(*args, **kwargs)) as future:
        future.add_done_callback(wake)
        await done.wait()
        return future.result()


_ABANDONED: contextvars.ContextVar[Future[None] | None] = contextvars.ContextVar(
    "anytime_abandoned", default=None
)
"""Done once nobody waits for the work any more that runs in this context."""


def when_abandoned(end: Callable[[], object]) -> None:
    """Have this called once nobody waits any more for the work that calls this: at once if that is so."""
    if (abandoned := _ABANDONED.get()) is not None:
        abandoned.add_done_callback(lambda _: end())


@contextmanager
def _begun(work: Callable[[], T]) -> Iterator[Future[T]]:
    """The work, begun in a thread of its own. If it is not done at the end, it is abandoned."""
    future: Future[T] = Future()
    abandoned: Future[None] = Future()
    when_abandoned(lambda: _abandoned(abandoned))
    context = contextvars.copy_context()
    context.run(_ABANDONED.set, abandoned)

    def run() -> None:
        try:
            result = context.run(work)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True, name="timed").start()
    try:
        yield future
    finally:
        if not future.done():
            _abandoned(abandoned)


def _abandoned(abandoned: Future[None]) -> None:
    with suppress(InvalidStateError):
        abandoned.set_result(None)


class _Raised(NamedTuple):
    """What work raised that a task cannot."""

    error: BaseException


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Nobody may be left to ask for its error."""
    if not task.cancelled():
        task.exception()


def _abandon(future: asyncio.Future[Any] | None) -> None:
    """Let a task that does not end go on, with the tasks that it waits for: `asyncio.run` would cancel them
    again and wait for them."""
    if future is None or future.done():
        return
    if isinstance(future, asyncio.Task):
        asyncio.tasks._unregister_task(future)
        future._log_destroy_pending = False  # type: ignore[attr-defined] # as `gather` does with its own
    for inner in (getattr(future, "_fut_waiter", None), *getattr(future, "_children", ())):
        _abandon(inner)
