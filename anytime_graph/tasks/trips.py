"""The task of planning trips: problems, their wording, plans, scores, and a generator.

A trip is an order of cities with a number of days in each, direct flights only, and events on fixed
days. The wording is that of the Trip Planning task of NATURAL PLAN (Zheng et al. 2024, arXiv
2406.04520), so one parser reads generated problems and those of its file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random

from anytime_graph.scoring import Score
from anytime_graph.tasks.task import Question, Task, generated, whole_number

CONVENTIONS = """\
How days are counted: a day on which you fly counts in both cities, so you arrive in the next city on \
the last day of the stay before. The trip starts on day 1, in whichever city suits, and there is no \
flight home. Each city is visited once. "A and B" is a direct flight both ways, "from A to B" only \
that way. You are in the city of an event on all its days.
Write the plan, and nothing else, as a line for each stay, "Day FIRST-LAST: Visit CITY for N days.", \
and between two stays a line for the flight, "Day N: Fly from CITY to CITY.\""""
"""The rules of a plan, which the prompts of NATURAL PLAN only show in examples."""


@dataclass(frozen=True)
class Event:
    """An event in a city on the days `first` to `last`."""

    what: str
    city: str
    first: int
    last: int


@dataclass(frozen=True)
class Trip:
    """A problem. days: those of the whole trip. stays: each city and its days, in the order stated.
    flights: (from, to) for each direction."""

    days: int
    stays: tuple[tuple[str, int], ...]
    events: tuple[Event, ...]
    flights: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Stay:
    """A stay in a city on the days `first` to `last`."""

    city: str
    first: int
    last: int


# --- wording -----------------------------------------------------------------------------------

_HEAD = "You plan to visit {n} European cities for {days} days in total"
_ONLY = "You only take direct flights to commute between cities"
_DURATIONS = (
    "You would like to visit {city} for {days} days.",
    "You want to spend {days} days in {city}.",
    "You plan to stay in {city} for {days} days.",
)
_EVENTS = {
    "wedding": "You are going to attend a wedding in {city} between day {first} and day {last}.",
    "workshop": "You have to attend a workshop in {city} between day {first} and day {last}.",
    "friend": "You want to meet a friend in {city} between day {first} and day {last}.",
    "friends": (
        "You would like to meet your friends at {city} between day {first} and day {last} "
        "to tour together."
    ),
    "annual show": (
        "From day {first} to day {last}, there is a annual show you want to attend in {city}."
    ),
    "relatives": "You plan to visit relatives in {city} between day {first} and day {last}.",
    "conference": ("During day {first} and day {last}, you have to attend a conference in {city}."),
}
_FLIGHTS = "Here are the cities that have direct flights:"
_REQUEST = (
    "Find a trip plan of visiting the cities for {days} days by taking direct flights to commute "
    "between them."
)


def _pattern(wording: str) -> re.Pattern[str]:
    """The regular expression of a wording: a city is a name, all else a number."""
    fixed = re.escape(wording.rstrip(".")).replace(r"\{", "{").replace(r"\}", "}")
    named = re.sub(r"\{city\}", r"(?P<city>.+?)", fixed)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", named))


_READ_HEAD = _pattern(_HEAD)
_READ_DURATIONS = [_pattern(wording) for wording in _DURATIONS]
_READ_EVENTS = {what: _pattern(wording) for what, wording in _EVENTS.items()}


def render(trip: Trip, dice: Random) -> str:
    """The problem in words, with random wordings and a random order of flights."""
    lines = [f"{_HEAD.format(n=len(trip.stays), days=trip.days)}. {_ONLY}."]
    for city, days in trip.stays:
        lines.append(dice.choice(_DURATIONS).format(city=city, days=days))
        lines += [
            _EVENTS[e.what].format(city=city, first=e.first, last=e.last)
            for e in trip.events
            if e.city == city
        ]
    both = {tuple(sorted(pair)) for pair in trip.flights if pair[::-1] in trip.flights}
    flights = [" and ".join(dice.sample(pair, 2)) for pair in sorted(both)]
    flights += [f"from {a} to {b}" for a, b in sorted(trip.flights) if (b, a) not in trip.flights]
    dice.shuffle(flights)
    request = _REQUEST.format(days=trip.days)
    return f"{' '.join(lines)}\n\n{_FLIGHTS}\n{', '.join(flights)}.\n\n{request}"


