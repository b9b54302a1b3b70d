"""Quotas: what a user, a tenant or any other key may spend in a window of time, over all runs together.

The books of an account are kept by steps of time. A window of the calendar is one step; a rolling
window moves in sixtieth parts of its length. A call is booked in the step in which it is reserved, by
the database's clock, and counts there for good. So whichever way that clock is set, no window of its
time ever holds more than the quota; a call counts for its window and, after the clock was set back, for
up to two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, cast

from anytime_graph.budget import Budget, Limits, Short, as_budget, least
from anytime_graph.text import meant

UNITS = {"tokens": 1, "output_tokens": 1, "usd": 10**9, "calls": 1, "tool_calls": 1}
"""The dimensions of a quota, and how finely each is booked: dollars in whole billionths, so that sums
are exact."""

Amounts = dict[str, int]
"""Booked amounts by dimension, in whole units."""

PATIENCE = 10.0
"""Seconds to wait for calls elsewhere to give back what they hold of a quota."""
_STEPS = 60
_SECONDS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_ROLLING = re.compile(r"([1-9]\d{0,5})(s|min|h|d)")
_CALENDAR = ("hour", "day", "month")


@dataclass(frozen=True)
class Quota:
    """What all calls for one key may cost together within a window of time, wherever they are made.

    budget: tokens, output_tokens, usd, calls or tool_calls; several at once if you like.
    per: the name of a key that the invocation tells, such as "user" or "tenant"; each value of it has
        the whole budget. None: all calls share it.
    window: rolling, such as "90s", "30min", "12h" or "7d"; or of the calendar in UTC: "hour", "day" or
        "month". Rolling windows move in steps of a sixtieth: what was spent counts for the window's
        length, and for at most a sixtieth of it longer.

    Raises ValueError for a bad argument.
    """

    budget: Budget
    _: KW_ONLY
    per: str | None = None
    window: str
    span: str = field(init=False, repr=False)
    """The window's name in the books: "1d" and "24h" are the same window."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", as_budget(self.budget, "quota"))
        if self.budget.seconds is not None:
            raise ValueError("quota seconds: it is for one run; a quota has " + ", ".join(UNITS))
        if not (self.per is None or (isinstance(self.per, str) and self.per.isidentifier())):
            raise ValueError(f"quota per={self.per!r}: the name of a key is needed, such as 'user'")
        rolling = _ROLLING.fullmatch(self.window) if isinstance(self.window, str) else None
        if rolling is None and self.window not in _CALENDAR:
            raise ValueError(
                f"quota window={self.window!r}: {_respelt(self.window)}a length such as '90s', "
                f"'30min', '12h' or '7d' is needed, or one of {', '.join(_CALENDAR)}"
            )
        seconds = f"{int(rolling[1]) * _SECONDS[rolling[2]]}s" if rolling else self.window
        object.__setattr__(self, "span", seconds)

    @property
    def reach(self) -> int:
        """How many steps before and after its own a call counts."""
        return 0 if self.span in _CALENDAR else _STEPS

    def step(self, now: float) -> int:
        """The step at this Unix time. Of a window of 3,600 s, steps last 60 s: at 150 s it is step 2."""
        if self.span == "month":
            date = datetime.fromtimestamp(now, UTC)
            return date.year * 12 + date.month - 1
        return math.floor(now / self._length)

    def begins(self, step: int) -> float:
        """The Unix time at which a step begins."""
        if self.span == "month":
            return datetime(step // 12, step % 12 + 1, 1, tzinfo=UTC).timestamp()
        return step * self._length

    @property
    def _length(self) -> float:
        """Seconds of a step."""
        if self.span in _CALENDAR:
            return _SECONDS[self.span[0]]
        return int(self.span[:-1]) / _STEPS

    def __str__(self) -> str:
        whose = f" per {self.per}" if self.per else ""
        return f"{self.budget}{whose} in {self.window}"


def _respelt(window: object) -> str:
    """The window that another spelling was meant for, as a question: "7 days", "daily"."""
    if spelt := re.match(r"\s*(\d+)\s*(s|m(?!o)|h|d)", str(window).lower()):
        units = {unit[0]: unit for unit in _SECONDS}
        return f"did you mean '{spelt[1]}{units[spelt[2]]}'? "
    return meant(window, _CALENDAR)


def checked_quotas(quotas: Sequence[Quota]) -> Sequence[Quota]:
    """The quotas. Raises ValueError for anything else."""
    given: object = quotas
    if not isinstance(given, list | tuple) or not all(isinstance(each, Quota) for each in given):
        raise ValueError(
            f"quotas={quotas!r}: a list is needed, as in [Quota(Budget(usd=5), window='day')]"
        )
    return quotas


class AccountKey(NamedTuple):
    """Whose books a quota is kept in. per, who: a key and its value, both empty for all calls
    together."""

    per: str
    who: str
    span: str


@dataclass(frozen=True)
class Standing:
    """How an account stands against its quotas. now: Unix time by the database's clock. booked: by
    step. in_flight: the part of it that calls under way may give back, by step."""

    quotas: Sequence[Quota]
    who: str
    now: float
    booked: Mapping[int, Amounts]
    in_flight: Mapping[int, Amounts] = field(default_factory=dict)

    def left(self, free: bool = False) -> Limits:
        """What the quotas leave now. free: as if calls under way gave all back."""
        counted = self._counted(self.quotas[0].step(self.now), free)
        return least(
            {d: max(0, limit - counted[d]) / UNITS[d] for d, limit in _limits(quota).items()}
            for quota in self.quotas
        )

    def short(self, amounts: Amounts, step: int | None = None, free: bool = False) -> Quota | None:
        """A quota that does not pay for these amounts at a step, by default now; None if all do. free: as
        for `left`."""
        counted = self._counted(self.quotas[0].step(self.now) if step is None else step, free)
        for quota in self.quotas:
            limits = _limits(quota).items()
            if any(amounts[d] and counted[d] + amounts[d] > limit for d, limit in limits):
                return quota
        return None

    def refills(self, amounts: Amounts) -> float | None:
        """The Unix time at which the quotas pay for these amounts if nothing else is spent until then;
        None if they never do."""
        quota = self.quotas[0]
        ends = (step + quota.reach + 1 for step in sorted(self.booked))
        return next((quota.begins(end) for end in ends if self.short(amounts, end) is None), None)

    def _counted(self, step: int, free: bool = False) -> Amounts:
        """What counts at a step."""
        counted, reach = dict.fromkeys(UNITS, 0), self.quotas[0].reach
        for sign, books in ((1, self.booked), (-1, self.in_flight if free else {})):
            for at, amounts in books.items():
                if abs(at - step) <= reach:
                    counted = {d: n + sign * amounts[d] for d, n in counted.items()}
        return counted


class QuotaExceeded(Short):
    """A quota does not pay for the call, which was not made.

    quota: which. who: the value of its key. refills_at: the Unix time at which it pays for the call
    again, if nothing else is spent until then; None if it never does. spent: nothing, in the same
    shape as NoAnswer's.
    """

    def __init__(self, standing: Standing, quota: Quota, need: Mapping[str, object]) -> None:
        rest = {d: standing.left()[d] for d in quota.budget.limits()}
        super().__init__(rest, cast("Mapping[str, float]", need), "quota")
        self.quota, self.who = quota, standing.who
        self.refills_at = standing.refills(booked(need))
        whose = f" ({quota.per} {standing.who!r})" if quota.per else ""
        when = "it never pays for that"
        if self.refills_at is not None:
            when = f"it does again at {datetime.fromtimestamp(self.refills_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        self.args = (
            f"the quota of {quota}{whose} does not pay for a call of {self.least}; {when}",
        )


