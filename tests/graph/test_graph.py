"""The graph as a user meets it: conversations, thinking on, streams, batches, subgraphs, strategies."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AnyMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    Critique,
    Draft,
    Move,
    NoAnswer,
    Prices,
    Refine,
    Score,
    Stop,
    View,
    create_anytime_graph,
)
from anytime_graph.planning.strategies import STRATEGIES, best_of_n
from tests.kit.marks import both, torture
from tests.kit.server import Reply, Server, serving
from tests.kit.waiting import PATIENCE


def ask(text: str = "Name a river.", **more: Any) -> dict[str, Any]:
    return {"messages": [("user", text)], **more}


def numbered(request: dict[str, Any], i: int) -> Reply:
    """Answers that get longer, and so better under `by_length`, with the call's place in the run."""
    return Reply(text="<answer>" + "long " * (1 + request["seed"] % 7) + "river</answer>")


def by_length(question: str, answer: str) -> Score:
    return Score(min(1.0, len(answer) / 100), "longer, please")


def invoke(app: Any, sync: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return app.invoke(*args, **kwargs) if sync else asyncio.run(app.ainvoke(*args, **kwargs))


# --- conversations ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("saver", ["memory", "sqlite"])
def test_a_new_message_is_a_new_question_and_a_budget_alone_thinks_on(
    server: Server, saver: str, sync: bool, tmp_path: Path
) -> None:
    server.script = numbered
    graph = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=2), scorer=by_length, strategy="best_of_n"
    )
    config = {"configurable": {"thread_id": "1"}}

    def talk(app: Any, run: Any) -> Any:
        first = yield run(app, ask())
        assert first["spent"]["calls"] == 2
        assert first["stop_reason"] == "calls"
        assert [m.type for m in first["messages"]] == ["human", "ai"]

        on = yield run(app, {"budget": Budget(calls=3)})
        assert on["spent"]["calls"] == 5
        assert on["limits"] == {"calls": 5}
        assert on["best"]["score"] > first["best"]["score"]
        assert on["curve"][: len(first["curve"])] == first["curve"]
        assert [m.type for m in on["messages"]] == ["human", "ai"]
        assert on["messages"][-1].text == on["best"]["answer"]

        again = yield run(app, ask("And another?"))
        assert again["spent"]["calls"] == 2
        assert [m.type for m in again["messages"]] == ["human", "ai", "human", "ai"]
        assert len(again["candidates"]) == 2
        sent = server.calls[-1].request["messages"]
        assert [m["role"] for m in sent[-3:]] == ["user", "assistant", "user"]

        last = yield run(app, ask("One more, dear?", budget=Budget(calls=1)))
        assert (last["spent"]["calls"], last["limits"]) == (1, {"calls": 1})

    def follow(talking: Any) -> None:
        value = None
        try:
            while True:
                value = talking.send(value)
        except StopIteration:
            pass

    async def afollow(app: Any) -> None:
        talking, value = talk(app, lambda app, data: app.ainvoke(data, config)), None
        try:
            while True:
                value = await talking.send(value)
        except StopIteration:
            pass

    async def over_sqlite() -> None:
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "a.db")) as opened:
            await afollow(graph.compile(checkpointer=opened))

    if sync and saver == "memory":
        follow(talk(graph.compile(checkpointer=InMemorySaver()), lambda a, d: a.invoke(d, config)))
    elif sync:
        with SqliteSaver.from_conn_string(str(tmp_path / "s.db")) as opened:
            follow(talk(graph.compile(checkpointer=opened), lambda a, d: a.invoke(d, config)))
    elif saver == "memory":
        asyncio.run(afollow(graph.compile(checkpointer=InMemorySaver())))
    else:
        asyncio.run(over_sqlite())


