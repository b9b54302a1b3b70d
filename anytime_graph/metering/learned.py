"""What a server's refusals have taught of a model: parts of a request that it does not take, the size of
its window, and when it will serve again.

Known in this process, by model and address, to all runs alike. A refused request costs nothing, so it
is made again in another form, smaller or later; within a run never in the form that was refused.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cachetools import LRUCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage

from anytime_graph.budget import GOOD_ROOM, MIN_ROOM, Spend, lowest
from anytime_graph.metering.request import NOWHERE, Request, digest_of
from anytime_graph.models import providers, refusals
from anytime_graph.models.counting import Counts
from anytime_graph.models.tokens import Calibration, Shape, Tokenizer, uncalibrated
from anytime_graph.run.calls import Receipt

_PATIENCE = 90.0
"""Seconds that a call waits for a server that refuses it, in all. Most limits are by the minute."""
_FIRST_WAIT = 0.5
_TRIAL = 0.5
"""Seconds for which the calls of a step wait for what becomes of the first."""
_MODELS = 4_096
"""Models whose facts are kept."""
_FORMS = 1_024
"""Forms of requests of which it is kept, by model, whether they were taken."""
_ALIKE = 2
"""Tokens by which replies that ended at the same limit may differ."""
_CERTAIN = 2
"""A guess at the window is believed once so many requests were taken only in a smaller form."""


class RefusedBefore(RuntimeError):
    """A request is not sent, as its form was refused before in its run. status_code: with which status. said:
    by which error."""

    def __init__(self, status_code: int, said: str) -> None:
        super().__init__(status_code, said)
        self.status_code, self.said = status_code, said

    def __str__(self) -> str:
        return f"refused before in this form: {self.said}"


class Underestimated(RuntimeError):
    """A request is not sent, as another one that was planned with it was billed far more than had been reserved
    for its prompt. reported, reserved: tokens."""

    def __init__(self, reported: int, reserved: int) -> None:
        super().__init__(reported, reserved)
        self.reported, self.reserved = reported, reserved

    def __str__(self) -> str:
        return (
            f"not made: a prompt planned with it was billed {self.reported} tokens, reserved were "
            f"{self.reserved}; its server puts text of its own before prompts"
        )


_FormOfRun = tuple[int, str, int, frozenset[str]]
"""A run, and what is the same in two of its requests that differ in nothing but cap and seed."""


class Size(NamedTuple):
    """Tokens of a request: its prompt, the cap on its output, and both together."""

    prompt: int
    cap: int
    both: int


class Caps(NamedTuple):
    """The caps with which a form was sent in a run: the largest that was taken, and the smallest that was
    refused, with its status and error."""

    taken: float = 0.0
    refused: float = math.inf
    status: int = 0
    said: str = ""

    def beside(self, other: Caps) -> Caps:
        """What both tell."""
        least = other if other.refused < self.refused else self
        return least._replace(taken=max(self.taken, other.taken))

    def bar(self, cap: float) -> bool:
        """Whether a request with this cap is like one that was refused."""
        return bool(self.status) and self.taken < self.refused <= cap


class Form(NamedTuple):
    """A request as the client gets it: messages, the model with its fields, and bound options."""

    prompt: Sequence[BaseMessage]
    model: BaseChatModel
    bound: Mapping[str, Any]


class Part(NamedTuple):
    """A part of a request that some servers do not take. named: how their refusals name it. without:
    the form without it; None if it has none. guessed: it may be meant by a refusal that names
    nothing."""

    named: re.Pattern[str]
    without: Callable[[Form], Form | None]
    guessed: bool = False


@dataclass
class Trial:
    """A step's first request to a server that has not answered yet. until: when its siblings wait no longer.
    over: it was answered or refused. refusal: one that the siblings would get too, as with a wrong key. whole:
    they wait for the end of its reply, which brings the report. above: why they are not made any more, if so."""

    until: float
    over: bool = False
    refusal: Exception | None = None
    whole: bool = False
    above: Underestimated | None = None


@dataclass
class Learned:
    """What is known of one model at one address.

    refused: parts that it does not take. taken: parts that are not at fault. window: tokens of prompt and
    reply together. ceiling: tokens of a reply. Both None: not known. answers: it has begun to answer a request;
    heard: it has ended a reply; trials: until then, of each step the first one. until: no request before this
    time of the monotonic clock. streak: refusals for load, in a row. latest: when the last of them came.
    counts: those of its prompts. largest: of the requests that were taken, each figure by itself; before: the
    same when a step began. forms: what became of the requests of runs, by run and form and then by step, ""
    for what all may know. guesses: requests in a row that were taken only in a
    smaller form, after a refusal that did not say why; doubted: tokens of the smallest that was so refused.
    early: of the latest reply that ended at a limit of the server's own, its tokens, and with its prompt's.
    calibration: what the server adds to each prompt.
    """

    refused: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    window: int | None = None
    ceiling: int | None = None
    answers: bool = False
    heard: bool = False
    trials: LRUCache[str, Trial] = field(default_factory=lambda: LRUCache(_FORMS), repr=False)
    until: float = 0.0
    streak: int = 0
    latest: float = 0.0
    counts: Counts = field(default_factory=Counts)
    largest: Size = field(default_factory=lambda: Size(0, 0, 0))
    before: LRUCache[str, Size] = field(default_factory=lambda: LRUCache(_FORMS), repr=False)
    forms: LRUCache[_FormOfRun, dict[str, Caps]] = field(
        default_factory=lambda: LRUCache(_FORMS), repr=False
    )
    guesses: int = 0
    doubted: float = math.inf
    early: tuple[int, int] = (0, 0)
    calibration: Calibration = field(default_factory=uncalibrated)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def beside(self, max_input: int) -> int | None:
        """The most output tokens that the server takes beside a prompt; None if that is not known. A
        bound may be far above the prompt, so a window never forbids a call."""
        room = None if self.window is None else self.window - max_input
        most = lowest(room, self.ceiling)
        return None if most is None else max(MIN_ROOM, most)

    def enter(self, step: str, whole: bool = False) -> tuple[Trial | None, bool]:
        """The trial that a call of this step is (True) or waits for (False), if any. whole: see Trial."""
        with self.lock:
            if not step or (self.heard if whole else self.answers):
                return None, False
            trial = self.trials.get(step)
            if trial is None or (whole and trial.over and trial.refusal is None):
                until = math.inf if whole else time.monotonic() + _TRIAL
                self.trials[step] = Trial(until, whole=whole)
                return self.trials[step], True
            return trial, False

    def underestimated(self, step: str) -> Underestimated | None:
        """Why a call of this step is not made any more, if so."""
        with self.lock:
            trial = self.trials.get(step)
            return None if trial is None else trial.above

    def show(self, step: str, above: Underestimated) -> None:
        """What a call of this step has shown holds for all that were planned with it."""
        with self.lock:
            if step:
                self.trials.setdefault(step, Trial(0.0, over=True)).above = above

    def largest_before(self, step: str) -> Size:
        """The same for all calls of a step, whichever of them ends first."""
        with self.lock:
            return self.before.setdefault(step, self.largest) if step else self.largest

    def forget(self, run_id: int) -> None:
        """Take what was refused in a run for new."""
        with self.lock:
            for key in [key for key in self.forms if key[0] == run_id]:
                del self.forms[key]

    def narrow(self, window: int | None = None, ceiling: int | None = None) -> None:
        """A window or ceiling no larger than this."""
        with self.lock:
            self.window = lowest(self.window, window)
            self.ceiling = lowest(self.ceiling, ceiling)

    def learn(self, tokenizer: Tokenizer, shape: Shape, reported: int) -> bool:
        """Take in what was reported for a prompt. Returns whether the server adds more to it than was known."""
        with self.lock:
            before = self.calibration.get("preface", 0)
            self.calibration = tokenizer.learn(self.calibration, shape, reported)
            return self.calibration.get("preface", 0) > before

    def learn_cap(self, spend: Spend) -> None:
        """Take in a reply that ended at a limit of the server's own. A second one of as many tokens shows that
        limit; or, with as many as the first one and its prompt, the window."""
        tokens, both = spend["output_tokens"], spend["tokens"]
        with self.lock:
            (before, both_before), self.early = self.early, (tokens, both)
            if tokens >= GOOD_ROOM and abs(tokens - before) <= _ALIKE:
                self.narrow(ceiling=max(tokens, before))
            elif tokens >= GOOD_ROOM and abs(both - both_before) <= _ALIKE:
                self.narrow(window=max(both, both_before))

    def put_off(self, told: float | None, sent: float) -> float:
        """Seconds to wait after a refusal for load of a request that was sent at this time. The wait
        doubles if it was too short: 0.5, 1, 2 seconds. Requests that were under way side by side
        count once."""
        with self.lock:
            now = time.monotonic()
            if sent >= self.latest:
                self.streak, self.latest = self.streak + 1, now
            grown = _FIRST_WAIT * 2 ** min(self.streak - 1, 16)
            wait = grown if told is None else max(told, grown if self.streak > 1 else 0.0)
            self.until = max(self.until, now + wait)
            return self.until - now

    def rest(self) -> float:
        """Seconds until the server is ready again, as it said; 0 if it is too long to wait for."""
        rest = max(0.0, self.until - time.monotonic())
        return rest if rest <= _PATIENCE else 0.0


_known: LRUCache[Hashable, Learned] = LRUCache(_MODELS)
_knowing = threading.Lock()


def learned(model: BaseChatModel) -> Learned:
    """What is known of a model, to all that use it in this process."""
    key = (type(model).__module__, providers.address(model), providers.model_name(model))
    with _knowing:
        return _known.setdefault(key, Learned())


def forget() -> None:
    """Forget everything."""
    with _knowing:
        _known.clear()


def shaped(form: Form, without: Collection[str]) -> Form:
    """The form without these parts."""
    for name, part in PARTS.items():
        if name in without:
            form = part.without(form) or form
    return form


class Attempts:
    """The attempts of one call, each in a form that was not refused yet. hopeless: the server will not
    serve before time or patience ends. oversized: it refuses the smallest output too. refusal: what the
    client raised for the latest that was refused."""

    def __init__(self, request: Request, form: Form, known: Learned) -> None:
        self.request, self._form, self._known = request, form, known
        self._began = self._sent = time.monotonic()
        self._dropped: set[str] = set()
        self._guess: str | None = None
        self._narrowed = self._guessed = self.hopeless = self.oversized = False
        self.refusal: Exception | None = None
        self._waited = 0.0
        self._largest = known.largest_before(request.step)
        self._prompt: str | None = None

    def next(self) -> Request:
        """The request of the next attempt. One whose form was refused before in its run is made smaller or, if
        it cannot be, barred."""
        self._form_anew()
        request, used = self.request, time.monotonic() - self._began
        wait = max(request.wait, self._known.rest())
        seconds = None if request.seconds is None else max(0.0, request.seconds - used)
        left_out = self._left_out()
        self._sent = time.monotonic() + wait
        self._waited += wait
        return replace(
            request,
            wait=wait,
            seconds=seconds,
            without=left_out,
            barred=self._barred,
            refused=self._refused,
        )

    def served(self, came: Receipt) -> None:
        """The latest attempt was taken: what was left out of it is not needed, the rest is."""
        if self.request.ended_early(came):
            self._known.learn_cap(came["spend"])
        known, left_out = self._known, self._left_out()
        with known.lock:
            known.refused |= left_out | ({"n"} if "stream" in left_out else set())
            known.taken |= {name for name in PARTS if self._has(name)} - known.refused
            if self._sent >= known.latest:
                known.streak = 0
            size = self._size
            known.largest = Size(*map(max, known.largest, size))
            self._keep(Caps(taken=self._cap), self.request.step)
            if size.both >= known.doubted:
                known.guesses, known.doubted = 0, math.inf
            known.guesses += self._guessed
            self._narrowed |= self._guessed and known.guesses >= _CERTAIN
        if self._narrowed and self.request.max_output is not None:
            known.narrow(window=_one(self.request) + self.request.max_output // self.request.n)

    def again(self, error: Exception) -> bool:
        """Whether there is another attempt to make after this refusal; it is made ready."""
        if isinstance(error, RefusedBefore):  # by a sibling's request, while this one waited
            return self._form_anew()
        self.refusal = error
        self.request = replace(self.request, wait=0.0)
        large = refusals.too_large(error, self._size.both)
        if large is None and refusals.overloaded(error):
            return self._later(error)
        if large is not None:
            return self._smaller(large)
        if refusals.about_form(error) and self._otherwise(error):
            return True
        return refusals.perhaps_too_large(error) and self._perhaps_smaller()

    def _later(self, error: Exception) -> bool:
        wait = self._known.put_off(refusals.told_wait(error), self._sent)
        used, seconds = time.monotonic() - self._began, self.request.seconds
        late = seconds is not None and used + wait >= seconds
        self.hopeless = late or self._waited + wait >= _PATIENCE
        return not self.hopeless

    def _smaller(self, large: refusals.TooLarge) -> bool:
        """Half of the output; at once what the server allows, where it says so. A prompt of at most
        2,000 tokens in a window of 8,192 leaves 6,192. A limit that the refused reply would have kept is one
        for prompt and reply together."""
        n, most, prompt = self.request.n, large.most, _one(self.request)
        cap = None if self.request.max_output is None else self.request.max_output // n
        if most is not None:
            window = large.window or (cap is not None and cap <= most)
            self._known.narrow(**{"window" if window else "ceiling": most})
        if cap is None:
            return False
        allowed = (
            () if most is None else (most - prompt,) if large.window else (most, most - prompt)
        )
        room = next((room for room in allowed if room < cap), None)
        # A bound may be twice the prompt, so one above the window may still fit.
        smaller = cap // 2 if room is None else room if room >= MIN_ROOM else cap // 4
        if most is None and smaller < MIN_ROOM:
            self._known.narrow(window=(prompt + cap) // 2)
        if smaller < MIN_ROOM or (large.window and prompt > 2 * (most or prompt)):
            return False
        self._narrowed = room is None
        self.request = replace(self.request, max_output=smaller * n)
        return True

    def _perhaps_smaller(self) -> bool:
        """Half of the output, unless requests as large were taken; none is made too small for an answer."""
        request, known = self.request, self._known
        if request.n > 1:  # the choices are asked for one by one
            return False
        with known.lock:
            if all(mine <= taken for mine, taken in zip(self._size, self._largest, strict=True)):
                return False
            known.doubted = min(known.doubted, self._size.both)
        if request.max_output is None or request.max_output // 2 < GOOD_ROOM:
            self.oversized = True
            return False
        self._guessed = True
        self.request = replace(request, max_output=request.max_output // 2)
        return True

    def _form_anew(self) -> bool:
        """Make the request smaller if its form was refused; False if that cannot be."""
        request = self.request
        if not (caps := self._caps()).bar(self._cap):
            return True
        smaller = int(min(self._cap, caps.refused)) // 2 if request.max_output is not None else 0
        if smaller < min(GOOD_ROOM, self._cap):
            self.oversized = True
            return False
        self.request = replace(request, max_output=smaller * request.n)
        return True

    def _barred(self) -> Exception | None:
        caps = self._caps()
        return RefusedBefore(caps.status, caps.said) if caps.bar(self._cap) else None

    def _refused(self, error: Exception, trial: bool) -> None:
        """trial: its siblings have waited to know it."""
        status = providers.status(error)
        if status is not None and not providers.transient(status):
            caps = Caps(refused=self._cap, status=status, said=providers.describe(error))
            self._keep(caps, "" if trial else self.request.step)

    @property
    def _cap(self) -> float:
        """The cap of each choice."""
        most = self.request.max_output
        return math.inf if most is None else most // self.request.n

    @property
    def _size(self) -> Size:
        prompt, cap = _one(self.request), (self.request.max_output or 0) // self.request.n
        return Size(prompt, cap, prompt + cap)

    def _form_of_run(self) -> _FormOfRun:
        request = self.request
        if self._prompt is None:
            self._prompt = digest_of(request.prompt, {"bound": self._form.bound})
        parts = frozenset(self._known.refused | self._left_out())
        return request.place.run_id, self._prompt, request.n, parts

    def _keep(self, caps: Caps, step: str) -> None:
        """Keep what became of the latest attempt."""
        if self.request.place == NOWHERE:
            return
        with self._known.lock:
            by_step = self._known.forms.setdefault(self._form_of_run(), {})
            by_step[step] = by_step.get(step, Caps()).beside(caps)

    def _caps(self) -> Caps:
        """What became of requests of this form, but those that other calls of its step make meanwhile:
        it would depend on which of them is first."""
        caps = Caps()
        if self.request.place == NOWHERE:
            return caps
        with self._known.lock:
            for step, known in self._known.forms.get(self._form_of_run(), {}).items():
                if not step or step != self.request.step:
                    caps = caps.beside(known)
        return caps

    def _left_out(self) -> frozenset[str]:
        return frozenset(self._dropped if self._guess is None else {*self._dropped, self._guess})

    def _otherwise(self, error: Exception) -> bool:
        """Without a part that the refusal names; else without one that it may mean."""
        said = refusals.words(error)
        if self._guess:
            with self._known.lock:
                self._known.taken.add(self._guess)
            self._guess = None
        left = [n for n in PARTS if n not in self._dropped | self._known.refused and self._has(n)]
        if self.request.n > 1 and "stream" in left:
            left.remove("stream")  # of choices that come whole, one would be read
        if named := [name for name in left if PARTS[name].named.search(said)]:
            self._dropped.add(named[0])
            return True
        if self.request.n > 1:  # the choices are asked for one by one
            if _CHOICES.search(said):
                with self._known.lock:
                    self._known.refused.add("n")
            return False
        sure = self._known.taken
        guesses = [name for name in left if PARTS[name].guessed and name not in sure]
        # 404 and 413 say what they mean, and so does who names a cap.
        if providers.status(error) in (400, 422) and not refusals.cap_too_small(error):
            self._guess = next(iter(guesses), None)
        return self._guess is not None

    def _has(self, name: str) -> bool:
        return PARTS[name].without(self._form) is not None


def _one(request: Request) -> int:
    """The bound of the prompt, once."""
    return request.max_input // request.prompt_copies


# --- the parts, each with the form that does without it


def _without_system(form: Form) -> Form | None:
    """System text at the head of the user's message; messages of the user that follow each other as
    one."""
    merged: list[BaseMessage] = []
    for message in form.prompt:
        if message.type == "system":
            message = HumanMessage(message.content, id=message.id)
        if merged and merged[-1].type == message.type == "human":
            both = _joined_content(merged[-1].content, message.content)
            merged[-1] = message.model_copy(update={"content": both})
        else:
            merged.append(message)
    same = len(merged) == len(form.prompt) and all(m.type != "system" for m in form.prompt)
    return None if same else form._replace(prompt=merged)


def _joined_content(first: Any, second: Any) -> Any:
    """Two contents as one: of texts one text, else blocks."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    blocks: list[Any] = []
    for content in (first, second):
        blocks += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return blocks


