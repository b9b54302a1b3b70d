"""The books of quotas: what each account has spent and reserved, step by step, in the ledger's database.

A call's reservation is booked before it is made, in the transaction that checks it against all of its
quotas, and stands for good if its process dies. What a call did not cost is given back when it is
settled; for that, a row is kept of each call under way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from anytime_graph.budget import Budget, Spend, Unpayable, nothing
from anytime_graph.checkpoints.columns import read_column, unfit
from anytime_graph.checkpoints.leases import Leases
from anytime_graph.checkpoints.store import Execute, Store, storable
from anytime_graph.metering.quota import (
    UNITS,
    AccountKey,
    Amounts,
    Quota,
    Standing,
    Standings,
    Withheld,
    booked,
)
from anytime_graph.metering.request import Entry, Place, Reply, Request, journal_around

Key = Callable[[str], str | None]
"""From the name of a key, such as "user", to its value for one payer; None if it is not told."""

_FRESH = 1.0
"""Seconds for which the quotas in the database are not read again."""
_REMEMBERED = 3_600
"""The latest steps of an account that are kept, those of sixty windows of calls. They are counted rather than timed,
because clocks are set forward and back again."""
_AMOUNTS = {
    "tokens": "tokens",
    "output_tokens": "output_tokens",
    "usd": "nanodollars",
    "calls": "calls",
    "tool_calls": "tool_calls",
}
"""The columns of booked amounts, by dimension."""
_COUNTED = {"calls", "tool_calls"}
"""Dimensions in which a call costs the same, however long its reply is."""
_COLUMNS = ", ".join(_AMOUNTS.values())
_VALUES = ", ".join(f":{dimension}" for dimension in _AMOUNTS)
_READ = ", ".join(f"{column} AS {dimension}" for dimension, column in _AMOUNTS.items())
_ADDED = ", ".join(f"{c} = quota_steps.{c} + :{d}" for d, c in _AMOUNTS.items())
_BOOK = (
    f"INSERT INTO quota_steps (account_id, step, {_COLUMNS}) VALUES (:account_id, :step, {_VALUES}) "
    f"ON CONFLICT (account_id, step) DO UPDATE SET {_ADDED}"
)


class Quotas:
    """The quotas of one open ledger: those kept in its database, and the books of all."""

    def __init__(self, store: Store, leases: Leases) -> None:
        self.store, self.leases = store, leases
        self._kept: list[tuple[str, Quota]] = []
        self._read = -_FRESH

    def begin(self) -> None:
        """Tell others that calls of this ledger may be under way. Calls of processes that have died are
        so no more; they stay booked."""
        self.leases.live()
        with self.store.transaction(durable=False) as execute:
            execute(
                "DELETE FROM quota_holds WHERE holder NOT IN "
                f"(SELECT thread FROM leases WHERE expires > {self.store.clock})",
                {},
            )

    # --- quotas that are kept in the database

    def kept(self) -> list[tuple[str, Quota]]:
        """The quotas in the database, each with the value of its key that it is for; "": for all that
        have none of their own."""
        if time.monotonic() - self._read >= _FRESH:
            with self.store.reading() as execute:
                rows = execute("SELECT * FROM quotas ORDER BY per, who, span", {})
            self._kept = [(row["who"], _quota(self.store.where, row)) for row in rows]
            self._read = time.monotonic()
        return self._kept

    def keep(self, quota: Quota, who: str = "") -> None:
        """Keep a quota in the database: from the next second on it holds for all whose ledger this is.
        It replaces the one for the same key and window. who: the value of the key that it is for."""
        if not isinstance(quota, Quota):
            raise ValueError(f"quota={quota!r}: pass one, as Quota(Budget(usd=5), window='day')")
        if not isinstance(who, str):
            raise ValueError(f"who={who!r}: a text is needed, the value of the quota's key")
        storable("who", who)
        if who and quota.per is None:
            raise ValueError(f"who={who!r}: it is the value of a key; name the key with per=")
        with self.store.transaction() as execute:
            execute(
                "INSERT INTO quotas (per, who, span, every, limits) VALUES (:per, :who, :span, "
                ":every, :limits) ON CONFLICT (per, who, span) DO UPDATE SET limits = :limits, "
                "every = :every",
                {
                    **_account(quota, who)._asdict(),
                    "every": quota.window,
                    "limits": json.dumps(quota.budget.limits()),
                },
            )
        self._read = -_FRESH

    def remove(self, per: str | None, window: str, who: str = "") -> bool:
        """Remove a quota from the database; False if it is not there. What was booked stays."""
        quota = Quota(Budget(calls=0), per=per, window=window)
        with self.store.transaction() as execute:
            found = execute(
                "DELETE FROM quotas WHERE per = :per AND who = :who AND span = :span RETURNING per",
                _account(quota, who)._asdict(),
            )
        self._read = -_FRESH
        return bool(found)

    def keys(self, quotas: Sequence[Quota]) -> set[str]:
        """The names of the keys of these quotas and of those in the database."""
        return {q.per for q in (*quotas, *(kept for _, kept in self.kept())) if q.per is not None}

    # --- who pays

    def payers(self, quotas: Sequence[Quota], key: Key) -> Payers | None:
        """The accounts that pay for one payer's calls: by these quotas, and by those in the database.
        None if it has none. Raises ValueError if a key is not told."""
        accounts: dict[AccountKey, list[Quota]] = {}
        given = [(quota, _told(quota, key)) for quota in quotas]
        for quota, who in [*given, *_held_to(self.kept(), key)]:
            accounts.setdefault(_account(quota, who), []).append(quota)
        return Payers(self, dict(sorted(accounts.items()))) if accounts else None

    def rows(self) -> list[dict[str, Any]]:
        """The quotas in the database with what their accounts have booked now: `per`, `who`, `window`,
        `limits`, `booked`, for each value of the key that has spent something and is held to this one."""
        rows, kept_quotas = [], self.kept()
        own = {_account(quota, who) for who, quota in kept_quotas if who}
        with self.store.reading() as execute:
            for who, quota in kept_quotas:
                known = execute(
                    "SELECT who FROM quota_accounts WHERE per = :per AND span = :span AND "
                    "(:who = '' OR who = :who) ORDER BY who",
                    _account(quota, who)._asdict(),
                )
                values = [row["who"] for row in known]
                if not who:
                    values = [value for value in values if _account(quota, value) not in own]
                for value in values or [who]:
                    key = _account(quota, value)
                    (standing,) = Payers(self, {key: [quota]}).read(execute).of
                    row = {"per": quota.per, "for": who or None, "window": quota.window}
                    limits, step = quota.budget.limits(), quota.step(standing.now)
                    steps = [
                        a for at, a in standing.booked.items() if abs(at - step) <= quota.reach
                    ]
                    spent = {d: sum(amounts[d] for amounts in steps) / UNITS[d] for d in limits}
                    rows.append(row | {"who": value or None, "limits": limits, "booked": spent})
        return rows


@dataclass(frozen=True)
class Payers:
    """The accounts that pay for one payer's calls, each with its quotas."""

    books: Quotas
    accounts: Mapping[AccountKey, Sequence[Quota]]

    def beside(self, above: Payers) -> Payers:
        accounts = {
            key: tuple(dict.fromkeys((*self.accounts.get(key, ()), *above.accounts.get(key, ()))))
            for key in sorted({*self.accounts, *above.accounts})
        }
        return replace(self, accounts=accounts)

    def without(self, paid: Payers) -> Payers | None:
        if paid.books is not self.books:
            return self
        accounts = {key: of for key, of in self.accounts.items() if key not in paid.accounts}
        return replace(self, accounts=accounts) if accounts else None

    def standings(self) -> Standings:
        with self.books.store.reading() as execute:
            return self.read(execute)

    def hold(self, execute: Execute, call: str, request: Request, amounts: Spend) -> None:
        """Within a transaction: book the reservation of a call. Raises Withheld if a quota does not
        pay for it, or needs its output to be limited."""
        holder = self.books.leases.mine()
        for row in self.book(execute, amounts, request.max_output is not None):
            execute(
                f"INSERT INTO quota_holds (call, holder, account_id, step, {_COLUMNS}) VALUES "
                f"(:call, :holder, :account_id, :step, {_VALUES})",
                row | {"call": call, "holder": holder},
            )

    def book(self, execute: Execute, amounts: Spend, limited: bool = True) -> list[dict[str, Any]]:
        """Within a transaction: book these amounts for good, such as a tool call with its price. Returns
        where, with the amounts. limited: there is a limit to what they are. Raises Withheld."""
        wanted, rows, short = booked(amounts), [], False
        for key, quotas in self.accounts.items():
            at, standing = self._opened(execute, key, quotas)
            needs_limit = not limited and not standing.left().keys() <= _COUNTED
            short |= needs_limit or standing.short(wanted) is not None
            rows.append({"account_id": at, "step": quotas[0].step(standing.now), **wanted})
        if short:
            raise Withheld(self.read(execute))
        rows.sort(key=_order)
        for row in rows:
            execute(_BOOK, row)
        return rows

    def take(self, tool_calls: int) -> int:
        """Book tool calls before they run, as many as all quotas leave. Returns how many those are."""
        rows = []
        with self.books.store.transaction() as execute:
            for key, quotas in self.accounts.items():
                at, standing = self._opened(execute, key, quotas)
                tool_calls = int(min(tool_calls, standing.left().get("tool_calls", tool_calls)))
                rows.append({"account_id": at, "step": quotas[0].step(standing.now)})
            for row in sorted(rows, key=_order):
                execute(_BOOK, row | booked({**nothing(), "tool_calls": tool_calls}))
        return tool_calls

    def _opened(
        self, execute: Execute, key: AccountKey, quotas: Sequence[Quota]
    ) -> tuple[int, Standing]:
        """An account and how it stands. This waits until others have booked in it."""
        (row,) = execute(
            "INSERT INTO quota_accounts (per, who, span) VALUES (:per, :who, :span) "
            "ON CONFLICT (per, who, span) DO UPDATE SET per = excluded.per "
            f"RETURNING id, {self.books.store.clock} AS now",
            key._asdict(),
        )
        standing = _standing(execute, row["id"], row["now"], quotas, key.who)
        if quotas[0].step(standing.now) not in standing.booked:  # once a step
            execute(
                "DELETE FROM quota_steps WHERE account_id = :at AND step < (SELECT step FROM quota_steps "
                "WHERE account_id = :at ORDER BY step DESC LIMIT 1 OFFSET :kept)",
                {"at": row["id"], "kept": _REMEMBERED},
            )
        return row["id"], standing

    def settle(self, execute: Execute, call: str, spend: Spend) -> None:
        """Within a transaction: book what a call cost in place of its reservation. The tool calls in its
        reply are booked by `take`, or as they begin."""
        cost = booked({**spend, "tool_calls": 0})
        rows = execute(
            f"DELETE FROM quota_holds WHERE call = :call RETURNING account_id, step, {_READ}",
            {"call": call},
        )
        for row in sorted(rows, key=_order):
            more = {d: cost[d] - row[d] for d in UNITS}
            execute(
                f"UPDATE quota_steps SET {_ADDED} WHERE account_id = :account_id AND step = :step",
                row | more,
            )

    def read(self, execute: Execute) -> Standings:
        """How the accounts stand, with the calls under way."""
        (clock,) = execute(f"SELECT {self.books.store.clock} AS now", {})
        found = []
        for key, quotas in self.accounts.items():
            rows = execute(
                "SELECT id FROM quota_accounts WHERE per = :per AND who = :who AND span = :span",
                key._asdict(),
            )
            at = rows[0]["id"] if rows else 0
            # One statement, so that no call settles between what is booked and what is under way.
            rows = execute(
                f"SELECT step, NULL AS holder, {_READ} FROM quota_steps WHERE account_id = :at "
                "AND step >= :first UNION ALL "
                f"SELECT step, holder, {_READ} FROM quota_holds WHERE account_id = :at",
                {"at": at, "first": _first(quotas, clock["now"])},
            )
            held = [row for row in rows if row["holder"] is not None]
            standing = Standing(
                quotas,
                key.who,
                clock["now"],
                {row["step"]: row for row in rows if row["holder"] is None},
                self._in_flight(execute, held),
            )
            found.append(standing)
        return Standings(found)

    def _in_flight(self, execute: Execute, held: Sequence[Mapping[str, Any]]) -> dict[int, Amounts]:
        """What calls under way hold, by step; not those of processes that have died."""
        holders = {row["holder"] for row in held}
        living = {name for name in holders if self.books.leases.lives(name, execute)}
        amounts: dict[int, Amounts] = {}
        for row in held:
            if row["holder"] in living:
                before = amounts.get(row["step"], dict.fromkeys(UNITS, 0))
                amounts[row["step"]] = {d: before[d] + row[d] for d in UNITS}
        return amounts


