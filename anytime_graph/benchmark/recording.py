"""The recording of a benchmark: every reply of its model, in a file of JSON Lines.

The file holds the facts of the model, each request as a digest with its reservation, written before
the request is sent, and each reply. It is as private as the replies are.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from anytime_graph.benchmark.cells import append, lines
from anytime_graph.budget import Prices, Spend, nothing
from anytime_graph.run.forms import NewerForm, Upgrade, refuse_newer, unchanged

UPGRADES: tuple[Upgrade, ...] = (unchanged,)
"""The steps that upgrade a row from each form to the next; see forms.py. The first form is 1."""
FORM = f"anytime-graph calls {len(UPGRADES)}"
POLL = 0.1
"""Seconds between two checks for a stop."""


@dataclass(frozen=True)
class Facts:
    """The properties of a model that decide which requests it gets.

    ceiling: its largest number of output tokens. counted: whether tiktoken counts its prompts.
    structured: the options that hold it to a schema. beside: the options sent with each request.
    prices: USD per million tokens, as in Prices.
    """

    name: str
    ceiling: int | None = None
    counted: bool = False
    structured: dict[str, Any] | None = None
    beside: dict[str, Any] = field(default_factory=dict)
    prices: dict[str, float | None] | None = None


@dataclass(frozen=True)
class RecordedReply:
    """A reply as it arrived. pieces: those of the stream: text, None for an empty piece, or
    [reasoning, text]. usage: the usage reports, in order. finish: the provider's finish reason.
    cut: whether we cut the reply, as the provider ignored its cap."""

    key: str
    seed: int
    room: int | None
    pieces: list[Any]
    usage: list[dict[str, Any]]
    finish: str | None
    cut: bool = False


@dataclass
class Bought:
    """What was paid for. Running calls, and calls lost with their process, count in full."""

    tokens: float = 0
    usd: float = 0.0
    calls: int = 0

    def add(self, tokens: float, usd: float, calls: int = 0) -> None:
        self.tokens += tokens
        self.usd += usd
        self.calls += calls


class Recorded:
    """The replies of a model and their cost, in memory; safe for threads. Subclasses store rows in
    `_keep`.

    prices: those of the model. tells_ends: replies have come with a finish reason or with usage, so
    one without either has broken off.
    """

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = prices
        self.bought = Bought()
        self.tells_ends = False
        self._replies: dict[str, RecordedReply] = {}
        self._reserved: dict[str, tuple[float, float]] = {}
        self._claimed: set[str] = set()
        self._changed = threading.Condition()

    def claim(self, key: str, stop: threading.Event | None) -> RecordedReply | None:
        """The reply, or None: then the caller makes the call, and no other caller does until
        `release`."""
        with self._changed:
            while True:
                if (reply := self._replies.get(key)) is not None:
                    return reply
                if key not in self._claimed or (stop is not None and stop.is_set()):
                    self._claimed.add(key)
                    return None
                self._changed.wait(POLL)

    def release(self, key: str) -> None:
        with self._changed:
            self._claimed.discard(key)
            self._changed.notify_all()

    def ask(self, key: str, tokens: float, usd: float) -> None:
        """Record the reservation, before the request is sent."""
        self._keep({"ask": key, "reserved": [tokens, usd]})

    def answer(self, reply: RecordedReply, tokens: float, usd: float) -> None:
        """Record the reply, and what it cost."""
        self._keep({"take": asdict(reply), "cost": [tokens, usd]})

    def fail(self, key: str, tokens: float, usd: float) -> None:
        """Record that the call failed. It may be made again."""
        self._keep({"failed": key, "cost": [tokens, usd]})

    def _keep(self, row: dict[str, Any]) -> None:
        with self._changed:
            self._read(row)

    def _read(self, row: dict[str, Any]) -> None:
        """Take in a row. An earlier reservation of the same request without a reply stays charged."""
        if "ask" in row:
            tokens, usd = _amounts(row["reserved"])
            self._reserved[row["ask"]] = (tokens, usd)
            self.bought.add(tokens, usd, 1)
        elif "failed" in row:
            self._settle(row["failed"], *_amounts(row["cost"]))
        else:
            reply = RecordedReply(**row["take"])
            self._settle(reply.key, *_amounts(row["cost"]))
            self._replies[reply.key] = reply
            self.tells_ends |= bool(reply.usage or reply.finish)

    def _settle(self, key: str, tokens: float, usd: float) -> None:
        """Replace the reservation of a call, if there is one, by its cost."""
        held = self._reserved.pop(key, None)
        if held is None:
            self.bought.add(tokens, usd, 1)
        else:
            self.bought.add(tokens - held[0], usd - held[1])


def _amounts(pair: Any) -> tuple[float, float]:
    """Tokens and dollars, as they were written. Raises ValueError for what no call can cost."""
    tokens, usd = pair
    for amount in (tokens, usd):
        if (
            isinstance(amount, bool)
            or not isinstance(amount, int | float)
            or not 0 <= amount < 1e15
        ):
            raise ValueError(f"cost={pair!r:.60}: two numbers, 0 or more, are needed")
    return tokens, usd


class Recording(Recorded):
    """The replies in a file, for one process at a time.

    file: rows are appended to it unless `live` is False. shared: the name of the recording in a
    database, if workers buy for it. rows: the numbers of the database's rows that the file has.
    """

    def __init__(self, file: Path, prices: Prices | None = None, live: bool = True) -> None:
        super().__init__(prices)
        self.file, self.live = file, live
        self.facts: dict[str, Facts] = {}
        self.shared: str | None = None
        self.rows: set[int] = set()
        self._form = 1
        self._lock = _locked(file) if live else None
        try:
            for row in lines(file) if live or file.is_file() else ():
                self._take(row)
        except BaseException:
            self.close()
            raise

    def _take(self, row: dict[str, Any]) -> None:
        try:
            self._read(self._migrated(row))
        except NewerForm:
            raise
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.file}: not a recording of benchmark calls") from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def introduce(self, model: str, facts: Facts) -> Facts:
        """Record the facts of the model. Raises ValueError if they were different before."""
        before = self.facts.get(model)
        if before is not None and before != facts:
            raise ValueError(
                f"{self.file}: --model {model} had other prices or settings before; give another --out"
            )
        if before is None:
            self._keep({"form": FORM, "model": model, "facts": asdict(facts)})
        return facts

    def share(self) -> str:
        """The name of the recording in a database; made at the first call."""
        if self.shared is None:
            self._keep({"shared": uuid4().hex})
        return cast("str", self.shared)

    def copy(self, rows: Mapping[int, dict[str, Any]]) -> Spend:
        """Take in rows of the database, by their numbers. Rows that are in the file already are
        skipped. Returns what the new ones cost."""
        new = Recorded(self.prices)
        for number, row in rows.items():
            if number not in self.rows:
                new._read(row)
                self._keep({**row, "row": number})
        cost = new.bought
        return {**nothing(), "tokens": int(cost.tokens), "usd": cost.usd, "calls": cost.calls}

    def replies(self) -> list[RecordedReply]:
        return list(self._replies.values())

    def _migrated(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the file in the current form. Its form is that of the last row that names one."""
        if "form" in row:
            self._form = int(row["form"].rpartition(" ")[2])
            refuse_newer(str(self.file), self._form, len(UPGRADES))
        for upgrade in UPGRADES[self._form :]:
            row = upgrade(row)
        return row

    def _keep(self, row: dict[str, Any]) -> None:
        with self._changed:
            if self._form < len(UPGRADES):
                append(self.file, {"form": FORM})
                self._form = len(UPGRADES)
            append(self.file, row)
            self._read(row)

    def _read(self, row: dict[str, Any]) -> None:
        if row.keys() == {"form"}:
            return
        if "model" in row:
            self.facts[row["model"]] = Facts(**row["facts"])
        elif "shared" in row:
            self.shared = row["shared"]
        else:
            super()._read(row)
            self.rows.update([row["row"]] if "row" in row else ())


def _locked(file: Path) -> sqlite3.Connection:
    """A lock on the file while this process lives. It is that of an empty SQLite database beside the
    file, which works on every system. Raises ValueError if another process has it, or if the folder
    cannot be locked."""
    try:
        with ExitStack() as failed:
            hold = sqlite3.connect(
                file.with_suffix(".lock"), timeout=0, isolation_level=None, check_same_thread=False
            )
            failed.callback(hold.close)
            hold.execute("BEGIN EXCLUSIVE")
            failed.pop_all()
    except sqlite3.OperationalError as error:
        taken = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
        why = "another benchmark is running there" if taken else f"it cannot be locked: {error}"
        raise ValueError(f"{file.parent}: {why}") from None
    return hold


def piece_texts(reply: RecordedReply) -> list[str]:
    """The pieces of a reply as text with the reasoning, in order of arrival."""
    shown = ["".join(p) if isinstance(p, list) else p for p in reply.pieces]
    return [text for text in shown if text]
