"""How often tests run."""

from __future__ import annotations

import os

import pytest

torture = int(os.environ.get("TORTURE", "0"))
"""The number of examples of the long, freshly seeded version: `make torture` sets it."""

long = pytest.mark.sampled
"""Marks a test that is run by `make torture` alone."""

both = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
