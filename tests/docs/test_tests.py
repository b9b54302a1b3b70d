"""The tests lie where documents say, and no file of tests needs another."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit.places import ROOT

PAGES = [
    ROOT / "Makefile",
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FILES = sorted((ROOT / "tests").rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_named_of_the_tests_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"\btests/[\w./-]*\w", text))
    modules = set(re.findall(r"\bpython3? -m (tests[\w.]*\w)", text))
    functions = set(re.findall(r"(?<![./\w])test_\w+\b(?!\.)", text))
    assert not {path for path in paths if not (ROOT / path).exists()}
    assert not {module for module in modules if find_spec(module) is None}
    source = "".join(file.read_text(encoding="utf-8") for file in FILES)
    assert not {function for function in functions if not re.search(rf"\b{function}\b", source)}


def test_no_file_of_tests_is_imported() -> None:
    """What several need is in tests/kit, or a fixture in a conftest.py."""
    imports = re.compile(r"^\s*(?:from|import) tests\b.*\b(?:test_\w+|conftest)\b", re.MULTILINE)
    assert not [name(f) for f in FILES if imports.search(f.read_text(encoding="utf-8"))]
