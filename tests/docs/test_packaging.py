"""What is installed is what is in the repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import anytime_graph
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


def test_the_version_is_told_alike_everywhere() -> None:
    cited = (ROOT / "CITATION.cff").read_text()
    assert anytime_graph.__version__ == version("anytime-graph")
    assert f"\nversion: {anytime_graph.__version__}\n" in cited


SDIST = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""


def test_the_source_distribution_has_all_files(tmp_path: Path) -> None:
    """So its tests run. Only what git and editors keep for themselves is left out."""
    ask = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if ask.returncode:
        pytest.skip("not a checkout of git")
    copy = tmp_path / "copy"
    for name in ask.stdout.splitlines():
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(ROOT / name)
    built = subprocess.run(
        [sys.executable, "-c", SDIST, str(tmp_path)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    )
    with tarfile.open(tmp_path / built.stdout.splitlines()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = {n for n in ask.stdout.splitlines() if (ROOT / n).exists()} - {".gitignore"}
    assert listed <= names


def test_what_the_index_shows_is_complete() -> None:
    projectdata = pytest.importorskip("pyroma.projectdata")
    ratings = pytest.importorskip("pyroma.ratings")
    assert ratings.rate(projectdata.get_data(str(ROOT))) == (10, [])