def parse(prompt: str) -> Trip:
    """The problem that a prompt states. Raises ValueError for an unknown wording, or a problem that
    contradicts itself."""
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", prompt.strip())]
    if len(parts) < 2 or not parts[1].startswith(_FLIGHTS):
        raise ValueError(f"prompt={prompt!r:.80}: constraints, then {_FLIGHTS!r}, are needed")
    head, *sentences = filter(None, re.split(r"\.\s+|\.$", parts[0]))
    stated = _READ_HEAD.fullmatch(head)
    if stated is None:
        raise ValueError(f"{head!r:.120} is not a known wording")
    stays: list[tuple[str, int]] = []
    events: list[Event] = []
    for sentence in sentences:
        event = next(
            ((what, m) for what, p in _READ_EVENTS.items() if (m := p.fullmatch(sentence))), None
        )
        stay = next((m for p in _READ_DURATIONS if (m := p.fullmatch(sentence))), None)
        if event:
            what, m = event
            events.append(Event(what, m["city"], int(m["first"]), int(m["last"])))
        elif stay:
            stays.append((stay["city"], int(stay["days"])))
        elif sentence != _ONLY:
            raise ValueError(f"{sentence!r:.120} is not a known wording")
    cities = {city for city, _ in stays}
    flights: set[tuple[str, str]] = set()
    for text in parts[1].removeprefix(_FLIGHTS).strip(" .").split(", "):
        if one := re.fullmatch(r"from (.+?) to (.+)", text):
            flights.add((one[1], one[2]))
        elif two := re.fullmatch(r"(.+?) and (.+)", text):
            flights |= {(two[1], two[2]), (two[2], two[1])}
        else:
            raise ValueError(f"{text!r:.120} is not a known wording of a flight")
    unknown = ({e.city for e in events} | {city for pair in flights for city in pair}) - cities
    if unknown or len(cities) != int(stated["n"]) or len(stays) != len(cities):
        raise ValueError(
            f"{stated['n']} cities are announced, durations given for {sorted(cities)}"
        )
    return Trip(int(stated["days"]), tuple(stays), tuple(events), frozenset(flights))


def write(stays: Sequence[Stay]) -> str:
    """A plan in words, in the form that CONVENTIONS asks for."""
    lines = []
    for at, stay in enumerate(stays):
        if at:
            lines.append(f"Day {stay.first}: Fly from {stays[at - 1].city} to {stay.city}.")
        days = stay.last - stay.first + 1
        lines.append(f"Day {stay.first}-{stay.last}: Visit {stay.city} for {days} days.")
    return "\n".join(lines)


# --- plans -------------------------------------------------------------------------------------

_DAYS = r"days?\s+(\d{1,4})(?:\s*(?:-|–|—|to|through|and)\s*(?:days?\s+)?(\d{1,4}))?"
_ENTRY = re.compile(
    rf"^(?:[^\w\n]|_){{0,12}}{_DAYS}\b|\b{_DAYS}\b[*_ ]*:", re.IGNORECASE | re.MULTILINE
)
_LASTING = re.compile(r"\bfor (\d{1,4}) days", re.IGNORECASE)
_MOVE = re.compile(r"\bfrom\s+([\w'-]+)\s+to\s+([\w'-]+)", re.IGNORECASE)
_VISITED = re.compile(r"\b(?:visit\w*|stay\w*(?: in)?|explor\w+|in)\s+", re.IGNORECASE)
_NEW = re.compile(
    r"\b(?:[Vv]isit(?:ing)?|[Ss]tay(?:ing)? in|[Ee]xplor(?:e|ing)|[Ii]n)\s+([A-Z][\w'-]*)"
)


