from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.kit.marks import torture

if TYPE_CHECKING:
    from anytime_graph.checkpoints import Checkpoints
    from tests.kit.server import Server

os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.path.dirname(__file__)
"""A folder without certificates: all that tests reach is loopback, and to read the system's takes each
client 60 ms of CPU, a third of what a small test takes."""

settings.register_profile(
    "anytime",
    derandomize=not torture,
    max_examples=torture or 50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("anytime")


TOGETHER = {
    **{name: name for name in ("test_ray", "test_served", "test_served_to_users")},
    **{name: name for name in ("test_preferences", "test_tokens", "test_chat_standard")},
    **dict.fromkeys(("test_providers", "test_fuzz", "test_counting"), "clients"),
    **dict.fromkeys(("test_calls", "test_endings", "test_advice"), "wires"),
}
"""Files whose tests share something dear to set up or to import, and so a process; by its name."""
FIRST = (
    "test_a_call_that_fails_now_and_then_is_made_again",
    "test_a_cancelled_task_leaves_the_thread_to_the_next",
    "test_a_cell_whose_ledger_failed_for_a_moment_is_measured_again",
    "test_a_killed_agent_goes_on_where_it_was",
    "test_a_killed_pipeline_goes_on_and_buys_no_call_twice",
    "test_a_killed_run_goes_on_where_it_was",
    "test_adaptive_is_above_every_fixed_strategy_over_the_grid",
    "test_clients_that_leave_and_deadlines",
    "test_ctrl_c_leaves_a_report_and_the_rest_for_later",
    "test_killed_at_any_instant_it_comes_to_the_same",
    "test_no_batch_costs_more_than_its_budget",
    "test_no_text_of_a_model_takes_more_than_linear_time_to_read",
    "test_one_process_at_a_time_runs_a_thread",
    "test_promises_hold_and_sync_equals_async",
    "test_stopped_at_any_moment_it_holds_what_a_quarter_of_the_spend_buys",
    "test_the_embedded_model_shows_the_run",
)
"""Long tests: at the end, other processes would wait for the one that runs such."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "pairwise(one_in): of all combinations, enough for each pair, or one in so many, with each value; "
        "all under TORTURE",
    )
    config.addinivalue_line("markers", "sampled(names): of all tests, these; all under TORTURE")


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        """A scope of its own for each test, but for those that stay together."""
        return TOGETHER.get(Path(nodeid.partition("::")[0]).stem, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = set() if torture else _spared(items)
    if left:
        config.hook.pytest_deselected(items=[*left])
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: getattr(item, "originalname", None) not in FIRST)


def _spared(items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests that are not run."""
    spared: set[pytest.Item] = set()
    families: dict[str, list[pytest.Function]] = {}
    for item in items:
        assert isinstance(item, pytest.Function)
        sampled = item.get_closest_marker("sampled")
        if sampled and item.originalname not in sampled.args:
            spared.add(item)
        elif item.get_closest_marker("pairwise") or _in_turn(item):
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for family in families.values():
        mark = family[0].get_closest_marker("pairwise")
        numbers = _numbers(family)
        one_in = 2 if mark is None else mark.args[0] if mark.args else _most(numbers)
        spared |= {i for i, n in zip(family, numbers, strict=True) if sum(n) % one_in}
    return spared


def _in_turn(item: pytest.Function) -> bool:
    """Whether the test is run once for each of its other values, sync and async in turn."""
    values = getattr(item, "callspec", None)
    return values is not None and "sync" in values.params and len(values.params) > 1


def _numbers(family: list[pytest.Function]) -> list[tuple[int, ...]]:
    """Of each of a test's combinations, which value each parameter has, counted from 0. Parameters whose
    values go together count as one."""
    values: dict[str, list[object]] = {}
    found: list[list[int]] = []
    for item in family:
        found.append([])
        for name, value in item.callspec.params.items():
            known = values.setdefault(name, [])
            if not any(value is each for each in known):
                known.append(value)
            found[-1].append(next(n for n, each in enumerate(known) if each is value))
    return list(zip(*dict.fromkeys(zip(*found, strict=True)), strict=True))


def _most(numbers: list[tuple[int, ...]]) -> int:
    """Of how many combinations one is enough: those whose numbers have a sum that this divides hold every
    pair of values, as (0, 1) stands in (0, 1, 1) for two. Of two parameters, half hold every value."""
    places = list(combinations(range(len(numbers[0])), 2))
    assert places, "one parameter has no pairs"

    def pairs(kept: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
        return {(a, b, n[a], n[b]) for n in kept for a, b in places}

    if len(places) == 1:
        return 2
    wanted = pairs(numbers)
    return next(
        one_in
        for one_in in range(len(numbers), 0, -1)
        if pairs([n for n in numbers if not sum(n) % one_in]) == wanted
    )


def pytest_collection_finish() -> None:
    """What was imported stays to the end: to look through it for garbage again and again takes a
    twentieth of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, here and in what the tests start: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test meets its servers for the first time, and waits for none of them for long."""
    from anytime_graph.metering import learned

    learned.forget()
    monkeypatch.setattr(learned, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(learned, "_PATIENCE", 0.25)


@pytest.fixture(scope="session", autouse=True)
def beside_event_loops() -> Iterator[None]:
    """No transaction is begun on an event loop: it may wait for LangGraph's saver, which has the file locked
    and needs the loop to go on."""
    from anytime_graph.checkpoints.postgres import PostgresStore
    from anytime_graph.checkpoints.sqlite import SqliteStore

    with pytest.MonkeyPatch.context() as patched:
        for store in (SqliteStore, PostgresStore):
            patched.setattr(store, "transaction", _watched(store.transaction))
        yield


def _watched(transaction: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(transaction)
    def begun(*args: Any, **kwargs: Any) -> Any:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise AssertionError("a transaction of the ledger was begun on an event loop")
        return transaction(*args, **kwargs)

    return begun


@pytest.fixture
def server() -> Iterator[Server]:
    from tests.kit.server import serving

    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server; in CI there must be one."""
    from tests.kit.postgres import programs, running

    if programs() is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("PostgreSQL's server programs are not installed: `make postgres` tells more")
    with running() as url:
        yield url


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """The URL of a new, empty database."""
    from tests.kit.postgres import fresh

    with fresh(postgres) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to open checkpoints: a new file, and a new database."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("database"))
    return str(tmp_path / "anytime.db")


@pytest.fixture
def store(target: str) -> Iterator[Checkpoints]:
    from anytime_graph import open_checkpoints

    with open_checkpoints(target) as opened:
        yield opened


@pytest.fixture
def served(server: Server) -> Server:
    """A server whose replies hold answers."""
    from tests.kit.server import by_place

    server.script = by_place
    return server
