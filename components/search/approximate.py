"""An approximate index for galleries of tens of thousands of pictures and more: FAISS's inverted lists.

The vectors are divided among lists by their nearest of some centres, and kept there in 4 bits for every 4 numbers, after a rotation
that spreads their variance evenly over these fours (product quantisation). A query reads the lists whose centres are nearest to it,
many codes at once, and the candidates found there are ranked by the gallery's own vectors, as in exact search: scores are
the exact ones, and what can be wrong is that a picture was not found.

How many lists are read and how many candidates ranked is chosen when the index is built: what takes the least time of all that
gives TARGET of the ten best, of pictures and of sentences apart, with two standard errors to spare. What was reached is measured
with other queries than those it was chosen by, and recorded in the gallery.

`python benchmarks/search.py --libraries` compares this with other indexes of FAISS and with usearch's graph.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError
from components.search.vectors import Ranked, Vectors

KIND, FORMER_KIND = "faiss inverted lists, 4-bit product quantiser", "faiss inverted lists"
"""The former kept 8 bits per number, unrotated; it is still read."""
MIN_SIZE = 10_000
"""Of a smaller gallery no index is built: exact search of it takes a few milliseconds."""
K, TARGET = 10, 0.98
"""The recall that is sought: of the K best, the share that is found."""
CANDIDATES = (50, 100, 200, 500, 1000, 2000, 4000)
"""Numbers of candidates to choose from; ten for each picture that is asked for, if that is more."""
FORMER_CANDIDATES = 50
QUERIES = 400
"""Of each kind at most, by which the index is adjusted and measured: one half each."""
_PER_LIST = 40  # vectors that train a centre
_ITERATIONS = 10  # of k-means
_LEAST = 16  # vectors that FAISS learns codes of 4 bits from; a rotation, from as many as a vector has numbers
_BLOCK = 65536
_FEW = 0.2  # a filter that leaves fewer than this share is searched exactly
_RANKED = 100  # a candidate that is ranked takes the time of about as many codes that are read
_STEP = 1.2  # lists are tried in this ratio
_ERRORS = 2  # standard errors by which the recall must be above TARGET
_SEED = 0


class Effort(NamedTuple):
    """What a query takes: lists that are read, candidates that are ranked by their vectors."""

    lists: int
    candidates: int


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
    with _threads(cores):
        index = _trained(vectors)
        for begin in range(0, len(vectors), _BLOCK):
            index.add(np.asarray(vectors[begin : begin + _BLOCK], dtype=np.float32))
        faiss.write_index(index, str(path))
        samples = _samples(vectors, sentences)
        effort = _chosen(index, samples)
        measured = {sample.kind: np.isfinite(sample.places(index, effort, 1)).mean() for sample in samples}
    return {
        "kind": KIND,
        "faiss": faiss.__version__,
        "lists": _lists(index),
        "lists_read": effort.lists,
        "candidates": effort.candidates,
        f"recall@{K}": {kind: round(float(recall), 4) for kind, recall in measured.items()},
    }


class ApproximateIndex:
    """Searches the vectors of a gallery by its index. Any thread may search."""

    def __init__(self, index: Any, vectors: Vectors, effort: Effort) -> None:
        self._index, self._vectors, self._effort = index, vectors, effort

    @classmethod
    def open(cls, path: Path, vectors: Vectors, facts: Mapping[str, Any]) -> "ApproximateIndex":
        """Open the index of a gallery; facts: what `build` returned. Raises DataError where it does not belong to the vectors."""
        import faiss

        try:
            kind = facts["kind"]
            if kind not in (KIND, FORMER_KIND):
                raise ValueError(f"of the kind {kind!r}, which this version does not know")
            candidates = FORMER_CANDIDATES if kind == FORMER_KIND else facts["candidates"]
            effort = Effort(int(facts["lists_read"]), int(candidates))
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
            raise DataError(f"{path}: not a readable approximate index ({reason}); make the gallery again") from error
        if (index.ntotal, index.d) != vectors.values.shape:
            raise DataError(
                f"{path}: is of {index.ntotal:,} vectors of {index.d} numbers, the gallery has {vectors.values.shape}; make the "
                "gallery again"
            )
        return cls(index, vectors, effort)

    def nearest(self, queries: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None) -> list[Ranked]:
        """As `Vectors.nearest`, approximately. A filter that leaves few is searched exactly, and so is what finds fewer than k."""
        allowed = len(self._vectors) if among is None else int(among.sum())
        if allowed < max(_FEW * len(self._vectors), k):
            return self._vectors.nearest(queries, k, among)
        effort = self._effort._replace(candidates=max(self._effort.candidates, 10 * k))
        with _threads(1):  # those that ask together use the cores; FAISS's own would wait for one another
            found = _search(self._index, queries, effort, among)
        ranked = [self._vectors.rank(query, rows[rows >= 0], k) for query, rows in zip(queries, found, strict=True)]
        return [
            one if len(one.rows) >= k else self._vectors.nearest(query[None], k, among)[0]
            for query, one in zip(queries, ranked, strict=True)
        ]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let FAISS use so many threads for what this thread asks."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _trained(vectors: NDArray[np.floating]) -> Any:
    """An empty index whose rotation, centres and codes are learnt from some of the vectors."""
    import faiss

    size, dimension = vectors.shape
    lists = int(2 ** min(round(np.log2(np.sqrt(size))), np.floor(np.log2(size / _PER_LIST))))
    together = next(each for each in (4, 2, 1) if dimension % each == 0)
    parts = dimension // together
    chosen = np.sort(np.random.default_rng(_SEED).choice(size, min(size, _PER_LIST * lists), replace=False))
    sample = np.asarray(vectors[chosen], dtype=np.float32)
    sample = np.resize(sample, (max(len(sample), dimension, _LEAST), dimension))  # some again where there are too few
    inner: Any = faiss.index_factory(dimension, f"IVF{lists},PQ{parts}x4fsr", faiss.METRIC_INNER_PRODUCT)
    inner.cp.niter, inner.cp.max_points_per_centroid, inner.cp.seed = _ITERATIONS, _PER_LIST, _SEED
    index = faiss.IndexPreTransform(principal_rotation(sample, parts), inner)
    index.train(sample)
    return index


def principal_rotation(sample: NDArray[np.float32], parts: int) -> Any:
    """The rotation onto principal axes, dealt out so that the variance is spread as evenly as can be over `parts` of a vector.

    FAISS's own PCA also subtracts the mean, which would change the order of inner products: only its matrix is used.
    """
    import faiss

    dimension = sample.shape[1]
    pca: Any = faiss.PCAMatrix(dimension, dimension)
    pca.balanced_bins = parts
    pca.train(sample)
    rotation: Any = faiss.LinearTransform(dimension, dimension, False)
    faiss.copy_array_to_vector(faiss.vector_to_array(pca.A), rotation.A)
    rotation.is_trained = True
    return rotation


class _Sample(NamedTuple):
    """Queries of one kind (Q, D), and the rows (Q, K) of the best of each."""

    kind: str
    queries: NDArray[np.float32]
    truth: NDArray[np.int64]

    def places(self, index: Any, effort: Effort, half: int) -> NDArray[np.float64]:
        """The place of each of the best among the candidates, infinity for none, (Q / 2, K); of every second query from `half`."""
        found = _search(index, self.queries[half::2], effort)
        same = self.truth[half::2, :, None] == found[:, None, :]
        return np.where(same.any(axis=2), same.argmax(axis=2), np.inf)


def _samples(vectors: NDArray[np.floating], sentences: NDArray[np.float32] | None) -> list[_Sample]:
    """Pictures of the gallery and sentences, with what exact search finds."""
    exact = Vectors(vectors)
    chosen = np.random.default_rng(_SEED).choice(len(vectors), min(QUERIES, len(vectors)), replace=False)
    pictures = np.asarray(vectors[np.sort(chosen)], dtype=np.float32)
    # A picture finds itself, which is no merit: one more is sought, and the first left out.
    found = [_Sample("pictures", pictures, np.stack([one.rows[1:] for one in exact.nearest(pictures, K + 1)]))]
    if sentences is not None and len(sentences) > 1:
        queries = np.ascontiguousarray(sentences[:QUERIES], dtype=np.float32)
        found.append(_Sample("sentences", queries, np.stack([one.rows for one in exact.nearest(queries, K)])))
    return found


def _chosen(index: Any, samples: Sequence[_Sample]) -> Effort:
    """The effort that takes the least time of those that reach TARGET for each sample; all lists where none does."""
    total = _lists(index)
    best, least = Effort(total, CANDIDATES[-1]), np.inf
    lists = 1
    while (read := index.ntotal * lists / total) < least:
        enough = set(CANDIDATES)
        for sample in samples:
            places = sample.places(index, Effort(lists, CANDIDATES[-1]), 0)
            enough &= {count for count in CANDIDATES if _lower_bound(places < count) >= TARGET}
        if enough and read + _RANKED * min(enough) < least:
            best, least = Effort(lists, min(enough)), read + _RANKED * min(enough)
        if lists == total:
            break
        lists = min(total, max(lists + 1, round(lists * _STEP)))
    return best


def _lower_bound(hits: NDArray[np.bool_]) -> float:
    """The recall of queries, (q, K) hits, less its standard errors."""
    recalls = hits.mean(axis=1)
    return float(recalls.mean() - _ERRORS * recalls.std() / np.sqrt(len(recalls)))


def _lists(index: Any) -> int:
    import faiss

    return int(faiss.extract_index_ivf(index).nlist)


def _search(
    index: Any, queries: NDArray[np.float32], effort: Effort, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The candidates of each query (Q, candidates), best first, -1 where there are fewer."""
    import faiss

    settings: Any = faiss.SearchParametersIVF()
    settings.nprobe = effort.lists
    if among is not None:
        bits = np.packbits(among, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(among), faiss.swig_ptr(bits))
        settings.sel = selector
    if isinstance(index, faiss.IndexPreTransform):
        outer: Any = faiss.SearchParametersPreTransform()
        outer.index_params = settings
    else:
        outer = settings
    found: NDArray[np.int64] = index.search(np.ascontiguousarray(queries), effort.candidates, params=outer)[1]
    return found
