"""What earlier versions left behind opens, goes on and reports as before, and nothing is paid twice;
what later versions will leave is refused before anything is spent. The sets: tests/kit/stored.py."""

from __future__ import annotations

import copy
import json
import lzma
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import Budget, create_anytime_graph, fork, open_checkpoints
from anytime_graph.checkpoints import LedgerError
from anytime_graph.cli import main
from anytime_graph.run.upgrade import migrated_state
from tests.kit import stored
from tests.kit.server import Server
from tests.kit.stored import (
    KILLED,
    MORE,
    QUESTION,
    SETS,
    SIMILAR,
    SPACE,
    ask,
    graph,
    on,
    script,
    shelved,
    spoken,
)

OLDEST, TODAY = "99d5669", "eab4559"


@dataclass
class Left:
    """A set as it was left, in a file or database of the test's own. told: its figures."""

    set: str
    target: str
    told: dict[str, Any]

    def calls(self, thread: str) -> list[dict[str, Any]]:
        """As they were left, of the last question."""
        return list(self.told["show"][thread][-1]["calls"])

    def shown(self, thread: str) -> dict[str, Any]:
        """As they are now."""
        return stored.shown(self.target, thread)[-1]


def left_in(name: str, kind: str, target: str) -> Left:
    stored.unpacked(name, kind, target)
    told = json.loads(lzma.decompress((SETS / name / "figures.json.xz").read_bytes()))
    return Left(name, target, told[kind])


@pytest.fixture(params=sorted(path.name for path in SETS.iterdir()))
def left(request: pytest.FixtureRequest, target: str) -> Left:
    kind = "postgresql" if target.startswith("postgresql") else "sqlite"
    return left_in(request.param, kind, target)


@pytest.fixture
def latest(target: str) -> Left:
    return left_in(TODAY, "postgresql" if target.startswith("postgresql") else "sqlite", target)


@contextmanager
def opened(left: Left, thread: str, url: str) -> Iterator[Any]:
    with open_checkpoints(left.target) as store:
        if thread == "shelved":
            with shelved(left.target) as shelf:
                yield graph(thread, url, store, shelf)
        else:
            yield graph(thread, url, store)


NUMBER = re.compile(r"\d+(?:\.\d+)?%?")


def rounded(told: Any) -> Any:
    """A database adds up in any order."""
    return json.loads(json.dumps(told), parse_float=lambda number: round(float(number), 9))


def without_tool_calls(told: Any) -> Any:
    """Without the counts that all spends have since they tell tool calls, of which there were none."""
    if isinstance(told, list):
        return [without_tool_calls(part) for part in told]
    if not isinstance(told, dict):
        return told
    assert not told.get("tool_calls")
    return {key: without_tool_calls(part) for key, part in told.items() if key != "tool_calls"}


def threads(left: Left) -> list[str]:
    return [name for name in stored.THREADS if name in left.told["states"]]


@pytest.fixture
def served(server: Server) -> Server:
    server.script = script
    return server


@pytest.mark.pairwise
def test_reports_tell_the_same(left: Left) -> None:
    now = without_tool_calls(stored.figures(left.target, threads(left)))
    was = copy.deepcopy(left.told)
    sentences = [figures["audit"].pop("verdict") for figures in (now, was)]
    assert NUMBER.findall(sentences[0]) == NUMBER.findall(sentences[1]), "in other words"
    assert rounded(now) == rounded(was)


def test_all_spends_of_before_count_tool_calls_once_they_are_read(latest: Left) -> None:
    def spends(part: Any) -> Iterator[dict[str, Any]]:
        each = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if isinstance(part, dict) and "cached_tokens" in part:
            yield part
        for one in each:
            yield from spends(one)

    with open_checkpoints(latest.target) as store:
        for name in set(threads(latest)) - {"agent"}:
            values = graph(name, "http://127.0.0.1:9", store).get_state(on(name)).values
            found = list(spends(migrated_state(values)))
            assert found
            assert all(spend["tool_calls"] == 0 for spend in found)
        for run in store.ledger.runs("rivers"):
            assert run["spent"]["tool_calls"] == 0


