"""Work that takes longer than there is time is abandoned, and everything else passes through."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from anytime_graph.interrupt import TimeIsUp, _abandon, athread, awithin, contained, within
from tests.kit.marks import both
from tests.kit.waiting import PATIENCE

HERE: contextvars.ContextVar[str] = contextvars.ContextVar("here", default="nowhere")


def timed(seconds: float | None, work: Callable[[], Any], sync: bool) -> Any:
    """What `within` returns or, on an event loop, `awithin`; with a sync function in a thread."""
    if sync:
        return within(seconds, work)
    return asyncio.run(awithin(seconds, lambda: athread(work)))


@both
@pytest.mark.parametrize("seconds", [None, PATIENCE])
def test_a_result_passes_and_the_context_is_there(seconds: float | None, sync: bool) -> None:
    token = HERE.set("here")
    try:
        assert timed(seconds, HERE.get, sync) == "here"
    finally:
        HERE.reset(token)


@both
@pytest.mark.parametrize("error", [ValueError, TimeoutError, KeyboardInterrupt, SystemExit])
def test_an_error_passes_unchanged(error: type[BaseException], sync: bool) -> None:
    def fail() -> None:
        raise raised

    raised = error("mine")
    with pytest.raises(error) as caught:
        timed(PATIENCE, fail, sync)
    assert caught.value is raised


def test_without_a_limit_it_runs_where_it_is_called() -> None:
    assert within(None, threading.current_thread) is threading.current_thread()

    async def loop() -> bool:
        async def task() -> Any:
            return asyncio.current_task()

        return await awithin(None, task) is asyncio.current_task()

    assert asyncio.run(loop())


@both
def test_work_that_hangs_is_abandoned(sync: bool) -> None:
    ended = threading.Event()
    with pytest.raises(TimeIsUp, match="time is up"):
        timed(0.0, ended.wait, sync)
    ended.set()  # only now can the work end


def test_what_is_cancelled_may_clean_up_but_not_go_on() -> None:
    cleaned: list[str] = []

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("up")
        return "never"

    with pytest.raises(TimeIsUp):
        asyncio.run(awithin(0.01, work))
    assert cleaned == ["up"]


@pytest.mark.parametrize("deep", ["itself", "task", "gathered"])
def test_work_that_ignores_its_cancelling_is_abandoned_with_its_loop(deep: str) -> None:
    cancelled, kept = 0, list[Any]()

    async def stubborn() -> None:
        nonlocal cancelled
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    async def work() -> None:
        if deep == "itself":
            return await stubborn()
        kept.append(asyncio.create_task(stubborn()))
        await (kept[0] if deep == "task" else asyncio.gather(*kept))

    with pytest.raises(TimeIsUp):  # and asyncio.run ends, although it cancels and awaits its tasks
        asyncio.run(awithin(0.01, work))
    assert cancelled == 1


def test_to_cancel_the_waiting_cancels_the_work() -> None:
    cancelled: list[str] = []

    async def main() -> None:
        began = asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append("work")
                raise

        waiting = asyncio.create_task(awithin(PATIENCE, work))
        await began.wait()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()

    asyncio.run(main())
    assert cancelled == ["work"]


def test_what_ends_the_task_passes_where_the_function_itself_is_contained() -> None:
    seen: list[type[BaseException]] = []

    async def work() -> None:
        try:
            with contained():
                await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error))
            raise

    async def both() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(both())

    async def left() -> Any:
        opened = work()

        async def step() -> None:
            await opened

        task = asyncio.create_task(step())
        await asyncio.sleep(0)
        _abandon(task)
        return opened

    opened = asyncio.run(left())
    opened.close()
    assert seen == [asyncio.CancelledError, GeneratorExit]


def test_ctrl_c_ends_the_waiting_and_abandons_the_work() -> None:
    ended = threading.Event()

    def work() -> None:
        _thread.interrupt_main()
        ended.wait()

    with pytest.raises(KeyboardInterrupt):
        within(PATIENCE, work)
    ended.set()  # only now can the work end


_LEFT = """
import asyncio, threading
from anytime_graph.interrupt import TimeIsUp, athread, awithin, within
for work in (lambda: within(0, threading.Event().wait),
             lambda: asyncio.run(awithin(0, lambda: athread(threading.Event().wait)))):
    try:
        work()
    except TimeIsUp:
        print("up")
"""


def test_a_process_ends_while_abandoned_work_goes_on() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _LEFT], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert (ran.stdout, ran.stderr) == ("up\nup\n", "")
