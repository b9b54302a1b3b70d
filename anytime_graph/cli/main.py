"""The command `anytime-graph`: `solve` and `resume`, and the commands of other modules."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

import click
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from anytime_graph.budget import DIMENSIONS, Budget, counted, raised
from anytime_graph.checkpoints import Checkpoints
from anytime_graph.checkpoints.export import line
from anytime_graph.cli import display, ledger_commands, question_commands, quota_commands
from anytime_graph.cli import options as option
from anytime_graph.cli.bench_commands import advise_command, bench
from anytime_graph.cli.demo import demo
from anytime_graph.cli.serve_command import serve_model
from anytime_graph.cli.trust import signed, trusted
from anytime_graph.constraints import Constraints
from anytime_graph.graph import create_anytime_graph
from anytime_graph.run.state import Output
from anytime_graph.text import harmless, lines_of

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a disk or a device says that takes no more."""
_WHOLE = 1_000
"""Characters of a help text, so that none is cut."""


class _Commands(click.Group):
    command_class = option.Command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C where there is no answer yet ends it silently."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ledger_commands.INTERRUPTED)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if error.filename is None:
                display.give_up_output()
            raise click.ClickException(
                f"{error.filename or 'the output'} cannot be written ({error.strerror})"
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each; click would cut it."""
        rows = [
            (name, command.get_short_help_str(_WHOLE)) for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="anytime-graph")
def main() -> None:
    """Get the best answer that a chat model can reach within a budget.

    \b
    anytime-graph demo
    anytime-graph solve "Why do rivers bend?" --tokens 2000
    anytime-graph solve "Why do rivers bend?" --db anytime.db --thread rivers
    anytime-graph resume rivers --tokens +2000
    """
    _open_streams()


def _open_streams() -> None:
    """Streams that the caller closed are there, and what one has no character for is a question mark: an
    answer that is paid for ends in no error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - as long as the process
            setattr(sys, name, nothing)
    frail = ("strict", "surrogateescape")  # the second is the locale C's
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in frail:
        sys.stdout.reconfigure(errors="replace")


for command in (
    *ledger_commands.COMMANDS,
    *question_commands.COMMANDS,
    demo,
    *quota_commands.COMMANDS,
    bench,
    advise_command,
    serve_model,
):
    main.add_command(command)


@main.command()
@click.argument("question", required=False)
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False), help="Read the question from this file."
)
@option.budget
@option.making
@option.remembering
@click.option(
    "--db",
    metavar="FILE|URL",
    help="Record the run in this ledger: a SQLite file, or a database "
    "postgresql://USER@HOST/DATABASE. Needs --thread.",
)
@click.option("--thread", help="Name of the conversation in --db. A new name begins one.")
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

    The question is the argument, a --file, or standard input. The run ends when any part of the
    budget is spent, and prints the best answer so far. Ctrl-C ends it early, also with the best
    answer so far.

    Without options: --model local, --strategy adaptive, --tokens 2000, and --answer tags (--answer
    whole with constraints).

    With --db the run is recorded: `resume` continues it, even after a crash, and `show` lists its
    calls and answers. With --memory the model sees pairs of better and worse answers to similar
    earlier questions. The pairs of this question are kept for later ones of the same --namespace.

    \b
    Exit codes:
      1    no call gave an answer, --check failed on every answer, or another
           process is running the thread
      2    bad input, or a budget that is too small for one call
      130  interrupted with Ctrl-C

    \b
    anytime-graph solve "Write about a fox." --words 20-40 --include river
    anytime-graph solve --file q.txt --model openai:gpt-4.1-mini --usd 0.01
    """
    if (db is None) != (thread is None):
        raise click.UsageError("--db and --thread go together")
    if thread is not None and not thread.strip():
        raise click.UsageError("--thread: a name that is not empty is needed")
    if db is None and (options["memory"] or options["namespace"]):
        raise click.UsageError("--memory is the memory of a --db; give --db and --thread too")
    if db is None and options["keys"]:
        raise click.UsageError(
            "--key is for the quotas and bills of a --db; give --db and --thread too"
        )
    with ledger_commands.errors_shown(as_json):
        text = _read_question(question, file)
        options["model"] = option.model_of(options)
        arguments = option.graph_arguments(options)
        if isinstance(rules := arguments["scorer"], Constraints):
            text = f"{text}\n\n{rules.describe()}"
        arguments["budget"] = Budget(**(option.amounts(options) or {"tokens": 2_000}))
        graph_input = {"messages": [HumanMessage(text)]}
        if db is None or thread is None:
            app = create_anytime_graph(**arguments).compile()
            out = _run_graph(app, graph_input, {}, _quiet(as_json), [])
        else:
            with ledger_commands.opened(db, new=True) as store:
                app = _durable(store, arguments, options)
                space = option.space(options["namespace"])
                out = _run_graph(
                    app, graph_input, _thread_config(thread, options), _quiet(as_json), space
                )
    _deliver(out, as_json, thread, db)


@main.command()
@click.argument("thread")
@option.database
@option.grant
@option.making
@option.remembering
@ledger_commands.as_json_option
def resume(thread: str, db: str, as_json: bool, **options: Any) -> None:
    """Continue THREAD after a stop, or with a larger budget.

    The run spends what is left of its budget, and what you add here. No call is paid for twice.
    Options that you leave out keep the values of the `solve` command. A thread that a program
    began needs --model. If another user or machine began it, --model, --judge, --check, --matches,
    --price, --memory, --namespace and --key are not taken from the ledger: give them again. The
    output and the exit codes are those of `solve`.

    \b
    anytime-graph resume rivers
    anytime-graph resume rivers --tokens +2000
    """
    with ledger_commands.errors_shown(as_json):
        with ledger_commands.opened(db) as store:
            run = ledger_commands.runs_of(store.ledger, thread)[-1]
        remembered = trusted(run["options"] or {}, options, thread)
        options |= option.restored(remembered, options)
        if options["model"] is None:
            raise ValueError(
                f"thread {thread!r}: its last run was not begun by `anytime-graph solve`; give --model "
                f"(it was {run['model']}), and --strategy and a scorer if it had them"
            )
        arguments, grant = option.graph_arguments(options), _grant(run, options)
        record = "usage" if run["question"] is None else "all"
        with ledger_commands.opened(db, record=record) as store:
            arguments["budget"] = Budget(
                **(raised(run["limits"], grant, run["spent"]) if grant else run["limits"])
            )
            app, config = _durable(store, arguments, options), _thread_config(thread, options)
            graph_input = _next_input(app.get_state(config), run, grant)
            space = option.space(options["namespace"])
            out = _run_graph(app, graph_input, config, _quiet(as_json), space)
    if out["spent"]["calls"] == run["spent"]["calls"] and out["stop_reason"] in DIMENSIONS:
        click.echo(
            f"what is left of its {out['stop_reason']} pays for no further step; --help lists "
            "the options that add to it",
            err=True,
        )
    _deliver(out, as_json, thread, db)


def _read_question(question: str | None, file: str | None) -> str:
    if question and file:
        raise click.UsageError(
            "the question is given twice, as an argument and as --file; give one"
        )
    if file:
        text = "\n".join(lines_of(file))
    elif question is None or question == "-":
        if sys.stdin.isatty():
            raise click.UsageError(
                "no question: give it as an argument, a --file or standard input"
            )
        text = option.standard_input()
    else:
        text = question
    if not text.strip():
        raise click.UsageError("the question is empty")
    return text.strip()


def _thread_config(thread: str, options: dict[str, Any]) -> RunnableConfig:
    return {
        "configurable": {**option.keys(options["keys"]), "thread_id": thread},
        "metadata": {"anytime_options": signed(option.remembered(options), thread)},
    }


def _grant(run: dict[str, Any], options: dict[str, Any]) -> Budget | None:
    """What to add to the budget. Raises ValueError for a dimension that the run does not limit."""
    added = option.amounts(options)
    for name in added.keys() - run["limits"].keys():
        raise ValueError(
            f"--{name.replace('_', '-')}: the thread's budget does not limit its {name}; you can add "
            f"{', '.join(run['limits'])}"
        )
    return Budget(**added) if added else None


def _next_input(snapshot: StateSnapshot, run: dict[str, Any], grant: Budget | None) -> Any:
    """The input that continues the graph from its checkpoint, or asks again if that was lost."""
    if snapshot.next and grant is None and run["stop_reason"] is None:
        return None
    if snapshot.next or snapshot.values.get("run_id") == run["id"]:
        return {"budget": grant or Budget(tokens=0)}
    if run["conversation"] is None:
        raise ValueError(
            f"thread {run['thread']!r}: its checkpoint is lost and its question was not kept "
            '(record="usage"); ask it again with `solve`'
        )
    checkpointed = len(snapshot.values.get("messages", []))
    return {"messages": run["conversation"][checkpointed:]}


def _quiet(as_json: bool) -> bool:
    return as_json or not sys.stderr.isatty()


def _durable(store: Checkpoints, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """The graph with its ledger and, for --memory, with the pairs in it."""
    if options["namespace"] and not options["memory"]:
        raise ValueError("--namespace is a part of the memory; give --memory too")
    memory = store.ledger if options["memory"] else None
    graph = create_anytime_graph(**arguments, ledger=store.ledger, memory=memory)
    return graph.compile(checkpointer=store.saver)


def _run_graph(
    app: Any, graph_input: Any, config: RunnableConfig, quiet: bool, namespace: list[str]
) -> Output:
    """Run the graph; unless quiet, its progress is shown on standard error."""
    with ledger_commands.stoppable() as stop:
        events = app.stream(
            graph_input,
            config,
            context={"stop": stop, "namespace": namespace},
            stream_mode=["custom", "tasks", "values"],
        )
        return display.follow(events, quiet=quiet)


def _deliver(out: Output, as_json: bool, thread: str | None, db: str | None) -> None:
    if as_json:
        display.deliver(line(_report(out)))
    else:
        display.run_ended(out, quiet=not sys.stderr.isatty())
        display.say(out["best"]["answer"] if out["best"] else "")
    if out["stop_reason"] == "interrupted":
        if thread and db and not as_json:
            click.echo(f"To go on: {harmless(display.again(thread, db))}", err=True)
        sys.exit(ledger_commands.INTERRUPTED)
    if out["stop_reason"] == "scorer":
        raise click.ClickException("; ".join(counted(map(harmless, out["errors"]))))


def _report(out: Output) -> dict[str, Any]:
    best: Any = out["best"] or {}
    return {
        "answer": best.get("answer"),
        "score": best.get("score"),
        "stop_reason": out["stop_reason"],
        **{k: out[k] for k in ("limits", "spent", "spent_by", "judging", "curve", "errors")},
    }
