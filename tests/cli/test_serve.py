"""From a file of weights to an endpoint, and back."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from langchain_openai import ChatOpenAI

from anytime_graph import local
from anytime_graph.models import resolve_model
from tests.kit.commands import COMMAND, Command, environment, told
from tests.kit.waiting import PATIENCE


def _slots(address: str) -> int:
    return int(httpx.get(f"{address}/props", timeout=PATIENCE).json()["total_slots"])


def test_a_file_of_weights_is_served_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*COMMAND, "serve-model", str(local.embedded_file()), "--slots", "3"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(None)
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            names = dict(word.split("=") for word in line.removeprefix("export ").split())
            for name, value in names.items():
                monkeypatch.setenv(name, value)
            model = resolve_model("openai:local")
            assert isinstance(model, ChatOpenAI)
            reply = model.invoke("Hello", max_tokens=5)
            assert reply.usage_metadata is not None
            assert reply.usage_metadata["output_tokens"] <= 5
            assert _slots(names["OPENAI_BASE_URL"].removesuffix("/v1")) == 3
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert process.stderr.read() == "serving openai:local with 3 slots; Ctrl-C ends it\n"
        finally:
            process.kill()


def test_what_cannot_be_served_is_refused_by_name(command: Command, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not weights")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    weights = str(local.embedded_file())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, needed in (
            (["none.gguf"], "local:none.gguf: there is no such file"),
            (["text.gguf"], "text.gguf: not a GGUF file"),
            (["cut.gguf"], "cut.gguf: llama.cpp cannot serve these weights"),
            ([weights, "--port", port], f"--port {port} is taken"),
        ):
            done = command("serve-model", *words)
            assert done.exit_code == 2
            assert done.stdout == ""
            assert needed in told(done)


def test_a_benchmark_has_a_slot_for_each_cell_at_work(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []

    def watched(*of: object, **options: object) -> object:
        server = serve(*of, **options)  # type: ignore[arg-type]
        served.append(server.listening_address)
        return server

    serve = local.serve
    monkeypatch.setattr(local, "serve", watched)
    model = ["--model", f"local:{local.embedded_file()}"]
    size = ["--strategy", "single", "--budgets", "180", "--samples", "1", "--parallel", "3"]
    done = command("bench", "--task", "constraints", *model, *size, "--out", "b")
    assert done.exit_code == 0, told(done)
    assert [_slots(address) for address in served] == [3]
    words = shlex.join(["bench", "--task", "constraints", *model, *size, "--out", "b"])
    assert Path("b/report.md").read_text().splitlines()[0] == f"    anytime-graph {words}"
