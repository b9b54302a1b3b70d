"""A request that waits for its connection when its call is given up has not left, and costs nothing. None
leaves by a connection that brings no reply."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_openai import ChatOpenAI

from anytime_graph import Budget, NoAnswer, create_anytime_graph, open_checkpoints
from anytime_graph.metering.account import Account
from anytime_graph.metering.metered import AgentPayer, Reservation, paid_by
from anytime_graph.metering.request import Place
from anytime_graph.metering.request import Reply as Settled
from anytime_graph.models.departures import Departure
from tests.kit.places import ROOT
from tests.kit.providers import CAP, NAMED, Usage, speaking
from tests.kit.server import Reply, Server, serving
from tests.kit.waiting import PATIENCE, until

ASKED: Any = {"messages": [("user", "Why do rivers bend?")]}


class Unreached(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """A network whose connections never come about. came: a client waits for one. steps: as far as a request
    comes."""

    def __init__(self) -> None:
        self.came, self.ended = threading.Event(), threading.Event()
        self.steps = ["connection.connect_tcp.started"]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if trace := request.extensions.get("trace"):
            for step in self.steps:
                await trace(step, {})
        self.came.set()
        await asyncio.Event().wait()
        raise AssertionError

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        trace = request.extensions.get("trace", lambda event, info: None)
        trace("connection.connect_tcp.started", {})
        self.came.set()
        self.ended.wait(PATIENCE)
        trace("http11.send_request_headers.started", {})
        raise AssertionError("it has left")


@pytest.fixture
def network() -> Iterator[Unreached]:
    network = Unreached()
    yield network
    network.ended.set()


def made(network: Unreached) -> Any:
    return ChatOpenAI(
        model="m",
        base_url="http://127.0.0.1:9",
        api_key="none",  # type: ignore[arg-type]
        n=1,
        http_client=httpx.Client(transport=network),
        http_async_client=httpx.AsyncClient(transport=network),
    )


async def test_a_call_that_is_cancelled_while_it_connects_costs_nothing(
    network: Unreached,
) -> None:
    account = Account({"tokens": 9_000, "calls": 9})
    model = paid_by(AgentPayer(account, "tool"), made(network), None)
    task = asyncio.create_task(model.ainvoke("Why do rivers bend?"))
    assert await asyncio.to_thread(network.came.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert account.spent["tokens"] == account.spent["calls"] == 0
    assert account.left()["tokens"] == 9_000


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_request_has_left_once_its_body_leaves(network: Unreached, leaves: bool) -> None:
    account = Account({"tokens": 9_000, "calls": 9})
    model = paid_by(AgentPayer(account, "tool"), made(network), None)
    network.steps += ["connection.connect_tcp.complete", "http11.send_request_headers.started"]
    network.steps += ["http11.send_request_body.started"] if leaves else []
    task = asyncio.create_task(model.ainvoke("Why do rivers bend?"))
    assert await asyncio.to_thread(network.came.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert account.spent["calls"] == leaves


class Told(AsyncCallbackHandler):
    """Waits where a tracer is told of a call, before its client has the request."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.waits = False

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        if self.waits:
            self.came.set()
            await asyncio.Event().wait()


async def test_a_call_that_is_cancelled_before_its_client_has_the_request_costs_nothing(
    server: Server,
) -> None:
    account, told = Account({"tokens": 9_000, "calls": 9}), Told()
    model = paid_by(AgentPayer(account, "tool"), server.model(), None)
    await model.ainvoke("Why do rivers bend?")  # by which the client is known to tell
    told.waits = True
    task = asyncio.create_task(model.ainvoke("Why do rivers bend?", {"callbacks": [told]}))
    await told.came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert account.spent["tokens"] == server.settled().served
    assert len(server.calls) == account.spent["calls"] == 1


class Slow:
    """A journal that takes its time to look for a call."""

    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()

    def recall(self, place: Place) -> None:
        self.asked.set()
        self.answers.wait(PATIENCE)

    def reserve(self, *args: Any) -> bool:
        raise AssertionError("it was given up")

    def settle(self, *args: Any) -> None:
        raise AssertionError("it was given up")


class Recorded(AgentPayer):
    slow: Any = Slow()

    def journal(self, reserved: Reservation) -> Any:
        return self.slow


async def test_a_call_that_is_cancelled_while_its_journal_looks_for_it_costs_nothing(
    server: Server,
) -> None:
    account = Account({"tokens": 9_000, "calls": 9})
    payer = Recorded(account, "tool")
    task = asyncio.create_task(paid_by(payer, server.model(), None).ainvoke("Why?"))
    assert await asyncio.to_thread(payer.slow.asked.wait, PATIENCE)
    task.cancel()
    await asyncio.sleep(0)
    payer.slow.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert account.spent["calls"] == account.spent["tokens"] == len(server.calls) == 0


