"""The commands about money over many runs: `quota`, and `spend`."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import click

from anytime_graph.budget import Budget
from anytime_graph.checkpoints.export import line
from anytime_graph.cli import display, options
from anytime_graph.cli.ledger_commands import as_json_option, errors_shown, opened
from anytime_graph.metering.quota import UNITS, Quota

_window = click.option(
    "--window",
    required=True,
    help="Rolling, such as 90s, 30min, 12h or 7d; or of the calendar in UTC: hour, day or month.",
)
_per = click.option(
    "--per",
    metavar="KEY",
    help="Each value of this key, such as user or tenant, has the quota.  [default: all share it]",
)
_who = click.option("--for", "who", default="", metavar="VALUE", help="Only for this value of KEY.")


@click.group()
def quota() -> None:
    """Limit what users, tenants or all together may spend in a window of time.

    A quota that is kept here holds for every graph, chat model, agent and command that uses this
    ledger, from the next second on, beside the quotas in their code. A quota set with
    --for VALUE replaces, for that value, the one for all values of that key.
    """


@quota.command("set", cls=options.Command)
@options.database
@_per
@_who
@_window
@click.option("--usd", type=float, help="US dollars in a window.")
@click.option("--tokens", type=int, help="Input and output tokens in a window.")
@click.option("--output-tokens", type=int, help="Output tokens in a window.")
@click.option("--calls", type=int, help="Model calls in a window.")
@click.option("--tool-calls", type=int, help="Tool calls of agents in a window.")
def set_quota(db: str, per: str | None, who: str, window: str, **amounts: Any) -> None:
    """Set a quota. It replaces the one for the same key, value and window.

    \b
    anytime-graph quota set --per user --window 1d --usd 5
    anytime-graph quota set --per user --for ann --window 1d --usd 20
    """
    given = {d: amounts[d] for d in UNITS if amounts[d] is not None}
    if not given:
        names = ", ".join(f"--{d.replace('_', '-')}" for d in UNITS)
        raise click.UsageError(f"a quota limits something: give at least one of {names}")
    with errors_shown(False):
        kept = Quota(Budget(**given), per=per, window=window)
        with opened(db, new=True) as store:
            store.ledger.quotas.keep(kept, who)
    click.echo(f"set: {kept}" + (f" for {who!r}" if who else ""))


@quota.command("show", cls=options.Command)
@options.database
@as_json_option
def show_quotas(db: str, as_json: bool) -> None:
    """Show the quotas, and what is used of each.

    \b
    anytime-graph quota show
    """
    with opened(db) as store:
        rows = store.ledger.quotas.rows()
    if as_json:
        click.echo(line(rows))
    elif rows:
        display.quotas(rows)
    else:
        click.echo("no quotas", err=True)


@quota.command("rm", cls=options.Command)
@options.database
@_per
@_who
@_window
def remove_quota(db: str, per: str | None, who: str, window: str) -> None:
    """Remove a quota.

    \b
    anytime-graph quota rm --per user --window 1d
    """
    with errors_shown(False), opened(db) as store:
        if not store.ledger.quotas.remove(per, window, who):
            raise click.ClickException(
                "there is no such quota; `anytime-graph quota show` lists them"
            )
    click.echo("removed")


@click.command(cls=options.Command)
@options.database
@click.option(
    "--by",
    default="model",
    show_default=True,
    metavar="KEY,...",
    help="What to add up by: model, node, tool, thread, user, tenant, project, or another key of a quota.",
)
@click.option(
    "--since",
    type=options.DURATION,
    help="Count only the calls of this last time, such as 12h or 7d.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@as_json_option
def spend(db: str, by: str, since: float | None, as_csv: bool, as_json: bool) -> None:
    """Show what was spent, by model, node, tool, user and more.

    A call that is under way, or was in flight when its process died, counts at its reservation.

    \b
    anytime-graph spend --by user,model,node --since 7d
    """
    with errors_shown(False), opened(db) as store:
        began = None if since is None else time.time() - since
        names = [name.strip() for name in by.split(",")]
        if not all(names):
            raise ValueError(f"--by {by!r}: names with commas between them, as in user,model")
        bills = store.ledger.spend(names, began)
    rows = [{**bill.of, **bill.spend} for bill in bills]
    if as_json:
        click.echo(line(rows))
    elif as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        click.echo(display.exact(text.getvalue()), nl=False, color=True)
    elif rows:
        display.bills(rows)
    else:
        click.echo("nothing was spent", err=True)


COMMANDS = (quota, spend)
