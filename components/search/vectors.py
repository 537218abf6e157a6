"""Exact search among unit vectors, in full or half precision, in memory or memory-mapped from a file of any size.

The vectors are multiplied in float32; of half precision, for one query as they are, for several in chunks that are converted in a
core's cache. What could be among the best is then ranked by products in float64, each computed alone in one order. So the ranking
does not depend on chunks, batches, threads and the kernel that multiplied, and equal vectors have equal scores, in the order of the
gallery.
"""

import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.errors import DataError, ParameterError

BLOCK = 65536
"""Vectors whose scores are held at once."""
CHUNK = 1024
"""Vectors converted from half precision at once, of 512 numbers two megabytes, which stay in a core's cache."""
QUERIES = 64
"""Queries that read the vectors together; more are taken one group after the other."""
_GATHER = 4096  # rows read at once where not all are
_FEW = 0.1  # below this fraction of the vectors, a filter's rows are read alone; else all are read, and the others left out


class Ranked(NamedTuple):
    """The best of one query, best first: rows int64 (k,), scores float32 (k,), cosines."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    def of(self, places: Any) -> "Ranked":
        """Return those at some places: a mask, an order, or a slice."""
        return Ranked(self.rows[places], self.scores[places])


@dataclass(eq=False)
class _Asked:
    """Queries of a thread, and what was found for them."""

    queries: NDArray[np.float32]
    k: int
    found: list[Ranked] | None = None


class Vectors:
    """Unit vectors (N, D), float32 or float16; they are not copied. Any thread may search."""

    def __init__(self, values: NDArray[np.floating]) -> None:
        if values.ndim != 2 or values.dtype not in (np.float32, np.float16):
            raise DataError(
                f"vectors of shape {values.shape} and type {values.dtype}; (N, D) of float32 or float16 needed"
            )
        self.values = values
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
            self._tensor = torch.from_numpy(values)
        self._waiting: list[_Asked] = []
        self._busy = False
        self._turn = threading.Condition()

    def __len__(self) -> int:
        return len(self.values)

    def nearest(self, queries: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None = None) -> list[Ranked]:
        """Return the k best for each of the unit vectors (Q, D); fewer where fewer are `among` (N,) those allowed.

        Threads that ask while another one searches are answered together, by one reading of the vectors.
        """
        if k < 1:
            raise ParameterError(f"k = {k}: must be at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.values.shape[1]:
            raise ParameterError(
                f"query vectors of shape {queries.shape}, the gallery's have {self.values.shape[1]} numbers: another model?"
            )
        asked = _Asked(np.ascontiguousarray(queries, dtype=np.float32), k)
        if among is not None:
            return self._search(asked.queries, k, among)
        with self._turn:
            self._waiting.append(asked)
            self._turn.wait_for(lambda: asked.found is not None or not self._busy)
            if asked.found is not None:
                return asked.found
            self._busy, waiting = True, list(self._waiting)
            self._waiting.clear()
        try:  # for all that wait, whoever came first
            self._answer([asked, *(other for other in waiting if other is not asked)])
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()
        return asked.found or []

    def _answer(self, asked: Sequence["_Asked"]) -> None:
        found = iter(self._search(np.concatenate([one.queries for one in asked]), max(one.k for one in asked), None))
        for one in asked:
            one.found = [next(found).of(slice(one.k)) for _ in one.queries]

    @torch.no_grad()
    def _search(self, queries: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None) -> list[Ranked]:
        rows = None if among is None else np.flatnonzero(among)
        few = rows if rows is not None and len(rows) < _FEW * len(self) else None
        found: list[Ranked] = []
        for begin in range(0, len(queries), QUERIES):
            group = queries[begin : begin + QUERIES]
            candidates = self._candidates(torch.from_numpy(group), k, few, None if few is not None else among)
            found += [self.rank(query, rows, k) for query, rows in zip(group, candidates, strict=True)]
        return found

    def rank(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Ranked:
        """Return the k best of some rows for one query (D,), by products in float64; equal ones in the order of the rows."""
        rows = np.sort(rows)
        scores = np.empty(len(rows))
        for begin in range(0, len(rows), _GATHER):
            chosen = self.values[rows[begin : begin + _GATHER]].astype(np.float64)
            chosen *= query  # summed row by row in one order, unlike a matrix product
            scores[begin : begin + _GATHER] = chosen.sum(axis=1)
        best = np.argsort(-scores, kind="stable")[:k]
        return Ranked(rows[best], scores[best].astype(np.float32))

    def _candidates(
        self, queries: Tensor, k: int, rows: NDArray[np.int64] | None, among: NDArray[np.bool_] | None
    ) -> list[NDArray[np.int64]]:
        """Rows that may be among the k best of each query: all that are within twice a product's error of the k-th best."""
        halved = rows is None and self._multiplies_halves(queries)
        tolerance = 2 * _error(queries, halved=halved)
        count = len(self) if rows is None else len(rows)

        @torch.no_grad()
        def best_of(begin: int) -> list[tuple[Tensor, Tensor]]:
            """Per query, scores and places of what may be among the k best of a block."""
            end = min(begin + BLOCK, count)
            scores = self._scores(queries, begin, end) if rows is None else self._scores_of(queries, rows[begin:end])
            if among is not None:
                scores.masked_fill_(torch.from_numpy(~among[begin:end]), -torch.inf)
            lowest = scores.topk(min(k, end - begin), dim=1).values[:, -1:]
            enough = (scores >= lowest - tolerance) & (scores > -torch.inf)
            places = [line.nonzero()[:, 0] for line in enough]
            return [(line[place], place + begin) for line, place in zip(scores, places, strict=True)]

        begins = range(0, count, BLOCK)
        blocks = list(self._pool.map(best_of, begins) if len(begins) > 1 else map(best_of, begins))
        found = []
        for parts in zip(*blocks, strict=True):
            scores, places = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            lowest = scores.topk(k).values[-1] - tolerance if len(scores) > k else -torch.inf
            found.append(places[scores >= lowest].numpy())
        found = found or [np.empty(0, np.int64) for _ in queries]  # of an empty gallery
        if halved and len(found[0]) > _GATHER:  # of pictures that are all alike
            return self._candidates(queries, k, found[0], None)
        return found if rows is None else [rows[places] for places in found]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads that take the blocks of a large gallery: the cores that torch does not use for one product."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return ThreadPoolExecutor(max(1, cores // torch.get_num_threads()), thread_name_prefix="search")

    def _scores(self, queries: Tensor, begin: int, end: int) -> Tensor:
        """Products (Q, end - begin) with consecutive vectors."""
        if self.values.dtype == np.float32:
            return queries @ self._tensor[begin:end].T
        if self._multiplies_halves(queries):
            return torch.mv(self._tensor[begin:end], queries[0].half())[None].float()
        scores = torch.empty(end - begin, len(queries))
        buffer = torch.empty(CHUNK, queries.shape[1])
        for first in range(begin, end, CHUNK):
            last = min(first + CHUNK, end)
            converted = buffer[: last - first].copy_(self._tensor[first:last])
            torch.mm(converted, queries.T, out=scores[first - begin : last - begin])
        return scores.T.contiguous()

    def _multiplies_halves(self, queries: Tensor) -> bool:
        """Whether the query, too, is taken in half precision: for one, converting the vectors takes longer than the product."""
        return self.values.dtype == np.float16 and len(queries) == 1

    def _scores_of(self, queries: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Products (Q, len(rows)) with chosen vectors."""
        parts = [rows[begin : begin + _GATHER] for begin in range(0, len(rows), _GATHER)]
        return torch.cat([queries @ torch.from_numpy(self.values[part]).float().T for part in parts], dim=1)


def _error(queries: Tensor, *, halved: bool) -> float:
    """How much a product of unit vectors may be wrong.

    Summed in float32, by D 2^-24. Of half precision torch sums in float32 as well, but the query's rounding changes the product by
    as much as it moves the query, and the product's own by 2^-11.
    """
    summed = queries.shape[1] * 2.0**-24
    if not halved:
        return summed
    return summed + 2.0**-11 + 1.001 * float((queries - queries.half().float()).norm(dim=1).max())
