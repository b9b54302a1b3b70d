"""Functions in a process of their own: one that hangs is ended, whatever it does."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import BaseTool, StructuredTool

from anytime_graph import Budget, create_anytime_graph, in_process, interrupt
from anytime_graph.interrupt import TimeIsUp, athread, awithin, within
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit import apart
from tests.kit.apart_decorated import loudly, shouted, twice
from tests.kit.marks import both, some
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE

QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}


class Hung:
    """What tells that a function hangs, and that it, and what it began, has ended."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.pipe, True)
        self.beside = os.open(path, os.O_WRONLY)

    def hangs(self) -> None:
        assert os.read(self.pipe, 1) == b"!"

    def has_ended(self) -> bool:
        os.close(self.beside)
        return os.read(self.pipe, 1) == b""


@pytest.fixture
def hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hung]:
    monkeypatch.setenv(apart.HANGS, str(tmp_path / "hangs"))
    hung = Hung(tmp_path / "hangs")
    yield hung
    os.close(hung.pipe)


@pytest.fixture
def late(hung: Hung, monkeypatch: pytest.MonkeyPatch) -> Hung:
    """Time is up for what runs in a thread as soon as it hangs."""
    monkeypatch.setattr(interrupt, "wait", until_it_hangs(hung))
    return hung


def until_it_hangs(hung: Hung) -> Any:
    """What may take long is waited for until it hangs; other work, such as a question about an endpoint, until it
    is done."""
    waited = interrupt.wait

    def wait(futures: Any, seconds: float) -> None:
        if seconds > PATIENCE / 4:
            hung.hangs()
        else:
            waited(futures, seconds)

    return wait


def test_it_is_run_in_another_process_with_its_result(capfd: pytest.CaptureFixture[str]) -> None:
    doubled, process = in_process(apart.double)(21)
    assert (doubled, process != os.getpid()) == (42, True)
    assert "doubling" in capfd.readouterr().err
    assert in_process(apart.Scorer(0.7))("why", "so") == 0.7
    assert in_process(functools.partial(apart.score, "why"))("so") == 0.02


