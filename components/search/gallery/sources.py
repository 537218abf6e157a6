"""Lists the pictures of a source: a folder, a manifest, a data set of people, each here or (but for data sets) in a bucket.

A folder is listed with all folders below it. Not listed: names that begin with a dot, galleries, and folders behind links. A text
file beside a picture (a.txt beside a.jpg) holds its captions, one per line, as for `curate`.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from components.errors import DataError, ParameterError
from components.search.gallery import layout
from components.search.gallery.manifests import MANIFEST_SUFFIXES, read_manifest
from components.search.gallery.merging import THREADS
from components.search.gallery.places import OUTSIDE, Bucket, Folder, Place, explained, is_address, open_address
from components.text_files import split_lines

Kind = Literal["folder", "manifest", "dataset"]
KINDS: tuple[Kind, ...] = ("folder", "manifest", "dataset")
Listing = tuple[pa.Table, list[tuple[str, str]]]
"""A table with the columns file, identity and caption (strings), then the source's own, one row per mention of a picture; and the
files that are left out, each with the reason."""
_PART = 1024
"""Files of captions that are read together."""


def find_source(location: str, kind: Kind | None, here: Path, columns: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return a source as a gallery records it: {"kind", "location", "base", "columns"}; `kind` None: seen from what is there.

    Raises DataError where nothing is there, ParameterError for an address that cannot be opened.
    """
    location = location.removeprefix("file://")
    if is_address(location):
        return _in_bucket(location.rstrip("/"), kind, columns)
    path = Path(os.path.abspath(here / location))
    if not path.exists():
        raise DataError(
            f"{path} does not exist: give a folder of pictures, a manifest, a prepared data set, or s3://..."
        )
    if kind is None:
        kind = "manifest" if path.is_file() else "dataset" if _is_dataset(path) else "folder"
    if kind != "manifest" and not path.is_dir():
        raise DataError(f"{path} is not a folder; a manifest is a file ({', '.join(MANIFEST_SUFFIXES)})")
    base = path.parent if kind == "manifest" else path
    return {"kind": kind, "location": str(path), "base": str(base), "columns": columns and list(columns)}


def _in_bucket(address: str, kind: Kind | None, columns: tuple[str, ...] | None) -> dict[str, Any]:
    if kind == "dataset":
        raise ParameterError(
            f"{address}: a data set is read from a folder of this machine; copy it, or give a manifest"
        )
    if kind is None:
        kind = "manifest" if PurePosixPath(address).suffix.lower() in MANIFEST_SUFFIXES else "folder"
    base = address.rpartition("/")[0] if kind == "manifest" else address
    return {"kind": kind, "location": address, "base": base, "columns": columns and list(columns)}


def list_source(source: Mapping[str, Any]) -> Listing:
    """List the pictures of a source. Raises DataError where it holds none, or cannot be read; ConnectionError for a bucket."""
    location, columns = str(source["location"]), source.get("columns")
    left_out: list[tuple[str, str]] = []
    if source["kind"] == "manifest":
        content = _content(location)
        table = read_manifest(content, PurePosixPath(location).suffix.lower(), location, left_out)
        table = _with_columns(table, columns, location)
    elif source["kind"] == "dataset":
        table = _table(_records(Path(location)), ("split",))
    elif is_address(location):
        bucket = Bucket(location)
        table = _table(_with_captions(_objects(bucket), bucket, left_out))
    else:
        folder = Folder(Path(location))
        table = _table(_with_captions(_files(Path(location), folder, left_out), folder, left_out))
    if not table.num_rows:
        kinds = ", ".join(sorted(_suffixes()))
        reasons = f" ({left_out[0][0]}: {left_out[0][1]})" if left_out else ""
        raise DataError(f"{location} lists no picture{reasons}; of the kinds {kinds}")
    return table, left_out


def _content(location: str) -> bytes:
    if not is_address(location):
        return Path(location).read_bytes()
    files, path = open_address(location)
    try:
        with files.open_input_file(path) as file:
            return bytes(file.read())
    except OSError as error:
        raise explained(location, error) from error


def _with_columns(table: pa.Table, columns: list[str] | None, location: str) -> pa.Table:
    if columns is None:
        return table
    own = ("file", "identity", "caption")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        known = ", ".join(name for name in table.column_names if name not in own) or "none but its own"
        raise ParameterError(f"--columns {','.join(missing)}: {location} has no such column; it has {known}")
    return table.select([*own, *(name for name in columns if name not in own)])


