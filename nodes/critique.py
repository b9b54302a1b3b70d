"""Judge candidates: two against each other (asked once in each order), or one by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering import Reply
from anytime_graph.nodes.answers import Asked, shown
from anytime_graph.state import STRUCTURED, State, Task
from anytime_graph.text import clip

_VERDICT = re.compile(r"[\W_]*verdict\s*:[\W_]*(a|b|tie|good|improve)[\W_]*", re.IGNORECASE)


VERDICT: dict[str, Any] = {
    "title": "verdict",
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "verdict": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}
"""The JSON schema of a comparison, for providers that can hold a reply to one."""


_VERDICTS = {"A": "a", "B": "b", "tie": "tie"}


class Judgement(NamedTuple):
    """preferred: the id of the better candidate (of the reviewed one, if nothing is wrong with
    it); None for a tie or a reply without a clear verdict."""

    preferred: int | None
    why: str


def prompt(
    state: State,
    asked: Asked,
    move: dict[str, Any],
    detail: float,
    swapped: bool,
    rubric: str | None,
    structured: bool,
) -> Sequence[AnyMessage]:
    answers = {c["id"]: shown(c, detail) for c in state["candidates"]}
    case = asked.case(state)
    if move["second"] is None:
        return prompts.review(case, answers[move["first"]], detail)
    first, second = answers[move["first"]], answers[move["second"]]
    if swapped:
        first, second = second, first
    return prompts.compare(case, first, second, detail, rubric, structured)


def absorb(task: Task, reply: Reply) -> Judgement | None:
    """A reply that was cut may end in a quotation: it is no verdict."""
    move, whole = task["move"], reply.ended == "stop"
    why, verdict = read(reply.text, structured=task["gate"] == STRUCTURED)
    verdict = verdict if whole else None
    if not reply.text.strip():
        return None
    if move["second"] is None:
        return Judgement(move["first"] if verdict == "good" else None, why)
    sides = [move["first"], move["second"]]
    if task["swapped"]:
        sides.reverse()
    return Judgement(dict(zip("ab", sides, strict=True)).get(verdict or ""), why)


def read(text: str, structured: bool = False) -> tuple[str, str | None]:
    """Split a judgement into its reason and its verdict. structured: the whole reply is JSON for
    VERDICT, or it is none. Else only a last line that is a verdict and nothing else counts."""
    if structured:
        try:
            told = json.loads(text)
            verdict = _VERDICTS[told["verdict"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return "", None
        return _short(str(told.get("reason", ""))), verdict
    lines = text.strip().splitlines() or [""]
    match = _VERDICT.fullmatch(lines[-1].strip())
    return _short(" ".join(lines[:-1] if match else lines)), match and match[1].lower()


def _short(reason: str) -> str:
    return clip(" ".join(reason.split()), 300)
