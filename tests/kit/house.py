"""What the package's own source says of its structure: rooms, imports, calls, names.

`python -m tests.kit.house` writes the table of modules into docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from tests.kit.places import ROOT

PAGE = ROOT / "docs" / "architecture.md"
ROOMS = (
    ("budget", "text", "interrupt", "local", "metrics", "testing"),
    ("models", "scoring"),
    ("run", "constraints"),
    ("prompts", "tasks"),
    ("metering",),
    ("planning", "checkpoints"),
    ("nodes", "middleware"),
    ("graph", "pages"),
    ("chat", "batch", "benchmark", "notebook"),
    ("audit", "warm_up"),
    ("cli",),
)
"""Floors, the lowest first. A room imports from floors below its own only."""
_BEGIN, _END = "<!-- modules: python -m tests.kit.house -->", "<!-- end of modules -->"


@cache
def modules() -> dict[str, ast.Module]:
    """The package's modules by dotted name below it, with their syntax trees."""
    found = {}
    for folder in ("anytime_graph", "nodes", "checkpoints"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = list(file.relative_to(ROOT).with_suffix("").parts)
            parts = parts[1:] if parts[0] == "anytime_graph" else parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name != "__main__":
                found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def room(module: str) -> str:
    """A folder is one room, a file at the top is one."""
    return module.partition(".")[0]


def imports() -> Iterator[tuple[str, str]]:
    """Which module imports which, at any depth of its code. A package's own face does not count."""
    known = modules()
    for name, tree in known.items():
        if not name:
            continue
        for node in ast.walk(tree):
            for target in _targets(node):
                below = target.removeprefix("anytime_graph.")
                if target.startswith("anytime_graph.") and below in known and below != name:
                    yield name, below


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        found = [name for name in inner if name.removeprefix("anytime_graph.") in modules()]
        return found or [node.module]
    return []


def calls(*methods: str) -> set[tuple[str, str]]:
    """Calls of these methods: module, and what the method is called on."""
    found = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in methods
            ):
                found.add((name, ast.unparse(node.func)))
    return found


def definitions() -> dict[str, set[str]]:
    """Functions and classes at the top of modules, by name: where they stand."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[node.name].add(name)
    return found


def table() -> str:
    """Every module with the first sentence of its docstring, room by room, the lowest floor last."""
    lines = ["| module | what it is for |", "|---|---|"]
    for floor in reversed(ROOMS):
        for part in floor:
            for name, tree in modules().items():
                if name and room(name) == part and (first := _first(tree)):
                    lines.append(f"| `{name}` | {first} |")
    return "\n".join(lines)


def _first(tree: ast.Module) -> str:
    paragraph = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    sentence = re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()), maxsplit=1)[0]
    return sentence.replace("|", "\\|")


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
