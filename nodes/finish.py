"""Return the best answer as the run's last message."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, RemoveMessage
from pydantic import BaseModel

from anytime_graph.interrupt import contained
from anytime_graph.run.pairs import Candidate
from anytime_graph.run.state import State


def answer(state: State, schema: type[BaseModel] | None) -> dict[str, Any]:
    """The update that ends a run: the best answer as the last message. It replaces an earlier answer
    to the same question. schema: of which the answer is an instance, if it is complete."""
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
        "structured_response": None if schema is None else _instance(schema, best),
        "messages": messages,
        "answer_id": message.id,
        "stop_reason": state["stop_reason"],
        "stop_estimate": state["stop_estimate"],
    }


def _instance(schema: type[BaseModel], best: Candidate) -> BaseModel | None:
    """The best answer as the caller's model; None if it does not fit, as when the model has changed
    since the answer was found."""
    if not best["complete"]:
        return None
    try:
        with contained():
            return schema.model_validate_json(best["answer"])
    except Exception:  # validators are the caller's code
        return None
