"""The site of the documentation is built without a warning, and a reader's browser asks for no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import pytest

from anytime_graph import Spend
from anytime_graph.run.pairs import Candidate, Pair
from anytime_graph.run.state import Output
from tests.kit.places import ROOT

NEEDED = ("mkdocs", "material", "mkdocstrings")
pytestmark = pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason=f"without {NEEDED}")

FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link[^>]*rel=["']?(?:stylesheet|preconnect|icon)[^>]*href=["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//"""
)


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    """Strict: a link that leads nowhere, or a page that no other names, is an error."""
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    pages = [p for p in tmp_path.rglob("*") if p.suffix in (".html", ".css", ".svg")]
    assert tmp_path / "index.html" in pages
    assert not [p.name for p in pages if FETCHED.search(p.read_text(encoding="utf-8"))]
    reference = re.sub(r"<[^>]+>", "", (tmp_path / "reference.html").read_text(encoding="utf-8"))
    assert "tokens (int | None): input + output tokens" in reference
    fields = {*get_type_hints(Output), *Candidate.__annotations__, *Pair.__annotations__}
    assert not [f for f in (*fields, *Spend.__annotations__) if f not in reference]
