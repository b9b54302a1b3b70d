"""What tracers are told: drafts, critiques and refinements with their scores and spend, no secrets."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers import LangChainTracer, Run
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_openai import ChatOpenAI
from langsmith import Client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from anytime_graph import Budget, create_anytime_graph
from tests.kit.server import Reply, Server

ASK: Any = {"messages": [("user", "Why do rivers bend?")]}
SECRET = "sk-not-to-be-told"
INFO = {
    "instance_flags": {"zstd_compression_enabled": False},
    "batch_ingest_config": {
        "use_multipart_endpoint": False,
        "scale_up_qsize_trigger": 1_000,
        "scale_up_nthreads_limit": 1,
        "scale_down_nempty_trigger": 4,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
    },
}


@contextmanager
def langsmith() -> Iterator[tuple[str, list[bytes]]]:
    """A LangSmith endpoint, and the bodies that it received."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(INFO)

        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self._send({})

        def _send(self, payload: dict[str, Any]) -> None:
            body = json.dumps(payload).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", received
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def runs_of(bodies: list[bytes]) -> list[dict[str, Any]]:
    """Each run as it was told in the end, in the order of their beginnings."""
    runs: dict[str, dict[str, Any]] = {}
    for body in bodies:
        sent = json.loads(body)
        for run in (*sent.get("post", ()), *sent.get("patch", ())):
            runs.setdefault(run["id"], {}).update({k: v for k, v in run.items() if v is not None})
    return sorted(runs.values(), key=lambda run: str(run["dotted_order"]))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_langsmith_and_opentelemetry_are_told_scores_and_spend(
    server: Server, asynchronous: bool
) -> None:
    server.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with langsmith() as (url, received):
        client = Client(
            api_url=url, api_key=SECRET, otel_tracer_provider=provider, tracing_mode="hybrid"
        )

        def tenths(question: str, answer: str) -> float:
            client.flush()  # what has begun is told before its end
            return int(answer) / 10

        app = create_anytime_graph(
            ChatOpenAI(model="scripted", base_url=server.url, api_key=SecretStr(SECRET)),
            budget=Budget(calls=8),
            scorer=tenths,
            strategy="self_refine",
        ).compile()
        config: RunnableConfig = {"callbacks": [LangChainTracer(client=client)]}
        context: Any = {"stop": threading.Event()}
        if asynchronous:
            out = asyncio.run(app.ainvoke(ASK, config, context=context))
        else:
            out = app.invoke(ASK, config, context=context)
        client.flush()
        client.close()
    told = runs_of(received)
    nodes = [run for run in told if run["run_type"] == "chain" and run["name"] in out["spent_by"]]
    assert {run["name"] for run in nodes} == {"draft", "critique", "refine"}
    noted = [run["extra"]["metadata"] for run in nodes]
    assert sum(note["tokens"] for note in noted) == out["spent"]["tokens"] == server.served
    scores = [note["score"] for note in noted if "score" in note]
    assert max(scores) == out["best"]["score"]
    assert len(scores) == sum(run["name"] != "critique" for run in nodes)
    models = [run for run in told if run["run_type"] == "llm"]
    assert [run["name"] for run in models] == [run["name"] for run in nodes]
    root = next(run for run in told if run["name"] == "LangGraph")
    assert root["outputs"]["stop_reason"] == out["stop_reason"]

    exported = [span.attributes or {} for span in spans.get_finished_spans()]
    by_otel = [a["langsmith.metadata.score"] for a in exported if "langsmith.metadata.score" in a]
    assert {f"{score}" for score in scores} <= {f"{score}" for score in by_otel}
    whole = b"".join(received).decode() + repr([dict(a) for a in exported])
    assert SECRET not in whole


def test_any_tracer_is_told(server: Server) -> None:
    server.script = lambda request, i: Reply(f"so <answer>{i}</answer>")
    app = create_anytime_graph(
        server.model(), budget=Budget(calls=4), strategy="self_consistency"
    ).compile()
    collector = RunCollectorCallbackHandler()
    out = app.invoke(ASK, {"callbacks": [collector], "tags": ["mine"]})
    (root,) = collector.traced_runs
    drafts = [run for run in root.child_runs if run.name == "draft"]
    returned = [run.outputs["returned"][0] for run in drafts if run.outputs is not None]
    assert (
        sum(outcome["receipt"]["spend"]["tokens"] for outcome in returned) == out["spent"]["tokens"]
    )
    assert {outcome["candidate"]["answer"] for outcome in returned} == {"0", "1", "2", "3"}
    calls = [run.child_runs[0] for run in drafts]
    for call in calls:
        assert isinstance(call, Run)
        assert call.name == "draft"
        assert {"mine", "draft"} <= set(call.tags or ())
    assert {(call.extra or {})["metadata"]["ordinal"] for call in calls} == {0, 1, 2, 3}