def _without_reports(form: Form) -> Form | None:
    if not getattr(form.model, "stream_usage", False):
        return None
    return form._replace(model=form.model.model_copy(update={"stream_usage": False}))


def _without_stream(form: Form) -> Form | None:
    """Replies that come whole. What nothing else caps is cut as it streams, and several choices are told
    apart by their pieces."""
    model = form.model
    if providers.cap_field(model) is None or (getattr(model, "n", None) or 1) > 1:
        return None
    if model.disable_streaming is True:
        return None
    return form._replace(model=model.model_copy(update={"disable_streaming": True}))


def _without_option(name: str) -> Callable[[Form], Form | None]:
    def without(form: Form) -> Form | None:
        update: dict[str, Any] = {}
        if name in type(form.model).model_fields and getattr(form.model, name, None) is not None:
            update[name] = None
        for holder in providers.HOLDERS:
            held = getattr(form.model, holder, None)
            if isinstance(held, dict) and name in held:
                update[holder] = _less(held, name)
        bound = {
            key: _less(value, name) if key in providers.HOLDERS else value
            for key, value in form.bound.items()
            if key != name
        }
        if not update and bound == form.bound:
            return None
        return form._replace(model=form.model.model_copy(update=update), bound=bound)

    return without


def _less(options: Any, name: str) -> Any:
    if not isinstance(options, dict):
        return options
    return {key: value for key, value in options.items() if key != name}


