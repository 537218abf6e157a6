import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.errors import DataError
from components.persons import read_dataset
from components.persons.published.readers import read_listing


def picture(folder, name, seed):
    from PIL import Image

    path = folder / "imgs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (seed, 2 * seed, 3 * seed)).save(path)
    return name


def published(root, folder, file, key, splits, captions=2):
    """Three people, one a split, two pictures each, in a published layout."""
    entries = []
    for identity, split in enumerate(splits, start=1):
        for index in range(2):
            name = picture(root / folder, f"cam_a/{identity}_{index}.png", 10 * identity + index)
            texts = [f" Person {identity} seen {index} {c}. " for c in range(captions)]
            entries.append({"id": identity, key: name, "captions": texts, "split": split, "processed_tokens": []})
    (root / folder / file).write_text(json.dumps(entries))


LAYOUTS = [
    ("cuhk-pedes", "CUHK-PEDES", "reid_raw.json", "file_path", ("train", "val", "test"), 2),
    ("icfg-pedes", "ICFG-PEDES", "ICFG-PEDES.json", "file_path", ("train", "test"), 1),
    ("icfg-pedes", "ICFG-PEDES", "ICFG_PEDES.json", "file_path", ("train", "test"), 1),
    ("rstpreid", "RSTPReid", "data_captions.json", "img_path", ("train", "val", "test"), 2),
]


@pytest.mark.parametrize(("name", "folder", "file", "key", "splits", "captions"), LAYOUTS)
def test_every_published_layout_is_read(tmp_path, name, folder, file, key, splits, captions):
    published(tmp_path, folder, file, key, splits, captions)
    records = read_dataset(name, tmp_path)
    assert len(records) == 2 * len(splits)
    assert [record.split for record in records[::2]] == list(splits)
    first = records[0]
    assert (first.identity, first.source, len(first.captions)) == (1, name, captions)
    assert first.captions[0] == "Person 1 seen 0 0."
    assert first.image_path == str((tmp_path / folder / "imgs/cam_a/1_0.png").resolve())
    assert (first.short_caption, first.attributes, first.wrong_words) == (None, {}, ())


@pytest.mark.parametrize(("name", "folder", "file", "key", "splits", "captions"), LAYOUTS)
def test_the_same_files_are_read_by_path(tmp_path, name, folder, file, key, splits, captions):
    published(tmp_path, folder, file, key, splits, captions)
    by_name = read_dataset(name, tmp_path)
    by_folder = read_dataset(folder, tmp_path)
    assert [r.image_path for r in by_folder] == [r.image_path for r in by_name]
    assert [r.captions for r in by_folder] == [r.captions for r in by_name]


@pytest.mark.parametrize(
    ("name", "file"), [("cuhk-pedes", "reid_raw"), ("icfg-pedes", "ICFG-PEDES"), ("rstpreid", "data_captions")]
)
def test_a_missing_annotation_file_is_named_with_how_to_get_it(tmp_path, name, file):
    with pytest.raises(DataError) as error:
        read_dataset(name, tmp_path)
    assert file in str(error.value)
    assert "ask the authors" in str(error.value)
    assert "\n" not in str(error.value)


ROWS = [
    ("imgs/a.png", "A man in red.", 7, "train"),
    ("imgs/b.png", "A woman, in blue.", 8, "test"),
    ("imgs/a.png", "He wears red.", 7, "train"),
]
COLUMNS = ("image_path", "caption", "identity", "split")


def manifest(folder, kind, rows=ROWS, columns=COLUMNS):
    picture(folder, "a.png", 1)
    picture(folder, "b.png", 2)
    path = folder / f"my_set.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
    else:
        pq.write_table(
            pa.table({name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}), path
        )
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_any_manifest_is_read_and_rows_of_one_picture_become_one_record(tmp_path, kind):
    records = read_dataset(manifest(tmp_path, kind).name, tmp_path)
    assert [(r.identity, r.captions, r.split, r.source) for r in records] == [
        (7, ("A man in red.", "He wears red."), "train", "my_set"),
        (8, ("A woman, in blue.",), "test", "my_set"),
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_without_a_column_is_refused_by_name(tmp_path, kind):
    path = manifest(tmp_path, kind, [("imgs/a.png", "x", 1)], ("image_path", "caption", "identity"))
    with pytest.raises(DataError, match="lacks the columns split"):
        read_listing(path)


def test_a_picture_with_two_identities_is_refused(tmp_path):
    path = manifest(tmp_path, "csv", [ROWS[0], ("imgs/a.png", "x", 9, "train")])
    with pytest.raises(DataError, match=r"imgs/a\.png"):
        read_listing(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not readable JSON"),
        ("[]", "non-empty list"),
        ('[{"id": 1}]', "lacks file_path, captions, split"),
        ('["x"]', "expected an object"),
        ('[{"id": "x", "file_path": "a", "captions": [], "split": "train"}]', "record 0 is malformed"),
    ],
)
def test_malformed_annotations_are_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "reid_raw.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_listing(tmp_path / "reid_raw.json")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_that_is_nothing_readable_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_dataset("nowhere", tmp_path)
    with pytest.raises(DataError, match="no annotation file"):
        read_dataset(".", tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match=r"cannot read \.txt"):
        read_dataset("x.txt", tmp_path)
