"""The prompts of moves that make an answer from several: a merge, and an evolution."""

from __future__ import annotations

from langchain_core.messages import AnyMessage

from anytime_graph import prompts
from anytime_graph.nodes.answering import shown
from anytime_graph.planning.answers import AnswerFormat, conversation
from anytime_graph.run.calls import CombineMove
from anytime_graph.run.state import State


def combined_prompt(
    state: State,
    answers: AnswerFormat,
    move: CombineMove,
    detail: float,
    max_output: int | None,
) -> list[AnyMessage]:
    by_id = {c["id"]: c for c in state["candidates"]}
    parents = [by_id[i] for i in move["of"]]
    before, protocol = conversation(state), answers.protocol
    if move["kind"] == "merge":
        texts = [shown(c, detail) for c in parents]
        return prompts.merge(before, protocol, texts, detail, max_output)
    found = [
        prompts.Found(shown(c, detail), c["score"], c["feedback"], c["right"]) for c in parents
    ]
    return prompts.evolve(before, protocol, found, detail, max_output)
