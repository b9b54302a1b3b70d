"""The figures of a benchmark: qualities with intervals, differences, indices and costs.

The seeds of a question are averaged first. Intervals are over questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, cast

from anytime_graph.benchmark.cells import (
    PREPARATION,
    UNITS,
    CallGains,
    Cell,
    Protocol,
    Record,
    no_gains,
)
from anytime_graph.budget import Spend, total
from anytime_graph.metrics import (
    Difference,
    Interval,
    anytime_index,
    best_so_far,
    bootstrap,
    budget_to_reach,
    gain_per_token,
    mean,
    paired,
)

Rows = Sequence[Sequence[float]]
"""For each question, a quality for each budget."""
_RESAMPLES = 1_000
METRICS = {
    "csr": "the share of constraints met",
    "accuracy": "accuracy",
    "assertions": "the share of the assertions met that the scorer does not see",
}
"""What quality is, by a task's metric. csr: the constraint satisfaction rate."""
_CACHED = 0.1
"""The cost of a cached input token in tokens, where no prices are known."""


@dataclass(frozen=True)
class Cost:
    """The charges of a strategy's cells. judging, answering: tokens of them for the judge, and for
    forced answers. pairs: preference pairs that they made."""

    cells: int
    spent: Spend
    judging: int
    answering: int
    pairs: int


@dataclass(frozen=True)
class Use:
    """What a strategy did with a budget; a value for each question. solved: the share of runs that
    returned an answer of score 1. covered: the share in which any answer was one. chance: what a
    random choice among a run's answers gives, None if the records do not tell. seen: what the scorer
    gave the answer returned, None if that is the quality itself. tokens: spent for each run."""

    solved: Sequence[float]
    covered: Sequence[float]
    chance: Sequence[float] | None
    seen: Sequence[float] | None
    tokens: Sequence[float]


@dataclass(frozen=True)
class MeanQuality:
    """A strategy at a budget, and its mean quality."""

    strategy: str
    budget: int
    quality: float


