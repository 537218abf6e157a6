"""Which distinct pictures a source holds: its files, read once for their digests, and merged by content."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from components.errors import DataError
from components.search.gallery import layout
from components.search.gallery.places import Place

THREADS = 8
"""That read files; a bucket answers each only after a while."""
_PART = 1024


@dataclass
class Picture:
    """A distinct picture of a source. rows: of the listing, the first mention first; files and identities without repetition."""

    sha256: str
    bytes: int
    rows: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


Digest = tuple[str, int] | str
"""SHA-256 and bytes of a file, or why it cannot be read."""


def digests(
    place: Place, files: Sequence[str], on_read: Callable[[int], None] = lambda files: None
) -> Iterator[Digest]:
    """Yield the digest of each file, in order. `on_read` is called with the number of files that were read."""

    def digest(file: str) -> Digest:
        try:
            content = place.read(file)
        except DataError as error:
            return str(error)
        return hashlib.sha256(content).hexdigest(), len(content)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="digest") as pool:
        for begin in range(0, len(files), _PART):
            found = list(pool.map(digest, files[begin : begin + _PART]))
            yield from found
            on_read(len(found))


def merged(
    listing: pa.Table, found: dict[str, Digest], forgotten: frozenset[str]
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Return the distinct pictures in the order of the listing, without forgotten ones, and the files that cannot be read."""
    pictures: dict[str, Picture] = {}
    left_out: dict[str, str] = {}
    columns = (listing[name].to_pylist() for name in ("file", "identity", "caption"))
    for row, (file, identity, caption) in enumerate(zip(*columns, strict=True)):
        digest = found[file]
        if isinstance(digest, str):
            left_out[file] = digest
            continue
        sha256, size = digest
        if sha256 in forgotten:
            continue
        picture = pictures.setdefault(sha256, Picture(sha256, size))
        picture.rows.append(row)
        for values, value in ((picture.files, file), (picture.identities, identity), (picture.captions, caption)):
            if value is not None and value not in values:
                values.append(value)
    return list(pictures.values()), list(left_out.items())


def table_of(pictures: Sequence[Picture], sizes: dict[str, tuple[int, int]], listing: pa.Table) -> pa.Table:
    """Return a version's table; `sizes`: SHA-256 -> width, height."""
    columns = {
        "id": [layout.picture_id(each.sha256) for each in pictures],
        "sha256": [each.sha256 for each in pictures],
        "file": [each.files[0] for each in pictures],
        "width": [sizes[each.sha256][0] for each in pictures],
        "height": [sizes[each.sha256][1] for each in pictures],
        "bytes": [each.bytes for each in pictures],
        "identity": [each.identities[0] if each.identities else None for each in pictures],
        "caption": ["\n".join(each.captions) or None for each in pictures],
        "files": [each.files for each in pictures],
        "identities": [each.identities for each in pictures],
    }
    table = pa.table(columns, schema=layout.SCHEMA)
    first = pa.array([each.rows[0] for each in pictures], pa.int64())
    for name in listing.column_names:
        if name not in layout.SCHEMA.names:
            table = table.append_column(name, listing[name].take(first).combine_chunks())
    return table