@runtime_checkable
class _Paid(Protocol):
    """The journal of a call, with the quotas that pay for it."""

    @property
    def shared(self) -> SharedQuotas: ...


@dataclass(frozen=True)
class SharedQuotas:
    """Quotas and who pays, whoever makes a call and where; see metering.request.Shared. above: those of the
    caller, who pays too."""

    paying: Callable[[Sequence[Quota], Key], Payers | None]
    quotas: Sequence[Quota]
    key: Key
    above: SharedQuotas | None = None

    def beside(self, above: Any) -> SharedQuotas:
        if not isinstance(above, SharedQuotas) or above.paying != self.paying:
            raise ValueError(
                "quotas: an agent within another one, or within a draft, needs the same ledger"
            )
        return replace(self, above=above)

    def payers(self) -> Payers | None:
        """The accounts that pay, but for those that pay for this call already, as the model of a graph is
        metered."""
        payers, outer = self._all(), journal_around()
        paid = outer.shared._all() if payers and isinstance(outer, _Paid) else None
        return payers.without(paid) if payers and paid else payers

    def _all(self) -> Payers | None:
        own = self.paying(self.quotas, self.key)
        above = None if self.above is None else self.above._all()
        return own.beside(above) if own and above else own or above

    def standings(self) -> Standings | None:
        payers = self.payers()
        return None if payers is None else payers.standings()

    def take(self, tool_calls: int) -> int:
        payers = self.payers()
        return tool_calls if payers is None else payers.take(tool_calls)

    def journal(self) -> PayersJournal | None:
        payers = self.payers()
        return None if payers is None else PayersJournal(payers, uuid4().hex)


