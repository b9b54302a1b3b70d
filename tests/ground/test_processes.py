"""What a process pool sends back: every public error and record comes through as it was."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anytime_graph
from anytime_graph.budget import nothing
from tests.kit.house import modules

VALUES: dict[str, Any] = {
    "given": {"tokens": 1},
    "rest": {"tokens": 1},
    "least": {"tokens": 5},
    "need": {"tokens": 5},
    "dimension": "tokens",
    "causes": ["draft: RateLimitError"],
    "spent": nothing(),
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
EQUAL = {"Constraints": st.builds(anytime_graph.Constraints, words=st.integers(1, 9))}
"""Records whose fields depend on each other."""


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_comes_through_with_all_that_it_says(kind: type[Exception]) -> None:
    own = inspect.signature(kind).parameters if "__init__" in vars(kind) else {}
    needed = [name for name, p in own.items() if p.default is p.empty]
    error = kind(*[VALUES[name] for name in needed] or ["it failed"])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_a_record_comes_through(kind: type, data: st.DataObject) -> None:
    record = data.draw(EQUAL.get(kind.__name__) or st.from_type(kind))
    again = pickle.loads(pickle.dumps(record))
    assert type(again) is kind
    assert again == record


def test_the_best_known_ones_are_among_them() -> None:
    names = {kind.__name__ for kind in (*ERRORS, *RECORDS)}
    assert names >= {"BudgetTooSmall", "NoAnswer", "ThreadBusy", "LedgerError", "Budget", "Score"}
