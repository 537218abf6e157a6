"""Delivers what a stage reported to its MLflow run: in order, once, and later when the server is away.

`mlflow.json` in the scratch folder remembers how far that came:

    {"uri", "token", "run", "parent", "described", "delivered": {phase: {metric: last step}}, "ended": null | {...}, "closed"}

It is written after the server has taken a batch. A process killed in between, or a reply that was lost, leaves a doubt; then the
server is asked for what it has of those metrics, and only the rest is sent. `ended` is how the run shall end, written before the
server is told; a run that ended and was never closed is closed by the next process that reaches the server.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.files import write_atomically
from pipelines.errors import one_line
from pipelines.locks.retrying import retried
from pipelines.scratch.metric_log import MetricLog

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

MEMORY = "mlflow.json"
ARTIFACT_FOLDER = "provenance"
"""The run's artifact folder for what it is proved by."""
BATCH = 500
"""Metrics in one request; the server takes at most 1000."""
AWAY_SECONDS = 5.0
"""Between two attempts to reach a server that did not answer."""


def begin_memory(folder: Path, uri: str, token: str) -> None:
    """Begin the memory of a run that is about to be created, with `token` in a tag of it."""
    fresh = {"uri": uri, "token": token, "run": None, "parent": None, "described": False}
    _write(folder, {**fresh, "delivered": {}, "ended": None, "closed": False})


def remember(folder: Path, **facts: Any) -> dict[str, Any]:
    """Change the memory; returns it."""
    known = {**json.loads((folder / MEMORY).read_text()), **facts}
    _write(folder, known)
    return known


def remembered(folder: Path) -> dict[str, Any] | None:
    """The memory, or None without one that can be read."""
    try:
        known = dict(json.loads((folder / MEMORY).read_text()))
    except (OSError, ValueError):
        return None
    return known if "token" in known else None


def left_open(folder: Path, uri: str) -> bool:
    """Whether the folder's run came to its end, and the server at `uri` was never told."""
    known = remembered(folder)
    return known is not None and known["uri"] == uri and not known["closed"] and bool(known["ended"])


class TrackedRun:
    """One stage's run, open for writing. `doubtful`: the server may have more than the folder remembers."""

    def __init__(self, client: "MlflowClient", run_id: str, folder: Path, *, doubtful: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.folder = folder
        self._doubtful = doubtful
        self._away_until = 0.0
        self._warned = False

    def deliver(self, *, timeout: float = 0.0) -> bool:
        """Send what the stage reported since the last delivery. Gives up after `timeout` seconds; True if all arrived."""
        from mlflow.exceptions import MlflowException

        if not timeout and time.monotonic() < self._away_until:
            return False
        away = (MlflowException, OSError)
        try:
            retried(
                self._deliver,
                timeout=timeout,
                away=lambda error: isinstance(error, away),
                on_wait=self._warn,
                pause=min(AWAY_SECONDS, timeout),
            )
        except away as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            self._warn(error)
            return False
        return True

    def _deliver(self) -> None:
        from mlflow.entities import Metric

        known = json.loads((self.folder / MEMORY).read_text())
        delivered: dict[str, dict[str, int]] = known["delivered"]
        new = [
            (line["phase"], key, value, line["step"], int(line["time"] * 1000))
            for line in MetricLog(self.folder / "metrics.jsonl").read()
            for key, value in line["metrics"].items()
            if line["step"] > delivered.get(line["phase"], {}).get(key, -1)
        ]
        metrics = [Metric(metric_name(key), value, when, step) for _, key, value, step, when in new]
        self._send(metrics, lambda metric: metric.step)
        for phase, key, _, step, _ in new:
            steps = delivered.setdefault(phase, {})
            steps[key] = max(step, steps.get(key, -1))
        if new:
            remember(self.folder, delivered=delivered)

    def _send(self, metrics: Sequence["Metric"], identity: Callable[["Metric"], Hashable]) -> None:
        """Those that the server does not have; `identity` tells points of one metric apart."""
        if self._doubtful and metrics:
            there = {key: set(map(identity, self._history(key))) for key in {metric.key for metric in metrics}}
            metrics = [metric for metric in metrics if identity(metric) not in there[metric.key]]
        self._doubtful = True  # until the last batch is known to have arrived
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + BATCH])
        self._doubtful = False

    def _history(self, key: str) -> list["Metric"]:
        return list(self.client.get_metric_history(self.run_id, key))

    def end(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """Remember how the run shall end, its final metrics, and tags that only its end knows. `close` tells the server."""
        when = int(time.time() * 1000)
        remember(
            self.folder, ended={"status": status, "metrics": dict(metrics), "tags": dict(tags or {}), "time": when}
        )

    def close(self) -> None:
        """Send what is left: final metrics, pictures, status, also of the pipeline's run. Raises what the client raises."""
        from mlflow.entities import Metric

        self._deliver()
        known = json.loads((self.folder / MEMORY).read_text())
        ended = known["ended"]
        final = [Metric(metric_name(key), value, ended["time"], 0) for key, value in ended["metrics"].items()]
        self._send(final, lambda metric: (metric.step, metric.timestamp))
        tags = ended.get("tags", {})
        there = self.client.get_run(self.run_id).data.tags if tags else {}
        for key, value in tags.items():
            if there.get(key) != value:
                self.client.set_tag(self.run_id, key, value)
        figures = self.folder / "figures"
        if ended["status"] == "FINISHED" and figures.is_dir() and any(figures.iterdir()):
            self.client.log_artifacts(self.run_id, str(figures), "figures")
        if (manifest := self.folder / "DONE.json").is_file():
            self.client.log_artifact(self.run_id, str(manifest), ARTIFACT_FOLDER)
        self.client.set_terminated(self.run_id, ended["status"], end_time=ended["time"])
        if known["parent"]:
            self.client.set_terminated(known["parent"], ended["status"])
        remember(self.folder, closed=True)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = one_line(error, 120)
            print(f"warning: metrics wait on disk, MLflow is away ({reason})", file=sys.stderr, flush=True)


def metric_name(key: str) -> str:
    """A metric's name as MLflow allows it: "R@1" becomes "R_1"."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _write(folder: Path, known: Mapping[str, Any]) -> None:
    write_atomically(folder / MEMORY, json.dumps(known))
