"""The runs to compare, as the tracking server knows them, with the outputs that are still in the scratch root.

A run may be that of one stage, or one with stage runs below it: a whole pipeline execution, or a trial of a sweep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, ParameterError
from pipelines import graph
from pipelines.graph import StageRun
from pipelines.scratch.folder import Scratch, folder_name
from pipelines.tracking.runs import Tracker, connect
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run

NAMED = "stage."
"""Tags of a pipeline's run that name its stages' runs, those that were restored and so logged none among them."""


@dataclass(frozen=True)
class StageResult:
    """One stage's run. `outputs` is its finished outputs, at the paths of the workspace; None when scratch has let them go."""

    stage: StageRun
    run_id: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    outputs: Path | None

    def output(self, name: str) -> Path | None:
        """An output by its name in the graph, if the stage has one and it is still there."""
        path = self.stage.outputs.get(name)
        found = self.outputs / path if self.outputs and path else None
        return found if found and found.exists() else None

    @property
    def curves(self) -> Path | None:
        found = self.outputs / self.stage.curves if self.outputs and self.stage.curves else None
        return found if found and found.exists() else None


@dataclass(frozen=True)
class Side:
    """One of the compared runs."""

    run_id: str
    name: str
    stages: Mapping[str, StageResult]
    """By address, or by the stage's name alone where single stages with different arms are compared."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Of the run itself, where it is a pipeline's or a trial's."""


def read_sides(workspace: Workspace, run_ids: Sequence[str]) -> list[Side]:
    """The runs with these ids, ready to be compared: the first is the baseline.

    Raises ParameterError for fewer than two ids, an id twice, or runs without a stage in common; DataError for an unknown id.
    """
    if len(run_ids) < 2:
        raise ParameterError("compare: give at least two run ids; the first is the baseline")
    if len(set(run_ids)) < len(run_ids):
        raise ParameterError("compare: a run id is given twice")
    tracker = connect(workspace)
    sides = [_side(tracker, run_id) for run_id in run_ids]
    if all(len(side.stages) == 1 and not side.metrics for side in sides):  # arms of a stage, most likely
        sides = [_by_stage_name(side) for side in sides]
    if not set.intersection(*(set(side.stages) for side in sides)):
        raise ParameterError(
            "compare: the runs have no stage in common ("
            + "; ".join(f"{side.name}: {', '.join(sorted(side.stages)) or 'none'}" for side in sides)
            + ")"
        )
    return sides


def _side(tracker: Tracker, run_id: str) -> Side:
    run = _get(tracker, run_id)
    name = run.info.run_name or run_id[:8]
    if "pipelines.stage" in run.data.tags:
        result = _stage_result(tracker.workspace, run)
        return Side(run_id, name, {result.stage.address: result}, {}, {})
    below = [_get(tracker, value) for key, value in run.data.tags.items() if key.startswith(NAMED)]
    below += tracker.client.search_runs(
        [tracker.experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["attributes.start_time ASC"]
    )
    stages: dict[str, StageResult] = {}
    for each in below:  # of a stage that ran several times, the last
        if "pipelines.stage" in each.data.tags:
            result = _stage_result(tracker.workspace, each)
            stages[result.stage.address] = result
    return Side(run_id, name, stages, run.data.params, run.data.metrics)


def _get(tracker: Tracker, run_id: str) -> "Run":
    from mlflow.exceptions import MlflowException

    try:
        return tracker.client.get_run(run_id)
    except MlflowException as error:
        raise DataError(f"compare: no run {run_id!r} in this tracking store; `make ui` lists them") from error


def _stage_result(workspace: Workspace, run: "Run") -> StageResult:
    tags: dict[str, Any] = run.data.tags
    arm, identity = tags.get("pipelines.arm") or "", tags.get("pipelines.fingerprint", "")
    stage = graph.find(f"{tags['pipelines.stage']}@{arm}" if arm else tags["pipelines.stage"])
    scratch = Scratch(workspace.home / folder_name(stage.address, identity))
    outputs = scratch.outputs if scratch.manifest_file.exists() else None
    return StageResult(stage, run.info.run_id, run.data.params, run.data.metrics, outputs)


def _by_stage_name(side: Side) -> Side:
    (result,) = side.stages.values()
    return Side(side.run_id, side.name, {result.stage.stage.name: result}, side.params, side.metrics)
