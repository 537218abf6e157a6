"""The runs to compare: their parameters and metrics in MLflow, and their outputs that are still in the scratch root.

A run is that of a stage, or has runs of stages below it: the run of a pipeline, or of a trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ParameterError
from pipelines import graph
from pipelines.graph import StageRun
from pipelines.records.manifests import find_maker
from pipelines.scratch.folder import Scratch, folder_name
from pipelines.scratch.manifest import Manifest
from pipelines.tracking.run_ids import find_run
from pipelines.tracking.runs import Tracker, connect
from pipelines.tracking.stage_tags import stage_runs
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run

PEOPLE = graph.PEOPLE["people"]
GENERATED = "data/generated/"


@dataclass(frozen=True)
class StageResult:
    """The run of a stage. `outputs` is the folder of its finished outputs in scratch, or None when they were removed."""

    stage: StageRun
    run_id: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    outputs: Path | None
    people: str | None = None
    """The digest of the data set that it was evaluated on (`people_behind`), or None where that is not known."""

    def output(self, name: str) -> Path | None:
        """The path of an output by its name in the graph, or None when it does not exist."""
        path = self.stage.outputs.get(name)
        found = self.outputs / path if self.outputs and path else None
        return found if found and found.exists() else None

    @property
    def curves(self) -> Path | None:
        found = self.outputs / self.stage.curves if self.outputs and self.stage.curves else None
        return found if found and found.exists() else None


@dataclass(frozen=True)
class ComparedRun:
    """One of the compared runs. Parameters and metrics are empty for the run of a single stage, which has its own."""

    run_id: str
    name: str
    stages: Mapping[str, StageResult]
    """By address, or by the name of the stage where arms of one stage are compared."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def read_runs(workspace: Workspace, run_ids: Sequence[str]) -> list[ComparedRun]:
    """The runs with these ids, or with ids that begin so; the first is the baseline.

    Raises ParameterError for fewer than two ids, a run twice, or runs without a stage in common; and as `find_run` and `connect`.
    """
    if len(run_ids) < 2:
        raise ParameterError("compare: give at least two run ids; the first is the baseline")
    tracker = connect(workspace, create=False)
    found = [find_run(tracker, run_id) for run_id in run_ids]
    if len({run.info.run_id for run in found}) < len(found):
        raise ParameterError("compare: a run is given twice")
    runs = [_read(tracker, run) for run in found]
    if all(len(run.stages) == 1 and not run.metrics for run in runs):  # arms of a stage, most likely
        runs = [_by_stage_name(run) for run in runs]
    if not set.intersection(*(set(run.stages) for run in runs)):
        stages = "; ".join(f"{run.name}: {', '.join(sorted(run.stages)) or 'none'}" for run in runs)
        raise ParameterError(f"compare: the runs have no stage in common ({stages})")
    return runs


def _read(tracker: Tracker, run: "Run") -> ComparedRun:
    run_id = run.info.run_id
    name = run.info.run_name or run_id[:8]
    if "pipelines.stage" in run.data.tags:
        result = _stage_result(tracker, run)
        return ComparedRun(run_id, name, {result.stage.address: result}, {}, {})
    named = stage_runs(run.data.tags)
    below = [find_run(tracker, stage_run) for stage_run in named.values()]
    below += tracker.client.search_runs(
        [tracker.experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["attributes.start_time ASC"]
    )
    stages: dict[str, StageResult] = {}
    # The run that a tag names counts, else the last where a stage has several: a trial has one for each seed.
    for each in below:
        if "pipelines.stage" in each.data.tags:
            result = _stage_result(tracker, each)
            if named.get(result.stage.address, result.run_id) == result.run_id:
                stages[result.stage.address] = result
    return ComparedRun(run_id, name, stages, run.data.params, run.data.metrics)


def _stage_result(tracker: Tracker, run: "Run") -> StageResult:
    tags: dict[str, Any] = run.data.tags
    arm, identity = tags.get("pipelines.arm") or "", tags.get("pipelines.fingerprint", "")
    stage = graph.find(f"{tags['pipelines.stage']}@{arm}" if arm else tags["pipelines.stage"])
    scratch = Scratch(tracker.workspace.home / folder_name(stage.address, identity))
    outputs = scratch.outputs if scratch.manifest_file.exists() else None
    people = people_behind(Manifest.read(scratch.manifest_file), tracker)
    return StageResult(stage, run.info.run_id, run.data.params, run.data.metrics, outputs, people)


def people_behind(done: Manifest | None, tracker: Tracker) -> str | None:
    """Return the digest of the people that a stage read, or that the prompts of the pictures come from which it read.

    None where it read neither, or the record of it is gone.
    """
    while done and PEOPLE not in done.inputs:
        drawn = [record for path, record in done.inputs.items() if path.startswith(GENERATED)]
        done = find_maker(drawn[0], tracker.workspace.home, tracker.client) if drawn else None
    return done.inputs[PEOPLE].sha256 if done else None


def _by_stage_name(run: ComparedRun) -> ComparedRun:
    (result,) = run.stages.values()
    return replace(run, stages={result.stage.stage.name: result})
