"""Git repositories."""

import subprocess
from pathlib import Path

AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def git(root: Path, *arguments: str, given: str | None = None) -> str:
    """Run `git arguments` in `root` as somebody with a name; return what it prints, stripped."""
    command = ["git", *AUTHOR, *arguments]
    return subprocess.run(command, cwd=root, input=given, capture_output=True, text=True, check=True).stdout.strip()


def make_repository(root: Path) -> Path:
    """Make `root` a repository with one commit of all its files."""
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        git(root, *command)
    return root
