"""The commands over many questions: audit, warm-up, forget; and a solve that remembers."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.kit.commands import Command, begun, environment, told
from tests.kit.judging import better, comparing, drafted, sides
from tests.kit.kills import ended
from tests.kit.server import Reply, Server

QUESTIONS = ["Why do rivers bend?", "Why do rivers freeze?"]
CHECK = """
import re

def quality(question, answer):
    return int(re.search(r"quality (\\d+)", answer)[1]) / 100
"""


@pytest.fixture
def files(command: Command, server: Server) -> None:
    """Questions and a scorer in the folder that commands run in; a judge that is right."""
    Path("q.txt").write_text(f"{QUESTIONS[0]}\n\n  {QUESTIONS[1]}  \n")
    Path("q.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    Path("check.py").write_text(CHECK)
    server.script = honest


def honest(request: dict[str, Any], i: int) -> Reply:
    if comparing(request):
        return Reply(text=f"So.\nVerdict: {better(*sides(request))}")
    return Reply(text=drafted(i, request["messages"][-1]["content"]))


FRESH = ["--check", "check.py:quality", "--answer", "whole", "--model", "openai:scripted"]

# --- audit


@pytest.mark.parametrize("file", ["q.txt", "q.jsonl"])
@pytest.mark.usefixtures("files")
def test_audit_asks_questions_and_says_what_the_judge_is_worth(
    server: Server, command: Command, file: str
) -> None:
    done = command("audit", "--questions", file, *FRESH)
    assert done.exit_code == 0, done.output
    assert "2 questions" in done.stdout
    for part in ("the judge", "100%", "95% interval", "correlation", "better than chance"):
        assert part in done.stdout
    paid = len(server.calls)
    out = json.loads(command("audit", "--questions", file, *FRESH, "--json").stdout)
    assert len(server.calls) == paid == out["spent"]["calls"]
    assert out["agreement"]["mean"] == 1.0
    assert out["verdict"].startswith("Where both orders agree")
    asked = [c.text for c in server.calls if not comparing(c.request)]
    assert all(sum(question in text for text in asked) == 4 for question in QUESTIONS)


@pytest.mark.usefixtures("files")
def test_audit_reads_a_thread(server: Server, command: Command) -> None:
    words = ["--db", "anytime.db", "--thread", "t", "--answer", "whole", "--tokens", "6000"]
    solved = command(
        "solve", "A river?", *words, "--model", "openai:scripted", "--strategy", "best_of_n"
    )
    assert solved.exit_code == 0, solved.output
    paid = len(server.calls)
    assert "give a scorer" in " ".join(command("audit", "t").stdout.split())
    done = command("audit", "--check", "check.py:quality")
    assert "100%" in done.stdout
    assert len(server.calls) == paid


@pytest.mark.usefixtures("files")
def test_audit_says_what_is_wrong(server: Server, command: Command) -> None:
    Path("empty.txt").write_text("\n")
    Path("bad.jsonl").write_text('{"question": "Why?"}\n{"ask": "Why?"}\n')
    for words, message in (
        (["--judge", "openai:x"], "--judge goes with --questions"),
        (["--tokens", "9"], "--tokens goes with --questions"),
        (["t", "--questions", "q.txt"], "not both"),
        (["--questions", "q.txt"], "a scorer is needed"),
        (["--questions", "empty.txt", *FRESH], "no question in it"),
        (["--questions", "bad.jsonl", *FRESH], "bad.jsonl, line 2"),
        (["--questions", "q.txt", *FRESH, "--tokens", "9"], "cannot pay for one draft"),
    ):
        done = command("audit", *words)
        assert done.exit_code == 2, done.output
        assert message in told(done)
    assert server.calls == []
    assert command("audit", "--db", "nowhere.db").exit_code == 2
    command("warm-up", "q.txt", *FRESH, "--calls", "1")
    assert command("audit", "nobody").exit_code == 1
    assert command("audit").stdout.startswith("Nothing was compared")


@pytest.mark.usefixtures("files")
def test_another_judge_and_a_rubric_are_heard(server: Server, command: Command) -> None:
    judge = ["--judge", "openai:strict", "--rubric", "Prefer \x1b[31mshort\x1b[0m rivers."]
    done = command("audit", "--questions", "q.txt", *FRESH, *judge)
    assert done.exit_code == 0, done.output
    compared = [c for c in server.calls if comparing(c.request)]
    assert {c.request["model"] for c in compared} == {"strict"}
    assert all("rivers." in c.text for c in compared)


# --- warm-up and memory


@pytest.mark.usefixtures("files")
def test_what_a_warm_up_taught_is_shown_to_solve(server: Server, command: Command) -> None:
    space = ["--namespace", "acme/ann"]
    done = command("warm-up", "q.txt", *FRESH, *space, "--calls", "3")
    assert done.exit_code == 0, done.output
    assert "2 preference pairs from 2 questions; spent:" in done.stdout
    assert len(server.calls) == 6
    again = json.loads(
        command("warm-up", "q.jsonl", *FRESH, *space, "--calls", "3", "--json").stdout
    )
    assert (again["pairs"], again["left"], again["spent"]["calls"]) == (2, 0, 6)
    assert len(server.calls) == 6
    for namespace, shown in (("acme/ann", True), ("acme/bob", False)):
        before = len(server.calls)
        words = ["--db", "anytime.db", "--thread", namespace, "--memory", "--namespace", namespace]
        words += ["--strategy", "pdp"]
        done = command("solve", "Why do rivers meander?", *words, *FRESH, "--calls", "2")
        assert done.exit_code == 0, done.output
        asked = [c for c in server.calls[before:] if not comparing(c.request)]
        assert any('Better: "quality' in c.text for c in asked) is shown
    run = json.loads(command("show", "acme/ann", "--json").stdout)["runs"][0]
    assert run["options"]["memory"] is True
    assert run["options"]["namespace"] == "acme/ann"
    before = len(server.calls)
    assert command("resume", "acme/ann", "--calls", "+1").exit_code == 0
    assert 'Better: "quality' in server.calls[before].text


@pytest.mark.usefixtures("files")
def test_ctrl_c_keeps_what_a_warm_up_has_done(server: Server, command: Command) -> None:
    server.script = lambda r, i: Reply(text=None, pace=0.01) if i == 4 else honest(r, i)
    words = ["warm-up", "q.txt", *FRESH, "--calls", "3"]
    with begun(server, words, calls=6) as process:
        assert process.pid
        os.kill(process.pid, signal.SIGINT)
        assert ended(process) == 130
    err = Path("stderr").read_text()
    assert "the same command continues" in err
    assert "Traceback" not in err
    server.settled()
    out = json.loads(command(*words, "--json").stdout)
    assert out["spent"]["calls"] == len(server.calls) == 6
    assert [q["question"] for q in out["questions"]] == QUESTIONS
    assert out["questions"][0]["pairs"] == 1


@pytest.mark.usefixtures("files")
def test_memory_needs_a_ledger(server: Server, command: Command) -> None:
    for words, message in (
        (["--memory"], "--memory is the memory of a --db"),
        (["--namespace", "a"], "--memory is the memory of a --db"),
        (["--namespace", "a", "--db", "a.db", "--thread", "t"], "give --memory too"),
        (["--memory", "--namespace", "a//b", "--db", "a.db", "--thread", "t"], "'a//b'"),
    ):
        done = command("solve", "Why?", *FRESH, *words)
        assert done.exit_code == 2, done.output
        assert message in told(done)
    assert server.calls == []


def remembered() -> int:
    with closing(sqlite3.connect("anytime.db")) as db:
        return int(db.execute("SELECT count(*) FROM pairs").fetchone()[0])


@pytest.mark.usefixtures("files")
def test_forget_asks_before_it_forgets_all(command: Command) -> None:
    for namespace in ("acme/ann", "acme/bob"):
        command("warm-up", "q.txt", *FRESH, "--namespace", namespace, "--calls", "3")
    assert remembered() == 4
    assert command("forget", "--older-than", "1d").stdout == "forgot 0 preference pairs\n"
    assert command("forget", input="n\n").exit_code == 1
    for words in (["--keep", "0"], ["--keep", "0", "--older-than", "9d"], ["--older-than", "0s"]):
        assert command("forget", *words, "--namespace", "acme/bob", input="n\n").exit_code == 1
    assert remembered() == 4
    assert command("forget", "--keep", "1").stdout == "forgot 2 preference pairs\n"
    done = command("forget", "--namespace", "acme/ann", input="y\n")
    assert "Forget all preference pairs of 'acme/ann'?" in done.output
    assert done.stdout.endswith("forgot 1 preference pair\n")
    done = command("forget", "--older-than", "0s", "--yes")
    assert done.stdout == "forgot 1 preference pair\n"
    assert command("forget", "--yes").stdout == "forgot 0 preference pairs\n"
    for words in (["--older-than", "soon"], ["--keep", "-1"], ["--namespace", "a//b", "--yes"]):
        assert command("forget", *words).exit_code == 2


# --- what the judge took


@pytest.mark.usefixtures("files")
def test_show_tells_the_part_of_the_judge_and_of_the_cache(
    server: Server, command: Command
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        usage = {"prompt_tokens": 100, "completion_tokens": 20 * request.get("n", 1)}
        cached = {**usage, "prompt_tokens_details": {"cached_tokens": 50}}
        return Reply(text=honest(request, i).text, usage=cached)

    server.script = script
    words = ["--db", "anytime.db", "--thread", "t", "--answer", "whole", "--rubric", "Be strict."]
    words += ["--strategy", "pdp"]
    done = command("solve", "Why?", *words, "--model", "openai:scripted", "--calls", "4")
    assert done.exit_code == 0, done.output
    out = json.loads(command("show", "t", "--json").stdout)["runs"][0]
    judged = [c for c in server.calls if comparing(c.request)]
    assert all("Be strict." in c.text for c in judged)
    assert out["judging"]["tokens"] == 120 * len(judged) > 0
    assert out["options"]["rubric"] == "Be strict."
    share = out["judging"]["tokens"] / out["spent"]["tokens"]
    assert (
        f"{share:.0%} of the tokens by the judge, 50% of the input cached"
        in command("show", "t").stdout
    )


@pytest.mark.usefixtures("files")
def test_a_judge_that_used_up_its_share_is_explained(server: Server, command: Command) -> None:
    words = ["--db", "anytime.db", "--thread", "t", "--answer", "whole", "--tokens", "9000"]
    words += ["--rubric", "Be strict."]
    server.script = lambda r, i: Reply(
        text=honest(r, i).text if comparing(r) else drafted(i, "x") + " so" * 40
    )
    done = command("solve", "Why?", *words, "--model", "openai:scripted", "--strategy", "best_of_n")
    assert done.exit_code == 0, done.output
    assert "To let it judge more, give more budget" in told(done)
    assert "To let it judge more, give more budget" in command("show", "t").stdout


def test_help_of_these_commands_teaches(command: Command, server: Server) -> None:
    for name in ("audit", "warm-up", "forget"):
        done = command(name, "--help")
        assert f"anytime-graph {name} " in done.stdout
    assert environment(server)


# --- batch


def test_a_batch_of_the_command_line_is_json_also_where_there_is_no_answer(
    server: Server, command: Command
) -> None:
    server.script = lambda request, i: Reply(text="<answer>x</answer>")
    Path("q.txt").write_text("".join(f"Why do {n} rivers bend?\n" for n in range(9)))
    words = [
        "batch",
        "q.txt",
        "--model",
        "openai:scripted",
        "--workers",
        "1",
        "--strategy",
        "best_of_n",
    ]
    done = command(*words, "--calls", "2")
    assert done.exit_code == 1, done.output
    assert "2 of 9 questions answered; the budget's calls are used up\n" in done.stderr
    rows = [json.loads(row, parse_constant=pytest.fail) for row in done.stdout.splitlines()]
    assert [row["gain"] is None for row in rows if row["answer"] is None] == [True] * 7
    assert {row["stop_reason"] for row in rows} == {"calls"}
    assert "no call was made" not in done.stderr
    asked = len(server.calls)
    again = command(*words, "--calls", "2", "--strategy", "self_refine")
    assert (again.stdout, len(server.calls)) == (done.stdout, asked)
    assert "no call was made: these are answers of earlier runs" in again.stderr


def test_questions_come_from_a_pipe(server: Server, command: Command) -> None:
    server.script = lambda request, i: Reply(text="<answer>x</answer>")
    model = ["--model", "openai:scripted", "--strategy", "single"]
    done = command("batch", "-", *model, input="Why do rivers bend?\n\nWhy do foxes run?\n")
    assert done.exit_code == 0, done.output
    asked = [json.loads(row)["question"] for row in done.stdout.splitlines()]
    assert asked == ["Why do rivers bend?", "Why do foxes run?"]
    wrong = command("batch", "-", *model, input='{"question": "Why?"}\n{"questoin": "Why?"}\n')
    assert wrong.exit_code == 2
    assert "standard input, line 2: a JSON object with" in told(wrong)
    assert "standard input: there is no question in it" in told(command("batch", "-", input=""))


def test_a_batch_takes_conversations(server: Server, command: Command) -> None:
    server.script = lambda request, i: Reply(text="<answer>x</answer>")
    talk = [
        {"role": "system", "content": "Speak like a pirate."},
        {"role": "user", "content": "Why do rivers bend?"},
    ]
    rows = [{"messages": talk}, {"question": "Why do foxes run?"}, {"messages": talk}]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["batch", "q.jsonl", "--model", "openai:scripted", "--strategy", "single"]
    done = command(*words, "--include", "river", "--workers", "1")
    assert done.exit_code == 0, done.output
    asked = [json.loads(row)["question"].splitlines()[0] for row in done.stdout.splitlines()]
    assert asked == ["Why do rivers bend?", "Why do foxes run?"]
    first, second = (call.request["messages"] for call in server.calls)
    assert "Speak like a pirate." in first[0]["content"]
    assert all("river" in str(messages[-1]) for messages in (first, second))


@pytest.mark.parametrize(
    "messages",
    [
        '"Why?"',
        "[]",
        "5",
        "null",
        '[{"role": "user"}]',
        '[{"role": "user", "content": " "}]',
        '[{"role": "user", "content": 5}]',
        '[{"role": "pirate", "content": "Why?"}]',
        '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]',
    ],
)
def test_what_is_no_conversation_is_refused_by_its_line(
    messages: str, server: Server, command: Command
) -> None:
    Path("q.jsonl").write_text(f'{{"question": "Why?"}}\n{{"messages": {messages}}}\n')
    done = command("batch", "q.jsonl", "--model", "openai:scripted")
    assert (done.exit_code, done.stdout, server.calls) == (2, "", [])
    why = {
        True: '"messages" is a list of {"role": ..., "content": ...}',
        False: "a text that is not empty is needed, or messages of which the last is the user's (",
    }[messages in ('"Why?"', "5", "null")]
    assert f"q.jsonl, line 2: {why}" in told(done)


def test_questions_of_many_are_asked_for_whom_a_quota_must_know(
    server: Server, command: Command
) -> None:
    server.script = lambda request, i: Reply(text=f"<answer>{request.get('seed')}</answer>")
    Path("q.txt").write_text("Why do rivers bend?\n")
    Path("check.py").write_text("score = lambda question, answer: len(answer) / 99\n")
    command("quota", "set", "--per", "user", "--window", "1d", "--calls", "50")
    checked = ["--check", "check.py:score", "--model", "openai:scripted"]
    for words in (
        ["batch", "q.txt", *checked, "--tokens", "900"],
        ["warm-up", "q.txt", *checked, "--tokens", "900"],
        ["audit", "--questions", "q.txt", *checked, "--tokens", "900"],
    ):
        refused = command(*words)
        assert (refused.exit_code, "give --key user=VALUE" in told(refused)) == (2, True)
        done = command(*words, "--key", "user=ann")
        assert done.exit_code == 0, done.output
    rows = json.loads(command("spend", "--by", "user", "--json").stdout)
    assert [row["user"] for row in rows] == ["ann"]
    assert rows[0]["tokens"] == server.served
    assert "goes with --questions" in told(command("audit", "--key", "user=ann"))
    assert "--key is for" in told(command("solve", "Why?", "--key", "user=ann"))


def test_a_batch_says_that_quotas_ended_it(server: Server, command: Command) -> None:
    server.script = lambda request, i: Reply(text="<answer>x</answer>")
    Path("q.txt").write_text("Why do rivers bend?\nWhy do foxes run?\n")
    command("quota", "set", "--window", "1d", "--calls", "1")
    done = command("batch", "q.txt", "--model", "openai:scripted", "--strategy", "best_of_n")
    assert "1 of 2 questions answered; quotas do not pay for more\n" in done.stderr


BROKEN = "def quality(question, answer):\n    print('heard')\n    return len(answer) / lenght\n"
SOUND = BROKEN.replace("lenght", "100")


@pytest.mark.parametrize(
    "words", [["batch", "q.txt"], ["warm-up", "q.txt"]], ids=["batch", "warm-up"]
)
@pytest.mark.usefixtures("files")
def test_a_scorer_that_fails_is_told_and_its_correction_is_taken_up(
    server: Server, command: Command, words: list[str]
) -> None:
    """The answers are paid for, so they are scored, and not asked for again."""
    Path("check.py").write_text(BROKEN)
    done = command(*words, *FRESH, "--tokens", "2000")
    assert done.exit_code == 1
    assert "NameError: name 'lenght' is not defined (check.py, line 3)" in told(done)
    paid = len(server.calls)
    assert paid
    Path("check.py").write_text(SOUND)
    done = command(*words, *FRESH, "--tokens", "2000")
    assert done.exit_code == 0, done.output
    (spent,) = json.loads(command("spend", "--json").stdout)
    assert spent["tokens"] == server.served


@pytest.mark.usefixtures("files")
def test_what_a_scorer_prints_is_no_answer(command: Command) -> None:
    Path("check.py").write_text(SOUND)
    done = command("batch", "q.txt", *FRESH, "--tokens", "2000")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["question"] for row in rows] == QUESTIONS
    assert "heard" in done.stderr
    done = command("solve", QUESTIONS[0], *FRESH, "--calls", "2", "--json")
    assert json.loads(done.stdout)["answer"]
    assert "heard" in done.stderr


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "tool", "content": "x"}, "a message without 'tool_call_id'"),
        ({"role": "remove", "content": "x", "id": "a"}, "a message that removes another one"),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]},
            "the question 'Why?': media_tokens=None: 'input_audio'",
        ),
    ],
)
def test_a_row_that_cannot_be_asked_is_told_before_the_others_are_paid(
    server: Server, command: Command, message: dict[str, Any], why: str
) -> None:
    rows = [{"question": q} for q in QUESTIONS]
    asked = {"messages": [message, {"role": "user", "content": "Why?"}]}
    Path("q.jsonl").write_text("\n".join(map(json.dumps, [*rows, asked])))
    done = command("batch", "q.jsonl", "--model", "openai:scripted")
    assert (done.exit_code, why in told(done)) == (2, True), told(done)
    assert not server.calls
