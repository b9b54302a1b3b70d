"""The memory at work: pairs of earlier questions in the prompts of later ones, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.store.memory import InMemoryStore

from anytime_graph import Budget, Score, create_anytime_graph, open_checkpoints
from anytime_graph.checkpoints import likeness
from anytime_graph.checkpoints.memory import Namespace, encoded, memory_of
from tests.kit.forks import prepared
from tests.kit.kills import ended
from tests.kit.lives import model
from tests.kit.server import Reply, Script, Server, serving

FIRST = "Write a poem about the river Rhine in autumn."
LIKE = "In autumn, write me a short poem about the river Rhine."
OTHER = "How many legs has a beetle?"
OWN = "Earlier attempts at this question"


def numbered(request: dict[str, Any], i: int) -> Reply:
    """An answer that names the tenant who asks, as the question does."""
    asked = request["messages"][-1]["content"] + request["messages"][0]["content"]
    tenant = re.findall(r"tenant\d", asked)[:1]
    return Reply(text=f"<answer>verse {request['seed']} {' '.join(tenant)}</answer>")


def verse(question: str, answer: str) -> Score:
    return Score(int(re.findall(r"\d+", answer)[0]) / 100, "a later verse, please")


@pytest.fixture(params=["store", "sqlite", "postgresql"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The arguments that give a graph a memory."""
    if request.param == "store":
        yield {"memory": InMemoryStore()}
        return
    sqlite = request.param == "sqlite"
    target = str(tmp_path / "m.db") if sqlite else request.getfixturevalue("database")
    with open_checkpoints(target) as opened:
        yield {"memory": opened.ledger, "ledger": opened.ledger}


def asked(
    server: Server, question: str, sync: bool = True, of: Any = (), **more: Any
) -> dict[str, Any]:
    options = {"scorer": verse, "strategy": "pdp", "budget": Budget(tokens=3_000), **more}
    app = create_anytime_graph(server.model(seed=0), **options).compile()
    given: dict[str, Any] = {"messages": [("user", question)]}
    context: Any = {"namespace": of}
    if sync:
        return app.invoke(given, context=context)
    return asyncio.run(app.ainvoke(given, context=context))


def taught(server: Server, **more: Any) -> InMemoryStore:
    """A memory that an earlier question has taught."""
    store = InMemoryStore()
    server.script = numbered
    asked(server, FIRST, memory=store, **more)
    server.calls.clear()
    return store


def scoring(recalled: int) -> Script:
    """Answers whose score says whether their prompt showed what earlier questions taught."""

    def script(request: dict[str, Any], i: int) -> Reply:
        prompt = "".join(m["content"] for m in request["messages"])
        score = (recalled if "earlier questions" in prompt else 40) + request["seed"] % 5
        return Reply(text=f"<answer>{'verse ' * 20}{score}</answer>")

    return script


def told(server: Server) -> list[str]:
    """Prompts that showed what earlier questions taught."""
    return [c.text for c in server.calls if "earlier questions" in c.text]


@pytest.mark.pairwise
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_the_first_drafts_show_pairs_of_a_like_question(
    server: Server, memory: dict[str, Any], sync: bool
) -> None:
    server.script = numbered
    first = asked(server, FIRST, sync, **memory)
    assert not any("earlier questions" in c.text for c in server.calls)
    server.calls.clear()
    out = asked(server, LIKE, sync, **memory)
    shown, another, *_ = told(server)
    assert shown == another
    assert f'Question: "{FIRST}"' in shown
    assert 'Better: "<answer>verse' in shown
    assert first["pairs"][0]["better"][:15] in shown
    assert out["spent"]["tokens"] == server.settled().served <= 3_000
    server.calls.clear()
    asked(server, OTHER, sync, **memory)
    assert not any("earlier questions" in c.text for c in server.calls)


@pytest.mark.parametrize(
    ("strategy", "sides"),
    [("pdp", {"Better", "Worse", "Why"}), ("pdp_positive", {"Better"}), ("leap", set())],
)
def test_a_strategy_shows_what_it_shows_of_its_own(
    server: Server, strategy: str, sides: set[str]
) -> None:
    server.script = lambda r, i: (
        Reply(text="- Be late.")
        if "Learn from the mistakes" in r["messages"][0]["content"]
        else numbered(r, i)
    )
    store = InMemoryStore()
    asked(server, FIRST, memory=store, strategy="leap")
    server.calls.clear()
    asked(server, LIKE, memory=store, strategy=strategy)
    shown = told(server)[0]
    assert {side for side in ("Better", "Worse", "Why") if f"{side}: " in shown} == sides
    assert ("- Be late." in shown) == (strategy == "leap")


@pytest.mark.pairwise(3)
@pytest.mark.parametrize("tokens", [800, 1_200, 6_000], ids=["tight", "less tight", "ample"])
@pytest.mark.parametrize("strategy", ["best_of_n", "pdp", "leap"])
def test_at_most_half_of_the_first_drafts_are_shown_what_was_recalled(
    server: Server, strategy: str, tokens: int
) -> None:
    """However many of them a slice's lessons leave room for at once."""
    store = taught(server, strategy="leap")
    asked(server, LIKE, memory=store, strategy=strategy, budget=Budget(tokens=tokens, calls=4))
    assert 1 <= len(told(server)) <= (len(server.calls) + 1) // 2


