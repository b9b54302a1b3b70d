"""Many questions under one budget: never over it, an answer for each, the rest where it helps."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    Prices,
    Quota,
    create_anytime_graph,
    open_checkpoints,
)
from anytime_graph.batch import Batch, Progress, abatch, batch
from anytime_graph.batch.series import thread_name
from anytime_graph.budget import nothing
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.planning.moves import Draft, Move, View
from tests.kit.batches import app_of, asked, mixed, number, scorer
from tests.kit.commands import begun, environment
from tests.kit.forks import forking
from tests.kit.kills import Doom, ended, struck
from tests.kit.ledgers import sql
from tests.kit.marks import torture
from tests.kit.postgres import fresh
from tests.kit.server import Call, Reply, Server, serving
from tests.kit.waiting import PATIENCE, auntil


def by_question(server: Server) -> Counter[int]:
    return Counter(number(call.request) for call in server.calls)


amounts = st.one_of(
    st.builds(Budget, tokens=st.integers(0, 6_000)),
    st.builds(Budget, calls=st.integers(0, 20)),
    st.builds(Budget, usd=st.floats(0, 0.006)),
    st.builds(Budget, tokens=st.integers(500, 6_000), calls=st.integers(1, 20)),
)


def outcome(app: Any, budget: Budget, workers: int) -> tuple[Batch | None, BudgetTooSmall | None]:
    try:
        return batch(app, asked(6), budget, workers=workers), None
    except BudgetTooSmall as error:
        return None, error


@settings(max_examples=torture or 4)
@example(budget=Budget(usd=0.00593088789971755), workers=4, decides="vote")
@given(
    budget=amounts, workers=st.integers(1, 4), decides=st.sampled_from(["scorer", "vote", "judge"])
)
def test_no_batch_costs_more_than_its_budget(budget: Budget, workers: int, decides: str) -> None:
    with serving() as server:
        server.script = mixed
        options: dict[str, Any] = {"scorer": scorer if decides == "scorer" else decides}
        app = app_of(server, prices=Prices(input=1, output=1), strategy="pdp", **options)
        done, small = outcome(app, budget, workers)
        if small:
            least = small.least.limits()
            assert not server.calls
            assert any(amount < least[d] for d, amount in budget.limits().items()), small
            return
        assert done
        books = {
            "tokens": server.served,
            "calls": len(server.calls),
            "usd": server.served / 1e6,
        }
        for dimension, most in budget.limits().items():
            assert books[dimension] <= done.spent[dimension] * (1 + 1e-9) <= most * (1 + 2e-9)  # type: ignore[literal-required]
        assert done.stop_reason in {"done", *budget.limits()}
        for name in ("tokens", "calls"):
            assert done.spent[name] == sum(q.spent[name] for q in done.questions)  # type: ignore[literal-required]


def test_money_goes_from_settled_questions_to_open_ones(server: Server) -> None:
    server.script = mixed
    steps: list[Progress] = []
    done = batch(app_of(server), asked(12), Budget(tokens=6_000), workers=1, progress=steps.append)
    calls = by_question(server)
    first = [number(call.request) for call in server.calls[:12]]
    assert first == list(range(12)), "each question gets an answer before any gets a second"
    assert [calls[n] for n in (0, 4, 8)] == [1, 1, 1], "a settled question gets no more"
    assert all(calls[n] > 3 for n in (3, 7, 11)), "the rest goes to the others"
    assert done.spent["tokens"] > 5_700
    assert (steps[0].answered, steps[-1].answered) == (0, 12)
    assert steps[-1].over == sum(q.score == 1 for q in done.questions)
    gains = [step.gain for step in steps[12:-1]]
    assert all(gain < float("inf") for gain in gains)
    assert gains[-1] < gains[0], "what promises most comes first"
    assert done.stop_reason == "tokens"


def test_questions_whose_answers_all_differ_are_left_for_those_that_can_agree(
    server: Server,
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        draw = random.Random(f"{number(request)}/{request['seed']}")
        hopeless = number(request) % 2
        return Reply(f"<answer>{draw.random() if hopeless else draw.choice('aaabbc')}</answer>")

    server.script = script
    done = batch(app_of(server, scorer="vote"), asked(6), Budget(tokens=4_000), workers=1)
    calls = by_question(server)
    assert all(calls[n] <= 9 for n in (1, 3, 5)), calls
    assert max(calls[n] for n in (0, 2, 4)) > 9, calls
    assert done.spent["tokens"] > 3_800
    assert {q.stop_reason for q in done.questions} <= {"agreed", "tokens"}


@pytest.mark.pairwise
@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("share", [250, 400, 700])
def test_a_small_budget_is_shared_and_used_up(
    server: Server, n: int, workers: int, share: int
) -> None:
    server.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    app = app_of(server, scorer="vote", strategy="self_consistency")
    total = n * share
    done = batch(app, asked(n), Budget(tokens=total), workers=workers)
    first = {number(call.request): call for call in reversed(server.calls)}
    assert all("<answer>" in call.text for call in first.values()), "each gets what it needs"
    if workers == 8:
        held = [(call.limit or 0) + call.prompt for call in first.values()]
        assert max(held) <= share, "none takes what others wait for"
    assert server.served == done.spent["tokens"] <= total
    another = max(call.prompt for call in server.calls) + 64
    assert total - done.spent["tokens"] < another or done.stop_reason == "done"


def test_where_instructions_do_not_pay_for_all_each_gets_an_answer_without(server: Server) -> None:
    """In full, the first few would leave nothing for the last; so none is asked in full."""
    server.script = lambda request, i: Reply(f"<answer>{i}</answer>")
    app = app_of(server, scorer="vote", strategy="self_consistency")
    done = batch(app, asked(200), Budget(tokens=200 * 20), workers=8)
    assert all(question.answer is not None for question in done.questions)
    assert server.served == done.spent["tokens"] <= 200 * 20


@pytest.mark.parametrize("usd", [0.00104, 0.00106])
def test_what_is_left_is_tried_a_few_times_and_no_more(server: Server, usd: float) -> None:
    """Of dollars there is always a trifle more."""
    server.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    app = app_of(server, prices=Prices(input=0.15, output=0.6), scorer="judge")
    idle = 0
    last: Progress | None = None

    def look(progress: Progress) -> None:
        nonlocal idle, last
        idle += last is not None and last.spent["calls"] == progress.spent["calls"]
        last = progress
        assert idle <= 20

    assert batch(app, asked(2), Budget(usd=usd), workers=1, progress=look).stop_reason == "usd"


@pytest.mark.pairwise
@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("words", [2, 40])
@pytest.mark.parametrize("share", [50, 100, 300])
def test_first_answers_are_asked_for_in_full_where_that_pays_for_all(
    server: Server, share: int, words: int, workers: int
) -> None:
    """In full, a question takes 76 tokens and its reply; without the instructions, it takes 15."""
    server.script = lambda request, i: Reply("so " * words + f"<answer>{i}</answer>")
    app = app_of(server, scorer="vote", strategy="self_consistency")
    done = batch(app, asked(20), Budget(tokens=20 * share), workers=workers)
    calls = {number(call.request): call for call in reversed(server.calls)}
    full = sum("<answer>" in call.text for call in calls.values())
    assert full == 20 or 20 * share < 20 * (110 + 3 * words)
    answered = sum(question.answer is not None for question in done.questions)
    assert answered == 20 or share < 15 + 2 * words
    assert server.served == done.spent["tokens"] <= 20 * share


def test_a_larger_budget_continues_where_it_pays(server: Server, target: str) -> None:
    server.script = mixed
    with open_checkpoints(target) as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        few = batch(app, asked(4), Budget(tokens=800))
        bought = len(server.calls)
        assert (
            batch(app, asked(4), Budget(tokens=800)).spent
            == few.spent | {"seconds": few.spent["seconds"]}
            or len(server.calls) == bought
        )
        more = batch(app, asked(4), Budget(tokens=2_000))
    assert server.served == more.spent["tokens"] <= 2_000
    assert more.spent["tokens"] > 1_700
    assert len(server.calls) > bought
    assert max(Counter((c.request["seed"], c.text) for c in server.calls).values()) == 1
    settled = [q.question for q in few.questions if q.stop_reason == "perfect"]
    assert settled
    for before, after in zip(few.questions, more.questions, strict=True):
        assert (after.score or 0) >= (before.score or 0)
        if before.question in settled:
            assert after == before


def test_every_question_can_be_settled(server: Server) -> None:
    server.script = lambda request, i: Reply(text="<answer>right</answer>")
    done = batch(app_of(server), asked(5), Budget(tokens=50_000))
    assert (done.stop_reason, len(server.calls)) == ("done", 5)
    assert {(q.answer, q.stop_reason, q.gain) for q in done.questions} == {
        ("right", "perfect", 0.0)
    }


def test_equal_answers_settle_a_vote(server: Server) -> None:
    server.script = lambda request, i: Reply(text="<answer>Paris</answer>")
    done = batch(app_of(server, scorer="vote"), asked(3), Budget(tokens=50_000))
    assert done.stop_reason == "done"
    assert {q.stop_reason for q in done.questions} == {"agreed"}
    assert max(by_question(server).values()) <= 8


@pytest.mark.parametrize(
    "budget", [Budget(tokens=3_000), Budget(calls=12)], ids=["tokens", "calls"]
)
@pytest.mark.parametrize("failing", [{"error": 500}, {"error": "drop"}, {"text": ""}], ids=str)
def test_a_first_answer_that_failed_is_asked_for_again(
    server: Server, failing: dict[str, Any], budget: Budget
) -> None:
    """After those of all others. What a failure uses up is only what its step was given."""

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(**failing) if i == 0 else Reply(text=f"<answer>{i % 3}</answer>")

    server.script = script
    done = batch(app_of(server, scorer="vote"), asked(3), budget, workers=1)
    assert [number(call.request) for call in server.calls[:4]] == [0, 1, 2, 0]
    assert [(q.error, q.answer is None) for q in done.questions] == [(None, False)] * 3


def test_a_question_whose_answers_always_fail_is_left_after_three(server: Server) -> None:
    server.script = lambda request, i: (
        Reply(error=500) if number(request) == 0 else Reply(text="<answer>1</answer>")
    )
    app = app_of(server, scorer=lambda question, answer: 1.0)
    done = batch(app, asked(2), Budget(tokens=9_000), workers=1)
    assert by_question(server) == {0: 3, 1: 1}
    assert "HTTP 500 (3 times)" in str(done.questions[0].error)
    assert (done.stop_reason, done.questions[1].answer) == ("done", "1")


@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
def test_what_failed_goes_on_under_the_same_name_once_its_cause_is_gone(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.script = lambda request, i: (
        Reply(error=status) if number(request) == 0 else Reply(text="<answer>1</answer>")
    )
    for _ in range(2):
        with open_checkpoints(tmp_path / "a.db") as store:
            options = {"ledger": store.ledger, "saver": store.saver}
            app = app_of(server, scorer=lambda question, answer: 1.0, **options)
            done = batch(app, asked(2), Budget(tokens=6_000), workers=1)
        server.script = lambda request, i: Reply(text="<answer>1</answer>")
    assert [(q.answer, q.error) for q in done.questions] == [("1", None)] * 2
    assert by_question(server)[1] == 1


def test_a_batch_that_is_stopped_has_the_best_of_each(server: Server) -> None:
    stop = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        return mixed(request, i) if i < 6 else Reply(text=None, pace=0.01)

    def watch(event: str, call: Call) -> None:
        if event == "word" and len(server.calls) > 6:
            stop.set()

    server.script, server.watch = script, watch
    done = batch(app_of(server), asked(6), Budget(tokens=50_000), workers=2, stop=stop)
    assert done.stop_reason == "interrupted"
    assert sum(q.answer is not None for q in done.questions) >= 5
    assert server.settled().served <= done.spent["tokens"]


def test_what_a_stop_cuts_before_its_first_answer_goes_on(server: Server, tmp_path: Path) -> None:
    stop = threading.Event()
    server.watch = lambda event, call: stop.set() if event == "asked" else None
    with open_checkpoints(str(tmp_path / "a.db")) as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        server.script = lambda request, i: Reply(error="hang")
        cut = batch(app, asked(1), Budget(tokens=5_000), stop=stop)
        server.script = lambda request, i: Reply("<answer>right</answer>")
        done = batch(app, asked(1), Budget(tokens=5_000))
    (first,), (then,) = cut.questions, done.questions
    assert (first.answer, first.error, first.stop_reason) == (None, None, "interrupted")
    assert (then.answer, then.stop_reason) == ("right", "perfect")


def test_no_time_at_all_is_refused(server: Server) -> None:
    with pytest.raises(BudgetTooSmall, match="the least is seconds="):
        batch(app_of(server), asked(2), Budget(seconds=0))


def test_time_ends_a_batch(server: Server) -> None:
    server.script = lambda request, i: mixed(request, i) if i < 4 else Reply(text=None, pace=0.01)
    done = batch(app_of(server), asked(4), Budget(seconds=1.5), workers=2)
    assert done.stop_reason == "seconds"
    assert any(q.answer for q in done.questions)


async def test_an_async_graph_does_the_same(server: Server) -> None:
    server.script = mixed
    sync = batch(app_of(server), asked(4), Budget(tokens=1_500), workers=1)
    done: Batch = await abatch(app_of(server), asked(4), Budget(tokens=1_500), workers=1)
    assert [(q.question, q.answer, q.spent["tokens"]) for q in done.questions] == [
        (q.question, q.answer, q.spent["tokens"]) for q in sync.questions
    ]
    task = asyncio.create_task(abatch(app_of(server), asked(8), Budget(tokens=90_000)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("times", [1, 2, 30])
async def test_an_async_batch_that_is_cancelled_again_and_again_is_left_to_the_next(
    server: Server, tmp_path: Path, times: int
) -> None:
    """A scope of anyio cancels in every pass of the event loop."""
    server.script = lambda request, i: (
        Reply(text=None, ignore_limit=True, pace=0.01) if i else mixed(request, i)
    )
    async with open_checkpoints(tmp_path / "a.db") as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        task = asyncio.create_task(abatch(app, asked(3), Budget(tokens=3_000), workers=2))
        await auntil(lambda: len(server.calls) == 3)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        server.script = mixed
        done: Batch = await abatch(app, asked(3), Budget(tokens=6_000))
        assert all(q.answer for q in done.questions)
        assert done.spent["tokens"] <= 6_000


async def test_an_async_batch_reads_its_ledger_beside_the_event_loop(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read may wait for a transaction, which may wait for LangGraph's saver, which needs the loop."""
    server.script = mixed
    async with open_checkpoints(tmp_path / "a.db") as store:
        reading = store.ledger.store.reading

        def beside() -> Any:
            with suppress(RuntimeError):
                asyncio.get_running_loop()
                raise AssertionError("the ledger was read on an event loop")
            return reading()

        monkeypatch.setattr(store.ledger.store, "reading", beside)
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        for budget in (900, 1_800):
            done: Batch = await abatch(app, asked(2), Budget(tokens=budget))
            assert done.spent["tokens"] == server.settled().served <= budget


