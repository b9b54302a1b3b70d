"""Pages of threads, on ledgers that real runs have written: what is on them, and what cannot be."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph import Budget, Score, create_anytime_graph, fork, open_checkpoints
from anytime_graph.pages.curve import curve, extent, ticks
from anytime_graph.pages.html import escaped
from anytime_graph.pages.thread import page, thread_page, told
from anytime_graph.planning.moves import Draft, Move, Refine, Stop, View
from anytime_graph.text import harmless
from tests.kit.server import Reply, Server

HOSTILE = (
    '</pre></title></style><script>alert(1)</script><img src=x onerror="alert(2)"> &lt;b&gt; '
    "\u202egnorw\u202c \x1b[2J\x00 \"'` " + "x" * 5_000
)
SHOWN = """html head meta title style body section article header nav ol li ul h1 h2 h3 p div dl dt dd
small strong span i b em br a details summary pre svg line circle text"""
THREAD: Any = {"configurable": {"thread_id": "rivers"}}
ASK: Any = {"messages": [("user", f"Why? {HOSTILE}")]}


class Seen(HTMLParser):
    """What a browser would see: tags, attributes that load or run something, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.active: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.active += [
            f"{name}={value}"
            for name, value in attrs
            if name.startswith("on")
            or name == "src"
            or (name == "href" and (value or "")[:1] != "#")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(request: dict[str, Any], i: int) -> Reply:
    asked = str(request["messages"])
    verdict = "VERDICT: A" if "VERDICT" in asked or "verdict" in asked else ""
    return Reply(f"{i} {HOSTILE} <answer>{i % 3} {HOSTILE}</answer> {verdict}", piece=100)


def scored(question: str, answer: str) -> Score:
    return Score(int(answer[0]) / 4, f"Mend {HOSTILE}")


@pytest.mark.parametrize(
    "how",
    [
        {"scorer": scored, "strategy": "pdp"},
        {"scorer": scored, "strategy": "self_refine"},
        {"scorer": scored, "strategy": "evolve"},
        {"scorer": "judge", "strategy": "pdp"},
        {"strategy": "self_consistency"},
        {"strategy": "adaptive"},
    ],
    ids=["scorer", "refinements", "evolutions", "judge", "vote", "agreement"],
)
def test_a_page_holds_the_whole_run_and_obeys_nothing_in_it(
    how: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    server.script = hostile
    with open_checkpoints(tmp_path / "a.db") as store:
        graph = create_anytime_graph(
            server.model(), budget=Budget(calls=6), ledger=store.ledger, **how
        )
        out = graph.compile(store.saver).invoke(ASK, THREAD)
        html = thread_page(store.ledger, "rivers")
        run = told(store.ledger, "rivers")["runs"][-1]
    seen = Seen(html)
    assert seen.tags <= set(SHOWN.split())
    assert not seen.active
    assert not re.search(r"https?:|@import|url\(", html)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html)
    for part in (
        "Why? </pre></title>",
        "&lt;b&gt;",
        "\ufffd[2J",
        f"Stopped by: {out['stop_reason']}",
    ):
        assert part in seen.text
    assert f"{out['spent']['tokens']:,}" in seen.text
    assert "6 of 6 (100%)" in seen.text
    assert "active seconds" in seen.text
    for call in run["calls"]:
        assert f"{call['ordinal']} {call['kind']}" in seen.text
    for answer in run["answers"]:
        assert f"Answer {answer['ordinal']}" in seen.text
    for pair in run["pairs"]:
        assert (
            f"Answer {pair['chosen_ordinal']} over answer {pair['rejected_ordinal']}" in seen.text
        )
    assert ("votes" in seen.text) is (run["decides"] in ("vote", "agreement"))
    assert bool(re.search(r"score 0\.\d\d", seen.text)) is (run["decides"] == "scorer")
    if how.get("strategy") == "self_refine":
        assert "refine of 0" in seen.text
        assert 'class="depth1' in html


def test_a_page_counts_the_votes_that_the_run_counts(server: Server, tmp_path: Path) -> None:
    """A refinement of an answer is no vote for it."""
    server.script = lambda request, i: Reply(f"<answer>{7 if i < 2 else 8}</answer>")

    def refines(view: View) -> list[Move]:
        if view.best is None:
            return [Draft(), Draft()]
        return [Refine(of=view.best["id"])] if len(view.candidates) < 4 else [Stop()]

    with open_checkpoints(tmp_path / "a.db") as store:
        graph = create_anytime_graph(
            server.model(),
            budget=Budget(calls=9),
            strategy=refines,
            scorer="agreement",
            ledger=store.ledger,
        )
        out = graph.compile(store.saver).invoke(ASK, THREAD)
        html = thread_page(store.ledger, "rivers")
    assert out["best"]["votes"] == 2
    assert "2 of 2 votes" in Seen(html).text


def test_what_was_not_kept_and_what_has_no_answer_yet_is_said(
    server: Server, tmp_path: Path
) -> None:
    server.script = lambda request, i: Reply("fine") if i else Reply(error=503)
    with open_checkpoints(tmp_path / "a.db", record="usage") as store:
        graph = create_anytime_graph(
            server.model(), budget=Budget(tokens=900), scorer=scored_fine, ledger=store.ledger
        )
        app = graph.compile(store.saver)
        app.invoke({"messages": [("user", "Why?")]}, THREAD)
        seen = Seen(thread_page(store.ledger, "rivers"))
        first = [*app.get_state_history(THREAD)][-3].config
        app.invoke(None, fork(app, first, Budget(tokens=2_000)))
        story = told(store.ledger, "rivers")
    assert "(not kept)" in seen.text
    assert "of 900" in seen.text
    branched = Seen(page(story)).text
    assert "branched off question 1" in branched
    run = story["runs"][0]
    unfinished = {**run, "answers": [], "pairs": [], "curve": [], "best_id": None}
    unfinished |= {"stop_reason": None, "calls": run["calls"][:1]}
    unfinished["calls"][0] |= {"state": "reserved", "ended": None, "errors": ["lost"]}
    known = {"input_tokens": 900, "cached_tokens": 640, "output_tokens": 90, "reasoning_tokens": 0}
    unfinished["spent"] = {**run["spent"], **known}
    text = Seen(page({**story, "runs": [unfinished], "running": True})).text
    for part in (
        "900 input (640 cached), 90 output",
        "No answer yet",
        "It is running.",
        "in flight",
        "call 0: lost",
    ):
        assert part in text
    assert "It was cut off" in page(
        {**story, "runs": [{**unfinished, "calls": []}], "running": False}
    )


def scored_fine(question: str, answer: str) -> float:
    return 0.5


def test_a_thread_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        open_checkpoints(tmp_path / "a.db") as store,
        pytest.raises(ValueError, match="thread='unknown'"),
    ):
        thread_page(store.ledger, "unknown")


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    seen = Seen(f"<p>{escaped(text)}</p>")
    assert seen.tags == {"p"}
    assert seen.text.strip() == harmless(text).strip()


@given(st.floats(min_value=1e-3, max_value=1e9))
def test_an_axis_has_a_few_round_values_within_it(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0
    assert 1 <= len(marks) <= 6
    assert max(marks) <= most * (1 + 1e-6)
    assert len(marks) >= 3


@pytest.mark.parametrize("score", [0.5, None])
def test_a_budget_is_drawn_or_named_where_it_is_far_off(score: float | None) -> None:
    points = [(100, score), (300, score)]
    near, far, none = (curve(points, tokens=400, limit=n) for n in (1_000, 9_000, None))
    assert "budget: 1,000 tokens" in near
    assert "(of a budget of 9,000)" in far
    assert "stroke-dasharray" not in far
    assert "budget" not in none
    assert extent(0, None) == 1
    assert curve([], tokens=0, limit=5) == ""
