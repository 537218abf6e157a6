"""The state of the code: the commit, and a patch with all code that differs from it.

Code is what runs and what stages read of the checkout (`CODE`), so that a picture somebody saved, or a page of documentation,
changes no state of a run. The patch holds new files too, so that `python -m pipelines reproduce` can restore them. Its size is
limited, and a file that looks like a secret is left out and listed: then the code cannot be restored from the run alone.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import InfrastructureError, one_line
from pipelines.redaction import contains_secret
from pipelines.workspace import git_output, run_git

CODE_STATE_FILE = "provenance.json"
"""In a copy of a checkout, which is no repository: the state of the checkout."""
MAX_FILE = 256 * 1024
MAX_PATCH = 1024 * 1024
CODE = (
    "components",
    "pipelines",
    "params.yaml",
    "pretraining/recipe.yaml",
    "dvc.yaml",
    "requirements.lock",
    "data/raw",
)
"""Of data/raw, git holds a README and DVC's pointers to data; the rest is ignored."""
_NEW = ("--others", "--exclude-standard")
_SECRET_FILE = re.compile(r"(^|/)(\.env.*|\.netrc|.*credentials.*|.*\.(pem|key|p12|pfx)|id_(rsa|ed25519).*)$", re.I)


@dataclass(frozen=True)
class CodeState:
    """A commit ("" without git), whether the tree differs from it, the patch ("" for a clean tree), and files not in the patch."""

    revision: str
    dirty: bool
    patch: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def patch_digest(self) -> str:
        """SHA-256 of the patch, "" without one."""
        return hashlib.sha256(self.patch.encode()).hexdigest() if self.patch else ""

    def write(self, copy: Path) -> None:
        """Write the state into a copy of the checkout, where `code_state` reads it."""
        git = {"git.revision": self.revision, "git.dirty": str(self.dirty).lower()}
        known = {**git, "patch": self.patch, "left_out": list(self.left_out)}
        (copy / CODE_STATE_FILE).write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def code_revision(root: Path) -> str:
    """Return the commit of the checkout in `root`; without git, the one that an image was built from, or ""."""
    if copied := _copied_state(root):
        return copied.revision
    return git_output(root, "rev-parse", "HEAD").strip() or os.environ.get("GIT_REVISION", "")


def code_state(root: Path) -> CodeState:
    """Return the state of the checkout in `root`. Writes nothing to the repository: git uses an index of its own for the patch.

    Raises InfrastructureError for a checkout that git cannot read, such as another user's: its runs would name no revision.
    """
    if copied := _copied_state(root):
        return copied
    revision = code_revision(root)
    found = run_git(root, "rev-parse", "--git-dir")
    if found.returncode and any((folder / ".git").exists() for folder in (root, *root.parents)):
        reason, *_advice = found.stderr.splitlines() or [""]
        raise InfrastructureError(
            f"git cannot read the checkout {root}: {one_line(reason)}; if it belongs to another user (a container), run "
            f"`git config --global --add safe.directory {root}`"
        )
    if found.returncode:
        return CodeState(revision, dirty=False)
    with tempfile.TemporaryDirectory(prefix="patch-") as folder:
        environment = _separate_index(root, Path(folder))
        known, large = _to_compare(root)
        read = ("--pathspec-from-file=-", "--pathspec-file-nul")
        run_git(root, "--literal-pathspecs", "add", "--all", *read, environment=environment, stdin="\0".join(known))
        listed = ("diff", "--cached", "--name-only", "--no-renames", "-z", "HEAD", "--", *CODE)
        names = [name for name in git_output(root, *listed, environment=environment).split("\0") if name]
        parts: list[str] = []
        left_out = list(large)
        for name in names:
            part = "" if _SECRET_FILE.search(name) else _patch_of(root, name, environment)
            fits = 0 < len(part) <= MAX_FILE and sum(map(len, parts)) + len(part) <= MAX_PATCH
            if fits and "\ufffd" not in part and not contains_secret(part):
                parts.append(part)
            else:
                left_out.append(name)
    return CodeState(revision, bool(names or large), "".join(parts), tuple(sorted(left_out)))


def _to_compare(root: Path) -> tuple[list[str], list[str]]:
    """Return the files of code that git compares, relative to `root`, and new ones that are too large for a patch, relative to the
    repository: git would compress each of those whenever a stage begins."""
    listed = (git_output(root, "ls-files", "-z", *kind, "--", *CODE) for kind in (("--cached",), _NEW))
    tracked, new = ([name for name in names.split("\0") if name] for names in listed)
    large = [name for name in new if (root / name).is_file() and (root / name).lstat().st_size > MAX_FILE]
    prefix = git_output(root, "rev-parse", "--show-prefix").removesuffix("\n")
    return [*tracked, *(name for name in new if name not in large)], [prefix + name for name in large]


def _copied_state(root: Path) -> CodeState | None:
    try:
        known = json.loads((root / CODE_STATE_FILE).read_text(encoding="utf-8"))
        dirty = known["git.dirty"] == "true"
        return CodeState(known["git.revision"], dirty, known.get("patch", ""), tuple(known.get("left_out", ())))
    except (OSError, ValueError, KeyError):
        return None


def _separate_index(root: Path, folder: Path) -> dict[str, str]:
    """Return an environment in which git stages into `folder`, and leaves the repository's index and objects unchanged."""
    index, objects = folder / "index", folder / "objects"
    objects.mkdir()
    environment = {"GIT_INDEX_FILE": str(index), "GIT_OBJECT_DIRECTORY": str(objects)}
    theirs = Path(git_output(root, "rev-parse", "--path-format=absolute", "--git-path", "index").strip())
    if theirs.is_file():
        # It holds the files' times: git reads only those that changed. By its own time git knows which may have changed since.
        shutil.copy2(theirs, index)
    stored = git_output(root, "rev-parse", "--path-format=absolute", "--git-path", "objects").strip()
    return {**environment, "GIT_ALTERNATE_OBJECT_DIRECTORIES": stored}


def _patch_of(root: Path, name: str, environment: dict[str, str]) -> str:
    command = ("diff", "--cached", "--binary", "--no-renames", "HEAD", "--", f":(top,literal){name}")
    return git_output(root, *command, environment=environment)
