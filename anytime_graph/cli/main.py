"""The command line: `solve`, `resume`, `demo`, and what the other modules here add."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import click
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from anytime_graph.budget import DIMENSIONS, Budget, raised
from anytime_graph.checkpoints import Checkpoints, open_checkpoints
from anytime_graph.checkpoints.export import line
from anytime_graph.cli import display, ledger_commands, question_commands
from anytime_graph.cli import options as option
from anytime_graph.cli.bench_commands import advise, bench
from anytime_graph.constraints import Constraints
from anytime_graph.graph import create_anytime_graph
from anytime_graph.interrupt import interruptible
from anytime_graph.local import local_model
from anytime_graph.models import default_model
from anytime_graph.run.state import Output


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="anytime-graph")
def main() -> None:
    """Give a chat model a budget; get the best answer it can reach within it.

    \b
    anytime-graph demo
    anytime-graph solve "Why do rivers bend?" --tokens 2000
    anytime-graph solve "Why do rivers bend?" --db anytime.db --thread rivers
    anytime-graph resume rivers --tokens +2000
    """


for command in (*ledger_commands.COMMANDS, *question_commands.COMMANDS, bench, advise):
    main.add_command(command)


@main.command()
@click.argument("question", required=False)
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False), help="Read the question from a file."
)
@option.budget
@option.making
@option.remembering
@click.option(
    "--db",
    metavar="FILE|URL",
    help="Keep the run in a SQLite file or in postgresql://USER@HOST/DATABASE. Needs --thread.",
)
@click.option("--thread", help="Conversation to begin or continue in --db.")
@ledger_commands.as_json_option
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
    and exit code 130. Exit code 1: no call brought an answer, or somebody else is running the
    thread; 2: bad input, or a budget too small.

    Without options: --model local, --strategy pdp, --tokens 2000, and --answer tags, or whole if
    there are constraints. With --db, `resume` goes on, after a crash too, and `show` tells what
    happened; with --memory, pairs of better and worse answers to earlier questions that are alike are
    shown to the model, and this question's are kept for later ones of the same --namespace.

    \b
    anytime-graph solve "Write about a fox." --words 20-40 --include river --tokens 3000
    anytime-graph solve --file question.txt --model openai:gpt-4.1-mini --usd 0.01
    """
    if (db is None) != (thread is None):
        raise click.UsageError("--db and --thread go together")
    if db is None and (options["memory"] or options["namespace"]):
        raise click.UsageError("--memory is the memory of a --db; name one, and a --thread")
    with ledger_commands.told(as_json):
        text = _question(question, file)
        options["model"] = options["model"] or default_model()
        made = option.parts(options)
        if isinstance(rules := made["scorer"], Constraints):
            text = f"{text}\n\n{rules.describe()}"
        made["budget"] = Budget(**(option.amounts(options) or {"tokens": 2_000}))
        given = {"messages": [HumanMessage(text)]}
        if db is None or thread is None:
            app = create_anytime_graph(**made).compile()
            out = _watched(app, given, {}, _quiet(as_json), [])
        else:
            with open_checkpoints(db) as store:
                app = _durable(store, made, options)
                space = option.space(options["namespace"])
                out = _watched(app, given, _config(thread, options), _quiet(as_json), space)
    _deliver(out, as_json)