DOOMED = """
from anytime_graph import Budget, open_checkpoints
from anytime_graph.batch import batch
from langchain_openai import ChatOpenAI
from anytime_graph.planning.moves import Draft, Move, View
from tests.kit.batches import app_of, asked

class Served:
    def model(self, **options):
        return ChatOpenAI(model="scripted", n=1, **options)

with open_checkpoints("a.db") as store:
    app = app_of(Served(), ledger=store.ledger, saver=store.saver)
    batch(app, asked(6), Budget(tokens=4_000), workers=2)
"""


def test_a_kill_buys_nothing_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.script = lambda request, i: mixed(request, i) if i < 9 else Reply(text=None, pace=0.01)
    with begun(server, DOOMED, calls=11, under_way=2):
        pass
    served = server.settled().served
    server.script = mixed
    with open_checkpoints(tmp_path / "a.db") as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        less = batch(app, asked(6), Budget(tokens=served), workers=2)
        assert (server.served, less.stop_reason) == (served, "tokens")
        assert less.spent["tokens"] >= served
        done = batch(app, asked(6), Budget(tokens=4_000), workers=2)
    assert server.served <= done.spent["tokens"] <= 4_000
    assert done.spent["calls"] == len(server.calls)
    assert max(Counter((c.request["seed"], c.text) for c in server.calls).values()) == 1


