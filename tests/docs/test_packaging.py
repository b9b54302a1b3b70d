"""What is installed is what is in the repository."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from tests.kit.places import ROOT


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


ALONE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [".", *(path for path in sys.path if path not in ("", "."))]
import {module}
import anytime_graph.checkpoints, anytime_graph.nodes.hub
print(anytime_graph.__file__, anytime_graph.nodes.hub.__file__)
"""


@pytest.mark.parametrize("module", ["anytime_graph", "examples.fastapi_app"])
def test_a_checkout_runs_without_an_install_of_the_project(module: str) -> None:
    """With nodes/ and checkpoints/ found beside the package, wherever else there is one."""
    code = ALONE.format(module=module)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [
        str(ROOT / "anytime_graph" / "__init__.py"),
        str(ROOT / "nodes" / "hub.py"),
    ]