def test_thinking_on_with_too_little_returns_the_answer_in_hand(server: Server) -> None:
    app = create_anytime_graph(server.model(), budget=Budget(tokens=400)).compile(
        checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    app.invoke(ask(), config)
    served = server.served
    out = app.invoke({"budget": Budget(tokens=1)}, config)
    assert out["best"]["answer"] == "fine"
    assert server.served <= max(served, 401)


def test_what_is_too_small_is_named_and_nothing_else(server: Server) -> None:
    for budget, short in [
        (Budget(tokens=10, seconds=5), r"tokens=\d+"),
        (Budget(tokens=5_000, seconds=1e-9), r"seconds=0\.001"),
        (Budget(tokens=10, seconds=1e-9), r"tokens=\d+, seconds=0\.001"),
    ]:
        app = create_anytime_graph(server.model(), budget=budget).compile()
        with pytest.raises(BudgetTooSmall, match=rf"the least is {short}\n"):
            app.invoke(ask())
    assert not server.calls


def test_a_refused_or_failed_step_can_be_run_again(server: Server) -> None:
    app = create_anytime_graph(server.model(), budget=Budget(calls=2)).compile(
        checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    for _ in range(2):
        with pytest.raises(BudgetTooSmall):
            app.invoke(ask(budget=Budget(tokens=5)), config)
    with pytest.raises(BudgetTooSmall):
        app.invoke(None, config)
    assert app.invoke(ask("Another."), config)["limits"] == {"calls": 2}
    server.script = lambda request, i: Reply(error=400)
    for resumed in (ask("A third?"), None, None):
        with pytest.raises(NoAnswer):
            app.invoke(resumed, config)
    server.script = lambda request, i: Reply()
    assert app.invoke({"budget": Budget(calls=1)}, config)["best"]["answer"] == "fine"


@both
@pytest.mark.parametrize("nested", [False, True])
def test_a_run_goes_on_after_its_state_was_updated_at_a_breakpoint(
    server: Server, sync: bool, nested: bool
) -> None:
    server.script = lambda request, i: Reply("<answer>" + "long " * i + "river</answer>")
    options: Any = {"strategy": "self_refine", "scorer": by_length}
    inner = create_anytime_graph(server.model(), budget=Budget(calls=4), **options)
    app: Any = inner.compile(None if nested else InMemorySaver(), interrupt_before=["refine"])
    if nested:
        around: Any = StateGraph(MessagesState)
        around.add_node("think", app)
        around.add_edge(START, "think")
        app = around.compile(InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    invoke(app, sync, ask(), config)
    paused = app.get_state(config, subgraphs=True)
    here = paused.tasks[0].state if nested else paused
    assert here.next == ("refine",)
    if sync:
        app.update_state(here.config, {"budget": {"calls": 2}})
    else:
        asyncio.run(app.aupdate_state(here.config, {"budget": {"calls": 2}}))
    while app.get_state(config).next:
        out = invoke(app, sync, None, config)
    assert "river" in out["messages"][-1].text
    assert len(server.settled().calls) == 6
    if not nested:
        assert (out["limits"], out["spent"]["calls"]) == ({"calls": 6}, 6)
        app.update_state(config, {"messages": [("ai", "Do go on.")]})
        assert app.get_state(config).next == (), "what has ended does not begin again"


def test_tool_results_after_the_question_reach_the_model_and_edits_are_new_questions(
    server: Server,
) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    app = create_anytime_graph(server.model(), budget=Budget(calls=1)).compile(
        checkpointer=InMemorySaver()
    )
    call: Any = {"name": "weather", "args": {}, "id": "c"}
    asked = [
        HumanMessage("How is it?", id="u"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("sunny 42", tool_call_id="c"),
    ]
    config: Any = {"configurable": {"thread_id": "1"}}
    app.invoke({"messages": asked}, config)
    assert "sunny 42" in server.calls[0].text
    app.invoke({"messages": [HumanMessage("How was it?", id="u")]}, config)
    assert "How was it?" in server.calls[1].text


def test_only_what_beats_the_incumbent_in_both_orders_replaces_it(server: Server) -> None:
    """Comparisons between others, in either place, or of one with itself."""

    def script(request: dict[str, Any], i: int) -> Reply:
        shown = request["messages"][-1]["content"]
        if "Verdict" not in request["messages"][0]["content"]:
            return Reply(text=f"<answer>n{request['seed']}</answer>")
        sides = re.findall(r"n(\d)</answer>", shown)
        return Reply(
            text="Verdict: " + ("A" if sides[0] == "2" else "B" if sides[1] == "2" else "tie")
        )

    def strategy(view: View) -> list[Move]:
        if not view.best:
            return [Draft()] * 3
        asked = view.made.get("critique", 0)
        return [[Critique(1, 2)], [Critique(0, 0)], [Critique(2, 0)], [Stop(7)]][  # type: ignore[return-value,arg-type,list-item]
            min(asked // 2, 3)
        ]

    server.script = script
    app = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=30), strategy=strategy
    ).compile()
    bests = [v["best"]["id"] for v in app.stream(ask(), stream_mode="values") if v.get("best")]
    out = app.invoke(ask())
    assert bests[:3] == [0, 0, 0]
    assert (out["best"]["id"], out["stop_reason"]) == (2, "7")


def test_budgets_from_input_context_and_json(server: Server) -> None:
    app = create_anytime_graph(server.model(), scorer=lambda q, a: 0.5).compile()
    assert app.invoke(ask(budget=Budget(calls=1)))["spent"]["calls"] == 1
    assert app.invoke(ask(budget={"calls": 2}))["spent"]["calls"] == 2
    assert app.invoke(ask(), context={"budget": Budget(calls=3)})["spent"]["calls"] == 3
    assert (
        app.invoke(ask(budget=Budget(calls=1)), context={"budget": Budget(calls=3)})["spent"][
            "calls"
        ]
        == 1
    )
    with pytest.raises(ValueError, match="budget: none given"):
        app.invoke(ask())
    with pytest.raises(ValueError, match="unknown"):
        app.invoke(ask(budget={"token": 2}))
    with pytest.raises(ValueError, match="a user message is needed"):
        app.invoke({"messages": [("ai", "hello")], "budget": Budget(calls=1)})


def test_state_is_plain_data_under_strict_serialization(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import subprocess
    import sys

    code = f"""
from anytime_graph import Budget, create_anytime_graph
from langgraph.checkpoint.sqlite import SqliteSaver
from langchain_openai import ChatOpenAI
model = ChatOpenAI(model="scripted", base_url={server.url!r}, api_key="none")
with SqliteSaver.from_conn_string({str(tmp_path / "strict.db")!r}) as saver:
    app = create_anytime_graph(model, strategy="self_consistency").compile(checkpointer=saver)
    config = {{"configurable": {{"thread_id": "1"}}}}
    app.invoke({{"messages": [("user", "hi")], "budget": Budget(calls=4)}}, config)
    out = app.invoke({{"budget": Budget(calls=4)}}, config)
    assert out["spent"]["calls"] == 8, out["spent"]
    for snapshot in app.get_state_history(config):
        assert snapshot.values.get("budget") is None or type(snapshot.values["budget"]) is dict
"""
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Blocked" not in done.stderr


def test_the_state_keeps_at_most_width_candidates_and_pairs(server: Server) -> None:
    server.script = lambda request, i: Reply(text=f"<answer>{'x' * (i % 20)} {i}</answer>")
    app = create_anytime_graph(
        server.model(), budget=Budget(calls=160), scorer=by_length, width=3
    ).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    out = app.invoke(ask(), config)
    assert len(out["candidates"]) <= 3
    assert len(out["pairs"]) <= 3
    sizes = [len(str(s.values)) for s in reversed(list(app.get_state_history(config)))]
    third = len(sizes) // 3
    assert max(sizes[2 * third :]) <= 1.1 * max(sizes[third : 2 * third])


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.pairwise(3)
@both
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("scored", [True, False], ids=["scored", "unscored"])
def test_improving_answers_stream_and_the_last_is_the_one_returned(
    server: Server, strategy: str, scored: bool, sync: bool
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if "Verdict" in request["messages"][0]["content"]:
            return Reply(text="Verdict: A" if i % 3 else "Verdict: B")
        return numbered(request, i)

    server.script = script
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=2_500),
        scorer=by_length if scored else None,
        strategy=strategy,
    ).compile()
    events, out = [], {}

    async def astream() -> list[Any]:
        return [e async for e in app.astream(ask(), stream_mode=["custom", "values"])]

    stream: Sequence[Any] = (
        list(app.stream(ask(), stream_mode=["custom", "values"]))
        if sync
        else asyncio.run(astream())
    )
    for mode, event in stream:
        if mode == "custom":
            events.append(event)
        else:
            out = event
    assert events[-1]["answer"] == out["best"]["answer"] == out["messages"][-1].text
    assert events[-1]["candidate"] == out["best"]["id"]
    for event in events:
        assert set(event) == {"answer", "score", "spent", "remaining", "source", "candidate"}
        assert event["remaining"]["tokens"] == 2_500 - event["spent"]["tokens"]
    if scored:
        scores = [e["score"] for e in events]
        assert scores == sorted(scores)


def test_the_first_event_does_not_wait_for_the_slower_siblings(server: Server) -> None:
    slow = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        if request["seed"]:
            slow.wait(PATIENCE)
        return Reply()

    server.script = script
    app = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=4), scorer=lambda q, a: 0.5
    ).compile()
    stream = app.stream(ask(), stream_mode="custom")
    first = next(stream)
    assert not slow.is_set()
    assert (first["answer"], first["spent"]["calls"]) == ("fine", 1)
    slow.set()
    list(stream)
    assert len(server.calls) == 4


@both
def test_tokens_stream_through_messages_mode_without_doubles(server: Server, sync: bool) -> None:
    server.script = lambda request, i: Reply(
        text="Verdict: tie" if "Verdict" in request["messages"][0]["content"] else f"w{i} " * 20
    )
    app = create_anytime_graph(server.model(), budget=Budget(calls=6)).compile()

    async def astream() -> list[Any]:
        return [e async for e in app.astream(ask(), stream_mode="messages")]

    chunks = list(app.stream(ask(), stream_mode="messages")) if sync else asyncio.run(astream())
    by_id: dict[str, str] = {}
    for chunk, meta in chunks:
        assert meta["langgraph_node"] in ("draft", "refine")
        by_id[chunk.id] = by_id.get(chunk.id, "") + chunk.text
    drafts = [c for c in server.calls if "Verdict" not in c.text]
    assert sorted(by_id.values()) == sorted(
        f"w{i} " * 20 for i, c in enumerate(server.calls) if c in drafts
    )


def test_batch_keeps_runs_apart(server: Server) -> None:
    server.script = lambda request, i: Reply(text=f"re: {request['messages'][-1]['content'][:7]}")
    app = create_anytime_graph(
        server.model(), budget=Budget(calls=3), scorer=lambda q, a: 0.5
    ).compile()
    outs = app.batch([ask(f"item {i:02}") for i in range(12)])
    assert [o["best"]["answer"] for o in outs] == [f"re: item {i:02}" for i in range(12)]
    assert len(server.calls) == 36


@pytest.mark.parametrize("concurrency", [1, 2])
def test_seconds_are_shared_even_if_siblings_run_one_after_another(
    server: Server, concurrency: int
) -> None:
    server.script = lambda request, i: Reply(text=None, pace=0.01)
    app = create_anytime_graph(
        server.model(), budget=Budget(seconds=1.0), scorer=lambda q, a: 0.5
    ).compile()
    out = app.invoke(ask(), {"max_concurrency": concurrency})
    assert out["stop_reason"] == "seconds"
    words = sum(call.output for call in server.settled().calls)
    assert words < 200 * concurrency, "a second is 100 words, and each of eight would take most"


@both
def test_a_stop_cuts_the_calls_in_flight_and_returns_the_best(server: Server, sync: bool) -> None:
    stop = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        if i >= 4:
            stop.set()
            return Reply(text=None, pace=0.01, ignore_limit=True)
        return numbered(request, i)

    server.script = script
    app = create_anytime_graph(
        server.model(seed=0), budget=Budget(tokens=100_000), scorer=by_length
    ).compile()
    out = invoke(app, sync, ask(), context={"stop": stop})
    assert out["stop_reason"] == "interrupted"
    assert out["best"]["score"] >= max(c["score"] or 0 for c in out["candidates"][:4])
    assert out["spent"]["tokens"] >= server.settled().served


# --- in a larger graph --------------------------------------------------------------------------


@both
def test_as_a_node_of_a_larger_graph(server: Server, sync: bool) -> None:
    class Outer(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    server.script = numbered
    inner = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=3), scorer=by_length, strategy="best_of_n"
    ).compile()
    outer = StateGraph(Outer)
    outer.add_node("think", inner)
    outer.add_edge(START, "think")
    outer.add_edge("think", END)
    out = invoke(
        outer.compile(checkpointer=InMemorySaver()),
        sync,
        ask(),
        {"configurable": {"thread_id": "1"}},
    )
    assert out["messages"][-1].text == "long long long river"


