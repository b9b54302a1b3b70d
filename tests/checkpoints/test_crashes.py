"""Processes killed at any instant: nothing settled is lost, nothing is paid twice, the books hold."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from anytime_graph import open_checkpoints
from anytime_graph.checkpoints import leases
from anytime_graph.run.fold import union
from tests.kit.agents import working
from tests.kit.forks import prepared
from tests.kit.kills import NEVER, Doom, ended, struck
from tests.kit.ledgers import ledger
from tests.kit.lives import Spec, arun, compiled, live
from tests.kit.marks import torture
from tests.kit.server import Reply, Script, Server, serving
from tests.kit.waiting import PATIENCE

STRATEGIES = ("pdp", "self_refine", "best_of_n", "evolve")
INSTANTS = 200 if torture else 1
AGENTS = 200 if torture else 1
FOR_EVER = 10 * PATIENCE
"""Seconds for which leases hold where nobody may wait for their end."""


class Course(NamedTuple):
    """What an undisturbed run does."""

    calls: int
    words: int
    seconds: float


def talk(n: int) -> Script:
    """Replies by their place in the n-th conversation; some are cut by the cap on them. In every
    other conversation a request for several choices brings them."""

    def reply(request: dict[str, Any], i: int) -> Reply:
        dice = random.Random(f"{n} {request['seed']}")
        text, *more = [_said(dice) for _ in range((request.get("n") or 1) if n % 2 else 1)]
        return Reply(text, more=list(more), pace=0.0005)

    return reply


def _said(dice: random.Random) -> str:
    before, after = dice.randint(0, 20), dice.randint(0, 20)
    return f"{'so ' * before}<answer>bend {dice.randint(0, 999)}</answer> {'thus ' * after}"


def born(*specs: Spec) -> ForkServerProcess:
    process = prepared(live, *specs)
    process.start()
    return process


def lived(server: Server, spec: Spec, doom: Doom = NEVER) -> bool:
    """Live once, until the end (True) or the doom."""
    process = born(spec)
    with struck(server, doom, process.kill):
        return ended(process) == 0


def dooms(dice: random.Random, n: int, course: Course) -> list[Doom]:
    """One to three; the first is of the n-th kind."""
    soon = 0.02 * dice.random() ** 2
    kinds: list[Callable[[], Doom]] = [
        lambda: Doom("asked", dice.randint(1, course.calls), 0),
        lambda: Doom("word", dice.randint(1, course.words), 0),
        lambda: Doom("ended", dice.randint(1, course.calls), 0),
        lambda: Doom("ended", dice.randint(1, course.calls), soon),
        lambda: Doom("born", 1, dice.uniform(0, course.seconds)),
        lambda: Doom("born", 1, dice.uniform(0, 0.1)),
        lambda: Doom("ended", course.calls, 0.04 * dice.random()),
    ]
    return [
        kinds[n % len(kinds)](),
        *(dice.choice(kinds)() for _ in range(dice.randint(0, 2))),
    ]


CALLS = "SELECT c.* FROM calls c JOIN runs r ON r.id = c.run_id WHERE r.thread = ?"
ANSWERS = "SELECT a.* FROM answers a JOIN runs r ON r.id = a.run_id WHERE r.thread = ?"
SETTLED = CALLS + " AND state = 'settled'"
RUNS = "SELECT * FROM runs WHERE thread = ?"


def told(spec: Spec) -> dict[str, Any]:
    """The report of the last life."""
    return json.loads(Path(spec["out"]).read_text())


def audited(
    server: Server, spec: Spec, granted: int = 0, answerless: bool = False
) -> dict[str, Any]:
    """The report of the last life, with the books against the server's. granted: beside
    spec["tokens"]. answerless: there may be no answer."""
    report = told(spec)
    target, thread = spec["target"], spec["thread"]
    calls, runs = ledger(target, CALLS, thread), ledger(target, RUNS, thread)
    served = server.settled().served
    booked = sum(row["tokens"] for row in calls)
    places = Counter(call.request["seed"] for call in server.calls)
    assert not [place for place, times in places.items() if times > 1]
    assert set(places) <= {row["ordinal"] for row in calls}
    assert len(runs) == 1
    limit = json.loads(runs[0]["limits"])["tokens"]
    assert served <= booked <= limit <= spec["tokens"] + granted
    assert not [row for row in calls if row["state"] == "reserved"]
    if "error" in report:
        assert answerless, report["trace"]
        assert report["error"] == "NoAnswer", report["trace"]
        return report
    assert report["spent"]["tokens"] == booked
    assert report["spent"]["calls"] == len(calls)
    assert runs[0]["stop_reason"] == report["stop_reason"] is not None
    scores = [row["score"] for row in ledger(target, ANSWERS, thread) if row["score"] is not None]
    assert report["score"] == pytest.approx(max(scores))
    assert report["said"] == report["answer"]
    return report


def history(n: int, spec: Spec, dooming: list[Doom], grant: int = 0) -> int:
    """Kill a run (grant: while it thinks on) again and again, then let it end, and audit it.
    Returns how many kills struck."""
    settled: set[int] = set()
    kills = before = 0
    with serving() as server:
        server.script = talk(n)
        spec = {**spec, "url": server.url}
        if grant:
            assert lived(server, spec)
            spec["grant"] = grant
        for doom in dooming:
            if lived(server, spec, doom):
                break
            kills += 1
            rows = ledger(spec["target"], SETTLED, spec["thread"])
            assert settled <= {row["ordinal"] for row in rows}
            settled = {row["ordinal"] for row in rows}
            before = len(server.settled().calls)
        else:
            assert lived(server, spec)
        assert not settled & {call.request["seed"] for call in server.calls[before:]}
        audited(server, spec, grant * (kills + 1), answerless=not settled)
    return kills


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], str]:
    """Where the n-th history is kept: in a file of its own, or in one database for all."""
    if request.param == "sqlite":
        return lambda n: str(tmp_path / f"{n}.db")
    url = request.getfixturevalue("database")
    return lambda n: url


Specs = Callable[..., Spec]


def spec_of(target: str, folder: Path, n: int = 0, **options: Any) -> Spec:
    common: Spec = {
        "target": target,
        "url": "",
        "thread": f"thread {n}",
        "question": f"Why do rivers bend, {n}?",
        "sync": True,
        "durability": "async",
        "strategy": "pdp",
        "tokens": 1_200,
        "out": str(folder / f"{n}.json"),
    }
    return {**common, **options}


@pytest.fixture(params=[True, False], ids=["threads", "asyncio"])
def specs(
    target: Callable[[int], str], tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Spec]:
    def spec(n: int, **options: Any) -> Spec:
        return spec_of(target(n), tmp_path, n, sync=request.param, **options)

    return spec


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Course]:
    """Of each strategy."""
    folder = tmp_path_factory.mktemp("courses")
    return {s: course(spec_of(str(folder / s), folder, strategy=s)) for s in STRATEGIES}


def course(spec: Spec, script: Script | None = None) -> Course:
    with serving() as server:
        server.script = script or talk(0)
        began = time.monotonic()
        live({**spec, "url": server.url})
        seconds = time.monotonic() - began
        words = sum(call.output for call in server.settled().calls)
        return Course(len(server.calls), words, seconds)


def place(request: pytest.FixtureRequest) -> int:
    """Of a test among its parameters: where few histories are tried, each test tries its own."""
    numbers = request.node.callspec.indices.values()
    return sum(n << digit for digit, n in enumerate(numbers))


@pytest.mark.pairwise
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_killed_run_goes_on_where_it_was(
    specs: Specs, durability: str, courses: dict[str, Course], request: pytest.FixtureRequest
) -> None:
    kills = 0
    n = 0 if torture else INSTANTS * place(request)
    while kills < INSTANTS:
        dice = random.Random(f"{request.node.name}-{n}")
        strategy = dice.choice(list(courses))
        grant = 800 if n % 5 == 4 else 0
        dooming = dooms(dice, n, courses[strategy])
        try:
            kills += history(n, specs(n, strategy=strategy, durability=durability), dooming, grant)
        except BaseException as error:
            error.add_note(f"history {n}: {strategy}, {grant}, {dooming}")
            raise
        n += 1


@pytest.mark.pairwise
@pytest.mark.parametrize("asks", [False, True])
def test_one_process_at_a_time_runs_a_thread(specs: Specs, asks: bool) -> None:
    first, second, third = (
        specs(0, out=specs(n)["out"], lease=FOR_EVER, tokens=3_000) for n in range(3)
    )
    release = threading.Event()

    def hold(request: dict[str, Any], i: int) -> Reply:
        release.wait(PATIENCE)
        return talk(0)(request, i)

    with serving() as server:
        server.script = hold
        holder = born({**first, "url": server.url})
        with server.changed:
            assert server.changed.wait_for(lambda: server.calls, PATIENCE)
        assert ended(born({**second, "url": server.url, "asks": asks})) == 0
        assert told(second)["error"] == "ThreadBusy"
        holder.kill()
        release.set()
        assert ended(holder) == -signal.SIGKILL
        assert ended(born({**third, "url": server.url})) == 0
        audited(server, third)


def test_a_cancelled_task_leaves_the_thread_to_the_next(
    target: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE", FOR_EVER)

    async def goes_on(app: Any, spec: Spec) -> None:
        """A node in a thread of its own may outlive its cancelled task for a moment."""
        await arun(app, spec)
        while told(spec).get("error") == "ThreadBusy":
            await arun(app, spec)

    async def history(spec: Spec, server: Server, dooming: list[Doom]) -> None:
        loop = asyncio.get_running_loop()
        async with open_checkpoints(spec["target"]) as store:
            app = compiled(store, spec)
            for doom in dooming:
                task = asyncio.create_task(goes_on(app, spec))
                cancel = partial(loop.call_soon_threadsafe, task.cancel)
                with struck(server, doom, cancel), suppress(asyncio.CancelledError):
                    await task
            await goes_on(app, spec)

    for n in range(INSTANTS):
        dice = random.Random(n)
        spec = spec_of(target(n), tmp_path, n, sync=False, strategy="self_refine")
        with serving() as server:
            server.script = talk(n)
            spec["url"] = server.url
            dooming = [Doom("ended", dice.randint(1, 4), 0.03 * dice.random()) for _ in range(5)]
            asyncio.run(history(spec, server, dooming))
            audited(server, spec)


@pytest.mark.pairwise
def test_many_runs_in_many_processes_keep_their_own_books(specs: Specs) -> None:
    """In one database; each process runs four threads on one graph."""
    questions = [f"What is {n} called?" for n in range(16 if torture else 8)]
    with serving() as server:
        server.script = talk(0)
        many = [
            {**specs(n, question=question), "target": specs(0)["target"], "url": server.url}
            for n, question in enumerate(questions)
        ]
        processes = [born(*many[n : n + 4]) for n in range(0, len(many), 4)]
        assert [ended(process) for process in processes] == [0] * len(processes)
        server.settled()
        for spec in many:
            own = [call for call in server.calls if spec["question"] in call.text]
            report = audited(replace(server, calls=own), spec)
            assert report["spent"]["tokens"] == sum(call.served for call in own)


@pytest.mark.pairwise
def test_a_model_server_dies_and_comes_back(specs: Specs) -> None:
    spec = specs(0)

    def dying(request: dict[str, Any], i: int) -> Reply:
        reply = talk(0)(request, i)
        return reply if i < 5 else replace(reply, error="drop" if i % 2 else "break")

    with serving() as server:
        server.script = dying
        spec["url"] = server.url
        assert lived(server, spec)
        first = audited(server, spec)
    answers = ledger(spec["target"], ANSWERS, spec["thread"])
    spec["grant"] = 1_000
    assert lived(server, spec)  # nobody listens there any more
    second = audited(server, spec, 1_000)
    assert second["answer"] == first["answer"]
    assert second["spent"]["tokens"] == first["spent"]["tokens"]
    with serving() as revived:
        revived.script, revived.calls = talk(0), server.calls
        assert lived(revived, {**spec, "url": revived.url})
        third = audited(revived, spec, 2_000)
    assert third["score"] >= second["score"]
    assert third["spent"]["calls"] > second["spent"]["calls"] == first["spent"]["calls"]
    assert answers == ledger(spec["target"], ANSWERS, spec["thread"])[: len(answers)]


# --- agents


@pytest.mark.pairwise
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_killed_agent_goes_on_where_it_was(
    specs: Specs, durability: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its tools, which call models, ask a sub-agent and run a graph, are paid once."""
    kills = 0
    n = 0 if torture else AGENTS * place(request)
    usual = spec_of(str(tmp_path / "usual"), tmp_path, agent=True, tokens=200_000)
    undisturbed = course(usual, working(0))
    while kills < AGENTS:
        dice = random.Random(f"{request.node.name}-{n}")
        tokens = dice.choice([3_000, 200_000])
        spec = specs(n, agent=True, tokens=tokens, durability=durability)
        dooming = dooms(dice, n, undisturbed)
        try:
            kills += agent_history(n, spec, dooming)
        except BaseException as error:
            error.add_note(f"history {n}: {tokens}, {dooming}")
            raise
        n += 1


