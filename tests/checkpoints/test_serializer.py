"""What is made of a checkpoint that somebody else may have written, over SQLite and PostgreSQL."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import ormsgpack
import pytest
from langchain_core.messages import FunctionMessage
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, SecretStr

from anytime_graph import LedgerError, open_checkpoints
from tests.kit.ledgers import ON, sql


class Colour(Enum):
    RED = "red"


class Place(NamedTuple):
    at: int


@dataclass(frozen=True)
class Note:
    colour: Colour
    place: Place


class Plan(BaseModel):
    note: Note
    key: SecretStr


class Tags(set[str]):
    pass


class Kept(TypedDict):
    value: Any


NOTE = Note(Colour.RED, Place(1))
THEIRS = [Plan(note=NOTE, key=SecretStr("k")), NOTE, {"deep": [Tags({"a"}), deque([Decimal(1)])]}]
OWN = [FunctionMessage("a", name="f"), Path("a"), {1, 2}]


def keeping(target: str, value: Any = None) -> Any:
    """What a parent graph finds in its state, in another opening than the one that put `value` there."""
    graph = StateGraph(Kept)
    graph.add_node("idle", lambda state: None)
    graph.add_edge(START, "idle")
    graph.add_edge("idle", END)
    with open_checkpoints(target) as store:
        app = graph.compile(checkpointer=store.saver)
        if value is not None:
            app.invoke({"value": value}, ON)
        return app.get_state(ON).values["value"]


def test_a_program_finds_its_own_types_as_it_left_them(target: str) -> None:
    keeping(target, [*THEIRS, *OWN])
    assert keeping(target) == [*THEIRS, *OWN]


def hostile(module: str, name: str, given: object) -> Any:
    """An object that LangGraph's serializer makes by a call of that function, or class."""

    class Called:
        def model_dump(self) -> object:
            return given

    Called.__module__, Called.__name__ = module, name
    return {"in": [Called()]}


@pytest.mark.parametrize("module", ["os", "posix"])
def test_no_function_that_a_checkpoint_names_is_called(
    target: str, tmp_path: Path, module: str
) -> None:
    ran = tmp_path / "ran"
    assert keeping(target, hostile(module, "mkdir", {"path": str(ran)})) is not None
    assert keeping(target) == {"in": [{"path": str(ran)}]}
    assert not ran.exists()


def test_no_module_is_imported_because_a_checkpoint_names_it(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unheard.py").write_text("class Plan(dict):\n    model_dump = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"holds a 'Plan' of the module 'unheard', which is not imported; .*serde="
    with pytest.raises(LedgerError, match=said) as refused:
        keeping(target, hostile("unheard", "Plan", {"a": 1}))
    assert "unheard" not in sys.modules
    assert "@" not in str(refused.value)
    __import__("unheard")
    assert keeping(target)["in"] == [sys.modules.pop("unheard").Plan(a=1)]


def test_what_cannot_be_read_is_left_to_langgraph(database: str) -> None:
    keeping(database, {"a": 1})
    for code, data in ((1, b"\xc1"), (2, ormsgpack.packb(["os"]))):
        blob = ormsgpack.packb({"a": ormsgpack.Ext(code, data)}).hex()
        changed = f"blob = decode('{blob}', 'hex') WHERE channel = 'value' RETURNING 1"
        assert sql(database, f"UPDATE public.checkpoint_blobs SET {changed}")
        assert keeping(database) == {"a": None}
