"""The commands `quota` and `spend`, on ledgers that real runs have written."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
from typing import Any

import pytest
from langchain.agents import create_agent

from anytime_graph import Budget, open_checkpoints
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.commands import COMMAND, Command
from tests.kit.ledgers import sql
from tests.kit.server import Reply, Server


def said(request: dict[str, Any], i: int) -> Reply:
    return Reply(text=f"<answer>{i} bends</answer>")


SOLVE = ["solve", "Why do rivers bend?", "--model", "openai:scripted", "--db", "anytime.db"]


def test_a_quota_is_set_shown_kept_and_removed(server: Server, command: Command) -> None:
    server.script = said
    of_users = ["--per", "user", "--window", "1d"]
    assert (
        "tokens=900 per user in 1d" in command("quota", "set", *of_users, "--tokens", "900").output
    )
    command("quota", "set", *of_users, "--for", "bob", "--tokens", "5", "--tool-calls", "2")
    assert "user" in command("quota", "show").stdout
    done = command(*SOLVE, "--thread", "a", "--tokens", "5000", "--key", "user=ann", "--json")
    assert json.loads(done.stdout)["stop_reason"] == "quota"
    done = command(*SOLVE, "--thread", "b", "--key", "user=bob")
    assert done.exit_code == 2
    assert (
        "the quota of tokens=5, tool_calls=2 per user in 1d (user 'bob') does not pay"
        in done.output
    )
    done = command(*SOLVE, "--thread", "c")
    assert (done.exit_code, "whose the call is; give --key user=" in done.output) == (2, True)
    used = {row["who"]: row for row in json.loads(command("quota", "show", "--json").stdout)}
    assert 0 < used["ann"]["booked"]["tokens"] == server.settled().served <= 900
    assert used["bob"]["booked"] == {"tokens": 0, "tool_calls": 0}
    assert command("quota", "rm", *of_users).output == "removed\n"
    assert command("quota", "rm", *of_users).exit_code == 1
    assert command(*SOLVE, "--thread", "c", "--tokens", "900").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "--window", "1d"], "give at least one of --tokens, --output-tokens"),
        (["set", "--window", "1 day", "--calls", "1"], "--window '1 day': did you mean '1d'?"),
        (["set", "--window", "30minutes", "--calls", "1"], "did you mean '30min'?"),
        (["set", "--window", "daily", "--calls", "1"], "did you mean 'day'?"),
        (["set", "--window", "2months", "--calls", "1"], "did you mean 'month'?"),
        (["set", "--window", "day", "--calls", "-1"], "Error: --calls -1: a budget is from 0"),
        (
            ["set", "--window", "day", "--calls", "1", "--per", "a b"],
            "Error: --per 'a b': the name",
        ),
        (["set", "--window", "day", "--calls", "1", "--for", "ann"], "name the key with --per"),
    ],
)
def test_a_bad_quota_is_explained(command: Command, words: list[str], said: str) -> None:
    done = command("quota", *words)
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_spend_is_added_up_as_asked(server: Server, command: Command) -> None:
    server.script = said
    for n, (user, tenant) in enumerate([("ann", "acme"), ("bob", "acme"), ("ann", "acme")]):
        keys = ["--key", f"user={user}", "--key", f"tenant={tenant}"]
        command(*SOLVE, "--thread", f"{n}", "--calls", "1", *keys)
    command(*SOLVE, "--thread", "nobody", "--calls", "1")
    done = command("spend", "--by", "user,model,node", "--since", "7d", "--csv")
    rows: list[Any] = list(csv.DictReader(done.stdout.splitlines()))
    assert {row["model"] for row in rows} == {"scripted"}
    calls: dict[str, int] = {}
    for row in rows:
        calls[row["user"]] = calls.get(row["user"], 0) + int(row["calls"])
    assert calls == {"ann": 2, "bob": 1, "": 1}
    assert sum(int(row["tokens"]) for row in rows) == server.settled().served
    (acme, _) = sorted(
        json.loads(command("spend", "--by", "tenant", "--json").stdout),
        key=lambda row: -row["calls"],
    )
    assert (acme["tenant"], acme["calls"]) == ("acme", 3)
    assert sql("anytime.db", "SELECT sum(tokens) FROM bills") == [(server.served,)]
    assert "draft" in command("spend", "--by", "node").stdout
    done = command("spend", "--by", "node,usr")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: --by 'usr': did you mean 'user'? ")
    assert json.loads(command("spend", "--by", "shop", "--json").stdout)[0]["shop"] is None


def test_tools_are_on_the_bill_by_name(server: Server, command: Command) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply("They bend.", tools=[("search", {"words": "bend"})] if i < 2 else [])

    def search(words: str) -> str:
        """Search the web."""
        return "erosion"

    server.script = script
    with open_checkpoints("anytime.db") as store:
        budget = TokenBudgetMiddleware(
            Budget(tokens=9_000), tool_prices={"search": 0.01}, ledger=store.ledger
        )
        agent: Any = create_agent(server.model(), [search], middleware=[budget])
        agent.invoke({"messages": [("user", "Why do rivers bend?")]})
    rows = json.loads(command("spend", "--by", "tool", "--json").stdout)
    found = [(r["tool"], r["tool_calls"], r["calls"], r["usd"]) for r in rows]
    assert found == [("search", 2, 0, 0.02), (None, 0, 3, 0.0)]
    shown = command("spend", "--by", "tool").stdout
    assert "search" in shown
    assert "tool_calls" in shown


def test_a_quota_is_shown_for_whom_it_holds_with_all_that_is_booked(
    server: Server, command: Command
) -> None:
    server.script = said
    of_users = ["--per", "user", "--window", "1d"]
    command("quota", "set", *of_users, "--tokens", "2000000")
    for user in ("ann", "bob"):
        command(*SOLVE, "--thread", user, "--tokens", "900", "--key", f"user={user}")
    assert "tokens=2000000" in command("quota", "show").stdout
    command("quota", "set", *of_users, "--tokens", "9")
    command("quota", "set", *of_users, "--for", "ann", "--tokens", "10")
    shown = json.loads(command("quota", "show", "--json").stdout)
    assert [(row["who"], row["limits"]["tokens"]) for row in shown] == [("bob", 9), ("ann", 10)]
    assert sum(row["booked"]["tokens"] for row in shown) == server.settled().served > 900


def test_names_on_a_bill_are_harmless_on_a_terminal_and_exact_in_a_pipe(
    server: Server, command: Command
) -> None:
    server.script = said
    command(*SOLVE, "--thread", "a", "--calls", "1", "--key", "user=a\x1b[31mb")
    assert "\na\x1b[31mb," in command("spend", "--by", "user", "--csv").stdout
    above, below = pty.openpty()
    words = [*COMMAND, "spend", "--by", "user", "--csv"]
    subprocess.run(words, stdout=below, check=True)
    os.close(below)
    shown = os.read(above, 9_999).decode()
    os.close(above)
    assert "\na\ufffd[31mb," in shown


@pytest.mark.parametrize("by", ["", "user,,model"])
def test_a_bill_is_by_something(server: Server, command: Command, by: str) -> None:
    command(*SOLVE, "--thread", "a", "--calls", "1")
    done = command("spend", "--by", by)
    assert (done.exit_code, f"Error: --by {by!r}: names with commas" in done.stderr) == (2, True)
