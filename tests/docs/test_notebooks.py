"""The notebooks of examples/ run from top to bottom, in a real kernel over a scripted endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.marks import torture
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server

STAND_IN = """
from types import SimpleNamespace
from anytime_graph import local
local._server = lambda *of: SimpleNamespace(listening_address={!r})
"""
"""The embedded model takes its time: in its place is the endpoint. Not in make torture."""
CITY = json.dumps({"name": "Vienna", "inhabitants": 2_000_000})


def reply(request: dict[str, Any], i: int) -> Reply:
    if "Danube" in json.dumps(request["messages"]):
        return Reply(f"<answer>{CITY}</answer>")
    return Reply(f"A fox bends around stone {i}." if i % 3 else "The river is very wide.")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_run(
    path: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    server.script = reply
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(path, as_version=4)
    if not torture:
        address = server.url.removesuffix("/v1")
        notebook.cells.insert(0, nbformat.v4.new_code_cell(STAND_IN.format(address)))
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=folder).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert outputs
    assert not [out for out in outputs if out.get("name") == "stderr"]
