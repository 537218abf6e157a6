"""Retrieval with distractors: the same queries, in both directions, as strangers join the gallery.

A gallery of a city is not a test split: most of its pictures show nobody who is sought. Strangers' pictures join those that a
sentence is compared with, and their captions those that a picture is compared with; they are never queries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.errors import DataError, ParameterError
from components.evaluation.retrieval import retrieval_metrics
from components.persons.shards import PersonDataset
from components.search.encoders import Encoder
from components.training.randomness import generator

_BATCH = 64  # pictures embedded at once


@dataclass(frozen=True)
class EmbeddedPeople:
    """Unit vectors of pictures (I, D) with identities (I,), and of captions (T, D) with identities and pictures (rows) (T,)."""

    images: Tensor
    image_ids: Tensor
    texts: Tensor
    text_ids: Tensor
    text_images: Tensor

    def first(self, images: Tensor) -> "EmbeddedPeople":
        """Return some of the pictures, by row, with their captions. Captions keep the rows that their pictures had."""
        texts = torch.isin(self.text_images, images)
        return EmbeddedPeople(
            self.images[images],
            self.image_ids[images],
            self.texts[texts],
            self.text_ids[texts],
            self.text_images[texts],
        )


def embed_people(
    encoder: Encoder, dataset: PersonDataset, splits: Sequence[str], without: frozenset[int] = frozenset()
) -> EmbeddedPeople:
    """Embed the pictures and long captions of some splits, but for identities `without`. Raises DataError where none are left."""
    rows = [row for split in splits for row in dataset.rows(split, form="long") if row["identity"] not in without]
    if not rows:
        raise DataError(f"{dataset.folder}: no pictures with captions of other people in {' and '.join(splits)}")
    pictures = {row["image_id"]: row["identity"] for row in rows}
    place = {image_id: number for number, image_id in enumerate(pictures)}
    wanted = list(pictures)
    images = [
        torch.from_numpy(encoder.pictures([dataset.picture(image_id) for image_id in wanted[begin : begin + _BATCH]]))
        for begin in range(0, len(wanted), _BATCH)
    ]
    return EmbeddedPeople(
        torch.cat(images),
        torch.tensor(list(pictures.values())),
        torch.from_numpy(encoder.sentences([row["caption"] for row in rows])),
        torch.tensor([row["identity"] for row in rows]),
        torch.tensor([place[row["image_id"]] for row in rows]),
    )


def with_strangers(
    known: EmbeddedPeople, strangers: EmbeddedPeople, counts: Sequence[int], *, seed: int = 0
) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
    """Yield for each number of strangers' pictures the metrics of "text_to_image" and "image_to_text".

    Fewer strangers are among more: the first of one random order, by `seed`. Every stranger counts as nobody who is sought,
    whatever the identities in both sets are. Raises ParameterError for a number beyond those there are.
    """
    available = len(strangers.images)
    if any(not 0 <= count <= available for count in counts):
        raise ParameterError(f"strangers: {', '.join(map(str, counts))}: there are {available:,} pictures of strangers")
    nobody = min(int(known.image_ids.min()), int(known.text_ids.min())) - 1
    order = torch.randperm(available, generator=generator(seed, "strangers"))
    for count in counts:
        some = strangers.first(order[:count])
        images, texts = torch.cat([known.images, some.images]), torch.cat([known.texts, some.texts])
        image_ids = torch.cat([known.image_ids, torch.full((len(some.images),), nobody)])
        text_ids = torch.cat([known.text_ids, torch.full((len(some.texts),), nobody)])
        yield (
            count,
            {
                "text_to_image": retrieval_metrics(known.texts, images, known.text_ids, image_ids),
                "image_to_text": retrieval_metrics(known.images, texts, known.image_ids, text_ids),
            },
        )
