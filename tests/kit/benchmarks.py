"""Benchmarks by command: what is measured, what comes of it, and kills."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import Result

from anytime_graph.benchmark.cells import lines
from tests.kit.commands import environment
from tests.kit.forks import prepared
from tests.kit.lives import command
from tests.kit.server import Call, Reply, Server
from tests.kit.waiting import PATIENCE

OWN = ["--task", "jsonl:q.jsonl", "--task-option", "check=check.py:check"]
MODEL = ["--model", "openai:scripted"]
WORDS = [
    a + b for a in "bdfghjklmn" for b in ("a", "e", "i", "o", "u", "an", "en", "in", "on", "un")
]
"""A hundred, each a token of the endpoint's."""
SIZE = ["--budgets", "300,600", "--samples", "2", "--train", "1"]
KINDS = {
    "run": ["--strategy", "single,pdp,pdp+memory", *SIZE],
    "paper": [
        "--protocol",
        "paper",
        "--strategy",
        "base,pdp",
        *SIZE,
        "--trajectories",
        "2",
        "--room",
        "64",
    ],
}

Bench = Callable[..., Result]


class Undisturbed(NamedTuple):
    """A run of the command: where it lies, the tokens served for it, the requests made."""

    folder: Path
    served: int
    asked: int


def records(folder: str | Path) -> list[dict[str, Any]]:
    """Without what no two runs have in common: their order, and seconds."""
    rows: list[Any] = sorted(lines(Path(folder, "records.jsonl")), key=lambda row: row["cell"])
    for row in rows:
        del row["spent"]["seconds"]
    return rows


def tables(folder: str | Path) -> str:
    """The report without the command, and without what was bought in all."""
    report = Path(folder, "report.md").read_text()
    return report[report.index("\n## ") : report.index("## How it was made")]


def varied(request: dict[str, Any], i: int) -> Reply:
    """The same for the same request; of many lengths and worths."""
    dice = random.Random(json.dumps([request["seed"], request["messages"]], sort_keys=True))
    words = " ".join(dice.choices(WORDS, k=dice.randint(3, 30)))
    return Reply(f"{words} <answer>{dice.randint(0, 8) / 10}</answer>", pace=0.0005, piece=8)


def killed(server: Server, words: list[str], after: int, delay: float, **more: str) -> int:
    """Run the command in a process that is killed `delay` seconds after so many requests; its exit
    code."""
    variables = {k: v for k, v in environment(server).items() if k.startswith("OPENAI")} | more
    process = prepared(command, ["bench", *words], os.getcwd(), variables, daemon=False)
    asked = itertools.count(1)
    timer = threading.Timer(delay, process.kill)

    def watch(event: str, call: Call) -> None:
        if event == "asked" and next(asked) == after:
            timer.start()

    server.watch = watch
    process.start()
    process.join(PATIENCE)
    timer.cancel()
    server.watch = lambda event, call: None
    assert process.exitcode is not None
    return process.exitcode
