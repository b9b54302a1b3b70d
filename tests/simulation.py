"""Strategies against a simulated model, over kinds of questions and budgets.

Everything but the model is real: the budget edge plans and slices, strategies choose from its view,
the fold keeps the books. Only the call is simulated: how long a reply is, how good, what a judge
says of it. `python -m tests.simulation [RUNS] [PROCESSES]` prints the whole table.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, cast

from langchain_core.messages import HumanMessage
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from anytime_graph.budget import Limits, Spend, left, nothing
from anytime_graph.metering import Gate
from anytime_graph.metrics import anytime_index, bootstrap
from anytime_graph.nodes.answers import asked
from anytime_graph.pairs import Candidate
from anytime_graph.planning import Setup, plan
from anytime_graph.scoring import Judge
from anytime_graph.state import OWN, PLAIN, Decides, Outcome, State, Task, fold, fresh, merged
from anytime_graph.strategies import STRATEGIES, Move, Stop, Strategy, View, adaptive, resolve

REPLY, DRAFT = 300, 520
"""Tokens of a usual reply, and what pays for 19 of 20 drafts whole, with their prompt: 1x."""
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
SEED = 10_000
"""Constants were chosen on other seeds than those of the table."""
STEPS = 24
"""Points of a run's curve."""
ASKED = asked("tags")
_SIZE = re.compile(r"\[(\d+)\]")


def clip(x: float) -> float:
    return min(1.0, max(0.0, x))


def normal(mean: float, sd: float) -> Callable[[Random, float], float]:
    return lambda rng, hard: clip(rng.gauss(mean + hard, sd))


def mixture(low: float, high: float, chance: float, sd: float) -> Callable[[Random, float], float]:
    return lambda rng, hard: clip(rng.gauss(high if rng.random() < chance else low, sd))


def moved(mean: float, sd: float) -> Callable[[Random, float], float]:
    return lambda rng, parent: clip(parent + rng.gauss(mean, sd))


STILL = moved(0.0, 0.05)


@dataclass(frozen=True)
class Kind:
    """draft: the quality of a whole draft, by chance and the question's difficulty. refine: of a
    refinement, by chance and the quality it builds on. taught: what lessons add to a draft.
    accuracy: of a call of the judge; lean: chance that it names the first shown whatever it is.
    answers: under a vote, chances of the answers, the right one first."""

    decides: Decides
    draft: Callable[[Random, float], float]
    refine: Callable[[Random, float], float] = STILL
    taught: float = 0.0
    accuracy: float = 0.5
    lean: float = 0.0
    answers: Sequence[float] = ()


KINDS = {
    "easy": Kind("scorer", mixture(0.5, 1.0, 0.8, 0.001)),
    "hard": Kind("scorer", mixture(-1.0, 1.0, 0.05, 0.001), mixture(-1.0, 1.0, 0.04, 0.001)),
    "bimodal": Kind("scorer", mixture(0.2, 0.8, 0.25, 0.05), moved(0.0, 0.03)),
    "refinable": Kind("scorer", normal(0.35, 0.08), moved(0.08, 0.06)),
    "refinement harmful": Kind("scorer", normal(0.5, 0.15), moved(-0.15, 0.1), taught=-0.1),
    "teachable": Kind("scorer", normal(0.35, 0.12), moved(0.0, 0.05), taught=0.25),
    "vote": Kind("vote", normal(0.5, 0.1), answers=(0.42, 0.18, 0.14, 0.12, 0.08, 0.06)),
    "judge useless": Kind("judge", normal(0.5, 0.15), lean=0.5),
    "judge good": Kind("judge", normal(0.5, 0.15), moved(0.03, 0.08), accuracy=0.92),
}


class SimulatedGate:
    """Counts tokens as it is told: a candidate's text says how long it is, in brackets; of what
    lessons quote of it, 75 tokens."""

    name, prices = "simulated", None

    def shape(self, prompt: Sequence[Any]) -> list[float]:
        size = 0.0
        for message in prompt:
            most = 75 if message.type == "system" else math.inf
            told = (min(most, int(n)) for n in _SIZE.findall(message.content))
            size += len(message.content) / 4 + sum(told)
        return [size]

    def bound(self, shape: list[float], known: Any, within: bool = False) -> int:
        return int(shape[0]) + 10

    def learn(self, known: Any, *_: Any, **__: Any) -> Any:
        return known

    amounts = Gate.amounts

    def cap(self, paid: int | None) -> int | None:
        return paid


GATE = cast(Gate, SimulatedGate())


