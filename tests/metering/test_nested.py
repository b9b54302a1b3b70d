"""Anytime graphs within larger graphs: budgets handed down, crashes, drafts by agents."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    NoAnswer,
    Prices,
    add_spend,
    create_anytime_graph,
    open_checkpoints,
)
from anytime_graph.budget import nothing
from anytime_graph.run.calls import PLACES
from tests.kit.forks import prepared
from tests.kit.kills import Doom, ended, struck
from tests.kit.ledgers import ledger
from tests.kit.lives import Spec
from tests.kit.marks import both, torture
from tests.kit.pipelines import App, Handed, agent, composed, life, score, using_tools
from tests.kit.server import Call, Reply, Server, by_place, serving

ASK: Any = {"messages": [("user", "Why do rivers bend?")]}
ON: Any = {"configurable": {"thread_id": "rivers"}}


def invoke(app: Any, sync: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return app.invoke(*args, **kwargs) if sync else asyncio.run(app.ainvoke(*args, **kwargs))


def thinker(server: Server, **options: Any) -> App:
    options = {"scorer": score, "strategy": "best_of_n", **options}
    return create_anytime_graph(server.model(seed=0), **options).compile()


def below(path: str) -> Callable[[Call], bool]:
    """Whether a call was made at this path of a tree or below it."""
    return lambda call: f"path {path}" in call.text


# --- budgets ------------------------------------------------------------------------------------

amounts = st.builds(
    Budget,
    tokens=st.none() | st.integers(0, 10**7),
    output_tokens=st.none() | st.integers(0, 10**7),
    usd=st.none() | st.floats(0, 100),
    calls=st.integers(0, 200),
    seconds=st.none() | st.floats(0, 3600),
)


@given(amounts, st.integers(1, 60), st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_parts_of_a_budget_add_up_to_no_more(whole: Budget, n: int, weights: list[float]) -> None:
    """Nor to less than rounding down takes: a unit for each part."""
    fractions = [w / (sum(weights) or 1.0) for w in weights]
    for parts in (whole.split(n), [whole.fraction(min(1.0, f)) for f in fractions]):
        for d, amount in whole.limits().items():
            given_out = sum(part.limits()[d] for part in parts)
            assert given_out <= amount * (1 + 1e-9)
    assert all(part.calls == whole.calls // n for part in whole.split(n) if whole.calls is not None)


def test_a_spend_leaves_less_and_never_a_debt() -> None:
    spent = {**nothing(), "tokens": 300, "calls": 9, "usd": 0.25}
    whole = Budget(tokens=1_000, calls=3, usd=0.5)
    assert whole.less(spent) == Budget(tokens=700, calls=0, usd=0.25)
    assert whole.less({}) == whole
    assert add_spend(add_spend({}, spent), spent)["calls"] == 18  # type: ignore[typeddict-item]
    for n in (0, 1.5):
        with pytest.raises(ValueError, match=f"n={n}"):
            whole.split(n)  # type: ignore[arg-type]


@given(st.integers(1, 10**9), st.floats(1e-7, 1e4))
def test_the_least_budget_that_an_error_names_is_enough(tokens: int, usd: float) -> None:
    error = BudgetTooSmall({"tokens": 0, "usd": 0}, {"tokens": tokens, "usd": usd})
    named = dict(re.findall(r"(\w+)=([^, ]+)", str(error).partition("the least is ")[2]))
    assert int(named["tokens"]) == tokens
    assert usd <= float(named["usd"]) <= usd * (1 + 1e-5)
    assert error.least == Budget(tokens=tokens, usd=float(named["usd"]))


@both
def test_a_share_of_nothing_is_nothing_and_its_sibling_goes_on(served: Server, sync: bool) -> None:
    handed: Handed = {}
    children = [("poor", thinker(served)), ("rich", thinker(served))]
    app = composed(children, [0.0, 1.0], parallel=True, handed=handed)
    out = invoke(app, sync, {**ASK, "budget": {"tokens": 600}})
    assert handed["poor"] == Budget(tokens=0)
    assert not any(map(below("poor"), served.settled().calls))
    assert 0 < out["spent"]["tokens"] == served.served <= 600
    with pytest.raises(BudgetTooSmall) as refused:
        invoke(thinker(served), sync, {**ASK, "budget": Budget(tokens=0)})
    assert refused.value.spent == nothing()


@both
def test_a_child_that_fails_brings_back_what_it_cost(server: Server, sync: bool) -> None:
    server.script = lambda request, i: (
        Reply(error="break") if "path bad" in json.dumps(request) else by_place(request, i)
    )
    children = [("bad", thinker(server)), ("good", thinker(server))]
    app = composed(children, [0.5, 0.5], parallel=True)
    out = invoke(app, sync, {**ASK, "budget": {"tokens": 2_000}})
    served = server.settled().served
    assert any(map(below("bad"), server.calls))
    assert served <= out["spent"]["tokens"] <= 2_000
    assert out["spent"]["calls"] == len(server.calls)
    assert out["messages"][-1].text.isdigit()


# --- random trees -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    strategy: str
    agent: bool


@dataclass(frozen=True)
class Branch:
    children: tuple[Any, ...]
    weights: tuple[float, ...]
    parallel: bool


leaves = st.builds(Leaf, st.sampled_from(["pdp", "best_of_n", "self_refine"]), st.booleans())


def branches(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Branch]:
    def of(n: int) -> st.SearchStrategy[Branch]:
        return st.builds(
            Branch,
            st.tuples(*[below] * n),
            st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0])] * n),
            st.booleans(),
        )

    return st.integers(1, 3).flatmap(of)


trees = branches(leaves | branches(leaves | branches(leaves)))
budgets = st.one_of(
    st.builds(Budget, tokens=st.integers(0, 9_000)),
    st.builds(Budget, tokens=st.integers(500, 9_000), calls=st.integers(0, 40)),
    st.builds(Budget, usd=st.floats(0, 0.02), output_tokens=st.integers(0, 2_000)),
)
PRICES = Prices(input=2.0, output=8.0)


def grown(tree: Any, server: Server, handed: Handed, path: str = "") -> App:
    if isinstance(tree, Leaf):
        drafter = agent if tree.agent else None
        return thinker(server, strategy=tree.strategy, drafter=drafter, prices=PRICES)
    whole = sum(tree.weights) or 1.0
    parts = [weight / whole for weight in tree.weights]
    children = [
        (name := f"n{i}", grown(child, server, handed, f"{path}{name}/"))
        for i, child in enumerate(tree.children)
    ]
    return composed(children, parts, tree.parallel, handed, path)


def behaving(seed: int) -> Any:
    """A model of moods: it answers, uses tools, fills any limit, fails, or lies."""

    def reply(request: dict[str, Any], i: int) -> Reply:
        dice = random.Random(f"{seed} {request['seed']} {len(request['messages'])}")
        mood = dice.random()
        if mood < 0.1:
            return Reply(error=dice.choice([400, 429, 500, "drop", "break", "junk"]))
        if mood < 0.25 and (request.get("max_completion_tokens") or 9_999) < 9_999:
            return Reply(text=None)
        if mood < 0.35:
            lie = {"prompt_tokens": -1, "completion_tokens": 0, "total_tokens": 0}
            return Reply(text="some words " * dice.randint(1, 60), usage=dice.choice(["none", lie]))
        if request.get("tools") and mood < 0.75:
            words = "river " * dice.randint(1, 30)
            return Reply(text="", tools=[("look_up", {"word": words})] * dice.randint(1, 2))
        return Reply(text=f"so <answer>{dice.randint(0, 999)}</answer> {'thus ' * 9}")

    return reply


@settings(max_examples=torture or 9)
@given(tree=trees, budget=budgets, seed=st.integers(0, 10**6), sync=st.booleans())
def test_no_subtree_exceeds_its_share_nor_the_root_its_budget(
    tree: Any, budget: Budget, seed: int, sync: bool
) -> None:
    handed: Handed = {}
    with serving() as server:
        server.script = behaving(seed)
        out = invoke(grown(tree, server, handed), sync, {**ASK, "budget": budget.limits()})
        server.settled()
    calls = server.calls
    for path, share in {"": budget, **handed}.items():
        own = [call for call in calls if below(path)(call)]
        true = {
            "tokens": sum(call.served for call in own),
            "output_tokens": sum(call.output for call in own),
            "calls": sum(not call.refused for call in own),
            "usd": PRICES.usd(sum(c.prompt for c in own), sum(c.output for c in own)),
        }
        note(f"{path or 'root'}: {share}; served {true}")
        for d, limit in share.limits().items():
            assert true[d] <= limit + 1e-9
    spent = out["spent"]
    assert spent["calls"] == sum(not call.refused for call in calls)
    assert spent["tokens"] >= sum(call.served for call in calls)
    for d, limit in budget.limits().items():
        assert spent[d] <= limit + 1e-9
    if all(call.reported or call.refused for call in calls):
        assert spent["tokens"] == sum(call.served for call in calls)


# --- as a subgraph ------------------------------------------------------------------------------


@both
def test_improving_answers_are_seen_from_the_parent(server: Server, sync: bool) -> None:
    server.script = using_tools(1)
    outer = StateGraph(MessagesState)
    outer.add_node("think", thinker(server, budget=Budget(tokens=3_000), drafter=agent))
    outer.add_edge(START, "think")
    outer.add_edge("think", END)
    app = outer.compile()
    how: Any = {"stream_mode": ["custom", "values"], "subgraphs": True}

    async def astream() -> list[Any]:
        return [event async for event in app.astream(ASK, **how)]

    events = list(app.stream(ASK, **how)) if sync else asyncio.run(astream())
    seen = [(space, event) for space, mode, event in events if mode == "custom"]
    assert len(seen) > 1
    assert all(space[0].startswith("think:") for space, _ in seen)
    scores = [event["score"] for _, event in seen]
    assert scores == sorted(scores)
    last = next(event for space, mode, event in reversed(events) if mode == "values" and not space)
    assert last["messages"][-1].text == seen[-1][1]["answer"]
    assert [m.type for m in last["messages"]] == ["human", "ai"]


@pytest.mark.parametrize("sync", [True, False], ids=["threads", "asyncio"])
def test_a_killed_pipeline_goes_on_and_buys_no_call_twice(tmp_path: Path, sync: bool) -> None:
    dice = random.Random(sync)
    for n in range(40) if torture else (0, 1) if sync else (1, 2):
        spec: Spec = {
            "target": str(tmp_path / f"{n}.db"),
            "url": "",
            "thread": "pipe",
            "question": "Why do rivers bend?",
            "sync": sync,
            "durability": ("async", "sync", "exit")[n % 3],
            "strategy": "",
            "tokens": 9_000,
            "out": str(tmp_path / f"{n}.json"),
        }
        settled: set[tuple[str, int]] = set()
        kills = [Doom("asked", dice.randint(1, 18), 0), Doom("ended", dice.randint(1, 18), 0)]
        with serving() as server:
            server.script = using_tools(2)
            spec["url"] = server.url
            for doom in [*kills, Doom("never", 1, 0)]:
                before = len(server.settled().calls)
                process = prepared(life, spec)
                process.start()
                with struck(server, doom, process.kill):
                    code = ended(process)
                asked = [place(call) for call in server.settled().calls]
                assert not settled & set(asked[before:])
                turns = [said(call) for call in server.calls]
                paid = {turn for at, turn in zip(asked, turns, strict=True) if at in settled}
                assert not paid & {turn for turn in turns[before:] if "river" in turn}
                settled |= {(r["path"], r["ordinal"]) for r in rows(spec, "c.state = 'settled'")}
                if code == 0:
                    break
                assert code == -9
        booked, spent = rows(spec), json.loads(Path(spec["out"]).read_text())
        assert max(Counter(asked).values()) == 1
        assert set(asked) <= {(row["path"], row["ordinal"]) for row in booked}
        assert server.served <= spent["tokens"] == sum(row["tokens"] for row in booked) <= 9_000
        assert spent["calls"] == len(booked)
        assert {path for path, _ in asked} == {"research/think", "research/dig", "write"}


def place(call: Call) -> tuple[str, int]:
    found = re.search(r"path ([\w/]+)\.", call.text)
    assert found
    return found[1], call.request["seed"]


def said(call: Call) -> str:
    """What was said after the question: of an agent's later turns, there are no two alike."""
    return json.dumps([m for m in call.request["messages"] if m["role"] in ("assistant", "tool")])


