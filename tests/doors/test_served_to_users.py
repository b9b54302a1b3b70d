"""examples/served_to_users.py as `langgraph dev` serves it. Ann tries to get what is Bob's, and more than
she may have, in every way that the API has. Each test is a kind of attack, and none succeeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from anytime_graph import Budget, Quota, open_checkpoints
from tests.kit.dev import developing
from tests.kit.ledgers import sql
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server, serving
from tests.kit.waiting import PATIENCE

TOKENS = {"of Ann": "ann", "of Bob": "bob", "of Carl": "carl"}
QUESTION = {"messages": [{"role": "user", "content": "Why do rivers bend?"}]}
SECRET = "It is Bob's secret."
ONE = {"calls": 1}
ASK = {**QUESTION, "budget": ONE}
ANYTIME = {"assistant_id": "anytime"}
LIMITS = {"limits": {"calls": 99}}
PUT_DOWN = {"identity": "bob", "is_authenticated": True}


@dataclass
class User:
    """Somebody with an HTTP client."""

    http: httpx.Client

    def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.http.request(method, path, json=body)

    def got(self, path: str) -> Any:
        return self.send("GET", path).json()

    def post(self, path: str, body: Any) -> Any:
        return self.send("POST", path, body).json()

    def thread(self, **body: Any) -> str:
        return str(self.post("/threads", body)["thread_id"])

    def run(self, thread: str, **body: Any) -> dict[str, Any]:
        """The output of a run, or what kept it from one."""
        out: dict[str, Any] = self.post(f"/threads/{thread}/runs/wait", {**ANYTIME, **body})
        return out

    def runs(self, *bodies: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
        """The outputs of runs side by side, each on a thread of its own, and those threads."""
        threads = [self.thread() for _ in bodies]
        with ThreadPoolExecutor(len(bodies)) as pool:
            outs = pool.map(lambda thread, body: self.run(thread, **body), threads, bodies)
            return threads, list(outs)

    def errors(self, *bodies: dict[str, Any]) -> list[str]:
        """What such runs end with."""
        _, outs = self.runs(*bodies)
        return [out["__error__"]["message"] if "__error__" in out else str(out) for out in outs]


@contextmanager
def user(url: str, token: str) -> Iterator[User]:
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as http:
        yield User(http)


@dataclass
class Bobs:
    """What Bob has on the server."""

    user: User
    thread: str
    run: str
    checkpoint: str
    assistant: str
    cron: str

    def seen(self) -> list[Any]:
        """All of it, as Bob sees it."""
        places = (
            f"/threads/{self.thread}",
            f"/threads/{self.thread}/state",
            f"/threads/{self.thread}/history",
            f"/threads/{self.thread}/runs",
            f"/assistants/{self.assistant}",
            f"/runs/crons/{self.cron}",
            "/store/items?namespace=bob.notes&key=k",
        )
        return [self.user.got(place) for place in places]


@dataclass
class Place:
    """A server, its ledger, the endpoint that its models reach, and what is there to be had."""

    url: str
    endpoint: Server
    ledger: str
    bobs: Bobs

    def of(self, thread: str, what: str) -> list[str]:
        """This column of the runs of a thread, or their key of this name."""
        column = "r.namespace" if what == "namespace" else "l.value"
        rows = sql(
            self.ledger,
            f"SELECT {column} FROM runs r LEFT JOIN labels l ON l.run_id = r.id "
            f"AND l.name = '{what}' WHERE r.thread = '{thread}' ORDER BY r.started",
        )
        return [value for (value,) in rows]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("users")
    target = str(folder / "anytime.db")
    with open_checkpoints(target) as store:
        store.ledger.quotas.keep(Quota(Budget(calls=2), per="user", window="1d"), "carl")
    config, env = ROOT / "examples" / "served_to_users.json", {"ANYTIME_TOKENS": json.dumps(TOKENS)}
    with (
        serving() as endpoint,
        developing(folder, config, endpoint, **env) as url,
        user(url, "of Bob") as bob,
    ):
        endpoint.script = lambda request, i: Reply(f"<answer>{SECRET}</answer>")
        yield Place(url, endpoint, target, _bobs(bob))


def _bobs(bob: User) -> Bobs:
    thread = bob.thread()
    out = bob.run(thread, input=ASK, context={"namespace": ["notes"]})
    assert out["best"]["answer"] == SECRET
    item = {"namespace": ["bob", "notes"], "key": "k", "value": {"text": SECRET}}
    assert bob.send("PUT", "/store/items", item).is_success
    cron = {**ANYTIME, "schedule": "0 0 1 1 *", "input": QUESTION}
    assistant = bob.post("/assistants", {"graph_id": "anytime", "context": {"budget": ONE}})
    return Bobs(
        bob,
        thread,
        bob.got(f"/threads/{thread}/runs")[0]["run_id"],
        bob.got(f"/threads/{thread}/state")["checkpoint"]["checkpoint_id"],
        assistant["assistant_id"],
        bob.post(f"/threads/{thread}/runs/crons", cron)["cron_id"],
    )


@pytest.fixture
def endpoint(served: Place) -> Server:
    """With fresh books."""
    served.endpoint.settled().calls.clear()
    served.endpoint.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    return served.endpoint


@pytest.fixture
def ann(served: Place, endpoint: Server) -> Iterator[User]:
    with user(served.url, "of Ann") as ann:
        yield ann


@pytest.fixture
def bobs(served: Place) -> Iterator[Bobs]:
    """Which no attack reaches or changes."""
    before = served.bobs.seen()
    assert all(SECRET in str(before[i]) for i in (0, 1, 2, 6))
    yield served.bobs
    assert served.bobs.seen() == before


@pytest.fixture
def own(ann: User) -> str:
    """A thread of Ann's, with an answer that cost a call."""
    thread = ann.thread()
    assert ann.run(thread, input=ASK)["spent"]["calls"] == 1
    return thread


