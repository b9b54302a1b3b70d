"""The serializer of checkpoints, which makes of what a checkpoint names only classes that hold data.

LangGraph's own imports whatever module a checkpoint names and calls what it names there, so that whoever may write
to the database could have any code run.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from importlib import import_module
from pathlib import PurePath
from typing import Any
from uuid import UUID

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from anytime_graph.checkpoints.schema import LedgerError

Name = tuple[str, str]
"""A module, and what a checkpoint names in it."""

_OBJECTS, _STATE = range(6), 7
"""LangGraph's codes: what is made of a name and its data, and a state of which only the data is kept."""
_DATA = (Enum, set, frozenset, deque, date, time, timedelta, Decimal, PurePath, UUID)
_TAKEN_APART = ("model_dump", "dict", "_asdict", "get_secret_value")
"""Methods by which LangGraph takes other objects apart, such as pydantic's, before it stores them."""
_TRUSTED = ("langchain_core", "langgraph", "pathlib")
"""Packages that import their modules late."""


def strict() -> bool:
    """Whether LangGraph itself makes only what the schemas of the graph name."""
    return os.getenv("LANGGRAPH_STRICT_MSGPACK", "").lower() in ("1", "true", "yes")


class DataSerializer(JsonPlusSerializer):
    """LangGraph's serializer for the database `where`. Raises LedgerError for a module that this process has not
    imported. Of what is there but holds no data, such as a function, LangGraph returns what it would be called
    with."""

    def __init__(self, where: str) -> None:
        super().__init__(allowed_msgpack_modules=None)
        self._where = where

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        named = _named(data[1]) if data[0] == "msgpack" else set()
        for module, name in named:
            if module not in sys.modules and module.partition(".")[0] not in _TRUSTED:
                raise LedgerError(
                    f"{self._where}: a checkpoint holds a {name!r} of the module {module!r}, which is not imported; "
                    "import it if you trust whoever wrote this, or open it with "
                    f"serde=JsonPlusSerializer(allowed_msgpack_modules=[({module!r}, {name!r})])"
                )
        return _making(frozenset(named)).loads_typed(data)


@lru_cache(maxsize=256)
def _making(named: frozenset[Name]) -> JsonPlusSerializer:
    """LangGraph's serializer for data with these names."""
    return JsonPlusSerializer(
        allowed_msgpack_modules=[name for name in named if _holds_data(*name)]
    )


def _holds_data(module: str, name: str) -> bool:
    """Whether this is a class of objects that LangGraph's serializer takes apart as it stores them."""
    try:
        kind = vars(import_module(module)).get(name)
    except ImportError:
        return False
    return isinstance(kind, type) and (
        issubclass(kind, _DATA)
        or is_dataclass(kind)
        or any(callable(getattr(kind, method, None)) for method in _TAKEN_APART)
    )


def _named(packed: bytes) -> set[Name]:
    """All that a value names, at any depth."""
    found: set[Name] = set()

    def note(code: int, data: bytes) -> None:
        if code in _OBJECTS or code == _STATE:
            with suppress(ValueError, RecursionError):  # LangGraph makes nothing of it either
                match unpacked(data):
                    case [str() as module, str() as name, *_] if code != _STATE:
                        found.add((module, name))

    def unpacked(data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=note, option=ormsgpack.OPT_NON_STR_KEYS)

    with suppress(ValueError):  # LangGraph says what is wrong with it
        unpacked(packed)
    return found
