"""Benchmarks by command: known curves measured exactly, kills, budgets for the whole, replays."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anytime_graph.benchmark.cells import Records, append, lines
from anytime_graph.benchmark.paper import cut
from anytime_graph.benchmark.recording import RecordedReply
from anytime_graph.checkpoints import LedgerError
from anytime_graph.checkpoints.sqlite import SqliteStore
from anytime_graph.cli import main
from anytime_graph.metrics import anytime_index, gain_per_token
from tests.kit.benchmarks import (
    KINDS,
    MODEL,
    OWN,
    WORDS,
    Bench,
    Undisturbed,
    killed,
    records,
    tables,
    varied,
)
from tests.kit.commands import told
from tests.kit.marks import torture
from tests.kit.places import DATA
from tests.kit.server import Call, Reply, Script, Server

RECORDED = DATA / "bench"
SEEDS = {zlib.crc32(f"q{q} {seed}".encode()) % 2**30 for q in range(8) for seed in range(3)}


def row(folder: str, heading: str, strategy: str) -> list[str]:
    """The strategy's row in the table below a heading, without intervals."""
    below = Path(folder, "report.md").read_text().partition(f"### {heading}")[2]
    found = next(line for line in below.splitlines() if line.startswith(f"| {strategy} |"))
    return [cell.partition("[")[0].strip() for cell in found.strip("| ").split("|")][1:]


def place(request: dict[str, Any]) -> int:
    """Which call of its run a request is."""
    return next(n for n in range(99) if request["seed"] - n in SEEDS)


def answers(*values: float) -> Script:
    """The n-th call of each run answers with the n-th value, those after them with the last."""
    return lambda request, i: Reply(
        f"<answer>{values[min(place(request), len(values) - 1)]}</answer>"
    )


# --- the protocol "run"


def test_a_known_curve_is_measured_exactly(server: Server, bench: Bench) -> None:
    curve = {256: 0.1, 512: 0.3, 1024: 0.5, 2048: 0.6}

    def script(request: dict[str, Any], i: int) -> Reply:
        cap = request["max_completion_tokens"]
        return Reply(f"<answer>{next(v for b, v in curve.items() if cap < b)}</answer>")

    server.script = script
    budgets = ",".join(map(str, curve))
    bench(
        *OWN, *MODEL, "--strategy", "single", "--budgets", budgets, "--samples", "4", "--out", "a"
    )
    assert row("a", "Quality", "single") == ["0.100", "0.300", "0.500", "0.600"]
    index = anytime_index(list(curve), list(curve.values()))
    gain = 1_000 * gain_per_token(list(curve), list(curve.values()))
    assert row("a", "How early", "single") == [*[f"{index:.3f}"] * 3, f"{gain:.3f}", "2,048"]
    assert sum(r["spent"]["tokens"] for r in records("a")) == server.served
    assert all(r["spent"]["tokens"] <= r["budgets"][0] for r in records("a"))


def test_returned_and_oracle_are_told_apart(server: Server, bench: Bench) -> None:
    server.script = answers(0.9, 0.2)
    words = ["--strategy", "single,best_of_n", "--budgets", "1500,3000", "--samples", "3"]
    bench(*OWN, *MODEL, *words, "--decide", "vote", "--out", "a")
    assert row("a", "Quality", "single") == ["0.900", "0.900"]
    assert row("a", "Quality", "best_of_n") == ["0.200", "0.200"]
    assert row("a", "Difference", "best_of_n") == ["-0.700", "-0.700", "-0.700"]
    assert row("a", "How early", "best_of_n")[:3] == ["0.200", "0.200", "0.900"]
    assert all(r["oracle"] == [0.9] for r in records("a"))


def test_what_single_calls_brought_adds_up(server: Server, bench: Bench) -> None:
    values = (0.1, 0.2, 0.3, 0.2, 0.5, 0.4, 0.6)
    server.script = answers(*values)
    words = ["--strategy", "best_of_n", "--budgets", "400,3000", "--samples", "2", "--out", "a"]
    bench(*OWN, *MODEL, *words)
    rich = [r for r in records("a") if r["budgets"] == [3000]]
    behind = [r["spent"]["calls"] - 4 for r in rich]
    assert min(behind) > 3
    assert [r["brought"]["draft"]["calls"] for r in rich] == behind
    for r, n in zip(rich, behind, strict=True):
        assert list(r["brought"]) == ["draft"]
        assert r["brought"]["draft"]["rise"] == pytest.approx(0.3), "from .3 to .6, in two steps"
        assert r["brought"]["draft"]["better"] == 2
        assert r["brought"]["draft"]["scores"] == pytest.approx(0.5 + 0.4 + 0.6 * (n - 2))
    calls, tokens = sum(behind), sum(r["brought"]["draft"]["tokens"] for r in rich)
    share, rise = f"{4 / calls:.1%}", f"{1_000 * 0.6 / tokens:.3f}"
    mean = f"{sum(r['brought']['draft']['scores'] for r in rich) / calls:.3f}"
    told = [str(calls), mean, share, f"{tokens / calls:,.0f}", rise]
    assert row("a", "What single calls brought", "best_of_n: draft") == told


