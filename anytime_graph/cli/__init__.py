"""The command line, `anytime-graph`."""

from anytime_graph.cli.main import main

__all__ = ["main"]
