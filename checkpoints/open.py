"""`open_checkpoints`: LangGraph's saver and the ledger, over the same file or database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple

from anytime_graph.budget import BudgetTooSmall, NoAnswer, restored_error, stored_error
from anytime_graph.checkpoints import postgres, sqlite
from anytime_graph.checkpoints.ledger import Ledger
from anytime_graph.checkpoints.schema import LedgerError
from anytime_graph.checkpoints.serializer import DataSerializer, strict
from anytime_graph.checkpoints.store import plain, storable
from anytime_graph.checkpoints.target import check_target, is_address
from anytime_graph.run.forms import refuse_newer
from anytime_graph.run.upgrade import CHANNEL, STATE

Record = Literal["all", "usage"]
Writes = Sequence[tuple[str, Any]]

_ENCRYPTED = ("Unknown serialization type", "MAC check failed")
"""What a serializer says that has no key, or another one."""


@dataclass(frozen=True)
class Checkpoints:
    """saver: to compile the graph with. ledger: to create it with."""

    saver: BaseCheckpointSaver[Any]
    ledger: Ledger


def open_checkpoints(target: str | Path, *, record: Record = "all", serde: Any = None) -> _Opening:
    """Open a SQLite file (made if it is not there, readable by its owner only) or a PostgreSQL
    database ("postgresql://..."), with `with` for sync graphs or `async with` for async ones.

    record: "usage" keeps neither prompts, questions nor answers in the ledger.
    serde: LangGraph's serializer for the checkpoints, such as its EncryptedSerializer. By default one
        that makes only objects that hold data, of modules that this process has imported.

    Raises LedgerError, which says what is wrong and what to do; ImportError without the extra
    (`sqlite` or `postgres`); ValueError for another `record`, or what is no file and no address.
    """
    return _Opening(target, record, serde)


class _Opening:
    def __init__(self, target: str | Path, record: Record, serde: Any) -> None:
        check_target(target)
        self._remote = is_address(target)
        if record not in get_args(Record):  # before anything is opened
            raise ValueError(f"record={record!r}: 'all' or 'usage'")
        self._target, self._record, self._serde = target, record, serde

    def __enter__(self) -> Checkpoints:
        with ExitStack() as stack:
            ledger = self._ledger()
            stack.callback(ledger.close)
            saver = (_postgres_saver if self._remote else _sqlite_saver)(self, ledger)
            opened = Checkpoints(stack.enter_context(saver), ledger)
            self._stack = stack.pop_all()
        return opened

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    async def __aenter__(self) -> Checkpoints:
        async with AsyncExitStack() as stack:
            ledger = await asyncio.to_thread(self._ledger)
            stack.push_async_callback(asyncio.to_thread, ledger.close)
            saver = (_apostgres_saver if self._remote else _asqlite_saver)(self, ledger)
            opened = Checkpoints(await stack.enter_async_context(saver), ledger)
            self._astack = stack.pop_all()
        return opened

    async def __aexit__(self, *error: object) -> None:
        await self._astack.aclose()

    def serde(self, ledger: Ledger) -> Any:
        """The serializer of the checkpoints; None for LangGraph's own."""
        return self._serde or (None if strict() else DataSerializer(ledger.store.where))

    def _ledger(self) -> Ledger:
        if self._remote:
            return Ledger(postgres.PostgresStore(str(self._target)), self._record)
        try:
            import langgraph.checkpoint.sqlite  # noqa: F401 - before any file is made
        except ImportError:
            raise ImportError(
                "checkpoints in SQLite need: pip install 'anytime-graph[sqlite]'"
            ) from None
        return Ledger(sqlite.SqliteStore(self._target), self._record)


@contextmanager
def _sqlite_saver(opening: _Opening, ledger: Ledger) -> Iterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    connection = sqlite.connect(opening._target, autocommit=False)
    saver = _lasting(SqliteSaver, ledger)(connection, serde=opening.serde(ledger))
    try:
        with ledger.store.explained():
            saver.setup()
        yield saver
    finally:
        with saver.lock:  # closed in the midst of a statement, it would take the process with it
            connection.close()


@asynccontextmanager
async def _asqlite_saver(
    opening: _Opening, ledger: Ledger
) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    import aiosqlite
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with aiosqlite.connect(opening._target, timeout=sqlite.PATIENCE) as connection:
        saver = _lasting(AsyncSqliteSaver, ledger)(connection, serde=opening.serde(ledger))
        with ledger.store.explained():
            await saver.setup()
        try:
            yield saver
        finally:
            await saver.settled()


@contextmanager
def _postgres_saver(opening: _Opening, ledger: Ledger) -> Iterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres import PostgresSaver
    from psycopg_pool import ConnectionPool

    url = str(opening._target)
    with postgres.saver_pool(ConnectionPool, url) as pool:
        saver = _lasting(PostgresSaver, ledger)(pool, serde=opening.serde(ledger))
        with ledger.store.explained(), postgres.alone(url):
            saver.setup()
        yield saver


@asynccontextmanager
async def _apostgres_saver(
    opening: _Opening, ledger: Ledger
) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg_pool import AsyncConnectionPool

    url = str(opening._target)
    async with postgres.saver_pool(AsyncConnectionPool, url) as pool:
        saver = _lasting(AsyncPostgresSaver, ledger)(pool, serde=opening.serde(ledger))
        with ledger.store.explained():
            lock = postgres.alone(url)
            await asyncio.to_thread(lock.__enter__)
            try:
                await saver.setup()
            finally:
                await asyncio.to_thread(lock.__exit__, None, None, None)
        try:
            yield saver
        finally:
            await saver.settled()


