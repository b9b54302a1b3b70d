"""What a benchmark's model has answered, kept in a file of JSON Lines.

The file holds what the model is, as metering sees it; what is asked, by the digest of the request and
with its reservation, before it is; and what came. So it is as private as the replies are.
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
from anytime_graph.forms import NewerForm, Upgrade, refuse_newer, unchanged

UPGRADES: tuple[Upgrade, ...] = (unchanged,)
"""Of a row, from each form to the next; see forms.py. The first files are of form 1."""
FORM = f"anytime-graph calls {len(UPGRADES)}"
POLL = 0.1
"""Seconds between looks at whether to stop."""


@dataclass(frozen=True)
class Facts:
    """What of a model decides which requests are made of it: its name; the output tokens that it
    never exceeds; whether tiktoken counts its prompts; what is bound to hold it to a schema; and
    the options that travel with each request. prices: USD per million tokens, as Prices has them."""

    name: str
    ceiling: int | None = None
    counted: bool = False
    structured: dict[str, Any] | None = None
    beside: dict[str, Any] = field(default_factory=dict)
    prices: dict[str, float | None] | None = None


@dataclass(frozen=True)
class RecordedReply:
    """A reply as it came. pieces: of the stream: text; None for one that shows nothing; [what the
    model thought, text] where it shows its thoughts. usage: reports, in order. finish: the
    provider's word for how it ended. cut: by us, as the provider ignored its cap."""

    key: str
    seed: int
    room: int | None
    pieces: list[Any]
    usage: list[dict[str, Any]]
    finish: str | None
    cut: bool = False


@dataclass
class Bought:
    """What was paid for. calls in flight, and those lost with their process, count in full."""

    tokens: float = 0
    usd: float = 0.0
    calls: int = 0

    def add(self, tokens: float, usd: float, calls: int = 0) -> None:
        self.tokens += tokens
        self.usd += usd
        self.calls += calls


class Recorded:
    """What was answered, and what it cost; safe for threads. Whoever keeps it beyond this process
    does so in `_keep`.

    prices: for what was bought. tells_ends: replies came with a word on how they ended, or with
    usage; so one without either broke off.
    """

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = prices
        self.bought = Bought()
        self.tells_ends = False
        self._replies: dict[str, RecordedReply] = {}
        self._asked: dict[str, tuple[float, float]] = {}
        self._answering: set[str] = set()
        self._changed = threading.Condition()

    def claim(self, key: str, stop: threading.Event | None) -> RecordedReply | None:
        """The take, or None: then the caller is to make it, and nobody else does meanwhile."""
        with self._changed:
            while True:
                if (take := self._replies.get(key)) is not None:
                    return take
                if key not in self._answering or (stop is not None and stop.is_set()):
                    self._answering.add(key)
                    return None
                self._changed.wait(POLL)

    def release(self, key: str) -> None:
        with self._changed:
            self._answering.discard(key)
            self._changed.notify_all()

    def ask(self, key: str, tokens: float, usd: float) -> None:
        """Write the reservation, before the request leaves."""
        self._keep({"ask": key, "reserved": [tokens, usd]})

    def answer(self, take: RecordedReply, tokens: float, usd: float) -> None:
        self._keep({"take": asdict(take), "cost": [tokens, usd]})

    def fail(self, key: str, tokens: float, usd: float) -> None:
        """The call failed; it may be made again."""
        self._keep({"failed": key, "cost": [tokens, usd]})

    def _keep(self, row: dict[str, Any]) -> None:
        with self._changed:
            self._read(row)

    def _read(self, row: dict[str, Any]) -> None:
        """An earlier reservation of the same request that was never answered stays charged."""
        if "ask" in row:
            tokens, usd = row["reserved"]
            self._asked[row["ask"]] = (tokens, usd)
            self.bought.add(tokens, usd, 1)
        elif "failed" in row:
            self._settle(row["failed"], *row["cost"])
        else:
            take = RecordedReply(**row["take"])
            self._settle(take.key, *row["cost"])
            self._replies[take.key] = take
            self.tells_ends |= bool(take.usage or take.finish)

    def _settle(self, key: str, tokens: float, usd: float) -> None:
        """What a call cost, instead of its reservation, if that is known."""
        held = self._asked.pop(key, None)
        if held is None:
            self.bought.add(tokens, usd, 1)
        else:
            self.bought.add(tokens - held[0], usd - held[1])


class Recording(Recorded):
    """The takes of a file; for one process at a time.

    file: appended to, unless `live` is False. shared: what names the recording in a database, if
    workers buy for it; rows: of that database, those that the file has.
    """

    def __init__(self, file: Path, prices: Prices | None = None, live: bool = True) -> None:
        super().__init__(prices)
        self.file, self.live = file, live
        self.facts: dict[str, Facts] = {}
        self.shared: str | None = None
        self.rows: set[int] = set()
        self._form = 1
        self._lock = _locked(file) if live else None
        for row in lines(file) if live or file.is_file() else ():
            try:
                self._read(self._migrated(row))
            except NewerForm:
                self.close()
                raise
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{file}: not a recording of benchmark calls") from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def introduce(self, model: str, facts: Facts) -> Facts:
        """What the model of this name is. Raises ValueError if it was another before."""
        known = self.facts.get(model)
        if known is not None and known != facts:
            raise ValueError(
                f"{self.file}: --model {model} was priced or set otherwise before; give another --out"
            )
        if known is None:
            self._keep({"form": FORM, "model": model, "facts": asdict(facts)})
        return facts

    def share(self) -> str:
        if self.shared is None:
            self._keep({"shared": uuid4().hex})
        return cast("str", self.shared)

    def copy(self, rows: Mapping[int, dict[str, Any]]) -> Spend:
        """Take in rows of the database, by their numbers there; those that are here count once.
        Returns what they cost."""
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
        """A row of the file in today's form: its own is that of the last row before it that tells."""
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
    """A hold on the file for as long as this process lives, by an empty database beside it: SQLite
    has locks for every system. Raises ValueError if another has it, or if none can be had there."""
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


def heard(take: RecordedReply) -> list[str]:
    """The pieces of a reply as text, thoughts included, in the order they came."""
    shown = ["".join(p) if isinstance(p, list) else p for p in take.pieces]
    return [text for text in shown if text]
