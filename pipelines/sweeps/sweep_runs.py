"""The MLflow runs of a sweep: one for the sweep, below it one per trial, and below that the runs of stages, made by the runner.

Runs are found by tags, so that a resumed sweep continues the runs it began: the sweep's run by the id of its folder, since others
may run the same sweep in their own scratch roots, and those of trials below it by number and values. The journal holds the same
facts: when the server is away, a warning is printed, and the missing facts are written when the sweep ends or resumes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from components.errors import ParameterError
from pipelines.errors import one_line
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Journal, Trial
from pipelines.sweeps.results import mean_with_interval
from pipelines.sweeps.spaces import Space
from pipelines.tracking.delivery import BATCH, metric_name
from pipelines.tracking.owners import owner
from pipelines.tracking.run_ids import find_run
from pipelines.tracking.runs import FAILED, FINISHED, KILLED, LEVEL, PARENT, Tracker, explained_failures
from pipelines.tracking.stage_tags import stage_tag

SWEEP, FOLDER_ID, TRIAL = "pipelines.sweep", "pipelines.sweep_folder", "pipelines.trial"
VALUES, STATE, BASE, BEST = "pipelines.values", "pipelines.state", "pipelines.base", "pipelines.best"
"""Tags: the sweep, the id of its folder, the trial's number; a trial's values and state, the sweep's base and best trial."""
STATUS = {COMPLETE: FINISHED, STOPPED: KILLED, BROKEN: FAILED, WAITING: KILLED}


