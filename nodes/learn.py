"""Have the judge say why a pair's chosen answer is better, or which principles all pairs teach."""

from __future__ import annotations

import re

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.metering.request import Reply
from anytime_graph.planning.answers import case
from anytime_graph.run.calls import LearnMove
from anytime_graph.run.state import State
from anytime_graph.text import clip

_RULE = re.compile(r"\s*(?:[-*\u2022]|\d+[.)])\s+(.+)")


def learn_prompt(state: State, move: LearnMove, detail: float) -> list[AnyMessage]:
    if move["chosen"] is None:
        return prompts.principles(case(state), state["pairs"], detail)
    ids = (move["chosen"], move["rejected"])
    pair = next(p for p in state["pairs"] if (p["chosen_id"], p["rejected_id"]) == ids)
    return prompts.explain(case(state), pair["better"], pair["worse"], detail)


def lesson_of(move: LearnMove, reply: Reply) -> str | list[str]:
    """One sentence on why a pair's chosen answer is better, or up to five principles. Empty if the
    reply has none."""
    if move["chosen"] is not None:
        sentence = re.split(r"(?<=[.!?])\s", " ".join(reply.text.split()), maxsplit=1)[0]
        return clip(sentence, 300)
    rules = (match[1] for line in reply.text.splitlines() if (match := _RULE.fullmatch(line)))
    return [clip(rule.strip(), 200) for rule in rules][:5]
