"""The paper's protocol (Zhang et al. 2026, arXiv 2601.11038): full chains of thought, cut at
checkpoints in generated tokens, and an answer forced from what stands before each cut.

The modes differ in what the prompt of a chain shows of other questions: nothing (`base`), principles
learned from mistakes (`leap`), better trajectories (`pdp_positive`), or better and worse ones (`pdp`).
Where the paper is silent, docs/benchmark.md says what is done here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from anytime_graph import prompts
from anytime_graph.benchmark.cells import Cell, Record
from anytime_graph.benchmark.places import Places, TooDear
from anytime_graph.benchmark.recording import RecordedReply, heard
from anytime_graph.benchmark.run import (
    NAMESPACE,
    FixedMemory,
    Learned,
    SafeScorer,
    Unmeasured,
    check,
    dearest,
    record_of,
)
from anytime_graph.benchmark.tape import CellModel
from anytime_graph.budget import Prices
from anytime_graph.checkpoints import Ledger
from anytime_graph.metering.meter import meter
from anytime_graph.metering.request import Reply
from anytime_graph.models import tokens
from anytime_graph.nodes import learn
from anytime_graph.nodes.answering import candidate
from anytime_graph.planning.answers import AnswerFormat, answer_format
from anytime_graph.planning.moves import Draft, Learn, planned_move
from anytime_graph.prompts import Lessons
from anytime_graph.run.calls import PlannedCall, PlannedMove
from anytime_graph.run.pairs import Candidate, Example, Shown, scored_pairs
from anytime_graph.tasks import Question, Task

_SHOWN: dict[str, Shown] = {
    "base": None,
    "leap": "principles",
    "pdp_positive": "chosen",
    "pdp": "both",
}
_EXAMPLES, _PAIRS = 3, 2
"""How many a prompt shows, and how many are kept of a training question."""
_LESSONS = 1_500
"""Input tokens that examples may take in a prompt, by the upper bound."""
_RULES = 256
"""Output tokens for the principles of a training question."""
_MARGIN = 250
"""Input tokens for what a prompt says beside the question and the reasoning."""
_LOOSE = 2
"""Tokens, by the upper bound, that a generated token of a prefix may be as input."""
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
How = Literal["whole", "pieces", "tokenizer", "estimate"]
_ENDS = 2
"""Tokens that a provider may bill and not show, such as the one that ends a reply."""


@dataclass(frozen=True)
class PaperProtocol:
    """Measures cells of the paper's protocol. Each is a thread of the ledger, and each of its calls
    is metered."""

    task: Task
    ledger: Ledger
    prices: Prices | None = None
    stop: threading.Event | None = None

    def ceiling(self, cell: Cell) -> tuple[float, float]:
        """The most that a cell can cost, in tokens and USD: a generous estimate, which `measure`
        keeps to. Chains with their examples, and every prefix once more as input."""
        question = _bound(cell.question.conversation) + _MARGIN
        room, chains = cell.settings.room, cell.settings.trajectories if cell.prepares else 1
        chain = question + (_LESSONS if cell.lessons else 0) + cell.budgets[-1]
        answers = sum(question + _LOOSE * at + room for at in cell.budgets)
        learning = cell.prepares and cell.strategy == "leap"
        most = chains * (chain + answers) + (question + _LESSONS + _RULES if learning else 0)
        return most, most * dearest(self.prices) / 1e6

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Learned | None]:
        """Make the chain, cut it, have each prefix answered. Raises Unmeasured, or NotRecorded in a
        replay that misses a call."""
        protocol = self.task.answer if callable(self.task.answer) else "tags"
        with self._places(cell, model) as places:
            work = _Work(cell, model, places, answer_format(protocol), SafeScorer(cell.question))
            return work.prepare() if cell.prepares else (work.measure(memory), None)

    @contextmanager
    def _places(self, cell: Cell, model: CellModel) -> Iterator[Places]:
        self.ledger.forget(cell.name)
        ready = meter(model.model(), self.prices)
        with Places.opened(
            self.ledger,
            ready,
            thread=cell.name,
            strategy=cell.strategy,
            question=cell.question.prompt,
            tokens=model.account.limits["tokens"],
            stop=self.stop,
        ) as places:
            yield places


@dataclass(frozen=True)
class _Chain:
    """A chain of thought. generated: its tokens, as the provider counts them."""

    call: PlannedCall
    reply: Reply
    generated: int


@dataclass
class _Work:
    """One cell under way."""

    cell: Cell
    model: CellModel
    places: Places
    answers: AnswerFormat
    truth: SafeScorer
    answering: int = 0
    how: str = "whole"
    dear: bool = False

    def measure(self, memory: FixedMemory | None) -> Record:
        shown = _SHOWN[self.cell.strategy]
        lessons = Lessons(
            examples=examples(memory, self.cell.question) if memory and shown else (),
            memory=shown,
            allowance=_LESSONS,
        )
        chain = self._chain(lessons, self.cell.budgets[-1])
        scores: list[float] = []
        for n, at in enumerate(self.cell.budgets):
            if n and self.cell.budgets[n - 1] >= chain.generated:
                scores.append(scores[-1])  # it had ended: the same prefix, the same answer
                continue
            scores.append(self.truth.of(self._answer(chain, at)))
        self.places.close("done")
        return self._record(scores, chain)

    def prepare(self) -> tuple[Record, Learned]:
        """Trajectories on a training question, and what they teach."""
        budget, question = self.cell.budgets[0], self.cell.question
        candidates = []
        for _ in range(self.cell.settings.trajectories):
            chain = self._chain(Lessons(), budget)
            candidates += self._scored(chain, self._answer(chain, budget))
        pairs = scored_pairs(candidates, [], _PAIRS)
        rules: list[str] = []
        if self.cell.strategy == "leap" and pairs:
            move = planned_move(Learn())
            assert move["kind"] == "learn"
            prompt = prompts.principles(prompts.Case(question.prompt), pairs, 1.0)
            _, reply = self._call(move, prompt, _RULES)
            found = learn.absorb(move, reply)
            rules = found if isinstance(found, list) else []
        self.places.close("done")
        best = max((c["score"] or 0.0 for c in candidates), default=0.0)
        record = self._record([best], chain)
        return {**record, "pairs": len(pairs)}, Learned(question.prompt, pairs, rules)

    def _record(self, scores: Sequence[float], chain: _Chain) -> Record:
        return record_of(
            self.cell,
            self.model,
            scores=list(scores),
            oracle=list(accumulate(scores, max)),
            spent=self.places.spent,
            answering=self.answering,
            unscored=self.truth.unscored,
            stop_reason="too dear" if self.dear else chain.reply.receipt["ended"],
            cut=self.how,
        )

    # --- calls

    def _chain(self, lessons: Lessons, room: int) -> _Chain:
        prompt = prompts.opening(
            self.cell.question.conversation, self.answers.protocol, lessons, 1.0, room
        )
        call, reply = self._call(planned_move(Draft()), prompt, room)
        take = self.model.heard[-1]
        shown = sum(piece is not None for piece in take.pieces)
        hidden = reply.receipt["spend"]["reasoning_tokens"]
        if hidden and not any(isinstance(piece, list) for piece in take.pieces):
            raise ValueError(
                f"--protocol paper: {self.model.facts.name} hides its reasoning ({hidden} tokens), "
                "so its chains cannot be cut; --protocol run measures it"
            )
        known = reply.receipt["reported"] is not None and not take.cut
        self._kept(call, reply, reply.text)
        return _Chain(call, reply, reply.receipt["spend"]["output_tokens"] if known else shown)

    def _answer(self, chain: _Chain, at: int) -> str:
        """The answer that is forced from the first `at` tokens; it sees nothing after them."""
        counted = self.model.facts.counted
        exact = tokenizer(self.model.facts.name) if counted else None
        take = next(t for t in self.model.heard if t.seed == self._seed(chain.call))
        prefix, how = cut(take, chain.generated, at, exact)
        self.how = how if how != "whole" else self.how
        prompt = self.cell.question.conversation
        if prefix.strip():
            prompt.append(AIMessage(prefix))
        prompt.append(HumanMessage(self.answers.protocol.conclude()))
        room = self.cell.settings.room
        try:
            call, reply = self._call(
                planned_move(Draft(conclude=chain.call["ordinal"])), prompt, room
            )
        except TooDear:
            self.dear = True
            return ""
        self.answering += reply.receipt["spend"]["tokens"]
        found = self.answers.extract(reply.text) or _TAG.sub("", reply.text).strip()
        self._kept(call, reply, found)
        return found

    def _call(
        self, move: PlannedMove, prompt: Sequence[BaseMessage], room: int
    ) -> tuple[PlannedCall, Reply]:
        call, reply = self.places.call(move, prompt, room)
        check(self.model)
        if reply.receipt["lost"]:
            raise Unmeasured(reply.receipt["errors"][-1])
        return call, reply

    def _seed(self, call: PlannedCall) -> int:
        return self.model.seed + call["ordinal"]

    # --- answers

    def _kept(self, call: PlannedCall, reply: Reply, answer: str) -> None:
        """The answer goes into the ledger, for whoever wants to read it there."""
        found = candidate(call, reply, self.answers, self.places.spent)
        if found is not None:
            self.places.keep(call, {**found, "answer": answer})

    def _scored(self, chain: _Chain, answer: str) -> list[Candidate]:
        """The trajectory with its score, as pairs are made from; none if it is empty."""
        score = self.truth.verdict(answer)
        found = candidate(chain.call, chain.reply, self.answers, self.places.spent)
        if found is None:
            return []
        judged: Any = {"score": score.value, "feedback": score.feedback, "right": score.right}
        return [{**found, "answer": answer, **judged}]


def examples(memory: FixedMemory, question: Question) -> list[Example]:
    """Of the questions most like this one; of the others where those are too few."""
    found = list(memory.recall(NAMESPACE, question.prompt, _EXAMPLES))
    for one in memory.learned:
        found += [e for e in memory.recall(NAMESPACE, one.question, 1) if e not in found]
    return found[:_EXAMPLES]


def _bound(messages: Sequence[BaseMessage]) -> int:
    estimate = tokens.Tokenizer()
    return estimate.bound(estimate.shape(messages), tokens.uncalibrated())


# --- cutting a reply at a token


class Prefix(NamedTuple):
    """What stands before a cut, and how it was found."""

    text: str
    how: How


class Tokenizer(Protocol):
    """tiktoken's encodings are such."""

    def encode(self, text: str, *, disallowed_special: tuple[()]) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


def tokenizer(model: str) -> Tokenizer | None:
    """OpenAI's for the model of this name; None if it is not known, or not to be had."""
    import tiktoken

    try:
        return tiktoken.encoding_for_model(model)
    except Exception:  # an unknown model is a KeyError; offline it is the network library's own
        return None


def cut(take: RecordedReply, generated: int, at: int, exact: Tokenizer | None = None) -> Prefix:
    """The first `at` of the `generated` tokens of a reply.

    By the pieces of its stream, if there were as many as tokens; else by the tokenizer, if there is
    one; else at the same share of its characters, which is an estimate.
    """
    pieces = heard(take)
    text = "".join(pieces)
    if at >= generated:
        return Prefix(text, "whole")
    if abs(generated - len(pieces)) <= _ENDS:
        return Prefix("".join(pieces[:at]), "pieces")
    if exact is not None:
        start = exact.decode(exact.encode(text, disallowed_special=())[:at])
        return Prefix(start.rstrip("\ufffd"), "tokenizer")
    return Prefix(text[: round(len(text) * at / generated)], "estimate")