@dataclass
class Model:
    """Draws by what is asked for and how often it was asked, so that all strategies get the same
    n-th draft of a question: common random numbers."""

    kind: Kind
    seed: int
    quality: dict[int, float] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.hard = Random(self.seed).gauss(0, 0.08)

    def reply(self, task: Task) -> Outcome:
        move = task["move"]
        what = move["kind"] + ("!" if move.get("conclude") is not None else "")
        rng = Random(f"{self.seed}/{what}/{self.made[what]}")
        self.made[what] += 1
        usual = {"critique": 45, "learn": 45, "draft!": 20}.get(what, REPLY)
        wanted = max(5, int(rng.lognormvariate(math.log(usual), 0.2)))
        written = wanted if task["room"] is None else min(wanted, task["room"])
        outcome = _outcome(task, written)
        if move["kind"] in ("draft", "refine"):
            outcome["candidate"] = self._answer(task, rng, what, written / wanted, written)
        elif move["kind"] == "learn":
            outcome["why"], outcome["principles"] = "so", ["Do it well."]
        else:
            second = move["second"]
            outcome["preferred"], outcome["why"] = None, "so"
            if second is not None and written == wanted:
                outcome["preferred"] = self._verdict(rng, move["first"], second, task["swapped"])
        return outcome

    def _answer(self, task: Task, rng: Random, what: str, part: float, written: int) -> Candidate:
        """A cut reply holds a tentative answer the likelier and the better the longer it is."""
        move, i = task["move"], task["ordinal"]
        if what == "refine":
            quality = self.kind.refine(rng, self.quality[move["of"]])
            parents = [move["of"]]
        elif what == "draft":
            quality = self.kind.draft(rng, self.hard)
            quality = clip(quality + self.kind.taught * task["move"]["taught"])
            parents = []
        else:
            quality, part, parents = 0.8 * self.quality[move["conclude"]], 1.0, [move["conclude"]]
        answer = f"a{i}"
        if self.kind.answers:
            at = rng.choices(range(len(self.kind.answers)), self.kind.answers)[0]
            at = at if rng.random() < part else len(self.kind.answers) + i
            answer, quality = f"v{at}", float(at == 0)
        complete = part >= 1.0 or rng.random() < 0.7 * part
        if part < 1.0 and not self.kind.answers:
            quality *= part if complete else 0.3 * part
        elif not complete:
            answer, quality = f"a{i}", 0.0
        self.quality[i] = quality
        return Candidate(
            id=i,
            node="conclude" if what == "draft!" else what,
            answer=answer,
            text=f"{answer} a{i} [{written}]",
            complete=complete,
            score=quality if self.kind.decides == "scorer" else None,
            feedback=None,
            right=None,
            satisfied=False,
            parents=parents,
            spent=task["spent"],
            votes=0,
            lost=False,
            message_id=None,
            taught=move.get("taught", False),
        )

    def _verdict(self, rng: Random, first: int, second: int, swapped: bool) -> int:
        if rng.random() < self.kind.lean:
            return second if swapped else first
        better, worse = sorted((first, second), key=self.quality.__getitem__, reverse=True)
        return better if rng.random() < self.kind.accuracy else worse


def _outcome(task: Task, written: int) -> Outcome:
    read = task["prompt_bound"]
    spend: Spend = {**nothing(), "tokens": read + written, "input_tokens": read, "calls": 1}
    spend["output_tokens"] = written
    return Outcome(
        ordinal=task["ordinal"],
        move=task["move"],
        swapped=task["swapped"],
        gate=task["gate"],
        spend=spend,
        started=0.0,
        ended=0.0,
        shape=task["shape"],
        reported=None,
        room=task["room"],
        starved=False,
        failed=False,
        refused=False,
        lost=False,
        interrupted=False,
        retry_after=0.0,
        errors=[],
    )


@dataclass
class Run:
    """points: (tokens spent, true quality of the answer that would be returned)."""

    points: list[tuple[int, float]]
    state: State
    reason: str

    def at(self, spent: float) -> float:
        """The quality in hand at a spend; 0 before the first answer."""
        return next((q for tokens, q in reversed(self.points) if tokens <= spent), 0.0)

    def index(self, budget: float) -> float:
        """The Anytime Index of the returned answer, within a budget."""
        budgets = [budget * (i + 1) / STEPS for i in range(STEPS)]
        return anytime_index(budgets, [self.at(b) for b in budgets], oracle=False)


def setup(kind: Kind, strategy: str | Strategy, **options: Any) -> Setup:
    return Setup(
        gates={OWN: GATE, PLAIN: GATE},
        asked=ASKED,
        strategy=resolve(strategy),
        decides=kind.decides,
        scorer=None,
        judge=Judge(),
        width=8,
        **options,
    )


