"""An agent whose budget is used up asks a human for more before its last call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, LLMToolSelectorMiddleware
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from anytime_graph import Budget, BudgetTooSmall, open_checkpoints
from anytime_graph.middleware import TokenBudgetMiddleware, metered
from tests.kit.asking_agents import ANSWER, ON, QUESTION, agent, last, look_up, looking, run
from tests.kit.forks import forked
from tests.kit.marks import both
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server, serving


def asked(out: Any) -> Any:
    (question,) = out["__interrupt__"]
    return question.value


@both
def test_it_asks_before_its_last_call_and_goes_on_with_what_it_is_given(
    server: Server, sync: bool
) -> None:
    server.script = looking
    app = agent(server, Budget(calls=3), checkpointer=InMemorySaver())
    question = asked(run(app, sync=sync))
    assert (question["stop_reason"], question["answer"]) == ("calls", "Look 1.")
    assert (question["spent"]["calls"], question["limits"]) == (2, {"calls": 3})
    question = asked(run(app, Command(resume={"calls": 2}), sync))
    assert (question["answer"], question["limits"]) == ("Look 3.", {"calls": 5})
    assert asked(run(app, Command(resume=400), sync))["fault"].startswith("resume={'tokens': 400}")
    out = run(app, Command(resume=0), sync)
    assert (out["stop_reason"], last(out), out["spent"]["calls"]) == ("calls", ANSWER, 5)
    assert len(server.calls) == 5
    assert "tools" not in server.calls[-1].request
    texts = [m.text for m in out["messages"] if m.type == "ai"]
    assert texts == ["Look 0.", "Look 1.", "Look 2.", "Look 3.", ANSWER]


@pytest.mark.parametrize("answer", [0, "stop", False, None])
def test_an_answer_that_grants_nothing_brings_the_last_call(server: Server, answer: Any) -> None:
    server.script = looking
    app = agent(server, Budget(tokens=1_500), checkpointer=InMemorySaver())
    out = run(app)
    (question,) = out["__interrupt__"]
    calls = len(server.calls)
    out = run(app, Command(resume={question.id: answer}))
    assert (out["stop_reason"], last(out), len(server.calls)) == ("tokens", ANSWER, calls + 1)
    assert out["spent"]["tokens"] == server.served <= 1_500


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("kept", [False, True], ids=["", "in a ledger"])
def test_an_agent_asks_for_more_tool_calls(
    server: Server, tmp_path: Path, sync: bool, kept: bool
) -> None:
    server.script = looking
    ran: list[str] = []

    @tool
    def look_up(topic: str) -> str:
        """Look up what is known about a topic."""
        ran.append(topic)
        return f"{topic} bend"

    with open_checkpoints(tmp_path / "a.db") as store:
        more: Any = {"ledger": store.ledger} if kept else {}
        budget = Budget(tool_calls=2, tokens=100_000)
        app = agent(server, budget, tools=[look_up], checkpointer=InMemorySaver(), **more)
        assert asked(run(app, sync=sync))["stop_reason"] == "tool_calls"
        assert len(ran) == 2
        question = asked(run(app, Command(resume={"tool_calls": 3}), sync))
        assert (len(ran), question["limits"]["tool_calls"]) == (5, 5)
        out = run(app, Command(resume=0), sync)
        assert (last(out), out["stop_reason"], len(ran)) == (ANSWER, "tool_calls", 5)
        assert out["spent"]["tool_calls"] == 5
        assert {name: by["tool_calls"] for name, by in out["spent_by"].items()} == {
            "model": 0,
            "look_up": 5,
        }
        assert sum(by["tokens"] for by in out["spent_by"].values()) == out["spent"]["tokens"]
        if kept:
            (shown,) = store.ledger.runs("1")
            assert shown["spent"] == out["spent"]


def test_a_run_asked_for_more_that_ends_by_itself_is_done(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return looking(request, i) if i < 3 else Reply(text=ANSWER)

    server.script = script
    app = agent(server, Budget(calls=3), checkpointer=InMemorySaver())
    asked(run(app))
    out = run(app, Command(resume={"calls": 4}))
    assert (out["stop_reason"], last(out), out["spent"]["calls"]) == ("done", ANSWER, 4)


@both
@pytest.mark.parametrize("reserve", [0.2, 0])
def test_an_agent_without_tools_asks_after_a_reply_that_its_budget_cut(
    server: Server, sync: bool, reserve: float
) -> None:
    server.script = lambda request, i: Reply(text="so " * 300) if i != 1 else Reply(text=ANSWER)
    app = agent(server, Budget(tokens=500), tools=[], reserve=reserve, checkpointer=InMemorySaver())
    out = run(app, sync=sync)
    assert asked(out)["answer"].startswith("so so")
    more = run(app, Command(resume=3_000), sync)
    assert (last(more), more["stop_reason"]) == (ANSWER, "done")
    assert [m.type for m in more["messages"]] == ["human", "ai"]
    assert server.calls[0].request["messages"] == server.calls[1].request["messages"]


def test_what_was_written_before_the_question_is_in_the_last_call(server: Server) -> None:
    server.script = lambda request, i: Reply(text="so " * 300) if i == 0 else Reply(text=ANSWER)
    app = agent(server, Budget(tokens=500), tools=[], checkpointer=InMemorySaver())
    asked(run(app))
    out = run(app, Command(resume="stop"))
    assert (last(out), out["stop_reason"]) == (ANSWER, "tokens")
    assert "so so" in server.calls[-1].text
    assert [m.type for m in out["messages"]] == ["human", "ai"]
    assert out["spent"]["tokens"] == server.served <= 500


def test_it_needs_a_checkpointer_and_nothing_is_spent_without(server: Server) -> None:
    with pytest.raises(ValueError, match=r"on_exhausted='ask'.*checkpointer"):
        agent(server, Budget(calls=3)).invoke(QUESTION)
    with pytest.raises(BudgetTooSmall):
        run(agent(server, Budget(tokens=60), checkpointer=InMemorySaver()))
    assert not server.calls
    with pytest.raises(ValueError, match="on_exhausted='beg'"):
        TokenBudgetMiddleware(Budget(calls=3), on_exhausted="beg")  # type: ignore[arg-type]


def test_only_an_agent_that_asks_has_a_node_for_it(server: Server) -> None:
    asks = agent(server, Budget(calls=3)).get_graph().nodes
    usual = create_agent(
        server.model(), [look_up], middleware=[TokenBudgetMiddleware(Budget(calls=3))]
    )
    assert set(asks) - set(usual.get_graph().nodes) == {"TokenBudgetMiddleware.after_model"}


def test_what_other_middlewares_bought_and_asked_is_not_bought_or_asked_again(
    server: Server,
) -> None:
    """A tool selector calls a model before each turn, and a user approves each tool call."""

    def script(request: dict[str, Any], i: int) -> Reply:
        if "response_format" in request:
            return Reply(text='{"tools": ["look_up"]}')
        return looking(request, i)

    server.script = script
    middleware = [
        TokenBudgetMiddleware(Budget(calls=5), on_exhausted="ask"),
        LLMToolSelectorMiddleware(model=metered(server.model())),
        HumanInTheLoopMiddleware({"look_up": True}),
    ]
    app = create_agent(
        server.model(),
        [look_up],
        middleware=middleware,
        checkpointer=InMemorySaver(),
    )
    out, approvals, questions = run(app), 0, 0
    while "__interrupt__" in out:
        if "action_requests" in asked(out):
            approvals += 1
            out = run(app, Command(resume={"decisions": [{"type": "approve"}]}))
        else:
            questions += 1
            out = run(app, Command(resume={"calls": 2} if questions < 3 else 0))
        assert out["spent"]["calls"] == len(server.calls)
    assert (questions, last(out)) == (3, ANSWER)
    assert approvals == sum(bool(getattr(m, "tool_calls", ())) for m in out["messages"])
    assert out["spent"]["tokens"] == server.served


@both
def test_a_sub_agent_asks_through_its_caller_but_not_for_what_its_caller_lacks(
    server: Server, sync: bool
) -> None:
    worker = agent(server, Budget(calls=2))

    @tool
    def delegate(task: str) -> str:
        """Have a task done by a worker."""
        return last(worker.invoke({"messages": [("user", task)]}))

    def script(request: dict[str, Any], i: int) -> Reply:
        names = [t["function"]["name"] for t in request.get("tools", ())]
        if "delegate" in names:
            told = any(m["role"] == "tool" for m in request["messages"])
            return Reply(text="So.", tools=[] if told else [("delegate", {"task": "rivers"})])
        return looking(request, i)

    server.script = script
    boss = create_agent(
        server.model(),
        [delegate],
        middleware=[TokenBudgetMiddleware(Budget(calls=6))],
        checkpointer=InMemorySaver(),
    )
    out = run(boss, sync=sync)
    assert asked(out)["limits"] == {"calls": 2}
    out = run(boss, Command(resume={"calls": 90}), sync)  # the caller has 4 more
    assert (last(out), out["stop_reason"]) == (ANSWER, "calls")
    assert out["spent"]["calls"] == len(server.calls) == 6
    assert out["spent"]["tokens"] == server.served


def test_what_is_granted_to_a_thread_stays_for_its_next_question(server: Server) -> None:
    server.script = looking
    saver = InMemorySaver()

    def app() -> Any:
        return agent(server, Budget(calls=3), per="thread", checkpointer=saver)

    asked(run(app()))
    out = run(app(), Command(resume={"calls": 4}))
    assert asked(out)["limits"] == {"calls": 7}
    assert asked(run(app()))["spent"]["calls"] == 6
    out = run(app(), Command(resume={"calls": 2}))
    assert asked(out)["limits"] == {"calls": 9}
    assert run(app(), Command(resume=0))["spent"]["calls"] == len(server.calls) == 9


PROCESS = """
import json
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from anytime_graph import Budget
from tests.kit.asking_agents import QUESTION, agent, last, run
from tests.kit.server import Server

