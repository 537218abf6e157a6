"""The run of a pipeline execution, the parent of the runs of its stages: known by parameters, code and data/raw.

`pipeline_execution` is for a command that runs many stages: it alone sets the run's owner and status. A stage that runs by itself,
as in `dvc repro`, opens the run with `open_pipeline_run`, and its end is the run's. `describe` writes what the execution gave.
"""

import datetime
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.files import file_digest
from pipelines import params
from pipelines.dvc_files.dvc_lock import LOCK_FILE
from pipelines.errors import INTERRUPTED, exit_code
from pipelines.graph import all_stages
from pipelines.identity.closure import ROOT, sources_behind
from pipelines.identity.fingerprint import LOCK, digest, tree_digests
from pipelines.identity.known_digests import KnownDigests
from pipelines.tracking.delivery import metric_name
from pipelines.tracking.parent_run import close_parent_run, open_parent_run, warn_of_failure
from pipelines.tracking.pipeline_results import StageResult, headlines, results_in_place, total_cost
from pipelines.tracking.runs import LEVEL, Tracker, connect
from pipelines.tracking.stage_tags import stage_tag
from pipelines.workspace import Workspace, git_output

if TYPE_CHECKING:
    from mlflow.entities import Run

PIPELINE = "pipelines.pipeline"
"""Tag of a pipeline's run: its `pipeline_identity`."""
CODE, RAW_DATA, REVISION = "pipelines.code", "pipelines.raw", "git.revision"
"""Tags of a pipeline's run: digests of all stages' code, and of data/raw; the commit that was checked out."""
NOTE, LONGEST_NOTE = "mlflow.note.content", 5000
"""The tag that MLflow shows as a run's description, and the most characters that are written into it."""
REPORT, REPORT_ARTIFACTS = "reports/report.json", "report"
UNFINISHED = "unfinished-pipelines"
"""Folder in `home`: an empty file for each execution of a checkout whose run was opened and is not FINISHED."""


class PipelineExecution:
    """An execution under way. Its run is found or created when `id` is first read, so a command that runs nothing opens no store.

    `exit_code` is the command's: 0 makes the run FINISHED, that of an interruption KILLED, any other FAILED.
    `took_results`: whether caches gave results that belong into the run, though no stage has asked for it.

    An execution that was killed after its last stage, or found no store at its end, leaves nothing to run: the next one with exit
    code 0 makes its run FINISHED. Which that is, a file in `UNFINISHED` tells, so that otherwise no store need be asked.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.exit_code = 0
        self.took_results = False
        self._run: tuple[Tracker, str, Path] | None = None

    @property
    def id(self) -> str:
        """The id of the run, owned by this process and RUNNING. Raises as `connect` does when the store cannot be used."""
        if self._run is None:
            tracker = connect(self.workspace)
            mark = self._unfinished()
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            self._run = tracker, open_pipeline_run(tracker), mark
        return self._run[1]

    def end(self) -> None:
        """Describe the run and set its status. A store that does not answer causes a warning: the results are on disk."""
        if self._run is None and (self.took_results or self._ends_an_earlier_one()):
            warn_of_failure("of the pipeline", "opened", lambda: self.id)
        if self._run is None:
            return
        tracker, run_id, mark = self._run
        if self.exit_code != INTERRUPTED:  # who interrupts does not want to wait; the next execution describes it
            tracker.close_finished()  # runs of stages that ended while the store was away
            warn_of_failure(run_id, "described", lambda: describe(tracker, run_id))
        if close_parent_run(tracker, run_id, self.exit_code):
            mark.unlink(missing_ok=True)

    def _ends_an_earlier_one(self) -> bool:
        any_left = any((self.workspace.home / UNFINISHED).glob("*"))  # asked first: the identity takes a while
        return self.exit_code == 0 and any_left and self._unfinished().exists()

    def _unfinished(self) -> Path:
        """Of this checkout alone: the same execution may be under way in another one, with the same `home`."""
        return self.workspace.home / UNFINISHED / digest([pipeline_identity(self.workspace), str(self.workspace.root)])


@contextmanager
def pipeline_execution(workspace: Workspace) -> Iterator[PipelineExecution]:
    """Own the pipeline's run while the block runs stages; set its status at the end, from `exit_code` or the block's error."""
    execution = PipelineExecution(workspace)
    try:
        yield execution
    except BaseException as error:
        execution.exit_code = exit_code(error)
        raise
    finally:
        execution.end()


def open_pipeline_run(tracker: Tracker) -> str:
    """Return the run of the workspace's pipeline, created if need be, owned by this process and marked as running.

    Raises as `connect` does when the store stops answering.
    """
    identity = pipeline_identity(tracker.workspace)
    return open_parent_run(tracker, PIPELINE, identity, lambda: _create(tracker, identity), _experiment_name())


def describe_pipeline(workspace: Workspace) -> None:
    """Describe the run of the workspace's pipeline, if there is one. A store that does not answer causes a warning."""

    def write() -> None:
        tracker = connect(workspace)
        if found := find_pipeline_run(tracker, pipeline_identity(workspace)):
            describe(tracker, found.info.run_id)

    warn_of_failure("of the pipeline", "described", write)


