import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from components.errors import DataError, ParameterError
from components.search import vectors as module
from components.search.index import GalleryIndex
from components.search.vectors import Vectors


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a few vectors take several of everything."""
    for name, size in (("BLOCK", 100), ("CHUNK", 16), ("QUERIES", 4), ("_GATHER", 32)):
        monkeypatch.setattr(module, name, size)


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def brute_force(values, query, k, allowed=None):
    """Every product in float64, one after the other; a stable sort."""
    rows = [row for row in range(len(values)) if allowed is None or allowed[row]]
    scores = {row: float((values[row].astype(np.float64) * query.astype(np.float64)).sum()) for row in rows}
    best = sorted(rows, key=lambda row: -scores[row])[:k]
    return best, [scores[row] for row in best]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("share", [None, 0.5, 0.03])
def test_the_best_are_those_of_brute_force(dtype, share):
    random = np.random.default_rng(0)
    values = unit(random.standard_normal((357, 24)))
    values[200:240] = values[:40]  # equal pictures, far apart
    values = values.astype(dtype)
    allowed = None if share is None else random.random(357) < share
    queries = unit(random.standard_normal((6, 24)))
    for k in (1, 9, 500):
        found = Vectors(values).nearest(queries, k, allowed)
        for query, ranked in zip(queries, found, strict=True):
            rows, scores = brute_force(values, query, k, allowed)
            assert ranked.rows.tolist() == rows
            np.testing.assert_allclose(ranked.scores, scores, atol=1e-7)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_one_query_in_half_precision_finds_what_brute_force_finds(spread):
    """Also among pictures that are all alike: of 357, all differ from the best by less than the products' error."""
    random = np.random.default_rng(5)
    values = unit(1 + spread * random.standard_normal((357, 512))).astype(np.float16)
    for query in unit(1 + random.standard_normal((4, 512))):
        (found,) = Vectors(values).nearest(query[None], 9)
        rows, scores = brute_force(values, query, 9)
        assert found.rows.tolist() == rows
        np.testing.assert_allclose(found.scores, scores, atol=1e-7)


def test_a_product_is_wrong_by_no_more_than_is_reckoned_with():
    """For numbers of one sign and of falling size, which a sum in half precision would lose."""
    random = np.random.default_rng(6)
    for values in (np.abs(random.standard_normal((200, 512))), 2.0 ** -np.sort(12 * random.random((200, 512)))):
        halves = unit(values).astype(np.float16)
        queries = unit(values[::50] + 0.01)
        for query in queries:
            (scores,) = Vectors(halves)._scores(torch.from_numpy(query[None]), 0, 200).numpy()
            truth = halves.astype(np.float64) @ query.astype(np.float64)
            assert np.abs(scores - truth).max() <= module._error(torch.from_numpy(query[None]), halved=True)
        several = Vectors(halves)._scores(torch.from_numpy(queries), 0, 200).numpy()
        truth = queries.astype(np.float64) @ halves.T.astype(np.float64)
        assert np.abs(several - truth).max() <= module._error(torch.from_numpy(queries), halved=False)


def test_equal_vectors_are_in_the_order_of_the_gallery():
    corners = np.random.default_rng(1).integers(0, 2, (300, 4)).astype(np.float32) - 0.5  # 16 different ones
    queries = corners[:5]
    found = Vectors(corners).nearest(queries, 50)
    expected = GalleryIndex(torch.from_numpy(corners), range(300)).search(torch.from_numpy(queries), 50)
    assert [ranked.rows.tolist() for ranked in found] == expected.rows.tolist()


def test_chunks_and_company_change_nothing(monkeypatch):
    random = np.random.default_rng(2)
    values, queries = unit(random.standard_normal((500, 64))).astype(np.float16), unit(random.standard_normal((9, 64)))
    together = Vectors(values).nearest(queries, 20)
    monkeypatch.setattr(module, "BLOCK", 77)
    monkeypatch.setattr(module, "CHUNK", 501)
    for query, ranked in zip(queries, together, strict=True):
        alone = Vectors(values).nearest(query[None], 20)[0]
        np.testing.assert_array_equal(alone.rows, ranked.rows)
        np.testing.assert_array_equal(alone.scores, ranked.scores)


def test_a_memory_mapped_file_is_searched_as_the_array_is(tmp_path):
    values = unit(np.random.default_rng(3).standard_normal((200, 8))).astype(np.float16)
    np.save(tmp_path / "vectors.npy", values)
    mapped = Vectors(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    query = values[7:8].astype(np.float32)
    np.testing.assert_array_equal(mapped.nearest(query, 5)[0].rows, Vectors(values).nearest(query, 5)[0].rows)


def test_threads_that_wait_are_answered_by_one_reading(monkeypatch):
    random = np.random.default_rng(4)
    values, queries = unit(random.standard_normal((300, 16))), unit(random.standard_normal((9, 16)))
    alone = [Vectors(values).nearest(query[None], number + 1)[0] for number, query in enumerate(queries)]
    together, readings = Vectors(values), []
    search = together._search
    monkeypatch.setattr(together, "_search", lambda *asked: readings.append(len(asked[0])) or search(*asked))
    together._busy = True  # as if another thread were searching
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(together.nearest, query[None], number + 1) for number, query in enumerate(queries)]
        while len(together._waiting) < 9:
            time.sleep(0.001)
        with together._turn:
            together._busy = False
            together._turn.notify_all()
        found = [answer.result(timeout=60)[0] for answer in answers]
    assert readings == [9]
    for one, expected in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one.rows, expected.rows)
        np.testing.assert_array_equal(one.scores, expected.scores)


def test_a_search_that_fails_leaves_nobody_waiting(monkeypatch):
    values, fails = Vectors(np.eye(4, dtype=np.float32)), [True]
    search = values._search
    monkeypatch.setattr(values, "_search", lambda *asked: 1 / 0 if fails.pop() else search(*asked))
    fails[:] = [False, False, True]  # taken from the end
    values._busy = True
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(values.nearest, np.eye(4, dtype=np.float32)[row : row + 1], 1) for row in range(2)]
        while len(values._waiting) < 2:
            time.sleep(0.001)
        with values._turn:
            values._busy = False
            values._turn.notify_all()
        errors = [answer.exception(timeout=60) for answer in answers]
    assert sorted(error is None for error in errors) == [
        False,
        True,
    ]  # who searched for both, and who then searched itself


def test_nothing_and_wrong_input():
    empty = Vectors(np.empty((0, 4), np.float16))
    assert empty.nearest(np.ones((1, 4), np.float32), 3)[0].rows.tolist() == []
    values = Vectors(np.eye(4, dtype=np.float32))
    assert values.nearest(np.ones((1, 4), np.float32), 3, np.zeros(4, bool))[0].rows.tolist() == []
    with pytest.raises(ParameterError, match="k = 0"):
        values.nearest(np.ones((1, 4), np.float32), 0)
    with pytest.raises(ParameterError, match="another model"):
        values.nearest(np.ones((1, 5), np.float32), 1)
    with pytest.raises(DataError, match="float32 or float16 needed"):
        Vectors(np.ones((2, 2)))
