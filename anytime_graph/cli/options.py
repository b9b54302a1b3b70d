"""Command-line options that several commands share, and the values they become."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import click
from langchain_core.messages import BaseMessage, HumanMessage

from anytime_graph.batch.series import Asked, conversation
from anytime_graph.budget import DIMENSIONS, TOOL_CALLS, Prices
from anytime_graph.checkpoints.schema import KEYS
from anytime_graph.constraints import Constraints
from anytime_graph.models import default_model
from anytime_graph.planning.strategies import SCORED, STRATEGIES
from anytime_graph.run.context import Context
from anytime_graph.scoring import Judge, Scorer, scorer_in
from anytime_graph.text import is_text, lines_of, meant

_CONSTRAINTS = ("sentences", "words", "include", "forbid", "starts_with", "ends_with", "matches")
_JUDGE = ("judge", "rubric")
AMOUNTS = tuple(d for d in DIMENSIONS if d != TOOL_CALLS)
"""The dimensions of budgets on the command line, where no agents run."""
REMEMBERED = (
    "model",
    "strategy",
    "answer",
    "check",
    *_CONSTRAINTS,
    *_JUDGE,
    "memory",
    "namespace",
    "keys",
    "price",
)
"""Options that the ledger keeps, so that `resume` can continue with the same ones."""
_HERE = (
    (r"pass prices=Prices\(input=\.\.\., output=\.\.\.\)", "give --price INPUT,OUTPUT"),
    (r"pass scorer= a function", "give --check FILE.py:FUNCTION, or a constraint such as --words"),
    (r"pass scorer= a function", "give --decide scorer"),
    (r"name the key with per=", "name the key with --per"),
    (
        r"tell it in the config, as in \{'configurable': \{'(\w+)': \.\.\.\}\}, or .*",
        r"give --key \1=VALUE",
    ),
    (r"\bport=", "--port "),
    (r"^(include|forbid)=.*: a tuple of non-empty strings", r"--\1: a text that is not empty"),
)
"""What errors tell a program to do, and what does it on the command line: the first that the command has."""
QUESTIONS = click.Path(exists=True, dir_okay=False, allow_dash=True)
"""A file of questions; `-` is standard input."""
_OTHERS = ("thread_id", "checkpoint_id", "checkpoint_ns", "checkpoint_map", "run_id")
"""Names that LangGraph gives a meaning, which are no keys of quotas."""
_OTHERWISE = {
    "count": "samples",
    "scorer": "check",
    "target": "db",
    "task": "tasks",
    "training": "train",
    "training_budget": "train_budget",
}
"""Arguments of Python whose options have another name."""


class Command(click.Command):
    """A command that refuses arguments that are not valid text; the names of files may be any bytes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for param in self.params:
            if isinstance(param.type, click.Path) and param.type.file_okay:
                continue
            given = ctx.params.get(str(param.name))
            for value in given if isinstance(given, tuple) else (given,):
                if not is_text(str(value)):
                    raise click.BadParameter(f"{value!r} is not UTF-8", ctx, param)
        return rest


