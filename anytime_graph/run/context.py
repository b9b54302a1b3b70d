"""What an invocation brings besides its input: the context, and the thread that it runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import RunControl, get_runtime
from typing_extensions import TypedDict

from anytime_graph.budget import Budget
from anytime_graph.interrupt import StopSignal
from anytime_graph.run.calls import Chosen
from anytime_graph.text import meant

Invocation = tuple[Hashable, str]


class Context(TypedDict, total=False):
    """Settings of one invocation, which may also be kept with an assistant. All but `stop` is JSON.

    budget: for its questions, unless the input names one; a Budget or its dimensions.
    model: for its questions; a name among those that the graph was built with.
    strategy: for its questions, by name.
    namespace: whose preference pairs the memory recalls and remembers, such as [tenant, user];
        default: the empty namespace. Under LangGraph's authentication it is within the user's own.
    user, tenant, project: whose the questions are, for quotas and bills; other keys that a quota is per
        are told in the config's configurable. Under LangGraph's authentication these are read from the
        authenticated user alone.
    stop: an object with `is_set()`, such as a threading.Event. Once it is set, calls in flight are cut
        and the best answer so far is returned.
    """

    budget: Budget | dict[str, float] | None
    model: str | None
    strategy: str | None
    namespace: Any
    user: str | None
    tenant: str | None
    project: str | None
    stop: Any


def context() -> Context:
    """The context of the invocation that this node belongs to."""
    settings = get_runtime(Context).context
    return settings if isinstance(settings, dict) else {}  # a parent graph's may be of another type


def check_context(given: Any) -> None:
    """Raises ValueError for a context with settings that nothing would read."""
    names = sorted(Context.__annotations__)
    if not (given is None or isinstance(given, Mapping)):
        raise ValueError(f"context={type(given).__name__}: a dict is needed, of {', '.join(names)}")
    refuse_unknown("a context", given or (), names)
    if (stop := (given or {}).get("stop")) is not None and not hasattr(stop, "is_set"):
        raise ValueError(f"context stop={stop!r:.40}: an object with is_set() is needed")


def refuse_unknown(what: str, given: Iterable[Any], names: Sequence[str]) -> None:
    """Raises ValueError for the first name that is not known. what: whose names these are."""
    for name in given:
        if name not in names:
            kind = what.rpartition(" ")[2]
            raise ValueError(f"{kind} {name!r}: {meant(name, names)}{what} has {', '.join(names)}")


def user() -> str | None:
    """The user whom LangGraph's server has authenticated."""
    server = get_runtime(Context).server_info
    return server.user.identity if server and server.user else None


def owner(known: str | None) -> str | None:
    """The authenticated user whose thread it is. known: what its state says. Raises PermissionError if it is
    another user's."""
    here = user()
    if here is not None and known not in (None, here):
        raise PermissionError("thread: it belongs to another user")
    return here if known is None else known


def served() -> bool:
    """Whether LangGraph's server runs the graph, for clients that send input and context."""
    return get_runtime(Context).server_info is not None


def told(name: str, otherwise: Mapping[str, Any] | None = None) -> str | None:
    """The value of a key, such as "user" or "tenant", that quotas and bills are by; None if it is not
    told. Once LangGraph's server has authenticated a user, only that object counts, for the rest is a
    client's word. Before that, the context and the config's configurable do. otherwise: what counts
    after those, and outside a graph."""
    holders: list[tuple[Any, str]] = [(otherwise, name)]
    with suppress(RuntimeError, KeyError):  # outside a graph
        runtime, named = get_runtime(Context), get_config().get("configurable")
        holders = [(getattr(runtime, "context", None), name), (named, name), *holders]
        server = getattr(runtime, "server_info", None)  # in a chain there is no runtime
        if server and (known := server.user):
            holders = [(known, "identity" if name == "user" else name)]
    return next((value for held in holders if (value := _value(*held)) is not None), None)


def _value(holder: Any, name: str) -> str | None:
    """What an object or a mapping has by this name, if it can be the value of a key."""
    value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
    if value is None and hasattr(holder, "__getitem__") and not isinstance(holder, Mapping):
        with suppress(LookupError, TypeError):
            value = holder[name]
    return str(value) if isinstance(value, str | int) and str(value) else None


def chosen() -> Chosen:
    """The model and strategy that the context names, as plain data. Raises ValueError for anything but
    names."""
    settings, names = context(), Chosen()
    for key in ("model", "strategy"):
        if (name := settings.get(key)) is not None:
            if not isinstance(name, str):
                raise ValueError(f"context {key}={name!r}: its name is needed")
            names[key] = name
    return names


def stop_signal() -> StopSignal | None:
    return cast("StopSignal | None", context().get("stop"))


def invocation() -> Invocation | None:
    """A key that all nodes of one invocation of a graph share, and no other invocation has at the same
    time; None outside a graph."""
    try:
        runtime = get_runtime()
    except (RuntimeError, KeyError):
        return None
    info = runtime.execution_info if runtime else None
    return (key_of(runtime.control), info.checkpoint_ns.rpartition("|")[0]) if info else None


def around(here: Invocation) -> Iterator[Invocation]:
    """The invocations that one runs in, the innermost first. Those that a node makes beside its first one
    have a number: "tools:6a|1" is within "", as "tools:6a" is."""
    control, space = here
    while space:
        numbered, _, name = space.rpartition("|")
        if not name.isdigit():
            yield control, numbered
        space = numbered


class Undrained(RunControl):
    """The control of a graph that LangGraph does not stop when its caller asks for a drain: it ends by
    itself, with its best answer. Each invocation has one of its own, also if callers give the same
    control to several. around: what the caller asks. key: what tells the invocation from others; within a
    parent graph it is the parent's."""

    __slots__ = ("around", "key")

    def __init__(self, around: RunControl, within: Hashable = None) -> None:
        super().__init__()
        self.around = around
        self.key = within or self

    def request_drain(self, reason: str = "shutdown") -> None:
        self.around.request_drain(reason)


def asked_of(control: RunControl | None) -> RunControl | None:
    """The control that callers know."""
    return control.around if isinstance(control, Undrained) else control


def key_of(control: RunControl | None) -> Hashable:
    """What tells the invocation under a control from others that run at the same time."""
    return control.key if isinstance(control, Undrained) else control


def drained() -> bool:
    """Whether the invocation was asked to end at the next step."""
    control = asked_of(get_runtime().control)
    return control is not None and control.drain_requested


def resumable(config: RunnableConfig) -> bool:
    """Whether a checkpointer keeps the run that a node belongs to."""
    return bool((config.get("configurable") or {}).get("__pregel_checkpointer"))


def root(config: RunnableConfig) -> str | None:
    """LangGraph's id of the thread."""
    thread_id = (config.get("configurable") or {}).get("thread_id")
    return None if thread_id is None else str(thread_id)


def thread_of(config: RunnableConfig, digest: str) -> str | None:
    """The ledger's name for a thread: LangGraph's id. Within a parent graph, several questions may run at
    once, so the node's path and the question's digest follow: "t1/research/ask#0a1b2c3d4e5f". None
    without a thread id."""
    top = root(config)
    spaces = str((config.get("configurable") or {}).get("checkpoint_ns") or "").split("|")[:-1]
    path = "/".join(space.partition(":")[0] for space in spaces)
    return f"{top}/{path}#{digest[:12]}" if top and path else top
