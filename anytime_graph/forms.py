"""Versions of stored data: earlier forms are upgraded when they are read, later ones are refused.

A later form is refused before anything is spent or changed. All stored data has the number of its
form. To change a form, append an upgrade from the previous form to its tuple; the number follows. The
tuples are next to what they upgrade: run/upgrade.py for checkpoints, checkpoints/records.py for the
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


def refuse_newer(what: str, form: Any, known: int) -> None:
    """Raises NewerForm for a form that this version cannot read. what: names the data and its place."""
    if not isinstance(form, int) or form > known:
        raise NewerForm(
            f"{what}: it has form {form}, this anytime-graph knows {known}; upgrade anytime-graph to "
            "open it"
        )


def upgraded(stored: Mapping[str, Any], upgrades: Sequence[Upgrade], what: str) -> Stored:
    """A mapping in today's form, whose number is that of the upgrades. Without a KEY it has form 0.
    Raises NewerForm and UnknownForm."""
    form = stored.get(KEY, 0)
    refuse_newer(what, form, len(upgrades))
    return {**through(upgrades[form:], dict(stored), what), KEY: len(upgrades)}


def through(upgrades: Sequence[Upgrade], stored: Stored, what: str) -> Stored:
    """What these upgrades make of stored data. Raises UnknownForm."""
    try:
        for upgrade in upgrades:
            stored = upgrade(stored)
    except (LookupError, TypeError, AttributeError) as error:
        raise UnknownForm(
            f"{what}: an early version of anytime-graph wrote it, and this one cannot read it "
            f"({type(error).__name__}: {error}); ask the question again, on another thread"
        ) from error
    return stored


def unchanged(stored: Stored) -> Stored:
    """The upgrade from data without a form to data that states it."""
    return stored