def test_what_single_calls_brought_is_told_by_kind(server: Server, bench: Bench) -> None:
    server.script = varied
    words = ["--strategy", "pdp,leap,self_refine", "--budgets", "4000", "--samples", "2"]
    bench(*OWN, *MODEL, *words, "--out", "a")
    for r in records("a"):
        assert sum(of["calls"] for of in r["brought"].values()) == max(0, r["spent"]["calls"] - 4)
    kinds = {kind for r in records("a") for kind in r["brought"]}
    assert {"taught draft", "taught refine", "refine", "learn"} <= kinds
    assert row("a", "What single calls brought", "leap: learn")[1:3] == ["-", "-"]


def test_strategies_that_make_answers_from_several_are_measured_beside_the_others(
    server: Server, bench: Bench
) -> None:
    pytest.importorskip("treequest")
    server.script = varied
    names = "best_of_n,merge,evolve,ab_mcts"
    size = ["--budgets", "1500", "--samples", "1"]
    words = [*OWN, *MODEL, "--strategy", names, *size, "--out", "a"]
    bench(*words)
    kinds = {row["strategy"]: set(row["brought"]) for row in records("a")}
    assert kinds["merge"] >= {"merge"}
    assert kinds["evolve"] >= {"evolve"}
    assert kinds["ab_mcts"] <= {"draft", "refine", "forced answer"}
    refused = bench(*words[:-1], "b", "--decide", "judge", exit_code=2)
    assert "--strategy 'evolve': it needs scores: give --decide scorer" in refused.output
    asked = len(server.calls)
    bench(*words[:-1], "again", "--replay", "a")
    assert (records("again"), len(server.calls)) == (records("a"), asked)


def test_a_budget_that_pays_for_nothing_scores_nothing(server: Server, bench: Bench) -> None:
    server.script = answers(0.5)
    bench(
        *OWN, *MODEL, "--strategy", "single", "--budgets", "30,900", "--samples", "2", "--out", "a"
    )
    assert row("a", "Quality", "single") == ["0.000", "0.500"]
    assert {r["stop_reason"] for r in records("a") if r["budgets"] == [30]} == {"too small"}


def test_with_memory_it_is_shown_what_other_questions_taught(server: Server, bench: Bench) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        reply = f"{WORDS[i % 100]} {WORDS[i % 97]} <answer>0.{1 + place(request) % 8}</answer>"
        return Reply(reply)

    server.script = script
    words = ["--strategy", "single,single+memory", "--budgets", "3000", "--samples", "2"]
    bench(*OWN, *MODEL, *words, "--train", "2", "--out", "a")
    shown = [c for c in server.calls if "earlier questions like this one" in c.text]
    tested = {r["question"] for r in records("a") if r["strategy"] != "(preparation)"}
    trained = {r["question"] for r in records("a") if r["strategy"] == "(preparation)"}
    assert len(shown) == len(tested) == len(trained) == 2
    assert not tested & trained
    assert row("a", "What it cost", "(preparation)")[0] == "2"


# --- the paper's protocol

PAPER = ["--protocol", "paper", "--budgets", "10,20,50,100,200"]


def thinking(request: dict[str, Any], i: int) -> Reply:
    """A chain of a hundred words, of fewer in later trajectories; a forced answer is worth the words
    that it sees."""
    *before, last = [m["content"] for m in request["messages"]]
    if not last.startswith("Time is up"):
        if "Learn from the mistakes" in before[0]:
            return Reply("- Look at the map first.\n- Count the bends.")
        return Reply(" ".join(WORDS[12 * place(request) :]), piece=1)
    thought = before[-1].split() if request["messages"][-2]["role"] == "assistant" else []
    return Reply(f"<answer>{len(thought) / 100:.2f}</answer>")


