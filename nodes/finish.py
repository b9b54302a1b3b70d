"""Return the best answer as the run's last message."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, RemoveMessage

from anytime_graph.run.state import State


def answer(state: State) -> dict[str, Any]:
    """The update that ends a run: the best answer as the last message. It replaces an earlier answer
    to the same question."""
    best = state["best"]
    assert best is not None, "a run without an answer ends in NoAnswer"
    message = AIMessage(
        best["answer"],
        id=best["message_id"] or f"{state['run_id']}-{best['id']}",
        response_metadata={"stop_reason": state["stop_reason"], "score": best["score"]},
    )
    messages: list[AnyMessage | RemoveMessage] = [message]
    if state["answer_id"] not in (None, message.id):
        messages.insert(0, RemoveMessage(str(state["answer_id"])))
    return {
        "messages": messages,
        "answer_id": message.id,
        "stop_reason": state["stop_reason"],
        "stop_estimate": state["stop_estimate"],
    }
