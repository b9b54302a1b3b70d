"""All that happened on a thread, as plain data and as one page: calls, answers, pairs and costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from anytime_graph.budget import DIMENSIONS, UNIT_NAMES
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.export import public
from anytime_graph.pages.curve import curve, extent, ticks
from anytime_graph.pages.html import document, escaped
from anytime_graph.run.calls import judges
from anytime_graph.run.endings import call_ended, decided, ended
from anytime_graph.run.fold import is_vote, union
from anytime_graph.run.upgrade import planned_call
from anytime_graph.scoring import normal
from anytime_graph.text import head_of

_NOT_KEPT = "(not kept)"
_DEEPEST = 4
"""Refinements of refinements are indented up to this depth."""

Row = Mapping[str, Any]


def thread_page(ledger: Ledger, thread: str) -> str:
    """The runs of a thread as one page of HTML that needs no network and no script.

    Each question is shown with its best answer, what it cost, why it stopped, its calls in active
    seconds and in tokens, all answers with what they were made from, preference pairs and errors. What models wrote
    is text on it, never markup. Raises ValueError for an unknown thread.
    """
    return page(told(ledger, thread))


def told(ledger: Ledger, thread: str) -> dict[str, Any]:
    """What the ledger holds of a thread, as plain data: `thread`, `running` and `runs`, oldest first.
    Raises ValueError for an unknown thread."""
    runs = [_run(ledger, run) for run in ledger.runs(thread)]
    if not runs:
        raise ValueError(
            f"thread={thread!r}: there is no such thread in this ledger; "
            "`anytime-graph threads` lists them"
        )
    running = any(row["running"] for row in ledger.threads() if row["thread"] == thread)
    return {"thread": thread, "running": running, "runs": runs}


def _run(ledger: Ledger, run: dict[str, Any]) -> dict[str, Any]:
    calls = ledger.calls(run["id"])
    judging = [call for call in calls if judges(planned_call(call)["move"])]
    return {
        **public(run),
        "judging": {name: sum(call[name] for call in judging) for name in ("tokens", "usd")},
        "calls": [public(call) for call in calls],
        "answers": [public(answer) for answer in ledger.answers(run["id"])],
        "pairs": ledger.pairs(run["id"]),
        "curve": ledger.points(run["id"]),
    }


def page(story: Row) -> str:
    """What `told` returns, as a page."""
    runs, thread = story["runs"], story["thread"]
    body = [f"<h1>{escaped(thread)}</h1>"]
    if len(runs) > 1:
        links = (
            f'<li><a href="#run-{i}">{escaped(head_of(run["question"] or _NOT_KEPT, 120))}</a></li>'
            for i, run in enumerate(runs, 1)
        )
        body.append(f"<nav><ol>{''.join(links)}</ol></nav>")
    numbers = {run["id"]: i for i, run in enumerate(runs, 1)}
    for i, run in enumerate(runs, 1):
        running = story["running"] and i == len(runs)
        body += _section(run, i, len(runs), running, numbers.get(run["parent_id"]))
    return document(f"{thread}: anytime-graph", "\n".join(body), _STYLE)


def _section(run: Row, number: int, of: int, running: bool, parent: int | None) -> Iterator[str]:
    best = next((a for a in run["answers"] if a["id"] == run["best_id"]), None)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["started"]))
    branch = "" if parent is None else f", branched off question {parent}"
    how = f"strategy {run['strategy']}, {decided(run['decides'])}"
    facts = f"{when}, {run['model']}, {how}{branch}"
    yield f'<section id="run-{number}"><p class="over">Question{f" {number} of {of}" if of > 1 else ""}</p>'
    yield f'<h2 class="asked">{_kept(run["question"])}</h2><p>{escaped(facts)}</p>'
    yield _best(best, run, running)
    yield f"<h3>What it cost, and why it stopped</h3>{_cost(run, running)}"
    limit = run["limits"].get("tokens")
    points = [(p["tokens"], p["score"]) for p in run["curve"]]
    others = [(a["tokens"], a["score"]) for a in run["answers"] if a["score"] is not None]
    if points:
        scored = points[-1][1] is not None
        yield f"<h3>{'Quality against tokens' if scored else 'When the best answer changed'}</h3>"
        yield curve(points, others, tokens=run["spent"]["tokens"], limit=limit)
        yield f"<p>{_CURVE[scored]}</p>"
    if run["calls"]:
        yield f"<h3>Calls</h3>{_calls(run)}"
    if run["answers"]:
        yield "<h3>Answers</h3>"
        yield f"<p>{_ANSWERS.get(run['decides'], '')}</p>"
        yield from _answers(run, number)
    if run["pairs"]:
        yield "<h3>Preference pairs</h3>"
        yield from (_pair(pair, number) for pair in run["pairs"])
    errors = [(call["ordinal"], error) for call in run["calls"] for error in call["errors"]]
    if errors:
        rows = "".join(f"<li>call {n}: {escaped(error)}</li>" for n, error in errors)
        yield f'<h3>Errors</h3><ul class="errors">{rows}</ul>'
    yield "</section>"


_CURVE = {
    True: "The line is the best answer so far, with a blue dot for each new best. Grey dots are all answers.",
    False: "No scores here: each step is an answer that replaced the best one before it.",
}
_ANSWERS = {
    "scorer": "Scores are from 0 to 1. An answer made from another one stands below it, indented.",
    "judge": "An answer is preferred to another one if the judge named it in both orders. An answer made "
    "from another one stands below it, indented.",
    "vote": "Votes are the answers that say the same.",
    "agreement": "Votes are the answers that say the same. Where they are tied, the judge compares.",
}


def _best(best: Row | None, run: Row, running: bool) -> str:
    if best is None:
        return f'<div class="best"><p class="over">No answer{" yet" if running else ""}</p></div>'
    head = "Best answer so far" if running else "Best answer"
    head += "" if best["score"] is None else f", score {best['score']:.2f}"
    head += "" if best["complete"] else ", cut off"
    return f'<div class="best"><p class="over">{head}</p><div class="text">{_kept(best["answer"])}</div></div>'


def _cost(run: Row, running: bool) -> str:
    reason = run["stop_reason"]
    if reason is None:
        why = "It is running." if running else "It was cut off, and can be resumed."
    else:
        why = f"{escaped(ended(reason))}."
    return f'<p class="strong">{why}</p><dl>{"".join(_amounts(run))}</dl>'


def _amounts(run: Row) -> Iterator[str]:
    spent, limits = run["spent"], run["limits"]
    notes = {"tokens": _tokens_note(run), "seconds": "in which calls were under way"}
    for name in DIMENSIONS:
        if name not in limits and (name == "output_tokens" or not spent[name]):
            continue
        text = _amount(name, spent[name])
        meter = ""
        if (limit := limits.get(name)) is not None:
            share = spent[name] / limit if limit else 1.0
            text += f" of {_amount(name, limit)} ({share:.0%})"
            meter = f'<div class="meter"><i style="width:{min(100, 100 * share):.1f}%"></i></div>'
        note = f"<small>{notes[name]}</small>" if notes.get(name) else ""
        yield f"<div><dt>{UNIT_NAMES[name]}</dt><dd>{text}{meter}{note}</dd></div>"


def _tokens_note(run: Row) -> str:
    spent, judged = run["spent"], run["judging"]["tokens"]
    parts = []
    for whole, name in (("input", "cached"), ("output", "reasoning")):
        part = f" ({spent[f'{name}_tokens']:,} {name})" if spent[f"{name}_tokens"] else ""
        parts.append(f"{spent[f'{whole}_tokens']:,} {whole}{part}")
    if judged:
        parts.append(f"{judged:,} by the judge")
    if inherited := run["inherited"]["tokens"]:
        parts.append(f"{inherited:,} before it branched off")
    return ", ".join(parts)


def _amount(name: str, amount: float) -> str:
    return {"usd": f"{amount:.4f}", "seconds": f"{amount:,.1f}"}.get(name, f"{amount:,.0f}")


# --- calls


def _calls(run: Row) -> str:
    """A row for each call, with bars at its seconds and its tokens. Seconds are active: gaps in which
    no call was under way are left out, as they are in a budget."""
    calls, limits, inherited = run["calls"], run["limits"], run["inherited"]
    spans = [(call["started"], call["changed"]) for call in calls]
    active = [
        [inherited["seconds"] + union(_before(spans, moment)) for moment in span] for span in spans
    ]
    seconds = extent(max(end for _, end in active), limits.get("seconds"))
    most = extent(max(run["spent"]["tokens"], inherited["tokens"]), limits.get("tokens"))
    marks = (_mark(limits.get("seconds"), seconds), _mark(limits.get("tokens"), most))
    rows, tokens = [], inherited["tokens"]
    for call, (start, end) in zip(calls, active, strict=True):
        kind = call["kind"] if call["kind"] in _KINDS else "other"
        bars = (
            _bar(start, end - start, seconds, kind),
            _bar(tokens, call["input_tokens"], most, f"{kind} input")
            + _bar(
                tokens + call["input_tokens"], call["tokens"] - call["input_tokens"], most, kind
            ),
        )
        tokens += call["tokens"]
        tracks = "".join(
            f'<span class="track">{bar}{mark}</span>' for bar, mark in zip(bars, marks, strict=True)
        )
        rows.append(
            f'<details><summary class="call"><span>{call["ordinal"]} {escaped(call["kind"])}</span>'
            f"{tracks}</summary>{_call(call)}</details>"
        )
    axes = (
        _axis(seconds, "active seconds", limits.get("seconds"), "seconds"),
        _axis(most, "tokens", limits.get("tokens"), "tokens"),
    )
    return (
        f'<div class="calls">{"".join(rows)}<div class="call axes"><span></span>{"".join(axes)}</div></div>'
        f"<p>{_LEGEND}{' A dashed line is the budget.' if any(marks) else ''}</p>"
    )


_KINDS = ("draft", "critique", "refine", "merge", "evolve", "learn")
_LEGEND = (
    "Each row is a call; open it for its prompt and its reply. On the left is when it ran, on the right what it cost: the "
    "pale part is the prompt, the full part the reply."
)


def _before(spans: Iterable[tuple[float, float]], moment: float) -> Iterator[tuple[float, float]]:
    """The parts of spans that lie before a moment."""
    return ((start, min(end, moment)) for start, end in spans if start < moment)


def _bar(start: float, length: float, most: float, kind: str) -> str:
    return (
        f'<i class="{kind}" style="left:{100 * start / most:.2f}%;'
        f'width:{100 * length / most:.2f}%"></i>'
    )


def _mark(limit: float | None, most: float) -> str:
    return (
        "" if limit is None or limit > most else f'<b style="left:{100 * limit / most:.2f}%"></b>'
    )


def _axis(most: float, unit: str, limit: float | None, name: str) -> str:
    shown = ticks(most)
    digits = 0 if len(shown) < 2 or shown[1] >= 1 else 1 if shown[1] >= 0.1 else 2
    labels = "".join(
        f'<em style="left:{100 * x / most:.2f}%">{x:,.{digits}f}</em>'
        for x in shown[:: 2 if len(shown) > 3 else 1]
    )
    budget = "" if limit is None else f"<br>budget: {_amount(name, limit)}"
    return f'<span class="axis"><span>{labels}</span><small>{unit}{budget}</small></span>'


def _call(call: Row) -> str:
    usd = f", {call['usd']:.6f} US dollars" if call["usd"] else ""
    facts = (
        f"{call['input_tokens']:,} tokens in, {call['output_tokens']:,} out{usd}, "
        f"{call['seconds']:.1f} seconds; {call_ended(call)}"
    )
    prompt = "".join(
        f"<small>{escaped(str(m['role']))}</small><pre>{_kept(_content(m['content']))}</pre>"
        for m in call["request"] or ()
    )
    errors = "".join(f'<p class="errors">{escaped(error)}</p>' for error in call["errors"])
    return f"<p>{escaped(facts)}</p>{errors}{prompt}<small>reply</small><pre>{_kept(call['text'])}</pre>"


def _content(content: Any) -> str:
    """The text of a message whose content may be blocks. Images and the like are named only."""
    if isinstance(content, str):
        return content
    return "\n".join(
        b if isinstance(b, str) else str(b.get("text", f"({b.get('type', 'data')})"))
        for b in content or ()
    )


# --- answers and pairs


def _answers(run: Row, number: int) -> Iterator[str]:
    """Each answer below the one that it was made from."""
    below: dict[int | None, list[Row]] = {}
    known = {a["ordinal"] for a in run["answers"]}
    for answer in run["answers"]:
        origin = next((p for p in answer["parents"] if p in known), None)
        below.setdefault(origin, []).append(answer)
    stands = _standings(run)
    rest = [(answer, 0) for answer in reversed(below.get(None, ()))]
    while rest:
        answer, depth = rest.pop()
        yield _answer(answer, min(depth, _DEEPEST), stands[answer["ordinal"]], run, number)
        rest += [(child, depth + 1) for child in reversed(below.get(answer["ordinal"], ()))]


def _standings(run: Row) -> dict[int, str]:
    """How each answer stands, by its ordinal: its score, its votes, and the judge's comparisons."""
    cast = [
        normal(answer["answer"])
        for answer in run["answers"]
        if answer["complete"] and answer["answer"] and is_vote(run["decides"], answer["node"])
    ]
    judged = [pair for pair in run["pairs"] if pair["decided_by"] == "judge"]
    ballots = Counter(cast) if run["decides"] in ("vote", "agreement") else None
    won = Counter(pair["chosen_ordinal"] for pair in judged)
    lost = Counter(pair["rejected_ordinal"] for pair in judged)
    stands = {}
    for answer in run["answers"]:
        n, parts = answer["ordinal"], []
        if answer["score"] is not None:
            parts.append(f"score {answer['score']:.2f}")
        if ballots is not None:
            parts.append(f"{ballots[normal(answer['answer'] or '')]} of {len(cast)} votes")
        if won[n] or lost[n]:
            parts.append(f"preferred {won[n]} times, not preferred {lost[n]} times")
        stands[n] = ", ".join(parts)
    return stands


