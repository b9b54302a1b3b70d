"""Quotas: no window ever holds more than its quota, whatever the clock and the processes do; and what
is not spent comes back."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from anytime_graph import (
    Budget,
    Prices,
    Quota,
    QuotaExceeded,
    ThreadBusy,
    Until,
    open_checkpoints,
)
from anytime_graph.budget import Spend, nothing
from anytime_graph.checkpoints import Checkpoints, quotas
from anytime_graph.checkpoints.leases import Leases
from anytime_graph.checkpoints.quotas import Payers, Quotas
from anytime_graph.checkpoints.sqlite import SqliteStore
from anytime_graph.checkpoints.store import Execute
from anytime_graph.metering import call
from anytime_graph.metering.quota import UNITS, Amounts, Withheld, booked
from anytime_graph.metering.request import NOWHERE, Request
from tests.kit.agents import working
from tests.kit.forks import prepared
from tests.kit.kills import Doom, ended, struck
from tests.kit.ledgers import ASK, graph, ledger
from tests.kit.lives import Spec, live
from tests.kit.marks import both, torture
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE

REQUEST = Request(prompt=[], max_input=0, max_output=1)
DAY = 86_400
SECONDS = {"90s": 90, "1h": 3_600, "1d": DAY, "7d": 7 * DAY}
CALENDAR = {"hour": "%Y-%m-%d %H", "day": "%Y-%m-%d", "month": "%Y-%m"}
examples = itertools.count()


def cost(tokens: int, usd: float = 0.0) -> Spend:
    return {**nothing(), "tokens": tokens, "output_tokens": tokens // 2, "usd": usd, "calls": 1}


costs = st.builds(cost, st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.30000000000000004]))
budgets = st.sampled_from(
    [
        Budget(tokens=100),
        Budget(calls=3),
        Budget(usd=0.7, tokens=500),
        Budget(tokens=250, calls=8),
        Budget(output_tokens=40),
        Budget(tool_calls=2),
        Budget(usd=1.1, tool_calls=5),
    ]
)


class Entry:
    """A call that was let through. stamp: when, by the clock. keys: whose it is."""

    def __init__(self, stamp: float, keys: dict[str, str], amounts: Amounts) -> None:
        self.stamp, self.keys, self.amounts = stamp, keys, amounts


class Machine(RuleBasedStateMachine):
    """Processes that reserve and settle calls under a tree of quotas, by a clock that jumps, beside a
    list of what they were allowed."""

    opened: Checkpoints

    def __init__(self) -> None:
        super().__init__()
        self.store, self.example = self.opened.ledger.store, next(examples)
        self.entries: list[Entry] = []
        self.held: dict[str, tuple[Entry, Payers]] = {}
        self.calls = itertools.count()
        self.jumped = False
        self.processes: dict[int, Quotas] = {}

    @initialize(
        tree=st.lists(
            st.tuples(
                budgets,
                st.sampled_from([None, "org", "team", "user"]),
                st.sampled_from([*SECONDS, *CALENDAR]),
            ),
            min_size=1,
            max_size=4,
        ),
        now=st.floats(1e9, 2e9),
    )
    def begin(self, tree: list[tuple[Budget, str | None, str]], now: float) -> None:
        self.quotas = [
            Quota(budget, per=f"{per or 'all'}{self.example}", window=window)
            for budget, per, window in tree
        ]
        self.now = now
        self.tick()

    def tick(self) -> None:
        self.store.clock = f"CAST({self.now!r} AS double precision)"

    def quotas_of(self, process: int) -> Quotas:
        if process not in self.processes:
            leases = Leases(self.store)
            self.processes[process] = Quotas(self.store, leases)
            self.processes[process].begin()
        return self.processes[process]

    def payers(self, process: int, who: int) -> tuple[Payers, dict[str, str]]:
        """The accounts of one of three users, of whom two are in one team."""
        names = {"all": "all", "org": "o", "team": f"t{who // 2}", "user": f"u{who}"}
        keys = {f"{name}{self.example}": value for name, value in names.items()}
        found = self.quotas_of(process).payers(self.quotas, keys.get)
        assert found is not None
        return found, keys

    def ask(self, payers: Payers, call: str, spend: Spend) -> Withheld | None:
        try:
            with self.store.transaction(durable=False) as execute:
                payers.hold(execute, call, REQUEST, spend)
        except Withheld as withheld:
            return withheld
        return None

    def limits(self, quota: Quota) -> Amounts:
        return {d: round(v * UNITS[d]) for d, v in quota.budget.limits().items()}

    def counted(self, quota: Quota, keys: dict[str, str], now: float, slack: float) -> Amounts:
        """What the list says of the quota's window at a time, and `slack` times its length around."""
        per, window = str(quota.per), quota.window
        total = dict.fromkeys(UNITS, 0)
        for entry in self.entries:
            if entry.keys[per] != keys[per]:
                continue
            if window in CALENDAR:
                form = CALENDAR[window]
                there, here = (
                    datetime.fromtimestamp(t, UTC).strftime(form) for t in (entry.stamp, now)
                )
                within = there == here
            elif slack:
                within = abs(entry.stamp - now) <= SECONDS[window] * (1 + slack)
            else:
                within = now - SECONDS[window] < entry.stamp <= now
            if within:
                total = {d: total[d] + entry.amounts[d] for d in UNITS}
        return total

    @rule(process=st.integers(0, 2), who=st.integers(0, 2), spend=costs)
    def reserve(self, process: int, who: int, spend: Spend) -> None:
        payers, keys = self.payers(process, who)
        call, amounts = f"{self.example}/{next(self.calls)}", booked(spend)
        withheld = self.ask(payers, call, spend)
        if withheld is None:
            entry = Entry(self.now, keys, amounts)
            self.entries.append(entry)
            self.held[call] = (entry, payers)
            return
        full = [
            (quota, d)
            for quota in self.quotas
            for d, limit in self.limits(quota).items()
            if self.counted(quota, keys, self.now, 1 / 59)[d] + amounts[d] > limit
        ]
        assert full, "refused without a reason"
        error = withheld.standings.exceeded(spend)
        assert (error.quota, error.dimension) in [(q, "quota") for q, _ in full]
        if (refill := error.refills_at) is None:
            assert any(booked(spend)[d] > v for d, v in self.limits(error.quota).items())
            return
        assert refill > self.now
        self.now, self.jumped = refill - 1e-4, True
        self.tick()
        assert self.ask(payers, call, spend) is not None, "it refills sooner than it says"

    @rule(process=st.integers(0, 2), who=st.integers(0, 2), spend=costs)
    def wait_for_the_refill(self, process: int, who: int, spend: Spend) -> None:
        """After each refill that is told, another quota may be the one that is short."""
        payers, keys = self.payers(process, who)
        call = f"{self.example}/{next(self.calls)}"
        for _ in range(20):
            if (withheld := self.ask(payers, call, spend)) is None:
                entry = Entry(self.now, keys, booked(spend))
                self.entries.append(entry)
                self.held[call] = (entry, payers)
                return
            if (refill := withheld.standings.exceeded(spend).refills_at) is None:
                return
            assert refill > self.now
            self.now, self.jumped = refill, True
            self.tick()
        raise AssertionError("it never refills")

    @rule(process=st.integers(0, 2), who=st.integers(0, 2), price=st.sampled_from([0.0, 0.1, 0.3]))
    def begin_a_tool(self, process: int, who: int, price: float) -> None:
        """What it costs stands, whatever becomes of its process."""
        payers, keys = self.payers(process, who)
        spend: Spend = {**nothing(), "usd": price, "tool_calls": 1}
        try:
            with self.store.transaction(durable=False) as execute:
                payers.book(execute, spend)
        except Withheld as withheld:
            standings = withheld.standings
            given_back = [
                (quota, d)
                for quota in self.quotas
                for d, limit in self.limits(quota).items()
                if self.counted(quota, keys, self.now, 1 / 59)[d] + booked(spend)[d] > limit
            ]
            assert given_back, "refused without a reason"
            assert standings.exceeded(spend).quota in [quota for quota, _ in given_back]
            if not self.held:
                assert not standings.may_pay(spend), "nobody gives anything back"
        else:
            self.entries.append(Entry(self.now, keys, booked(spend)))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), part=st.sampled_from([0.0, 0.25, 1.0]))
    def settle(self, data: st.DataObject, part: float) -> None:
        call = data.draw(st.sampled_from(sorted(self.held)))
        entry, payers = self.held.pop(call)
        spent = {d: int(n * part) for d, n in entry.amounts.items()}
        spend: Any = {**nothing(), **spent, "usd": spent["usd"] / UNITS["usd"]}
        with self.store.reading() as execute:
            known = execute("SELECT call FROM quota_holds WHERE call = :call", {"call": call})
        for _ in range(2):  # the second finds nothing to settle
            with self.store.transaction(durable=False) as execute:
                payers.settle(execute, call, spend)
        if known:
            entry.amounts = booked(spend)
        else:  # its process was taken for dead: a clock that was set forward ends leases
            assert self.jumped, "nobody was taken for dead"

    @rule(process=st.integers(0, 2))
    def die(self, process: int) -> None:
        """What a process holds stays charged, and nobody waits for it any more."""
        if (dead := self.processes.pop(process, None)) is None:
            return
        dead.leases.close()
        self.held = {c: (e, p) for c, (e, p) in self.held.items() if p.books is not dead}

    @rule(by=st.sampled_from([0.5, 1.4, 40, 95, 3_000, 90_000, 40 * DAY]), back=st.booleans())
    def jump(self, by: float, back: bool) -> None:
        self.now += -by if back else by
        self.jumped = True
        self.tick()

    @invariant()
    def no_window_holds_more_than_its_quota(self) -> None:
        for quota in getattr(self, "quotas", ()):
            for last in self.entries[-1:]:
                for entry in self.entries:
                    if entry.keys[str(quota.per)] == last.keys[str(quota.per)]:
                        counted = self.counted(quota, entry.keys, entry.stamp, 0)
                        assert all(counted[d] <= n for d, n in self.limits(quota).items())

    def teardown(self) -> None:
        """Nothing leaks: once the clock is a window further, all of it is there again."""
        if not self.entries:
            return
        self.now = max(entry.stamp for entry in self.entries) + 40 * DAY
        self.tick()
        for who in range(3):
            for quota in self.quotas:
                quotas, self.quotas = self.quotas, [quota]
                (standing,) = self.payers(7, who)[0].standings().of
                self.quotas = quotas
                assert standing.left() == quota.budget.limits()
        self.processes.clear()
        del self.store.clock


