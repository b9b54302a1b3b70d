"""What is handed to a command as text and is none: words of its line, files, standard input."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from anytime_graph.cli import main
from tests.kit.commands import COMMAND, Command, environment, told
from tests.kit.server import Server

LATIN = "caf\udce9"
"""The byte E9, which is not UTF-8, as Python hands it to a command."""


def takes_text(param: click.Parameter) -> bool:
    folder = isinstance(param.type, click.Path) and not param.type.file_okay
    made = folder and not param.type.exists
    return made or (not isinstance(param.type, click.Path) and param.type.name == "text")


def fitting(param: click.Parameter) -> str:
    if isinstance(param.type, click.Choice):
        return str(param.type.choices[0])
    if isinstance(param.type, click.Path) and not param.type.file_okay:
        return "."
    return "0.5" if param.type.name == "float" else "q.txt"


def lines(command: click.Command, words: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Each option and argument of text: its name, and a line in which what it is given is not UTF-8."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from lines(each, [*words, name])
        return
    for param in filter(takes_text, command.params):
        line = []
        for each in command.params:
            if each.required or each is param:
                value = LATIN if each is param else fitting(each)
                line += [each.opts[-1], value] if isinstance(each, click.Option) else [value]
        name = param.opts[-1] if isinstance(param, click.Option) else str(param.name).upper()
        yield " ".join([*words, str(param.name)]), name, [*words, *line]


LINES = list(lines(main, []))


@pytest.mark.parametrize(
    ("name", "words"), [line[1:] for line in LINES], ids=[line[0] for line in LINES]
)
def test_words_that_are_no_text_are_refused_by_the_name_of_their_option(
    name: str, words: list[str], server: Server, command: Command
) -> None:
    Path("q.txt").write_text("Name a river.\n")
    done = command(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert name in told(done).partition("is not UTF-8")[0]
    assert "is not UTF-8" in told(done)
    assert server.calls == []
    assert [path.name for path in Path().iterdir()] == ["q.txt"]


@pytest.mark.parametrize(
    "words",
    [
        ["solve", "--file", "q.txt"],
        ["batch", "q.txt"],
        ["warm-up", "q.txt"],
        ["audit", "--questions", "q.txt", "--words", "9"],
        ["bench", "--task", "jsonl:q.jsonl", "--out", "out"],
        ["bench", "--task", "jsonl:q.csv", "--out", "out"],
    ],
    ids=" ".join,
)
def test_a_file_that_is_no_text_is_named_with_its_line(
    words: list[str], server: Server, command: Command
) -> None:
    for name in ("q.txt", "q.jsonl", "q.csv"):
        Path(name).write_bytes(b'{"question": "a", "answer": "b"}\n{"question": "caf\xe9"}\n')
    done = command(*words, "--model", "openai:scripted")
    assert (done.exit_code, done.stdout) == (2, "")
    assert ", line 2: this is not UTF-8; save the file as UTF-8" in told(done)
    assert server.calls == []


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_standard_input_that_is_no_text_is_refused(server: Server, errors: str) -> None:
    own = environment(server) | {"PYTHONIOENCODING": f"utf-8:{errors}"}
    words = [*COMMAND, "solve", "--model", "openai:scripted"]
    done = subprocess.run(words, input=b"caf\xe9", env=own, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"standard input: this is not UTF-8" in done.stderr
    assert server.calls == []


def test_a_file_may_have_a_name_that_is_no_text(server: Server, command: Command) -> None:
    Path(LATIN).write_text("Name a river.\n")
    done = command("solve", "--file", LATIN, "--model", "openai:scripted", "--calls", "1")
    assert (done.exit_code, done.stdout) == (0, "fine\n")


@pytest.mark.parametrize("name", ["solve", "batch", "warm-up"])
def test_a_model_without_a_name_is_not_the_embedded_one(name: str, command: Command) -> None:
    """As from a variable of the shell that is not set."""
    Path("q.txt").write_text("Name a river.\n")
    done = command(name, "q.txt", "--model", "")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: --model '': 'local', 'local:FILE.gguf' or 'provider:name' is needed" in told(
        done
    )