@pytest.mark.pairwise
def test_the_best_answer_is_told(left: Left) -> None:
    for name in set(threads(left)) - {"agent"}:
        scored = [a for a in left.told["show"][name][-1]["answers"] if a["score"] is not None]
        if scored:
            best = max(scored, key=lambda answer: answer["score"])
            assert spoken(left.target, "best", name) == best["answer"] + "\n"


@pytest.mark.pairwise
def test_what_was_killed_goes_on_and_nothing_is_bought_twice(left: Left, served: Server) -> None:
    for name in KILLED:
        if name not in threads(left):
            continue
        served.calls.clear()
        before = left.calls(name)
        reserved = [call for call in before if call["state"] == "reserved"]
        assert len(reserved) == 1
        if name == "commanded":
            out = commanded(left, served, "resume", name, "--model", "openai:scripted")
            said = out["answer"]
        else:
            with opened(left, name, served.url) as app:
                assert app.get_state(on(name)).next
                out = app.invoke(None, on(name))
            said = out["messages"][-1].text
        after = left.shown(name)
        assert "river bends" in said
        assert out["stop_reason"] is not None
        assert len(served.settled().calls) == len(after["calls"]) - len(before), name
        assert not [call for call in after["calls"] if call["state"] == "reserved"]
        now = {call["ordinal"]: call for call in after["calls"]}
        for call in before:
            assert now[call["ordinal"]]["tokens"] == call["tokens"]
        assert out["spent"]["tokens"] == sum(call["tokens"] for call in after["calls"])
        assert out["spent"]["tokens"] >= left.told["show"][name][-1]["spent"]["tokens"]
        assert out["spent"]["calls"] == len(after["calls"]) >= len(before)


def commanded(left: Left, server: Server, *words: str) -> dict[str, Any]:
    own = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url}
    words = (*words, "--db", left.target, "--json")
    done = CliRunner(env=own).invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.mark.pairwise
def test_more_budget_thinks_on_from_where_it_stood(left: Left, served: Server) -> None:
    for name in ("scored", "judged", "voted", "stopped", "forked", "remembered", "shelved"):
        if name not in threads(left):
            continue
        served.calls.clear()
        before = left.told["states"][name]
        with opened(left, name, served.url) as app:
            out = app.invoke({"budget": MORE}, on(name))
        assert len(served.settled().calls) > 0, name
        assert out["spent"]["calls"] == before["spent"]["calls"] + len(served.calls), name
        grown = out["spent"]["tokens"] - before["spent"]["tokens"]
        assert grown == served.served
        was = max(a["score"] or 0 for a in left.told["show"][name][-1]["answers"])
        assert (out["best"]["score"] or 0) >= was
        assert len(out["messages"]) == len(before["said"]), "the answer takes the old one's place"


@pytest.mark.pairwise
def test_a_branch_goes_off_from_an_old_checkpoint(left: Left, served: Server) -> None:
    with opened(left, "scored", served.url) as app:
        early = [s for s in app.get_state_history(on("scored")) if s.values.get("candidates")][-1]
        spent = early.values["spent"]["calls"]
        out = app.invoke(None, fork(app, early.config, Budget(calls=spent + 2)))
    assert out["spent"]["calls"] == spent + len(served.settled().calls) > spent


@pytest.mark.pairwise
def test_an_old_memory_is_recalled(left: Left, served: Server) -> None:
    for name in ("remembered", "shelved"):
        if name not in threads(left):
            continue
        served.calls.clear()
        pairs = left.told["show"][name][-1]["pairs"]
        with opened(left, name, served.url) as app:
            app.invoke(ask(SIMILAR), on("new"), context={"namespace": list(SPACE)})
        quoting = [c.text for c in served.settled().calls if QUESTION in c.text]
        assert quoting, name
        assert any(p["chosen"] in quoting[0] and p["rejected"] in quoting[0] for p in pairs)


