"""Anytime reasoning in a chain that retrieves: only the model's line is new.

For a real chain, use your own retriever, and replace local_model(...) with
ChatOpenAI(model="gpt-4.1-mini") or any other chat model.
"""

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from anytime_graph import Budget
from anytime_graph.chat import ChatAnytime
from anytime_graph.local import local_model

documents = [
    Document("Rivers bend because the current is faster at the outer bank and erodes it."),
    Document("At the inner bank the current is slow, and sand settles there."),
    Document("Lakes freeze from the top, because ice is lighter than water."),
    Document("A delta grows where a river meets the sea and drops its sand."),
]


def retrieve(question: str) -> str:
    """The two documents that share the most words with the question."""
    words = set(question.lower().strip("?").split())
    ranked = sorted(documents, key=lambda d: -len(words & set(d.page_content.lower().split())))
    return "\n".join(document.page_content for document in ranked[:2])


def grounded(question: str, answer: str) -> float:
    """How much of a short answer is in the sources. Any function will do; without one, the model
    compares answers that no vote can decide between."""
    known = {word.strip(".,") for document in documents for word in document.page_content.split()}
    said = [word.strip(".,") for word in answer.split()]
    return sum(word in known for word in said) / max(len(said), 12)


model = ChatAnytime(  # was: model = local_model(...)
    model=local_model(seed=2, max_tokens=60), budget=Budget(tokens=1_000), scorer=grounded
)
prompt = ChatPromptTemplate.from_template(
    "Answer in one sentence, from these sources only.\n\n{sources}\n\nQuestion: {question}"
)
chain = (
    {"sources": RunnableLambda(retrieve), "question": RunnablePassthrough()}
    | prompt
    | model
    | StrOutputParser()
)
print(chain.invoke("Why do rivers bend?"))
