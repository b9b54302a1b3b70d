"""The structure of the package stays as docs/architecture.md tells it."""

from __future__ import annotations

from tests.kit import house

FLOOR = {name: floor for floor, names in enumerate(house.ROOMS) for name in names}


def test_every_room_has_its_floor() -> None:
    assert {house.room(name) for name in house.modules() if name} == set(FLOOR)
    assert len(house.ROOMS) <= 11
    assert len(FLOOR) <= 26


def test_no_room_imports_from_its_own_floor_or_from_above() -> None:
    pairs = ((one, other) for one, other in house.imports() if house.room(one) != house.room(other))
    upwards = {(a, b) for a, b in pairs if FLOOR[house.room(a)] <= FLOOR[house.room(b)]}
    assert not upwards


def test_no_module_imports_itself_through_others() -> None:
    below: dict[str, set[str]] = {}
    for one, other in house.imports():
        below.setdefault(one, set()).add(other)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        rest = list(below.get(start, ()))
        while rest:
            if (name := rest.pop()) not in seen:
                seen.add(name)
                rest += below.get(name, ())
        return seen

    assert not [name for name in below if name in reached(name)]


RUNS = ("stream", "astream", "invoke", "ainvoke", "generate", "agenerate", "batch", "abatch")
CALLS = {
    ("metering.call", "model.stream"),
    ("metering.call", "model.astream"),
}
NO_MODELS = {
    ("batch.allocation", "app.ainvoke"),
    ("batch.allocation", "app.invoke"),
    ("batch.series", "app.invoke"),
    ("benchmark.run", "graph.compile().invoke"),
    ("benchmark.tape", "self._stream"),
    ("chat", "app.astream"),
    ("chat", "app.stream"),
    ("chat", "self._agenerate"),
    ("chat", "self._generate"),
    ("chat", "self.ainvoke"),
    ("chat", "self.invoke"),
    ("chat", "self.parser.invoke"),
    ("cli.demo", "graph.compile().stream"),
    ("cli.main", "app.stream"),
    ("cli.main", "super().invoke"),
    ("metering.metered", "_unmetered(self).agenerate"),
    ("metering.metered", "_unmetered(self).generate"),
    ("nodes.agent", "agent.ainvoke"),
    ("nodes.agent", "agent.invoke"),
    ("nodes.compiled", "super().ainvoke"),
    ("nodes.compiled", "super().astream"),
    ("nodes.compiled", "super().invoke"),
    ("nodes.compiled", "super().stream"),
}
"""Graphs, agents, parsers and commands; models that answer for themselves; and a metered model that works for
nobody with a budget, and so is the model itself."""


def test_one_module_calls_chat_models() -> None:
    """Every call of a method by which a chat model is run is listed here: a second place that calls
    one makes this red."""
    assert house.calls(*RUNS, "_stream", "_astream", "_generate", "_agenerate") == CALLS | NO_MODELS
    assert {module for module, _ in CALLS} == {"metering.call"}


def test_metering_knows_no_database() -> None:
    reached = {other for one, other in house.imports() if house.room(one) == "metering"}
    assert not {name for name in reached if house.room(name) == "checkpoints"}


def test_few_names_stand_in_two_modules() -> None:
    names = house.definitions()
    doubled = sorted(name for name, places in names.items() if len(places) > 1)
    assert len(doubled) <= 0.04 * len(names), doubled


def test_the_page_tells_of_the_modules_as_they_are() -> None:
    text = house.PAGE.read_text(encoding="utf-8")
    assert house.page(text) == text, "python -m tests.kit.house writes the table"
