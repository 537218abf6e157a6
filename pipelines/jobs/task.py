"""The task of a stage's job, `runs/<key>/work.json` in the storage, and where a job's files are."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.errors import InfrastructureError
from pipelines.scratch.manifest import MANIFEST_FILE, JobManifest
from pipelines.scratch.storage import Storage

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
