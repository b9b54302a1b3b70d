"""Exports a ledger's runs as JSON Lines, in the formats that training and analysis read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anytime_graph.checkpoints.ledger import Ledger

Row = dict[str, Any]
Form = Callable[["Ledger", str], Iterator[Row | None]]
"""A thread's rows, oldest first; None stands for a pair whose texts were not kept."""

_INTERNAL = ("asked", "plan", "task", "reply")
# JSON does not escape these, but terminals obey them, or readers take them for line ends.
_DELICATE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def line(row: Any) -> str:
    """A value as JSON that every reader sees as one line. A lone surrogate becomes U+FFFD."""
    return _DELICATE.sub(_escaped, json.dumps(row, ensure_ascii=False))


def public(row: Row) -> Row:
    """A row of the ledger without the columns that only replays read."""
    return {name: value for name, value in row.items() if name not in _INTERNAL}


def runs(ledger: Ledger, thread: str) -> Iterator[Row]:
    """One row for each question that was asked."""
    for run in ledger.runs(thread):
        yield public(run)


def answers(ledger: Ledger, thread: str) -> Iterator[Row]:
    """One row for each answer that was found."""
    for run in ledger.runs(thread):
        for answer in ledger.answers(run["id"]):
            yield {"thread": thread, "question": run["question"], **public(answer)}


def _pairs(shape: Callable[[list[Row], str, str], Row]) -> Form:
    def rows(ledger: Ledger, thread: str) -> Iterator[Row | None]:
        seen = set()
        for run in ledger.runs(thread):
            for pair in ledger.pairs(run["id"]):
                chosen, rejected = pair["chosen"], pair["rejected"]
                if None in (run["conversation"], chosen, rejected):
                    yield None
                    continue
                messages = [
                    {"role": m["role"], "content": _text(m["content"])} for m in run["conversation"]
                ]
                row = shape(messages, chosen, rejected)
                # A branch begins with its parent's pairs; equal texts teach nothing.
                if chosen != rejected and (text := line(row)) not in seen:
                    seen.add(text)
                    yield row

    return rows


def _standard(messages: list[Row], chosen: str, rejected: str) -> Row:
    return {"prompt": _prompt(messages), "chosen": chosen, "rejected": rejected}


def _conversational(messages: list[Row], chosen: str, rejected: str) -> Row:
    return {"prompt": messages, "chosen": _assistant(chosen), "rejected": _assistant(rejected)}


def _openai(messages: list[Row], chosen: str, rejected: str) -> Row:
    return {
        "input": {"messages": messages, "tools": [], "parallel_tool_calls": True},
        "preferred_output": _assistant(chosen),
        "non_preferred_output": _assistant(rejected),
    }


FORMS: dict[str, Form] = {
    "dpo": _pairs(_standard),
    "dpo-chat": _pairs(_conversational),
    "openai": _pairs(_openai),
    "answers": answers,
    "runs": runs,
}
"""dpo, dpo-chat: TRL's preference format, standard and conversational. openai: OpenAI's preference
fine-tuning. answers, runs: all public columns of these."""


def _assistant(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def _prompt(messages: list[Row]) -> str:
    """The question. If messages precede it, all of them, each after its role."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages) + "\n\nassistant: "


def _text(content: Any) -> str:
    """The text of a message whose content may be blocks."""
    if isinstance(content, str):
        return content
    return "".join(b if isinstance(b, str) else b.get("text", "") for b in content)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"