def _lasting(saver: type[Any], ledger: Ledger) -> type[Any]:
    """LangGraph's saver as it is; but where it can no longer write while a run is under way, the
    ledger stops that run's spending, so that its answer comes back instead of an exception."""

    class Saver(saver):  # type: ignore[misc] # which class is known at run time only
        def get_tuple(self, config: RunnableConfig) -> Any:
            checked(config)
            with read():
                return readable(super().get_tuple(config))

        async def aget_tuple(self, config: RunnableConfig) -> Any:
            checked(config)
            with read():
                return readable(await super().aget_tuple(config))

        def list(self, *given: Any, **named: Any) -> Iterator[CheckpointTuple]:
            with read():
                yield from super().list(*given, **named)

        async def alist(self, *given: Any, **named: Any) -> AsyncIterator[CheckpointTuple]:
            with read():
                async for found in super().alist(*given, **named):
                    yield found

        def put(self, config: RunnableConfig, checkpoint: Checkpoint, *rest: Any) -> RunnableConfig:
            kept: RunnableConfig = _at(config, checkpoint)
            with write(config):
                ledger.writable(_thread(config))
                with ledger.store.turn():
                    kept = super().put(config, stored(checkpoint), *rest)
            return kept

        def put_writes(
            self, config: RunnableConfig, writes: Writes, *rest: Any, **named: Any
        ) -> None:
            with write(config):
                ledger.writable(_thread(config))
                with ledger.store.turn():
                    super().put_writes(config, with_errors(writes), *rest, **named)

        async def aput(
            self, config: RunnableConfig, checkpoint: Checkpoint, *rest: Any
        ) -> RunnableConfig:
            kept: RunnableConfig = _at(config, checkpoint)
            with write(config):
                await asyncio.to_thread(ledger.writable, _thread(config))
                kept = await whole(super().aput(config, stored(checkpoint), *rest))
            return kept

        async def aput_writes(
            self, config: RunnableConfig, writes: Writes, *rest: Any, **named: Any
        ) -> None:
            with write(config):
                await asyncio.to_thread(ledger.writable, _thread(config))
                await whole(super().aput_writes(config, with_errors(writes), *rest, **named))

        async def settled(self) -> None:
            """Wait for what is being written."""
            await asyncio.gather(*under_way, return_exceptions=True)

    @contextmanager
    def write(config: RunnableConfig) -> Iterator[None]:
        """A write within. If it fails while a run is under way, that run spends no more."""
        try:
            with ledger.store.explained():
                yield
        except LedgerError as error:
            ledger.give_up(_thread(config), error)

    def readable(found: CheckpointTuple | None) -> CheckpointTuple | None:
        """Refuse a later version's state before LangGraph writes anything behind it."""
        if found is None:
            return None
        if CHANNEL in (values := found.checkpoint["channel_values"]):
            what = f"{ledger.store.where}: the state of thread {_thread(found.config)!r}"
            refuse_newer(what, values[CHANNEL], len(STATE))
        writes = [(task, name, _error(value)) for task, name, value in found.pending_writes or ()]
        return found._replace(pending_writes=writes)

    def with_errors(writes: Writes) -> Writes:
        """LangGraph keeps a node's error as text, but whoever handles it needs what it spent: a process
        may die between a child's error and its parent's error handler."""
        kinds = (NoAnswer, BudgetTooSmall)
        return [
            (n, stored_error(value) if isinstance(value, kinds) else value) for n, value in writes
        ]

    @contextmanager
    def read() -> Iterator[None]:
        """A read within. LangGraph's savers serve either sync or async calls."""
        try:
            with ledger.store.explained():
                yield
        except (NotImplementedError, asyncio.InvalidStateError, ValueError) as error:
            if any(sign in str(error) for sign in _ENCRYPTED):
                raise LedgerError(
                    f"{ledger.store.where}: its checkpoints are encrypted; open it in Python with the "
                    "serde= that wrote them, key and all"
                ) from None
            if isinstance(error, ValueError):
                raise
            called, opened = "`invoke`, `stream`", "with"
            if isinstance(error, NotImplementedError):
                called, opened = "`ainvoke`, `astream`", "async with"
            raise LedgerError(
                f"{ledger.store.where}: for {called} and the like, open it with "
                f"`{opened} open_checkpoints(...) as store:`"
            ) from None

    def checked(config: RunnableConfig) -> None:
        """Refuse ids that cannot be written. LangGraph reads before a run pays for anything."""
        for name in ("thread_id", "checkpoint_ns"):
            storable(name, config["configurable"].get(name, ""))

    def stored(checkpoint: Checkpoint) -> Checkpoint:
        """PostgreSQL keeps short channels as JSON, which cannot hold every character."""
        if not isinstance(ledger.store, postgres.PostgresStore):
            return checkpoint
        values = checkpoint["channel_values"]
        texts = {name: plain(value) for name, value in values.items() if isinstance(value, str)}
        return {**checkpoint, "channel_values": {**values, **texts}}

    async def whole(writing: Coroutine[Any, Any, Any]) -> Any:
        """Write to the end even if the run is cancelled: a transaction that is left open would
        lock the file for everybody."""
        task = asyncio.create_task(writing)
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        return await asyncio.shield(task)

    under_way: set[asyncio.Task[Any]] = set()
    Saver.__name__ = Saver.__qualname__ = saver.__name__
    return Saver


def _error(value: Any) -> Any:
    """The error that a write holds, or the write."""
    return restored_error(value) if isinstance(value, dict) and "anytime_error" in value else value


def _thread(config: RunnableConfig) -> str:
    return str(config["configurable"]["thread_id"])


def _at(config: RunnableConfig, checkpoint: Checkpoint) -> RunnableConfig:
    place = {k: config["configurable"].get(k, "") for k in ("thread_id", "checkpoint_ns")}
    return {"configurable": {**place, "checkpoint_id": checkpoint["id"]}}
