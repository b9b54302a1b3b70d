"""The report of a benchmark, as Markdown and as one self-contained page of HTML."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from anytime_graph.benchmark.cells import OPENING, PREPARATION
from anytime_graph.benchmark.chart import chart
from anytime_graph.benchmark.figures import METRICS, Figures
from anytime_graph.benchmark.recording import Bought
from anytime_graph.metrics import Difference, Interval, bootstrap, mean
from anytime_graph.pages.html import document, escaped

_ENOUGH = 0.95
"""A strategy with this share of the highest quality is nearly as good."""
_WITHOUT_ANSWER = ("learn", "critique")
"""Kinds of calls that give no answer."""
_FEW = 20
"""Questions below which bootstrap intervals are too narrow."""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Grid:
    """A table: names in the first column, numbers in the others."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An SVG drawing, and what it shows."""

    svg: str
    about: str


Block = Heading | Text | Code | Grid | Picture


@dataclass(frozen=True)
class Source:
    """How the measurements of a report came about. ended: why some cells were not run, or None."""

    command: str
    bought: Bought
    ended: str | None
    failures: Sequence[str]
    replayed: bool = False

    def unfinished(self) -> str:
        """Why not all cells were run."""
        why = {
            "budget": "what may be spent on the whole benchmark does not pay for the next cell",
            "interrupted": "it was interrupted",
            "failures": f"calls fail ({self.failures[-1] if self.failures else 'no reason given'})",
            "preparation": "some preference data could not be made",
        }[self.ended or ""]
        return f"Not finished: {why}. The same command goes on where it stopped."


def report_blocks(all_figures: Sequence[Figures], source: Source) -> list[Block]:
    """The content of the report."""
    blocks: list[Block] = [Code(source.command), Heading("Which strategy, at which budget", 1)]
    if source.ended is not None:
        blocks.append(Text(source.unfinished(), strong=True))
    for figures in all_figures:
        blocks += _task(figures)
    blocks += [Heading("How it was made"), Text(_versions()), Text(_bought(source))]
    return blocks


def _task(figures: Figures) -> list[Block]:
    blocks: list[Block] = [Heading(figures.task), Text(_setting(figures))]
    blocks += [Text(sentence, strong=True) for sentence in verdict(figures)]
    try:
        blocks.append(Picture(chart(figures), _caption(figures)))
    except ImportError as error:
        blocks.append(Text(f"No picture: {error}"))
    blocks += [Heading("Quality of the answer returned", 3), _qualities(figures)]
    if len(figures.strategies) > 1:
        blocks += [Heading(f"Difference from {figures.baseline}", 3), _differences(figures)]
        blocks.append(Text(_DIFFERENCES))
    if len(figures.budgets) > 1:
        blocks += [Heading("How early quality comes", 3), _indices(figures)]
        blocks.append(Text(_index_terms(figures)))
    if figures.uses:
        blocks += [Heading("What there was to choose from", 3), _choices_grid(figures)]
        blocks.append(Text(_choices_terms(figures)))
        if _RIVAL in figures.strategies and len(figures.strategies) > 1:
            blocks += [Heading(f"Against {_RIVAL} at equal tokens", 3), _against(figures)]
            blocks.append(Text(_AGAINST))
    if any(figures.brought.values()):
        blocks += [Heading("What single calls brought", 3), _gains_grid(figures)]
        blocks.append(Text(_gains_terms(figures)))
    blocks += [Heading("What it cost", 3), _costs(figures), Text(_COSTS[figures.protocol])]
    if figures.charged and len(figures.strategies) > 1:
        blocks += [Heading("At equal cost", 3), _for_the_cost(figures), Text(_equal_terms(figures))]
    return blocks


def _setting(f: Figures) -> str:
    protocol = {
        "run": 'Protocol "run": what the graph returns at each budget, a run for each; budgets in '
        f"tokens, input and output together. The {f.decide} decides which answer is returned.",
        "paper": 'Protocol "paper": full chains of thought, cut at each checkpoint (generated '
        "tokens), and an answer forced from what stands before the cut.",
    }[f.protocol]
    chains = "chain" if f.protocol == "paper" else "run"
    left = f" {f.left_out} more questions lack a cell and are left out." if f.left_out else ""
    few = f" Fewer than {_FEW} questions: the intervals are too narrow." * (len(f.questions) < _FEW)
    return (
        f"{protocol} Model {f.model}; {f.about}; quality is {METRICS[f.metric]}. "
        f"{len(f.questions)} questions, {f.seeds} {chains}{'s' * (f.seeds > 1)} on each.{left} "
        f"Brackets are 95 % bootstrap intervals over questions.{few}{_faults(f)}"
    )


