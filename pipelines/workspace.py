"""Where things are: the checkout that a stage reads and writes, and the scratch root that outlives it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """`root` holds params.yaml and the outputs; `home` holds checkpoints and finished results, shared by all worktrees."""

    root: Path
    home: Path

    @classmethod
    def at(cls, root: Path) -> "Workspace":
        """The workspace in `root`, with its scratch root: `PIPELINES_HOME`, or `.runs` in the main worktree."""
        root = root.resolve()
        chosen = os.environ.get("PIPELINES_HOME")
        home = Path(chosen).resolve() if chosen else main_worktree(root) / ".runs"
        return cls(root, home)

    def path(self, relative: str) -> Path:
        return self.root / relative


def main_worktree(root: Path) -> Path:
    """The repository's main worktree, so that linked worktrees share scratch and tracking; `root` itself without git."""
    command = ["git", "-C", str(root), "rev-parse", "--path-format=absolute", "--git-common-dir"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return Path(found.stdout.strip()).parent if found.returncode == 0 else root


CODE_STATE_FILE = "provenance.json"
"""In a copy of a checkout that is no repository itself: what `git_state` said of the checkout."""


def git_state(root: Path) -> dict[str, str]:
    """Revision, and whether tracked files differ from it. Without git, the revision that an image was built from, if any."""
    try:
        told = json.loads((root / CODE_STATE_FILE).read_text())
        return {key: str(told[key]) for key in ("git.revision", "git.dirty")}
    except (OSError, ValueError, KeyError):
        pass  # no copy

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    revision = git("rev-parse", "HEAD") or os.environ.get("GIT_REVISION", "")
    # dvc.lock and metrics change while the pipeline runs; they say nothing about the code.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!metrics", ":!reports")
    return {"git.revision": revision, "git.dirty": str(bool(changed)).lower()}
