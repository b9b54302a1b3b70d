"""How long tools may take: one that needs more time than is left is not begun, and none holds up a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.tools import BaseTool

from anytime_graph.interrupt import TimeIsUp, athread


def check_time(tool: BaseTool | None, left: float | None) -> None:
    """Raises TimeIsUp if the tool cannot end in the seconds that are left, by what its metadata says, as
    in `tool.metadata = {"seconds": 30}`."""
    if left is None:
        return
    if left <= 0:
        raise TimeIsUp
    told: Mapping[str, Any] = (tool and tool.metadata) or {}
    needed = told.get("seconds")
    if isinstance(needed, int | float) and needed > left:
        raise TimeIsUp(f"it takes {needed:g} seconds, and {left:.1f} are left")


def abandonable(tool: BaseTool) -> BaseTool:
    """The tool so that `ainvoke` of a sync one runs in a thread that nothing waits for. LangChain would
    run it in the event loop's pool, whose threads are waited for when the loop or the process ends."""
    has_own = getattr(tool, "coroutine", None) is not None
    if has_own or ("coroutine" not in vars(tool) and type(tool)._arun is not BaseTool._arun):
        return tool

    async def ainvoke(input: Any, config: Any = None, **kwargs: Any) -> Any:
        return await athread(tool.invoke, input, config, **kwargs)

    copy = tool.model_copy()
    vars(copy)["ainvoke"] = ainvoke
    return copy
