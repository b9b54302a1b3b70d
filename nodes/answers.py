"""What drafts and refinements share: how the question is put, and how a candidate comes of a reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from anytime_graph import scoring
from anytime_graph.metering import Reply, describe
from anytime_graph.pairs import Candidate
from anytime_graph.prompts import Case, Lessons, Protocol
from anytime_graph.state import State, Task, question_of


@dataclass(frozen=True)
class Asked:
    """How answers are asked for and found. read: makes of the reply at a place the text to look in,
    where there is more to it than its text; None if it is no answer."""

    protocol: Protocol
    extract: scoring.Extractor
    read: Callable[[int, Reply], Reply | None] = lambda ordinal, reply: reply

    @staticmethod
    def conversation(state: State) -> Sequence[BaseMessage]:
        return [m for m in state["messages"] if m.id != state["answer_id"]]

    @staticmethod
    def case(state: State) -> Case:
        question = question_of(state["messages"])
        return Case(question.text, [m for m in Asked.conversation(state) if m is not question])


def asked(answer: str | scoring.Extractor | type[BaseModel] | Asked) -> Asked:
    """Read the `answer=` argument. Raises ValueError if it is none of the three."""
    if isinstance(answer, Asked):
        return answer
    if answer == "tags":
        return Asked(Protocol("tags"), scoring.tagged)
    if answer == "whole":
        return Asked(Protocol("whole"), scoring.whole)
    if isinstance(answer, type) and issubclass(answer, BaseModel):
        return Asked(Protocol("json", answer), partial(scoring.parsed, answer))
    if callable(answer) and not isinstance(answer, type):
        return Asked(Protocol("whole"), answer)
    raise ValueError(
        f"answer={answer!r}: 'tags', 'whole', a function from reply to answer, or a pydantic model"
    )


def lessons(state: State, move: Mapping[str, Any], allowance: int | None) -> Lessons:
    """What the move wants shown of the pairs, of this question and of earlier ones."""
    return Lessons(
        examples=state["examples"],
        pairs=state["pairs"],
        principles=state["principles"],
        memory=move["memory"],
        shown=move["pairs"],
        allowance=allowance,
    )


def shown(candidate: Candidate, detail: float) -> str:
    """A candidate as other prompts show it: with its reasoning where there is room for that."""
    return candidate["text"] if detail >= 0.5 else candidate["answer"]


def candidate(
    task: Task, reply: Reply, asked: Asked, node: str, parents: list[int]
) -> Candidate | None:
    """The answer in a reply, be it cut; the whole reply where it holds no marked answer."""
    if (read := asked.read(task["ordinal"], reply)) is None:
        return None
    reply, text = read, read.text.strip()
    if not text:
        return None
    try:
        found = asked.extract(text)
        if not (found is None or isinstance(found, str)):
            raise TypeError("an extractor returns a string or None")
    except Exception as error:  # the user's function: it costs this extraction, not the run
        reply.errors.append(f"extractor on reply {task['ordinal']}: {describe(error)}")
        found = None
    marked = bool(found) and asked.extract is not scoring.whole
    by_itself = reply.ended == "stop" and asked.protocol.schema is None
    return Candidate(
        id=task["ordinal"],
        node=node,
        answer=found if found else text,
        text=text,
        complete=marked or by_itself,
        score=None,
        feedback=None,
        right=None,
        satisfied=False,
        parents=parents,
        spent=task["spent"],
        votes=0,
        lost=False,
        message_id=reply.message_id,
        taught=task["move"].get("taught", False),
    )
