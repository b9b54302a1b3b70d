"""What is installed is what is in the repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_installed() -> None:
    """The types are checked in the repository, so that one left out would go unnoticed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    own = {name: ROOT / folder for name, folder in declared["package-dir"].items()}
    roots = {"anytime_graph": ROOT / "anytime_graph", **own}
    found = {
        ".".join((name, *file.parent.relative_to(root).parts))
        for name, root in roots.items()
        for file in root.rglob("*.py")
    }
    assert found == set(declared["packages"])