class SlowToReserve:
    """A journal that takes its time to reserve a call."""

    def __init__(self) -> None:
        self.asked, self.answers, self.settled = (threading.Event() for _ in range(3))

    def recall(self, place: Place) -> None:
        return None

    def reserve(self, *args: Any) -> bool:
        self.asked.set()
        return self.answers.wait(PATIENCE)

    def settle(self, place: Place, reply: Settled) -> None:
        self.reply = reply
        self.settled.set()


async def test_a_reservation_that_comes_after_its_call_was_given_up_is_given_back(
    server: Server,
) -> None:
    account = Account({"tokens": 9_000, "calls": 9})
    payer = Recorded(account, "tool")
    payer.slow = journal = SlowToReserve()
    task = asyncio.create_task(paid_by(payer, server.model(), None).ainvoke("Why?"))
    assert await asyncio.to_thread(journal.asked.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    journal.answers.set()
    assert await asyncio.to_thread(journal.settled.wait, PATIENCE)
    assert journal.reply.receipt["spend"]["tokens"] == journal.reply.receipt["spend"]["calls"] == 0
    assert account.spent["calls"] == account.spent["tokens"] == len(server.calls) == 0


class SlowToPay(AgentPayer):
    """A payer whose quotas take their time."""

    held, answers = threading.Event(), threading.Event()

    def reserve(self, *given: Any) -> Reservation:
        reserved = super().reserve(*given)
        self.held.set()
        self.answers.wait(PATIENCE)
        return reserved


async def test_what_is_held_for_a_call_that_is_cancelled_while_quotas_are_read_is_given_back(
    server: Server, tmp_path: Path
) -> None:
    async with open_checkpoints(tmp_path / "books.db") as store:
        account = Account({"tokens": 9_000, "calls": 9}, shared=store.ledger.shared(()))
        payer = SlowToPay(account, "tool")
        task = asyncio.create_task(paid_by(payer, server.model(), None).ainvoke("Why?"))
        assert await asyncio.to_thread(payer.held.wait, PATIENCE)
        assert account.left()["tokens"] < 9_000
        task.cancel()
        await asyncio.sleep(0)
        payer.answers.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert account.left() == {"tokens": 9_000, "calls": 9}
    assert not server.calls


class Wire:
    """A connection, as httpcore tells of it."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def get_extra_info(self, name: str) -> Any:
        return self.end


@pytest.mark.parametrize(
    ("event", "open_"),
    [
        ("http11.receive_response_headers.started", False),
        ("http11.response_closed.started", True),
        ("http2.send_connection_init.started", True),
    ],
)
def test_only_a_connection_that_serves_nothing_else_is_hung_up(event: str, open_: bool) -> None:
    """One is given to the next request once its reply is closed; others have many requests at a time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        departure = Departure()
        departure.told("connection.connect_tcp.complete", info={"return_value": Wire(ours)})
        departure.told(event)
        departure.hang_up()
        with suppress(BrokenPipeError):
            ours.send(b"so")
        assert theirs.recv(2) == (b"so" if open_ else b"")


@pytest.mark.parametrize("again", [False, True])
async def test_the_ledger_gives_back_what_it_reserved_for_a_call_that_is_cancelled_while_it_connects(
    network: Unreached, tmp_path: Path, again: bool
) -> None:
    """again: it is cancelled at every step from there on, as a cancel scope of anyio does."""
    async with open_checkpoints(tmp_path / "books.db") as store:
        graph = create_anytime_graph(
            made(network), budget=Budget(tokens=5_000), ledger=store.ledger, exact_counts=False
        )
        config: Any = {"configurable": {"thread_id": "rivers"}}
        task = asyncio.create_task(graph.compile(store.saver).ainvoke(ASKED, config))
        assert await asyncio.to_thread(network.came.wait, PATIENCE)
        reserved = await asyncio.to_thread(store.ledger.runs, "rivers")
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0 if again else None)
        assert task.cancelled()
        left = await asyncio.to_thread(store.ledger.runs, "rivers")
    assert [run["spent"]["tokens"] > 0 for run in reserved] == [True]
    assert [run["spent"]["tokens"] for run in left] == [0]


@pytest.mark.parametrize("sync", [True, False])
def test_a_call_that_is_stopped_while_it_connects_costs_nothing(
    network: Unreached, sync: bool
) -> None:
    account = Account({"tokens": 9_000, "calls": 9})
    model = paid_by(AgentPayer(account, "tool", stop=network.came), made(network), None)
    with pytest.raises(KeyboardInterrupt):
        model.invoke("Why?") if sync else asyncio.run(model.ainvoke("Why?"))
    assert account.spent["tokens"] == account.spent["calls"] == 0


