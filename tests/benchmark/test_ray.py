"""Benchmarks over a Ray cluster that really runs, with workers and drivers that are killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from anytime_graph.benchmark.cells import lines
from anytime_graph.benchmark.recording import Bought, Facts, RecordedReply, Recording
from anytime_graph.benchmark.run import Unmeasured
from anytime_graph.benchmark.shared import Grants, WorkerRecording
from anytime_graph.benchmark.spread import work
from anytime_graph.benchmark.tape import facts_of
from anytime_graph.models import resolve_model
from tests.kit.benchmarks import (
    KINDS,
    MODEL,
    OWN,
    Bench,
    Undisturbed,
    killed,
    records,
    tables,
    varied,
)
from tests.kit.commands import environment, told
from tests.kit.marks import long, torture
from tests.kit.places import ROOT
from tests.kit.postgres import fresh
from tests.kit.server import Call, Reply, Server, serving
from tests.kit.waiting import PATIENCE


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Server]:
    """One for all tests here: workers learn its address when the cluster starts."""
    with serving() as server:
        yield server


@pytest.fixture
def server(endpoint: Server) -> Server:
    endpoint.settled().calls.clear()
    endpoint.script, endpoint.watch = varied, lambda event, call: None
    return endpoint


@pytest.fixture(scope="module")
def cluster(endpoint: Server) -> Iterator[str]:
    """The address of a cluster of two workers, which this process is connected to."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_worker_register_timeout_seconds": f"{PATIENCE:.0f}",  # a worker that is late is ended
        "RAY_worker_niceness": "0",  # else whatever runs beside it on this machine comes first
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment(endpoint) | own).items():
            patch.setenv(name, value)
        import ray  # reads the token

        found = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield found.address_info["gcs_address"]
        ray.shutdown()


