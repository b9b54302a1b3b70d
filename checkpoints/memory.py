"""A memory of preferences: pairs from earlier questions, found again by the likeness of the question.

Over a ledger, the memory is the ledger's own pairs; over one of LangGraph's stores, one item for each
run. A namespace, such as (tenant, user, task), has its own memory and sees no other.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from langgraph.store.base import BaseStore, SearchItem

from anytime_graph.checkpoints import likeness
from anytime_graph.checkpoints.columns import read_column
from anytime_graph.checkpoints.ledger import Ledger
from anytime_graph.checkpoints.store import plain
from anytime_graph.run.forms import KEY, Upgrade, upgraded
from anytime_graph.run.pairs import Example, Pair
from anytime_graph.text import clip

Namespace = tuple[str, ...]

_KEPT = 300
"""Characters of each text of an example."""
_PRINCIPLES = 5
_NEAR = 64
"""Similar runs whose pairs are looked at."""
_SCANNED = 10_000
"""Runs compared in a store that has no index."""
_PAGE = 500
_LABEL = "anytime-preferences"
UPGRADES: tuple[Upgrade, ...] = ()
"""Of an item in a store, from each form to the next; see forms.py."""


@runtime_checkable
class Memory(Protocol):
    """Safe for threads. A namespace that is no sequence of non-empty strings is a ValueError."""

    def recall(
        self, namespace: Namespace, question: str, limit: int = 3, *, besides: Collection[int] = ()
    ) -> list[Example]:
        """Pairs of the earlier questions most like this one, one of each before a second of any;
        none if no question is alike. besides: ids of runs to leave out, such as the present one."""
        ...

    def learn(
        self,
        namespace: Namespace,
        question: str,
        pairs: Sequence[Pair],
        principles: Sequence[str],
        run_id: int,
    ) -> None:
        """Remember all that a run has found so far, instead of what it had found before."""
        ...

    def forget(
        self,
        namespace: Namespace | None = None,
        *,
        older_than: float | None = None,
        keep: int | None = None,
    ) -> int:
        """Delete the pairs of a namespace (None: of each), or only those older than so many
        seconds or beyond the newest `keep` of the namespace; returns how many."""
        ...


def memory_of(source: Ledger | BaseStore | Memory) -> Memory:
    """The memory in a ledger or a store; a memory is returned as it is. Raises ValueError."""
    if isinstance(source, Ledger):
        return LedgerMemory(source)
    if isinstance(source, BaseStore):
        return StoreMemory(source)
    if isinstance(source, Memory):
        return source
    raise ValueError(f"memory={source!r}: a ledger, a LangGraph store, or a Memory")


def encoded(namespace: Namespace) -> str:
    """A namespace as `runs.namespace` holds it: JSON in ASCII; "" there stands for none at all.
    Raises ValueError."""
    if not isinstance(namespace, tuple | list) or not all(
        isinstance(part, str) and part for part in namespace
    ):
        raise ValueError(
            f"namespace={namespace!r}: a tuple of strings that are not empty, such as (tenant, user)"
        )
    return json.dumps(namespace)


class LedgerMemory:
    """Recalls the pairs of the ledger's runs; those whose texts were not kept are passed over.
    Forgetting deletes pairs, never calls or answers. Raises LedgerError."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._store = ledger, ledger.store

    def recall(
        self, namespace: Namespace, question: str, limit: int = 3, *, besides: Collection[int] = ()
    ) -> list[Example]:
        space = encoded(namespace)
        runs: dict[str, set[int]] = {}
        with self._store.reading() as execute:
            for key in likeness.keys(space, question):
                found = execute(self._store.mentions, {"key": key, "most": likeness.COMMON})
                runs[key] = {row["run_id"] for row in found}.difference(besides)
            weighed = likeness.weights({key: len(having) for key, having in runs.items()})
            named = {
                f"run{n}": run for n, run in enumerate(likeness.heaviest(weighed, runs, _NEAR))
            }
            rows = execute(
                "SELECT m.terms, q.question, coalesce(p.better, c.answer) AS better, "
                "coalesce(p.worse, r.answer) AS worse, p.why, p.decided_by AS by, p.gap, "
                "q.principles FROM memory m JOIN runs q ON q.id = m.run_id "
                "JOIN pairs p ON p.run_id = q.id JOIN answers c ON c.id = p.chosen_id "
                "JOIN answers r ON r.id = p.rejected_id WHERE q.namespace = :namespace "
                f"AND q.id IN ({', '.join(f':{name}' for name in named) or 'NULL'})",
                {"namespace": space, **named},
            )
        told = [
            (
                likeness.alike(weighed, row["terms"].split()),
                _example(
                    row, read_column(self._store.where, "principles", row["principles"]) or ()
                ),
            )
            for row in rows
            if row["better"] and row["worse"]
        ]
        return _chosen(told, limit)

    def learn(
        self,
        namespace: Namespace,
        question: str,
        pairs: Sequence[Pair],
        principles: Sequence[str],
        run_id: int,
    ) -> None:
        """The pairs are in the ledger already; this says whose they are."""
        self._ledger.remember(run_id, encoded(namespace), question)

    def forget(
        self,
        namespace: Namespace | None = None,
        *,
        older_than: float | None = None,
        keep: int | None = None,
    ) -> int:
        space = None if namespace is None else encoded(namespace)
        before, kept = _bounds(older_than, keep)
        with self._store.transaction() as execute:
            gone = execute(
                "DELETE FROM pairs WHERE id IN (SELECT id FROM (SELECT p.id, p.created, "
                "row_number() OVER (PARTITION BY r.namespace ORDER BY p.created DESC, p.id DESC) "
                "AS place FROM pairs p JOIN runs r ON r.id = p.run_id WHERE r.namespace <> '' AND "
                "r.namespace = coalesce(CAST(:namespace AS text), r.namespace)) AS placed "
                "WHERE created < :before OR place > :kept) RETURNING id",
                {"namespace": space, "before": before, "kept": kept},
            )
            execute(
                "DELETE FROM memory WHERE NOT EXISTS "
                "(SELECT 1 FROM pairs p WHERE p.run_id = memory.run_id)",
                {},
            )
            if gone:
                self._store.purge(execute)
        return len(gone)


