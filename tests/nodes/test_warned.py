"""A run says when a part of its budget is used, once for each part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import Budget, create_anytime_graph
from anytime_graph.budget import used
from tests.kit.server import Server, by_place, serving

ASK: Any = {"messages": [("user", "Name a river.")]}
ON: Any = {"configurable": {"thread_id": "1"}}
PARTS = (0.8, 0.25, 0.5)


@settings(max_examples=6, deadline=None)
@given(calls=st.integers(1, 12), pauses=st.booleans(), more=st.integers(0, 12))
def test_each_part_of_the_budget_is_said_once_also_after_a_pause(
    calls: int, pauses: bool, more: int
) -> None:
    """Each part of the run is a graph of its own over the checkpoints, as in another process."""
    saver, before = InMemorySaver(), ["budget"] if pauses else None
    with serving() as server:
        server.script = by_place

        def part(given: Any) -> list[dict[str, Any]]:
            graph = create_anytime_graph(
                server.model(seed=0),
                budget=Budget(calls=calls, tokens=10**6),
                scorer=lambda question, answer: 0.5,
                strategy="best_of_n",
                warn_at=PARTS,
            )
            app = graph.compile(saver, interrupt_before=before)
            events = [e for e in app.stream(given, ON, stream_mode="custom") if "used" in e]
            while app.get_state(ON).next:
                again = app.stream(None, ON, stream_mode="custom")
                events += [e for e in again if "used" in e]
            return events

        events = part(ASK)
        assert [e["used"] for e in events] == sorted(PARTS)
        if more:
            began = calls / (calls + more)
            events = part({"budget": {"calls": more}})
            assert [e["used"] for e in events] == [p for p in sorted(PARTS) if p > began]
        for event in events:
            rest = event["remaining"]
            limits = {d: rest[d] + event["spent"][d] for d in rest}
            assert event["used"] <= used(limits, event["spent"])
        assert len(server.calls) == calls + more


@pytest.mark.parametrize("wrong", [(0,), (1.5,), (True,), ("half",)])
def test_a_part_that_is_none_is_named(server: Server, wrong: Any) -> None:
    with pytest.raises(ValueError, match="warn_at="):
        create_anytime_graph(server.model(), warn_at=wrong)
