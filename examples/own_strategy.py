"""Your own strategy: a function from a view of the run to the next moves.

This one drafts twice, then refines the better draft until two refinements in a row are no better.
For another model, change "local" to, say, "openai:gpt-4.1-mini".
"""

from anytime_graph import Budget, Constraints, Draft, Move, Refine, Stop, View, create_anytime_graph

rules = Constraints(sentences=2, words=(15, 30), include=("river", "bridge"), forbid=("very",))


def two_then_polish(view: View) -> list[Move]:
    if view.best is None or view.made.get("draft", 0) < 2:
        return [Draft(share=0.2), Draft(share=0.2)]
    newest = view.candidates[-1]
    stale = view.made.get("refine", 0) >= 2 and newest["id"] - view.best["id"] >= 2
    return [Stop("nothing more to polish")] if stale else [Refine(view.best["id"], share=0.3)]


app = create_anytime_graph(
    "local", budget=Budget(tokens=2_500), scorer=rules, strategy=two_then_polish, answer="whole"
).compile()
out = app.invoke({"messages": [("user", f"Describe a village. {rules.describe()}")]})

print(out["best"]["answer"])
print(f"score {out['best']['score']:.2f}, {out['spent']['tokens']} tokens, {out['stop_reason']}")
