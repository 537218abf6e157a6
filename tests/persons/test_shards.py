import io
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.records import Record
from components.persons.shards import (
    DATASET_MANIFEST,
    MANIFEST_SCHEMA,
    CaptionRow,
    DatasetWriter,
    PersonDataset,
    write_records,
)
from components.persons.statistics import manifest_statistics


def png(seed, size=(16, 32), kind="PNG"):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(folder, count=150, **settings):
    """Pictures of three splits, interleaved; even ones have a short and two long captions."""
    with DatasetWriter(folder, **settings) as writer:
        for i in range(count):
            rows = [CaptionRow(f"long caption of {i}", wrong_words=(0, 3)), CaptionRow(f"another of {i}")]
            if i % 2 == 0:
                rows.insert(0, CaptionRow(f"short {i}", "short"))
            split = ("train", "val", "test")[i % 3]
            attributes = {"view": "front", "hat": "cap"} if i % 2 else None
            assert writer.add(png(i), rows, identity=100 + i, split=split, source="made", attributes=attributes) == i
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_is_read_back(tmp_path):
    dataset = PersonDataset(write(tmp_path / "a", images_per_shard=20))
    assert dataset.manifest.schema.names == MANIFEST_SCHEMA.names
    assert [dataset.image_bytes(i) for i in range(150)] == [png(i) for i in range(150)]
    rows = list(dataset.rows())
    assert [row["caption_id"] for row in rows] == list(range(375))
    assert rows[3] == {
        "image_id": 1,
        "shard": "shards/val-00000.parquet",
        "row": 0,
        "identity": 101,
        "caption_id": 3,
        "caption": "long caption of 1",
        "form": "long",
        "split": "val",
        "source": "made",
        "attributes": '{"hat": "cap", "view": "front"}',
        "wrong_words": [0, 3],
    }


def test_images_are_found_in_any_order_and_by_a_small_cache(tmp_path):
    write(tmp_path / "a", count=300)
    dataset = PersonDataset(tmp_path / "a", cache_bytes=1)
    for image_id in np.random.default_rng(0).permutation(300)[:60]:
        assert dataset.image_bytes(int(image_id)) == png(int(image_id))


def test_a_shard_is_full_at_its_number_of_pictures(tmp_path):
    dataset = PersonDataset(write(tmp_path / "a", images_per_shard=20))
    assert pictures_by_shard(dataset, "train") == {
        f"shards/train-0000{i}.parquet": n for i, n in enumerate((20, 20, 10))
    }


def test_a_shard_takes_pictures_as_long_as_they_fit_in_its_bytes(tmp_path):
    """Each split is cut on its own, a picture that would exceed the limit begins a shard, and one above it is alone."""
    sizes = {"train": [40, 60, 1, 100, 300, 99, 1, 50], "val": [70, 40]}
    with DatasetWriter(tmp_path / "a", bytes_per_shard=100) as writer:
        for split, listed in sizes.items():
            for size in listed:
                writer.add(bytes(size), [CaptionRow("x")], identity=1, split=split, source="s")
    dataset = PersonDataset(tmp_path / "a")
    assert list(pictures_by_shard(dataset, "train").values()) == [
        2,
        1,
        1,
        1,
        2,
        1,
    ]  # 40 + 60 | 1 | 100 | 300 | 99 + 1 | 50
    assert list(pictures_by_shard(dataset, "val").values()) == [1, 1]


def pictures_by_shard(dataset, split):
    rows = {(row["shard"], row["row"]) for row in dataset.rows(split)}
    return dict(sorted(Counter(shard for shard, _ in rows).items()))


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert contents(write(tmp_path / "a")) == contents(write(tmp_path / "b"))


def test_rows_select_by_split_and_form(tmp_path):
    dataset = PersonDataset(write(tmp_path / "a", count=30))
    short = dataset.rows(split="train", form="short")
    assert len(short) == 5
    assert {row["split"] for row in short} == {"train"}
    assert short[0]["caption"] == "short 0"
    assert short[-1] == list(short)[-1] == short[4]
    assert [row["caption"] for row in short[1:3]] == short.column("caption")[1:3]
    assert dataset.forms() == {"short", "long"}
    with pytest.raises(IndexError):
        short[5]
    with pytest.raises(ParameterError, match="dev"):
        dataset.rows(split="dev")
    assert dataset.sources("train") == ["made"]


def test_a_split_that_is_needed_and_empty_is_refused_with_what_there_is(tmp_path):
    with DatasetWriter(tmp_path / "few") as writer:
        writer.add(png(0), [CaptionRow("a"), CaptionRow("b")], identity=0, split="val", source="s")
    few = PersonDataset(tmp_path / "few")
    assert len(few.needed_rows("val", "long")) == 2
    with pytest.raises(
        DataError, match=r"no long caption in the split 'test' \(long captions: train 0, val 2, test 0\)"
    ):
        few.needed_rows("test", "long")
    with pytest.raises(DataError, match=r"no caption in the split 'train'"):
        few.needed_rows("train")
    assert few.sources("test") == []


