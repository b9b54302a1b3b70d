"""`langgraph dev`, really started, over the repository's own langgraph.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core._api import LangChainBetaWarning
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel.remote import RemoteGraph
from langgraph.stream import CustomTransformer
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

from anytime_graph import Budget, Context, Prices, create_anytime_graph, fork
from tests.kit.dev import developing
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server, prompt_tokens, serving
from tests.kit.waiting import PATIENCE

QUESTION = {"messages": [{"role": "user", "content": "Why do rivers bend?"}]}

ASKING = """
from langchain.agents import create_agent

from anytime_graph import Budget, create_anytime_graph
from anytime_graph.middleware import TokenBudgetMiddleware


def look_up(topic: str) -> str:
    '''Look up what is known about a topic.'''
    return "Rivers bend."


model = "openai:gpt-4.1-mini"
graph = create_anytime_graph(
    model,
    budget=Budget(calls=2),
    scorer=lambda question, answer: int(answer) / 99,
    strategy="best_of_n",
    on_exhausted="ask",
)
asks = TokenBudgetMiddleware(Budget(calls=2), on_exhausted="ask")
agent = create_agent(model, [look_up], middleware=[asks])
"""


@dataclass
class Dev:
    """A running `langgraph dev`, and the endpoint that its models reach."""

    client: SyncLangGraphClient
    endpoint: Server

    def thread(self) -> str:
        return str(self.client.threads.create()["thread_id"])

    def assistant(self, **context: Any) -> str:
        made = self.client.assistants.create("anytime", context=context)
        return str(made["assistant_id"])


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("dev")
    config = json.loads((ROOT / "langgraph.json").read_text())
    graphs = {name: str(ROOT / path) for name, path in config["graphs"].items()}
    (folder / "asking.py").write_text(ASKING)
    graphs |= {f"asking {n}": f"{folder}/asking.py:{n}" for n in ("graph", "agent")}
    (folder / "served.json").write_text(json.dumps({**config, "graphs": graphs}))
    with (
        serving() as endpoint,
        developing(folder, folder / "served.json", endpoint) as url,
        get_sync_client(url=url) as client,
    ):
        yield Dev(client, endpoint)
    assert "locking" not in (folder / "log").read_text()


@pytest.fixture
def endpoint(dev: Dev) -> Server:
    """With fresh books; each draft gets its place among the calls for an answer."""
    dev.endpoint.settled().calls.clear()
    dev.endpoint.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    return dev.endpoint


def test_an_assistant_configures_the_graph(dev: Dev, endpoint: Server) -> None:
    """Asked as people would: through RemoteGraph, on a thread, its answers streamed."""
    name = dev.assistant(
        model="gpt-4.1-mini", strategy="self_consistency", budget={"calls": 5, "tokens": 9_000}
    )
    remote = RemoteGraph(name, sync_client=dev.client)
    thread: RunnableConfig = {"configurable": {"thread_id": dev.thread()}}
    events = list(remote.stream(QUESTION, thread, stream_mode=["custom", "values"]))
    out = events[-1][1]
    improved = [event for mode, event, *_ in events if mode == "custom"]
    assert improved[-1]["answer"] == out["best"]["answer"] == out["messages"][-1]["content"]
    assert out["limits"] == {"calls": 5, "tokens": 9_000}
    assert out["spent"]["tokens"] == endpoint.served
    assert out["spent_by"].keys() == {"draft"}
    assert not out["errors"], "a blocking call would be among them"
    assert {call.request["model"] for call in endpoint.calls} == {"gpt-4.1-mini"}

    more = remote.invoke({"budget": {"calls": 2}}, thread)
    assert more["spent"]["calls"] == len(endpoint.calls) == 7
    assert remote.get_state(thread).values["best"] == more["best"]

    asked = {"messages": [("user", "And glaciers?")], "budget": {"calls": 1}}
    assert remote.invoke(asked, thread)["spent"]["calls"] == 1


def test_a_cancelled_run_has_its_best_and_goes_on(dev: Dev, endpoint: Server) -> None:
    name = dev.assistant(model="gpt-4.1-mini", strategy="self_consistency", budget={"calls": 10})
    client, thread = dev.client, dev.thread()
    endpoint.script = lambda request, i: Reply(
        f"so <answer>{i}</answer>", error="hang" if i == 6 else None
    )
    one_by_one: Any = {"max_concurrency": 1}  # so that nothing else is cut
    run = client.runs.create(
        thread, name, input=QUESTION, config=one_by_one, stream_mode=["custom"]
    )
    with endpoint.changed:
        assert endpoint.changed.wait_for(lambda: len(endpoint.calls) == 7, timeout=PATIENCE)
    streamed = client.runs.join_stream(thread, run["run_id"], cancel_on_disconnect=True)
    client.runs.cancel(thread, run["run_id"], wait=True)
    list(streamed)
    state = client.threads.get_state(thread)
    assert state["values"]["best"]["answer"] in "0123"
    assert state["next"]

    out = client.runs.wait(thread, name, input=None)
    assert out["stop_reason"] == "calls"
    assert out["best"]["answer"] == state["values"]["best"]["answer"]
    assert out["spent"]["calls"] == len(endpoint.calls) == 10
    assert out["spent"]["tokens"] > endpoint.settled().served
    assert any("in flight" in error for error in out["errors"])


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"strategy": "best"}, "strategy='best': did you mean 'best_of_n'? one of single"),
        ({"strategy": ["pdp"]}, "context strategy=['pdp']: its name is needed"),
        ({"model": "openai:gpt-5"}, "context model='openai:gpt-5': one of local, gpt-4.1-mini"),
        ({"model": "local:/etc/passwd"}, "one of local, gpt-4.1-mini"),
        ({"budget": {"token": 9}}, "budget: unknown ['token']; a budget has tokens, "),
        ({"budget": {"tokens": "many"}}, "tokens='many': a budget is a number"),
        ({"budget": {"tokens": 9}, "model": "gpt-4.1-mini"}, "the least is tokens="),
    ],
)
def test_a_bad_context_is_explained(
    context: dict[str, Any], said: str, dev: Dev, endpoint: Server
) -> None:
    name, thread = dev.assistant(**context), dev.thread()
    out = dev.client.runs.wait(thread, name, input=QUESTION, raise_error=False)
    assert said in out["__error__"]["message"]
    assert not endpoint.calls


def test_the_embedded_model_is_served(dev: Dev, endpoint: Server) -> None:
    asked = {**QUESTION, "budget": {"tokens": 400, "calls": 1}}
    out = dev.client.runs.wait(None, "anytime", input=asked)
    assert out["best"]["answer"]
    assert 0 < out["spent"]["tokens"] <= 400
    assert not any("Blocking" in error for error in out["errors"])
    assert not endpoint.calls


def test_the_newest_event_stream_carries_improving_answers(served: Server) -> None:
    """`stream_events(version="v3")` is beta in LangGraph 1.2, and says so."""
    app = create_anytime_graph(
        served.model(seed=1), budget=Budget(calls=4), strategy="self_consistency"
    ).compile()
    asked: Any = {"messages": [("user", "Why?")]}
    with pytest.warns(LangChainBetaWarning, match="experimental"):
        run = app.stream_events(asked, version="v3", transformers=[CustomTransformer])
    improved = list(run.extensions["custom"])
    assert run.output is not None
    assert improved[-1]["answer"] == run.output["best"]["answer"]


def test_a_question_keeps_the_model_it_was_begun_with(server: Server) -> None:
    server.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    models = {name: server.model().model_copy(update={"model_name": name}) for name in "ab"}
    graph = create_anytime_graph(models, budget=Budget(calls=1), strategy="best_of_n")
    app = graph.compile(InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "rivers"}}

    def used(asked: Any, config: RunnableConfig = thread, **context: Any) -> list[str]:
        server.calls.clear()
        app.invoke(asked, config, context=Context(**context))
        return [call.request["model"] for call in server.calls]

    question: Any = {"messages": [("user", "Why?")]}
    assert used(question, model="b", strategy="self_consistency") == ["b"]
    assert used({"budget": Budget(calls=2)}, model="a") == ["b", "b"]
    branch = fork(app, app.get_state(thread).config, Budget(calls=5))
    assert used(None, branch, model="a", strategy="single") == []
    branch = fork(app, app.get_state(thread).config, Budget(calls=5))
    assert used(None, branch, model="a", strategy="self_consistency") == ["a", "a"]
    assert used({"messages": [("user", "And glaciers?")]}) == ["a"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": {}}, "model={}: name at least one"),
        ({"model": {1: "local"}}, "model={1: 'local'}: name at least one"),
        ({"model": {"a": "gpt"}}, "model='gpt': 'local', "),
        ({"model": {"a": "local"}, "prices": Prices(input=1, output=1)}, "prices: they cannot"),
    ],
)
def test_bad_choices_are_refused_at_construction(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        create_anytime_graph(**options)


def test_a_fork_to_another_model_does_not_bound_prompts_by_what_the_first_one_counted(
    server: Server,
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        counted = prompt_tokens(request["messages"]) + 20
        usage = {"prompt_tokens": counted, "completion_tokens": 2, "total_tokens": counted + 2}
        return Reply(f"so <answer>{i}</answer>", usage=usage if request["model"] == "b" else "true")

    server.script = script
    models = {name: server.model().model_copy(update={"model_name": name}) for name in "ab"}
    graph = create_anytime_graph(
        models, budget=Budget(tokens=1_000, calls=4), strategy="self_consistency"
    )
    app = graph.compile(InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "rivers"}}
    app.invoke({"messages": [("user", "Why?")]}, thread)
    branch = fork(app, app.get_state(thread).config, Budget(tokens=2_000, calls=8))
    out = app.invoke(None, branch, context=Context(model="b"))
    assert {call.request["model"] for call in server.calls[4:]} == {"b"}
    assert not out["errors"]


@pytest.mark.parametrize("name", ["graph", "agent"])
def test_what_asks_a_human_is_answered_over_the_api(dev: Dev, endpoint: Server, name: str) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        tools: Any = [("look_up", {"topic": "rivers"})] if request.get("tools") else []
        return Reply(f"so <answer>{i}</answer>", tools=tools)

    endpoint.script = script
    thread, given = dev.thread(), {"input": QUESTION}
    for answer, limit in (({"calls": 2}, 2), (0, 4)):
        dev.client.runs.wait(thread, f"asking {name}", **given)
        state: Any = dev.client.threads.get_state(thread)
        (question,) = state["tasks"][0]["interrupts"]
        assert question["value"]["limits"] == {"calls": limit}
        given = {"command": {"resume": answer}}
    out: Any = dev.client.runs.wait(thread, f"asking {name}", **given)
    assert (out["stop_reason"], out["spent"]["calls"]) == ("calls", 4)
    assert len(endpoint.settled().calls) == 4
