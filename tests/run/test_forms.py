"""Stored data is brought into today's form, from the form that it states."""

from __future__ import annotations

from typing import Any

import pytest

from anytime_graph.budget import nothing
from anytime_graph.run.forms import NewerForm, UnknownForm, Upgrade, upgraded
from anytime_graph.run.upgrade import with_tool_calls


def test_each_upgrade_after_the_stated_form_is_made_in_turn() -> None:
    def named(name: str) -> Upgrade:
        return lambda stored: {**stored, "made": stored["made"] + name}

    upgrades = [named("a"), named("b")]
    for form, made in (({}, "ab"), ({"form": 0}, "ab"), ({"form": 1}, "b"), ({"form": 2}, "")):
        assert upgraded({"made": "", **form}, upgrades, "it") == {"made": made, "form": 2}
    for later in (3, "2", None):
        with pytest.raises(NewerForm):
            upgraded({"made": "", "form": later}, upgrades, "it")
    with pytest.raises(UnknownForm):
        upgraded({}, upgrades, "it")


def test_spends_alone_get_a_count_of_tool_calls() -> None:
    spend: dict[str, Any] = {key: n for key, n in nothing().items() if key != "tool_calls"}
    other = {"calls": 1, "notes": [{"usd": 1}]}
    stored = {"spent": spend, "curve": [{"spent": spend}], "other": other, "done": {**nothing()}}
    now = with_tool_calls(stored)
    assert now == {**stored, "spent": nothing(), "curve": [{"spent": nothing()}]}
    assert now["other"] is other
    assert with_tool_calls({"spent": {**nothing(), "tool_calls": 2}})["spent"]["tool_calls"] == 2
