"""P1, P5: the gate holds every call to its reservation and books what the provider bills."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import Budget, NoAnswer, create_anytime_graph, open_checkpoints
from anytime_graph.chat import ChatAnytime
from anytime_graph.metering.bill import bill
from anytime_graph.metering.meter import meter as meter_of
from anytime_graph.metering.metered import metered
from anytime_graph.metering.request import Request
from anytime_graph.metering.streamed import StreamedReply
from anytime_graph.middleware import TokenBudgetMiddleware
from tests.kit.marks import both
from tests.kit.server import LIES, Reply, Server, serving

QUESTION = {"messages": [("user", "Tell me all about rivers.")]}


def run(server: Server, budget: Budget, sync: bool = True, **options: Any) -> dict[str, Any]:
    model = options.pop("model", None) or server.model()
    app = create_anytime_graph(model, budget=budget, **options).compile()
    return app.invoke(QUESTION) if sync else asyncio.run(app.ainvoke(QUESTION))


def filling(**reply: Any) -> Any:
    return lambda request, i: Reply(text=None, **reply)


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("strategy", ["single", "best_of_n", "pdp", "self_refine"])
@pytest.mark.parametrize("tokens", [100, 1_000, 10_000])
def test_a_server_that_fills_any_limit_serves_no_more_than_the_budget(
    server: Server, tokens: int, strategy: str, sync: bool
) -> None:
    server.script = filling(piece=8)
    out = run(server, Budget(tokens=tokens), sync, strategy=strategy)
    assert server.served <= tokens
    if (strategy, tokens) != ("self_refine", 100):  # 100 tokens pay for a draft, not for its review
        assert server.served >= (0.7 if tokens == 100 else 0.8) * tokens
    assert out["spent"]["tokens"] == server.served
    assert out["spent"]["calls"] == len(server.calls)
    assert out["best"]["answer"]


@both
def test_parallel_drafts_are_neither_over_nor_starved(server: Server, sync: bool) -> None:
    from functools import partial

    from anytime_graph.planning.strategies import best_of_n

    server.script = filling()
    strategy = partial(best_of_n, n=8)
    run(server, Budget(tokens=6_500), sync, strategy=strategy, scorer=lambda q, a: 0.5)
    assert len(server.calls) >= 8
    assert 5_900 <= server.served <= 6_500


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("piece", [1, 3, 10])
def test_a_stream_without_end_is_cut_and_charged_in_full(
    server: Server, sync: bool, piece: int
) -> None:
    server.script = filling(ignore_limit=True, pace=0.002, piece=piece)
    out = run(server, Budget(tokens=500), sync, strategy="single")
    assert server.settled().served <= 500 + 64
    assert server.calls[0].closed_early
    assert out["spent"]["tokens"] >= server.served
    assert any("ignored the limit" in e for e in out["errors"])


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("delta", ["tool", "reasoning_content"])
def test_a_stream_without_end_is_cut_though_the_client_shows_none_of_it(
    server: Server, sync: bool, delta: str
) -> None:
    server.script = filling(ignore_limit=True, pace=0.002, delta=delta)
    with pytest.raises(NoAnswer, match="ignored the limit") as failure:
        run(server, Budget(tokens=500), sync, strategy="single")
    assert server.settled().served <= 500 + 64
    assert failure.value.spent["tokens"] >= server.served


@both
@pytest.mark.parametrize(("word", "slack"), [("; ) ", 1.3), ("河", 1.3), ("x=1;", 1.3)])
def test_bundles_of_tokens_that_are_no_words_are_cut_by_their_text(
    server: Server, sync: bool, word: str, slack: float
) -> None:
    """Twenty tokens a chunk: how many they are can only be estimated, but near the limit."""
    server.script = filling(ignore_limit=True, pace=0.0005, piece=20, word=word)
    out = run(server, Budget(tokens=1_000), sync, strategy="single")
    assert server.settled().served <= slack * 1_000
    assert out["spent"]["tokens"] >= server.served


MARKS = ["(", "\n", " ", "\t", "-", "a", "0", "é", "河", "\u200b"]


@pytest.mark.pairwise
@both
@pytest.mark.parametrize("word", MARKS)
def test_a_stream_of_one_mark_is_cut(server: Server, sync: bool, word: str) -> None:
    """Tokenizers know long runs of a mark as one token, but one a piece they are tokens each."""
    server.script = filling(ignore_limit=True, pace=0.0005, word=word)
    with suppress(NoAnswer):  # of blanks alone there is none
        run(server, Budget(tokens=500), sync, strategy="single")
    [call] = server.settled().calls
    assert call.closed_early
    assert call.served <= 500 + 32


def streaming(max_output: int | None) -> StreamedReply:
    return StreamedReply(n=1, max_output=max_output, run_id="")


def fed(streamed: StreamedReply, pieces: Iterable[str]) -> int | None:
    """How many pieces there were when the stream was cut."""
    return next((i for i, p in enumerate(pieces, 1) if streamed.feed(AIMessageChunk(p))), None)


letters = st.one_of(
    st.sampled_from("()[]{}<>=-_*#/\\.,:;!?\"' \n\t\r0123456789"),
    st.characters(
        categories=["Lu", "Ll", "Lo", "Mn", "Nd", "Nl", "Po", "Sm", "So", "Zs", "Cf", "Cc"]
    ),
)


@pytest.fixture(scope="module")
def idle() -> Iterator[Server]:
    with serving() as server:
        yield server


@given(
    word=st.text(letters, min_size=1, max_size=8),
    size=st.integers(1, 40) | st.integers(100, 20_000),
    room=st.integers(20, 200),
)
def test_whatever_is_repeated_is_cut_and_booked(
    idle: Server, word: str, size: int, room: int
) -> None:
    """At the cap, if the pieces can be tokens; else at six pieces, or at 128 characters a token."""
    streamed = streaming(room)
    text = word * (20_000 // len(word) + 2)
    endless = (text[i : i + size] for start in count() for i in range(0, 20_000, size))
    pieces = fed(streamed, endless)
    assert pieces is not None
    assert pieces <= 6 * room + 17
    assert pieces * size <= 128 * room + size or pieces <= room + 17
    if len(set(word)) == 1 and size == 1:
        assert pieces <= room + 17
    request = Request(prompt=[], max_input=9, max_output=room)
    charged = bill(meter_of(idle.model(), None), request, streamed, ended=False, overran=True)
    assert charged.spend["output_tokens"] >= max(room, pieces)


@given(word=letters, room=st.integers(20, 200), more=st.integers(1, 16))
def test_a_stream_that_breaks_off_above_its_cap_is_booked_as_far_as_it_came(
    idle: Server, word: str, room: int, more: int
) -> None:
    streamed = streaming(room)
    assert fed(streamed, [word] * (room + more)) is None
    request = Request(prompt=[], max_input=9, max_output=room)
    charged = bill(meter_of(idle.model(), None), request, streamed, ended=False, overran=False)
    assert charged.spend["output_tokens"] >= room + more


@given(data=st.data(), room=st.integers(20, 150), split=st.booleans())
def test_a_reply_that_keeps_to_its_cap_is_not_cut(
    idle: Server, data: st.DataObject, room: int, split: bool
) -> None:
    """Tokens in bundles of any size; blanks of a hundred a token; prose even letter by letter."""
    prose = [
        "The",
        " river",
        " bends",
        " where",
        " its",
        " bank",
        " is",
        " soft",
        ",",
        " and",
        "ero",
        "des",
    ]
    kind = st.sampled_from(
        [[" " * 100], ["("], ["    ", "return", " x", "\n"], ["河", "流"], prose]
    )
    known = prose if split else data.draw(kind)
    reply = [known[i % len(known)] for i in range(room)]
    cuts = sorted(data.draw(st.sets(st.integers(1, room - 1))))
    bundles = ["".join(reply[a:b]) for a, b in zip([0, *cuts], [*cuts, room], strict=True)]
    streamed = streaming(room)
    assert fed(streamed, "".join(reply) if split else bundles) is None


def test_what_has_ended_is_not_cut_and_what_goes_on_behind_its_end_is() -> None:
    """So its report is waited for. A server that ignores its cap could name an end and write on."""
    streamed = streaming(20)
    assert not streamed.feed(
        AIMessageChunk("river bends " * 50, response_metadata={"finish_reason": "stop"})
    )
    assert not streamed.feed(AIMessageChunk(""))
    usage = {"input_tokens": 9, "output_tokens": 110, "total_tokens": 119}
    assert not streamed.feed(AIMessageChunk("", usage_metadata=usage))  # type: ignore[arg-type]
    assert streamed.over
    assert streamed.reported
    assert fed(streamed, ["", *["" for _ in range(50)]]) is not None
    assert streamed.feed(AIMessageChunk(" and on"))


def test_a_long_stream_is_judged_in_linear_time(idle: Server) -> None:
    """By what is looked at: the whole text, but each time an eighth more of it."""
    streamed, looks = streaming(4_000), []
    for letter in islice(cycle("river bends "), 20_000):
        before = streamed._examined
        streamed.feed(AIMessageChunk(letter))
        looks += [streamed._examined] if streamed._examined != before else []
    assert looks
    assert sum(looks) <= 10 * 20_000


@pytest.mark.pairwise
@both
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize("lie", LIES)
def test_lies_about_usage_never_lower_the_books(server: Server, lie: str, sync: bool) -> None:
    server.script = lambda request, i: Reply(text="the river runs to the sea " * 6, usage=LIES[lie])
    out = run(server, Budget(tokens=2_000), sync, strategy="best_of_n", scorer=lambda q, a: 0.5)
    assert out["spent"]["tokens"] >= server.served
    assert server.served <= 2_000
    assert out["best"]["answer"].startswith("the river")
    assert out["stop_reason"] == "tokens"
    assert any("usage" in e or "reported" in e for e in out["errors"])


@both
def test_a_stream_in_flight_is_cut_when_time_is_up_and_still_searched(
    server: Server, sync: bool
) -> None:
    text = "think <answer>42</answer> " + "and on " * 100_000
    server.script = lambda request, i: Reply(text=text, pace=0.005, ignore_limit=True)
    out = run(server, Budget(seconds=1.0), sync, strategy="single")
    assert out["best"]["answer"] == "42"
    assert [call.closed_early for call in server.settled().calls] == [True]


@both
def test_a_model_that_does_not_stream_is_held_all_the_same(server: Server, sync: bool) -> None:
    server.script = filling()
    model = server.model(disable_streaming=True)
    out = run(server, Budget(tokens=1_500), sync, model=model)
    assert 0.8 * 1_500 <= server.served <= 1_500
    assert out["spent"]["tokens"] == server.served
    server.calls.clear()
    server.script = filling(pace=0.05)
    with pytest.raises(NoAnswer, match="out of time"):
        run(server, Budget(tokens=1_500, seconds=0.3), sync, model=model, strategy="single")


@both
def test_a_silent_server_cannot_hold_a_run_past_its_time(server: Server, sync: bool) -> None:
    server.script = lambda request, i: Reply() if i < 1 else Reply(error="hang")
    out = run(server, Budget(seconds=1.0), sync, strategy="best_of_n", scorer=lambda q, a: 0.5)
    assert out["best"]["answer"] == "fine"
    assert out["stop_reason"] == "seconds"


@both
@pytest.mark.parametrize(
    "budget",
    [
        Budget(output_tokens=300),
        Budget(calls=3),
        Budget(tokens=4_000, calls=2),
        Budget(tokens=900, output_tokens=5_000, seconds=30.0),
    ],
    ids=str,
)
def test_every_dimension_holds(server: Server, budget: Budget, sync: bool) -> None:
    server.script = lambda request, i: Reply(text="a river " * 40)
    out = run(server, budget, sync, scorer=lambda q, a: 0.5)
    spent = out["spent"]
    assert all(spent[d] <= most for d, most in budget.limits().items())
    assert spent["output_tokens"] == sum(c.output for c in server.calls)
    assert spent["calls"] == len(server.calls)
    assert out["stop_reason"] in budget.limits()


def test_retries_are_the_graphs_own_and_each_is_metered(server: Server) -> None:
    server.script = lambda request, i: Reply(error=500) if i == 0 else Reply()
    model = server.model(max_retries=5)
    out = run(server, Budget(tokens=2_000, calls=2), model=model, scorer=lambda q, a: 0.5)
    assert len(server.calls) == out["spent"]["calls"] == 2


@pytest.mark.filterwarnings("ignore:Parameters")
def test_caps_that_the_user_has_bound_elsewhere_do_not_loosen_ours(server: Server) -> None:
    server.script = filling()
    loose = {"max_tokens": 50_000, "max_completion_tokens": 50_000}
    for model in (
        server.model(model_kwargs={"max_completion_tokens": 50_000}),
        server.model(extra_body=loose),
        server.model(n=4),
        server.model().bind(**loose),
        server.model().bind(extra_body=loose | {"n": 4}),
        server.model().bind(stop=["@@"]).with_config(tags=["x"]),
    ):
        server.calls.clear()
        run(server, Budget(tokens=400), model=model, strategy="single")
        assert server.served <= 400
        assert all(c.request.get("n") in (None, 1) for c in server.calls)


def test_the_users_own_cap_is_kept(server: Server) -> None:
    server.script = filling()
    run(server, Budget(tokens=1_000), model=server.model(max_tokens=30), scorer=lambda q, a: 0.5)
    assert {c.limit for c in server.calls} <= set(range(31))


def test_bound_tools_count_in_the_prompt(server: Server) -> None:
    def look_up(place: str) -> str:
        """Look up the length of a river in the great gazetteer of all the rivers of the world."""
        return place

    server.script = lambda request, i: Reply()
    model = server.model().bind_tools([look_up])
    with_tools = run(server, Budget(calls=1), model=model, strategy="single")
    without = run(server, Budget(calls=1), strategy="single")
    assert server.calls[0].request["tools"]
    assert with_tools["best"]["answer"] == without["best"]["answer"] == "fine"
    with pytest.raises(ValueError, match="cannot pay") as small:
        run(server, Budget(tokens=1), model=model)
    with pytest.raises(ValueError, match="cannot pay") as smaller:
        run(server, Budget(tokens=1))
    assert small.value.least.tokens > smaller.value.least.tokens + 30


@pytest.mark.filterwarnings("ignore:Parameters")
def test_what_travels_beside_the_messages_is_bounded_too(server: Server) -> None:
    schema = {"type": "json_object", "note": "a field and another field " * 60}
    block = {"type": "document", "source": {"data": "word " * 3_000}}
    for model, content in (
        (server.model(extra_body={"response_format": schema}), "hi"),
        (server.model().bind(response_format=schema), "hi"),
        (server.model(), [{"type": "text", "text": "hi"}, block]),
    ):
        app = create_anytime_graph(model, budget=Budget(tokens=300)).compile()
        with pytest.raises(ValueError, match=r"cannot pay|media_tokens=None: 'document'"):
            app.invoke({"messages": [{"role": "user", "content": content}]})
    assert not server.calls


def test_running_totals_in_every_chunk_are_not_added_up(server: Server) -> None:
    streamed = streaming(None)
    for n in (1, 2, 3):
        usage: Any = {"input_tokens": 50, "output_tokens": n, "total_tokens": 50 + n}
        streamed.feed(AIMessageChunk("x", usage_metadata=usage))
    assert streamed.usage is not None
    assert (streamed.usage.input, streamed.usage.output) == (50, 3)


@both
def test_a_stop_that_is_already_set_makes_no_call(server: Server, sync: bool) -> None:
    import threading

    stop = threading.Event()

    def script(request: dict[str, Any], i: int) -> Reply:
        stop.set()
        return Reply(text=None, pace=0.01)

    server.script = script
    app = create_anytime_graph(server.model(), budget=Budget(tokens=4_000)).compile()
    config: Any = {"max_concurrency": 1}
    inputs: Any = {"context": {"stop": stop}}

    def go() -> Any:
        if sync:
            return app.invoke(QUESTION, config, **inputs)
        return asyncio.run(app.ainvoke(QUESTION, config, **inputs))

    with pytest.raises(NoAnswer, match="stopped") as failure:
        go()
    assert len(server.calls) == failure.value.spent["calls"] == 1


@both
def test_a_starved_call_is_charged_and_the_next_gets_more_room(server: Server, sync: bool) -> None:
    """Reasoning uses up the cap and no text comes, until there is room for both."""

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text="<answer>deep</answer>", reasoning=900)

    server.script = script
    out = run(server, Budget(tokens=4_000), sync)
    assert out["best"]["answer"] == "deep"
    assert out["spent"]["tokens"] == server.served <= 4_000
    assert any("starved" in e for e in out["errors"])
    starved = [c.limit for c in server.calls if c.output == c.limit]
    fed = [c.limit for c in server.calls if c.output < c.limit]
    assert max(starved) < min(fed)


def test_a_model_that_nothing_can_hold_is_refused_at_construction() -> None:
    class Unbounded(BaseChatModel):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=AIMessage("x"))])

        @property
        def _llm_type(self) -> str:
            return "unbounded"

    with pytest.raises(ValueError, match="model=Unbounded"):
        create_anytime_graph(Unbounded())


def test_errors_hold_neither_prompt_nor_key(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The server echoes the whole request in its refusal."""
    caplog.set_level(logging.DEBUG, "anytime_graph")
    server.script = lambda request, i: Reply(error=400)
    with pytest.raises(NoAnswer) as failure:
        run(server, Budget(tokens=4_000))
    assert "rivers" not in str(failure.value)
    assert "HTTP 400" in str(failure.value)
    assert failure.value.spent["tokens"] == 0
    assert "HTTP 400" in caplog.text
    assert "rivers" not in caplog.text


