"""Text-to-person retrieval metrics, exact and without a dense ranking.

The protocol of IRRA and everything after it: every caption is a query, every picture of the split is in the gallery
(the caption's own too), cosine similarity, a gallery picture is relevant when it shows the query's identity.

    R@k    fraction of queries with a relevant picture among the first k (a hit rate, not recall)
    AP     mean over relevant pictures of (relevant so far) / rank, over the whole ranking; mAP its mean
    INP    number of relevant pictures / rank of the last one; mINP its mean

Ties: every metric is its expected value over a random order of the pictures with equal scores (formulas in
`components.evaluation.ties`), so it does not depend on the gallery's order. `tied_share` is the percentage of queries with a
relevant and an irrelevant picture of equal score, for which that makes a difference.

Only the ranks of relevant pictures are needed, which are counts: a block of scores (chunk of queries x block of the gallery) is
compared with the scores of the queries' relevant pictures and discarded. Memory is one block, where the usual dense code needs
queries x gallery several times (over 10 GB for ICFG-PEDES). The block size changes only the last bit of a score, because a matrix
product rounds differently in other shapes and at its edges. That can order pictures whose scores differ by less, also equal
pictures; with embeddings in float64 the bit is a billion times smaller.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import DataError, ParameterError
from components.evaluation.retrieval_result import RetrievalResult
from components.evaluation.ties import expected_penalty, expected_precision

BLOCK_SCORES = 16 << 20
"""Default number of scores per block: 64 MB in float32."""
_FEWEST = 32
"""Rows and columns of a product from which on each number is computed alike, whatever stands beside it (16 with AVX-512)."""
_SORT_FROM = 12
"""Up to about this many relevant pictures, comparing a row with each of their scores is cheaper than sorting it."""

Keys = tuple[Tensor, Tensor]


def retrieval_metrics(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    chunk: int = 256,
    block: int | None = None,
    normalize: bool = True,
    leave_out: Keys | None = None,
) -> dict[str, float]:
    """Compute R@1, R@5, R@10, mAP, mINP and "tied_share" in percent, and the counts "queries" and "queries_without_match".

    Args:
        queries, gallery: (Q, D) and (G, D), compared in float64 where they are, else in float32.
        query_ids, gallery_ids: (Q,) and (G,), identities. Queries whose identity is not in the gallery are counted and left
            out of the means.
        chunk, block: queries and gallery pictures compared at once; `block` None takes what fits BLOCK_SCORES.
        normalize: cosine similarity; False takes the scalar product as it is.
        leave_out: keys (Q,) of the queries and (G,) of the gallery: of the pictures of a query's identity, those that share
            its key are excluded from positives and negatives. Image ids exclude the caption's own picture; camera numbers give the
            protocol of person re-identification.

    Raises:
        DataError: empty or mismatched input, values that are not finite, or no query with a match.
        ParameterError: `chunk` or `block` below 1.
    """
    return retrieval_results(
        queries, gallery, query_ids, gallery_ids, chunk=chunk, block=block, normalize=normalize, leave_out=leave_out
    ).metrics()


def both_directions(
    texts: Tensor, images: Tensor, text_ids: Tensor, image_ids: Tensor, *, chunk: int = 256, block: int | None = None
) -> dict[str, dict[str, float]]:
    """Compute `retrieval_metrics` of captions that search pictures ("text_to_image", as published) and of the reverse.

    texts (T, D), images (I, D), text_ids (T,), image_ids (I,). In the reverse a picture's relevant captions are those of
    every picture of its identity.
    """
    return {
        "text_to_image": retrieval_metrics(texts, images, text_ids, image_ids, chunk=chunk, block=block),
        "image_to_text": retrieval_metrics(images, texts, image_ids, text_ids, chunk=chunk, block=block),
    }


@torch.no_grad()
def retrieval_results(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    chunk: int = 256,
    block: int | None = None,
    normalize: bool = True,
    leave_out: Keys | None = None,
) -> RetrievalResult:
    """As `retrieval_metrics`, per query: what bootstrap intervals and failure analysis need."""
    _check(queries, gallery, query_ids, gallery_ids, leave_out)
    queries, gallery = (t if t.dtype == torch.float64 else t.float() for t in (queries, gallery))
    if chunk < 1 or (block is not None and block < 1):
        raise ParameterError(f"retrieval: chunk {chunk} and block {block} must be at least 1")
    if normalize:
        queries, gallery = F.normalize(queries, dim=-1), F.normalize(gallery, dim=-1)
    block = block or max(1, BLOCK_SCORES // chunk)
    ordered, rows = gallery_ids.cpu().sort(stable=True)
    parts = []
    for begin in range(0, len(queries), chunk):
        own = slice(begin, begin + chunk)
        positives, real = _positives(query_ids[own].cpu(), ordered, rows)
        wanted = real
        if leave_out:
            wanted = real & (leave_out[1].cpu()[positives] != leave_out[0].cpu()[own, None])
        relevant, above, equal, found = _compare(queries[own], gallery, positives, real, wanted, block)
        parts.append((*_measure(relevant, above, equal, wanted.sum(1)), found))
    return RetrievalResult(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _positives(query_ids: Tensor, ordered: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Gallery rows of each query's identity, (q, P), and which of them are not padding, bool (q, P).

    ordered (G,): the gallery's identities, sorted; rows (G,): their gallery rows.
    """
    begin = torch.searchsorted(ordered, query_ids, side="left")
    counts = torch.searchsorted(ordered, query_ids, side="right") - begin
    offsets = torch.arange(max(1, int(counts.max())))
    index = (begin[:, None] + offsets).clamp_max(len(rows) - 1)
    return rows[index], offsets < counts[:, None]


