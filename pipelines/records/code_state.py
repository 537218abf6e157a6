"""The state of the code, whole: the commit, and as a patch whatever differs from it.

The patch holds new files too, so that `python -m pipelines reproduce` can make the same files again. It is bounded, and a file that
looks like a secret is left out and named: then the state is known, but cannot be made again from the run alone.
"""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.redaction import holds_a_secret
from pipelines.workspace import CODE_STATE_FILE, git_output, git_state

LARGEST_FILE = 256 * 1024
LARGEST_PATCH = 1024 * 1024
RESULTS = ("dvc.lock", "metrics", "reports", "benchmarks/results", "studies/results")
"""Tracked files that a run writes itself: they change while the pipeline runs, and no stage reads them as code."""
_SECRET_FILE = re.compile(
    r"(^|/)(\.env.*|\.netrc|.*credentials.*|.*\.(pem|key|p12|pfx)|id_(rsa|ed25519).*)$", re.IGNORECASE
)


@dataclass(frozen=True)
class CodeState:
    """A commit ("" without git), whether the tree differs from it, and the patch that makes it so ("" for a clean tree)."""

    revision: str
    dirty: bool
    patch: str
    left_out: tuple[str, ...]
    """Files that differ and are not in the patch."""

    @property
    def patch_digest(self) -> str:
        """SHA-256 of the patch, "" without one."""
        return hashlib.sha256(self.patch.encode()).hexdigest() if self.patch else ""


def code_state(root: Path) -> CodeState:
    """Of the checkout in `root`. Nothing of the repository is written: the patch is made with an index of its own."""
    known = git_state(root)
    revision, dirty = known["git.revision"], known["git.dirty"] == "true"
    if (root / CODE_STATE_FILE).is_file() or not git_output(root, "rev-parse", "--git-dir"):
        return CodeState(revision, dirty, *_told(root))
    with tempfile.TemporaryDirectory(prefix="patch-") as folder:
        environment = _own_index(root, Path(folder))
        git_output(root, "add", "--all", "--", ".", *(f":!{path}" for path in RESULTS), environment=environment)
        listed = [
            "diff",
            "--cached",
            "--name-only",
            "--no-renames",
            "-z",
            "HEAD",
            "--",
            ".",
            *(f":!{p}" for p in RESULTS),
        ]
        names = [name for name in git_output(root, *listed, environment=environment).split("\0") if name]
        parts: list[str] = []
        left_out: list[str] = []
        for name in names:
            part = "" if _SECRET_FILE.search(name) else _patch_of(root, name, environment)
            fits = 0 < len(part) <= LARGEST_FILE and sum(map(len, parts)) + len(part) <= LARGEST_PATCH
            if fits and "\ufffd" not in part and not holds_a_secret(part):
                parts.append(part)
            else:
                left_out.append(name)
    return CodeState(revision, dirty or bool(names), "".join(parts), tuple(left_out))


def _told(root: Path) -> tuple[str, tuple[str, ...]]:
    """The patch and what it lacks, in a copy of a checkout that is no repository itself and was told where it comes from."""
    try:
        told = json.loads((root / CODE_STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", ()
    return str(told.get("patch", "")), tuple(told.get("left_out", ()))


def _own_index(root: Path, folder: Path) -> dict[str, str]:
    """Environment in which git stages into `folder`, and leaves the repository's own index and objects alone."""
    index, objects = folder / "index", folder / "objects"
    objects.mkdir()
    environment = {"GIT_INDEX_FILE": str(index), "GIT_OBJECT_DIRECTORY": str(objects)}
    theirs = Path(git_output(root, "rev-parse", "--path-format=absolute", "--git-path", "index").strip())
    if theirs.is_file():
        index.write_bytes(theirs.read_bytes())  # with its times of files, so that only what changed is read
    stored = git_output(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").strip()
    return {**environment, "GIT_ALTERNATE_OBJECT_DIRECTORIES": stored}


def _patch_of(root: Path, name: str, environment: dict[str, str]) -> str:
    command = ["diff", "--cached", "--binary", "--no-renames", "HEAD", "--", f":(top,literal){name}"]
    return git_output(root, *command, environment=environment)
