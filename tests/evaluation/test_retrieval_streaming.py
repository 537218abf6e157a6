"""Blocks, masks, directions: against the definitions in float64, one query at a time."""

import pytest
import torch
from expected_retrieval import expected
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import DataError, ParameterError
from components.evaluation.retrieval import both_directions, retrieval_metrics, retrieval_results


def problem(seed, queries=60, gallery=150, identities=20, levels=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q, g = (torch.randn(n, 6, generator=generator, dtype=dtype) for n in (queries, gallery))
    if levels:  # whole numbers: many scores are equal, and none is rounded
        q, g = ((levels * t).round().clamp(-levels, levels) for t in (q, g))
    query_ids = torch.randint(0, identities + 2, (queries,), generator=generator)  # two that nobody in the gallery has
    return q, g, query_ids, torch.randint(0, identities, (gallery,), generator=generator)


def agree(result, truth):
    assert result.valid.tolist() == [entry is not None for entry in truth]
    found = torch.tensor([entry for entry in truth if entry is not None], dtype=torch.float64)
    hits = torch.stack([result.hits(k) for k in (1, 5, 10)], dim=1)
    columns = (*hits.T, result.average_precision, result.inverse_negative_penalty)
    for place, column in enumerate(columns):
        if len(found):
            torch.testing.assert_close(column[result.valid], found[:, place], rtol=1e-11, atol=0)
        assert not column[~result.valid].any()
    assert result.tied[result.valid].tolist() == [entry[-1] for entry in truth if entry is not None]
    assert not result.tied[~result.valid].any()


def first_found(scores, query_ids, gallery_ids, left_out):
    """The row with the highest score, the first of equals, without the pictures that are left out; -1 without one."""
    gone = (query_ids[:, None] == gallery_ids) & (left_out[0][:, None] == left_out[1]) if left_out else False
    scores = torch.where(torch.as_tensor(gone), -torch.inf, scores)
    return torch.where(scores.isinf().all(1), -1, scores.argmax(1))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk=st.integers(1, 70),
    block=st.one_of(st.none(), st.integers(1, 160)),
    levels=st.sampled_from([None, 1, 2]),
    identities=st.sampled_from([1, 3, 20, 200]),
    mask=st.booleans(),
)
def test_any_blocks_any_ties_and_any_mask_give_what_the_definitions_say(seed, chunk, block, levels, identities, mask):
    q, g, query_ids, gallery_ids = problem(seed, 40, 90, identities, levels)
    keys = (torch.arange(40) % 7, torch.arange(90) % 7) if mask else None
    result = retrieval_results(q, g, query_ids, gallery_ids, chunk=chunk, block=block, normalize=False, leave_out=keys)
    agree(result, expected(q @ g.T, query_ids, gallery_ids, keys))
    assert torch.equal(result.found, first_found(q @ g.T, query_ids, gallery_ids, keys))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunk_and_block_do_not_change_the_numbers(dtype):
    arguments = problem(5, 300, 1000, 60, levels=2, dtype=dtype)
    whole = retrieval_metrics(*arguments, normalize=False, chunk=1000, block=1000)
    for chunk, block in ((1, None), (64, None), (64, 128), (300, 7), (33, 999), (256, 1001)):
        assert retrieval_metrics(*arguments, normalize=False, chunk=chunk, block=block) == pytest.approx(
            whole, rel=1e-12
        )


def test_an_identity_with_hundreds_of_pictures_is_counted_by_sorting_and_agrees():
    q, g, query_ids, gallery_ids = problem(2, 30, 600, 3, levels=2)
    agree(
        retrieval_results(q, g, query_ids, gallery_ids, normalize=False, chunk=8, block=250),
        expected(q @ g.T, query_ids, gallery_ids),
    )


def test_the_captions_own_picture_can_be_left_out():
    """Query 0 has two pictures of its person, 1 only its own."""
    gallery = torch.eye(3)
    query_ids, gallery_ids = torch.tensor([4, 5]), torch.tensor([4, 4, 5])
    own = (torch.tensor([0, 2]), torch.arange(3))
    queries = torch.tensor([[0.9, 0.1, 0.3], [0.0, 0.1, 0.9]])
    plain = retrieval_metrics(queries, gallery, query_ids, gallery_ids)
    assert (plain["R@1"], plain["queries"], plain["queries_without_match"]) == (100, 2, 0)
    # Without its own picture the first query's other one comes behind the stranger: rank 2 of 2.
    apart = retrieval_metrics(queries, gallery, query_ids, gallery_ids, leave_out=own)
    assert (apart["R@1"], apart["mAP"], apart["queries"], apart["queries_without_match"]) == (0, 50, 1, 1)


def test_both_directions_are_the_metrics_and_the_metrics_of_the_reverse():
    texts, images, text_ids, image_ids = problem(9)
    found = both_directions(texts, images, text_ids, image_ids, chunk=16, block=40)
    assert found["text_to_image"] == pytest.approx(retrieval_metrics(texts, images, text_ids, image_ids))
    assert found["image_to_text"] == pytest.approx(retrieval_metrics(images, texts, image_ids, text_ids))
    assert found["text_to_image"]["queries_without_match"] > 0
    normal = torch.nn.functional.normalize
    hits = [entry[0] for entry in expected(normal(images) @ normal(texts).T, image_ids, text_ids) if entry]
    assert found["image_to_text"]["R@1"] == pytest.approx(100 * sum(hits) / len(hits))


def test_half_precision_embeddings_are_compared_in_float32():
    q, g, query_ids, gallery_ids = problem(4, levels=2, dtype=torch.float32)
    plain = retrieval_metrics(q, g, query_ids, gallery_ids, normalize=False)
    assert retrieval_metrics(q.bfloat16(), g.half(), query_ids, gallery_ids, normalize=False) == plain


@pytest.mark.parametrize("size", [{"chunk": 0}, {"block": 0}, {"chunk": -3}])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ParameterError, match="at least 1"):
        retrieval_metrics(*problem(1), **size)


def test_keys_of_another_length_are_refused():
    with pytest.raises(DataError, match="one key per query"):
        retrieval_metrics(*problem(1), leave_out=(torch.arange(60), torch.arange(149)))
