"""The curve of quality against tokens spent, as a picture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from anytime_graph.text import clipped

_BEST, _OTHERS, _LIMIT = "#1f6feb", "#8b949e", "#d9480f"


def plot_curve(
    run: dict[str, Any], curve: list[dict[str, Any]], answers: list[Any], file: Path
) -> None:
    """Draw the best score so far against tokens, and each answer as a dot, and the budget in tokens. Without scores, draw
    when each answer became the best. The ending of the file name sets the format.

    Raises ImportError without the extra `plots`, ValueError for an unknown format, and
    OSError for a file that cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ImportError("plots need: pip install 'anytime-graph[plots]'") from None
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _steps(axes, run["spent"]["tokens"], curve)
    if (limit := run["limits"].get("tokens")) is not None:
        axes.axvline(limit, color=_LIMIT, linestyle="--", label=f"the budget, {limit:,} tokens")
    if scored := [a for a in answers if a["score"] is not None]:
        tokens, scores = [a["tokens"] for a in scored], [a["score"] for a in scored]
        axes.plot(
            tokens,
            scores,
            "o",
            color=_OTHERS,
            alpha=0.8,
            markersize=4,
            zorder=1.5,
            label="an answer",
        )
    title = clipped(run["question"] or f"thread {run['thread']}", 65)
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel("tokens spent")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(file)


def _steps(axes: Any, spent: int, curve: list[dict[str, Any]]) -> None:
    scored = curve[-1]["score"] is not None
    heights = [p["score"] or 0.0 if scored else i + 1 for i, p in enumerate(curve)]
    tokens = [p["tokens"] for p in curve]
    axes.step(
        [*tokens, max(spent, tokens[-1])],
        [*heights, heights[-1]],
        where="post",
        color=_BEST,
        linewidth=2,
        label="the best so far",
    )
    axes.plot(tokens, heights, "o", color=_BEST, markersize=6)
    if scored:
        axes.set_ylabel("score of the best answer")
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_ylabel("which answer is the best")
        axes.set_yticks(heights, [f"answer {p['ordinal']}" for p in curve])
        axes.set_ylim(0.5, len(curve) + 0.5)
