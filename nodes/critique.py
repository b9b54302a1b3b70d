"""Judge candidates: two against each other (asked once in each order), or one by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering import Reply
from anytime_graph.nodes.answers import Asked
from anytime_graph.state import State, Task

_VERDICT = re.compile(r"[\W_]*verdict\s*:[\W_]*(a|b|tie|good|improve)[\W_]*", re.IGNORECASE)


class Judgement(NamedTuple):
    """preferred: the id of the better candidate (of the reviewed one, if nothing is wrong with
    it); None for a tie or a reply without a clear verdict."""

    preferred: int | None
    why: str


def prompt(
    state: State, asked: Asked, move: dict[str, Any], detail: float, swapped: bool
) -> Sequence[AnyMessage]:
    answers = {c["id"]: c["answer"] for c in state["candidates"]}
    question = asked.question(state)
    if move["second"] is None:
        return prompts.review(question, answers[move["first"]], detail)
    shown = [answers[move["first"]], answers[move["second"]]]
    if swapped:
        shown.reverse()
    return prompts.compare(question, shown[0], shown[1], detail)


def absorb(task: Task, reply: Reply) -> Judgement | None:
    move, (why, verdict) = task["move"], read(reply.text)
    if not reply.text.strip():
        return None
    if move["second"] is None:
        return Judgement(move["first"] if verdict == "good" else None, why)
    sides = [move["first"], move["second"]]
    if task["swapped"]:
        sides.reverse()
    return Judgement(dict(zip("ab", sides, strict=True)).get(verdict or ""), why)


def read(text: str) -> tuple[str, str | None]:
    """Split a judgement into its reason and its verdict. Only a last line that is a verdict and
    nothing else counts."""
    lines = text.strip().splitlines() or [""]
    match = _VERDICT.fullmatch(lines[-1].strip())
    reason = lines[:-1] if match else lines
    return prompts.clip(" ".join(" ".join(reason).split()), 300), match and match[1].lower()
