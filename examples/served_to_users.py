"""The graph as it is served to users who do not trust each other (see docs/serving.md).

`langgraph dev --config examples/served_to_users.json` serves it. Each request carries a token. What a
user keeps on the server (threads, runs, assistants, crons, items of the store) is theirs alone. So are
their memory, their share of each day and their bills, because the graph takes the user from the server,
and not from the request.

ANYTIME_TOKENS says who holds which token, as JSON: {"token of Ann": "ann", ...}. Your own `authenticate`
asks your identity provider instead.
"""

import atexit
import json
import os
from contextlib import ExitStack
from typing import Any

from langgraph_sdk import Auth

from anytime_graph import Budget, Quota, create_anytime_graph, open_checkpoints

MODELS = {"small": "openai:gpt-4.1-mini", "large": "openai:gpt-4.1"}
TOKENS: dict[str, str] = json.loads(os.environ.get("ANYTIME_TOKENS", "{}"))

opened = ExitStack()
atexit.register(opened.close)
store = opened.enter_context(open_checkpoints(os.environ.get("ANYTIME_DB", "anytime.db")))
graph = create_anytime_graph(
    MODELS,
    budget=Budget(tokens=2_000),
    most=Budget(tokens=10_000, calls=20),
    quotas=[Quota(Budget(usd=5), per="user", window="1d")],
    ledger=store.ledger,
    memory=store.ledger,
)

auth = Auth()


@auth.authenticate
async def authenticate(authorization: str | None) -> Auth.types.MinimalUserDict:
    """The user whose token the request carries."""
    user = TOKENS.get((authorization or "").removeprefix("Bearer "))
    if user is None:
        raise Auth.exceptions.HTTPException(status_code=401, detail="a token is needed")
    return {"identity": user}


@auth.on
async def refuse(ctx: Auth.types.AuthContext, value: Any) -> bool:
    """What no other handler allows."""
    return False


@auth.on.threads
@auth.on.assistants
@auth.on.crons
async def own(ctx: Auth.types.AuthContext, value: Any) -> dict[str, str]:
    """Marks what a user makes as theirs, and finds nothing else."""
    mine = {"owner": ctx.user.identity}
    if (metadata := value.get("metadata")) is not None:
        metadata.update(mine)  # in place, for the server keeps this dict
    return mine


@auth.on.store
async def own_items(ctx: Auth.types.AuthContext, value: Any) -> bool:
    """Items of the store belong to the user with whom their namespace begins."""
    return tuple(value.get("namespace") or ())[:1] == (ctx.user.identity,)