def test_chains_are_cut_at_the_token_and_answers_see_nothing_after(
    server: Server, bench: Bench
) -> None:
    server.script = thinking
    bench(*OWN, *MODEL, *PAPER, "--strategy", "base", "--samples", "2", "--out", "a")
    assert row("a", "Quality", "base") == ["0.100", "0.200", "0.500", "1.000", "1.000"]
    index = anytime_index([10, 20, 50, 100, 200], [0.1, 0.2, 0.5, 1, 1])
    assert row("a", "How early", "base")[:3] == [f"{index:.3f}"] * 3
    chains = [c for c in server.calls if len(c.request["messages"]) == 2]
    forced = [c for c in server.calls if len(c.request["messages"]) == 3]
    assert [c.limit for c in chains] == [200, 200]
    assert len(forced) == 2 * 4, "what had ended is not asked about twice"
    for n, call in enumerate(forced):
        seen = call.request["messages"][1]["content"].split()
        assert seen == WORDS[: (10, 20, 50, 100)[n % 4]]
        assert "step by step" not in call.text
    assert sum(r["spent"]["tokens"] for r in records("a")) == server.served
    assert {r["cut"] for r in records("a")} == {"pieces"}


def test_modes_show_what_trajectories_on_other_questions_taught(
    server: Server, bench: Bench
) -> None:
    server.script = thinking
    bench(*OWN, *MODEL, *PAPER, "--samples", "2", "--train", "2", "--out", "a", "--parallel", "2")
    chains = [c for c in server.calls if "can be about 200 tokens" in c.text]
    kinds = Counter(
        (
            "Look at the map first" in c.text,
            "Good answers to earlier" in c.text and '\nBetter: "ba be' in c.text,
            '\nBetter: "ba be' in c.text and '\nWorse: "' in c.text,
        )
        for c in chains
    )
    # The training questions' chains look like base; leap's and pdp's are the same, bought once.
    assert kinds == {
        (False, False, False): 2 + 2 * 4,
        (True, False, False): 2,
        (False, True, False): 2,
        (False, False, True): 2,
    }
    trained = {r["question"] for r in records("a") if r["strategy"] == "(preparation)"}
    for call in chains:
        if "earlier questions" in call.text:
            asked = call.request["messages"][-1]["content"]
            assert not any(f"river {q[1:]}?" in asked for q in trained)
    assert all(r["spent"]["tokens"] > 0 for r in records("a"))


def test_a_cut_is_by_pieces_by_a_tokenizer_or_told_to_be_an_estimate() -> None:
    def reply(*pieces: Any) -> RecordedReply:
        return RecordedReply("k", 0, 9, list(pieces), [], "stop")

    assert cut(reply("a ", "b ", None, "c"), 4, 2) == ("a b ", "pieces")
    assert cut(reply(["he thinks ", ""], "b "), 2, 1) == ("he thinks ", "pieces")
    assert cut(reply("a ", "b "), 2, 2) == ("a b ", "whole")
    assert cut(reply("abcdefgh"), 8, 2) == ("ab", "estimate")

    class Halves:
        def encode(self, text: str, *, disallowed_special: tuple[()]) -> list[int]:
            return list(text.encode())

        def decode(self, tokens: list[int]) -> str:
            return bytes(tokens).decode(errors="replace")

    assert cut(reply("ab\u00e9d"), 5, 3, Halves()) == ("ab", "tokenizer")


def test_hidden_reasoning_cannot_be_cut(server: Server, bench: Bench) -> None:
    server.script = lambda request, i: Reply("so it is", reasoning=20)
    words = [*PAPER, "--strategy", "base", "--samples", "1", "--out", "a"]
    assert "hides its reasoning (20 tokens)" in told(bench(*OWN, *MODEL, *words, exit_code=2))


