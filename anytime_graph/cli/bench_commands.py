"""`anytime-graph bench`: from one command to a report; `advise`: what a quality takes."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import click

from anytime_graph.benchmark.advice import advise as advised
from anytime_graph.benchmark.advice import recorded
from anytime_graph.benchmark.cells import Decide, Protocol
from anytime_graph.benchmark.order import Engine, Order
from anytime_graph.checkpoints import LedgerError
from anytime_graph.cli.bench_progress import progress
from anytime_graph.cli.options import price, prices
from anytime_graph.text import harmless

_INTERRUPTED = 130
_ADDRESS = re.compile(r"postgres(ql)?://.*")
"""May hold a password; reports name the command."""


class _Remembering(click.Command):
    """Keeps the words it was called with, for the report to name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)


class _Numbers(click.ParamType[Any]):
    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: whole numbers with commas between, as in 256,512", param, ctx)


@click.command(cls=_Remembering)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    metavar="NAME[:FILE][?OPTION=VALUE&...]",
    help="constraints, trip, natural_plan_trip:FILE, aime_2024, gpqa_diamond[:FILE], "
    "reasoning_gym:NAME or jsonl:FILE; its options behind a question mark, as in "
    "constraints?difficulty=3. Repeatable.",
)
@click.option(
    "--task-option", multiple=True, metavar="NAME=VALUE", help="For all tasks. Repeatable."
)
@click.option("--model", help="openai:NAME, provider:NAME, local or local:FILE.gguf.")
@click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    default="run",
    show_default=True,
    help="run: what the graph returns at each budget; paper: chains of thought, cut.",
)
@click.option("--strategy", metavar="NAME,...", help="With +memory behind a name, it may recall.")
@click.option(
    "--budgets",
    type=_Numbers(),
    default="256,512,1024,2048,4096",
    show_default=True,
    help="Tokens for each question; in the paper's protocol, checkpoints in generated tokens.",
)
@click.option("--samples", default=20, show_default=True, help="Questions of each task.")
@click.option("--seeds", type=_Numbers(), default="0", show_default=True, help="Runs of each cell.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A directory."
)
@click.option(
    "--decide",
    type=click.Choice(get_args(Decide)),
    default="scorer",
    show_default=True,
    help="Who chooses the answer to return; the true score is measured in any case.",
)
@click.option("--baseline", help="The strategy to compare with. [default: the first]")
@click.option("--train", default=3, show_default=True, help="Questions for preference data.")
@click.option("--train-budget", type=int, help="Tokens on each. [default: the largest budget]")
@click.option(
    "--trajectories", default=4, show_default=True, help="Chains on each of them (paper)."
)
@click.option("--room", default=256, show_default=True, help="Tokens of a forced answer (paper).")
@click.option("--q-max", default=1.0, show_default=True, help="Q_max of the Anytime Index.")
@click.option("--origin", is_flag=True, help="Let the index begin at (0, 0).")
@click.option("--total-tokens", type=int, help="Tokens that all of it may cost, ever, in --out.")
@click.option("--total-usd", type=float, help="US dollars that all of it may cost, ever, in --out.")
@click.option("--parallel", default=1, show_default=True, help="Cells side by side.")
@click.option("--rate", type=float, help="Requests per minute, at most.")
@price
@click.option(
    "--replay",
    type=click.Path(exists=True, path_type=Path),
    help="Ask no model: answer from the calls of this benchmark directory, or of this file.",
)
@click.option(
    "--engine",
    type=click.Choice(get_args(Engine)),
    default="local",
    show_default=True,
    help="ray: cells on the Ray cluster at RAY_ADDRESS, else on one of this machine's own.",
)
@click.option("--ledger", metavar="URL", help="For --engine ray: postgresql://USER@HOST/DATABASE.")
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    """Measure strategies on a task at several budgets; report which of them to use.

    Every reply is kept in the --out directory, with a record of each cell: the same command goes on
    where it was killed, and pays for nothing twice. At the end, or at Ctrl-C, report.md and
    report.html tell quality, differences, the Anytime Index and costs, with intervals.

    Exit code 1: not finished, as the total is spent or calls keep failing; 130: Ctrl-C.

    \b
    anytime-graph bench --task constraints --strategy single,pdp --budgets 512,1024 --out fox
    anytime-graph bench --task trip --protocol paper --budgets 64,128,256 --out trips
    anytime-graph bench --task constraints --strategy pdp --budgets 512,1024 --replay fox --out again
    """
    words = [_ADDRESS.sub("postgresql://...", word) for word in ctx.meta["words"]]
    command = shlex.join(["anytime-graph", "bench", *words])
    try:
        order = Order(**given | {"price": prices(given["price"])})
        done = order.run(command, progress)
    except (ValueError, LedgerError, ImportError, OSError) as error:
        raise click.UsageError(harmless(str(error))) from None
    for sentence in done.lines:
        click.echo(harmless(sentence))
    if done.ended == "interrupted":
        sys.exit(_INTERRUPTED)
    if done.ended is not None:
        sys.exit(1)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quality", type=float, required=True, help="The mean score you need, up to 1.")
@click.option("--task", help="Of several, this one, without its options.")
def advise(directory: Path, quality: float, task: str | None) -> None:
    """What a quality takes: the smallest budget and the strategy that reach it.

    From the records of `anytime-graph bench` in DIRECTORY, for each task and model there. The
    intervals hold for all strategies and budgets at once. Nothing is extrapolated: what was not
    measured is not known.

    Exit code 1: nothing measured reaches it, or the questions are too few to tell.

    \b
    anytime-graph advise bench-run --quality 0.8
    """
    try:
        found = advised(recorded(directory), quality)
    except ValueError as error:
        raise click.UsageError(harmless(str(error))) from None
    found = [a for a in found if task in (None, a.task)]
    if not found:
        told = "" if task is None else f" of task {task!r}"
        raise click.UsageError(f"{directory}: there are no records{told}")
    for a in found:
        click.echo(harmless(f"{a.task}, {a.model}, the {a.decide} decides: {a.told(quality)}"))
    if any(a.verdict in ("unknown", "out of reach") for a in found):
        sys.exit(1)