# --- strategies, answers, prices ----------------------------------------------------------------


def test_self_consistency_returns_what_most_drafts_agree_on(server: Server) -> None:
    votes = ["7", "42", "42.", "8", " 42", "9", "7", "42"]
    server.script = lambda request, i: Reply(text=f"<answer>{votes[request['seed']]}</answer>")
    app = create_anytime_graph(
        server.model(seed=0), budget=Budget(calls=8), strategy="self_consistency"
    ).compile()
    out = app.invoke(ask())
    assert out["best"]["answer"] == "42"
    assert out["best"]["votes"] == 4
    assert out["spent_by"].keys() == {"draft"}


def test_pdp_shows_both_sides_of_a_pair_and_pdp_positive_only_winners(server: Server) -> None:
    def learning(request: dict[str, Any], i: int) -> Reply:
        taught = "Better: " in request["messages"][0]["content"]
        more = 5 + request["seed"] % 8 if taught else request["seed"] % 4
        return Reply(text=f"<answer>{'long ' * (1 + more)}river</answer>")

    server.script = learning
    for strategy in ("pdp", "pdp_positive"):
        server.calls.clear()
        app = create_anytime_graph(
            server.model(seed=0), budget=Budget(tokens=6_000), scorer=by_length, strategy=strategy
        ).compile()
        out = app.invoke(ask())
        shown = [c for c in server.calls if "Better: " in c.text]
        assert not set(map(id, shown)) & set(map(id, server.calls[:4]))
        assert len(shown) >= 0.4 * len(server.calls)
        assert all(("Worse: " in c.text) == (strategy == "pdp") for c in shown)
        pair = out["pairs"][0]
        assert (pair["by"], "longer, please" in pair["why"]) == ("scorer", True)
        assert by_length("", pair["chosen"]).value > by_length("", pair["rejected"]).value


