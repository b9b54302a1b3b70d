"""How the answer in a reply becomes a candidate, and how prompts show a candidate."""

from __future__ import annotations

from anytime_graph import scoring
from anytime_graph.budget import Spend
from anytime_graph.interrupt import contained
from anytime_graph.metering.request import Reply
from anytime_graph.models.providers import describe
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.run.calls import PlannedCall, concluded, made_from
from anytime_graph.run.pairs import Candidate


def shown(candidate: Candidate, detail: float) -> str:
    """A candidate as other prompts show it: with its reasoning if detail is 0.5 or more."""
    return candidate["text"] if detail >= 0.5 else candidate["answer"]


def candidate(
    call: PlannedCall, reply: Reply, answers: AnswerFormat, spent: Spend
) -> Candidate | None:
    """The answer in a reply, cut or whole. Without a marked answer it is the whole text. None if the
    reply, or the answer in it and all around, is empty, or `answers.read` says that it is no answer."""
    if (read := answers.read(call["ordinal"], reply)) is None:
        return None
    reply, text = read, read.text.strip()
    if not text:
        return None
    try:
        with contained():
            answer = answers.extract(text)
        if not (answer is None or isinstance(answer, str)):
            raise TypeError("an extractor returns a string or None")
    except Exception as error:  # a failure of the user's function does not end the run
        reply.receipt["errors"].append(f"extractor on reply {call['ordinal']}: {describe(error)}")
        answer = None
    if answer is None and reply.whole and answers.extract is scoring.tagged:
        answer = scoring.unclosed(text)
    if answer is None and (schema := answers.protocol.schema) is not None:
        why = f"reply {call['ordinal']}: no JSON in it fits {schema.__name__}"
        reply.receipt["errors"].append(why)
    marked = bool(answer) and answers.extract is not scoring.whole_reply
    if answer is None and answers.extract is scoring.tagged:
        answer = scoring.untagged(text)
        if answer is None:
            reply.receipt["errors"].append(f"reply {call['ordinal']}: the answer in it is empty")
            reply.receipt["failed"] = True
            return None
    by_itself = reply.whole and answers.protocol.schema is None
    move = call["move"]
    return Candidate(
        id=call["ordinal"],
        node=move["kind"] if concluded(move) is None else "conclude",
        answer=answer or text,
        text=text,
        complete=marked or by_itself,
        score=None,
        feedback=None,
        right=None,
        satisfied=False,
        parents=made_from(move),
        spent=spent,
        votes=0,
        lost=False,
        message_id=reply.message.id,
        taught=bool(move.get("with_pairs")),
    )