def reaches_nothing(user: User, *requests: tuple[str, str, Any]) -> None:
    """Each is refused, or answered with nothing."""
    for method, path, body in requests:
        with user.http.stream(method, path, json=body) as answer:
            said = answer.read().decode()
        refused = answer.status_code in (401, 403, 404, 409, 422)
        assert refused or "404: Thread" in said or said in ("[]", "0"), (path, body, said)
        assert SECRET not in said


# --- who asks


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer bob"},
        {"authorization": "Bearer of bob"},
        {"x-auth-scheme": "langsmith", "x-api-key": "none"},
        {"x-user-id": "bob", "langgraph_auth_user": "bob"},
    ],
    ids=["none", "a name", "another case", "as Studio", "in a header"],
)
def test_who_has_no_token_gets_nothing(served: Place, bobs: Bobs, headers: Any) -> None:
    with httpx.Client(base_url=served.url, headers=headers) as nobody:
        for method, path in (
            ("POST", "/threads/search"),
            ("POST", "/threads"),
            ("GET", f"/threads/{bobs.thread}/state"),
            ("POST", "/runs/wait"),
            ("POST", "/store/items/search"),
        ):
            assert nobody.request(method, path, json={}).status_code == 401


def test_who_the_user_is_cannot_be_said_in_a_request(
    served: Place, ann: User, endpoint: Server
) -> None:
    """In the context, the config, the metadata, an assistant, or a header."""
    kept = {"configurable": {"langgraph_auth_user": PUT_DOWN, "user": "bob"}}
    made = ann.post("/assistants", {"graph_id": "anytime", "config": kept})
    threads, _ = ann.runs(
        *(
            {"input": ASK, **how}
            for how in (
                {"config": {"configurable": {"langgraph_auth_user": PUT_DOWN}}},
                {"config": {"configurable": {"langgraph_auth_user_id": "bob"}}},
                {"config": {"configurable": {"user_id": "bob", "user": "bob", "identity": "bob"}}},
                {"config": {"metadata": {"user": "bob", "langgraph_auth_user": PUT_DOWN}}},
                {"context": {"user": "bob", "langgraph_auth_user": PUT_DOWN}},
                {"metadata": {"owner": "bob", "user": "bob", "langgraph_auth_user": PUT_DOWN}},
                {"assistant_id": made.get("assistant_id", "anytime")},
            )
        )
    )
    users = [served.of(thread, "user") for thread in threads]
    assert ["ann"] in users
    assert all(user in (["ann"], []) for user in users)


# --- budgets