class SweepRuns:
    """The runs of one sweep; `identity` is its name and digest. Its folder is in the scratch root of the tracker's workspace."""

    def __init__(self, tracker: Tracker, identity: str, space: Space) -> None:
        self.tracker = tracker
        self.client = tracker.client
        self.experiment = tracker.experiment
        self.identity = identity
        self.space = space
        self._warned = False
        self.end_orphans = tracker.end_orphans
        self.workspace = tracker.workspace
        journal = Journal.of_sweep(identity, self.workspace.home)
        folder, known = {FOLDER_ID: journal.folder_id()}, journal.trials().values()
        with explained_failures(self.workspace):
            tracker.close_finished()
            self.end_orphans()
            tracker.rename_former_levels()
            self._adopt(folder, known)
            self.parent = self._open(
                "sweep", f"sweep {identity}", {**folder, BASE: json.dumps(space.base, sort_keys=True)}
            )

    def trial(self, trial: Trial) -> str:
        """Create or reopen the run of a trial. Raises as `connect` does: without it no stage can be tracked."""
        with explained_failures(self.workspace):
            return self._open("trial", f"trial {trial.number}", self._tags(trial), trial.values)

    def shared(self) -> str:
        """Create or reopen the run that is the parent of the shared stages."""
        with explained_failures(self.workspace):
            return self._open("shared", "shared stages", {PARENT: self.parent})

    def close_shared(self, run: str, status: str) -> None:
        """Set the final status of the shared stages' parent run."""
        self._try(lambda: self.client.set_terminated(run, status))

    def end(self, run: str, trial: Trial) -> None:
        """Write a trial's end, once: its reports, objectives with intervals, the runs of its stages, its status."""

        def write() -> None:
            known = self.client.get_run(run).data.tags.get(STATE)
            if trial.state not in (known, WAITING):
                self._describe(run, trial)
            self.client.set_terminated(run, STATUS[trial.state])

        self._try(write)

    def _describe(self, run: str, trial: Trial) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        numbers: dict[str, float] = {"trial/seconds": trial.seconds}
        for objective, values in zip(self.space.objectives, trial.objectives, strict=False):
            found = mean_with_interval(values)
            numbers |= {f"objective/{objective.name}{'' if k == 'mean' else '.' + k}": v for k, v in found.items()}
        metrics = [Metric(metric_name(key), value, now, 0) for key, value in numbers.items()]
        if self.space.scheduler:
            watched = metric_name(self.space.scheduler.metric)
            metrics += [Metric(watched, value, now, step) for step, value in sorted(trial.reports.items())]
        # Of several seeds, the run with the seed of params.yaml.
        tags = {stage_tag(known["stage"]): str(known["run"]) for known in reversed(trial.stages)}
        tags |= {STATE: trial.state, **({"pipelines.error": trial.error[:500]} if trial.error else {})}
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + BATCH])
        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def close(self, status: str, trials: Iterable[Trial], best: Trial | None) -> None:
        """Write the sweep's end, and whatever is missing because the server was away or the sweep was killed.

        Sets the run of every trial that has one here; `best` is one of them.
        """

        def write() -> None:
            below = self._search("trial", {PARENT: self.parent})
            found = {(run.data.tags[TRIAL], run.data.tags[VALUES]): run for run in below}
            known = list(trials)
            for trial in known:
                tags = self._tags(trial)
                run = found.get((tags[TRIAL], tags[VALUES]))
                if run is None and trial.state == WAITING:
                    continue
                trial.run = run.info.run_id if run is not None else self.trial(trial)
                if run is None or run.info.status != STATUS[trial.state]:
                    self.end(trial.run, trial)
            for state in (COMPLETE, STOPPED, BROKEN):
                self.client.log_metric(self.parent, f"trials/{state}", sum(t.state == state for t in known))
            if best:
                self.client.set_tag(self.parent, BEST, best.run)
                for objective, value in zip(self.space.objectives, best.means(), strict=True):
                    self.client.log_metric(self.parent, metric_name(f"best/{objective.name}"), value)

        self._try(write)
        self._try(self.end_orphans)
        self._try(lambda: self.client.set_terminated(self.parent, status))

    def _adopt(self, folder: Mapping[str, str], known: Iterable[Trial]) -> None:
        """Tag the sweep's run that older code, which had no ids, made for this folder: it is above a run that the journal names."""
        if self._search("sweep", folder):
            return
        named = {trial.run for trial in known}
        above = {run.data.tags[PARENT] for run in self._search("trial") if run.info.run_id in named}
        for run in self._search("sweep"):
            if run.info.run_id in above and FOLDER_ID not in run.data.tags:
                self.tracker.set_tags(run.info.run_id, folder)
                return

    def _tags(self, trial: Trial) -> dict[str, str]:
        """Return the tags by which the run of a trial is found: the values too, as older code mixed trials of several folders."""
        values = json.dumps(trial.values, sort_keys=True)
        return {PARENT: self.parent, TRIAL: str(trial.number), VALUES: values}

    def _open(self, level: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any] | None = None) -> str:
        """Return the run of this level with these tags, or a new one, marked as running."""
        searched = {key: tags[key] for key in (FOLDER_ID, PARENT, TRIAL) if key in tags}  # JSON could not be quoted
        found = [run for run in self._search(level, searched) if run.data.tags.get(VALUES) == tags.get(VALUES)]
        if found:
            run_id = str(found[0].info.run_id)
            self.tracker.set_tags(run_id, owner())
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        whole = {**tags, **owner(), LEVEL: level, SWEEP: self.identity, "mlflow.runName": name}
        run_id = str(self.client.create_run(self.experiment, tags=whole).info.run_id)
        self.tracker.log_params(run_id, params or {})
        return run_id

    def _search(self, level: str, tags: Mapping[str, str] | None = None) -> list[Any]:
        wanted = {SWEEP: self.identity, LEVEL: level, **(tags or {})}
        chosen = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
        return list(self.client.search_runs([self.experiment], chosen, max_results=5000))

    def _try(self, write: Callable[[], object]) -> None:
        """Call `write`; an error is only a warning, because the journal has everything and `close` writes it again."""
        try:
            write()
        except Exception as error:  # clients raise many types
            if not self._warned:
                self._warned = True
                print(
                    f"warning: MLflow could not be updated, the sweep continues ({one_line(error, 120)})",
                    file=sys.stderr,
                    flush=True,
                )


def earlier_trials(tracker: Tracker, run_id: str, space: Space) -> list[Trial]:
    """Return the finished trials of another sweep with the same objectives, for this one to learn from.

    Raises ParameterError when the run is no sweep, or none of its trials can be used.
    """
    found = find_run(tracker, run_id)
    tags, run_id = found.data.tags, found.info.run_id
    if tags.get(LEVEL) != "sweep":
        raise ParameterError(f"--warm-start {run_id}: not the run of a sweep")
    wanted = f"tags.`{PARENT}` = '{run_id}' and tags.`{LEVEL}` = 'trial' and attributes.status = 'FINISHED'"
    usable = []
    for run in tracker.client.search_runs([tracker.experiment], wanted, max_results=5000):
        values = json.loads(run.data.tags[VALUES])
        names = [metric_name(f"objective/{objective.name}") for objective in space.objectives]
        if set(values) <= set(space.parameters) and all(name in run.data.metrics for name in names):
            found = [[run.data.metrics[name]] for name in names]
            usable.append(Trial(int(run.data.tags[TRIAL]), values, state=COMPLETE, objectives=found))
    if not usable:
        raise ParameterError(f"--warm-start {run_id}: none of its trials has this space's parameters and objectives")
    return sorted(usable, key=lambda trial: trial.number)
