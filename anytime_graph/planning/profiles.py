"""Profiles: what drafts and refinements brought on earlier questions, as a prior for the next ones.

A profile belongs to a model and a kind of task. It maps each kind of answer ("draft", "taught draft",
"refine", "taught refine", "merge", "evolve") to a Payoff: how many there were, the sums of their scores, and their
cost.
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
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from anytime_graph.budget import nothing
from anytime_graph.run.calls import kind_of, made_from, seeks_answer
from anytime_graph.run.forms import Upgrade, refuse_newer, unchanged
from anytime_graph.run.state import Payoff, Point, add_payoffs, payoff
from anytime_graph.run.upgrade import planned_call

T = TypeVar("T")
Profile = Mapping[str, Payoff]

UPGRADES: tuple[Upgrade, ...] = (unchanged,)
"""Of a whole file, from each version to the next; see forms.py. The first files are of version 1."""
_CURVE = 16
"""Drafts that the curve of a profile goes up to."""
_LARGEST = 1_000_000
"""The most bytes that a profile file may have."""
_MOST = 10**12
"""The most tries or tokens that are believed."""


def _agreeing(payoff: Payoff) -> Payoff:
    """Its numbers can be counts, and sums over the same answers with scores in [0, 1]."""
    n, sums = payoff["tries"], [payoff[name] for name in ("worth", "squares", "changes")]
    if n < 1:
        raise ValueError("tries: 1 or more are needed; leave out what was not tried")
    # A mean square is never below the squared mean: scores of .2 and .6 have .2 and .16.
    means = ((payoff["worth"], payoff["squares"]), (payoff["change"], payoff["changes"]))
    if not (
        0 <= payoff["cut"] <= n <= _MOST
        and all(0 <= total <= n for total in (*sums, abs(payoff["change"])))
        and all(squares * n >= total**2 - 1e-6 * n for total, squares in means)
        and 0 <= payoff["whole"] <= payoff["written"] <= payoff["tokens"] <= _MOST
    ):
        raise ValueError(f"these numbers cannot be of the same {n} answers, scored in [0, 1]")
    return payoff


_Kinds = dict[
    Annotated[str, Field(pattern="^((taught )?(draft|refine)|merge|evolve)$")],
    Annotated[Payoff, AfterValidator(_agreeing)],
]


class _Row(TypedDict):
    """The profile of one model on one kind of task, as a file holds it."""

    model: str
    task: str
    kinds: _Kinds


_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_PROFILE: TypeAdapter[dict[str, Payoff]] = TypeAdapter(_Kinds, config=_STRICT)
_ROWS: TypeAdapter[list[_Row]] = TypeAdapter(list[_Row], config=_STRICT)


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
            known = [scores.get(i) for i in made_from(move)]
            if not seeks_answer(move) or call["state"] != "settled" or None in known:
                continue
            score = scores.get(call["ordinal"], 0.0)
            change = score - max(filter(None, known), default=0.0) if known else 0.0
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
    rows.append(_Row(model=model, task=task, kinds=checked(profile)))
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
            return row["kinds"]
    known = ", ".join(f"{row['model']!r} on {row['task']!r}" for row in rows) or "none"
    raise KeyError(f"{path}: no profile of {model!r} on {task!r}; it has {known}")


def checked(profile: Profile) -> dict[str, Payoff]:
    """The profile as a dict. Raises ValueError for anything but Payoffs that can be true: counts and sums
    that are finite, in range, and agree with one another."""
    data = dict(profile) if isinstance(profile, Mapping) else profile
    return _valid(_PROFILE, data, "profile")


def _valid(form: TypeAdapter[T], data: Any, where: str) -> T:
    try:
        return form.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ", ".join(map(str, (where, *first["loc"])))
        needed = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}={first['input']!r:.60}: {needed}") from None


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


def _rows(path: Path) -> list[_Row]:
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
    return _valid(_ROWS, stored.get("profiles"), f"{path}, profiles")
