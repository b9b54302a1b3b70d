"""Budgets, spends and prices: what may be spent, what was spent, and what remains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from inspect import Signature, signature
from typing import Any, ClassVar, Self, cast

from typing_extensions import TypedDict

DIMENSIONS = ("tokens", "output_tokens", "usd", "calls", "seconds", "tool_calls")
UNIT_NAMES = {d: d.replace("_", " ") for d in DIMENSIONS} | {"usd": "US dollars"}
_NAMES = f"a budget has {', '.join(DIMENSIONS)}"
TOOL_CALLS = "tool_calls"
"""The dimension that bounds no call of a model: without it left, a run goes on without tools."""
_WHOLE = ("tokens", "output_tokens", "calls", "tool_calls")
LARGEST = 10**15
"""The largest amount of a budget. Numbers above it do not fit the ledger's columns."""
_DOWN = Context(prec=12, rounding=ROUND_FLOOR)
_UP = Context(prec=6, rounding=ROUND_CEILING)
_BELOW_ONE = 1 - 2.0**-51
"""Makes up for the rounding of a fraction and of its product."""
_UNDIVIDED = {"seconds": math.inf, "calls": 1}
"""Dimensions that a slice does not divide, and the most that it gets of each."""

MIN_ROOM = 16
"""A call that may write fewer output tokens than this is not worth its prompt."""
FIRST_ROOM = 8
"""A first call may, for few words are better than no answer."""
GOOD_ROOM = 64
"""Output tokens that each call of a fan-out must get; else the fan-out is made smaller."""

