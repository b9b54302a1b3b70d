"""Trips: the grammar, reading plans, their score, the generator; and NATURAL PLAN's own file where
ANYTIME_DATA names a folder that holds it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.tasks import load, trips
from anytime_graph.tasks.natural_plan import exact_match
from anytime_graph.tasks.trips import (
    Event,
    Stay,
    Trip,
    parse,
    rate,
    read_plan,
    render,
    write,
)

BASE = Trip(
    days=11,
    stays=(("Riga", 3), ("Oslo", 4), ("Rome", 2), ("Paris", 5)),
    events=(Event("wedding", "Oslo", 4, 6), Event("conference", "Paris", 10, 11)),
    flights=frozenset(
        (a, b)
        for a, b in permutations(["Riga", "Oslo", "Rome", "Paris"], 2)
        if {a, b} in ({"Riga", "Oslo"}, {"Rome", "Paris"}, {"Oslo", "Paris"})
        or (a, b) == ("Oslo", "Rome")
    ),
)
CONSTRAINTS = ["length", "once", "Riga", "Oslo", "Rome", "Paris", "wedding", "conference", "leg 1"]
CONSTRAINTS += ["leg 2", "leg 3"]
GOLDEN = "Riga 1-3, Oslo 3-6, Rome 6-7, Paris 7-11"
CITIES = [city for city, _ in BASE.stays]


def plan(short: str) -> str:
    """Riga 1-3, Oslo 3>Rome 6 -> Day 1-3: Visit Riga. ..."""
    lines = []
    for part in short.split(", "):
        if move := re.fullmatch(r"(\d+): (\w+)>(\w+)", part):
            lines.append(f"**Day {move[1]}:** Fly from {move[2]} to {move[3]}.")
        else:
            city, days = part.split()
            lines.append(f"**Day {days}:** Visit {city}.")
    return "\n".join(lines)


def lost(text: str) -> set[str]:
    checks = rate(BASE, read_plan(text, CITIES))
    return {name for name, (holds, _) in zip(CONSTRAINTS, checks, strict=True) if not holds}


@pytest.mark.parametrize(
    ("short", "broken"),
    [
        (GOLDEN, ""),
        ("Riga 1-3, 3: Riga>Oslo, Oslo 3-6, 6: Oslo>Rome, Rome 6-7, 7: Rome>Paris, Paris 7-11", ""),
        ("Riga 1-3, Oslo 3-6, Rome 6-7, Paris 7-10", "length Paris conference"),
        ("Riga 1-3, Oslo 3-6, Rome 6-7, Paris 7-12", "length Paris"),
        ("Riga 2-4, Oslo 4-7, Rome 7-8, Paris 8-12", "length"),
        ("Riga 2-3, Oslo 3-6, Rome 6-7, Paris 7-11", "length Riga"),
        ("Riga 1-3, Rome 3-4, Oslo 4-7, Paris 7-11", "leg1 leg2"),
        ("Riga 1-3, Oslo 3-5, Rome 5-7, Paris 7-11", "Oslo Rome wedding"),
        ("Riga 1-3, Oslo 4-6, Rome 6-7, Paris 7-11", "Oslo leg1"),
        ("Riga 1-3, Oslo 3-6, Paris 6-11", "once Rome Paris leg3"),
        ("Riga 1-3, Oslo 3-6, Berlin 6-7, Paris 7-11", "once Rome leg2 leg3"),
        (
            "Riga 1-3, Oslo 3-6, Rome 6-7, Paris 7-10, Riga 10-11",
            "once Riga Paris conference",
        ),
        ("Paris 1-5, Rome 5-6, Oslo 6-9, Riga 9-11", "wedding conference leg2"),
        ("Riga 1-3", "length once Oslo Rome Paris wedding conference leg1 leg2 leg3"),
        ("Riga 1-3, 5: Riga>Oslo, Oslo 3-6, Rome 6-7, Paris 7-11", "once Riga leg1 leg3"),
        ("Riga 1-3, Oslo 3-6, 6: Oslo>Berlin, Rome 6-7, Paris 7-11", "once leg2 leg3"),
        ("Riga 1-3, Oslo 2-5, Rome 6-7, Paris 7-11", "wedding leg1 leg2"),
        ("Paris 1-5, Oslo 5-8, Rome 8-9, Riga 9-11", "wedding conference leg3"),
        ("Riga 1-3, Oslo 3-5, Paris 5-9, Oslo 9-9, Rome 9-11", "once Rome wedding conference"),
        ("Riga 1-11", "once Riga Oslo Rome Paris wedding conference leg1 leg2 leg3"),
        ("Riga 1-4, Oslo 4-6, Rome 6-7, Paris 7-11", "Riga Oslo"),
        ("Riga 1-3, Oslo 3-6, Rome 6-8, Paris 8-11", "Rome Paris"),
        ("Riga 1-3, Oslo 3-6, Rome 6-7", "length once Paris conference leg3"),
        ("Berlin 1-11", "once Riga Oslo Rome Paris wedding conference leg1 leg2 leg3"),
    ],
)
def test_a_broken_plan_loses_exactly_what_it_breaks(short: str, broken: str) -> None:
    names = {re.sub(r"leg(\d)", r"leg \1", name) for name in broken.split()}
    assert lost(plan(short)) == names
    score = trips.score(BASE, "", plan(short))
    assert score.value == pytest.approx(1 - len(names) / len(CONSTRAINTS))
    assert (score.feedback is None) == (not names)


def test_the_feedback_names_what_fails() -> None:
    score = trips.score(BASE, "", plan("Riga 1-3, Oslo 4-6, Rome 6-7, Paris 7-10"))
    assert score.feedback == (
        "Wrong: the trip must last from day 1 to day 11, not from 1 to 10; Oslo for 4 days, not 3; "
        "Paris for 5 days, not 4; conference in Paris: be there from day 10 to 11; "
        "arrive on the day you leave from Riga to Oslo."
    )
    assert trips.score(BASE, "", "It cannot be done.").value == 0
    assert "Day 1-3" in str(trips.score(BASE, "", "It cannot be done.").feedback)


@pytest.mark.parametrize(
    "text",
    [
        "Day 1-3: Riga\nDay 3-6: Oslo\nDay 6-7: Rome\nDay 7-11: Paris",
        "* **Days 1–3:** Arriving in Riga and visit Riga for 3 days.\n* **Day 3:** Fly from Riga to "
        "Oslo.\n* **Days 3–6:** Visit Oslo.\n* **Days 6–7:** Visit Rome.\n* **Days 7–11:** Paris!",
        "| Day 1-3 | Riga |\n| Day 3-6 | Oslo |\n| Day 6-7 | Rome |\n| Day 7-11 | Paris |",
        "1. Day 1 to Day 3: stay in RIGA\n2. Day 3 to Day 6: stay in oslo, then fly to Rome\n"
        "3. Day 6 to Day 7: fly from Oslo to Rome and visit Rome\n4. Day 7 to day 11: explore Paris",
        "Day 1-3: Visit Riga. Day 3: Fly from Riga to Oslo. Day 3-6: Visit Oslo. Day 6-7: Visit Rome. "
        "Day 7: Fly from Rome to Paris. Day 7-11: Visit Paris.",
        "Day 1: Arrive in Riga\nDay 2: Explore Riga\nDay 3: Fly from Riga to Oslo\nDay 4: Oslo\n"
        "Day 5: Oslo\nDay 6: Fly from Oslo to Rome\nDay 7: Fly from Rome to Paris\nDay 8-11: Paris",
        "Day 1: Visit Riga for 3 days.\nDay 3: Fly from Riga to Oslo and stay for 4 days.\nDay 6: Fly "
        "from Oslo to Rome.\nDay 7: Fly from Rome to Paris.\nDay 7: Visit Paris for 5 days.",
        "I fly from Rome to Oslo in days 3-5, no.\nDay 1-5: Visit Oslo\nDay 5-11: Visit Rome\n\nWrong! "
        "Better:\nDay 1-3: Riga\nDay 3-6: Oslo\nDay 6-7: Rome\nDay 7-11: Paris\n\nThat is from day 1 "
        "to day 11.",
        "Day 1-3: Visit Riga\nDay 3-6: Visit Oslo\n- Day 4-6: attend the wedding in Oslo\n"
        "Day 6-7: Visit Rome\nDay 7-11: Visit Paris\nDay 10-11: attend the conference.",
    ],
)
def test_plans_are_read_in_many_forms(text: str) -> None:
    assert write(read_plan(text, CITIES)) == write(read_plan(plan(GOLDEN), CITIES))


@given(st.text(max_size=300) | st.text("Day 0123456789-: \n*RigaOslofromto", max_size=300))
def test_any_reply_is_scored_over_the_same_constraints(text: str) -> None:
    found = read_plan(text, CITIES)
    assert len(rate(BASE, found)) == len(CONSTRAINTS)
    assert 0 <= trips.score(BASE, "", text).value < 1


@pytest.mark.parametrize(
    "piece",
    ["Day 1-3: ", "day ", "\n", "* ", "_", "from a to ", "Day 1-9999: Riga\nDay 1-9999: Oslo\n"],
)
def test_reading_a_plan_takes_time_in_proportion_to_the_reply(piece: str) -> None:
    started = process_time()
    trips.score(BASE, "", piece * (60_000 // len(piece)))
    assert process_time() - started < 5


# --- the generator -----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), max_size=6))
def test_days_in_a_city_count_once(spans: list[tuple[int, int]]) -> None:
    stays = [Stay("Riga", first, first + more) for first, more in spans]
    assert trips._days(stays) == len({d for s in stays for d in range(s.first, s.last + 1)})


def made(count: int, cities: range) -> Iterator[tuple[int, Trip, list[Stay]]]:
    for seed in range(count):
        yield seed, *trips.make_trip(Random(seed), cities[seed % len(cities)], 0.3, 0.4)


def test_a_thousand_problems_are_solvable_and_their_wording_is_read_back() -> None:
    wordings = set()
    for seed, problem, golden in made(1_000, range(2, 11)):
        text = render(problem, Random(seed))
        again = parse(text)
        assert (again.days, again.stays, again.flights) == (
            problem.days,
            problem.stays,
            problem.flights,
        )
        assert set(again.events) == set(problem.events)
        cities = [city for city, _ in problem.stays]
        assert read_plan(write(golden), cities) == golden
        assert all(holds for holds, _ in rate(problem, golden))
        assert trips.score(problem, "", write(golden)).value == 1
        wordings |= {re.sub(r"\d+", "N", s) for s in re.split(r"\. ", text) if "day N" not in s}
    assert len(wordings) > 100


def solutions(trip: Trip) -> Iterator[list[Stay]]:
    """Every plan that meets all constraints. A search over all orders: up to about 10 cities."""
    days = dict(trip.stays)
    if sum(days.values()) - len(days) + 1 != trip.days:
        return

    def further(plan: list[Stay]) -> Iterator[list[Stay]]:
        if len(plan) == len(days):
            yield plan
            return
        gone = {stay.city for stay in plan}
        for city in days:
            if city in gone or (plan and (plan[-1].city, city) not in trip.flights):
                continue
            first = plan[-1].last if plan else 1
            stay = Stay(city, first, first + days[city] - 1)
            if all(
                stay.first <= e.first and e.last <= stay.last for e in trip.events if e.city == city
            ):
                yield from further([*plan, stay])

    yield from further([])


def test_the_search_finds_the_solutions_that_trying_all_orders_finds() -> None:
    several = 0
    for _, problem, golden in made(60, range(2, 7)):
        days = dict(problem.stays)
        right = []
        for order in permutations(days):
            first, tried = 1, []
            for city in order:
                tried.append(Stay(city, first, first + days[city] - 1))
                first += days[city] - 1
            if all(holds for holds, _ in rate(problem, tried)):
                right.append(tried)
        found = list(solutions(problem))
        assert golden in found
        assert sorted(map(write, found)) == sorted(map(write, right))
        several += len(found) > 1
    assert several > 0


def test_any_number_of_cities() -> None:
    problem, golden = trips.make_trip(Random(0), 200, 0.01, 0.2)
    assert parse(render(problem, Random(1))).flights == problem.flights
    assert trips.score(problem, "", write(golden)).value == 1
    assert read_plan(write(golden), [city for city, _ in problem.stays]) == golden


def test_the_task_is_the_same_for_the_same_seed_and_states_what_a_plan_is() -> None:
    task, longer = load("trip", count=5, seed=3), load("trip", count=100_000, seed=3)
    assert [q.prompt for q in task.questions] == [q.prompt for q in longer.questions[:5]]
    assert task.questions[0].prompt != load("trip", count=1, seed=4).questions[0].prompt
    assert len({q.id for q in longer.questions[:500]}) == 500
    for question in task.questions:
        text, conventions = question.prompt.rsplit("\n\n", 1)
        best = next(solutions(parse(text)))
        assert question.scorer(question.prompt, write(best)).value == 1
        for said in ("counts in both cities", "starts on day 1", "no flight home", "only that way"):
            assert said in conventions


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cities": 1}, "cities=1: .*at least 2"),
        ({"density": 2}, "density=2: a share"),
        ({"events": -1}, "events=-1"),
        ({"count": 0}, "count=0"),
    ],
)
def test_bad_options_of_the_generator_are_named(options: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load("trip", **options)


GOOD = render(BASE, Random(0))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Here are the", "These are", "are needed"),
        ("You plan to visit 4", "You plan to see 4", "You plan to see 4 .* not a known wording"),
        ("in total.", "in total. Bring a hat.", "'Bring a hat' is not a known wording"),
        ("visit 4", "visit 5", "5 cities are announced"),
        (" and ", " or ", "not a known wording"),
    ],
)
def test_a_prompt_of_another_wording_is_refused(old: str, new: str, told: str) -> None:
    assert parse(GOOD) == parse(GOOD.replace("\n", " \n"))
    with pytest.raises(ValueError, match=told):
        parse(GOOD.replace(old, new))


# --- NATURAL PLAN ------------------------------------------------------------------------------


def official(problem: Trip, golden: list[Stay], dice: Random, predicted: str) -> dict[str, Any]:
    """An example in the form of the official file."""
    return {
        "num_cities": str(len(golden)),
        "cities": "**".join(s.city for s in golden),
        "durations": "**".join(str(s.last - s.first + 1) for s in golden),
        "prompt_0shot": render(problem, dice),
        "golden_plan": as_official(golden),
        "pred_5shot_pro": predicted,
    }


def as_official(stays: list[Stay]) -> str:
    lines = [f"Here is the trip plan for the {len(stays)} European cities:", ""]
    for line in write(stays).splitlines():
        days, said = line.split(": ")
        lines.append(f"**{days}:** {said}")
    return "\n".join(lines)


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    examples = {}
    for seed, problem, golden in made(40, range(3, 9)):
        other = list(solutions(problem))[-1]
        examples[f"example_{seed}"] = official(problem, golden, Random(seed), as_official(other))
    file = tmp_path / "trip_planning.json"
    file.write_text(json.dumps(examples))
    return file


@pytest.fixture
def official_file() -> Path:
    folder = os.environ.get("ANYTIME_DATA")
    found = sorted(Path(folder).rglob("trip_planning*.json")) if folder else []
    if not found:
        pytest.skip("ANYTIME_DATA names no folder that holds NATURAL PLAN's trip_planning.json")
    return found[0]


def by_stays(example: dict[str, str]) -> bool:
    """The official score, counted in another way: off the stays and not the flights."""
    told = re.findall(
        r"Day (\d+)-(\d+):\*\* (?:Arriving in|Visit) (\w+)", example["pred_5shot_pro"]
    )
    stays = [(city, int(last) - int(first) + 1) for first, last, city in told]
    days = map(int, example["durations"].split("**"))
    return stays == list(zip(example["cities"].split("**"), days, strict=True))


def check_file(file: Path) -> None:
    examples = json.loads(file.read_text())
    csr, exact = (load(f"natural_plan_trip:{file}", score=s) for s in ("csr", "exact"))
    assert (csr.metric, exact.metric) == ("csr", "accuracy")
    assert len(csr.questions) == len(exact.questions) == len(examples)
    right = 0
    for satisfied, matched in zip(csr.questions, exact.questions, strict=True):
        example = examples[satisfied.id]
        assert satisfied.prompt == f"{example['prompt_0shot']}\n\n{trips.CONVENTIONS}"
        for question in (satisfied, matched):
            assert question.scorer("", example["golden_plan"]).value == 1
        predicted = matched.scorer("", example["pred_5shot_pro"]).value
        assert bool(predicted) == by_stays(example), satisfied.id
        if predicted:
            assert satisfied.scorer("", example["pred_5shot_pro"]).value == 1
        problem = parse(example["prompt_0shot"])
        assert as_stays(example) in [
            [(s.city, s.last - s.first + 1) for s in found] for found in solutions(problem)
        ]
        right += bool(predicted)
    assert 0 < right < len(examples)


def as_stays(example: dict[str, str]) -> list[tuple[str, int]]:
    days = map(int, example["durations"].split("**"))
    return list(zip(example["cities"].split("**"), days, strict=True))


def test_a_file_of_the_official_form(own_file: Path) -> None:
    check_file(own_file)


def test_the_official_file(official_file: Path) -> None:
    check_file(official_file)


def test_the_official_score_by_hand() -> None:
    golden = [("Riga", 3), ("Oslo", 4)]
    text = "**Day 1-3:** Visit Riga.\n**Day 3:** Fly from Riga to Oslo.\n**Day 3-6:** Visit Oslo."
    assert exact_match(golden, 6, text)
    assert exact_match(golden, 6, f"{text}\nOr else:\n**Day 9:** Fly from Oslo to Rome.")
    assert not exact_match(golden, 6, text.replace("3-6", "3-7"))
    assert not exact_match(golden, 6, text.replace("**Day 3:**", "**Day 4:**"))
    assert not exact_match([("Oslo", 4), ("Riga", 3)], 6, text)
    assert not exact_match(golden, 6, "")


def test_a_sample_of_a_file_keeps_ids(own_file: Path) -> None:
    every = load(f"natural_plan_trip:{own_file}")
    some = load(f"natural_plan_trip:{own_file}", count=10, seed=1)
    assert [q.id for q in some.questions] == [
        q.id for q in load(f"natural_plan_trip:{own_file}", count=10, seed=1).questions
    ]
    ids = [q.id for q in every.questions]
    assert [i for i in ids if i in {q.id for q in some.questions}] == [q.id for q in some.questions]
    assert [q.id for q in some.questions] != ids[:10]


def test_files_of_another_form_are_refused(own_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a file, natural_plan_trip:FILE"):
        load("natural_plan_trip")
    with pytest.raises(ValueError, match=r"the path of a trip_planning\.json"):
        load(f"natural_plan_trip:{tmp_path / 'none.json'}")
    with pytest.raises(ValueError, match="score='both'"):
        load(f"natural_plan_trip:{own_file}", score="both")
    with pytest.raises(ValueError, match="count=41: there are 40"):
        load(f"natural_plan_trip:{own_file}", count=41)
    for content in ("[]", "{}", '{"a": 1}', "nonsense"):
        bad = tmp_path / "bad.json"
        bad.write_text(content)
        with pytest.raises(ValueError, match="a JSON object of examples"):
            load(f"natural_plan_trip:{bad}")
    examples = json.loads(own_file.read_text())
    examples["example_0"]["durations"] = (
        examples["example_0"]["durations"].replace("2", "3", 1) + "**9"
    )
    bad.write_text(json.dumps(examples))
    with pytest.raises(ValueError, match="example_0"):
        load(f"natural_plan_trip:{bad}").questions[0]