@main.command()
@click.argument("thread")
@option.database
@option.grant
@option.making
@option.remembering
@ledger_commands.as_json_option
def resume(thread: str, db: str, as_json: bool, **options: Any) -> None:
    """Go on with THREAD: after a crash, after Ctrl-C, or to think on with more budget.

    What is left of its budget is spent, and what is given here on top; no call is paid for twice.
    Model, strategy, scorer and prices are those of the `solve` that asked, unless given here; a
    thread that a program began needs --model. Ends as `solve` does, with the same exit codes.

    \b
    anytime-graph resume rivers
    anytime-graph resume rivers --tokens +2000
    """
    with ledger_commands.told(as_json):
        with ledger_commands.opened(db) as store:
            run = ledger_commands.runs_of(store.ledger, thread)[-1]
        options |= option.restored(run["options"] or {}, options)
        if options["model"] is None:
            raise ValueError(
                f"thread {thread!r}: its last run was not begun by `anytime-graph solve`; name its --model "
                f"(it was {run['model']}), and its --strategy and scorer if it had any"
            )
        made, grant = option.parts(options), _grant(run, options)
        record = "usage" if run["question"] is None else "all"
        with ledger_commands.opened(db, record=record) as store:
            made["budget"] = Budget(
                **(raised(run["limits"], grant, run["spent"]) if grant else run["limits"])
            )
            app, config = _durable(store, made, options), _config(thread, options)
            given = _way_on(app.get_state(config), run, grant)
            space = option.space(options["namespace"])
            out = _watched(app, given, config, _quiet(as_json), space)
    if out["spent"]["calls"] == run["spent"]["calls"] and out["stop_reason"] in DIMENSIONS:
        click.echo(
            f"what is left of its {out['stop_reason']} pays for no further step; --help tells how "
            "to give more",
            err=True,
        )
    _deliver(out, as_json)


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
    with ledger_commands.told(False):
        chat_model = model or local_model(seed=seed, max_tokens=120)
        graph = create_anytime_graph(
            chat_model, budget=Budget(tokens=tokens), scorer=DEMO, answer="whole"
        )
        display.title(f"Budget: {tokens} tokens, seed {seed}", question)
        out = _watched(graph.compile(), {"messages": [HumanMessage(question)]}, {}, False, [])
    display.result(out)
    if out["stop_reason"] == "interrupted":
        sys.exit(ledger_commands.INTERRUPTED)


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


def _config(thread: str, options: dict[str, Any]) -> RunnableConfig:
    return {
        "configurable": {"thread_id": thread},
        "metadata": {"anytime_options": option.kept(options)},
    }


def _grant(run: dict[str, Any], options: dict[str, Any]) -> Budget | None:
    """What is given on top. Raises ValueError for what the run was never limited in."""
    given = option.amounts(options)
    for name in given.keys() - run["limits"].keys():
        raise ValueError(
            f"--{name.replace('_', '-')}: the thread's budget does not limit its {name}; it can be "
            f"given more {', '.join(run['limits'])}"
        )
    return Budget(**given) if given else None


def _way_on(snapshot: StateSnapshot, run: dict[str, Any], grant: Budget | None) -> Any:
    """The input that makes the graph go on from a checkpoint, or ask again if it was lost."""
    if snapshot.next and grant is None and run["stop_reason"] is None:
        return None
    if snapshot.next or snapshot.values.get("run_id") == run["id"]:
        return {"budget": grant or Budget(tokens=0)}
    if run["conversation"] is None:
        raise ValueError(
            f"thread {run['thread']!r}: its checkpoint was lost and its question not kept "
            '(record="usage"); ask it again, as it was asked'
        )
    known = len(snapshot.values.get("messages", []))
    return {"messages": run["conversation"][known:]}


def _quiet(as_json: bool) -> bool:
    return as_json or not sys.stderr.isatty()


def _durable(store: Checkpoints, made: dict[str, Any], options: dict[str, Any]) -> Any:
    """The graph over a ledger, and with --memory over its pairs."""
    if options["namespace"] and not options["memory"]:
        raise ValueError("--namespace says whose pairs; give --memory too")
    memory = store.ledger if options["memory"] else None
    graph = create_anytime_graph(**made, ledger=store.ledger, memory=memory)
    return graph.compile(checkpointer=store.saver)


def _watched(
    app: Any, given: Any, config: RunnableConfig, quiet: bool, namespace: list[str]
) -> Output:
    """Run the graph, shown on standard error unless quiet."""
    with interruptible() as stop:
        events = app.stream(
            given,
            config,
            context={"stop": stop, "namespace": namespace},
            stream_mode=["custom", "tasks", "values"],
        )
        return display.watch(events, quiet=quiet)


def _deliver(out: Output, as_json: bool) -> None:
    if as_json:
        click.echo(line(_report(out)))
    else:
        display.ended(out, quiet=not sys.stderr.isatty())
        display.say(out["best"]["answer"] if out["best"] else "")
    if out["stop_reason"] == "interrupted":
        sys.exit(ledger_commands.INTERRUPTED)


def _report(out: Output) -> dict[str, Any]:
    best: Any = out["best"] or {}
    return {
        "answer": best.get("answer"),
        "score": best.get("score"),
        "stop_reason": out["stop_reason"],
        **{k: out[k] for k in ("limits", "spent", "spent_by", "judging", "curve", "errors")},
    }
