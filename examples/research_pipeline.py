"""A research pipeline: two anytime nodes under one budget. The first collects notes with half of it.
The second sees the notes and writes with everything that is left.

For another model, change "local" to, say, "openai:gpt-4.1-mini". To let an agent with tools draft the
notes, add `drafter=lambda model: create_agent(model, tools)` to the first node.
"""

from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send

from anytime_graph import Budget, Constraints, Spend, add_spend, create_anytime_graph


class Pipeline(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    budget: dict[str, Any]
    spent: Annotated[Spend, add_spend]


def asked(state: Pipeline, node: str, request: str, part: float) -> Command[Any]:
    left = Budget(**state["budget"]).less(state["spent"])
    messages = [*state["messages"], ("user", request)]
    return Command(goto=Send(node, {"messages": messages, "budget": left.fraction(part).limits()}))


notes = Constraints(words=(8, 30), include=("fox",), forbid=("must", "contain"))
text = Constraints(
    sentences=2, words=(15, 40), include=("fox", "river"), forbid=("must", "contain", "text")
)
graph = StateGraph(Pipeline)
graph.add_node("research", create_anytime_graph("local", scorer=notes, answer="whole").compile())
graph.add_node("write", create_anytime_graph("local", scorer=text, answer="whole").compile())
graph.add_node(
    "ask for notes",
    lambda state: asked(state, "research", f"First, some notes. {notes.describe()}", 0.5),
    destinations=("research",),
)
graph.add_node(
    "ask for text",
    lambda state: asked(state, "write", f"Now write the text. {text.describe()}", 1.0),
    destinations=("write",),
)
graph.add_edge(START, "ask for notes")
graph.add_edge("research", "ask for text")
graph.add_edge("write", END)
app = graph.compile()

question = {"messages": [("user", "I need a short text on how foxes live by rivers.")]}
out: dict[str, Any] = {}
for path, mode, event in app.stream(
    {**question, "budget": {"tokens": 1_800}}, stream_mode=["custom", "values"], subgraphs=True
):
    if mode == "custom":
        node = path[0].partition(":")[0]
        print(f"{node}: {event['score']:.2f} after {event['spent']['tokens']} tokens")
    elif not path:
        out = event

print(f"\n{out['messages'][-1].text}\n")
print(f"{out['spent']['tokens']} tokens in {out['spent']['calls']} calls, of 1,800")
