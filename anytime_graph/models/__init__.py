"""Which model, how its provider behaves, how many tokens."""

from anytime_graph.models.resolve import prices_of, resolve_model

__all__ = ["prices_of", "resolve_model"]
