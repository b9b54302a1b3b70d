"""Reads a ledger, also while its threads run. Rows are plain dicts with their JSON read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from anytime_graph.budget import Spend, nothing, total
from anytime_graph.checkpoints.columns import read_column
from anytime_graph.checkpoints.leases import may_live
from anytime_graph.checkpoints.schema import (
    BILLED,
    KEYS,
    LEASE_NAME,
    MODEL,
    SPEND,
    TOOL,
)
from anytime_graph.checkpoints.store import Store, plain
from anytime_graph.run.fold import union
from anytime_graph.text import meant

_CALLS = "count(CASE WHEN c.kind <> 'tool_call' THEN 1 END)"
"""The number of model calls; the price of a tool call is a row too."""


class Bill(NamedTuple):
    """What some calls cost together. of: the user, the model and the like that they have in common."""

    of: dict[str, str | None]
    spend: Spend


class History:
    """The reading side of the ledger."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def threads(self) -> list[dict[str, Any]]:
        """A summary of each thread's newest question, newest first."""
        rows = self._rows(
            "SELECT r.*, a.answer, a.score, (SELECT count(*) FROM runs n WHERE n.thread = r.thread) "
            "AS runs, l.thread AS lease, l.holder FROM runs r LEFT JOIN answers a ON a.id = r.best_id "
            f"LEFT JOIN leases l ON l.thread = {LEASE_NAME} AND l.expires > {self.store.clock} "
            "WHERE r.id = (SELECT n.id FROM runs n WHERE n.thread = r.thread "
            "ORDER BY n.started DESC, n.id DESC LIMIT 1) ORDER BY r.changed DESC, r.id"
        )
        for row in rows:
            row["spent"] = self._spent(row)
            lease, holder = row.pop("lease"), row.pop("holder")
            row["running"] = holder is not None and may_live(holder, lease)
        return rows

    def runs(self, thread: str) -> list[dict[str, Any]]:
        """The questions of a thread, oldest first, each with its `spent`."""
        rows = self._rows(
            "SELECT * FROM runs WHERE thread = :thread ORDER BY started, id", thread=thread
        )
        for row in rows:
            row["spent"] = self._spent(row)
        return rows

    def best(self, thread: str) -> dict[str, Any] | None:
        """The best answer to the newest question of a thread."""
        rows = self._rows(
            "SELECT a.* FROM runs r LEFT JOIN answers a ON a.id = r.best_id "
            "WHERE r.thread = :thread ORDER BY r.started DESC, r.id DESC LIMIT 1",
            thread=thread,
        )
        return rows[0] if rows and rows[0]["id"] is not None else None

    def curve(self, thread: str) -> list[dict[str, Any]]:
        """Best-so-far quality against spend, for the newest question of a thread."""
        runs = self.runs(thread)
        return self.points(runs[-1]["id"]) if runs else []

    def points(self, run_id: int) -> list[dict[str, Any]]:
        """Best-so-far quality against spend, for one question."""
        return self._rows(
            "SELECT p.*, a.ordinal, a.answer FROM curve p JOIN answers a ON a.id = p.answer_id "
            "WHERE p.run_id = :run ORDER BY p.tokens, p.id",
            run=run_id,
        )

    def spend(self, by: Sequence[str] = ("model",), since: float | None = None) -> list[Bill]:
        """What calls cost, added up by keys ("user", "tenant" or another that runs were asked with),
        "model", "node", "tool" or "thread"; the dearest first. since: Unix time. Calls under way count
        at their reservations. A key that a run does not tell is None, and so are the tool of a model's
        call and the model of a tool's. Raises ValueError for what is no list of names or no Unix time, and for a
        name that no run tells and that is like one of these."""
        if isinstance(by, str) or not by or not all(by):
            raise ValueError(f"by={by!r}: a list of names is needed, as in ['user', 'model']")
        if isinstance(since, bool) or not isinstance(since, int | float | None):
            raise ValueError(
                f"since={since!r}: a Unix time is needed, as in time.time() - 7 * 86_400"
            )
        parts = dict.fromkeys(by)
        known = {"model": MODEL, "node": "c.kind", "tool": TOOL, "thread": "r.thread"}
        joins, named = [], {}
        for n, name in enumerate(parts):
            if name not in known:
                self._check_key(name, [*known, *KEYS])
                named[f"key{n}"], known[name] = name, f"l{n}.value"
                joins.append(f"LEFT JOIN labels l{n} ON l{n}.run_id = r.id AND l{n}.name = :key{n}")
        groups = ", ".join(known[name] for name in parts)
        sums = ", ".join(f"coalesce(sum(c.{name}), 0) AS {name}" for name in SPEND)
        rows = self._rows(
            f"SELECT {', '.join(f'{known[name]} AS part{n}' for n, name in enumerate(parts))}, "
            f"{sums}, {_CALLS} AS calls FROM calls c JOIN runs r ON r.id = c.run_id "
            f"{' '.join(joins)} WHERE c.started >= :since AND {BILLED} GROUP BY {groups} "
            "ORDER BY sum(c.usd) DESC, sum(c.tokens) DESC",
            since=-math.inf if since is None else since,
            **named,
        )
        return [
            Bill({name: row[f"part{n}"] for n, name in enumerate(parts)}, _summed(row))
            for row in rows
        ]

    def _check_key(self, name: str, known: Sequence[str]) -> None:
        names = [*known, *(row["name"] for row in self._rows("SELECT DISTINCT name FROM labels"))]
        if name not in names and (instead := meant(name, names)):
            raise ValueError(f"by={name!r}: {instead}no run here tells a key of that name")

    def calls(self, run_id: int) -> list[dict[str, Any]]:
        return self._rows("SELECT * FROM calls WHERE run_id = :run ORDER BY ordinal", run=run_id)

    def critiques(self, thread: str | None = None) -> list[dict[str, Any]]:
        """The calls that compared or reviewed answers, of a thread or of all threads. Each has the
        `question` of its run."""
        return self._rows(
            "SELECT c.*, r.question FROM calls c JOIN runs r ON r.id = c.run_id "
            "WHERE c.kind = 'critique' AND r.thread = coalesce(CAST(:thread AS text), r.thread) "
            "ORDER BY r.started, r.id, c.ordinal",
            thread=thread,
        )

    def answers(self, run_id: int) -> list[dict[str, Any]]:
        """The answers of a run. `tokens` and `usd`: what the run had spent by then, if its calls
        arrived in the order in which they were planned."""
        rows = self._rows(
            "WITH spent AS (SELECT id, run_id, CAST(sum(tokens) OVER so_far AS bigint) AS tokens, "
            "sum(usd) OVER so_far AS usd FROM calls WHERE run_id IN (SELECT k.run_id FROM answers a "
            "JOIN calls k ON k.id = a.call_id WHERE a.run_id = :run) "
            "WINDOW so_far AS (PARTITION BY run_id ORDER BY ordinal)) "
            "SELECT a.*, s.tokens, s.usd, r.inherited FROM answers a LEFT JOIN spent s ON "
            "s.id = a.call_id LEFT JOIN runs r ON r.id = s.run_id WHERE a.run_id = :run "
            "ORDER BY a.ordinal",
            run=run_id,
        )
        for row in rows:
            inherited = row.pop("inherited") or nothing()
            for name in ("tokens", "usd"):
                row[name] = inherited[name] + (row[name] or 0)
        return rows

    def pairs(self, run_id: int) -> list[dict[str, Any]]:
        return self._rows(
            "SELECT p.*, c.answer AS chosen, r.answer AS rejected, c.ordinal AS chosen_ordinal, "
            "r.ordinal AS rejected_ordinal FROM pairs p JOIN answers c ON c.id = p.chosen_id "
            "JOIN answers r ON r.id = p.rejected_id WHERE p.run_id = :run ORDER BY p.id",
            run=run_id,
        )

    def search(self, words: str) -> list[dict[str, Any]]:
        """Answers that contain all the words, or whose question does; newest first. A question
        without an answer has None."""
        if not words.strip():
            return []
        return self._rows(
            "SELECT runs.thread, runs.id AS run_id, runs.question, answers.answer, answers.score "
            "FROM runs LEFT JOIN answers ON runs.id = answers.run_id WHERE "
            f"{self.store.matching('answers')} OR {self.store.matching('runs')} "
            "ORDER BY runs.changed DESC, runs.id, answers.id DESC",
            words=self.store.words(plain(words)),
        )

    def spent_by_agents(self, thread: str) -> Spend:
        """What the runs of agents on a thread have spent."""
        rows = self._rows(
            "SELECT id FROM runs WHERE thread = :thread AND strategy = 'agent'", thread=thread
        )
        return total(self.spent_in(row["id"]) for row in rows)

    def _spent(self, run: Mapping[str, Any]) -> Spend:
        return total([run["inherited"], self.spent_in(run["id"])])

    def spent_in(self, run_id: int) -> Spend:
        """What the calls of a run cost. Those under way count at their reservations."""
        columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in SPEND)
        own = self._rows(
            f"SELECT {columns}, {_CALLS} AS calls FROM calls c WHERE run_id = :run", run=run_id
        )[0]
        spans = self._rows("SELECT started, changed FROM calls WHERE run_id = :run", run=run_id)
        own["seconds"] = union((s["started"], s["changed"]) for s in spans)
        return _summed(own)

    def _rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        thread = parameters.get("thread")
        if thread is not None and plain(thread) != thread:  # a client's, perhaps
            return []  # no database can hold it
        with self.store.reading() as execute:
            rows = execute(sql, parameters)
        where = self.store.where
        return [
            {
                name: read_column(where, name, value)
                for name, value in row.items()
                if name != "search"
            }
            for row in rows
        ]


def _summed(row: Mapping[str, Any]) -> Spend:
    """A spend from sums, which PostgreSQL gives as decimals."""
    kinds = cast("Mapping[str, float]", nothing())
    return cast(Spend, {name: type(kind)(row[name]) for name, kind in kinds.items()})
