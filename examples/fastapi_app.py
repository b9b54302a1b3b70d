"""Improving answers over HTTP: `uvicorn examples.fastapi_app:app`, see docs/serving.md.

POST /answers streams server-sent events: the thread, each better answer, and last "done" or "failed".
When the client leaves or the deadline passes, calls in flight are cut and the best answer is kept.
GET /answers/THREAD reads it, even while it is still being improved.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, Field

from anytime_graph import (
    BudgetTooSmall,
    NoAnswer,
    create_anytime_graph,
    open_checkpoints,
)

try:
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi.sse import EventSourceResponse, ServerSentEvent
except ImportError:
    print("This example needs: pip install 'fastapi>=0.165' uvicorn", file=sys.stderr)
    sys.exit(2)

log = logging.getLogger(__name__)


class Asked(BaseModel):
    """A client's question, and the most that it may cost."""

    question: str = Field(min_length=1, max_length=20_000)
    tokens: int = Field(2_000, ge=1, le=20_000)
    seconds: float = Field(30, gt=0, le=300)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One ledger and one graph for all requests; at shutdown, unfinished runs finish first."""
    async with open_checkpoints(os.environ.get("ANYTIME_DB", "anytime.db")) as store:
        app.state.ledger = store.ledger
        model = os.environ.get("ANYTIME_MODEL", "local")
        graph = await asyncio.to_thread(create_anytime_graph, model, ledger=store.ledger)
        app.state.graph = graph.compile()
        async with asyncio.TaskGroup() as app.state.running:
            yield


app = FastAPI(title="anytime answers", lifespan=lifespan)


@app.exception_handler(RequestValidationError)
async def refused(request: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong, but does not repeat it: NaN or half a character cannot be sent back."""
    wrong = [{"loc": each["loc"], "msg": each["msg"]} for each in error.errors()]
    return JSONResponse({"detail": wrong}, 422)


async def until_it_leaves() -> AsyncIterator[threading.Event]:
    """Set when the response has ended, however it ended."""
    stop = threading.Event()
    try:
        yield stop
    finally:
        stop.set()


@app.post("/answers", response_class=EventSourceResponse)
async def answer(
    asked: Asked, request: Request, stop: Annotated[threading.Event, Depends(until_it_leaves)]
) -> AsyncIterator[ServerSentEvent]:
    thread = uuid4().hex
    yield ServerSentEvent(event="thread", data=thread)
    events: asyncio.Queue[ServerSentEvent | None] = asyncio.Queue()
    state = request.app.state
    state.running.create_task(think(state.graph, thread, asked, stop, events))
    while (event := await events.get()) is not None:
        yield event


async def think(
    graph: Any,
    thread: str,
    asked: Asked,
    stop: threading.Event,
    events: "asyncio.Queue[ServerSentEvent | None]",
) -> None:
    """Outlives its request: a little work remains once `stop` is set."""
    timer = asyncio.get_running_loop().call_later(asked.seconds, stop.set)
    question = {"messages": [("user", asked.question)], "budget": {"tokens": asked.tokens}}
    out: dict[str, Any] = {}
    try:
        async for mode, data in graph.astream(
            question,
            {"configurable": {"thread_id": thread}},
            context={"stop": stop},
            stream_mode=["custom", "values"],
        ):
            if mode == "custom":
                events.put_nowait(ServerSentEvent(event="improved", data=data))
            else:
                out = data
        best = {"answer": out["best"]["answer"], "score": out["best"]["score"]}
        done = {**best, "stop_reason": reason(out["stop_reason"]), "spent": out["spent"]}
        events.put_nowait(ServerSentEvent(event="done", data=done))
    except (BudgetTooSmall, NoAnswer) as error:
        events.put_nowait(ServerSentEvent(event="failed", data=str(error)))
    except Exception:
        log.exception("thread %s", thread)
        events.put_nowait(ServerSentEvent(event="failed", data="an internal error"))
    finally:
        timer.cancel()
        events.put_nowait(None)


@app.get("/answers/{thread}")
def best(thread: str, request: Request) -> dict[str, Any]:
    """The best answer so far. stop_reason: None while it is being improved."""
    ledger = request.app.state.ledger
    found, runs = ledger.best(thread), ledger.runs(thread)
    if found is None:
        raise HTTPException(404, "there is no such thread, or no answer on it yet")
    return {
        "answer": found["answer"],
        "score": found["score"],
        "stop_reason": reason(runs[-1]["stop_reason"]),
        "spent": runs[-1]["spent"],
    }


def reason(stop_reason: str | None) -> str | None:
    """Without its cause, such as an error of the database, which is for the log."""
    return stop_reason and stop_reason.partition(":")[0]
