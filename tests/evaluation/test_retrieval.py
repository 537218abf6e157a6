import itertools

import pytest
import torch
from expected_retrieval import expected

from components.errors import DataError
from components.evaluation.comparison import retrieval_hits
from components.evaluation.retrieval import retrieval_metrics, retrieval_results
from components.evaluation.retrieval_result import RetrievalResult


def over_all_orders(row, relevant, top_k=(1, 2, 5)):
    """R@k, AP and INP of one query, as means over every order of its gallery, each sorted stably by score."""
    sums, orders = [0.0] * (len(top_k) + 2), 0
    for order in itertools.permutations(range(len(row))):
        ranked = sorted(order, key=lambda j: -row[j])
        ranks = [place for place, j in enumerate(ranked, start=1) if relevant[j]]
        precision = sum(found / rank for found, rank in enumerate(ranks, start=1)) / len(ranks)
        values = [*(float(ranks[0] <= k) for k in top_k), precision, len(ranks) / ranks[-1]]
        sums, orders = [a + b for a, b in zip(sums, values, strict=True)], orders + 1
    return [value / orders for value in sums]


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


@pytest.mark.parametrize(
    ("row", "relevant"),
    [
        ([3, 2, 2, 2, 1, 0], [0, 1, 0, 0, 1, 0]),  # the first is tied
        ([3, 2, 2, 2, 2, 0], [1, 1, 0, 1, 0, 0]),  # the last ones are
        ([3, 3, 2, 1, 1, 1], [0, 1, 1, 1, 0, 1]),  # both
        ([1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0]),  # all, as from an encoder that has died
        ([3, 3, 2, 2, 1, 1], [1, 1, 0, 0, 1, 1]),  # only pictures of a kind
        ([6, 5, 4, 3, 2, 1], [0, 1, 0, 1, 0, 0]),
    ],
)
def test_equal_scores_count_as_on_average_over_all_orders(row, relevant):
    scores, people = torch.tensor([row], dtype=torch.float64), torch.tensor(relevant)
    result = retrieval_results(torch.ones(1, 1).double(), scores.T, torch.tensor([1]), people, normalize=False)
    found = [*(result.hits(k).item() for k in (1, 2, 5)), result.average_precision.item()]
    truth = over_all_orders(row, relevant)
    assert [*found, result.inverse_negative_penalty.item()] == pytest.approx(truth, rel=1e-12)
    ((*counted, tied),) = expected(scores, [1], relevant, top_k=(1, 2, 5))
    assert counted == pytest.approx(truth, rel=1e-12)
    pairs = itertools.permutations(zip(row, relevant, strict=True), 2)
    mixed = any(a == b and wanted > other for (a, wanted), (b, other) in pairs)
    assert tied == mixed == result.tied.item()
    assert result.metrics()["tied_share"] == 100 * mixed


@pytest.mark.parametrize(("queries", "block"), [(60, None), (1, None), (60, 49)])
@pytest.mark.parametrize("length", [0.0, 1.0])
def test_an_encoder_that_gives_every_picture_one_vector_is_at_chance(queries, block, length):
    generator = torch.Generator().manual_seed(1)
    asked, constant = torch.randn(queries, 37, generator=generator), torch.randn(37, generator=generator)
    query_ids, gallery_ids = torch.arange(queries) % 25, torch.arange(50) // 2
    metrics = retrieval_metrics(asked, (length * constant).repeat(50, 1), query_ids, gallery_ids, block=block)
    assert metrics["R@1"] == pytest.approx(100 * 2 / 50)
    assert metrics["R@10"] == pytest.approx(100 * (1 - 40 / 50 * 39 / 49))
    assert metrics["tied_share"] == 100


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
    truth = expected(queries @ gallery.T, query_ids, gallery_ids)
    assert result.valid.tolist() == [entry is not None for entry in truth]
    assert not result.valid.all()
    found = torch.tensor([entry for entry in truth if entry is not None], dtype=torch.float64)
    hits = torch.stack([result.hits(k) for k in (1, 5, 10)], dim=1)
    torch.testing.assert_close(hits[result.valid], found[:, :3])
    torch.testing.assert_close(result.average_precision[result.valid], found[:, 3])
    torch.testing.assert_close(result.inverse_negative_penalty[result.valid], found[:, 4])
    metrics = result.metrics()
    assert metrics["R@5"] == pytest.approx(100 * found[:, 1].mean().item())
    assert metrics["tied_share"] == pytest.approx(100 * found[:, 5].mean().item())
    assert (metrics["tied_share"] > 20) == bool(levels)
    assert (metrics["queries"], metrics["queries_without_match"]) == (len(found), 40 - len(found))


def test_a_table_of_results_keeps_what_is_tied():
    queries, gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    result = retrieval_results(queries, gallery, torch.tensor([4, 5]), torch.tensor([4, 6, 6]))
    table = {name: column.tolist() for name, column in result.columns().items()}
    read = RetrievalResult.from_columns(table)
    assert read.metrics() == result.metrics()
    assert read.metrics()["R@1"] == 50
    assert (read.found.tolist(), result.found.tolist()) == ([-1, -1], [0, 2])
    assert retrieval_hits(table, 1).tolist() == pytest.approx([50, float("nan")], nan_ok=True)
    early = {"first_rank": [1, 3, 0]}  # as written before ties were counted
    assert retrieval_hits(early, 1).tolist() == pytest.approx([100, 0, float("nan")], nan_ok=True)


def test_the_order_of_the_gallery_does_not_matter_even_with_duplicates():
    generator = torch.Generator().manual_seed(3)
    queries = torch.randint(-1, 2, (20, 3), generator=generator).float() + 0.5
    gallery = torch.randint(-1, 2, (60, 3), generator=generator).float() + 0.5
    query_ids, gallery_ids = torch.arange(20) % 5, torch.arange(60) % 5
    order = torch.randperm(60, generator=generator)
    plain = retrieval_metrics(queries, gallery, query_ids, gallery_ids, normalize=False)
    shuffled = retrieval_metrics(queries, gallery[order], query_ids, gallery_ids[order], normalize=False)
    assert plain == pytest.approx(shuffled, rel=1e-12)


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
