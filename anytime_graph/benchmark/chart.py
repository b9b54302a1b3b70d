"""The chart of quality against budget, as SVG inside a page.

It takes the colour of the page's text, needs no other file, and is equal for equal figures.
"""

from __future__ import annotations

import io
import re
from textwrap import fill
from typing import Any

from anytime_graph.benchmark.figures import METRICS, Figures

_INK = "#012345"
"""A placeholder for the page's text colour, which differs in dark mode."""
_COLOURS = ("#0a84d0", "#d9730d", "#1a9850", "#b04ccf", "#d6334c", "#8a7a00", "#00979d", "#7a7a7a")
_MARKS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")


def chart(figures: Figures) -> str:
    """A line for each strategy, with its 95 % interval. Raises ImportError without the extra
    `plots`."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need: pip install 'anytime-graph[plots]'") from None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "anytime-graph"}):
        figure = Figure(figsize=(5.4, 4.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for n, name in enumerate(figures.strategies):
            _line(axes, figures, name, n)
        _dress(axes, figures)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return _embedded(svg.getvalue())


def _line(axes: Any, figures: Figures, name: str, n: int) -> None:
    intervals = [figures.quality(name, at) for at in range(len(figures.budgets))]
    colour = _COLOURS[n % len(_COLOURS)]
    axes.plot(
        figures.budgets,
        [i.mean for i in intervals],
        color=colour,
        marker=_MARKS[n % len(_MARKS)],
        markersize=5,
        linewidth=1.8,
        linestyle=_LINES[n // len(_COLOURS) % len(_LINES)],
        label=name.replace("$", r"\$"),
    )
    axes.fill_between(
        figures.budgets,
        [i.low for i in intervals],
        [i.high for i in intervals],
        color=colour,
        alpha=0.10,
        linewidth=0,
    )


def _dress(axes: Any, figures: Figures) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(figures.budgets, [f"{b:,}" for b in figures.budgets])
    axes.minorticks_off()
    axes.set_xlabel(f"budget for each question, {figures.unit} (log scale)", color=_INK)
    axes.set_ylabel(fill(f"mean quality: {METRICS[figures.metric]}", 44), color=_INK)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.2, color=_INK)
    axes.tick_params(colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)


def _embedded(svg: str) -> str:
    """The drawing without what a page forbids or sets itself: header, metadata, size and ink."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(_INK, "currentColor").strip()