class Choice(click.Choice[str]):
    """One of some words. Another one brings the word that it was meant for."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return (
            f"{super().get_invalid_choice_message(value, ctx)} {meant(value, self.choices)}".strip()
        )


class _Range(click.ParamType[Any]):
    name = "N|LEAST-MOST"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(value))
        if match is None or int(match[2] or match[1]) < int(match[1]):
            self.fail(f"{value!r} is neither a number nor LEAST-MOST, as in 40-60", param, ctx)
        return (int(match[1]), int(match[2])) if match[2] else int(match[1])


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
    help="The ledger: a SQLite file, or a database postgresql://USER@HOST/DATABASE.",
)


def budgeted(tokens: int) -> Callable[[Any], Any]:
    """The options of a budget. tokens: the default, named in the help."""
    return _all(
        click.option(
            "--tokens",
            type=int,
            help=f"Budget: input and output tokens together.  [default: {tokens}]",
        ),
        click.option("--output-tokens", type=int, help="Budget: output tokens."),
        click.option(
            "--usd",
            type=float,
            help="Budget: US dollars. The price of the model must be known, or given with --price.",
        ),
        click.option("--calls", type=int, help="Budget: model calls."),
        click.option("--seconds", type=float, help="Budget: seconds of running time."),
    )


budget = budgeted(2_000)
grant = _all(
    click.option(
        "--tokens", type=int, metavar="+N", help="Add N input and output tokens to the budget."
    ),
    click.option(
        "--output-tokens", type=int, metavar="+N", help="Add N output tokens to the budget."
    ),
    click.option("--usd", type=float, metavar="+X", help="Add X US dollars to the budget."),
    click.option("--calls", type=int, metavar="+N", help="Add N model calls to the budget."),
    click.option("--seconds", type=float, metavar="+X", help="Add X seconds to the budget."),
)
model_option = click.option(
    "--model",
    help="The chat model: openai:NAME, PROVIDER:NAME, local (the embedded model), or local:FILE.gguf.",
)
_strategy = click.option(
    "--strategy",
    type=Choice([*STRATEGIES, *SCORED]),
    metavar="NAME",
    help=f"How the budget is spent: {', '.join([*STRATEGIES, *SCORED])}.",
)
_answer = click.option(
    "--answer",
    type=Choice(["tags", "whole"]),
    help="Where the answer is in a reply: inside <answer> tags, or the whole reply.",
)
price = click.option(
    "--price",
    metavar="INPUT,OUTPUT[,CACHED]",
    help="Price of the model: US dollars per million tokens of input, output and, optionally, "
    "cached input.",
)
_checking = _all(
    click.option(
        "--check",
        metavar="FILE.py:FUNCTION",
        help="Score answers with a Python function (question, answer) -> number from 0 to 1.",
    ),
    click.option(
        "--sentences", type=_Range(), help="Constraint: the number of sentences, as in 3 or 3-4."
    ),
    click.option(
        "--words", type=_Range(), help="Constraint: the number of words, as in 40 or 40-60."
    ),
    click.option(
        "--include",
        multiple=True,
        help="Constraint: the answer contains this text. Can be repeated.",
    ),
    click.option(
        "--forbid",
        multiple=True,
        help="Constraint: the answer does not contain this text. Can be repeated.",
    ),
    click.option("--starts-with", help="Constraint: the answer starts with this text."),
    click.option("--ends-with", help="Constraint: the answer ends with this text."),
    click.option("--matches", help="Constraint: this regular expression is found in the answer."),
)
_judging = _all(
    click.option(
        "--judge", metavar="MODEL", help="The model that compares answers, if it is not --model."
    ),
    click.option(
        "--rubric", metavar="TEXT", help="What makes an answer good, in words for the judge."
    ),
)
namespace = click.option(
    "--namespace", metavar="A/B", help="The part of the memory to use, such as TENANT/USER."
)
making = _all(model_option, _strategy, _answer, _checking, _judging, price)
"""The options that decide how a graph is built."""
warming = _all(model_option, _strategy, _answer, _checking, _judging, price, namespace)
auditing = _all(model_option, _answer, _checking, _judging, price)
keyed = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="NAME=VALUE",
    help="Whose the question is, for quotas and bills: user=ann. Can be repeated.",
)
remembering = _all(
    click.option(
        "--memory",
        is_flag=True,
        default=None,
        help="Show the model preference pairs of earlier questions in --db, and keep the pairs of "
        "this one.",
    ),
    namespace,
    keyed,
)


class _Duration(click.ParamType[Any]):
    name = "DURATION"
    _SECONDS: ClassVar = {"d": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(d|h|min|s)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration, as in 30d, 12h, 45min or 90s", param, ctx)
        return float(match[1]) * self._SECONDS[match[2]]


DURATION = _Duration()
"""An option that reads 30d, 12h, 45min or 90s as seconds."""


def in_options(message: str) -> str:
    """An error of the package in the words of the command that is run, whose options it names in place of
    Python's arguments: "usd=1.0: ..." becomes "--usd 1.0: ..."."""
    context = click.get_current_context()
    options = (p for p in context.command.params if isinstance(p, click.Option))
    named = {str(option.name): max(option.opts, key=len) for option in options}
    for words, here in _HERE:
        if (option := re.match(r"give (--[a-z]+)", here)) is None or option[1] in named.values():
            message = re.sub(words, here, message)

    def said(argument: re.Match[str]) -> str:
        name = _OTHERWISE.get(argument[1], argument[1])
        judge = context.params.get("judge")
        if name == "model" and judge and message.startswith(f"model={judge!r}:"):
            name = "judge"
        return f"{named[name]} " if name in named else argument[0]

    if message.startswith("the budget ("):
        return re.sub(r"\b([a-z_]+)=", said, message)
    return re.sub(r"^(?:budget |quota )?([a-z_]+)(?:=| (?='))", said, message)


