"""Every code block of README and docs runs, and the drawn graph is the graph."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints
from xml.etree import ElementTree

import pytest

from anytime_graph import Budget, Spend, Stop, Until, create_anytime_graph
from anytime_graph.budget import DIMENSIONS
from anytime_graph.cli.bench_commands import bench
from anytime_graph.run.pairs import Candidate, Pair
from anytime_graph.run.state import Output
from tests.kit.forks import forked
from tests.kit.lives import EMBEDDED
from tests.kit.marks import torture
from tests.kit.picture import FILE, picture
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(wanted: str) -> list[object]:
    return [
        pytest.param(text, id=f"{page.name}-{i}")
        for page in PAGES
        for i, (language, text) in enumerate(BLOCK.findall(page.read_text()))
        if language == wanted and "import ray" not in text  # run in tests/benchmark/test_ray.py
    ]


def output(code: str | list[str], server: Server, folder: Path) -> str:
    done = forked(code, folder, environment(server, folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(server: Server, folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    key = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url}
    return {**os.environ, **key, **stand_in(server), "PATH": path, "HOME": str(folder)}


def stand_in(server: Server) -> dict[str, str]:
    """The embedded model takes its time: elsewhere than in the first that a reader tries, in its
    place is the endpoint. Not in make torture."""
    return {} if torture else {EMBEDDED: server.url.removesuffix("/v1")}


def test_blocks_are_of_known_kinds() -> None:
    kinds = {language for page in PAGES for language, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"python", "console", "mermaid", "text"}


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, server: Server, tmp_path: Path) -> None:
    """As written; the names of OpenAI's models reach a scripted endpoint."""
    city = '{"name": "Vienna", "inhabitants": 2000000}'
    server.script = lambda request, i: Reply(
        text=city if "response_format" in request else f"<answer>{city}</answer>"
    )
    done = forked(code, tmp_path, environment(server, tmp_path))
    assert (done.returncode, done.stderr) == (0, ""), "no error, and no warning that is logged"
    assert done.stdout or "print" not in code


