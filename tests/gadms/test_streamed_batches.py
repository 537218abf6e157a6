"""Retrieval training on a streamed corpus: batches as the task wants them, and a resume in the middle of an epoch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from components.errors import ParameterError
from components.gadms.batches import CaptionBatches
from components.gadms.methods import RetrievalConfig
from components.gadms.streamed_batches import StreamedBatches
from components.gadms.tasks import RetrievalTask
from components.persons.augmentation import AugmentationConfig
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.persons.streaming.corpus import open_corpus
from components.persons.streaming.sample_reader import SampleReader
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit

AUGMENTATION = AugmentationConfig(flip=0.5, pad=2, erase=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed") / "people"
    random = np.random.default_rng(0)
    with DatasetWriter(folder) as writer:
        for i in range(60):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(file, "PNG")
            captions = [CaptionRow(f"a man in red number {i}"), CaptionRow("he walks")]
            writer.add(file.getvalue(), captions, identity=i, split="train", source="made")
    return folder


def batches(encoder, folder, *, rank=0, world_size=1, augmentation=None):
    part = {"batch_size": 16, "seed": 4, "rank": rank, "world_size": world_size}
    reader = SampleReader(open_corpus(folder), encoder.tokenizer, size=encoder.image_size, window=1, **part)
    return StreamedBatches(encoder, reader.read, augmentation=augmentation, **part)


def test_a_streamed_batch_is_the_listed_batch_of_the_same_captions(encoder, folder):
    """With the same augmentation: its numbers belong to the places of the batch."""
    dataset = PersonDataset(folder)
    rows = dataset.rows("train", "long")
    streamed = batches(encoder, folder, augmentation=AUGMENTATION)(5)
    listed = CaptionBatches(
        encoder,
        rows.column("caption"),
        rows.column("image_id"),
        rows.column("identity"),
        lambda ids: dataset.pixels(ids, *encoder.image_size),
        batch_size=16,
        seed=4,
        augmentation=AUGMENTATION,
    )
    listed._rows = lambda step: streamed["caption_index"].cpu()
    expected = listed(5)
    assert streamed.keys() == expected.keys()
    for name, values in expected.items():
        assert streamed[name].dtype == values.dtype
        assert torch.equal(streamed[name], values), name


def test_listed_batches_that_are_read_ahead_have_the_same_bytes(encoder, folder):
    dataset = PersonDataset(folder, cache_bytes=1)  # one row group: every thread drops what another one read
    rows = dataset.rows("train", "long")
    columns = [rows.column(name) for name in ("caption", "image_id", "identity")]
    options = {"batch_size": 16, "seed": 4, "augmentation": AUGMENTATION}

    def pixels(ids):
        return dataset.pixels(ids, *encoder.image_size)

    plain = CaptionBatches(encoder, *columns, pixels, **options)
    with CaptionBatches(encoder, *columns, pixels, readers=4, steps=12, **options) as ahead:
        for step in (0, 1, 2, 3, 9, 10, 11, 4):
            found = ahead(step)
            assert all(torch.equal(found[name], values) for name, values in plain(step).items())


def test_ranks_together_get_the_augmented_batch_of_one(encoder, folder):
    whole = batches(encoder, folder, augmentation=AUGMENTATION)(3)
    parts = [batches(encoder, folder, rank=rank, world_size=4, augmentation=AUGMENTATION)(3) for rank in range(4)]
    for name, values in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values)
    with pytest.raises(ParameterError, match="multiple of the 3 workers"):
        StreamedBatches(encoder, lambda step: {}, batch_size=16, seed=0, world_size=3)


def test_training_that_is_killed_in_mid_epoch_ends_with_the_weights_of_an_undisturbed_run(encoder, folder, tmp_path):
    start = {name: value.clone() for name, value in encoder.state_dict().items()}

    def train(context, kill_at=None):
        encoder.load_state_dict(start)
        feed = batches(encoder, folder)

        def until(step):
            if step == kill_at:
                raise KeyboardInterrupt
            return feed(step)

        task = RetrievalTask(encoder, RetrievalConfig(warmup_steps=2, decoder_depth=1), captions=120, seed=0)
        fit(task, until, LoopConfig(steps=10, learning_rate=1e-3, checkpoint_every=3, report_every=5), context)
        return {name: value.clone() for name, value in task.state_dict().items()}

    undisturbed = train(LocalContext(seed=4))
    with pytest.raises(KeyboardInterrupt):
        train(LocalContext(seed=4, folder=tmp_path / "run"), kill_at=5)
    resumed = train(LocalContext(seed=4, folder=tmp_path / "run"))
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
