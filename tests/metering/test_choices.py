"""Several drafts in one request: billed their prompt once where the provider does so, found out from
its reports, and never dearer than separate calls."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import (
    Budget,
    BudgetTooSmall,
    NoAnswer,
    Until,
    create_anytime_graph,
    open_checkpoints,
)
from anytime_graph.planning.moves import Draft, Move, Stop, View
from anytime_graph.planning.strategies import best_of_n
from anytime_graph.run.state import conversation_digest
from tests.bench import choices as bench_choices
from tests.kit.marks import torture
from tests.kit.server import Call, Reply, Server, serving

ASK = {"messages": [("user", "Why do rivers bend, and what has the old bed to do with it?")]}
SAID = [f"so <answer>{n}</answer> it is" for n in range(8)]


ENOUGH = 3_200
"""Tokens that pay for four drafts of unknown length, 768 each."""


def making(n: int = 4, **options: Any) -> Callable[[dict[str, Any], int], Reply]:
    """A server that makes as many choices as are asked for, up to n, each with an answer of its own."""

    count = itertools.count()

    def script(request: dict[str, Any], i: int) -> Reply:
        asked = min(n, request.get("n") or 1)
        text, *more = [SAID[next(count) % len(SAID)] for _ in range(asked)]
        return Reply(text=text, more=more, **options)

    return script


def asked(server: Server) -> list[int]:
    return [c.request.get("n") or 1 for c in server.calls]


def digit(question: str, answer: str) -> float:
    return int(answer) / 10 if answer.isdigit() else 0.0


def graph(server: Server, **options: Any) -> Any:
    model = options.pop("model", None) or server.model(n=None)
    options = {"budget": Budget(tokens=ENOUGH), "scorer": digit, "strategy": "best_of_n"} | options
    return create_anytime_graph(model, **options)


def run(server: Server, sync: bool = True, config: Any = None, **options: Any) -> Any:
    app = graph(server, **options).compile()
    out = app.invoke(ASK, config) if sync else asyncio.run(app.ainvoke(ASK, config))
    server.settled()
    return out


def test_what_several_drafts_have_written_is_shared_among_them(server: Server) -> None:
    """Which of them wrote how much is not reported. The first is cut."""
    server.script = lambda request, i: Reply(text=None, more=SAID[1:4])
    app = graph(server, budget=Budget(calls=1, output_tokens=3_200)).compile(InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "t"}}
    app.invoke(ASK, thread)
    drafts = app.get_state(thread).values["payoffs"]["draft"]
    written = server.settled().calls[0].output
    assert asked(server) == [4]
    assert (drafts["tries"], drafts["cut"], drafts["written"]) == (4, 1, written // 4 * 4)
    assert drafts["whole"] == 3 * (written // 4)


@pytest.mark.parametrize("sync", [True, False])
def test_equal_drafts_are_one_request_whose_prompt_is_billed_once(
    server: Server, sync: bool
) -> None:
    server.script = making()
    out = run(server, sync)
    assert set(asked(server)[:-1]) == {4}
    assert out["spent"]["tokens"] == server.served <= ENOUGH
    assert out["spent"]["calls"] == len(server.calls)
    assert out["best"]["answer"] == "7"
    assert out["errors"] == []
    assert len({c["message_id"] for c in out["candidates"]}) == len(out["candidates"])
    answers = sum(asked(server))
    server.calls.clear()
    run(server, sync, model=server.model())
    assert answers > 2 * len(server.calls)


def test_every_choice_is_found_scored_and_told_by_an_id_of_its_own(server: Server) -> None:
    server.script = making()
    app = graph(server, budget=Budget(calls=1)).compile()
    texts: dict[str | None, str] = {}
    events = []
    for mode, event in app.stream(ASK, stream_mode=["messages", "custom"]):
        if mode == "messages":
            texts[event[0].id] = texts.get(event[0].id, "") + event[0].text
        else:
            events.append(event["answer"])
    assert sorted(texts.values()) == SAID[:4]
    assert events[-1] == "3"


@pytest.mark.parametrize("sync", [True, False])
def test_a_server_that_bills_the_prompt_for_each_choice_is_found_out(
    server: Server, sync: bool
) -> None:
    server.script = making(bills="each")
    out = run(server, sync)
    assert asked(server)[0] > 1 == max(asked(server)[1:])
    assert out["spent"]["tokens"] == server.served <= ENOUGH
    answers = sum(asked(server))
    server.calls.clear()
    run(server, sync, model=server.model())
    assert answers >= len(server.calls)


@pytest.mark.parametrize("sync", [True, False])
def test_a_server_that_reports_one_choice_of_several_is_found_out(
    server: Server, sync: bool
) -> None:
    """As llama.cpp's does."""
    server.script = making(tells="one")
    out = run(server, sync)
    assert asked(server)[0] > 1 == max(asked(server)[1:])
    assert server.served <= out["spent"]["tokens"] <= ENOUGH
    first = server.calls[0]
    assert first.served <= out["spent"]["tokens"] - sum(c.served for c in server.calls[1:])
    assert any("for 4 choices" in error for error in out["errors"])