def test_no_window_holds_more_than_its_quota_whatever_happens(store: Checkpoints) -> None:
    machine = type("OnThisStore", (Machine,), {"opened": store})
    run_state_machine_as_test(  # type: ignore[no-untyped-call] # hypothesis has no types for it
        machine, settings=settings(max_examples=torture or 12, stateful_step_count=25)
    )


# --- at the wire


ON_THE_HOUR = {"window": "hour"}
ASKED = {"messages": [("user", "Why do rivers bend?")]}


def wordy(request: dict[str, Any], i: int) -> Reply:
    return Reply(text=f"{'so ' * 8}<answer>{request['seed'] % 7}</answer>")


def whose(thread: str, **keys: str) -> Any:
    return {"configurable": {"thread_id": thread, **keys}}


def asks(server: Server, store: Checkpoints, *quotas: Quota, **options: Any) -> Any:
    server.script = wordy
    given = {"budget": Budget(tokens=600), "strategy": "best_of_n", "quotas": quotas, **options}
    return graph(server, store, **given).compile()


def run(app: Any, config: Any, sync: bool = True, **more: Any) -> dict[str, Any]:
    if sync:
        return dict(app.invoke(ASKED, config, **more))
    return dict(asyncio.run(app.ainvoke(ASKED, config, **more)))


