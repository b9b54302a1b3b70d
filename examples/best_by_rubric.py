"""The best answer by a rubric, where a loop of revisions returns the last one.

A deep agent's rubric middleware has a grader read each answer, and sends the agent back until the
grader is satisfied or the rounds are over. What comes back then is the last answer, although a
revision may have lost what an earlier one had. Here the loop is written out, and beside it the same
agent drafts for an anytime graph, whose judge compares the answers by the same rubric. The model plays
a script, in which the second answer is the best one; put the name of your model in its place.
"""

import re
import sys
from typing import Any

from langchain_core.messages import BaseMessage

from anytime_graph import Budget, Judge, create_anytime_graph
from anytime_graph.testing import ScriptedModel

try:
    from langchain.agents import create_agent
except ImportError:
    print("This example needs the extra agents: pip install '.[agents]'", file=sys.stderr)
    sys.exit(2)

QUESTION = "Why do rivers bend?"
RUBRIC = "It names the outer bank, the inner bank, and the current."
CRITERIA = ("outer bank", "inner bank", "current")
DRAFTS = (
    "Rivers bend because the outer bank erodes.",
    "Rivers bend because the outer bank erodes and the inner bank grows.",
    "Rivers bend because of the current.",
)


def scripted() -> ScriptedModel:
    """It writes the drafts in turn. As grader and as judge it goes by the rubric."""
    drafts = iter(DRAFTS * 3)

    def met(answer: str) -> int:
        return sum(criterion in answer for criterion in CRITERIA)

    def reply(messages: list[BaseMessage]) -> str:
        said = messages[-1].text
        if shown := re.findall(r"ANSWER ([A-Z])\W+(Rivers [^.]*\.)", said):
            return "VERDICT: " + max(shown, key=lambda answer: met(answer[1]))[0]
        if said.startswith("Grade"):
            return "satisfied" if met(said.partition("ANSWER: ")[2]) == 3 else "needs revision"
        return next(drafts)

    return ScriptedModel(replies=[reply])


def last_by_loop(rounds: int = 3) -> str:
    """What the loop returns: the answer of its last round."""
    model = scripted()
    agent: Any = create_agent(model, [])
    messages: list[Any] = [("user", QUESTION)]
    for _ in range(rounds):
        messages = agent.invoke({"messages": messages})["messages"]
        answer = messages[-1].text
        grade = model.invoke(f"Grade by this rubric. {RUBRIC}\nANSWER: {answer}").text
        if grade == "satisfied":
            break
        messages.append(("user", f"{grade}; revise it."))
    return answer


def best_by_judge() -> str:
    """The best of what the same agent drafts within a budget, by the same rubric."""
    graph = create_anytime_graph(
        scripted(),
        budget=Budget(tokens=10_000, calls=9),
        scorer=Judge(rubric=RUBRIC),
        strategy="best_of_n",
        drafter=lambda model: create_agent(model, []),
    ).compile()
    return graph.invoke({"messages": [("user", QUESTION)]})["best"]["answer"]


print("the loop's last answer: ", last_by_loop())
print("the best by the rubric: ", best_by_judge())