def rows(spec: Spec, where: str = "1 = 1") -> list[dict[str, Any]]:
    sql = f"SELECT c.*, r.thread FROM calls c JOIN runs r ON r.id = c.run_id WHERE {where}"
    found = ledger(spec["target"], sql)
    return [{**row, "path": row["thread"].split("#")[0].partition("/halves/")[2]} for row in found]


# --- drafts by agents ---------------------------------------------------------------------------


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("filling", [False, True], ids=["brief", "filling"])
def test_each_call_of_an_agent_fits_what_is_left_of_its_draft(
    server: Server, tmp_path: Path, sync: bool, filling: bool
) -> None:
    """Before it leaves: what the draft has been served, the prompt, and the limit it is sent with."""
    polite = using_tools(3)

    def script(request: dict[str, Any], i: int) -> Reply:
        reply = polite(request, i)
        return Reply(text=None) if filling and not reply.tools else reply

    async def arun() -> Any:
        async with open_checkpoints(tmp_path / "anytime.db") as store:
            app = thinker(server, budget=budget, drafter=agent, ledger=store.ledger)
            return await app.ainvoke(ASK, ON)

    server.script, budget = script, Budget(tokens=8_000)
    if sync:
        with open_checkpoints(tmp_path / "anytime.db") as store:
            app = thinker(server, budget=budget, drafter=agent, ledger=store.ledger)
            out = app.invoke(ASK, ON)
    else:
        out = asyncio.run(arun())
    tasks = [
        json.loads(r["task"]) for r in ledger(str(tmp_path / "anytime.db"), "SELECT * FROM calls")
    ]
    slices = {t["ordinal"]: t["slice"]["tokens"] for t in tasks if "agent" in t}
    drafts: dict[int, list[Call]] = {}
    for call in server.settled().calls:
        if (draft := call.request["seed"] // PLACES * PLACES) in slices:
            drafts.setdefault(draft, []).append(call)
    assert len(drafts) > 1
    assert max(len(calls) for calls in drafts.values()) > 1
    for ordinal, calls in drafts.items():
        before = 0
        for call in sorted(calls, key=lambda call: call.request["seed"]):
            assert call.limit is not None
            assert before + call.prompt + call.limit <= slices[ordinal]
            before += call.served
    assert out["spent"]["tokens"] == server.served <= 8_000
    assert out["spent"]["calls"] == len(server.calls)


def test_an_agent_that_runs_out_is_told_to_answer_and_its_tools_stay_unused(server: Server) -> None:
    server.script = using_tools(99)
    out = thinker(server, budget=Budget(calls=4), drafter=agent, strategy="single").invoke(ASK)
    asked = [call.request["messages"] for call in server.calls]
    assert out["spent"]["calls"] == len(asked) == 4
    assert [messages[-1]["role"] for messages in asked] == ["user", "tool", "tool", "user"]
    assert out["best"]["answer"].isdigit()

    server.calls.clear()
    out = thinker(server, budget=Budget(calls=11), drafter=agent).invoke(ASK)
    assert out["spent"]["calls"] == len(server.calls) <= 11
    assert len(out["candidates"]) > 1


def test_adaptive_gives_an_agents_drafts_room_for_all_their_turns(server: Server) -> None:
    server.script = using_tools(6)
    app = thinker(server, budget=Budget(tokens=20_000), drafter=agent, strategy="adaptive")
    out = app.invoke(ASK)
    hurried = [c for c in server.calls if "Time is up" in c.text]
    assert len(out["candidates"]) > 4
    assert not hurried


def test_what_an_agent_calls_although_told_to_answer_is_not_carried_out(server: Server) -> None:
    used: list[str] = []

    def note_down(word: str) -> str:
        """Note a word down."""
        used.append(word)
        return "done"

    server.script = lambda request, i: Reply(
        text="<answer>7</answer>", tools=[("note_down", {"word": "again"})]
    )
    drafter = lambda model: create_agent(model, [note_down])  # noqa: E731
    app = thinker(server, budget=Budget(calls=4), drafter=drafter, strategy="single")
    assert app.invoke(ASK)["best"]["answer"] == "7"
    assert (len(server.calls), len(used)) == (4, 3)


@both
def test_too_little_for_an_agent_is_refused_with_what_would_do(server: Server, sync: bool) -> None:
    server.script = using_tools(1)
    with pytest.raises(BudgetTooSmall) as refused:
        invoke(thinker(server, budget=Budget(tokens=150), drafter=agent), sync, ASK)
    assert not server.calls
    out = invoke(thinker(server, budget=refused.value.least, drafter=agent), sync, ASK)
    assert out["best"]["answer"].isdigit()
    assert server.settled().served <= refused.value.least.limits()["tokens"]


@both
@pytest.mark.parametrize("rules", [20, 200, 500])
@pytest.mark.parametrize("strategy", ["adaptive", "best_of_n"])
def test_drafts_have_room_for_instructions_that_their_chain_adds(
    server: Server, sync: bool, rules: int, strategy: str
) -> None:
    def chain(model: Any) -> Any:
        return (
            ChatPromptTemplate([("system", "rule " * rules), ("placeholder", "{messages}")]) | model
        )

    server.script = by_place
    options: Any = {"strategy": strategy, "scorer": lambda question, answer: 0.5}
    out = invoke(thinker(server, budget=Budget(tokens=1_500), drafter=chain, **options), sync, ASK)
    assert out["stop_reason"] == "tokens"
    assert out["best"]["answer"].isdigit()
    assert out["spent"]["tokens"] == server.settled().served <= 1_500


@both
def test_an_agents_failing_call_costs_its_draft_not_the_run(server: Server, sync: bool) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        broken = request["seed"] == 2 * PLACES + 1
        return Reply(error=400) if broken else using_tools(1)(request, i)

    server.script = script
    out = invoke(thinker(server, budget=Budget(calls=12), drafter=agent), sync, ASK)
    assert any("HTTP 400" in error for error in out["errors"])
    assert out["spent"]["calls"] == len(server.calls) - 1
    assert out["best"]["answer"].isdigit()
    assert not any("river" in error for error in out["errors"])


@both
def test_a_stop_ends_an_agents_draft(server: Server, sync: bool) -> None:
    stop = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        if len(server.calls) > 9:
            stop.set()
            return Reply(text=None, pace=0.01, ignore_limit=True)
        return using_tools(1)(request, i)

    server.script = script
    app = thinker(server, budget=Budget(tokens=50_000), drafter=agent)
    out = invoke(app, sync, ASK, context={"stop": stop})
    assert out["stop_reason"] == "interrupted"
    assert out["best"]["answer"].isdigit()
    assert out["spent"]["tokens"] >= server.settled().served


@both
def test_calls_side_by_side_share_one_slice(server: Server, sync: bool) -> None:
    """Each fills its limit; together they keep to the draft's part, and so to the budget."""
    kept: list[Any] = []

    def drafter(model: Any) -> Any:
        kept.append(model)
        ask = RunnableLambda(lambda state: state["messages"]) | model
        refused = RunnableLambda(lambda _: {"a": "none"})
        both = RunnableParallel(a=ask, b=ask).with_fallbacks([refused])
        return both | (lambda found: str(getattr(found["a"], "text", found["a"])))

    server.script = lambda request, i: Reply(text=None)
    out = invoke(thinker(server, budget=Budget(tokens=2_000), drafter=drafter), sync, ASK)
    assert 0 < server.settled().served <= out["spent"]["tokens"] <= 2_000
    assert out["spent"]["calls"] == len(server.calls)
    calls = len(server.calls)
    with pytest.raises(RuntimeError, match="no further call"):
        kept[-1].invoke("Once more.")
    assert len(server.calls) == calls


class Bend(BaseModel):
    why: str


def test_what_an_agent_may_return(server: Server) -> None:
    server.script = lambda request, i: Reply(text="so <answer>9</answer>")

    def best(made: Any, **options: Any) -> str:
        drafter = lambda model: RunnableLambda(lambda state: model.invoke(state["messages"])) | made  # noqa: E731
        app = thinker(server, budget=Budget(calls=1), drafter=drafter, **options)
        return str(app.invoke(ASK)["best"]["answer"])

    assert best(lambda message: message) == "9"
    assert best(lambda message: {"messages": [message]}) == "9"
    assert best(lambda message: f"<answer>{message.id and 8}</answer>") == "8"
    schema = best(lambda _: {"structured_response": Bend(why="so")}, answer=Bend, scorer="vote")
    assert Bend.model_validate_json(schema) == Bend(why="so")
    app = thinker(
        server, budget=Budget(calls=1), drafter=lambda model: RunnableLambda(lambda _: 42)
    )
    with pytest.raises(NoAnswer, match="TypeError"):
        app.invoke(ASK)
    with pytest.raises(ValueError, match="drafter=str"):
        create_anytime_graph(server.model(), drafter="agent")  # type: ignore[arg-type]


def test_an_agents_finished_drafts_outlive_the_state_and_its_words_only_if_kept(
    server: Server, tmp_path: Path
) -> None:
    """The checkpoints are lost, the ledger is not: nothing is bought again."""
    server.script = using_tools(1)
    for record in ("all", "usage"):
        server.calls.clear()
        with open_checkpoints(tmp_path / f"{record}.db", record=record) as store:  # type: ignore[arg-type]
            graph = create_anytime_graph(
                server.model(seed=0),
                budget=Budget(tokens=4_000),
                scorer=score,
                strategy="best_of_n",
                drafter=agent,
                ledger=store.ledger,
            )
            first = graph.compile(InMemorySaver()).invoke(ASK, ON)
            served = server.settled().served
            if record == "all":
                second = graph.compile(InMemorySaver()).invoke(ASK, ON)
                assert second["best"]["answer"] == first["best"]["answer"]
                assert second["spent"]["calls"] == first["spent"]["calls"]
                assert second["spent"]["tokens"] == first["spent"]["tokens"] == served
                assert server.settled().served == served
        if record == "usage":
            told = b"".join(path.read_bytes() for path in tmp_path.glob("usage.db*"))
            assert b"meanings" not in told
            assert b"look_up" not in told
