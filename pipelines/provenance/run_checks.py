"""Checks an MLflow run against the manifest of its result."""

import csv
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import InfrastructureError, one_line
from pipelines.records.manifests import download_manifest
from pipelines.records.stage_record import mlflow_parameters, mlflow_tags
from pipelines.scratch.manifest import Manifest
from pipelines.tracking.delivery import metric_name
from pipelines.tracking.failures import is_missing
from pipelines.tracking.runs import FINISHED, PATCH_ARTIFACT, artifact_text, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def check_run(manifest: Manifest, client: "MlflowClient", curves: Path | None) -> Iterator[str]:
    """Yield one line for each way in which the run of `manifest` is missing, unfinished, or differs from it or from `curves`.

    Raises InfrastructureError when the server fails to say whether it has the run.
    """
    from mlflow.exceptions import MlflowException

    run_id = manifest.run or ""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if not is_missing(error) and error.error_code != "INVALID_PARAMETER_VALUE":  # the latter: no run id
            raise InfrastructureError(
                f"run {run_id}: MLflow does not return it ({one_line(error)}): try again"
            ) from error
        yield f"run {run_id} is not in the MLflow store"
        return
    if run.info.lifecycle_stage != "active":
        yield f"run {run_id} was deleted from the MLflow store"
    elif run.info.status != FINISHED:
        yield f"run {run_id} is {run.info.status}, but its result is complete"
    for line in _check_facts(run, manifest, client):
        yield f"run {run_id}: {line}"
    expected = {**_numbers(manifest.metrics), **(_last_points(curves) if curves else {})}
    for name, value in expected.items():
        found = run.data.metrics.get(name)
        if found is None or not _same(found, value):
            yield f"run {run_id}: metric {name} is {_word(found)}, the files say {value:g}"


def _check_facts(run: "Run", manifest: Manifest, client: "MlflowClient") -> Iterator[str]:
    if run.data.tags.get("pipelines.fingerprint") != manifest.fingerprint:
        yield "its fingerprint is not the manifest's"
    record = manifest.provenance
    if record is None:
        return
    for key, value in mlflow_tags(record).items():
        if run.data.tags.get(key, "") != value:
            yield f"tag {key} is {run.data.tags.get(key, 'missing')!r}, the manifest says {value!r}"
    arm = manifest.stage.partition("@")[2] or None
    parameters = {key: str(value) for key, value in mlflow_parameters(record, arm).items()}
    for key in sorted({*parameters, *run.data.params}):
        if run.data.params.get(key) != parameters.get(key):
            yield f"parameter {key} is {_word(run.data.params.get(key))}, the manifest says {_word(parameters.get(key))}"
    digests = {used.dataset.name: used.dataset.digest for used in run.inputs.dataset_inputs}
    for path, used in record.inputs.items():
        if digests.get(path) != used.sha256[:32]:
            yield f"dataset input {path} has another digest than the manifest"
    if download_manifest(run.info.run_id, client) != manifest:
        yield "its copy of the manifest is missing or differs"
    if record.revision.patch and download_patch(manifest, client) is None:
        yield f"its artifact {PATCH_ARTIFACT} is missing or differs"


def download_patch(manifest: Manifest, client: "MlflowClient") -> str | None:
    """Return the patch that the run stored; None without one, or when its digest is not that of the manifest."""
    text = artifact_text(manifest.run or "", PATCH_ARTIFACT, client)
    expected = manifest.provenance.revision.patch if manifest.provenance else ""
    return text if text is not None and hashlib.sha256(text.encode()).hexdigest() == expected else None


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    flat = flatten(metrics)
    return {metric_name(key): float(value) for key, value in flat.items() if isinstance(value, (int, float))}


def _last_points(curves: Path) -> dict[str, float]:
    """Return the last value of every column of a table of curves, which MLflow shows as the metric's value."""
    last: dict[str, float] = {}
    if curves.is_file():
        with open(curves, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                last |= {metric_name(name): float(value) for name, value in row.items() if name != "step" and value}
    return last


def _same(found: float, value: float) -> bool:
    if math.isnan(value):
        return math.isnan(found)
    limit = sys.float_info.max  # a store keeps an infinite number as the largest finite one
    return found == max(-limit, min(limit, value)) or found == value


def _word(value: object) -> str:
    return "missing" if value is None else str(value)
