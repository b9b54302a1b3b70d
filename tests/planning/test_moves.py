"""Which moves strategies make, what they cost and who makes them, as pure functions of a view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from langchain_core.messages import HumanMessage

from anytime_graph import Draft
from anytime_graph.budget import GOOD_ROOM
from anytime_graph.planning.moves import Learn, Refine, Stop, planned_move
from anytime_graph.planning.plan import plan
from anytime_graph.planning.prospects import prospects
from anytime_graph.planning.strategies import adaptive, best_of_n, leap, pdp
from anytime_graph.run.calls import JUDGE, OWN, REVIEW, CritiqueMove, PlannedCall
from anytime_graph.run.state import Judging, Payoff, State, fresh, merged
from tests.bench.simulation import KINDS, METER, setup
from tests.kit.runs import candidate, drafts, pair, seen


@pytest.mark.parametrize(("calls", "asked"), [(None, 2), (4, 2), (3, 0)])
def test_pdp_asks_for_two_reasons_if_calls_are_left_to_use_them(
    calls: int | None, asked: int
) -> None:
    run = seen(draft=drafts(0.2, 0.4, 0.5, 0.6))
    scored: Any = {**pair("a", "b"), "why_by": "score"}
    run = replace(run, made={"draft": 4}, pairs=[scored] * 3, judging=True)
    if calls is not None:
        run = replace(run, left={**run.left, "calls": calls})
    learning = [move for move in pdp(run) if isinstance(move, Learn)]
    assert learning == [Learn(0, 1, share=0.1)] * asked
    assert not any(isinstance(m, Learn) for m in pdp(replace(run, pairs=[pair("a", "b")])))


def test_leap_pays_for_principles_with_a_quarter_and_asks_once() -> None:
    run = seen(draft=drafts(0.2, 0.4, 0.5, 0.6))
    run = replace(run, made={"draft": 4}, pairs=[pair("a", "b")], judging=True)
    assert leap(run) == [Learn(share=0.25)]
    for after in (replace(run, made={"draft": 4, "learn": 1}), replace(run, judging=False)):
        assert [m.pairs for m in leap(after) if isinstance(m, Draft)] == ["principles"] * 2


@pytest.mark.parametrize(("taught", "memory"), [(0.9, "chosen"), (0.1, None)])
def test_drafts_are_shown_the_memory_if_that_has_paid(taught: float, memory: str | None) -> None:
    run = seen(draft=drafts(0.4, 0.5, 0.6), taught_draft=drafts(*[taught] * 3))
    made = best_of_n(replace(run, recalled=True))
    assert [m.memory for m in made if isinstance(m, Draft)] == [memory] * 4


@pytest.mark.parametrize(("taught", "pairs"), [(0.9, "both"), (0.1, None)])
def test_adaptive_shows_lessons_if_there_are_any_and_they_have_paid(
    taught: float, pairs: str | None
) -> None:
    known = {"draft": drafts(0.4, 0.5, 0.6), "taught_draft": drafts(*[taught] * 3)}
    run = seen(**known, refine=drafts(*[0.0] * 9), taught_refine=drafts(*[0.0] * 9))
    for lessons, shown in (([pair("a", "b")], pairs), ([], None)):
        moves = adaptive(replace(run, pairs=lessons))
        assert moves
        assert all(isinstance(m, Draft) and m.pairs == shown for m in moves)


def test_reviews_go_to_the_model_without_its_tools_and_answers_do_not() -> None:
    rules = setup(KINDS["judge good"], "adaptive")
    rules = replace(rules, meters={**rules.meters, REVIEW: METER})
    state = fresh("q", {}, 1, "t", {"tokens": 1_000})

    def critique(second: int | None) -> CritiqueMove:
        return CritiqueMove(kind="critique", first=1, second=second, share=None, swapped=False)

    moves = [planned_move(Draft()), planned_move(Refine(1)), critique(None), critique(2)]
    assert [rules.role(move, state) for move in moves] == [OWN, OWN, REVIEW, JUDGE]


@pytest.mark.parametrize(
    ("more", "kind", "gain"),
    [
        ({}, "draft", 0.068),
        ({}, "taught draft", 0.100),
        ({"taught_draft": drafts(0.0)}, "taught draft", 0.056),
        ({"taught_draft": drafts(1.0)}, "taught draft", 0.188),
        ({}, "refine", 0.124),
        ({"refine": drafts(0.0)}, "refine", 0.050),
        ({"taught_refine": drafts(0.0)}, "taught refine", 0.050),
    ],
)
def test_what_a_move_brings_under_a_judge_is_as_worked_out(
    more: dict[str, Payoff], kind: str, gain: float
) -> None:
    """Of a judge that named one answer in both orders four times. A worth of 1 became the best."""
    run = seen(draft=drafts(*[0.0] * 5), **more)
    judged = Judging(**{**run.judged, "comparisons": 4, "agreed": 4})
    found = prospects(replace(run, decides="judge", judged=judged))
    assert found[kind].gain == pytest.approx(gain, abs=0.0005)


@pytest.mark.parametrize(("tokens", "held"), [(700, 0), (800, 145), (1_200, 145), (1_400, 245)])
def test_a_last_call_is_held_back_if_a_fifth_pays_for_it(tokens: int, held: int) -> None:
    """A fifth of 1,400 tokens pays for its second try too."""
    state = fresh("q", {}, 1, "t", {"tokens": tokens})
    asked = State(messages=[HumanMessage("Why?", id="q")], remaining_steps=cast(Any, 99))
    planned = plan(setup(KINDS["easy"], "single"), merged(state, asked), stopped=False)
    assert not isinstance(planned, Stop)
    ((call, _),) = planned
    assert call["max_input"] + (call["max_output"] or 0) == tokens - held


def cut(tokens: int, **limits: float) -> State:
    """A run whose only reply was cut before its answer."""
    state = fresh("q", {}, 1, "t", {"tokens": tokens, **limits})  # type: ignore[typeddict-item]
    reply = {**candidate(0, "think and " * 40, None), "complete": False, "node": "draft"}
    asked = State(
        messages=[HumanMessage("Why?", id="q")],
        remaining_steps=cast(Any, 99),
        best=cast(Any, reply),
        candidates=[cast(Any, reply)],
    )
    return merged(state, asked)


def calls(state: State) -> list[PlannedCall]:
    planned = plan(setup(KINDS["easy"], "single"), state, stopped=False)
    assert not isinstance(planned, Stop)
    return [each.call for each in planned]


def test_the_first_try_of_a_last_call_leaves_the_second_a_quarter_of_the_time() -> None:
    (first,) = calls(cut(400, seconds=8.0))
    assert (first["move"]["conclude"], first["move"].get("again")) == (0, False)  # type: ignore[typeddict-item, union-attr]
    assert first["slice"]["seconds"] == 6.0
    (second,) = calls({**cut(190, seconds=8.0), "concluded": 0, "conclusions": 1})
    assert second["move"].get("again") is True
    assert second["slice"]["seconds"] == 8.0


def test_the_first_try_has_all_that_is_left_where_two_cannot_be_paid_for() -> None:
    (alone,), (beside,) = calls(cut(210)), calls(cut(400))
    assert alone["max_input"] + (alone["max_output"] or 0) == 210
    assert beside["max_input"] + (beside["max_output"] or 0) < 400
    assert (beside["max_output"] or 0) >= GOOD_ROOM


def test_a_state_of_an_earlier_version_has_one_try_behind_it() -> None:
    (second,) = calls({**cut(190), "concluded": 0})
    assert second["move"].get("again") is True