@dataclass(frozen=True)
class PayersJournal:
    """The journal of a call that is in no run; see metering.request.Journal. A call that was refused
    and is made again is reserved again."""

    payers: Payers
    call: str

    def recall(self, place: Place) -> Entry | None:
        return None

    def reserve(
        self, request: Request, amounts: Spend, model: str, so_far: Callable[[], str]
    ) -> bool:
        with self.payers.books.store.transaction() as execute:
            self.payers.hold(execute, self.call, request, amounts)
        return True

    def settle(self, place: Place, reply: Reply) -> None:
        """A settlement that a power cut loses leaves the call charged in full, so it need not be
        durable."""
        with self.payers.books.store.transaction(durable=False) as execute:
            self.payers.settle(execute, self.call, reply.receipt["spend"])


def _standing(execute: Execute, at: int, now: float, quotas: Sequence[Quota], who: str) -> Standing:
    """How an account stands, calls under way counted at their reservations."""
    rows = execute(
        f"SELECT step, {_READ} FROM quota_steps WHERE account_id = :at AND step >= :first",
        {"at": at, "first": _first(quotas, now)},
    )
    return Standing(quotas, who, now, {row["step"]: row for row in rows})


def _first(quotas: Sequence[Quota], now: float) -> int:
    """The first step that counts now."""
    return quotas[0].step(now) - quotas[0].reach


