"""Reads published datasets, the drawn set, and any image + caption manifest.

name           annotation file                                     pictures           identities
cuhk-pedes     CUHK-PEDES/reid_raw.json, or caption_all.json       imgs/              `id`; a missing split follows from it
icfg-pedes     ICFG-PEDES/ICFG-PEDES.json (or ICFG_PEDES)          imgs/              `id`; no validation split
rstpreid       RSTPReid/data_captions.json                         imgs/              `id`; the path is `img_path`
webperson-1m   WebPerson-1M/data/train-*.parquet, or *00w.json     there, or images/  one a picture; only train, as below
webperson-5m   WebPerson-5M/, the same
luperson-mllm  LUPerson-MLLM/captions/{Ts,Td}-{qwen,shikra}.json   images/            one a picture
synth-pedes    SYNTH-PEDES/synthpedes-dataset.json                 Part1/, ...        `id`
mals           MALS/gene_attrs/*.json                              gene_crop/         `image_id`
a path         a .csv or .parquet manifest (`components.persons.published.table_manifests`), or a folder or .json file in one of the
               layouts above (the drawn set has the first), or a folder in the internal form, as `curate` writes it

Their facts are in `components.persons.published.layouts`, the reading in `components.persons.published.annotations`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError
from components.persons.published.layouts import LAYOUTS, Format, Layout
from components.persons.published.prepared import is_prepared, prepared_records
from components.persons.published.table_manifests import MANIFEST_COLUMNS, read_manifest
from components.persons.records import Record
from components.persons.shards import DATASET_MANIFEST


@dataclass(frozen=True)
class Listing:
    """What an annotation file says, unchecked: records whose `image_path` is relative to `folder`."""

    name: str
    folder: Path
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Source:
    """A dataset that is there: which it is (None for a manifest), its folder, and its annotation files."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    layout: Layout | None
    form: Format | None

    def records(self) -> Iterator[Record]:
        """What its annotation files say, one after the other. Raises DataError where one is malformed."""
        if self.form is None:
            return iter(read_manifest(self.files[0]))
        return self.form.read(self.files, self.folder, self.name)


def read_dataset(name_or_path: str | Path, root: str | Path = ".", *, max_bad_fraction: float = 0.0) -> list[Record]:
    """The records of a dataset, validated, with image paths that can be opened.

    Args:
        name_or_path: a name or a path of the table above, relative to `root`.
        root: the folder that holds the datasets.
        max_bad_fraction: bad records up to this fraction are left out; more is an error.

    Raises:
        DataError: the annotation file is missing or malformed (says how to get it), or too many records are bad.
    """
    from components.persons.published.validation import validate_records

    listing = read_listing(name_or_path, root)
    good, _ = validate_records(listing, max_bad_fraction=max_bad_fraction)
    return good


def read_listing(name_or_path: str | Path, root: str | Path = ".") -> Listing:
    """The records as the annotation file lists them; pictures are not opened. Same arguments as `read_dataset`."""
    source = find_source(name_or_path, root)
    records = tuple(source.records())
    if not records:
        raise DataError(f"{source.files[0]} lists no pictures")
    return Listing(source.name, source.folder, records)


def find_source(name_or_path: str | Path, root: str | Path = ".") -> Source:
    """Where a dataset lies and what it is; nothing is read yet. Raises DataError, with what to do, when it is not there."""
    layout = LAYOUTS.get(str(name_or_path).lower())
    if layout:
        found = layout.find(Path(root))
        if found is None:
            expected = Path(root) / layout.folders[0] / layout.formats[0].files
            raise DataError(f"{expected} is missing; {layout.instructions(Path(root))}")
        return Source(layout.name, found[0], tuple(found[1].find(found[0])), layout, found[1])
    path = Path(root) / name_or_path
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; give one of {', '.join(LAYOUTS)}, a dataset folder, or a manifest (.csv, "
            f".parquet) with columns {', '.join(MANIFEST_COLUMNS)}"
        )
    if path.suffix in (".csv", ".parquet"):
        return Source(path.stem, path.parent, (path,), None, None)
    if path.suffix == ".json":
        return _annotation_file(path)
    raise DataError(f"{path}: cannot read {path.suffix or 'this kind of file'}; use .csv, .parquet or .json")


def _in_folder(folder: Path) -> Source:
    if is_prepared(folder):
        return Source(
            folder.resolve().name,
            folder,
            (folder / DATASET_MANIFEST,),
            None,
            Format(DATASET_MANIFEST, prepared_records),
        )
    for layout in LAYOUTS.values():
        for form in layout.formats:
            if files := form.find(folder):
                return Source(folder.resolve().name, folder, tuple(files), layout, form)
    known = dict.fromkeys(form.files for layout in LAYOUTS.values() for form in layout.formats)
    raise DataError(
        f"{folder} holds no annotation file; expected one of {', '.join(known)}, or give a .csv or .parquet manifest"
    )


def _annotation_file(path: Path) -> Source:
    """A .json file on its own: what its name says that it is, else of CUHK-PEDES's form."""
    for layout in LAYOUTS.values():
        for form in layout.formats:
            if path.match(form.files) and (files := form.find(form.folder_of(path))):
                folder = form.folder_of(path)
                return Source(folder.resolve().name, folder, tuple(files), layout, form)
    layout = LAYOUTS["cuhk-pedes"]
    return Source(path.resolve().parent.name, path.parent, (path,), layout, layout.formats[0])
