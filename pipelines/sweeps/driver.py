"""What the driver of a sweep decides and writes down, apart from Ray: which trial is next, and what became of each.

The journal is written first, MLflow after it. Whatever is asked of this class may be the last thing that happens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import OTHER, StageFailedError
from pipelines.params import Parameters
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Journal, Trial
from pipelines.sweeps.plan import Plan
from pipelines.sweeps.progress import Board
from pipelines.sweeps.spaces import Space, filled, value_at
from pipelines.sweeps.suggesting import suggest
from pipelines.sweeps.tracked import SweepRuns
from pipelines.sweeps.trial import Order
from pipelines.workspace import Workspace

HOPELESS = 3
"""Failed trials in a row, from the first on, after which a sweep gives up: the mistake is in what they share."""


@dataclass(frozen=True)
class Limits:
    """When a sweep ends: after `samples` configurations in all, or earlier."""

    samples: int
    minutes: float | None = None
    """Wall time of this call. What runs then is paused, and goes on with the next call."""
    gpu_hours: float | None = None
    """Of all trials that have ended."""


@dataclass
class Sweep:
    """A sweep as it stands in one workspace."""

    name: str
    identity: str
    space: Space
    document: dict[str, Any]
    """params.yaml with the space's base laid over it, every default filled in."""
    params: Parameters
    """The document, as parameters."""
    plan: Plan
    workspace: Workspace
    seeds: list[int]
    journal: Journal
    revision: str = ""
    earlier: Sequence[Trial] = field(default_factory=list)

    @property
    def shared(self) -> Workspace:
        """Where the stages run that all trials share."""
        return Workspace(self.journal.root / "shared", self.workspace.home)

    def folder(self, number: int) -> Path:
        return self.journal.root / "trials" / f"{number:03d}"


class Driver:
    """One call of the sweep command."""

    def __init__(
        self, sweep: Sweep, runs: SweepRuns, board: Board, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sweep = sweep
        self.runs = runs
        self.board = board
        self.limits = limits
        self.closing = False
        """Set when time is up: trials that stop from now on are paused, not judged."""
        self.failure: BaseException | None = None
        self.trials = sweep.journal.trials()
        self._clock = clock
        self._begun = clock()
        self._started: dict[int, float] = {}
        self._queue = [number for number, trial in self.trials.items() if trial.state == WAITING]

    def more(self) -> bool:
        """Whether there may be something to do: else neither Ray nor a shared stage is started."""
        return bool(self._queue) or len(self.trials) < self.limits.samples

    def next(self) -> Trial | None:
        """The trial to start now: one that was begun before, else a new one; None when the sweep has what it asked for."""
        if self.closing or self.failure or self._hopeless() or self._spent():
            return None
        trial = self.trials[self._queue.pop(0)] if self._queue else self._suggested()
        if trial is None:
            return None
        try:
            trial.run = self.runs.trial(trial)
        except Exception as error:  # without a run no stage can be tracked: the sweep ends as any command does
            self.failure = error
            return None
        self._started[trial.number] = self._clock()
        self.board.started(trial)
        return trial

    def _suggested(self) -> Trial | None:
        number = len(self.trials)
        if number >= self.limits.samples:
            return None
        known = [self.trials[n] for n in sorted(self.trials)]
        seed = value_at(self.sweep.document, "seed")
        values = suggest(self.sweep.space, self.sweep.document, seed, number, known, self.sweep.earlier)
        if values is None:
            self.board.say(f"the space holds nothing new after {number} trials")
            return None
        self.sweep.journal.write("suggested", number, values=values)
        self.trials[number] = Trial(number, values)
        return self.trials[number]

    def order(self, trial: Trial) -> Order:
        """What the trial's process is told."""
        sweep, watch = self.sweep, self.sweep.space.scheduler
        full = value_at(sweep.document, watch.full) if watch else 0
        return Order(
            folder=str(sweep.folder(trial.number)),
            home=str(sweep.workspace.home),
            document=filled(sweep.document, trial.values),
            seeds=sweep.seeds,
            upstream=[run.address for run in sweep.plan.upstream],
            repeated=[run.address for run in sweep.plan.repeated],
            shared=str(sweep.shared.root),
            linked=sweep.plan.linked,
            given={path: str(sweep.workspace.path(path)) for path in sweep.plan.given},
            objectives=[objective.model_dump() for objective in sweep.space.objectives],
            watch={"stage": watch.stage, "metric": watch.metric, "full": full} if watch else None,
            run=str(trial.run),
        )

    def reported(self, number: int, step: int, value: float, seconds: float) -> None:
        """The watched metric at a step, `seconds` after the trial's process began."""
        trial = self.trials[number]
        self._started[number] = min(self._started[number] if trial.reports else float("inf"), self._clock() - seconds)
        trial.reports[step] = value
        self.sweep.journal.write("report", number, step=step, value=value)
        self.board.reported(trial, step, value)

    def finished(self, number: int, facts: dict[str, Any]) -> None:
        """`facts` as `trial.run_trial` returns them."""
        for step, value in facts["reports"]:
            if step not in self.trials[number].reports:
                self.sweep.journal.write("report", number, step=step, value=value)
        self._end(number, COMPLETE, objectives=facts["objectives"], stages=facts["stages"], seconds=facts["seconds"])

    def failed(self, number: int, reason: str) -> None:
        self._end(number, BROKEN, error=reason, seconds=self._elapsed(number))

    def stopped(self, number: int) -> None:
        """The scheduler has ended the trial early; when time is up, it is only paused."""
        if self.closing:
            self.board.paused(self.trials[number])
            return
        self._end(number, STOPPED, seconds=self._elapsed(number))

    def time_is_up(self) -> bool:
        """Whether this call has used its minutes. Remembered, as what stops after it is paused."""
        minutes = self.limits.minutes
        if minutes is not None and self._clock() - self._begun > 60 * minutes:
            self.closing = True
        return self.closing

    def _end(self, number: int, state: str, **facts: Any) -> None:
        self.sweep.journal.write("ended", number, state=state, run=self.trials[number].run, **facts)
        self.trials[number] = self.sweep.journal.trials()[number]
        self.runs.end(str(self.trials[number].run), self.trials[number])
        self.board.ended(self.trials[number])

    def _elapsed(self, number: int) -> float:
        return self._clock() - self._started[number]

    def _hopeless(self) -> bool:
        ended = [trial for trial in self.trials.values() if trial.state != WAITING]
        if len(ended) < HOPELESS or any(trial.state != BROKEN for trial in ended):
            return False
        self.failure = StageFailedError(
            f"sweep {self.sweep.identity}: its first {len(ended)} trials failed, the last with: {ended[-1].error}",
            OTHER,
        )
        self.board.say(str(self.failure))
        return True

    def _spent(self) -> bool:
        hours = sum(trial.seconds for trial in self.trials.values()) * self.sweep.space.resources.gpus / 3600
        return self.limits.gpu_hours is not None and hours >= self.limits.gpu_hours
