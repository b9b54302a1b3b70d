from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.server import Server, serving

# `make torture` sets TORTURE to the number of examples for the long, freshly seeded version.
torture = int(os.environ.get("TORTURE", "0"))
settings.register_profile(
    "anytime",
    derandomize=not torture,
    max_examples=torture or 100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("anytime")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running
