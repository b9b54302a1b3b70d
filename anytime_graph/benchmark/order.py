"""What a benchmark command orders, from its options to the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from anytime_graph.benchmark import cells as plan
from anytime_graph.benchmark.cells import MODES, Cell, Decide, Protocol, Records, Settings
from anytime_graph.benchmark.figures import Figures, figures
from anytime_graph.benchmark.paper import PaperProtocol
from anytime_graph.benchmark.recording import Facts, Recording
from anytime_graph.benchmark.report import Made, markdown, page, parts, summary, verdict
from anytime_graph.benchmark.run import RunProtocol
from anytime_graph.benchmark.session import Session
from anytime_graph.benchmark.shared import Grants
from anytime_graph.benchmark.spread import Spread, cluster
from anytime_graph.benchmark.tape import facts_of, limited
from anytime_graph.budget import Prices, Spend, nothing
from anytime_graph.checkpoints import Ledger, open_checkpoints
from anytime_graph.interrupt import interruptible
from anytime_graph.metering.account import Account
from anytime_graph.metering.meter import Meter, meter
from anytime_graph.models import default_model, prices_of, resolve_model
from anytime_graph.tasks import Question, Task, load

CALLS, RECORDS, LEDGER = "calls.jsonl", "records.jsonl", "ledger.db"
Engine = Literal["local", "ray"]
Progress = Callable[[int, Recording], AbstractContextManager[Callable[[Cell, str | None], None]]]
"""Of a number of cells and a recording: shows each cell that ends, with its failure if it failed."""
_STRATEGIES: dict[Protocol, str] = {"run": "single,best_of_n,pdp", "paper": ",".join(MODES)}


@dataclass(frozen=True)
class Done:
    lines: Sequence[str]
    ended: str | None


@dataclass(frozen=True)
class ModelUnderTest:
    """The model that a benchmark hears: what it is, and it metered; None in a replay."""

    name: str
    facts: Facts
    inner: Meter | None
    prices: Prices | None


@dataclass
class Part:
    """A task, its cells, and what they came to."""

    settings: Settings
    task: Task
    cells: Sequence[Cell]
    training: Callable[[], Sequence[Question]]


@dataclass(frozen=True)
class Order:
    """The options, as they were given."""

    tasks: Sequence[str]
    task_option: Sequence[str]
    model: str | None
    protocol: Protocol
    strategy: str | None
    budgets: tuple[int, ...]
    samples: int
    seeds: tuple[int, ...]
    out: Path
    decide: Decide
    baseline: str | None
    train: int
    train_budget: int | None
    trajectories: int
    room: int
    q_max: float
    origin: bool
    total_tokens: int | None
    total_usd: float | None
    parallel: int
    rate: float | None
    price: Prices | None
    replay: Path | None
    engine: Engine
    ledger: str | None

    def __post_init__(self) -> None:
        for name in ("samples", "parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        for name in ("total_tokens", "total_usd", "rate", "q_max"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: more than 0 is needed")
        if self.q_max < 1:
            raise ValueError(f"--q-max {self.q_max:g}: scores go up to 1, so 1 is the least")
        if self.baseline is not None and self.baseline not in self.strategies:
            raise ValueError(
                f"--baseline {self.baseline!r}: one of the strategies, {', '.join(self.strategies)}"
            )
        if self.protocol == "paper" and self.decide != "scorer":
            raise ValueError(
                f"--decide {self.decide}: in the paper's protocol nothing is chosen, for each "
                "checkpoint has one answer"
            )
        if (self.engine == "ray") != (self.ledger is not None):
            raise ValueError("--engine ray and --ledger postgresql://...: the one needs the other")
        if self.ledger and not self.ledger.startswith(("postgresql://", "postgres://")):
            raise ValueError(
                "--ledger: a database that all workers reach, as postgresql://HOST/NAME"
            )
        if self.replay and self.ledger:
            raise ValueError(f"--replay {self.replay}: it asks no model; leave out --engine ray")
        if self.replay and self.replay.resolve() in (self.out.resolve(), self._calls.resolve()):
            raise ValueError(f"--replay {self.replay}: give another --out for what it comes to")

    @property
    def strategies(self) -> list[str]:
        return [s.strip() for s in (self.strategy or _STRATEGIES[self.protocol]).split(",")]

    @property
    def _calls(self) -> Path:
        return self.out / CALLS

    # --- the whole

    def run(self, command: str, progress: Progress) -> Done:
        planned = [self._planned(name) for name in self.tasks]
        self.out.mkdir(parents=True, exist_ok=True)
        with self._recording() as recording:
            heard = self._heard(recording)
            recording.prices = heard.prices
            records = Records(self.out / RECORDS)
            for part in planned:
                part.settings = replace(part.settings, model=heard.name)
                part.cells = self._cells(part.settings, part.task)
            with (
                self._engine(recording) as grants,
                open_checkpoints(self.out / LEDGER) as store,
            ):
                made = self._measured(
                    planned, recording, records, heard, store.ledger, grants, command, progress
                )
        return self._reported(planned, records, made)

    def _planned(self, name: str) -> Part:
        """What can be said before there is a model; bad options come out here."""
        settings = self._settings(name, self.model or "")
        made = self._loaded(name, self.samples)
        cells = self._cells(settings, made)
        return Part(settings, made, cells, lambda: self._training(name, made))

    def _settings(self, task: str, model: str) -> Settings:
        name, options = self._named(task)
        return Settings(
            protocol=self.protocol,
            task=name,
            model=model,
            budgets=self.budgets,
            decide=self.decide,
            options=options,
            training=self.train,
            training_budget=self.train_budget or 0,
            trajectories=self.trajectories,
            room=self.room,
        )

    def _cells(self, settings: Settings, task: Task) -> Sequence[Cell]:
        return plan.cells(settings, task, self.strategies, self.seeds)

    def _measured(
        self,
        planned: Sequence[Part],
        recording: Recording,
        records: Records,
        heard: ModelUnderTest,
        ledger: Ledger,
        grants: Grants | None,
        command: str,
        progress: Progress,
    ) -> Made:
        most = {"tokens": self.total_tokens, "usd": self.total_usd} if heard.inner else {}
        bought: Spend = {**nothing(), "tokens": int(recording.bought.tokens)}
        total = Account(
            {d: amount for d, amount in most.items() if amount is not None},
            {**bought, "usd": recording.bought.usd},
        )
        failures: list[str] = []
        ended: str | None = None
        todo = sum(c.name not in records for part in planned for c in part.cells)
        with interruptible() as stop, progress(todo, recording) as report:
            for part in planned:
                protocol: type[RunProtocol | PaperProtocol] = (
                    RunProtocol if self.protocol == "run" else PaperProtocol
                )
                measure = protocol(part.task, ledger, heard.prices, stop)
                session = Session(
                    Spread(measure, grants, heard.name, self._share) if grants else measure,
                    records,
                    recording,
                    total,
                    heard.facts,
                    heard.inner,
                    self.parallel,
                    stop,
                    report,
                    failures,
                )
                session.run(part.cells, part.training)
                ended = session.ended
                if ended is not None:
                    break
        if ended is None and any(c.name not in records for p in planned for c in p.cells):
            ended = "failures"
        return Made(command, recording.bought, ended, failures, heard.inner is None)

    def _reported(self, planned: Sequence[Part], records: Records, made: Made) -> Done:
        found: list[Figures] = []
        lines = []
        for part in planned:
            try:
                found.append(self._figures(part, records))
            except ValueError as error:
                lines.append(str(error))
        if found:
            content = parts(found, made)
            written = (("report.md", markdown(content)), ("report.html", page(content)))
            for name, text in written:
                (self.out / name).write_text(text, encoding="utf-8")
            for figured in found:
                lines += [f"\n{figured.task}", summary(figured), *verdict(figured)]
            lines += ["", *(str(self.out / name) for name, _ in written)]
        if made.ended is not None:
            lines.append(made.unfinished())
        return Done(lines, made.ended)

    def _figures(self, part: Part, records: Records) -> Figures:
        names = [cell.name for cell in part.cells]
        for kind in dict.fromkeys(c.lessons for c in part.cells if c.lessons):
            prepared = plan.preparations(part.settings, kind, part.training())
            names += [cell.name for cell in prepared]
        return figures(
            part.cells,
            [records[name] for name in names if name in records],
            metric=part.task.metric,
            about=part.task.about,
            baseline=self.baseline or self.strategies[0],
            q_max=self.q_max,
            origin=self.origin,
        )

    # --- the questions

    def _named(self, task: str) -> tuple[str, dict[str, Any]]:
        """A task's name, and its options: those behind its question mark, and those of all."""
        name, _, own = task.partition("?")
        found: dict[str, Any] = {}
        for text in [*self.task_option, *filter(None, own.split("&"))]:
            option, equals, value = text.partition("=")
            if not (option and equals):
                raise ValueError(
                    f"--task {task!r}, option {text!r}: NAME=VALUE, as in difficulty=3"
                )
            try:
                found[option] = json.loads(value)
            except ValueError:
                found[option] = value
        return name, found

    def _loaded(self, task: str, count: int | None, **more: Any) -> Task:
        name, options = self._named(task)
        return load(name, **{**options, **({"count": count} if count else {}), **more})

    def _training(self, name: str, tested: Task) -> Sequence[Question]:
        """Questions that are not asked in the test. Raises ValueError if there are too few."""
        asked = {question.id for question in tested.questions}
        seed = self._named(name)[1].get("seed", 0) + 1
        try:
            pool = self._loaded(name, self.train + len(asked), seed=seed)
        except ValueError:  # there are not so many: all there are
            pool = self._loaded(name, None, seed=seed)
        others = [question for question in pool.questions if question.id not in asked]
        if len(others) < self.train:
            raise ValueError(
                f"--train {self.train}: {name} has {len(others)} questions beside the "
                f"{len(asked)} that are tested; give a smaller --train or --samples"
            )
        return others[: self.train]

    # --- the model

    @contextmanager
    def _recording(self) -> Iterator[Recording]:
        source = self._calls
        if self.replay is not None:
            source = self.replay / CALLS if self.replay.is_dir() else self.replay
            if not source.is_file():
                raise ValueError(f"--replay {self.replay}: there is no {CALLS} in it")
        recording = Recording(source, live=self.replay is None)
        try:
            yield recording
        finally:
            recording.close()

    @contextmanager
    def _engine(self, recording: Recording) -> Iterator[Grants | None]:
        if self.ledger is not None:
            with cluster(self.parallel), Grants.opened(self.ledger, recording) as grants:
                yield grants
        elif recording.shared and recording.live:
            raise ValueError(
                f"--out {self.out}: begun with --engine ray, whose calls are in its --ledger; give "
                "both again"
            )
        else:
            yield None

    @property
    def _share(self) -> float | None:
        """Of the rate, what each of the cells side by side may use."""
        return self.rate / self.parallel if self.rate is not None else None

    def _heard(self, recording: Recording) -> ModelUnderTest:
        if self.replay is not None:
            return self._recorded(recording)
        name = self.model or default_model()
        model = limited(resolve_model(name), self.rate)
        prices = self.price or prices_of(model)
        if self.total_usd is not None and prices is None:
            raise ValueError(
                f"--total-usd: the price of {name} is not known; give --price INPUT,OUTPUT, or "
                "install anytime-graph[prices]"
            )
        facts = recording.introduce(name, facts_of(model, prices))
        return ModelUnderTest(name, facts, meter(model, prices), prices)

    def _recorded(self, recording: Recording) -> ModelUnderTest:
        names = list(recording.facts)
        name = self.model or (names[0] if len(names) == 1 else "")
        if name not in recording.facts:
            raise ValueError(
                f"--model {name!r}: the recording is of {', '.join(names) or 'no model'}"
            )
        facts = recording.facts[name]
        known = cast("Mapping[str, Any] | None", facts.prices)
        return ModelUnderTest(name, facts, None, Prices(**known) if known else None)
