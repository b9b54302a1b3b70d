"""Scores, constraints, votes, and finding answers in replies."""

from __future__ import annotations

import json
import re
from functools import reduce
from operator import add
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from anytime_graph import Constraints, Score
from anytime_graph.budget import counted
from anytime_graph.nodes.critique import split_verdict
from anytime_graph.scoring import BadScore, as_score, normal, parsed, tagged, unclosed, untagged
from anytime_graph.text import clip, fenced


class Fox(BaseModel):
    name: str
    tails: int


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"sentences": 2}, "One. Two!", "Only one here"),
        ({"sentences": (1, 2)}, "Is it? Yes...", "A. B. C."),
        ({"words": 3}, "it's well-known, no?", "two words"),
        ({"words": (2, 3)}, "a b", "a b c d"),
        ({"words": 3}, "it is well\u2011known", "it is well known"),
        ({"words": 4}, "It costs 1,003.14 euros.", "It costs 3, 14 euros."),
        ({"sentences": 1}, "Mr. Fox saw Dr. Owl, e.g. at night.", "Mr. Fox ran. He fell."),
        ({"sentences": 2}, 'He said "Stop." Then he left.', 'He said "Stop." then left.'),
        ({"sentences": 2}, "**Bold one.** (Next one!)", "**Bold.** **Then.** Next."),
        ({"sentences": 2}, "\u4f60\u597d\u3002\u4e16\u754c\u3002", "\u4f60\u597d\u3002"),
        ({"include": ("don't",)}, "Don\u2019t!", "do not"),
        ({"forbid": ("it\u2019s",)}, "it is", "it's"),
        ({"ends_with": "don't."}, "We don\u2019t.", "We do."),
        ({"include": ("fox",)}, "The Fox!", "foxes"),
        ({"include": "ice cream"}, "Ice cream.", "ice, cream"),
        ({"forbid": ("!", "very")}, "every day", "very good!"),
        ({"starts_with": "Last night"}, "last night, we", "The last night"),
        ({"ends_with": "home."}, "we went HOME.", "home"),
        ({"matches": r"^\d{4}"}, "2026 was", "in 2026"),
        ({"json": Fox}, '{"name": "a", "tails": 9}', '{"name": "a", "tails": "nine"}'),
    ],
    ids=str,
)
def test_each_constraint(rule: dict[str, object], good: str, bad: str) -> None:
    check = Constraints(**rule)  # type: ignore[arg-type]
    assert check("", good) == Score(1.0)
    missed = check("", bad)
    assert missed.value == 0.0
    assert missed.feedback is not None
    assert missed.feedback.startswith("The text must ")