def _compare(
    queries: Tensor, gallery: Tensor, positives: Tensor, real: Tensor, wanted: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compare a chunk of queries with the gallery.

    Returns the scores of the wanted pictures from high to low, (q, P), -inf after the last; for each the numbers of irrelevant
    pictures with a higher and with the same score, int64 (q, P); and the row with the highest score, int64 (q,), -1 without one.
    A picture of the query's identity that is not wanted is in none of them. Takes two passes over the gallery, because counting
    needs the wanted scores; the first computes only blocks that hold one of them.
    """
    relevant = torch.full(positives.shape, -torch.inf, dtype=queries.dtype)
    # Mostly one block is the whole gallery: then it is computed once.
    kept = list(_blocks(queries, gallery, block)) if len(gallery) <= block else None
    for begin, scores in kept or _blocks(queries, gallery, block, positives[wanted]):
        row, place = _inside(positives, wanted, begin, scores.shape[1])
        relevant[row, place] = scores[row, positives[row, place] - begin]
    relevant = relevant.sort(dim=1, descending=True).values
    above, equal = torch.zeros(positives.shape, dtype=torch.int64), torch.zeros(positives.shape, dtype=torch.int64)
    best = torch.full((len(queries),), -torch.inf, dtype=queries.dtype)
    found = torch.full((len(queries),), -1)
    for begin, scores in kept or _blocks(queries, gallery, block):
        _remove(scores, positives, real & ~wanted, begin)
        highest, place = scores.max(dim=1)  # the first of equals
        found = torch.where(highest > best, begin + place, found)
        best = torch.maximum(best, highest)
        _remove(scores, positives, wanted, begin)
        _count(scores.numpy(), relevant.numpy(), wanted.sum(1).tolist(), above.numpy(), equal.numpy())
    return relevant, above, equal, found


def _blocks(queries: Tensor, gallery: Tensor, block: int, needed: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, scores (q, up to `block`)) over the gallery, on the CPU; only blocks with one of the rows `needed`."""
    chosen = None if needed is None else set((needed // block).tolist())
    for begin in range(0, len(gallery), block):
        if chosen is None or begin // block in chosen:
            yield begin, _products(queries, gallery[begin : begin + block])


def _products(queries: Tensor, gallery: Tensor) -> Tensor:
    """Scores (q, g) on the CPU. Few rows or columns would be computed by other kernels, in which equal pictures differ."""
    rows, columns = (
        one.repeat(-(-_FEWEST // len(one)), 1) if 0 < len(one) < _FEWEST else one for one in (queries, gallery)
    )
    return (rows @ columns.T).cpu()[: len(queries), : len(gallery)]


def _inside(positives: Tensor, which: Tensor, begin: int, length: int) -> tuple[Tensor, Tensor]:
    """Indices of `positives` (q, P), where `which` is true, that are rows begin ... begin + length - 1: two vectors."""
    row, place = (which & (positives >= begin) & (positives < begin + length)).nonzero(as_tuple=True)
    return row, place


def _remove(scores: Tensor, positives: Tensor, which: Tensor, begin: int) -> None:
    """Set the scores of those `positives` where `which` is true to -inf, in a block that starts at row `begin`."""
    row, place = _inside(positives, which, begin, scores.shape[1])
    scores[row, positives[row, place] - begin] = -torch.inf


def _count(scores: np.ndarray, relevant: np.ndarray, counts: list[int], above: np.ndarray, equal: np.ndarray) -> None:
    """Add how many of scores (q, G) are above and equal to each of the first `counts` of relevant (q, P)."""
    for row, values, count, higher, same in zip(scores, relevant, counts, above, equal, strict=True):
        if count < _SORT_FROM:
            for place in range(count):
                higher[place] += np.count_nonzero(row > values[place])
                same[place] += np.count_nonzero(row == values[place])
        else:
            ordered = np.sort(row)
            end = np.searchsorted(ordered, values[:count], side="right")
            higher[:count] += len(row) - end
            same[:count] += end - np.searchsorted(ordered, values[:count], side="left")


def _measure(relevant: Tensor, above: Tensor, equal: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """The columns of `RetrievalResult` but `found`, each (q,), from what `_compare` returns; counts (q,): of relevant pictures."""
    place = torch.arange(relevant.shape[1]).expand_as(above)
    used, valid = place < counts[:, None], counts > 0
    # Sorted downwards: how many are higher than each, and how many are equal, itself included.
    before = torch.searchsorted(-relevant, -relevant)
    same = torch.searchsorted(-relevant, -relevant, right=True) - before
    precision = (place + 1).double() / (above + place + 1)
    tied = used & (equal > 0)
    if tied.any():
        precision[tied] = expected_precision(above[tied], before[tied], same[tied], equal[tied])
    average = torch.where(used, precision, 0.0).sum(1) / counts.clamp_min(1)
    last = (counts - 1).clamp_min(0)[:, None]
    final = [column.gather(1, last)[:, 0] for column in (above, before, same, equal)]
    penalty = torch.where(valid, counts.double() / (final[0] + counts), 0.0)
    late = tied.gather(1, last)[:, 0]
    if late.any():
        penalty[late] = expected_penalty(*(column[late] for column in final))
    first = [torch.where(valid, column, 0) for column in (above[:, 0] + 1, same[:, 0], equal[:, 0])]
    return *first, average, penalty, tied.any(1)


def _check(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, leave_out: Keys | None) -> None:
    if not len(queries) or not len(gallery):
        raise DataError(f"retrieval: {len(queries)} queries and {len(gallery)} gallery pictures; neither may be empty")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"retrieval: queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)}; (Q, D) and (G, D) needed"
        )
    if len(query_ids) != len(queries) or len(gallery_ids) != len(gallery):
        raise DataError("retrieval: one identity per query and per gallery picture is needed")
    if leave_out and (len(leave_out[0]) != len(queries) or len(leave_out[1]) != len(gallery)):
        raise DataError("retrieval: leave_out needs one key per query and one per gallery picture")
    if not (torch.isfinite(queries).all() and torch.isfinite(gallery).all()):
        raise DataError("retrieval: embeddings hold values that are not finite; the model has diverged")