def born(spec: Spec) -> Any:
    process = prepared(live, spec)
    process.start()
    return process


def in_books(target: str) -> dict[str, int]:
    rows = ledger(
        target,
        "SELECT a.per, a.who, sum(s.tokens) AS tokens FROM quota_accounts a JOIN quota_steps s "
        "ON s.account_id = a.id GROUP BY a.per, a.who",
    )
    return {f"{row['per']} {row['who']}".strip(): int(row["tokens"]) for row in rows}


@pytest.mark.pairwise
@both
def test_a_quota_ends_a_run_with_its_answer_and_the_next_before_it_spends(
    server: Server, store: Checkpoints, target: str, sync: bool
) -> None:
    quota = Quota(Budget(tokens=1_000), per="user", window="1d")
    app = asks(server, store, quota)
    outs = [run(app, whose(f"{n}", user="ann"), sync) for n in range(2)]
    assert [out["stop_reason"] for out in outs] == ["tokens", "quota"]
    assert outs[1]["best"]["answer"]
    assert server.settled().served == in_books(target)["user ann"] <= 1_000
    while server.served < 1_000 - 50:
        run(app, whose("more", user="ann"), sync)
    served = server.settled().served
    with pytest.raises(QuotaExceeded, match=r"per user in 1d .user 'ann'. does not pay") as full:
        run(app, whose("full", user="ann"), sync)
    assert full.value.quota == quota
    assert full.value.refills_at is not None
    assert 0 < full.value.refills_at - time.time() <= DAY * 61 / 60
    assert server.settled().served == served
    assert run(app, whose("bob", user="bob"), sync)["stop_reason"] == "tokens"


