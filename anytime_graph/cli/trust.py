"""Whether the options that a ledger remembers are this user's own.

Whoever can write a ledger could name any file of Python there, and `resume` would run it; and a client of a graph
that is served can tell options in the metadata of its run. So `solve` signs the options with a key that only this user
can read.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from anytime_graph.text import harmless

_SIGNATURE = "signature"
_KEY_BYTES = 32
_RUN = ("check", "matches", "model", "judge", "price", "memory", "namespace", "keys")
"""Options that name what is run or asked, what it costs and who pays, and whose answers the model is shown: with prices
of 0 a budget in dollars binds nothing, and a regular expression may be looked for without end."""


def signed(options: Mapping[str, Any], thread: str) -> dict[str, Any]:
    """The options with a signature, or as they are if no key can be kept."""
    key = _secret_key(make=True)
    own = {} if key is None else {_SIGNATURE: _signature(key, options, thread)}
    return {**options, **own}


def trusted(remembered: Mapping[str, Any], given: Mapping[str, Any], thread: str) -> dict[str, Any]:
    """Remembered options without their signature. Raises ValueError if somebody else may have
    written them and they name what this command does not: it has to be given again."""
    options = {name: value for name, value in remembered.items() if name != _SIGNATURE}
    key, signature = _secret_key(make=False), str(remembered.get(_SIGNATURE, ""))
    if key is None or not hmac.compare_digest(
        signature.encode(), _signature(key, options, thread).encode()
    ):
        named = {
            name: options[name] for name in _RUN if name in options and given[name] in (None, ())
        }
        if named.get("model") == "local":  # what a command without --model uses anyway
            del named["model"]
        if named:
            again = " ".join(_typed(name, value) for name, value in named.items())
            raise ValueError(
                f"thread {thread!r}: its options were not written by you on this machine; if you "
                f"trust them, give them again: {again}"
            )
    return options


def _typed(name: str, value: Any) -> str:
    """An option as it is typed."""
    if name == "memory":
        return "--memory"
    values = value if name == "keys" and isinstance(value, list) else [value]
    return " ".join(
        f"--{name.removesuffix('s') if name == 'keys' else name} {shlex.quote(harmless(str(each)))}"
        for each in values
    )


def _signature(key: bytes, options: Mapping[str, Any], thread: str) -> str:
    text = json.dumps([thread, options], sort_keys=True)
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def _secret_key(make: bool) -> bytes | None:
    """This user's key; None if there is none, or it cannot be read."""
    path = Path(click.get_app_dir("anytime-graph"), "key")
    try:
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"key.{secrets.token_hex(4)}")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            fresh.rename(path)
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None
