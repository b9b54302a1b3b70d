"""How often the best of 8 candidates is found, by the same number of judge calls."""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, count, islice, repeat

from rich.console import Console
from rich.table import Table

from anytime_graph.run.ranking import Match, both_orders, champion, next_match

SIZE = 8
STEEP = {0.6: 0.37, 0.75: 1.18, 0.9: 3.75}
"""Log-odds per unit of quality at which a call about two normal qualities has this accuracy."""
BUDGETS = (14, 28, 56)


@dataclass
class Judge:
    """Scripted. accuracy: chance that a call is right. errs: "evenly", "gap" (more often the closer
    two qualities are; `accuracy` on average) or "always" (the same call gets the same verdict).
    lean: chance that a call names the first-shown whatever it is. Two judges of one seed say the
    same at the same meeting of a pair: common random numbers."""

    seed: int
    accuracy: float
    errs: str = "evenly"
    lean: float = 0.0
    size: int = SIZE

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.quality = [rng.gauss(0, 1) for _ in range(self.size)]
        self.best = max(range(self.size), key=self.quality.__getitem__)
        self.luck = {pair: rng.getrandbits(32) for pair in combinations(range(self.size), 2)}
        self.drawn: dict[tuple[int, int], random.Random] = {}

    def __call__(self, first: int, second: int) -> Match:
        pair = min(first, second), max(first, second)
        if pair not in self.drawn or self.errs == "always":
            self.drawn[pair] = random.Random(self.luck[pair])
        rng = self.drawn[pair]
        said = {order: self.call(*order, rng) for order in (pair, pair[::-1])}
        return both_orders(first, second, said[first, second], said[second, first])

    def call(self, shown: int, other: int, rng: random.Random) -> int:
        gap = abs(self.quality[shown] - self.quality[other])
        sure = 1 / (1 + math.exp(-STEEP[self.accuracy] * gap)) if self.errs == "gap" else 0
        better, worse = sorted((shown, other), key=self.quality.__getitem__, reverse=True)
        right, leans = rng.random() < (sure or self.accuracy), rng.random() < self.lean
        return shown if leans else better if right else worse


def ours(judge: Judge) -> Iterator[int]:
    matches: list[Match] = []
    held = 0
    while pair := next_match(range(judge.size), matches, held):
        matches.append(judge(*pair))
        yield (held := champion(matches, held, len(matches) - 1))
    while True:
        yield held


def gauntlet(judge: Judge) -> Iterator[int]:
    """Challengers in turn, round and round, and every win in both orders takes the place."""
    held = 0
    for n in count():
        challenger = 1 + n % (judge.size - 1)
        match = judge(held, challenger if challenger != held else 0)
        yield (held := held if match.winner is None else match.winner)


def round_robin(judge: Judge) -> Iterator[int]:
    """All pairs in rounds (the circle method), and again. Most wins; a tie is half a win for each,
    and of equals the earlier is taken."""
    ring = list(range(judge.size))
    points = [0.0] * judge.size
    while True:
        for pair in zip(ring[: len(ring) // 2], reversed(ring), strict=False):
            winner = judge(*pair).winner
            for side in pair:
                points[side] += 0.5 if winner is None else float(winner == side)
            yield points.index(max(points))
        ring = [ring[0], ring[-1], *ring[1:-1]]


def knockout(judge: Judge, calls: int) -> int:
    """Single elimination. What the budget allows beyond one comparison for each tie is spread
    evenly; more wins go on, and of equals the higher seed."""
    left = [0, 7, 3, 4, 1, 6, 2, 5]
    while len(left) > 1:
        ties, left = list(zip(left[::2], left[1::2], strict=True)), []
        for tie in ties:
            wins = Counter(judge(*tie).winner for _ in range(calls // 2 // (SIZE - 1)))
            left.append(max(sorted(tie), key=wins.__getitem__))
    return left[0]


ANYTIME: dict[str, Callable[[Judge], Iterator[int]]] = {
    "first draft": lambda judge: repeat(0),
    "round robin": round_robin,
    "gauntlet": gauntlet,
    "ours": ours,
}
"""Who would be returned after each comparison."""
METHODS = (*ANYTIME, "knockout")


def found(
    errs: str, accuracy: float, lean: float, runs: Iterable[int]
) -> dict[tuple[str, int], list[bool]]:
    """Whether a method returned the best for so many calls, in the same tournaments for all."""
    hits: dict[tuple[str, int], list[bool]] = {(m, b): [] for m in METHODS for b in BUDGETS}
    for seed in runs:
        for name, method in ANYTIME.items():
            judge = Judge(seed, accuracy, errs, lean)
            returned = list(islice(method(judge), max(BUDGETS) // 2))
            for calls in BUDGETS:
                hits[name, calls].append(returned[calls // 2 - 1] == judge.best)
        for calls in BUDGETS:
            judge = Judge(seed, accuracy, errs, lean)
            hits["knockout", calls].append(knockout(judge, calls) == judge.best)
    return hits


def lead(mine: Sequence[bool], other: Sequence[bool]) -> tuple[float, float]:
    """By how much more often `mine` is right in the same tournaments, and half the 95 % interval."""
    gaps = [a - b for a, b in zip(mine, other, strict=True)]
    return statistics.mean(gaps), 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps))


def ranking(runs: int = 400) -> None:
    table = Table(
        "judge errs",
        "right",
        "calls",
        *METHODS,
        "ours - round robin",
        "ours - knockout",
        title=f"The best of {SIZE} is returned: %, {runs} tournaments, 95 % intervals",
    )
    for errs, lean in (("evenly", 0.0), ("gap", 0.0), ("evenly", 0.4), ("always", 0.0)):
        for accuracy in STEEP:
            hits = found(errs, accuracy, lean, range(runs))
            for calls in BUDGETS:
                shares = [statistics.mean(hits[name, calls]) for name in METHODS]
                halves = [1.96 * math.sqrt(x * (1 - x) / runs) for x in shares]
                table.add_row(
                    f"{errs}, leans {lean}" if lean else errs,
                    str(accuracy),
                    str(calls),
                    *(f"{100 * x:.1f} ±{100 * h:.1f}" for x, h in zip(shares, halves, strict=True)),
                    *(
                        f"{100 * gap:+.1f} ±{100 * half:.1f}"
                        for gap, half in (
                            lead(hits["ours", calls], hits[other, calls])
                            for other in ("round robin", "knockout")
                        )
                    ),
                )
    Console(width=130).print(table)


if __name__ == "__main__":
    ranking(*map(int, sys.argv[1:]))