@pytest.mark.parametrize("way", ["input", "context", "configurable", "assistant"])
def test_no_budget_is_larger_than_the_most(ann: User, endpoint: Server, way: str) -> None:
    def asked(budget: Any) -> dict[str, Any]:
        if way == "input":
            return {"input": {**QUESTION, "budget": budget}}
        if way == "context":
            return {"input": QUESTION, "context": {"budget": budget}}
        if way == "configurable":
            return {"input": QUESTION, "config": {"configurable": {"budget": budget}}}
        kept = {"graph_id": "anytime", "context": {"budget": budget}}
        return {
            "input": QUESTION,
            "assistant_id": ann.post("/assistants", kept)["assistant_id"],
        }

    refusals = {
        "budget calls=21: at most tokens=10000, calls=20 may be asked for": {"calls": 21},
        "budget tokens=10001: at most": {"tokens": 10_001},
        "tokens=-1: a budget is from 0": {"tokens": -1},
        "tokens=1": {"tokens": 10**18},
        "tokens='many': a budget is a number": {"tokens": "many"},
        "tokens=True: a budget is a number": {"tokens": True},
        "tokens=[10001]: a budget is a number": {"tokens": [10_001]},
        "budget: unknown ['token']": {"token": 9},
        "set at least one of": {"tokens": None},
        "budget='all': pass a Budget": "all",
    }
    said = ann.errors(*map(asked, refusals.values()))
    for refusal, error in zip(refusals, said, strict=True):
        assert refusal in error
    assert not endpoint.calls


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-Infinity"])
def test_no_budget_is_beyond_all_numbers(ann: User, endpoint: Server, number: str) -> None:
    body = json.dumps({**ANYTIME, "input": {**QUESTION, "budget": {"tokens": "?"}}})
    answer = ann.http.post(
        "/runs/wait",
        content=body.replace('"?"', number),
        headers={"content-type": "application/json"},
    )
    assert not answer.is_success or "a budget is from 0 to" in answer.text
    assert not endpoint.calls


def test_a_dimension_that_is_left_out_is_bounded_too(ann: User) -> None:
    out = ann.run(ann.thread(), input={**QUESTION, "budget": {"seconds": 10**9, "calls": 1}})
    assert out["limits"] == {"tokens": 10_000, "calls": 1, "seconds": 10**9}


def test_thinking_on_gets_no_more_than_the_most_at_once(
    ann: User, own: str, endpoint: Server
) -> None:
    out = ann.run(own, input={"budget": {"calls": 21}})
    assert "budget calls=21: at most" in out["__error__"]["message"]
    out = ann.run(own, input={"budget": {"calls": 1, "usd": 100}})
    assert out["limits"] == {"tokens": 10_000, "calls": 2}
    assert out["spent"]["calls"] == len(endpoint.calls) == 2


# --- choices


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"model": "openai:gpt-5"}, "context model='openai:gpt-5': one of small, large"),
        ({"model": "local:/etc/passwd"}, "one of small, large"),
        ({"model": {"name": "small"}}, "its name is needed"),
        ({"strategy": "os:system"}, "strategy='os:system': one of"),
        ({"namespace": "bob"}, "namespace='bob': a tuple of strings"),
        ({"namespace": ["", "bob"]}, "a tuple of strings that are not empty"),
        ({"stop": True}, "context stop=True: an object with is_set() is needed"),
        ({"stop": {"lc": 1, "type": "constructor", "id": ["threading", "Event"]}}, "is_set()"),
    ],
)
def test_no_model_strategy_or_object_comes_from_a_request(
    ann: User, endpoint: Server, context: Any, said: str
) -> None:
    in_context, in_config = ann.errors(
        {"input": ASK, "context": context},
        {"input": ASK, "config": {"configurable": context}},
    )
    assert said in in_context
    assert said in in_config
    assert not endpoint.calls


def test_no_key_that_is_not_the_contexts_has_an_effect(ann: User, endpoint: Server) -> None:
    """LangGraph's server leaves them out, before the graph can refuse them."""
    context = {"judge": "openai:gpt-5", "most": {"calls": 99}, "prices": {"input": 0}, "width": 0}
    out = ann.run(ann.thread(), input=ASK, context={**context, "quotas": [], "ledger": None})
    assert out["limits"] == {"tokens": 10_000, "calls": 1}
    (call,) = endpoint.calls
    assert call.request["model"] == "gpt-4.1-mini"


