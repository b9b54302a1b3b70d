"""Asking a human for more, by LangGraph's `interrupt`, once a budget is used up."""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.runnables import RunnableConfig
from langgraph.types import interrupt
from typing_extensions import TypedDict

from anytime_graph.budget import Budget, Limits, Spend, grant_of
from anytime_graph.run.context import resumable


class Asked(TypedDict):
    """The value of the interrupt with which a graph or an agent asks for more. stop_reason: the dimension
    that is used up, or "judge" for the judge's share. answer: the best so far, or an agent's latest words.
    spent, limits: of the run. fault: why the human's last answer did not do, if there was one."""

    stop_reason: str
    answer: str
    spent: Spend
    limits: Limits
    fault: str | None


def check_resumable(config: RunnableConfig) -> None:
    """Raise ValueError if nothing keeps the run while a human is asked."""
    if not resumable(config):
        raise ValueError(
            "on_exhausted='ask': who is asked needs a checkpointer, as checkpointer=InMemorySaver() "
            "of compile or create_agent"
        )


def granted(asked: Asked, allowed: Callable[[Budget], Budget] | None = None) -> Limits | None:
    """What a human grants; None to end. Asks again after an answer that does not do. allowed: raises
    ValueError for a budget that may not be asked for. For a node of its own, which buys nothing, because
    a node that is resumed runs again from its start."""
    while True:
        answer = interrupt(asked)
        try:
            more = grant_of(answer, asked["limits"], asked["stop_reason"])
            if more is None:
                return None
            return (allowed(more) if allowed else more).limits()
        except ValueError as error:
            asked = {**asked, "fault": str(error)}
