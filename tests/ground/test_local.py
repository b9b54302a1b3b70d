"""The embedded model, for real."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from anytime_graph import Budget, Constraints, create_anytime_graph
from anytime_graph.local import embedded_file, local_model, serve
from anytime_graph.planning.strategies import best_of_n
from tests.kit.waiting import PATIENCE

LEAVES = """
import atexit, http.client, json

def tell():
    report = server.handle_metrics()
    print([line for line in report.splitlines() if line.startswith("llamacpp:requests_processing")])

atexit.register(tell)
from anytime_graph.local import serve
server = serve()
client = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
asked = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "ignore_eos": True}
client.request("POST", "/v1/chat/completions", json.dumps(asked))
reply = client.getresponse()
reply.read(100)
tell()
reply.close()
client.close()
"""
"""What tells twice how many requests a server works on: as the client leaves, and as the process ends."""

INTERRUPTED = """
import signal
import xllamacpp
from anytime_graph import local

made = xllamacpp.CommonParams

def about_to_load():
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    return made()

xllamacpp.CommonParams = about_to_load
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(20):
    try:
        local.serve()
    except KeyboardInterrupt:
        if kept := sum(map(len, local._SERVERS.values())):
            print("interrupted,", kept, "kept")
            break
"""
"""Is interrupted 20 ms after the model began to load, once more if a busy machine had not come to it, and tells
how many servers are kept."""

RULES = Constraints(sentences=2, words=(15, 30), include=("river", "stone"), forbid=("very",))
QUESTION = {"messages": [("user", f"Describe a valley. {RULES.describe()}")]}


def test_who_asks_for_a_server_at_the_same_time_gets_the_same() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: serve(slots=3), range(2))
    assert first is second


def test_the_books_are_the_servers_own_and_the_budget_holds() -> None:
    app = create_anytime_graph(
        local_model(seed=5, max_tokens=40),
        budget=Budget(tokens=350),
        scorer=RULES,
        answer="whole",
    ).compile()
    out = app.invoke(QUESTION)
    assert out["spent"]["tokens"] <= 350
    assert out["best"]["score"] == max(p["score"] for p in out["curve"])
    assert out["errors"] == []


def test_the_same_seed_gives_the_same_run() -> None:
    """One draft after another, after a first run: the model server rounds otherwise when it works on
    two at once, and when it reads a prompt that it has not cached."""
    app = create_anytime_graph(
        local_model(seed=7, max_tokens=16),
        budget=Budget(calls=2),
        scorer=RULES,
        answer="whole",
        strategy=partial(best_of_n, n=1),
    ).compile()
    _, first, second = (app.invoke(QUESTION) for _ in range(3))
    assert first["best"]["answer"] == second["best"]["answer"]
    assert len({c["answer"] for c in first["candidates"]}) == 2, "siblings differ"


def test_any_gguf_file_serves_and_anything_else_is_refused(tmp_path: Path) -> None:
    weights = embedded_file()
    assert weights is not None
    copy = tmp_path / "copy.gguf"
    copy.symlink_to(weights)
    app = create_anytime_graph(f"local:{copy}", budget=Budget(calls=1, output_tokens=20)).compile()
    assert app.invoke({"messages": [("user", "Hello")]})["best"]["answer"]
    other = tmp_path / "other.gguf"
    other.write_text("not weights")
    with pytest.raises(ValueError, match="not a GGUF file"):
        local_model(other)
    with pytest.raises(FileNotFoundError, match="no such file"):
        local_model(tmp_path / "none.gguf")


def test_a_process_that_leaves_a_request_ends_once_the_server_has_left_it_too() -> None:
    """llama.cpp's thread would crash otherwise: a signal in place of the exit code, in one of ten
    interrupted runs on a busy machine."""
    ended = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True)
    before, after = ended.stdout.splitlines()
    assert "requests_processing 1" in before
    assert "requests_processing 0" in after
    assert ended.returncode == 0, ended.stderr


def test_ctrl_c_while_the_model_loads_ends_the_process() -> None:
    """In some of these runs a server that was let go as it came would wait for itself for ever."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (0, "interrupted, 1 kept\n"), done.stderr
