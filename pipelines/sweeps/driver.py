"""The driver of a sweep, apart from Ray: chooses the next trial and records the outcome of each.

The journal is written before MLflow, so that the sweep can be killed after any call.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import OTHER, TRY_AGAIN, InfrastructureError, StageFailedError
from pipelines.locks.retrying import Decision, RetryPolicy
from pipelines.params import Parameters
from pipelines.sweeps.documents import value_at, with_values
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Journal, Trial
from pipelines.sweeps.plan import SweepPlan
from pipelines.sweeps.population import end_of_round, next_round
from pipelines.sweeps.progress import SweepProgress
from pipelines.sweeps.rounds import KEPT
from pipelines.sweeps.spaces import Space
from pipelines.sweeps.suggesting import suggest
from pipelines.sweeps.sweep_runs import SweepRuns
from pipelines.sweeps.trial import TrialTask
from pipelines.workspace import Workspace

MAX_FIRST_FAILURES = 3
"""The sweep ends when its first trials all failed or were lost, and are this many: the reason is in what they share."""


@dataclass(frozen=True)
class Limits:
    """The limits of a sweep: `samples` configurations in all, or less."""

    samples: int
    minutes: float | None = None
    """Wall time of this call. Running trials are then paused, and resume with the next call."""
    gpu_hours: float | None = None
    """Of all trials that have ended."""
    gpus: float = 1.0
    """GPUs that a trial takes."""


@dataclass
class Sweep:
    """A sweep as it stands in one workspace."""

    name: str
    identity: str
    space: Space
    document: dict[str, Any]
    """params.yaml with the space's base and every default."""
    params: Parameters
    """The document, as parameters."""
    plan: SweepPlan
    workspace: Workspace
    seeds: list[int]
    journal: Journal
    size: int = 0
    """Members of the population; 0 without one."""
    revision: str = ""
    earlier: Sequence[Trial] = field(default_factory=list)

    @property
    def shared(self) -> Workspace:
        """The workspace of the stages that all trials share."""
        return Workspace(self.journal.root / "shared", self.workspace.home)

    @property
    def members(self) -> Path:
        """The scratch root for rounds of a population."""
        return self.journal.root / "members"

    def folder(self, number: int) -> Path:
        return self.journal.root / "trials" / f"{number:03d}"


