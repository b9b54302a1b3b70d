"""Finding final answers in replies, and comparing them."""

from __future__ import annotations

from fractions import Fraction
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.tasks.answers import final, is_number, letter, number, numeric, same, tail


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (r"so \boxed{7}, or rather \boxed{8}.", "8"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{7} and \boxed{ }", "7"),
        (r"\boxed{7} and \boxed{8", "7"),
        (r"\boxed{a \boxed{7} b}", "7"),
        (r"\fbox{7}", "7"),
        ("Answer: 7\nAnswer: 8", "8"),
        ("**Answer:** 8.5", "8.5"),
        ("The answer is 7, I think", "7, I think"),
        ("My final answer is: 7", "7"),
        (r"Answer: \boxed{7}. Done", "7"),
        ("\\boxed{7}\nAnswer: 8", "8"),
        ("Answer: 8\nso \\boxed{7}", "7"),
        ("answer = 7", "7"),
        ("Answer:", None),
        ("Answer: **", None),
        ("it is 7", None),
        ("answers: 7", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_last_box_or_answer_line(reply: str, found: str | None) -> None:
    assert final(reply) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("025", 25),
        ("-3", -3),
        ("\u22123", -3),
        ("$1,024$", 1024),
        ("1{,}024", 1024),
        ("3.50", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("25 cm", 25),
        ("25.", 25),
        ("**25**", 25),
        ("it is 25, yes 25.0", 25),
        ("3 + 4 = 7", 7),
        ("3 + 4 = 7\n7 - 9 = -2.", -2),
        ("x = 5 or x = 6", None),
        ("25 or 26", None),
        ("1/0", None),
        ("v2", None),
        ("1e5", 100_000),
        ("1.5E-3", Fraction(3, 2000)),
        (r"3 \times 10^{5}", 300_000),
        ("1e5000", None),
        ("-$5", -5),
        (r"-\$5", -5),
        ("\u20135", -5),
        ("x = \u20135", -5),
        ("3\u20135", None),
        (r"25^\circ", 25),
        (r"\sqrt{2}", None),
        ("\u221a2", None),
        (r"2\pi", None),
        (r"\frac{\pi}{2}", None),
        (r"\frac{\sqrt{2}}{2}", None),
        ("x^2", None),
        ("2^{5}", None),
        ("n + 1", None),
        ("1 - x", None),
        (r"\pm 5", None),
        (r"\sqrt{16} = 4", 4),
        ("My answer - 42", 42),
        ("1.2.3", None),
        ("9" * 500, None),
        ("none", None),
        ("", None),
    ],
)
def test_one_number_is_read_exactly_and_two_are_none(text: str, value: Fraction | None) -> None:
    assert number(text) == value


prose = st.text(st.characters(categories=["L", "P", "Z"], exclude_characters="\\{}"), max_size=40)


@given(st.integers(-(10**9), 10**9), prose, prose, st.integers(0, 10**6))
def test_a_boxed_number_is_found_whatever_stands_around(
    value: int, before: str, after: str, other: int
) -> None:
    reply = f"{before} {other} \\boxed{{{other}}} {before}\n\\boxed{{{value}}}"
    assert numeric(reply) == value
    assert same(reply, f"{value:05}")
    assert not same(reply, str(value + 1))
    assert numeric(f"{before}\nAnswer: {value}") == value
    assert numeric(f"Answer: {other}\n{after}\nAnswer: {value}\n") == value


@given(st.fractions(max_denominator=10**4))
def test_a_fraction_is_read_back(value: Fraction) -> None:
    sign, top = "-" if value < 0 else "", abs(value.numerator)
    for text in (f"{value}", f"{sign}\\frac{{{top}}}{{{value.denominator}}}"):
        assert number(text) == number(f"${text}$.") == value
        assert is_number(text)


@given(st.text(max_size=200) | st.text(r"\boxed{}answer is:=0123,./-*_ Day", max_size=200))
def test_any_reply_can_be_read(reply: str) -> None:
    final(reply), numeric(reply), letter(reply), tail(reply), same(reply, "25"), same(reply, "x")


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "answer ", "{", "}", "1", "1,", "= ", "\n", "*", "_"]
)
def test_reading_takes_time_in_proportion_to_the_reply(piece: str) -> None:
    reply = piece * (60_000 // len(piece))
    started = process_time()
    final(reply), numeric(reply), letter(reply), tail(reply)
    assert process_time() - started < 5


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("b.", "B"),
        ("Answer: B", "B"),
        ("**Answer: (C)** because", "C"),
        ("Answer: B) it is warm", "B"),
        ("The answer is D.", "D"),
        ("the correct answer is **D**", "D"),
        (r"\boxed{A}", "A"),
        (r"\boxed{\text{A}}", "A"),
        ("Option C.", "C"),
        ("(A) at first.\nAnswer: (B)", "B"),
        ("B) it is warm", "B"),
        ("Answer: E", None),
        ("A good question", None),
        ("Answer: a good question", None),
        ("Both A and B", None),
        (r"\boxed{\textbf{(B)}}", "B"),
        (r"\mathbf{C}", "C"),
        ("Answer: D \u2014 all of them", "D"),
        ("Answer: `B`", "B"),
        ("Answer: B; since A is wrong", "B"),
        ("Answer: C) I think", "C"),
        ("Answer: A - B", None),
        ("Answer: A or B", None),
        ("Answer: A, B", None),
        ("Answer: (A)/(B)", None),
        ("B) warmer than A", "B"),
        ("", None),
    ],
)
def test_letters(reply: str, choice: str | None) -> None:
    assert letter(reply) == choice


def test_the_tail_has_all_lines_behind_the_last_answer() -> None:
    assert tail("Answer: no.\n**Answer:**\n1 2\n3 4\n") == "1 2\n3 4"
    assert tail(" 1 2\n3 4 ") == "1 2\n3 4"


@pytest.mark.parametrize(
    ("reply", "expected", "right"),
    [
        ("025", "25", True),
        ("25.0", "25", True),
        ("26", "25", False),
        ("5 + 20 = 25", "25", True),
        ("I do not know", "25", False),
        ("The Rhine.", "the rhine", True),
        ("Well.\nAnswer: **the Rhine**", "The Rhine", True),
        ("The Rhine or the Rhone", "The Rhine", False),
        ("0.50", "1/2", True),
        ("-5", "\u22125", True),
        ("it costs 1,000.00 dollars", "$1,000", True),
        ("0.00001", "1e-05", True),
        (r"\sqrt{2}", "2", False),
        ("-$5", "5", False),
        (r"\boxed{\text{Paris}}", "Paris", True),
        (r"\boxed{50\%}", "50%", True),
        ("1, 2, 3", "1, 2, 3", True),
    ],
)
def test_the_expected_answer_is_compared_as_number_or_text(
    reply: str, expected: str, right: bool
) -> None:
    assert same(reply, expected) is right
