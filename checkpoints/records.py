"""The JSON in the ledger's calls: what was planned, and what came of it. Rows of an earlier form are
read as if they were written today; see anytime_graph/forms.py.

Rows keep the form they were written in. Whoever changes one adds to schema.VERSION too, so that an older
version does not open the ledger at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anytime_graph.forms import KEY, Upgrade, unchanged, upgraded, with_all_of_a_move

PLANNED: tuple[Upgrade, ...] = (with_all_of_a_move,)
REPLY: tuple[Upgrade, ...] = (unchanged,)


def planned(call: Mapping[str, Any]) -> dict[str, Any]:
    """What the `task` of a row of calls tells of the plan. Raises NewerForm."""
    return _read(call["task"], PLANNED, "the plan of a call in the ledger")


def replied(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the `reply` of a row of calls tells, without the text; None if none came. Raises
    NewerForm."""
    if not call["reply"]:
        return None
    reply = _read(call["reply"], REPLY, "a reply in the ledger")
    del reply[KEY]
    return reply


def plan_row(task: Mapping[str, Any]) -> str:
    return json.dumps({**task, KEY: len(PLANNED)})


def reply_row(reply: Mapping[str, Any]) -> str:
    return json.dumps({**reply, KEY: len(REPLY)}, default=str)


def _read(text: str, upgrades: tuple[Upgrade, ...], what: str) -> dict[str, Any]:
    return upgraded(json.loads(text), upgrades, what)
