"""The command `serve-model`: from a file of weights to an endpoint."""

from __future__ import annotations

from pathlib import Path

import click

from anytime_graph.cli.ledger_commands import errors_shown
from anytime_graph.cli.options import Command
from anytime_graph.interrupt import interruptible
from anytime_graph.local import NAME, serve


@click.command("serve-model", cls=Command)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Requests that are worked on at once, each in a context of 4,096 tokens. Others wait.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="Port on this machine.  [default: a free one]",
)
def serve_model(file: Path | None, slots: int, port: int) -> None:
    """Serve the model in FILE to programs on this machine.

    FILE holds weights in the form of llama.cpp (GGUF). Without it, the embedded model is served. The
    endpoint speaks OpenAI's chat API; the model is called "local". The line that is printed sets
    the environment in which openai:local is this model. One thread computes for all slots. Ctrl-C
    ends the server, with exit code 0.

    `bench --model local:FILE` starts such a server itself, with a slot for each cell of --parallel.

    \b
    anytime-graph serve-model qwen.gguf
    anytime-graph serve-model qwen.gguf --slots 16 --port 8080
    """
    with errors_shown(False), interruptible() as stop:
        address = serve(file, slots=slots, port=port).listening_address
        click.echo(f"export OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY=none")
        click.echo(f"serving openai:{NAME} with {slots} slots; Ctrl-C ends it", err=True)
        stop.wait()
