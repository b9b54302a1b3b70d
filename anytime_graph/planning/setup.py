"""What a graph was built with, made ready once for each choice of the context."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage
from langchain_core.runnables import Runnable

from anytime_graph.budget import Budget, Prices
from anytime_graph.metering.meter import Meter, meter, with_json_schema, without_tools
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.models.tokens import Tokenizer
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.planning.moves import Strategy
from anytime_graph.planning.until import Until
from anytime_graph.run.calls import (
    OWN,
    PLAIN,
    REVIEW,
    STRUCTURED,
    Chosen,
    PlannedMove,
    Role,
    judges,
)
from anytime_graph.run.state import Decides, Payoff, State
from anytime_graph.scoring import Judge, Scorer

Drafter = Callable[[BaseChatModel], Runnable[Any, Any]]
"""From a metered chat model to what drafts with it. That is given {"messages": [...]} and returns
the like, whose last message is the draft, or a message, or a text."""


class Ask(Protocol):
    """Builds the prompt of a move: detail, in [0, 1], is how much of the optional material it shows;
    max_output what it says of the room for a reply; allowance the input tokens that preference
    pairs may take; structured whether the reply is held to a JSON schema."""

    def __call__(
        self,
        state: State,
        move: PlannedMove,
        detail: float,
        max_output: int | None = None,
        allowance: int | None = None,
        structured: bool = False,
    ) -> list[AnyMessage]: ...


@dataclass(frozen=True)
class Setup:
    """meters: by role; see run.calls. ask: builds the prompts. drafter: makes the agent that drafts,
    if one does. profile: what drafts and refinements brought on earlier questions."""

    meters: Mapping[str, Meter]
    ask: Ask
    answers: AnswerFormat
    strategy: Strategy
    decides: Decides
    scorer: Scorer | None
    judge: Judge
    width: int
    profile: Mapping[str, Payoff] = field(default_factory=dict)
    until: Until | None = None
    drafter: Drafter | None = None

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        return {role: ready.tokenizer for role, ready in self.meters.items()}

    def role(self, move: PlannedMove, state: State) -> Role:
        """Which meter a call goes through."""
        if not judges(move):
            return REVIEW if move["kind"] == "critique" and REVIEW in self.meters else OWN
        held = move["kind"] == "critique" and STRUCTURED in self.meters
        return STRUCTURED if held and not state["unstructured"] else PLAIN


class Setups:
    """The setups of one graph: one for each choice of the context, made when it is first needed."""

    def __init__(self, make: Callable[[Chosen], Setup]) -> None:
        self._make = make
        self._made: dict[tuple[str | None, str | None], Setup] = {}
        self._making = threading.Lock()

    def __getitem__(self, chosen: Chosen) -> Setup:
        """May load a model."""
        with self._making:
            if (key := _key(chosen)) not in self._made:
                self._made[key] = self._make(chosen)
            return self._made[key]

    async def get(self, chosen: Chosen) -> Setup:
        """The same, off the event loop if it is to be made."""
        if (made := self._made.get(_key(chosen))) is not None:
            return made
        return await asyncio.to_thread(self.__getitem__, chosen)


def _key(chosen: Chosen) -> tuple[str | None, str | None]:
    return chosen.get("model"), chosen.get("strategy")


def meters(
    model: BaseChatModel | Any,
    prices: Prices | None,
    judge: Judge,
    schema: Mapping[str, Any],
    media_tokens: int | None = None,
) -> dict[str, Meter]:
    """The meters of a graph, by role. schema: what verdicts are held to, where a provider can."""
    own = meter(model, prices, media_tokens)
    judging = without_tools(model)
    bare = its_own = own if judging is model else meter(judging, prices, media_tokens)
    if judge.model is not None:
        judging = resolve_model(judge.model)
        its_own = meter(judging, judge.prices or prices_of(judging), media_tokens)
    found: dict[str, Meter] = {OWN: own, PLAIN: its_own}
    if bare is not own:
        found[REVIEW] = bare
    if (held := with_json_schema(judging, schema)) is not None:
        found[STRUCTURED] = meter(held, its_own.prices, media_tokens)
    return found


def named_model(models: Mapping[str, Any] | None, model: Any, chosen: Chosen) -> Any:
    """The model that was chosen, of those there are: no name is resolved that the context brings.
    Raises ValueError for one that the graph does not have."""
    name = chosen.get("model")
    if models is None and name is not None:
        raise ValueError(
            f"context model={name!r}: this graph has one model; build it with "
            "model={'name': ..., ...} to let the context choose"
        )
    if models is not None:
        name = next(iter(models)) if name is None else name
        if name not in models:
            raise ValueError(f"context model={name!r}: one of {', '.join(models)}")
        return models[name]
    return model


def affordable(setup: Setup, budget: Budget) -> Budget:
    """Raises ValueError for a budget in USD if the prices are not known."""
    unpriced = next((m.name for m in setup.meters.values() if m.prices is None), None)
    if budget.usd is not None and unpriced:
        raise ValueError(
            f"budget usd={budget.usd}: the price of {unpriced!r} is not known; pass "
            "prices=Prices(input=..., output=...) in dollars per million tokens, or install "
            "anytime-graph[prices]"
        )
    return budget
