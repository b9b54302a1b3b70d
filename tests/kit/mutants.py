"""Which small faults in a room its own tests let pass: a sample of mutants, made by cosmic-ray.

`python -m tests.kit.mutants ROOM SAMPLE SEED [MODULE ...]` works on a copy of the tree in
build/mutants. A mutant is one changed line. It is killed if a test of the room fails, or if the tests
do not end; one that survives lacks a test, or changes nothing that anybody could see.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.kit.places import ROOT

COPY = ROOT / "build" / "mutants"
ROOMS = {
    "metering": ("anytime_graph/metering", ["tests/metering"], "not fuzz and not nested"),
    "planning": (
        "anytime_graph/planning",
        ["tests/planning", "tests/nodes"],
        "not above_every and not ends_runs and not err and not embedded",
    ),
    "run": ("anytime_graph/run", ["tests/run"], "not as_often"),
    "checkpoints": ("checkpoints", ["tests/checkpoints"], "not crashes and not preferences"),
}
"""Where a room's modules are, its own tests, and which of them are quick enough."""
_OPTIONS = ("-n0", "-x", "-pno:cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning")
_ALIKE = ("BitOr", "_Is", "_IsNot", "Variable")
"""Operators whose mutants differ in annotations only, or not at all; or that need options."""
_IMPORTED = (
    "langchain_openai",
    "langgraph.graph",
    "langgraph.store.memory",
    "sqlite_utils",
    "rich",
)
"""What the tests of each mutant would else import again."""

Mutant = tuple[Path, str, int, int]
"""A file below the root, the operator, which of its places, and the line of that place."""


def mutants(files: Sequence[Path], sample: int, seed: int) -> list[Mutant]:
    """At most one mutant of a place, drawn from all places alike."""
    places = defaultdict[tuple[Path, object], list[Mutant]](list)
    for file in files:
        nodes = list(ast_nodes(get_ast_from_path(ROOT / file)))
        for name in operator_names():
            if any(part in name for part in _ALIKE):
                continue
            operator = get_operator(name)()
            found = (start for node in nodes for start, _ in operator.mutation_positions(node))
            for n, start in enumerate(found):
                places[file, start].append((file, name, n, start[0]))
    draw = random.Random(seed)
    chosen = draw.sample(sorted(places), min(sample, len(places)))
    return sorted(draw.choice(places[place]) for place in chosen)


def copied() -> None:
    """A fresh copy of the tree, in which the package lies as it is installed."""
    shutil.rmtree(COPY, ignore_errors=True)
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info")
    shutil.copytree(ROOT, COPY, ignore=left_out)
    for room in ("nodes", "checkpoints"):
        (COPY / "anytime_graph" / room).symlink_to(COPY / room)


def passes(tests: Sequence[str], seconds: float) -> bool:
    """Whether the copy's tests pass within so many seconds, in a process of their own."""
    if not (child := os.fork()):
        os.setsid()
        os.chdir(COPY)
        os.environ["PYTHONPATH"] = sys.path[0] = str(COPY)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        log = os.open(COPY / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(pytest.main([*_OPTIONS, *tests]))
    end = time.monotonic() + seconds
    ended, status = 0, 1
    while not ended and time.monotonic() < end:
        time.sleep(0.1)
        ended, status = os.waitpid(child, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return bool(ended) and status == 0


def main(room: str, sample: str, seed: str, *modules: str) -> None:
    folder, paths, quick = ROOMS[room]
    tests = [*paths, "-k", os.environ.get("TESTS", quick)]
    files = sorted(file.relative_to(ROOT) for file in (ROOT / folder).glob("*.py"))
    drawn = mutants([f for f in files if f.stem in modules or not modules], int(sample), int(seed))
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in _IMPORTED:
        import_module(name)
    copied()
    began = time.monotonic()
    if not passes(tests, 3600):
        sys.exit(f"{(COPY / 'log').read_text()}\nThe room's tests fail as they are")
    patience = 30 + 3 * (time.monotonic() - began)
    survivors = 0
    for file, name, n, line in drawn:
        source = (ROOT / file).read_text(encoding="utf-8")
        changed = mutate_code(source, get_operator(name)(), n)
        assert changed is not None
        (COPY / file).write_text(changed, encoding="utf-8")
        if passes(tests, patience):
            survivors += 1
            now = changed.splitlines()[line - 1].strip()
            print(f"{file}:{line}  {name.removeprefix('core/')}\n    {now}", flush=True)
        else:
            print(".", end="", file=sys.stderr, flush=True)
        shutil.copy2(ROOT / file, COPY / file)
    print(f"{room}: {len(drawn)} mutants, {len(drawn) - survivors} killed, {survivors} survived")


if __name__ == "__main__":
    main(*sys.argv[1:])