def _order(row: Mapping[str, Any]) -> tuple[int, int]:
    """The order in which steps are written, so that no two transactions wait for each other."""
    return row["account_id"], row["step"]


def _held_to(kept: Sequence[tuple[str, Quota]], key: Key) -> Iterator[tuple[Quota, str]]:
    """The quotas in the database that hold for a payer. One for a value of a key takes the place of
    the one for all values."""
    own = {_account(quota, who) for who, quota in kept if who}
    for who, quota in kept:
        if who:
            if quota.per is not None and key(quota.per) == who:
                yield quota, who
        elif _account(quota, value := _told(quota, key)) not in own:
            yield quota, value


def _told(quota: Quota, key: Key) -> str:
    """The value of the quota's key."""
    if quota.per is None:
        return ""
    if not (who := key(quota.per)):
        raise Unpayable(
            f"{quota.per}: the quota of {quota} must know whose the call is; tell it in the config, "
            f"as in {{'configurable': {{{quota.per!r}: ...}}}}, or for a chat model {{'metadata': ...}}"
        )
    storable(quota.per, who)
    return who


def _account(quota: Quota, who: str) -> AccountKey:
    return AccountKey(quota.per or "", who, quota.span)


def _quota(where: str, row: Mapping[str, Any]) -> Quota:
    """A row of the table. Raises LedgerError for what can be no quota."""
    column = "limits"
    try:
        budget = Budget(**read_column(where, column, row["limits"], "quotas"))
        column = "every"
        return Quota(budget, per=row["per"] or None, window=row["every"])
    except ValueError:
        raise unfit(where, "quotas", column, row[column]) from None
