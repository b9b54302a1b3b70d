"""The JSON in the ledger's calls: each planned call and its reply.

Rows of an earlier form are upgraded when they are read; see anytime_graph/run/forms.py. In the ledger they
keep their form. A change of form needs a new schema.VERSION too, so that older versions of anytime-graph
do not open the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from anytime_graph.run.calls import PlannedCall, RunCall
from anytime_graph.run.forms import KEY, Stored, Upgrade, upgraded
from anytime_graph.run.upgrade import PLANNED, receipt_from_reply, with_tool_calls


def _reply_with_receipt(reply: Stored) -> Stored:
    """In form 0 the receipt's fields were in the reply itself, and each further choice had only its
    text and what differed from the first."""
    defaults = {"message_id": None, "message": None, "called": False}
    message: Stored = {key: reply.get(key, default) for key, default in defaults.items()}
    free = {"spend": receipt_from_reply({"started": 0.0})["spend"], "reported": None, "once": None}
    others = [
        {**_reply_with_receipt({**reply, **free, **other, "others": []}), "text": other["text"]}
        for other in reply.get("others") or ()
    ]
    return {**message, "receipt": receipt_from_reply(reply), "others": others}


REPLY: tuple[Upgrade, ...] = (_reply_with_receipt, with_tool_calls)


def stored_reply(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The reply in a row of `calls`, without its text; None if there is none. Raises NewerForm."""
    if not row["reply"]:
        return None
    return upgraded(json.loads(row["reply"]), REPLY, "a reply in the ledger")


def plan_row(call: PlannedCall | RunCall) -> str:
    return json.dumps({**call, KEY: len(PLANNED)})


def reply_row(reply: Mapping[str, Any]) -> str:
    return json.dumps({**reply, KEY: len(REPLY)}, default=str)