def _answer(answer: Row, depth: int, stands: str, run: Row, number: int) -> str:
    parents = ", ".join(_link(p, number) for p in answer["parents"])
    facts = [
        escaped(answer["node"]) + (f" of {parents}" if parents else ""),
        stands,
        "" if answer["complete"] else "cut off",
    ]
    best = answer["id"] == run["best_id"]
    score = answer["score"]
    bar = (
        ""
        if score is None
        else f'<div class="meter"><i style="width:{100 * score:.0f}%"></i></div>'
    )
    mend = (
        f'<p class="mend">to mend: {escaped(answer["feedback"])}</p>' if answer["feedback"] else ""
    )
    return (
        f'<article id="answer-{number}-{answer["ordinal"]}" class="depth{depth}{" chosen" * best}">'
        f"<header><strong>Answer {answer['ordinal']}{', the best' * best}</strong> "
        f"<small>{', '.join(filter(None, facts))}</small></header>{bar}"
        f'<div class="text">{_kept(answer["answer"])}</div>{mend}</article>'
    )


def _pair(pair: Row, number: int) -> str:
    chosen, rejected = (_link(pair[f"{side}_ordinal"], number) for side in ("chosen", "rejected"))
    by = {
        "scorer": "scorer's feedback",
        "judge": "judge",
        "score": "scores",
        "nobody": "judge, without a reason",
    }
    source = by.get(pair["why_by"] or "", str(pair["decided_by"]))
    return (
        f"<article><header><strong>Answer {chosen} over answer {rejected}</strong> "
        f"<small>by the {escaped(source)}</small></header><p>{_kept(pair['why'])}</p>"
        f'<div class="sides"><div><small>chosen</small><div class="text">'
        f"{_kept(pair['better'] or pair['chosen'])}</div></div><div><small>rejected</small>"
        f'<div class="text">{_kept(pair["worse"] or pair["rejected"])}</div></div></div></article>'
    )


