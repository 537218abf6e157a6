"""A frozen copy of the code that is uploaded with a job.

The live folder is never uploaded: a file that changes while it is packed spoils the package (its name is a hash that is taken
twice), and a job must run the code that was fingerprinted. The copy holds the files of `components/` and `pipelines/` that git
tracks or would add, and the package lock; for a whole `dvc repro` also what DVC reads. No data, no caches, no environment.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from components.errors import DataError
from components.files import file_digest
from pipelines.identity.fingerprint import LOCK, digest
from pipelines.records.code_state import CodeState
from pipelines.workspace import run_git

CODE = ("components", "pipelines", LOCK)
RESULTS = ("dvc.lock", "metrics")
"""What a repro writes. They go with a job, which skips what they say is done, and do not tell one job from another."""
REPRO = (
    *CODE,
    *RESULTS,
    "params.yaml",
    "presets",
    "studies",
    "dvc.yaml",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "pyproject.toml",
)
LIMIT_BYTES = 50 * 2**20
"""Ray's dashboard takes packages of up to 100 MiB, whatever its documentation says."""


def source_files(root: Path, below: Iterable[str]) -> list[str]:
    """Return the files at or below `below`, relative to `root`, sorted: those that git tracks or would add; without git, all."""
    names = [name for name in below if (root / name).exists()]
    listed = run_git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *names)
    if listed.returncode == 0:
        found = {name for name in listed.stdout.split("\0") if name}
    else:
        trees = [[root / name] if (root / name).is_file() else sorted((root / name).rglob("*")) for name in names]
        found = {path.relative_to(root).as_posix() for tree in trees for path in tree}
    return sorted(name for name in found if (root / name).is_file() and "__pycache__" not in Path(name).parts)


def require_small(root: Path, files: Iterable[str], limit: int = LIMIT_BYTES) -> None:
    """Raise DataError, naming the largest files, when they exceed `limit` bytes."""
    sizes = {name: (root / name).stat().st_size for name in files}
    total = sum(sizes.values())
    if total <= limit:
        return
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    listed = ", ".join(f"{name} {_mebibytes(sizes[name])}" for name in largest if sizes[name] > limit // 100)
    raise DataError(
        f"the code to upload with the job is {_mebibytes(total)}, more than {_mebibytes(limit)}: {listed}; "
        "move such files out of the packages, or list them in .gitignore"
    )


def freeze(root: Path, target: Path, below: Iterable[str] = CODE, state: CodeState | None = None) -> str:
    """Copy the source files of `root` into the new folder `target`. Returns the digest of names and contents, but for `RESULTS`.

    `state` is written beside them, as the copy is no repository.
    Raises DataError where they are more than LIMIT_BYTES.
    """
    files = source_files(root, below)
    require_small(root, files)
    contents = {}
    for name in files:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, copy)
        contents[name] = file_digest(copy)
    if state is not None:
        state.write(target)
    return digest({name: content for name, content in contents.items() if Path(name).parts[0] not in RESULTS})


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