def test_a_request_that_was_given_up_does_not_leave_any_more() -> None:
    departure = Departure()
    departure.unseen()
    assert not departure.give_up()  # nothing tells where it is
    departure.told("connection.connect_tcp.started")
    assert departure.give_up()
    with pytest.raises(ConnectionAbortedError):
        departure.told("http11.send_request_headers.started")
    gone = Departure()
    gone.told("connection.start_tls.complete")
    gone.told("http2.send_request_headers.started")
    gone.told("http2.send_request_body.started")
    gone.told("connection.close.started")
    assert not gone.give_up()


@pytest.mark.parametrize("seed", range(12))
async def test_what_was_served_is_paid_for_wherever_the_call_is_cancelled(seed: int) -> None:
    account = Account({"tokens": 9_000, "calls": 9})
    steps = random.Random(seed).randrange(60)
    with serving() as server:
        server.script = lambda request, i: Reply(text="word " * 30)
        model = paid_by(AgentPayer(account, "tool"), server.model(), None)
        task = asyncio.create_task(model.ainvoke("Why do rivers bend?"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.settled)
    assert account.spent["tokens"] >= server.served
    assert account.left()["tokens"] == 9_000 - account.spent["tokens"]


def loop_after_loop() -> None:
    """Calls by each client, each in an event loop of its own. Prints those that brought no answer, or no
    report."""

    async def said(model: Any) -> None:
        async for _ in model.astream("Why?"):
            pass

    with speaking("HTTP/1.1") as wire:
        for name in ("OpenAI", "OpenAI, responses API", "Anthropic", "Groq", "Mistral", "Ollama"):
            wire.provider = NAMED[name]
            model = wire.provider.model(wire.url)
            with suppress(RuntimeError):  # of the client that LangChain shares among models
                asyncio.run(said(model))  # leaves a connection that no call of ours has seen
            for i in range(3):
                try:
                    spent = wire.ask(model, sync=False)["spent"]["tokens"]
                except NoAnswer as error:
                    spent = error
                ours = sum("bend" in str(request) for request in wire.requests)
                if (spent, ours) != (Usage().input + CAP, 1):
                    print(name, i, spent, ours)


class Asked:
    """Stops a run once the server has been asked so often."""

    def __init__(self, server: Server, times: int) -> None:
        self.server, self.times = server, times

    def is_set(self) -> bool:
        return len(self.server.calls) >= self.times


def at_work() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "metered-call"]


def test_a_call_that_is_stopped_hangs_up_on_a_silent_server(server: Server) -> None:
    """No thread can be cancelled, and its client would wait for minutes."""
    server.script = lambda request, i: Reply(error="hang")
    app = create_anytime_graph(server.model(timeout=None), budget=Budget(tokens=3_000)).compile()
    with suppress(NoAnswer):
        app.invoke(ASKED, context={"stop": Asked(server, 1)})
    server.settled()
    until(lambda: not at_work())


def test_who_hangs_up_ends_no_call_of_others(server: Server) -> None:
    """Those use the same client, and its connections again and again."""
    server.script = lambda request, i: Reply(
        text=None if "Endless" in str(request["messages"]) else "<answer>7</answer>",
        ignore_limit=True,
        pace=0.001,
    )
    model = server.model()
    app = create_anytime_graph(model, scorer=lambda question, answer: 0.5).compile()

    def stopped(times: int) -> None:
        endless = {"messages": [("user", f"Endless {times}?")], "budget": Budget(tokens=9_000)}
        with suppress(NoAnswer):
            app.invoke(cast(Any, endless), context={"stop": Asked(server, times)})

    with ThreadPoolExecutor() as pool:
        stops = [pool.submit(stopped, times) for times in range(4, 40, 4)]
        out = app.invoke({**ASKED, "budget": Budget(calls=40)})
        assert all(stop.result() is None for stop in stops)
    assert (out["errors"], out["spent"]["calls"]) == ([], 40)
    server.settled()
    until(lambda: not at_work())


def test_no_request_leaves_by_a_connection_of_an_event_loop_that_is_gone() -> None:
    """As `asyncio.run` leaves them to the next one: the reply would be paid for and not come. In a process of
    its own, because Python warns whenever it finds such a connection."""
    script = "from tests.metering import test_departures; test_departures.loop_after_loop()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


async def test_a_connection_of_the_same_event_loop_is_used_again() -> None:
    with speaking("HTTP/1.1") as wire:
        # A client that LangChain shares among models would leave its connection open.
        async with httpx.AsyncClient() as client:
            model = wire.provider.model(wire.url, http_async_client=client)
            budget = Budget(output_tokens=CAP, calls=1)
            app = create_anytime_graph(model, budget=budget, strategy="single").compile()
            for _ in range(3):
                assert (await app.ainvoke(ASKED))["best"]["answer"] == "7"
        assert len(wire.ports) == 3
        assert len({*wire.ports}) == 1
