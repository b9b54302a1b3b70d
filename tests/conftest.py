from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import fresh, programs, running
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
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server; in CI there must be one."""
    if programs() is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("PostgreSQL's server programs are not installed: `make postgres` tells more")
    with running() as url:
        yield url


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """The URL of a new, empty database."""
    with fresh(postgres) as url:
        yield url
