"""How often tests run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest

torture = int(os.environ.get("TORTURE", "0"))
"""The number of examples of the long, freshly seeded version: `make torture` sets it."""

T = TypeVar("T")


def some(things: Sequence[T], step: int, first: int = 0) -> Sequence[T]:
    """One in `step` of them, from number `first` on; all under TORTURE. Where each combination of a
    test's parameters begins at another number, each thing is met with each value of each parameter."""
    return things if torture else things[first % min(step, len(things)) :: step]


long = pytest.mark.sampled
"""Marks a test that is run by `make torture` alone."""

both = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
"""Beside other parameters, each of their combinations is run sync and async in turn; both under TORTURE."""