def _table(rows: Iterator[tuple[str | None, ...]], others: tuple[str, ...] = ()) -> pa.Table:
    names = ("file", "identity", "caption", *others)
    columns: list[list[str | None]] = [[] for _ in names]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


def _is_dataset(folder: Path) -> bool:
    from components.persons.published.readers import find_dataset

    try:
        find_dataset(folder)
    except DataError:
        return False
    return True


def _records(folder: Path) -> Iterator[tuple[str | None, ...]]:
    from components.persons.published.readers import find_dataset

    for record in find_dataset(folder):
        captions = "\n".join(dict.fromkeys(record.captions)) or record.short_caption
        yield record.image_path, str(record.identity), captions, record.split


def _files(folder: Path, place: Folder, left_out: list[tuple[str, str]]) -> Iterator[tuple[str, str | None]]:
    """Yield every picture file, with the file of its captions, None where there is none."""
    kinds = _suffixes()

    def refuse(error: OSError) -> None:
        left_out.append((os.path.relpath(error.filename, folder), f"cannot be read: {error.strerror}"))

    for here, folders, names in os.walk(folder, onerror=refuse):
        if _is_gallery(here):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = (os.path.join(here, name) for name in folders)
        outside = (link for link in links if os.path.islink(link) and not _is_inside(link, place.base))
        left_out += [
            (_shown(os.path.relpath(link, folder)), f"{OUTSIDE}: a link to another folder") for link in outside
        ]
        known = set(names)
        for name in sorted(names):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in kinds:
                continue
            file = os.path.relpath(os.path.join(here, name), folder)
            if not _is_text(file):
                left_out.append((_shown(file), "its name is not in UTF-8: rename it (convmv)"))
                continue
            yield file, captions_file(file) if captions_file(name) in known else None


def _objects(bucket: Bucket) -> Iterator[tuple[str, str | None]]:
    """As `_files`."""
    from pyarrow.fs import FileSelector, FileType

    kinds = _suffixes()
    try:
        found = bucket.files.get_file_info(FileSelector(bucket.base, recursive=True))
    except OSError as error:
        raise explained(bucket.address, error) from error
    names = {info.path[len(bucket.base) :].lstrip("/") for info in found if info.type == FileType.File}
    for name in sorted(names):
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if not hidden and PurePosixPath(name).suffix.lower() in kinds:
            yield name, captions_file(name) if captions_file(name) in names else None


def captions_file(picture: str) -> str:
    """Return the name of the text file with the captions of a picture's file."""
    from components.persons.curation.candidates import CAPTIONS_SUFFIX

    return os.path.splitext(picture)[0] + CAPTIONS_SUFFIX


def _with_captions(
    found: Iterator[tuple[str, str | None]], place: Place, left_out: list[tuple[str, str]]
) -> Iterator[tuple[str | None, ...]]:
    """Yield the rows of pictures, given with the files of their captions. Files that cannot be read are added to `left_out`."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="captions") as pool:
        while part := list(itertools.islice(found, _PART)):
            read = pool.map(lambda pair: _captions(pair[1], place) if pair[1] else (None, None), part)
            for (picture, text), (captions, fault) in zip(part, read, strict=True):
                if text and fault:
                    left_out.append((text, fault))
                yield picture, None, captions


def _captions(file: str, place: Place) -> tuple[str | None, str | None]:
    """Return the captions in a file as lines of one text, and why they cannot be read."""
    try:
        lines = split_lines(place.read(file).decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None, "captions that are not in UTF-8: save the file in that encoding"
    except DataError as error:
        return None, f"captions: {error}"
    return "\n".join(line.strip() for line in lines if line.strip()) or None, None


def _suffixes() -> frozenset[str]:
    from components.persons.curation.candidates import PICTURE_SUFFIXES

    return PICTURE_SUFFIXES


def _is_gallery(folder: str) -> bool:
    """Whether a folder is that of a gallery, whose thumbnails are no pictures of the source."""
    return os.path.isfile(os.path.join(folder, layout.SOURCE)) and os.path.exists(os.path.join(folder, layout.LOCK))


def _is_inside(path: str, base: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(base)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
