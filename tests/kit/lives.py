"""What a doomed process does: one life of a run, from wherever the last one left it.

Children of a fork server that has imported this module begin in milliseconds.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import runpy
import sys
import traceback
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NotRequired, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.types import StateSnapshot
from openai import APIConnectionError

from anytime_graph import Budget, create_anytime_graph, local, open_checkpoints
from anytime_graph.checkpoints import leases
from tests.kit import agents

spared = "pandas" not in sys.modules  # sqlite-utils imports it if it is there, for nothing of ours
if spared:
    sys.modules["pandas"] = None  # type: ignore[assignment]
for late in (
    "anytime_graph.cli",
    "langgraph.checkpoint.postgres.aio",
    "langgraph.checkpoint.sqlite.aio",
    "psycopg_pool",
    "sqlite_utils",
):
    importlib.import_module(late)
if spared:
    del sys.modules["pandas"]


EMBEDDED = "ANYTIME_TEST_EMBEDDED"
"""The variable that puts another endpoint in the place of the embedded model's server."""


class Spec(TypedDict):
    """target: a file or a PostgreSQL URL. url: of the model. tokens: the budget. grant: tokens to
    think on with, where the run is over. asks: put the question anyway. lease: seconds for which
    leases hold. out: the file for what came of it. agent: it is an agent that runs."""

    target: str
    url: str
    thread: str
    question: str
    sync: bool
    durability: Literal["sync", "async", "exit"]
    strategy: str
    tokens: int
    grant: NotRequired[int]
    asks: NotRequired[bool]
    lease: NotRequired[float]
    out: str
    agent: NotRequired[bool]


def live(*specs: Spec) -> None:
    """Run the threads of these specs side by side, over one store and one graph, to their ends."""
    leases.LEASE = specs[0].get("lease", leases.LEASE)
    try:
        if not specs[0]["sync"]:
            return asyncio.run(_alive(specs))
        with (
            open_checkpoints(specs[0]["target"]) as store,
            ThreadPoolExecutor(len(specs)) as pool,
        ):
            list(pool.map(partial(_run, compiled(store, specs[0])), specs))
    except Exception as error:
        for spec in specs:
            _report(spec, error)


async def _alive(specs: tuple[Spec, ...]) -> None:
    async with open_checkpoints(specs[0]["target"]) as store:
        app = compiled(store, specs[0])
        await asyncio.gather(*(arun(app, spec) for spec in specs))


def score(question: str, answer: str) -> float:
    return zlib.crc32(answer.encode()) % 100 / 101


def model(url: str) -> ChatOpenAI:
    return ChatOpenAI(model="scripted", base_url=url, api_key="none", seed=0, max_retries=0)


def compiled(store: Any, spec: Spec) -> Any:
    if spec.get("agent"):
        return agents.built(model(spec["url"]), spec["tokens"], store.ledger, store.saver)
    return create_anytime_graph(
        model(spec["url"]),
        budget=Budget(tokens=spec["tokens"]),
        scorer=score,
        strategy=spec["strategy"],
        ledger=store.ledger,
    ).compile(checkpointer=store.saver)


def _run(app: Any, spec: Spec) -> None:
    config = {"configurable": {"thread_id": spec["thread"]}}
    try:
        given = _input(app.get_state(config), spec)
        if given != "nothing":
            app.invoke(given, config, durability=spec["durability"])
        _report(spec, app.get_state(config).values)
    except Exception as error:
        _report(spec, error)


async def arun(app: Any, spec: Spec) -> None:
    config = {"configurable": {"thread_id": spec["thread"]}}
    try:
        given = _input(await app.aget_state(config), spec)
        if given != "nothing":
            await app.ainvoke(given, config, durability=spec["durability"])
        _report(spec, (await app.aget_state(config)).values)
    except Exception as error:
        _report(spec, error)


def _input(state: StateSnapshot, spec: Spec) -> Any:
    """What a user sends: None to go on, a budget to think on, the question if there is no trace
    of it; "nothing" if the run is over. Of an agent that seems over, its last node may be left."""
    asks = spec.get("asks", False)
    over = state.values.get("stop_reason") is not None
    if (state.next or (over and spec.get("agent"))) and not asks:
        return None
    if asks or not state.values.get("stop_reason"):
        return {"messages": [("user", spec["question"])]}
    return {"budget": Budget(tokens=spec["grant"])} if "grant" in spec else "nothing"


def _report(spec: Spec, end: Mapping[str, Any] | Exception) -> None:
    if isinstance(end, Exception):
        report: Any = {
            "error": type(end).__name__,
            "trace": "".join(traceback.format_exception(end)),
        }
    else:
        best = end.get("best") or {"answer": None, "score": None}
        report = {
            "answer": best["answer"],
            "said": end["messages"][-1].text,
            "score": best["score"],
            "spent": end["spent"],
            "stop_reason": end["stop_reason"],
        }
    with open(spec["out"] + ".part", "w") as file:
        json.dump(report, file)
    os.replace(spec["out"] + ".part", spec["out"])


with suppress(APIConnectionError):  # what comes late in a process is there before the fork
    create_anytime_graph(model("http://127.0.0.1:9"), budget=Budget(tokens=9_999)).compile()
    model("http://127.0.0.1:9").invoke("")


def command(words: list[str], folder: str, variables: dict[str, str]) -> None:
    """Run the command line in a folder; ends with its exit code."""
    from anytime_graph.cli import main

    os.chdir(folder)
    os.environ.update(variables)
    main(words)


def program(
    code: str | list[str], folder: str, variables: dict[str, str], stdout: str = "stdout"
) -> None:
    """Run a program, or the command line with these words, its input and output in files in the
    folder."""
    for number, name in enumerate(("stdin", stdout, "stderr")):
        how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
        os.dup2(os.open(os.path.join(folder, name), how), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    warnings.simplefilter("error")
    if address := variables.get(EMBEDDED):
        local._server = lambda *of: SimpleNamespace(listening_address=address)  # type: ignore[assignment]
    if isinstance(code, list):
        command(code, folder, variables)
    os.chdir(folder)
    os.environ.update(variables)
    with open("program.py", "w") as file:
        file.write(code)
    runpy.run_path("program.py", run_name="__main__")
