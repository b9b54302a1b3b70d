"""Strategies against a simulated model, over kinds of questions and budgets.

Everything but the model is real: the budget edge plans and slices, strategies choose from its view,
the fold keeps the books. Only the call is simulated: how long a reply is, how good, what a judge
says of it. `python -m tests.bench.simulation [RUNS [PROCESSES [BUDGETS...]]] [FILE]` prints the whole table
and writes it to the file; held-out kinds get an eighth of the runs.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, cast

from langchain_core.messages import HumanMessage

from anytime_graph.budget import Limits, Spend, left, nothing
from anytime_graph.metering.meter import Meter
from anytime_graph.metrics import anytime_index, bootstrap
from anytime_graph.models.tokens import Tokenizer
from anytime_graph.nodes.asking import prompt_of
from anytime_graph.planning.answers import answer_format
from anytime_graph.planning.moves import Move, Stop, Strategy, View
from anytime_graph.planning.plan import plan
from anytime_graph.planning.setup import Setup
from anytime_graph.planning.strategies import STRATEGIES, adaptive, resolve
from anytime_graph.run.calls import (
    JUDGE,
    OWN,
    DraftMove,
    Outcome,
    PlannedCall,
    RefineMove,
    receipt,
    shown_order,
)
from anytime_graph.run.fold import fold
from anytime_graph.run.pairs import Candidate
from anytime_graph.run.state import Decides, State, fresh, merged
from anytime_graph.scoring import Judge

REPLY, DRAFT = 300, 520
"""Tokens of a usual reply, and what pays for 19 of 20 drafts whole, with their prompt: 1x."""
BUDGETS = (1, 2, 4, 8, 16, 32, 64)
SEED = 10_000
"""Constants were chosen on other seeds than those of the table."""
NAMES = [name for name in STRATEGIES if name not in ("self_consistency", "merge")]
"""Not what is best_of_n in all but name, nor what depends on how well a model merges."""
STEPS = 24
"""Points of a run's curve."""
ANSWERS = answer_format("tags")
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
    answers: under a vote, chances of the answers, the right one first. rambling: chance that a draft
    goes on and on. text: what each answer goes on with."""

    decides: Decides
    draft: Callable[[Random, float], float]
    refine: Callable[[Random, float], float] = STILL
    taught: float = 0.0
    accuracy: float = 0.5
    lean: float = 0.0
    answers: Sequence[float] = ()
    rambling: float = 0.0
    text: str = ""


KINDS = {
    "easy": Kind("scorer", mixture(0.5, 1.0, 0.8, 0.001)),
    "hard": Kind("scorer", mixture(-1.0, 1.0, 0.05, 0.001), mixture(-1.0, 1.0, 0.04, 0.001)),
    "bimodal": Kind("scorer", mixture(0.2, 0.8, 0.25, 0.05), moved(0.0, 0.03)),
    "refinable": Kind("scorer", normal(0.35, 0.08), moved(0.08, 0.06)),
    "refinement harmful": Kind("scorer", normal(0.5, 0.15), moved(-0.15, 0.1), taught=-0.1),
    "teachable": Kind("scorer", normal(0.35, 0.12), moved(0.0, 0.05), taught=0.25),
    "rambling": Kind("scorer", normal(0.5, 0.15), rambling=0.15),
    "vote": Kind("vote", normal(0.5, 0.1), answers=(0.42, 0.18, 0.14, 0.12, 0.08, 0.06)),
    "judge useless": Kind("judge", normal(0.5, 0.15), lean=0.5),
    "judge good": Kind("judge", normal(0.5, 0.15), moved(0.03, 0.08), accuracy=0.92),
}


def drawn(decides: Decides, rng: Random) -> Kind:
    """A kind of question at random."""
    u = rng.uniform
    draft = rng.choice(
        [
            normal(u(0.2, 0.7), u(0.03, 0.25)),
            mixture(u(0.0, 0.4), u(0.6, 1.1), u(0.02, 0.7), u(0.001, 0.1)),
        ]
    )
    shares = [rng.random() ** 2 for _ in range(rng.randint(3, 8))]
    return Kind(
        decides,
        draft,
        moved(u(-0.2, 0.12), u(0.02, 0.15)),
        taught=u(-0.15, 0.3),
        accuracy=u(0.5, 1.0),
        lean=u(0.0, 0.6),
        answers=shares if decides == "vote" else (),
    )


HELD_OUT_BY = "seed 2026"
"""No constant was chosen on these."""
HELD_OUT = {
    f"{decides} {n}": drawn(cast(Decides, decides), Random(f"{HELD_OUT_BY}, {decides} {n}"))
    for decides, most in (("scorer", 6), ("vote", 2), ("judge", 4))
    for n in range(1, most + 1)
}


class SimulatedTokenizer(Tokenizer):
    """Counts tokens as it is told: a candidate's text says how long it is, in brackets; of what
    lessons quote of it, 75 tokens."""

    def shape(self, prompt: Sequence[Any]) -> list[float]:
        size = 0.0
        for message in prompt:
            most = 75 if message.type == "system" else math.inf
            sizes = (min(most, int(n)) for n in _SIZE.findall(message.content))
            size += len(message.content) / 4 + sum(sizes)
        return [size]

    def bound(self, of: list[float], calibration: Any, within: bool = False) -> int:
        return int(of[0]) + 10

    def learn(self, calibration: Any, of: list[float], reported: int, base: bool) -> Any:
        return calibration


METER = Meter(
    model=cast(Any, None),
    bound={},
    ceiling=None,
    name="simulated",
    tokenizer=SimulatedTokenizer(),
    prices=None,
)


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

    def reply(self, call: PlannedCall) -> Outcome:
        move, cap = call["move"], call["max_output"]
        forced = move["kind"] == "draft" and move["conclude"] is not None
        what = move["kind"] + ("!" if forced else "")
        rng = Random(f"{self.seed}/{what}/{self.made[what]}")
        self.made[what] += 1
        usual = {"critique": 45, "learn": 45, "draft!": 20}.get(what, REPLY)
        wanted = max(5, int(rng.lognormvariate(math.log(usual), 0.2)))
        if what == "draft" and self.kind.rambling and rng.random() < self.kind.rambling:
            wanted *= 20
        written = wanted if cap is None else min(wanted, cap)
        outcome = _outcome(call, written)
        if move["kind"] == "draft" or move["kind"] == "refine":
            outcome["candidate"] = self._answer(call, move, rng, what, written / wanted, written)
        elif move["kind"] == "learn":
            outcome["why"], outcome["principles"] = "so", ["Do it well."]
        else:
            second = move["second"]
            outcome["preferred"], outcome["why"] = None, "so"
            if "among" in move:
                outcome["preferred"] = self._choice(rng, shown_order(move))
            elif second is not None and written == wanted:
                outcome["preferred"] = self._verdict(rng, move["first"], second, move["swapped"])
        return outcome

    def _answer(
        self,
        call: PlannedCall,
        move: DraftMove | RefineMove,
        rng: Random,
        what: str,
        part: float,
        written: int,
    ) -> Candidate:
        """A cut reply holds a tentative answer the likelier and the better the longer it is."""
        i = call["ordinal"]
        if move["kind"] == "refine":
            quality = self.kind.refine(rng, self.quality[move["of"]])
            parents = [move["of"]]
        elif move["conclude"] is None:
            quality = self.kind.draft(rng, self.hard)
            quality = clip(quality + self.kind.taught * move["with_pairs"])
            parents = []
        else:
            quality, part, parents = 0.8 * self.quality[move["conclude"]], 1.0, [move["conclude"]]
        answer = f"a{i}" + self.kind.text
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
            spent=nothing(),
            votes=0,
            lost=False,
            message_id=None,
            taught=move["with_pairs"],
        )

    def _choice(self, rng: Random, order: Sequence[int]) -> int:
        """The winner of comparisons one after the other, or whatever is shown first."""
        if rng.random() < self.kind.lean:
            return order[0]
        named = order[0]
        for each in order[1:]:
            worse, better = sorted((named, each), key=self.quality.__getitem__)
            named = better if rng.random() < self.kind.accuracy else worse
        return named

    def _verdict(self, rng: Random, first: int, second: int, swapped: bool) -> int:
        if rng.random() < self.kind.lean:
            return second if swapped else first
        better, worse = sorted((first, second), key=self.quality.__getitem__, reverse=True)
        return better if rng.random() < self.kind.accuracy else worse


def _outcome(call: PlannedCall, written: int) -> Outcome:
    read = call["max_input"]
    spend: Spend = {**nothing(), "tokens": read + written, "input_tokens": read, "calls": 1}
    spend["output_tokens"] = written
    return Outcome(call=call, receipt={**receipt(0.0, 0.0), "spend": spend})


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
        meters={OWN: METER, JUDGE: METER},
        prompt_of=partial(prompt_of, ANSWERS, None),
        answers=ANSWERS,
        strategy=resolve(strategy),
        decides=kind.decides,
        scorer=None,
        judge=Judge(),
        width=8,
        **options,
    )


def asked(question: str, limits: Limits) -> State:
    """A run that begins."""
    state = merged(fresh("q", {}, 1, "t", limits), State(messages=[HumanMessage(question, id="q")]))
    state["remaining_steps"] = cast(Any, 10_000)
    return state


def simulate(rules: Setup, kind: Kind, seed: int, limits: Limits, until: float = math.inf) -> Run:
    """One question. until: tokens at which somebody stops it."""
    model, points, state = Model(kind, seed), [(0, 0.0)], asked("Why?", limits)
    while state["spent"]["tokens"] < until:
        planned = plan(rules, state, stopped=False)
        if isinstance(planned, Stop):
            return Run(points, state, planned.reason)
        staked = sum(call["max_input"] + (call["max_output"] or math.inf) for call, _ in planned)
        assert limits or staked <= max(5_000, 3 * state["spent"]["tokens"])
        replies = [model.reply(call) for call, _ in planned]
        before, spent = state, state["spent"]["tokens"]
        state = merged(
            state, fold({**state, "returned": replies}, 8, kind.decides, rules.tokenizers)
        )
        assert all(amount >= 0 for amount in left(limits, state["spent"]).values())
        assert all(state["spent"][d] <= most for d, most in limits.items())  # type: ignore[literal-required]
        if kind.decides == "scorer":  # the better answer is announced as it arrives
            best = (before["best"] or {}).get("score") or 0.0
            for o in replies:
                spent += o["receipt"]["spend"]["tokens"]
                if "candidate" in o and (o["candidate"]["score"] or 0.0) > best:
                    best = o["candidate"]["score"] or 0.0
                    points.append((spent, best))
        elif state["best"] is not None:
            points.append((state["spent"]["tokens"], model.quality[state["best"]["id"]]))
    return Run(points, state, "interrupted")


def cell(task: tuple[str, int, str, int]) -> list[float]:
    """The index of each run."""
    name, budget, strategy, runs = task
    kind, tokens = (KINDS | HELD_OUT)[name], budget * DRAFT
    rules = setup(kind, strategy)
    return [simulate(rules, kind, SEED + i, {"tokens": tokens}).index(tokens) for i in range(runs)]


Found = dict[tuple[str, int, str], list[float]]
"""Indices by kind of question, budget and strategy."""


def measured(runs: int, processes: int, budgets: Sequence[int]) -> Found:
    asked_for = product(reversed(KINDS | HELD_OUT), sorted(budgets, reverse=True), NAMES)
    tasks = [(k, b, s, runs if k in KINDS else max(2, runs // 8)) for k, b, s in asked_for]
    found = []
    with get_context("spawn").Pool(processes) as pool:
        for indices in pool.imap(cell, tasks):
            found.append(indices)
            print(f"\r{len(found)} of {len(tasks)} cells", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {(k, b, s): indices for (k, b, s, _), indices in zip(tasks, found, strict=True)}


def told(title: str, kinds: Iterable[str], budgets: Sequence[int], found: Found) -> Iterator[str]:
    """A grid as Markdown."""
    cells, fixed = list(product(kinds, budgets)), [n for n in NAMES if n != "adaptive"]
    runs = len(found[*cells[0], "adaptive"])
    yield f"## {title}\n\n{runs:,} runs a cell.\n\n| strategy | mean over the grid | 95 % interval |\n|---|---|---|"
    for n in NAMES:
        means = [statistics.fmean(found[*c, n][i] for c in cells) for i in range(runs)]
        low, mean, high = bootstrap(means, resamples=500)
        yield f"| {n} | {mean:.4f} | {low:.4f} to {high:.4f} |"
    rows, ratios = [], []
    for k, b in cells:
        ours, best = found[k, b, "adaptive"], max(fixed, key=lambda n: sum(found[k, b, n]))
        theirs = found[k, b, best]
        mean = statistics.fmean(theirs) or 1e-9  # too few runs to see any
        ratio = statistics.fmean(ours) / mean
        off = statistics.stdev(a - ratio * t for a, t in zip(ours, theirs, strict=True))
        half = 1.96 * off / math.sqrt(runs) / mean
        ratios.append((ratio, f"{k} {b}x"))
        row = f"{k} | {b}x | {best} | {mean:.4f} | {ratio * mean:.4f} | {ratio:.3f} ± {half:.3f}"
        rows.append(f"| {row} |")
    below = [f"{name} ({ratio:.3f})" for ratio, name in sorted(ratios) if ratio < 0.95]
    yield f"\nCells in which adaptive is below 0.95 of the best fixed strategy, of {len(cells)}:"
    yield f"{', '.join(below) or 'none'}.\n"
    yield "| question | budget | best fixed | its index | adaptive | ratio |"
    yield "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


def report(found: Found, command: str) -> str:
    """docs/results/simulation.md."""
    budgets = sorted({b for _, b, _ in found})
    return "\n".join(
        [
            f"""    {command}

# Adaptive against the fixed strategies, simulated

The Anytime Index of the answer that would be returned, with common random numbers and 95 % intervals.
Only the model's call is simulated: planner, strategies and fold are the real ones. 1x is what pays for
19 of 20 drafts. The best fixed strategy of a cell is chosen by these same runs. self_consistency is
best_of_n here: who decides belongs to the question.

A decision of adaptive takes {decisions():.2f} ms in the median.
""",
            *told("Kinds of questions that constants were chosen on", KINDS, budgets, found),
            *told(f"Held out: kinds drawn at random, {HELD_OUT_BY}", HELD_OUT, budgets, found),
        ]
    )


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
    asked_for = [int(n) for n in sys.argv[1:] if n.isdecimal()] or [2_000, 2]
    found = measured(asked_for[0], asked_for[1], asked_for[2:] or BUDGETS)
    text = report(found, " ".join(["python -m tests.bench.simulation", *sys.argv[1:]]))
    for file in (Path(word) for word in sys.argv[1:] if not word.isdecimal()):
        file.write_text(text, encoding="utf-8")
    print(text)
