"""Batches of a streamed corpus for retrieval training."""

from collections.abc import Iterator
from contextlib import contextmanager

from components.gadms.model import DualEncoder
from components.gadms.streamed_batches import StreamedBatches
from components.persons.augmentation import AugmentationConfig
from components.persons.streaming.corpus import Corpus
from components.persons.streaming.sample_reader import WINDOW_BLOCKS, SampleReader
from components.training.context import Context
from pipelines.schema.running import Compute
from pipelines.streaming.read_ahead import ReadAhead


@contextmanager
def streamed_batches(
    encoder: DualEncoder,
    corpus: Corpus,
    *,
    batch: int,
    steps: int,
    context: Context,
    readers: int = 2,
    window: int = WINDOW_BLOCKS,
    augmentation: AugmentationConfig | None = None,
) -> Iterator[StreamedBatches]:
    """Yield this rank's batches of a corpus; the readers end with the block.

    `readers` Ray processes read ahead for each rank; 0 reads in this one. The batches are the same.
    """
    part = {"rank": context.rank, "world_size": context.world_size}
    reader = SampleReader(
        corpus, encoder.tokenizer, size=encoder.image_size, batch_size=batch, seed=context.seed, window=window, **part
    )
    with ReadAhead(reader, steps=steps, readers=readers, compute=Compute()) as ahead:
        yield StreamedBatches(
            encoder, ahead.read, batch_size=batch, seed=context.seed, augmentation=augmentation, **part
        )
