"""Corpora that are streamed: the order, the reading, and that both are functions of a step number."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.published.readers import read_listing
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.persons.streaming.corpus import BLOCK_PICTURES, open_corpus
from components.persons.streaming.sample_order import SampleOrder
from components.persons.streaming.sample_reader import SampleReader

SIZE = (12, 6)


def png(seed, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def letters(captions):
    """A tokenizer: the first eight characters."""
    return torch.tensor([[ord(c) for c in text.ljust(8)[:8]] for text in captions])


def write(folder, pictures=900):
    """Pictures of three splits in turns; each has a short caption and one to three long ones."""
    with DatasetWriter(folder, images_per_shard=300) as writer:
        for i in range(pictures):
            rows = [CaptionRow(f"s{i}", "short"), *(CaptionRow(f"{i}.{k}") for k in range(1 + i % 3))]
            split = "val" if i % 7 == 3 else "test" if i % 11 == 5 else "train"
            writer.add(png(i), rows, identity=i // 2, split=split, source="made")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("corpus") / "people")


def reader(folder, **settings):
    return SampleReader(
        open_corpus(folder), letters, size=SIZE, **{"batch_size": 24, "seed": 5, "window": 2, **settings}
    )


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


sizes_of_blocks = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(sizes_of_blocks, st.integers(1, 8), st.integers(0, 3), st.integers(0, 2))
def test_every_sample_comes_once_an_epoch_and_windows_are_not_mixed(sizes, window, seed, epoch):
    order = SampleOrder(np.array(sizes), seed=seed, window=window)
    total = sum(sizes)
    blocks, places = order.at(epoch * total, (epoch + 1) * total)
    assert sorted(zip(blocks.tolist(), places.tolist(), strict=True)) == [
        (b, p) for b, n in enumerate(sizes) for p in range(n)
    ]
    first_seen = list(dict.fromkeys(blocks.tolist()))
    for start in range(0, len(sizes), window):  # the blocks of a window are gone through before the next window's
        mine = set(first_seen[start : start + window])
        where = [i for i, block in enumerate(blocks.tolist()) if block in mine]
        assert where == list(range(where[0], where[0] + len(where)))


@settings(deadline=None, max_examples=60)
@given(sizes_of_blocks, st.integers(1, 8), st.lists(st.integers(1, 25), min_size=1, max_size=8))
def test_a_position_is_the_same_however_the_stream_is_cut_and_wherever_it_is_begun(sizes, window, cuts):
    def fresh():
        return SampleOrder(np.array(sizes), seed=1, window=window)

    whole = fresh().at(0, sum(cuts))
    first, parts = 0, []
    for cut in reversed(cuts):
        parts.append(fresh().at(first, first + cut))
        first += cut
    assert all(np.array_equal(whole[i], np.concatenate([part[i] for part in parts])) for i in range(2))


def test_epochs_and_seeds_have_orders_of_their_own():
    sizes = np.full(20, 8)
    orders = [
        SampleOrder(sizes, seed=seed, window=4).at(160 * epoch, 160 * (epoch + 1))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({blocks.tobytes() + places.tobytes() for blocks, places in orders}) == 4


def test_a_window_as_long_as_the_corpus_is_a_uniform_shuffle():
    """Each of 24 samples is first in about 1/24 of the epochs: chi squared, 23 degrees of freedom, p = 0.001."""
    order = SampleOrder(np.full(6, 4), seed=0, window=6)
    firsts = [int(block[0]) * 4 + int(place[0]) for block, place in (order.at(24 * e, 24 * e + 1) for e in range(1200))]
    expected = 1200 / 24
    assert sum((count - expected) ** 2 / expected for count in np.bincount(firsts, minlength=24)) < 49.7


def test_an_epoch_of_steps_is_the_dataset_with_the_numbers_of_its_rows(folder):
    stream, dataset = reader(folder), PersonDataset(folder)
    rows = dataset.rows(split="train", form="long")
    assert len(stream) == len(rows)
    assert list(open_corpus(folder).captions()) == rows.column("caption")
    seen = []
    for step in range(-(-len(stream) // 24)):
        arrays = stream.read(step)
        for slot, number in enumerate(arrays["caption_index"].tolist()):
            row = rows[number]
            assert arrays["identities"][slot] == row["identity"]
            assert arrays["ids"][slot].tolist() == letters([row["caption"]])[0].tolist()
            assert np.array_equal(arrays["pixels"][slot], dataset.pixels([row["image_id"]], *SIZE)[0].numpy())
        seen += arrays["caption_index"].tolist()
    assert sorted(seen[: len(stream)]) == list(range(len(stream)))
    assert (arrays["pixels"].dtype, arrays["pixels"].shape) == (np.uint8, (24, 3, *SIZE))


@pytest.mark.parametrize(("split", "form"), [("val", "long"), ("test", "short")])
def test_another_split_or_form_is_streamed_by_name(folder, split, form):
    corpus = open_corpus(folder, split=split, form=form)
    rows = PersonDataset(folder).rows(split=split, form=form)
    read = [text for block in range(len(corpus.sizes)) for text in corpus.read(block).captions]
    assert read == rows.column("caption") == list(corpus.captions())


def test_a_step_is_the_same_in_any_order_in_any_process_and_after_a_resume(folder):
    stream = reader(folder)
    expected = [stream.read(step) for step in range(60)]  # more than an epoch
    for step in (59, 3, 31, 30, 0):
        assert same(reader(folder).read(step), expected[step])
    sent = pickle.loads(pickle.dumps(stream))
    assert same(sent.read(17), expected[17])
    assert len(pickle.dumps(stream)) < 20_000  # nothing that was read is sent along


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_together_read_the_global_batch_of_one(folder, world_size):
    whole = reader(folder)
    ranks = [reader(folder, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 13, 40):
        parts, expected = [rank.read(step) for rank in ranks], whole.read(step)
        assert same({name: np.concatenate([part[name] for part in parts]) for name in expected}, expected)


def test_a_reader_holds_two_windows_however_large_the_corpus_is(folder, tmp_path):
    held = []
    for place in (folder, write(tmp_path / "larger", 2700)):
        stream = reader(place, window=1)
        most = 0
        for step in range(len(stream) // 24):
            stream.read(step)
            most = max(most, sum(len(block.pictures) for block in stream._blocks.values()))
        held.append(most)
    assert max(held) <= 2 * BLOCK_PICTURES


def hub(folder, captions=("A man.", "He walks."), broken=()):
    """WebPerson's layout: 700 pictures in two files, row groups of 100."""
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        images = [b"torn" if 350 * number + i in broken else png(350 * number + i, "JPEG") for i in range(350)]
        image = pa.array(
            [{"bytes": data, "path": None} for data in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        texts = {
            f"caption{k + 1}": [f"{text}/n {350 * number + i}" for i in range(350)] for k, text in enumerate(captions)
        }
        table = pa.table({"image": image, "image_path": ["x"] * 350, **texts})
        pq.write_table(table, folder / f"data/train-{number:05d}-of-00002.parquet", row_group_size=100)
    return folder


def test_webpersons_shards_are_streamed_as_they_are_listed(tmp_path):
    folder = hub(tmp_path / "WebPerson-1M")
    corpus = open_corpus(folder)
    records = read_listing(folder).records
    assert int(corpus.sizes.sum()) == 1400
    assert list(corpus.captions()) == [text for record in records for text in record.captions]
    number = 0
    for place in range(len(corpus.sizes)):
        block = corpus.read(place)
        for caption, of, identity in zip(
            block.captions, block.picture_of.tolist(), block.identities.tolist(), strict=True
        ):
            assert caption == records[number // 2].captions[number % 2]
            assert identity == records[number // 2].identity == number // 2
            assert block.pictures[of] == png(number // 2, "JPEG")
            number += 1
    assert number == 1400


def test_what_cannot_be_streamed_is_refused_in_one_line(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds neither"):
        open_corpus(tmp_path / "empty")
    with DatasetWriter(tmp_path / "few") as writer:
        writer.add(png(0), [CaptionRow("a")], identity=0, split="train", source="s")
    with pytest.raises(DataError, match="lists no short captions in val"):
        open_corpus(tmp_path / "few", split="val", form="short")
    torn = SampleReader(open_corpus(hub(tmp_path / "torn", broken={5})), letters, size=SIZE, batch_size=1400, seed=0)
    with pytest.raises(DataError, match=r"caption 1[01] .* cannot be decoded: .*; run prepare") as error:
        torn.read(0)
    assert "\n" not in str(error.value)
    blank = open_corpus(hub(tmp_path / "blank", captions=("A man.", "")))
    first = tmp_path / "blank/data/train-00000-of-00002.parquet"
    emptied = pq.read_table(first).set_column(2, "caption1", pa.array([" "] * 350))
    pq.write_table(emptied, first, row_group_size=100)
    with pytest.raises(DataError, match="picture 0 of the set has an empty caption"):
        blank.read(0)
    with pytest.raises(ParameterError, match="multiple of the 5 workers"):
        reader(folder, world_size=5)
    with pytest.raises(ParameterError, match="window"):
        reader(folder, window=0)
