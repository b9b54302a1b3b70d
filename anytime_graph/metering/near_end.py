"""A cheaper model for the end of a budget: for what is left after a part of it, or for the last call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from anytime_graph.budget import Prices, is_part


@dataclass(frozen=True)
class NearEnd:
    """model: a chat model or its name. at: it makes all calls for answers once this part of the budget is used,
    and the last call in any case; 1: the last call alone. prices: US dollars per million tokens;
    default: looked up by the model's name. Raises ValueError unless `at` is above 0 and at most 1."""

    model: str | BaseChatModel | Any
    at: float = 0.8
    prices: Prices | None = None

    def __post_init__(self) -> None:
        if not is_part(self.at):
            raise ValueError(f"near_end at={self.at!r}: a part of the budget is needed, as in 0.8")
        if not isinstance(self.model, str | Runnable):
            raise ValueError(
                f"near_end={self.model!r:.60}: a chat model, its name, or NearEnd(model, at) is needed"
            )
        if self.prices is not None and not isinstance(self.prices, Prices):
            raise ValueError(
                f"near_end prices={self.prices!r}: Prices(input=..., output=...) are needed"
            )


def near_end_of(given: Any) -> NearEnd | None:
    """What a user gives as near_end=: that, or a model alone."""
    return given if given is None or isinstance(given, NearEnd) else NearEnd(given)
