"""The JSON in the ledger's calls: each planned call and its reply.

Rows of an earlier form are upgraded when they are read; see anytime_graph/run/forms.py. In the ledger they
keep their form. A change of form needs a new schema.VERSION too, so that older versions of anytime-graph
do not open the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage, message_to_dict, messages_from_dict

from anytime_graph.budget import Spend
from anytime_graph.checkpoints.schema import SPEND
from anytime_graph.metering.request import Entry, Reply
from anytime_graph.run.calls import PlannedCall, Receipt, RunCall
from anytime_graph.run.forms import KEY, Stored, Upgrade, upgraded
from anytime_graph.run.upgrade import PLANNED, receipt_from_reply, with_tool_calls

_UNKEPT = "the reply was paid for, but replies are not kept"


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


def reply_row(reply: Reply, whole: bool) -> str:
    """A reply without its text. whole: as a message, because an agent may get it again after a crash."""
    return json.dumps({**_stored(reply, whole), KEY: len(REPLY)}, default=str)


def entry_of(row: Mapping[str, Any]) -> Entry:
    """A row of `calls`."""
    stored, text, reply = stored_reply(row), row["text"] or "", None
    if stored is not None:
        reply = _restored(stored, text)
        if row["request"] is None and not text:
            reply = reply.noted(_UNKEPT)
    return Entry(reply, text, spend_of(row), row["started"], row["changed"])


def spend_of(row: Mapping[str, Any]) -> Spend:
    """What a row of `calls` cost, or reserves."""
    return cast(Spend, {**{name: row[name] for name in SPEND}, "calls": 1})


def _stored(reply: Reply, whole: bool) -> dict[str, Any]:
    return {
        "receipt": reply.receipt,
        "message_id": reply.message.id,
        "message": message_to_dict(reply.message) if whole else None,
        "called": reply.called,
        "others": [{**_stored(other, whole), "text": other.text} for other in reply.others],
    }


def _restored(stored: Mapping[str, Any], text: str) -> Reply:
    """The reply that was stored."""
    if stored["message"] is not None:
        (message,) = messages_from_dict([stored["message"]])
    else:
        message = AIMessage(text, id=stored["message_id"])
    return Reply(
        text,
        cast(AIMessage, message),
        cast(Receipt, stored["receipt"]),
        called=stored["called"],
        others=tuple(_restored(other, other["text"]) for other in stored["others"]),
    )
