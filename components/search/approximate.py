"""An approximate index for galleries of hundreds of thousands of pictures and more: FAISS's inverted lists.

The vectors are divided among lists by their nearest of a few thousand centres, in 8 bits per number. A query reads the lists whose
centres are nearest to it, and the best found there are ranked by the gallery's own vectors, as in exact search: scores are the
exact ones, and what can be wrong is that a picture was not found.

How many lists are read is chosen when the index is built: as few as give TARGET of the ten best, of pictures and of sentences
apart. What was reached is measured with other queries than those it was chosen by, and recorded in the gallery.

`python benchmarks/search.py --libraries` compares FAISS's inverted lists with usearch's graph.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError
from components.search.vectors import Ranked, Vectors

KIND = "faiss inverted lists"
MIN_SIZE = 10_000
"""Of a smaller gallery no index is built: exact search of it takes a few milliseconds."""
K, TARGET = 10, 0.98
"""The recall that is sought: of the K best, the share that is found."""
CANDIDATES = 50
"""Found per query by FAISS, then ranked exactly; four for each picture that is asked for, if that is more."""
QUERIES = 200
"""Of each kind, by which the index is adjusted and measured: one half each."""
_PER_LIST = 40  # vectors that train a centre
_ITERATIONS = 10  # of k-means
_BLOCK = 65536
_FEW = 0.2  # a filter that leaves fewer than this share is searched exactly
_SEED = 0

SAMPLE_SENTENCES = tuple(
    f"a {person} in a {colour} {garment}"
    for person in ("man", "woman")
    for colour in ("black", "white", "grey", "red", "blue", "green", "yellow", "brown", "pink", "purple")
    for garment in (
        "coat",
        "shirt",
        "jacket",
        "dress",
        "hat",
        "sweater",
        "suit",
        "pair of trousers",
        "scarf",
        "backpack",
    )
)
"""Sentences by which the recall is measured."""


def build(path: Path, vectors: NDArray[np.floating], sentences: NDArray[np.float32] | None = None) -> dict[str, Any]:
    """Build the index of unit vectors (N, D) and write it to `path`; return the facts that the gallery records.

    sentences: vectors (Q, D) of sentences; without them the recall is measured with pictures alone. Uses every core that the
    process may use. Of fewer than MIN_SIZE vectors no file is written, and the facts say so.
    """
    if len(vectors) < MIN_SIZE:
        return {
            "kind": "none",
            "reason": f"fewer than {MIN_SIZE:,} pictures, which exact search takes milliseconds for",
        }
    import faiss

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(cores)
    try:
        index = _trained(vectors)
        for begin in range(0, len(vectors), _BLOCK):
            index.add(np.asarray(vectors[begin : begin + _BLOCK], dtype=np.float32))
        faiss.write_index(index, str(path))
        lists, measured = _adjusted(index, vectors, sentences)
    finally:
        faiss.omp_set_num_threads(before)
    return {
        "kind": KIND,
        "faiss": faiss.__version__,
        "lists": index.nlist,
        "lists_read": lists,
        f"recall@{K}": measured,
    }


class ApproximateIndex:
    """Searches the vectors of a gallery by its index. Any thread may search."""

    def __init__(self, index: Any, vectors: Vectors, lists_read: int) -> None:
        self._index, self._vectors, self._lists = index, vectors, lists_read

    @classmethod
    def open(cls, path: Path, vectors: Vectors, facts: Mapping[str, Any]) -> "ApproximateIndex":
        """Open the index of a gallery; facts: what `build` returned. Raises DataError where it does not belong to the vectors."""
        import faiss

        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            lists = int(facts["lists_read"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
            raise DataError(f"{path}: not a readable approximate index ({reason}); make the gallery again") from error
        if (index.ntotal, index.d) != vectors.values.shape:
            raise DataError(
                f"{path}: is of {index.ntotal:,} vectors of {index.d} numbers, the gallery has {vectors.values.shape}; make the "
                "gallery again"
            )
        return cls(index, vectors, lists)

    def nearest(self, queries: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None) -> list[Ranked]:
        """As `Vectors.nearest`, approximately. A filter that leaves few is searched exactly, and so is what finds fewer than k."""
        allowed = len(self._vectors) if among is None else int(among.sum())
        if allowed < max(_FEW * len(self._vectors), k):
            return self._vectors.nearest(queries, k, among)
        found = _search(self._index, queries, max(CANDIDATES, 4 * k), self._lists, among)
        ranked = [self._vectors.rank(query, rows[rows >= 0], k) for query, rows in zip(queries, found, strict=True)]
        return [
            one if len(one.rows) >= k else self._vectors.nearest(query[None], k, among)[0]
            for query, one in zip(queries, ranked, strict=True)
        ]


def _trained(vectors: NDArray[np.floating]) -> Any:
    """An empty index whose centres are learnt from some of the vectors."""
    import faiss

    lists = int(min(2 ** round(np.log2(4 * np.sqrt(len(vectors)))), 2 ** np.floor(np.log2(len(vectors) / _PER_LIST))))
    index: Any = faiss.index_factory(vectors.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = _ITERATIONS, _PER_LIST, _SEED
    count = min(len(vectors), _PER_LIST * lists)
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(vectors), count, replace=False))
    index.train(np.asarray(vectors[chosen], dtype=np.float32))
    return index


def _adjusted(
    index: Any, vectors: NDArray[np.floating], sentences: NDArray[np.float32] | None
) -> tuple[int, dict[str, float]]:
    """How many lists are to be read, and the recall of each kind of query that this gives."""
    exact = Vectors(vectors)
    chosen = np.random.default_rng(_SEED).choice(len(vectors), QUERIES, replace=False)
    kinds = {"pictures": np.asarray(vectors[np.sort(chosen)], dtype=np.float32)}
    if sentences is not None and len(sentences) > 1:
        kinds["sentences"] = np.ascontiguousarray(sentences[:QUERIES], dtype=np.float32)
    # A picture finds itself, which is no merit: one more is sought, and the first left out.
    truth = {
        kind: [ranked.rows[kind == "pictures" :][:K] for ranked in exact.nearest(queries, K + 1)]
        for kind, queries in kinds.items()
    }

    def recall(lists: int, begin: int) -> dict[str, float]:
        """Of every second query, from `begin`."""
        return {
            kind: _recall(_search(index, queries[begin::2], CANDIDATES, lists), truth[kind][begin::2])
            for kind, queries in kinds.items()
        }

    lists = 1
    while lists < index.nlist and min(recall(lists, 0).values()) < TARGET:
        lists = min(index.nlist, max(lists + 1, round(lists * 1.25)))
    return lists, {kind: round(value, 4) for kind, value in recall(lists, 1).items()}


def _recall(found: NDArray[np.int64], truth: Sequence[NDArray[np.int64]]) -> float:
    """The share of the true rows that are among the candidates, which are then ranked exactly."""
    return float(np.mean([np.isin(rows, candidates).mean() for rows, candidates in zip(truth, found, strict=True)]))


def _search(
    index: Any, queries: NDArray[np.float32], count: int, lists: int, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The candidates of each query, (Q, count), -1 where there are fewer."""
    import faiss

    settings: Any = faiss.SearchParametersIVF()
    settings.nprobe = lists
    if among is not None:
        bits = np.packbits(among, bitorder="little")
        settings.sel = faiss.IDSelectorBitmap(len(among), faiss.swig_ptr(bits))
    found: NDArray[np.int64] = index.search(np.ascontiguousarray(queries), count, params=settings)[1]
    return found
