"""A benchmark from its command-line options to its report."""

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
from anytime_graph.benchmark.report import (
    Source,
    markdown,
    page,
    report_blocks,
    summary,
    verdict,
)
from anytime_graph.benchmark.run import RunProtocol
from anytime_graph.benchmark.session import Session
from anytime_graph.benchmark.shared import Grants
from anytime_graph.benchmark.spread import Spread, cluster
from anytime_graph.benchmark.tape import facts_of, limited
from anytime_graph.budget import Prices, Spend, nothing
from anytime_graph.checkpoints import Ledger, open_checkpoints
from anytime_graph.checkpoints.target import is_address
from anytime_graph.interrupt import interruptible
from anytime_graph.metering.account import Account
from anytime_graph.metering.meter import Meter, meter
from anytime_graph.models import default_model, prices_of, resolve_model
from anytime_graph.tasks import Question, Task, load
from anytime_graph.text import meant

CALLS, RECORDS, LEDGER = "calls.jsonl", "records.jsonl", "ledger.db"
Engine = Literal["local", "ray"]
Progress = Callable[[int, Recording], AbstractContextManager[Callable[[Cell, str | None], None]]]
"""From the number of cells and the recording, a function that shows each cell that ends, with its
failure or None."""
_STRATEGIES: dict[Protocol, str] = {"run": "single,best_of_n,pdp", "paper": ",".join(MODES)}


@dataclass(frozen=True)
class BenchmarkResult:
    """The lines to print, and why some cells were not run, or None."""

    lines: Sequence[str]
    ended: str | None


@dataclass(frozen=True)
class ModelUnderTest:
    """The model that a benchmark measures. inner: the metered model, None in a replay."""

    name: str
    facts: Facts
    inner: Meter | None
    prices: Prices | None


@dataclass
class TaskPlan:
    """A task of the benchmark, with its cells and its training questions."""

    settings: Settings
    task: Task
    cells: Sequence[Cell]
    training: Callable[[], Sequence[Question]]


