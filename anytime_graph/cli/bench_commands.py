"""The commands `bench`, which measures strategies, and `advise`, which reads the results."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import click

from anytime_graph.benchmark.advice import advise, recorded
from anytime_graph.benchmark.cells import Decide, Protocol
from anytime_graph.benchmark.order import Engine, Order
from anytime_graph.checkpoints import LedgerError
from anytime_graph.cli.bench_progress import cell_progress
from anytime_graph.cli.ledger_commands import INTERRUPTED
from anytime_graph.cli.options import Choice, Command, in_options, model_option, price, prices
from anytime_graph.text import harmless

_ADDRESS = re.compile(r"postgres(ql)?://.*")
"""Hidden where a report quotes the command, as it may hold a password."""


class _Remembering(Command):
    """A command that keeps its own words, for the report to quote."""

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
            self.fail(f"{value!r}: whole numbers separated by commas, as in 256,512", param, ctx)


@click.command(cls=_Remembering)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    required=True,
    metavar="NAME[:FILE][?OPTION=VALUE&...]",
    help="A task to measure on: constraints, trip, natural_plan_trip:FILE, aime_2024[:FILE], "
    "gpqa_diamond[:FILE], reasoning_gym:NAME, humaneval, mbpp:FILE, ifeval:FILE or jsonl:FILE. Its "
    "options follow a question mark, as in constraints?difficulty=3. Can be repeated.",
)
@click.option(
    "--task-option",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option for every task. Can be repeated.",
)
@model_option
@click.option(
    "--protocol",
    type=Choice(get_args(Protocol)),
    default="run",
    show_default=True,
    help="run: run the graph once at each budget. paper: cut one chain of thought at each budget, "
    "and ask for an answer there.",
)
@click.option(
    "--strategy",
    metavar="NAME,...",
    help="The strategies to compare. NAME+memory is also shown preference pairs of training "
    "questions.  [default: single,best_of_n,pdp; in the paper's protocol: base,leap,pdp_positive,pdp]",
)
@click.option(
    "--budgets",
    type=_Numbers(),
    default="256,512,1024,2048,4096",
    show_default=True,
    help="Tokens for each question; with --protocol paper, generated tokens before each cut.",
)
@click.option(
    "--samples", default=20, show_default=True, help="Number of questions from each task."
)
@click.option(
    "--seeds",
    type=_Numbers(),
    default="0",
    show_default=True,
    help="Seeds; each question is run once with each.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the calls, the records and the report.",
)
@click.option(
    "--decide",
    type=Choice(get_args(Decide)),
    default="scorer",
    show_default=True,
    help="What chooses the answer to return. The true score is measured in every case.",
)
@click.option(
    "--baseline", help="The strategy that others are compared with.  [default: the first]"
)
@click.option(
    "--train",
    default=3,
    show_default=True,
    help="Number of training questions, for preference pairs.",
)
@click.option(
    "--train-budget",
    type=int,
    help="Tokens for each training question.  [default: the largest budget]",
)
@click.option(
    "--trajectories",
    default=4,
    show_default=True,
    help="Chains of thought for each training question (paper only).",
)
@click.option(
    "--room",
    default=256,
    show_default=True,
    help="Most tokens of an answer after a cut (paper only).",
)
@click.option(
    "--q-max",
    default=1.0,
    show_default=True,
    help="The highest quality, Q_max in the Anytime Index.",
)
@click.option("--origin", is_flag=True, help="Start the curve of the Anytime Index at (0, 0).")
@click.option("--total-tokens", type=int, help="Most tokens to spend in --out, over all its runs.")
@click.option(
    "--total-usd", type=float, help="Most US dollars to spend in --out, over all its runs."
)
@click.option(
    "--parallel", default=1, show_default=True, help="Number of cells that run at the same time."
)
@click.option("--rate", type=float, help="Most requests per minute.")
@price
@click.option(
    "--replay",
    type=click.Path(exists=True, path_type=Path),
    help="Ask no model: take the replies from this benchmark directory, or from its calls.jsonl.",
)
@click.option(
    "--engine",
    type=Choice(get_args(Engine)),
    default="local",
    show_default=True,
    help="Where cells run. local: in this process. ray: on the Ray cluster at RAY_ADDRESS, or on a "
    "new one on this machine.",
)
@click.option(
    "--ledger", metavar="URL", help="The database of --engine ray: postgresql://USER@HOST/DATABASE."
)
@click.pass_context
def bench(ctx: click.Context, /, **options: Any) -> None:
    """Compare strategies on a task at several token budgets.

    A cell is one strategy on one question, with one budget and one seed. Every reply and every
    finished cell is kept in --out. After a stop, the same command continues, and pays for nothing
    twice. At the end, or after Ctrl-C, report.md and report.html show quality, differences, the
    Anytime Index and costs, with intervals.

    \b
    Exit codes:
      1    not finished: the total is spent, or calls keep failing
      130  interrupted with Ctrl-C

    \b
    anytime-graph bench --task constraints --budgets 512,1024 --out fox
    anytime-graph bench --task constraints --budgets 512,1024 --out again \\
        --replay fox
    anytime-graph bench --task trip --protocol paper --budgets 64,128 --out trips
    """
    words = [_ADDRESS.sub("postgresql://...", word) for word in ctx.meta["words"]]
    command = shlex.join(["anytime-graph", "bench", *words])
    try:
        order = Order(**options | {"price": prices(options["price"])})
        result = order.run(command, cell_progress)
    except (ValueError, LedgerError, ImportError, OSError) as error:
        raise click.UsageError(harmless(in_options(str(error)))) from None
    for sentence in result.lines:
        click.echo(harmless(sentence))
    if result.ended == "interrupted":
        sys.exit(INTERRUPTED)
    if result.ended is not None:
        sys.exit(1)


@click.command("advise", cls=Command)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--quality",
    type=float,
    required=True,
    help="The mean score that you need, above 0 and up to 1.",
)
@click.option("--task", help="Only this task, named without its options.")
def advise_command(directory: Path, quality: float, task: str | None) -> None:
    """Find the smallest budget and strategy for a wanted quality.

    DIRECTORY is the --out directory of `anytime-graph bench`. There is one sentence for each task
    and model in it. The intervals hold for all strategies and budgets at once. Only what was
    measured counts: nothing is extrapolated.

    Exit code 1: nothing measured reaches the quality, or there are too few questions to tell.

    \b
    anytime-graph advise bench-run --quality 0.8
    """
    try:
        advice = advise(recorded(directory), quality)
    except ValueError as error:
        raise click.UsageError(harmless(in_options(str(error)))) from None
    advice = [a for a in advice if task in (None, a.task)]
    if not advice:
        of_task = "" if task is None else f" of task {task!r}"
        raise click.UsageError(f"{directory}: there are no records{of_task}")
    for a in advice:
        click.echo(harmless(f"{a.task}, {a.model}, the {a.decide} decides: {a.sentence(quality)}"))
    if any(a.verdict in ("unknown", "out of reach") for a in advice):
        sys.exit(1)