# --- kills, and budgets for the whole


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_instant_it_comes_to_the_same(
    kind: str, server: Server, bench: Bench, undisturbed: Callable[[str], Undisturbed]
) -> None:
    words = [*OWN, *MODEL, *KINDS[kind], "--parallel", "2"]
    usual, whole, asked = undisturbed(kind)
    dice = random.Random(kind)
    total = 4 * whole + 10_000
    deaths = 0
    for _ in range(6 if torture else 2):
        after, delay = dice.randint(1, asked // 3), 0.01 * dice.random()
        code = killed(server, [*words, "--total-tokens", str(total), "--out", "a"], after, delay)
        deaths += code == -signal.SIGKILL
        with (Path("a") / "records.jsonl").open("a") as file:
            file.write('{"cell": "torn')
    bench(*words, "--total-tokens", str(total), "--out", "a")
    assert deaths
    assert records("a") == records(usual)
    assert tables("a") == tables(usual)
    requests = Counter(json.dumps(c.request, sort_keys=True) for c in server.settled().calls)
    again = sum(requests.values()) - len(requests)
    assert again <= 8 * deaths, "only what was in flight is asked again"
    assert len(requests) == asked
    assert server.served <= total


def test_cells_side_by_side_hold_back_what_they_may_yet_spend(server: Server, bench: Bench) -> None:
    """Replies that fill any limit, three cells at a time, and room for two."""
    server.script = lambda request, i: Reply(text=None)
    words = ["--strategy", "single", "--budgets", "1000", "--samples", "4", "--parallel", "3"]
    bench(*OWN, *MODEL, *words, "--out", "a", "--total-tokens", "2500", exit_code=1)
    assert 1_500 < server.settled().served <= 2_500


@pytest.mark.parametrize("kind", KINDS)
def test_the_budget_for_the_whole_is_never_exceeded(
    kind: str, server: Server, bench: Bench
) -> None:
    server.script = varied
    words = [*OWN, *MODEL, *KINDS[kind], "--parallel", "3", "--price", "1,4", "--out", "a"]
    total = {"run": 2_500, "paper": 5_000}[kind]
    done = bench(*words, "--total-tokens", str(total), exit_code=1)
    assert 0 < server.settled().served <= total
    assert "does not pay for the next cell" in done.stdout
    before = len(records("a"))
    bench(*words, "--total-tokens", str(total), exit_code=1)
    assert len(records("a")) == before
    bench(*words, "--total-usd", "5")
    assert "Not finished" not in Path("a/report.md").read_text()
    paid = sum(c.prompt * 1e-6 + c.output * 4e-6 for c in server.settled().calls)
    told_usd = re.search(r"([\d.]+) USD", Path("a/report.md").read_text().split("How it was")[1])
    assert told_usd
    assert float(told_usd[1]) == pytest.approx(paid, abs=1e-4)


def test_a_provider_that_keeps_failing_ends_it_and_costs_no_cell(
    server: Server, bench: Bench
) -> None:
    words = [
        *OWN,
        *MODEL,
        "--strategy",
        "single",
        "--budgets",
        "600",
        "--samples",
        "6",
        "--out",
        "a",
    ]
    server.script = lambda request, i: Reply(error=401)
    done = bench(*words, exit_code=1)
    assert "HTTP 401" in done.stdout
    assert records("a") == []
    server.script = answers(0.5)
    bench(*words)
    assert row("a", "Quality", "single") == ["0.500"]


def test_a_call_that_fails_now_and_then_is_made_again(
    server: Server, bench: Bench, undisturbed: Callable[[str], Undisturbed]
) -> None:
    words = [*OWN, *MODEL, *KINDS["run"]]
    usual = undisturbed("run").folder
    bad = {5: 500, 23: "drop"}
    server.script = lambda request, i: Reply(error=bad[i]) if i in bad else varied(request, i)
    bench(*words, "--out", "a")
    assert tables("a") == tables(usual)
    assert records("a") == records(usual)
    bench(*OWN, *KINDS["run"], "--replay", "a", "--out", "b")
    assert records("b") == records("a")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["INSERT INTO calls", "SELECT * FROM calls WHERE"])