def model_of(options: Mapping[str, Any]) -> str:
    """The model that --model names, or the one that is there without it."""
    named: str | None = options["model"]
    return default_model() if named is None else named


def amounts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions of the budget that the command line limits."""
    return {name: options[name] for name in AMOUNTS if options[name] is not None}


def remembered(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the ledger keeps, as JSON. The path of a scorer becomes absolute, so that
    `resume` finds it from another directory."""
    values = {name: options[name] for name in REMEMBERED if options[name] not in (None, ())}
    if "check" in values:
        path, _, name = values["check"].rpartition(":")
        values["check"] = f"{Path(path).resolve()}:{name}"
    return values


def restored(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of this command, and the remembered values of those that it leaves out. Raises ValueError for a
    value that cannot be one."""
    out = dict(options)
    for name in REMEMBERED:
        if options[name] in (None, ()) and name in values:
            value = values[name]
            if not _possible(name, value):
                raise ValueError(
                    f"--{name.replace('_', '-')}: the ledger holds {value!r:.40}, which is no value of it; give it again"
                )
            out[name] = tuple(value) if isinstance(value, list) else value
    return out


def _possible(name: str, value: object) -> bool:
    """Whether an option that the ledger keeps is of its type."""
    if name in ("include", "forbid", "keys"):
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if name in ("sentences", "words"):
        return isinstance(value, int | list)
    return isinstance(value, bool if name == "memory" else str)


def graph_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as arguments of create_anytime_graph. Raises ValueError for a bad value."""
    scoring_rule = scorer(options)
    return {
        "model": options["model"],
        "scorer": scoring_rule,
        "strategy": options["strategy"] or "adaptive",
        "answer": options["answer"]
        or ("whole" if isinstance(scoring_rule, Constraints) else "tags"),
        "prices": prices(options["price"]),
        "judge": judge(options),
    }


def judge(options: Mapping[str, Any]) -> Judge | None:
    """The judge that --judge and --rubric name, or None for the model itself."""
    if options["judge"] is None and options["rubric"] is None:
        return None
    return Judge(options["judge"], rubric=options["rubric"])


def space(namespace: str | None) -> list[str]:
    """The parts of a --namespace. Raises ValueError for an empty part."""
    if namespace is None:
        return []
    parts = namespace.split("/")
    if not all(parts):
        raise ValueError(f"--namespace {namespace!r}: names with / between them, as in acme/ann")
    return parts


def keys(given: Sequence[str]) -> dict[str, str]:
    """The values of --key by name. Raises ValueError for one without a name or a value."""
    found = dict(text.split("=", 1) for text in given if "=" in text)
    if len(found) < len(given) or not all((*found, *found.values())):
        raise ValueError(f"--key {' '.join(given)}: NAME=VALUE, as in user=ann; each name once")
    for name in found:
        settings = name in Context.__annotations__ and name not in KEYS
        if name in _OTHERS or settings or name.startswith("__"):
            raise ValueError(f"--key {name}=...: that name has another meaning; take another one")
    return found


def standard_input() -> str:
    """What comes in through a pipe. Raises ValueError if it is no text."""
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError:
        text = ""
    else:
        if is_text(text):
            return text.removeprefix("\ufeff")
    raise ValueError(f"standard input: this is not {sys.stdin.encoding.upper()}")


def questions(path: str, scoring_rule: Scorer | Constraints | None) -> list[str]:
    """The questions in a file of text lines or of JSON Lines with a "question". If constraints score
    the answers, each question states them. Raises ValueError."""
    return [_stated(_question(row, at, '"question"'), scoring_rule) for row, at in _rows(path)]


def conversations(path: str, scoring_rule: Scorer | Constraints | None) -> list[Asked]:
    """The same, and JSON objects may have "messages" in place of a "question": roles and texts, of
    which the last is the user's."""
    found: list[Asked] = []
    for row, at in _rows(path):
        if isinstance(row, dict) and "messages" in row:
            if "question" in row:
                raise ValueError(f'{at}: both "question" and "messages"; give one of them')
            found.append(_messages(row["messages"], at, scoring_rule))
        else:
            found.append(_stated(_question(row, at, '"question" or "messages"'), scoring_rule))
    return found


def _rows(path: str) -> list[tuple[Any, str]]:
    """(text or what its JSON holds, where) of each line that is not empty. If the first is a JSON object, all
    have to be."""
    if path == "-":
        name, found = "standard input", standard_input().split("\n")
    else:
        name, found = path, lines_of(path)
    lines = [
        (text, f"{name}, line {number}")
        for number, line in enumerate(found, 1)
        if (text := line.strip())
    ]
    if not lines:
        raise ValueError(f"{name}: there is no question in it; write one on each line")
    as_json = lines[0][0].startswith("{")
    return [(_parsed(text, at, as_json), at) for text, at in lines]


def _parsed(line: str, at: str, as_json: bool) -> Any:
    if not (as_json or line.startswith("{")):
        return line
    try:
        row = json.loads(line, parse_int=float)  # of any length
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{at}: {line!r:.60} is not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{at}: {line!r:.60} is not a JSON object, as the first line is")
    return row


def _question(row: Any, at: str, named: str) -> str:
    """named: the fields that would do."""
    if not isinstance(row, dict):
        return str(row)
    if "question" not in row:
        raise ValueError(f"{at}: a JSON object with {named} is needed; it has {[*row]!r:.60}")
    text = row["question"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{at}: "question" is {text!r:.60}; a text that is not empty is needed')
    return text.strip()


def _messages(given: Any, at: str, scoring_rule: Scorer | Constraints | None) -> list[BaseMessage]:
    if not (isinstance(given, list) and all(isinstance(message, dict) for message in given)):
        raise ValueError(f'{at}: "messages" is a list of {{"role": ..., "content": ...}}')
    *before, last = conversation(given, at)
    if not isinstance(last.content, str):
        raise ValueError(f"{at}: the last message has to be a text")
    return [*before, HumanMessage(_stated(last.content, scoring_rule))]


def _stated(question: str, scoring_rule: Scorer | Constraints | None) -> str:
    stated = scoring_rule.describe() if isinstance(scoring_rule, Constraints) else None
    return f"{question}\n\n{stated}" if stated else question


def scorer(options: Mapping[str, Any]) -> Scorer | Constraints | None:
    """The scorer of --check, or of the constraint options. Raises ValueError for both."""
    rules = {name: options[name] for name in _CONSTRAINTS if options[name] not in (None, ())}
    if options["check"] and rules:
        raise ValueError("--check and the constraint options are two scorers; give one")
    if options["check"]:
        return scorer_in(options["check"])
    return Constraints(**rules) if rules else None


def prices(price: str | None) -> Prices | None:
    """The prices that --price states. Raises ValueError."""
    if price is None:
        return None
    try:
        input_price, output_price, *cached = (float(part) for part in price.split(","))
        if len(cached) > 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"--price {price!r}: two numbers, as in 0.40,1.60, or three") from None
    try:
        return Prices(
            input=input_price, output=output_price, cached_input=cached[0] if cached else None
        )
    except ValueError as error:
        raise ValueError(f"--price {price!r}: {str(error).partition(': ')[2]}") from None
