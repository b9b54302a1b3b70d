"""The tasks by name: writing, exams, Reasoning Gym, files of the user's. All texts here are made up."""

from __future__ import annotations

import csv
import inspect
import json
import logging
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from anytime_graph import Score
from anytime_graph.constraints import Constraints
from anytime_graph.planning.answers import answer_format
from anytime_graph.scoring import as_score
from anytime_graph.tasks import TASKS, Task, aime, gpqa, gym, load, writing
from anytime_graph.tasks.task import Question

AIME = [
    {
        "ID": f"made-{n}",
        "Problem": f"What is {n} + {n}?",
        "Solution": "add",
        "Answer": f"{2 * n:03}",
    }
    for n in range(1, 31)
]
GPQA = [
    {
        "Record ID": f"rec{n}",
        "Question": f"Which zorb has {n} plims?",
        "Correct Answer": f"the zorb {n}\n",
        "Incorrect Answer 1": f"a glip {n}",
        "Incorrect Answer 2": f"a blorp {n}",
        "Incorrect Answer 3": f"no zorb {n}",
        "Explanation": f"Zorb {n} is known for it.",
    }
    for n in range(60)
]
OWN = [{"question": f"{n} - 1?", "answer": n - 1} for n in range(9)]
PROGRAMS = [
    {"task_id": n, "text": f"Add {n}.", "test_list": [f"assert f(1) == {n + 1}"]} for n in range(9)
]
RULED = [
    {
        "key": n,
        "prompt": f"Write {n} commas.",
        "instruction_id_list": ["keywords:frequency"],
        "kwargs": [{"keyword": ",", "frequency": n, "relation": "at least"}],
    }
    for n in range(1, 10)
]
SECRET = re.compile("zorb|plim|glip|blorp", re.IGNORECASE)


def written(folder: Path, kind: str, rows: list[dict[str, Any]], name: str = "rows") -> Path:
    file = folder / f"{name}.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "csv":
        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def value(question: Question, answer: str) -> float:
    return as_score(question.scorer(question.prompt, answer)).value