Limits = dict[str, float]
"""Amounts by dimension. A dimension that is absent is not limited."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one question may cost. The first dimension to run out ends the run.

    tokens: input + output tokens, as the provider bills them.
    output_tokens: only output tokens, reasoning included.
    usd: US dollars; needs known prices.
    calls: model calls.
    seconds: time during which calls, scorers and tools are active, summed over resumes.
    tool_calls: tool calls of agents.

    A dimension left out is not limited; 0 means that nothing may be spent. Raises ValueError for a
    negative amount or one above 1e15, a fraction of a token or call, or no amount at all.
    """

    tokens: int | None = None
    output_tokens: int | None = None
    usd: float | None = None
    calls: int | None = None
    seconds: float | None = None
    tool_calls: int | None = None

    __signature__: ClassVar[Signature]
    """What the fields say; `__new__` takes anything, to say what is wrong with it."""

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Raises TypeError for amounts without a name, or with an unknown one."""
        if given:
            amount = f"{given[0]!r:.40}"
            raise TypeError(f"Budget({amount}): name what it limits, as in Budget(tokens=8_000)")
        if unknown := next((name for name in named if name not in DIMENSIONS), None):
            raise TypeError(f"Budget({unknown}=...): {_NAMES}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}={value!r}: a budget is a number")
            if not 0 <= value <= LARGEST:
                raise ValueError(f"{name}={value!r:.40}: a budget is from 0 to {LARGEST:.0e}")
            if name in _WHOLE and value != int(value):
                raise ValueError(f"{name}={value!r}: a whole number is needed")
            object.__setattr__(self, name, plain(value))
        if not self.limits():
            raise ValueError(
                f"Budget(): set at least one of {', '.join(DIMENSIONS)}; for a run without a budget pass "
                "none, to a graph with until=Until(...)"
            )

    def limits(self) -> Limits:
        """The dimensions that are set."""
        return {d: v for d in DIMENSIONS if (v := getattr(self, d)) is not None}

    def fraction(self, share: float) -> Budget:
        """A part of this budget: its amounts times `share` in [0, 1], rounded down. Raises
        ValueError for another share."""
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r}: a fraction is between 0 and 1")
        return Budget(**_parts(self.limits(), share))

    def split(self, n: int) -> list[Budget]:
        """n equal parts that add up to no more than this budget. Time is divided too, because the parts
        may be spent one after another. Raises ValueError unless n is a whole number from 1 on."""
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n={n!r}: a budget is split into 1 part or more")
        return [self.fraction(1 / n)] * n

    def less(self, spent: Mapping[str, Any]) -> Budget:
        """What remains of this budget after `spent` (as a run or add_spend gives it), never below 0."""
        return Budget(**{d: max(0, v - spent.get(d, 0)) for d, v in self.limits().items()})

    def __str__(self) -> str:
        return ", ".join(f"{d}={in_digits(v)}" for d, v in self.limits().items())


Budget.__signature__ = Signature([*signature(Budget.__init__).parameters.values()][1:])


def in_digits(amount: float) -> str:
    """An amount in six digits; a whole number in all of its digits."""
    return f"{amount:.0f}" if amount == int(amount) else f"{amount:g}"


def as_budget(value: Budget | Mapping[str, Any], argument: str = "budget") -> Budget:
    """Accept a Budget or a mapping of its dimensions (how JSON clients send one)."""
    if isinstance(value, Budget):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{argument}={value!r}: pass a Budget, as in Budget(tokens=8_000)")
    if unknown := sorted(set(value) - set(DIMENSIONS)):
        raise ValueError(f"{argument}: unknown {unknown}; {_NAMES}")
    return Budget(**value)


def plain(amount: float) -> float:
    """The number as one of Python's own, which can be stored; numpy's are of subclasses."""
    return float(amount) if isinstance(amount, float) else int(amount)


def grant_of(answer: Any, limits: Limits, ended: str) -> Budget | None:
    """How much more a human grants to a run whose budget is used up: a number of tokens, or a budget;
    None, 0 and "stop" grant nothing. limits: of the run. ended: why it would end, a dimension or a part
    of all. Raises ValueError for another answer, and for one that does not help."""
    if answer in (None, 0, "stop"):
        return None
    if isinstance(answer, int | float):
        answer = {"tokens": answer}
    more = {d: v for d, v in as_budget(answer, "resume").limits().items() if d in limits}
    needed = ended if ended in limits else next(iter(limits))
    if not more.get(needed):
        raise ValueError(f"resume={answer!r}: more {needed} are needed, as in {{{needed!r}: ...}}")
    return Budget(**cast(Any, more))


class Spend(TypedDict):
    """What was spent. `tokens` = input_tokens + output_tokens; `output_tokens` contain
    `reasoning_tokens`, `input_tokens` contain `cached_tokens`. usd: US dollars. calls: of models. seconds: in
    which calls, scorers and tools were active. tool_calls: of agents."""

    tokens: int
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    usd: float
    calls: int
    seconds: float
    tool_calls: int


def nothing() -> Spend:
    return Spend(
        tokens=0,
        input_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        cached_tokens=0,
        usd=0.0,
        calls=0,
        seconds=0.0,
        tool_calls=0,
    )


def total(spends: Iterable[Spend]) -> Spend:
    sums = cast("dict[str, Any]", nothing())
    for spend in spends:
        for key, amount in spend.items():
            sums[key] += amount
    return cast("Spend", sums)


def add_spend(spent: Spend, more: Spend) -> Spend:
    """Reducer for the `spent` channel of a parent graph: the sum of what its anytime nodes spent."""
    return total([spent, more])


def lowest(*amounts: int | None) -> int | None:
    """The smallest of the amounts that are known; None if none is."""
    return min((n for n in amounts if n is not None), default=None)


def left(limits: Limits, spent: Spend) -> Limits:
    """What remains in each limited dimension, never below 0."""
    amounts = cast("Mapping[str, float]", spent)
    return {d: max(0, limit - amounts.get(d, 0)) for d, limit in limits.items()}


def least(limits: Iterable[Limits]) -> Limits:
    """The smallest amount in each dimension that any of these limits."""
    found: Limits = {}
    for each in limits:
        found |= {d: min(amount, found.get(d, amount)) for d, amount in each.items()}
    return found


def passed(warn_at: Sequence[float], limits: Limits, before: Spend, now: Spend) -> list[float]:
    """The parts of the limits that a spend has passed since `before`, where the dimension counts that
    most is used of: of 1,000 tokens, after 300 and now 600, the half."""
    at = [used(limits, before), used(limits, now)]
    return [part for part in warn_at if at[0] < part <= at[1]]


def used(limits: Limits, spent: Spend) -> float:
    """The largest part of a limit that is used: with 600 of 1,000 tokens and 1 of 4 calls, .6."""
    amounts = cast("Mapping[str, float]", spent)
    return max((amounts.get(d, 0) / limit for d, limit in limits.items() if limit), default=0.0)


def checked_parts(warn_at: Sequence[float]) -> tuple[float, ...]:
    """Parts of a budget, in order. Raises ValueError for others than those above 0 and up to 1."""
    wrong = [p for p in warn_at if not is_part(p)] if isinstance(warn_at, Iterable) else [warn_at]
    if wrong:
        raise ValueError(f"warn_at={wrong[0]!r}: parts of the budget are needed, as in (0.5, 0.8)")
    return tuple(sorted(set(warn_at)))


def is_part(value: Any) -> bool:
    """Whether it is a number above 0 and up to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= 1