def test_own_strategy(server: Server) -> None:
    def two_then_polish(view: View) -> list[Move]:
        if len(view.candidates) < 2:
            return [Draft(share=0.3), Draft(share=0.3)]
        if view.made.get("refine", 0) < 2 and view.best:
            return [Refine(view.best["id"])]
        return [Stop("polished")]

    server.script = numbered
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=5_000),
        scorer=by_length,
        strategy=two_then_polish,
    ).compile()
    out = app.invoke(ask())
    assert out["stop_reason"] == "polished"
    assert out["spent_by"]["draft"]["calls"] == out["spent_by"]["refine"]["calls"] == 2


def test_a_perfect_score_ends_the_run(server: Server) -> None:
    app = create_anytime_graph(
        server.model(), budget=Budget(tokens=50_000), scorer=lambda q, a: a == "fine"
    ).compile()
    out = app.invoke(ask())
    assert (out["stop_reason"], out["best"]["score"]) == ("perfect", 1.0)
    assert len(server.calls) <= 4


class City(BaseModel):
    name: str
    people: int


def test_answers_by_schema_by_function_and_whole(server: Server) -> None:
    def run(text: str, **options: Any) -> dict[str, Any]:
        server.script = lambda request, i: Reply(text=text)
        app = create_anytime_graph(
            server.model(), budget=Budget(calls=1), strategy="single", **options
        ).compile()
        return app.invoke(ask())["best"]

    seen: list[Any] = []

    def score(question: str, answer: Any) -> float:
        seen.append(answer)
        return 0.5

    best = run('Let me see {"x": 1} so {"name": "Ulm", "people": 5} ok', answer=City, scorer=score)
    assert City.model_validate_json(best["answer"]) == seen[0] == City(name="Ulm", people=5)
    assert '"people"' in server.calls[-1].text
    assert run("no JSON at all", answer=City)["complete"] is False
    assert run("a 12 b 34 c", answer=lambda t: t.split()[-2])["answer"] == "34"
    broken = run("kept whole", answer=lambda t: t.split()[99])
    assert broken["answer"] == "kept whole"
    assert run("<answer>tag</answer>", answer="whole")["answer"] == "<answer>tag</answer>"
    assert "<answer>" not in server.calls[-1].text
    assert (
        run("a <answer>1</answer> <answer>2</answer> <answer> </answer> <answer>3")["answer"] == "2"
    )


