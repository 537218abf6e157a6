"""Find the files that an annotation file lists, for the inventory and for validation alike.

Links are followed: picture folders are links to a shared disk, and with DVC or git-annex every picture is one. What the annotation
file says is not trusted: an absolute path, or one with "..", is refused.

Annotation files made on Windows or a Mac list names that differ from those on the disk: backslashes, another Unicode form (a Mac
decomposes "é"), upper and lower case. Such a name is found where exactly one file of the folder has it.
"""

import errno
import os
import unicodedata
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from components.errors import DataError
from components.persons.pictures import shard_address, split_address

LEAVES, MISSING = "path leaves the folder", "missing file"


class UnusablePathError(DataError):
    """A listed path is refused, or there is no such file. `reason` is LEAVES or MISSING; the message says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class PictureFolder:
    """The files below a dataset's folder, by the paths that its annotation files list."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._found = lru_cache(maxsize=8)(self._find)  # of a shard, for many rows
        self._other_spellings = lru_cache(maxsize=64)(_other_spellings)

    def address(self, listed: str) -> str:
        """Return the absolute address of a listed picture. Raises UnusablePathError."""
        name, row = split_address(listed)
        file = str(self._found(name))
        return file if row is None else shard_address(file, row)

    def _find(self, name: str) -> Path:
        _require_inside(name)
        for path in dict.fromkeys((name, name.replace("\\", "/"))):
            if _is_file(found := self._folder / path) or _is_file(found := self._on_disk(path)):
                return found
        raise UnusablePathError(MISSING, self._why_missing(name.replace("\\", "/")))

    def _on_disk(self, path: str) -> Path:
        """`path` with each part spelled as on the disk, where there is one such spelling."""
        found = self._folder
        for part in PurePosixPath(path).parts:
            if not os.path.lexists(found / part):
                usual = _spelling(part)
                same = [usual] * os.path.lexists(found / usual) + self._other_spellings(found).get(usual, [])
                part = same[0] if len(same) == 1 else part
            found /= part
        return found

    def _why_missing(self, path: str) -> str:
        file = self._on_disk(path)
        try:
            os.stat(file)
            return f"{'a folder' if file.is_dir() else 'no regular file'}; the path of a picture is expected"
        except ValueError:
            return "no file can have this name: write the annotation file again, in UTF-8"
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                return f"cannot be opened: {error.strerror}"
        if file.is_symlink():
            return f"a link to {os.readlink(file)}, which is not there"
        known = next(folder for folder in file.parents if folder.is_dir())
        if not path.isascii() and (name := next(filter(_is_undecodable, os.listdir(known)), None)):
            return f"no such file; names in {known.name} are not UTF-8, such as {os.fsencode(name)!r}: convert them (convmv)"
        return "no such file in the folder"


def _require_inside(name: str) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root:
        raise UnusablePathError(LEAVES, "absolute path; write paths relative to the dataset's folder")
    if ".." in posix.parts or ".." in windows.parts or "\0" in name:
        raise UnusablePathError(LEAVES, "contains '..'; write paths relative to the dataset's folder")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, that cannot be encoded, or in a folder that cannot be read
        return False


def _spelling(name: str) -> str:
    """One spelling for all names that a Mac or Windows takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _other_spellings(folder: Path) -> dict[str, list[str]]:
    """The names in a folder that are not in the usual spelling, by that: few, where a folder holds millions of pictures."""
    found: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):
            if (usual := _spelling(name)) != name:
                found.setdefault(usual, []).append(name)
    except OSError:
        pass  # no folder, or one that cannot be read: `_why_missing` says which
    return found


def _is_undecodable(name: str) -> bool:
    """Whether a name on the disk has bytes that are not UTF-8, which Python shows as lone surrogates."""
    return any("\udc80" <= letter <= "\udcff" for letter in name)
