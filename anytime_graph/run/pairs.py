"""Candidates, and the preference pairs made from them: step 2 of Preference Data Prompting."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, takewhile
from typing import Literal

from typing_extensions import TypedDict

from anytime_graph.budget import Spend
from anytime_graph.scoring import normal

Shown = Literal["both", "chosen", "principles"] | None
"""What a prompt shows of preference pairs: both sides with the reason (PDP), only the better side
(PDP(+)), or the principles learned from them (LEAP)."""

_EXCERPT = 300
"""Characters that are kept of each side of a pair."""
_WORDS = re.compile(r"\w+|[^\w\s]")
_ALIKE = 0.95
"""Two answers that share at least this part of their words are too alike to teach anything."""


class Candidate(TypedDict):
    """An answer.

    node: the kind of its move, or "conclude" for an answer forced out of cut reasoning. text: the whole
    reply that it was found in. complete: an answer was found in the reply, or the reply ended by itself.
    score: in [0, 1]; None if no scorer gave one. feedback: what a scorer or a review finds wrong. right:
    what a scorer finds right, and must stay. satisfied: a review found nothing wrong. parents: ids of
    the candidates that it was made from. spent: what the run had spent by then. votes: drafts that agree
    with it. lost: it was replaced by the answer that was forced out of it. taught: its prompt showed
    preference pairs or principles.
    """

    id: int
    node: str
    answer: str
    text: str
    complete: bool
    score: float | None
    feedback: str | None
    right: str | None
    satisfied: bool
    parents: list[int]
    spent: Spend
    votes: int
    lost: bool
    message_id: str | None
    taught: bool


class Pair(TypedDict):
    """A preference: the answer `chosen` is better than the answer `rejected`. by: who decided. gap: how
    much better, in (0, 1]. better, worse: excerpts of the two replies from where they differ.

    why: the reason. why_by: its source: "scorer" (feedback), "judge" (one sentence), "score" (only the
    numbers, so far) or "nobody" (the judge gave no reason).
    """

    chosen: str
    rejected: str
    chosen_id: int
    rejected_id: int
    better: str
    worse: str
    why: str
    why_by: Literal["scorer", "judge", "score", "nobody"]
    by: Literal["scorer", "judge"]
    gap: float


class Example(TypedDict):
    """A preference from an earlier question, as a memory recalls it. better, worse: excerpts of two
    answers from where they differ. gap: how much better, in (0, 1]. principles: short rules that its
    run learned."""

    question: str
    better: str
    worse: str
    why: str
    by: Literal["scorer", "judge"]
    gap: float
    principles: list[str]


def scored_pairs(candidates: Sequence[Candidate], known: Sequence[Pair], most: int) -> list[Pair]:
    """The widest gaps in score, among new pairs and those known before. No answer is in two pairs, and
    two answers from one parent, or nearly the same, make no pair."""
    scores = {c["id"]: score for c in candidates if (score := c["score"]) is not None}
    paired = {(p["chosen_id"], p["rejected_id"]) for p in known}
    options: list[tuple[float, str, str, Pair | tuple[Candidate, Candidate]]] = [
        (p["gap"], p["chosen"], p["rejected"], p) for p in known
    ]
    for better, worse in permutations((c for c in candidates if c["id"] in scores), 2):
        ids, gap = (better["id"], worse["id"]), scores[better["id"]] - scores[worse["id"]]
        if gap > 0 and ids not in paired:
            options.append((gap, better["answer"], worse["answer"], (better, worse)))
    kept: list[Pair] = []
    shown: set[str] = set()
    for gap, chosen, rejected, option in sorted(options, key=lambda o: -o[0]):
        sides = {normal(chosen), normal(rejected)}
        if len(kept) == most or sides & shown:
            continue
        if isinstance(option, tuple):  # excerpts are made only for the pairs that are kept
            if not _differ(*option):
                continue
            option = _scored_pair(*option, gap)
        kept.append(option)
        shown |= sides
    return kept


def judged_pair(better: Candidate, worse: Candidate, why: str) -> Pair:
    """The pair that a comparison in both orders makes. why: "" if the judge gave no reason."""
    return _pair(
        better, worse, why or "preferred in both orders", "judge" if why else "nobody", 1.0
    )


def explained(pair: Pair, why: str) -> Pair:
    """The pair with the judge's reason for it; "" if it gave none."""
    return {**pair, "why": why or pair["why"], "why_by": "judge" if why else "nobody"}


def parting(one: str, other: str, length: int = _EXCERPT) -> tuple[str, str]:
    """Excerpts of two texts, without the sentences that both begin or end with; at most `length` characters
    each. Of "It bends. Sand is slow. So it is." and "It bends. Water is slow. So it is." they are
    "... Sand is slow." and "... Water is slow."."""
    first, second = _sentences(one), _sentences(other)
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    first, second = first[len(same) :], second[len(same) :]
    tail = zip(reversed(first), reversed(second), strict=False)
    ends = len(list(takewhile(lambda pair: pair[0] == pair[1], tail)))
    ends = min(ends, len(first) - 1, len(second) - 1)
    return _excerpt(first, same != [], ends, length), _excerpt(second, same != [], ends, length)


def _scored_pair(better: Candidate, worse: Candidate, gap: float) -> Pair:
    notes = [("Better, but", better["feedback"]), ("Worse", worse["feedback"])]
    feedback = " ".join(f"{side}: {note}" for side, note in notes if note)
    why = feedback or f"scored {better['score']:.2f} against {worse['score']:.2f}"
    return _pair(better, worse, why, "scorer" if feedback else "score", gap)


def _pair(
    chosen: Candidate,
    rejected: Candidate,
    why: str,
    why_by: Literal["scorer", "judge", "score", "nobody"],
    gap: float,
) -> Pair:
    better, worse = parting(chosen["text"], rejected["text"])
    return Pair(
        chosen=chosen["answer"],
        rejected=rejected["answer"],
        chosen_id=chosen["id"],
        rejected_id=rejected["id"],
        better=better,
        worse=worse,
        why=why,
        why_by=why_by,
        by="scorer" if why_by in ("scorer", "score") else "judge",
        gap=gap,
    )


def _differ(one: Candidate, other: Candidate) -> bool:
    """Whether two answers have different parents and differ enough in their words."""
    if set(one["parents"]) & set(other["parents"]):
        return False
    words, others = _word_counts(one["text"]), _word_counts(other["text"])
    return (words & others).total() < _ALIKE * (words | others).total()


@lru_cache(maxsize=64)
def _word_counts(text: str) -> Counter[str]:
    """Cached, because each answer is compared with all others in every step."""
    return Counter(_WORDS.findall(text.lower()))


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if part]


def _excerpt(sentences: Sequence[str], begun: bool, ends: int, length: int) -> str:
    """The sentences without the last `ends`. begun: others came before them."""
    text = " ".join(sentences[: len(sentences) - max(0, ends)])
    text = f"... {text}" if begun else text
    return text if len(text) <= length else text[: length - 4].rstrip() + " ..."
