"""Stop and resume: the first part of a budget now, the rest when you want it, nothing paid twice.

fox.db keeps what was bought, so the second half could also be another process, on another day. For
another model, change "local" to, say, "openai:gpt-4.1-mini".
"""

import threading

from anytime_graph import Budget, Constraints, create_anytime_graph, open_checkpoints

rules = Constraints(sentences=2, words=(20, 40), include=("fox", "river"), forbid=("must",))
question = {"messages": [("user", f"Write a tiny story. {rules.describe()}")]}
thread = {"configurable": {"thread_id": "fox"}}

with open_checkpoints("fox.db") as store:
    app = create_anytime_graph(
        "local", budget=Budget(tokens=2_000), scorer=rules, answer="whole", ledger=store.ledger
    ).compile(checkpointer=store.saver)

    stop = threading.Event()  # a button, a client that leaves; `interruptible()` sets it at Ctrl-C
    for event in app.stream(question, thread, stream_mode="custom", context={"stop": stop}):
        print(f"{event['score']:.2f} after {event['spent']['tokens']} tokens")
        if event["spent"]["tokens"] > 150:
            stop.set()
    held = store.ledger.best("fox")
    print(f"stopped; in hand: {held['answer']}\n")

with open_checkpoints("fox.db") as store:  # as if tomorrow
    app = create_anytime_graph(
        "local", budget=Budget(tokens=2_000), scorer=rules, answer="whole", ledger=store.ledger
    ).compile(checkpointer=store.saver)
    out = app.invoke({"budget": Budget(tokens=0)}, thread)  # spends what is left; add more to go on

print(
    f"{out['best']['score']:.2f}, {out['spent']['tokens']} tokens in all: {out['best']['answer']}"
)
print(f"{out['spent']['calls']} calls, ended by {out['stop_reason']}")
