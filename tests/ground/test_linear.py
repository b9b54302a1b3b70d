"""No text of a model can hold up a run: all that reads one takes time in proportion to its length."""

from __future__ import annotations

import subprocess
import sys

from tests.kit.marks import torture

SIZE = 1_000_000 if torture else 8_000
"""Characters: enough for quadratic work to be far more than linear work."""


def test_no_text_of_a_model_takes_more_than_linear_time_to_read() -> None:
    program = [sys.executable, "-W", "ignore", "-m", "tests.kit.hostile", str(SIZE)]
    told = subprocess.run(program, capture_output=True, text=True, check=True)
    assert told.stdout == ""
