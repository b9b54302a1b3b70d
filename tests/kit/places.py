"""Where the repository lies, and what the tests keep in it."""

from __future__ import annotations

from pathlib import Path

ROOT = next(above for above in Path(__file__).parents if (above / "pyproject.toml").exists())
DATA = ROOT / "tests" / "data"