def at_work() -> set[int]:
    """The processes of this process's cluster that are measuring a cell."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"ray::work") and _ours(process):
                found.add(int(process.name))
    return found


def _ours(process: Path) -> bool:
    while process.name not in (str(os.getpid()), "0"):
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        process = process.parent / parent
    return process.name != "0"


def secret() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


def spread(database: str) -> list[str]:
    return ["--engine", "ray", "--ledger", database, "--parallel", "2"]


def at(n: int, what: Callable[[Call], bool], do: Callable[[], None]) -> Callable[..., None]:
    """A watch that does something at the n-th event that is such."""
    count = itertools.count(1)

    def watch(event: str, call: Call) -> None:
        if event == "word" and what(call) and next(count) == n:
            do()

    return watch


def requests(server: Server) -> Counter[str]:
    return Counter(json.dumps(c.request, sort_keys=True) for c in server.settled().calls)


def first(call: Call) -> bool:
    return call.output == 1


def last(call: Call) -> bool:
    """All is served, but not told to have ended."""
    return call.output == call.limit


def test_workers_share_a_batch(cluster: str, database: str, server: Server) -> None:
    """As docs/batch.md tells."""
    server.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    (code,) = re.findall(
        r"^```python\n(import ray\n.*?)^```", (ROOT / "docs/batch.md").read_text(), re.M | re.S
    )
    given: dict[str, Any] = {"__name__": "__main__"}
    exec(code.replace("postgresql://postgres@127.0.0.1/postgres", database), given)
    done = max(given["done"], key=lambda batch: batch.spent["tokens"])  # the last to leave
    assert None not in [question.answer for question in done.questions]
    assert server.settled().served <= done.spent["tokens"] <= 6_000


@pytest.mark.parametrize("kind", KINDS if torture else ["run"])
def test_two_workers_come_to_the_same(
    kind: str,
    cluster: str,
    database: str,
    server: Server,
    bench: Bench,
    undisturbed: Callable[[str], Undisturbed],
) -> None:
    words = [*OWN, *MODEL, *KINDS[kind]]
    alone, _, asked = undisturbed(kind)
    teams = list[set[int]]()
    server.watch = lambda event, call: teams.append(at_work()) if event == "asked" else None
    words += [*spread(database), "--out", "spread"]
    bench(*words)
    assert max(map(len, teams)) == 2
    assert records("spread") == records(alone)
    assert tables("spread") == tables(alone)
    assert len(server.settled().calls) == asked
    report = Path("spread/report.md").read_text()
    assert database not in report
    assert "--ledger postgresql://..." in report

    # What the workers bought and the driver had not yet taken in is found in the database.
    shutil.copy("spread/calls.jsonl", "whole.jsonl")
    rows = Path("whole.jsonl").read_text().splitlines(keepends=True)
    Path("spread/calls.jsonl").write_text("".join(rows[: len(rows) // 2]))
    Path("spread/records.jsonl").unlink()
    bench(*words)
    assert len(server.settled().calls) == asked
    assert records("spread") == records(alone)
    assert Path("spread/report.md").read_text() == report
    whole, again = (list(lines(Path(f))) for f in ("whole.jsonl", "spread/calls.jsonl"))
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, whole))
    bench(*OWN, *KINDS[kind], "--replay", "spread", "--out", "replayed")
    assert records("replayed") == records(alone)


@long
def test_killed_at_random_it_comes_to_the_same(
    cluster: str, database: str, server: Server, bench: Bench
) -> None:
    """A driver and a worker under a total that is too small for all, then both under one that does."""
    words = [*OWN, *MODEL, *KINDS["run"]]
    bench(*words, "--out", "alone")
    whole, asked = server.settled().served, requests(server)
    server.calls.clear()
    words += [*spread(database), "--out", "a"]
    dice, deaths = random.Random(7), Counter[str]()

    def kill() -> None:
        os.kill(min(at_work()), signal.SIGKILL)
        deaths["worker"] += 1

    for total, exit_code in ((whole * 3 // 4, 1), (4 * whole, 0)):
        limited = [*words, "--total-tokens", str(total)]
        after, delay = dice.randint(1, asked.total() // 8), 0.05 * dice.random()
        code = killed(server, limited, after, delay, RAY_ADDRESS=cluster, **secret())
        deaths["driver"] += code == -signal.SIGKILL
        server.watch = at(dice.randint(1, asked.total() // 8), first, kill)
        done = bench(*limited, exit_code=exit_code)
        assert "its worker was lost (WorkerCrashedError)" in told(done)
        assert 0 < server.settled().served <= total
    assert deaths == {"worker": 2, "driver": 2}
    assert records("a") == records("alone")
    assert tables("a") == tables("alone")
    again = requests(server)
    assert again.keys() == asked.keys()
    lost = again.total() - asked.total()
    assert lost <= 8 * deaths.total(), "only what was in flight is asked again"


@long
def test_what_died_with_workers_counts(
    cluster: str, database: str, server: Server, bench: Bench
) -> None:
    """Replies that fill any limit; both workers die when all of one reply was served. With its 784 tokens
    there are enough for three cells of 784 more, and not for a fourth."""

    def kill() -> None:
        for pid in at_work():
            os.kill(pid, signal.SIGKILL)

    server.script = lambda request, i: Reply(text=None)
    server.watch = at(1, last, kill)
    words = ["--strategy", "single", "--budgets", "1000", "--samples", "4", *spread(database)]
    done = bench(*OWN, *MODEL, *words, "--out", "a", "--total-tokens", "3500", exit_code=1)
    assert "its worker was lost" in told(done)
    assert 1_500 < server.settled().served <= 3_500
    assert 0 < len(records("a")) < 4


@long
def test_workers_that_lose_their_database_measure_nothing_wrong(
    cluster: str, database: str, server: Server, bench: Bench
) -> None:
    words = [*OWN, *MODEL, *KINDS["run"]]
    bench(*words, "--out", "alone")

    def cut() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            held = "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({held}) AS workers")

    server.watch = at(5, first, cut)
    done = bench(*words, *spread(database), "--out", "a")
    assert "LedgerError" in told(done)
    assert records("a") == records("alone")


@long
def test_ctrl_c_reaches_the_workers_and_leaves_the_rest_for_later(
    cluster: str, database: str, server: Server, bench: Bench
) -> None:
    """What was begun by one process is gone on with by workers, and not the other way round."""
    words = [*OWN, *MODEL, *KINDS["run"]]
    bench(*words, "--out", "alone")
    asked = requests(server)
    server.calls.clear()
    server.watch = at(asked.total() // 4, first, lambda: os.kill(os.getpid(), signal.SIGINT))
    bench(*words, "--out", "a", exit_code=130)
    words += ["--out", "a"]
    server.watch = at(asked.total() // 4, first, lambda: os.kill(os.getpid(), signal.SIGINT))
    done = bench(*words, *spread(database), exit_code=130)
    assert "it was interrupted" in done.stdout
    assert 0 < len(records("a")) < len(records("alone"))
    assert not at_work()
    assert "begun with --engine ray" in told(bench(*words, exit_code=2))
    bench(*words, *spread(database))
    assert tables("a") == tables("alone")
    again = requests(server)
    assert again.keys() == asked.keys()
    assert again.total() - asked.total() <= 4 + 8, "only what was cut is asked again"


# --- without a cluster: what workers have of a recording


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    recording = Recording(tmp_path / "calls.jsonl")
    yield recording
    recording.close()


def reply(key: str) -> RecordedReply:
    return RecordedReply(key, 0, 9, ["so"], [], "stop")


def test_a_grant_is_worked_on_once_and_not_after_its_end(
    database: str, recording: Recording
) -> None:
    stop = threading.Event()
    with Grants.opened(database, recording) as grants:

        def opened(grant: str) -> Any:
            return WorkerRecording.opened(
                grants.store, database, grant, grants.benchmark, "cell", None, stop
            )

        first, second = grants.give("cell"), grants.give("cell")
        with opened(first) as worker:
            worker.ask("k", 10, 0.0)
        with pytest.raises(Unmeasured, match="withdrawn"), opened(first):
            pass
        grants.settle(first, "cell")
        grants.settle(second, "cell")
        assert recording.bought.tokens == 10, "what was asked and never answered"
        with pytest.raises(Unmeasured, match="withdrawn"), opened(second):
            pass


def test_a_grant_is_not_settled_while_a_worker_may_still_buy(
    database: str, recording: Recording
) -> None:
    """Whatever its driver thinks of the worker; nor does another driver begin."""
    stop = threading.Event()
    with Grants.opened(database, recording) as grants:
        grant = grants.give("cell")
        with ThreadPoolExecutor() as pool:
            with WorkerRecording.opened(
                grants.store, database, grant, grants.benchmark, "cell", None, stop
            ) as worker:
                settling = pool.submit(grants.settle, grant, "cell")
                worker.ask("k", 10, 0.0)
                with pytest.raises(TimeoutError):
                    settling.result(0.3)
                worker.answer(reply("k"), 7, 0.0)
            settling.result(PATIENCE)
    assert recording.bought.tokens == 7
    assert [r.key for r in recording.replies()] == ["k"]


def test_two_workers_make_a_call_once(database: str, recording: Recording) -> None:
    stop = threading.Event()
    with Grants.opened(database, recording) as grants, ExitStack() as stack:
        one, other = (
            stack.enter_context(
                WorkerRecording.opened(
                    grants.store, database, grants.give(c), grants.benchmark, c, None, stop
                )
            )
            for c in ("a", "b")
        )
        with ThreadPoolExecutor() as pool:
            assert one.claim("k", stop) is None
            waiting = pool.submit(other.claim, "k", stop)
            one.ask("k", 10, 0.0)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            one.answer(reply("k"), 7, 0.0)
            one.release("k")
            assert waiting.result(PATIENCE) == reply("k")
            assert one.claim("other", stop) is None
            waiting = pool.submit(other.claim, "other", stop)
            one.fail("other", 0, 0.0)
            one.release("other")
            assert waiting.result(PATIENCE) is None, "it failed, so the next may make it"


@pytest.mark.parametrize("ended", [False, True])
def test_what_a_dead_driver_had_not_taken_in_counts_from_the_start(
    ended: bool, database: str, recording: Recording
) -> None:
    """ended: it died between the end of the grant and its copy."""
    with Grants.opened(database, recording) as grants:
        grant = grants.give("cell")
        with WorkerRecording.opened(
            grants.store, database, grant, grants.benchmark, "cell", None, threading.Event()
        ) as worker:
            worker.ask("k", 10, 0.0)
            worker.answer(reply("k"), 7, 0.0)
            worker.ask("lost", 5, 0.0)
        if ended:
            with grants.store.transaction() as execute:
                execute("DELETE FROM benchmark_grants", {})
    for _ in range(2):
        with Grants.opened(database, recording):
            assert recording.bought == Bought(12, 0.0, 2)
            assert recording.replies() == [reply("k")]


def test_another_database_than_before_is_refused(
    postgres: str, database: str, recording: Recording
) -> None:
    stop = threading.Event()
    with Grants.opened(database, recording) as grants:
        grant = grants.give("cell")
        with WorkerRecording.opened(
            grants.store, database, grant, grants.benchmark, "cell", None, stop
        ) as worker:
            worker.ask("k", 10, 0.0)
        grants.settle(grant, "cell")
    with (
        fresh(postgres) as another,
        pytest.raises(ValueError, match="are in another"),
        Grants.opened(another, recording),
    ):
        pass


def test_a_worker_that_hears_another_model_or_has_no_database_measures_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    job: Any = SimpleNamespace(
        model="openai:scripted", rate=None, prices=None, facts=Facts("another")
    )
    with pytest.raises(ValueError, match="other settings on a worker"):
        work(job)
    job.facts = facts_of(resolve_model(job.model))
    job.address = "postgresql://127.0.0.1:9/nobody"
    with pytest.raises(Unmeasured, match=r"PostgreSQL 127\.0\.0\.1/nobody: .* refused"):
        work(job)
