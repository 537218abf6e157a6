"""Atomic writes and digests of files. Imports nothing heavy: the runner starts with it."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".*.tmp"
"""Pattern of the temporary files beside the files that they become. A killed process leaves its own: whoever holds the folder
removes them (`remove_temporaries`) before its content is a result."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_beside(path: Path) -> Path:
    """Return a new path in the folder of `path`, which matches TEMPORARY. It is never longer than a file system allows."""
    return path.with_name(f".{_stem(path)}.{uuid.uuid4().hex[:12]}.tmp")


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end flush that file and rename it to `path`, or on an error remove it.

    A reader, or a machine that loses power, sees no partial file.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, as `written_atomically` does; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path, target: str | None = None) -> None:
    """Remove what killed processes have left in `folder`: all, or what was to become the file named `target`.

    Only for the process that holds the folder: a living writer's file is removed too.
    """
    of_target = target and f".{_stem(folder / target)}"
    for left in list(folder.glob(TEMPORARY)):
        if of_target in (None, left.name.rsplit(".", 2)[0]):
            remove(left)


def _stem(path: Path) -> str:
    return path.name.encode()[:200].decode("utf-8", "ignore")
