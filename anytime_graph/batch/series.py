"""Asks questions one after another, each on its own thread in a ledger.

A series that is run again continues where it stopped, and pays for nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    MessageLikeRepresentation,
    convert_to_messages,
)
from langchain_core.runnables import RunnableConfig

from anytime_graph.budget import Budget, NoAnswer
from anytime_graph.checkpoints import Ledger
from anytime_graph.interrupt import StopSignal
from anytime_graph.metering.meter import meter
from anytime_graph.models import resolve_model
from anytime_graph.run.context import Context
from anytime_graph.text import clipped

Asked = str | Sequence[MessageLikeRepresentation]
"""A question: a text, or a conversation whose last message asks it."""
Progress = Callable[[int, int], None]
"""(questions that are over, questions in all); called at the start and after each question."""

_UNDONE = ("interrupted", "errors", "quota", "scorer")
"""Stop reasons of runs that the next series continues."""


def distinct(questions: Iterable[str]) -> list[str]:
    """Each question once. Raises ValueError if there are none, or if one is not a text."""
    if isinstance(questions, str):
        raise ValueError(f"questions={questions!r:.60}: a list of texts, not one text")
    texts = list(dict.fromkeys(questions))
    for at, text in enumerate(texts):
        if not (isinstance(text, str) and text.strip()):
            raise ValueError(f"questions[{at}]={text!r:.60}: a text that is not empty")
    if not texts:
        raise ValueError("questions=[]: at least one is needed")
    return texts


def conversation(asked: Asked, where: str) -> list[BaseMessage]:
    """The messages of a question. Raises ValueError for what asks nothing. where: what it stands in."""
    needed = (
        f"{where}: a text that is not empty is needed, or messages of which the last is the user's"
    )
    try:
        messages = convert_to_messages([("user", asked)] if isinstance(asked, str) else asked)
        if not isinstance(asked, str) and any(isinstance(message, str) for message in asked):
            raise ValueError(
                'a message is ("user", "text"), {"role": ..., "content": ...} or the like'
            )
        json.dumps(told(messages))
    # All that `convert_to_messages` raises for what is no message, and `json` for what has no digest.
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        why = f"a message without {why}" if isinstance(error, KeyError) else why
        raise ValueError(f"{needed} ({clipped(why, 200)})") from None
    if not messages:
        raise ValueError(f"{needed} (there are none)")
    if any(message.type == "remove" for message in messages):
        raise ValueError(f"{needed} (a message that removes another one is part of none)")
    last = messages[-1]
    if last.type != "human":
        raise ValueError(f"{needed} (the last is of type {last.type!r})")
    if not (last.content.strip() if isinstance(last.content, str) else last.content):
        raise ValueError(f"{needed} (the last is empty)")
    return messages


def told(messages: Sequence[BaseMessage]) -> list[Any]:
    """What messages tell a model, as JSON."""
    calls, of = "tool_calls", "tool_call_id"
    return [
        [m.type, m.content, getattr(m, calls, []), getattr(m, of, None), *filter(None, [m.name])]
        for m in messages
    ]


def model_name(model: Any) -> str:
    """A model's name, as it goes into the names of threads."""
    return (
        model if isinstance(model, str) else meter(resolve_model(model), None, media_tokens=0).name
    )


def thread_name(kind: str, *parts: Any) -> str:
    """`kind`/digest of everything in which two runs may differ."""
    text = json.dumps(parts, sort_keys=True)
    return f"{kind}/{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def ask_each(
    app: Any,
    ledger: Ledger,
    threads: Sequence[tuple[str, str]],
    budget: Budget,
    context: Context,
    stop: StopSignal | None,
    progress: Progress | None,
) -> Iterator[tuple[str, str, str | None]]:
    """Ask each (thread, question) that is not over; yields (thread, question, error or None) until
    `stop` is set. A question that no call answered does not end the series; the next run gives it a
    full budget again. Any other error is raised."""
    report = progress or (lambda over, of: None)
    report(0, len(threads))
    for over, (thread, question) in enumerate(threads, 1):
        if stop is not None and stop.is_set():
            return
        try:
            error = _ask(app, ledger, thread, question, budget, {**context, "stop": stop})
        except NoAnswer as failure:
            error = str(failure)
        yield thread, question, error
        report(over, len(threads))


def _ask(
    app: Any, ledger: Ledger, thread: str, question: str, budget: Budget, context: Context
) -> str | None:
    """Ask, or continue where the run stopped. Does nothing if the run is over. Returns why its answers could not be
    scored, if that ended it."""
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    entry: Any = {"messages": [HumanMessage(question)]}
    if runs := ledger.runs(thread):
        stopped, state = runs[-1]["stop_reason"], app.get_state(config)
        if stopped not in (None, *_UNDONE) and not state.next:
            return None
        if state.next and stopped not in _UNDONE:
            entry = None  # killed: LangGraph continues from its checkpoint
        elif state.next or state.values.get("run_id") == runs[-1]["id"]:
            # An input with a budget continues a run that stopped. It adds nothing to what is left,
            # unless all of it was spent without an answer.
            answerless = stopped == "errors" and runs[-1]["best_id"] is None
            entry = {"budget": budget if answerless else Budget(calls=0)}
    return unscored(app.invoke(entry, config, context=context))


def unscored(state: Any) -> str | None:
    """Why the scorer has ended a run; None if it has not."""
    if state["stop_reason"] != "scorer":
        return None
    return next(iter(state["errors"][-1:]), "the scorer failed")
