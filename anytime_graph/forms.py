"""The forms of what is stored. What an earlier version wrote is brought into today's form when it is
read; what a later version wrote is refused before anything is spent or changed.

Whatever is stored says which form it has, as a number. To change a form, append an upgrade from the
form before to its tuple, and the number follows: STATE, TASK, OUTCOME and FINAL here for checkpoints,
PLANNED and REPLY in checkpoints/records.py for the ledger's JSON (its columns: checkpoints/schema.py),
and UPGRADES in profiles.py, middleware.py, checkpoints/preferences.py and benchmark/recording.py.

A channel of the state that gets another name keeps its old one in StoredState: LangGraph hands the hub
no channel that is declared nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from anytime_graph.state import Payoff, State, Task, fresh

Stored = dict[str, Any]
Upgrade = Callable[[Stored], Stored]
KEY = "form"
"""Where a mapping that is stored says which form it has."""
CHANNEL = "anytime_form"
"""Where a state does; a parent graph may have channels of its own in the same checkpoints."""


class NewerForm(ValueError):
    """A later version of anytime-graph wrote this. Nothing was spent or changed."""


class StoredState(State, total=False):
    """The state as the hub reads it: today's channels, and those of earlier forms."""


def refuse_newer(what: str, form: Any, known: int) -> None:
    """Raises NewerForm for what this version cannot read. what: with its place, as a file's name."""
    if not isinstance(form, int) or form > known:
        raise NewerForm(
            f"{what}: it has form {form}, this anytime-graph knows {known}; upgrade anytime-graph to "
            "open it"
        )


def upgraded(stored: Mapping[str, Any], upgrades: Sequence[Upgrade], what: str) -> Stored:
    """A mapping in today's form, which is the number of upgrades. Without a KEY it has form 0. Raises
    NewerForm."""
    form = stored.get(KEY, 0)
    refuse_newer(what, form, len(upgrades))
    now = dict(stored)
    for upgrade in upgrades[form:]:
        now = upgrade(now)
    return {**now, KEY: len(upgrades)}


# --- what graphs keep in checkpoints


def migrated(state: Mapping[str, Any]) -> State:
    """The state in today's form, with the replies that came in while it stood. Raises NewerForm."""
    form, thread = state.get(CHANNEL, 0), state.get("thread", "")
    refuse_newer(f"the state of thread {thread!r}", form, len(STATE))
    now = dict(state)
    if "question_id" in state:  # else no question was begun
        for upgrade in STATE[form:]:
            now = upgrade(now)
    if now.get("returned"):
        now["returned"] = [upgraded(each, OUTCOME, "a reply") for each in now["returned"]]
    return cast(State, {**now, CHANNEL: len(STATE)})


def changes(state: Mapping[str, Any], now: Mapping[str, Any]) -> State:
    """What `migrated` changed of a state, to be written with the next step."""
    return cast(State, {k: v for k, v in now.items() if k not in state or state[k] is not v})


def migrated_task(task: Mapping[str, Any]) -> Task:
    """A planned call, which a killed run left in its checkpoint, in today's form. Raises NewerForm."""
    return cast(Task, upgraded(task, TASK, f"the plan of call {task.get('ordinal')}"))


def migrated_final(state: Mapping[str, Any]) -> State:
    """What the finish was handed, in today's form. Raises NewerForm."""
    return cast(State, upgraded(state, FINAL, "the end of a run"))


# --- the upgrades from form 0, of versions that did not say which form they wrote


def _with_all_channels(state: Stored) -> Stored:
    """Channels came one by one. What is not known of earlier replies counts as not tried."""
    none = fresh(state["question_id"], {}, state.get("run_id", 0), "", state["limits"])
    filled = {**none, "chosen": None, **state}
    filled["judging"] = {**none["judging"], **filled["judging"]}
    whole = Payoff.__required_keys__
    filled["payoffs"] = {k: p for k, p in filled["payoffs"].items() if p.keys() == whole}
    return filled


def _with_all_of_a_call(task: Stored) -> Stored:
    return {"chosen": {}, **with_all_of_a_move(task)}


def with_all_of_a_move(planned: Stored) -> Stored:
    """A move says whether its prompt showed pairs."""
    move = planned["move"]
    if move["kind"] in ("draft", "refine"):
        move = {"taught": False, **move}
    return {**planned, "move": move}


def unchanged(stored: Stored) -> Stored:
    """From what had no form to the form that says so."""
    return stored


STATE: tuple[Upgrade, ...] = (_with_all_channels,)
TASK: tuple[Upgrade, ...] = (_with_all_of_a_call,)
OUTCOME: tuple[Upgrade, ...] = (with_all_of_a_move,)
FINAL: tuple[Upgrade, ...] = (unchanged,)