@both
def test_an_answer_is_forced_only_if_a_cut_reply_holds_none(server: Server, sync: bool) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if "Time is up" in request["messages"][-1]["content"]:
            assert request["messages"][-2]["content"].rstrip().endswith(("think", "and"))
            return Reply(text="<answer>forced</answer>")
        return Reply(text="think and " * 5_000, piece=20)

    server.script = script
    app = create_anytime_graph(
        server.model(), budget=Budget(tokens=2_000), strategy="single"
    ).compile()
    out = invoke(app, sync, ask())
    assert out["best"]["answer"] == "forced"
    assert len(server.calls) == 2
    assert server.served <= 2_000
    server.script = lambda request, i: Reply(text="<answer>early</answer> " + "think " * 5_000)
    server.calls.clear()
    assert invoke(app, sync, ask())["best"]["answer"] == "early"
    assert len(server.calls) == 1


def always_thinking(second: bool) -> Callable[[dict[str, Any], int], Reply]:
    """Thoughts that fill any room. The answer can only be forced; second: in the second try."""

    def script(request: dict[str, Any], i: int) -> Reply:
        latest = request["messages"][-1]["content"]
        if "Do not think it over" in latest:
            assert [m["role"] for m in request["messages"]] == ["user"]
            return Reply(text="<answer>forced</answer>")
        if "Time is up" in latest and not second:
            return Reply(text="<answer>forced</answer>")
        return Reply(text="think and " * 5_000, piece=20)

    return script


