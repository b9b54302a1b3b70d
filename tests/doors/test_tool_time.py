"""Seconds hold whatever an agent's tools do: each test's tool ends only after the run has."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config
from langgraph.types import Command, interrupt

from anytime_graph import Budget, BudgetTooSmall
from anytime_graph.metering import account
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.marks import both, torture
from tests.kit.server import Reply, Server, serving
from tests.kit.waiting import PATIENCE, Clock

ANSWER = "Rivers bend because water erodes the outer bank."
QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}
AMPLE = Budget(tokens=20_000, seconds=PATIENCE)
LEFT = 0.5
"""Seconds that a tool has in a test whose time is scarce."""


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set once the run has returned. A tool that waits for it was abandoned."""
    over = threading.Event()
    yield over
    over.set()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of accounts."""
    clock = Clock()
    monkeypatch.setattr(account, "time", clock)
    return clock


def scarce(clock: Clock, script: Any) -> Any:
    """The same model; after its first reply there is little time besides the reserve of a half."""

    def late(request: dict[str, Any], i: int) -> Reply:
        clock.ahead = PATIENCE / 2 - LEFT
        reply: Reply = script(request, i)
        return reply

    return late


def asking(*names: str, turns: int | None = None) -> Any:
    """A model that calls these tools, for ever or for so many turns."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if not request.get("tools") or (turns is not None and i >= turns):
            return Reply(text=ANSWER)
        return Reply(text="Let me look.", tools=[(name, {}) for name in names])

    return script


def run(server: Server, *tools: Any, sync: bool, budget: Budget = AMPLE, **more: Any) -> Any:
    middleware = TokenBudgetMiddleware(budget, reserve=more.pop("reserve", 0.5))
    app = create_agent(server.model(), list(tools), middleware=[middleware])
    if sync:
        return app.invoke(QUESTION, **more)
    return asyncio.run(app.ainvoke(QUESTION, **more))


def told(out: Any) -> list[str]:
    return [m.text for m in out["messages"] if isinstance(m, ToolMessage)]


class Sleeper(BaseTool):
    """A tool as a class, without an async form."""

    name: str = "search"
    description: str = "Search the web."
    until: Any

    def _run(self) -> str:
        self.until.wait()
        return "erosion"


def hanging(kind: str, over: threading.Event) -> Any:
    def search() -> str:
        """Search the web."""
        over.wait()
        return "erosion"

    async def asearch() -> str:
        """Search the web."""
        await asyncio.Event().wait()
        return "erosion"

    async def stubborn() -> str:
        """Search the web."""
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return "erosion"

    if kind == "class":
        return Sleeper(until=over)
    function = {"async": asearch, "stubborn": stubborn}.get(kind)
    return StructuredTool.from_function(
        None if function else search, coroutine=function, name="search"
    )


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("kind", "sync"),
    [
        ("sync", True),
        ("class", True),
        ("sync", False),
        ("class", False),
        ("async", False),
        ("stubborn", False),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_tool_that_hangs_is_abandoned_and_the_reserve_answers(
    server: Server, over: threading.Event, clock: Clock, kind: str, sync: bool, n: int
) -> None:
    server.script = scarce(clock, asking(*["search"] * n))
    out = run(server, hanging(kind, over), sync=sync)
    assert not over.is_set()
    assert told(out) == ["Not done: time is up"] * n
    assert (out["stop_reason"], out["messages"][-1].text) == ("seconds", ANSWER)
    assert "tools" not in server.calls[-1].request
    assert len(server.calls) == 2
    assert out["spent"]["seconds"] >= PATIENCE / 2


@both
def test_without_a_reserve_it_ends_with_the_last_text(
    server: Server, over: threading.Event, clock: Clock, sync: bool
) -> None:
    server.script = scarce(clock, asking("search"))
    out = run(
        server, hanging("sync", over), sync=sync, budget=Budget(seconds=PATIENCE / 2), reserve=0
    )
    assert (out["stop_reason"], out["messages"][-1].text) == ("seconds", "Let me look.")


@both
def test_what_an_abandoned_tool_would_spend_is_refused(
    server: Server, over: threading.Event, clock: Clock, sync: bool
) -> None:
    refused: list[BudgetTooSmall] = []
    done = threading.Event()

    @tool
    def search() -> str:
        """Search the web."""
        over.wait()
        try:
            return str(metered(server.model()).invoke("What is erosion?").text)
        except BudgetTooSmall as error:
            refused.append(error)
            raise
        finally:
            done.set()

    server.script = scarce(clock, asking("search"))
    out = run(server, search, sync=sync)
    over.set()
    assert done.wait(PATIENCE)
    assert len(refused) == 1
    assert len(server.calls) == 2
    assert out["spent"]["tokens"] == server.served


@both
def test_what_a_tool_has_spent_before_it_is_abandoned_is_booked(
    server: Server, over: threading.Event, clock: Clock, sync: bool
) -> None:
    @tool
    def search() -> str:
        """Search the web."""
        metered(server.model()).invoke("What is erosion?")
        over.wait()
        return "erosion"

    def script(request: dict[str, Any], i: int) -> Reply:
        clock.ahead = PATIENCE / 2 - 2  # the tool's call is made in these
        return Reply(text="Let me.", tools=[("search", {})]) if i == 0 else Reply(text=ANSWER)

    server.script = script
    out = run(server, search, sync=sync)
    assert told(out) == ["Not done: time is up"]
    assert (out["spent"]["calls"], len(server.calls)) == (3, 3)
    assert out["spent"]["tokens"] == server.served


@both
def test_a_tool_in_time_has_its_config_runtime_callbacks_and_payer(
    server: Server, sync: bool
) -> None:
    seen: list[Any] = []

    @tool
    def search(runtime: ToolRuntime) -> str:
        """Search the web."""
        seen.append((get_config()["configurable"]["who"], runtime.tool_call_id))
        return str(metered(server.model()).invoke("What is erosion?").text)

    class Heard(BaseCallbackHandler):
        def on_tool_end(self, output: Any, **kwargs: Any) -> None:
            seen.append(output.text)

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text="Let me.", tools=[("search", {})]) if i == 0 else Reply(text=ANSWER)

    server.script = script
    config: Any = {"configurable": {"who": "me"}, "callbacks": [Heard()]}
    out = run(server, search, sync=sync, config=config)
    (who, call), heard = seen
    assert (who, heard, out["stop_reason"]) == ("me", ANSWER, "done")
    assert call == out["messages"][1].tool_calls[0]["id"]
    assert (out["spent"]["calls"], out["spent"]["tokens"]) == (3, server.served)