def agent_history(n: int, spec: Spec, dooming: list[Doom]) -> int:
    """Kill an agent again and again, then let it end, and audit it. Returns how many kills struck."""
    kept: dict[int, str] = {}
    kills = 0
    with serving() as server:
        server.script = working(n)
        spec = {**spec, "url": server.url}
        for doom in dooming:
            if lived(server, spec, doom):
                break
            kills += 1
            rows = {r["ordinal"]: r for r in ledger(spec["target"], SETTLED, spec["thread"])}
            assert {o: rows[o]["reply"] for o in kept} == kept
            kept = {o: row["reply"] for o, row in rows.items()}
        else:
            assert lived(server, spec)
        report = told(spec)
        assert "error" not in report, report["trace"]
        rows = ledger(spec["target"], CALLS, spec["thread"])
        calls = [row for row in rows if row["kind"] != "tool_call"]
        served, booked = server.settled().served, sum(row["tokens"] for row in calls)
        assert served <= booked <= spec["tokens"]
        assert report["spent"]["tokens"] == booked
        assert report["spent"]["calls"] == len(calls)
        spans = [(row["started"], row["changed"]) for row in rows]
        assert report["spent"]["seconds"] == pytest.approx(union(spans))
        # A seed tells the place within a run; how a prompt begins tells whose it is.
        places = Counter((call.request["seed"], call.text[:40]) for call in server.calls)
        assert not [place for place, times in places.items() if times > 1]
        assert not [row for row in calls if row["state"] == "reserved"]
        assert report["said"]
        (run,) = ledger(spec["target"], RUNS, spec["thread"])
        assert run["stop_reason"] == report["stop_reason"] is not None
        if spec["tokens"] > 10_000:
            paid = Counter(
                json.loads(r["task"])["request"] for r in calls if r["state"] == "settled"
            )
            assert report["stop_reason"] == "done"
            assert max(paid.values()) == 1, "an equal request was bought twice"
    return kills
