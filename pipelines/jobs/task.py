"""The task of a stage's job, `runs/<key>/work.json` in the storage, and where a job's files are."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError
from pipelines.errors import InfrastructureError
from pipelines.identity.fingerprint import digest, tree_digests
from pipelines.scratch.folder import put_in_place
from pipelines.scratch.manifest import MANIFEST_FILE, JobManifest
from pipelines.scratch.storage import Storage, files_below

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class JobTask:
    """One stage, the parameters that it reads, and the location of its inputs.

    Attributes:
        inputs: path in the workspace -> name of the folder in the storage that holds it.
    """

    key: str
    address: str
    parameters: Mapping[str, Any]
    compute: Mapping[str, Any]
    inputs: Mapping[str, str]

    def write(self, storage: Storage) -> None:
        storage.write(f"{run_folder(self.key)}/work.json", json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, storage: Storage, key: str) -> "JobTask":
        found = storage.read_json(f"{run_folder(key)}/work.json")
        if found is None:
            raise InfrastructureError(
                f"{storage.path(run_folder(key))}/work.json is not there: this node does not see the submitter's storage"
            )
        return cls(**found)


def publish_inputs(storage: Storage, root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Upload the files and folders at `paths` of the workspace `root`, each once per content; return where each is in the storage.

    Raises DataError for a path outside of the workspace, where a job has no place for it.
    """
    locations = {}
    for path in paths:
        if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise DataError(
                f"{path}: is not a path in the checkout, so a job cannot take it: copy or link it to data/weights"
            )
        # With the name, which is that of the files in the storage: equal files of two names are two inputs.
        name = f"inputs/{digest({Path(path).name: tree_digests(root / path)})[:32]}"
        storage.publish(files_below(root / path), name)
        locations[path] = name
    return locations


def place_inputs(storage: Storage, inputs: Mapping[str, str], root: Path) -> None:
    """Put published inputs below `root`, at their paths in the workspace. Raises DataError for one that is damaged."""
    for path, name in inputs.items():
        if storage.folder:
            storage.require_whole(name, storage.folder / name)
            put_in_place(storage.folder / name / Path(path).name, root / path)
            continue
        with tempfile.TemporaryDirectory(prefix="job-input-") as folder:
            storage.fetch(name, Path(folder))
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(folder) / Path(path).name, root / path)


def run_folder(key: str) -> str:
    """Return the folder for checkpoints and metrics of an unfinished job."""
    return f"runs/{key}"


def output_folder(key: str) -> str:
    """Return the folder for the outputs of a finished job."""
    return f"outputs/{key}"


def read_manifest(storage: Storage, key: str) -> JobManifest | None:
    """Return the manifest of a finished job, or None before it has finished."""
    return JobManifest.parse(storage.read(f"{output_folder(key)}/{MANIFEST_FILE}"))


def write_manifest(storage: Storage, key: str, manifest: JobManifest) -> None:
    """Mark a job as finished: the last file that it writes."""
    storage.write(f"{output_folder(key)}/{MANIFEST_FILE}", manifest.to_json())
