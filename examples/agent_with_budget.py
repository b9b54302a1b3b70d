"""An agent that stops in time: each call is reserved before it is made, and the agent still answers.

The embedded model calls no tools, so here a small assistant talks on one thread until the thread's
budget is used up. For a model that calls tools, such as "openai:gpt-4.1-mini", replace
`local_model(...)` with its name and `[]` with your tools; nothing else changes.
"""

import sys

from langgraph.checkpoint.memory import InMemorySaver

from anytime_graph import Budget, BudgetTooSmall
from anytime_graph.local import local_model

try:
    from langchain.agents import create_agent

    from anytime_graph.middleware import TokenBudgetMiddleware
except ImportError:
    print("This example needs the extra agents: pip install '.[agents]'", file=sys.stderr)
    sys.exit(2)

agent = create_agent(
    local_model(max_tokens=60, seed=1),
    [],
    system_prompt="You are a friendly guide to rivers. Answer in one sentence.",
    middleware=[TokenBudgetMiddleware(Budget(tokens=900), per="thread")],
    checkpointer=InMemorySaver(),
)
thread = {"configurable": {"thread_id": "rivers"}}

for question in ("Why do rivers bend?", "Where do they end?", "And where do they begin?") * 3:
    try:
        out = agent.invoke({"messages": [("user", question)]}, thread)
    except BudgetTooSmall as small:
        print(f"{question} -- {small}")
        break
    print(f"{question} {out['messages'][-1].text}")
    print(f"  {out['spent']['tokens']} tokens so far, ended by: {out['stop_reason']}")