@pytest.mark.parametrize("block", blocks("console"))
def test_console_blocks_run(
    block: str,
    server: Server,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands of this package run; set-up commands are resolved, for they are what runs this."""
    if "postgresql://" in block:
        port = request.getfixturevalue("postgres").rpartition(":")[2].partition("/")[0]
        monkeypatch.setenv("PGPORT", port)
    (tmp_path / "questions.txt").write_text("Why do rivers bend?\nWhy do rivers freeze?\n")
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            words = ["make", "--dry-run", "--directory", str(ROOT), *words[1:]]
        elif words[0] == "pip":
            extras = re.search(r"(?:anytime-graph|\.)\[([\w,]+)\]", line)
            declared = (ROOT / "pyproject.toml").read_text()
            assert extras
            assert all(f"\n{e} = [" in declared for e in extras[1].split(","))
            continue
        elif words[0] == "anytime-graph" and "ray" in words and not torture:
            bench.make_context("bench", words[2:])  # tests/benchmark/test_ray.py starts a cluster
            continue
        elif words[0] == "anytime-graph":
            assert output(words[1:], server, tmp_path)
            continue
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path, server: Server, tmp_path: Path) -> None:
    spider = '{"name": "spider", "legs": 8, "colors": ["brown"]}'
    server.script = lambda request, i: Reply(
        "def largest(numbers):\n    return max(numbers, default=None)"
        if "largest" in str(request["messages"])
        else spider
        if "response_format" in request
        else f"A river bends around stone number {i}."
    )
    embedded = torture and example.name == "quickstart.py"
    model = {} if embedded else stand_in(server)
    env = {**os.environ, "OPENAI_API_KEY": "none", **model}
    done = forked(example.read_text(), tmp_path, env)
    assert (done.returncode, done.stderr) == (0, ""), "no error, and no warning that is logged"
    assert done.stdout or example.name in ("served.py", "served_to_users.py", "fastapi_app.py")


WITHOUT = """
import sys
for name in [{0!r}, *(name for name in sys.modules if name.startswith({0!r} + "."))]:
    sys.modules[name] = None
"""


@pytest.mark.parametrize(
    ("example", "package", "needed"),
    [
        ("agent_with_budget.py", "langchain", "'.[agents]'"),
        ("best_by_rubric.py", "langchain", "'.[agents]'"),
        ("fastapi_app.py", "fastapi", "'fastapi>=0.165'"),
    ],
)
def test_an_example_without_its_package_says_in_one_line_what_to_install(
    example: str, package: str, needed: str, tmp_path: Path
) -> None:
    code = (ROOT / "examples" / example).read_text()
    missing = WITHOUT.format(package)
    done = forked(missing + code, tmp_path, dict(os.environ))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"pip install {needed}" + " uvicorn" * (package == "fastapi"))


def test_the_best_by_a_rubric_is_not_the_last(tmp_path: Path) -> None:
    code = (ROOT / "examples" / "best_by_rubric.py").read_text()
    last, best = forked(code, tmp_path, dict(os.environ)).stdout.splitlines()
    assert last.endswith("Rivers bend because of the current.")
    assert best.endswith("the outer bank erodes and the inner bank grows.")


def test_the_drawn_graph_is_the_graph(server: Server) -> None:
    app = create_anytime_graph(server.model(), budget=Budget(calls=1)).compile()
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = next(text for language, text in BLOCK.findall(page) if language == "mermaid")
    assert drawn == app.get_graph().draw_mermaid()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_reference_has_each_name_once() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    names = [name.rpartition(".")[2] for name in re.findall("^::: (.*)$", page, re.M)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "report", sorted((ROOT / "docs/results").rglob("*.md")), ids=lambda report: report.stem
)
def test_a_report_begins_with_the_command_that_makes_it(report: Path) -> None:
    line, *_ = report.read_text().splitlines()
    assert line.startswith("    ")
    program, *words = shlex.split(line)
    if program == "anytime-graph":
        assert words[0] == "bench"
        bench.make_context("bench", words[1:])
    else:
        assert words[:2] == ["-m", "tests.bench.simulation"]
        assert f"\n\t$(BIN)/{line.strip()}\n" in (ROOT / "Makefile").read_text()
    assert (
        f"(results/{report.relative_to(ROOT / 'docs/results')})"
        in (ROOT / "docs/results.md").read_text()
    )


def test_every_field_of_the_output_is_explained() -> None:
    page = (ROOT / "docs" / "output.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    fields = {*get_type_hints(Output), *Candidate.__annotations__, *Pair.__annotations__}
    assert fields | Spend.__annotations__.keys() <= named


def test_every_reason_to_stop_is_explained() -> None:
    """Those that stand in the code as words; rules and dimensions go by their names."""
    words = re.compile(
        r"(?:\bStop\(|\"stop_reason\": |\b_finish\(\w+, (?:_logged\()?|\bQUOTA = )f?\"(\w+)"
    )
    said = {
        word
        for folder in ("anytime_graph", "nodes")
        for file in (ROOT / folder).rglob("*.py")
        for word in words.findall(file.read_text())
    }
    assert said >= {"quota", "ledger", "strategy", "perfect", "blocked"}
    page = (ROOT / "docs" / "output.md").read_text()
    section = page.partition("## Why it ended")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(\w+)(?::[^`]*)?`", section))
    assert said | {*DIMENSIONS, *(f.name for f in fields(Until)), Stop().reason} <= told


def test_the_picture_of_the_readme_asks_the_network_for_nothing() -> None:
    drawn = picture("\x1b[32mscore\x1b[0m 0.56\r\n\x1b[2Klater", "a title")
    for svg in (drawn, FILE.read_text()):
        ElementTree.fromstring(svg)
        assert not re.search(r"url\([\"']?http|href=|@import|@font-face", svg)
    assert ">score<" in drawn.replace("&#160;", " ").replace("> ", ">")


def test_the_server_configuration_is_valid(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "langgraph"), "validate"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemas_can_be_served(server: Server) -> None:
    app = create_anytime_graph(server.model(), budget=Budget(calls=1)).compile()
    for schema in (app.get_input_jsonschema(), app.get_output_jsonschema()):
        assert "messages" in schema["properties"]
    assert "budget" in app.get_context_jsonschema()["properties"]
