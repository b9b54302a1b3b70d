"""The command `anytime-graph`, outside the package, whose import takes a second: Ctrl-C ends it silently,
then too."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # nothing is lost yet, and no import is left half done
        signal.signal(signal.SIGINT, _end)
    from anytime_graph.cli import main as command

    signal.signal(signal.SIGINT, before)
    command(prog_name="anytime-graph")


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
