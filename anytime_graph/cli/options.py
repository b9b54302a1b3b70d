"""Options of the command line that several commands share, and what they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import click

from anytime_graph.budget import DIMENSIONS, Prices
from anytime_graph.constraints import Constraints
from anytime_graph.planning.strategies import STRATEGIES
from anytime_graph.scoring import Judge, Scorer, scorer_in

_CONSTRAINTS = ("sentences", "words", "include", "forbid", "starts_with", "ends_with", "matches")
_JUDGE = ("judge", "rubric")
KEPT = (
    "model",
    "strategy",
    "answer",
    "check",
    *_CONSTRAINTS,
    *_JUDGE,
    "memory",
    "namespace",
    "price",
)
"""What a ledger remembers of a command, so that `resume` can go on in the same way."""


class _Range(click.ParamType[Any]):
    name = "N|LEAST-MOST"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        low, dash, high = str(value).partition("-")
        try:
            return (int(low), int(high)) if dash else int(low)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor LEAST-MOST, as in 40-60", param, ctx)


def _all(*options: Any) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


database = click.option(
    "--db",
    default="anytime.db",
    show_default=True,
    metavar="FILE|URL",
    help="The ledger: a SQLite file, or postgresql://USER@HOST/DATABASE.",
)


def budgeted(tokens: int) -> Callable[[Any], Any]:
    """Options for a budget. tokens: what is taken if none is given."""
    return _all(
        click.option(
            "--tokens", type=int, help=f"Budget: input + output tokens. [default: {tokens}]"
        ),
        click.option("--output-tokens", type=int, help="Budget: output tokens."),
        click.option(
            "--usd", type=float, help="Budget: US dollars; needs known prices or --price."
        ),
        click.option("--calls", type=int, help="Budget: model calls."),
        click.option("--seconds", type=float, help="Budget: seconds of active time."),
    )


budget = budgeted(2_000)
grant = _all(
    click.option("--tokens", type=int, metavar="+N", help="So many more tokens."),
    click.option("--output-tokens", type=int, metavar="+N", help="So many more output tokens."),
    click.option("--usd", type=float, metavar="+X", help="So many more US dollars."),
    click.option("--calls", type=int, metavar="+N", help="So many more model calls."),
    click.option("--seconds", type=float, metavar="+X", help="So many more seconds."),
)
_model = click.option("--model", help="openai:NAME, provider:NAME, local or local:FILE.gguf.")
_strategy = click.option(
    "--strategy", type=click.Choice(list(STRATEGIES)), help="How to spend the budget."
)
_answer = click.option(
    "--answer",
    type=click.Choice(["tags", "whole"]),
    help="How the answer is found in a reply: in <answer> tags, or the reply as a whole.",
)
price = click.option(
    "--price",
    metavar="INPUT,OUTPUT[,CACHED]",
    help="US dollars per million tokens of input, output and cached input.",
)
_checking = _all(
    click.option(
        "--check",
        metavar="FILE.py:FUNCTION",
        help="Scorer: a function (question, answer) -> number in [0, 1].",
    ),
    click.option("--sentences", type=_Range(), help="Constraint: so many sentences."),
    click.option("--words", type=_Range(), help="Constraint: so many words."),
    click.option("--include", multiple=True, help="Constraint: contains this. Repeatable."),
    click.option("--forbid", multiple=True, help="Constraint: does not contain this. Repeatable."),
    click.option("--starts-with", help="Constraint: starts with this."),
    click.option("--ends-with", help="Constraint: ends with this."),
    click.option("--matches", help="Constraint: this regular expression is found."),
)
_judging = _all(
    click.option("--judge", metavar="MODEL", help="Another model, to compare the answers."),
    click.option("--rubric", metavar="TEXT", help="What the judge shall go by."),
)
namespace = click.option(
    "--namespace", metavar="A/B", help="Whose preference pairs, such as TENANT/USER."
)
making = _all(_model, _strategy, _answer, _checking, _judging, price)
"""What a graph is made of."""
warming = _all(_model, _strategy, _answer, _checking, _judging, price, namespace)
auditing = _all(_model, _answer, _checking, _judging, price)
remembering = _all(
    click.option(
        "--memory",
        is_flag=True,
        default=None,
        help="Show preference pairs of earlier questions in --db, and keep this one's.",
    ),
    namespace,
)


class _Duration(click.ParamType[Any]):
    name = "DURATION"
    _SECONDS: ClassVar = {"d": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, float):
            return value
        told = re.fullmatch(r"(\d+(?:\.\d+)?)(d|h|min|s)", str(value))
        if told is None:
            self.fail(f"{value!r} is no duration, as in 30d, 12h, 45min or 90s", param, ctx)
        return float(told[1]) * self._SECONDS[told[2]]


DURATION = _Duration()
"""Seconds, from 30d, 12h, 45min or 90s."""


def amounts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions of a budget that were given."""
    return {name: options[name] for name in DIMENSIONS if options[name] is not None}


def kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a ledger shall remember, as JSON has it. A scorer's file keeps its place when the
    working directory does not."""
    told = {name: options[name] for name in KEPT if options[name] not in (None, ())}
    if "check" in told:
        path, _, name = told["check"].rpartition(":")
        told["check"] = f"{Path(path).resolve()}:{name}"
    return told


def restored(told: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of this command, and for those not given what was remembered."""
    out = dict(options)
    for name in KEPT:
        if options[name] in (None, ()) and name in told:
            value = told[name]
            out[name] = tuple(value) if isinstance(value, list) else value
    return out


def parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as arguments of create_anytime_graph. Raises ValueError for a bad one."""
    rates = scorer(options)
    return {
        "model": options["model"],
        "scorer": rates,
        "strategy": options["strategy"] or "pdp",
        "answer": options["answer"] or ("whole" if isinstance(rates, Constraints) else "tags"),
        "prices": prices(options["price"]),
        "judge": judge(options),
    }


def judge(options: Mapping[str, Any]) -> Judge | None:
    """The judge that --judge and --rubric name, or None for the model itself."""
    if options["judge"] is None and options["rubric"] is None:
        return None
    return Judge(options["judge"], rubric=options["rubric"])


def space(namespace: str | None) -> list[str]:
    """--namespace as the context takes it. Raises ValueError."""
    if namespace is None:
        return []
    parts = namespace.split("/")
    if not all(parts):
        raise ValueError(f"--namespace {namespace!r}: names with / between them, as in acme/ann")
    return parts


def questions(path: str, rates: Scorer | Constraints | None) -> list[str]:
    """The questions in a file: one a line, or JSON Lines with a "question"; with the rules, if
    constraints are the scorer. Raises ValueError."""
    told = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        question: Any = line.strip()
        if question.startswith("{"):
            try:
                question = json.loads(line)["question"]
            except (ValueError, KeyError):
                question = None
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f'{path}, line {number}: a JSON object with a "question" is needed')
        told.append(question.strip())
    if not told:
        raise ValueError(f"{path}: there is no question in it; write one on each line")
    rules = rates.describe() if isinstance(rates, Constraints) else None
    return [f"{question}\n\n{rules}" if rules else question for question in told]


def scorer(options: Mapping[str, Any]) -> Scorer | Constraints | None:
    wanted = {name: options[name] for name in _CONSTRAINTS if options[name] not in (None, ())}
    if options["check"] and wanted:
        raise ValueError("--check and the constraint options are two scorers; give one")
    if options["check"]:
        return scorer_in(options["check"])
    return Constraints(**wanted) if wanted else None


def prices(price: str | None) -> Prices | None:
    """What --price says. Raises ValueError."""
    if price is None:
        return None
    try:
        paid, made, *cached = (float(part) for part in price.split(","))
        if len(cached) > 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"--price {price!r}: two numbers, as in 0.40,1.60, or three") from None
    return Prices(input=paid, output=made, cached_input=cached[0] if cached else None)