def test_a_question_whose_process_died_before_its_plan_was_stored_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first call is paid, and only the ledger knows it."""
    monkeypatch.chdir(tmp_path)
    stuck = """
    import threading
    put = store.saver.put
    def late(config, checkpoint, metadata, versions):
        if metadata["step"] > 0:
            threading.Event().wait()
        return put(config, checkpoint, metadata, versions)
    store.saver.put = late
    app = app_of("""
    server.script = lambda request, i: Reply(text=None, pace=0.01)
    with begun(server, DOOMED.replace("\n    app = app_of(", stuck), calls=2, under_way=2):
        pass
    lost = server.settled().served
    server.script = mixed
    with open_checkpoints(tmp_path / "a.db") as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        done = batch(app, asked(6), Budget(tokens=4_000), workers=2)
    assert None not in [question.answer for question in done.questions]
    assert lost < server.served <= done.spent["tokens"] <= 4_000
    assert done.spent["calls"] == len(server.calls)


TOGETHER = """
import asyncio, json
from anytime_graph import Budget, BudgetTooSmall, open_checkpoints
from anytime_graph.batch import abatch, batch
from langchain_openai import ChatOpenAI
from anytime_graph.planning.moves import Draft, Move, View
from tests.kit.batches import app_of, asked

class Served:
    def model(self, **options):
        return ChatOpenAI(model="scripted", n=1, **options)

def of(store):
    return app_of(Served(), ledger=store.ledger, saver=store.saver), asked(8)

async def beside():
    async with open_checkpoints({target!r}) as store:
        return await abatch(*of(store), Budget(tokens={tokens}), workers=2)

if {is_async}:
    done = asyncio.run(beside())
else:
    with open_checkpoints({target!r}) as store:
        done = batch(*of(store), Budget(tokens={tokens}), workers=2)
print(json.dumps([done.spent["tokens"], done.stop_reason, [q.answer for q in done.questions]]))
"""


@contextmanager
def together(server: Server, folder: Path, code: str, n: int) -> Iterator[list[ForkServerProcess]]:
    with ExitStack() as stack:
        lives = []
        for i in range(n):
            (folder / str(i)).mkdir(exist_ok=True)
            lives.append(stack.enter_context(forking(code, folder / str(i), environment(server))))
        yield lives


def told_by(folder: Path, life: ForkServerProcess, i: int) -> Any:
    assert ended(life) == 0, (folder / str(i) / "stderr").read_text()
    return json.loads((folder / str(i) / "stdout").read_text())


@pytest.mark.parametrize("is_async", [False, True])
def test_processes_share_a_batch(
    server: Server, target: str, tmp_path: Path, is_async: bool
) -> None:
    """Each is at work before any of them is done, and the last to leave has all of it."""
    both = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        if i == 3:  # two workers of each
            both.set()
        assert both.wait(PATIENCE)
        return mixed(request, i)

    server.script = script
    code = TOGETHER.format(target=target, tokens=3_000, is_async=is_async)
    with together(server, tmp_path, code, 2) as lives:
        ends = [told_by(tmp_path, life, i) for i, life in enumerate(lives)]
    for spent, reason, answers in ends:
        assert 2_000 < spent <= 3_000
        assert reason == "tokens"
        assert None not in answers
    assert server.settled().served <= max(spent for spent, *_ in ends)
    assert max(Counter((c.request["seed"], c.text) for c in server.calls).values()) == 1


def test_what_another_process_has_answered_has_no_error_of_this_one(
    server: Server, tmp_path: Path
) -> None:
    """It failed here, as often as it is tried, before the other came."""
    failed, others = list[int](), list[Batch]()

    def script(request: dict[str, Any], i: int) -> Reply:
        if number(request) or others:
            return mixed(request, i)
        failed.append(i)
        return Reply(error=500)

    server.script = script
    with open_checkpoints(tmp_path / "a.db") as one, open_checkpoints(tmp_path / "a.db") as two:

        def progress(told: Progress) -> None:
            if len(failed) == 3 and not others:
                others.append(cast(Any, "at work"))
                app = app_of(server, ledger=two.ledger, saver=two.saver)
                others[0] = batch(app, asked(2), Budget(tokens=6_000), workers=1)

        app = app_of(server, ledger=one.ledger, saver=one.saver)
        done = batch(app, asked(2), Budget(tokens=6_000), workers=1, progress=progress)
    answered = others[0].questions[0]
    assert answered.answer is not None
    assert done.questions[0] == answered


def test_a_question_that_a_dead_process_may_still_hold_is_waited_for(
    server: Server, store: Checkpoints, target: str
) -> None:
    """Of a process on another machine, which is known to be gone once both of its leases have expired."""
    server.script = mixed
    texts = asked(3)
    thread = thread_name("batch", texts[1])
    batch_name = thread_name("batch", "batch", sorted(thread_name("batch", t) for t in texts))
    taken = json.dumps([{**nothing()}, {**nothing(), "tokens": 100}])
    sql(target, f"INSERT INTO batches (id, name, change) VALUES (1, '{batch_name}', 1)")
    sql(target, f"INSERT INTO batch_steps VALUES (1, '{thread}', 1, 'calls of it', '{taken}')")
    sql(target, f"INSERT INTO leases VALUES ('{thread}', '1 b c/d 9 ab ef', {time.time() + 999})")

    def progress(told: Progress) -> None:
        if told.answered == 2:
            sql(target, f"UPDATE leases SET expires = 0 WHERE thread = '{thread}'")

    app = app_of(server, ledger=store.ledger, saver=store.saver)
    done = batch(app, texts, Budget(tokens=4_000), workers=1, progress=progress)
    assert None not in [question.answer for question in done.questions]
    assert server.settled().served <= done.spent["tokens"] <= 4_000


@settings(max_examples=torture or 3)
@given(
    event=st.sampled_from(["asked", "word", "ended"]),
    n=st.integers(1, 40),
    tokens=st.integers(600, 3_000),
    is_async=st.booleans(),
    in_file=st.booleans(),
)
def test_a_batch_survives_the_death_of_processes_that_share_it(
    postgres: str, event: str, n: int, tokens: int, is_async: bool, in_file: bool
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serving())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        database = stack.enter_context(fresh(postgres))
        target = str(folder / "a.db") if in_file else database
        server.script = mixed
        code = TOGETHER.format(target=target, tokens=tokens, is_async=is_async)
        lives = stack.enter_context(together(server, folder, code, 3))
        with struck(server, Doom(event, n, 0), lives[0].kill):
            ends = [told_by(folder, life, i) for i, life in enumerate(lives) if i]
        lives[0].kill()
        lives[0].join()
        for spent, _, _ in ends:
            assert spent <= tokens
        assert server.settled().served <= tokens
        paid = Counter((c.request["seed"], c.text) for c in server.calls)
        assert max(paid.values()) == 1
        code = TOGETHER.format(target=target, tokens=tokens + 4_000, is_async=is_async)
        with together(server, folder, code, 1) as more:
            spent, _, answers = told_by(folder, more[0], 0)
        assert server.settled().served <= spent <= tokens + 4_000
        assert None not in answers


def test_a_question_that_a_quota_ended_goes_on_once_the_quota_pays(
    server: Server, tmp_path: Path
) -> None:
    server.script = mixed
    with open_checkpoints(tmp_path / "a.db") as store:
        for limit, reason in ((1_200, "quota"), (1_200, "quota"), (60_000, "tokens")):
            quotas = [Quota(Budget(tokens=limit), window="1d")]
            app = app_of(server, ledger=store.ledger, saver=store.saver, quotas=quotas)
            done = batch(app, asked(4), Budget(tokens=4_000), workers=2)
            assert done.stop_reason == reason
            assert done.spent["tokens"] == server.settled().served
            assert (server.served > 1_200) == (limit > 1_200)


def test_a_question_whose_thread_went_on_with_another_gets_no_answer_to_that_one(
    server: Server, tmp_path: Path
) -> None:
    server.script = mixed
    with open_checkpoints(tmp_path / "a.db") as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        first = batch(app, asked(2), Budget(tokens=600), workers=1).questions[1]
        config: Any = {"configurable": {"thread_id": first.thread}}
        app.invoke({"messages": [("user", asked(3)[2])], "budget": Budget(tokens=300)}, config)
        made = len(server.calls)
        with pytest.raises(ValueError, match=rf"questions\[1\].*{first.thread}.*another name"):
            batch(app, asked(2), Budget(tokens=6_000))
        assert len(server.calls) == made


def test_questions_may_be_conversations(server: Server, tmp_path: Path) -> None:
    """A text is the conversation of one message, and each conversation counts once."""
    server.script = lambda request, i: Reply(text=f"<answer>{told(request)[0]}</answer>")
    talks: list[Any] = [
        [("system", system), ("user", "1 + 1"), ("assistant", "2"), HumanMessage(text)]
        for system in ("add", "multiply")
        for text in ("2 + 2", "3 + 3")
    ]
    plain: list[Any] = ["2 + 2", [("user", "2 + 2")], [{"role": "user", "content": "2 + 2"}]]
    given = [*talks, *plain, *talks]
    with open_checkpoints(tmp_path / "a.db") as store:
        app = app_of(
            server, ledger=store.ledger, saver=store.saver, scorer=lambda question, answer: 1.0
        )
        done = batch(app, given, Budget(tokens=6_000))
        assert [q.question for q in done.questions] == ["2 + 2", "3 + 3"] * 2 + ["2 + 2"]
        assert [q.answer for q in done.questions] == ["add"] * 2 + ["multiply"] * 2 + ["2 + 2"]
        assert len(server.calls) == len({q.thread for q in done.questions}) == 5
        assert told(server.calls[0].request)[1:-1] == ["1 + 1", "2"]
        again = batch(app, given, Budget(tokens=6_000))
        assert again.questions == done.questions
        assert len(server.calls) == 5


def told(request: dict[str, Any]) -> list[str]:
    """The texts of a request but for what the graph adds."""
    texts = [str(message["content"]) for message in request["messages"]]
    return [text.split("\n")[0] for text in texts if "<answer>" not in text.split("\n")[0]]


def test_a_batch_of_an_earlier_version_goes_on(server: Server, tmp_path: Path) -> None:
    """Its questions were messages with ids of LangGraph's making."""
    server.script = mixed
    with open_checkpoints(tmp_path / "a.db") as store:
        app = app_of(server, ledger=store.ledger, saver=store.saver)
        (first,) = batch(app, asked(1), Budget(tokens=600), name="other").questions
        config: Any = {"configurable": {"thread_id": first.thread.replace("other", "batch")}}
        app.invoke({"messages": [("user", asked(1)[0])], "budget": Budget(tokens=600)}, config)
        made, served = len(server.calls), server.served
        (again,) = batch(app, asked(1), Budget(tokens=600)).questions
        assert again.thread == config["configurable"]["thread_id"]
        assert again.answer == first.answer
        assert (len(server.calls), server.served) == (made, served)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"questions": []}, r"questions=\[\]"),
        ({"questions": "one"}, "a list of questions"),
        ({"questions": ["a", " "]}, r"questions\[1\]=' ': a text that is not empty"),
        ({"questions": ["a", 5]}, r"questions\[1\]=5: a text that is not empty"),
        ({"questions": ["a", None]}, r"questions\[1\]=None"),
        ({"questions": [[]]}, r"questions\[0\]=\[\]"),
        ({"questions": [[("user", "")]]}, r"questions\[0\].*the last is the user's"),
        ({"questions": [[("user", "a"), ("assistant", "b")]]}, "the last is the user's"),
        ({"questions": [[("nobody", "a")]]}, r"questions\[0\].*nobody"),
        ({"questions": [[{"role": "user"}]]}, r"questions\[0\].*the last is the user's"),
        ({"questions": [("user", "a")]}, r"questions\[0\].*a message is"),
        ({"workers": 0}, "workers=0"),
        ({"name": " "}, "name=' ': a text that is not empty"),
        ({"budget": 5}, "budget=5"),
        ({"budget": Budget(usd=1)}, "usd=1"),
    ],
)
def test_bad_arguments_are_refused(server: Server, change: dict[str, Any], error: str) -> None:
    arguments: dict[str, Any] = {"questions": ["a"], "budget": Budget(tokens=9_000), **change}
    with pytest.raises(ValueError, match=error):
        batch(app_of(server), arguments.pop("questions"), arguments.pop("budget"), **arguments)
    assert not server.calls


