"""What a result depends on, in one number.

Two stage runs with the same fingerprint give the same outputs, so they share checkpoints and results. Counted: source files behind
the stage, the parameters it reads, its inputs' contents, the lock of installed packages, the thread count (floating-point sums are
grouped by it), and this runner's version. Not counted: where and on what it runs.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files import file_digest
from pipelines.closure import ROOT, stage_sources
from pipelines.graph import StageRun

RUNNER_VERSION = 1
LOCK = "requirements.lock"


def tree_digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file at or below `path`, by its path relative to it ("" for a plain file). A missing path gives {}."""
    if path.is_file():
        return {"": file_digest(path)}
    # Links to folders are followed: a published set in data/raw is often one.
    files = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
    return {file.relative_to(path).as_posix(): file_digest(file) for file in sorted(files) if file.is_file()}


def digest(value: Any) -> str:
    """SHA-256 of a JSON value. Raises TypeError for anything that has no JSON form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def fingerprint(run: StageRun, parameters: Mapping[str, Any], inputs: Mapping[str, Path], threads: int) -> str:
    """Identifies the result of `run`: 64 hexadecimal digits. `parameters` holds the keys that the stage reads."""
    return digest(
        {
            "runner": RUNNER_VERSION,
            "stage": run.address,
            "sources": {source: file_digest(ROOT / source) for source in stage_sources(run.stage)},
            "parameters": dict(parameters),
            "inputs": {name: tree_digests(path) for name, path in inputs.items()},
            "lock": file_digest(ROOT / LOCK),
            "threads": threads,
        }
    )