@pytest.mark.pairwise
@pytest.mark.parametrize("worth", [0, 90], ids=["harm", "help"])
@pytest.mark.parametrize("strategy", ["best_of_n", "pdp", "adaptive"])
def test_a_run_goes_on_with_what_it_recalled_only_where_that_pays(
    server: Server, strategy: str, worth: int
) -> None:
    store = taught(server)
    server.script = scoring(recalled=worth)
    asked(server, LIKE, memory=store, strategy=strategy, budget=Budget(tokens=6_000, calls=20))
    asking = [c for c in server.calls if "Think step by step" in c.text]
    recalled = len(told(server))
    if worth:
        assert recalled > len(asking) / 2
    else:
        assert 1 <= recalled <= 3 < len(asking) / 3


def test_pdp_tries_its_own_pairs_even_where_those_recalled_did_harm(server: Server) -> None:
    store = taught(server)
    server.script = scoring(recalled=0)
    asked(server, LIKE, memory=store, budget=Budget(tokens=6_000, calls=20))
    asking = [c.text for c in server.calls if "Think step by step" in c.text]
    drafts = [text for text in asking if "Improve on your answer" not in text]
    opening, then = drafts[:4], drafts[4]
    assert not any(OWN in text for text in opening)
    assert OWN in then


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([FIRST, LIKE])), max_size=5))
def test_no_tenant_sees_another_s_pairs(turns: list[tuple[int, str]]) -> None:
    store = InMemoryStore()
    with serving() as server:
        server.script = numbered
        for tenant, question in turns:
            server.calls.clear()
            text = f"{question} I am tenant{tenant}."
            asked(
                server, text, of=["acme", f"tenant{tenant}"], memory=store, budget=Budget(calls=6)
            )
            seen = {name for c in server.calls for name in re.findall(r"tenant\d", c.text)}
            assert seen == {f"tenant{tenant}"}


def collision() -> tuple[Namespace, Namespace]:
    """Two namespaces that the ledger's index cannot tell apart."""
    seen: dict[str, Namespace] = {}
    for n in range(10**6):
        name = (f"tenant {n}",)
        [key] = likeness.keys(encoded(name), "rhine")
        if key in seen:
            return seen[key], name
        seen[key] = name
    raise AssertionError


@pytest.mark.pairwise
@pytest.mark.parametrize("alike", [False, True], ids=["any", "alike in the index"])
def test_each_namespace_has_a_memory_of_its_own(
    server: Server, memory: dict[str, Any], alike: bool
) -> None:
    own, other = collision() if alike else (("acme", "ann"), ("acme",))
    server.script = numbered
    asked(server, FIRST, of=own, **memory)
    server.calls.clear()
    asked(server, LIKE, of=other, **memory)
    assert not told(server)
    known = memory_of(memory["memory"])
    assert known.recall(own, LIKE)
    assert {example["question"] for example in known.recall(other, FIRST)} == {LIKE}
    assert known.forget(own) > 0
    assert known.recall(own, LIKE) == []
    assert known.recall(other, LIKE)


@pytest.mark.parametrize("wrong", ["acme", [""], [3], {"a": 1}])
def test_a_wrong_namespace_is_refused_before_anything_is_spent(server: Server, wrong: Any) -> None:
    with pytest.raises(ValueError, match="namespace="):
        asked(server, FIRST, of=wrong, memory=InMemoryStore())
    assert not server.calls


def test_a_memory_that_fails_costs_its_pairs_alone(server: Server) -> None:
    class Broken(InMemoryStore):
        def batch(self, ops: Any) -> Any:
            raise ConnectionError("the store is away")

    server.script = numbered
    out = asked(server, FIRST, memory=Broken())
    assert out["best"]["score"] > 0
    assert [e for e in out["errors"] if e.startswith("memory")] == ["memory: ConnectionError"] * 2


def killed_life(url: str, path: Path) -> None:
    def dies(question: str, answer: str) -> Score:
        if int(re.findall(r"\d+", answer)[0]) > 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return verse(question, answer)

    with open_checkpoints(path) as opened:
        both: Any = {"memory": opened.ledger, "ledger": opened.ledger}
        budget = Budget(tokens=3_000)
        app = create_anytime_graph(
            model(url), scorer=dies, strategy="pdp", budget=budget, **both
        ).compile()
        app.invoke({"messages": [("user", FIRST)]}, context={"namespace": ()})


def test_a_killed_run_is_remembered_by_the_ledger(server: Server, tmp_path: Path) -> None:
    """Its pairs are in the ledger as soon as they are made."""
    server.script = numbered
    process = prepared(killed_life, server.url, tmp_path / "m.db")
    process.start()
    assert ended(process) == -signal.SIGKILL
    server.calls.clear()
    with open_checkpoints(tmp_path / "m.db") as opened:
        asked(server, LIKE, memory=opened.ledger, ledger=opened.ledger)
    assert f'Question: "{FIRST}"' in told(server)[0]


def test_what_cannot_remember_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory="):
        create_anytime_graph(server.model(), memory={})  # type: ignore[arg-type]
    with (
        open_checkpoints(tmp_path / "m.db") as opened,
        pytest.raises(ValueError, match="pass it as ledger= too"),
    ):
        create_anytime_graph(server.model(), memory=opened.ledger)