@both
def test_a_tool_that_takes_longer_than_is_left_is_not_begun(server: Server, sync: bool) -> None:
    ran: list[str] = []

    @tool
    def search() -> str:
        """Search the web."""
        ran.append("search")
        return "erosion"

    @tool
    def slow() -> str:
        """Search the web at length."""
        ran.append("slow")
        return "erosion"

    search.metadata, slow.metadata = {"seconds": 1}, {"seconds": PATIENCE}
    server.script = asking("search", "slow", turns=1)
    out = run(server, search, slow, sync=sync)
    assert ran == ["search"]
    fits, not_done = told(out)
    assert fits == "erosion"
    assert not_done.startswith(f"Not done: it takes {PATIENCE:g} seconds, and ")
    assert out["stop_reason"] == "done"
    out = run(server, slow, sync=sync, budget=Budget(tokens=20_000))
    assert ran == ["search"]  # the model was asked once more, and has answered


@both
def test_a_tool_that_asks_a_human_goes_on_with_the_answer(server: Server, sync: bool) -> None:
    @tool
    def search() -> str:
        """Search the web."""
        return str(interrupt("May I?"))

    server.script = asking("search", turns=1)
    on: Any = {"configurable": {"thread_id": "1"}}
    middleware = TokenBudgetMiddleware(AMPLE)
    app = create_agent(
        server.model(), [search], middleware=[middleware], checkpointer=InMemorySaver()
    )
    turns: list[Any] = [QUESTION, Command(resume="erosion")]
    for each in turns:
        out = app.invoke(each, on) if sync else asyncio.run(app.ainvoke(each, on))
    assert (told(out), out["stop_reason"]) == (["erosion"], "done")
    assert out["spent"]["tokens"] == server.served


@both
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, TimeoutError])
def test_a_tools_error_ends_the_run_as_it_does_without_a_limit(
    server: Server, error: type[BaseException], sync: bool
) -> None:
    @tool
    def search() -> str:
        """Search the web."""
        raise error("mine")

    server.script = asking("search")
    with pytest.raises(error, match="mine"):
        run(server, search, sync=sync)


def test_without_seconds_a_tool_runs_in_the_thread_that_calls_it(server: Server) -> None:
    names: list[str] = []

    @tool
    def search() -> str:
        """Search the web."""
        names.append(threading.current_thread().name)
        return "erosion"

    server.script = asking("search", turns=1)
    run(server, search, sync=True, budget=Budget(tokens=20_000))
    server.calls.clear()
    server.script = asking("search", turns=1)
    run(server, search, sync=True)
    assert names[0] != "timed"
    assert names[1] == "timed"


@settings(max_examples=torture or 5, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(["quick", "sync", "stubborn", "spends"]), min_size=1, max_size=3
    ),
    sync=st.booleans(),
)
def test_an_agent_that_never_ends_keeps_all_its_limits_whatever_its_tools_do(
    kinds: list[str], sync: bool
) -> None:
    over, clock, ran = threading.Event(), Clock(), list[str]()

    def quick() -> str:
        """Search the web."""
        ran.append("quick")
        return "erosion"

    def spends() -> str:
        """Search the web, and go on in a thread."""
        ran.append("spends")
        asked = contextvars.copy_context().run
        endless = threading.Thread(target=asked, args=(ask_for_ever,), daemon=True)
        endless.start()
        endless.join()
        return "erosion"

    def ask_for_ever() -> None:
        with suppress(BudgetTooSmall):
            while not over.is_set():
                metered(server.model()).invoke("What is erosion?")

    with serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(account, "time", clock)

        def script(request: dict[str, Any], i: int) -> Reply:
            if i == 0:
                clock.ahead = PATIENCE / 2 - LEFT
            calls = [(f"{n}", dict[str, Any]()) for n in range(len(kinds))]
            tools = calls if request.get("tools") else []
            return Reply(text="Let me look." if tools else ANSWER, tools=tools)

        server.script = script
        tools = []
        for n, kind in enumerate(kinds):
            mine = {"quick": quick, "spends": spends}.get(kind)
            kind = "sync" if sync else kind
            made = hanging(kind, over) if mine is None else StructuredTool.from_function(mine)
            tools.append(made.model_copy(update={"name": str(n)}))
        middleware = TokenBudgetMiddleware(
            Budget(tokens=6_000, seconds=PATIENCE, tool_calls=6), reserve=0.5
        )
        app = create_agent(server.model(), tools, middleware=[middleware])
        out = app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))
        over.set()
        assert out["messages"][-1].text == ANSWER
        assert out["stop_reason"] not in (None, "done")
        assert server.served <= 6_000
        assert out["spent"]["tokens"] >= server.served
        assert len(ran) <= 6
