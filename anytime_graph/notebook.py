"""Shows an answer and its curve in a notebook, when it is finished or while it improves.

IPython is used where it runs; elsewhere the same is printed as text.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from anytime_graph.checkpoints import Ledger
from anytime_graph.pages.curve import curve
from anytime_graph.pages.html import escaped
from anytime_graph.run.announcements import improvement
from anytime_graph.text import harmless


@dataclass(frozen=True)
class Shown:
    """An answer and its curve: HTML in a notebook, plain text elsewhere.

    curve: tokens spent and score of each answer that became the best. budget: in tokens, if it is limited
    in tokens.
    """

    answer: str | None
    score: float | None
    curve: list[tuple[int, float | None]]
    tokens: int
    stop_reason: str | None
    budget: int | None = None

    def _repr_html_(self) -> str:
        drawing = curve(self.curve, tokens=self.tokens, limit=self.budget)
        return (
            '<div style="max-width:60em"><pre style="white-space:pre-wrap;margin:0 0 .5em">'
            f"{escaped(self._text)}</pre>{drawing}"
            f'<div style="opacity:.7">{escaped(self._summary)}</div></div>'
        )

    def __repr__(self) -> str:
        return f"{harmless(self._text)}\n({self._summary})"

    @property
    def _text(self) -> str:
        return "no answer yet" if self.answer is None else self.answer

    @property
    def _summary(self) -> str:
        score = "" if self.score is None else f"score {self.score:.2f}, "
        ended = "" if self.stop_reason is None else f", ended by {self.stop_reason}"
        return f"{score}{self.tokens:,} tokens{ended}"


def show(result: Mapping[str, Any] | Ledger, thread: str | None = None) -> Shown:
    """The best answer and its curve, from a graph's output or from a ledger's thread.

    Raises ValueError for anything else, or an unknown thread.
    """
    if isinstance(result, Ledger):
        runs = result.runs(thread) if thread is not None else []
        if thread is None or not runs:
            raise ValueError(f"thread={thread!r}: name a thread of this ledger")
        run: Mapping[str, Any] = runs[-1]
        best = result.best(thread)
        points = [(point["tokens"], point["score"]) for point in result.curve(thread)]
    elif isinstance(value := getattr(result, "value", None), Mapping):  # LangGraph's GraphOutput
        return show(value)
    elif isinstance(result, Mapping) and result.keys() >= {"best", "spent", "curve"}:
        best, run = result["best"], result
        points = [(point["spent"]["tokens"], point["score"]) for point in result["curve"]]
    else:
        raise ValueError(f"result={type(result).__name__}: a graph's output or a ledger is needed")
    answer, score = (best["answer"], best["score"]) if best else (None, None)
    if best and answer is None:
        answer = "(not kept)"
    limit = run.get("limits", {}).get("tokens")
    return Shown(answer, score, points, run["spent"]["tokens"], run.get("stop_reason"), limit)


def watch(stream: Iterable[Any]) -> Any:
    """Draw each better answer in place of the previous one as soon as it is there.

    stream: a graph's stream, with "custom" among its stream modes. Returns the graph's output if
    "values" is also among them, else the last improvement, or None if there was none.
    """
    watched = _Watched()
    for item in stream:
        watched.take(item)
    return watched.last


async def awatch(stream: AsyncIterable[Any]) -> Any:
    """`watch` for `astream`."""
    watched = _Watched()
    async for item in stream:
        watched.take(item)
    return watched.last


class _Watched:
    def __init__(self) -> None:
        self.draw = _screen()
        self.curve: list[tuple[int, float | None]] = []
        self.last: Any = None

    def take(self, item: Any) -> None:
        # With several stream modes, or with subgraphs, an item is a tuple that ends in the data; in the second
        # version of LangGraph's stream it is a dict.
        if isinstance(item, Mapping) and item.keys() >= {"type", "ns", "data"}:
            item = item["data"]
        for part in item if isinstance(item, tuple) else (item,):
            if (event := improvement(part)) is not None:
                self.curve.append((event["spent"]["tokens"], event["score"]))
                tokens, score = self.curve[-1]
                left = event["remaining"].get("tokens")
                limit = None if left is None else tokens + int(left)
                self.draw(Shown(event["answer"], score, [*self.curve], tokens, None, limit))
                self.last = event
            elif isinstance(part, Mapping) and part.get("stop_reason") and part.get("best"):
                self.draw(show(part))
                self.last = part


def _screen() -> Callable[[Shown], None]:
    """What draws: one output of the notebook's cell, updated each time, or standard output."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import display
    except ImportError:
        return print
    if get_ipython() is None:
        return print
    untyped: Any = display  # IPython has no types
    handle = untyped(Shown(None, None, [], 0, None), display_id=True)
    return print if handle is None else cast("Callable[[Shown], None]", handle.update)
