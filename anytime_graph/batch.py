"""Questions one after another, each on a thread of its own in a ledger: to run a series again goes
on where it was left, and pays for nothing twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig

from anytime_graph.budget import Budget, NoAnswer
from anytime_graph.checkpoints import Ledger
from anytime_graph.interrupt import StopSignal
from anytime_graph.metering.meter import meter
from anytime_graph.models import resolve_model
from anytime_graph.run.context import Context

Progress = Callable[[int, int], None]
"""(questions that are over, questions in all); called at the start and after each."""

_UNDONE = ("interrupted", "errors")


def checked(questions: Iterable[str]) -> list[str]:
    """Each question once. Raises ValueError if there are none, or one is no text."""
    if isinstance(questions, str):
        raise ValueError(f"questions={questions!r:.60}: a list of texts, not one text")
    told = list(dict.fromkeys(questions))
    for at, question in enumerate(told):
        if not (isinstance(question, str) and question.strip()):
            raise ValueError(f"questions[{at}]={question!r:.60}: a text that is not empty")
    if not told:
        raise ValueError("questions=[]: at least one is needed")
    return told


def named(model: Any) -> str:
    """What a model is known by in the name of a thread."""
    return (
        model if isinstance(model, str) else meter(resolve_model(model), None, media_tokens=0).name
    )


def thread_name(kind: str, *parts: Any) -> str:
    """`kind`/digest of all that makes two runs the same."""
    told = json.dumps(parts, sort_keys=True)
    return f"{kind}/{hashlib.sha256(told.encode(errors='replace')).hexdigest()[:16]}"


def asked(
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
    tell = progress or (lambda done, of: None)
    tell(0, len(threads))
    for done, (thread, question) in enumerate(threads, 1):
        if stop is not None and stop.is_set():
            return
        error = None
        try:
            _ask(app, ledger, thread, question, budget, {**context, "stop": stop})
        except NoAnswer as failed:
            error = str(failed)
        yield thread, question, error
        tell(done, len(threads))


def _ask(
    app: Any, ledger: Ledger, thread: str, question: str, budget: Budget, context: Context
) -> None:
    """Ask, or go on where the run was left; nothing is done if it is over."""
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    runs = ledger.runs(thread)
    given: Any = {"messages": [HumanMessage(question)]}
    if runs:
        stopped, state = runs[-1]["stop_reason"], app.get_state(config)
        if stopped not in (None, *_UNDONE) and not state.next:
            return
        if state.next and stopped not in _UNDONE:
            given = None
        elif state.next or state.values.get("run_id") == runs[-1]["id"]:
            answerless = stopped == "errors" and runs[-1]["best_id"] is None
            given = {"budget": budget if answerless else Budget(calls=0)}
    app.invoke(given, config, context=context)
