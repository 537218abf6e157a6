"""Does an MLflow run still say what the manifest of its result says? One line for each thing that differs."""

import csv
import hashlib
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.records.manifests import Manifest, from_server
from pipelines.records.provenance import tags_of
from pipelines.tracking.delivery import metric_name
from pipelines.tracking.runs import FINISHED, PATCH_ARTIFACT, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def run_links(manifest: Manifest, client: "MlflowClient", curves: Path | None) -> Iterator[str]:
    """What is wrong with the run that `manifest` names: gone, not finished, or with other facts than the manifest and `curves`."""
    from mlflow.exceptions import MlflowException

    run_id = manifest.get("run")
    try:
        run = client.get_run(run_id)
    except MlflowException:
        yield f"run {run_id} is not in the MLflow store"
        return
    if run.info.lifecycle_stage != "active":
        yield f"run {run_id} was deleted from the MLflow store"
    elif run.info.status != FINISHED:
        yield f"run {run_id} is {run.info.status}, but its result is complete"
    for line in _facts(run, manifest, client):
        yield f"run {run_id}: {line}"
    expected = {**_numbers(manifest["metrics"]), **(_last_points(curves) if curves else {})}
    for name, value in expected.items():
        found = run.data.metrics.get(name)
        if found is None or not _same(found, value):
            yield f"run {run_id}: metric {name} is {_word(found)}, the files say {value:g}"


def _facts(run: "Run", manifest: Manifest, client: "MlflowClient") -> Iterator[str]:
    if run.data.tags.get("pipelines.fingerprint") != manifest["fingerprint"]:
        yield "its fingerprint is another than the manifest's"
    known = manifest.get("provenance")
    if known is None:
        return
    for key, value in tags_of(known).items():
        if run.data.tags.get(key, "") != value:
            yield f"tag {key} is {run.data.tags.get(key, 'missing')!r}, the manifest says {value!r}"
    parameters = {key: str(value) for key, value in flatten(known["parameters"]).items()}
    for key in sorted({*parameters, *run.data.params}):
        if run.data.params.get(key) != parameters.get(key):
            yield f"parameter {key} is {_word(run.data.params.get(key))}, the manifest says {_word(parameters.get(key))}"
    data = {used.dataset.name: used.dataset.digest for used in run.inputs.dataset_inputs}
    for path, record in known["inputs"].items():
        if data.get(path) != record["sha256"][:32]:
            yield f"dataset input {path} has another digest than the manifest"
    if from_server(run.info.run_id, client) != manifest:
        yield "its copy of the manifest is missing or another"
    if known["revision"]["patch"] and _patch_digest(run.info.run_id, client) != known["revision"]["patch"]:
        yield f"its artifact {PATCH_ARTIFACT} is missing or another"


def patch_text(run_id: str, client: "MlflowClient") -> str | None:
    """The patch that the run stored, None without one."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="patch-") as folder:
        try:
            return Path(client.download_artifacts(run_id, PATCH_ARTIFACT, folder)).read_bytes().decode()
        except (MlflowException, OSError):
            return None


def _patch_digest(run_id: str, client: "MlflowClient") -> str | None:
    text = patch_text(run_id, client)
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    flat = flatten(metrics)
    return {metric_name(key): float(value) for key, value in flat.items() if isinstance(value, (int, float))}


def _last_points(curves: Path) -> dict[str, float]:
    """Of every column of a table of curves, the last value: what MLflow gives as the metric's value."""
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
