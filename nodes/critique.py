"""Judge candidates: two against each other or several at once (asked in two orders), or one by itself."""

from __future__ import annotations

import json
import re
from string import ascii_lowercase
from typing import Any, NamedTuple

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering.request import Reply
from anytime_graph.nodes.answering import shown
from anytime_graph.planning.answers import case
from anytime_graph.run.calls import STRUCTURED, CritiqueMove, PlannedCall, shown_order
from anytime_graph.run.state import State
from anytime_graph.text import clip

_SAYS = r"[\W_]*verdict[*_\s]*[:\uff1a][\W_]*(?:answer\b[\W_]*)?"  # also with a colon of full width
_CHOICE = re.compile(rf"{_SAYS}(tie|[a-z])[\W_]*", re.IGNORECASE)
_VERDICT = re.compile(rf"{_SAYS}(a|b|tie|good|improve)[\W_]*", re.IGNORECASE)

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
"""The JSON schema of a comparison, for providers that can enforce one."""

_VERDICTS = {"A": "a", "B": "b", "tie": "tie"}


class Judgement(NamedTuple):
    """What a judge's reply says.

    preferred: the id of the better candidate, or of the reviewed one if nothing is wrong with it;
    None for a tie or without a clear verdict. why: the judge's reason, at most 300 characters.
    """

    preferred: int | None
    why: str


def critique_prompt(
    state: State, move: CritiqueMove, detail: float, rubric: str | None, structured: bool
) -> list[AnyMessage]:
    answers = {c["id"]: shown(c, detail) for c in state["candidates"]}
    if move["second"] is None:
        return prompts.review(case(state), answers[move["first"]], detail)
    texts = [answers[i] for i in shown_order(move)]
    if "among" in move:
        return prompts.choose(case(state), texts, detail, rubric)
    first, second = texts
    return prompts.compare(case(state), first, second, detail, rubric, structured)


def judgement_of(call: PlannedCall, move: CritiqueMove, reply: Reply) -> Judgement | None:
    """What the judge's reply says; None if it is empty. A reply that was cut may end in a quotation,
    so it has no verdict."""
    if not reply.text.strip():
        return None
    named = dict(zip(ascii_lowercase, shown_order(move), strict=False))
    if "among" in move:
        return Judgement(named.get(chosen(reply.text, reply.whole) or ""), "")
    why, verdict = split_verdict(reply.text, structured=call["role"] == STRUCTURED)
    verdict = verdict if reply.whole else None
    if move["second"] is None:
        return Judgement(move["first"] if verdict == "good" else None, why)
    return Judgement(named.get(verdict or ""), why)


def chosen(text: str, whole: bool) -> str | None:
    """The letter, or "tie", on the first line; or on the last line of a reply that is whole. A first line
    that was cut is none: it may go on."""
    lines = text.strip().splitlines()
    ended = whole or len(lines) > 1 or text.endswith("\n")
    for line in (*lines[: int(ended)], *(lines[-1:] if whole else ())):
        if match := _CHOICE.fullmatch(line.strip()):
            return match[1].lower()
    return None


def split_verdict(text: str, structured: bool = False) -> tuple[str, str | None]:
    """Split a judgement into its reason and its verdict ("a", "b", "tie", "good", "improve" or None).

    structured: only a reply that is JSON for VERDICT as a whole has a verdict. Otherwise the last
    line must be a verdict and nothing else.
    """
    if structured:
        try:
            judgement = json.loads(text)
            verdict = _VERDICTS[judgement["verdict"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return "", None
        return _short_reason(str(judgement.get("reason", ""))), verdict
    lines = text.strip().splitlines() or [""]
    match = _VERDICT.fullmatch(lines[-1].strip())
    return _short_reason(" ".join(lines[:-1] if match else lines)), match and match[1].lower()


def _short_reason(reason: str) -> str:
    return clip(" ".join(reason.split()), 300)
