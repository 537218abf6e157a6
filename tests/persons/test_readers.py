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


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_of_two_columns_of_one_name_none_is_chosen(tmp_path, kind):
    path = manifest(tmp_path, "csv", [("imgs/a.png", "x", "y", 1, "train")], (*COLUMNS[:2], *COLUMNS[1:]))
    if kind == "parquet":
        path = tmp_path / "twice.parquet"
        values = ["imgs/a.png", "x", "y", 1, "train"]
        pq.write_table(pa.Table.from_arrays([pa.array([each]) for each in values], [*COLUMNS[:2], *COLUMNS[1:]]), path)
    with pytest.raises(DataError, match="has two columns 'caption'; rename one, or write a row per caption"):
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
        ('[{"id": 1, "file_path": "a", "captions": []}]', "read under the name caption_all.json"),
        ('{"id": 1}\n{"id": 2}', "no JSON lines"),
        ("男", "is not in UTF-8"),
    ],
)
def test_malformed_annotations_are_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "reid_raw.json").write_bytes(content.encode("gbk"))
    with pytest.raises(DataError) as error:
        read_listing(tmp_path / "reid_raw.json")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


ENTRY = {"id": 1, "file_path": "a.png", "captions": ["A man."], "split": "train"}


@pytest.mark.parametrize("stated", [7, "7", "0007", 7.0, "7.0", " 7 "])
def test_an_identity_is_a_number_however_it_is_written(tmp_path, stated):
    (tmp_path / "reid_raw.json").write_text(json.dumps([{**ENTRY, "id": stated}]))
    (tmp_path / "m.csv").write_text(f"image_path,caption,identity,split\na.png,A man.,{stated},train\n")
    found = [read_listing(tmp_path / name).records[0].identity for name in ("reid_raw.json", "m.csv")]
    assert found == [7, 7]


LONG = 20230915123045001234
NOT_WHOLE = [None, True, "p01", 1.5, "1.5", float("nan"), 2.0**60, "2.02309E+19", [1], ""]


@pytest.mark.parametrize(
    ("stated", "says"), [*((value, "not a whole number") for value in NOT_WHOLE), (LONG, "64 bits")]
)
def test_what_is_no_number_of_64_bits_is_refused_with_what_to_write(tmp_path, stated, says):
    """int() makes one person of 1.5 and 1, and of two spreadsheets' numbers whose last digits are lost."""
    (tmp_path / "reid_raw.json").write_text(json.dumps([{**ENTRY, "id": stated}]))
    (tmp_path / "m.csv").write_text(f"image_path,caption,identity,split\na.png,A man.,{stated},train\n")
    for name, where in (("reid_raw.json", "record 0"), ("m.csv", "line 2")):
        with pytest.raises(DataError, match=rf"{where}.*identity .*{says}.*: number the people 0, 1, 2"):
            read_listing(tmp_path / name)


def test_what_is_no_text_never_becomes_a_caption(tmp_path):
    written = [None, {"error": 429}, 3, ["A man."], " A man. "]
    (tmp_path / "reid_raw.json").write_text(
        json.dumps([{**ENTRY, "captions": written}, {**ENTRY, "captions": {"a": 1}}])
    )
    first, second = read_listing(tmp_path / "reid_raw.json").records
    assert (first.captions, second.captions) == (("", "", "", "", "A man."), ("",))
    rows = pa.table(
        {"image_path": ["a", "a"], "caption": [float("nan"), 3.0], "identity": [1, 1], "split": ["test"] * 2}
    )
    pq.write_table(rows, tmp_path / "m.parquet")
    assert read_listing(tmp_path / "m.parquet").records[0].captions == ("", "")


