"""Find and read published datasets, the drawn set, and any manifest of images and captions.

name           annotation file                                     pictures           identities
cuhk-pedes     CUHK-PEDES/reid_raw.json, or caption_all.json       imgs/              `id`; a missing split follows from it
icfg-pedes     ICFG-PEDES/ICFG-PEDES.json (or ICFG_PEDES)          imgs/              `id`; no validation split
rstpreid       RSTPReid/data_captions.json                         imgs/              `id`; the path is `img_path`
webperson-1m   WebPerson-1M/data/train-*.parquet, or *00w.json     there, or images/  one per picture; only train, as below
webperson-5m   WebPerson-5M/, the same
luperson-mllm  LUPerson-MLLM/captions/{Ts,Td}-{qwen,shikra}.json   images/            one per picture
synth-pedes    SYNTH-PEDES/synthpedes-dataset.json                 Part1/, ...        `id`
mals           MALS/gene_attrs/*.json                              gene_crop/         `image_id`
a path         a .csv or .parquet manifest (`components.persons.published.table_manifests`), or a folder or .json file in one of the
               layouts above (the drawn set has the first), or a folder in the internal form, as `curate` writes it

`components.persons.published.layouts` describes each dataset, `components.persons.published.annotations` reads its files.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError
from components.persons.published.layouts import LAYOUTS, Format, Layout
from components.persons.published.prepared import is_prepared, prepared_records
from components.persons.published.table_manifests import MANIFEST_COLUMNS, TABLES, read_manifest
from components.persons.published.validation import validate_records
from components.persons.records import Record
from components.persons.shards import DATASET_MANIFEST


@dataclass(frozen=True)
class Listing:
    """The records of a dataset in memory, not validated (a `RecordSource`)."""

    name: str
    folder: Path
    records: tuple[Record, ...]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset found on disk, read anew by each iteration (a `RecordSource`).

    `layout` is None for a manifest and for the internal form, `form` for a manifest. Iterating raises DataError where an annotation
    file is malformed.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    layout: Layout | None
    form: Format | None

    def __iter__(self) -> Iterator[Record]:
        if self.form is None:
            return iter(read_manifest(self.files[0]))
        return self.form.read(self.files, self.folder, self.name)


def read_dataset(name_or_path: str | Path, root: str | Path = ".", *, max_bad_fraction: float = 0.0) -> list[Record]:
    """Return the records of a dataset, validated, with image paths that can be opened.

    Args:
        name_or_path: a name, or a path relative to `root`, of the table above.
        root: folder of all datasets.
        max_bad_fraction: largest fraction of bad records that is dropped; more is an error.

    Raises:
        DataError: the annotation file is missing or malformed (says how to get it), or too many records are bad.
    """
    return validate_records(read_listing(name_or_path, root), max_bad_fraction=max_bad_fraction)[0]


def read_listing(name_or_path: str | Path, root: str | Path = ".") -> Listing:
    """Return the records as the annotation files list them, without opening pictures. Arguments as `read_dataset`."""
    found = find_dataset(name_or_path, root)
    records = tuple(found)
    if not records:
        raise DataError(f"{found.files[0]} lists no pictures")
    return Listing(found.name, found.folder, records)


def find_dataset(name_or_path: str | Path, root: str | Path = ".") -> DatasetFiles:
    """Find a dataset without reading it. Raises DataError, with instructions, where it is missing."""
    layout = LAYOUTS.get(str(name_or_path).lower())
    if layout:
        found = layout.find(Path(root))
        if found is None:
            expected = Path(root) / layout.folders[0] / layout.formats[0].files
            raise DataError(f"{expected} is missing; {layout.instructions(Path(root))}")
        return DatasetFiles(layout.name, found[0], tuple(found[1].find(found[0])), layout, found[1])
    path = Path(root) / name_or_path
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; give one of {', '.join(LAYOUTS)}, a dataset folder, or a manifest (.csv, "
            f".parquet) with columns {', '.join(MANIFEST_COLUMNS)}"
        )
    if path.suffix.lower() in TABLES:
        return DatasetFiles(path.stem, path.parent, (path,), None, None)
    if path.suffix.lower() == ".json":
        return _annotation_file(path)
    raise DataError(f"{path}: cannot read {path.suffix or 'this kind of file'}; use {', '.join(TABLES)} or .json")


def _in_folder(folder: Path) -> DatasetFiles:
    if is_prepared(folder):
        form = Format(DATASET_MANIFEST, prepared_records)
        return DatasetFiles(_name(folder), folder, (folder / DATASET_MANIFEST,), None, form)
    for layout in LAYOUTS.values():
        for form in layout.formats:
            if files := form.find(folder):
                return DatasetFiles(_name(folder), folder, tuple(files), layout, form)
    known = dict.fromkeys(form.files for layout in LAYOUTS.values() for form in layout.formats)
    raise DataError(
        f"{folder} holds no annotation file; expected one of {', '.join(known)}, or give a .csv or .parquet manifest"
    )


def _annotation_file(path: Path) -> DatasetFiles:
    """A single .json file: its layout follows from its name, else it is read as CUHK-PEDES."""
    for layout in LAYOUTS.values():
        for form in layout.formats:
            if path.match(form.files) and (files := form.find(form.folder_of(path))):
                folder = form.folder_of(path)
                return DatasetFiles(_name(folder), folder, tuple(files), layout, form)
    layout = LAYOUTS["cuhk-pedes"]
    return DatasetFiles(_name(path.parent), path.parent, (path,), layout, layout.formats[0])


def _name(folder: Path) -> str:
    """The name that the user gave a folder: of a link its own, not that of the shared disk's folder."""
    return os.path.basename(os.path.abspath(folder))