@both
@given(
    tokens=st.integers(1_000, 8_000),
    strategy=st.sampled_from(["adaptive", "pdp", "best_of_n", "self_refine"]),
    second=st.booleans(),
)
@settings(max_examples=torture or 6)
def test_an_answer_is_forced_out_of_thoughts_without_end(
    sync: bool, tokens: int, strategy: str, second: bool
) -> None:
    """A reply that was cut tells that the next one may be cut too, so both tries are paid for. Each try has a
    form of its own."""
    budget = Budget(tokens=tokens + 300 * second)
    with serving() as server:
        server.script = always_thinking(second)
        app = create_anytime_graph(server.model(), budget=budget, strategy=strategy).compile()
        out = invoke(app, sync, ask())
        assert server.served <= tokens + 300 * second
    assert out["best"]["answer"] == "forced"
    tries = [c for c in out["candidates"] if c["node"] == "conclude"]
    assert [c["complete"] for c in tries] == [False, True][not second :]


@both
@pytest.mark.parametrize("error", [400, 500, "drop", "break"])
def test_a_try_that_fails_is_followed_by_one_of_another_form(
    server: Server, sync: bool, error: int | str
) -> None:
    thinking = always_thinking(True)

    def script(request: dict[str, Any], i: int) -> Reply:
        if "Time is up" in request["messages"][-1]["content"]:
            return Reply(error=error)
        return thinking(request, i)

    server.script = script
    app = create_anytime_graph(
        server.model(max_retries=0), budget=Budget(tokens=3_000), strategy="single"
    ).compile()
    out = invoke(app, sync, ask())
    assert out["best"]["answer"] == "forced"
    assert server.served <= out["spent"]["tokens"] <= 3_000


@both
@pytest.mark.parametrize("scorer", [None, lambda question, answer: 1 / len(answer)])
def test_an_answer_that_cannot_be_forced_is_tried_for_twice(
    server: Server, sync: bool, scorer: Any
) -> None:
    """Also where the first try is the best reply then, though it is cut as well."""
    server.script = lambda request, i: Reply(text="think and " * 5_000, piece=20)
    app = create_anytime_graph(
        server.model(), budget=Budget(tokens=3_000), strategy="single", scorer=scorer
    ).compile()
    out = invoke(app, sync, ask())
    assert [c["node"] for c in out["candidates"]] == ["draft", "conclude", "conclude"]
    latest = [call.request["messages"][-1]["content"] for call in server.calls]
    assert ["Do not think it over" in text for text in latest] == [False, False, True]
    assert out["best"]["complete"] is False
    assert server.served == out["spent"]["tokens"] <= 3_000


def told(server: Server) -> list[bool]:
    return ["can be about" in call.text for call in server.calls]


def test_a_reply_that_is_not_likely_to_be_cut_gets_no_line_about_its_length(server: Server) -> None:
    for budget in (Budget(tokens=3_000), Budget(calls=1)):
        create_anytime_graph(server.model(), budget=budget, strategy="single").compile().invoke(
            ask()
        )
    assert told(server) == [False, False]


def test_the_model_is_told_how_long_a_reply_may_be_where_the_budget_may_cut_it(
    server: Server,
) -> None:
    """Of 127 tokens at the most nothing is known at first."""
    budget = Budget(calls=1, output_tokens=127)
    create_anytime_graph(server.model(), budget=budget, strategy="single").compile().invoke(ask())
    assert told(server) == [True]
    first, last = server.calls[0].request["messages"]
    assert "(A reply can be about 100 tokens long" in first["content"]
    assert last["content"] == "Name a river."


@pytest.mark.parametrize(("words", "later"), [(5, False), (110, False), (300, True)])
def test_the_model_is_told_of_a_cap_that_it_has_anyway_once_it_cut_a_reply(
    server: Server, words: int, later: bool
) -> None:
    server.script = lambda request, i: Reply(text="word " * words + f"<answer>{i}</answer>")
    app = create_anytime_graph(
        server.model(max_tokens=127),
        budget=Budget(calls=5),
        strategy="self_refine",
        scorer=lambda question, answer: Score(0.5, "more, please"),
    ).compile()
    app.invoke(ask())
    assert told(server)[:2] == [False, later]


