"""Performance profiles: what drafts and refinements brought on earlier questions, per model and kind
of task, as priors for the next. Learned from a ledger, kept as a small JSON file.

A profile maps a kind of answer ("draft", "taught draft", "refine", "taught refine") to its Payoff: how
many, what their scores summed up to, and what they cost. A run counts it as one answer,
and believes it but half, so a wrong one is soon outgrown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol, cast

from anytime_graph.budget import Spend, nothing
from anytime_graph.forms import Upgrade, refuse_newer, unchanged
from anytime_graph.planning.prospects import KINDS
from anytime_graph.run.calls import kind_of, seeks_answer
from anytime_graph.run.state import Payoff, Point, add_payoffs, payoff
from anytime_graph.run.upgrade import planned_call

Profile = Mapping[str, Payoff]

UPGRADES: tuple[Upgrade, ...] = (unchanged,)
"""Of a whole file, from each version to the next; see forms.py. The first files are of version 1."""
_MOST = 10**12
"""Tries or tokens above which a number is taken for junk."""
_CURVE = 16
"""Drafts that the curve of a profile goes up to."""
_LARGEST = 1_000_000
"""Bytes of a profile file, at the most."""


class RunRecords(Protocol):
    """What of a ledger a profile is learned from; see checkpoints.history.History."""

    def threads(self) -> list[dict[str, Any]]: ...
    def runs(self, thread: str) -> list[dict[str, Any]]: ...
    def answers(self, run_id: int) -> list[dict[str, Any]]: ...
    def calls(self, run_id: int) -> list[dict[str, Any]]: ...


def profile_of(
    ledger: RunRecords, model: str | None = None, threads: str = ""
) -> dict[str, Payoff]:
    """What the scored answers in a ledger came to. model: only runs of this model. threads: only those
    whose name begins so, such as those of one kind of task."""
    found: dict[str, Payoff] = {}
    names = {row["thread"] for row in ledger.threads() if row["thread"].startswith(threads)}
    for run in (run for name in sorted(names) for run in ledger.runs(name)):
        if run["decides"] != "scorer" or model not in (None, run["model"]):
            continue
        scores = {a["ordinal"]: a["score"] or 0.0 for a in ledger.answers(run["id"])}
        for call in ledger.calls(run["id"]):
            move = planned_call(call)["move"]
            of = move["of"] if move["kind"] == "refine" else None
            if not seeks_answer(move) or call["state"] != "settled" or of not in {None, *scores}:
                continue
            score = scores.get(call["ordinal"], 0.0)
            change = 0.0 if of is None else score - scores[of]
            kind, cut = kind_of(move), call["ended"] == "length"
            one = payoff(score, change, call["tokens"], call["output_tokens"], cut)
            found[kind] = add_payoffs(found.get(kind), one)
    return found


def save_profile(path: str | Path, profile: Profile, model: str, task: str = "") -> None:
    """Put a profile into a file, beside those of other models and tasks that it holds; the file is
    replaced whole. Raises ValueError for a profile, or a file, that is none."""
    path = Path(path)
    rows = _rows(path) if path.exists() else []
    rows = [row for row in rows if (row["model"], row["task"]) != (model, task)]
    rows.append({"model": model, "task": task, "kinds": checked(profile)})
    whole = json.dumps({"version": len(UPGRADES), "profiles": rows}, indent=1, allow_nan=False)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(whole + "\n", encoding="utf-8")
    draft.replace(path)


def load_profile(path: str | Path, model: str, task: str = "") -> dict[str, Payoff]:
    """The profile of a model on a kind of task. Raises FileNotFoundError, KeyError if the file has none
    of them, or ValueError naming what is wrong with the file."""
    rows = _rows(Path(path))
    for row in rows:
        if (row["model"], row["task"]) == (model, task):
            return cast("dict[str, Payoff]", row["kinds"])
    known = ", ".join(f"{row['model']!r} on {row['task']!r}" for row in rows) or "none"
    raise KeyError(f"{path}: no profile of {model!r} on {task!r}; it has {known}")


def checked(profile: Profile, where: str = "profile") -> dict[str, Payoff]:
    """The profile as it is. Raises ValueError for anything but Payoffs that can be: counts and sums
    that are finite, not negative, and agree with one another."""
    if not isinstance(profile, Mapping):
        raise ValueError(f"{where}: a mapping from {', '.join(KINDS)} to payoffs is needed")
    for kind, of in profile.items():
        if kind not in KINDS:
            raise ValueError(f"{where}: {kind!r:.60} is not one of {', '.join(KINDS)}")
        _check(of, f"{where}, {kind}")
    return dict(profile)


def _check(of: Any, where: str) -> None:
    names = Payoff.__required_keys__
    if not isinstance(of, Mapping) or of.keys() != names:
        raise ValueError(f"{where}: an object with {', '.join(sorted(names))} is needed")
    for name in ("tries", "tokens", "written", "cut", "whole"):
        value = of[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
            raise ValueError(f"{where}: {name}={value!r:.60} is no count from 0 to {_MOST:,}")
    if (tries := of["tries"]) < 1:
        raise ValueError(
            f"{where}: tries={tries}: 1 or more are needed; leave out what was not tried"
        )
    for name in ("worth", "squares", "change", "changes"):
        value = of[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (-tries if name == "change" else 0) <= value <= tries:
            raise ValueError(
                f"{where}: {name}={value!r:.60} is no sum over {tries} scores in [0, 1]"
            )
    sums = (("worth", "squares"), ("change", "changes"))
    short = any(of[squares] * tries < of[total] ** 2 - 1e-6 * tries for total, squares in sums)
    if short or of["cut"] > tries or not of["whole"] <= of["written"] <= of["tokens"]:
        raise ValueError(f"{where}: the numbers cannot be of the same {tries} answers")


def expected_best(learned: Profile) -> tuple[list[Point], int]:
    """The best score of one draft, of two and so on, against the tokens that they take."""
    if (drafts := learned.get("draft")) is None:
        return [], 0
    mean, tokens = (drafts[what] / drafts["tries"] for what in ("worth", "tokens"))
    spread = math.sqrt(max(0.0, drafts["squares"] / drafts["tries"] - mean**2))
    points = []
    for n in range(1, _CURVE + 1):
        middle = NormalDist().inv_cdf((n - 0.375) / (n + 0.25))  # of the largest of n (Blom 1958)
        score = min(1.0, mean + spread * middle)
        points.append(Point(candidate=n, score=score, spent=_tokens(round(n * tokens))))
    return points, round(_CURVE * tokens)


def _tokens(spent: int) -> Spend:
    return {**nothing(), "tokens": spent}


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: larger than {_LARGEST:,} bytes, so no file of profiles")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: no JSON, so no file of profiles") from None
    version = told.get("version") if isinstance(told, dict) else None
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path}: no file of profiles")
    refuse_newer(str(path), version, len(UPGRADES))
    for upgrade in UPGRADES[version:]:
        told = upgrade(told)
    rows = told.get("profiles")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: no file of profiles")
    for at, row in enumerate(rows):
        where = f"{path}, profile {at + 1}"
        if not isinstance(row, dict) or row.keys() != {"model", "task", "kinds"}:
            raise ValueError(f"{where}: model, task and kinds are needed")
        if not isinstance(row["model"], str) or not isinstance(row["task"], str):
            raise ValueError(f"{where}: model and task are names")
        checked(row["kinds"], where)
    return rows
