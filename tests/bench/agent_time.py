"""How long after their seconds agents end that never would: `python -m tests.bench.agent_time [AGENTS]`.

Each has a model behind a loopback server and tools of one kind: they hang, ignore their cancellation, call models for
ever, or do so in threads of their own. The figures depend on the load, which is told.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import StructuredTool

from anytime_graph import Budget, in_process
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.server import Reply, Server, serving

SECONDS, BESIDE = 5.0, 3
KINDS = ("hangs", "hangs in a process", "async", "ignores cancellation", "calls models", "threads")
NEVER = threading.Event()


def wait(q: str) -> str:
    """Search the web."""
    NEVER.wait()
    return "erosion"


async def await_(q: str) -> str:
    """Search the web."""
    await asyncio.Event().wait()
    return "erosion"


async def stay(q: str) -> str:
    """Search the web."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def tool_of(kind: str, server: Server) -> Any:
    model = metered(server.model())

    def think(q: str) -> str:
        """Search the web."""
        while True:
            model.invoke("What is erosion?")

    def begin(q: str) -> str:
        """Search the web."""
        for _ in range(3):
            threading.Thread(target=NEVER.wait, daemon=True).start()
        return "erosion"

    functions = {"calls models": think, "threads": begin}
    asynchronous = {"async": await_, "ignores cancellation": stay}.get(kind)
    function = None if asynchronous else functions.get(kind, wait)
    tool = StructuredTool.from_function(function, coroutine=asynchronous, name="search")
    return in_process(tool) if kind == "hangs in a process" else tool


def late(server: Server, kind: str, sync: bool) -> tuple[float, Any]:
    """Seconds by which an agent ends late, and its end."""
    middleware = TokenBudgetMiddleware(Budget(seconds=SECONDS), reserve=0.3)
    agent: Any = create_agent(server.model(), [tool_of(kind, server)], middleware=[middleware])
    asked: Any = {"messages": [("user", "Why do rivers bend?")]}
    config: Any = {"recursion_limit": 10_000}
    began = time.monotonic()
    out = agent.invoke(asked, config) if sync else asyncio.run(agent.ainvoke(asked, config))
    return time.monotonic() - began - SECONDS, out


def main(agents: int) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        tools = [("search", {"q": "bend"})] if request.get("tools") else []
        return Reply("They bend.", tools=tools, pace=0.01)

    cases = [(kind, sync) for kind in KINDS for sync in (True, False)]
    cases = [
        case for case in cases if case not in (("async", True), ("ignores cancellation", True))
    ]
    with serving() as server, ThreadPoolExecutor(BESIDE) as pool:
        server.script = script
        ran = [cases[n % len(cases)] for n in range(agents)]
        ends = list(pool.map(lambda case: late(server, *case), ran))
    print(f"{agents} agents, {BESIDE} at a time, {SECONDS:g} s each; load {os.getloadavg()[0]:.1f}")
    for kind in KINDS:
        found = sorted(
            after for (each, _), (after, _) in zip(ran, ends, strict=True) if each == kind
        )
        print(
            f"{kind:22} {len(found):3}  median {statistics.median(found):+.2f} s  most {found[-1]:+.2f} s"
        )
    every = sorted(after for after, _ in ends)
    print(f"all: median {statistics.median(every):+.2f} s, most {every[-1]:+.2f} s")
    reasons = sorted({str(out["stop_reason"]) for _, out in ends})
    answered = sum(bool(out["messages"][-1].text) for _, out in ends)
    print(f"answers: {answered} of {agents}; stop reasons: {', '.join(reasons)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 30)
    sys.stdout.flush()
    os._exit(0)  # what ignores its end goes on