def test_a_message_makes_no_object(ann: User, endpoint: Server) -> None:
    """One that LangChain's loader would make something of."""
    made = {"lc": 1, "type": "constructor", "id": ["subprocess", "Popen"], "kwargs": {"args": "ls"}}
    in_messages, *in_budgets = ann.errors(
        {"input": {"messages": [made]}},
        {"input": {**QUESTION, "budget": made}},
        {"input": QUESTION, "context": {"budget": made}},
    )
    assert "Message dict must contain" in in_messages
    assert all("budget: unknown ['id', 'kwargs', 'lc', 'type']" in error for error in in_budgets)
    assert not endpoint.calls


# --- the books of a run


def test_no_part_of_a_runs_books_can_be_written(ann: User, own: str) -> None:
    """In a state, or in a thread that is made with one."""
    before = ann.got(f"/threads/{own}/state")
    for name in ("run_id", "parent_run", "thread", "owner", "withheld", *before["values"]):
        if name == "messages":
            continue
        update = {"values": {name: 7}, "as_node": "draft"}
        command = {"command": {"update": {name: 7}}, "as_node": "draft"}
        for path, body in (
            (f"/threads/{own}/state", update),
            (f"/threads/{own}/state", {"values": {name: 7}}),
            (f"/threads/{own}/state", {**update, "as_node": "__input__"}),
            (
                "/threads",
                {"metadata": {"graph_id": "anytime"}, "supersteps": [{"updates": [update]}]},
            ),
            (
                "/threads",
                {"metadata": {"graph_id": "anytime"}, "supersteps": [{"updates": [command]}]},
            ),
        ):
            answer = ann.send("POST", path, body)
            assert answer.status_code == 400
            assert f"input '{name}': " in answer.text
    assert ann.got(f"/threads/{own}/state") == before


def test_no_input_or_command_writes_the_books(ann: User, own: str, endpoint: Server) -> None:
    errors = ann.errors(
        {"input": {**QUESTION, **LIMITS}},
        {"command": {"update": LIMITS}},
        {"command": {"update": list(LIMITS.items())}},
        {"command": {"resume": 1, "update": {"run_id": 1}}},
    )
    assert all(": an input has budget, messages" in error for error in errors), errors
    out = ann.run(own, command={"update": LIMITS})
    assert "input 'limits'" in out["__error__"]["message"]
    assert ann.got(f"/threads/{own}/state")["values"]["limits"] == {"tokens": 10_000, "calls": 1}


def test_no_command_calls_a_node(ann: User, own: str, endpoint: Server) -> None:
    """As with a plan of the client's own, which has no budget."""
    endpoint.settled().calls.clear()
    call = {"ordinal": 9, "step": 9, "move": {"kind": "draft"}, "role": "own", "slice": {}}
    plan = {"call": call, "prompt": [], "wait": 0, "run": {"run_id": 1, "thread": own, "plan": "p"}}
    for goto in (
        "draft",
        "finish",
        {"node": "draft", "input": plan},
        [{"node": "ask", "input": {}}],
    ):
        out = ann.run(own, command={"goto": goto})
        assert "command goto: the graph itself plans" in out["__error__"]["message"]
    made = {"metadata": {"graph_id": "anytime"}}
    steps = [
        {"updates": [{"command": {"goto": {"node": "draft", "input": plan}}, "as_node": "budget"}]}
    ]
    assert ann.send("POST", "/threads", {**made, "supersteps": steps}).status_code == 400
    assert not endpoint.calls


def test_a_run_that_is_held_before_a_step_keeps_its_budget(ann: User, endpoint: Server) -> None:
    thread = ann.thread()
    ann.run(thread, input=ASK, interrupt_before=["draft"])
    assert not endpoint.calls
    update = {"values": {**LIMITS, "budget": {"calls": 99}}, "as_node": "budget"}
    assert ann.send("POST", f"/threads/{thread}/state", update).status_code == 400
    out = ann.run(thread, input=None)
    assert out["limits"] == {"tokens": 10_000, "calls": 1}
    assert len(endpoint.calls) == 1


