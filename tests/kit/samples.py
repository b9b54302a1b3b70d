"""Samples of the embedded model, to replay stopping rules on. `python -m tests.kit.samples` makes
tests/data/samples.jsonl anew: for each question of two tasks of Reasoning Gym, with three solved
examples as chat turns, 16 answers at temperature 0.8, as {question, sample, answer, correct, tokens}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.kit.places import DATA

FILE = DATA / "samples.jsonl"
QUESTIONS, SAMPLES, SOLVED = 16, 16, 3
TASKS = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "products": {"min_digits": 1, "max_digits": 1},
}


def made() -> Iterator[dict[str, Any]]:
    import reasoning_gym

    from anytime_graph.local import local_model

    for task, parameters in TASKS.items():
        rows = reasoning_gym.create_dataset(task, size=SOLVED + QUESTIONS, seed=7, **parameters)
        solved = [
            turn
            for at in range(SOLVED)
            for turn in (("user", rows[at]["question"]), ("assistant", str(rows[at]["answer"])))
        ]
        for at in range(SOLVED, SOLVED + QUESTIONS):
            entry = rows[at]
            for sample in range(SAMPLES):
                model = local_model(seed=1_000 * at + sample, max_tokens=24)
                reply = model.invoke([*solved, ("user", entry["question"])])
                answer = reply.text.strip()
                yield {
                    "question": f"{task}-{at}",
                    "sample": sample,
                    "answer": answer[:40],
                    "correct": answer == str(entry["answer"]),
                    "tokens": reply.usage_metadata["total_tokens"],
                }


if __name__ == "__main__":
    with FILE.open("w", encoding="utf-8") as file:
        for row in made():
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
            file.flush()