def test_it_may_stand_among_other_decorators() -> None:
    assert (shouted("so"), loudly("so")) == ("so!", "so!")
    assert isinstance(twice, BaseTool)
    doubled, _, process = twice.invoke({"n": 2}).partition(" in ")
    assert (doubled, process == f"{os.getpid()}") == ("4", False)


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("ValueError", ValueError, "7 is odd"),
        ("Odd", RuntimeError, "Odd: 7 is odd: it is prime"),
        ("SystemExit", SystemExit, "3"),
        ("lambda", Exception, "lambda"),
        ("exit", RuntimeError, "fail: its process ended with exit code 3"),
    ],
)
def test_an_error_comes_back_with_its_message(how: str, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        in_process(apart.fail)(how)


def test_what_another_process_cannot_run_is_refused() -> None:
    async def later() -> None:
        pass

    class Waiter:
        async def __call__(self) -> None:
            pass

    for function, said in (
        (later, "later: a sync function is needed"),
        (Waiter(), "Waiter: a sync function is needed"),
        (7, "int: a sync function is needed"),
        (lambda n: n, "define it at the top of a module"),
        (functools.partial(lambda n: n, 7), "partial: it cannot be pickled"),
        (StructuredTool.from_function(coroutine=later, name="t", description="d"), "tool t: one"),
    ):
        with pytest.raises(ValueError, match=said):
            in_process(function)


def test_one_that_hangs_is_ended_with_what_it_began(late: Hung) -> None:
    with pytest.raises(TimeIsUp):
        within(PATIENCE, lambda: in_process(apart.hang)())
    assert late.has_ended()


def test_one_within_work_that_is_abandoned_is_ended(hung: Hung) -> None:
    """It has time left itself."""

    async def abandoned() -> None:
        nested = functools.partial(within, PATIENCE, in_process(apart.hang))
        work = asyncio.create_task(awithin(PATIENCE, lambda: athread(nested)))
        await asyncio.to_thread(hung.hangs)
        work.cancel()
        await asyncio.wait({work})

    asyncio.run(abandoned())
    assert hung.has_ended()


def test_ctrl_c_ends_one_that_hangs(hung: Hung) -> None:
    main = threading.get_ident()

    def press() -> None:
        hung.hangs()
        signal.pthread_kill(main, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        in_process(apart.hang)(alone=True)
    pressing.join()
    assert hung.has_ended()


@both
def test_a_scorer_that_ends_its_process_costs_its_score_only(server: Server, sync: bool) -> None:
    """Also by KeyboardInterrupt: Ctrl-C does not reach that process."""
    by: type[BaseException]
    for by in some(
        (KeyboardInterrupt, StopIteration, SystemExit, asyncio.CancelledError), 2, not sync
    ):
        server.calls.clear()
        server.script = lambda request, i: Reply(f"<answer>{'good' if i == 1 else 'bad'}</answer>")
        app = create_anytime_graph(
            server.model(),
            budget=Budget(calls=2, seconds=60 if by is SystemExit else None),
            strategy="best_of_n",
            scorer=in_process(apart.Ending(by)),
        ).compile()
        out = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
        assert (out["best"]["answer"], out["best"]["score"]) == ("good", 0.9)
        assert [by.__name__ in e for e in out["errors"]] == [True]


def test_a_scorer_that_hangs_is_ended(server: Server, late: Hung) -> None:
    server.script = lambda request, i: Reply("<answer>good</answer>")
    out = (
        create_anytime_graph(
            server.model(),
            budget=Budget(tokens=9_000, seconds=PATIENCE),
            strategy="single",
            scorer=in_process(apart.hang),
        )
        .compile()
        .invoke(QUESTION)
    )
    assert late.has_ended()
    assert (out["best"]["answer"], out["best"]["score"]) == ("good", None)
    (error,) = out["errors"]
    assert "time is up" in error
    assert apart.__file__ in error


@both
def test_a_tool_that_hangs_is_ended(server: Server, hung: Hung, sync: bool) -> None:
    """Its time is up once it hangs."""
    server.script = lambda request, i: Reply(
        "It erodes.", tools=[("search", {"q": "bend"})] if request.get("tools") else []
    )
    hanging = in_process(StructuredTool.from_function(apart.search))
    middleware = TokenBudgetMiddleware(Budget(tokens=9_000, seconds=PATIENCE, tool_calls=1))
    agent: Any = create_agent(server.model(), [hanging], middleware=[middleware])
    waited, first = asyncio.wait, ["the tool"]

    async def wait(tasks: Any, timeout: Any = None, **more: Any) -> Any:
        if [task.get_coro().__qualname__ for task in tasks] == ["awithin.<locals>.run"] and first:
            first.clear()
            await asyncio.to_thread(hung.hangs)
            timeout = 0
        return await waited(tasks, timeout=timeout, **more)

    with pytest.MonkeyPatch.context() as patch:
        if sync:
            patch.setattr(interrupt, "wait", until_it_hangs(hung))
            out = agent.invoke(QUESTION)
        else:
            patch.setattr(interrupt.asyncio, "wait", wait)
            out = asyncio.run(agent.ainvoke(QUESTION))
    assert hung.has_ended()
    told = [m.text for m in out["messages"] if m.type == "tool"]
    assert told[0] == "Not done: time is up"


def test_one_ends_when_its_caller_is_killed(hung: Hung) -> None:
    program = (
        "from anytime_graph import in_process; from tests.kit import apart; "
        "in_process(apart.hang)(alone=True)"
    )
    caller = subprocess.Popen([sys.executable, "-c", program])
    hung.hangs()
    caller.kill()
    caller.wait()
    assert hung.has_ended()


def test_a_programs_own_functions_run_so_if_it_is_guarded(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    text = (
        "from anytime_graph import in_process\n"
        "def double(n): return n + n\n"
        "if __name__ == '__main__': print(in_process(double)(21))\n"
    )
    program.write_text(text)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
    program.write_text(text.replace("if __name__ == '__main__': ", ""))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert "must stand under `if __name__ == '__main__':`" in done.stderr
