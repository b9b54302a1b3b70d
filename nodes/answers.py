"""What drafts and refinements share: how the question is put, and how a candidate comes of a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from anytime_graph import scoring
from anytime_graph.metering import Reply, describe
from anytime_graph.prompts import Protocol
from anytime_graph.state import Candidate, State, Task, question_of


@dataclass(frozen=True)
class Asked:
    """How answers are asked for and found."""

    protocol: Protocol
    extract: scoring.Extractor

    @staticmethod
    def conversation(state: State) -> Sequence[BaseMessage]:
        return question_of(state["messages"])[0]

    @staticmethod
    def question(state: State) -> str:
        return question_of(state["messages"])[1].text


def asked(answer: str | scoring.Extractor | type[BaseModel]) -> Asked:
    """Read the `answer=` argument. Raises ValueError if it is none of the three."""
    if answer == "tags":
        return Asked(Protocol("tags"), scoring.tagged)
    if answer == "whole":
        return Asked(Protocol("whole"), scoring.whole)
    if isinstance(answer, type) and issubclass(answer, BaseModel):
        schema: type[BaseModel] = answer

        def extract(text: str) -> str | None:
            found = scoring.parsed(schema, text)
            return None if found is None else found.model_dump_json()

        return Asked(Protocol("json", schema), extract)
    if callable(answer) and not isinstance(answer, type):
        return Asked(Protocol("whole"), answer)
    raise ValueError(
        f"answer={answer!r}: 'tags', 'whole', a function from reply to answer, or a pydantic model"
    )


def candidate(
    task: Task, reply: Reply, asked: Asked, node: str, parents: list[int]
) -> Candidate | None:
    """The answer in a reply, be it cut; the whole reply where it holds no marked answer."""
    text = reply.text.strip()
    if not text:
        return None
    try:
        found = asked.extract(text)
    except Exception as error:  # the user's function: it costs this extraction, not the run
        reply.errors.append(f"extractor: {describe(error)}")
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
        satisfied=False,
        parents=parents,
        spent=task["spent"],
        votes=0,
        lost=False,
        message_id=reply.message_id,
    )
