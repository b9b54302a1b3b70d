"""The compiled graph, with what happens before and after each of its invocations.

Before: settings that nothing would read are refused, and what no client may write; a budget in the
input becomes plain data, which any saver can store. After: the thread is released, even if the
invocation failed or was abandoned.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, cast, overload

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import merge_configs
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.config import get_config
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import RunControl, Runtime
from langgraph.types import Command, Durability, StateSnapshot, StateUpdate

from anytime_graph.budget import Budget
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.schema import KEYS
from anytime_graph.planning.setup import Setups
from anytime_graph.run.context import (
    Context,
    Undrained,
    asked_of,
    check_context,
    key_of,
    refuse_unknown,
)
from anytime_graph.run.state import Input, Output, State
from anytime_graph.text import meant

log = logging.getLogger(__name__)

_LANGGRAPHS = (
    *("thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map"),
    *("run_id", "assistant_id", "graph_id", "user_id"),
)
"""Names in `configurable` that LangGraph and its server use."""
_SERVERS = ("assistant_id", "graph_id", "langgraph_auth_user")
"""Those of them by which LangGraph tells that its server runs a graph."""
_PREFIXES = ("__", "langgraph_", "x-")
_LEVELS = 16
"""Levels of a state above an input. A serializer takes some 250."""
_INTERRUPT = re.compile("[0-9a-f]{32}")
"""The id of an interrupt."""
_warned: set[str] = set()
_WARNINGS = 100
"""Names that a process warns of: a server's clients may send any number."""


class AnytimeGraph(StateGraph[State, Context, Input, Output]):
    """The graph before it is compiled."""

    ledger: Ledger | None = None
    setups: Setups

    def compile(
        self, checkpointer: bool | BaseCheckpointSaver[Any] | None = None, **options: Any
    ) -> CompiledAnytimeGraph:
        app = super().compile(checkpointer, **options)
        app.__class__ = CompiledAnytimeGraph
        return cast(CompiledAnytimeGraph, app)


