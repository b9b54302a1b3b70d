"""LangGraph's suite for checkpointers finds no fault with ours that its own do not have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.report import ProgressCallbacks
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from anytime_graph import open_checkpoints
from tests.kit.postgres import fresh

Saver = BaseCheckpointSaver[Any]


@asynccontextmanager
async def ours(target: str) -> AsyncIterator[Saver]:
    async with open_checkpoints(target) as store:
        yield store.saver


@asynccontextmanager
async def langgraphs(target: str) -> AsyncIterator[Saver]:
    kind = AsyncPostgresSaver if target.startswith("postgresql:") else AsyncSqliteSaver
    async with kind.from_conn_string(target) as saver:
        await saver.setup()
        yield saver


def verdicts(
    opened: Callable[[str], AbstractAsyncContextManager[Saver]], target: str
) -> dict[str, str | None]:
    """The suite's tests for what the saver can do, and the error of each that failed."""
    errors: dict[str, str | None] = {}

    @checkpointer_test(name=opened.__name__)
    async def saver() -> AsyncIterator[Saver]:
        async with opened(target) as fresh_saver:
            yield fresh_saver

    def note(capability: str, test: str, passed: bool, error: str | None) -> None:
        errors[f"{capability}: {test}"] = None if passed else str(error)

    asyncio.run(validate(saver, progress=ProgressCallbacks(on_test_result=note)))
    return errors


def check(target: str, other: str) -> None:
    """Whatever passes with LangGraph's saver on `other` passes with ours on `target`."""
    passed = [test for test, error in verdicts(langgraphs, other).items() if error is None]
    found = verdicts(ours, target)
    assert passed
    assert {test: found.get(test, "not offered") for test in passed} == dict.fromkeys(passed)


def test_sqlite(tmp_path: Path) -> None:
    check(str(tmp_path / "ours.db"), str(tmp_path / "plain.db"))


def test_postgres(postgres: str, database: str) -> None:
    with fresh(postgres) as other:
        check(database, other)