class Driver:
    """One call of the sweep command."""

    def __init__(
        self,
        sweep: Sweep,
        runs: SweepRuns,
        progress: SweepProgress,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sweep = sweep
        self.runs = runs
        self.progress = progress
        self.limits = limits
        self.closing = False
        """Set when time is up: a trial that stops from now on is paused, and was not stopped by the scheduler."""
        self.failure: BaseException | None = None
        self.trials = sweep.journal.trials()
        self._clock = clock
        self._begun = clock()
        self._started: dict[int, float] = {}
        self._policy = RetryPolicy(sweep.params.compute.max_failures)
        self._lost: dict[int, str] = {}
        """Trials that lost their process, storage or memory and do not run now, with the reason."""
        self._attempts: Counter[int] = Counter()
        self._queue = [number for number, trial in self.trials.items() if trial.state == WAITING]

    def has_work(self) -> bool:
        """Return whether there may be a trial to run; else neither Ray nor a shared stage is started."""
        return bool(self._queue) or len(self.trials) < self.limits.samples

    def next_trial(self) -> Trial | None:
        """Return the trial to start now: one that was begun before, else a new one; None when there is none."""
        if self.closing or self.failure or self._keeps_failing() or self._budget_is_spent():
            return None
        trial = self.trials[self._queue.pop(0)] if self._queue else self._suggested()
        if trial is None:
            return None
        try:
            trial.run = self.runs.trial(trial)
        except Exception as error:  # without a run no stage can be tracked: the sweep ends with this error
            self.failure = error
            return None
        self._started[trial.number] = self._clock()
        self.progress.started(trial)
        return trial

    def runs_now(self, number: int) -> bool:
        """Return whether a trial has been started and neither ended nor been lost."""
        return self.trials[number].state == WAITING and number not in self._lost

    @property
    def waits_for_round(self) -> bool:
        """Whether the only reason for no next trial is that members of this round of the population still train."""
        if self.closing or self.failure:
            return False
        return any(map(self.runs_now, self._members_before_round()))

    def _members_before_round(self) -> list[int]:
        """Return the members that the next trial, the first of a round of the population, has to wait for."""
        size, number = self.sweep.size, len(self.trials)
        if not size or number % size or number >= self.limits.samples:
            return []
        return [n for n in range(max(0, number - size), number) if self.trials[n].state == WAITING]

    def start_lost_trials_again(self) -> bool:
        """Queue the trials that were lost, once all others have ended; return whether there are any to start.

        Those that were lost too often keep waiting for the next call of the command, and `failure` says so.
        """
        if self.closing or self.failure:
            return False
        again = [n for n in self._lost if self._policy.decide(TRY_AGAIN, self._attempts[n]) is Decision.AGAIN]
        if self._lost and not again:
            reason = list(self._lost.values())[-1]
            self.failure = InfrastructureError(
                f"sweep {self.sweep.identity}: {len(self._lost)} trials wait, the last broke off with: {reason}; "
                "the same command resumes them"
            )
        for number in again:
            del self._lost[number]
        self._queue += again
        return bool(again)

    def _suggested(self) -> Trial | None:
        number = len(self.trials)
        if number >= self.limits.samples or self._members_before_round():
            return None
        suggested = self._new_values(number)
        if suggested is None:
            if not self.failure:
                self.progress.print(f"the space has no new configuration after {number} trials")
            return None
        values, origin = suggested
        self.sweep.journal.write("suggested", number, values=values, origin=origin)
        self.trials[number] = Trial(number, values, origin=origin)
        return self.trials[number]

    def _new_values(self, number: int) -> tuple[dict[str, Any], int | None] | None:
        """Return the values of a new trial and the trial whose checkpoint it resumes from, if any; None without a new one."""
        space, document, size = self.sweep.space, self.sweep.document, self.sweep.size
        seed = value_at(document, "seed")
        known = [self.trials[n] for n in sorted(self.trials)]
        if space.population and number >= size:
            self._delete_rounds_before(number // size - 1)
            found = next_round(space, seed, number, size, known)
            if found is None:
                metric, step = space.population.metric, number // size * space.population.every
                self._give_up(f"no member of the population has reported {metric} at step {step}")
            return found
        values = suggest(space, document, seed, number, known, self.sweep.earlier)
        if values is None:
            return None
        return (values | {space.population.changes: []} if space.population else values), None

    def _delete_rounds_before(self, number: int) -> None:
        """Delete checkpoints that no member will resume from: all but those of the last whole round."""
        for member in range(max(0, number - 1) * self.sweep.size, number * self.sweep.size):
            shutil.rmtree(self.sweep.folder(member) / KEPT, ignore_errors=True)

    def task(self, trial: Trial) -> TrialTask:
        """Return the task for the trial's process."""
        sweep, watch = self.sweep, self.sweep.space.scheduler
        full = value_at(sweep.document, watch.full) if watch else 0
        population = sweep.space.population
        until = end_of_round(population, sweep.size, trial.number, sweep.document) if population else None
        return TrialTask(
            folder=str(sweep.folder(trial.number)),
            home=str(sweep.workspace.home),
            document=with_values(sweep.document, trial.values),
            seeds=sweep.seeds if until is None else sweep.seeds[:1],
            upstream=[run.address for run in sweep.plan.upstream],
            repeated=[run.address for run in sweep.plan.repeated],
            shared=str(sweep.shared.root),
            linked=sweep.plan.linked,
            given={path: str(sweep.workspace.path(path)) for path in sweep.plan.given},
            objectives=[objective.model_dump() for objective in sweep.space.objectives],
            watch={"stage": watch.stage, "metric": watch.metric, "full": full, "until": until} if watch else None,
            origin=None if trial.origin is None else str(sweep.folder(trial.origin) / KEPT),
            members=str(sweep.members),
            run=str(trial.run),
        )

    def reported(self, number: int, step: int, value: float, seconds: float) -> None:
        """Record the watched metric at a step, `seconds` after the trial's process began."""
        trial = self.trials[number]
        self._started[number] = min(self._started[number] if trial.reports else float("inf"), self._clock() - seconds)
        trial.reports[step] = value
        self.sweep.journal.write("report", number, step=step, value=value)
        self.progress.reported(trial, step, value)

    def finished(self, number: int, facts: dict[str, Any]) -> None:
        """Record a trial's end, with `facts` as `trial.run_trial` returns them. Without objectives it ended with its round."""
        for step, value in facts["reports"]:
            if step not in self.trials[number].reports:
                self.sweep.journal.write("report", number, step=step, value=value)
        state = COMPLETE if facts["objectives"] else STOPPED
        self._end(number, state, objectives=facts["objectives"], stages=facts["stages"], seconds=facts["seconds"])

    def failed(self, number: int, reason: str, status: int = OTHER, traceback: str = "") -> None:
        """Record a trial that failed with this exit code. One that lost its process, storage or memory has not ended by that."""
        self._attempts[number] += 1
        decision = self._policy.decide(status, self._attempts[number])
        if decision is Decision.NEVER:
            if traceback:
                self.progress.print(traceback)
            self._end(number, BROKEN, error=reason, seconds=self._elapsed(number))
        else:
            if decision is Decision.LATER:
                self._attempts[number] = self._policy.retries + 1
            self._lost[number] = reason
            self.progress.lost(self.trials[number], reason)

    def stopped(self, number: int) -> None:
        """Record a trial that the scheduler has stopped early, or that is paused because time is up."""
        if self.closing:
            self.progress.paused(self.trials[number])
            return
        self._end(number, STOPPED, seconds=self._elapsed(number))

    def time_is_up(self) -> bool:
        """Return whether this call has used its minutes, and remember it: trials that stop afterwards are paused."""
        minutes = self.limits.minutes
        if minutes is not None and self._clock() - self._begun > 60 * minutes:
            self.closing = True
        return self.closing

    def _end(self, number: int, state: str, **facts: Any) -> None:
        self.sweep.journal.write("ended", number, state=state, run=self.trials[number].run, **facts)
        self.trials[number] = self.sweep.journal.trials()[number]
        self.runs.end(str(self.trials[number].run), self.trials[number])
        self.progress.ended(self.trials[number])

    def _elapsed(self, number: int) -> float:
        return self._clock() - self._started[number]

    def _keeps_failing(self) -> bool:
        ended = [trial for trial in self.trials.values() if trial.state != WAITING]
        if len(ended) + len(self._lost) < MAX_FIRST_FAILURES or any(trial.state != BROKEN for trial in ended):
            return False
        if self._lost:
            return True  # those are started again before any other
        self._give_up(f"its first {len(ended)} trials failed, the last with: {ended[-1].error}")
        return True

    def _give_up(self, reason: str) -> None:
        self.failure = StageFailedError(f"sweep {self.sweep.identity}: {reason}", OTHER)
        self.progress.print(str(self.failure))

    def _budget_is_spent(self) -> bool:
        hours = sum(trial.seconds for trial in self.trials.values()) * self.limits.gpus / 3600
        return self.limits.gpu_hours is not None and hours >= self.limits.gpu_hours
