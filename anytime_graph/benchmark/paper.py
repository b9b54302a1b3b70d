"""The paper's protocol: cuts chains of thought at checkpoints, and asks for an answer at each cut.

The paper is Zhang et al. 2026, arXiv 2601.11038. Checkpoints are in generated tokens. The modes
differ in what the prompt of a chain shows from other questions: nothing (`base`), principles learned
from mistakes (`leap`), better trajectories (`pdp_positive`), or better and worse ones (`pdp`). Where
the paper leaves a choice, docs/benchmark.md names ours.
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
from anytime_graph.benchmark.places import OverCeiling, Places
from anytime_graph.benchmark.recording import RecordedReply, piece_texts
from anytime_graph.benchmark.run import (
    NAMESPACE,
    FixedMemory,
    Lesson,
    SafeScorer,
    Unmeasured,
    dearest_price,
    record_of,
    require_measured,
)
from anytime_graph.benchmark.tape import CellModel
from anytime_graph.budget import Prices
from anytime_graph.checkpoints import Ledger
from anytime_graph.metering.meter import meter
from anytime_graph.metering.request import Reply
from anytime_graph.models import tokens
from anytime_graph.nodes.answering import candidate
from anytime_graph.nodes.learn import lesson_of
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
"""Examples in a prompt; pairs kept from a training question."""
_EXAMPLES_INPUT = 1_500
"""Most input tokens for the examples in a prompt, by the upper bound."""
_PRINCIPLES_OUTPUT = 256
"""Most output tokens for the principles from a training question."""
_MARGIN = 250
"""Input tokens for the fixed text of a prompt."""
_INPUT_PER_GENERATED = 2
"""Input tokens, by the upper bound, for each generated token of a prefix."""
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
CutMethod = Literal["whole", "pieces", "tokenizer", "estimate"]
_UNSHOWN = 2
"""Tokens that a provider may bill without showing them, such as the end of a reply."""


@dataclass(frozen=True)
class PaperProtocol:
    """Measures cells of the paper's protocol. Each is a thread of the ledger with metered calls."""

    task: Task
    ledger: Ledger
    prices: Prices | None = None
    stop: threading.Event | None = None

    def ceiling(self, cell: Cell) -> tuple[float, float]:
        """The most that a cell can cost, in tokens and USD: a generous estimate that `measure`
        never exceeds. It pays for the chains with their examples, and for each prefix as input."""
        # A question of 50 tokens, checkpoints 64 and 128, an answer of 256 tokens, no examples:
        # 300 + 128 for the chain, (300 + 2 x 64 + 256) + (300 + 2 x 128 + 256) for the answers.
        question = _prompt_bound(cell.question.conversation) + _MARGIN
        room, chains = cell.settings.room, cell.settings.trajectories if cell.prepares else 1
        chain = question + (_EXAMPLES_INPUT if cell.lessons else 0) + cell.budgets[-1]
        answers = sum(question + _INPUT_PER_GENERATED * at + room for at in cell.budgets)
        learning = cell.prepares and cell.strategy == "leap"
        most = chains * (chain + answers) + (
            question + _EXAMPLES_INPUT + _PRINCIPLES_OUTPUT if learning else 0
        )
        return most, most * dearest_price(self.prices) / 1e6

    def measure(
        self, cell: Cell, model: CellModel, memory: FixedMemory | None
    ) -> tuple[Record, Lesson | None]:
        """Make the chain, cut it, and ask for an answer at each cut. Raises Unmeasured, or
        NotRecorded if a replay lacks a call."""
        protocol = self.task.answer if callable(self.task.answer) else "tags"
        with self._places(cell, model) as places:
            work = _CellRun(cell, model, places, answer_format(protocol), SafeScorer(cell.question))
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
    """A chain of thought. generated: its output tokens, as the provider counts them."""

    call: PlannedCall
    reply: Reply
    generated: int


