"""What the tracking server knows of the runs that made the results in a workspace: found by fingerprint, never needed."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import one_line
from pipelines.graph import StageRun, all_stages, runs_of
from pipelines.identity.fingerprint import fingerprint
from pipelines.params import Parameters
from pipelines.records.manifests import find_by_fingerprint
from pipelines.tracking.runs import FINISHED, Tracker, connect, pipeline_identity, public_uri, tracking_uri
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Made:
    """The run that made a stage's results. Seconds, CPU seconds and MB are None where the run does not tell."""

    run_id: str
    status: str
    revision: str
    dirty: bool
    seconds: float | None
    cpu_seconds: float | None
    peak_memory_mb: float | None
    workers: str
    link: str | None


@dataclass(frozen=True)
class Known:
    """Fingerprints and runs by stage address; `trouble` says in one line why runs could not be looked up."""

    uri: str
    fingerprints: Mapping[str, str]
    runs: Mapping[str, Made]
    trouble: str | None


def look_up(workspace: Workspace, params: Parameters) -> Known:
    """Find the run behind every stage of `workspace`, and name them on the pipeline's run. A server that is away costs nothing."""
    uri, shown = tracking_uri(workspace), public_uri(workspace)
    stages = [run for stage in all_stages() for run in runs_of(stage)]
    prints = {run.address: _fingerprint(run, workspace, params) for run in stages}
    database = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else None
    if database and not Path(database).exists():
        return Known(shown, prints, {}, f"no MLflow store at {shown}")
    try:
        tracker = connect(workspace)
        found = {run.address: _find(tracker, run, prints[run.address]) for run in stages}
        runs = {address: _made(run, uri) for address, run in found.items() if run}
        _name_on_pipeline(tracker, workspace, runs)
    except Exception as error:  # whatever a server answers: the page is worth having without it
        reason = one_line(error)
        print(f"warning: the page has no runs: {reason}", file=sys.stderr)
        return Known(shown, prints, {}, reason)
    return Known(shown, prints, runs, None)


def _fingerprint(run: StageRun, workspace: Workspace, params: Parameters) -> str:
    inputs = {name: workspace.path(path) for name, path in run.inputs.items()}
    return fingerprint(run, params.only(run.stage.reads), inputs, params.compute.threads)


def _find(tracker: Tracker, run: StageRun, identity: str) -> "Run | None":
    """The run that scratch remembers, or the newest finished one with this fingerprint."""
    from mlflow.exceptions import MlflowException

    manifest = find_by_fingerprint(run.address, identity, tracker.workspace.home)
    if manifest and manifest.run:
        try:
            return tracker.client.get_run(manifest.run)
        except MlflowException:
            pass  # made under another server, or deleted
    return tracker.find_finished_run(identity)


def _made(run: "Run", uri: str) -> Made:
    metrics: dict[str, Any] = run.data.metrics
    tags: dict[str, str] = run.data.tags
    served = uri.startswith(("http://", "https://"))
    return Made(
        run_id=run.info.run_id,
        status=run.info.status,
        revision=tags.get("git.revision", ""),
        dirty=tags.get("git.dirty") == "true",
        seconds=metrics.get("cost/seconds"),
        cpu_seconds=metrics.get("cost/cpu_seconds"),
        peak_memory_mb=metrics.get("cost/peak_memory_mb"),
        workers=tags.get("pipelines.workers", ""),
        link=f"{_without_user(uri)}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" if served else None,
    )


def _without_user(uri: str) -> str:
    """An address for a browser: whoever follows the link signs in himself."""
    scheme, _, rest = uri.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _name_on_pipeline(tracker: Tracker, workspace: Workspace, runs: Mapping[str, Made]) -> None:
    """Tags `stage.<name>` on the pipeline's run, for stages that it found finished too. Its status stays as it was."""
    found = tracker.find_pipeline_run(pipeline_identity(workspace))
    parent = found.info.run_id if found else tracker.pipeline_run()
    for address, made in runs.items():
        tracker.client.set_tag(parent, f"stage.{address.replace('@', '.')}", made.run_id)  # MLflow allows no @ in a key
    if not found:
        tracker.client.set_terminated(parent, FINISHED)
