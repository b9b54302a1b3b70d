from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anytime_graph.cli import main
from tests.kit.commands import Command, environment
from tests.kit.server import Server


@pytest.fixture
def command(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in a folder of its own; models are the scripted endpoint."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def invoke(*words: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, list(words), input=input, catch_exceptions=False)

    return invoke