# --- by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (
            "trips",
            {},
            "'trips': there is none of that name; did you mean 'trip'. the names are constraints, ",
        ),
        ("trip:5", {}, "trip takes nothing behind a colon"),
        ("jsonl", {}, "needs a file, jsonl:FILE"),
        ("reasoning_gym", {}, "needs a name, reasoning_gym:NAME"),
        ("trip", {"city": 3}, "no option 'city'; did you mean 'cities'. it takes cities, "),
        ("trip", {"towns": 3}, "no option 'towns'; it takes cities, count, "),
        ("constraints", {"difficulty": 6}, "difficulty=6: a whole number is needed, 1 to 5"),
        ("constraints", {"count": "5"}, "count='5': a whole number is needed"),
        ("aime_2024:none.jsonl", {}, "none.jsonl: there is no such file"),
    ],
)
def test_a_task_that_cannot_be_loaded_says_what_would_do(
    name: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        load(name, **options)


def test_every_task_tells_how_its_answers_are_found(tmp_path: Path) -> None:
    names = {
        "constraints": "constraints",
        "trip": "trip",
        "aime_2024": f"aime_2024:{written(tmp_path, 'jsonl', AIME, 'aime')}",
        "gpqa_diamond": f"gpqa_diamond:{written(tmp_path, 'jsonl', GPQA, 'gpqa')}",
        "jsonl": f"jsonl:{written(tmp_path, 'jsonl', OWN, 'own')}",
        "mbpp": f"mbpp:{written(tmp_path, 'jsonl', PROGRAMS, 'mbpp')}",
        "ifeval": f"ifeval:{written(tmp_path, 'jsonl', RULED, 'ifeval')}",
    }
    for name in names.values():
        task = load(name, count=5)
        assert isinstance(task, Task)
        assert answer_format(task.answer)
        assert task.about
        assert task.metric in ("csr", "accuracy", "assertions")
        ids = [q.id for q in task.questions]
        assert ids == [q.id for q in load(name, count=5).questions]
        assert len(set(ids)) == len(task.questions) == 5
        assert [q.id for q in task.questions[1:3]] == ids[1:3]
        assert task.questions[-1].id == ids[-1]
        question = task.questions[0]
        assert question.prompt not in repr(task) + repr(question)
        assert value(question, "nothing of the kind") < 1
    assert set(TASKS) == {*names, "natural_plan_trip", "reasoning_gym", "humaneval"}


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_all_rules_can_be_met_at_once(difficulty: int) -> None:
    for seed in range(100):
        rules = writing.make_rules(Random(seed), difficulty)
        score = rules("", obedient(rules))
        assert score == Score(1.0), (rules, obedient(rules))


def obedient(rules: Constraints) -> str:
    assert isinstance(rules.sentences, tuple)
    assert isinstance(rules.words, tuple)
    end = rules.ends_with or "."
    last = [*rules.include, *([end] if len(end) > 1 else [])]
    rest = rules.words[0] - len(last) - (rules.sentences[0] - 1)
    text = "Kite. " * (rules.sentences[0] - 1) + "kite " * max(0, rest) + " ".join(last)
    return text if len(end) > 1 else text + end


def test_harder_means_more_rules_and_less_room() -> None:
    def rules(difficulty: int) -> int:
        return len(writing.make_rules(Random(0), difficulty)._checks)

    def room(difficulty: int) -> float:
        ranges = [writing.make_rules(Random(seed), difficulty).words for seed in range(50)]
        return sum(high - low for low, high in ranges)  # type: ignore[misc]

    assert [rules(d) for d in range(1, 6)] == sorted(rules(d) for d in range(1, 6))
    assert [room(d) for d in range(1, 6)] == sorted((room(d) for d in range(1, 6)), reverse=True)
    task = load("constraints", count=3, difficulty=4)
    assert "The text must" in task.questions[0].prompt
    assert task.answer == "whole"


# --- exams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_aime_from_a_file(tmp_path: Path, kind: str) -> None:
    task = load(f"aime_2024:{written(tmp_path, kind, AIME)}")
    assert [q.id for q in task.questions] == [row["ID"] for row in AIME]
    question = task.questions[6]
    assert question.prompt == "What is 7 + 7?\n\nThe answer is an integer from 0 to 999."
    for right in (
        "14",
        "014",
        "14.0",
        r"no \boxed{15}, yes \boxed{14}",
        "7 + 7 = 14",
        "Answer: 14",
    ):
        assert value(question, right) == 1
    for wrong in ("15", r"\boxed{14}, no, \boxed{15}", "14 or 15", "", "14.5"):
        assert value(question, wrong) == 0
    told = [question.scorer("", a) for a in ("15", "14.5", "7 or 8", "2000")]
    assert [s.feedback for s in told] == [  # type: ignore[union-attr]
        "15 is not the answer.",
        "29/2 is not an integer from 0 to 999.",
        "It does not end in one number. Give the final answer as one integer.",
        "2000 is not an integer from 0 to 999.",
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_gpqa_from_a_file_shuffled_by_a_hash(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    task = load(f"gpqa_diamond:{written(tmp_path, kind, GPQA)}")
    again = load(f"gpqa_diamond:{written(tmp_path, kind, GPQA[::-1])}")
    keys = Counter()
    shown = {q.id: q.prompt for q in again.questions}
    for n, question in enumerate(task.questions):
        assert shown[question.id] == question.prompt
        assert re.fullmatch(r"[0-9a-f]{16}", question.id)
        letter = re.search(rf"\(([A-D])\) the zorb {n}$", question.prompt, re.MULTILINE)
        assert letter
        keys[letter[1]] += 1
        for name in "ABCD":
            score = question.scorer(question.prompt, f"I say ({name}).\nAnswer: {name}")
            assert as_score(score).value == (name == letter[1])
            assert not SECRET.search(repr((question, score)))
    assert sorted(keys) == list("ABCD")
    assert max(keys.values()) < 30
    assert not SECRET.search(repr(task) + caplog.text)


def test_no_error_shows_a_question(tmp_path: Path) -> None:
    rows = [{**GPQA[0]}, {**GPQA[1]}]
    del rows[1]["Incorrect Answer 2"]
    file = written(tmp_path, "jsonl", rows)
    with pytest.raises(ValueError, match="row 2: a column 'incorrect answer 2' is needed") as told:
        load(f"gpqa_diamond:{file}")
    assert not SECRET.search(str(told.value))
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(GPQA[0]) + "\n" + json.dumps(GPQA[1])[:-9])
    with pytest.raises(ValueError, match=r"line 2: a JSON object is needed") as told:
        load(f"gpqa_diamond:{broken}")
    assert not SECRET.search(str(told.value))
    headless = tmp_path / "headless.csv"
    headless.write_text(
        ",".join(map(str, GPQA[0].values())).replace("\n", "") + "\na,b,c,d,e,f,g\n"
    )
    with pytest.raises(ValueError, match="row 1: a column 'question' is needed") as told:
        load(f"gpqa_diamond:{headless}")
    assert not SECRET.search(str(told.value))
    aime_row = written(tmp_path, "jsonl", [{"id": 1, "problem": "zorb?", "answer": "zorb"}], "a")
    with pytest.raises(ValueError, match="row 1: the answer must be an integer") as told:
        load(f"aime_2024:{aime_row}")
    assert not SECRET.search(str(told.value))


def test_exams_come_from_the_hub_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name, rows, config in (("aime", AIME, None), ("gpqa", GPQA, "gpqa_diamond")):
        folder = tmp_path / name
        folder.mkdir()
        written(folder, "csv", rows, "test")
        (folder / "README.md").write_text(
            "---\nconfigs:\n"
            f"- config_name: {config or 'default'}\n"
            "  data_files:\n  - split: train\n    path: test.csv\n---\n"
        )
    monkeypatch.setattr(aime, "HUB", (str(tmp_path / "aime"), None))
    monkeypatch.setattr(gpqa, "HUB", (str(tmp_path / "gpqa"), "gpqa_diamond"))
    assert value(load("aime_2024").questions[3], "8") == 1
    assert len(load("gpqa_diamond").questions) == 60

    monkeypatch.setattr(gpqa, "HUB", (str(tmp_path / "none"), "gpqa_diamond"))
    with pytest.raises(ConnectionError, match=r"accept its terms .* or give a file"):
        load("gpqa_diamond")


def test_without_datasets_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install datasets .* aime_2024:FILE"):
        load("aime_2024")


# --- Reasoning Gym -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(gym.EVALUATED), "composite", "family_relationships"])
def test_tasks_that_evaluate_replies_or_have_wrong_keys_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"reasoning_gym:{name}: refused"):
        load(f"reasoning_gym:{name}")


def test_no_other_grader_evaluates_a_reply() -> None:
    package = pytest.importorskip("reasoning_gym")
    code = re.compile(r"\b(?:eval|exec|parse_expr|sympify|literal_eval|loads?)\(([^)]*)")
    found = {
        name
        for name, (kind, _) in package.factory.DATASETS.items()
        for match in code.finditer(inspect.getsource(kind.score_answer))
        if "json" not in match.string[max(0, match.start() - 6) : match.start()]
        and not match[1].startswith('entry["answer"]')
    }
    assert found - {"composite"} <= gym.EVALUATED


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chain_sum", {"min_terms": 5, "max_terms": 6, "min_digits": 3}),
        ("products", {"max_digits": 3}),
        ("basic_arithmetic", {"max_digits": 2}),
    ],
)
def test_arithmetic_is_harder_on_demand_and_graded_as_numbers(
    name: str, options: dict[str, Any]
) -> None:
    package = pytest.importorskip("reasoning_gym")
    task = load(f"reasoning_gym:{name}", count=20, seed=5, **options)
    assert [q.prompt for q in task.questions] == [q.prompt for q in list(task.questions)]
    own = {"operators": ["+", "-", "*"]} if name == "basic_arithmetic" else {}
    made = package.create_dataset(name, size=20, seed=5, **options, **own)
    for question, entry in zip(task.questions, made, strict=True):
        key = entry["answer"]
        assert question.prompt == entry["question"]
        for right in (key, f"{key}.0", f"It makes\nAnswer: {key}", rf"\boxed{{{key}}}"):
            assert value(question, right) == 1
        for wrong in (f"{key}1", f"{key} or {key}1", "", "__import__('os').abort()"):
            assert value(question, wrong) == 0


