"""Annotation files, manifests and validation of sets that fit in no list."""

import json
import random
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_datasets import SETS, lay_out, write_json

from components.errors import DataError
from components.persons.published.json_stream import list_elements
from components.persons.published.ledger import Ledger
from components.persons.published.readers import find_dataset, read_listing
from components.persons.published.validation import ValidatedRecords, validate_records
from components.persons.shards import DATASET_MANIFEST, CaptionRow, DatasetWriter, PersonDataset, write_records
from components.persons.statistics import manifest_statistics


def value(rng, depth=0):
    """Any JSON value: nested, with numbers and strings that a cut could tear apart."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {f"k{i}": value(rng, depth + 1) for i in range(rng.randrange(4))}
    return [None, True, rng.randrange(-(10**9), 10**9), rng.random() * 1e-7, 'q"\\,]}[{\n\t é 汉', ""][kind]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_as_json_reads_it_wherever_the_buffer_ends(tmp_path, chunk, indent):
    rng = random.Random(chunk)
    expected = [value(rng) for _ in range(60)]
    path = tmp_path / "x.json"
    path.write_text(f" \n{json.dumps(expected, indent=indent, ensure_ascii=bool(indent))}\r\n ", encoding="utf-8")
    assert list(list_elements(path, chunk=chunk)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1] 2",
        '[{"a": 1}, {"b": ]',
        '["torn',
        "[1]]",
        "[nul]",
        "nul",
        "{",
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_json_refuses_is_refused_in_one_line(tmp_path, text, chunk):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(DataError, match="not readable JSON") as error:
        list(list_elements(path, chunk=chunk))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{}", "3", '"text"', "null"])
def test_json_that_is_no_list_is_told_apart_from_what_is_no_json(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="must hold a non-empty list"):
        list(list_elements(tmp_path / "x.json"))


def test_a_list_of_many_records_is_never_in_memory(tmp_path):
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[")
        for i in range(40_000):
            file.write(
                ("," if i else "") + json.dumps({"file_path": f"a/{i}.jpg", "captions": ["A man in red."] * 3, "id": i})
            )
        file.write("]")
    tracemalloc.start()
    count = sum(1 for _ in list_elements(path, chunk=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < path.stat().st_size / 8  # json.load holds several times the file


def test_a_ledger_numbers_its_keys_and_keeps_the_first_note():
    ledger = Ledger()
    assert [ledger.number(key) for key in ("b", "a", "b", "c", "a")] == [0, 1, 0, 2, 1]
    ledger.note(b"x", "first")
    ledger.note(b"x", "second")
    assert (ledger.find(b"x"), ledger.find(b"y"), len(ledger)) == ("first", None, 4)
    for voter, choice in ((1, "train"), (1, "train"), (2, "val"), (1, "test")):
        ledger.vote(voter, choice)
    assert ledger.voters() == {"test": 1, "train": 1, "val": 1}
    assert sorted(ledger.divided()) == [(1, "test", 1), (1, "train", 2)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_of_a_picture_are_joined_wherever_a_manifest_has_them(tmp_path, kind):
    rows = [(f"imgs/{i % 5}.png", f"caption {i}", i % 5, "train") for i in (3, 0, 4, 1, 2, 8, 5, 14, 6)]
    path = tmp_path / f"m.{kind}"
    names = ("image_path", "caption", "identity", "split")
    if kind == "csv":
        path.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]))
    else:
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), path, row_group_size=2)
    found = [(record.image_path, record.captions) for record in read_listing(path).records]
    assert found == [
        ("imgs/3.png", ("caption 3", "caption 8")),
        ("imgs/0.png", ("caption 0", "caption 5")),
        ("imgs/4.png", ("caption 4", "caption 14")),
        ("imgs/1.png", ("caption 1", "caption 6")),
        ("imgs/2.png", ("caption 2",)),
    ]


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_converted_record_by_record_as_it_is_at_once(tmp_path, name):
    """With equal and missing pictures, on files of every published layout."""
    listed = lay_out(tmp_path, name, 6)
    folder = tmp_path / SETS[name][1]
    (folder / listed[1]).write_bytes((folder / listed[0]).read_bytes())
    (folder / listed[4]).unlink()
    source = find_dataset(name, tmp_path)
    validation = ValidatedRecords(source, max_bad_fraction=0.5)
    with pytest.raises(RuntimeError, match="complete only after the last record"):
        _ = validation.report
    write_records(validation, tmp_path / "streamed")
    good, report = validate_records(read_listing(name, tmp_path), max_bad_fraction=0.5)
    write_records(good, tmp_path / "at_once")
    assert validation.report == report
    assert report.counts["missing file"] == 1
    files = [path.relative_to(tmp_path / "at_once") for path in (tmp_path / "at_once").rglob("*.parquet")]
    assert all(
        (tmp_path / "streamed" / file).read_bytes() == (tmp_path / "at_once" / file).read_bytes() for file in files
    )


def test_a_set_with_too_many_bad_records_leaves_no_dataset(tmp_path):
    listed = lay_out(tmp_path, "mals", 4)
    (tmp_path / "MALS" / listed[2]).unlink()
    with pytest.raises(DataError, match="1 of 4 records are bad"):
        write_records(ValidatedRecords(find_dataset("mals", tmp_path)), tmp_path / "out")
    with pytest.raises(DataError, match="not a prepared dataset"):
        PersonDataset(tmp_path / "out")


def test_an_empty_list_of_pictures_is_refused(tmp_path):
    write_json(tmp_path / "WebPerson-1M/100w.json", [{}])
    with pytest.raises(DataError, match="lists no pictures"):
        list(ValidatedRecords(find_dataset("webperson-1m", tmp_path)))


def test_a_manifest_of_many_captions_is_written_in_parts_and_read_as_one(tmp_path, monkeypatch):
    def write(folder):
        with DatasetWriter(folder) as writer:
            for i in range(11):
                captions = [CaptionRow(f"a {i}"), CaptionRow(f"b {i}", wrong_words=(1,))]
                writer.add(b"x", captions, identity=i // 2, split="train", source="s")
        return folder

    whole = PersonDataset(write(tmp_path / "whole"))
    monkeypatch.setattr("components.persons.shards._MANIFEST_ROWS", 8)
    parts = PersonDataset(write(tmp_path / "parts"))
    groups = pq.ParquetFile(tmp_path / "parts/manifest.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [8, 8, 6]
    assert list(parts.rows()) == list(whole.rows())
    assert manifest_statistics(parts.folder / DATASET_MANIFEST) == manifest_statistics(whole.folder / DATASET_MANIFEST)
    assert not list((tmp_path / "parts").glob(".*"))