def test_fields_of_other_sets_with_the_names_of_the_drawn_ones_are_left_out(tmp_path):
    entry = {**ENTRY, "attributes": ["man", "black hair"], "source": None, "short_caption": 3, "split": " Train"}
    (tmp_path / "reid_raw.json").write_text(json.dumps([entry]))
    (record,) = read_listing(tmp_path / "reid_raw.json").records
    assert (record.attributes, record.source, record.short_caption, record.split) == ({}, tmp_path.name, None, "train")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage_path,caption,identity,split\nimgs/a.png,A man.,7,Train\n",
        "image_path;caption;identity;split\nimgs/a.png;A man.;7.0;train\n;;;\n",
        "caption\timage_path\tidentity\tsplit\nA man.\timgs/a.png\t7\ttrain\n",
        'image_path, caption, identity, split, note\r\nimgs/a.png, "A man.", 7, train,\r\n\r\n',
    ],
)
def test_a_table_of_a_spreadsheet_is_read(tmp_path, text):
    path = tmp_path / ("m.tsv" if "\t" in text else "m.CSV")
    path.write_text(text, newline="")
    (record,) = read_listing(path).records
    assert (record.image_path, record.captions, record.identity, record.split) == (
        "imgs/a.png",
        ("A man.",),
        7,
        "train",
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a.png,A man, in red.,7,train", "line 3 has 5 cells, the first line 4; a cell that holds ',' needs quotes"),
        ("a.png,A man.,7", "line 3 has 3 cells, the first line 4"),
        (",A man.,7,train", "line 3: image_path is ''"),
    ],
)
def test_a_row_that_is_not_of_the_tables_form_is_named(tmp_path, row, says):
    (tmp_path / "m.csv").write_text(f'image_path,caption,identity,split\nb.png,"A man, in red.",1,test\n{row}\n')
    with pytest.raises(DataError) as error:
        read_listing(tmp_path / "m.csv")
    assert says in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [
        ["b.png\t1\ttest\tA boy", 'a.png\t0\ttrain\t"A man in red', "c.png\t2\ttrain\tA man"],
        [
            "b.png\t1\ttest\tA boy",
            'a.png\t0\ttrain\t"A man in red',
            "c.png\t2\ttrain\tA girl",
            'd.png\t3\ttrain\t"A boy"',
        ],
        ['b.png\t1\ttest\t"A\nboy"', 'a.png\t0\ttrain\t"Nike" shirt'],
    ],
)
def test_a_quote_that_is_not_closed_joins_no_rows(tmp_path, rows):
    (tmp_path / "m.tsv").write_text("\n".join(["image_path\tidentity\tsplit\tcaption", *rows, ""]))
    line = 4 if "\n" in rows[0] else 3
    with pytest.raises(DataError, match=rf"m\.tsv line {line} is not CSV .* must end with one") as error:
        read_listing(tmp_path / "m.tsv")
    assert "\n" not in str(error.value)


def test_quoted_line_ends_and_inch_marks_within_a_cell_stay(tmp_path):
    rows = ['a.png\t0\ttrain\t"One\nline, ""two"""', 'b.png\t1\ttest\tA 5" bag', 'c.png\t2\ttest\tA bag of 5"']
    (tmp_path / "m.tsv").write_text("\n".join(["image_path\tidentity\tsplit\tcaption", *rows, ""]))
    found = [(record.image_path, record.captions) for record in read_listing(tmp_path / "m.tsv").records]
    assert found == [("a.png", ('One\nline, "two"',)), ("b.png", ('A 5" bag',)), ("c.png", ('A bag of 5"',))]


def test_a_set_behind_a_link_has_the_name_of_the_link(tmp_path):
    published(tmp_path, "disk7", "reid_raw.json", "file_path", ("train",))
    (tmp_path / "mine").symlink_to(tmp_path / "disk7")
    assert {record.source for record in read_dataset("mine", tmp_path)} == {"mine"}


def test_a_path_that_is_nothing_readable_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_dataset("nowhere", tmp_path)
    with pytest.raises(DataError, match="no annotation file"):
        read_dataset(".", tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match=r"cannot read \.txt"):
        read_dataset("x.txt", tmp_path)
