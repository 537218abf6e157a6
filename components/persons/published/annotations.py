"""Readers of the annotation files of published datasets, exactly as distributed.

A reader takes the files, in order, the dataset's folder and a name for `Record.source`, and yields records with `image_path`
relative to that folder, without opening pictures. A malformed file raises DataError with one line.

In datasets without identities (web pictures) every picture is its own identity, counted from 0, so that two captions of one picture
are not negatives of each other.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.persons.pictures import IMAGE_COLUMN, shard_address
from components.persons.published.fields import identity_number, split_name, text
from components.persons.published.json_stream import list_elements
from components.persons.published.ledger import Ledger
from components.persons.records import Record

CUHK_SPLITS = (("train", 1, 11003), ("val", 11004, 12003), ("test", 12004, 13003))
"""The published identities of each split of CUHK-PEDES, both ends included."""

LUPERSON_CAPTIONS = ("Ts-qwen.json", "Td-qwen.json", "Ts-shikra.json", "Td-shikra.json")
"""With template (Ts) and free (Td), of two captioning models, in the order of a picture's captions."""
LUPERSON_PICTURES = ("images", "imgs", "LUPerson-MLLM")


def people(files: Sequence[Path], folder: Path, source: str, *, path_key: str = "file_path") -> Iterator[Record]:
    """A list of {split, captions, file_path, id, ...} with the pictures in imgs/: CUHK-PEDES, ICFG-PEDES, RSTPReid, the drawn set.

    In ICFG-PEDES, imgs/train and imgs/test are folders of MSMT17: the split is the key, not the folder.
    """
    for path in files:
        for index, entry in enumerate(_entries(path)):
            where = f"{path} record {index}"
            _require(entry, (path_key, "id", "captions", "split"), where)
            yield _person(entry, _below("imgs", entry[path_key]), entry["split"], source, where)