@pytest.mark.parametrize(
    ("words", "lines"),
    [((97, 5, 20), [False] * 4), ((50,), [False] * 4), ((150, 20, 20), [False, True, False])],
)
def test_the_model_is_told_only_where_the_line_saves_more_than_it_costs(
    server: Server, words: tuple[int, ...], lines: list[bool]
) -> None:
    """Replies of 97 and 5 tokens are seldom longer than what is left, and then not dear."""
    server.script = lambda request, i: Reply(text="word " * words[i % len(words)] + str(i))
    messages = [
        ("system", "You count well."),
        ("user", "What is twelve and thirty? " + "Think well about it. " * 6),
    ]
    app = create_anytime_graph(
        server.model(max_tokens=200), budget=Budget(tokens=400), answer=lambda t: t.split()[-1]
    ).compile()
    app.invoke({"messages": messages})
    assert told(server) == lines


def test_prompts_are_stable_first(server: Server) -> None:
    """The instructions of one kind of prompt are the same, but for their last line, which tells the
    room in steps so wide that prompts of many sizes have it in common."""
    server.script = numbered
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(tokens=2_000),
        scorer=by_length,
        strategy=partial(best_of_n, n=2),
    ).compile()
    app.invoke({"messages": [("system", "You know rivers."), ("user", "Name one.")]})
    heads = {
        c.request["messages"][0]["content"] for c in server.calls if len(c.request["messages"]) == 2
    }
    full = {h.partition("\n\n(A reply can be")[0] for h in heads if "Think step by step" in h}
    assert len(full) == 1
    assert full.pop().startswith("You know rivers.")
    assert len(heads) < len(server.calls) / 2


def test_usd_needs_a_price_and_cached_input_is_charged_at_its_own(server: Server) -> None:
    with pytest.raises(ValueError, match="the price of 'scripted' is not known"):
        create_anytime_graph(server.model(), budget=Budget(usd=1.0))
    app = create_anytime_graph(server.model(), budget=Budget(calls=1)).compile()
    with pytest.raises(ValueError, match="price"):
        app.invoke(ask(budget=Budget(usd=1.0)))
    assert not server.calls
    usage = {
        "prompt_tokens": 200,
        "completion_tokens": 100,
        "total_tokens": 300,
        "prompt_tokens_details": {"cached_tokens": 150},
    }
    server.script = lambda request, i: Reply(usage=usage)
    prices = Prices(input=10.0, output=20.0, cached_input=1.0)
    app = create_anytime_graph(server.model(), prices=prices, strategy="single").compile()
    spent = app.invoke(ask(budget=Budget(usd=1.0)))["spent"]
    assert spent["usd"] == pytest.approx((50 * 10 + 150 * 1 + 100 * 20) / 1e6)
    assert spent["cached_tokens"] == 150


def test_list_prices_are_looked_up_by_name() -> None:
    from langchain_openai import ChatOpenAI

    from anytime_graph.models import prices_of

    prices = prices_of(ChatOpenAI(model="gpt-4.1-mini", api_key="none"))
    assert prices is not None
    assert 0 < (prices.cached_input or 0) < prices.input < prices.output
    assert prices.cache_write == prices.input
    assert prices_of(ChatOpenAI(model="no-such-model", api_key="none")) is None
    dearer = prices_of(ChatOpenAI(model="claude-sonnet-4-5", api_key="none"))
    assert dearer is not None
    assert dearer.input < (dearer.cache_write or 0)


def test_the_prices_of_all_listed_models_can_be_with_json_schema() -> None:
    from genai_prices.data_snapshot import get_snapshot

    from anytime_graph.models import prices_of

    names = {model.id for provider in get_snapshot().providers for model in provider.models}
    for name in sorted(names)[:: 1 if torture else 9]:
        prices = prices_of(SimpleNamespace(model_name=name))
        assert prices is None or prices.most(1_000, 10) >= prices.usd(1_000, 10, read=500)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": 7}, "model=int"),
        ({"model": "gpt"}, "model='gpt'"),
        ({"model": "local:/no/such.gguf"}, "no such file"),
        ({"strategy": "best"}, "strategy='best'"),
        ({"scorer": "exam"}, "scorer='exam'"),
        ({"scorer": 3}, "scorer=3"),
        ({"answer": "xml"}, "answer='xml'"),
        ({"answer": 3}, "answer=3"),
        ({"width": 1}, "width=1"),
        ({"budget": 8_000}, "budget=8000"),
        ({"judge": "strict"}, r"judge='strict': pass Judge\("),
        ({"prices": {"input": 1.0}}, r"prices=.*: pass Prices\("),
        ({"ledger": "x.db"}, "ledger='x.db': pass"),
        ({"until": 0.9}, r"until=0.9: pass Until\("),
        ({"exact_counts": "x"}, "exact_counts='x': pass True"),
        ({"near_end": 5}, "near_end=5: a chat model"),
        ({"warn_at": 0.5}, "warn_at=0.5: parts"),
    ],
)
def test_bad_arguments_fail_at_construction_by_name(
    server: Server, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        create_anytime_graph(**{"model": server.model(), **options})


@pytest.mark.parametrize(
    "amounts",
    [{}, {"tokens": -1}, {"tokens": 1.5}, {"usd": float("nan")}, {"calls": True}, {"seconds": "9"}],
)
def test_bad_budgets_are_refused(amounts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(amounts), "Budget")):
        Budget(**amounts)


