"""Why a run stopped is told in words, for every reason there is."""

from __future__ import annotations

import re

from anytime_graph.run.endings import MEANINGS, ended
from tests.kit.places import ROOT


def test_every_documented_stop_reason_has_a_meaning_and_no_other() -> None:
    page = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
    table = page.partition("## Why it ended")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")][1:]
    reasons = re.findall("`([^`]+)`", " ".join(cells))
    assert {reason.partition(":")[0] for reason in reasons} == MEANINGS.keys()
    assert all(ended(reason).startswith(f"Stopped by: {reason} (") for reason in reasons)
    assert ended("nothing more to polish") == "Stopped by: nothing more to polish"
