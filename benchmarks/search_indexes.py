"""Compares approximate indexes of two libraries: `python benchmarks/search.py --libraries`.

    SQ8        FAISS's inverted lists of vectors in 8 bits per number, which `components.search.approximate` uses
    PQ128x4fs  the same lists with 4 bits for every 4 numbers
    usearch    usearch's graph (HNSW) of vectors in 8 bits per number

All candidates are ranked by the float16 vectors; recall is of the ten best.
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

from components.search.vectors import Vectors

K = 10
_BLOCK = 20_000


Search = Callable[[Any, int, int], Any]
"""Of a query, an effort (lists read, or usearch's expansion) and a number of candidates: their rows."""


def measure_index(kind: str, size: int, threads: int, folder: Path) -> dict[str, Any]:
    """Build one kind of index, and search at several efforts: recall, and milliseconds per query of one client."""
    faiss.omp_set_num_threads(threads)
    values = np.load(vectors_file(folder, size, "float16"), mmap_mode="r")
    vectors = Vectors(values)
    kinds = {
        "sentences": np.load(queries_file(folder, size)),
        "pictures": np.asarray(values[:: size // QUERIES][:QUERIES], np.float32),
    }
    truth = {name: [one.rows for one in vectors.nearest(queries, K)] for name, queries in kinds.items()}
    path = folder / f"{size}.{kind}"
    started, used = time.perf_counter(), time.process_time()
    search, efforts = _usearch(values, path, threads) if kind == "usearch" else _faiss(kind, values, path)
    found: dict[str, Any] = {"row": kind, "size": size, "build_seconds": time.perf_counter() - started}
    found |= {"build_cpu": time.process_time() - used, "index_megabytes": path.stat().st_size / 1e6, "efforts": []}
    for effort, candidates in efforts:
        line: dict[str, Any] = {"effort": effort, "candidates": candidates}
        for name, queries in kinds.items():
            times, hits = [], []
            for query, best in zip(queries, truth[name], strict=True):
                began = time.perf_counter()
                rows = search(query, effort, candidates)[0]
                ranked = vectors.rank(query, rows[rows >= 0], K)
                times.append(1000 * (time.perf_counter() - began))
                hits.append(np.isin(best, ranked.rows).mean())
            line[name] = {
                "recall": float(np.mean(hits)),
                "p50": float(np.median(times)),
                "p95": float(np.percentile(times, 95)),
            }
        found["efforts"].append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
    return found


def _usearch(values: Any, path: Path, threads: int) -> tuple[Search, list[tuple[int, int]]]:
    graph = Index(ndim=DIMENSION, metric="ip", dtype="i8", connectivity=16, expansion_add=128)
    graph.add(np.arange(len(values)), values, threads=threads)
    graph.save(path)

    def search(query: Any, effort: int, candidates: int) -> Any:
        graph.expansion_search = effort
        found: Any = graph.search(query[None].astype(np.float16), candidates, threads=threads)
        return found.keys.reshape(1, -1).astype(np.int64)

    return search, [(expansion, 50) for expansion in (64, 128, 256, 512, 1024)]


def _faiss(kind: str, values: Any, path: Path) -> tuple[Search, list[tuple[int, int]]]:
    lists = int(2 ** round(np.log2(4 * np.sqrt(len(values)))))
    index: Any = faiss.index_factory(DIMENSION, f"IVF{lists},{kind}", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 10, 40
    chosen = np.sort(np.random.default_rng(0).choice(len(values), min(len(values), 40 * lists), replace=False))
    index.train(np.asarray(values[chosen], np.float32))
    for begin in range(0, len(values), _BLOCK):
        index.add(np.asarray(values[begin : begin + _BLOCK], np.float32))
    faiss.write_index(index, str(path))

    def search(query: Any, effort: int, candidates: int) -> Any:
        index.nprobe = effort
        return index.search(query[None], candidates)[1]

    counts = (50,) if kind == "SQ8" else (200, 500)
    return search, [(probes, count) for probes in (16, 32, 64, 128, 256, 512) for count in counts]