def test_a_budget_in_a_state_is_bounded_as_one_in_an_input(
    ann: User, own: str, endpoint: Server
) -> None:
    update = {"values": {"budget": {"calls": 99}}, "as_node": "draft"}
    assert ann.send("POST", f"/threads/{own}/state", update).is_success
    out = ann.run(own, input=None)
    assert "budget calls=99: at most" in out["__error__"]["message"]
    assert len(endpoint.calls) == 1


# --- threads


def test_no_thread_of_another_user_can_be_read(ann: User, bobs: Bobs) -> None:
    thread = f"/threads/{bobs.thread}"
    run = f"{thread}/runs/{bobs.run}"
    reaches_nothing(
        ann,
        ("GET", thread, None),
        ("GET", f"{thread}/state", None),
        ("GET", f"{thread}/state/{bobs.checkpoint}", None),
        ("POST", f"{thread}/state/checkpoint", {"checkpoint": {"checkpoint_id": bobs.checkpoint}}),
        ("GET", f"{thread}/history", None),
        ("POST", f"{thread}/history", {"limit": 100}),
        ("GET", f"{thread}/runs", None),
        ("GET", run, None),
        ("GET", f"{run}/join", None),
        ("GET", f"{run}/stream", None),
        ("GET", f"{thread}/stream", None),
        ("POST", f"{thread}/copy", {}),
        ("POST", "/threads", {"thread_id": bobs.thread, "if_exists": "do_nothing"}),
    )


def test_no_thread_of_another_user_can_be_found(ann: User, bobs: Bobs) -> None:
    reaches_nothing(ann, ("POST", "/threads/search", {"ids": [bobs.thread]}))
    everything = {"limit": 1_000}
    searched = [everything, {**everything, "metadata": {"owner": "bob"}}]
    for found in (ann.post("/threads/search", body) for body in searched):
        assert {thread["metadata"]["owner"] for thread in found} <= {"ann"}
    (counted, all_of_anns) = [ann.post("/threads/count", body) for body in reversed(searched)]
    assert counted == all_of_anns


def test_nothing_runs_on_a_thread_of_another_user(ann: User, bobs: Bobs, endpoint: Server) -> None:
    """Not a question, nor thinking on, resuming, branching from a checkpoint, or a cron."""
    runs = f"/threads/{bobs.thread}/runs"
    command = {"id": 1, "method": "run.start", "params": {**ANYTIME, "input": ASK}}
    reaches_nothing(
        ann,
        ("POST", runs, {**ANYTIME, "input": ASK}),
        ("POST", f"{runs}/wait", {**ANYTIME, "input": {"budget": ONE}}),
        ("POST", f"{runs}/wait", {**ANYTIME, "input": None}),
        ("POST", f"{runs}/wait", {**ANYTIME, "input": None, "checkpoint_id": bobs.checkpoint}),
        ("POST", f"{runs}/wait", {**ANYTIME, "command": {"resume": 9_000}}),
        ("POST", f"{runs}/wait", {**ANYTIME, "input": ASK, "if_not_exists": "create"}),
        ("POST", f"{runs}/stream", {**ANYTIME, "input": ASK, "multitask_strategy": "rollback"}),
        ("POST", f"{runs}/crons", {**ANYTIME, "input": ASK, "schedule": "* * * * *"}),
        ("POST", f"/threads/{bobs.thread}/commands", command),
    )
    assert not endpoint.calls


def test_no_thread_of_another_user_can_be_changed(ann: User, bobs: Bobs) -> None:
    thread = f"/threads/{bobs.thread}"
    reaches_nothing(
        ann,
        ("PATCH", thread, {"metadata": {"owner": "ann"}}),
        ("POST", f"{thread}/state", {"values": {"messages": []}}),
        ("POST", f"{thread}/runs/{bobs.run}/cancel", {}),
        ("POST", "/runs/cancel", {"thread_id": bobs.thread, "run_ids": [bobs.run]}),
        ("POST", "/runs/cancel", {"status": "all"}),
        ("DELETE", f"{thread}/runs/{bobs.run}", None),
        ("POST", "/threads/prune", {"thread_ids": [bobs.thread]}),
        ("DELETE", thread, None),
    )


