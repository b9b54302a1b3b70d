"""The clock by which spans of time are measured: it only goes forward."""

from __future__ import annotations

import time

_BEGAN = time.time() - time.monotonic()


def now() -> float:
    """Unix time, as this process counts on from its start: nobody can set it. On Linux and macOS it
    stands still while the machine sleeps."""
    return _BEGAN + time.monotonic()
