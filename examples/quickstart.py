"""A budget, a question, better and better answers as they come. For another model, change "local"."""

from anytime_graph import Budget, Constraints, create_anytime_graph

rules = Constraints(sentences=2, words=(15, 30), include=("fox", "river"), forbid=("very",))
graph = create_anytime_graph("local", budget=Budget(tokens=3_000), scorer=rules, answer="whole")
app = graph.compile()

question = f"Write a tiny story. {rules.describe()}"
out = {}
for mode, event in app.stream({"messages": [("user", question)]}, stream_mode=["custom", "values"]):
    if mode == "custom":
        print(f"{event['score']:.2f} after {event['spent']['tokens']} tokens: {event['answer']}")
    else:
        out = event

print(f"\nBest, ended by {out['stop_reason']}: {out['messages'][-1].text}")
