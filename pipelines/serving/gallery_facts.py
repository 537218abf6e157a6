"""What the page must know of a gallery: its columns, and sentences to try."""

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.search.filters import filterable
from components.search.gallery.reading import Gallery
from pipelines.serving.schema import Column, GalleryFacts

HIDDEN = frozenset({"id", "file", "files", "sha256", "bytes", "identities"})
"""Columns that are not shown and cannot be filtered by: a file's name may say what its owner did not mean to publish."""
_FOLDERS = re.compile(r"(^|:)/(?:[^/]*/)*")
"""The folders of an absolute path, which is a model's name where it is not in the checkout."""
MAX_VALUES = 50
MAX_EXAMPLES, MAX_EXAMPLE = 4, 120
_EXAMPLES = ("a woman in a red coat", "a man with a backpack", "a person in a white shirt and dark trousers")


def gallery_facts(gallery: Gallery) -> GalleryFacts:
    """Read them from the gallery's table."""
    columns = [
        _column(name, gallery.table[name])
        for name in filterable(gallery.table)
        if name not in HIDDEN and gallery.table[name].null_count < gallery.size
    ]
    return GalleryFacts(
        size=gallery.size,
        version=gallery.version,
        model=_FOLDERS.sub(r"\1", str(gallery.model.get("name", ""))),
        columns=columns,
        examples=_examples(gallery.table),
    )


def shown(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of one picture as JSON can hold them, without those that are hidden."""
    plain = {name: _plain(value) for name, value in metadata.items() if name not in HIDDEN}
    for name in ("identity", "caption"):
        if plain.get(name) is not None:
            plain[name] = str(plain[name])
    return plain


def _column(name: str, values: pa.ChunkedArray) -> Column:
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        distinct = pc.unique(values)
        if pa.types.is_floating(kind) or len(distinct) > MAX_VALUES:
            return Column(name=name, range=_range(values))
        return Column(name=name, values=sorted(value for value in distinct.to_pylist() if value is not None))
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)):
        return Column(name=name)
    distinct = pc.unique(values)
    if len(distinct) > MAX_VALUES:
        return Column(name=name)
    return Column(name=name, values=sorted(value for value in distinct.to_pylist() if value is not None))


def _range(values: pa.ChunkedArray) -> tuple[float, float] | None:
    if pa.types.is_floating(values.type):
        values = values.filter(pc.fill_null(pc.is_finite(values), False))
    found = pc.min_max(values).as_py()
    return None if found["min"] is None else (float(found["min"]), float(found["max"]))


def _examples(table: pa.Table) -> list[str]:
    """Short captions of the gallery itself, from all over it; without captions, sentences that fit any."""
    if "caption" not in table.column_names:
        return list(_EXAMPLES)
    captions = pc.drop_null(table["caption"])
    found: list[str] = []
    step = max(1, len(captions) // (8 * MAX_EXAMPLES))
    for row in range(0, len(captions), step):
        caption = str(captions[row].as_py()).partition("\n")[0].strip()
        if 0 < len(caption) <= MAX_EXAMPLE and caption not in found:
            found.append(caption)
        if len(found) == MAX_EXAMPLES:
            break
    return found or list(_EXAMPLES)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; numbers that are not finite become null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if value == value and abs(value) != float("inf") else None
        case datetime() | date():
            return value.isoformat()
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