@dataclass(frozen=True)
class Figures:
    """The figures of one task.

    returned, oracle: qualities by strategy, of the answer returned, and of the truly best answer so
    far for each question and seed. left_out: questions without all cells, left out of comparisons.
    brought: by strategy and kind of call, the gains for each question at the largest budget, after
    the opening; empty if the records lack them. charged: by strategy, the mean cost of a cell at
    each budget, in USD if `priced`, else in tokens, where cached input counts a tenth. uses: by
    strategy, what it did with each budget; only of the protocol `run`. unscored: how often the
    scorer failed on an answer. estimated: some prefixes were cut by an estimate.
    """

    task: str
    protocol: Protocol
    model: str
    decide: str
    metric: str
    about: str
    strategies: Sequence[str]
    budgets: Sequence[int]
    seeds: int
    questions: Sequence[str]
    left_out: int
    returned: dict[str, Rows]
    oracle: dict[str, Rows]
    costs: dict[str, Cost]
    charged: dict[str, Sequence[float]]
    brought: dict[str, dict[str, Sequence[CallGains]]]
    uses: dict[str, Sequence[Use]]
    priced: bool
    baseline: str
    unscored: int
    estimated: bool
    q_max: float = 1.0
    origin: bool = False

    @property
    def unit(self) -> str:
        return UNITS[self.protocol]

    def quality(self, strategy: str, at: int) -> Interval:
        return bootstrap([row[at] for row in self.returned[strategy]])

    def means(self, strategy: str) -> list[float]:
        return _columns(self.returned[strategy])

    def difference(self, strategy: str, at: int) -> Difference:
        """The difference in quality from the baseline, on the same questions."""
        ours, theirs = self.returned[strategy], self.returned[self.baseline]
        return paired([row[at] for row in ours], [row[at] for row in theirs])

    def index_difference(self, strategy: str) -> Difference:
        """The difference in the index of answers returned. Needs two budgets."""
        ours, theirs = (
            [
                anytime_index(self.budgets, row, **self._terms, oracle=False)
                for row in self.returned[s]
            ]
            for s in (strategy, self.baseline)
        )
        return paired(ours, theirs)

    @property
    def _terms(self) -> dict[str, Any]:
        return {"q_max": self.q_max, "origin": self.origin}

    def index(self, strategy: str, of: str) -> Interval:
        """The Anytime Index. of: "returned"; "paper", where the best so far is taken on the mean
        curve; or "oracle". Needs two budgets."""
        rows = self.oracle[strategy] if of == "oracle" else self.returned[strategy]
        return _bootstrap_interval(
            rows,
            lambda means: anytime_index(self.budgets, means, **self._terms, oracle=of == "paper"),
        )

    def for_the_cost(self, strategy: str, at: int) -> tuple[Interval, bool] | None:
        """The quality of a strategy for the baseline's cost at a budget, interpolated between the
        strategy's own budgets; and whether its largest budget costs less than that. None if its
        smallest budget costs more."""
        cost, own = self.charged[self.baseline][at], self.charged[strategy]
        reached = _qualities_for(self.returned[strategy], own, cost)
        return None if reached is None else (bootstrap(reached), own[-1] < cost)

    def tokens(self, strategy: str) -> list[float]:
        """The mean tokens of a run at each budget."""
        return [mean(use.tokens) for use in self.uses[strategy]]

    def at_equal_tokens(self, strategy: str, other: str, at: int) -> Difference | None:
        """The difference in quality from another strategy at a budget, on the same questions, for the
        tokens that the other one spends there. None if the strategy's smallest budget takes more."""
        cost = self.tokens(other)[at]
        reached = _qualities_for(self.returned[strategy], self.tokens(strategy), cost)
        theirs = [row[at] for row in self.returned[other]]
        return None if reached is None else paired(reached, theirs)

    def tokens_per_solved(self, strategy: str, at: int) -> float | None:
        """Tokens spent for each answer of score 1 that was returned; None if there is none."""
        use = self.uses[strategy][at]
        # Runs of 300 and 500 tokens, one of them solved: 800 tokens for one.
        return sum(use.tokens) / sum(use.solved) if any(use.solved) else None

    def rises(self, strategy: str, kind: str) -> Interval:
        """The rise of the best score so far for each 1,000 tokens of calls of a kind."""
        rows = [(gains["rise"], gains["tokens"]) for gains in self.brought[strategy][kind]]
        return _bootstrap_interval(rows, lambda means: 1_000 * means[0] / max(1e-9, means[1]))

    def gain(self, strategy: str) -> Interval:
        """The rise in quality for each 1,000 tokens, from the smallest budget to the largest."""
        return _bootstrap_interval(
            self.returned[strategy], lambda means: 1_000 * gain_per_token(self.budgets, means)
        )

    def reached(self, strategy: str, quality: float) -> int | None:
        """The smallest budget at which the strategy reaches the quality, or None."""
        budget = budget_to_reach(self.budgets, best_so_far(self.means(strategy)), quality)
        return None if budget is None else int(budget)

    @cached_property
    def best(self) -> MeanQuality:
        """The highest mean quality; of equal ones, that at the smallest budget."""
        return max(self._choices(), key=lambda c: (c.quality, -c.budget))

    def cheapest(self, share: float) -> MeanQuality:
        """The best at the smallest budget where any reaches `share` of the highest quality."""
        enough = [c for c in self._choices() if c.quality >= share * self.best.quality]
        return min(enough, key=lambda c: (c.budget, -c.quality))

    def best_at(self, at: int) -> MeanQuality:
        here = [c for c in self._choices() if c.budget == self.budgets[at]]
        return max(here, key=lambda c: c.quality)

    def _choices(self) -> list[MeanQuality]:
        return [
            MeanQuality(name, budget, quality)
            for name in self.strategies
            for budget, quality in zip(self.budgets, self.means(name), strict=True)
        ]


def figures(
    cells: Sequence[Cell],
    records: Sequence[Record],
    *,
    metric: str,
    about: str,
    baseline: str,
    q_max: float = 1.0,
    origin: bool = False,
) -> Figures:
    """The figures of these cells, all of one task. Raises ValueError if no question has all its
    cells."""
    by_cell = {record["cell"]: record for record in records}
    by_question = defaultdict[str, list[Cell]](list)
    for cell in cells:
        by_question[cell.question.id].append(cell)
    whole = [q for q, own in by_question.items() if all(c.name in by_cell for c in own)]
    if not whole:
        raise ValueError(f"{cells[0].settings.task}: no question has been measured in full yet")
    strategies = list(dict.fromkeys(cell.strategy for cell in cells))
    settings = cells[0].settings
    returned: dict[str, Rows] = {}
    oracle: dict[str, Rows] = {}
    for name in strategies:
        per_question = [
            [by_cell[c.name] for c in by_question[q] if c.strategy == name] for q in whole
        ]
        returned[name] = [_mean(_by_seed(own, "scores")) for own in per_question]
        oracle[name] = [
            _mean(list(accumulate(row, max)) for row in _by_seed(own, "oracle"))
            for own in per_question
        ]
    measured = [by_cell[cell.name] for cell in cells if cell.name in by_cell]
    prepared = [record for record in records if record["strategy"] == PREPARATION]
    groups = {name: [r for r in measured if r["strategy"] == name] for name in strategies}
    compared = {name: [r for r in own if r["question"] in whole] for name, own in groups.items()}
    priced = any(r["spent"]["usd"] for r in measured)
    return Figures(
        task=settings.task,
        protocol=settings.protocol,
        model=measured[0]["model"],
        decide=settings.decide,
        metric=metric,
        about=about,
        strategies=strategies,
        budgets=settings.budgets,
        seeds=len({cell.seed for cell in cells}),
        questions=whole,
        left_out=len(by_question) - len(whole),
        returned=returned,
        oracle=oracle,
        costs={
            name: _cost(group) for name, group in {**groups, PREPARATION: prepared}.items() if group
        },
        charged=_mean_costs(compared, settings.budgets, priced)
        if settings.protocol == "run"
        else {},
        brought={
            name: _gains_per_question(own, settings.budgets[-1], whole)
            for name, own in compared.items()
        },
        uses={
            name: [_use(own, budget, whole) for budget in settings.budgets]
            for name, own in compared.items()
        }
        if settings.protocol == "run"
        else {},
        priced=priced,
        baseline=baseline,
        unscored=sum(record["unscored"] for record in measured),
        estimated=any(record.get("cut") == "estimate" for record in measured),
        q_max=q_max,
        origin=origin,
    )


