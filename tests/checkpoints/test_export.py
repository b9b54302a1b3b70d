"""Exports of ledgers that real runs have written, as those who take them read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from anytime_graph import Budget, Constraints, create_anytime_graph, open_checkpoints
from anytime_graph.checkpoints.export import FORMS, line
from anytime_graph.cli import main
from tests.kit.server import Reply, Server
from tests.kit.waiting import PATIENCE

NASTY = 'a\nb\r\n\u2028"c"\t\u2029\x85 \\n 日本 🦊 \x1b[2J \x9b\u202e'
TEXTS = ["A fox.", f"{NASTY} river", "A river and a fox.", "A bend.", f"{NASTY} fox river bend"]
RULES = Constraints(include=("fox", "river", "bend"))

LOAD = """
import json, sys
from datasets import load_dataset
for file in sys.argv[2:]:
    rows = load_dataset("json", data_files=file, split="train", cache_dir=sys.argv[1])
    print(json.dumps(rows.to_list()))
"""


def run(
    server: Server, db: Path, *, record: Any = "all", turns: int = 1, thread: str = "t"
) -> None:
    """Ask `turns` questions, each with a scorer, so that there are pairs."""
    server.script = lambda request, i: Reply(text=TEXTS[i % len(TEXTS)])
    with open_checkpoints(db, record=record) as store:
        graph = create_anytime_graph(
            server.model(),
            budget=Budget(calls=5),
            scorer=RULES,
            answer="whole",
            ledger=store.ledger,
        )
        app = graph.compile(checkpointer=store.saver)
        messages: list[Any] = [("system", "Be brief.")]
        for turn in range(turns):
            messages.append(("user", f"Question {turn}\u2028{NASTY}?"))
            app.invoke({"messages": messages}, {"configurable": {"thread_id": thread}})
            messages = []


def export(db: Path, *words: str) -> Result:
    done = CliRunner().invoke(main, ["export", "--db", str(db), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def rows(done: Result) -> list[Any]:
    """One JSON object a line, whatever a reader takes for a line."""
    text = done.stdout_bytes.decode()
    lines = text.splitlines()
    assert text == "".join(f"{line}\n" for line in lines)
    return [json.loads(line) for line in lines]


def loaded(files: list[Path], folder: Path) -> list[Any]:
    """What Hugging Face's datasets makes of each file, without a network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), *map(str, files)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_pairs_for_trl_and_openai(server: Server, tmp_path: Path) -> None:
    db = tmp_path / "a.db"
    run(server, db, turns=2)
    with open_checkpoints(db) as store:
        first, second = store.ledger.runs("t")
        pairs = [p for r in (first, second) for p in store.ledger.pairs(r["id"])]
        conversations = [
            r["conversation"] for r in (first, second) for _ in store.ledger.pairs(r["id"])
        ]
    assert len(pairs) >= 4
    assert any(NASTY in p["chosen"] for p in pairs)
    assert [m["role"] for m in conversations[-1]] == ["system", "user", "assistant", "user"]
    for conversation, pair, chat, openai, plain in zip(
        conversations,
        pairs,
        rows(export(db, "t", "--as", "dpo-chat")),
        rows(export(db, "t", "--as", "openai")),
        rows(export(db, "t", "--as", "dpo")),
        strict=True,
    ):
        chosen = [{"role": "assistant", "content": pair["chosen"]}]
        rejected = [{"role": "assistant", "content": pair["rejected"]}]
        assert chat == {"prompt": conversation, "chosen": chosen, "rejected": rejected}
        assert openai == {
            "input": {"messages": conversation, "tools": [], "parallel_tool_calls": True},
            "preferred_output": chosen,
            "non_preferred_output": rejected,
        }
        assert plain["prompt"].startswith("system: Be brief.\n\nuser: Question 0\u2028")
        assert plain["prompt"].endswith("\n\nassistant: ")
        assert plain["chosen"] == pair["chosen"]
        assert plain["rejected"] == pair["rejected"]


