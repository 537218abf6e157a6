"""The pictures of a gallery's source: a folder, a bucket, a manifest, a data set."""

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_galleries import picture, write_pictures

from components.errors import DataError, ParameterError
from components.persons.shards import CaptionRow, DatasetWriter
from components.search.gallery import layout, places, sources
from components.search.gallery.manifests import read_manifest
from components.search.gallery.places import open_place
from components.search.gallery.sources import find_source, list_source


def listed(location: Path | str, kind=None, columns=None) -> tuple[list[dict], dict[str, str]]:
    table, left_out = list_source(find_source(str(location), kind, Path("/"), columns))
    return table.to_pylist(), dict(left_out)


def test_a_folder_is_listed_with_its_captions_and_without_what_leads_out_of_it(tmp_path):
    folder = write_pictures(tmp_path / "pictures" / "b", [1, 2]).parent
    (folder / "b" / "1.txt").write_text("a woman\n\nin red\n", encoding="utf-8-sig")
    (folder / "b" / "2.txt").write_bytes(b"caf\xe9")
    (folder / ".hidden.png").write_bytes(picture(3))
    (folder / "notes.pdf").touch()
    os.symlink("b/1.png", folder / "a.png")
    os.symlink("/etc/hostname", folder / "a.txt")
    outside = write_pictures(tmp_path / "outside", [6])
    os.symlink(outside / "6.png", folder / "z.png")
    os.symlink(outside, folder / "away")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(picture(4))
    write_pictures(folder / "g" / "thumbnails", [5])  # of a gallery
    for name in (layout.LOCK, layout.SOURCE):
        (folder / "g" / name).touch()
    found, left_out = listed(folder)
    assert [(row["file"], row["caption"]) for row in found] == [
        ("a.png", None),
        ("z.png", None),  # refused when it is read
        ("b/1.png", "a woman\nin red"),
        ("b/2.png", None),
    ]
    assert left_out == {
        "a.txt": f"captions: leaves the source: a link leads out of {folder.resolve()}",
        "b/2.txt": "captions that are not in UTF-8: save the file in that encoding",
        "away": "leaves the source: a link to another folder",
        "?.png": "its name is not in UTF-8: rename it (convmv)",
    }
    place = open_place({"base": str(folder)})
    assert place.read("a.png") == place.read("b/1.png") == picture(1)
    for name in ("z.png", "../outside/6.png", str(outside / "6.png"), "b/../../x.png", "b", "a\0.png", "none.png"):
        with pytest.raises(DataError):
            place.read(name)
    with pytest.raises(DataError, match="lists no picture"):
        listed(write_pictures(tmp_path / "empty", []))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_manifest_gives_its_columns_whatever_its_format(tmp_path, suffix):
    given = [
        {"file": "a.png", "identity": 7, "camera": 3, "score": 0.5, "night": True, "place": "gate"},
        {"file": "./b/c.png", "identity": None, "camera": 4, "score": 1.5, "night": False, "place": None},
        {"file": None, "identity": 9, "camera": 1, "score": 0.0, "night": False, "place": "x"},
    ]
    path = tmp_path / f"list{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(given), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, given)) + "\n\n")
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(given[0]), delimiter="\t" if suffix == ".tsv" else ";")
            writer.writeheader()
            writer.writerows(given)
    found, left_out = listed(path)
    assert found == [
        {
            "file": "a.png",
            "identity": "7",
            "caption": None,
            "camera": 3,
            "source_score": 0.5,
            "night": True,
            "place": "gate",
        },
        {
            "file": "b/c.png",
            "identity": None,
            "caption": None,
            "camera": 4,
            "source_score": 1.5,
            "night": False,
            "place": None,
        },
    ]
    assert left_out == {"row 3": "names no file"}
    assert list(listed(path, columns=("place",))[0][0]) == ["file", "identity", "caption", "place"]
    with pytest.raises(ParameterError, match=r"--columns colour: .* has no such column; it has camera"):
        listed(path, columns=("colour",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"picture\n1.png\n", "has no column `file`.*it has picture"),
        (
            "a.csv",
            b"file,x\n1.png\n",
            r"is not a readable \.csv manifest \(line 2 has 1 cells, the first line 2; a cell that",
        ),
        ("a.csv", b"file,x\n1.png,a,b\n", "line 2 has 3 cells, the first line 2; a cell that holds ',' needs quotes"),
        (
            "a.tsv",
            b'file\tcaption\na\t"in red\nb\tin blue\n',
            r"a\.tsv: .*line 2 is not CSV \(unexpected end of data\)",
        ),
        ("a.tsv", b'file\tcaption\nz\tx\na\t"in red\nb\ta\nc\t"Nike" shirt\n', "line 3 is not CSV .*must end with one"),
        ("a.csv", b"file\n\xff\n", "is not a readable .csv manifest"),
        ("a.jsonl", b'{"file": "a"}\nno\n', "line 2"),
        ("a.jsonl", b"[1]\n", "line 1: is not an object"),
        ("a.parquet", b"PAR1", "is not a readable .parquet manifest"),
        ("a.csv", b"file,image_path,file\na,b,c\n", "has two columns 'file'"),
        ("a.csv", b"file,rank,source_rank\na,1,2\n", "has two columns 'source_rank'; rename one"),
        ("a.xlsx", b"", "is no manifest; use .csv"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_line(name, content, message):
    with pytest.raises(DataError, match=message):
        read_manifest(content, Path(name).suffix, name, [])


def test_identities_and_captions_are_texts_as_somebody_would_write_them():
    content = b'{"file":"a","identity":7.0,"caption":["one","two"]}\n{"file":"b","identity":"007","caption":null,"x":{"y":1}}\n'
    table = read_manifest(content, ".jsonl", "m", [])
    assert table["identity"].to_pylist() == ["7", "007"]
    assert table["caption"].to_pylist() == ["one\ntwo", None]
    assert read_manifest(b"file,identity\na,0007\nb,NaN\n", ".csv", "m", [])["identity"].to_pylist() == ["0007", None]
    dated = read_manifest(b"file,day\na,2020-01-02\n", ".csv", "m", [])
    assert dated["day"].to_pylist() == ["2020-01-02"]


def test_quoted_line_ends_and_inch_marks_within_a_cell_stay(tmp_path):
    for suffix, mark in ((".csv", ","), (".csv", ";"), (".tsv", "\t")):
        lines = ["file|caption|bag", '1.png|"one\nor ""two"""|9"', '2.png|a 5" bag|', "||", "", '3.png| "a, b; c"|"x"|']
        content = "\n".join(lines).replace("|", mark).encode()
        found = read_manifest(content, suffix, "m", []).to_pylist()
        assert [(row["file"], row["caption"], row["bag"]) for row in found] == [
            ("1.png", 'one\nor "two"', '9"'),
            ("2.png", 'a 5" bag', None),
            ("3.png", "a, b; c", "x"),
        ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_whole_numbers_that_no_column_holds_stay_text_and_none_is_changed(tmp_path, suffix):
    hashes, tracks = [2**63 + 5, 7, None], [2**63 - 1, -(2**63), None]
    if suffix == ".parquet":
        pq.write_table(
            pa.table({"file": list("abc"), "hash": pa.array(hashes, pa.uint64()), "track": tracks}), tmp_path / "m"
        )
        content = (tmp_path / "m").read_bytes()
    elif suffix == ".jsonl":
        rows = zip("abc", hashes, tracks, strict=True)
        content = "\n".join(json.dumps(dict(zip(("file", "hash", "track"), row, strict=True))) for row in rows).encode()
    else:
        rows = zip("abc", hashes, tracks, strict=True)
        cells = ["file,hash,track", *(f"{file},{one or ''},{two or ''}" for file, one, two in rows)]
        content = "\n".join(cells).encode()
    table = read_manifest(content, suffix, "m", [])
    assert table["hash"].to_pylist() == ["9223372036854775813", "7", None]
    assert table["track"].to_pylist() == tracks


def test_decimals_that_are_whole_are_as_exact_as_whole_numbers(tmp_path):
    numbers = pa.array([2**60 + 1, None]).cast(pa.decimal128(30, 0))
    prices = pa.array([1.25, None]).cast(pa.decimal128(10, 2))
    pq.write_table(pa.table({"file": ["a", "b"], "number": numbers, "price": prices}), tmp_path / "m")
    table = read_manifest((tmp_path / "m").read_bytes(), ".parquet", "m", [])
    assert (table["number"].to_pylist(), table["price"].to_pylist()) == ([2**60 + 1, None], [1.25, None])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_pandas_writes_for_nothing_is_nothing_known(tmp_path, suffix):
    if suffix == ".parquet":
        pq.write_table(
            pa.table({"file": ["a", "b"], "age": pa.array([3.5, float("nan")], pa.float32())}), tmp_path / "m"
        )
        content = (tmp_path / "m").read_bytes()
    else:
        content = b"file,age\na,3.5\nb,NaN\n" if suffix == ".csv" else b'{"file":"a","age":3.5}\n{"file":"b","age":NaN}'
    assert read_manifest(content, suffix, "m", [])["age"].to_pylist() == [3.5, None]


def test_json_lines_end_at_a_newline_and_nowhere_else():
    content = '{"file": "a", "caption": "a man\u2028in red"}\r\n{"file": "b", "caption": "one\u0085two"}'.encode()
    assert read_manifest(content, ".jsonl", "m", [])["caption"].to_pylist() == ["a man\u2028in red", "one\u0085two"]


def test_no_column_of_a_source_takes_the_name_of_what_an_answer_says():
    table = read_manifest(b"file,rank,row,score,id,place\na,9,8,7,6,x\n", ".csv", "m", [])
    assert table.column_names[3:] == ["source_rank", "source_row", "source_score", "source_id", "place"]


def test_a_prepared_set_is_a_source(tmp_path):
    with DatasetWriter(tmp_path / "people") as writer:
        for seed in range(2):
            captions = [CaptionRow("short", "short"), CaptionRow(f"first {seed}"), CaptionRow("second")]
            writer.add(picture(seed), captions, identity=seed, split="test", source="x")
    found, _ = listed(tmp_path / "people")
    assert [row["caption"] for row in found] == ["first 0\nsecond", "first 1\nsecond"]
    assert [(row["identity"], row["split"]) for row in found] == [("0", "test"), ("1", "test")]
    place = open_place({"base": str(tmp_path / "people")})
    assert [place.read(row["file"]) for row in found] == [picture(0), picture(1)]


def test_a_bucket_is_listed_and_read_as_a_folder_and_nothing_beside_it(tmp_path, monkeypatch):
    """On pyarrow's filesystem of this machine; tests/faults/test_killed_gallery.py reads from a real server."""
    from pyarrow.fs import LocalFileSystem

    folder = write_pictures(tmp_path / "bucket" / "people" / "b", [1, 2]).parent
    write_pictures(tmp_path / "bucket", [3])
    (folder / ".hidden").mkdir()
    write_pictures(folder / ".hidden", [4])
    (folder / "notes.txt").touch()
    (folder / "b" / "1.txt").write_text("a woman\u2028in red\r\n\r\n she walks\r\n", encoding="utf-8-sig", newline="")
    (folder / "b" / "2.txt").write_bytes(b"caf\xe9")
    (folder / "list.csv").write_text("file,camera\nb/1.png,3\n")
    root = str(tmp_path)

    def opened(address: str) -> tuple[LocalFileSystem, str]:
        return LocalFileSystem(), address.replace("s3://", root + "/")

    for module in (sources, places):
        monkeypatch.setattr(module, "open_address", opened)
    found, left_out = listed("s3://bucket/people/")
    assert [(row["file"], row["caption"]) for row in found] == [
        ("b/1.png", "a woman\u2028in red\nshe walks"),
        ("b/2.png", None),
    ]
    assert left_out == {"b/2.txt": "captions that are not in UTF-8: save the file in that encoding"}
    assert listed(folder) == (found, left_out)  # as a folder of this machine
    source = find_source("s3://bucket/people/list.csv", None, Path("/"))
    assert (source["kind"], source["base"]) == ("manifest", "s3://bucket/people")
    assert list_source(source)[0].to_pylist() == [{"file": "b/1.png", "identity": None, "caption": None, "camera": 3}]
    place = open_place(source)
    assert place.read("b/2.png") == picture(2)
    for name in ("../3.png", "/3.png", "b/../../3.png", "", "b/none.png"):
        with pytest.raises(DataError):
            place.read(name)
    with pytest.raises(ParameterError, match="a data set is read from a folder of this machine"):
        find_source("s3://bucket/people", "dataset", Path("/"))
    with pytest.raises(DataError, match="check the address and the rights"):
        listed("s3://none/people")
    assert find_source(f"file://{folder}", None, Path("/"))["base"] == str(folder)


def test_a_source_that_is_none_is_one_line(tmp_path):
    with pytest.raises(DataError, match="does not exist: give a folder of pictures"):
        find_source("nowhere", None, tmp_path)
    with pytest.raises(ParameterError, match="holds credentials"):
        list_source(find_source("s3://key:secret@bucket/x", None, tmp_path))
    with pytest.raises(ParameterError, match="no address that can be opened"):
        list_source(find_source("nothing://x", None, tmp_path))
    (tmp_path / "a.csv").write_text("file\n")
    with pytest.raises(DataError, match="is not a folder"):
        find_source("a.csv", "folder", tmp_path)
