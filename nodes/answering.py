"""What drafts and refinements share: how a candidate is shown, and how one is found in a reply."""

from __future__ import annotations

from anytime_graph import scoring
from anytime_graph.budget import Spend
from anytime_graph.interrupt import contained
from anytime_graph.metering.request import Reply
from anytime_graph.models.providers import describe
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.run.calls import PlannedCall
from anytime_graph.run.pairs import Candidate


def shown(candidate: Candidate, detail: float) -> str:
    """A candidate as other prompts show it: with its reasoning where there is room for that."""
    return candidate["text"] if detail >= 0.5 else candidate["answer"]


def candidate(
    call: PlannedCall, reply: Reply, answers: AnswerFormat, spent: Spend
) -> Candidate | None:
    """The answer in a reply, cut or whole; the whole reply where it holds no marked answer."""
    if (read := answers.read(call["ordinal"], reply)) is None:
        return None
    reply, text = read, read.text.strip()
    if not text:
        return None
    try:
        with contained():
            found = answers.extract(text)
        if not (found is None or isinstance(found, str)):
            raise TypeError("an extractor returns a string or None")
    except Exception as error:  # the user's function: it costs this extraction, not the run
        reply.receipt["errors"].append(f"extractor on reply {call['ordinal']}: {describe(error)}")
        found = None
    marked = bool(found) and answers.extract is not scoring.whole_reply
    by_itself = reply.whole and answers.protocol.schema is None
    node, parents, with_pairs = _origin(call)
    return Candidate(
        id=call["ordinal"],
        node=node,
        answer=found if found else text,
        text=text,
        complete=marked or by_itself,
        score=None,
        feedback=None,
        right=None,
        satisfied=False,
        parents=parents,
        spent=spent,
        votes=0,
        lost=False,
        message_id=reply.message.id,
        taught=with_pairs,
    )


def _origin(call: PlannedCall) -> tuple[str, list[int], bool]:
    """The node an answer comes from, the candidates it was made from, and whether its prompt showed
    preference pairs."""
    move = call["move"]
    if move["kind"] == "refine":
        return "refine", [move["of"]], move["with_pairs"]
    assert move["kind"] == "draft", "only drafts and refinements are answers"
    if move["conclude"] is not None:
        return "conclude", [move["conclude"]], move["with_pairs"]
    return "draft", [], move["with_pairs"]