def _without_advice(form: Form) -> Form | None:
    config = form.bound.get("output_config")
    if not isinstance(config, dict) or "task_budget" not in config:
        return None
    rest = _less(form.bound, "output_config")
    kept = _less(config, "task_budget")
    return form._replace(bound={**rest, "output_config": kept} if kept else rest)


def _without_strict(form: Form) -> Form | None:
    bound = {key: _lax(value) for key, value in form.bound.items()}
    return None if bound == form.bound else form._replace(bound=bound)


def _lax(options: Any) -> Any:
    """Schemas that are not strict, at any depth."""
    if isinstance(options, dict):
        kept = {k: v for k, v in options.items() if not (k == "strict" and isinstance(v, bool))}
        return {key: _lax(value) for key, value in kept.items()}
    return [_lax(part) for part in options] if isinstance(options, list) else options


def _without_schema(form: Form) -> Form | None:
    """The schema of the reply in the user's message. It was counted as an option already."""
    asked = form.bound.get("response_format")
    asked = asked or (form.bound.get("extra_body") or {}).get("response_format")
    if asked is None or (bare := _without_option("response_format")(form)) is None:
        return None
    schema = (asked.get("json_schema") or {}).get("schema") if isinstance(asked, dict) else None
    if schema is None:
        return bare
    *before, last = form.prompt
    told = f"Reply in JSON for this schema: {json.dumps(schema)}"
    content = _joined_content(last.content, told)
    return bare._replace(prompt=[*before, last.model_copy(update={"content": content})])