@pytest.mark.pairwise
def test_another_question_on_an_old_thread(left: Left, served: Server) -> None:
    with opened(left, "scored", served.url) as app:
        out = app.invoke(ask("What is a meander?"), on("scored"))
    assert [m.type for m in out["messages"]] == ["human", "ai"] * 2
    assert out["spent"]["tokens"] == served.settled().served


def test_an_agents_thread_goes_on_with_what_it_had_spent(left: Left, served: Server) -> None:
    spent = left.told["states"]["agent"]["spent"]
    with opened(left, "agent", served.url) as app:
        out = app.invoke(ask("And why do they meander?"), on("agent"))
    assert served.settled().calls
    assert out["spent"]["calls"] == spent["calls"] + len(served.calls)
    assert out["spent"]["tokens"] == spent["tokens"] + served.served


# --- files


def test_an_old_profile_is_loaded(latest: Left, tmp_path: Path) -> None:
    from anytime_graph.planning.profiles import load_profile, save_profile

    file = tmp_path / "profile.json"
    shutil.copy(SETS / TODAY / "profile.json", file)
    learned = load_profile(file, "scripted", "rivers")
    rows = json.loads(spoken(latest.target, "profile", "--json"))
    kinds = next(row["kinds"] for row in rows if row["model"] == "scripted")
    assert rounded(learned) == rounded(kinds)
    save_profile(file, learned, "scripted", "bikes")
    assert load_profile(file, "scripted", "rivers") == load_profile(file, "scripted", "bikes")


def bench(server: Server | None, *words: str, exit_code: int = 0) -> Result:
    own = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url if server else "http://x"}
    done = CliRunner(env=own).invoke(main, ["bench", *stored.BENCH, *words], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done


def tables(folder: Path) -> str:
    """The report without the command, without seconds, and without what was bought in all."""
    report = (folder / "report.md").read_text()
    return report[report.index("\n## ") : report.index("## How it was made")]


@pytest.fixture
def benchmarked(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SETS / TODAY / "bench", tmp_path / "bench"))


def test_an_old_benchmark_goes_on_for_nothing_and_is_not_replayed_with_other_bounds(
    benchmarked: Path, served: Server, tmp_path: Path
) -> None:
    """It was recorded when prompts had other bounds, and calls other caps."""
    was = tables(benchmarked).replace("calls behind the first", "calls after the first")
    bench(served, "--out", str(benchmarked))
    assert not served.settled().calls
    now = tables(benchmarked).split("\n### ")
    assert [section for section in was.split("\n### ") if section not in now] == []
    again = ("--replay", str(benchmarked), "--out", str(tmp_path / "again"))
    assert "not in the recording" in bench(None, *again, exit_code=2).output


# --- what a later version wrote


def held(target: str) -> list[Any]:
    """All that is in the file or database, but for LangGraph's note of a run that failed."""
    found: list[Any] = []
    if target.startswith("postgresql"):
        with psycopg.connect(target) as connection:
            names = connection.execute(
                "SELECT schemaname || '.' || tablename FROM pg_tables "
                "WHERE schemaname IN ('public', 'anytime') ORDER BY 1"
            ).fetchall()
            for (name,) in names:
                found += sorted(connection.execute(f"SELECT * FROM {name}"), key=repr)
        return found
    with closing(sqlite3.connect(target)) as connection:
        return list(connection.iterdump())


def changed(target: str, sql: str) -> None:
    """What a later version would have written."""
    if target.startswith("postgresql"):
        with psycopg.connect(target, options="-c search_path=public,anytime") as connection:
            connection.execute(sql)
        return
    with closing(sqlite3.connect(target)) as connection, connection:
        connection.execute(sql)


NEWER = r"form 99, this anytime-graph knows \d+; upgrade anytime-graph"


def test_a_ledger_of_a_later_version_is_left_alone(latest: Left, served: Server) -> None:
    changed(latest.target, "UPDATE anytime_schema SET version = 99")
    before = held(latest.target)
    place = Path(latest.target).name
    with (
        pytest.raises(LedgerError, match=r"version 99, this .* knows \d+; upgrade") as refused,
        opened(latest, "killed", served.url),
    ):
        pass
    assert place in str(refused.value)
    done = CliRunner().invoke(main, ["resume", "commanded", "--db", latest.target])
    assert (done.exit_code, "upgrade anytime-graph" in done.output) == (2, True)
    assert held(latest.target) == before
    assert not served.calls


