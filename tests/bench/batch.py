"""A batch under one budget against an equal share for each question, on a simulated model, at equal spend.

`python -m tests.bench.batch [RUNS]`: each run has other questions and other replies; the last column is
the difference in right answers, with a 95% interval over runs.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
from itertools import pairwise
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console
from rich.table import Table

from anytime_graph import Budget, BudgetTooSmall, NoAnswer, create_anytime_graph
from anytime_graph.batch import batch
from anytime_graph.metrics import paired
from tests.kit.server import Reply, serving

QUESTIONS = 200
_KINDS = ((0.4, 0.9), (0.2, 0.5), (0.2, 0.15), (0.2, 0.0))
"""How many of the questions have which chance of a right reply."""
_TOTALS = (200, 300)
_SHARES = (200, 300, 450, 700, 1_200, 2_400)
"""Tokens for each question, all together and apart."""


def _chances(seed: int) -> list[float]:
    chances = [chance for part, chance in _KINDS for _ in range(round(part * QUESTIONS))]
    random.Random(seed).shuffle(chances)
    return chances


def _scored(question: str, answer: str) -> float:
    return float(answer.endswith("right"))


def _right(seed: int, share: int, together: bool) -> tuple[int, int]:
    """(right answers, tokens served) with `share` tokens for each question, or all together."""
    chances = _chances(seed)

    def script(request: dict[str, Any], i: int) -> Reply:
        found = re.search(r"question (\d+)", str(request["messages"]))
        assert found
        draw = random.Random(f"{seed}/{found[1]}/{request['seed']}")
        right = draw.random() < chances[int(found[1])]
        words = "so " * draw.randint(20, 60)
        return Reply(text=f"{words}{'right' if right else draw.random()}", piece=20)

    with serving() as server:
        server.script = script
        graph = create_anytime_graph(
            server.model(seed=0),
            scorer=_scored,
            strategy="best_of_n",
            answer="whole",
            budget=Budget(tokens=share),
        )
        texts = [f"question {i}" for i in range(QUESTIONS)]
        if together:
            app = graph.compile(checkpointer=InMemorySaver())
            done = batch(app, texts, Budget(tokens=share * QUESTIONS))
            right = sum(q.score == 1 for q in done.questions)
            assert server.served <= done.spent["tokens"] <= share * QUESTIONS
        else:
            alone, right = graph.compile(), 0
            for text in texts:
                try:
                    out = alone.invoke({"messages": [("user", text)]})
                except (BudgetTooSmall, NoAnswer):
                    continue
                right += out["best"]["score"] == 1
        return right, server.served


def _at(total: int, shares: list[tuple[int, int]]) -> float:
    """How many answers equal shares get right for a total, which lies between those of two runs. With
    (100, 20_000) and (140, 40_000), 30,000 tokens get 120."""
    known = [(0, 0), *shares]
    (less, below), (more, above) = next(
        pair for pair in pairwise(known) if total <= pair[1][1] or pair[1] is known[-1]
    )
    return less + (more - less) * min(1.0, (total - below) / (above - below))


def main(runs: int = 5) -> None:
    """Best of n ends early with shares too: as soon as an answer is right. So they spend less than they
    have, and are compared where they spend as much as the batch."""
    alone = [[_right(seed, share, together=False) for share in _SHARES] for seed in range(runs)]
    table = Table("tokens a question", box=None, pad_edge=False)
    for name in ("batch: right", "spent", "shares, as much spent: right", "more right"):
        table.add_column(name, justify="right")
    for share in _TOTALS:
        one = [_right(seed, share, together=True) for seed in range(runs)]
        apart = [_at(spent, shares) for (_, spent), shares in zip(one, alone, strict=True)]
        more, low, high, _ = paired([right for right, _ in one], apart)
        table.add_row(
            str(share),
            f"{statistics.mean(right for right, _ in one):.1f}",
            f"{statistics.mean(spent for _, spent in one):,.0f}",
            f"{statistics.mean(apart):.1f}",
            f"{more:+.1f} [{low:+.1f}, {high:+.1f}]",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