def cuhk_without_splits(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """caption_all.json of the CUHK-PEDES download: like reid_raw.json, but the split follows from the identity."""
    for path in files:
        for index, entry in enumerate(_entries(path)):
            where = f"{path} record {index}"
            _require(entry, ("file_path", "id", "captions"), where)
            yield _person(entry, _below("imgs", entry["file_path"]), _cuhk_split(entry["id"], where), source, where)


def synth_pedes(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """A list of {id, file_path, captions, attributes, prompt_caption}; paths (Part1/7/1.jpg) begin in the dataset's folder.

    `prompt_caption`, written from the attributes, and `attributes` are left out, as PLIP counts its descriptions without them.
    """
    for path in files:
        for index, entry in enumerate(_entries(path)):
            where = f"{path} record {index}"
            _require(entry, ("file_path", "id", "captions"), where)
            identity, captions = _identity(entry["id"], where), _texts(entry["captions"])
            yield Record(_path(entry["file_path"]), identity, captions, "train", source)


def mals(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """Lists of {image, caption, image_id, label}; paths (gene_crop/c_g_a_0/0.jpg) begin in the dataset's folder.

    Generated people: an image_id is an identity, numbered as they appear. The 27 attribute labels are left out.
    """
    numbers = Ledger()
    for path in files:
        for index, entry in enumerate(_entries(path)):
            where = f"{path} record {index}"
            _require(entry, ("image", "caption", "image_id"), where)
            if entry["image_id"] in (None, ""):
                raise DataError(f"{where} is malformed: image_id is {entry['image_id']!r}")
            identity = numbers.number(str(entry["image_id"]))
            yield Record(_path(entry["image"]), identity, _texts(entry["caption"]), "train", source)


def luperson_mllm(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """Four mappings path -> caption; the last part of a path identifies a picture, which has two or four captions.

    Only pictures with captions belong to the dataset; the picture folder of LUPerson holds four times as many. A caption with an
    unfilled placeholder ("<...>", "...description]") is dropped where the picture has another one.
    """
    by_name = {path.name: path for path in files}
    if missing := [name for name in LUPERSON_CAPTIONS if name not in by_name]:
        raise DataError(f"{files[0].parent} lacks {', '.join(missing)}; LUPerson-MLLM has four caption files")
    captions: dict[str, list[str]] = {}
    for name in LUPERSON_CAPTIONS:
        for key, caption in _mapping(by_name[name]).items():
            captions.setdefault(key.replace("\\", "/").rsplit("/", 1)[-1], []).append(text(caption))
    pictures = next((name for name in LUPERSON_PICTURES if (folder / name).is_dir()), LUPERSON_PICTURES[0])
    for identity, (name, texts) in enumerate(captions.items()):
        filled = [caption for caption in texts if "<" not in caption and "description]" not in caption]
        yield Record(f"{pictures}/{name}", identity, tuple(filled if any(filled) else texts), "train", source)


def webperson_lists(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """Lists of {path: {caption1, caption2}}, as GA-DMS's code reads them, with the pictures in images/."""
    identity = 0
    for path in files:
        for index, entry in enumerate(_entries(path)):
            for picture, captions in entry.items():
                where = f"{path} record {index}"
                if not isinstance(captions, dict):
                    raise DataError(f"{where}: {picture} has {captions!r}; expected caption1 and caption2")
                _require(captions, ("caption1", "caption2"), where)
                texts = tuple(one_line(captions[key]) for key in ("caption1", "caption2"))
                yield Record(_below("images", picture), identity, texts, "train", source)
                identity += 1


def webperson_shards(files: Sequence[Path], folder: Path, source: str) -> Iterator[Record]:
    """Parquet shards with the columns image, image_path, caption1, caption2: the form on the Hugging Face hub.

    The pictures stay in the shards; `image_path` is the address of a row (`components.persons.pictures`).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    identity, columns = 0, ["caption1", "caption2"]
    for path in files:
        shard = path.relative_to(folder).as_posix()
        try:
            file = pq.ParquetFile(path)
            if missing := {IMAGE_COLUMN, *columns} - set(file.schema_arrow.names):
                raise DataError(f"{path} lacks the columns {', '.join(sorted(missing))}; a shard of WebPerson has them")
            row = 0
            for batch in file.iter_batches(columns=columns):
                for captions in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                    texts = tuple(map(one_line, captions))
                    yield Record(shard_address(shard, row), identity, texts, "train", source)
                    row, identity = row + 1, identity + 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def _person(entry: Mapping[str, Any], image_path: str, split: Any, source: str, where: str) -> Record:
    try:
        wrong_words = tuple(tuple(int(i) for i in positions) for positions in entry.get("wrong_words") or ())
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is malformed: wrong_words: {error}") from error
    return Record(
        image_path=image_path,
        identity=_identity(entry["id"], where),
        captions=_texts(entry["captions"]),
        split=split_name(split),
        source=text(entry.get("source")) or source,
        short_caption=text(entry.get("short_caption")) or None,
        attributes=_attributes(entry.get("attributes")),
        wrong_words=wrong_words,
    )


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON list, with one in memory at a time."""
    index = -1
    for index, entry in enumerate(list_elements(path)):
        if not isinstance(entry, dict):
            raise DataError(f"{path} record {index} is a {type(entry).__name__}; expected an object")
        yield entry
    if index < 0:
        raise DataError(f"{path} must hold a non-empty list of records")


def _mapping(path: Path) -> dict[str, Any]:
    entries = _json(path)
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path} must hold a mapping from pictures to captions")
    return entries


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}): save it in that encoding") from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from error


def _require(entry: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    if missing := [key for key in keys if key not in entry]:
        hint = "; CUHK-PEDES without splits is read under the name caption_all.json" if missing == ["split"] else ""
        raise DataError(f"{where} lacks {', '.join(missing)}; it has {', '.join(sorted(entry)) or 'nothing'}{hint}")


def _cuhk_split(identity: Any, where: str) -> str:
    number = _identity(identity, where)
    for split, first, last in CUHK_SPLITS:
        if first <= number <= last:
            return split
    raise DataError(f"{where}: identity {identity!r} is in no split of CUHK-PEDES, which has 1 to {CUHK_SPLITS[-1][2]}")


def _below(folder: str, path: Any) -> str:
    """`path` below `folder`. An absolute path is kept, so that validation refuses it."""
    listed = _path(path)
    absolute = listed.startswith(("/", "\\")) or listed[1:2] == ":"
    return listed if absolute else f"{folder}/{listed}"


def _path(path: Any) -> str:
    return path if isinstance(path, str) else ""


def _texts(captions: Any) -> tuple[str, ...]:
    """The captions of a picture, a list or one alone. What is no text is an empty caption, which validation leaves out."""
    return tuple(map(text, captions if isinstance(captions, list) else [captions]))


def _identity(stated: Any, where: str) -> int:
    try:
        return identity_number(stated)
    except ValueError as error:
        raise DataError(f"{where} is malformed: {error}") from None


def _attributes(stated: Any) -> dict[str, str]:
    """The attributes of a drawn picture; other sets have lists and texts under this name, which are left out."""
    pairs = stated.items() if isinstance(stated, dict) else ()
    return {str(name): value for name, value in pairs if isinstance(value, str)}


def one_line(caption: Any) -> str:
    """Remove line breaks from a generated caption, also those written as "/n" (but not "yellow/navy")."""
    return " ".join(re.sub(r"/n(?![a-z])", " ", text(caption)).split())
