"""The JSON in the ledger's calls: what was planned, and what came of it. Rows of an earlier form are
read as if they were written today; see anytime_graph/forms.py.

Rows keep the form they were written in. Whoever changes one adds to schema.VERSION too, so that an older
version does not open the ledger at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anytime_graph.forms import KEY, Stored, Upgrade, upgraded
from anytime_graph.run.calls import PlannedCall
from anytime_graph.run.upgrade import PLANNED, receipt_from_reply


def _reply_with_receipt(reply: Stored) -> Stored:
    """In form 0 a receipt stood in the reply itself, and a further choice had only what differed
    from the first, its text included."""
    kept = {"message_id": None, "message": None, "called": False}
    found: Stored = {key: reply.get(key, usual) for key, usual in kept.items()}
    free = {"spend": receipt_from_reply({"started": 0.0})["spend"], "reported": None, "once": None}
    others = [
        {**_reply_with_receipt({**reply, **free, **other, "others": []}), "text": other["text"]}
        for other in reply.get("others") or ()
    ]
    return {**found, "receipt": receipt_from_reply(reply), "others": others}


REPLY: tuple[Upgrade, ...] = (_reply_with_receipt,)


def stored_reply(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the `reply` of a row of calls tells, without its text; None if none came. Raises
    NewerForm."""
    if not row["reply"]:
        return None
    return upgraded(json.loads(row["reply"]), REPLY, "a reply in the ledger")


def plan_row(call: PlannedCall) -> str:
    return json.dumps({**call, KEY: len(PLANNED)})


def reply_row(reply: Mapping[str, Any]) -> str:
    return json.dumps({**reply, KEY: len(REPLY)}, default=str)