def _link(ordinal: int, number: int) -> str:
    return f'<a href="#answer-{number}-{ordinal}">{ordinal}</a>'


def _kept(text: str | None) -> str:
    return _NOT_KEPT if text is None else escaped(text)


_STYLE = """
:root { --draft: #1f6feb; --critique: #9a5bd0; --refine: #1a8f55; --merge: #0b8a9c;
  --evolve: #b83280; --learn: #c2700a;
  --limit: #d9480f; }
section { margin-top: 3rem; } section + section { border-top: 1px solid var(--rule); }
h2.asked { margin: 0; font-size: 1.35rem; line-height: 1.35; white-space: pre-wrap; max-width: 46rem; }
.over { margin: 1.5rem 0 .25rem; font-size: .8rem; font-weight: 600; letter-spacing: .02em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 46rem; }
.best { margin: 1.25rem 0; padding: .1rem 1.25rem 1.1rem; border-left: 4px solid var(--draft);
  background: var(--band); } .best .over { margin-top: .9rem; }
small { color: var(--faint); font-size: .8rem; } a { color: inherit; }
nav ol { padding-left: 1.5rem; } nav li { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem 1.5rem;
  margin: 1rem 0; font-variant-numeric: tabular-nums; } dd { margin: 0; }
dt { color: var(--faint); font-size: .8rem; } dd small { display: block; }
.meter { height: .35rem; margin: .3rem 0; background: var(--rule); border-radius: .2rem;
  overflow: hidden; max-width: 20rem; } .meter i { display: block; height: 100%;
  background: var(--draft); }
.calls { font-size: .85rem; font-variant-numeric: tabular-nums; }
.call { display: grid; grid-template-columns: 5.5rem 1fr 1fr; gap: 0 1.5rem; align-items: center;
  padding: .12rem 0; list-style: none; } summary { cursor: pointer; }
summary.call::-webkit-details-marker { display: none; }
summary.call > span:first-child { text-decoration: underline dotted var(--faint);
  text-underline-offset: .2em; } summary.call:hover { background: var(--band); }
details[open] { padding-bottom: 1rem; } details p { margin: .4rem 0; }
details pre { margin: .15rem 0 .6rem; }
.track { position: relative; height: 1rem; background: var(--band); }
.track i { position: absolute; top: .15rem; bottom: .15rem; min-width: 2px; background: var(--faint); }
i.draft { background: var(--draft); } i.critique { background: var(--critique); }
i.refine { background: var(--refine); } i.merge { background: var(--merge); }
i.evolve { background: var(--evolve); } i.learn { background: var(--learn); }
i.input { opacity: .4; } .track b { position: absolute; top: -.12rem; bottom: -.12rem;
  border-left: 2px dashed var(--limit); margin-left: -1px; }
.axes { align-items: start; } .axis > span { display: block; position: relative; height: 1.3rem; border-top: 1px solid
  var(--faint); } .axis em { position: absolute; top: .1rem; transform: translateX(-50%);
  font-style: normal; font-size: .75rem; } .axis em:first-child { transform: none; }
.axis small { display: block; text-align: center; line-height: 1.35; }
article { margin: .75rem 0; padding: .6rem .9rem; border: 1px solid var(--rule);
  border-radius: .4rem; } article.chosen { border-color: var(--draft); border-width: 2px; }
article p { margin: .35rem 0; overflow-wrap: anywhere; } .mend { font-size: .85rem; }
.depth1 { margin-left: 1rem; } .depth2 { margin-left: 2rem; } .depth3 { margin-left: 3rem; }
.depth4 { margin-left: 4rem; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem;
  font-size: .9rem; } .errors { color: var(--limit); overflow-wrap: anywhere; }
:target { outline: 2px solid var(--draft); }
"""
