"""Reads the questions of a task from a file of the user, or from the Hugging Face Hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from anytime_graph.text import decoded, lines_of

KINDS = ".jsonl, .csv or .parquet"


def records(path: str | Path) -> Sequence[dict[str, Any]]:
    """The rows of a JSON Lines, CSV or Parquet file. Parquet needs `pyarrow`.

    Raises ValueError if the file does not exist, has another format, is empty, or is malformed. The
    error names the file and the line, never their content.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file; a {KINDS} file is needed")
    kind = file.suffix.lower()
    if kind == ".jsonl":
        rows = [_row(file, at, line) for at, line in enumerate(lines_of(file), 1) if line.strip()]
    elif kind == ".csv":
        rows = list(csv.DictReader(StringIO(decoded(file), newline="")))
    elif kind == ".parquet":
        rows = import_module("pyarrow.parquet").read_table(file).to_pylist()
    else:
        raise ValueError(f"{path}: a {KINDS} file is needed")
    if not rows:
        raise ValueError(f"{path}: the file holds no rows")
    return rows


def from_hub(task: str, name: str, config: str | None) -> Sequence[dict[str, Any]]:
    """The rows of a data set on the Hugging Face Hub, through the package `datasets`, with the user's
    token and its own cache. Raises ImportError without `datasets`, and ConnectionError if the Hub
    does not deliver."""
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise ImportError(
            f"{task}: pip install datasets to load it from the Hub, or give a file: {task}:FILE"
        ) from None
    try:
        return list(datasets.load_dataset(name, config, split="train"))
    except Exception as error:  # the Hub's client raises many kinds of errors
        raise ConnectionError(
            f"{task}: {name} could not be loaded from the Hub ({type(error).__name__}). If it is "
            f"gated, accept its terms there and set HF_TOKEN; or give a file: {task}:FILE"
        ) from None


def _row(file: Path, at: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{file}, line {at}: a JSON object is needed")
    return row
