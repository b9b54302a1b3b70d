"""A vote at equal billed tokens: drafts in requests of their own, or several in one request, by how
the provider bills them.

    python -m tests.bench.choices [QUESTIONS]
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from rich.console import Console
from rich.table import Table

from anytime_graph import Budget, create_anytime_graph
from anytime_graph.planning.profiles import Profile
from anytime_graph.run.state import payoff
from tests.kit.server import Reply, Server, serving

BUDGETS = (200, 400, 800, 1_600)
RIGHT, P = "7", 0.42
QUESTION = (
    "A train leaves the first town at nine in the morning and another leaves the second town an hour "
    "later on the same line. The towns lie three hundred miles apart. The first goes at fifty miles "
    "an hour and the other at forty, and a swift that flies at ninety miles an hour starts with the "
    "first train, turns whenever it meets one of the two, and rests for a minute at every tenth "
    "turn. How far from the first town do the trains meet, and how often has the swift turned by "
    "then? Name the digit that stands last in the number of turns."
)


@dataclass(frozen=True)
class Case:
    """How drafts are asked for and billed. reply: options of the server's replies. makes: choices
    that it makes of several. model: over the server. profile: what is known of earlier drafts."""

    name: str
    model: Callable[[Server], BaseChatModel]
    reply: dict[str, Any]
    makes: int = 128
    profile: Profile | None = None


def _any(server: Server) -> BaseChatModel:
    return server.model(n=None)


def _openais(server: Server) -> BaseChatModel:
    """At OpenAI's address, for which the server is a proxy."""
    proxy = server.url.removesuffix("/v1")
    address = "http://api.openai.com/v1"
    return ChatOpenAI(model="gpt-4.1-mini", base_url=address, openai_proxy=proxy, api_key="none")  # type: ignore[arg-type]


USUAL = {"draft": payoff(P, tokens=131, written=6)}

CASES = (
    Case("separate calls", lambda server: server.model(n=1), {}),
    Case("prompt billed once, as by OpenAI", _openais, {}),
    Case("the same, with a profile", _openais, {}, profile=USUAL),
    Case("prompt billed once, found out", _any, {}),
    Case("prompt billed for each choice", _any, {"bills": "each"}),
    Case("one choice reported", _any, {"tells": "one"}),
    Case("one choice made", _any, {}, makes=1),
)


@dataclass
class Outcome:
    """Of a case at a budget: questions asked and answered rightly, votes, tokens served and booked."""

    asked: int = 0
    right: int = 0
    votes: int = 0
    served: int = 0
    booked: int = 0

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    @property
    def answers(self) -> float:
        """Per 1,000 tokens that were billed."""
        return 1_000 * self.votes / self.served


def measured(server: Server, case: Case, budget: int, questions: int) -> Outcome:
    """The n-th draft for a question says the same in every case: common random numbers."""
    outcome = Outcome()
    app = create_anytime_graph(
        case.model(server),
        strategy="self_consistency",
        answer=_digit,
        budget=Budget(tokens=budget),
        profile=case.profile,
    ).compile()
    for question in range(questions):
        draws = random.Random(question)
        server.calls.clear()
        server.script = lambda request, i, draws=draws: _reply(draws, case, request.get("n") or 1)
        out = app.invoke({"messages": [("user", QUESTION)]})
        server.settled()
        outcome.asked += 1
        outcome.right += out["best"]["answer"] == RIGHT
        outcome.votes += sum(min(c.request.get("n") or 1, case.makes) for c in server.calls)
        outcome.served += server.served
        outcome.booked += out["spent"]["tokens"]
        assert server.served <= out["spent"]["tokens"] <= budget
    return outcome


def _reply(draws: random.Random, case: Case, n: int) -> Reply:
    text, *more = [_said(draws) for _ in range(min(n, case.makes))]
    return Reply(text=text, more=list(more), **case.reply)


def _said(draws: random.Random) -> str:
    answer = RIGHT if draws.random() < P else draws.choice("12345689")
    return f"so the digit is {answer} here"


def _digit(reply: str) -> str | None:
    found = re.search(r"is (\d)", reply)
    return found and found[1]


def table(questions: int, budgets: Sequence[int] = BUDGETS) -> Table:
    shown = Table(
        title=f"right answers, and answers per 1,000 billed tokens, {questions} questions"
    )
    shown.add_column("")
    for budget in budgets:
        shown.add_column(f"B = {budget:,}", justify="right")
    with serving() as server:
        for case in CASES:
            cells = [measured(server, case, budget, questions) for budget in budgets]
            shown.add_row(case.name, *(f"{c.accuracy:.0%}  {c.answers:.1f}" for c in cells))
    return shown


if __name__ == "__main__":
    Console().print(table(int(sys.argv[1]) if sys.argv[1:] else 200))
