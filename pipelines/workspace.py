"""The checkout that a stage reads and writes, the scratch root that outlives it, and git and DVC in it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import ParameterError


@dataclass(frozen=True)
class Workspace:
    """`root` holds params.yaml and the outputs; `home` holds checkpoints and finished results, shared by all worktrees."""

    root: Path
    home: Path

    @classmethod
    def at(cls, root: Path) -> "Workspace":
        """Return the workspace in `root`; its scratch root is `PIPELINES_HOME`, or `.runs` in the main worktree.

        Raises ParameterError when `~` in that stands for no folder that is known.
        """
        root = root.resolve()
        chosen = os.environ.get("PIPELINES_HOME")
        if not chosen:
            return cls(root, main_worktree(root) / ".runs")
        try:
            home = Path(chosen).expanduser()
        except RuntimeError as error:  # of another user, or in a container whose user has no entry and no HOME
            raise ParameterError(
                f"PIPELINES_HOME = {chosen!r}: the home directory is not known: give the folder"
            ) from error
        # Relative to the workspace: a stage and a command from a folder below it mean the same one.
        return cls(root, (root / home).resolve())

    def path(self, relative: str) -> Path:
        return self.root / relative


def workspace_root(folder: Path) -> Path:
    """Return the nearest folder with a params.yaml, `folder` or one above it, as git and DVC find theirs; else `folder`."""
    folder = folder.resolve()
    return next((place for place in (folder, *folder.parents) if (place / "params.yaml").is_file()), folder)


def require_project(root: Path) -> None:
    """Raise ParameterError where `root` (from `workspace_root`) is no checkout of the project."""
    if not (root / "params.yaml").is_file():
        raise ParameterError(
            f"{root}: no project here or in a folder above (no params.yaml): change to a checkout of the project, or give its "
            "folder: `python -m pipelines --workspace FOLDER VERB`"
        )


def main_worktree(root: Path) -> Path:
    """Return the workspace's folder in the main worktree, so that linked worktrees share scratch and tracking.

    That is `root` itself without git, in a submodule, in the worktree of a bare repository, and where git does not know the main
    worktree or this folder is not in it. `dvc exp run --temp` and `--queue` run in a repository of their own, a folder below
    .dvc/tmp/exps of the checkout, which they delete in the end: what runs there belongs to that checkout.
    """
    root = _checkout_of_experiment(root)
    own, common, prefix = _git_folders(root)
    if own == common:
        return root
    main, *facts = git_output(root, "worktree", "list", "--porcelain").partition("\n\n")[0].splitlines()
    place = Path(main.removeprefix("worktree "))
    if "bare" in facts:
        return root
    if not (place / ".git").exists():  # git names the repository's folder where that is not in the checkout
        configured = git_output(root, "config", "--file", f"{common}/config", "core.worktree").strip()
        if not configured:
            return root
        place = (Path(common) / configured).resolve()
    return place / prefix if (place / prefix).is_dir() else root


def worktrees(root: Path) -> list[Path]:
    """Return the workspace's folder in every worktree of the repository that `root` belongs to; `root` alone without git."""
    _, _, prefix = _git_folders(root)
    lines = git_output(root, "worktree", "list", "--porcelain").splitlines()
    listed = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    checkouts = [place / prefix for place in listed if (place / ".git").exists() and (place / prefix).is_dir()]
    return list(dict.fromkeys([root, main_worktree(root), *checkouts]))


def _checkout_of_experiment(root: Path) -> Path:
    """Return the checkout's folder for one of an experiment that DVC runs in a temporary folder, else `root`."""
    parts = root.parts
    for place in range(len(parts) - 3):
        if parts[place : place + 3] == (".dvc", "tmp", "exps"):
            project = Path(*parts[:place])
            below = project.joinpath(*parts[place + 4 :])
            return below if below.is_dir() else project
    return root


def _git_folders(root: Path) -> tuple[str, str, str]:
    """Return git's folder for this worktree, that of all its worktrees, and the path of `root` in it; "" for each without git."""
    asked = ("--git-dir", "--git-common-dir", "--show-prefix")
    lines = git_output(root, "rev-parse", "--path-format=absolute", *asked).split("\n")
    return (lines[0], lines[1], lines[2]) if len(lines) > 2 else ("", "", "")


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


def run_dvc(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run DVC in `root`; a command that fails raises nothing."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