given = json.loads({given!r})
with SqliteSaver.from_conn_string("agent.db") as saver:
    app = agent(Server({url!r}), Budget(calls=3), checkpointer=saver)
    out = run(app, QUESTION if given is None else Command(resume=given["answer"]))
    print(len(out.get("__interrupt__", ())), out["spent"]["calls"], last(out))
"""


def test_another_process_resumes_and_nothing_is_bought_twice(
    server: Server, tmp_path: Path
) -> None:
    said = []
    for words in (None, {"answer": {"calls": 2}}, {"answer": "stop"}):
        server.script = looking
        code = PROCESS.format(given=json.dumps(words), url=server.url)
        done = forked(code, tmp_path, {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    assert said == ["1 2 Look 1.", "1 4 Look 3.", f"0 5 {ANSWER}"]
    assert len(server.calls) == 5


@settings(max_examples=5, deadline=None)
@given(
    budget=st.integers(400, 2_000),
    grants=st.lists(st.integers(1, 3_000), max_size=4),
    tools=st.booleans(),
    words=st.sampled_from(["Let me look.", "so I think " * 40, None]),
)
def test_however_often_it_is_asked_no_token_is_spent_beyond_what_was_granted(
    budget: int,
    grants: list[int],
    tools: bool,
    words: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each part of the run is an agent of its own, as in another process, over one file."""
    folder = tmp_path_factory.mktemp("asked")
    with serving() as server:

        def script(request: dict[str, Any], i: int) -> Reply:
            calls = [("look_up", {"topic": "rivers"})] if request.get("tools") else []
            return Reply(text=words, tools=calls, piece=20)

        server.script = script

        def parts() -> Iterator[Any]:
            for given in [QUESTION, *grants, 0]:
                with SqliteSaver.from_conn_string(str(folder / "asked.db")) as saver:
                    app = agent(
                        server, Budget(tokens=budget), tools=[look_up] * tools, checkpointer=saver
                    )
                    if app.get_state(ON).values and not app.get_state(ON).next:
                        return
                    if isinstance(given, int):
                        granted.append(given)
                        given = Command(resume=given)
                    yield run(app, given)

        granted: list[int] = []
        for out in parts():
            assert server.settled().served <= budget + sum(granted)
            assert out["spent"]["tokens"] == server.served
            assert out["spent"]["calls"] == len(server.calls)
        assert "__interrupt__" not in out
