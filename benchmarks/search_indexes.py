"""Compares approximate indexes of two libraries: `python benchmarks/search.py --libraries`.

FAISS's inverted lists (IVF) with codes of several kinds, by the names of its index factory, and usearch's graph (HNSW):

    SQ8, SQ4                8 or 4 bits per number
    PQ4, PQ8                4 bits for every 4 or 8 numbers, of what remains after the list's centre is subtracted
    PQ4 of the whole        the same of the whole vector
    PQ4 rotated             after the rotation that `components.search.approximate` learns, which uses this index
    PQ4 OPQ                 after FAISS's optimised rotation
    PQ4 by HNSW             as PQ4, and a graph finds the centres
    usearch i8, f16         the graph of vectors in 8 bits per number, or in half precision

All candidates are ranked by the float16 vectors; recall is of the ten best, without the picture itself. ms is the processor time of
one thread per query, which other programs on the machine affect less than the time on a clock.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from clustered_vectors import DIMENSION, QUERIES, queries_file, vectors_file
from usearch.index import Index

from components.search.approximate import principal_rotation
from components.search.vectors import Vectors

K = 10
_BLOCK = 20_000
_PER_LIST = 40
FACTORIES = {
    "SQ8": "IVF{lists},SQ8",
    "SQ4": "IVF{lists},SQ4",
    "PQ4": "IVF{lists},PQ128x4fsr",
    "PQ8": "IVF{lists},PQ64x4fsr",
    "PQ4 of the whole": "IVF{lists},PQ128x4fs",
    "PQ4 rotated": "IVF{lists},PQ128x4fsr",
    "PQ4 OPQ": "OPQ128,IVF{lists},PQ128x4fsr",
    "PQ4 by HNSW": "IVF{lists}_HNSW32,PQ128x4fsr",
}
GRAPHS = {"usearch i8": "i8", "usearch f16": "f16"}
KINDS = (*FACTORIES, *GRAPHS)
SHARES = (0.1, 0.2, 0.3, 0.45)
"""Of all lists, that are read."""
EXPANSIONS = (64, 128, 256, 512)

Search = Callable[[Any, float, int], Any]
"""Of a query, an effort (share of lists read, or usearch's expansion) and a number of candidates: their rows."""


def measure_index(kind: str, size: int, threads: int, folder: Path) -> dict[str, Any]:
    """Build one kind of index, and search at several efforts: recall, and milliseconds of processor time per query."""
    faiss.omp_set_num_threads(threads)
    values = np.load(vectors_file(folder, size, "float16"), mmap_mode="r")
    vectors = Vectors(values)
    pictures = np.asarray(values[:: size // QUERIES][:QUERIES], np.float32)
    kinds = {
        "sentences": (queries := np.load(queries_file(folder, size)), vectors.nearest(queries, K), 0),
        "pictures": (pictures, vectors.nearest(pictures, K + 1), 1),
    }
    path = folder / f"{size}.{kind.replace(' ', '_')}"
    started, used = time.perf_counter(), time.process_time()
    search, efforts = _usearch(GRAPHS[kind], values, path, threads) if kind in GRAPHS else _faiss(kind, values, path)
    found: dict[str, Any] = {"row": kind, "size": size, "build_seconds": time.perf_counter() - started}
    found |= {"build_cpu": time.process_time() - used, "index_megabytes": path.stat().st_size / 1e6, "efforts": []}
    faiss.omp_set_num_threads(1)
    for effort, candidates in efforts:
        line: dict[str, Any] = {"effort": effort, "candidates": candidates}
        for name, (queries, best, skipped) in kinds.items():
            hits, began = [], time.thread_time()
            for query, true in zip(queries, best, strict=True):
                rows = search(query, effort, candidates)[0]
                ranked = vectors.rank(query, rows[rows >= 0], K + 1)
                hits.append(np.isin(true.rows[skipped:], ranked.rows).mean())
            line[name] = {"recall": float(np.mean(hits)), "ms": 1000 * (time.thread_time() - began) / len(queries)}
        found["efforts"].append(line)
        print(kind, json.dumps(line), file=sys.stderr, flush=True)
    return found


def _usearch(numbers: str, values: Any, path: Path, threads: int) -> tuple[Search, list[tuple[float, int]]]:
    graph = Index(ndim=DIMENSION, metric="ip", dtype=numbers, connectivity=16, expansion_add=128)
    graph.add(np.arange(len(values)), values, threads=threads)
    graph.save(path)

    def search(query: Any, effort: float, candidates: int) -> Any:
        graph.expansion_search = int(effort)
        found: Any = graph.search(query[None].astype(np.float16), candidates, threads=1)
        return found.keys.reshape(1, -1).astype(np.int64)

    return search, [(expansion, 50) for expansion in EXPANSIONS]


def _faiss(kind: str, values: Any, path: Path) -> tuple[Search, list[tuple[float, int]]]:
    lists = int(2 ** round(np.log2(np.sqrt(len(values)))))
    chosen = np.random.default_rng(0).choice(len(values), min(len(values), _PER_LIST * lists), replace=False)
    sample = np.asarray(values[np.sort(chosen)], np.float32)
    index: Any = faiss.index_factory(DIMENSION, FACTORIES[kind].format(lists=lists), faiss.METRIC_INNER_PRODUCT)
    inner = faiss.extract_index_ivf(index)
    inner.cp.niter, inner.cp.max_points_per_centroid = 10, _PER_LIST
    if kind == "PQ4 rotated":
        index = faiss.IndexPreTransform(principal_rotation(sample, DIMENSION // 4), index)
    index.train(sample)
    for begin in range(0, len(values), _BLOCK):
        index.add(np.asarray(values[begin : begin + _BLOCK], np.float32))
    faiss.write_index(index, str(path))
    if kind == "PQ4 by HNSW":  # where the graph finds fewer lists than are to be read, FAISS answers wrongly
        faiss.downcast_index(inner.quantizer).hnsw.efSearch = lists

    def search(query: Any, effort: float, candidates: int) -> Any:
        inner.nprobe = round(effort * lists)
        return index.search(query[None], candidates)[1]

    counts = (50,) if kind == "SQ8" else (200, 500, 1000)
    return search, [(share, count) for share in SHARES for count in counts]
