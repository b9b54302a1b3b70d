"""How much of what it should the memory of preferences recalls, and how long it takes."""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from langgraph.store.memory import InMemoryStore
from rich.console import Console
from rich.table import Table

from anytime_graph import open_checkpoints
from anytime_graph.checkpoints.likeness import keys
from anytime_graph.checkpoints.memory import Memory, encoded, memory_of
from tests.kit.paraphrases import generate
from tests.kit.postgres import fresh, programs, running

PAIRS, SMALL, ASKED = 100_000, 5_000, 500
COLUMNS = {
    "runs": "id, thread, asked, question, conversation, model, strategy, decides, limits, "
    "inherited, plan, started, changed, namespace",
    "answers": "id, run_id, ordinal, node, answer, complete, parents, created",
    "pairs": "id, run_id, chosen_id, rejected_id, why, decided_by, gap, created, better, worse",
    "memory": "run_id, terms",
}
console = Console(width=110)


class Language:
    """Questions of 6 to 18 words; the n-th commonest of 50,000 words is n times rarer than the
    commonest, as Zipf found it in many languages, and common words are short."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        words: dict[str, None] = {}
        while len(words) < 50_000:
            length = 1 if len(words) < 200 else 2 if len(words) < 8_000 else 3
            words["".join(rng.choices(syllables, k=length)) + rng.choice(["", *"lnrx"])] = None
        self.words = list(words)
        self.frequencies = list(itertools.accumulate(1 / n for n in range(1, len(words) + 1)))

    def some(self, number: int) -> list[str]:
        return self.rng.choices(self.words, cum_weights=self.frequencies, k=number)

    def question(self) -> str:
        return " ".join(self.some(self.rng.randint(6, 18)))

    def again(self, question: str) -> str:
        """About two thirds of its words, in another order, and some others."""
        words = question.split()
        kept = self.rng.sample(words, max(3, len(words) * 2 // 3))
        mixed = kept + self.some(len(words) - len(kept))
        self.rng.shuffle(mixed)
        return " ".join(mixed)


def memory() -> None:
    table = Table(
        *("memory", "namespaces", "median ms", "p95 ms", "among the first 3"),
        title=f"Recall among {PAIRS:,} pairs, each of a question of its own, {ASKED} questions",
    )
    rng = random.Random(1)
    language = Language(rng)
    questions = [language.question() for _ in range(PAIRS)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running()) if programs() else None
        for small in (0, SMALL):
            # Half of the pairs in one big namespace, the rest in many small ones.
            spaces = [
                ("tenant", f"small {n // 2 % small}" if small and n % 2 else "big")
                for n in range(PAIRS)
            ]
            targets = [str(folder / f"{small}.db")]
            if server:
                targets.append(stack.enter_context(fresh(server)))
            for target in targets:
                with open_checkpoints(target) as store:
                    fill(target, questions, spaces, rng)
                    name = "PostgreSQL" if target.startswith("postgresql") else "SQLite"
                    told = timed(memory_of(store.ledger), language, questions, spaces)
                table.add_row(f"ledger, {name}", f"1 + {small:,}" if small else "1", *told)
        few = 10_000
        held = memory_of(InMemoryStore())
        for n, question in enumerate(questions[:few]):
            pair: Any = {"better": f"a{n}", "worse": "b", "why": "", "by": "judge", "gap": 1.0}
            held.learn(("all",), question, [pair], [], n)
        told = timed(held, language, questions[:few], [("all",)] * few)
        table.add_row(f"store without an index, {few:,} pairs", "1", *told)
    console.print(table)
    load, cores = os.getloadavg()[0], os.cpu_count()
    console.print(
        f"load {load:.1f} on {cores} cores: the machine was {'' if load > 1.5 else 'not '}busy"
    )


def paraphrases() -> None:
    """How often the question that is asked again in other words is among the first three."""
    table = Table(
        *("share of synonyms", "among the first 3, by seed"),
        title="200 questions in other words, among 1,000 that share their words",
    )
    for synonyms in (0.25, 0.35):
        shares = []
        for seed in range(5):
            case, held = generate(seed, synonyms=synonyms), memory_of(InMemoryStore())
            for n, question in enumerate(case.memory):
                pair: Any = {"better": f"a{n}", "worse": "b", "why": "", "by": "judge", "gap": 1.0}
                held.learn(("all",), question, [pair], [], n)
            found = sum(
                f"a{n}" in [example["better"] for example in held.recall(("all",), asked)]
                for n, asked in case.asked.items()
            )
            shares.append(f"{found / len(case.asked):.1%}")
        table.add_row(str(synonyms), ", ".join(shares))
    console.print(table)


def timed(
    remembered: Memory,
    language: Language,
    questions: list[str],
    spaces: list[tuple[str, ...]],
) -> list[str]:
    """Median and 95th percentile in ms, and how often the question asked again was found."""
    times, found = [], 0
    for _ in range(ASKED):
        n = language.rng.randrange(len(questions))
        asked = language.again(questions[n])
        began = time.perf_counter()
        told = remembered.recall(spaces[n], asked)
        times.append((time.perf_counter() - began) * 1_000)
        found += f"a{n}" in [example["better"].partition(" ")[0] for example in told]
    p95 = statistics.quantiles(times, n=20)[-1]
    return [f"{statistics.median(times):.1f}", f"{p95:.1f}", f"{found / ASKED:.1%}"]


def fill(
    target: str, questions: list[str], spaces: list[tuple[str, ...]], rng: random.Random
) -> None:
    """Write the runs' rows in bulk; afterwards PostgreSQL has the statistics that it gathers by
    itself within a minute."""
    ids = [rng.getrandbits(53) for _ in questions]
    rows: dict[str, Iterator[tuple[Any, ...]]] = {
        "runs": (
            (i, "t", "", q, json.dumps([q] * 9), "", "", "", "{}", "{}", "", 0, 0, encoded(space))
            for i, q, space in zip(ids, questions, spaces, strict=True)
        ),
        "answers": (
            (2 * n + side, i, side, "draft", f"{'ab'[side]}{n} {'and so on ' * 40}", 1, "[]", 0)
            for n, i in enumerate(ids)
            for side in (0, 1)
        ),
        "pairs": (
            (n, i, 2 * n, 2 * n + 1, "it is better", "judge", 1.0, n, f"a{n} and so on", "b")
            for n, i in enumerate(ids)
        ),
        "memory": (
            (i, " ".join(keys(encoded(space), q)))
            for i, q, space in zip(ids, questions, spaces, strict=True)
        ),
    }
    if target.startswith("postgresql"):
        import psycopg

        options: Any = {"options": "-c search_path=anytime", "autocommit": True}
        with psycopg.connect(target, **options) as connection:
            for name, columns in COLUMNS.items():
                statement: Any = f"COPY {name} ({columns}) FROM STDIN"
                with connection.cursor().copy(statement) as copy:
                    for row in rows[name]:
                        copy.write_row(row)
            connection.execute("ANALYZE")
    else:
        connected = sqlite3.connect(target)
        for name, columns in COLUMNS.items():
            places = ", ".join("?" * (columns.count(",") + 1))
            connected.executemany(f"INSERT INTO {name} ({columns}) VALUES ({places})", rows[name])
        connected.commit()
        connected.close()


if __name__ == "__main__":
    paraphrases()
    memory()
