"""Profiles: what drafts and refinements brought on earlier questions, as a prior for the next ones.

A profile belongs to a model and a kind of task. It maps each kind of answer ("draft", "taught draft",
"refine", "taught refine") to a Payoff: how many there were, the sums of their scores, and their cost.
It is learned from a ledger and kept in a small JSON file. A run counts it as one answer and believes
it by half, so a wrong profile is soon outgrown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal, Protocol, Self, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from anytime_graph.budget import nothing
from anytime_graph.forms import Upgrade, refuse_newer, unchanged
from anytime_graph.run.calls import kind_of, seeks_answer
from anytime_graph.run.state import Payoff, Point, add_payoffs, payoff
from anytime_graph.run.upgrade import planned_call

Profile = Mapping[str, Payoff]

UPGRADES: tuple[Upgrade, ...] = (unchanged,)
"""Of a whole file, from each version to the next; see forms.py. The first files are of version 1."""
_CURVE = 16
"""Drafts that the curve of a profile goes up to."""
_LARGEST = 1_000_000
"""The most bytes that a profile file may have."""

_Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
_Sum = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Payoff(BaseModel):
    """The numbers of a Payoff, checked: they can be sums over the same answers, with scores in [0, 1]."""

    model_config = ConfigDict(extra="forbid")
    tries: _Count
    worth: _Sum
    squares: _Sum
    change: _Sum
    changes: _Sum
    tokens: _Count
    written: _Count
    cut: _Count
    whole: _Count

    @model_validator(mode="after")
    def _agree(self) -> Self:
        n = self.tries
        in_range = all(0 <= total <= n for total in (self.worth, self.squares, self.changes))
        # A mean square is never below the squared mean: scores of .2 and .6 have .2 and .16.
        means = ((self.worth, self.squares), (self.change, self.changes))
        spread = all(squares * n >= total**2 - 1e-6 * n for total, squares in means)
        ordered = self.cut <= n and self.whole <= self.written <= self.tokens
        if not (in_range and abs(self.change) <= n and spread and ordered):
            raise ValueError(f"these numbers cannot be of the same {n} answers, scored in [0, 1]")
        return self


_Kinds = dict[Literal["draft", "taught draft", "refine", "taught refine"], _Payoff]


class _Row(BaseModel):
    """The profile of one model on one kind of task, as a file holds it."""

    model_config = ConfigDict(extra="forbid")
    model: str
    task: str
    kinds: _Kinds


class RunRecords(Protocol):
    """What a profile is learned from; see checkpoints.history.History."""

    def threads(self) -> list[dict[str, Any]]: ...
    def runs(self, thread: str) -> list[dict[str, Any]]: ...
    def answers(self, run_id: int) -> list[dict[str, Any]]: ...
    def calls(self, run_id: int) -> list[dict[str, Any]]: ...


def profile_of(
    ledger: RunRecords, model: str | None = None, threads: str = ""
) -> dict[str, Payoff]:
    """What the scored answers in a ledger came to. model: only runs of this model. threads: only threads
    whose names begin with this text, such as those of one kind of task."""
    profile: dict[str, Payoff] = {}
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
            answer = payoff(score, change, call["tokens"], call["output_tokens"], cut)
            profile[kind] = add_payoffs(profile.get(kind), answer)
    return profile


def save_profile(path: str | Path, profile: Profile, model: str, task: str = "") -> None:
    """Put a profile into a file, beside the profiles of other models and tasks. The file is replaced as a
    whole. Raises ValueError for numbers that no profile can have, or for another kind of file."""
    path = Path(path)
    rows = _rows(path) if path.exists() else []
    rows = [row for row in rows if (row["model"], row["task"]) != (model, task)]
    rows.append({"model": model, "task": task, "kinds": checked(profile)})
    whole = json.dumps({"version": len(UPGRADES), "profiles": rows}, indent=1, allow_nan=False)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(whole + "\n", encoding="utf-8")
    draft.replace(path)


def load_profile(path: str | Path, model: str, task: str = "") -> dict[str, Payoff]:
    """The profile of a model on a kind of task. Raises FileNotFoundError; KeyError if the file has no such
    profile; ValueError, which says what is wrong with the file."""
    rows = _rows(Path(path))
    for row in rows:
        if (row["model"], row["task"]) == (model, task):
            return cast("dict[str, Payoff]", row["kinds"])
    known = ", ".join(f"{row['model']!r} on {row['task']!r}" for row in rows) or "none"
    raise KeyError(f"{path}: no profile of {model!r} on {task!r}; it has {known}")


def checked(profile: Profile) -> dict[str, Payoff]:
    """The profile as it is. Raises ValueError for anything but Payoffs that can be true: counts and sums
    that are finite, in range, and agree with one another."""
    _validate(_Kinds, profile, "profile")
    return dict(profile)


def _validate(form: Any, data: Any, where: str) -> None:
    try:
        TypeAdapter(form).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        place = ", ".join(map(str, (where, *first["loc"])))
        raise ValueError(f"{place}={first['input']!r:.60}: {message}") from None


def expected_best(learned: Profile) -> tuple[list[Point], int]:
    """The best score to expect of one draft, of two and so on, against the tokens that they take; and the
    tokens of all of them. Scores of mean .4 and spread .2: the best of 2 is expected at
    .4 + .2 * .59 = .52."""
    if (drafts := learned.get("draft")) is None:
        return [], 0
    mean, tokens = drafts["worth"] / drafts["tries"], drafts["tokens"] / drafts["tries"]
    spread = math.sqrt(max(0.0, drafts["squares"] / drafts["tries"] - mean**2))
    points = []
    for n in range(1, _CURVE + 1):
        middle = NormalDist().inv_cdf((n - 0.375) / (n + 0.25))  # of the largest of n (Blom 1958)
        score = min(1.0, mean + spread * middle)
        points.append(
            Point(candidate=n, score=score, spent={**nothing(), "tokens": round(n * tokens)})
        )
    return points, round(_CURVE * tokens)


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: a file of profiles has at most {_LARGEST:,} bytes")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored["version"]
    except (ValueError, RecursionError, TypeError, LookupError):
        raise ValueError(f"{path}: a file of profiles is needed, in JSON") from None
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path}, version={version!r:.60}: a whole number, 1 or more, is needed")
    refuse_newer(str(path), version, len(UPGRADES))
    for upgrade in UPGRADES[version:]:
        stored = upgrade(stored)
    _validate(list[_Row], rows := stored.get("profiles"), f"{path}, profiles")
    return cast("list[dict[str, Any]]", rows)
