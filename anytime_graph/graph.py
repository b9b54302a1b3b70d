"""The graph: a hub that folds outcomes and plans, and spokes that each make one metered call.

START -> budget -.-> draft x k | refine x k | merge x k | evolve x k | critique x k | learn x k | finish -> END
draft, refine, merge, evolve, critique, learn -> budget
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from secrets import randbits
from typing import Any, Literal, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END, START
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore
from pydantic import BaseModel

from anytime_graph.budget import Budget, Prices, as_budget, checked_parts
from anytime_graph.checkpoints import Ledger
from anytime_graph.checkpoints.memory import Memory, memory_of
from anytime_graph.metering.near_end import NearEnd, near_end_of
from anytime_graph.metering.quota import Quota, checked_quotas
from anytime_graph.models import prices_of, resolve_model
from anytime_graph.models.tokens import check_media_tokens, without_prompt
from anytime_graph.nodes.asking import prompt_of
from anytime_graph.nodes.compiled import AnytimeGraph
from anytime_graph.nodes.critique import VERDICT
from anytime_graph.nodes.hub import Hub
from anytime_graph.nodes.spoke import SPOKES, Spoke
from anytime_graph.planning.answers import AnswerFormat, answer_format
from anytime_graph.planning.moves import Strategy
from anytime_graph.planning.profiles import checked
from anytime_graph.planning.setup import (
    Drafter,
    Setup,
    Setups,
    affordable,
    bounding,
    meters,
    named_model,
)
from anytime_graph.planning.strategies import resolve as resolve_strategy
from anytime_graph.planning.tree_search import KEPT
from anytime_graph.planning.until import Until
from anytime_graph.run.announcements import Lives
from anytime_graph.run.calls import Chosen
from anytime_graph.run.context import Context
from anytime_graph.run.state import Decides, Input, Output, Payoff, State, unstopped
from anytime_graph.run.upgrade import migrated_state
from anytime_graph.scoring import Extractor, Judge, Scorer, check_signature

_USUAL: dict[str, Decides] = {
    "self_consistency": "vote",
    "adaptive": "agreement",
    "merge": "agreement",
}
"""Who decides without a scorer, where that is not the judge."""


def usual(strategy: str | Strategy) -> Decides:
    """Who decides under a strategy without a scorer."""
    return _USUAL.get(strategy, "judge") if isinstance(strategy, str) else "judge"


__all__ = ["Context", "afork", "create_anytime_graph", "fork"]


def create_anytime_graph(
    model: str | BaseChatModel | Runnable[Any, Any] | Mapping[str, Any],
    *,
    budget: Budget | None = None,
    most: Budget | None = None,
    scorer: Scorer | Judge | Literal["judge", "vote", "agreement"] | None = None,
    strategy: str | Strategy = "adaptive",
    answer: str | Extractor | type[BaseModel] | AnswerFormat = "tags",
    prices: Prices | None = None,
    media_tokens: int | None = None,
    exact_counts: bool | None = None,
    width: int = 8,
    ledger: Ledger | None = None,
    quotas: Sequence[Quota] = (),
    memory: Ledger | BaseStore | Memory | None = None,
    judge: Judge | None = None,
    until: Until | None = None,
    profile: Mapping[str, Payoff] | None = None,
    drafter: Drafter | None = None,
    on_exhausted: Literal["answer", "ask"] = "answer",
    warn_at: Sequence[float] = (),
    near_end: str | BaseChatModel | Runnable[Any, Any] | NearEnd | None = None,
) -> AnytimeGraph:
    """Turn a chat model into an anytime reasoner. Returns an uncompiled graph.

    model: a chat model, "provider:name", "local" (the embedded model) or "local:FILE.gguf"; or
        several of these by name, of which the context chooses one. The first is the default; the
        others are created when they are first chosen.
    budget: what one question may cost, unless the input or the context has a budget. Without one,
        `until` must say when a run ends; its budget starts small and is doubled step by step.
    most: the most that an input or a context may ask for at once. Default: where LangGraph's server
        runs the graph, its own budget; elsewhere no bound.
    scorer: (question, answer) -> score in [0, 1], "judge" (the model compares its own answers,
        each pair in both orders; a Judge is short for "judge" and judge=), "vote", or "agreement"
        (votes, and the judge where answers cannot agree or are tied). Default: "agreement" for the
        strategies "adaptive" and "merge"; "vote" for "self_consistency"; else "judge".
    strategy: adaptive (it decides by itself what pays), single, best_of_n, self_consistency,
        self_refine, pdp_positive, pdp, leap, merge, evolve and ab_mcts (these two need a scorer,
        ab_mcts the package treequest too), or a function from View to moves.
    answer: how answers are found in replies: "tags" (<answer> blocks are asked for), "whole",
        a function from reply to answer, or a pydantic model: then the output has the answer as
        `structured_response`, an instance of it, and replies are held to its JSON schema where the
        model's profile says that its provider can do that.
    prices: US dollars per million tokens; default: looked up by the model's name when a budget
        in USD needs them (extra `prices`).
    media_tokens: the most input tokens that an image, a document or a tool of the provider adds to
        a prompt. Not needed for text, your own tools, and images whose largest size the provider
        documents.
    exact_counts: whether the server is asked how many tokens a prompt has. That is free, and no call.
        None: llama.cpp and vLLM on this machine are; True: these anywhere, Anthropic and Google too;
        False: none. Prompts that are not counted are bounded.
    width: how many candidates and pairs the state keeps.
    ledger: the record that makes runs resumable to the last paid call; see open_checkpoints.
    quotas: what users, tenants or the like may spend in a window of time, over all runs; each must
        pay for a call. They need a ledger, in whose database their books are kept.
    memory: recalls the preference pairs of earlier questions and remembers those of this one, within
        the context's namespace: the same ledger, one of LangGraph's stores, or a Memory.
    judge: compares answers and gives reasons: another model, a rubric, or another share of the
        budget. A share that is named holds; the usual one yields where the judge chooses among
        texts, or when nothing else can be bought. If the scorer is a function, it decides; the
        judge only gives reasons, and compares where a strategy asks for it.
    drafter: lets an agent write the drafts: a function from a chat model to a Runnable that takes
        and returns {"messages": [...]}, such as `lambda model: create_agent(model, tools)`. It is
        called for each draft with a metered model, whose calls are paid from that draft's slice.
    until: when to stop before the budget is spent.
    profile: how much drafts and refinements improved answers on earlier questions; see profiles.
    on_exhausted: what happens when the budget is used up: "answer" returns the best answer; "ask"
        interrupts the graph before that, to ask a human for more, and needs a checkpointer.
    warn_at: parts of the budget, as in (0.5, 0.8); the custom stream has an event when one is used.
    near_end: a cheaper model for all calls for answers that come when four fifths of the budget are used,
        and for a last call that forces an answer; NearEnd says after which part.

    The compiled graph takes {"messages": [...], "budget": Budget(...)} and returns `messages`
    (with the answer last), `best`, `spent`, `stop_reason`, `curve` and more (see Output). A new
    user message is a new question; an input with only a budget continues the last one. Raises
    ValueError for a bad argument, and FileNotFoundError or ImportError for a model that is not there.
    The compiled graph raises BudgetTooSmall (nothing was spent), NoAnswer (all calls failed) or, with a
    ledger, ThreadBusy (another invocation runs the thread) and QuotaExceeded (a quota does not pay for a
    first call; nothing was spent).
    """
    if not isinstance(width, int) or width < 2:
        raise ValueError(f"width={width!r}: a whole number, 2 or more")
    check_media_tokens(media_tokens)
    if on_exhausted not in ("answer", "ask"):
        raise ValueError(f"on_exhausted={on_exhausted!r}: 'answer' or 'ask' is needed")
    if isinstance(scorer, str) and scorer not in ("judge", "vote", "agreement"):
        raise ValueError(f"scorer={scorer!r}: a function, 'judge', 'vote' or 'agreement'")
    if not (scorer is None or isinstance(scorer, str | Judge) or callable(scorer)):
        raise ValueError(f"scorer={scorer!r}: a function (question, answer) -> score is needed")
    if callable(scorer):
        check_signature(scorer)
    for name, given, kind, wanted in (
        ("judge", judge, Judge, "Judge(rubric=...)"),
        ("prices", prices, Prices, "Prices(input=..., output=...)"),
        ("ledger", ledger, Ledger, "the ledger= of open_checkpoints(...)"),
        ("until", until, Until, "Until(target=...)"),
        ("exact_counts", exact_counts, bool, "True, False or None"),
    ):
        if not (given is None or isinstance(given, kind)):
            raise ValueError(f"{name}={given!r:.60}: pass {wanted}")
    if budget is not None:
        budget = bounding(as_budget(budget), until)
    if most is not None:
        most = as_budget(most, "most")
    if isinstance(memory, Ledger) and memory is not ledger:
        raise ValueError("memory: a ledger remembers what it records; pass it as ledger= too")
    if not (drafter is None or callable(drafter)):
        raise ValueError(
            f"drafter={type(drafter).__name__}: a function from a chat model to a Runnable is needed, "
            "as in lambda model: create_agent(model, tools)"
        )
    if isinstance(scorer, Judge):
        if judge is not None:
            raise ValueError("judge: it is given as scorer= too; give it once")
        judge, scorer = scorer, "judge"
    if checked_quotas(quotas) and ledger is None:
        raise ValueError("quotas: their books are kept in a ledger; pass ledger= too")
    answers = answer_format(answer)
    models = dict(model) if isinstance(model, Mapping) else None
    if models is not None and not (models and all(isinstance(name, str) for name in models)):
        raise ValueError(f"model={model!r}: name at least one model, as in {{'small': ...}}")
    if models is not None and prices is not None:
        raise ValueError("prices: they cannot hold for several models; leave them to be looked up")
    late = near_end_of(near_end)
    by_judge, learned = judge or Judge(), checked(profile or {})
    schema = answers.protocol.schema
    # An agent binds its model itself.
    form = None if schema is None or drafter is not None else schema.model_json_schema()

    def setup(chosen: Chosen) -> Setup:
        rules = chosen.get("strategy", strategy)
        chat_model = resolve_model(named_model(models, model, chosen))
        by = usual(rules) if scorer is None else scorer
        decides: Decides = by if isinstance(by, str) else "scorer"
        known = prices or prices_of(chat_model)
        if until is not None:
            until.check(decides, known)
        return Setup(
            meters=meters(
                chat_model, known, by_judge, VERDICT, media_tokens, exact_counts, form, late
            ),
            prompt_of=partial(prompt_of, answers, by_judge.rubric),
            answers=answers,
            strategy=resolve_strategy(rules, decides),
            decides=decides,
            scorer=None if isinstance(by, str) else by,
            judge=by_judge,
            width=max(width, KEPT) if rules == "ab_mcts" else width,
            yields=judge is None,
            until=until,
            profile=learned,
            drafter=drafter,
            near_end_at=late.at if late else 1.0,
        )

    setups, lives = Setups(setup), Lives()
    named = strategy if isinstance(strategy, str) else getattr(strategy, "__name__", "custom")
    asks = on_exhausted == "ask"
    hub = Hub(
        setups=setups,
        lives=lives,
        budget=budget,
        most=most,
        ledger=ledger,
        quotas=quotas,
        memory=None if memory is None else memory_of(memory),
        remembers=memory is not None and memory is ledger,
        strategy=named,
        schema=schema,
        asks=asks,
        warn_at=checked_parts(warn_at),
    )
    default = setups[{}]
    for one in (budget, *(quota.budget for quota in quotas)):
        if one is not None:
            affordable(default, one)
    spoke = Spoke(setups, lives, ledger, quotas)
    graph = AnytimeGraph(State, context_schema=Context, input_schema=Input, output_schema=Output)
    graph.ledger, graph.setups = ledger, setups
    ends = ("ask", "finish") if asks else ("finish",)
    graph.add_node("budget", hub.budget_node, destinations=(*SPOKES, *ends))
    graph.add_edge(START, "budget")
    for name in SPOKES:
        graph.add_node(name, spoke)
        graph.add_edge(name, "budget")
    if asks:
        graph.add_node("ask", hub.ask, destinations=("budget", "finish"))
    graph.add_node("finish", hub.finish)
    graph.add_edge("finish", END)
    return graph


def fork(
    app: Pregel[Any, Any, Any, Any], config: RunnableConfig, budget: Budget | None = None
) -> RunnableConfig:
    """Branch off from an earlier checkpoint of a thread: `app.invoke(None, fork(app, config))`.

    app: a compiled anytime graph, which may have another strategy or model. config: that of the
    checkpoint, from `app.get_state_history(...)`. budget: for the whole branch, including what was
    spent before the checkpoint; default: the budget that the question has there. In the ledger a
    branch is its own run. Raises ValueError if no question was begun at that checkpoint.
    """
    snapshot = app.get_state(config)
    return app.update_state(snapshot.config, _branch(snapshot.values, budget), as_node="draft")


async def afork(
    app: Pregel[Any, Any, Any, Any], config: RunnableConfig, budget: Budget | None = None
) -> RunnableConfig:
    """`fork` for an async graph."""
    snapshot = await app.aget_state(config)
    values = _branch(snapshot.values, budget)
    return await app.aupdate_state(snapshot.config, values, as_node="draft")


def _branch(values: dict[str, Any], budget: Budget | None) -> State:
    values = cast("dict[str, Any]", migrated_state(values))
    if "run_id" not in values:
        raise ValueError("config: at this checkpoint no question was begun; invoke to ask one")
    limits = values["limits"] if budget is None else as_budget(budget).limits()
    return State(
        run_id=randbits(53),
        parent_run=values["run_id"],
        limits=limits,
        chosen=None,
        calibrations={r: without_prompt(c) for r, c in values["calibrations"].items()},
        **unstopped(),
    )