@dataclass(frozen=True)
class Standings:
    """How all accounts stand that must pay for a call."""

    of: Sequence[Standing]

    def left(self, free: bool = False) -> Limits:
        """What all quotas leave; see Standing.left."""
        return least(standing.left(free) for standing in self.of)

    def may_pay(self, need: Mapping[str, object]) -> bool:
        """Whether all quotas pay for this if calls under way give all back."""
        return all(standing.short(booked(need), free=True) is None for standing in self.of)

    def exceeded(self, need: Mapping[str, object]) -> QuotaExceeded:
        """The error for a call that needs this. It names the quota that pays for it last."""
        amounts = booked(need)
        short = [(s, quota) for s in self.of if (quota := s.short(amounts)) is not None]
        short = short or [(s, s.quotas[0]) for s in self.of]
        last = max(short, key=lambda one: one[0].refills(amounts) or math.inf)
        return QuotaExceeded(*last, need)


class Withheld(Exception):
    """Quotas do not pay for a call now."""

    def __init__(self, standings: Standings) -> None:
        super().__init__("quotas do not pay for the call now")
        self.standings = standings


def booked(spend: Mapping[str, object]) -> Amounts:
    """A spend as it is booked, rounded up: 0.0000000004 dollars are one billionth."""
    amounts = cast("Mapping[str, float]", spend)
    return {d: math.ceil(round(amounts[d] * unit, 3)) for d, unit in UNITS.items()}


def _limits(quota: Quota) -> Amounts:
    limits = quota.budget.limits()
    return {d: math.floor(round(amount * UNITS[d], 3)) for d, amount in limits.items()}
