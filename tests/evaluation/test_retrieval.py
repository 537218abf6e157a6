import pytest
import torch

from components.errors import DataError
from components.evaluation.retrieval import retrieval_metrics, retrieval_results


def brute_force(scores, query_ids, gallery_ids):
    """The definitions, one query at a time, ties put in the query's favour: (first rank, AP, INP) or None."""
    results = []
    for row, identity in zip(scores.tolist(), query_ids.tolist(), strict=True):
        relevant = [other == identity for other in gallery_ids.tolist()]
        order = sorted(range(len(row)), key=lambda j: (-row[j], not relevant[j]))
        ranks = [place for place, j in enumerate(order, start=1) if relevant[j]]
        if not ranks:
            results.append(None)
            continue
        precision = sum(found / rank for found, rank in enumerate(ranks, start=1)) / len(ranks)
        results.append((ranks[0], precision, len(ranks) / ranks[-1]))
    return results


def one_dimensional(matches):
    """A gallery whose ranking for the one query is `matches`."""
    angles = torch.linspace(0, 1, len(matches))
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([1]), torch.tensor(matches)


def test_the_worked_example():
    metrics = retrieval_metrics(*one_dimensional([0, 1, 0, 1, 1]))
    assert metrics["mAP"] == pytest.approx(100 * (1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert metrics["mINP"] == pytest.approx(60)
    assert (metrics["R@1"], metrics["R@5"], metrics["R@10"]) == (0, 100, 100)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_metrics_equal_brute_force_with_and_without_ties(levels, chunk):
    generator = torch.Generator().manual_seed(11)
    queries, gallery = torch.randn(40, 6, generator=generator), torch.randn(90, 6, generator=generator)
    if levels:  # whole numbers, so that many scores are equal
        queries, gallery = (torch.randint(-1, 2, t.shape, generator=generator).float() for t in (queries, gallery))
    query_ids = torch.randint(0, 14, (40,), generator=generator)
    gallery_ids = torch.randint(0, 12, (90,), generator=generator)
    result = retrieval_results(queries, gallery, query_ids, gallery_ids, chunk=chunk, normalize=False)
    expected = brute_force(queries @ gallery.T, query_ids, gallery_ids)
    assert result.valid.tolist() == [entry is not None for entry in expected]
    assert not result.valid.all()
    found = [entry for entry in expected if entry is not None]
    assert result.first_rank[result.valid].tolist() == [entry[0] for entry in found]
    columns = torch.tensor([entry[1:] for entry in found], dtype=torch.float64)
    torch.testing.assert_close(result.average_precision[result.valid], columns[:, 0])
    torch.testing.assert_close(result.inverse_negative_penalty[result.valid], columns[:, 1])
    metrics = result.metrics()
    assert metrics["R@5"] == pytest.approx(100 * sum(entry[0] <= 5 for entry in found) / len(found))
    assert (metrics["queries"], metrics["queries_without_match"]) == (len(found), 40 - len(found))


def test_the_order_of_the_gallery_does_not_matter_even_with_duplicates():
    generator = torch.Generator().manual_seed(3)
    queries = torch.randint(-1, 2, (20, 3), generator=generator).float() + 0.5
    gallery = torch.randint(-1, 2, (60, 3), generator=generator).float() + 0.5
    query_ids, gallery_ids = torch.arange(20) % 5, torch.arange(60) % 5
    order = torch.randperm(60, generator=generator)
    plain = retrieval_metrics(queries, gallery, query_ids, gallery_ids, normalize=False)
    shuffled = retrieval_metrics(queries, gallery[order], query_ids, gallery_ids[order], normalize=False)
    assert plain == shuffled


def test_cosine_is_used_so_lengths_do_not_matter():
    generator = torch.Generator().manual_seed(3)
    queries, gallery = torch.randn(9, 4, generator=generator), torch.randn(30, 4, generator=generator)
    ids = torch.arange(9), torch.arange(30) % 9
    scaled = gallery * torch.rand(30, 1, generator=generator)
    assert retrieval_metrics(queries.double(), gallery.double(), *ids) == pytest.approx(
        retrieval_metrics(5 * queries, scaled, *ids)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, g, a, b: (q[:0], g, a[:0], b), "0 queries"),
        (lambda q, g, a, b: (q, g[:, :1], a, b), r"\(Q, D\) and \(G, D\)"),
        (lambda q, g, a, b: (q, g, a, b[:-1]), "one identity per"),
        (lambda q, g, a, b: (q * torch.nan, g, a, b), "not finite"),
        (lambda q, g, a, b: (q, g, a + 100, b), "no query has a picture"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(DataError, match=message):
        retrieval_metrics(*change(*one_dimensional([0, 1, 1])))
