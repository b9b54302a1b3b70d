"""Unit tests as the scorer of generated code: the score is the share of tests that pass, and the first
failure tells the next refinement what to fix.

The code runs in a separate process with little time and memory, few files and no environment. That
stops accidents, not attackers: run code from strangers in a container. For a model that writes better
code, change `local_model(...)` to "openai:gpt-4.1-mini".
"""

import re
import subprocess
import sys
import tempfile

from anytime_graph import Budget, Score, create_anytime_graph
from anytime_graph.local import local_model

TESTS = {
    "largest([3, 7, 5])": 7,
    "largest([-4, -2])": -2,
    "largest([9])": 9,
    "largest([])": None,
}


LIMITS = """
import resource
for limit, most in (
    (resource.RLIMIT_CPU, 1),  # seconds
    (resource.RLIMIT_AS, 256 << 20),  # bytes of memory
    (resource.RLIMIT_FSIZE, 1 << 20),  # bytes of a file
    (resource.RLIMIT_NOFILE, 16),  # open files
):
    resource.setrlimit(limit, (most, most))
"""


def failure(code: str, call: str, expected: object) -> str | None:
    """What one test finds wrong with the code."""
    test = f"{LIMITS}\n{code}\n\nassert (got := {call}) == {expected!r}, f'it is {{got!r}}'"
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(  # noqa: S603 - it exists to run untrusted code
                [sys.executable, "-I", "-c", test],
                cwd=empty,
                env={},
                capture_output=True,
                text=True,
                timeout=5,
            )
        except subprocess.TimeoutExpired:
            return f"{call} does not end"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()[-1:] or ["the process was killed"]
    return f"{call} should be {expected!r}: {said[0][:200]}"


def passing(question: str, answer: str) -> Score:
    fenced = re.search(r"```(?:python)?\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    code = fenced[1] if fenced else answer
    failures = [f for call, expected in TESTS.items() if (f := failure(code, call, expected))]
    return Score(1 - len(failures) / len(TESTS), failures[0] if failures else None)


app = create_anytime_graph(
    local_model(max_tokens=120, seed=4), budget=Budget(tokens=2_500), scorer=passing, answer="whole"
).compile()
request = (
    "Write a Python function largest(numbers) that returns the largest of a list of numbers, and "
    "None if the list is empty. Reply with the code only."
)
out = app.invoke({"messages": [("user", request)]})

print(out["best"]["answer"])
print(f"{out['best']['score']:.0%} of the tests pass after {out['spent']['tokens']} tokens")
print("Still wrong:", out["best"]["feedback"])
