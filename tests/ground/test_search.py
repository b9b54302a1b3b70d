"""Regular expressions are searched for in a process of their own, which no search holds up for ever."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys

import pytest

from anytime_graph import Constraints
from anytime_graph.constraints import search

ENDLESS, TEXT = "(a+)+$", "a" * 64 + "!"


def test_an_expression_is_found_and_counted_as_by_python() -> None:
    text = "A fox\nand a\ud800 Fox, été"
    for pattern in ("fox", "^and", r"\w+", "\ud800", "x*", "(?i)FOX", "zorb", "É"):
        for flags in (0, re.IGNORECASE, re.MULTILINE):
            assert search.found(pattern, text, flags) == bool(re.search(pattern, text, flags))
            assert search.count(pattern, text, flags) == len(re.findall(pattern, text, flags))


def test_a_search_that_takes_too_long_is_ended_and_the_next_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert search.found("b", "abc")
    monkeypatch.setattr(search, "SECONDS", 0.2)
    with pytest.raises(TimeoutError, match=r"'\(a\+\)\+\$' took more than 0.2 seconds"):
        search.found(ENDLESS, TEXT)
    with pytest.raises(TimeoutError):
        search.count(ENDLESS, TEXT)
    monkeypatch.undo()
    assert search.found("b", "abc")


def test_one_process_serves_many_searches_and_outlives_a_bad_one() -> None:
    search.found("b", "abc")
    idle = search._IDLE[os.getpid()]
    last = idle[-1]
    with pytest.raises(ValueError, match=r"'\(': missing \)"):
        search.found("(", "abc")
    assert search.count("b", "abcb") == 2
    assert idle[-1] is last


def test_its_process_ends_with_the_one_that_began_it() -> None:
    program = (
        "import os\nfrom anytime_graph.constraints import search\nsearch.found('a', 'a')\n"
        "print(search._IDLE[os.getpid()][0].pid, flush=True)\nos._exit(0)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    if not hasattr(os, "pidfd_open"):
        return
    try:
        process = os.pidfd_open(int(told.stdout))
    except ProcessLookupError:
        return
    ended, _, _ = select.select([process], [], [], 60)
    os.close(process)
    assert ended


def test_a_text_that_cannot_be_searched_in_time_does_not_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "SECONDS", 0.2)
    score = Constraints(matches=ENDLESS, words=1)("", TEXT)
    assert score.value == 0.5
    assert score.feedback == (
        f"The text must match {ENDLESS!r} (to look for {ENDLESS!r} took more than 0.2 seconds)."
    )
