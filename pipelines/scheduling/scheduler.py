"""Runs the stages of a plan: each as soon as its inputs are in place and there is room for it beside those that run.

This file knows the order of things and nothing else: not DVC, MLflow, processes or the terminal (`pipelines.scheduling.parts`).

A stage that fails stops what depends on it and nothing else. Ctrl-C or SIGTERM stops all: training saves a checkpoint, and what has
finished is recorded. Nothing here has to survive a kill: results are in the scratch root, where the next call finds them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import INTERRUPTED, TRY_AGAIN, exit_code, first_of, is_expected, one_line
from pipelines.graph import StageRun
from pipelines.scheduling.needs import Need
from pipelines.scheduling.parts import Repository, Result, RunningStage, Signals, Starter, State, Summary, View
from pipelines.scheduling.places import Places
from pipelines.scheduling.plan import Plan

POLL_SECONDS = 0.05
NAMED_NEEDS = 2
"""Stages that are named of those that one could not run without; the rest is counted."""
SECOND_SIGNAL_SECONDS = 10.0
"""How long stages may take to end after a second Ctrl-C; then they are killed."""


def run_plan(
    plan: Plan,
    repository: Repository,
    places: Places,
    starter: Starter,
    view: View,
    signals: Signals,
    *,
    force: bool = False,
    fail_fast: bool = False,
    grace: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Summary:
    """Run what of the plan is not up to date, and record it; errors of a stage are in the summary.

    `force`: every stage runs. `fail_fast`: the first failure stops all others, as Ctrl-C does. `grace`: seconds that stages have to
    save their state.
    """
    work = _Execution(plan, repository, places, starter, view, signals, force, fail_fast, grace, clock, sleep)
    return work.run()


@dataclass
class _Execution:
    plan: Plan
    repository: Repository
    places: Places
    starter: Starter
    view: View
    signals: Signals
    force: bool
    fail_fast: bool
    grace: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    running: dict[str, tuple[StageRun, RunningStage, float]] = field(default_factory=dict)
    """By address: the run, its process, and when it was started."""
    finished: set[str] = field(default_factory=set)
    """Addresses whose outputs are in place."""
    to_run: set[str] = field(default_factory=set)
    """Addresses that wait for room alone."""
    to_record: list[StageRun] = field(default_factory=list)
    stop_asked: bool = False
    summary: Summary = field(default_factory=Summary)

    def run(self) -> Summary:
        try:
            while not self._stopping:
                if self._start_ready():
                    continue
                if not self.running:
                    break
                self._wait()
        finally:  # after a bug here or in DVC too: what runs saves its state
            self._stop_all()
            self._record()
        for run in self.plan.runs:
            if run.address not in self.summary.results:
                self._end(run, Result(State.NOT_RUN, reason=self._why_not_run(run)))
        if self.signals.received:
            self.summary.exit_code = INTERRUPTED
        return self.summary

    @property
    def _stopping(self) -> bool:
        failed = self.fail_fast and self.summary.exit_code != 0
        return self.stop_asked or failed or self.signals.received > 0

    def _start_ready(self) -> bool:
        """Take results that are there, and start what fits. Return whether a result was taken, after which more may be ready."""
        taken = False
        for run in self.plan.ready(self.finished):
            if run.address in self.running or run.address in self.summary.results:
                continue
            if self._stopping:
                return False
            with self._failures_of(run):
                taken |= self._take_or_start(run)
        return taken

    def _take_or_start(self, run: StageRun) -> bool:
        """Take the result of a run whose inputs are in place, or start it if it fits. Return whether a result was taken."""
        if run.address not in self.to_run:
            before = self.clock()
            with self.signals.interrupting():
                decision = self.repository.decide(run, force=self.force)
                changed = decision.need is not Need.UNCHANGED
                taken = decision.need is not Need.RUN and (not changed or self.repository.put_in_place(run, decision))
            if taken:
                self.finished.add(run.address)
                self.to_record += [run] if changed else []
                self._end(run, Result(State.FOUND, self.clock() - before, str(decision.need)))
                return True
            self.to_run.add(run.address)
        others = [other for other, _, _ in self.running.values()]
        if not self.places.fits(run, others):
            return False
        self.starter.prepare(run)
        self.repository.before_run(run)
        stage = self.starter.start(run, self.places.environment(run, others))
        self.running[run.address] = run, stage, self.clock()
        self.view.started(run, stage)
        return False

    def _wait(self) -> None:
        """Wait until a stage has ended, or a signal has come."""
        while self.running and not self._collect() and not self._stopping:
            self.view.waiting()
            self.sleep(POLL_SECONDS)

    def _collect(self) -> bool:
        """Take note of the stages that have ended. Return whether there was one."""
        ended = [(run, stage, since) for run, stage, since in self.running.values() if stage.poll() is not None]
        for run, stage, since in ended:
            del self.running[run.address]
            code, seconds = stage.poll() or 0, self.clock() - since
            if code == 0:
                self.finished.add(run.address)
                self.to_record.append(run)
                self._end(run, Result(State.DONE, seconds, log=stage.log))
            elif self._stopping and (code == INTERRUPTED or code < 0):
                self._end(run, Result(State.STOPPED, seconds, stage.reason(), log=stage.log))
            else:  # a negative code is the number of the signal that has killed it
                self._fail(run, code if code > 0 else TRY_AGAIN, stage.reason(), seconds, stage.log)
        return bool(ended)

    @contextmanager
    def _failures_of(self, run: StageRun) -> Iterator[None]:
        """Make an error that one line explains the failure of `run`, and Ctrl-C the end of waiting for it."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.signals.received:
                raise
        except Exception as error:
            if not is_expected(error):
                raise
            self._fail(run, exit_code(error), one_line(error), 0.0, None)

    def _fail(self, run: StageRun, code: int, reason: str, seconds: float, log: Path | None) -> None:
        self.summary.exit_code = self.summary.exit_code or code
        self._end(run, Result(State.FAILED, seconds, reason, code, log))
        self._record()

    def _end(self, run: StageRun, result: Result) -> None:
        self.summary.results[run.address] = result
        self.view.ended(run, result)

    def _stop_all(self) -> None:
        """Ask all stages to stop, and wait for them; after a second signal not for their state, and in the end for none."""
        self.stop_asked = True
        if not self.running:
            return
        self.view.say(f"stopping {', '.join(self.running)}: training saves a checkpoint (again Ctrl-C: at once)")
        for _, stage, _ in self.running.values():
            stage.stop()
        if self._all_ended(self.grace, heed=True):
            return
        for _, stage, _ in self.running.values():
            stage.interrupt()
        if self._all_ended(SECOND_SIGNAL_SECONDS, heed=False):
            return
        for _, stage, _ in self.running.values():
            stage.kill()
        self._all_ended(SECOND_SIGNAL_SECONDS, heed=False)

    def _all_ended(self, seconds: float, *, heed: bool) -> bool:
        """Wait for all stages, for as long as this, or until another signal comes if that is to be heeded."""
        deadline, before = self.clock() + seconds, self.signals.received
        while self.running and self.clock() < deadline and not (heed and self.signals.received > before):
            if not self._collect():
                self.view.waiting()
                self.sleep(POLL_SECONDS)
        return not self.running

    def _record(self) -> None:
        """Let DVC record what has finished; a result that it refuses is a failure."""
        runs, self.to_record = self.to_record, []
        if not runs:
            return
        try:
            refused = self.repository.record(runs)
        except Exception as error:
            if not is_expected(error):
                raise
            refused = {run.address: f"finished, but not recorded: {one_line(error)}" for run in runs}
        for address, reason in refused.items():
            run = next(run for run in runs if run.address == address)
            before = self.summary.results[address]
            self.summary.exit_code = self.summary.exit_code or TRY_AGAIN
            self._end(run, Result(State.FAILED, before.seconds, reason, TRY_AGAIN, before.log))

    def _why_not_run(self, run: StageRun) -> str:
        """Return why a stage run was never started: what it needs has failed, or the command was stopped."""
        results = self.summary.results
        ended = (State.FAILED, State.NOT_RUN, State.STOPPED)
        needs = [
            s.address for s in self.plan.upstream(run) if s.address in results and results[s.address].state in ended
        ]
        return f"needs {first_of(needs, NAMED_NEEDS)}" if needs else "the command was stopped"
