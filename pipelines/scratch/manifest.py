"""DONE.json, the last file that is written: by a stage run into its scratch folder, by a job into the storage.

The run in MLflow holds a copy of a stage's manifest, so that lineage survives the scratch folder.
"""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

MANIFEST_FILE = "DONE.json"


class Document(BaseModel):
    """JSON with a schema. What was not set is not written, so that a file of older code keeps its keys."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Return the document in `text`, or None when there is none, it is torn, or a key is missing."""
        try:
            return cls.model_validate(json.loads(text or ""))
        except ValueError:  # of JSON or of the schema
            return None

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Return the document in `file`, or None without one, or as `parse` does. Raises OSError where it may not be read."""
        try:
            return cls.parse(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return None

    def to_json(self, indent: int | None = None) -> str:
        """Return the JSON text, keys sorted."""
        return json.dumps(self.model_dump(exclude_unset=True), indent=indent, sort_keys=True) + "\n"


class CodeRecord(Document):
    """The git commit, whether the tree differed from it, SHA-256 of the stored patch, and differing files not in the patch."""

    commit: str
    dirty: bool
    patch: str
    left_out: list[str]


class InputRecord(Document):
    """An input: its name, SHA-256 of its tree, DVC's md5 where that is cheap, and the stage run that made it, where known."""

    sha256: str
    md5: str | None = None
    name: str = ""
    stage: str | None = None
    fingerprint: str | None = None
    run: str | None = None


class StageRecord(Document):
    """Where a result comes from: everything that is needed to trace, check and repeat it.

    Attributes:
        parameters: the keys of params.yaml that the stage read, with their values.
        upstream: those, flat, that the stages read which made its inputs; None in manifests of older code.
        inputs: by path.
        sources: SHA-256 over the source files behind the stage.
        lock: SHA-256 of requirements.lock.
        environment: versions of Python and of the packages that compute.
        hardware: of the machine that computed.
        compute: workers, strategy and device of the section `compute`; empty in manifests of older code.
        ray: job and submission ids, where it ran in a Ray job.
    """

    revision: CodeRecord
    parameters: dict[str, Any]
    upstream: dict[str, Any] | None = None
    inputs: dict[str, InputRecord]
    sources: str
    lock: str
    threads: int
    seed: int
    environment: dict[str, str]
    hardware: dict[str, Any]
    compute: dict[str, int | str] = {}
    ray: dict[str, str]

    @property
    def fingerprinted(self) -> dict[str, Any]:
        """What the fingerprint counts besides the inputs."""
        code = {"code": self.sources, "requirements.lock": self.lock}
        return {**code, "parameters": self.parameters, "threads": self.threads}


class Manifest(Document):
    """A finished stage run: its address, fingerprint, metrics, MLflow run and cost, and the SHA-256 of every output file by path.

    `md5` holds DVC's md5 by output, None where that would take long. `provenance` is None in manifests of older code.
    """

    stage: str
    fingerprint: str
    outputs: dict[str, dict[str, str]] = {}
    metrics: dict[str, Any] = {}
    run: str | None = None
    cost: dict[str, int | float] = {}
    provenance: StageRecord | None = None
    md5: dict[str, str | None] = {}

    @property
    def inputs(self) -> dict[str, InputRecord]:
        return self.provenance.inputs if self.provenance else {}


class ExecutionSite(Document):
    """The Ray job and the machine that computed."""

    ray: dict[str, str]
    hardware: dict[str, Any]


class RemoteExecution(Document):
    """Facts about a stage that ran as a job: where, and its cost there."""

    where: ExecutionSite
    cost: dict[str, int | float]


class JobManifest(Document):
    """A finished job: of a stage its address, metrics and execution; of a whole `dvc repro` the targets."""

    stage: str = ""
    metrics: dict[str, Any] = {}
    ran: RemoteExecution | None = None
    targets: list[str] = []
