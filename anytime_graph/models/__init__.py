"""Which model, how its provider behaves, how many tokens."""

from anytime_graph.models.resolve import default_model, prices_of, resolve_model

__all__ = ["default_model", "prices_of", "resolve_model"]