class StoreMemory:
    """Keeps an item for each run under ("anytime-preferences", digest of the namespace). A store with
    an index is searched by meaning, and always finds the nearest, however unlike they are; in one without, up to 10,000 questions are compared by their
    words. Raises what the store raises."""

    def __init__(self, store: BaseStore) -> None:
        self._store = store

    def recall(
        self, namespace: Namespace, question: str, limit: int = 3, *, besides: Collection[int] = ()
    ) -> list[Example]:
        place, left_out = _place(namespace), set(map(str, besides))
        found = self._search(
            place, query=plain(question[: likeness.READ]), limit=_NEAR + len(left_out)
        )
        if any(item.score is not None for item in found):
            near = [(float(len(found) - n), item) for n, item in enumerate(found)]
        else:
            near = _by_words(question, self._search(place, limit=_SCANNED))
        told = [(a, e) for a, i in near if i.key not in left_out for e in i.value["examples"]]
        return _chosen(told, limit)

    def learn(
        self,
        namespace: Namespace,
        question: str,
        pairs: Sequence[Pair],
        principles: Sequence[str],
        run_id: int,
    ) -> None:
        place = _place(namespace)
        if pairs:
            value = {
                "question": plain(question[: likeness.READ]),
                "terms": likeness.terms(question),
                "examples": [_example({**p, "question": question}, principles) for p in pairs],
                "created": time.time(),
                KEY: len(UPGRADES),
            }
            self._store.put(place, str(run_id), value, index=["question"])

    def forget(
        self,
        namespace: Namespace | None = None,
        *,
        older_than: float | None = None,
        keep: int | None = None,
    ) -> int:
        before, kept = _bounds(older_than, keep)
        gone, room = 0, defaultdict[Namespace, int](lambda: kept)
        everywhere = (_LABEL,) if namespace is None else _place(namespace)
        for item in sorted(self._items(everywhere), key=lambda item: -item.value["created"]):
            place, examples = item.namespace, item.value["examples"]
            left = examples[: room[place]] if item.value["created"] >= before else []
            room[place] -= len(left)
            gone += len(examples) - len(left)
            if not left:
                self._store.delete(place, item.key)
            elif len(left) < len(examples):
                value = {**item.value, "examples": left}
                self._store.put(place, item.key, value, index=["question"])
        return gone

    def _items(self, place: Namespace) -> list[SearchItem]:
        found: list[SearchItem] = []
        while page := self._search(place, limit=_PAGE, offset=len(found)):
            found += page
        return found

    def _search(self, place: Namespace, **how: Any) -> list[SearchItem]:
        """Items in today's form."""
        found = self._store.search(place, **how)
        for item in found:
            item.value = upgraded(item.value, UPGRADES, f"the memory of run {item.key}")
        return found


def _place(namespace: Namespace) -> Namespace:
    """Where a store keeps a namespace's items; a digest, as labels must not hold every character."""
    return _LABEL, hashlib.sha256(encoded(namespace).encode()).hexdigest()


def _by_words(question: str, items: Sequence[SearchItem]) -> list[tuple[float, SearchItem]]:
    counts = Counter(dict.fromkeys(likeness.terms(question), 0))
    near = [item for item in items if not counts.keys().isdisjoint(item.value["terms"])]
    for item in near:
        counts.update(counts.keys() & item.value["terms"])
    weighed = likeness.weights(counts)
    return [(likeness.alike(weighed, item.value["terms"]), item) for item in near]


def _example(row: Mapping[str, Any], principles: Sequence[str]) -> Example:
    return Example(
        question=_short(row["question"]),
        better=_short(row["better"]),
        worse=_short(row["worse"]),
        why=_short(row["why"] or ""),
        by=row["by"],
        gap=row["gap"],
        principles=[_short(text) for text in principles[:_PRINCIPLES]],
    )


def _short(text: str) -> str:
    return clip(plain(text), _KEPT)


def _chosen(found: Sequence[tuple[float, Example]], limit: int) -> list[Example]:
    """The best pair of each question, the most alike first; then their second ones, and so on."""
    turns: Counter[str] = Counter()
    told: dict[tuple[str, str], tuple[int, Example]] = {}
    similar = [(alike, example) for alike, example in found if alike >= likeness.ALIKE]
    for _, example in sorted(similar, key=lambda f: (-f[0], -f[1]["gap"])):
        texts, question = (example["better"], example["worse"]), example["question"].casefold()
        if texts not in told and texts[0] != texts[1]:
            told[texts] = (turns[question], example)
            turns[question] += 1
    return [example for _, example in sorted(told.values(), key=lambda t: t[0])][:limit]


def _bounds(older_than: float | None, keep: int | None) -> tuple[float, int]:
    """Pairs from before so many Unix seconds are forgotten, and those beyond so many."""
    for name, value, kind in (("older_than", older_than, int | float), ("keep", keep, int)):
        number = isinstance(value, kind) and not isinstance(value, bool)
        if value is not None and not (number and value >= 0):
            needed = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name}={value!r}: {needed} of 0 or more is needed")
    everything = math.inf if keep is None else -math.inf
    before = everything if older_than is None else time.time() - older_than
    return before, sys.maxsize if keep is None else min(keep, sys.maxsize)
