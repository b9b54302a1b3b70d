"""Answers that say how good they are, and judges that are scripted."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from anytime_graph import Critique, Draft, Move, Stop, View
from tests.kit.server import Reply, Server

QUALITY = re.compile(r"quality (\d+)")
Says = Callable[[str, str, random.Random], str]


def comparing(request: dict[str, Any]) -> bool:
    return "Compare two answers" in request["messages"][0]["content"]


def sides(request: dict[str, Any]) -> list[str]:
    """The two answers between their fences, which are told by the first line."""
    text = request["messages"][-1]["content"]
    fence = text.split(" ", 1)[0]
    parts = re.split(rf"(?m)^{fence} (?:CONVERSATION|QUESTION|ANSWER A|ANSWER B|END)$\n?", text)
    assert len(parts) == (9 if "CONVERSATION" in text else 7), text
    assert not "".join(parts[::2]).strip(), "nothing stands outside of the fences"
    return [parts[-4], parts[-2]]


def two(view: View) -> list[Move]:
    """Two drafts, one comparison."""
    if not view.best:
        return [Draft(), Draft()]
    return [Stop()] if view.made.get("critique") else [Critique(0, 1)]


def quality(question: str, answer: str) -> float:
    return int(QUALITY.search(answer)[1]) / 100  # type: ignore[index]


def better(a: str, b: str) -> str:
    return "A" if quality("", a) > quality("", b) else "B"


def drafted(seed: int, question: str) -> str:
    draw = random.Random(f"{question} {seed}")
    return f"quality {draw.randrange(100)}" + " so" * draw.randrange(1, 30)


def scripted(server: Server, says: Says) -> None:
    """Drafts of random quality and length, and a judge that says `says(a, b, random)`."""

    def script(request: dict[str, Any], i: int) -> Reply:
        said = request["messages"][-1]["content"]
        if not comparing(request):
            return Reply(text=drafted(request["seed"], said))
        draw = random.Random(f"{said} {request['seed']}")
        return Reply(text=f"So.\nVerdict: {says(*sides(request), draw)}")

    server.script = script


def right(p: float) -> Says:
    def says(a: str, b: str, draw: random.Random) -> str:
        best = better(a, b)
        return best if draw.random() < p else "AB".replace(best, "")

    return says