@dataclass(frozen=True)
class Order:
    """The options of the command."""

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
            raise ValueError(f"--q-max {self.q_max:g}: scores go up to 1, so at least 1 is needed")
        if self.baseline is not None and self.baseline not in self.strategies:
            raise ValueError(
                f"--baseline {self.baseline!r}: {meant(self.baseline, self.strategies)}one of the "
                f"strategies, {', '.join(self.strategies)}, is needed"
            )
        if self.protocol == "paper" and self.decide != "scorer":
            raise ValueError(
                f"--decide {self.decide}: the paper's protocol chooses no answer, as each "
                "checkpoint has only one"
            )
        if (self.engine == "ray") != (self.ledger is not None):
            raise ValueError("--engine ray and --ledger postgresql://...: give both or neither")
        if self.ledger and not is_address(self.ledger):
            raise ValueError(
                "--ledger: a database that all workers reach is needed, postgresql://HOST/NAME"
            )
        if self.replay and self.ledger:
            raise ValueError(
                f"--replay {self.replay}: a replay asks no model; leave out --engine ray"
            )
        if self.replay and self.replay.resolve() in (self.out.resolve(), self._calls.resolve()):
            raise ValueError(f"--replay {self.replay}: its results need another --out")

    @property
    def strategies(self) -> list[str]:
        return [s.strip() for s in (self.strategy or _STRATEGIES[self.protocol]).split(",")]

    @property
    def _calls(self) -> Path:
        return self.out / CALLS

    # --- the whole

    def run(self, command: str, progress: Progress) -> BenchmarkResult:
        planned = [self._planned(name) for name in self.tasks]
        self.out.mkdir(parents=True, exist_ok=True)
        with self._recording() as recording:
            under_test = self._model_under_test(recording)
            recording.prices = under_test.prices
            records = Records(self.out / RECORDS)
            for part in planned:
                part.settings = replace(part.settings, model=under_test.name)
                part.cells = self._cells(part.settings, part.task)
            with (
                self._engine(recording) as grants,
                open_checkpoints(self.out / LEDGER) as store,
            ):
                source = self._measured(
                    planned, recording, records, under_test, store.ledger, grants, command, progress
                )
        return self._reported(planned, records, source)

    def _planned(self, name: str) -> TaskPlan:
        """The task and its cells, before the model is known. Bad options are found here."""
        settings = self._settings(name, self.model or "")
        task = self._loaded(name, self.samples)
        cells = self._cells(settings, task)
        return TaskPlan(settings, task, cells, lambda: self._training(name, task))

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
        planned: Sequence[TaskPlan],
        recording: Recording,
        records: Records,
        under_test: ModelUnderTest,
        ledger: Ledger,
        grants: Grants | None,
        command: str,
        progress: Progress,
    ) -> Source:
        limits = {"tokens": self.total_tokens, "usd": self.total_usd} if under_test.inner else {}
        bought: Spend = {**nothing(), "tokens": int(recording.bought.tokens)}
        total = Account(
            {d: amount for d, amount in limits.items() if amount is not None},
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
                measure = protocol(part.task, ledger, under_test.prices, stop)
                session = Session(
                    Spread(measure, grants, under_test.name, self._share) if grants else measure,
                    records,
                    recording,
                    total,
                    under_test.facts,
                    under_test.inner,
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
        return Source(command, recording.bought, ended, failures, under_test.inner is None)

    def _reported(
        self, planned: Sequence[TaskPlan], records: Records, source: Source
    ) -> BenchmarkResult:
        measured: list[Figures] = []
        lines = []
        for part in planned:
            try:
                measured.append(self._figures(part, records))
            except ValueError as error:
                lines.append(str(error))
        if measured:
            content = report_blocks(measured, source)
            files = (("report.md", markdown(content)), ("report.html", page(content)))
            for name, text in files:
                (self.out / name).write_text(text, encoding="utf-8")
            for figured in measured:
                lines += [f"\n{figured.task}", summary(figured), *verdict(figured)]
            lines += ["", *(str(self.out / name) for name, _ in files)]
        if source.ended is not None:
            lines.append(source.unfinished())
        return BenchmarkResult(lines, source.ended)

    def _figures(self, part: TaskPlan, records: Records) -> Figures:
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
        """The name of a task, and its options: those after its question mark, and --task-option."""
        name, _, own = task.partition("?")
        options: dict[str, Any] = {}
        for text in [*self.task_option, *filter(None, own.split("&"))]:
            option, equals, value = text.partition("=")
            if not (option and equals):
                raise ValueError(
                    f"--task {task!r}, option {text!r}: NAME=VALUE, as in difficulty=3"
                )
            try:
                options[option] = json.loads(value)
            except ValueError:
                options[option] = value
        return name, options

    def _loaded(self, task: str, count: int | None, **extra: Any) -> Task:
        name, options = self._named(task)
        return load(name, **{**options, **({"count": count} if count else {}), **extra})

    def _training(self, name: str, tested: Task) -> Sequence[Question]:
        """Training questions, none of them tested. Raises ValueError if there are too few."""
        tested_ids = {question.id for question in tested.questions}
        seed = self._named(name)[1].get("seed", 0) + 1
        try:
            pool = self._loaded(name, self.train + len(tested_ids), seed=seed)
        except ValueError:  # the task has fewer questions: take all
            pool = self._loaded(name, None, seed=seed)
        others = [question for question in pool.questions if question.id not in tested_ids]
        if len(others) < self.train:
            raise ValueError(
                f"--train {self.train}: {name} has {len(others)} questions besides the "
                f"{len(tested_ids)} that are tested; give a smaller --train or --samples"
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
                f"--out {self.out}: this benchmark was begun with --engine ray and --ledger; give "
                "both again"
            )
        else:
            yield None

    @property
    def _share(self) -> float | None:
        """The rate that each of the parallel cells may use."""
        return self.rate / self.parallel if self.rate is not None else None

    def _model_under_test(self, recording: Recording) -> ModelUnderTest:
        if self.replay is not None:
            return self._recorded_model(recording)
        name = self.model or default_model()
        model = limited(resolve_model(name, at_once=self.parallel), self.rate)
        prices = self.price or prices_of(model)
        if self.total_usd is not None and prices is None:
            raise ValueError(
                f"--total-usd: the price of {name} is not known; give --price INPUT,OUTPUT, or "
                "install anytime-graph[prices]"
            )
        facts = recording.introduce(name, facts_of(model, prices))
        return ModelUnderTest(name, facts, meter(model, prices), prices)

    def _recorded_model(self, recording: Recording) -> ModelUnderTest:
        names = list(recording.facts)
        name = self.model or (names[0] if len(names) == 1 else "")
        if name not in recording.facts:
            raise ValueError(
                f"--model {name!r}: the recording has {', '.join(names) or 'no model'}"
            )
        facts = recording.facts[name]
        prices = cast("Mapping[str, Any] | None", facts.prices)
        return ModelUnderTest(name, facts, None, Prices(**prices) if prices else None)
