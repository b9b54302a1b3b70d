"""What a process pool sends back: every public error and record comes through as it was."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import anytime_graph
from anytime_graph import Budget, Quota
from anytime_graph.budget import nothing
from anytime_graph.metering.quota import Standing, Standings
from tests.kit.house import modules

QUOTA = Quota(Budget(tokens=5), per="user", window="1d")
STANDING = Standing([QUOTA], "ann", 1e9, {})
VALUES: dict[str, Any] = {
    "given": {"tokens": 1},
    "rest": {"tokens": 1},
    "least": {"tokens": 5},
    "need": {**nothing(), "tokens": 5},
    "dimension": "tokens",
    "causes": ["draft: RateLimitError"],
    "spent": nothing(),
    "quota": QUOTA,
    "standing": STANDING,
    "standings": Standings([STANDING]),
    "status_code": 413,
    "said": "BadRequestError HTTP 413",
    "reported": 2_100,
    "reserved": 100,
    "message": "the disk is full",
}
"""Arguments of errors, by name."""


def defined() -> list[type]:
    """The classes of all modules, but for private ones."""
    found = []
    for name in sorted(modules()):
        if not name.endswith("__main__"):
            module = importlib.import_module(f"anytime_graph.{name}" if name else "anytime_graph")
            found += [
                kind
                for label, kind in vars(module).items()
                if inspect.isclass(kind)
                and kind.__module__ == module.__name__
                and not label.startswith("_")
            ]
    return found


def is_public_record(kind: type) -> bool:
    """A dataclass or named tuple that a user imports: from the package or a module at its top."""
    at_top = kind.__module__.count(".") == 1 or kind.__name__ in anytime_graph.__all__
    return at_top and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"))


ERRORS = [kind for kind in defined() if issubclass(kind, Exception)]
RECORDS = [kind for kind in defined() if is_public_record(kind)]
OWN: dict[str, dict[str, Any]] = {
    "Budget": {"tokens": 5},
    "Constraints": {"words": 3, "starts_with": "A", "ends_with": ".", "matches": "[a-z]"},
    "Quota": {"window": "1d"},
    "Until": {"target": 0.9},
}
"""Arguments of records that need one of several."""


def example(hint: Any) -> Any:
    """A value of this type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return parts[0]
    if origin in (Union, types.UnionType):
        return example(parts[0])
    if isinstance(hint, type) and is_public_record(hint):
        return made(hint)
    simple = {int: 1, float: 0.5, str: "text", bool: True, Any: "anything"}
    return simple[hint] if hint in simple else {list: [], tuple: (), dict: {}}.get(origin, {})


def made(kind: type) -> Any:
    """A record with a value for each field that needs one."""
    hints = get_type_hints(kind)
    needed = {
        name: example(hints[name])
        for name, p in inspect.signature(kind).parameters.items()
        if p.default is p.empty
    }
    return kind(**{**needed, **OWN.get(kind.__name__, {})})


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_comes_through_with_all_that_it_says(kind: type[Exception]) -> None:
    own = inspect.signature(kind).parameters if "__init__" in vars(kind) else {}
    needed = [name for name, p in own.items() if p.default is p.empty]
    error = kind(*[VALUES[name] for name in needed] or ["it failed"])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_record_comes_through(kind: type) -> None:
    record = made(kind)
    again = pickle.loads(pickle.dumps(record))
    assert type(again) is kind
    assert repr(again) == repr(record)


def test_the_best_known_ones_are_among_them() -> None:
    names = {kind.__name__ for kind in (*ERRORS, *RECORDS)}
    assert names >= {"BudgetTooSmall", "NoAnswer", "ThreadBusy", "LedgerError", "Budget", "Score"}
