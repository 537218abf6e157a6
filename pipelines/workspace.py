"""The checkout that a stage reads and writes, the scratch root that outlives it, and git."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """`root` holds params.yaml and the outputs; `home` holds checkpoints and finished results, shared by all worktrees."""

    root: Path
    home: Path

    @classmethod
    def at(cls, root: Path) -> "Workspace":
        """Return the workspace in `root`; its scratch root is `PIPELINES_HOME`, or `.runs` in the main worktree."""
        root = root.resolve()
        chosen = os.environ.get("PIPELINES_HOME")
        home = Path(chosen).resolve() if chosen else main_worktree(root) / ".runs"
        return cls(root, home)

    def path(self, relative: str) -> Path:
        return self.root / relative


def main_worktree(root: Path) -> Path:
    """Return the main worktree, so that linked worktrees share scratch and tracking; `root` itself without git.

    `dvc exp run --temp` and `--queue` run in a repository of their own, a folder below .dvc/tmp/exps of the checkout, which they
    delete in the end: what runs there belongs to that checkout.
    """
    parts = root.parts
    for place in range(len(parts) - 3):
        if parts[place : place + 3] == (".dvc", "tmp", "exps"):
            root = Path(*parts[:place])
            break
    found = git_output(root, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
    return Path(found).parent if found else root


def worktrees(root: Path) -> list[Path]:
    """Return the folders of all worktrees of the repository that `root` belongs to; none without git."""
    lines = git_output(root, "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def run_git(
    root: Path, *arguments: str, environment: Mapping[str, str] | None = None, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run git in `root`; a command that fails raises nothing. Line ends are kept, bytes that are not UTF-8 become U+FFFD."""
    command = ["git", "-C", str(root), "-c", "core.quotepath=off", *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, env=variables, check=False)
    stdout, stderr = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, stdout, stderr)


def git_output(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the output of git, "" when it fails."""
    done = run_git(root, *arguments, environment=environment)
    return done.stdout if done.returncode == 0 else ""
