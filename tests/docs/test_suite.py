"""The suite itself: a part of the combinations is run, but every pair of values, or every value."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, product

import pytest


def test_of_parameters_in_pairs_each_pair_of_values_is_run(request: pytest.FixtureRequest) -> None:
    run = defaultdict(list)
    for item in request.session.items:
        if item.get_closest_marker("pairwise") and isinstance(item, pytest.Function):
            run[item.nodeid.partition("[")[0]].append(item)
    for name, items in run.items():
        values = {
            mark.args[0]: [getattr(value, "values", [value])[0] for value in mark.args[1]]
            for mark in items[0].iter_markers("parametrize")
            if "," not in mark.args[0]
        }
        mark = items[0].get_closest_marker("pairwise")
        assert mark
        at_once = 2 if len(items[0].callspec.params) > 2 and not mark.args else 1
        for names in combinations(values, at_once):
            for wanted in product(*(values[each] for each in names)):
                ran = ([item.callspec.params[each] for each in names] for item in items)
                assert any(all(map(_same, one, wanted)) for one in ran), (name, names, wanted)


def _same(one: object, other: object) -> bool:
    return one is other or one == other