def _faults(f: Figures) -> str:
    faults = ""
    if prepared := f.costs.get(PREPARATION):
        faults += f" Training questions gave {prepared.pairs} preference pairs"
        faults += "." if prepared.pairs else ", so nothing could be shown of them."
    if f.unscored:
        faults += f" The scorer failed on {f.unscored} answers, which count 0."
    if f.estimated:
        faults += " Some chains could not be cut at the token, but by an estimate."
    return faults


_RIVAL = "best_of_n"
"""The strategy that each other one is also compared with for the same tokens."""
_AGAINST = (
    "What each has more than best_of_n, paired by question, for the tokens that best_of_n spends at each "
    "budget; between two budgets by interpolation, and beyond the last one as at the last. p as above."
)
_DIFFERENCES = (
    "Paired by question; p by sign-flip permutation, two-sided, not corrected for the number of "
    "comparisons: among ten of them, chance alone brings a p of 0.05 or less in 40 % of benchmarks."
)
_COSTS = {
    "run": "All cells, each charged as if it had been alone. Judge: tokens of comparisons, reasons "
    "and principles, within the budget. The preparation of preference data comes on top of the "
    "budgets of the strategies that are shown it; it is shared by them.",
    "paper": "All cells, each charged as if it had been alone. Forced answers and the prompts, with "
    "the examples in them, come on top of the generated tokens that the checkpoints count, as does "
    "the preparation of preference data, which is shared by the strategies that are shown it.",
}


def verdict(f: Figures) -> list[str]:
    """Which strategy to use: a sentence for the whole, and one for each budget."""
    best, cheap = f.best, f.cheapest(_ENOUGH)
    sentences = [f"Highest: {best.strategy} at {best.budget:,} {f.unit}, {best.quality:.3f}."]
    if cheap != best:
        sentences[0] += (
            f" Nearly as good ({_ENOUGH:.0%} of it) from {cheap.budget:,} on: {cheap.strategy}, "
            f"{cheap.quality:.3f}."
        )
    for at, budget in enumerate(f.budgets):
        here = f.best_at(at)
        if here.strategy == f.baseline:
            sentences.append(f"At {budget:,}: {here.strategy}, {here.quality:.3f}.")
            continue
        d = f.difference(here.strategy, at)
        sure = "beyond chance" if d.p < 0.05 else "which may be chance"
        sentences.append(
            f"At {budget:,}: {here.strategy}, {here.quality:.3f}; {d.mean:+.3f} on {f.baseline}, "
            f"{sure} (p = {d.p:.3f})."
        )
    return sentences


