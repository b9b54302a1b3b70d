from __future__ import annotations

import fcntl
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anytime_graph import metrics
from anytime_graph.benchmark import figures
from anytime_graph.cli import main
from tests.kit.benchmarks import KINDS, MODEL, OWN, Bench, Undisturbed, varied
from tests.kit.commands import environment
from tests.kit.server import Server

CHECK = "def check(question, answer):\n    return float(answer)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run: eight questions, whose scores are what is answered."""
    monkeypatch.chdir(tmp_path)
    asked = [{"id": f"q{n}", "question": f"How far is the river {n}?"} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "check.py").write_text(CHECK)
    return tmp_path


@pytest.fixture
def bench(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the command. The intervals of its reports are of few resamples."""
    few = functools.partial(metrics.bootstrap, resamples=50)
    monkeypatch.setattr(metrics, "bootstrap", lambda *of, **_: few(*of))
    monkeypatch.setattr(figures, "bootstrap", lambda *of, **_: few(*of))
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)

    def invoke(*words: str, exit_code: int = 0) -> Result:
        done = CliRunner().invoke(main, ["bench", *words], catch_exceptions=False)
        assert done.exit_code == exit_code, done.output
        return done

    return invoke


@pytest.fixture
def undisturbed(
    bench: Bench, server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """What the command of a kind comes to if nothing happens to it: measured once for all processes
    that run tests. The server's books are empty afterwards, whoever measured it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def measured(kind: str) -> Undisturbed:
        server.script = varied
        folder, books = (shared / f"undisturbed-{kind}{end}" for end in ("", ".json"))
        with (shared / f"undisturbed-{kind}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                bench(*OWN, *MODEL, *KINDS[kind], "--out", "undisturbed")
                calls = server.settled().calls
                books.write_text(json.dumps({"served": server.served, "asked": len(calls)}))
                (tmp_path / "undisturbed").rename(folder)
                calls.clear()
        return Undisturbed(folder, **json.loads(books.read_text()))

    return measured
