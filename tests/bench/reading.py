"""What takes longest to read of a million characters of hostile text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.kit.hostile import cpu, works

SIZE = 1_000_000
SAMPLE = SIZE // 10
SHOWN = 25
"""Those that take longest of a tenth are measured at the whole size, the best of two."""


def reading() -> None:
    every = {name: work for group in works(SAMPLE) for name, work in group.items()}
    likely = sorted(every, key=lambda name: -cpu(every[name], SAMPLE, range(1)))[: 2 * SHOWN]
    took = {
        name: min(cpu(every[name], SIZE, range(nth, nth + 1)) for nth in (1, 2)) for name in likely
    }
    table = Table("reader", "seconds of CPU", title=f"{SIZE:,} characters of hostile text")
    for name in sorted(took, key=lambda name: -took[name])[:SHOWN]:
        table.add_row(name, f"{took[name]:.2f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    reading()