def read_plan(text: str, cities: Sequence[str]) -> list[Stay]:
    """The stays of the last plan in a text, in order; [] if there is none.

    A plan consists of entries, "Day 1-7: ...", "Day 1: ... for 7 days" or "Day 7: ...", at the start
    of a line or before a colon. A flight is a day in both of its cities. Consecutive entries in one
    city are one stay.
    """
    stays: list[Stay] = []
    for first, last, text_of_days in _last_plan(_entries(text)):
        for city in _cities_of_entry(text_of_days, first == last, cities):
            before = stays[-1] if stays else None
            if before and before.city == city and before.first <= first <= before.last + 1:
                stays[-1] = Stay(city, before.first, max(before.last, last))
            else:
                stays.append(Stay(city, first, last))
    return stays


def _entries(text: str) -> list[tuple[int, int, str]]:
    """(first day, last day, text) of each entry whose days do not run backwards."""
    matches = list(_ENTRY.finditer(text))
    bounds = [*(m.start() for m in matches), len(text)]
    entries = []
    for m, end in zip(matches, bounds[1:], strict=True):
        first = int(m[1] or m[3])
        content = text[m.end() : end].strip("*_: \n").split("\n", 1)[0]
        stated = _LASTING.search(content)
        last = int(m[2] or m[4] or first + (int(stated[1]) - 1 if stated else 0))
        if last >= first:
            entries.append((first, last, content))
    return entries