def summary(f: Figures) -> str:
    """The table of qualities, as text for a terminal."""
    grid = _qualities(f)
    widths = [max(map(len, column)) for column in zip(grid.head, *grid.rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (grid.head, *grid.rows)
    )


def _caption(f: Figures) -> str:
    return f"Mean quality of the answer returned against the budget, {f.task}, {f.model}"


def _qualities(f: Figures) -> Grid:
    rows = [
        [name, *(_with_interval(f.quality(name, at)) for at in range(len(f.budgets)))]
        for name in f.strategies
    ]
    return Grid(["strategy", *(f"{b:,}" for b in f.budgets)], rows)


def _choices_grid(f: Figures) -> Grid:
    seen = any(use.seen for uses in f.uses.values() for use in uses)
    rows = []
    for name in f.strategies:
        for at, (budget, use) in enumerate(zip(f.budgets, f.uses[name], strict=True)):
            per_solved = f.tokens_per_solved(name, at)
            rows.append(
                [
                    f"{name} at {budget:,}",
                    f"{mean(use.solved):.1%}",
                    _with_interval(bootstrap(use.covered), "{:.1%}"),
                    f"{mean([row[at] for row in f.oracle[name]]):.3f}",
                    _with_interval(bootstrap(use.chance)) if use.chance else "-",
                    *([f"{mean(use.seen):.3f}" if use.seen else "-"] if seen else []),
                    _percentage(mean(use.tokens), budget),
                    "-" if per_solved is None else f"{per_solved:,.0f}",
                ]
            )
    head = ["strategy", "settled", "coverage", "best candidate", "random candidate"]
    head += ["scorer's own score"] * seen
    return Grid([*head, "budget used", "tokens per settled question"], rows)


def _choices_terms(f: Figures) -> str:
    return (
        "Settled: the answer returned has a score of 1. Coverage: any answer of the run has. Best and "
        "random candidate: what the best answer of each run gives, and a random choice among them; above "
        "the random one is what choosing brings."
        + " The scorer's own score is that of the answer returned, by the part of what counts that the "
        "scorer sees; quality is by the other part."
        * any(use.seen for uses in f.uses.values() for use in uses)
    )


def _against(f: Figures) -> Grid:
    rows = []
    for name in f.strategies:
        if name != _RIVAL:
            found = [f.at_equal_tokens(name, _RIVAL, at) for at in range(len(f.budgets))]
            rows.append([name, *("too dear" if d is None else _difference(d) for d in found)])
    costs = [f"{tokens:,.0f}" for tokens in f.tokens(_RIVAL)]
    return Grid(["strategy", *costs], rows)


def _difference(d: Difference) -> str:
    return f"{d.mean:+.3f}\n[{d.low:+.3f}, {d.high:+.3f}]\np={d.p:.3f}"


def _differences(f: Figures) -> Grid:
    rows = []
    for name in f.strategies:
        if name == f.baseline:
            continue
        differences = [f.difference(name, at) for at in range(len(f.budgets))]
        if len(f.budgets) > 1:
            differences.append(f.index_difference(name))
        rows.append([name, *map(_difference, differences)])
    index = ["index, returned"] * (len(f.budgets) > 1)
    return Grid(["strategy", *(f"{b:,}" for b in f.budgets), *index], rows)


def _indices(f: Figures) -> Grid:
    level = _ENOUGH * f.best.quality
    rows = []
    for name in f.strategies:
        at = f.reached(name, level)
        rows.append(
            [
                name,
                *(_with_interval(f.index(name, of)) for of in ("returned", "paper", "oracle")),
                _with_interval(f.gain(name)),
                "not reached" if at is None else f"{at:,}",
            ]
        )
    head = ["strategy", "index, returned", "index, Q* of means", "index, oracle"]
    return Grid([*head, "gain per 1,000 tokens", f"budget to reach {level:.3f}"], rows)


def _index_terms(f: Figures) -> str:
    origin = "from (0, 0)" if f.origin else "from the first budget, without (0, 0)"
    return (
        f"Anytime Index with Q_max = {f.q_max:g}, {origin}. Returned: of the answers that were "
        "returned, whose quality can fall. Q* of means: the paper's formula on the mean curve. Oracle: "
        "of the best answer so far on each question and seed, which takes the true score to pick. "
        "The gain is that of the answer returned, from the smallest budget to the largest."
    )


def _costs(f: Figures) -> Grid:
    rows = []
    for name, cost in f.costs.items():
        s = cost.spent
        rows.append(
            [
                name,
                f"{cost.cells:,}",
                f"{s['calls']:,}",
                f"{s['tokens']:,}",
                f"{s['input_tokens']:,}",
                f"{s['output_tokens']:,}",
                _percentage(s["cached_tokens"], s["input_tokens"]),
                _percentage(cost.answering if f.protocol == "paper" else cost.judging, s["tokens"]),
                f"{s['usd']:.4f}",
            ]
        )
    part = "forced answers" if f.protocol == "paper" else "judge"
    head = ["strategy", "cells", "calls", "tokens", "input", "output", "cached", part, "USD"]
    return Grid(head, rows)


def _gains_grid(f: Figures) -> Grid:
    rows = []
    for name, kinds in f.brought.items():
        for kind, of in kinds.items():
            calls, scores, better, tokens = (
                sum(gains[amount] for gains in of)
                for amount in ("calls", "scores", "better", "tokens")
            )
            answers = kind not in _WITHOUT_ANSWER
            rows.append(
                [
                    f"{name}: {kind}",
                    f"{calls:,}",
                    f"{scores / calls:.3f}" if answers else "-",
                    _percentage(better, calls) if answers else "-",
                    f"{tokens / calls:,.0f}",
                    _with_interval(f.rises(name, kind)) if answers else "-",
                ]
            )
    head = ["strategy: asked for", "calls", "mean score", "better than the best so far"]
    return Grid([*head, "tokens each", "rise for 1,000 tokens"], rows)


def _gains_terms(f: Figures) -> str:
    return (
        f"At {f.budgets[-1]:,} {f.unit}, calls after the first {OPENING} of a run, which are drafts "
        "that most strategies have in common. Taught: with preference pairs or principles in the prompt, of this "
        "question or of earlier ones. The rise is that of the best true score so far. Strategies choose "
        "what to ask for by what they have seen, so kinds were asked for in different states of a run."
    )


def _for_the_cost(f: Figures) -> Grid:
    at = range(len(f.budgets))
    costs = f.charged[f.baseline]
    head = ["strategy", *(f"{c:.6f} USD" if f.priced else f"{c:,.0f}" for c in costs)]
    return Grid(
        head, [[name, *(_reached(f.for_the_cost(name, i)) for i in at)] for name in f.strategies]
    )


def _reached(quality: tuple[Interval, bool] | None) -> str:
    return "too dear" if quality is None else _with_interval(quality[0]) + " or more" * quality[1]


def _equal_terms(f: Figures) -> str:
    unit = "US dollars" if f.priced else "tokens, of which cached input counts a tenth"
    return (
        f"What each gives for what {f.baseline} costs a question at each budget, in {unit}; between "
        'two budgets by interpolation. "Or more": its largest budget costs less than that.'
    )


def _percentage(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _with_interval(i: Interval, form: str = "{:.3f}") -> str:
    return f"{form.format(i.mean)} [{form.format(i.low)}, {form.format(i.high)}]"


def _versions() -> str:
    names = ("anytime-graph", "langgraph", "langchain-core")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{packages}, Python {platform.python_version()}."


def _bought(source: Source) -> str:
    b = source.bought
    what = (
        "The recording that was replayed holds" if source.replayed else "Bought in this directory:"
    )
    return (
        f"{what} {b.calls:,} calls, {b.tokens:,.0f} tokens, {b.usd:.4f} USD, of all benchmarks there; "
        "a request made before was not bought again, and calls that a kill cut off count in full."
    )


# --- as Markdown


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_markdown(part) for part in blocks) + "\n"


def _markdown(part: Block) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {_as_markdown(part.text)}"
    if isinstance(part, Text):
        return f"**{_as_markdown(part.text)}**" if part.strong else _as_markdown(part.text)
    if isinstance(part, Code):
        return f"    {part.text}"
    if isinstance(part, Picture):
        return f"(The picture is in report.html: {_as_markdown(part.about)}.)"
    rule = ["---", *["---:"] * (len(part.head) - 1)]
    rows = [part.head, rule, *part.rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)


_MARKED = re.compile(r"[\\`*<>|]|(?<!\w)_|_(?!\w)|^#|\](?=[(\[:])")


def _as_markdown(text: str) -> str:
    """The text with Markdown's marks escaped."""
    return _MARKED.sub(r"\\\g<0>", " ".join(text.split()))


def _cell(text: str) -> str:
    return text if set(text) <= {"-", ":"} else _as_markdown(text)


# --- as HTML


def page(blocks: Sequence[Block], title: str = "anytime-graph bench") -> str:
    """One page. Names and model output are escaped: text, never markup."""
    return document(title, "\n".join(map(_html, blocks)))


def _html(part: Block) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{escaped(part.text)}</h{part.level}>"
    if isinstance(part, Code):
        return f"<pre>{escaped(part.text)}</pre>"
    if isinstance(part, Picture):
        about = escaped(part.about)
        return f'<figure role="img" aria-label="{about}">\n{part.svg}\n</figure>'
    if isinstance(part, Text):
        kind = ' class="strong"' if part.strong else ""
        return f"<p{kind}>{escaped(part.text)}</p>"
    head = "".join(f"<th>{escaped(name)}</th>" for name in part.head)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in part.rows
    )
    name = escaped(part.head[0])
    return f'<div class="wide" tabindex="0" role="region" aria-label="table: {name}"><table>\n<tr>{head}</tr>\n{rows}\n</table></div>'
