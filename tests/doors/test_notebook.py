"""Answers in a notebook: a real kernel runs one, over a scripted endpoint whose answers are hostile."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from anytime_graph.notebook import awatch, show, watch
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE

HOSTILE = "<script>alert(1)</script>\x1b[2J & <b>%d</b>"
ASK: Any = {"messages": [("user", "Why do rivers bend?")]}
SETUP = """
from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from anytime_graph.notebook import awatch, show, watch

def longer(question, answer):
    return min(1.0, int(answer.partition("<b>")[2].partition("<")[0]) / 10)

ask = {"messages": [("user", "Why do rivers bend?")]}
store = open_checkpoints("anytime.db").__enter__()
graph = create_anytime_graph(
    "openai:scripted", budget=Budget(calls=3), scorer=longer, strategy="self_refine",
    answer="whole", ledger=store.ledger)
app = graph.compile()
thread = {"configurable": {"thread_id": "rivers"}}
"""
CELLS = [
    SETUP,
    "out = watch(app.stream(ask, thread, stream_mode=['custom', 'values']))",
    "show(out)",
    "show(store.ledger, 'rivers')",
    "out = await awatch(app.astream(ask, stream_mode='custom'))",
]


def hostile(request: dict[str, Any], i: int) -> Reply:
    return Reply(HOSTILE % (i % 10))


def test_a_notebook_draws_answers_as_they_improve(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    server.script = hostile
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    client = NotebookClient(
        notebook,
        timeout=int(PATIENCE),
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    _, watched, shown, of_ledger, awatched = (
        [o["data"]["text/html"] for o in cell["outputs"]] for cell in notebook.cells
    )
    assert len(watched) == len(awatched) == 1
    assert watched == shown == of_ledger
    for html in (*watched, *awatched):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert set(re.findall(r"<(\w+)", html)) == {"div", "pre", "svg", "line", "circle", "text"}
        assert "tokens spent" in html
        assert "score of the best answer" in html
    assert "ended by calls" in shown[0]


def test_elsewhere_each_better_answer_is_told_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = hostile

    def longer(question: str, answer: str) -> float:
        return int(answer.partition("<b>")[2].partition("<")[0]) / 10

    app = create_anytime_graph(
        server.model(), budget=Budget(calls=3), scorer=longer, strategy="best_of_n", answer="whole"
    ).compile()
    stream = app.stream(ASK, stream_mode=["updates", "custom", "values"], subgraphs=True)
    out = watch([("custom", {"not": "ours"}), *stream])
    told = capsys.readouterr().out
    assert out["stop_reason"] == "calls"
    assert "\x1b" not in told
    assert "0.20" in told.splitlines()[-1]
    assert told.count("<b>2</b>") == 2, "when it came, and when the run had ended"

    async def asynchronously() -> Any:
        return await awatch(app.astream(ASK, stream_mode="custom"))

    assert asyncio.run(asynchronously())["answer"] == HOSTILE % 5
    assert watch([]) is None
    assert "no answer yet" in repr(show({"best": None, "spent": out["spent"], "curve": []}))


@pytest.mark.parametrize("modes", ["custom", "values", ["custom", "values"], ["updates", "values"]])
def test_the_second_version_of_langgraphs_stream_is_watched_like_the_first(
    server: Server, capsys: pytest.CaptureFixture[str], modes: Any
) -> None:
    server.script = hostile
    app = create_anytime_graph(
        server.model(seed=0),
        budget=Budget(calls=3),
        scorer=lambda question, answer: len(answer) / 1_000,
        strategy="single",
    ).compile()
    first, second = (
        watch(app.stream(ASK, stream_mode=modes, version=version)) for version in ("v1", "v2")
    )
    assert first["spent"]["tokens"] == second["spent"]["tokens"] > 0
    assert "custom" in modes or first.keys() == second.keys()
    first_told, second_told = (
        repr(show(app.invoke(ASK, version=version))) for version in ("v1", "v2")
    )
    assert first_told.partition("\n")[2] == second_told.partition("\n")[2]


def test_no_answer_turns_a_page_or_a_terminal_around() -> None:
    best = {"answer": "a\u202eb\x1b[2J\ud800", "score": 0.5}
    shown = show({"best": best, "spent": {"tokens": 9}, "curve": []})
    for text in (shown._repr_html_(), repr(shown)):
        assert not {"\u202e", "\x1b", "\ud800"} & set(text)


@pytest.mark.parametrize("wrong", [{}, "text", {"best": None}])
def test_only_results_are_shown(wrong: Any) -> None:
    with pytest.raises(ValueError, match="result="):
        show(wrong)


def test_of_a_ledger_a_thread_is_named(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "anytime.db") as store:
        for thread in (None, "unknown"):
            with pytest.raises(ValueError, match=f"thread={thread!r}"):
                show(store.ledger, thread)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, anytime_graph, anytime_graph.notebook\n"
        "heavy = {'IPython', 'matplotlib', 'fastapi', 'uvicorn'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