def describe(tracker: Tracker, run_id: str) -> dict[str, StageResult]:
    """Write to the pipeline's run what its execution has given so far, and return that by stage address.

    The headline numbers and the cost in all; the runs of its stages; `dvc.lock` and the report; what differs from the execution
    before. Numbers that the run has already are not sent again.
    """
    from mlflow.entities import Metric, RunTag

    client, workspace = tracker.client, tracker.workspace
    results = results_in_place(workspace, params.load(workspace.path("params.yaml")))
    run = client.get_run(run_id)
    numbers = {metric_name(key): value for key, value in (headlines(results) | total_cost(results)).items()}
    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, 0) for key, value in numbers.items() if run.data.metrics.get(key) != value]
    tags = {stage_tag(address): result.run for address, result in results.items() if result.run}
    tags[NOTE] = difference(tracker, run, numbers)
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
    if workspace.path(LOCK_FILE).is_file():
        client.log_artifact(run_id, str(workspace.path(LOCK_FILE)))
    if "report" in results and workspace.path(REPORT).is_file():
        client.log_artifact(run_id, str(workspace.path(REPORT)), REPORT_ARTIFACTS)
    return results


def difference(tracker: Tracker, run: "Run", numbers: Mapping[str, float]) -> str:
    """Return, as Markdown, how an execution differs from the one that started before it: parameters, code, data, numbers."""
    earlier = f"tags.{LEVEL} = 'pipeline' and attributes.start_time < {run.info.start_time}"
    before = tracker.find(earlier, "DESC")
    if before is None:
        return "The first execution of the pipeline in this experiment."
    started = datetime.datetime.fromtimestamp(before.info.start_time / 1000).astimezone()
    lines = [f"Compared with *{before.info.run_name}* (`{before.info.run_id[:8]}`, {started:%Y-%m-%d %H:%M %Z}):", ""]
    for key in sorted({*before.data.params, *run.data.params}):
        old, new = (each.data.params.get(key, "none") for each in (before, run))
        lines += [f"- `{key}`: {old} → **{new}**"] if old != new else []
    then, now = before.data.tags, run.data.tags
    if then.get(CODE) != now.get(CODE):
        lines.append(f"- code: commit {then.get(REVISION, '')[:8] or 'none'} → {now.get(REVISION, '')[:8] or 'none'}")
    if then.get(RAW_DATA) != now.get(RAW_DATA):
        lines.append("- `data/raw` holds other files")
    if len(lines) == 2:
        lines.append("- nothing")
    compared = [(key, before.data.metrics.get(key), value) for key, value in numbers.items() if "/" not in key]
    rows = [f"| {key} | {old:.5g} | {new:.5g} |" for key, old, new in compared if old is not None and old != new]
    if rows:
        lines += ["", "| number | before | now |", "|---|---|---|", *rows]
    return "\n".join(lines)[:LONGEST_NOTE]


def find_pipeline_run(tracker: Tracker, identity: str) -> "Run | None":
    """Return the first pipeline run with this `pipeline_identity`."""
    return tracker.find(f"tags.`{PIPELINE}` = '{identity}'", "ASC")


def pipeline_identity(workspace: Workspace) -> str:
    """Return the digest of what identifies a pipeline execution: parameters, code and data/raw."""
    return digest(_identifying(workspace))


def _identifying(workspace: Workspace) -> dict[str, str]:
    """Return digests of parameters, of sources and packages of all stages, and of data/raw.

    Of `compute` only the threads count, as in the fingerprint of a stage: where stages run makes no other pipeline.
    """
    parameters = params.load(workspace.path("params.yaml"))
    values = parameters.only(set(params.Parameters.model_fields) - {"compute"})
    code = [*sources_behind([f"pipelines.stages.{stage.name}" for stage in all_stages()]), LOCK]
    return {
        "parameters": digest([values, parameters.compute.threads]),
        CODE: digest({path: file_digest(ROOT / path) for path in code}),
        RAW_DATA: digest(tree_digests(workspace.path("data/raw"), KnownDigests(workspace.home))),
    }


def _create(tracker: Tracker, identity: str) -> str:
    made_of = _identifying(tracker.workspace)
    tags = {PIPELINE: identity, LEVEL: "pipeline", "mlflow.runName": f"pipeline {identity[:8]}"}
    tags |= {CODE: made_of[CODE], RAW_DATA: made_of[RAW_DATA], REVISION: git_output(ROOT, "rev-parse", "HEAD").strip()}
    run_id = str(tracker.client.create_run(tracker.experiment, tags=tags).info.run_id)
    parameters = params.load(tracker.workspace.path("params.yaml"))
    tracker.log_params(run_id, parameters.model_dump(mode="json"))
    return run_id


def _experiment_name() -> dict[str, str]:
    """Return the tag by which a row of `dvc exp show` finds this run; {} outside `dvc exp run`."""
    name = os.environ.get("DVC_EXP_NAME")
    return {"dvc.exp_name": name} if name else {}
