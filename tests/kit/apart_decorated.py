"""Functions in processes of their own by decorators, alone and among others."""

from __future__ import annotations

import os

from langchain_core.tools import tool

from anytime_graph import in_process
from tests.kit.apart import loud


@in_process
@loud
def shouted(text: str) -> str:
    return text


@loud
@in_process
def loudly(text: str) -> str:
    return text


@in_process
@tool
def twice(n: int) -> str:
    """Double a number."""
    return f"{n + n} in {os.getpid()}"