def test_a_thread_that_a_config_names_is_not_the_one_that_runs(
    served: Place, ann: User, bobs: Bobs
) -> None:
    theirs = {"thread_id": bobs.thread, "checkpoint_id": bobs.checkpoint, "checkpoint_ns": ""}
    bodies = [
        {"input": body, **how}
        for body in (ASK, {"budget": ONE}, None)
        for how in (
            {"config": {"configurable": theirs}},
            {"config": {"configurable": {**theirs, "checkpoint_map": {"": bobs.checkpoint}}}},
            {"checkpoint": theirs},
            {"context": theirs},
            {"config": {"metadata": theirs}, "metadata": theirs},
        )
    ]
    threads, outs = ann.runs(*bodies)
    assert SECRET not in str(outs)
    assert {user for thread in threads for user in served.of(thread, "user")} == {"ann"}
    with ThreadPoolExecutor(len(bodies)) as pool:
        outs = list(pool.map(lambda body: ann.post("/runs/wait", {**ANYTIME, **body}), bodies))
    assert SECRET not in str(outs)
    assert served.of(bobs.thread, "user") == ["bob"]


def test_a_thread_cannot_be_given_to_another_user(ann: User, bobs: Bobs) -> None:
    """So that Bob would find in his what Ann has planted there."""
    to_bob = {"metadata": {"owner": "bob"}}
    thread = ann.thread(**to_bob)
    ann.send("PATCH", f"/threads/{thread}", to_bob)
    ann.run(thread, input=ASK, **to_bob, config=to_bob)
    made = str(uuid4())
    ann.run(made, input=ASK, if_not_exists="create", **to_bob, config=to_bob)
    for name in (thread, made):
        assert ann.got(f"/threads/{name}")["metadata"]["owner"] == "ann"
        assert bobs.user.send("GET", f"/threads/{name}").status_code == 404


def test_a_thread_that_was_deleted_leaves_nothing_to_another_user(
    served: Place, ann: User, bobs: Bobs, endpoint: Server
) -> None:
    """The ledger keeps its runs, and would know the question again by the thread."""
    endpoint.script = lambda request, i: Reply(f"<answer>{SECRET}</answer>")
    thread = bobs.user.thread()
    bobs.user.run(thread, input=ASK)
    assert bobs.user.send("DELETE", f"/threads/{thread}").is_success
    endpoint.script = lambda request, i: Reply("<answer>Ann's own</answer>")
    assert ann.thread(thread_id=thread) == thread
    assert ann.run(thread, input=ASK)["best"]["answer"] == "Ann's own"
    assert served.of(thread, "user") == ["bob", "ann"]


# --- memories and bills


def test_a_memory_of_another_user_is_not_read_or_written(
    served: Place, ann: User, bobs: Bobs
) -> None:
    theirs = {"namespace": ["bob", "notes"]}
    threads, outs = ann.runs(
        {"input": ASK, "context": theirs},
        {"input": ASK, "config": {"configurable": theirs}},
        {"input": ASK, "metadata": theirs},
    )
    assert SECRET not in str(outs)
    spaces = [space for thread in threads for space in served.of(thread, "namespace")]
    assert spaces == ['["ann", "bob", "notes"]', '["ann", "bob", "notes"]', '["ann"]']


def test_no_tenant_or_project_that_a_request_names_is_billed(served: Place, ann: User) -> None:
    """What the user belongs to is the authentication's to say, and here it says nothing."""
    said = {"user": "bob", "tenant": "acme", "project": "bridge"}
    threads, _ = ann.runs(
        {"input": ASK, "context": said},
        {"input": ASK, "config": {"configurable": said}},
        {"input": ASK, "metadata": said},
    )
    for thread in threads:
        keys = [served.of(thread, key) for key in ("user", "tenant", "project")]
        assert keys == [["ann"], [None], [None]]


def test_a_quota_is_the_users_own(served: Place, ann: User, endpoint: Server) -> None:
    """Carl has two calls a day. Ann cannot use them up, and Carl cannot use Ann's."""
    asked = {"input": {**QUESTION, "budget": {"calls": 3}}}
    _, outs = ann.runs(
        {**asked, "context": {"user": "carl"}},
        {**asked, "config": {"configurable": {"user": "carl"}}},
    )
    assert [out["spent"]["calls"] for out in outs] == [3, 3]
    with user(served.url, "of Carl") as carl:
        out = carl.run(carl.thread(), input=QUESTION)
        assert (out["stop_reason"], out["spent"]["calls"]) == ("quota", 2)
        calls = len(endpoint.calls)
        for said in carl.errors(
            {"input": QUESTION},
            {"input": QUESTION, "context": {"user": "ann"}},
            {"input": QUESTION, "config": {"configurable": {"user": "ann"}}},
        ):
            assert "per user in 1d" in said
    assert len(endpoint.calls) == calls


