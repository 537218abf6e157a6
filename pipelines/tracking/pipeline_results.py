"""The results that an execution of the pipeline has given so far, stage by stage, wherever they came from.

A result counts when its stage's parameters, code and inputs are the present ones, and each input is what a counted result gave: a
stage that reads files of earlier parameters has no result here. It is found by its manifest in scratch, or, where DVC's cache gave
it and no manifest is there, by its entry in dvc.lock.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from components.errors import DataError
from pipelines.dvc_files.dvc_lock import dvc_md5, read_entries
from pipelines.graph import StageRun, all_runs, producers
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest, present_fingerprint
from pipelines.identity.known_digests import KnownDigests
from pipelines.params import Parameters
from pipelines.scratch.folder import folder_name
from pipelines.scratch.manifest import MANIFEST_FILE, Manifest
from pipelines.scratch.spent import add_costs
from pipelines.workspace import Workspace

HASHED_BYTES = 64 * 2**20
"""Up to this size the md5 of data/raw is computed, to compare it with dvc.lock."""


@dataclass(frozen=True)
class Content:
    """What is known of the bytes at a path: digest of its tree, and DVC's md5. None where it is not recorded."""

    sha256: str | None
    md5: str | None

    def equals(self, other: "Content") -> bool:
        """Return whether both are known to be the same bytes."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return self.md5 is not None and self.md5 == other.md5


@dataclass(frozen=True)
class StageResult:
    """The result of a stage. Its cost and MLflow run are not known where dvc.lock alone tells of it."""

    metrics: Mapping[str, Any]
    inputs: Mapping[str, Content]
    outputs: Mapping[str, Content]
    cost: Mapping[str, float]
    run: str | None


def results_in_place(workspace: Workspace, parameters: Parameters) -> dict[str, StageResult]:
    """Return the results of the present parameters, code and data/raw by stage address."""
    known, locked = KnownDigests(workspace.home), _locked_entries(workspace)
    found: dict[str, StageResult] = {}
    for run in all_runs():
        makers = {path: producers()[path] for path in run.inputs.values() if path in producers()}
        if any(maker.address not in found for maker in makers.values()):
            continue
        identity = present_fingerprint(run, parameters, workspace.root, known)
        done = Manifest.read(workspace.home / folder_name(run.address, identity) / MANIFEST_FILE)
        result = _of_manifest(done) if done else _of_lock(run, locked.get(run.address), workspace, parameters)
        unknown = Content(None, None)
        if result and all(
            found[maker.address].outputs.get(path, unknown).equals(result.inputs.get(path, unknown))
            for path, maker in makers.items()
        ):
            found[run.address] = result
    return found


def headlines(results: Mapping[str, StageResult]) -> dict[str, float]:
    """Return the headline numbers of all results by name."""
    runs = (run for run in all_runs() if run.address in results)
    return {name: value for run in runs for name, value in run.headlines(results[run.address].metrics).items()}


def total_cost(results: Mapping[str, StageResult]) -> dict[str, float]:
    """Return the costs of all stages together (`add_costs`)."""
    total = add_costs(result.cost for result in results.values())
    return {name: value for name, value in total.items() if name.startswith("cost/")}


def _of_manifest(done: Manifest) -> StageResult:
    return StageResult(
        metrics=done.metrics,
        inputs={path: Content(record.sha256, record.md5) for path, record in done.inputs.items()},
        outputs={path: Content(digest(files), done.md5.get(path)) for path, files in done.outputs.items()},
        cost=done.cost,
        run=done.run,
    )


def _locked_entries(workspace: Workspace) -> Mapping[str, Any]:
    try:
        return read_entries(workspace.root)
    except DataError:
        return {}


def _of_lock(
    run: StageRun, entry: Mapping[str, Any] | None, workspace: Workspace, parameters: Parameters
) -> StageResult | None:
    """Return the result that DVC has recorded for a stage, or None when it was of other parameters or code, or is not in place."""
    try:
        values = dict(entry["params"]["params.yaml"]) if entry else {}
        read = {item["path"]: item["md5"] for item in entry["deps"]} if entry else {}
        written = {item["path"]: item["md5"] for item in entry["outs"]} if entry else {}
        locked = Parameters.partial({key: values[key] for key in run.stage.reads}).only(run.stage.reads)
        same = locked == parameters.only(run.stage.reads) and values["compute.threads"] == parameters.compute.threads
    except (KeyError, TypeError, ValueError):  # no entry, or one of another schema
        return None
    file = workspace.path(run.metrics)
    same = same and all(read.get(path) == _code_md5(path) for path in (*stage_sources(run.stage), LOCK))
    raw = [path for path in run.inputs.values() if path not in producers()]
    same = same and all(read.get(path) == dvc_md5(workspace.path(path), HASHED_BYTES) for path in raw)
    if not same or written.get(run.metrics) is None or written[run.metrics] != dvc_md5(file):
        return None
    inputs, outputs = ({path: Content(None, md5) for path, md5 in part.items()} for part in (read, written))
    return StageResult(json.loads(file.read_text(encoding="utf-8")), inputs, outputs, {}, None)


@cache
def _code_md5(path: str) -> str | None:
    return dvc_md5(Path(ROOT, path))