def simulate(rules: Setup, kind: Kind, seed: int, limits: Limits, until: float = math.inf) -> Run:
    """One question. until: tokens at which somebody stops it."""
    model, points = Model(kind, seed), [(0, 0.0)]
    state = merged(fresh("q", {}, 1, "t", limits), State(messages=[HumanMessage("Why?", id="q")]))
    state["remaining_steps"] = cast(Any, 10_000)
    while state["spent"]["tokens"] < until:
        planned = plan(rules, state, stopped=False)
        if isinstance(planned, Stop):
            return Run(points, state, planned.reason)
        replies = [model.reply(task) for task in planned]
        before, spent = state, state["spent"]["tokens"]
        state = merged(state, fold({**state, "returned": replies}, 8, kind.decides, rules.learn))
        assert all(amount >= 0 for amount in left(limits, state["spent"]).values())
        assert all(state["spent"][d] <= most for d, most in limits.items())  # type: ignore[literal-required]
        if kind.decides == "scorer":  # the better answer is announced as it arrives
            best = (before["best"] or {}).get("score") or 0.0
            for o in replies:
                spent += o["spend"]["tokens"]
                if "candidate" in o and (o["candidate"]["score"] or 0.0) > best:
                    best = o["candidate"]["score"] or 0.0
                    points.append((spent, best))
        elif state["best"] is not None:
            points.append((state["spent"]["tokens"], model.quality[state["best"]["id"]]))
    return Run(points, state, "interrupted")


def cell(task: tuple[str, int, str, int]) -> list[float]:
    """The index of each run."""
    name, budget, strategy, runs = task
    kind, tokens = KINDS[name], budget * DRAFT
    rules = setup(kind, strategy)
    return [simulate(rules, kind, SEED + i, {"tokens": tokens}).index(tokens) for i in range(runs)]


def table(runs: int, processes: int, budgets: Sequence[int], names: Sequence[str]) -> int:
    """Prints the cells, and returns how many do not hold."""
    cells = list(product(KINDS, budgets))
    tasks = [(k, b, s, runs) for k, b in reversed(cells) for s in names if s != "self_consistency"]
    with get_context("spawn").Pool(processes) as pool:
        found = dict(zip(tasks, pool.map(cell, tasks, chunksize=1), strict=True))
    for k, b in cells:  # they differ in who decides, which is the question's here
        found[k, b, "self_consistency", runs] = found[k, b, "best_of_n", runs]
    shown = Table(title=f"Anytime Index of the returned answer, {runs} runs a cell, 95 % intervals")
    for column in ("question", "budget", *names, "adaptive / best fixed"):
        shown.add_column(column)
    fixed = [n for n in names if n != "adaptive"]
    bad = 0
    for k, b in cells:
        of = {n: found[k, b, n, runs] for n in names}
        best = max(fixed, key=lambda n: statistics.fmean(of[n]))
        ratio = statistics.fmean(of["adaptive"]) / statistics.fmean(of[best])
        bad += ratio < 0.95
        halves = {n: 1.96 * statistics.stdev(of[n]) / math.sqrt(runs) for n in names}
        row = [f"{statistics.fmean(of[n]):.3f} ±{halves[n]:.3f}" for n in names]
        shown.add_row(k, f"{b}x", *row, f"{ratio:.3f} {best}" + (" !" if ratio < 0.95 else ""))
    Console(width=200).print(shown)
    for n in names:
        rows = [[statistics.fmean(found[k, b, n, runs][i] for k, b in cells)] for i in range(runs)]
        low, mean, high = bootstrap([row[0] for row in rows], resamples=500)
        print(f"{n:18} mean over the grid {mean:.4f} [{low:.4f}, {high:.4f}]")
    return bad


def decisions() -> float:
    """Milliseconds of processor time that adaptive takes to choose, in the median."""
    times: list[float] = []

    def timed(view: View) -> Sequence[Move]:
        begun = time.process_time_ns()
        moves = adaptive(view)
        times.append((time.process_time_ns() - begun) / 1e6)
        return moves

    for kind in KINDS.values():
        for seed in range(4):
            simulate(setup(kind, timed), kind, seed, {"tokens": 32 * DRAFT})
    return statistics.median(times)


if __name__ == "__main__":
    asked_for = [int(n) for n in sys.argv[1:]] or [2_000, 2]
    bad = table(asked_for[0], asked_for[1], asked_for[2:] or BUDGETS, list(STRATEGIES))
    print(f"a decision takes {decisions():.3f} ms in the median")
    print(bad, "cells below 0.95 of the best fixed strategy")
