import numpy as np
import pytest
import torch

from components.errors import ParameterError
from components.evaluation.retrieval import both_directions
from components.search.distractors import EmbeddedPeople, with_strangers


def people(count: int, seed: int, first: int = 0) -> EmbeddedPeople:
    """Two pictures of each of `count` people, and two captions of each picture."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 12, generator=random)
    images = torch.nn.functional.normalize(
        centres.repeat_interleave(2, 0) + torch.randn(2 * count, 12, generator=random), dim=1
    )
    texts = torch.nn.functional.normalize(
        images.repeat_interleave(2, 0) + 0.4 * torch.randn(4 * count, 12, generator=random), dim=1
    )
    identity = torch.arange(first, first + count)
    return EmbeddedPeople(
        images,
        identity.repeat_interleave(2),
        texts,
        identity.repeat_interleave(4),
        torch.arange(2 * count).repeat_interleave(2),
    )


def hits(queries, gallery, query_ids, gallery_ids, k):
    """R@k in percent, one query after the other."""
    found = []
    for query, identity in zip(queries.numpy(), query_ids.tolist(), strict=True):
        best = np.argsort(-(gallery.numpy() @ query), kind="stable")[:k]
        found.append(identity in [gallery_ids[place] for place in best])
    return 100 * np.mean(found)


def test_strangers_join_the_gallery_of_both_directions_and_are_no_queries():
    known, strangers = people(8, 0), people(30, 1)  # the same numbers are other people
    results = dict(with_strangers(known, strangers, [0, 60]))
    assert results[0] == both_directions(known.texts, known.images, known.text_ids, known.image_ids)
    images, texts = torch.cat([known.images, strangers.images]), torch.cat([known.texts, strangers.texts])
    image_ids, text_ids = [*known.image_ids.tolist(), *[None] * 60], [*known.text_ids.tolist(), *[None] * 120]
    for k in (1, 5):
        assert results[60]["text_to_image"][f"R@{k}"] == pytest.approx(
            hits(known.texts, images, known.text_ids, image_ids, k)
        )
        assert results[60]["image_to_text"][f"R@{k}"] == pytest.approx(
            hits(known.images, texts, known.image_ids, text_ids, k)
        )
    assert results[60]["text_to_image"]["queries"] == 32


def test_more_strangers_never_help():
    found = [
        metrics["text_to_image"]["mAP"] for _, metrics in with_strangers(people(8, 0), people(30, 1), [0, 7, 20, 60])
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_more_strangers_than_there_are_is_one_line():
    with pytest.raises(ParameterError, match="there are 60 pictures of strangers"):
        dict(with_strangers(people(2, 0), people(30, 1), [61]))
