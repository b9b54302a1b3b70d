"""Chat models: finding one by name, how its provider behaves, and how many tokens a text is."""

from anytime_graph.models.resolve import default_model, prices_of, resolve_model

__all__ = ["default_model", "prices_of", "resolve_model"]