def test_a_cell_whose_ledger_failed_for_a_moment_is_measured_again(
    kind: str,
    what: str,
    bench: Bench,
    undisturbed: Callable[[str], Undisturbed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call was not made for it, and others than usual were."""
    words = [*OWN, *MODEL, *KINDS[kind]]
    usual = undisturbed(kind).folder
    nth = itertools.count(1)

    def failing(way: str) -> None:
        usual = getattr(SqliteStore, way)

        @contextmanager
        def opened(self: SqliteStore, *options: Any) -> Iterator[Any]:
            with usual(self, *options) as execute:

                def asked(sql: str, parameters: Any) -> Any:
                    if what in sql and next(nth) == 9:
                        raise LedgerError("it was locked")
                    return execute(sql, parameters)

                yield asked

        monkeypatch.setattr(SqliteStore, way, opened)

    failing("transaction")
    failing("reading")
    bench(*words, "--out", "a")
    assert next(nth) > 9
    assert records("a") == records(usual)
    assert tables("a") == tables(usual)


@pytest.mark.parametrize("nth", [28, 22])
def test_ctrl_c_leaves_a_report_and_the_rest_for_later(
    nth: int, server: Server, bench: Bench, undisturbed: Callable[[str], Undisturbed]
) -> None:
    """In the midst of a cell, and in its only call."""
    words = [*OWN, *MODEL, *KINDS["run"]]
    usual = undisturbed("run").folder
    asked = itertools.count(1)

    def watch(event: str, call: Call) -> None:
        if event == "asked" and next(asked) == nth:
            os.kill(os.getpid(), signal.SIGINT)

    server.watch = watch
    done = bench(*words, "--out", "a", exit_code=130)
    server.watch = lambda event, call: None
    assert "it was interrupted" in done.stdout
    assert all(row in records(usual) for row in records("a"))
    assert 0 < len(records("a")) < len(records(usual))
    bench(*words, "--out", "a")
    assert tables("a") == tables(usual)


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_while_preference_data_is_replayed_ends_it_like_any_other(
    kind: str, server: Server, bench: Bench, folder: Path
) -> None:
    """The scorer of a training question presses it, when it sees an answer for the second time."""
    server.script = varied
    words = [*OWN, *MODEL, *KINDS[kind], "--out", "a"]
    bench(*words)
    before, file = records("a"), Path("a", "records.jsonl")
    prepared = [row for row in lines(file) if row["strategy"] == "(preparation)"]
    file.write_text("".join(json.dumps(row) + "\n" for row in prepared))
    check = (folder / "check.py").read_text()
    (folder / "check.py").write_text(
        "import os, signal\n\npresses = iter([signal.SIGINT])\n\n"
        "def check(question, answer):\n"
        "    for signal_number in presses:\n"
        "        os.kill(os.getpid(), signal_number)\n"
        "    return float(answer)\n"
    )
    asked = len(server.settled().calls)
    done = bench(*words, exit_code=130)
    assert "it was interrupted" in done.stdout
    assert list(lines(file)) == prepared
    (folder / "check.py").write_text(check)
    bench(*words)
    assert records("a") == before
    assert len(server.settled().calls) == asked


@pytest.mark.parametrize("price", [None, "2,2,0.2"])
def test_strategies_are_compared_at_equal_cost(
    price: str | None, server: Server, bench: Bench
) -> None:
    """Of a draft's prompt nothing is cached, of a refinement's nearly all of it."""
    server.script = lambda request, i: Reply(
        f"<answer>{min(1 + place(request), 9) / 10}</answer>", cached=60 * (place(request) > 0)
    )
    words = ["--strategy", "best_of_n,single,self_refine", "--budgets", "350,1500,2500"]
    words += ["--samples", "1", *(["--price", price] if price else [])]
    bench(*OWN, *MODEL, *words, "--out", "a")

    def means(strategy: str, of: Callable[[dict[str, Any]], float]) -> list[float]:
        own = [r for r in records("a") if r["strategy"] == strategy]
        return [
            statistics.fmean(of(r) for r in own if r["budgets"] == [b]) for b in (350, 1_500, 2_500)
        ]

    def cost(record: dict[str, Any]) -> float:
        spent = record["spent"]
        return spent["usd"] * 5e5 if price else spent["tokens"] - 0.9 * spent["cached_tokens"]

    theirs, own = means("best_of_n", cost), means("self_refine", cost)
    scores = means("self_refine", lambda r: r["scores"][0])
    assert row("a", "At equal cost", "best_of_n") == row("a", "Quality", "best_of_n")
    assert own[0] < theirs[1] < own[2]
    i = 0 if theirs[1] < own[1] else 1
    part = (theirs[1] - own[i]) / (own[i + 1] - own[i])
    reached = scores[i] + part * (scores[i + 1] - scores[i])
    assert scores[i] < reached < scores[i + 1]
    assert float(row("a", "At equal cost", "self_refine")[1]) == pytest.approx(reached, abs=6e-4)
    report = Path("a/report.md").read_text()
    told = report.partition("At equal cost")[2].splitlines()
    single, refined = (next(r for r in told if name in r) for name in ("single", "self_refine"))
    assert (single.count("too dear"), single.count("or more")) == (0, 3)
    assert theirs[0] < own[0]
    assert (refined.count("too dear"), refined.count("or more")) == (1, 0)
    assert ("USD |" in report.partition("At equal cost")[2]) == bool(price)


def test_what_there_was_to_choose_from_is_told(server: Server, bench: Bench) -> None:
    values = (0.2, 1.0, 0.6)
    server.script = answers(*values)
    words = ["--strategy", "single,best_of_n", "--budgets", "300,3000", "--samples", "2"]
    bench(*OWN, *MODEL, *words, "--decide", "vote", "--out", "a")
    rich = [r for r in records("a") if (r["strategy"], r["budgets"]) == ("best_of_n", [3_000])]
    for r in rich:
        calls = r["spent"]["calls"]
        assert r["chance"] == pytest.approx((0.2 + 1.0 + 0.6 * (calls - 2)) / calls)
        assert (r["scores"], r["oracle"]) == ([0.6], [1.0])
    used = f"{sum(r['spent']['tokens'] for r in rich) / 6_000:.1%}"
    chance = f"{statistics.fmean(r['chance'] for r in rich):.3f}"
    told = ["0.0%", "100.0%", "1.000", chance, used, "-"]
    assert row("a", "What there was to choose from", "best_of_n at 3,000") == told
    server.script = answers(1.0)
    bench(*OWN, *MODEL, *words, "--out", "b")
    first = [r for r in records("b") if (r["strategy"], r["budgets"]) == ("single", [3_000])]
    each = f"{statistics.fmean(r['spent']['tokens'] for r in first):,.0f}"
    assert row("b", "What there was to choose from", "single at 3,000")[-1] == each


def test_each_strategy_is_compared_with_best_of_n_at_equal_tokens(
    server: Server, bench: Bench
) -> None:
    """The first draft says .3 and costs a tenth of the budget; the next are worth more."""
    server.script = lambda request, i: Reply(f"<answer>{min(3 + place(request), 9) / 10}</answer>")
    words = ["--strategy", "best_of_n,single,self_refine", "--budgets", "500,1500,2500"]
    bench(*OWN, *MODEL, *words, "--samples", "1", "--out", "a")

    def means(strategy: str, of: Callable[[dict[str, Any]], float]) -> list[float]:
        own = [r for r in records("a") if r["strategy"] == strategy]
        return [
            statistics.fmean(of(r) for r in own if r["budgets"] == [b]) for b in (500, 1_500, 2_500)
        ]

    costs, own = (means(s, lambda r: r["spent"]["tokens"]) for s in ("best_of_n", "self_refine"))
    theirs, ours = (means(s, lambda r: r["scores"][0]) for s in ("best_of_n", "self_refine"))
    expected = []
    for cost, quality in zip(costs, theirs, strict=True):
        i = max((i for i, spent in enumerate(own) if spent <= cost), default=None)
        if i is None:
            expected.append("too dear")
            continue
        part = (cost - own[i]) / (own[i + 1] - own[i]) if i < 2 else 0
        after = ours[min(i + 1, 2)]
        expected.append(f"{ours[i] + part * (after - ours[i]) - quality:+.3f}")
    assert row("a", "Against best_of_n at equal tokens", "self_refine") == expected
    assert any(cell not in ("too dear", "+0.000") for cell in expected)


def test_records_of_earlier_versions_are_reported_without_what_they_lack(
    server: Server, bench: Bench, folder: Path
) -> None:
    server.script = varied
    words = [*OWN, *MODEL, "--strategy", "single,best_of_n", "--budgets", "600", "--samples", "2"]
    bench(*words, "--out", "a")
    rows = list(lines(folder / "a" / "records.jsonl"))
    (folder / "a" / "records.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "chance"}) + "\n" for r in rows)
    )
    asked = len(server.calls)
    bench(*words, "--out", "a")
    assert len(server.calls) == asked
    assert row("a", "What there was to choose from", "best_of_n at 600")[3] == "-"


def test_the_true_quality_is_told_by_what_the_scorer_does_not_see(
    server: Server, bench: Bench, folder: Path
) -> None:
    """A program that is fitted to the assertions that the scorer sees."""
    tests = [f"assert up({n}) == {n + 1}" for n in range(4)]
    task = {"task_id": 1, "text": "Count up.", "test_list": tests}
    (folder / "own.jsonl").write_text(json.dumps(task))
    code = "def up(n): return {0: 1, 2: 3}[n]"
    server.script = lambda request, i: Reply(f"```python\n{code}\n```\n<answer>{code}</answer>")
    words = ["--task", "mbpp:own.jsonl", *MODEL, "--strategy", "single", "--samples", "1"]
    bench(*words, "--budgets", "600", "--out", "a")
    (record,) = records("a")
    assert (record["scores"], record["seen"], record["stop_reason"]) == ([0.0], [1.0], "perfect")
    told = row("a", "What there was to choose from", "single at 600")
    assert told[:5] == ["0.0%", "0.0%", "0.000", "0.000", "1.000"]
    paper = ["--protocol", "paper", "--strategy", "base", "--budgets", "16,64", "--train", "1"]
    bench("--task", "mbpp:own.jsonl", *MODEL, *paper, "--samples", "1", "--out", "b")
    (record,) = records("b")
    assert (record["scores"], record["seen"]) == ([0.0, 0.0], [1.0, 1.0])


def test_one_directory_is_one_processs_at_a_time(server: Server, bench: Bench) -> None:
    server.script = answers(0.5)
    words = [
        *OWN,
        *MODEL,
        "--strategy",
        "single",
        "--budgets",
        "600",
        "--samples",
        "2",
        "--out",
        "a",
    ]
    refused: list[str] = []

    def watch(event: str, call: Call) -> None:
        if event == "asked" and not refused:
            refused.append("")
            done = CliRunner().invoke(main, ["bench", *words])
            refused[0] = told(done)

    server.watch = watch
    bench(*words)
    assert "another benchmark is running there" in refused[0]


def test_a_directory_that_cannot_be_locked_is_refused(folder: Path, server: Server) -> None:
    (folder / "a" / "calls.lock").mkdir(parents=True)
    words = ["--task", "constraints", "--model", "openai:scripted", "--strategy", "single"]
    done = CliRunner().invoke(main, ["bench", *words, "--budgets", "600", "--out", "a"])
    assert done.exit_code == 2
    assert "a: it cannot be locked: unable to open" in told(done)
    assert not server.calls


# --- replays


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decide", ["scorer", "judge"])
def test_a_replay_is_the_recording(kind: str, decide: str, server: Server, bench: Bench) -> None:
    if (kind, decide) == ("paper", "judge"):
        return
    server.script = varied
    words = [*OWN, *KINDS[kind], "--decide", decide, "--parallel", "2"]
    bench(*words, *MODEL, "--price", "1,4", "--out", "a")
    asked = len(server.calls)
    shutil.copy("a/calls.jsonl", "exported.jsonl")
    bench(*words, "--replay", "a", "--out", "b")
    bench(*words, "--replay", "exported.jsonl", "--out", "c")
    assert len(server.calls) == asked
    assert records("a") == records("b") == records("c")
    assert tables("a") == tables("b") == tables("c")


def test_what_was_not_recorded_is_named(server: Server, bench: Bench) -> None:
    server.script = varied
    words = [*OWN, "--budgets", "900", "--samples", "2"]
    bench(*words, *MODEL, "--strategy", "single", "--out", "a")
    bench(*words, "--strategy", "single", "--replay", "a", "--out", "b")
    done = bench(*words, "--strategy", "self_refine", "--replay", "a", "--out", "c", exit_code=2)
    said = told(done)
    for part in ("not in the recording", "self_refine at 900", "question q", "call 0", "seed"):
        assert part in said
    assert "river" not in said


RECORDINGS = {
    "run": ["--strategy", "single,best_of_n,pdp,pdp+memory", "--budgets", "300,600"],
    "paper": [
        "--protocol",
        "paper",
        "--budgets",
        "16,32,64",
        "--room",
        "48",
        "--trajectories",
        "2",
    ],
}
"""Benchmarks of the embedded model that are kept; `make recording` makes them anew, which is needed
when what models are asked changes."""


def recorded(kind: str) -> list[str]:
    size = ["--task", "constraints", "--samples", "2", "--train", "2"]
    return [*size, *RECORDINGS[kind]]


def record() -> None:
    """Make them anew."""
    for kind in RECORDINGS:
        shutil.rmtree(RECORDED / kind, ignore_errors=True)
        main(
            ["bench", *recorded(kind), "--model", "local", "--out", str(RECORDED / kind)],
            standalone_mode=False,
        )
        for file in (RECORDED / kind).iterdir():
            if file.suffix != ".jsonl":
                file.unlink()


@pytest.mark.parametrize("kind", RECORDINGS)
def test_the_embedded_models_benchmark_replays(kind: str, bench: Bench) -> None:
    bench(*recorded(kind), "--replay", str(RECORDED / kind), "--out", "a", "--parallel", "2")
    assert records("a") == records(RECORDED / kind)
    assert any(0 < score < 1 for r in records("a") for score in r["scores"])
    assert any(r["pairs"] for r in records("a"))


# --- what is written


def test_the_page_needs_nothing_beside_it(server: Server, bench: Bench) -> None:
    server.script = varied
    bench(*OWN, *MODEL, *KINDS["run"], "--out", "a", "--baseline", "pdp")
    page = Path("a/report.html").read_text()
    assert not re.search(r"https?:|src=|@import|url\((?!#)|<script|<link", page)
    for name in ("single", "pdp", "pdp+memory"):
        assert f">{name}</text>" in page, "in the picture"
        assert f"<td>{name}</td>" in page, "in the tables"
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    assert ">mean quality: " in page
    assert "tokens (log scale)</text>" in page
    assert 'class="wide" tabindex="0"' in page, "a table that can be scrolled says so"
    assert "anytime-graph bench --task jsonl:q.jsonl" in page
    assert re.search(r"anytime-graph [\d.]+, langgraph [\d.]+", page)
    assert "Difference from pdp" in page


def test_neither_questions_nor_answers_are_in_records_or_reports(
    server: Server, bench: Bench
) -> None:
    server.script = varied
    bench(*OWN, *MODEL, *KINDS["run"], "--out", "a")
    for name in ("records.jsonl", "report.md", "report.html"):
        text = Path("a", name).read_text()
        assert "far is the" not in text
        assert not re.search(r"\b(ba|be|bi) (da|de|di|du)\b", text)
    assert oct(Path("a/calls.jsonl").stat().st_mode)[-3:] == "600"


def test_names_are_text_on_the_page(server: Server, bench: Bench, folder: Path) -> None:
    server.script = answers(0.5)
    name = "<img src=x onerror=alert(1)>|`_*.jsonl"
    (folder / "q.jsonl").rename(folder / name)
    words = ["--strategy", "single", "--budgets", "600", "--samples", "2", "--out", "a"]
    task = ["--task", f"jsonl:{name}", "--task-option", "check=check.py:check"]
    bench(*task, *MODEL, *words)
    page = Path("a/report.html").read_text()
    assert "<img" not in page
    assert "&lt;img" in page
    assert "## jsonl:\\<img" in Path("a/report.md").read_text()


@pytest.mark.parametrize("protocol", ["run", "paper"])
def test_tasks_have_options_of_their_own_and_examples_are_turns(
    protocol: str, server: Server, bench: Bench
) -> None:
    pytest.importorskip("reasoning_gym")
    server.script = lambda request, i: Reply("3 + 4 = 7")
    tasks = [f"reasoning_gym:{name}" for name in ("chain_sum?examples=2", "products?examples=1")]
    strategy = "single" if protocol == "run" else "base"
    size = ["--samples", "1", "--budgets", "100,600", "--strategy", strategy]
    chosen = [word for task in tasks for word in ("--task", task)]
    bench(*chosen, *MODEL, *size, "--protocol", protocol, "--out", "a")
    roles = [[m["role"] for m in c.request["messages"]] for c in server.calls]
    asked = {" ".join(role for role in told if role != "system") for told in roles}
    assert {"user assistant user assistant user", "user assistant user"} <= asked
    assert {r["task"] for r in records("a")} == {task.partition("?")[0] for task in tasks}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--strategy", "guess"], "strategy 'guess': one of single, best_of_n"),
        (["--strategy", "single,best_of"], "--strategy 'best_of': did you mean 'best_of_n'?"),
        (["--decide", "judges"], "did you mean 'judge'?"),
        (["--strategy", "single,single"], "name each only once"),
        (["--protocol", "paper", "--strategy", "single"], "the paper's protocol has base, leap"),
        (["--protocol", "paper", "--decide", "vote"], "chooses no answer"),
        (["--budgets", "512,256"], "--budgets 512,256: ascending whole numbers from 1"),
        (["--budgets", "many"], "whole numbers separated by commas"),
        (["--samples", "0"], "--samples 0: at least 1"),
        (["--samples", "99"], "--samples 99: there are 8 questions; give 8 or fewer"),
        (["--parallel", "0"], "--parallel 0: at least 1"),
        (["--total-tokens", "0"], "--total-tokens 0: more than 0"),
        (["--total-usd", "1"], "the price of openai:scripted is not known"),
        (["--rate", "-1"], "--rate -1.0: more than 0"),
        (["--price", "cheap"], "two numbers, as in 0.40,1.60"),
        (["--q-max", "0.5"], "--q-max 0.5: scores go up to 1"),
        (["--baseline", "pdp", "--strategy", "single"], "--baseline 'pdp': one of the strategies"),
        (["--task-option", "difficulty"], "NAME=VALUE, as in difficulty=3"),
        (["--task-option", "speed=3"], "no option 'speed'"),
        (["--task", "trip?cities"], "option 'cities': NAME=VALUE"),
        (["--task", "trip?cities=2&speed=3"], "no option"),
        (["--train", "0"], "--train 0: at least 1"),
        (["--strategy", "pdp+memory", "--train", "5"], "has 4 questions besides the 4"),
        (["--task", "constraint"], "--task 'constraint': there is none of that name; did you mean"),
        (["--engine", "ray"], "give both or neither"),
        (["--ledger", "postgresql://h/d"], "give both or neither"),
        (["--engine", "ray", "--ledger", "a.db"], "a database that all workers reach"),
        (["--engine", "ray", "--ledger", "postgresql://h/d", "--replay", "."], "asks no model"),
        (["--replay", "check.py"], "line 1: not a JSON object"),
        (["--replay", "q.jsonl"], "not a recording of benchmark calls"),
        (["--replay", "."], "there is no calls.jsonl in it"),
    ],
)
def test_bad_options_say_what_would_do(
    words: list[str], why: str, server: Server, bench: Bench
) -> None:
    size = ["--samples", "4", "--budgets", "600", "--strategy", "single"]
    given = [*OWN, *MODEL, *size, "--out", "a", *words]
    assert why in told(bench(*given, exit_code=2))
    assert server.calls == []


def test_a_record_that_is_none_is_named(folder: Path) -> None:
    file = folder / "records.jsonl"
    append(file, {"cell": "a"})
    file.write_text(file.read_text() + "null\n")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2: not a JSON object"):
        Records(file)


def test_a_disk_that_is_full_leaves_no_half_of_a_row(tmp_path: Path) -> None:
    file, room = tmp_path / "calls.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    append(file, {"n": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, room[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append(file, {"n": 2}, {"n": "3" * 30})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    append(file, {"n": 4})
    assert [*lines(file)] == [{"n": 1}, {"n": 4}]


if __name__ == "__main__":
    record()
