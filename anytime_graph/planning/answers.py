"""How an answer is asked for and found in a reply, and which preference pairs a prompt shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from anytime_graph import scoring
from anytime_graph.metering.request import Reply
from anytime_graph.prompts import Case, Lessons, Protocol
from anytime_graph.run.calls import PlannedMove, concluded
from anytime_graph.run.state import State, question_of


@dataclass(frozen=True)
class AnswerFormat:
    """How answers are asked for and found. read: from an ordinal and its reply to the reply in which to
    look for the answer; None if that reply is no answer."""

    protocol: Protocol
    extract: scoring.Extractor
    read: Callable[[int, Reply], Reply | None] = lambda ordinal, reply: reply


def answer_format(answer: str | scoring.Extractor | type[BaseModel] | AnswerFormat) -> AnswerFormat:
    """The format that the `answer=` argument names. Raises ValueError for anything else."""
    if isinstance(answer, AnswerFormat):
        return answer
    if answer == "tags":
        return AnswerFormat(Protocol("tags"), scoring.tagged)
    if answer == "whole":
        return AnswerFormat(Protocol("whole"), scoring.whole_reply)
    if isinstance(answer, type) and issubclass(answer, BaseModel):
        return AnswerFormat(Protocol("json", answer), partial(scoring.parsed, answer))
    if callable(answer) and not isinstance(answer, type):
        return AnswerFormat(Protocol("whole"), answer)
    raise ValueError(
        f"answer={answer!r}: 'tags', 'whole', a function from reply to answer, or a pydantic model"
    )


def conversation(state: State) -> Sequence[BaseMessage]:
    """The messages without an earlier answer to the question."""
    return [m for m in state["messages"] if m.id != state["answer_id"]]


def case(state: State) -> Case:
    """The question and the rest of the conversation, as a judge is shown them."""
    question = question_of(state["messages"])
    return Case(question.text, [m for m in conversation(state) if m is not question])


def pair_context(state: State, move: PlannedMove, allowance: int | None) -> Lessons:
    """The pairs that a draft or a refinement wants to show, of this question and of earlier ones. Other
    moves show none, and neither does a draft that forces an answer out of cut reasoning."""
    if not (move["kind"] == "draft" or move["kind"] == "refine") or concluded(move) is not None:
        return Lessons()
    return Lessons(
        examples=state["examples"],
        pairs=state["pairs"],
        principles=state["principles"],
        memory=move["memory"],
        shown=move["pairs"],
        allowance=allowance,
    )
