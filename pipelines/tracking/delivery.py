"""Delivers what a stage reported to its MLflow run: in order, once, and later when the server is away.

`RunState` is saved after the server has taken a batch. When a process is killed in between, or a reply is lost, the delivery is
unconfirmed: then the server is asked which points of those metrics it has, and only the rest is sent. How the run ends is saved
before it is sent; a run that ended and was never closed is closed by the next process that reaches the server.
"""

import re
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import one_line
from pipelines.locks.retrying import retry
from pipelines.scratch.manifest import MANIFEST_FILE
from pipelines.scratch.metric_log import MetricFollower
from pipelines.tracking.models import TrackedModel, log_models
from pipelines.tracking.run_state import RunEnd, RunState

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

ARTIFACT_FOLDER = "provenance"
"""The run's artifact folder for its manifest and patch."""
BATCH = 500
"""Metrics in one request; the server takes at most 1000."""
RETRY_SECONDS = 5.0
"""Between two attempts to reach a server that did not answer."""


class TrackedRun:
    """One stage's run, open for writing. `unconfirmed`: the server may have more points than the folder's state says."""

    def __init__(self, client: "MlflowClient", run_id: str, folder: Path, *, unconfirmed: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.folder = folder
        self._unconfirmed = unconfirmed
        self._log = MetricFollower(folder / "metrics.jsonl")
        self._waiting: list[dict[str, Any]] = []  # lines that the server has not taken yet
        self._away_until = 0.0
        self._warned = False

    def deliver(self, *, timeout: float = 0.0) -> bool:
        """Send what the stage reported since the last delivery. Give up after `timeout` seconds; return whether all arrived."""
        from mlflow.exceptions import MlflowException

        if not timeout and time.monotonic() < self._away_until:
            return False
        away = (MlflowException, OSError)
        pause = min(RETRY_SECONDS, timeout)
        try:
            retry(self._deliver, timeout=timeout, away=lambda e: isinstance(e, away), on_wait=self._warn, pause=pause)
        except away as error:
            self._away_until = time.monotonic() + RETRY_SECONDS
            self._warn(error)
            return False
        return True

    def _deliver(self) -> None:
        from mlflow.entities import Metric

        self._waiting += self._log.read()
        state = RunState.load(self.folder)
        new = [
            (line["phase"], key, value, line["step"], int(line["time"] * 1000))
            for line in self._waiting
            for key, value in line["metrics"].items()
            if line["step"] > state.delivered.get(line["phase"], {}).get(key, -1)
        ]
        metrics = [Metric(metric_name(key), value, when, step) for _, key, value, step, when in new]
        self._send(metrics, lambda metric: metric.step)
        for phase, key, _, step, _ in new:
            steps = state.delivered.setdefault(phase, {})
            steps[key] = max(step, steps.get(key, -1))
        if new:
            state.save(self.folder)
        self._waiting.clear()

    def _send(self, metrics: Sequence["Metric"], identity: Callable[["Metric"], Hashable]) -> None:
        """Send the points that the server does not have; `identity` distinguishes points of one metric."""
        if self._unconfirmed and metrics:
            keys = {metric.key for metric in metrics}
            there = {key: set(map(identity, self.client.get_metric_history(self.run_id, key))) for key in keys}
            metrics = [metric for metric in metrics if identity(metric) not in there[metric.key]]
        self._unconfirmed = True  # until the last batch is known to have arrived
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])
        self._unconfirmed = False

    def end(
        self,
        status: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        models: Sequence[TrackedModel] = (),
    ) -> None:
        """Save how the run ends: its status, final metrics, and what is known only now. `close` tells the server."""
        state = RunState.load(self.folder)
        when = int(time.time() * 1000)
        state.ended = RunEnd(
            status=status, metrics=dict(metrics), tags=dict(tags or {}), models=list(models), time=when
        )
        state.save(self.folder)

    def close(self) -> None:
        """Send what is left: final metrics, tags, models, figures, manifest and status, also of the pipeline's run.

        Raises what the client raises, and ValueError before `end`.
        """
        from mlflow.entities import Metric, RunTag

        self._log, self._waiting = MetricFollower(self.folder / "metrics.jsonl"), []  # once more from the start
        self._deliver()
        state = RunState.load(self.folder)
        ended = state.ended
        if ended is None:
            raise ValueError(f"run {self.run_id} has not ended")
        shown = log_models(self.client, self.run_id, ended.models)
        final = [Metric(metric_name(key), value, ended.time, 0, **shown) for key, value in ended.metrics.items()]
        self._send(final, lambda metric: (metric.step, metric.timestamp))
        if ended.tags:
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in ended.tags.items()])
        figures = self.folder / "figures"
        if ended.status == "FINISHED" and figures.is_dir() and any(figures.iterdir()):
            self.client.log_artifacts(self.run_id, str(figures), "figures")
        if (manifest := self.folder / MANIFEST_FILE).is_file():
            self.client.log_artifact(self.run_id, str(manifest), ARTIFACT_FOLDER)
        self.client.set_terminated(self.run_id, ended.status, end_time=ended.time)
        if state.parent:
            self.client.set_terminated(state.parent, ended.status)
        state.closed = True
        state.save(self.folder)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = one_line(error, 120)
            print(f"warning: metrics wait on disk, MLflow is away ({reason})", file=sys.stderr, flush=True)


def metric_name(key: str) -> str:
    """Return a metric's name as MLflow allows it: "R@1" becomes "R_1"."""
    return re.sub(r"[^\w\-. :/]", "_", key)
