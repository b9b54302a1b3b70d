"""A batch under one budget against an equal share for each question, on a simulated model, at equal totals.

`python -m tests.bench.batch [RUNS]`: each run has other questions and other replies; the last column is
the difference in right answers, with a 95% interval over runs.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
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


def _chances(seed: int) -> list[float]:
    chances = [chance for part, chance in _KINDS for _ in range(round(part * QUESTIONS))]
    random.Random(seed).shuffle(chances)
    return chances


def _scored(question: str, answer: str) -> float:
    return float(answer == "right")


def _right(seed: int, share: int, together: bool) -> tuple[int, int]:
    """(right answers, tokens served) with `share` tokens for each question, or all together."""
    chances = _chances(seed)

    def script(request: dict[str, Any], i: int) -> Reply:
        found = re.search(r"question (\d+)", str(request["messages"]))
        assert found
        draw = random.Random(f"{seed}/{found[1]}/{request['seed']}")
        right = draw.random() < chances[int(found[1])]
        words = "so " * draw.randint(20, 60)
        return Reply(text=f"{words}<answer>{'right' if right else draw.random()}</answer>")

    with serving() as server:
        server.script = script
        graph = create_anytime_graph(
            server.model(seed=0), scorer=_scored, strategy="best_of_n", budget=Budget(tokens=share)
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


def main(runs: int = 5) -> None:
    table = Table("tokens a question", box=None, pad_edge=False)
    for name in ("shares: right", "spent", "batch: right", "spent", "more right"):
        table.add_column(name, justify="right")
    for share in (200, 300, 600):
        alone = [_right(seed, share, together=False) for seed in range(runs)]
        one = [_right(seed, share, together=True) for seed in range(runs)]
        more = [b[0] - a[0] for a, b in zip(alone, one, strict=True)]
        _, low, high, _ = paired([b[0] for b in one], [a[0] for a in alone])
        table.add_row(
            str(share),
            f"{statistics.mean(right for right, _ in alone):.1f}",
            f"{statistics.mean(spent for _, spent in alone):,.0f}",
            f"{statistics.mean(right for right, _ in one):.1f}",
            f"{statistics.mean(spent for _, spent in one):,.0f}",
            f"{statistics.mean(more):+.1f} [{low:+.1f}, {high:+.1f}]",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
