"""Anytime graphs within larger graphs, and a doomed process that runs one."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langgraph.errors import NodeError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    NoAnswer,
    Spend,
    add_spend,
    create_anytime_graph,
    open_checkpoints,
)
from tests.kit.lives import Spec, model
from tests.kit.server import Reply, Script

App = CompiledStateGraph[Any, Any, Any, Any]


class Result(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    spent: Annotated[Spend, add_spend]


class Pipeline(Result, total=False):
    budget: dict[str, Any]


@tool
def look_up(word: str) -> str:
    """Look up a word in a dictionary."""
    return f"{word}: {zlib.crc32(word.encode()) % 1000} meanings"


def agent(model: Any) -> Any:
    return create_agent(model, [look_up], system_prompt="You know words.")


def score(question: str, answer: str) -> float:
    return zlib.crc32(answer.encode()) % 100 / 101


Handed = dict[str, Budget]
"""What each node was given, by its path."""


def composed(
    children: Sequence[tuple[str, App]],
    parts: Sequence[float],
    parallel: bool,
    handed: Handed | None = None,
    path: str = "",
) -> App:
    """A graph that hands its budget down to its children, side by side or one after another. Each
    is told its path with the question. parts: of the budget, that add up to 1; of what is left,
    if the children come one after another."""
    handed = {} if handed is None else handed
    names = [name for name, _ in children]

    def send(state: Pipeline, name: str, share: Budget) -> Send:
        handed[path + name] = share
        question = next(m.text for m in state["messages"] if m.type == "human")
        named = f"{question.partition(' (')[0]} (path {path}{name}.)"
        return Send(name, {"messages": [("user", named)], "budget": share.limits()})

    def left(state: Pipeline) -> Budget:
        return Budget(**state["budget"]).less(state["spent"])

    def hand_out(state: Pipeline) -> Command[Any]:
        shares = [left(state).fraction(part) for part in parts]
        return Command(goto=[send(state, *pair) for pair in zip(names, shares, strict=True)])

    def hand_on(i: int) -> Callable[[Pipeline], Command[Any]]:
        return lambda state: Command(goto=send(state, names[i], left(state).fraction(parts[i])))

    def failed(goto: str) -> Callable[..., Command[Any]]:
        def handle(state: Pipeline, error: NodeError) -> Command[Any]:
            if not isinstance(error.error, NoAnswer | BudgetTooSmall):
                raise error.error
            return Command(update={"spent": error.error.spent}, goto=goto)

        return handle

    graph = StateGraph(Pipeline, output_schema=Result)
    following = [END] * len(names) if parallel else [*(f"hand {n}" for n in names[1:]), END]
    for (name, child), after in zip(children, following, strict=True):
        graph.add_node(name, child, error_handler=failed(after))
        graph.add_edge(name, after)
    if parallel:
        graph.add_node("hand out", hand_out, destinations=tuple(names))
        graph.add_edge(START, "hand out")
    else:
        for i, name in enumerate(names):
            graph.add_node(f"hand {name}", hand_on(i), destinations=(name,))
        graph.add_edge(START, f"hand {names[0]}")
    return graph.compile()


def using_tools(turns: int) -> Script:
    """An agent that looks up so many words, one after another, then answers."""

    def reply(request: dict[str, Any], i: int) -> Reply:
        messages = request["messages"]
        done = sum(m["role"] == "tool" for m in messages)
        if request.get("tools") and done < turns and "Time is up" not in messages[-1]["content"]:
            return Reply(text="", tools=[("look_up", {"word": f"river {request['seed']}"})])
        return Reply(text=f"so <answer>{request['seed']}</answer>")

    return reply


def pipeline(url: str, tokens: int, ledger: Any = None) -> StateGraph[Any, Any, Any, Any]:
    """Two branches side by side, one of them drafted by an agent, then a node that sums up."""
    plain = {"scorer": score, "ledger": ledger, "strategy": "best_of_n"}
    think = create_anytime_graph(model(url), **plain).compile()
    dig = create_anytime_graph(model(url), drafter=agent, **plain).compile()
    write = create_anytime_graph(model(url), **{**plain, "strategy": "self_refine"}).compile()
    branches = [("think", think), ("dig", dig)]
    research = composed(branches, [0.5, 0.5], parallel=True, path="research/")
    outer = composed([("research", research), ("write", write)], [0.7, 1.0], parallel=False)
    graph = StateGraph(Pipeline, output_schema=Result)
    graph.add_node("all", lambda state: {"budget": {"tokens": tokens}})
    graph.add_node("halves", outer)
    graph.add_edge(START, "all")
    graph.add_edge("all", "halves")
    graph.add_edge("halves", END)
    return graph


def life(spec: Spec) -> None:
    """Run a pipeline, from wherever the last life left it, to its end; tell what it spent."""
    config: Any = {"configurable": {"thread_id": spec["thread"]}}
    asked = {"messages": [("user", spec["question"])]}

    def build(store: Any) -> App:
        return pipeline(spec["url"], spec["tokens"], store.ledger).compile(store.saver)

    async def alive() -> Any:
        async with open_checkpoints(spec["target"]) as store:
            app = build(store)
            given = None if (await app.aget_state(config)).next else asked
            return await app.ainvoke(given, config, durability=spec["durability"])

    if spec["sync"]:
        with open_checkpoints(spec["target"]) as store:
            app = build(store)
            given = None if app.get_state(config).next else asked
            out = app.invoke(given, config, durability=spec["durability"])
    else:
        out = asyncio.run(alive())
    Path(spec["out"]).write_text(json.dumps(out["spent"]))