class CompiledAnytimeGraph(CompiledStateGraph[State, Context, Input, Output]):
    """`invoke` and `ainvoke` read these streams, so every invocation ends in one of them."""

    @property
    def _ledger(self) -> Ledger | None:
        return cast(AnytimeGraph, self.builder).ledger

    @overload  # type: ignore[override]  # LangGraph's own type of a result is Any
    def invoke(
        self,
        input: Input | Command[Any] | None,
        config: RunnableConfig | None = None,
        *,
        context: Context | None = None,
        durability: Durability | None = None,
    ) -> Output: ...
    @overload
    def invoke(
        self,
        input: Input | Command[Any] | None,
        config: RunnableConfig | None = None,
        *,
        context: Context | None = None,
        **options: Any,
    ) -> Any: ...
    def invoke(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Any:
        return super().invoke(input, config, **options)

    @overload  # type: ignore[override]
    async def ainvoke(
        self,
        input: Input | Command[Any] | None,
        config: RunnableConfig | None = None,
        *,
        context: Context | None = None,
        durability: Durability | None = None,
    ) -> Output: ...
    @overload
    async def ainvoke(
        self,
        input: Input | Command[Any] | None,
        config: RunnableConfig | None = None,
        *,
        context: Context | None = None,
        **options: Any,
    ) -> Any: ...
    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **options: Any
    ) -> Any:
        return await super().ainvoke(input, config, **options)

    def stream(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        control: RunControl | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        given, belongs = self._admitted(input, config, control, options)
        _refuse_one_thread(merge_configs(self.config, config), options)
        try:
            yield from super().stream(self._kept(input), config, **given)
        finally:
            if (ledger := self._ledger) is not None:
                ledger.end(belongs)

    async def astream(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        control: RunControl | None = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        given, belongs = self._admitted(input, config, control, options)
        parts = cast(Any, super().astream(self._kept(input), config, **given))
        try:
            async with aclosing(parts):
                async for part in parts:
                    yield part
        finally:
            if (ledger := self._ledger) is not None:
                await asyncio.shield(asyncio.to_thread(ledger.end, belongs))

    def _kept(self, input: Any) -> Any:
        """The input as the saver can store it. Raises ValueError before anything is paid: LangGraph finds out
        at the end of a run, and loses it."""
        saver, input = self.checkpointer, _plain(input)
        return _storable(input, saver.serde) if isinstance(saver, BaseCheckpointSaver) else input

    def _admitted(
        self,
        input: Any,
        config: RunnableConfig | None,
        control: RunControl | None,
        options: Mapping[str, Any],
    ) -> tuple[dict[str, Any], Callable[[Hashable], bool]]:
        """The options with the control that the invocation runs under, and the test from `_identified`.
        Raises ValueError for an input or settings that are refused."""
        under, belongs, nested = _identified(config, control)
        if not nested:
            _refuse_writes([input], self.config, config)
        _check(self.config, config, options.get("context"), nested, self._ledger is not None)
        # If a drain was requested before it began, LangGraph does not let it begin.
        return {
            **options,
            "control": under.around if under.around.drain_requested else under,
        }, belongs

    def bulk_update_state(
        self, config: RunnableConfig, supersteps: Sequence[Sequence[StateUpdate]]
    ) -> RunnableConfig:
        _refuse_writes([update.values for step in supersteps for update in step], config)
        steps = _planned_anew(supersteps, self.get_state(config))
        return super().bulk_update_state(config, steps)

    async def abulk_update_state(
        self, config: RunnableConfig, supersteps: Sequence[Sequence[StateUpdate]]
    ) -> RunnableConfig:
        _refuse_writes([update.values for step in supersteps for update in step], config)
        steps = _planned_anew(supersteps, await self.aget_state(config))
        return await super().abulk_update_state(config, steps)


def _refuse_one_thread(config: RunnableConfig, options: Mapping[str, Any]) -> None:
    """LangGraph's sync stream of these waits for their parts in one of the threads that nodes run in. If
    there is one, no node ever runs."""
    modes = options.get("stream_mode") or ()
    waits = {"custom", "messages"} & ({modes} if isinstance(modes, str) else {*modes})
    if config.get("max_concurrency") == 1 and (waits or options.get("subgraphs")):
        raise ValueError(
            "max_concurrency=1: a sync stream of 'custom', 'messages' or subgraphs takes one thread for "
            "itself; give 2, or use astream"
        )


def _refuse_writes(updates: Sequence[Any], *configs: RunnableConfig | None) -> None:
    """Under LangGraph's server, where updates come from clients: refuse those of other channels than the
    input's, which are the books of a run, and calls of its nodes."""
    given = _configurable(*configs)
    if all(given.get(name) is None for name in _SERVERS):
        return
    for update in updates:
        if isinstance(update, Command):
            if update.goto:
                raise ValueError("command goto: the graph itself plans what comes next")
            update = update.update
        refuse_unknown("an input", _channels(update), sorted(Input.__annotations__))


def _planned_anew(
    supersteps: Sequence[Sequence[StateUpdate]], before: StateSnapshot
) -> list[list[StateUpdate]]:
    """The updates of a run that has not ended as of a spoke, after which the hub plans what comes next.
    LangGraph would take them for the hub's own, and forget what it had planned."""
    going = bool(before.next) and "run_id" in before.values
    return [
        [
            update._replace(as_node="draft")
            if going and update.as_node is None and update.values is not None
            else update
            for update in step
        ]
        for step in supersteps
    ]


def _channels(update: Any) -> list[Any]:
    """The names of channels in an update: a mapping, or pairs of name and value as in commands."""
    if isinstance(update, Mapping):
        return list(update)
    items = update if isinstance(update, list | tuple) else ()
    return [item[0] for item in items if isinstance(item, list | tuple) and len(item) == 2]


def _configurable(*configs: RunnableConfig | None) -> dict[str, Any]:
    """`configurable` of all, of which the last counts most."""
    return {k: v for each in configs for k, v in ((each or {}).get("configurable") or {}).items()}


def _plain(input: Any) -> Any:
    """The input without what LangGraph's serializer does not know, or LangGraph itself does not take. A
    command with nothing in it is one that was resumed with None."""
    if isinstance(input, Command):
        if input == Command():
            return Command(resume=_grant(None))
        if isinstance(resume := input.resume, dict):
            by_id = {k: _grant(v) if _INTERRUPT.fullmatch(k) else v for k, v in resume.items()}
            return replace(input, resume=by_id)
        return input if resume is None else replace(input, resume=_grant(resume))
    if isinstance(input, dict) and isinstance(budget := input.get("budget"), Budget):
        return {**input, "budget": budget.limits()}
    return input


def _storable(input: Any, serde: SerializerProtocol) -> Any:
    """The input without the details of messages that cannot be stored. Raises ValueError for other parts."""
    if _stores(serde, input):
        return input
    update = input.update if isinstance(input, Command) else input
    if isinstance(update, Mapping) and "messages" in update:
        given = update["messages"]
        several = isinstance(given, list | tuple)
        kept = [_message(m, at, serde) for at, m in enumerate(given if several else [given])]
        update = {**update, "messages": kept if several else kept[0]}
        input = replace(input, update=update) if isinstance(input, Command) else update
    if not _stores(serde, input):
        raise ValueError("input: a part of it cannot be stored by the checkpointer; leave it out")
    return input


def _message(message: Any, at: int, serde: SerializerProtocol) -> Any:
    """A message without those of its details that cannot be stored."""
    if _stores(serde, message):
        return message
    if not isinstance(message, BaseMessage):
        raise ValueError(
            f"messages[{at}]: the checkpointer cannot store it; give a message, or text"
        )
    less: dict[str, Any] = {}
    for name in ("response_metadata", "additional_kwargs"):
        details = getattr(message, name)
        kept = {key: value for key, value in details.items() if _stores(serde, {key: value})}
        if lost := [repr(key) for key in details if key not in kept]:
            less[name] = kept
            log.warning(
                "messages[%d]: the checkpointer cannot store %s of %s, which is left out",
                *(at, ", ".join(lost), name),
            )
    if not _stores(serde, getattr(message, "artifact", None)):
        less["artifact"] = None
        log.warning(
            "messages[%d]: the checkpointer cannot store its artifact, which is left out", at
        )
    message = message.model_copy(update=less)
    if not _stores(serde, message):
        raise ValueError(f"messages[{at}]: the checkpointer cannot store its content")
    return message


def _stores(serde: SerializerProtocol, value: Any) -> bool:
    """Whether a saver could write the value, also some levels deeper in a state."""
    for _ in range(_LEVELS):
        value = [value]
    try:
        serde.dumps_typed(value)
    except Exception:  # of the value's own code, and of the serializer's
        return False
    return True


def _grant(resume: Any) -> Any:
    """A human's answer as plain data: a budget, or a word for None, which LangGraph takes for no answer."""
    if resume is None:
        return "stop"
    return resume.limits() if isinstance(resume, Budget) else resume


def _check(
    bound: RunnableConfig | None,
    config: RunnableConfig | None,
    context: Any,
    nested: bool,
    keyed: bool,
) -> None:
    """Refuse settings that nothing would read, and warn once of those that only others may read. Within a
    parent graph, `configurable` is the parent's. keyed: any name may be a key of a quota."""
    check_context(context)
    given = _configurable(bound, config)
    for name in () if nested else given:
        if name in KEYS:
            continue
        if name in Context.__annotations__:
            if given[name] != (context or {}).get(name):  # the server gives it in both
                raise ValueError(
                    f"configurable {name}={given[name]!r}: give it as context={{{name!r}: ...}}"
                )
        elif len(_warned) < _WARNINGS and not (
            keyed or name in (*_LANGGRAPHS, *_warned) or name.startswith(_PREFIXES)
        ):
            _warned.add(name)
            log.warning(
                "configurable %r: %snot read by this graph, whose settings are given as context={...}",
                name,
                meant(name, (*_LANGGRAPHS, *KEYS, *Context.__annotations__)),
            )


def _identified(
    config: RunnableConfig | None, control: RunControl | None
) -> tuple[Undrained, Callable[[Hashable], bool], bool]:
    """The control of an invocation, a test for whether a life belongs to it (see run.context.Invocation),
    and whether there is a graph around. Within a parent graph, invocations share its key and differ in
    their namespace."""
    settings = (config or {}).get("configurable")
    if settings is None:
        with suppress(RuntimeError):
            settings = get_config().get("configurable")
    runtimes = [value for value in (settings or {}).values() if isinstance(value, Runtime)]
    parent = runtimes[0].control if runtimes else None
    space = str((settings or {}).get("checkpoint_ns") or "") if parent else ""
    asked = asked_of(control) or asked_of(parent) or RunControl()
    own = Undrained(asked, within=key_of(parent))

    def belongs(life: Any) -> bool:
        return bool(life[0] is own.key and life[1].startswith(space))

    return own, belongs, bool(runtimes)