def test_all_of_several_quotas_must_pay(server: Server, store: Checkpoints, target: str) -> None:
    tree = [
        Quota(Budget(tokens=1_500), per="organisation", window="month"),
        Quota(Budget(tokens=900), per="team", window="day"),
        Quota(Budget(tokens=700), per="user", **ON_THE_HOUR),
    ]
    app = asks(server, store, *tree)
    for n, (team, user) in enumerate([("a", "ann"), ("a", "abe"), ("b", "bob"), ("b", "bea")]):
        for again in range(3):
            with suppress(QuotaExceeded):
                run(app, whose(f"{n}/{again}", organisation="o", team=team, user=user))
    books = in_books(target)
    assert (
        books["organisation o"]
        == server.settled().served
        == sum(tokens for name, tokens in books.items() if name.startswith("user "))
    )
    assert 1_400 < books["organisation o"] <= 1_500
    assert 800 < books["team a"] <= 900
    assert 600 < books["user ann"] <= 700


def test_whom_the_server_has_authenticated_pays(
    server: Server, store: Checkpoints, target: str
) -> None:
    """Ann says that she is Bob, of another organisation."""
    quotas = [Quota(Budget(tokens=900), per=per, window="1d") for per in ("user", "org")]
    app = asks(server, store, *quotas)
    ann = SimpleNamespace(identity="ann", org="acme")
    config = whose("t", langgraph_auth_user=ann, user="bob", org="evil")
    run(app, config, context={"user": "bob", "tenant": "evil"})
    assert set(in_books(target)) == {"user ann", "org acme"}
    run(app, whose("u", org="basic"), context={"user": "cleo"})
    books = in_books(target)
    assert set(books) == {"user ann", "org acme", "user cleo", "org basic"}
    bob = SimpleNamespace(identity="bob")
    with pytest.raises(ValueError, match="org: the quota of tokens=900 per org in 1d must know"):
        run(app, whose("v", langgraph_auth_user=bob, org="acme"))
    assert in_books(target) == books


def test_a_call_of_nobody_is_not_made(server: Server, store: Checkpoints) -> None:
    app = asks(server, store, Quota(Budget(tokens=900), per="user", window="1d"))
    with pytest.raises(ValueError, match="user: the quota of tokens=900 per user in 1d must know"):
        run(app, whose("t", user=""))
    assert not server.calls


def test_an_account_that_pays_for_a_call_already_does_not_pay_for_it_again(
    store: Checkpoints,
) -> None:
    daily, hourly = (Quota(Budget(calls=9), window=window) for window in ("day", "hour"))
    outer, both = (store.ledger.paying(of, {}.get) for of in ([daily], [daily, hourly]))
    assert outer is not None
    assert both is not None
    rest = both.without(outer)
    assert rest is not None
    assert list(rest.accounts.values()) == [[hourly]]
    assert outer.without(both) is None


