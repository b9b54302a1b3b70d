"""What a graph was built with, made ready once for each model and strategy that the context chooses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage
from langchain_core.runnables import Runnable

from anytime_graph.budget import TOOL_CALLS, Budget, Prices, used
from anytime_graph.metering.meter import Meter, meter, with_json_schema, without_tools
from anytime_graph.metering.near_end import NearEnd
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.models.tokens import Tokenizer
from anytime_graph.planning.answers import AnswerFormat
from anytime_graph.planning.moves import Strategy
from anytime_graph.planning.until import Until
from anytime_graph.prompts import Lessons
from anytime_graph.run.calls import (
    JUDGE,
    NEAR_END,
    OWN,
    REVIEW,
    STRUCTURED,
    Chosen,
    PlannedMove,
    Role,
    concluded,
    judges,
)
from anytime_graph.run.state import Decides, Payoff, State
from anytime_graph.scoring import Judge, Scorer
from anytime_graph.text import meant

Drafter = Callable[[BaseChatModel], Runnable[Any, Any]]
"""From a metered chat model to an agent that drafts with it. The agent gets {"messages": [...]}. It
returns the draft as a text, as a message, or as the last of {"messages": [...]}."""

PromptOf = Callable[[State, PlannedMove, Lessons, float, int | None, bool], list[AnyMessage]]
"""Builds the prompt of a move. Its arguments after state and move: lessons, the preference pairs to show;
detail, how much of the optional material it shows, in [0, 1]; max_output, what it says of the room for a
reply; structured, whether the reply is held to a JSON schema."""


@dataclass(frozen=True)
class Setup:
    """What a graph was built with, for one choice of the context.

    meters: by role; see run.calls. width: how many candidates and pairs the state keeps. yields: whether
    the judge may exceed its share when nothing else can be bought. profile: what drafts and refinements
    brought on earlier questions. drafter: makes the agent that drafts, if one does. near_end_at: the part
    of the budget after which another model answers.
    """

    meters: Mapping[str, Meter]
    prompt_of: PromptOf
    answers: AnswerFormat
    strategy: Strategy
    decides: Decides
    scorer: Scorer | None
    judge: Judge
    width: int
    yields: bool = False
    profile: Mapping[str, Payoff] = field(default_factory=dict)
    until: Until | None = None
    drafter: Drafter | None = None
    near_end_at: float = 1.0

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        return {role: ready.tokenizer for role, ready in self.meters.items()}

    def role(self, move: PlannedMove, state: State) -> Role:
        """Which meter a call goes through."""
        if not judges(move):
            if move["kind"] == "critique":
                return REVIEW if REVIEW in self.meters else OWN
            return self.answering(state, last=concluded(move) is not None)
        held = move["kind"] == "critique" and "among" not in move and STRUCTURED in self.meters
        return STRUCTURED if held and not state["unstructured"] else JUDGE

    def answering(self, state: State, last: bool = False) -> Role:
        """Which meter the calls for answers go through now. last: the call that forces one."""
        late = last or used(state["limits"], state["spent"]) >= self.near_end_at
        return NEAR_END if late and NEAR_END in self.meters else OWN


class Setups:
    """The setups of one graph. Each is made when its model and strategy are first chosen."""

    def __init__(self, make: Callable[[Chosen], Setup]) -> None:
        self._make = make
        self._made: dict[tuple[str | None, str | None], Setup] = {}
        self._making = threading.Lock()

    def __getitem__(self, chosen: Chosen) -> Setup:
        """The setup for a choice. To make one may take long: it may load a model."""
        with self._making:
            if (key := _key(chosen)) not in self._made:
                self._made[key] = self._make(chosen)
            return self._made[key]

    async def get(self, chosen: Chosen) -> Setup:
        """The same without blocking the event loop."""
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
    media_tokens: int | None,
    exact_counts: bool | None,
    form: Mapping[str, Any] | None,
    near_end: NearEnd | None,
) -> dict[str, Meter]:
    """The meters of a graph, by role. schema, form: of verdicts and of answers, for a provider that can
    hold replies to one. Where answers are held to theirs, reviews go to the model as it is."""
    bounds = (media_tokens, exact_counts)
    judging = without_tools(model)

    def answering(model: Any) -> Any:
        """The model whose answers are held to their form. Providers hold replies to objects only."""
        held = None
        if form is not None and form.get("type") == "object":
            held = with_json_schema(model, form)
        return model if held is None else held

    answers = answering(model)
    own = meter(answers, prices, *bounds)
    by_role: dict[str, Meter] = {OWN: own, JUDGE: own}
    if judging is not model or answers is not model:
        by_role[REVIEW] = by_role[JUDGE] = meter(judging, prices, *bounds)
    if near_end is not None:
        late = resolve_model(near_end.model)
        by_role[NEAR_END] = meter(answering(late), near_end.prices or prices_of(late), *bounds)
    if judge.model is not None:
        judging = resolve_model(judge.model)
        by_role[JUDGE] = meter(judging, judge.prices or prices_of(judging), *bounds)
    if (held := with_json_schema(judging, schema)) is not None:
        by_role[STRUCTURED] = meter(held, by_role[JUDGE].prices, *bounds)
    return by_role


def named_model(models: Mapping[str, Any] | None, model: Any, chosen: Chosen) -> Any:
    """The model that the context chose. A name that the context brings is only looked up among the
    graph's own models. Raises ValueError for another name."""
    name = chosen.get("model")
    if models is None:
        if name is not None:
            raise ValueError(
                f"context model={name!r}: this graph has one model; build it with "
                "model={'name': ..., ...} to let the context choose"
            )
        return model
    name = next(iter(models)) if name is None else name
    if name not in models:
        raise ValueError(
            f"context model={name!r}: {meant(name, models)}one of {', '.join(models)} is needed"
        )
    return models[name]


def bounding(budget: Budget, until: Until | None) -> Budget:
    """The budget. Raises ValueError if it bounds no call of a model, and no rule ends the run."""
    if until is None and budget.limits().keys() == {TOOL_CALLS}:
        raise ValueError(
            f"budget {budget}: it bounds no call of the model; add another dimension, as in "
            f"Budget(tokens=8_000, {budget}), or say with until=Until(...) when to stop"
        )
    return budget


def affordable(setup: Setup, budget: Budget) -> Budget:
    """The budget. Raises ValueError if it is in USD and the prices of a model are not known, or in tool
    calls and a provider carries out tools itself."""
    for each in setup.meters.values():
        if budget.usd is not None:
            each.check_price(f"budget usd={budget.usd}")
        if budget.tool_calls is not None:
            each.check_tools(f"budget tool_calls={budget.tool_calls}")
    return budget
