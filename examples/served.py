"""The graph as `langgraph dev` serves it (see langgraph.json and docs/serving.md).

Assistants choose a model from MODELS, a strategy and a budget through their context. A ledger, apart
from the server's own checkpoints, keeps what was paid for. So a run that was cancelled or killed
continues without buying anything twice.
"""

import atexit
import os
from contextlib import ExitStack

from anytime_graph import Budget, create_anytime_graph, open_checkpoints

MODELS = {
    "local": "local",  # the embedded model, the default
    "gpt-4.1-mini": "openai:gpt-4.1-mini",  # with OPENAI_API_KEY set
}

opened = ExitStack()
atexit.register(opened.close)
store = opened.enter_context(open_checkpoints(os.environ.get("ANYTIME_DB", "anytime.db")))
graph = create_anytime_graph(
    MODELS, budget=Budget(tokens=2_000), most=Budget(tokens=10_000), ledger=store.ledger
)