def test_a_quota_in_the_database_holds_for_all_and_one_for_a_value_in_its_place(
    server: Server, store: Checkpoints, target: str
) -> None:
    store.ledger.quotas.keep(Quota(Budget(tokens=300), per="user", window="1d"))
    store.ledger.quotas.keep(Quota(Budget(tokens=500), per="user", window="24h"), "ann")
    app = asks(server, store)
    outs = [run(app, whose(name, user=name)) for name in ("ann", "bob")]
    assert [out["stop_reason"] for out in outs] == ["quota", "quota"]
    books = in_books(target)
    assert 400 < books["user ann"] <= 500
    assert 200 < books["user bob"] <= 300
    assert store.ledger.quotas.remove("user", "1d")
    assert not store.ledger.quotas.remove("user", "1d")
    assert run(app, whose("carl", user="carl"))["stop_reason"] == "tokens"


def test_a_quota_limits_what_a_run_without_a_budget_may_write(
    server: Server, store: Checkpoints, target: str
) -> None:
    app = asks(
        server,
        store,
        Quota(Budget(tokens=700), window="1d"),
        budget=None,
        until=Until(target=1.0),
        scorer=lambda question, answer: 0.5,
    )
    server.script = lambda request, i: Reply(text=None)
    assert run(app, whose("t"))["stop_reason"] == "quota"
    assert all(call.limit for call in server.settled().calls)
    assert server.served == in_books(target)[""] <= 700


def test_a_call_that_may_write_any_number_of_tokens_is_not_held(store: Checkpoints) -> None:
    """As when a quota comes into the database after the call was planned."""
    store.ledger.quotas.keep(Quota(Budget(calls=5), window="1d"))
    unlimited = Request(prompt=[], max_input=0, max_output=None)
    for tokens in (None, 600):
        if tokens:
            store.ledger.quotas.keep(Quota(Budget(tokens=tokens), window="1h"))
        payers = store.ledger.paying((), lambda name: None)
        assert payers is not None
        with (
            pytest.raises(Withheld) if tokens else nullcontext(),
            store.ledger.store.transaction() as execute,
        ):
            payers.hold(execute, f"a call {tokens}", unlimited, cost(20))


def test_a_reservation_waits_for_the_disk_and_what_it_gives_back_does_not(tmp_path: Path) -> None:
    """A power cut may lose a settlement, which leaves the call charged in full, but no reservation."""
    with open_checkpoints(tmp_path / "anytime.db") as store:
        assert isinstance(store.ledger.store, SqliteStore)
        journal = store.ledger.shared([Quota(Budget(tokens=5_000), window="1d")]).journal()
        assert journal is not None
        made: list[str] = []
        store.ledger.store._db.conn.set_trace_callback(made.append)
        journal.reserve(Request(prompt=[], max_input=9, max_output=9), cost(100), "m", str)
        assert made[0] == "PRAGMA synchronous=FULL"
        assert any("INSERT INTO quota_holds" in statement for statement in made)
        made.clear()
        journal.settle(NOWHERE, cast(Any, SimpleNamespace(receipt={"spend": cost(20)})))
        assert made[0] == "PRAGMA synchronous=NORMAL"


def test_the_books_of_an_account_stay_bounded(store: Checkpoints) -> None:
    """Of a window of 90 seconds a step takes 1.5, and all that were ever booked in would be 57,600 a day."""
    quota, kept = Quota(Budget(calls=5), window="90s"), quotas._REMEMBERED
    payers = store.ledger.paying([quota], lambda name: None)
    assert payers is not None
    with store.ledger.store.transaction() as execute:
        (row,) = payers.book(execute, cost(1))
        for n in range(kept + 300):
            old = {"at": row["account_id"], "step": n}
            execute("INSERT INTO quota_steps VALUES (:at, :step, 1, 1, 1, 1, 1)", old)
    store.ledger.store.clock = f"({store.ledger.store.clock} + 3)"
    with store.ledger.store.transaction() as execute:
        (later,) = payers.book(execute, cost(1))
    with store.ledger.store.reading() as execute:
        steps = [r["step"] for r in execute("SELECT step FROM quota_steps ORDER BY step", {})]
    assert steps == [*range(300, kept + 300), row["step"], later["step"]]


def test_a_quota_of_money_needs_prices(server: Server, store: Checkpoints) -> None:
    money = Quota(Budget(usd=0.0055), window="1d")
    with pytest.raises(ValueError, match="the price of 'scripted' is not known"):
        asks(server, store, money)
    out = run(asks(server, store, money, prices=Prices(input=10, output=30)), whose("t"))
    assert out["stop_reason"] == "quota"
    assert 0.0045 < out["spent"]["usd"] <= 0.0055


