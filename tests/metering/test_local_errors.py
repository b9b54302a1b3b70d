"""A call that fails on this side, before its request has left, costs nothing and is no call. A server that
counts what it serves is what the books are held against."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from anytime_graph import Budget, NoAnswer, create_anytime_graph
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering.account import Account
from anytime_graph.metering.metered import AgentPayer, paid_by
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import both, torture
from tests.kit.providers import CAP, PROVIDERS, Provider, speaking
from tests.kit.server import Reply, Server, by_place, serving

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)
BUDGET = Budget(tokens=50_000)
ASKED: Any = {"messages": [("user", "Why do rivers bend?")]}
PLACES = ("callback", "limiter", "payload", "hook", "auth", "token")
"""Where a call may fail on this side, in this order: "token" once the reply has begun to come."""


class Strict(BaseModel):
    figure: int


def invalid() -> None:
    Strict.model_validate({"figure": "no figure"})


def failing(kind: str) -> None:
    if kind == "validation":
        invalid()
    raise {"type": TypeError, "key": KeyError}[kind](kind)


KINDS = ("validation", "type", "key")


@dataclass
class Faults:
    """What goes wrong on this side: by place, whether it does in the next call. failed: how often it did."""

    goes_wrong: Callable[[str], bool] = lambda place: False
    kinds: Iterator[str] = field(default_factory=lambda: iter(lambda: "key", None))
    failed: int = 0

    def pass_(self, place: str) -> None:
        if self.goes_wrong(place):
            self.failed += 1
            failing(next(self.kinds))


class Callback(BaseCallbackHandler):
    raise_error = True

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.faults.pass_("callback")

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        if token:
            self.faults.pass_("token")


class Limiter(BaseRateLimiter):
    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def acquire(self, *, blocking: bool = True) -> bool:
        self.faults.pass_("limiter")
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


class Model(ChatOpenAI):
    faults: Any = None

    def _get_request_payload(self, *args: Any, **kwargs: Any) -> Any:
        self.faults.pass_("payload")
        return super()._get_request_payload(*args, **kwargs)


def model(server: Server, faults: Faults) -> Model:
    def hook(request: Any) -> None:
        faults.pass_("hook")

    async def ahook(request: Any) -> None:
        faults.pass_("hook")

    def auth(request: Any) -> Any:
        faults.pass_("auth")
        return request

    http, ahttp = openai.DefaultHttpxClient, openai.DefaultAsyncHttpxClient
    return Model(
        model="scripted",
        base_url=server.url,
        api_key="none",  # type: ignore[arg-type]
        n=1,
        seed=0,
        faults=faults,
        rate_limiter=Limiter(faults),
        callbacks=[Callback(faults)],
        http_client=http(auth=auth, event_hooks={"request": [hook]}),
        http_async_client=ahttp(auth=auth, event_hooks={"request": [ahook]}),
    )


@tool
def depth(river: str) -> str:
    """How deep a river is."""
    return "4 m"


def by_graph(served: Model, budget: Budget, sync: bool) -> Any:
    graph = create_anytime_graph(served, budget=budget, strategy="best_of_n", exact_counts=False)
    app = graph.compile()
    try:
        return (app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED)))["spent"]
    except NoAnswer as error:
        return error.spent


def by_chat(served: Model, budget: Budget, sync: bool) -> Any:
    chat = ChatAnytime(model=served, budget=budget)
    asked: Any = ASKED["messages"]
    try:
        reply = chat.invoke(asked) if sync else asyncio.run(chat.ainvoke(asked))
    except NoAnswer as error:
        return error.spent
    return reply.response_metadata["anytime"]["spent"]


def by_agent(served: Model, budget: Budget, sync: bool) -> Any:
    """Its middleware asks again a few times. None if it ends without a word, in the error itself."""
    again = ModelRetryMiddleware(max_retries=2, on_failure="continue", initial_delay=0.0)
    app = create_agent(served, [depth], middleware=[TokenBudgetMiddleware(budget), again])
    try:
        return (app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED)))["spent"]
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, openai.APIStatusError):
        return None


def by_payer(served: Model, budget: Budget, sync: bool) -> Any:
    """As the model of a tool, again and again."""
    account = Account(budget.limits())
    paid = paid_by(AgentPayer(account, "tool"), served, None)
    for _ in range(6):
        with suppress(Exception):
            paid.invoke("Why?") if sync else asyncio.run(paid.ainvoke("Why?"))
    return account.spent


DOORS = {"graph": by_graph, "chat": by_chat, "agent": by_agent, "payer": by_payer}


def books(door: str, server: Server, faults: Faults, budget: Budget, sync: bool) -> Any:
    return DOORS[door](model(server, faults), budget, sync)


@both
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("place", PLACES[:-1])
def test_a_call_that_always_fails_before_its_request_leaves_costs_nothing_and_is_tried_a_few_times(
    place: str, door: str, sync: bool
) -> None:
    faults = Faults(goes_wrong=lambda here: here == place)
    with serving() as server:
        spent = books(door, server, faults, BUDGET, sync)
        assert server.calls == []
    assert spent is None or (spent["tokens"], spent["calls"], spent["usd"]) == (0, 0, 0.0)
    assert 1 <= faults.failed <= 12


@both
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("seed", range(torture or 5))
def test_the_books_are_what_the_server_bills_whatever_fails_on_this_side_and_when(
    seed: int, door: str, sync: bool
) -> None:
    dice = random.Random(seed)
    chance, refused = dice.uniform(0, 0.4), dice.uniform(0, 0.3)
    kinds = iter(lambda: dice.choice(KINDS), None)
    faults = Faults(lambda place: place != "token" and dice.random() < chance, kinds)

    def script(request: dict[str, Any], i: int) -> Reply:
        if dice.random() < refused:
            return Reply(error=dice.choice([400, 422]), says="no such thing")
        more = request.get("tools") and dice.random() < 0.5
        tools: Any = [("depth", {"river": "Rhine"})] if more else []
        return replace(by_place(request, i), tools=tools)

    with serving() as server:
        server.script = script
        spent = books(door, server, faults, Budget(tokens=3_000), sync)
        server.settled()
    billed = sum(not call.refused for call in server.calls)
    told = spent or {"tokens": server.served, "calls": billed}
    assert (told["tokens"], told["calls"]) == (server.served, billed)


@both
def test_a_call_that_fails_on_this_side_once_its_reply_has_begun_is_paid_for(sync: bool) -> None:
    with serving() as server:
        server.script = lambda request, i: Reply(text="word " * 30)
        spent = by_payer(model(server, Faults(lambda here: here == "token")), BUDGET, sync)
        server.settled()
    assert spent["calls"] == len(server.calls)
    assert spent["tokens"] >= server.served > 0


@both
@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_no_client_is_charged_for_what_a_callback_of_the_users_ends(
    provider: Provider, sync: bool
) -> None:
    with speaking() as wire:
        wire.provider = provider
        failing_first = Callback(Faults(lambda here: here == "callback"))
        served = provider.model(wire.url).with_config(callbacks=[failing_first])
        with pytest.raises(NoAnswer) as raised:
            wire.ask(served, sync)
    assert (wire.requests, raised.value.spent["tokens"]) == ([], 0)
    assert raised.value.spent["calls"] == 0
    assert "KeyError" in str(raised.value)


@both
def test_an_option_that_the_client_does_not_know_costs_nothing_and_is_named(sync: bool) -> None:
    with serving() as server:
        served = server.model().bind(frobnicate=1)
        app = create_anytime_graph(served, budget=BUDGET, exact_counts=False).compile()
        with pytest.raises(NoAnswer, match="frobnicate") as raised:
            app.invoke(ASKED) if sync else asyncio.run(app.ainvoke(ASKED))
    assert server.calls == []
    assert raised.value.spent["calls"] == raised.value.spent["tokens"] == 0


class Elsewhere(ChatOpenAI):
    """Sends what its client would by a way of its own."""

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        ChatOpenAI(model="m", base_url=self.openai_api_base, api_key="none").invoke(messages)  # type: ignore[arg-type]
        raise KeyError


class Silent(httpx2.HTTPTransport):
    """Tells nothing of its connections."""

    def handle_request(self, request: Any) -> Any:
        own = httpx2.Request(
            request.method, request.url, headers=request.headers, stream=request.stream
        )
        super().handle_request(own).close()
        raise KeyError


@pytest.mark.parametrize("kind", ["model", "transport"])
def test_what_may_have_been_sent_unseen_is_paid_for(kind: str) -> None:
    with serving() as server:
        options: Any = {"model": "m", "base_url": server.url, "api_key": "none"}
        served = Elsewhere(**options)
        if kind == "transport":
            served = ChatOpenAI(**options, http_client=httpx2.Client(transport=Silent()))
        account = Account(BUDGET.limits())
        with pytest.raises(KeyError):
            paid_by(AgentPayer(account, "tool"), served, None).invoke("Why?")
        server.settled()
    assert account.spent["calls"] == len(server.calls) == 1
    assert account.spent["tokens"] >= server.served


class Forbidden(Exception):
    status_code = 403


def unreached() -> None:
    httpx2.get("http://127.0.0.1:9/")


def forbidden() -> None:
    raise Forbidden


class Sidecar(BaseCallbackHandler):
    """Sends what it hears to a server of its own, which does not take it."""

    raise_error = True

    def __init__(self, sends: Callable[[], None]) -> None:
        self.sends = sends

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.sends()


@both
@pytest.mark.parametrize("sends", [unreached, forbidden])
@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_what_a_callback_hears_from_a_server_of_its_own_is_no_refusal_of_the_models(
    provider: Provider, sends: Callable[[], None], sync: bool
) -> None:
    with speaking() as wire:
        wire.provider = provider
        served = provider.model(wire.url).with_config(callbacks=[Sidecar(sends)])
        with pytest.raises(NoAnswer) as raised:
            wire.ask(served, sync)
    assert (len(wire.requests), raised.value.spent["calls"]) == (1, 1)
    assert raised.value.spent["output_tokens"] == CAP


@both
@pytest.mark.parametrize("sends", [unreached, forbidden])
def test_nor_is_what_a_hook_hears_once_the_server_has_begun_its_reply(
    sends: Callable[[], None], sync: bool
) -> None:
    def hook(response: Any) -> None:
        sends()

    async def ahook(response: Any) -> None:
        sends()

    with serving() as server:
        served = server.model(
            http_client=httpx2.Client(event_hooks={"response": [hook]}),
            http_async_client=httpx2.AsyncClient(event_hooks={"response": [ahook]}),
        )
        account = Account(BUDGET.limits())
        paid = paid_by(AgentPayer(account, "tool"), served, None)
        with suppress(Exception):
            paid.invoke("Why?") if sync else asyncio.run(paid.ainvoke("Why?"))
        server.settled()
    assert account.spent["calls"] == len(server.calls) == 1
    assert account.spent["tokens"] >= server.served > 0


def test_a_refusal_costs_nothing_though_a_callback_hides_it() -> None:
    class Hiding(BaseCallbackHandler):
        raise_error = True

        def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
            unreached()

    with serving() as server:
        server.script = lambda request, i: Reply(error=400, says="no such thing")
        account = Account(BUDGET.limits())
        paid = paid_by(AgentPayer(account, "tool"), server.model(callbacks=[Hiding()]), None)
        with pytest.raises(httpx2.ConnectError):
            paid.invoke("Why?")
        server.script = lambda request, i: Reply(error=500)
        with pytest.raises(httpx2.ConnectError):
            paid.invoke("Why?")
    assert (len(server.calls), account.spent["calls"]) == (2, 1)
