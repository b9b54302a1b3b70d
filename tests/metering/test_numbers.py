"""Odd numbers: clear errors, and parts that never exceed the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.benchmark.recording import Recording
from anytime_graph.budget import DIMENSIONS, Budget, share
from anytime_graph.planning.profiles import checked
from anytime_graph.run.state import payoff


@pytest.mark.parametrize("amount", [10**400, 10**30, math.inf, -math.inf, math.nan, -1, "9", True])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_budget_that_is_no_amount_is_named(dimension: str, amount: Any) -> None:
    with pytest.raises(ValueError, match=f"^{dimension}="):
        Budget(**{dimension: amount})


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (("5",), {}, r"Budget\('5'\): name what it limits, as in Budget\(tokens=8_000\)"),
        ((), {"token": 5}, r"Budget\(token=...\): a budget has tokens, output_tokens, "),
    ],
)
def test_a_budget_is_given_by_the_names_of_its_dimensions(
    given: Any, named: Any, said: str
) -> None:
    with pytest.raises(TypeError, match=f"^{said}"):
        Budget(*given, **named)


@given(st.floats(0, 1e6), st.integers(0, 10**15), st.integers(1, 300))
def test_equal_parts_never_exceed_the_whole(usd: float, tokens: int, n: int) -> None:
    parts = Budget(usd=usd, tokens=tokens).split(n)
    assert sum(part.usd or 0 for part in parts) <= usd
    assert sum(part.tokens or 0 for part in parts) <= tokens
    slices = [share({"usd": usd, "tokens": tokens}, 1 / n) for _ in range(n)]
    assert sum(part["usd"] for part in slices) <= usd
    assert sum(part["tokens"] for part in slices) <= tokens


def test_a_profile_of_nothing_is_refused() -> None:
    none: Any = {**payoff(0.0, 0.0, 0, 0, False), "tries": 0, "worth": 0, "squares": 0}
    with pytest.raises(ValueError, match="tries: 1 or more are needed"):
        checked({"draft": none})


@pytest.mark.parametrize("amount", ["NaN", "-5", "Infinity", "true", '"9"', "1e400"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_recording_with_an_impossible_cost_is_refused(
    tmp_path: Path, amount: str, at: int
) -> None:
    pair = ["1", "1"]
    pair[at] = amount
    file = tmp_path / "calls.jsonl"
    file.write_text('{{"ask": "k", "reserved": [{}, {}]}}\n'.format(*tuple(pair)))
    with pytest.raises(ValueError, match="not a recording"):
        Recording(file)


def test_a_recording_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_text('{"take": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    with pytest.raises(ValueError, match="line 1") as refused:
        Recording(file)
    file.write_text(json.dumps({"ask": "k", "reserved": [1, 0.5]}) + "\n")
    Recording(file).close()  # while the error, and what it refers to, is still there
    assert "line 1" in str(refused.value)
