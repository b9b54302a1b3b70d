"""A provider that shows a budget of tokens to its model is told of the agent's, and the cap holds all the same."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from anytime_graph import Budget
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.loopback import Handler, listening
from tests.kit.wires import Sent, Wire, anthropic, speaking

pytestmark = pytest.mark.skipif(find_spec("langchain_anthropic") is None, reason="no Anthropic")
QUESTION: Any = {"messages": [("user", "Why do rivers bend?")]}


@tool
def remove(name: str) -> str:
    """Remove something."""
    return "removed"


def asked(model: Any, tokens: int, **more: Any) -> Any:
    budget = TokenBudgetMiddleware(Budget(tokens=tokens), **more)
    return create_agent(model, [remove], middleware=[budget]).invoke(QUESTION)


@pytest.mark.parametrize("own", [None, {"effort": "low"}])
def test_the_budget_is_sent_along_where_it_is_asked_for(own: Any) -> None:
    with speaking() as wire:
        wire.send, wire.reply = anthropic, Sent(pieces=['{"name": "a"}'], finish="tool_use")
        model = wire.model().model_copy(update={"output_config": own})
        out = asked(model, 30_000, advise=True)
        assert out["stop_reason"] == "done"
        assert len(wire.requests) == 2
        for request in wire.requests:
            advice = {"task_budget": {"type": "tokens", "total": 30_000}}
            assert request["output_config"] == {**(own or {}), **advice}
            assert request["max_tokens"] < 30_000
        wire.requests.clear()
        for tokens, more in ((30_000, {}), (19_999, {"advise": True})):
            asked(model, tokens, **more)
        assert all(request.get("output_config") == own for request in wire.requests)


def test_a_server_that_refuses_it_is_not_sent_it_again() -> None:
    requests: list[Any] = []

    class Answering(Handler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append("task_budget" in str(request))
            kind, body = anthropic(Sent())
            if requests[-1]:
                error = {"type": "invalid_request_error", "message": "task_budget: not supported"}
                kind, body = "application/json", json.dumps({"error": error}).encode()
            self.send_response(400 if requests[-1] else 200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with listening(Answering) as url:
        model = Wire(url, send=anthropic).model()
        for _ in range(2):
            assert asked(model, 30_000, advise=True)["stop_reason"] == "done"
    assert requests == [True, False, False]
