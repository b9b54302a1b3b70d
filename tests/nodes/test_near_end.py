"""Near the end of the budget a cheaper model answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import Budget, Draft, NearEnd, Prices, Until, create_anytime_graph
from tests.kit.server import Reply, Server, by_place, serving

ASK: Any = {"messages": [("user", "Name a river.")]}
ON: Any = {"configurable": {"thread_id": "1"}}
DEAR, CHEAP = Prices(input=4.0, output=16.0), Prices(input=0.1, output=0.4)


def cheap(server: Server) -> Any:
    return server.model(seed=0).model_copy(update={"model_name": "cheap"})


def models(server: Server) -> list[str]:
    return [call.request["model"] for call in server.settled().calls]


@settings(max_examples=5, deadline=None)
@given(calls=st.integers(3, 12), at=st.sampled_from([0.3, 0.5, 0.8]), pauses=st.booleans())
def test_what_is_left_goes_to_the_cheaper_model_also_after_a_pause(
    calls: int, at: float, pauses: bool
) -> None:
    saver = InMemorySaver()
    with serving() as server:
        server.script = by_place

        def one_by_one() -> Any:
            graph = create_anytime_graph(
                server.model(seed=0),
                budget=Budget(calls=calls, usd=1.0),
                prices=DEAR,
                scorer=lambda question, answer: 0.5,
                strategy=lambda view: [Draft()],
                near_end=NearEnd(cheap(server), at=at, prices=CHEAP),
            )
            return graph.compile(saver, interrupt_before=["budget"] if pauses else None)

        out = one_by_one().invoke(ASK, ON)
        while one_by_one().get_state(ON).next:
            out = one_by_one().invoke(None, ON)
        expected = ["cheap" if made / calls >= at else "scripted" for made in range(calls)]
        assert models(server) == expected
        prices = {"scripted": DEAR, "cheap": CHEAP}
        usd = sum(prices[c.request["model"]].usd(c.prompt, c.output) for c in server.calls)
        assert out["spent"]["usd"] == pytest.approx(usd)


@pytest.mark.parametrize("at", [0.8, 1])
def test_the_call_that_forces_an_answer_is_near_the_end(server: Server, at: float) -> None:
    server.script = lambda request, i: Reply(text="so " * 4_000 if i == 0 else "<answer>x</answer>")
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=1_500),
        strategy="single",
        near_end=NearEnd(cheap(server), at=at),
    ).compile()
    out = app.invoke(ASK)
    assert (models(server), out["best"]["answer"]) == (["scripted", "cheap"], "x")
    assert server.served <= out["spent"]["tokens"] <= 1_500


def test_a_run_without_a_budget_is_never_near_its_end(server: Server) -> None:
    server.script = by_place
    app = create_anytime_graph(
        server.model(seed=0),
        until=Until(target=0.9),
        scorer=lambda question, answer: int(answer) / 9,
        near_end=NearEnd(cheap(server), at=0.01),
    ).compile()
    app.invoke(ASK)
    assert set(models(server)) == {"scripted"}


def test_wrong_settings_are_named_and_prices_are_needed(server: Server) -> None:
    with pytest.raises(ValueError, match="near_end at=2"):
        NearEnd("local", at=2)
    with pytest.raises(ValueError, match="near_end prices=3"):
        NearEnd("local", prices=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the price of 'cheap' is not known"):
        create_anytime_graph(
            server.model(), budget=Budget(usd=1), prices=DEAR, near_end=cheap(server)
        )
