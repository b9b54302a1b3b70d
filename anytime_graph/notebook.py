"""Shows an answer and its curve in a notebook, when it is finished or while it improves.

IPython is used where it runs; elsewhere the same is printed as text.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, cast

from anytime_graph.checkpoints import Ledger
from anytime_graph.run.announcements import improvement
from anytime_graph.text import harmless

_WIDTH, _HEIGHT, _EDGE = 480, 120, 8


@dataclass(frozen=True)
class Shown:
    """An answer and its curve: HTML in a notebook, plain text elsewhere.

    curve: tokens spent and score of each answer that became the best.
    """

    answer: str | None
    score: float | None
    curve: list[tuple[int, float | None]]
    tokens: int
    stop_reason: str | None

    def _repr_html_(self) -> str:
        return (
            '<div style="max-width:60em"><pre style="white-space:pre-wrap;margin:0 0 .5em">'
            f"{escape(self._text)}</pre>{_drawn(self.curve, self.tokens)}"
            f'<div style="opacity:.7">{escape(self._summary)}</div></div>'
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
        curve = [(point["tokens"], point["score"]) for point in result.curve(thread)]
    elif isinstance(result, Mapping) and result.keys() >= {"best", "spent", "curve"}:
        best, run = result["best"], result
        curve = [(point["spent"]["tokens"], point["score"]) for point in result["curve"]]
    else:
        raise ValueError(f"result={type(result).__name__}: a graph's output or a ledger is needed")
    answer, score = (best["answer"], best["score"]) if best else (None, None)
    if best and answer is None:
        answer = "(not kept)"
    return Shown(answer, score, curve, run["spent"]["tokens"], run.get("stop_reason"))


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
        # With several stream modes, or with subgraphs, an item is a tuple that ends in the data.
        for part in item if isinstance(item, tuple) else (item,):
            if (event := improvement(part)) is not None:
                self.curve.append((event["spent"]["tokens"], event["score"]))
                tokens, score = self.curve[-1]
                self.draw(Shown(event["answer"], score, [*self.curve], tokens, None))
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


def _drawn(curve: list[tuple[int, float | None]], tokens: int) -> str:
    """The best score against tokens as SVG steps; without scores, one step up for each better answer.

    A score of 0.5 after 600 of 1,000 tokens is at x = 8 + 0.6 * 464 = 286.4, y = 112 - 0.5 * 104 = 60.
    """
    if not curve:
        return ""
    scored = curve[-1][1] is not None
    heights = [(s or 0.0) if scored else (i + 1) / len(curve) for i, (_, s) in enumerate(curve)]
    most = max(tokens, curve[-1][0], 1)
    spots = [
        (_EDGE + x / most * (_WIDTH - 2 * _EDGE), _HEIGHT - _EDGE - y * (_HEIGHT - 2 * _EDGE))
        for (x, _), y in zip([*curve, (most, None)], [*heights, heights[-1]], strict=True)
    ]
    x, y = spots[0]
    path = f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in spots[1:])
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in spots[:-1])
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        'aria-label="the best answer so far against tokens spent" fill="#1f6feb">'
        f'<path d="M{_EDGE} {_HEIGHT - _EDGE}H{_WIDTH - _EDGE}" stroke="#8b949e"/>'
        f'<path d="{path}" fill="none" stroke="#1f6feb" stroke-width="2"/>{dots}</svg>'
    )