def test_a_state_of_a_later_version_is_left_alone(latest: Left, served: Server) -> None:
    with opened(latest, "killed", served.url) as app:
        app.update_state(on("killed"), {"anytime_form": 99}, as_node="draft")
        before = held(latest.target)
        for go_on in (
            lambda: app.invoke(None, on("killed")),
            lambda: app.invoke(ask("What else?"), on("killed")),
            lambda: app.get_state(on("killed")),
            lambda: fork(app, on("killed")),
        ):
            with pytest.raises(ValueError, match=NEWER) as refused:
                go_on()
            assert "'killed'" in str(refused.value)
            assert Path(latest.target).name in str(refused.value)
        assert held(latest.target) == before
    assert not served.calls


def test_a_state_of_a_later_version_is_refused_by_any_saver(served: Server) -> None:
    app = create_anytime_graph(served.model(), budget=Budget(calls=2)).compile(InMemorySaver())
    app.invoke(ask(), on("t"))
    bought = len(served.settled().calls)
    app.update_state(on("t"), {"anytime_form": 99}, as_node="draft")
    for given in (None, {"budget": MORE}, ask("What else?")):
        with pytest.raises(ValueError, match=NEWER):
            app.invoke(given, on("t"))
    with pytest.raises(ValueError, match=NEWER):
        fork(app, on("t"))
    assert len(served.settled().calls) == bought


@pytest.mark.parametrize("column", ["task", "reply"])
def test_calls_of_a_later_version_are_refused(latest: Left, served: Server, column: str) -> None:
    """Where the version of the ledger does not tell."""
    changed(
        latest.target,
        f"UPDATE calls SET {column} = '{{\"form\": 99, ' || substr({column}, 2)",
    )
    with (
        opened(latest, "drafting", served.url) as app,
        pytest.raises(ValueError, match=NEWER),
    ):
        app.invoke(None, on("drafting"))
    assert not served.calls


def test_an_agents_thread_of_a_later_version_is_refused(latest: Left, served: Server) -> None:
    with opened(latest, "agent", served.url) as app:
        app.update_state(on("agent"), {"anytime_run": {"question": None, "form": 99}})
        with pytest.raises(ValueError, match=NEWER):
            app.invoke(ask("And why?"), on("agent"))
    assert not served.calls


def test_a_profile_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    from anytime_graph.planning.profiles import load_profile, save_profile

    file = tmp_path / "profile.json"
    whole = json.loads((SETS / TODAY / "profile.json").read_text())
    file.write_text(json.dumps({**whole, "version": 99}))
    before = file.read_bytes()
    for use in (
        lambda: load_profile(file, "scripted", "rivers"),
        lambda: save_profile(file, {}, "scripted", "bikes"),
    ):
        with pytest.raises(ValueError, match=NEWER) as refused:
            use()
        assert str(file) in str(refused.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["calls.jsonl", "records.jsonl"])
def test_a_benchmark_of_a_later_version_is_left_alone(
    benchmarked: Path, served: Server, name: str, tmp_path: Path
) -> None:
    file = benchmarked / name
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    rows[0]["form"] = "anytime-graph calls 99" if name == "calls.jsonl" else 99
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = file.read_bytes()
    refusals = [bench(served, "--out", str(benchmarked), exit_code=2)]
    if name == "calls.jsonl":
        again = str(tmp_path / "again")
        refusals.append(bench(None, "--replay", str(file), "--out", again, exit_code=2))
    else:
        words = ["advise", str(benchmarked), "--quality", "0.5"]
        refusals.append(CliRunner().invoke(main, words))
    for refused in refusals:
        told = " ".join(refused.output.replace("│", " ").split())
        assert "form 99" in told
        assert "upgrade anytime-graph" in told
        assert refused.exit_code == 2
    assert file.read_bytes() == before
    assert not served.calls