def test_a_question_alone_is_the_prompt(server: Server, tmp_path: Path) -> None:
    db = tmp_path / "a.db"
    server.script = lambda request, i: Reply(text=TEXTS[i % 3])
    with open_checkpoints(db) as store:
        graph = create_anytime_graph(
            server.model(), budget=Budget(calls=3), scorer=RULES, ledger=store.ledger
        )
        app = graph.compile(checkpointer=store.saver)
        app.invoke({"messages": [("user", "Why?")]}, {"configurable": {"thread_id": "t"}})
    prompts = {row["prompt"] for row in rows(export(db, "t", "--as", "dpo"))}
    assert prompts == {"Why?"}


def test_hugging_face_datasets_loads_every_form(server: Server, tmp_path: Path) -> None:
    db, files = tmp_path / "a.db", {form: tmp_path / f"{form}.jsonl" for form in FORMS}
    run(server, db, turns=2)
    for form, file in files.items():
        done = export(db, "t", "--as", form, "-o", str(file))
        assert (done.stdout, done.stderr) == ("", "")
    read = loaded(list(files.values()), tmp_path)
    for form, got, file in zip(files, read, files.values(), strict=True):
        written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert written, form
        assert got == written, form


def test_answers_and_runs_hold_what_the_ledger_holds(server: Server, tmp_path: Path) -> None:
    db = tmp_path / "a.db"
    run(server, db, thread="t")
    run(server, db, thread="u")
    answers = rows(export(db, "--all", "--as", "answers"))
    assert [a["thread"] for a in answers] == ["t"] * 5 + ["u"] * 5
    assert {a["answer"] for a in answers} == set(TEXTS)
    assert answers[0].keys() >= {"question", "node", "score", "feedback", "parents", "tokens"}
    assert answers[0]["question"].startswith("Question 0")
    runs = rows(export(db, "--all", "--as", "runs"))
    assert sum(r["spent"]["tokens"] for r in runs) == server.served
    assert runs[0]["limits"] == {"calls": 5}
    assert not runs[0].keys() & {"asked", "plan", "search"}


def test_texts_that_were_not_kept_are_skipped_and_counted(server: Server, tmp_path: Path) -> None:
    db = tmp_path / "a.db"
    run(server, db, record="usage")
    with open_checkpoints(db) as store:
        count = len(store.ledger.pairs(store.ledger.runs("t")[0]["id"]))
    assert count > 0
    for form in ("dpo", "dpo-chat", "openai"):
        done = export(db, "t", "--as", form)
        assert done.stdout == ""
        assert done.stderr == f'skipped {count} pairs whose texts were not kept (record="usage")\n'
    answers = rows(export(db, "t", "--as", "answers"))
    assert [a["answer"] for a in answers] == [None] * 5
    assert answers[0]["score"] is not None


def test_a_file_is_not_touched_for_a_thread_that_is_not_there(
    server: Server, tmp_path: Path
) -> None:
    db, file = tmp_path / "a.db", tmp_path / "out.jsonl"
    run(server, db)
    file.write_text("kept")
    for words, code in ((["nobody"], 1), ([], 2), (["t", "--all"], 2)):
        command = ["export", "--db", str(db), "--as", "dpo", "-o", str(file), *words]
        assert CliRunner().invoke(main, command).exit_code == code
    assert file.read_text() == "kept"
    nowhere = ["export", "t", "--db", str(db), "--as", "dpo", "-o", str(tmp_path / "no" / "x")]
    done = CliRunner().invoke(main, nowhere)
    assert done.exit_code == 1
    assert "No such file" in done.stderr


def test_a_line_is_one_line_and_true() -> None:
    told = line({"text": NASTY, "n": [1.5, None, True]})
    assert len(told.splitlines()) == 1
    assert json.loads(told) == {"text": NASTY, "n": [1.5, None, True]}
    assert "日本 🦊" in told
    assert json.loads(line("a\ud800b")) == "a\ufffdb"
