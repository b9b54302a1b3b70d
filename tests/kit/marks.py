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
    """Every so-manieth, from the first-th on; all under TORTURE. A test with parameters that begins at
    its place among them meets each of the things with each of the parameters' values."""
    return things if torture else things[first % step :: step]


long = pytest.mark.sampled
"""Marks a test that is run by `make torture` alone."""

both = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