def test_the_score_is_the_satisfied_fraction_and_the_feedback_names_the_rest() -> None:
    check = Constraints(sentences=2, words=(5, 9), include=("fox", "river"), forbid=("very",))
    score = check("", "A very small fox.")
    assert score.value == pytest.approx(1 / 5)
    assert score.feedback == (
        "The text must have 2 sentences; it must have 5 to 9 words; it must contain 'river'; "
        "it must not contain 'very' (it has 1 sentence, it has 4 words)."
    )
    assert check("", " ").value == 0.0
    assert check.describe() == (
        "The text must have 2 sentences; have 5 to 9 words; contain 'fox', 'river'; "
        "not contain 'very'."
    )


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({}, "Constraints"),
        ({"words": (5, 2)}, "words"),
        ({"sentences": -1}, "sentences"),
        ({"words": True}, "words=True"),
        ({"include": ("",)}, "include"),
        ({"include": ""}, "include"),
        ({"include": 5}, "include=5"),
        ({"forbid": None}, "forbid=None"),
        ({"starts_with": 5}, "starts_with=5"),
        ({"matches": 5}, "matches=5"),
        ({"json": dict}, "json="),
        ({"matches": "["}, "matches"),
    ],
)
def test_bad_constraints_fail_by_name(rule: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Constraints(**rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rule",
    [{"starts_with": "These contain "}, {"ends_with": "contain it."}, {"matches": "contain \\d"}],
)
def test_each_rule_is_described_whatever_its_text(rule: dict[str, str]) -> None:
    assert repr(*rule.values()) in Constraints(**rule).describe()  # type: ignore[arg-type]


@given(st.text(max_size=200))
def test_constraints_score_any_text(text: str) -> None:
    score = Constraints(sentences=2, words=(3, 9), include=("a",), ends_with=".")("", text)
    assert 0 <= score.value <= 1
    assert (score.feedback is None) == (score.value == 1)


@pytest.mark.parametrize(("given_", "value"), [(True, 1.0), (False, 0.0), (0.25, 0.25), (1, 1.0)])
def test_numbers_and_truth_values_are_scores(given_: object, value: float) -> None:
    assert as_score(given_).value == value


@pytest.mark.parametrize(
    ("sum_", "value"),
    [(0.7 + 0.2 + 0.1, 1.0), (reduce(add, [0.05] * 20), 1.0), (0.3 - 0.1 - 0.2, 0.0)],
)
def test_a_score_is_not_off_by_rounding(sum_: float, value: float) -> None:
    assert sum_ != value
    assert as_score(sum_) == as_score(Score(sum_)) == Score(value)


@pytest.mark.parametrize("rubbish", ["1", None, float("nan"), 2, -0.5, [1], object()])
def test_anything_else_is_not(rubbish: object) -> None:
    with pytest.raises(BadScore, match="scorer returned"):
        as_score(rubbish)


@pytest.mark.parametrize("given_", ["high", "1", None, float("nan"), 1.5, -1, [1], 10**400])
def test_a_score_of_another_kind_names_its_value(given_: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Score(value={given_!r:.40}): a number in")):
        Score(given_)


@pytest.mark.parametrize("name", ["feedback", "right"])
def test_what_a_score_says_is_a_text(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Score\({name}=5\): a text or None is needed"):
        Score(0.5, **{name: 5})  # type: ignore[arg-type]


@given(
    st.lists(st.text(st.characters(exclude_characters="<"), max_size=20), max_size=4),
    st.text(max_size=30),
)
def test_the_last_complete_block_counts(answers: list[str], tail: str) -> None:
    text = (
        "so ".join(f"<answer>{a}</answer>" for a in answers) + "<answer>cut" + tail.replace("<", "")
    )
    full = [a.strip() for a in answers if a.strip() not in ("", "...", "\u2026")]
    assert tagged(text) == (full[-1] if full else None)


@given(st.text(max_size=60))
def test_any_text_can_be_searched_for_json(text: str) -> None:
    assert parsed(Fox, text) is None
    wrapped = f'{text} {{"name": "x", "tails": 1}} {{"name": 3}} {{{{'
    assert parsed(Fox, wrapped) == '{"name": "x", "tails": 1}'


def test_votes_do_not_tell_case_spaces_and_final_stops_apart() -> None:
    assert normal(" The  Rhine.") == normal("the rhine") != normal("the rhone")


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_text_can_close_its_fence(first: str, second: str) -> None:
    shown = fenced([("ANSWER A", first), ("ANSWER B", second)])
    fence = shown.split(" ", 1)[0]
    assert shown.count(fence) == 4


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A is right.\nVerdict: A", "a"),
        ("**Verdict: B**", "b"),
        ("**Verdict**: B", "b"),
        ("__Verdict__ : tie", "tie"),
        ("Verdict: Answer B", "b"),
        ("Verdict\uff1aB", "b"),
        ("verdict: tie.", "tie"),
        ("Verdict: A\nor so", None),
        ("Verdict: A or B", None),
        ("I say Verdict: A", None),
        ("Verdict: AB", None),
        ("", None),
    ],
)
def test_only_a_last_line_that_is_a_verdict_counts(text: str, verdict: str | None) -> None:
    assert split_verdict(text)[1] == verdict


@given(st.text(max_size=300), st.integers(10, 400))
def test_clip_keeps_within_its_length(text: str, length: int) -> None:
    assert len(clip(text, length)) <= max(length, 7)


def tried_one_by_one(text: str) -> str | None:
    """The last JSON for a Fox, by trying each bracket behind the last success."""
    answer, end = None, 0
    while starts := [at for at in range(end, len(text)) if text[at] in "{["]:
        try:
            _, end = json.JSONDecoder().raw_decode(text, starts[0])
            Fox.model_validate_json(text[starts[0] : end])
            answer = text[starts[0] : end]
        except ValueError:
            end = starts[0] + 1
    return answer


FOX = '{"name": "a", "tails": 9}'
PARTS = [*'{}[]",:\\ \n\x01x1', FOX, '"name": "b"', '"tails": 2', '{"x": ', '\\"', "[1, "]


@given(st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
@example(f'[see "this\n" {FOX}')
@example(f'[ 5" and {FOX}')
@example(f'{{"fox": {FOX}, "more": {FOX}}} or \\{FOX}')
def test_the_last_json_that_fits_is_found_in_one_pass(text: str) -> None:
    assert parsed(Fox, text) == tried_one_by_one(text)


class Length(BaseModel):
    """unit: has a default. written: is made anew each time."""

    value: float
    unit: str = "cm"
    parts: list[Length] = []


class Stamped(BaseModel):
    value: int
    id: UUID = Field(default_factory=uuid4)


@pytest.mark.parametrize(
    ("schema", "one", "other", "same"),
    [
        (Length, '{"value": 2}', '{"unit": "cm", "value": 2.0}', True),
        (Length, '{"value": 2}', '{"value": "2", "parts": []}', True),
        (
            Length,
            '{"value": 2, "parts": [{"value": 1}]}',
            '{"value": 2, "parts": [{"value": 1, "unit": "cm"}]}',
            True,
        ),
        (Length, '{"value": 2}', '{"unit": "mm", "value": 2}', False),
        (Stamped, '{"value": 2}', '{"value": 2.0}', True),
        (
            Stamped,
            '{"value": 2}',
            '{"value": 2, "id": "00000000-0000-0000-0000-000000000000"}',
            False,
        ),
    ],
)
def test_answers_that_are_equal_instances_are_one_answer(
    schema: type[BaseModel], one: str, other: str, same: bool
) -> None:
    first, second = (parsed(schema, f"so {text}, then") for text in (one, other))
    assert first is not None
    assert second is not None
    assert (normal(first) == normal(second)) == same
    if schema is Length:
        assert Length.model_validate_json(first) == Length.model_validate_json(one)


def test_json_that_says_all_is_left_as_it_was_written() -> None:
    text = '{"unit" : "cm",\n "value": 2, "parts": []}'
    assert parsed(Length, f"so {text}") == text


def test_json_that_fits_no_schema_is_tried_once_however_often_it_comes() -> None:
    tried = []

    class Counted(Fox):
        @model_validator(mode="before")
        @classmethod
        def count(cls, value: object) -> object:
            tried.append(value)
            return value

    fit = '{"name": "x", "tails": 1}'
    assert parsed(Counted, '{"a": {"b": {}}} ' * 50 + fit) == fit
    assert len(tried) == 4


TAGS = ["<answer>", "</answer>", "<ANSWER>", "x", " ", "\n", "<answer", "/", "..."]


@given(st.lists(st.sampled_from(TAGS), max_size=20).map("".join))
@example("I put it into <answer> tags: <answer>x</answer>")
@example("<answer>x</answer> I gave it as <answer>...</answer>.")
def test_the_last_block_that_is_whole_and_holds_an_answer_is_the_answer(text: str) -> None:
    blocks = re.findall(r"(?is)<answer>((?:(?!<answer>).)*?)</answer>", text)
    said = [b.strip() for b in blocks if b.strip() not in ("", "...")]
    assert tagged(text) == (said[-1] if said else None)


@given(st.lists(st.sampled_from(TAGS), max_size=20).map("".join))
@example("Hm. <answer></answer>")
@example("<answer>...</answer>")
def test_a_reply_without_an_answer_is_what_stands_beside_the_tags(text: str) -> None:
    left = re.sub(r"(?i)</?answer>", "", text).strip()
    assert untagged(text) == (left if left not in ("", "...") else None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so <answer>42", "42"),
        ("so <answer>42<answer>", "42"),
        ("<answer>41 no, <answer>42\n", "42"),
        ("42</answer>", None),
        ("so <answer>", None),
        ("so <answer>...", None),
        ("42", None),
    ],
)
def test_a_tag_that_was_never_closed_goes_to_the_end(text: str, answer: str | None) -> None:
    assert unclosed(text) == answer


def test_equal_causes_are_told_once_with_their_number() -> None:
    causes = ["draft 0: HTTP 500", "draft 1: HTTP 500", "critique 2: HTTP 500", "draft 3: empty"]
    assert counted(causes) == [
        "draft: HTTP 500 (2 times)",
        "critique 2: HTTP 500",
        "draft 3: empty",
    ]
    assert counted([]) == []