def _use(records: Sequence[Record], budget: int, questions: Sequence[str]) -> Use:
    rows = [record for record in records if record["budgets"] == [budget]]
    own = {q: [row for row in rows if row["question"] == q] for q in questions}

    def means(value: Callable[[Record], float]) -> list[float]:
        return [mean([value(row) for row in of]) for of in own.values()]

    return Use(
        means(lambda row: row["scores"][0] >= 1),
        means(lambda row: row["oracle"][0] >= 1),
        means(lambda row: row["chance"]) if all("chance" in row for row in rows) else None,
        means(lambda row: row["seen"][0]) if all("seen" in row for row in rows) else None,
        means(lambda row: row["spent"]["tokens"]),
    )


def _qualities_for(rows: Rows, own: Sequence[float], cost: float) -> list[float] | None:
    """The quality of each question for a cost, interpolated between the costs at each budget; that at
    the last budget for more. None for less than the first."""
    affordable = [i for i, charge in enumerate(own) if charge <= cost]
    if not affordable:
        return None
    i = affordable[-1]
    # Costs of 100 and 200 at two budgets, 150 to spend: half way between.
    part = (cost - own[i]) / (own[i + 1] - own[i]) if i + 1 < len(own) else 0.0
    return [row[i] + part * (after[i + 1] - row[i]) for row in rows for after in [(*row, row[-1])]]


def _by_seed(records: Sequence[Record], what: Literal["scores", "oracle"]) -> list[list[float]]:
    """For each seed, the values at all budgets, ascending. A record holds one budget or all."""
    seeds = defaultdict[int, dict[int, float]](dict)
    for record in records:
        values: list[float] = record[what]
        seeds[record["seed"]].update(zip(record["budgets"], values, strict=True))
    return [[values[b] for b in sorted(values)] for values in seeds.values()]


def _cost(records: Sequence[Record]) -> Cost:
    return Cost(
        len(records),
        total(record["spent"] for record in records),
        sum(record["judging"] for record in records),
        sum(record["answering"] for record in records),
        sum(record["pairs"] for record in records),
    )


def _gains_per_question(
    records: Sequence[Record], budget: int, questions: Sequence[str]
) -> dict[str, Sequence[CallGains]]:
    """By kind of call, the gains of each question, summed over seeds."""
    by_kind: dict[str, dict[str, CallGains]] = {}
    for record in records:
        for kind, new in record.get("brought", {}).items() if record["budgets"] == [budget] else ():
            gains = by_kind.setdefault(kind, {q: no_gains() for q in questions})
            sums = cast("dict[str, float]", gains[record["question"]])
            sums.update({name: sums[name] + gain for name, gain in cast(Any, new).items()})
    return {kind: list(gains.values()) for kind, gains in by_kind.items()}


def _mean_costs(
    groups: Mapping[str, Sequence[Record]], budgets: Sequence[int], priced: bool
) -> dict[str, Sequence[float]]:
    """By strategy, the mean cost of a run at each budget."""

    def cost(s: Spend) -> float:
        return s["usd"] if priced else s["tokens"] - (1 - _CACHED) * s["cached_tokens"]

    return {
        name: [mean([cost(r["spent"]) for r in own if r["budgets"] == [b]]) for b in budgets]
        for name, own in groups.items()
    }


def _mean(rows: Iterable[Sequence[float]]) -> list[float]:
    return _columns(list(rows))


def _columns(rows: Rows) -> list[float]:
    return [mean(column) for column in zip(*rows, strict=True)]


def _bootstrap_interval(rows: Rows, statistic: Callable[[list[float]], float]) -> Interval:
    return bootstrap(rows, lambda drawn: statistic(_columns(drawn)), resamples=_RESAMPLES)
