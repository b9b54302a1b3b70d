"""`langgraph dev`, really started on this machine, over one of the repository's own configs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.kit.server import Server
from tests.kit.waiting import PATIENCE, until


@contextmanager
def developing(folder: Path, config: Path, endpoint: Server, **env: str) -> Iterator[str]:
    """The server's address while it runs. folder: where it works, with its `log`. endpoint: which the
    models reach."""
    served: dict[str, Any] = json.loads(config.read_text())
    graphs, auth = served["graphs"], served.get("auth")
    served["graphs"] = {name: str(config.parent / path) for name, path in graphs.items()}
    if auth:
        auth["path"] = str(config.parent / auth["path"])
    (folder / "langgraph.json").write_text(json.dumps({**served, "dependencies": ["."]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "langgraph_cli", *command],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("LANG")},
                "OPENAI_API_KEY": "none",
                "OPENAI_BASE_URL": endpoint.url,
                "LANGGRAPH_CLI_NO_ANALYTICS": "1",
                "LANGSMITH_TRACING": "false",
                **env,
            },
        )

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return httpx.get(f"{url}/ok").is_success
            except httpx.TransportError:
                return False

        try:
            until(ready)
            yield url
        finally:
            process.terminate()
            process.wait(PATIENCE)