def test_pixels_are_squashed_and_rgb(tmp_path):
    with DatasetWriter(tmp_path / "a") as writer:
        for image in (png(0), png(1, (40, 60), "JPEG")):
            writer.add(image, [CaptionRow("x y")], identity=1, split="train", source="s")
        grey = io.BytesIO()
        Image.new("L", (8, 8), 77).save(grey, "PNG")
        writer.add(grey.getvalue(), [CaptionRow("x y")], identity=1, split="train", source="s")
    pixels = PersonDataset(tmp_path / "a").pixels(torch.tensor([2, 0, 1]), 32, 16)
    assert pixels.shape == (3, 3, 32, 16)
    assert pixels.dtype == torch.uint8
    assert (pixels[0] == 77).all()
    expected = np.array(Image.open(io.BytesIO(png(0))))
    assert np.array_equal(pixels[1].permute(1, 2, 0).numpy(), expected)


def test_shrinking_is_antialiased(tmp_path):
    """A fine checkerboard becomes grey, not black or white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    buffer = io.BytesIO()
    Image.fromarray(board.astype(np.uint8)).save(buffer, "PNG")
    with DatasetWriter(tmp_path / "a") as writer:
        writer.add(buffer.getvalue(), [CaptionRow("x y")], identity=1, split="train", source="s")
    pixels = PersonDataset(tmp_path / "a").pixels([0], 16, 16).float()
    assert (pixels - 127.5).abs().max() < 12


def test_statistics_count_pictures_captions_and_identities(tmp_path):
    manifest = write(tmp_path / "a", count=30) / DATASET_MANIFEST
    statistics = manifest_statistics(manifest)
    assert manifest_statistics(manifest, is_cut=lambda caption: len(caption.split()) > 3)["train"]["captions_cut"] == 10
    assert statistics["train"] == {
        "images": 10,
        "captions": 25,
        "identities": 10,
        "wrong_words": 20,
        "caption_words": {
            "short": {"captions": 5, "words_mean": 2.0, "words_min": 2, "words_max": 2},
            "long": {"captions": 20, "words_mean": 3.5, "words_min": 3, "words_max": 4},
        },
    }


def test_an_opened_dataset_can_be_sent_to_a_worker(tmp_path):
    dataset = PersonDataset(write(tmp_path / "a", count=9))
    dataset.image_bytes(0)
    assert pickle.loads(pickle.dumps(dataset)).image_bytes(4) == png(4)


def test_records_are_written_with_their_short_captions_and_wrong_words(tmp_path):
    (tmp_path / "x.png").write_bytes(png(0))
    record = Record(str(tmp_path / "x.png"), 7, ("a b c", "d e"), "test", "s", "short one", {"hat": "cap"}, ((2,), ()))
    write_records([record], tmp_path / "a")
    rows = list(PersonDataset(tmp_path / "a").rows())
    assert [(r["caption"], r["form"], r["wrong_words"]) for r in rows] == [
        ("short one", "short", []),
        ("a b c", "long", [2]),
        ("d e", "long", []),
    ]


def test_a_writer_that_failed_leaves_no_dataset(tmp_path):
    def fail():
        with DatasetWriter(tmp_path / "a") as writer:
            writer.add(png(0), [CaptionRow("x")], identity=1, split="train", source="s")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(DataError, match=r"manifest\.parquet is missing"):
        PersonDataset(tmp_path / "a")


def test_mistakes_are_refused(tmp_path):
    writer = DatasetWriter(tmp_path / "a")
    for captions, split, says in (
        ([CaptionRow("x")], "dev", "dev"),
        ([], "train", "no caption"),
        ([CaptionRow("x", "medium")], "train", "medium"),
        ([CaptionRow("x y", wrong_words=(2,))], "train", "wrong_words"),
    ):
        with pytest.raises(DataError, match=says):
            writer.add(png(0), captions, identity=1, split=split, source="s")
    write(tmp_path / "b", count=3)
    with pytest.raises(ParameterError, match="already holds"):
        DatasetWriter(tmp_path / "b")
    dataset = PersonDataset(tmp_path / "b")
    with pytest.raises(DataError, match="image_id 3"):
        dataset.image_bytes(3)
    (tmp_path / "b/shards/val-00000.parquet").unlink()
    with pytest.raises(DataError, match="val-00000"):
        dataset.image_bytes(1)


def test_an_undecodable_picture_is_named(tmp_path):
    with DatasetWriter(tmp_path / "a") as writer:
        writer.add(b"nothing", [CaptionRow("x")], identity=1, split="train", source="s")
    with pytest.raises(DataError, match="image_id 0"):
        PersonDataset(tmp_path / "a").pixels([0], 8, 4)
