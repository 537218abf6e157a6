"""A gallery's folder as a command meets it: whether it may be written to, who writes, and what the last update was asked for."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import DataError, ParameterError
from components.search.gallery import layout
from components.search.gallery.reading import is_pipeline_index
from pipelines.errors import InfrastructureError
from pipelines.locks.file_lock import file_lock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextmanager
def held(gallery: Path) -> Iterator[None]:
    """Hold the gallery's lock. Raises InfrastructureError while another process does, and as `_explained_storage`."""
    refusal = f"{gallery}: another process updates this gallery: wait for it"
    with _explained_storage(gallery), file_lock(gallery / layout.LOCK, refusal):
        yield


@contextmanager
def _explained_storage(gallery: Path) -> Iterator[None]:
    """Raise InfrastructureError, in one line, where the disk is full or may not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InfrastructureError(
            f"{gallery}: {os.strerror(error.errno)}: the gallery answers as before, what was embedded is kept: make room, then run "
            "the command again"
        ) from error


def require_gallery_or_room(gallery: Path) -> None:
    """Raise ParameterError unless the folder is a gallery's, empty, or not there."""
    if is_pipeline_index(gallery):
        raise ParameterError(f"{gallery}: is made by the pipeline's stage `index`; choose another folder")
    if gallery.exists() and not gallery.is_dir():
        raise ParameterError(f"{gallery}: is a file; give the folder of a gallery")
    if gallery.is_dir() and any(gallery.iterdir()) and not (gallery / layout.LOCK).is_file():
        raise ParameterError(f"{gallery}: is not empty, and not a gallery: choose another folder")


def last_request(gallery: Path) -> dict[str, Any]:
    """Return what the last update was asked for: source, model, settings; empty for a new gallery."""
    file = gallery / layout.SOURCE
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
        str(found["source"]["kind"] + found["source"]["location"] + found["source"]["base"] + found["model"])
        return found
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: cannot be read ({error!r}): remove it, and give SOURCE again") from error
