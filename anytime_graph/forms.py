"""The forms of what is stored. What an earlier version wrote is brought into today's form when it is
read; what a later version wrote is refused before anything is spent or changed.

Whatever is stored says which form it has, as a number. To change a form, append an upgrade from the
form before to its tuple, and the number follows. The tuples stand with what they upgrade: run/upgrade.py
for checkpoints, checkpoints/records.py for the ledger's JSON (its columns: checkpoints/schema.py), and
UPGRADES in planning/profiles.py, middleware.py, checkpoints/memory.py, benchmark/cells.py and
benchmark/recording.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Stored = dict[str, Any]
Upgrade = Callable[[Stored], Stored]
KEY = "form"
"""Where a mapping that is stored says which form it has."""


class NewerForm(ValueError):
    """A later version of anytime-graph wrote this. Nothing was spent or changed."""


def refuse_newer(what: str, form: Any, known: int) -> None:
    """Raises NewerForm for what this version cannot read. what: with its place, as a file's name."""
    if not isinstance(form, int) or form > known:
        raise NewerForm(
            f"{what}: it has form {form}, this anytime-graph knows {known}; upgrade anytime-graph to "
            "open it"
        )


def upgraded(stored: Mapping[str, Any], upgrades: Sequence[Upgrade], what: str) -> Stored:
    """A mapping in today's form, which is the number of upgrades. Without a KEY it has form 0. Raises
    NewerForm."""
    form = stored.get(KEY, 0)
    refuse_newer(what, form, len(upgrades))
    now = dict(stored)
    for upgrade in upgrades[form:]:
        now = upgrade(now)
    return {**now, KEY: len(upgrades)}


def unchanged(stored: Stored) -> Stored:
    """From what had no form to the form that says so."""
    return stored
