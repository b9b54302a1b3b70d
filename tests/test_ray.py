"""Benchmarks over a Ray cluster that really runs, with workers and drivers that are killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.server import Server, serving
from tests.test_bench import (
    KINDS,
    MODEL,
    OWN,
    Bench,
    bench,
    folder,
    records,
    tables,
    varied,
)
from tests.test_cli import environment

__all__ = ["bench", "folder"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One for all tests here: workers learn its address when the cluster starts."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(server: Server) -> Iterator[str]:
    """The address of a cluster of two workers, which this process is connected to."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server).items():
            patch.setenv(name, value)
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


def spread(database: str) -> list[str]:
    return ["--engine", "ray", "--ledger", database, "--parallel", "2"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_come_to_the_same(
    kind: str, cluster: str, database: str, server: Server, bench: Bench
) -> None:
    server.script = varied
    server.calls.clear()
    words = [*OWN, *MODEL, *KINDS[kind]]
    bench(*words, "--out", "alone")
    asked, seen = len(server.calls), set[int]()
    server.watch = lambda event, call: seen.update(at_work() if event == "asked" else ())
    bench(*words, *spread(database), "--out", "spread")
    server.watch = lambda event, call: None
    assert len(seen) == 2
    assert records("spread") == records("alone")
    assert tables("spread") == tables("alone")
    assert len(server.settled().calls) == 2 * asked


def test_killed_at_random_it_comes_to_the_same(
    cluster: str,
    database: str,
    server: Server,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First workers under a total that is too small for all cells, then drivers, then workers."""
    server.script = varied
    words = [*OWN, *MODEL, *KINDS["run"]]
    bench(*words, "--out", "alone")
    whole, asked = server.settled().served, len(server.calls)
    server.calls.clear()
    dice = random.Random(7)
    words += [*spread(database), "--out", "a"]
    deaths = Counter[str]()

    def doomed(after: int) -> Callable[[str, Call], None]:
        count = itertools.count(1)

        def watch(event: str, call: Call) -> None:
            if event == "asked" and next(count) == after:
                for pid in sorted(at_work())[:1]:
                    os.kill(pid, signal.SIGKILL)
                    deaths["worker"] += 1

        return watch

    server.watch = doomed(dice.randint(1, asked // 6))
    tight = whole // 3
    bench(*words, "--total-tokens", str(tight), exit_code=1)
    assert 0 < server.settled().served <= tight
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    for _ in range(2):
        code = killed(server, words, dice.randint(1, asked // 4), 0.05 * dice.random())
        deaths["driver"] += code == -signal.SIGKILL
    server.watch = doomed(dice.randint(1, asked // 6))
    bench(*words)
    server.watch = lambda event, call: None
    assert deaths == {"worker": 2, "driver": 2}
    assert records("a") == records("alone")
    assert tables("a") == tables("alone")
    print(whole, asked, len(server.calls), server.served)
    requests = Counter(json.dumps(c.request, sort_keys=True) for c in server.settled().calls)
    assert len(requests) == asked
    assert len(server.calls) - asked <= 8 * deaths.total(), "only what was in flight is asked again"
