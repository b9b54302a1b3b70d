"""examples/fastapi_app.py under uvicorn and many clients, some of which leave and some in a hurry."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.kit.marks import torture
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE

if TYPE_CHECKING:
    import uvicorn

AT_ONCE = 16
KINDS = ("whole", "leaves", "whole", "leaves", "whole", "leaves", "whole", "hurried")
DEADLINE = 12.0
HUGE, SMALL = 20_000, 400


@asynccontextmanager
async def running() -> AsyncIterator[tuple[uvicorn.Server, httpx.AsyncClient]]:
    import uvicorn

    from examples import fastapi_app

    config = uvicorn.Config(fastapi_app.app, port=0, log_level="warning", backlog=256)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.wait({serving}, timeout=0.01)
            assert not serving.done()
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0),
        ) as client:
            yield server, client
    finally:
        server.should_exit = True
        await serving


async def said(
    client: httpx.AsyncClient, asked: dict[str, Any], until: str | None = None
) -> dict[str, Any]:
    """The newest data of each event; the client leaves after the event `until`."""
    data: dict[str, Any] = {}
    async with client.stream("POST", "/answers", json=asked) as response:
        assert response.status_code == 200
        name = ""
        async for line in response.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data[name] = json.loads(value)
                if name == until:
                    break
    return data


class Script:
    """The first request about a question is answered; so are others about a whole one, but about
    the rest the endpoint falls silent, so that they end only if somebody ends them."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.lock = threading.Lock()

    def __call__(self, request: dict[str, Any], i: int) -> Reply:
        asked = re.search(r"(whole|leaves|hurried) \d+", str(request["messages"]))
        assert asked
        with self.lock:
            first = asked[0] not in self.seen
            self.seen.add(asked[0])
        silent = asked[1] != "whole" and not first
        return Reply(f"so <answer>{asked[0]}</answer>", error="hang" if silent else None)


async def asked_and_checked(client: httpx.AsyncClient, number: int, slots: Any) -> int:
    """The tokens that a client's question was booked with."""
    kind = KINDS[number % len(KINDS)]
    asked: dict[str, Any] = {
        "question": f"{kind} {number}",
        "tokens": SMALL if kind == "whole" else HUGE,
    }
    if kind == "hurried":
        asked["seconds"] = DEADLINE
    async with slots:
        seen = await said(client, asked, until="improved" if kind == "leaves" else None)
    url = f"/answers/{seen['thread']}"
    while (found := await client.get(url)).status_code == 404 or not found.json()["stop_reason"]:
        await asyncio.sleep(0.01)
    best = found.json()
    booked = best.pop("spent")
    assert best["answer"] == f"{kind} {number}"
    assert ("done" in seen) == (kind != "leaves")
    if "done" in seen:
        mine = seen["done"].pop("spent")
        assert seen["done"] == best
        assert {**mine, "seconds": 0} == {**booked, "seconds": 0}
    if kind == "whole":
        assert booked["tokens"] <= SMALL
    else:
        assert best["stop_reason"] == "interrupted"
    return int(booked["tokens"])


async def round_of(client: httpx.AsyncClient, numbers: Iterable[int], endpoint: Server) -> None:
    slots = asyncio.Semaphore(AT_ONCE)
    booked = await asyncio.gather(*(asked_and_checked(client, n, slots) for n in numbers))
    served = await asyncio.to_thread(lambda: endpoint.settled().served)
    assert served <= sum(booked)
    endpoint.calls.clear()
    endpoint.script.seen.clear()  # type: ignore[attr-defined]


def held() -> dict[str, int]:
    """What a leak would add to."""
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
        "pages": int(Path("/proc/self/statm").read_text().split()[1]),
    }


@pytest.fixture
def endpoint(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Where the example's model is served."""
    monkeypatch.setenv("ANYTIME_DB", str(tmp_path / "anytime.db"))
    monkeypatch.setenv("ANYTIME_MODEL", "openai:scripted")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return server


def test_clients_that_leave_and_deadlines(endpoint: Server) -> None:
    """16 at once: each gets an answer, or it is there to be read, and nothing of them stays behind.
    `make torture` asks 2,000 times."""
    endpoint.script = Script()
    many = range(2_000 if torture else AT_ONCE)

    async def all_of() -> tuple[dict[str, int], dict[str, int]]:
        async with running() as (http, client):
            unhurried = [n for n in range(AT_ONCE) if KINDS[n % len(KINDS)] != "hurried"]
            await round_of(client, unhurried, endpoint)
            before = held()
            await round_of(client, many, endpoint)
            assert not http.server_state.connections
            return before, held()

    before, after = asyncio.run(all_of())
    print(before, after)
    assert after["tasks"] <= before["tasks"]
    assert after["files"] <= before["files"]
    assert after["objects"] - before["objects"] < 2_000 + 5 * len(many)
    assert after["pages"] - before["pages"] < 10_000


def test_what_cannot_be_answered_says_why(endpoint: Server) -> None:
    endpoint.script = lambda request, i: Reply(error=401)

    async def all_of() -> None:
        async with running() as (_, client):
            asked = {"question": "Why do rivers bend?"}
            refused = await said(client, {**asked, "tokens": 9})
            assert "the least is tokens=" in refused["failed"]
            assert not endpoint.calls
            failed = await said(client, asked)
            assert "HTTP 401" in failed["failed"]
            assert "rivers" not in failed["failed"]
            for thread in (failed["thread"], "unknown"):
                assert (await client.get(f"/answers/{thread}")).status_code == 404
            for wrong in ({"question": ""}, {**asked, "tokens": 10**6}, {**asked, "seconds": 0}):
                assert (await client.post("/answers", json=wrong)).status_code == 422
            for raw in (
                '{"question": "?", "seconds": NaN}',
                '{"question": "?", "seconds": Infinity}',
                r'{"question": "rivers \ud800"}',
                r'{"question": {"rivers \ud800": NaN}}',
            ):  # what JSON cannot hold in a reply
                response = await client.post("/answers", content=raw)
                assert response.status_code == 422, raw
                assert "rivers" not in response.text

    asyncio.run(all_of())


def test_a_client_is_not_told_where_the_ledger_lies() -> None:
    from examples.fastapi_app import reason

    assert reason("ledger: /srv/anytime.db: database or disk is full") == "ledger"
    assert (reason("perfect"), reason(None)) == ("perfect", None)