def _last_plan(entries: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The entries from the last one that goes back to day 1."""
    starts = [i for i in range(1, len(entries)) if entries[i][0] == 1 < entries[i - 1][0]]
    return entries[starts[-1] :] if starts else entries


def _cities_of_entry(content: str, one_day: bool, cities: Sequence[str]) -> list[str]:
    """The cities of an entry: two for a flight, one for a stay, none if it names none."""
    names = {city.lower(): city for city in cities}
    move = _MOVE.search(content)
    if move and one_day:
        return [names.get(city.lower(), city) for city in move.groups()]
    named = [
        (m.start(), names[m[0].lower()])
        for m in re.finditer(r"[\w'-]+", content)
        if m[0].lower() in names and not (move and m.start() == move.start(1))
    ]
    after = {m.end() for m in _VISITED.finditer(content)}
    visited = [city for at, city in named if at in after]
    if visited or named:
        return [(visited or [city for _, city in named])[0]]
    new = _NEW.search(content)
    return [new[1]] if new else []


def rate(trip: Trip, plan: Sequence[Stay]) -> list[tuple[bool, str]]:
    """Whether each constraint holds, and the feedback if it does not. The constraints are the length of
    the trip, each city once, a duration for each city, each event, and each flight between the
    cities. Their number depends only on the trip, not on the plan."""
    wanted = [city for city, _ in trip.stays]
    visited = [stay.city for stay in plan]
    start, end = (plan[0].first, max(s.last for s in plan)) if plan else (0, 0)
    checks = [
        (
            start == 1 and end == trip.days,
            f"the trip must last from day 1 to day {trip.days}, not from {start} to {end}",
        )
    ]
    wrong = [c for c in wanted if visited.count(c) != 1]
    wrong += sorted(set(visited) - set(wanted))
    checks.append((not wrong, f"each city once and no other, but see {', '.join(wrong)}"))
    for city, days in trip.stays:
        there = _days([stay for stay in plan if stay.city == city])
        checks.append((there == days, f"{city} for {days} days, not {there}"))
    for e in trip.events:
        holds = any(s.city == e.city and s.first <= e.first and e.last <= s.last for s in plan)
        checks.append((holds, f"{e.what} in {e.city}: be there from day {e.first} to {e.last}"))
    legs = list(pairwise(plan))[: len(wanted) - 1]
    for a, b in legs:
        flies = (a.city, b.city) in trip.flights
        why = "arrive on the day you leave" if flies else "there is no direct flight"
        checks.append((flies and a.last == b.first, f"{why} from {a.city} to {b.city}"))
    missing = len(wanted) - 1 - len(legs)
    return checks + [(False, f"{missing} flights are missing")] * missing


def _days(stays: Sequence[Stay]) -> int:
    """The number of days in at least one of the stays."""
    count = reached = 0
    for stay in sorted(stays, key=lambda stay: stay.first):
        count += max(0, stay.last - max(stay.first - 1, reached))
        reached = max(reached, stay.last)
    return count


def score(trip: Trip, question: str, answer: str) -> Score:
    """The share of constraints that a plan meets. The feedback names the others."""
    plan = read_plan(answer, [city for city, _ in trip.stays])
    if not plan:
        return Score(
            0.0, "There is no plan in it. Write lines such as Day 1-3: Visit CITY for 3 days."
        )
    checks = rate(trip, plan)
    failed = list(dict.fromkeys(why for holds, why in checks if not holds))
    value = sum(holds for holds, _ in checks) / len(checks)
    return Score(value, f"Wrong: {'; '.join(failed)}." if failed else None)


# --- making problems ---------------------------------------------------------------------------

NAMES = (  # noqa: SIM905 - a list of words reads better as text
    "Amsterdam Antwerp Athens Barcelona Bergen Berlin Bologna Bordeaux Brussels Bucharest "
    "Budapest Copenhagen Dublin Dubrovnik Edinburgh Florence Geneva Genoa Ghent Hamburg "
    "Helsinki Istanbul Krakow Lisbon Ljubljana London Lyon Madrid Manchester Marseille Milan "
    "Munich Naples Nice Oslo Palermo Paris Porto Prague Riga Rome Salzburg Sarajevo Seville "
    "Sofia Stockholm Tallinn Turin Valencia Venice Vienna Vilnius Warsaw Zagreb Zurich"
).split()


def trip(
    *, count: int = 50, seed: int = 0, cities: int = 5, density: float = 0.3, events: float = 0.4
) -> Task:
    """Generated problems, solvable by construction.

    cities: the number of cities, 2 or more. density: the share of the remaining pairs of cities with
    a flight; more flights allow more wrong routes. events: the share of cities with an event.
    """
    whole_number("cities", cities, least=2)
    for name, value in (("density", density), ("events", events)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: a share between 0 and 1 is needed")
    return Task(
        "trip",
        f"plans of trips to {cities} cities under constraints",
        generated(partial(_trip_question, cities, density, events), count, seed),
        "tags",
        "csr",
    )


def _trip_question(cities: int, density: float, events: float, dice: Random) -> Question:
    problem, _ = make_trip(dice, cities, density, events)
    text = render(problem, dice)
    return Question(
        f"{dice.getrandbits(48):012x}", f"{text}\n\n{CONVENTIONS}", partial(score, problem)
    )


def make_trip(dice: Random, cities: int, density: float, events: float) -> tuple[Trip, list[Stay]]:
    """A problem, and the plan that it is made from."""
    names = dice.sample([_name(k) for k in range(max(cities, len(NAMES)))], cities)
    plan: list[Stay] = []
    for city in names:
        first = plan[-1].last if plan else 1
        plan.append(Stay(city, first, first + dice.randint(2, 7) - 1))
    attended = []
    for stay in plan:
        if dice.random() < events:
            first = dice.randint(stay.first, stay.last - 1)
            last = dice.randint(first + 1, stay.last)
            attended.append(Event(dice.choice(list(_EVENTS)), stay.city, first, last))
    flights: set[tuple[str, str]] = set()
    for i, a in enumerate(names):
        for j in range(i + 1, cities):
            if j == i + 1 or dice.random() < density:
                forth, back = (a, names[j]), (names[j], a)
                one_way = dice.random() < 0.1
                keep = forth if j == i + 1 or dice.random() < 0.5 else back
                flights |= {keep} if one_way else {forth, back}
    stated = [(stay.city, stay.last - stay.first + 1) for stay in plan]
    dice.shuffle(stated)
    return Trip(plan[-1].last, tuple(stated), tuple(attended), frozenset(flights)), plan


def _name(k: int) -> str:
    """City k: from the list, and after its end "New" with a name of the list."""
    name = NAMES[k % len(NAMES)]
    for _ in range(k // len(NAMES)):
        name = f"New{name.lower()}"
    return name
