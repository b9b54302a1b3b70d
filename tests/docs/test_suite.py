"""The suite itself: a part of the combinations is run, but every pair of values, or every value."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, combinations, product

import pytest
from _pytest.mark import ParameterSet


def test_of_parameters_in_pairs_each_pair_of_values_is_run(request: pytest.FixtureRequest) -> None:
    run = defaultdict(list)
    for item in request.session.items:
        if item.get_closest_marker("pairwise") and isinstance(item, pytest.Function):
            run[item.nodeid.partition("[")[0]].append(item)
    for test, items in run.items():
        marks = [mark.args[:2] for mark in items[0].iter_markers("parametrize")]
        names = [name for given, _ in marks for name in _names(given)]
        every = [
            dict(zip(names, chain(*parts), strict=True))
            for parts in product(*([_values(v, given) for v in all_] for given, all_ in marks))
        ]
        pairwise = items[0].get_closest_marker("pairwise")
        assert pairwise
        axes = len(items[0].callspec.params) - len(names) + len(marks)
        at_once = 2 if axes > 2 and not pairwise.args else 1
        for some in combinations(names, at_once):
            for one in every:
                met = (
                    all(_same(i.callspec.params[name], one[name]) for name in some) for i in items
                )
                assert any(met), (test, [(name, one[name]) for name in some])


def _names(given: str | list[str] | tuple[str, ...]) -> list[str]:
    return given.replace(",", " ").split() if isinstance(given, str) else [*given]


def _values(value: object, given: str | list[str] | tuple[str, ...]) -> tuple[object, ...]:
    """What the parameters of a mark get at once."""
    if isinstance(value, ParameterSet):
        return value.values
    return tuple(value) if len(_names(given)) > 1 else (value,)  # type: ignore[arg-type]


def _same(one: object, other: object) -> bool:
    return one is other or one == other