def test_other_graders_are_asked_for_the_final_answer() -> None:
    package = pytest.importorskip("reasoning_gym")
    made = package.create_dataset("spell_backward", size=3, seed=0)
    words = load("reasoning_gym:spell_backward", count=3)
    for question, entry in zip(words.questions, made, strict=True):
        assert value(question, f"Let me see.\nAnswer: {entry['answer']}") == 1
        assert value(question, "Answer: no idea") < 1
    grid = package.create_dataset("mini_sudoku", size=1, seed=0)[0]["answer"]
    solved = load("reasoning_gym:mini_sudoku", count=1).questions[0]
    assert value(solved, grid) == value(solved, f"So it is.\nAnswer:\n{grid}\n") == 1
    assert value(load("reasoning_gym:prime_factorization", count=1).questions[0], "junk") == 0
    assert value(load("reasoning_gym:leg_counting", count=1).questions[0], "-1") == 0


def test_the_keys_of_basic_arithmetic_are_right_where_it_is_not_refused() -> None:
    package = pytest.importorskip("reasoning_gym")
    for operators, parentheses in ((["+", "-", "*"], True), (["+", "-"], False)):
        options = {"operators": operators, "allow_parentheses": parentheses}
        assert load("reasoning_gym:basic_arithmetic", count=1, **options)
        for entry in package.create_dataset("basic_arithmetic", size=100, seed=1, **options):
            told = re.sub(r"(\d+)", r"Fraction(\1)", entry["metadata"]["expression"])
            assert eval(told, {"Fraction": Fraction}) == Fraction(entry["answer"])
    for options in (
        {"operators": ["+", "/"]},
        {"allow_parentheses": False},
        {"allow_parentheses": False, "operators": "+*"},
    ):
        with pytest.raises(ValueError, match="its keys are often wrong"):
            load("reasoning_gym:basic_arithmetic", **options)


