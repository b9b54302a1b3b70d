"""The graph as `langgraph dev` serves it (see langgraph.json): the embedded model, a default budget.

For another model change the string: "openai:gpt-4.1-mini", with OPENAI_API_KEY set.
"""

from anytime_graph import Budget, create_anytime_graph

graph = create_anytime_graph("local", budget=Budget(tokens=2_000))
