"""DONE manifests, found again: by fingerprint, by the bytes of an output, or by the run that made them.

A manifest is what `Scratch.finish` writes last: stage, fingerprint, metrics, run, SHA-256 of every file of the outputs, and under
"provenance" what `pipelines.provenance` records. The run in MLflow holds a copy, so that lineage survives the scratch folder.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.graph import StageRun, all_stages, runs_of
from pipelines.scratch.folder import folder_name, folder_stem
from pipelines.tracking.runs import MANIFEST_ARTIFACT

if TYPE_CHECKING:
    from mlflow import MlflowClient

Manifest = dict[str, Any]


def by_fingerprint(address: str, identity: str, home: Path) -> Manifest | None:
    return read_manifest(home / folder_name(address, identity) / "DONE.json")


def maker_of(path: str, digests: Mapping[str, str], home: Path) -> dict[str, Any] | None:
    """The newest DONE manifest in `home` whose output `path` is these very bytes; None for raw data, or when it is gone."""
    producer = producers().get(path)
    if producer is None:
        return None
    folders = sorted(home.glob(f"{folder_stem(producer.address)}-*/DONE.json"), key=_written, reverse=True)
    return next((done for done in map(read_manifest, folders) if done and done["outputs"].get(path) == digests), None)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_manifest(file: Path) -> dict[str, Any] | None:
    """A DONE manifest as it stands; None when it is not there or torn."""
    try:
        done = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return done if isinstance(done, dict) and {"stage", "fingerprint", "outputs"} <= set(done) else None


@cache
def producers() -> Mapping[str, StageRun]:
    """Every path that a stage writes, and that stage."""
    return {path: run for stage in all_stages() for run in runs_of(stage) for path in run.all_outputs}


def by_run(run_id: str, client: "MlflowClient", home: Path) -> Manifest | None:
    """The manifest of a finished stage run: from its scratch folder, or the copy that the run holds. None when there is neither."""
    tags = client.get_run(run_id).data.tags
    address = "@".join(filter(None, (tags.get("pipelines.stage", ""), tags.get("pipelines.arm", ""))))
    stored = by_fingerprint(address, tags.get("pipelines.fingerprint", ""), home)
    return stored if stored and stored.get("run") == run_id else from_server(run_id, client)


def from_server(run_id: str, client: "MlflowClient") -> Manifest | None:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="manifest-") as folder:
        try:
            return read_manifest(Path(client.download_artifacts(run_id, MANIFEST_ARTIFACT, folder)))
        except (MlflowException, OSError):
            return None  # made before manifests were stored, or its artifacts are gone