def test_a_graph_that_cannot_be_continued_is_refused(server: Server) -> None:
    app = create_anytime_graph(server.model()).compile()
    with pytest.raises(ValueError, match="compile the graph with a checkpointer"):
        batch(app, ["a"], Budget(tokens=9_000))


def test_the_dimensions_of_a_batch_stay(server: Server) -> None:
    app = app_of(server)
    batch(app, ["a"], Budget(tokens=300))
    with pytest.raises(ValueError, match="began with a budget in tokens"):
        batch(app, ["a"], Budget(output_tokens=300))
    batch(app, ["b"], Budget(calls=1))
    with pytest.raises(ValueError, match="began with a budget in calls"):
        batch(app, ["b"], Budget(tokens=300))


def test_as_many_questions_are_answered_as_there_are_calls(server: Server) -> None:
    done = batch(app_of(server, scorer="judge"), asked(5), Budget(calls=2), workers=1)
    assert [q.answer is not None for q in done.questions] == [True, True, False, False, False]
    assert len(server.calls) == done.spent["calls"] == 2


def test_a_budget_that_is_too_small_is_told_in_its_own_dimensions(server: Server) -> None:
    with pytest.raises(BudgetTooSmall, match=r"the least is tokens=\d+$") as error:
        batch(app_of(server), ["why? " * 900], Budget(tokens=300))
    assert set(error.value.least.limits()) == {"tokens"}
    assert not server.calls


