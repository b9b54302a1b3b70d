"""Versions of stored data: earlier forms are upgraded when they are read, later ones are refused.

A later form is refused before anything is spent or changed. All stored data states the number of its
form. To change a form, append an upgrade from the previous form to its tuple; the number follows: with
two upgrades it is 2. The tuples are next to what they upgrade: run/upgrade.py for checkpoints, checkpoints/records.py for the
ledger's JSON (its columns: checkpoints/schema.py), and UPGRADES in planning/profiles.py, middleware.py,
checkpoints/memory.py, benchmark/cells.py and benchmark/recording.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Stored = dict[str, Any]
Upgrade = Callable[[Stored], Stored]
KEY = "form"
"""The key of the form in a stored mapping."""


class NewerForm(ValueError):
    """A later version of anytime-graph wrote this. Nothing was spent or changed."""


class UnknownForm(ValueError):
    """An early version wrote this in a way that cannot be read any more. Nothing was spent or changed."""


def refuse_newer(source: str, form: Any, known: int) -> None:
    """Raises NewerForm for a form that this version cannot read. source: the data and its place."""
    if not isinstance(form, int) or form > known:
        raise NewerForm(
            f"{source}: it has form {form}, this anytime-graph knows {known}; upgrade anytime-graph to "
            "open it"
        )


def upgraded(stored: Mapping[str, Any], upgrades: Sequence[Upgrade], source: str) -> Stored:
    """A mapping in today's form, whose number is that of the upgrades. Without a KEY it has form 0.
    Raises NewerForm and UnknownForm."""
    form = stored.get(KEY, 0)
    refuse_newer(source, form, len(upgrades))
    return {**through(upgrades[form:], dict(stored), source), KEY: len(upgrades)}


def through(upgrades: Sequence[Upgrade], stored: Stored, source: str) -> Stored:
    """Stored data after these upgrades. Raises UnknownForm."""
    try:
        for upgrade in upgrades:
            stored = upgrade(stored)
    except (LookupError, TypeError, AttributeError) as error:
        raise UnknownForm(
            f"{source}: an early version of anytime-graph wrote it, and this one cannot read it "
            f"({type(error).__name__}: {error}); ask the question again, on another thread"
        ) from error
    return stored


def unchanged(stored: Stored) -> Stored:
    """The upgrade from data without a form to data that states it."""
    return stored