@pytest.mark.parametrize("name", ["chain_sum", "products", "basic_arithmetic"])
def test_solved_examples_show_the_working_and_never_the_question(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "examples": 3}
    task = load(f"reasoning_gym:{name}", count=200, **small)
    for question in task.questions:
        *turns, last = question.conversation
        assert [turn.type for turn in turns] == ["human", "ai"] * 3
        assert last.text == question.prompt
        assert question.prompt not in [turn.text for turn in turns]
        for example, told in question.examples:
            working, _, answer = told.rpartition(" = ")
            assert working in example
            assert answer.lstrip("-").isdigit()
    assert callable(task.answer)
    assert [task.answer(r) for r in ("3 + 4 = 7", "7.", "no idea")] == ["7", "7", None]


def test_examples_of_tasks_in_words_show_the_answer() -> None:
    pytest.importorskip("reasoning_gym")
    task = load("reasoning_gym:spell_backward", count=1, examples=2)
    assert task.answer == "whole"
    assert len(task.questions[0].examples) == 2
    assert load("reasoning_gym:spell_backward", count=1).answer == "tags"
    with pytest.raises(ValueError, match="examples=-1"):
        load("reasoning_gym:chain_sum", examples=-1)


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        (["a", 1], 'Answer: ["A", 1.0]', '["b", 1]'),
        ({"x": True, "y": None}, '{"y": null, "x": true}', '{"x": true}'),
        (1e-05, "0.00001", "0.0001"),
        (False, "false", "true"),
    ],
)
def test_a_key_that_is_no_text_is_met_by_its_json(
    key: object, right: str, wrong: str, tmp_path: Path
) -> None:
    file = written(tmp_path, "jsonl", [{"question": "What?", "answer": key}])
    scorer = load(f"jsonl:{file}").questions[0].scorer
    assert (scorer("", right), scorer("", wrong)) == (
        Score(1.0),
        Score(0.0, "That is not the answer."),
    )


