"""The clock by which spans of time are measured: it only goes forward."""

from __future__ import annotations

import time

_BEGAN = time.time() - time.monotonic()


def now() -> float:
    """Unix time, counted on from the start of this process, so that setting the system's clock does not
    change it. On Linux and macOS it stands still while the machine sleeps."""
    return _BEGAN + time.monotonic()
