"""Think longer overnight: questions get a small budget by day. Each night the weakest answer is
improved, step by step, until the night's budget is used up.

Run it every night: it continues from night.db, even after a crash, and pays for nothing twice. For a
real night, change the three numbers, and change "local" to, say, "openai:gpt-4.1-mini".
"""

import time
from typing import Any

from anytime_graph import Budget, Constraints, create_anytime_graph, open_checkpoints

DAY, STEP, NIGHT = 300, 700, 2_100  # tokens: for each question, each step, the whole night
DAWN = time.time() + 60
rules = Constraints(sentences=2, words=(15, 30), include=("water",), forbid=("very",))
questions = [f"Describe {what}. {rules.describe()}" for what in ("a river", "a lake", "the sea")]

with open_checkpoints("night.db") as store:
    app = create_anytime_graph(
        "local", budget=Budget(tokens=DAY), scorer=rules, answer="whole", ledger=store.ledger
    ).compile(checkpointer=store.saver)

    def answered(question: str, thread: Any) -> dict[str, Any]:
        known = app.get_state(thread)
        if known.values and not known.next:
            return known.values
        return app.invoke(None if known.next else {"messages": [("user", question)]}, thread)

    threads = [{"configurable": {"thread_id": question}} for question in questions]
    answers = [answered(q, thread) for q, thread in zip(questions, threads, strict=True)]
    print("in the evening: ", [f"{out['best']['score']:.2f}" for out in answers])

    left = NIGHT
    while left >= STEP and time.time() < DAWN:
        i = min(range(len(answers)), key=lambda i: answers[i]["best"]["score"])
        if answers[i]["best"]["score"] == 1.0:
            break
        before = answers[i]["spent"]["tokens"]
        answers[i] = app.invoke({"budget": Budget(tokens=STEP)}, threads[i])
        left -= max(1, answers[i]["spent"]["tokens"] - before)
    print("in the morning: ", [f"{out['best']['score']:.2f}" for out in answers])

for question, out in zip(questions, answers, strict=True):
    print(f"\n{question.split('.')[0]}: {out['best']['answer']}")