@dataclass
class _CellRun:
    """The measurement of one cell. how: how its prefixes were cut. too_dear: an answer did not fit the
    ceiling of the cell."""

    cell: Cell
    model: CellModel
    places: Places
    answers: AnswerFormat
    scorer: SafeScorer
    answering: int = 0
    how: str = "whole"
    too_dear: bool = False

    def measure(self, memory: FixedMemory | None) -> Record:
        shown = _SHOWN[self.cell.strategy]
        lessons = Lessons(
            examples=examples_for(memory, self.cell.question) if memory and shown else (),
            memory=shown,
            allowance=_EXAMPLES_INPUT,
        )
        chain = self._chain(lessons, self.cell.budgets[-1])
        answers: list[str] = []
        scores: list[float] = []
        for n, at in enumerate(self.cell.budgets):
            ended = n > 0 and self.cell.budgets[n - 1] >= chain.generated
            answers.append(answers[-1] if ended else self._answer(chain, at))
            scores.append(scores[-1] if ended else self.scorer.value(answers[-1]))
        self.places.close("done")
        return self._record(scores, chain, **self.scorer.seen(answers))

    def prepare(self) -> tuple[Record, Lesson]:
        """Make trajectories on a training question, and the lesson from them."""
        budget, question = self.cell.budgets[0], self.cell.question
        candidates = []
        for _ in range(self.cell.settings.trajectories):
            chain = self._chain(Lessons(), budget)
            candidates += self._scored_candidates(chain, self._answer(chain, budget))
        pairs = scored_pairs(candidates, [], _PAIRS)
        rules: list[str] = []
        if self.cell.strategy == "leap" and pairs:
            move = planned_move(Learn())
            assert move["kind"] == "learn"
            prompt = prompts.principles(prompts.Case(question.prompt), pairs, 1.0)
            _, reply = self._call(move, prompt, _PRINCIPLES_OUTPUT)
            learned = lesson_of(move, reply)
            rules = learned if isinstance(learned, list) else []
        self.places.close("done")
        best = max((c["score"] or 0.0 for c in candidates), default=0.0)
        record = self._record([best], chain)
        return {**record, "pairs": len(pairs)}, Lesson(question.prompt, pairs, rules)

    def _record(self, scores: Sequence[float], chain: _Chain, **more: Any) -> Record:
        return record_of(
            self.cell,
            self.model,
            scores=list(scores),
            oracle=list(accumulate(scores, max)),
            spent=self.places.spent,
            answering=self.answering,
            unscored=self.scorer.unscored,
            stop_reason="too dear" if self.too_dear else chain.reply.receipt["ended"],
            cut=self.how,
            **more,
        )

    # --- calls

    def _chain(self, lessons: Lessons, room: int) -> _Chain:
        prompt = prompts.opening(
            self.cell.question.conversation, self.answers.protocol, lessons, 1.0, room
        )
        call, reply = self._call(planned_move(Draft()), prompt, room)
        recorded = self.model.replies[-1]
        shown = sum(piece is not None for piece in recorded.pieces)
        hidden = reply.receipt["spend"]["reasoning_tokens"]
        if hidden and not any(isinstance(piece, list) for piece in recorded.pieces):
            raise ValueError(
                f"--protocol paper: {self.model.facts.name} hides its reasoning ({hidden} tokens), "
                "so its chains cannot be cut; --protocol run measures it"
            )
        counted = reply.receipt["reported"] is not None and not recorded.cut
        self._keep_answer(call, reply, reply.text)
        return _Chain(call, reply, reply.receipt["spend"]["output_tokens"] if counted else shown)

    def _answer(self, chain: _Chain, at: int) -> str:
        """The answer forced from the first `at` tokens. The model sees nothing after them."""
        counted = self.model.facts.counted
        exact = tokenizer(self.model.facts.name) if counted else None
        recorded = next(r for r in self.model.replies if r.seed == self._seed(chain.call))
        prefix, how = cut(recorded, chain.generated, at, exact)
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
        except OverCeiling:
            self.too_dear = True
            return ""
        self.answering += reply.receipt["spend"]["tokens"]
        answer = self.answers.extract(reply.text) or _TAG.sub("", reply.text).strip()
        self._keep_answer(call, reply, answer)
        return answer

    def _call(
        self, move: PlannedMove, prompt: Sequence[BaseMessage], room: int
    ) -> tuple[PlannedCall, Reply]:
        call, reply = self.places.call(move, prompt, room)
        require_measured(self.model)
        if reply.receipt["lost"]:
            raise Unmeasured(reply.receipt["errors"][-1])
        return call, reply

    def _seed(self, call: PlannedCall) -> int:
        return self.model.seed + call["ordinal"]

    # --- answers

    def _keep_answer(self, call: PlannedCall, reply: Reply, answer: str) -> None:
        """Record the answer in the ledger."""
        kept = candidate(call, reply, self.answers, self.places.spent)
        if kept is not None:
            self.places.keep(call, {**kept, "answer": answer})

    def _scored_candidates(self, chain: _Chain, answer: str) -> list[Candidate]:
        """The trajectory with its score, to make pairs from; [] if it is empty."""
        score = self.scorer.verdict(answer)
        trajectory = candidate(chain.call, chain.reply, self.answers, self.places.spent)
        if trajectory is None:
            return []
        verdict: Any = {"score": score.value, "feedback": score.feedback, "right": score.right}
        return [{**trajectory, "answer": answer, **verdict}]


def examples_for(memory: FixedMemory, question: Question) -> list[Example]:
    """Examples from the questions most like this one, then from the others."""
    examples = list(memory.recall(NAMESPACE, question.prompt, _EXAMPLES))
    for lesson in memory.lessons:
        examples += [e for e in memory.recall(NAMESPACE, lesson.question, 1) if e not in examples]
    return examples[:_EXAMPLES]


def _prompt_bound(messages: Sequence[BaseMessage]) -> int:
    estimate = tokens.Tokenizer()
    return estimate.bound(estimate.shape(messages), tokens.uncalibrated())


# --- cutting a reply at a token


class Prefix(NamedTuple):
    """The text before a cut, and how the cut was found."""

    text: str
    how: CutMethod


class ReversibleTokenizer(Protocol):
    """A tokenizer that turns text into tokens and back, such as an encoding of tiktoken."""

    def encode(self, text: str, *, disallowed_special: tuple[()]) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


def tokenizer(model: str) -> ReversibleTokenizer | None:
    """tiktoken's tokenizer for this model; None if it has none, or cannot load it."""
    import tiktoken

    try:
        return tiktoken.encoding_for_model(model)
    except Exception:  # KeyError for an unknown model; the network library's errors offline
        return None


def cut(
    reply: RecordedReply, generated: int, at: int, exact: ReversibleTokenizer | None = None
) -> Prefix:
    """The first `at` of the `generated` tokens of a reply.

    The cut is by the pieces of the stream, if there are as many as tokens; else by the tokenizer, if
    there is one; else at the same share of the characters, which is an estimate.
    """
    pieces = piece_texts(reply)
    text = "".join(pieces)
    if at >= generated:
        return Prefix(text, "whole")
    if abs(generated - len(pieces)) <= _UNSHOWN:
        return Prefix("".join(pieces[:at]), "pieces")
    if exact is not None:
        start = exact.decode(exact.encode(text, disallowed_special=())[:at])
        return Prefix(start.rstrip("\ufffd"), "tokenizer")
    return Prefix(text[: round(len(text) * at / generated)], "estimate")
