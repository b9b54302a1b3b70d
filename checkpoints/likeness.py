"""Measures how alike questions are, by the words they share. Rare words weigh more."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from heapq import nlargest

READ = 4_000
"""Characters of a question that are compared."""
COMMON = 1_000
"""A word in this many questions or more has the least weight."""
ALIKE = 0.25
"""Questions are similar if their likeness, in [0, 1], is this or more."""

_WORD = re.compile(r"[^\W_]+")
_TERMS = 24
"""Most terms of a question."""
_LONGEST = 40
"""Characters of a word that count."""
# Scripts that put no spaces between words: there, two characters make a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2,}")
_ENDING = re.compile(r"(?<=...)(?:ings?|ed|ies|es|s|e|y|ly)\Z")
_ENGLISH = """a about an and any are as at be been but by can could did do does for from get give has
have how i if in into is it its me my of on or our please should so some tell that the their them
there these they this those to us was we were what when where which who whom whose why will with
would you your"""
_FILLERS = frozenset(_ENGLISH.split())


def terms(question: str) -> list[str]:
    """The terms of a question: the stems of its longest words, which tend to be the rarest. English
    words such as "the" are left out if there are others."""
    words = set(_WORD.findall(question[:READ].lower()))
    for run in [run for word in words for run in _UNSPACED.findall(word)]:
        words.update(run[i : i + 2] for i in range(len(run) - 1))
    ordered = sorted(words - _FILLERS or words, key=lambda word: (-len(word), word))
    return list(dict.fromkeys(map(_stem, ordered)))[:_TERMS]


def keys(namespace: str, question: str) -> list[str]:
    """A question's terms as a ledger's index holds them. Namespaces have no key in common."""
    mark = hashlib.sha256(namespace.encode()).hexdigest()[:8]
    return [mark + term for term in terms(question)]


def _stem(word: str) -> str:
    """The stem of a word, which is the same for most of its forms, at least in English."""
    stem = _ENDING.sub("", word[:_LONGEST])
    return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem


def weights(counts: Mapping[str, int]) -> dict[str, float]:
    """The weight of each term, by how many questions have it. With 1 question it is ln(1,001) ** 2 =
    47.7, with 100 it is ln(11) ** 2 = 5.7, with 1,000 or more ln(2) ** 2 = 0.5."""
    return {
        term: math.log1p(COMMON / min(max(1, count), COMMON)) ** 2 for term, count in counts.items()
    }


def heaviest(
    weights: Mapping[str, float], having: Mapping[str, Collection[int]], most: int
) -> list[int]:
    """The ids of the questions whose shared terms weigh most. having: ids of questions by term."""
    shared = defaultdict[int, float](float)
    for term, ids in having.items():
        for id in ids:
            shared[id] += weights[term]
    return nlargest(most, shared, key=shared.__getitem__)


def alike(weights: Mapping[str, float], other: Collection[str]) -> float:
    """How alike a question with these weights is to another, in [0, 1]: twice the weight of the
    shared terms, divided by the weights of both questions. A term that only the other has weighs the
    mean. With weights of 6, 2 and 1, of which the other has the first and one more term, it is
    2 * 6 / (9 + 6 + 3) = 0.67."""
    shared = [weight for term, weight in weights.items() if term in other]
    if not shared:
        return 0.0
    total = sum(weights.values())
    others = (len(other) - len(shared)) * total / len(weights)
    return 2 * sum(shared) / (total + sum(shared) + others)
