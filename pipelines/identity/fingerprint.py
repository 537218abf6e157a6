"""The fingerprint: a digest of everything that a result depends on.

Two stage runs with the same fingerprint give the same outputs, so they share checkpoints and results. Counted, here as in
`dvc.yaml`: source files behind the stage, the parameters it reads, its inputs' contents, the lock of installed packages, and the
thread count (floating-point sums are grouped by it). Not counted: where and on what it runs.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.files import file_digest
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.known_digests import KnownDigests, settled_state
from pipelines.params import ParameterFile

LOCK = "requirements.lock"


def tree_digests(path: Path, known: KnownDigests | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file at or below `path`, by relative path ("" for a plain file); {} for a missing path.

    Files whose digests are `known` are not read.
    """
    if path.is_file():
        files = {"": path}
    else:
        # Links to folders are followed: a published set in data/raw is often one.
        found = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
        files = {file.relative_to(path).as_posix(): file for file in sorted(found) if file.is_file()}
    digests = known.of(list(files.values())) if known else [_digest(file) for file in files.values()]
    return dict(zip(files, digests, strict=True))


def _digest(path: Path) -> str:
    """Return `file_digest`; an unchanged file is read once per process."""
    state = settled_state(path)
    return _settled_digest(str(path), state) if state else file_digest(path)


@lru_cache(maxsize=1 << 16)
def _settled_digest(path: str, state: str) -> str:
    return file_digest(Path(path))


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value. Raises TypeError for anything that has no JSON form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def stage_inputs(run: StageRun, params: ParameterFile, root: Path) -> dict[str, str]:
    """Return what a stage reads by name, as POSIX paths relative to the workspace `root`: its inputs, and local weights that its
    parameters name (they pin the digests, which is how DVC sees them)."""
    weights = [path for path in params.weights(run.stage.reads) if (root / path).exists()]
    return {**run.inputs, **{path: path for path in weights}}


def present_fingerprint(run: StageRun, params: ParameterFile, root: Path, known: KnownDigests | None = None) -> str:
    """Return the fingerprint of a stage of the workspace `root` with these parameters and the inputs as they are now."""
    inputs = {name: root / path for name, path in stage_inputs(run, params, root).items()}
    return fingerprint(run, params.only(run.stage.reads), inputs, params.compute.threads, known)


def fingerprint(
    run: StageRun,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Path],
    threads: int,
    known: KnownDigests | None = None,
) -> str:
    """Return the fingerprint of the result of `run`, 64 hexadecimal digits. `parameters` holds the keys that the stage reads."""
    return digest(
        {
            "stage": run.address,
            "sources": {source: file_digest(ROOT / source) for source in stage_sources(run.stage)},
            "parameters": dict(parameters),
            "inputs": {name: tree_digests(path, known) for name, path in inputs.items()},
            "lock": file_digest(ROOT / LOCK),
            "threads": threads,
        }
    )
