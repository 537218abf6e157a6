import faiss
import numpy as np
import pyarrow as pa
import pytest

from components.errors import DataError
from components.search import approximate
from components.search.approximate import ApproximateIndex, build
from components.search.filters import Filter
from components.search.gallery.reading import Gallery
from components.search.gallery.writing import switch, write_version
from components.search.searcher import Query, Searcher
from components.search.vectors import Vectors

SIZE, DIMENSION = 3000, 16


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    """Three hundred people, ten pictures each."""
    random = np.random.default_rng(0)
    people = random.standard_normal((SIZE // 10, DIMENSION)).repeat(10, axis=0)
    return unit(people + 0.7 * random.standard_normal((SIZE, DIMENSION))).astype(np.float16)


@pytest.fixture(scope="module")
def sentences(vectors):
    random = np.random.default_rng(1)
    return unit(vectors[::15].astype(np.float32) + 0.2 * random.standard_normal((SIZE // 15, DIMENSION)))


@pytest.fixture(scope="module")
def built(vectors, sentences, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "approximate.index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "MIN_SIZE", 1000)
        facts = build(path, vectors, sentences)
    return path, facts


def share_found(found, exact):
    return np.mean([np.isin(a.rows, b.rows).mean() for a, b in zip(exact, found, strict=True)])


def test_the_recall_that_is_recorded_is_the_one_that_is_seen(vectors, sentences, built):
    path, facts = built
    assert facts["recall@10"].keys() == {"pictures", "sentences"}
    assert 1 <= facts["lists_read"] < facts["lists"]  # else nothing is saved
    index = ApproximateIndex.open(path, Vectors(vectors), facts)
    held_out = sentences[1::2]
    seen = share_found(index.nearest(held_out, 10), Vectors(vectors).nearest(held_out, 10))
    assert seen == pytest.approx(facts["recall@10"]["sentences"], abs=1e-4)
    assert seen > 0.95


def test_a_picture_does_not_count_as_found_by_itself(vectors, built):
    path, facts = built
    chosen = np.sort(np.random.default_rng(0).choice(SIZE, 400, replace=False))[1::2]
    queries = vectors[chosen].astype(np.float32)
    truth = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1, kind="stable")
    assert all(best[0] == row for best, row in zip(truth, chosen, strict=True))
    index = faiss.read_index(str(path))
    effort = approximate.Effort(facts["lists_read"], facts["candidates"])
    seen = np.mean(
        [
            np.isin(best[1:11], rows)
            for best, rows in zip(truth, approximate._search(index, queries, effort), strict=True)
        ]
    )
    assert seen == pytest.approx(facts["recall@10"]["pictures"], abs=1e-4)


def test_the_effort_is_the_least_that_surely_reaches_the_target(vectors, sentences, built):
    """By brute force over all efforts: on the half of the queries that it is adjusted by, less two standard errors."""
    path, facts = built
    index = faiss.read_index(str(path))
    samples = approximate._samples(vectors, sentences)

    def reaches(lists, candidates):
        for sample in samples:
            found = approximate._search(index, sample.queries[::2], approximate.Effort(lists, 4000))[:, :candidates]
            each = np.array([np.isin(a, b).mean() for a, b in zip(sample.truth[::2], found, strict=True)])
            if each.mean() - 2 * each.std() / len(each) ** 0.5 < 0.98:
                return False
        return True

    chosen = facts["lists_read"], facts["candidates"]
    assert reaches(*chosen)
    cost = SIZE * chosen[0] / facts["lists"] + 100 * chosen[1]
    for count in approximate.CANDIDATES:  # lists are tried in a ratio of 1.2
        lists = int((0.8 * cost - 100 * count) * facts["lists"] / SIZE)
        assert lists < 1 or not reaches(min(lists, facts["lists"]), count)


def test_an_index_of_the_former_kind_is_read_and_an_unknown_one_is_one_line(vectors, sentences, tmp_path):
    former = faiss.index_factory(DIMENSION, "IVF64,SQ8", faiss.METRIC_INNER_PRODUCT)
    former.train(vectors.astype(np.float32))
    former.add(vectors.astype(np.float32))
    path = tmp_path / "former.index"
    faiss.write_index(former, str(path))
    facts = {"kind": "faiss inverted lists", "faiss": "1.15.1", "lists": 64, "lists_read": 40, "recall@10": {}}
    exact = Vectors(vectors)
    found = ApproximateIndex.open(path, exact, facts).nearest(sentences, 10)
    assert share_found(found, exact.nearest(sentences, 10)) > 0.98
    with pytest.raises(
        DataError, match=r"of the kind 'a graph', which this version does not know.*make the gallery again"
    ):
        ApproximateIndex.open(path, exact, {**facts, "kind": "a graph"})


@pytest.mark.parametrize("dimension", [18, 7])
def test_vectors_need_not_be_divisible_by_four(dimension, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "MIN_SIZE", 1000)
    values = unit(np.random.default_rng(3).standard_normal((1500, dimension)) + 1)
    exact = Vectors(values)
    facts = build(tmp_path / "index", values)
    found = ApproximateIndex.open(tmp_path / "index", exact, facts).nearest(values[:100], 10)
    assert share_found(found, exact.nearest(values[:100], 10)) > 0.95


@pytest.mark.parametrize("count", [3, 40])
def test_fewer_vectors_than_codes_are_learnt_from_and_no_product_is_changed(count, monkeypatch):
    monkeypatch.setattr(approximate, "_PER_LIST", 3)
    values = unit(np.random.default_rng(4).standard_normal((count, 48)))
    index = approximate._trained(values)
    rotated = index.chain.at(0).apply(values)
    assert rotated.shape == values.shape
    np.testing.assert_allclose(rotated @ rotated.T, values @ values.T, atol=1e-5)


def test_scores_and_order_are_those_of_exact_search(vectors, sentences, built):
    path, facts = built
    exact = Vectors(vectors)
    for one, query in zip(
        ApproximateIndex.open(path, exact, facts).nearest(sentences[:20], 10), sentences, strict=False
    ):
        again = exact.rank(query, one.rows, 10)
        np.testing.assert_array_equal(one.rows, again.rows)
        np.testing.assert_array_equal(one.scores, again.scores)
    everything = ApproximateIndex.open(path, exact, {**facts, "lists_read": facts["lists"], "candidates": SIZE})
    found = everything.nearest(sentences, 10)
    assert share_found(found, exact.nearest(sentences, 10)) == 1


@pytest.mark.parametrize("share", [0.6, 0.05])
def test_a_filter_leaves_k_of_those_allowed(vectors, sentences, built, share):
    path, facts = built
    among = np.random.default_rng(2).random(SIZE) < share
    exact = Vectors(vectors).nearest(sentences, 10, among)
    found = ApproximateIndex.open(path, Vectors(vectors), facts).nearest(sentences, 10, among)
    assert all(len(one.rows) == 10 and among[one.rows].all() for one in found)
    assert share_found(found, exact) > (0.95 if share > 0.2 else 0.9999)


def test_more_are_found_than_the_lists_hold(vectors, sentences, built):
    path, facts = built
    index = ApproximateIndex.open(path, Vectors(vectors), {**facts, "lists_read": 1})
    assert [len(one.rows) for one in index.nearest(sentences[:3], 2000)] == [2000] * 3


def test_a_gallery_is_searched_by_its_index_unless_exactly(vectors, built, tmp_path, monkeypatch):
    """Of an index that reads one list, the answers differ from the exact ones: which of the two was asked is seen."""
    monkeypatch.setattr(approximate, "MIN_SIZE", 1000)
    rows = pa.table({"id": [f"{row:016x}" for row in range(SIZE)], "camera": [row % 2 for row in range(SIZE)]})
    model = {"name": "m", "digest": "d"}

    class Encoder:
        name, digest, dimension = "m", "d", DIMENSION

        def sentences(self, texts):
            return unit(np.random.default_rng([len(texts)]).standard_normal((len(texts), DIMENSION)))

    def index_of_one_list(path, values):
        return {**build(path, values), "lists_read": 1}

    version = write_version(
        tmp_path, [vectors], rows, dimension=DIMENSION, dtype="float16", model=model, settings={}, source={},
        build_index=index_of_one_list,
    )  # fmt: skip
    switch(tmp_path, version)
    searcher = Searcher(Gallery.open(tmp_path), Encoder())
    queries = [Query((str(number),)) for number in range(40)]
    exact = Vectors(vectors).nearest(searcher.embed(queries), 10)
    answers = searcher.search(queries, exact=True)
    assert [[match.row for match in found] for found in answers] == [one.rows.tolist() for one in exact]
    fast = searcher.search(queries)
    assert {len(found) for found in fast} == {10}
    assert [[match.row for match in found] for found in fast] != [one.rows.tolist() for one in exact]
    filtered = searcher.search(queries, where=Filter.parse("camera=1"))
    assert all(match.metadata["camera"] == 1 for found in filtered for match in found)


def test_a_small_gallery_gets_no_index_and_a_wrong_file_is_one_line(vectors, built, tmp_path):
    path, facts = built
    assert build(tmp_path / "none.index", vectors)["kind"] == "none"
    assert not (tmp_path / "none.index").exists()
    with pytest.raises(DataError, match=r"is of 3,000 vectors of 16 numbers, the gallery has \(2000, 16\)"):
        ApproximateIndex.open(path, Vectors(vectors[:2000]), facts)
    (tmp_path / "broken.index").write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable approximate index"):
        ApproximateIndex.open(tmp_path / "broken.index", Vectors(vectors), facts)