def test_unknown_names_and_parameters_of_reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="reasoning_gym:sums: there is no such task; there are ab"):
        load("reasoning_gym:sums")
    with pytest.raises(ValueError, match=r"there is no such task; did you mean 'chain_sum'\?"):
        load("reasoning_gym:chainsum")
    with pytest.raises(ValueError, match=r"no option 'max_digts'; did you mean 'max_digits'\?"):
        load("reasoning_gym:chain_sum", max_digts=2)
    with pytest.raises(ValueError, match=r"reasoning_gym:chain_sum: .*terms"):
        load("reasoning_gym:chain_sum", terms=5)
    with pytest.raises(ValueError, match="reasoning_gym:chain_sum: max_terms must be"):
        load("reasoning_gym:chain_sum", min_terms=5, max_terms=2)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match="pip install reasoning-gym"):
        load("reasoning_gym:chain_sum")


# --- files of the user's -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_questions_with_answers(tmp_path: Path, kind: str) -> None:
    rows = [
        {"id": "sum", "question": "1 + 1?", "answer": "2"},
        {"id": "river", "question": "A river through Basel?", "answer": "the Rhine"},
    ]
    task = load(f"jsonl:{written(tmp_path, kind, rows)}")
    assert task.metric == "accuracy"
    assert [(q.id, q.prompt) for q in task.questions] == [(r["id"], r["question"]) for r in rows]
    total, river = task.questions
    assert [value(total, a) for a in ("2", "1 + 1 = 2.", "Answer: 3")] == [1, 1, 0]
    assert [value(river, a) for a in ("The Rhine.", "Rhine")] == [1, 0]


def test_questions_with_a_check_of_the_users(tmp_path: Path) -> None:
    file = written(tmp_path, "jsonl", [{"prompt": "Say hi."}, {"prompt": "Say hi twice."}])
    (tmp_path / "mine.py").write_text("def polite(question, answer):\n    return 'hi' in answer\n")
    for check in (f"{tmp_path / 'mine.py'}:polite", lambda question, answer: "hi" in answer):
        task = load(f"jsonl:{file}", check=check, answer="whole")
        assert (task.metric, task.answer) == ("csr", "whole")
        assert [q.id for q in task.questions] == ["1", "2"]
        assert [value(task.questions[0], a) for a in ("hi!", "no")] == [1, 0]
    with pytest.raises(ValueError, match="has no function 'rude'"):
        load(f"jsonl:{file}", check=f"{tmp_path / 'mine.py'}:rude")
    with pytest.raises(ValueError, match="row 1, without check=: a column 'answer' is needed"):
        load(f"jsonl:{file}").questions[0]
    with pytest.raises(ValueError, match="answer='box': 'tags' or 'whole'"):
        load(f"jsonl:{file}", answer="box")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    empty, other = tmp_path / "empty.jsonl", tmp_path / "rows.txt"
    empty.write_text("\n")
    other.write_text("x")
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file holds no rows"):
        load(f"jsonl:{empty}")
    with pytest.raises(ValueError, match=r"rows\.txt: a \.jsonl, \.csv or \.parquet file"):
        load(f"jsonl:{other}")
    with pytest.raises(ValueError, match="a column 'question' or 'prompt' is needed"):
        load(f"jsonl:{written(tmp_path, 'jsonl', [{'text': 'x'}])}").questions[0]
