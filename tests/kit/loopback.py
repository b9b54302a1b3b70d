"""A loopback HTTP server around a handler, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *args: Any) -> None:
        pass

    def finish(self) -> None:
        """Close both files, also if the client has left before all was written."""
        with suppress(OSError):
            self.wfile.close()
        self.rfile.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: Any) -> None:
        pass


@contextmanager
def listening(handler: type[Handler]) -> Iterator[str]:
    """Serve until the end of the block; gives the server's URL. Handlers may be called from then on."""
    http = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