# --- assistants, crons and the store


def test_an_assistant_of_another_user_is_out_of_reach(
    ann: User, bobs: Bobs, endpoint: Server
) -> None:
    it = f"/assistants/{bobs.assistant}"
    reaches_nothing(
        ann,
        ("GET", it, None),
        ("GET", f"{it}/schemas", None),
        ("GET", f"{it}/graph", None),
        ("POST", f"{it}/versions", {}),
        ("POST", f"{it}/latest", {"version": 1}),
        ("PATCH", it, {"context": {"budget": {"calls": 2}}}),
        ("DELETE", it, None),
        ("POST", "/runs/wait", {"assistant_id": bobs.assistant, "input": ASK}),
        ("POST", f"/threads/{ann.thread()}/runs/wait", {"assistant_id": bobs.assistant}),
    )
    for body in ({"limit": 1_000}, {"metadata": {"owner": "bob"}}):
        found = ann.post("/assistants/search", body)
        assert {assistant["metadata"]["owner"] for assistant in found} <= {"ann"}
    assert not endpoint.calls


def test_what_all_users_share_cannot_be_changed(served: Place, ann: User, bobs: Bobs) -> None:
    run = bobs.user.got(f"/threads/{bobs.thread}/runs/{bobs.run}")
    shared = f"/assistants/{run['assistant_id']}"
    reaches_nothing(
        ann,
        ("PATCH", shared, {"context": {"namespace": ["ann"], "budget": ONE}}),
        ("POST", f"{shared}/latest", {"version": 1}),
        ("DELETE", shared, None),
    )
    made = ann.post("/assistants", {"graph_id": "anytime", "metadata": {"owner": "bob"}})
    assert made["metadata"]["owner"] == "ann"
    assert bobs.user.send("GET", f"/assistants/{made['assistant_id']}").status_code == 404


def test_a_cron_of_another_user_is_out_of_reach(ann: User, bobs: Bobs) -> None:
    it = f"/runs/crons/{bobs.cron}"
    reaches_nothing(
        ann,
        ("GET", it, None),
        ("PATCH", it, {"schedule": "* * * * *", "input": {**QUESTION, "budget": {"calls": 99}}}),
        ("DELETE", it, None),
        ("POST", "/runs/crons/search", {"thread_id": bobs.thread}),
        ("POST", "/runs/crons/count", {"thread_id": bobs.thread}),
    )
    cron = {**ANYTIME, "schedule": "0 0 1 1 *", "input": ASK, "metadata": {"owner": "bob"}}
    made = ann.post("/runs/crons", cron)
    assert made["user_id"] == "ann"
    assert bobs.user.send("GET", f"/runs/crons/{made['cron_id']}").status_code == 404


def test_items_of_another_user_are_out_of_reach(ann: User, bobs: Bobs) -> None:
    item = {"namespace": ["bob", "notes"], "key": "k"}
    reaches_nothing(
        ann,
        ("GET", "/store/items?namespace=bob.notes&key=k", None),
        ("PUT", "/store/items", {**item, "value": {"text": "Ann was here."}}),
        ("PUT", "/store/items", {**item, "namespace": [], "value": {}}),
        ("DELETE", "/store/items", item),
        ("POST", "/store/items/search", {"namespace_prefix": []}),
        ("POST", "/store/items/search", {"namespace_prefix": ["bob"], "query": "secret"}),
        ("POST", "/store/items/search", {"namespace_prefix": ["bo"]}),
        ("POST", "/store/namespaces", {}),
        ("POST", "/store/namespaces", {"suffix": ["notes"]}),
        ("POST", "/store/namespaces", {"prefix": ["bob"]}),
    )
    own = {**item, "namespace": ["ann", "bob"], "value": {"text": "Ann's own."}}
    assert ann.send("PUT", "/store/items", own).is_success
    (found,) = ann.post("/store/items/search", {"namespace_prefix": ["ann"]})["items"]
    assert found["value"] == own["value"]
