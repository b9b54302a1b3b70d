"""How alike questions are, by the words they share: the rarer a word, the more it tells."""

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
"""Questions in which a word occurs, from which on it counts as no commoner."""
ALIKE = 0.25
"""Likeness, in [0, 1], from which a question counts as similar."""

_WORD = re.compile(r"[^\W_]+")
_TERMS = 24
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
    """What a question is known by: the stems of its longest words, which tend to be the rarest.
    English words that carry nothing are left out if there are others."""
    words = set(_WORD.findall(question[:READ].lower()))
    for run in [run for word in words for run in _UNSPACED.findall(word)]:
        words.update(run[i : i + 2] for i in range(len(run) - 1))
    told = sorted(words - _FILLERS or words, key=lambda word: (-len(word), word))
    return list(dict.fromkeys(map(_stem, told)))[:_TERMS]


def keys(namespace: str, question: str) -> list[str]:
    """Its terms as a ledger's index holds them: those of one namespace are no other's."""
    mark = hashlib.sha256(namespace.encode()).hexdigest()[:8]
    return [mark + term for term in terms(question)]


def _stem(word: str) -> str:
    """Much the same for the forms of a word, in English at least."""
    stem = _ENDING.sub("", word[:_LONGEST])
    return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] else stem


def weights(counts: Mapping[str, int]) -> dict[str, float]:
    """What each term of a question tells, by how many others have it."""
    return {
        term: math.log1p(COMMON / min(max(1, count), COMMON)) ** 2 for term, count in counts.items()
    }


def heaviest(
    weights: Mapping[str, float], having: Mapping[str, Collection[int]], most: int
) -> list[int]:
    """Of the questions that have these terms (ids, by term), those that share the most weight."""
    shared = defaultdict[int, float](float)
    for term, ids in having.items():
        for one in ids:
            shared[one] += weights[term]
    return nlargest(most, shared, key=shared.__getitem__)


def alike(weights: Mapping[str, float], other: Collection[str]) -> float:
    """How alike a question with these weights is to another, in [0, 1]: the weight of the terms
    that they share in that of all their terms. Those that only the other has weigh the mean."""
    shared = [weight for term, weight in weights.items() if term in other]
    if not shared:
        return 0.0
    total = sum(weights.values())
    more = (len(other) - len(shared)) * total / len(weights)
    return 2 * sum(shared) / (total + sum(shared) + more)
