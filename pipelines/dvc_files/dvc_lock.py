"""Reads `dvc.lock`, and computes the md5 that DVC records of a file or a folder."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from pipelines.errors import REPRO_COMMAND
from pipelines.schema.reading import parse_yaml

LOCK_FILE = "dvc.lock"


def read_entries(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of `dvc.lock` by stage address: cmd, deps, params, outs. Raises DataError when it cannot be read."""
    try:
        document = parse_yaml((root / LOCK_FILE).read_text(encoding="utf-8"), LOCK_FILE)
        return dict(document["stages"])
    except FileNotFoundError:
        raise DataError(f"{root / LOCK_FILE} is not there: run `{REPRO_COMMAND}`") from None
    except OSError as error:
        raise DataError(f"{root / LOCK_FILE} cannot be read: {error.strerror}") from None
    except (ParameterError, KeyError, TypeError, UnicodeDecodeError):
        raise DataError(
            f"{root / LOCK_FILE} cannot be read: `git checkout dvc.lock`, or run `{REPRO_COMMAND}`"
        ) from None


def dvc_md5(path: Path, max_bytes: int | None = None) -> str | None:
    """Return the md5 that DVC writes into dvc.lock for a file or a folder; None above `max_bytes`, or when nothing is there.

    A folder's is that of the JSON list of its files' md5s and relative paths, sorted by path, followed by ".dir". (DVC's own
    function, against which a test holds this one, takes seconds to import.)
    """
    if path.is_file():
        return _md5(path) if max_bytes is None or path.stat().st_size <= max_bytes else None
    files = sorted(file for file in _files(path) if file.is_file())
    if not path.is_dir() or (max_bytes is not None and sum(file.stat().st_size for file in files) > max_bytes):
        return None
    entries = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _files(folder: Path) -> Iterable[Path]:
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]  # as .dvcignore says
        yield from (Path(where, name) for name in names)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