def raised(limits: Limits, extra: Budget, spent: Spend) -> Limits:
    """Limits raised by `extra`. A dimension that was not limited stays unlimited, even if `extra` names
    it: more budget never allows less. A run without any limit may go on for `extra`: after 300 tokens
    and with 500 more, its limit is 800."""
    grant = extra.limits()
    if not limits:
        return {
            d: amount + cast("Mapping[str, float]", spent).get(d, 0) for d, amount in grant.items()
        }
    return {d: limit + grant.get(d, 0) for d, limit in limits.items()}


def share(of: Limits, fraction: float) -> Limits:
    """A slice: `fraction` of what is left. Parallel moves run in the same seconds, so these are not
    divided, and a move makes one call. A quarter of 1,000 tokens, 8 calls and 30 s is 250 tokens, 1
    call and 30 s."""
    return _parts(of, fraction) | {d: min(most, of[d]) for d, most in _UNDIVIDED.items() if d in of}


_LEAST_PRICE = 0.0005
"""What is below it is meant for one token: providers list $0.0011 a million at least, and for all models but one
$180 a million at most, which is $0.00018 a token."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars per million tokens. Input that is read from a provider's cache costs `cached_input`, and
    input that is written to one `cache_write`; each defaults to `input`."""

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value < 1e9):
                raise ValueError(
                    f"prices.{f.name}={value!r}: dollars per million tokens, 0 or more"
                )
            if value and value < _LEAST_PRICE:
                raise ValueError(
                    f"prices.{f.name}={value!r}: dollars per million tokens; if one token costs that "
                    f"much, give {value * 1e6:g}"
                )
            if value is not None:
                object.__setattr__(self, f.name, plain(value))
        if self.cached_input is not None and self.cached_input > self.input:
            raise ValueError(
                f"prices.cached_input={self.cached_input!r}: more than input={self.input!r}; give "
                "the higher price as input"
            )
        if self.cache_write is not None and self.cache_write < self.input:
            raise ValueError(
                f"prices.cache_write={self.cache_write!r}: less than input={self.input!r}; leave it "
                "out, and input that is written to a cache costs as much as other input"
            )

    def usd(
        self, input_tokens: float, output_tokens: float, read: float = 0, written: float = 0
    ) -> float:
        """What a call costs. read, written: input tokens read from a provider's cache, and written
        to it. At 2, 8 and 0.5 (cached) dollars, 1,000 input tokens, 600 of them read, and 100
        output tokens cost (400 * 2 + 600 * 0.5 + 100 * 8) / 1e6 = 0.0019 dollars."""
        cached = self.input if self.cached_input is None else self.cached_input
        write = self.input if self.cache_write is None else self.cache_write
        fresh = (input_tokens - read - written) * self.input
        return (fresh + read * cached + written * write + output_tokens * self.output) / 1e6

    def most(self, input_tokens: float, output_tokens: float) -> float:
        """The most that a call can cost: all of its input may be written to a cache."""
        return self.usd(input_tokens, output_tokens, written=input_tokens)


def output_room(slice_: Limits, prompt: int, prices: Prices | None) -> int | None:
    """Output tokens that a slice pays for after a prompt of `prompt` tokens; None if the slice limits
    neither tokens nor money. Below 0 the prompt alone costs too much. Of 1,000 tokens and 400 output
    tokens, a prompt of 700 leaves min(300, 400) = 300."""
    rooms: list[float] = []
    if "tokens" in slice_:
        rooms.append(slice_["tokens"] - prompt)
    if "output_tokens" in slice_:
        rooms.append(slice_["output_tokens"])
    if "usd" in slice_ and prices is not None:
        money = slice_["usd"] - prices.most(prompt, 0)
        if prices.output > 0:
            rooms.append(money * 1e6 / prices.output)
        elif money < 0:
            rooms.append(-1)
    return _floor(min(rooms)) if rooms else None


class Unpayable(ValueError):
    """Nobody can pay for a call as it is asked for. The message says what would do, and repeats nothing of
    the prompt."""


