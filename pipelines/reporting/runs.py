"""The MLflow runs that made the results of a workspace, found by fingerprint. The page does without those that are not found."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import one_line
from pipelines.graph import StageRun, all_runs
from pipelines.identity.fingerprint import present_fingerprint
from pipelines.params import Parameters
from pipelines.records.manifests import find_by_fingerprint
from pipelines.tracking.addresses import sqlite_file, tracking_uri
from pipelines.tracking.pipeline_run import (
    REPORT_ARTIFACTS,
    describe,
    find_pipeline_run,
    open_pipeline_run,
    pipeline_identity,
)
from pipelines.tracking.runs import FINISHED, Tracker, connect, known_run, public_uri
from pipelines.tracking.stage_tags import stage_tag
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class FoundRun:
    """The run that made a stage's results. Seconds, CPU seconds and MB are None where the run did not log them."""

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
class FoundRuns:
    """Fingerprints and runs by stage address; `problem` says in one line why runs could not be looked up."""

    uri: str
    fingerprints: Mapping[str, str]
    runs: Mapping[str, FoundRun]
    problem: str | None


def look_up(workspace: Workspace, params: Parameters) -> FoundRuns:
    """Find the run behind every stage, and tag the pipeline's run with their ids. Needs no server."""
    uri, shown = tracking_uri(workspace), public_uri(workspace)
    stages = all_runs()
    fingerprints = {run.address: present_fingerprint(run, params, workspace.root) for run in stages}
    database = sqlite_file(uri)
    if database and not database.exists():
        return FoundRuns(shown, fingerprints, {}, f"no MLflow store at {shown}")
    try:
        tracker = connect(workspace)
        found = {run.address: _find(tracker, run, fingerprints[run.address]) for run in stages}
        runs = {address: _facts(run, uri) for address, run in found.items() if run}
        _name_on_pipeline(tracker, workspace, runs)
    except Exception as error:  # the page is useful without its runs, whatever went wrong
        reason = one_line(error)
        print(f"warning: the page shows no runs: {reason}", file=sys.stderr)
        return FoundRuns(shown, fingerprints, {}, reason)
    return FoundRuns(shown, fingerprints, runs, None)


def attach(workspace: Workspace, page: Path, folder: Path) -> None:
    """Store the page, and the folder of pages that it links to, as artifacts of the pipeline's run, where there is one.

    A store that does not answer causes a warning.
    """
    try:
        tracker = connect(workspace)
        if found := find_pipeline_run(tracker, pipeline_identity(workspace)):
            tracker.client.log_artifact(found.info.run_id, str(page), REPORT_ARTIFACTS)
            if folder.is_dir():
                tracker.client.log_artifacts(found.info.run_id, str(folder), f"{REPORT_ARTIFACTS}/{folder.name}")
    except Exception as error:  # the page is written, whatever went wrong
        print(f"warning: the page is not in MLflow: {one_line(error)}", file=sys.stderr)


def _find(tracker: Tracker, run: StageRun, identity: str) -> "Run | None":
    """The run that the manifest in scratch names, or the newest finished one with this fingerprint."""
    manifest = find_by_fingerprint(run.address, identity, tracker.workspace.home)
    # It is not known where it was made under another server, or was removed.
    named = known_run(manifest.run, tracker.client) if manifest and manifest.run else None
    return named or tracker.find_finished_run(identity)


def _facts(run: "Run", uri: str) -> FoundRun:
    metrics: dict[str, Any] = run.data.metrics
    tags: dict[str, str] = run.data.tags
    served = uri.startswith(("http://", "https://"))
    return FoundRun(
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
    """The address without user and password: the page may be mailed."""
    scheme, _, rest = uri.rstrip("/").partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _name_on_pipeline(tracker: Tracker, workspace: Workspace, runs: Mapping[str, FoundRun]) -> None:
    """Describe the pipeline's run, and name the runs of its stages, restored ones included. Its status stays as it was."""
    found = find_pipeline_run(tracker, pipeline_identity(workspace))
    parent = found.info.run_id if found else open_pipeline_run(tracker)
    describe(tracker, parent)
    tracker.set_tags(parent, {stage_tag(address): run.run_id for address, run in runs.items()})
    if not found:
        tracker.client.set_terminated(parent, FINISHED)
