"""The curve of an answer's quality against tokens, as SVG with axes, units and the budget.

Widths are percentages and texts keep their size, so it can be read on a telephone and needs no style
sheet. It takes the colour of the text around it, in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

_HEIGHT = 160
_BEST = "#1f6feb"
_LIMIT = "#d9480f"
_FAR = 3
"""A budget of more than this many times the tokens spent is left off the axis."""


def curve(
    points: Sequence[tuple[int, float | None]],
    others: Sequence[tuple[int, float]] = (),
    *,
    tokens: int,
    limit: int | None,
) -> str:
    """The drawing; "" without points.

    points: tokens spent, and the score, of each answer that became the best. Without scores each is
    a step up. others: the same of all answers. tokens: what the run has spent. limit: its budget.
    """
    if not points:
        return ""
    scored = points[-1][1] is not None
    heights = [(s or 0.0) if scored else (i + 1) / len(points) for i, (_, s) in enumerate(points)]
    most = extent(max(tokens, points[-1][0]), limit)
    steps = [(x, y) for (x, _), y in zip(points, heights, strict=True)]
    if scored:
        rows = [(n / 4, f"{n / 4:.2f}") for n in range(5)]
    else:
        rows = [(n / len(points), f"{n:.0f}") for n in ticks(len(points)) if n == int(n)]
    afar = "" if limit is None or limit <= most else f" (of a budget of {limit:,})"
    drawn = [
        *_grid(most, rows),
        *_budget(limit, most),
        *(_dot(x, y, most, 2.5, 'opacity=".45"') for x, y in others),
        *_staircase([*steps, (max(tokens, steps[-1][0]), steps[-1][1])], most),
        *(_dot(x, y, most, 4, f'fill="{_BEST}"') for x, y in steps),
        _text("50%", _HEIGHT + 36, f"tokens spent{afar}"),
        f'<text x="-34" y="-12">{"score of the best answer" if scored else "new best answers"}</text>',
    ]
    return (
        '<div style="padding:1.75rem 1.25rem 2.75rem 2.75rem;max-width:44rem">'
        f'<svg width="100%" height="{_HEIGHT}" overflow="visible" role="img" fill="currentColor" '
        'font-size="12" font-family="system-ui, sans-serif" '
        f'aria-label="{"score" if scored else "number"} of the best answer against tokens spent" '
        f'style="display:block;height:{_HEIGHT}px">{"".join(drawn)}</svg></div>'
    )


def extent(spent: float, limit: float | None) -> float:
    """Where an axis ends: at the budget, unless that is far off."""
    spent = spent or 1
    return spent if limit is None or limit > _FAR * spent else max(spent, limit)


def ticks(most: float) -> list[float]:
    """Round values from 0 on, at most six. Of 1,300 they are 0, 500 and 1,000."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    return [n * step for n in range(int(most / step * (1 + 1e-9)) + 1)]


def _grid(most: float, rows: Sequence[tuple[float, str]]) -> Iterator[str]:
    for y, label in rows:
        at = _y(y)
        yield f'<line x1="0" x2="100%" y1="{at}" y2="{at}" stroke="currentColor" opacity=".15"/>'
        yield f'<text x="-8" y="{at + 4}" text-anchor="end">{label}</text>'
    for x in ticks(most):
        yield _text(_x(x, most), _HEIGHT + 18, f"{x:,.0f}")
    yield (
        f'<line x1="0" x2="100%" y1="{_HEIGHT}" y2="{_HEIGHT}" stroke="currentColor" opacity=".6"/>'
    )


def _budget(limit: int | None, most: float) -> Iterator[str]:
    if limit is not None and limit <= most:
        at = _x(limit, most)
        yield f'<line x1="{at}" x2="{at}" y1="0" y2="{_HEIGHT}" stroke="{_LIMIT}" stroke-dasharray="5 4"/>'
        yield (
            f'<text x="{at}" y="-12" text-anchor="end" fill="{_LIMIT}">budget: {limit:,} tokens</text>'
        )


def _staircase(steps: Sequence[tuple[float, float]], most: float) -> Iterator[str]:
    style = f'stroke="{_BEST}" stroke-width="2.5" stroke-linecap="round"'
    for (x, y), (then, higher) in pairwise(steps):
        left, right, low, high = _x(x, most), _x(then, most), _y(y), _y(higher)
        yield f'<line x1="{left}" x2="{right}" y1="{low}" y2="{low}" {style}/>'
        yield f'<line x1="{right}" x2="{right}" y1="{low}" y2="{high}" {style}/>'


def _dot(x: float, y: float, most: float, radius: float, style: str) -> str:
    return f'<circle cx="{_x(x, most)}" cy="{_y(y)}" r="{radius}" {style}/>'


def _text(x: str, y: float, words: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{words}</text>'


def _x(value: float, most: float) -> str:
    return f"{100 * value / most:.2f}%"


def _y(share: float) -> float:
    return round((1 - share) * _HEIGHT, 1)