def test_what_one_question_raises_takes_no_answer_from_the_others(server: Server) -> None:
    """It is its error, once others are paid for; before, it may be that of all, and is raised."""
    server.script, raised = mixed, list[int]()

    def strategy(view: View) -> list[Move]:
        if not (view.candidates or raised) and len(server.calls) == paid:
            raised.append(paid)
            raise ValueError("not this one")
        return [Draft()]

    for paid in (2, 0):
        raised.clear()
        del server.calls[:]
        app = app_of(server, strategy=strategy)
        if not paid:
            with pytest.raises(ValueError, match="not this one"):
                batch(app, asked(4), Budget(tokens=2_000), workers=1)
            continue
        done = batch(app, asked(4), Budget(tokens=2_000), workers=1)
        assert ["not this one" in str(q.error) for q in done.questions].count(True) == 1
        assert [q.answer is None for q in done.questions].count(True) == 1
        assert done.spent["tokens"] == server.served


def test_why_a_question_has_no_answer_is_told_by_later_runs_too(
    server: Server, store: Checkpoints
) -> None:
    server.script = lambda request, i: Reply(error=500) if number(request) else mixed(request, i)
    app = app_of(server, ledger=store.ledger, saver=store.saver)
    first = batch(app, asked(2), Budget(tokens=1_500), workers=1)
    later = batch(app, asked(2), Budget(tokens=first.spent["tokens"]), workers=1)
    for done in (first, later):
        assert done.questions[0].error is None
        assert done.questions[1].answer is None
        assert "HTTP 500" in str(done.questions[1].error)
