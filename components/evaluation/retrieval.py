"""Text-to-person retrieval metrics, exact and without a dense ranking.

The protocol of IRRA and everything after it: every caption is a query, every picture of the split is in the gallery
(the caption's own too), cosine similarity, a gallery picture is relevant when it shows the query's identity.

    R@k    fraction of queries with a relevant picture among the first k (a hit rate, not recall)
    AP     mean over relevant pictures of (relevant so far) / rank, over the whole ranking; mAP its mean
    INP    number of relevant pictures / rank of the last one; mINP its mean

Ties: the rank of the j-th relevant picture (from the highest score) is j + the number of irrelevant pictures with a
strictly higher score; for the first this is 1 + the number of strictly higher pictures. So the result does not depend
on the gallery's order, and a tie with an irrelevant picture is resolved in the query's favour (a duplicate file is
not the model's error).

Only the ranks of relevant pictures are needed, which are counts: a block of scores (chunk of queries x block of the gallery) is
compared with the scores of the queries' relevant pictures and discarded. Memory is one block, where the usual dense code needs
queries x gallery several times (over 10 GB for ICFG-PEDES). The block size changes only the last bit of a score, because a matrix
product rounds differently in other shapes and at its edges. That can order pictures whose scores differ by less, also equal
pictures; with embeddings in float64 the bit is a billion times smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import DataError, ParameterError

TOP_K = (1, 5, 10)
BLOCK_SCORES = 16 << 20
"""Default number of scores per block: 64 MB in float32."""
_SORT_FROM = 64
"""Up to about this many relevant pictures, comparing a row with each of their scores is cheaper than sorting it."""

Keys = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RetrievalResult:
    """Per query, in the order given; queries without a relevant picture have `valid` False, rank 0, AP and INP 0.

    first_rank int64 (Q,), average_precision, inverse_negative_penalty float64 (Q,), valid bool (Q,).
    """

    first_rank: Tensor
    average_precision: Tensor
    inverse_negative_penalty: Tensor
    valid: Tensor

    def metrics(self, top_k: tuple[int, ...] = TOP_K) -> dict[str, float]:
        """Return means in percent over the valid queries, and the numbers of queries."""
        valid = self.valid
        if not valid.any():
            raise DataError(
                "retrieval: no query has a picture of its identity in the gallery; check the identities of the split"
            )
        first = self.first_rank[valid]
        result = {f"R@{k}": 100 * (first <= k).double().mean().item() for k in top_k}
        result["mAP"] = 100 * self.average_precision[valid].mean().item()
        result["mINP"] = 100 * self.inverse_negative_penalty[valid].mean().item()
        result["queries"] = float(valid.sum())
        result["queries_without_match"] = float((~valid).sum())
        return result


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
    """Compute R@1, R@5, R@10, mAP and mINP in percent, and the counts "queries" and "queries_without_match".

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
        relevant, above = _compare(queries[own], gallery, positives, real, wanted, block)
        parts.append(_measure(relevant, above, wanted.sum(1)))
    first, precision, penalty, valid = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return RetrievalResult(first, precision, penalty, valid)


@torch.no_grad()
def best_matches(queries: Tensor, gallery: Tensor, *, chunk: int = 256) -> Tensor:
    """Return the gallery row with the highest cosine for each query, int64 (Q,), the first of equals; `chunk` queries at once."""
    gallery = F.normalize(gallery.float(), dim=-1)
    best = [(F.normalize(part.float(), dim=-1) @ gallery.T).argmax(dim=1).cpu() for part in queries.split(chunk)]
    return torch.cat(best) if best else torch.empty(0, dtype=torch.int64)


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
) -> tuple[Tensor, Tensor]:
    """Scores of the wanted pictures from high to low, (q, P), -inf after the last; and for each the number of irrelevant
    pictures with a strictly higher score, int64 (q, P).

    A picture of the query's identity is never irrelevant, wanted or not. Takes two passes over the gallery, because counting needs
    the wanted scores; the first computes only blocks that hold one of them.
    """
    relevant = torch.full(positives.shape, -torch.inf, dtype=queries.dtype)
    # Mostly one block is the whole gallery: then it is computed once.
    kept = list(_blocks(queries, gallery, block)) if len(gallery) <= block else None
    for begin, scores in kept or _blocks(queries, gallery, block, positives[wanted]):
        row, place = _inside(positives, wanted, begin, scores.shape[1])
        relevant[row, place] = scores[row, positives[row, place] - begin]
    relevant = relevant.sort(dim=1, descending=True).values
    above = torch.zeros(positives.shape, dtype=torch.int64)
    for begin, scores in kept or _blocks(queries, gallery, block):
        row, place = _inside(positives, real, begin, scores.shape[1])
        scores[row, positives[row, place] - begin] = -torch.inf
        _count_above(scores.numpy(), relevant.numpy(), wanted.sum(1).tolist(), above.numpy())
    return relevant, above


def _blocks(queries: Tensor, gallery: Tensor, block: int, needed: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, scores (q, up to `block`)) over the gallery, on the CPU; only blocks with one of the rows `needed`."""
    chosen = None if needed is None else set((needed // block).tolist())
    for begin in range(0, len(gallery), block):
        if chosen is None or begin // block in chosen:
            yield begin, (queries @ gallery[begin : begin + block].T).cpu()


def _inside(positives: Tensor, which: Tensor, begin: int, length: int) -> tuple[Tensor, Tensor]:
    """Indices of `positives` (q, P), where `which` is true, that are rows begin ... begin + length - 1: two vectors."""
    row, place = (which & (positives >= begin) & (positives < begin + length)).nonzero(as_tuple=True)
    return row, place


def _count_above(scores: np.ndarray, relevant: np.ndarray, counts: list[int], above: np.ndarray) -> None:
    """Add to above (q, P) how many of scores (q, G) are strictly higher than each of the first `counts` of relevant (q, P)."""
    for row, values, count, total in zip(scores, relevant, counts, above, strict=True):
        if count < _SORT_FROM:
            for place in range(count):
                total[place] += np.count_nonzero(row > values[place])
        else:
            total[:count] += len(row) - np.searchsorted(np.sort(row), values[:count], side="right")


def _measure(relevant: Tensor, above: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rank of the first relevant picture, AP, INP, and whether there is one, each (q,)."""
    order = torch.arange(1, relevant.shape[1] + 1)
    rank = above + order
    precision = torch.where(order <= counts[:, None], order.double() / rank, 0.0).sum(1) / counts.clamp_min(1)
    last = rank.gather(1, (counts - 1).clamp_min(0)[:, None])[:, 0]
    valid = counts > 0
    return torch.where(valid, rank[:, 0], 0), precision, torch.where(valid, counts.double() / last, 0.0), valid


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