@pytest.mark.parametrize("sync", [True, False])
def test_a_server_that_makes_one_choice_is_asked_for_the_others_one_by_one(
    server: Server, sync: bool
) -> None:
    server.script = making(n=1)
    waves: list[int] = []

    def two_waves(view: View) -> list[Move]:
        waves.append(len(view.candidates))
        return [Draft(share=0.1)] * 4 if len(waves) < 3 else [Stop()]

    out = run(server, sync, strategy=two_waves, budget=Budget(tokens=3_000))
    assert waves == [0, 4, 8]
    assert asked(server) == [4] + [1] * 7
    assert out["spent"]["tokens"] == server.served
    assert out["errors"] == []


@pytest.mark.parametrize("error", [400, 422, "drop", "junk"])
def test_a_refusal_is_one_failure_and_separate_calls_follow(
    server: Server, error: int | str
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(error=error) if request.get("n") else Reply(text=SAID[i % 8])

    server.script = script
    paid = 8 if isinstance(error, int) else 9  # the refused one is not a call
    out = run(server, budget=Budget(calls=paid))
    assert asked(server) == [4] + [1] * 8
    assert len(out["errors"]) == 1
    assert out["best"]["answer"] == "7"


def test_a_broken_stream_leaves_what_had_arrived(server: Server) -> None:
    server.script = making(error="break")
    out = run(server, budget=Budget(calls=1))
    assert out["spent"]["tokens"] >= server.served
    assert out["best"]["text"] in {text[: len(out["best"]["text"])] for text in SAID}


def test_choices_end_each_by_its_own(server: Server) -> None:
    """One fills its room and is cut at the cap, one is empty, the others are whole."""
    server.script = lambda request, i: Reply(
        text=None, more=["", SAID[3], SAID[5]][: (request.get("n") or 1) - 1]
    )
    out = run(server, budget=Budget(output_tokens=3_200, calls=1))
    assert [c["complete"] for c in out["candidates"]] == [False, True, True]
    assert out["best"]["answer"] == "5"
    assert out["errors"] == ["draft 1: the reply was empty"]
    assert server.calls[0].output <= 3_200


def test_a_provider_that_ignores_the_cap_is_cut(server: Server) -> None:
    endless: Any = {"text": None, "ignore_limit": True, "pace": 0.0005}
    server.script = lambda request, i: Reply(more=[None] * 3, **endless)
    out = run(server, budget=Budget(tokens=900))
    assert server.calls[0].output < 1_000
    assert any("ignored the limit" in error for error in out["errors"])


@pytest.mark.parametrize(
    "model",
    [
        lambda server: server.model(n=1),
        lambda server: server.model(n=None, disable_streaming=True),
        lambda server: server.model(n=None, streaming=False),
        lambda server: server.model(n=None, include_response_headers=True),
        lambda server: server.model(n=None).bind(stop=["@@"]),
    ],
)
def test_where_one_choice_is_wanted_or_no_more_can_be_had_calls_are_separate(
    server: Server, model: Callable[[Server], Any]
) -> None:
    server.script = making()
    run(server, model=model(server), budget=Budget(calls=4))
    assert asked(server) == [1] * 4


def test_openais_own_address_is_known_to_bill_the_prompt_once(server: Server) -> None:
    """Through a proxy, so that the first request already reserves its prompt once."""
    server.script = making()
    options = {"openai_proxy": server.url.removesuffix("/v1"), "api_key": "none"}
    model = ChatOpenAI(model="scripted", base_url="http://api.openai.com/v1", **options)
    run(server, model=model)
    known = server.calls[0].limit
    server.calls.clear()
    run(server)
    unknown = server.calls[0]
    assert 4 * known >= 4 * unknown.limit + 3 * unknown.prompt


class Soon:
    """A stop that comes with the n-th word."""

    def __init__(self, server: Server, n: int) -> None:
        self.seen, self.n, self.event = 0, n, threading.Event()
        server.watch = self._watch

    def _watch(self, event: str, call: Call) -> None:
        self.seen += event == "word"
        if self.seen == self.n:
            self.event.set()

    def is_set(self) -> bool:
        return self.event.is_set()


def test_a_stop_in_mid_flight_returns_the_best_of_what_had_arrived(server: Server) -> None:
    """The first reply is endless, the others are whole by then."""
    server.script = lambda request, i: Reply(
        text=None, more=list(SAID[1:4]), ignore_limit=True, pace=0.002
    )
    app = graph(server, budget=Budget(output_tokens=100_000)).compile()
    out = app.invoke(ASK, context={"stop": Soon(server, 200)})
    assert out["stop_reason"] == "interrupted"
    assert out["best"]["answer"] == "3"
    assert out["spent"]["output_tokens"] >= server.settled().calls[0].output


# --- the ledger


@pytest.mark.pairwise
@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("kind", ["scorer", "vote"])
def test_choices_that_were_paid_for_are_found_again(
    server: Server, tmp_path: Path, sync: bool, kind: str
) -> None:
    """The state is lost behind the first request; its choices come from the ledger, each with its
    score."""
    server.script = making()
    scored: list[str] = []

    def score(question: str, answer: str) -> float:
        scored.append(answer)
        return digit(question, answer)

    options: Any = {"budget": Budget(calls=2), "scorer": score if kind == "scorer" else "vote"}
    on: Any = {"configurable": {"thread_id": "rivers"}}
    with open_checkpoints(tmp_path / "a.db") as store:
        whole = run(server, sync, config=on, ledger=store.ledger, **options)
        run_id = store.ledger.find("rivers", _conversation_digest())
        assert run_id is not None
        answers, calls = store.ledger.answers(run_id), store.ledger.calls(run_id)
        assert [a["ordinal"] for a in answers] == list(range(8))
        assert [c["ordinal"] for c in calls] == [0, 4]
        assert {a["call_id"] for a in answers} == {c["id"] for c in calls}
        before, judged = len(server.calls), len(scored)
        again = run(server, sync, config=on, ledger=store.ledger, **options)
        assert len(server.calls) == before
        assert len(scored) == judged
    assert again["spent"] | {"seconds": 0} == whole["spent"] | {"seconds": 0}
    assert _known(again) == _known(whole)


def _known(out: Any) -> list[Any]:
    kept = ("id", "answer", "text", "score", "votes", "complete", "message_id")
    return [{name: c[name] for name in kept} for c in out["candidates"]]


def _conversation_digest() -> str:
    return conversation_digest([HumanMessage(ASK["messages"][0][1])])


def test_a_request_that_was_in_flight_when_its_process_died_is_charged_in_full(
    server: Server, tmp_path: Path
) -> None:
    """What had streamed of its first choice may hold an answer."""
    server.script = making()
    on: Any = {"configurable": {"thread_id": "rivers"}}
    with open_checkpoints(tmp_path / "a.db") as store:
        whole = run(server, config=on, ledger=store.ledger, budget=Budget(tokens=900, calls=1))
        with store.ledger.store.transaction() as execute:
            for lost in (
                "UPDATE runs SET best_id = NULL",
                *(f"DELETE FROM {table}" for table in ("pairs", "curve", "answers")),
                "UPDATE calls SET state = 'reserved', reply = NULL, tokens = 800, text = '"
                + SAID[2]
                + "'",
            ):
                execute(lost, {})
        again = run(server, config=on, ledger=store.ledger, budget=Budget(tokens=900, calls=1))
    assert len(server.calls) == 1
    assert again["spent"]["tokens"] == 800 > whole["spent"]["tokens"]
    assert again["best"]["answer"] == "2"


def test_numbers_alone_are_kept_where_that_is_asked(server: Server, tmp_path: Path) -> None:
    server.script = making()
    with open_checkpoints(tmp_path / "a.db", record="usage") as store:
        on: Any = {"configurable": {"thread_id": "rivers"}}
        run(server, config=on, ledger=store.ledger)
    assert b"<answer>" not in (tmp_path / "a.db").read_bytes()


# --- not asked for any more


@pytest.mark.parametrize(("until", "why"), [(None, "perfect"), (Until(target=0.5), "target")])
def test_no_draft_is_begun_after_one_that_will_do(
    server: Server, until: Until | None, why: str
) -> None:
    """Where they run one after another; what was begun is booked as it was billed."""
    server.script = making()
    enough = 1.0 if until is None else 0.6
    out = run(
        server,
        model=server.model(),
        scorer=lambda q, a: enough if a == "1" else 0.0,
        until=until,
        budget=Budget(calls=8),
        config={"max_concurrency": 1},
    )
    assert len(server.calls) == out["spent"]["calls"] == 2
    assert out["stop_reason"] == why
    assert out["spent"]["tokens"] == server.served


# --- whatever comes

texts = st.one_of(
    st.integers(0, 60).map(lambda n: "some words " * n), st.sampled_from(SAID), st.none()
)
said: Any = st.one_of(st.just([None] * 9), st.lists(texts, min_size=9, max_size=9))
usages: Any = st.sampled_from(
    ["true"] * 4 + ["none", {"prompt_tokens": -1, "completion_tokens": 0}, {"prompt_tokens": "x"}]
)


@settings(max_examples=torture or 12)
@given(
    budget=st.one_of(
        st.integers(300, 3_000).map(lambda n: Budget(tokens=n)),
        st.integers(100, 900).map(lambda n: Budget(tokens=n)),
        st.builds(Budget, tokens=st.integers(100, 3_000), calls=st.integers(1, 6)),
        st.builds(Budget, output_tokens=st.integers(50, 2_000), calls=st.integers(1, 6)),
    ),
    n=st.integers(2, 9),
    makes=st.sampled_from([9, 9, 9, 2, 1]),
    bills=st.sampled_from(["each", "once"]),
    tells=st.sampled_from(["all", "all", "one"]),
    scripts=st.lists(st.tuples(said, usages), min_size=3, max_size=3),
    kind=st.sampled_from(["vote", "judge", "scorer"]),
    error=st.sampled_from([None, None, None, 400, 500, "drop", "break", "junk"]),
)
@example(Budget(tokens=400), 6, 9, "each", "all", [([None] * 9, "true")] * 3, "vote", None)
@example(Budget(tokens=2_900), 6, 9, "each", "one", [([None] * 9, "true")] * 3, "vote", None)
def test_no_budget_is_overspent_whatever_a_provider_makes_of_a_request(
    budget: Budget,
    n: int,
    makes: int,
    bills: str,
    tells: str,
    scripts: list[tuple[list[str | None], Any]],
    kind: str,
    error: int | str | None,
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        each, usage = scripts[i % len(scripts)]
        text, *more = each[: min(makes, request.get("n") or 1)]
        failing = error if i == 1 else None
        return Reply(text=text, more=more, usage=usage, error=failing, bills=bills, tells=tells)

    with serving() as server:
        server.script = script
        app = graph(
            server,
            strategy=partial(best_of_n, n=n),
            scorer=digit if kind == "scorer" else kind,
            budget=budget,
        ).compile()
        try:
            out = app.invoke(ASK)
        except BudgetTooSmall:
            assert not server.settled().calls
            return
        except NoAnswer as failure:
            spent, best = failure.spent, None
        else:
            spent, best = out["spent"], out["best"]
        server.settled()
        for dimension, served in (
            ("tokens", server.served),
            ("output_tokens", sum(c.output for c in server.calls)),
            ("calls", sum(not c.refused for c in server.calls)),
        ):
            limit = budget.limits().get(dimension)
            assert limit is None or served <= spent[dimension] <= limit
        if all(c.reported for c in server.calls):
            assert spent["tokens"] == server.served
        first = scripts[0][0][0]
        assert best is not None or (first is not None and not first.strip())


# --- the measure


def test_a_vote_by_several_choices_is_far_above_one_by_separate_calls(server: Server) -> None:
    """And never below it where the prompt is billed for each. `python -m tests.bench.choices` says
    more."""
    by_name = {case.name: case for case in bench_choices.CASES}
    questions = 16 if torture else 8

    def of(name: str, budget: int) -> bench_choices.Outcome:
        return bench_choices.measured(server, by_name[name], budget, questions)

    for budget, gain in (400, 0.1), (1_600, 0.0):
        separate = of("separate calls", budget)
        openais = of("prompt billed once, as by OpenAI", budget)
        each = of("prompt billed for each choice", budget)
        assert openais.answers > 2 * separate.answers
        assert openais.accuracy > separate.accuracy + gain
        assert (each.votes, each.right) >= (separate.votes, separate.right)
    unknown, known = (
        of(name, 270) for name in ("prompt billed once, as by OpenAI", "the same, with a profile")
    )
    assert unknown.votes == 2 * questions
    assert known.votes == 4 * questions
    assert known.accuracy > unknown.accuracy
