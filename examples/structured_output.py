"""Structured output under a budget: every answer fits the schema, and your own check picks the best.

For a real model, replace local_model(...) with ChatOpenAI(model="gpt-4.1-mini") or any other chat
model, and drop `method` to use the provider's default.
"""

from pydantic import BaseModel, Field

from anytime_graph import Budget, Score
from anytime_graph.chat import ChatAnytime
from anytime_graph.local import local_model


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=20)
    legs: int
    colors: list[str] = Field(max_length=3)


def true_of_spiders(question: str, animal: Animal) -> Score:
    """Checks what the schema cannot express."""
    faults = []
    if "spider" not in animal.name.lower():
        faults.append("the animal must be a spider")
    if animal.legs != 8:
        faults.append("a spider has 8 legs")
    if not 0 < len(set(animal.colors)) == len(animal.colors):
        faults.append("name one to three different colors")
    return Score(1 - len(faults) / 3, "; ".join(faults) or None)


model = ChatAnytime(
    model=local_model(seed=1, max_tokens=60), budget=Budget(tokens=1_500), scorer=true_of_spiders
)
describe = model.with_structured_output(Animal, method="json_schema", include_raw=True)
out = describe.invoke("Describe a spider.")

print(out["parsed"])
told = out["raw"].response_metadata["anytime"]
print(f"score {told['score']:.2f}, {told['spent']['tokens']} tokens, {told['stop_reason']}")
