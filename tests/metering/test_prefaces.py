"""A server that puts text of its own before each prompt is found out by its first report, and not overspent again."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import Budget, BudgetTooSmall, create_anytime_graph
from anytime_graph.metering import learned
from anytime_graph.middleware import TokenBudgetMiddleware
from anytime_graph.models import tokens
from anytime_graph.models.tokens import Tokenizer
from anytime_graph.planning.strategies import STRATEGIES
from tests.kit.marks import both, torture
from tests.kit.server import Reply, Server, serving

Q: Any = {"messages": [("user", "Why do rivers bend?")]}


def answers(request: dict[str, Any], i: int) -> Reply:
    return Reply(f"so <answer>erosion {i}</answer> it is")


def asked(
    server: Server, budget: int, sync: bool = True, together: int | None = None, **options: Any
) -> dict[str, Any]:
    """One question, with a scorer that no answer satisfies."""
    options["scorer"] = lambda question, answer: 0.5
    app = create_anytime_graph(server.model(), budget=Budget(tokens=budget), **options).compile()
    config: Any = {"recursion_limit": 500, "max_concurrency": together}
    out: Any = app.invoke(Q, config) if sync else asyncio.run(app.ainvoke(Q, config))
    assert out["spent"]["tokens"] == server.settled().served
    return out


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@given(
    preface=st.integers(300, 9_000),
    share=st.floats(0.2, 6),
    together=st.sampled_from([None, 1]),
    sync=st.booleans(),
)
@settings(max_examples=torture or 3)
def test_only_the_first_report_is_a_surprise(
    strategy: str, preface: int, share: float, together: int | None, sync: bool
) -> None:
    """Whether calls are side by side or one after another."""
    with serving() as server:
        server.script, server.preface = answers, preface
        for budget, surprise in ((500 + int(share * preface), preface), (2 * preface + 1_500, 0)):
            del server.calls[:]
            asked(server, budget, sync, together, strategy=strategy)
            assert 0 < server.served <= budget + surprise


@both
def test_an_agent_is_surprised_once(server: Server, sync: bool) -> None:
    """By the first of its calls; not by the next question of another user either."""

    def look(what: str) -> str:
        """Look something up."""
        return "found"

    steps = count()
    server.preface = 6_000
    server.script = lambda request, i: Reply("", tools=[("look", {"what": f"river {next(steps)}"})])
    for budget, surprise in ((20_000, 6_000), (20_000, 0)):
        del server.calls[:]
        agent = create_agent(
            server.model(), [look], middleware=[TokenBudgetMiddleware(Budget(tokens=budget))]
        )
        out = agent.invoke(Q) if sync else asyncio.run(agent.ainvoke(Q))
        assert out["spent"]["tokens"] == server.settled().served <= budget + surprise
        assert len(server.calls) == 3


def by_graph(server: Server, saver: InMemorySaver, budget: int) -> Any:
    how: Any = {"strategy": "best_of_n", "scorer": lambda question, answer: 0.5}
    return create_anytime_graph(server.model(), budget=Budget(tokens=budget), **how).compile(saver)


def by_agent(server: Server, saver: InMemorySaver, budget: int) -> Any:
    limit = TokenBudgetMiddleware(Budget(tokens=budget))
    return create_agent(server.model(), [], middleware=[limit], checkpointer=saver)


@pytest.mark.parametrize("door", [by_graph, by_agent])
def test_a_process_that_goes_on_knows_it_from_the_thread(server: Server, door: Any) -> None:
    server.script, server.preface, saver = answers, 4_000, InMemorySaver()
    on: Any = {"configurable": {"thread_id": "rivers"}}
    door(server, saver, 4_500).invoke(Q, on)
    learned.forget()
    del server.calls[:]
    with pytest.raises(BudgetTooSmall):
        door(server, saver, 3_000).invoke({"messages": [("user", "And deltas?")]}, on)
    assert not server.calls


def test_calls_that_were_planned_together_are_planned_anew(server: Server) -> None:
    """One reply shows that the three others would cost too much; they are not made as they were planned."""
    server.script, server.preface = answers, 2_000
    out = asked(server, 16_000, strategy="best_of_n")
    late = [error for error in out["errors"] if "not made" in error]
    assert ["text of its own before prompts" in error for error in late] == [True] * 3
    assert len(server.calls) > 4
    assert server.served <= 16_000


ANY = Tokenizer()


def test_a_preface_is_told_from_a_tokenizer_by_prompts_of_other_lengths() -> None:
    """Prompts of 100 and 1,000 words; before each the server puts 600 tokens."""
    known = tokens.uncalibrated()
    short, long = (ANY.shape([HumanMessage("river " * words)]) for words in (100, 1_000))
    plain = ANY.bound(long, known)
    known = ANY.learn(known, short, ANY.bound(short, known) + 600)
    assert ANY.bound(short, known) == ANY.bound(short, tokens.uncalibrated()) + 600
    either = ANY.bound(long, known)
    assert either > 2 * plain
    for _ in range(3):
        known = ANY.learn(known, long, plain + 600)
    assert plain + 600 <= ANY.bound(long, known) < either


@given(data=st.data(), growth=st.floats(1, 8))
def test_what_a_tokenizer_takes_more_is_never_forgotten(data: st.DataObject, growth: float) -> None:
    """Prompts of any lengths, whose reports are all so many times their bounds."""
    known = tokens.uncalibrated()
    for words in data.draw(st.lists(st.integers(1, 3_000), min_size=1, max_size=8)):
        shape = ANY.shape([HumanMessage("river " * words)])
        known = ANY.learn(known, shape, int(growth * ANY.bound(shape, tokens.uncalibrated())))
        assert ANY.bound(shape, known) >= int(growth * ANY.bound(shape, tokens.uncalibrated()))


@given(data=st.data(), preface=st.integers(3_500, 20_000))
def test_a_preface_is_a_surprise_once(data: st.DataObject, preface: int) -> None:
    """One that is longer than the prompts; what a shorter one adds may be the tokenizer's."""
    known = tokens.uncalibrated()
    for turn, words in enumerate(
        data.draw(st.lists(st.integers(1, 3_000), min_size=2, max_size=8))
    ):
        shape = ANY.shape([HumanMessage("river " * words)])
        true = ANY.bound(shape, tokens.uncalibrated()) + preface
        assert not turn or ANY.bound(shape, known) >= true
        known = ANY.learn(known, shape, true)