def test_a_budget_shows_what_it_takes() -> None:
    assert [*inspect.signature(Budget).parameters] == [field.name for field in fields(Budget)]


def test_budget_fraction() -> None:
    assert Budget(tokens=999, usd=0.5).fraction(0.5) == Budget(tokens=499, usd=0.25)
    assert Budget(tokens=5).fraction(0) == Budget(tokens=0)
    with pytest.raises(ValueError, match="share=2"):
        Budget(tokens=5).fraction(2)


def test_the_calls_of_a_run_are_told_apart_in_traces(server: Server) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    names: list[tuple[str, int]] = []

    class Watch(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            names.append((kwargs["name"], kwargs["metadata"]["ordinal"]))

    server.script = lambda request, i: Reply(text=f"<answer>{i}</answer>")
    app = create_anytime_graph(
        server.model(), budget=Budget(calls=6), strategy="best_of_n"
    ).compile()
    app.invoke(ask(), {"callbacks": [Watch()]})
    assert sorted(names, key=lambda n: n[1]) == [("draft", i) for i in range(4)] + [
        ("critique", 4),
        ("critique", 5),
    ]


def test_usage_no_call_can_have_is_a_lie_and_the_run_goes_on(server: Server) -> None:
    app = create_anytime_graph(
        server.model(), budget=Budget(calls=2), scorer=lambda q, a: 0.5
    ).compile(checkpointer=InMemorySaver())
    for n in (2**63 + 5, 10**320):
        usage = {"prompt_tokens": n, "completion_tokens": 1, "total_tokens": n}
        server.script = lambda request, i, usage=usage: Reply(usage=usage)  # type: ignore[misc]
        out = app.invoke(ask(), {"configurable": {"thread_id": str(n)[:9]}})
        assert out["best"]["answer"] == "fine"
        assert out["spent"]["tokens"] < 10_000


def test_votes_tell_long_answers_apart(server: Server) -> None:
    server.script = lambda request, i: Reply(text="same " * 60 + str(request["seed"]))
    app = create_anytime_graph(server.model(seed=0), budget=Budget(calls=4), scorer="vote")
    out = app.compile().invoke(ask())
    assert [c["votes"] for c in out["candidates"]] == [1, 1, 1, 1]


@pytest.mark.parametrize("junk", [42, {"a": 1}, ["x"]], ids=str)
def test_an_extractor_that_returns_junk_costs_its_answer_not_the_run(
    server: Server, junk: Any
) -> None:
    app = create_anytime_graph(server.model(), budget=Budget(calls=1), answer=lambda text: junk)
    out = app.compile().invoke(ask())
    assert out["best"]["answer"] == "fine"
    assert "extractor" in out["errors"][0]


def test_equal_answers_are_not_compared(server: Server) -> None:
    server.script = lambda request, i: Reply(text="<answer>The same.</answer>")
    app = create_anytime_graph(server.model(), budget=Budget(calls=9), strategy="best_of_n")
    out = app.compile().invoke(ask())
    assert set(out["spent_by"]) == {"draft"}


def test_the_judge_meets_each_answer_once(server: Server) -> None:
    """A judge that likes long answers better, whatever the order, finds the longest."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if "Verdict:" not in request["messages"][0]["content"]:
            return Reply(text=f"<answer>{'long ' * (request['seed'] * 3 % 4 + 1)}</answer>")
        shown = request["messages"][-1]["content"]
        first, second = shown.split("ANSWER A")[1], shown.split("ANSWER B")[1]
        longer = first.count("long") - 2 * second.count("long") > 0
        return Reply(text=f"It says more.\nVerdict: {'A' if longer else 'B'}")

    server.script = script
    app = create_anytime_graph(server.model(seed=0), budget=Budget(calls=10), strategy="best_of_n")
    out = app.compile().invoke(ask())
    assert out["spent_by"]["critique"]["calls"] == 6
    assert out["best"]["answer"].count("long") == 4
