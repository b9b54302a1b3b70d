"""Texts that a model stuck in a loop, or set on by somebody, could write; and all that reads them.

As a program it gives each text to each reader, and prints what failed and whose work grows faster than
the text. No time is asserted: other work on the machine slows short and long texts alike. Processes
that the kernel ends keep what never ends from going on.

    python -m tests.kit.hostile 1_000_000
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from pydantic import BaseModel, RootModel

from anytime_graph import Constraints, prompts, scoring
from anytime_graph.benchmark import paper
from anytime_graph.checkpoints import likeness
from anytime_graph.checkpoints.export import line
from anytime_graph.checkpoints.store import plain
from anytime_graph.cli import demo
from anytime_graph.metering import tool_calls
from anytime_graph.metering.learned import PARTS
from anytime_graph.metering.request import Reply
from anytime_graph.metering.streamed import StreamedReply, joined, max_written_tokens
from anytime_graph.models import providers, refusals, restated, tokens
from anytime_graph.nodes.critique import chosen, split_verdict
from anytime_graph.nodes.learn import lesson_of
from anytime_graph.notebook import Shown
from anytime_graph.pages.html import escaped
from anytime_graph.run import pairs
from anytime_graph.run.calls import receipt
from anytime_graph.tasks import answers, code, instructions, natural_plan, trips
from anytime_graph.text import clipped, fenced, harmless

MEMORY, SECONDS = 4 << 30, 60
"""Bytes and seconds of CPU that the readers of a text may take."""
PIECES, TOO_MUCH = 8, 3
"""Work is too much if at once it takes 3 times as long as in 8 pieces, in CPU."""
UNNOTICED = 0.02
"""Seconds of CPU below which no growth is measured."""

UNITS = [
    *(".", "?!", "a", "1", "-", "=", " ", "\n", "\r\n", "\t \n", '"', "\\", "'", "* ", "_"),
    *("\xe9", "\u65e5", "\U0001f642", "\ud83d", "\0", "x. ", "- rule\n", "1) ", "A B ", "1,111"),
    *("<answer>", "</answer>", "<answer>x</answer>", "<answer", "[", "{", "{}", '["', '{"x":'),
    *('[{"', "[1,", '{"x":1},', '{"x":"', '{"\\"', "answer is ", "answer: ", "answer * ", "or B "),
    *("\\boxed{", "\\boxed ", "\\frac{1", "day 1 ", "day 1-", "day 1:\n", "in Rome ", "from a to "),
    *("from ", "visit ", "verdict:", "1/", "1=", "0.", "option ", "(", "\n\n", "1 and "),
    *("<<", "*", "***", "```\n", "role ", "max", "not allowed max_", "1,"),
]


@cache
def texts(size: int) -> dict[str, str]:
    def filled(unit: str, head: str = "", tail: str = "") -> str:
        return head + unit * (size // len(unit)) + tail

    within = [
        (".", "Well", "x"),
        ("?!", "Well", "x"),
        ("_", "A", "x"),
        (" ", "Well", "x"),
        ("1", "x", "x"),
        ("[", '["', ""),
    ]
    within += [(" ", head, "\n") for head in ("answer is", "answer:", "day", "from", "verdict")]
    half, eighth = size // 2, size // 8
    return {
        **{f"{unit!r}, repeated": filled(unit) for unit in UNITS},
        **{f"{unit!r} between {a!r} and {b!r}": filled(unit, a, b) for unit, a, b in within},
        "boxes in boxes": "\\boxed{" * eighth + "}" * eighth,
        "lists in lists": "[" * half + "]" * half,
        "a hundred lists in lists": filled("[1," * 100 + "]" * 100),
        "objects in objects": filled('{"a":' * 90 + "1" + "}" * 90),
        "one long line of days": filled("day 1 in Rome "),
        "accents out of order": filled("\u0301\u0323", "a"),
        "digits, a dash, digits": "1" * half + "-" + "1" * half,
    }


# --- what reads the text of a reply


class Point(BaseModel):
    x: int


class Numbers(RootModel[list[int]]):
    pass


def constrained(text: str) -> object:
    rules: dict[str, Any] = {"sentences": 2, "words": 3, "include": ("fox", "in Rome", ".")}
    return Constraints(**rules, forbid=("a", "1 1"), ends_with=".", json=Point)("", text)


def candidate(id: int, text: str) -> Any:
    return {"id": id, "text": text, "answer": text, "score": 1 / (id + 1), "feedback": text} | {
        "parents": []
    }


def paired(text: str) -> object:
    many = [candidate(id, text[id:]) for id in range(3)]
    return pairs.scored_pairs(many, [], 4), pairs.parting(text, text[1:])


def planned(text: str) -> object:
    trip = trips.Trip(9, (("Rome", 4), ("Oslo", 6)), (), frozenset({("Rome", "Oslo")}))
    golden = [("Rome", 4), ("Oslo", 6)]
    return trips.score(trip, "", text), natural_plan.exact_match(golden, 9, text)


def shown(text: str) -> object:
    beside = [HumanMessage(text), AIMessage(text)]
    case = prompts.Case(text, beside)
    lesson: Any = {"better": text, "worse": text, "why": text, "question": text, "principles": []}
    lessons = prompts.Lessons([lesson], [lesson], [text], "both", "principles", 300)
    return (
        prompts.compare(case, text, text, 1.0, None, False),
        prompts.explain(case, text, text, 1.0),
        prompts.sum_up(beside, 10_000_000, True),
        lessons.text(1.0),
        fenced([("TEXT", text)]),
        clipped(text, 80),
        harmless(text),
    )


def followed(text: str) -> object:
    """All rules but those by packages, which recognize languages and sentences."""
    options: dict[str, Any] = {
        "number_words": {"num_words": 9, "relation": "at least"},
        "number_paragraphs": {"num_paragraphs": 2},
        "nth_paragraph_first_word": {
            **{"num_paragraphs": 2, "nth_paragraph": 1},
            "first_word": "a",
        },
        "number_placeholders": {"num_placeholders": 2},
        "postscript": {"postscript_marker": "P.P.S"},
        "number_bullet_lists": {"num_bullets": 2},
        "number_highlighted_sections": {"num_highlights": 2},
        "multiple_sections": {"section_spliter": "Day", "num_sections": 2},
        **{name: {} for name in ("title", "json_format", "constrained_response", "no_comma")},
        **{name: {} for name in ("quotation", "two_responses")},
        "existence": {"keywords": ["fox"]},
        "forbidden_words": {"forbidden_words": ["fox"]},
        "frequency": {"keyword": "a", "frequency": 2, "relation": "at least"},
        "letter_frequency": {"letter": "a", "let_frequency": 2, "let_relation": "at least"},
        "capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
        "end_checker": {"end_phrase": "a fox"},
        "repeat_prompt": {"prompt_to_repeat": "a fox"},
    }
    rules = {name.split(":")[1]: rule for name, rule in instructions.RULES.items()}
    return [rules[name](text, **given) for name, given in options.items()]


def refused(text: str) -> object:
    error: Any = ValueError(text)
    error.status_code, error.response = 400, SimpleNamespace(text=text, headers={"x": text})
    said = refusals.words(error)
    found = [part.named.search(said) for part in PARTS.values()]
    return found, refusals.too_large(error, 9_999), refusals.told_wait(error)


def dripped(text: str) -> object:
    """The head of a reply that comes byte by byte."""
    head = restated._Head(SimpleNamespace(is_success=True))
    for byte in text.encode(errors="replace"):
        if head.shows(bytes([byte])):
            break
    return head.stated()


def told(text: str) -> Shown:
    return Shown(text, None, [], 1, None)


def whole(text: str) -> object:
    message = AIMessage(text, additional_kwargs={"reasoning_content": text})
    asked = {"name": "f", "args": {"x": text}, "id": "c", "type": "tool_call"}
    called = AIMessage("", tool_calls=[asked])
    reply = StreamedReply(n=1, max_output=300, run_id="")
    return reply.feed(message), joined([message]), tool_calls.with_whole_calls(called)


def many_calls(text: str) -> object:
    """A tool call for each hundred characters."""
    calls = [
        {"name": "f", "args": {"x": text[at : at + 100]}, "id": str(at), "type": "tool_call"}
        for at in range(0, len(text), 100)
    ]
    sent = [{"id": c["id"], "function": {"name": "f", "arguments": "{}"}} for c in calls]
    message = AIMessage("", tool_calls=calls, additional_kwargs={"tool_calls": sent})
    return tool_calls.with_whole_calls(message), providers.called(message)


def learned(chosen: int | None, text: str) -> object:
    move: Any = {"chosen": chosen, "rejected": chosen}
    return lesson_of(move, Reply(text, AIMessage(text), receipt(0, 0)))


READERS: dict[str, Callable[[str], object]] = {
    "tagged": scoring.tagged,
    "an object": partial(scoring.parsed, Point),
    "a list": partial(scoring.parsed, Numbers),
    "normal": scoring.normal,
    "constraints": constrained,
    "final": answers.final,
    "tail": answers.tail,
    "number": lambda text: (answers.numeric(text), answers.is_number(text)),
    "letter": answers.letter,
    "same": lambda text: (answers.same(text, "7"), answers.same(text, "a fox")),
    "plans": planned,
    "verdict": lambda text: (split_verdict(text), split_verdict(text, True), chosen(text, True)),
    "reason": partial(learned, 1),
    "rules": partial(learned, None),
    "pairs": paired,
    "prompts": shown,
    "likeness": likeness.terms,
    "tokens": lambda text: (max_written_tokens(text), tokens.min_tokens(text)),
    "shape": lambda text: tokens.Tokenizer().shape([HumanMessage(text)]),
    "whole reply": whole,
    "many calls": many_calls,
    "stored": plain,
    "rules of IFEval": followed,
    "code": lambda text: (code.code_in(text), code.completed("def f(n):\n", "f", text)),
    "rules of the demo": lambda text: demo.check("", text),
    "refusal": refused,
    "head of a reply": dripped,
    "page": lambda text: (escaped(text), line(text), repr(told(text)), told(text)._repr_html_()),
    "untagged": lambda text: paper._TAG.sub("", text),
}


# --- what reads a stream


def streamed(size: int, n: int = 1, **piece: Any) -> object:
    """The same piece again and again. Each has a report, as some servers send it."""
    usage: Any = {"input_tokens": 5, "output_tokens": 5, "total_tokens": 10}
    chunk = AIMessageChunk(**{"content": "", "id": "run", "usage_metadata": usage} | piece)
    reply = StreamedReply(n=n, max_output=size // 8, run_id="run")
    for _ in range(size):
        reply.feed(chunk)
    return [reply.message(choice) for choice in reply.choices()]


STREAMS: dict[str, Callable[[int], object]] = {
    "letters": partial(streamed, content="a"),
    "marks": partial(streamed, content="("),
    "blocks": partial(streamed, content=[{"type": "text", "text": "a", "index": 0}]),
    "choices": partial(streamed, n=2, content="a"),
    "thoughts": partial(streamed, additional_kwargs={"reasoning_content": "a"}),
    "arguments": partial(
        streamed, tool_call_chunks=[{"name": None, "args": "1", "id": "c", "index": 0}]
    ),
}


Work = Callable[[int, int], object]
"""Work of a size, the nth time. Readers have caches, so each time the text is another one."""


def works(size: int) -> list[dict[str, Work]]:
    """All readers of each text, then all streams."""

    def read(reader: str, name: str, size: int, nth: int) -> object:
        return READERS[reader](" " * nth + texts(size)[name])

    def feed(name: str, size: int, nth: int) -> object:
        return STREAMS[name](size // 4)

    return [
        *({f"{r}, of {name}": partial(read, r, name) for r in READERS} for name in texts(size)),
        {f"a stream of {name}": partial(feed, name) for name in STREAMS},
    ]


def cpu(work: Work, size: int, times: range) -> float:
    """Seconds of CPU, without those of the collector, which comes when it likes."""
    gc.disable()
    began = time.process_time()
    for nth in times:
        work(size, nth)
    took = time.process_time() - began
    gc.enable()
    return took


def grows(work: Work, size: int) -> bool:
    """Whether work is too much, three times in a row. Linear work takes as long at once as in 8 pieces,
    quadratic work 8 times as long."""
    return all(
        (took := cpu(work, size, range(nth, nth + 1))) > UNNOTICED
        and took > TOO_MUCH * cpu(work, size // PIECES, range(nth * PIECES, (nth + 1) * PIECES))
        for nth in range(3)
    )


def measure(works: Mapping[str, Work], size: int) -> None:
    for name, work in works.items():
        if grows(work, size):
            print(f"{name}: more than linear", flush=True)


def ended(work: Callable[[], object]) -> str | None:
    """What ended the work: an error, or the kernel; None if it came to its end."""
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            work()
        except BaseException as error:
            sys.stdout.write(f"{type(error).__name__}: {str(error)[:100]!r}: ")
            sys.stdout.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return None if status == 0 else "failed" if os.WIFEXITED(status) else "ended by the kernel"


def examine(size: int) -> None:
    """One process for all readers of a text; each has its own only where that one does not end."""
    texts(size // PIECES)
    for work in works(size)[0].values():  # what is imported or compiled at first use is no growth
        work(1_000, 0)
    gc.freeze()
    for together in works(size):
        for name, work in together.items() if ended(partial(measure, together, size)) else ():
            if why := ended(partial(measure, {name: work}, size)):
                print(f"{name}: {why}", flush=True)


if __name__ == "__main__":
    examine(int(sys.argv[1]))
