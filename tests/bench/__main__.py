"""Benchmarks: tables of ratios, each pair of figures from one run. `make bench`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from rich.console import Console
from rich.table import Table

from anytime_graph import Budget, Draft, create_anytime_graph, open_checkpoints
from tests.bench.ranking import ranking
from tests.bench.reading import reading
from tests.kit.server import Reply, Server, serving

QUESTION: Any = {"messages": [("user", "Tell me all about rivers.")]}
console = Console(width=130)


class Instant(BaseChatModel):
    """A model that answers at once, so that only the graphs take time."""

    max_tokens: int | None = None

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("a river"))])

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        usage: Any = {"input_tokens": 60, "output_tokens": 2, "total_tokens": 62}
        yield ChatGenerationChunk(message=AIMessageChunk("a river", usage_metadata=usage))

    @property
    def _llm_type(self) -> str:
        return "instant"


def overhead(calls: int = 200) -> None:
    """Time per call, ours over a bare loop of two nodes with the same saver and the same calls."""

    class Bare(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]
        answer: str
        made: int

    model = Instant()

    def think(state: Bare) -> Any:
        text = "".join(chunk.text for chunk in model.stream(state["messages"]))
        return {"answer": text, "made": state.get("made", 0) + 1}

    loop = StateGraph(Bare)
    loop.add_node("think", think)
    loop.add_node("check", lambda state: {})
    loop.add_edge(START, "think")
    loop.add_edge("think", "check")
    loop.add_conditional_edges("check", lambda s: END if s["made"] >= calls else "think")
    ours = create_anytime_graph(
        model, budget=Budget(calls=calls), scorer=lambda q, a: 0.5, strategy=lambda view: [Draft()]
    )
    apps = {
        "bare loop": loop.compile(checkpointer=InMemorySaver()),
        "anytime-graph": ours.compile(checkpointer=InMemorySaver()),
    }
    times: dict[str, list[float]] = {name: [] for name in apps}
    for i in range(5):
        for name, app in apps.items():
            began = time.perf_counter()
            app.invoke(QUESTION, {"configurable": {"thread_id": str(i)}, "recursion_limit": 10_000})
            times[name].append((time.perf_counter() - began) / calls * 1_000)
    table = Table("graph", "ms per call", "ratio", title="Overhead per model call, in-memory saver")
    base = statistics.median(times["bare loop"])
    for name, measured in times.items():
        middle = statistics.median(measured)
        table.add_row(name, f"{middle:.2f}", f"{middle / base:.2f}")
    console.print(table)


def ledger(calls: int = 200) -> None:
    """What the ledger adds to a call on SQLite, beside what LangGraph's saver takes for a put."""
    times: dict[bool, list[float]] = {False: [], True: []}
    puts: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(14):
            kept = bool(i % 2)
            with open_checkpoints(Path(folder) / f"{i}.db") as store:
                app = create_anytime_graph(
                    Instant(),
                    budget=Budget(calls=calls),
                    scorer=lambda q, a: 0.5,
                    strategy=lambda view: [Draft()],
                    ledger=store.ledger if kept else None,
                ).compile(checkpointer=store.saver)
                thread: Any = {"configurable": {"thread_id": "t"}, "recursion_limit": 10_000}
                began = time.perf_counter()
                app.invoke(QUESTION, thread)
                times[kept].append((time.perf_counter() - began) / calls * 1_000)
                last = store.saver.get_tuple(thread)
                assert last is not None
                place = last.config | {"configurable": last.config["configurable"]}
                for _ in range(20):
                    began = time.perf_counter()
                    store.saver.put(place, last.checkpoint, last.metadata, {})
                    puts.append((time.perf_counter() - began) * 1_000)
    added, put = (
        statistics.median(times[True]) - statistics.median(times[False]),
        statistics.median(puts),
    )
    table = Table("what", "ms", "ratio to a put", title="The ledger on SQLite, median")
    table.add_row("one put of LangGraph's saver", f"{put:.2f}", "1.00")
    table.add_row("added by the ledger, per call", f"{added:.2f}", f"{added / put:.2f}")
    console.print(table)


def imports() -> None:
    def seconds(module: str) -> float:
        code = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            for _ in range(7)
        ]
        return statistics.median(float(run.stdout) for run in runs)

    base, own = seconds("langgraph.graph"), seconds("anytime_graph")
    table = Table("module", "seconds", "ratio", title="Import time")
    table.add_row("langgraph.graph", f"{base:.3f}", "1.00")
    table.add_row("anytime_graph", f"{own:.3f}", f"{own / base:.2f}")
    console.print(table)


def overspend() -> None:
    """An endpoint that fills any limit: what it serves over what was allowed."""

    def checked_after(server: Server, budget: int) -> None:
        """The usual guard: call, then count."""
        model, spent = server.model(stream_usage=True), 0
        while spent < budget:
            reply = None
            for chunk in model.stream(QUESTION["messages"], max_tokens=4_096):
                reply = chunk if reply is None else reply + chunk
            spent += reply.usage_metadata["total_tokens"] if reply and reply.usage_metadata else 0

    def ours(server: Server, budget: int) -> None:
        create_anytime_graph(server.model(), budget=Budget(tokens=budget)).compile().invoke(
            QUESTION
        )

    table = Table(
        "budget",
        "guard that counts after the call",
        "anytime-graph",
        title="Tokens served / tokens allowed",
    )
    ways: tuple[Callable[[Server, int], None], ...] = (checked_after, ours)
    for budget in (100, 1_000, 10_000):
        shares = []
        for way in ways:
            with serving() as server:
                server.script = lambda request, i: Reply(text=None)
                way(server, budget)
                shares.append(f"{server.served / budget:.2f}")
        table.add_row(str(budget), *shares)
    console.print(table)


if __name__ == "__main__":
    overhead()
    ledger()
    imports()
    overspend()
    ranking()
    reading()
