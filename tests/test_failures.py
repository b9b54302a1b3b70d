"""P2, P3, P8: a call that fails is a state update; a bad refiner or judge never costs a good answer."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from anytime_graph import Budget, BudgetTooSmall, NoAnswer, Prices, View, create_anytime_graph
from anytime_graph.strategies import STRATEGIES
from tests.server import Reply, Server

QUESTION = {"messages": [("user", "Name a river and say where it runs.")]}
FAILURES: list[Any] = [400, 429, 500, "drop", "break", "junk", "empty"]

both = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])


def run(server: Server, budget: Budget, sync: bool = True, **options: Any) -> dict[str, Any]:
    app = create_anytime_graph(server.model(seed=0), budget=budget, **options).compile()
    return app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))


def judging(request: dict[str, Any]) -> bool:
    return "Verdict" in request["messages"][0]["content"]


@both
@pytest.mark.parametrize("failure", FAILURES, ids=str)
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_whichever_call_fails_the_best_answer_comes_back(
    server: Server, strategy: str, failure: Any, sync: bool
) -> None:
    def answering(failing: int | None) -> Any:
        def script(request: dict[str, Any], i: int) -> Reply:
            if i == failing:
                return (
                    Reply(text="") if failure == "empty" else Reply("It runs " * 9, error=failure)
                )
            return Reply(
                text=f"<answer>river {i}</answer>" if not judging(request) else "Verdict: A"
            )

        return script

    server.script = answering(None)
    run(server, Budget(tokens=3_000), sync, strategy=strategy)
    for k in range(min(len(server.calls), 5)):
        server.calls.clear()
        server.script = answering(k)
        try:
            out = run(server, Budget(tokens=3_000), sync, strategy=strategy)
        except NoAnswer:
            # the failed call held the whole budget in reserve, so none was left for another
            assert strategy == "single"
            assert len(server.calls) == 1
            continue
        assert out["best"]["answer"]
        assert out["errors"] or failure == "empty"
        assert out["spent"]["tokens"] >= server.settled().served


@both
def test_all_calls_fail(server: Server, sync: bool) -> None:
    server.script = lambda request, i: Reply(error=500)
    with pytest.raises(NoAnswer) as failure:
        run(server, Budget(tokens=50_000, calls=40), sync)
    assert len(failure.value.causes) == failure.value.spent["calls"] == len(server.calls)
    assert all("HTTP 500" in cause for cause in failure.value.causes)
    assert len(server.calls) <= 12, "it gives up rather than hammer a dead endpoint"


@both
def test_a_broken_stream_still_yields_its_answer(server: Server, sync: bool) -> None:
    text = "so <answer>the Rhine</answer> because it " + "runs " * 50
    server.script = lambda request, i: Reply(text=text, error="break")
    out = run(server, Budget(tokens=900), sync, strategy="single")
    assert out["best"]["answer"] == "the Rhine"
    assert out["best"]["complete"]


QUALITY = re.compile(r"quality (\d+)")


def quality(text: str) -> int:
    return int(QUALITY.search(text)[1])  # type: ignore[index]


@both
@pytest.mark.parametrize(
    "verdict",
    ["Verdict: A", "Verdict: B", "banana", "Verdict: C", "", "Verdict: A\nVerdict: B or so", "{}"],
)
@pytest.mark.parametrize("strategy", ["best_of_n", "self_refine", "pdp", "pdp_positive"])
def test_a_useless_judge_and_a_corrupting_refiner_never_cost_the_first_draft(
    server: Server, strategy: str, verdict: str, sync: bool
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if judging(request):
            return Reply(text=verdict)
        first = request["seed"] == 0  # the seed tells the place of a call in the run
        return Reply(text=f"<answer>quality {9 if first else 0}</answer>")

    server.script = script
    out = run(server, Budget(tokens=4_000), sync, strategy=strategy)
    assert quality(out["best"]["answer"]) == 9
    assert out["pairs"] == []


@both
@pytest.mark.parametrize("strategy", ["best_of_n", "self_refine", "pdp"])
def test_an_honest_judge_raises_the_answer_in_both_orders(
    server: Server, strategy: str, sync: bool
) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        if judging(request):
            shown = [int(q) for q in QUALITY.findall(request["messages"][-1]["content"])]
            if len(shown) == 1:
                return Reply(text="It could be better.\nVerdict: improve")
            first = shown[0] > shown[1]
            return Reply(text=f"{max(shown)} is more.\nVerdict: {'A' if first else 'B'}")
        return Reply(text=f"<answer>quality {i}</answer>")

    server.script = script
    out = run(server, Budget(tokens=8_000), sync, strategy=strategy)
    assert quality(out["best"]["answer"]) > 3
    assert all(quality(p["chosen"]) > quality(p["rejected"]) for p in out["pairs"])
    assert {p["by"] for p in out["pairs"]} == {"judge"}
    assert "is more" in out["pairs"][0]["why"]


def test_a_critic_that_is_never_satisfied_ends_with_the_budget(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text="No, not yet.\nVerdict: improve" if judging(request) else "A river.")

    server.script = script
    out = run(server, Budget(tokens=5_000), strategy="self_refine")
    assert out["stop_reason"] == "tokens"
    assert server.served <= 5_000


def test_a_critic_that_is_satisfied_ends_the_run(server: Server) -> None:
    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text="Fine.\nVerdict: good" if judging(request) else "A river.")

    server.script = script
    out = run(server, Budget(tokens=5_000), strategy="self_refine")
    assert out["stop_reason"] == "satisfied"
    assert len(server.calls) == 2


@both
@pytest.mark.parametrize(
    "rubbish",
    [float("nan"), float("inf"), -0.1, 1.1, "0.5", None, [0.5], {"value": 1}, ZeroDivisionError],
)
def test_a_scorer_that_fails_costs_its_score_not_the_run(
    server: Server, rubbish: Any, sync: bool
) -> None:
    def score(question: str, answer: str) -> Any:
        if answer == "good":
            return 0.9
        if rubbish is ZeroDivisionError:
            return 1 / 0
        return rubbish

    server.script = lambda request, i: Reply(text=f"<answer>{'good' if i == 2 else 'bad'}</answer>")
    out = run(server, Budget(calls=8), sync, strategy="best_of_n", scorer=score)
    assert (out["best"]["answer"], out["best"]["score"]) == ("good", 0.9)
    assert sum("scorer on candidate" in e for e in out["errors"]) == 7


@both
def test_async_scorers_work_in_both(server: Server, sync: bool) -> None:
    async def score(question: str, answer: str) -> float:
        await asyncio.sleep(0)
        return len(answer) / 100

    server.script = lambda request, i: Reply(text="x" * (10 + i))
    out = run(server, Budget(calls=4), sync, strategy="best_of_n", scorer=score)
    assert out["best"]["score"] == pytest.approx(0.13)


def test_an_async_scorer_that_is_cancelled_costs_its_score_only(server: Server) -> None:
    async def score(question: str, answer: str) -> float:
        if answer == "bad":
            raise asyncio.CancelledError
        return 0.9

    server.script = lambda request, i: Reply(text=f"<answer>{'good' if i == 2 else 'bad'}</answer>")
    out = run(server, Budget(calls=4), sync=True, strategy="best_of_n", scorer=score)
    assert (out["best"]["answer"], out["best"]["score"]) == ("good", 0.9)
    assert sum("CancelledError" in e for e in out["errors"]) == 3


@both
@pytest.mark.parametrize("tokens", [150, 300, 650, 1_300, 2_600, 5_200])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_an_answer_at_every_budget_that_pays_for_a_draft(
    server: Server, strategy: str, tokens: int, sync: bool
) -> None:
    """Drafts of 150 tokens, and an endpoint that refuses whatever would go past the budget."""

    def script(request: dict[str, Any], i: int) -> Reply:
        room = tokens - sum(c.served for c in server.calls)
        if room < (request.get("max_completion_tokens") or tokens):
            return Reply(error=429)
        return Reply(text="a " * 150)

    server.script = script
    out = run(server, Budget(tokens=tokens), sync, strategy=strategy)
    assert out["best"]["answer"].startswith("a a")
    assert server.served <= tokens
    assert not out["errors"]


@pytest.mark.parametrize("dimension", ["tokens", "output_tokens", "usd", "calls", "seconds"])
def test_a_budget_too_small_is_refused_with_the_least_that_would_do(
    server: Server, dimension: str
) -> None:
    prices = Prices(input=1.0, output=2.0)
    with pytest.raises(BudgetTooSmall) as refusal:
        run(server, Budget(**{dimension: 0}), prices=prices)
    assert not server.calls
    least = refusal.value.least
    assert str(least) in str(refusal.value)
    if dimension != "seconds":
        just_less = Budget(
            **{d: v * 0.97 if d == "usd" else v - 1 for d, v in least.limits().items()}
        )
        with pytest.raises(BudgetTooSmall):
            run(server, just_less, prices=prices)
        assert not server.calls
        assert run(server, least, prices=prices)["best"]["answer"] == "fine"


def test_a_strategy_that_fails_late_does_not_lose_the_answer(server: Server) -> None:
    def strategy(view: View) -> Any:
        if view.best:
            raise KeyError("a bug of the user's")
        return STRATEGIES["best_of_n"](view)

    out = run(server, Budget(tokens=3_000), strategy=strategy)
    assert out["best"]["answer"] == "fine"
    assert out["stop_reason"] == "strategy: KeyError"


def test_the_graphs_step_limit_is_a_stop_reason_not_an_exception(server: Server) -> None:
    app = create_anytime_graph(
        server.model(), budget=Budget(tokens=50_000), scorer=lambda q, a: 0.5
    ).compile()
    for limit in (5, 6, 9, 12):
        out = app.invoke(QUESTION, {"recursion_limit": limit})
        assert (out["best"]["answer"], out["stop_reason"]) == ("fine", "steps")