# --- LangChain's cache


@pytest.fixture
def cached() -> Iterator[None]:
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


class Stored(BaseCache):
    """As caches over a database are: a thread of its own may ask for what another one wrote."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.db.execute("create table replies (prompt text, model text, reply blob)")

    def lookup(self, prompt: str, llm_string: str) -> Any:
        found = self.db.execute(
            "select reply from replies where prompt = ? and model = ?", (prompt, llm_string)
        ).fetchone()
        return found and pickle.loads(found[0])

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        row = (prompt, llm_string, pickle.dumps(return_val))
        self.db.execute("insert into replies values (?, ?, ?)", row)

    def clear(self, **options: Any) -> None: ...


class Broken(Stored):
    def lookup(self, prompt: str, llm_string: str) -> Any:
        raise OSError("the cache is down")


class Full(Stored):
    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        raise OSError("the cache is full")


@both
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", [InMemoryCache, Stored, Broken, Full])
@pytest.mark.parametrize("disable_streaming", [False, True])
def test_no_draft_comes_from_langchains_cache(
    server: Server, disable_streaming: bool, kind: type[BaseCache], own: bool, sync: bool
) -> None:
    """Whether all models have it or this one, and whether it works or not."""
    server.script = lambda request, i: Reply(text=f"so <answer>{i}</answer>")
    cache = kind()
    set_llm_cache(None if own else cache)
    model = server.model(disable_streaming=disable_streaming, cache=cache if own else None)
    scored = {"strategy": "best_of_n", "scorer": lambda q, a: int(a) / 100}
    try:
        out = run(server, Budget(calls=8), sync, model=model, **scored)
    finally:
        set_llm_cache(None)
        if isinstance(cache, Stored):
            cache.db.close()
    assert len(server.calls) == 8
    assert len({c["answer"] for c in out["candidates"]}) == len(out["candidates"])
    assert out["spent"]["tokens"] == server.served


@both
@pytest.mark.usefixtures("cached")
def test_what_a_tool_asks_for_in_a_batch_is_booked_and_traced_as_served(
    server: Server, sync: bool
) -> None:
    class Traced(BaseCallbackHandler):
        tokens = 0

        def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
            self.tokens += response.generations[0][0].message.usage_metadata["total_tokens"]  # type: ignore[union-attr]

    model = metered(server.model())

    def ask(about: str) -> str:
        """Ask three times."""
        return "".join(reply.text for reply in model.batch([about] * 3))

    async def aask(about: str) -> str:
        """Ask three times."""
        return "".join(reply.text for reply in await model.abatch([about] * 3))

    tool = StructuredTool.from_function(ask, aask, name="ask")
    agent = create_agent(
        server.model(), [tool], middleware=[TokenBudgetMiddleware(Budget(tokens=9_000))]
    )
    calling = Reply("", tools=[("ask", {"about": "rivers"})])
    server.script = lambda request, i: calling if i % 5 == 0 else Reply("Water.")
    for turn in (1, 2):
        traced = Traced()
        on: Any = {"callbacks": [traced]}
        out = agent.invoke(QUESTION, on) if sync else asyncio.run(agent.ainvoke(QUESTION, on))
        assert len(server.calls) == 5 * turn
        assert turn * out["spent"]["tokens"] == turn * traced.tokens == server.settled().served


# --- text that no request could send

HALF = "half \ud83d an emoji"


@both
def test_half_an_emoji_in_a_question_is_sent_without_it(server: Server, sync: bool) -> None:
    server.script = lambda request, i: Reply(text="so <answer>7</answer>")
    app = create_anytime_graph(server.model(), budget=Budget(calls=2)).compile(InMemorySaver())
    asked: Any = {"messages": [("ai", HALF), ("user", [{"type": "text", "text": HALF}])]}
    thread: Any = {"configurable": {"thread_id": "1"}}
    out = app.invoke(asked, thread) if sync else asyncio.run(app.ainvoke(asked, thread))
    assert out["best"]["answer"] == "7"
    assert out["spent"]["tokens"] == server.served > 0
    assert all("half ? an emoji" in call.text for call in server.calls)


def test_half_an_emoji_in_a_ledger_costs_no_answer(server: Server, tmp_path: Path) -> None:
    server.script = lambda request, i: Reply(text="so <answer>7</answer>")
    with open_checkpoints(tmp_path / "anytime.db") as store:
        app = create_anytime_graph(server.model(), budget=Budget(calls=2), ledger=store.ledger)
        thread: Any = {"configurable": {"thread_id": "1"}}
        out = app.compile(store.saver).invoke({"messages": [("user", HALF)]}, thread)
    assert out["best"]["answer"] == "7"
    assert out["spent"]["tokens"] == server.served > 0


@both
def test_what_a_tool_or_a_schema_says_is_sent_without_half_an_emoji(
    server: Server, sync: bool
) -> None:
    def list_files(folder: str) -> str:
        return "caf\udce9.txt"

    def script(request: dict[str, Any], i: int) -> Reply:
        return Reply(text="", tools=[("list_files", {"folder": HALF})]) if i == 0 else Reply()

    list_files.__doc__ = f"List files, {HALF}."
    server.script = script
    budget = TokenBudgetMiddleware(Budget(tokens=8_000))
    agent: Any = create_agent(server.model(), [list_files], middleware=[budget])
    out = agent.invoke(QUESTION) if sync else asyncio.run(agent.ainvoke(QUESTION))
    assert out["messages"][-1].text == "fine"
    assert out["stop_reason"] == "done"
    assert out["spent"]["tokens"] == server.served
    assert "caf?.txt" in server.calls[1].text


@both
def test_a_chat_model_takes_half_an_emoji(server: Server, sync: bool) -> None:
    server.script = lambda request, i: Reply(text=f"{HALF} {i}")
    chat = ChatAnytime(model=server.model(), budget=Budget(calls=3), strategy="best_of_n")
    said = chat.invoke(HALF) if sync else asyncio.run(chat.ainvoke(HALF))
    assert said.text


# --- the clock


@both
@pytest.mark.parametrize("set_by", [-3_600.0, 3_600.0])
def test_a_clock_that_is_set_changes_no_time(
    server: Server, set_by: float, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour with each look: what NTP, a suspended machine or a user may do to it."""
    real, looks = time.time, count()
    monkeypatch.setattr(time, "time", lambda: real() + set_by * next(looks))
    server.script = lambda request, i: Reply(text=f"so <answer>{i}</answer>")
    budget = Budget(calls=4, seconds=3_000.0)
    out = run(server, budget, sync, strategy="best_of_n", scorer=lambda q, a: 0.5)
    assert out["stop_reason"] == "calls"
    assert 0 < out["spent"]["seconds"] < 3_000