class TestCallsElsewhere:
    """Another process has reserved nearly all of the quota."""

    @pytest.fixture
    def other(self, target: str, store: Checkpoints) -> Iterator[Payers]:
        store.ledger.quotas.keep(Quota(Budget(tokens=600), window="1d"))
        with open_checkpoints(target) as opened:
            payers = opened.ledger.paying((), lambda name: None)
            assert payers is not None
            with opened.ledger.store.transaction() as execute:
                payers.hold(execute, "elsewhere", REQUEST, cost(520))
            yield payers

    @both
    def test_a_call_waits_for_what_they_give_back(
        self, server: Server, store: Checkpoints, other: Payers, sync: bool
    ) -> None:
        app = asks(server, store, budget=Budget(tokens=400, calls=1))
        asked = threading.Event()
        hold = Payers.hold

        def counting(*given: Any) -> None:
            asked.set()
            hold(*given)

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
            patch.setattr(Payers, "hold", counting)
            running = pool.submit(run, app, whose("t"), sync)
            assert asked.wait(PATIENCE)
            assert not server.calls
            with other.books.store.transaction() as execute:
                other.settle(execute, "elsewhere", cost(100))
            assert running.result()["errors"] == []
        (made,) = server.settled().calls
        assert made.limit is not None
        assert made.limit + made.prompt > 300

    @pytest.mark.parametrize("statement", range(4))
    def test_the_books_are_read_at_one_instant(
        self, store: Checkpoints, other: Payers, statement: int
    ) -> None:
        """A call that is settled between two statements is either under way or settled."""
        payers = store.ledger.paying((), lambda name: None)
        assert payers is not None
        made = itertools.count()

        def executed(execute: Execute, *given: Any) -> Any:
            rows = execute(*given)
            if next(made) == statement:
                with other.books.store.transaction() as elsewhere:
                    other.settle(elsewhere, "elsewhere", cost(100))
            return rows

        with store.ledger.store.reading() as execute:
            (standing,) = payers.read(partial(executed, execute)).of
        assert next(made) > statement
        left = standing.left()["tokens"], standing.left(free=True)["tokens"]
        assert left in ((80, 600), (500, 500))

    def test_nobody_waits_for_a_process_that_has_died(
        self, server: Server, store: Checkpoints, other: Payers, target: str
    ) -> None:
        other.books.leases.close()
        app = asks(server, store, budget=Budget(tokens=400, calls=1))
        cut_down, pauses = call._Call._cut_down, []

        def noted(*given: Any) -> float:
            pauses.append(cut_down(*given))
            return pauses[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(call._Call, "_cut_down", noted)
            out = run(app, whose("t"))
        assert not any(pauses)
        assert out["stop_reason"] in ("quota", "calls")
        assert in_books(target)[""] == 520 + server.settled().served <= 600


def test_processes_that_die_and_go_on_keep_to_one_quota(
    server: Server, store: Checkpoints, target: str, tmp_path: Path
) -> None:
    """Three processes; one is killed while its calls are under way, and goes on in a fourth."""
    store.ledger.quotas.keep(Quota(Budget(tokens=3_000), window="1d"))
    server.script = lambda request, i: Reply(text=wordy(request, i).text, pace=0.002)

    def spec(n: int) -> Spec:
        return Spec(
            target=target,
            url=server.url,
            thread=f"thread {n}",
            question="Why do rivers bend?",
            sync=n % 2 == 0,
            durability="sync",
            strategy="best_of_n",
            tokens=1_500,
            lease=5.0,
            out=str(tmp_path / f"{n}"),
        )

    lives = [born(spec(n)) for n in range(3)]
    with struck(server, Doom("word", 120, 0), lives[0].kill):
        assert [ended(process) == 0 for process in lives] == [False, True, True]
    assert ended(born(spec(0))) == 0
    ends = [json.loads((tmp_path / f"{n}").read_text()) for n in range(3)]
    assert any(
        end.get("stop_reason") == "quota" or end.get("error") == "QuotaExceeded" for end in ends
    )
    served, booked_ = server.settled().served, in_books(target)[""]
    assert served <= booked_ <= 3_000
    assert booked_ >= 0.8 * 3_000
    assert booked_ == sum(bill.spend["tokens"] for bill in store.ledger.spend())


def test_tools_and_models_of_agents_that_die_keep_to_one_quota(
    server: Server, store: Checkpoints, target: str, tmp_path: Path
) -> None:
    """Three processes; one is killed while its tool asks a model, and goes on in a fourth."""
    store.ledger.quotas.keep(Quota(Budget(usd=0.075, tool_calls=9), window="1d"))
    works = working(0)
    server.script = lambda request, i: replace(works(request, i), pace=0.002)

    def spec(n: int) -> Spec:
        return Spec(
            target=target,
            url=server.url,
            thread=f"thread {n}",
            question="Why do rivers bend?",
            sync=n % 2 == 0,
            durability="sync",
            strategy="",
            tokens=200_000,
            lease=5.0,
            agent=True,
            out=str(tmp_path / f"{n}"),
        )

    lives = [born(spec(n)) for n in range(3)]
    with struck(server, Doom("word", 60, 0), lives[0].kill):
        codes = [ended(process) for process in lives]
    assert codes[1:] == [0, 0]
    assert codes[0] == 0 or ended(born(spec(0))) == 0
    ends = [json.loads((tmp_path / f"{n}").read_text()) for n in range(3)]
    assert not [end["trace"] for end in ends if end.get("error") not in (None, "QuotaExceeded")]
    (steps,) = ledger(target, "SELECT sum(nanodollars) AS n, sum(tool_calls) AS t FROM quota_steps")
    bills = {bill.of["node"]: bill.spend for bill in store.ledger.spend(["node"])}
    assert float(steps["n"]) == pytest.approx(sum(b["usd"] for b in bills.values()) * 1e9, abs=50)
    assert steps["n"] <= 0.075e9
    assert steps["t"] == sum(b["tool_calls"] for b in bills.values()) <= 9
    assert bills["tool_call"]["usd"] >= 0.03
    assert ledger(target, "SELECT * FROM quota_holds") == []


def test_each_settled_call_is_delivered_once(
    server: Server, store: Checkpoints, target: str
) -> None:
    app = asks(server, store)
    taken: list[dict[str, Any]] = []
    run(app, whose("a", user="ann"))
    with pytest.raises(ZeroDivisionError):
        store.ledger.deliver(lambda row: taken.append(row) if not taken else 1 / 0)
    run(app, whose("b", user="bob"))
    with open_checkpoints(target) as elsewhere:

        def take(row: dict[str, Any]) -> None:
            with pytest.raises(ThreadBusy):
                elsewhere.ledger.deliver(print)
            taken.append(row)

        store.ledger.deliver(take, most=2)
        elsewhere.ledger.deliver(taken.append)
        assert elsewhere.ledger.deliver(taken.append) == 0
    assert len({row["call_id"] for row in taken}) == len(taken) == len(server.settled().calls)
    assert sum(row["tokens"] for row in taken) == server.served
    assert {row["user"] for row in taken} == {"ann", "bob"}


def test_what_would_bill_nothing_or_find_nothing_is_refused(
    server: Server, store: Checkpoints
) -> None:
    asks(server, store).invoke(ASK, whose("t"))

    async def take(row: Any) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match=r"take=.*: a sync function is needed"):
        store.ledger.deliver(take)
    taken: list[Any] = []
    assert store.ledger.deliver(taken.append) == len(taken) > 0
    day = Quota(Budget(usd=5), window="day")
    for bad in (({"usd": 5},), (day, None)):
        with pytest.raises(ValueError, match=r"(quota|who)=.*: "):
            store.ledger.quotas.keep(*cast(Any, bad))
    with pytest.raises(ValueError, match="thread=None: "):
        store.ledger.forget(cast(Any, None))
    for since in ("7d", datetime.now(UTC), True):
        with pytest.raises(ValueError, match=r"since=.*: a Unix time is needed"):
            store.ledger.spend(since=cast(Any, since))


@pytest.mark.parametrize("by", ["user", [], ["user", ""]])
def test_what_is_no_list_of_names_is_not_added_up_by(store: Checkpoints, by: Any) -> None:
    with pytest.raises(ValueError, match=r"by=.*: a list of names is needed, as in \['user'"):
        store.ledger.spend(by)
