"""WebPerson as it is on the Hugging Face hub: pictures inside Parquet shards."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.errors import DataError
from components.persons import read_listing, validate_records
from components.persons.pictures import PictureReader, split_address


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def shard(path, contents, captions=None, **columns):
    """As `datasets` writes an Image feature: a struct of bytes and path, and the features in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"crops/{i:08d}.jpg" for i in range(len(contents))]
    image = pa.array(
        [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    first = captions or [f"First of {i}." for i in range(len(contents))]
    table = {"image": image, "image_path": names, "caption1": first, "caption2": ["Second."] * len(contents), **columns}
    features = {"image": {"_type": "Image"}, "image_path": {"dtype": "string", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(table).replace_schema_metadata(metadata), path, row_group_size=3)


@pytest.fixture
def root(tmp_path):
    for number in range(2):
        path = tmp_path / f"WebPerson-1M/data/train-{number:05d}-of-00002.parquet"
        shard(path, [jpeg(10 * number + i) for i in range(7)])
    return tmp_path


def test_pictures_are_read_from_their_rows_in_any_order(root):
    records, report = validate_records(read_listing("webperson-1m", root))
    assert (report.total, report.good) == (14, 14)
    assert [record.identity for record in records] == list(range(14))
    assert records[8].captions == ("First of 1.", "Second.")
    expected = [jpeg(10 * number + i) for number in range(2) for i in range(7)]
    reader = PictureReader()
    assert [reader.read(record.image_path) for record in records] == expected
    order = [13, 0, 6, 7, 3, 2, 12, 1]
    assert [reader.read(records[i].image_path) for i in order] == [expected[i] for i in order]


def test_faults_inside_a_shard_are_found_with_their_reason_and_the_report_is_the_same_bytes_twice(tmp_path):
    contents = [jpeg(1), b"not a picture", jpeg(2)[:300], None, jpeg(1), jpeg(3)]
    path = tmp_path / "WebPerson-5M/data/train-00000-of-00001.parquet"
    shard(path, contents, ["A.", "B.", "C.", "D.", "E.", None])
    listing = read_listing("webperson-5m", tmp_path)
    reports = [validate_records(listing, max_bad_fraction=1.0)[1] for _ in range(2)]
    assert [(bad["index"], bad["reason"]) for bad in reports[0].bad] == [
        (1, "corrupt image"), (2, "corrupt image"), (3, "corrupt image"), (5, "empty caption"),
    ]  # fmt: skip
    assert reports[0].bad[3]["left_out"] == "caption"  # it has a second one
    assert reports[0].joined == {"same picture of another identity": 1}
    assert json.dumps(reports[0].to_json()) == json.dumps(reports[1].to_json())
    assert str(tmp_path) not in json.dumps(reports[0].to_json())


def test_a_row_that_is_not_there_and_a_file_that_is_no_shard_are_data_errors(root, tmp_path):
    path = root / "WebPerson-1M/data/train-00000-of-00002.parquet"
    with pytest.raises(DataError, match="has 7 rows; there is no row 7"):
        PictureReader().read(f"{path}#7")
    (tmp_path / "x.parquet").write_bytes(b"text")
    with pytest.raises(DataError, match="not a readable shard"):
        PictureReader().read(f"{tmp_path}/x.parquet#0")
    with pytest.raises(OSError):
        PictureReader().read(f"{tmp_path}/nowhere.parquet#0")


def test_a_shard_without_a_column_is_refused_by_name(tmp_path):
    path = tmp_path / "WebPerson-1M/data/train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": [b"x"], "caption1": ["a"]}), path)
    with pytest.raises(DataError, match="lacks the columns caption2"):
        read_listing("webperson-1m", tmp_path)
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_listing("webperson-1m", tmp_path)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("data/train-0.parquet#12", ("data/train-0.parquet", 12)),
        ("imgs/a#3.png", ("imgs/a#3.png", None)),
        ("imgs/a.png#3", ("imgs/a.png#3", None)),
        ("data/x.parquet#-1", ("data/x.parquet#-1", None)),
        ("data/x.parquet", ("data/x.parquet", None)),
    ],
)
def test_only_a_row_of_a_parquet_file_is_taken_apart(address, parts):
    assert split_address(address) == parts