def _with_older_cap(form: Form) -> Form | None:
    """The cap by the name that it had before reasoning models."""
    fields = type(form.model).model_fields
    named = getattr(fields.get("max_tokens"), "alias", None) == "max_completion_tokens"
    if not named or "extra_body" not in fields:
        return None
    held = getattr(form.model, "extra_body", None) or {}
    cap = {"max_tokens": getattr(form.model, "max_tokens", None)}
    body = {**held, **(form.bound.get("extra_body") or {}), **cap}
    model = form.model.model_copy(update={"max_tokens": None})
    return form._replace(model=model, bound={**form.bound, "extra_body": body})


_CHOICES = re.compile(
    r"(?<!\w)n(?!\w)|candidate_?count|multiple (choices|completions|candidates)", re.I
)
PARTS: dict[str, Part] = {
    "system": Part(
        re.compile(
            r"(?i)(system|developer)\W*(role|message|prompt|instruction)|\broles?\b.*(support|alternate)"
            r"|(support|only).*\broles?\b"
        ),
        _without_system,
        guessed=True,
    ),
    "parallel_tool_calls": Part(
        re.compile(r"(?i)parallel_?\s?tool_?\s?calls?"), _without_option("parallel_tool_calls")
    ),
    "task_budget": Part(re.compile(r"(?i)task\W?_?budget"), _without_advice),
    "max_completion_tokens": Part(re.compile(r"(?i)max_?completion_?tokens"), _with_older_cap),
    "seed": Part(re.compile(r"(?i)\bseed\b"), _without_option("seed")),
    "strict": Part(
        re.compile(r"(?i)\bstrict\b|additionalproperties|invalid schema"), _without_strict
    ),
    "response_format": Part(
        re.compile(r"(?i)response_?format|json_?schema|structured output|guided"), _without_schema
    ),
    "stream_options": Part(re.compile(r"(?i)stream_?options|include_usage"), _without_reports),
    "stream": Part(re.compile(r"(?i)\bstream(ing)?\b"), _without_stream),
}
"""In the order in which they are left out: the least harm first."""
