"""What a step's replies make of a run's state, as a pure function; and a run that has not begun."""

from __future__ import annotations

from typing import Any, cast

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from anytime_graph.budget import GOOD_ROOM
from anytime_graph.run.calls import (
    JUDGE,
    OWN,
    STRUCTURED,
    CritiqueMove,
    DraftMove,
    Outcome,
    PlannedCall,
    PlannedMove,
    Role,
    receipt,
)
from anytime_graph.run.fold import fold, union
from anytime_graph.run.state import Decides, State, fresh, merged, without_repeats
from tests.kit.runs import candidate


def outcome(ordinal: int, move: PlannedMove, role: Role = OWN, **brought: Any) -> Outcome:
    call = PlannedCall(
        ordinal=ordinal,
        step=ordinal,
        move=move,
        role=role,
        slice={},
        max_input=0,
        max_output=None,
        shape=[],
        n=1,
        prompt_copies=1,
    )
    made = Outcome(call=call, receipt=receipt(ordinal, ordinal + 1))
    return cast(Outcome, {**made, **brought})


def drafted(i: int, text: str, conclude: int | None = None, **facts: Any) -> Outcome:
    move = DraftMove(
        kind="draft", pairs=None, memory=None, share=None, conclude=conclude, with_pairs=False
    )
    node = "draft" if conclude is None else "conclude"
    of = [] if conclude is None else [conclude]
    made = {**candidate(i, text, None), "node": node, "parents": of, **facts}
    return outcome(i, move, candidate=made)


def preferred(ordinal: int, winner: int, *among: int) -> list[Outcome]:
    """A judgement in both orders."""
    return [
        outcome(
            ordinal + n,
            CritiqueMove(
                kind="critique",
                first=among[0],
                second=among[1],
                share=None,
                swapped=swapped,
                among=list(among),
            ),
            JUDGE,
            preferred=winner,
            why="",
        )
        for n, swapped in enumerate((False, True))
    ]


def after(state: State, decides: Decides, *outcomes: Outcome) -> State:
    return merged(state, fold(merged(state, State(returned=list(outcomes))), 8, decides, {}))


def begun() -> State:
    return fresh("question", {}, 1, "thread", {"tokens": 1_000})


def test_a_run_that_has_not_begun_has_counted_nothing() -> None:
    state = begun()
    assert (state["run_id"], state["least_room"]) == (1, GOOD_ROOM)
    counted = [
        amount
        for part in (state, state["spent"], state["judging"], state["judging"]["spent"])
        for key, amount in part.items()
        if isinstance(amount, int | float) and key not in ("run_id", "least_room")
    ]
    assert counted
    assert not any(counted)


def test_an_answer_out_of_cut_reasoning_takes_over_only_the_incumbents_comparisons() -> None:
    one, two, three = (drafted(i, word, complete=False) for i, word in enumerate("abc", 1))
    state = after(begun(), "judge", one, two, three)
    state = after(state, "judge", *preferred(4, 2, 1, 2), *preferred(6, 3, 2, 3))
    best = state["best"]
    assert best is not None
    assert (best["id"], best["complete"]) == (3, False)
    concluded = after(state, "judge", drafted(8, "d", conclude=3))
    assert concluded["matches"] == [[1, 2, 2], [2, 8, 8]]
    assert [c["id"] for c in concluded["candidates"] if c["lost"]] == [3]


@pytest.mark.parametrize("others", [(60, 5), (5, 60)])
def test_a_chosen_answer_is_compared_with_the_mean_length_of_the_others(
    others: tuple[int, int],
) -> None:
    texts = {1: "a" * others[0], 2: "b" * 20, 3: "c" * others[1]}
    state = after(begun(), "agreement", *(drafted(i, text) for i, text in texts.items()))
    judging = after(state, "agreement", *preferred(4, 2, 1, 2, 3))["judging"]
    assert (judging["comparisons"], judging["agreed"]) == (1, 1)
    assert (judging["longer"], judging["shorter"]) == (0, 1)


def test_the_latest_64_comparisons_among_the_kept_answers_are_remembered() -> None:
    state = after(begun(), "judge", *(drafted(i, word) for i, word in enumerate("abc", 1)))
    for n in range(65):
        state = after(state, "judge", *preferred(4 + 2 * n, 1, 1, 3 if n else 2))
    assert state["matches"] == [[1, 3, 1]] * 64


def test_an_answer_that_comes_late_can_still_win_the_vote() -> None:
    """Of more answers than are counted, the newest are, not always the same."""
    state = after(begun(), "vote", *(drafted(n, f"answer {n}") for n in range(1, 65)))
    for n in range(65, 68):
        state = after(state, "vote", drafted(n, "late"))
    assert len(state["ballots"]) == 64
    assert state["ballots"]["late"] == 3
    best = state["best"]
    assert best is not None
    assert best["answer"] == "late"


def test_each_answer_is_one_try_of_its_kind() -> None:
    state = after(begun(), "scorer", drafted(1, "a", score=0.5), drafted(2, "b", score=1.0))
    assert (state["payoffs"]["draft"]["tries"], state["payoffs"]["draft"]["worth"]) == (2, 1.5)


def test_tries_to_conclude_are_counted_per_answer() -> None:
    """Other calls in between change nothing."""
    state = begun()
    for n, (of, conclusions) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):
        state = after(state, "judge", drafted(3 + 2 * n, "a", conclude=of, complete=False))
        assert (state["concluded"], state["conclusions"]) == (of, conclusions)
        state = after(state, "judge", drafted(4 + 2 * n, "b", complete=False))
        assert (state["concluded"], state["conclusions"]) == (of, conclusions)


def test_parallel_calls_share_their_seconds() -> None:
    assert union([]) == 0
    assert union([(2, 5), (0, 3), (1, 2), (7, 8)]) == 6
    assert after(begun(), "scorer", drafted(1, "a"), drafted(2, "b"))["spent"]["seconds"] == 2


@pytest.mark.parametrize("decides", ["scorer", "judge"])
@pytest.mark.parametrize("score", [None, 0.0])
def test_only_a_scorer_that_failed_on_every_answer_leaves_them_unscored(
    decides: Decides, score: float | None
) -> None:
    failed = after(begun(), decides, drafted(1, "a", score=score))
    assert failed["unscored"] == (decides == "scorer" and score is None)
    assert not after(failed, decides, drafted(2, "b", score=0.5))["unscored"]


def test_a_provider_that_refuses_verdicts_as_json_is_asked_for_text_from_then_on() -> None:
    for role in (JUDGE, STRUCTURED):
        ruling = preferred(3, 1, 1, 2)[0]
        ruling["call"]["role"], ruling["receipt"]["refused"] = role, True
        state = after(begun(), "judge", ruling)
        assert state["unstructured"] == (role == STRUCTURED)
        assert after(state, "judge", drafted(5, "a"))["unstructured"] == (role == STRUCTURED)


def test_only_a_question_that_is_repeated_unanswered_is_left_out() -> None:
    asked = [HumanMessage("Why?", id=str(i)) for i in range(3)]
    answer, result = AIMessage("So.", id="a"), ToolMessage("1", tool_call_id="t", id="r")
    given: list[BaseMessage] = [asked[0], asked[1], answer, answer, result, result, asked[2]]
    assert without_repeats(given) == (given[1:], ["0"])
    other = HumanMessage("How?", id="9")
    assert without_repeats([asked[0], other, asked[1]]) == ([asked[0], other, asked[1]], [])