class BudgetTooSmall(Unpayable):
    """The budget cannot pay for one draft, or one call. Nothing was spent.

    least: the smallest budget that is enough, in the dimensions that were set.
    spent: zeros, so that callers can read it as that of NoAnswer.
    """

    def __init__(self, given: Limits, least: Limits, what: str = "one draft") -> None:
        self.spent = nothing()
        self.least = Budget(**_enough(least))
        rest = {d: math.floor(v) if d in _WHOLE else v for d, v in given.items()}
        budget = Budget(**cast(Any, rest))
        short = {d: n for d, n in least.items() if n > given.get(d, 0)} or least
        need = Budget(**_enough(short))
        super().__init__(f"the budget ({budget}) cannot pay for {what}; the least is {need}")

    def __reduce__(self) -> Any:
        return _revived, (type(self), self.args, vars(self))


class Short(BudgetTooSmall):
    """What is left cannot pay for the call. need: what that takes. dimension: what it is short of."""

    def __init__(self, rest: Limits, need: Mapping[str, float], dimension: str) -> None:
        super().__init__(rest, {d: max(a, need[d]) for d, a in rest.items()}, "one call")
        self.dimension, self.need = dimension, need


class NoAnswer(RuntimeError):
    """Every call failed, so there is no answer.

    causes: one line for each failure, oldest first. spent: what the failures cost. stop_reason: as in the
    graph's output: "errors", "interrupted", or what the budget has no more of.
    """

    def __init__(self, causes: list[str], spent: Spend, stop_reason: str = "errors") -> None:
        self.causes = causes
        self.spent = spent
        self.stop_reason = stop_reason
        super().__init__("no call brought an answer: " + "; ".join(counted(causes)))

    def __reduce__(self) -> Any:
        return _revived, (type(self), self.args, vars(self))


def stored_error(error: NoAnswer | BudgetTooSmall) -> dict[str, Any]:
    """An error as plain data, for checkpoints, which keep no exceptions. It loses what only its subclass
    has."""
    data = {"anytime_error": str(error), "spent": error.spent}
    if isinstance(error, NoAnswer):
        return data | {"causes": error.causes, "stop_reason": error.stop_reason}
    return data | {"least": error.least.limits()}


def restored_error(data: Mapping[str, Any]) -> NoAnswer | BudgetTooSmall:
    """The error that `stored_error` made plain."""
    kind: type[NoAnswer | BudgetTooSmall] = NoAnswer if "causes" in data else BudgetTooSmall
    facts = {"spent": data["spent"]}
    if "causes" in data:
        facts |= {"causes": data["causes"], "stop_reason": data.get("stop_reason", "errors")}
    else:
        facts |= {"least": Budget(**data["least"])}
    return cast("NoAnswer | BudgetTooSmall", _revived(kind, (data["anytime_error"],), facts))


def counted(causes: Iterable[str]) -> list[str]:
    """Each cause once: "draft 0: HTTP 500", "draft 1: HTTP 500" are "draft: HTTP 500 (2 times)"."""
    alike: dict[str, list[str]] = {}
    for cause in causes:
        alike.setdefault(re.sub(r"^([a-z ]+) \d+: ", r"\1: ", cause), []).append(cause)
    return [
        found[0] if len(found) == 1 else f"{cause} ({len(found)} times)"
        for cause, found in alike.items()
    ]


def _revived(kind: type[Exception], args: tuple[Any, ...], facts: dict[str, Any]) -> Exception:
    """An error that comes from another process, without its arguments but with its message."""
    error = kind.__new__(kind, *args)
    vars(error).update(facts)
    return error


def _parts(amounts: Limits, fraction: float) -> dict[str, Any]:
    """A part of each amount, rounded down, so that 1/fraction of them never exceed it. As floats, three
    thirds of $0.10 could add up to more, so a third is $0.0333333333333. Of 3,000 tokens it is 1,000,
    though as floats it may be 999.9999999."""
    if fraction == 1:
        return dict(amounts)
    return {
        d: _floor(amount * fraction * _BELOW_ONE)
        if d in _WHOLE
        else float(_DOWN.multiply(Decimal(amount), Decimal(fraction)))
        for d, amount in amounts.items()
    }


def _floor(amount: float) -> int:
    """Rounded down, with a tolerance for floating point: 2.9999999999 is 3."""
    return math.floor(amount + 1e-9)


def _enough(amounts: Limits) -> dict[str, Any]:
    """The amounts rounded up, where they need it, to those that are written."""
    return {d: math.ceil(v) if d in _WHOLE else _no_less(v) for d, v in amounts.items()}


def _no_less(amount: float) -> float:
    near = float(in_digits(amount))
    return near if near >= amount else float(_UP.create_decimal(Decimal(amount)))
