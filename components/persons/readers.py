"""Reads the annotation files of published datasets, the drawn set, and any image + caption manifest.

name          annotation file                              pictures       identities
cuhk-pedes    CUHK-PEDES/reid_raw.json                     imgs/          `id`
icfg-pedes    ICFG-PEDES/ICFG-PEDES.json (or ICFG_PEDES)   imgs/          `id`; no validation split
rstpreid      RSTPReid/data_captions.json                  imgs/          `id`, path under `img_path`
a path        a .csv or .parquet manifest with columns image_path, caption, identity, split (paths relative to its
              folder), or a folder or .json file in one of the layouts above (the drawn set has the first)
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.persons.records import Record


@dataclass(frozen=True)
class Layout:
    """How one published dataset is laid out."""

    source: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    path_key: str
    how_to_get: str


LAYOUTS: dict[str, Layout] = {
    "cuhk-pedes": Layout(
        "cuhk-pedes",
        ("CUHK-PEDES",),
        ("reid_raw.json",),
        "file_path",
        "ask the authors of CUHK-PEDES for it; if you have caption_all.json, split it by identity (1-11003 train, "
        "11004-12003 val, 12004-13003 test) as SSAN's process_CUHK_data.py does",
    ),
    "icfg-pedes": Layout(
        "icfg-pedes",
        ("ICFG-PEDES", "ICFG_PEDES"),
        ("ICFG-PEDES.json", "ICFG_PEDES.json"),
        "file_path",
        "ask the authors of ICFG-PEDES (SSAN) for it",
    ),
    "rstpreid": Layout(
        "rstpreid",
        ("RSTPReid",),
        ("data_captions.json",),
        "img_path",
        "ask the authors of RSTPReid (DSSL) for it",
    ),
}
MANIFEST_COLUMNS = ("image_path", "caption", "identity", "split")


@dataclass(frozen=True)
class Listing:
    """What an annotation file says, unchecked: records whose `image_path` is relative to `folder`."""

    name: str
    folder: Path
    records: tuple[Record, ...]


def read_dataset(name_or_path: str | Path, root: str | Path = ".", *, max_bad_fraction: float = 0.0) -> list[Record]:
    """The records of a dataset, validated, with image paths that can be opened.

    Args:
        name_or_path: "cuhk-pedes", "icfg-pedes", "rstpreid", or a path (see the table above), relative to `root`.
        root: the folder that holds the datasets.
        max_bad_fraction: bad records up to this fraction are left out; more is an error.

    Raises:
        DataError: the annotation file is missing or malformed (says how to get it), or too many records are bad.
    """
    from components.persons.validation import validate_records

    listing = read_listing(name_or_path, root)
    good, _ = validate_records(listing, max_bad_fraction=max_bad_fraction)
    return good


def read_listing(name_or_path: str | Path, root: str | Path = ".") -> Listing:
    """The records as the annotation file lists them; pictures are not opened. Same arguments as `read_dataset`."""
    layout = LAYOUTS.get(str(name_or_path).lower())
    if layout:
        return _read_annotations(_find_annotations(layout, Path(root)), layout)
    path = Path(root) / name_or_path
    if path.is_dir():
        for candidate in LAYOUTS.values():
            for file in candidate.files:
                if (path / file).is_file():
                    return _read_annotations(path / file, replace(candidate, source=path.resolve().name))
        known = ", ".join(file for candidate in LAYOUTS.values() for file in candidate.files)
        raise DataError(
            f"{path} holds no annotation file; expected one of {known}, or give a .csv or .parquet manifest"
        )
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; give one of {', '.join(LAYOUTS)}, a dataset folder, or a manifest (.csv, "
            f".parquet) with columns {', '.join(MANIFEST_COLUMNS)}"
        )
    if path.suffix == ".csv":
        return _from_manifest(path, _read_csv(path))
    if path.suffix == ".parquet":
        return _from_manifest(path, _read_parquet(path))
    if path.suffix == ".json":
        layout = LAYOUTS["rstpreid" if path.name == "data_captions.json" else "cuhk-pedes"]
        return _read_annotations(path, replace(layout, source=path.resolve().parent.name))
    raise DataError(f"{path}: cannot read {path.suffix or 'this kind of file'}; use .csv, .parquet or .json")


def _find_annotations(layout: Layout, root: Path) -> Path:
    for folder in (*layout.folders, "."):
        for file in layout.files:
            if (root / folder / file).is_file():
                return root / folder / file
    raise DataError(
        f"{root / layout.folders[0] / layout.files[0]} is missing; {layout.how_to_get}, then put the pictures in imgs/ "
        "beside it"
    )


def _read_annotations(path: Path, layout: Layout) -> Listing:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} must hold a non-empty list of records")
    records = tuple(_from_entry(entry, index, path, layout) for index, entry in enumerate(entries))
    return Listing(layout.source, path.parent, records)


def _from_entry(entry: Any, index: int, path: Path, layout: Layout) -> Record:
    where = f"{path} record {index}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is a {type(entry).__name__}; expected an object")
    missing = [key for key in (layout.path_key, "id", "captions", "split") if key not in entry]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(entry)) or 'nothing'}")
    captions = entry["captions"]
    if isinstance(captions, str):
        captions = [captions]
    try:
        return Record(
            image_path=f"imgs/{entry[layout.path_key]}"
            if not _absolute(entry[layout.path_key])
            else entry[layout.path_key],
            identity=int(entry["id"]),
            captions=tuple(str(caption).strip() for caption in captions),
            split=str(entry["split"]),
            source=str(entry.get("source", layout.source)),
            short_caption=entry.get("short_caption"),
            attributes=dict(entry.get("attributes") or {}),
            wrong_words=tuple(tuple(int(i) for i in positions) for positions in entry.get("wrong_words") or ()),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is malformed: {error}") from error


def _absolute(path: Any) -> bool:
    return str(path).startswith(("/", "\\")) or str(path)[1:2] == ":"


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        _require_columns(path, reader.fieldnames or ())
        return list(reader)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        _require_columns(path, names)
        return pq.read_table(path, columns=list(MANIFEST_COLUMNS)).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _require_columns(path: Path, names: Iterable[str]) -> None:
    missing = [column for column in MANIFEST_COLUMNS if column not in set(names)]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; expected {', '.join(MANIFEST_COLUMNS)}")


def _from_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> Listing:
    """Rows with the same picture become one record with several captions; their identity and split must agree."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(str(row["image_path"] or ""), []).append(row)
    if not grouped:
        raise DataError(f"{path} has no rows")
    records = []
    for image_path, group in grouped.items():
        if len({(str(row["identity"]), row["split"]) for row in group}) > 1:
            raise DataError(f"{path}: {image_path} has rows of different identity or split; give each picture one")
        try:
            identity = int(group[0]["identity"])
        except (TypeError, ValueError):
            raise DataError(f"{path}: identity {group[0]['identity']!r} of {image_path} is not an integer") from None
        captions = tuple((row["caption"] or "").strip() for row in group)
        records.append(Record(image_path, identity, captions, str(group[0]["split"]), path.stem))
    return Listing(path.stem, path.parent, tuple(records))
