"""Text-to-person retrieval metrics, exact and without a dense ranking.

The protocol of IRRA and everything after it: every caption is a query, every picture of the split is in the gallery
(the caption's own too), cosine similarity, a gallery picture is relevant when it shows the query's identity.

    R@k    share of queries with a relevant picture among the first k (a hit rate, not recall)
    AP     mean over relevant pictures of (relevant so far) / rank, over the whole ranking; mAP its mean
    INP    number of relevant pictures / rank of the last one; mINP its mean

Ties: the rank of the j-th relevant picture (from the highest score) is j + the number of irrelevant pictures with a
strictly higher score; for the first this is 1 + the number of strictly higher pictures. So the result does not depend
on the gallery's order, and a tie with an irrelevant picture is resolved in the query's favour (a duplicate file is
not the model's error).

Only ranks of relevant pictures are needed, so a chunk of queries is compared with the gallery and forgotten: memory is
chunk x gallery, where the usual dense code needs queries x gallery several times (over 10 GB for ICFG-PEDES).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import DataError

TOP_K = (1, 5, 10)


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
        """Means in percent over the valid queries, and the numbers of queries."""
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
    normalize: bool = True,
) -> dict[str, float]:
    """R@1, R@5, R@10, mAP, mINP in percent, and "queries", "queries_without_match" as counts.

    queries (Q, D), gallery (G, D), float32 or float64; query_ids (Q,), gallery_ids (G,) identities. Queries whose
    identity is not in the gallery are counted and left out of the means. Raises DataError on empty or mismatched
    input, on values that are not finite, or when no query has a match.
    """
    return retrieval_results(queries, gallery, query_ids, gallery_ids, chunk=chunk, normalize=normalize).metrics()


@torch.no_grad()
def retrieval_results(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    chunk: int = 256,
    normalize: bool = True,
) -> RetrievalResult:
    """As `retrieval_metrics`, per query: what bootstrap intervals and failure analysis need."""
    _check(queries, gallery, query_ids, gallery_ids)
    if normalize:
        queries, gallery = F.normalize(queries, dim=-1), F.normalize(gallery, dim=-1)
    positives, counts = _positives(query_ids, gallery_ids)
    parts = [
        _rank_chunk(
            queries[begin : begin + chunk] @ gallery.T, positives[begin : begin + chunk], counts[begin : begin + chunk]
        )
        for begin in range(0, len(queries), chunk)
    ]
    first, precision, penalty = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return RetrievalResult(first, precision, penalty, counts > 0)


def _positives(query_ids: Tensor, gallery_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Gallery rows of each query's identity, (Q, most) padded with 0, and how many there are, (Q,)."""
    ordered, rows = gallery_ids.sort(stable=True)
    begin = torch.searchsorted(ordered, query_ids, side="left")
    counts = torch.searchsorted(ordered, query_ids, side="right") - begin
    offsets = torch.arange(max(1, int(counts.max())), device=rows.device)
    index = (begin[:, None] + offsets).clamp_max(len(rows) - 1)
    return torch.where(offsets < counts[:, None], rows[index], 0), counts


def _rank_chunk(scores: Tensor, positives: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of the first relevant picture, AP and INP of each row of scores (q, G)."""
    real = torch.arange(positives.shape[1], device=scores.device) < counts[:, None]  # (q, P)
    # Relevant scores from high to low; padding goes last.
    relevant = scores.gather(1, positives).masked_fill(~real, -torch.inf).sort(dim=1, descending=True).values
    above = _strictly_above(scores, relevant) - _strictly_above(relevant, relevant)  # irrelevant ones only
    order = torch.arange(1, positives.shape[1] + 1, device=scores.device)
    rank = above + order
    precision = torch.where(real, order.double() / rank, 0.0).sum(1) / counts.clamp_min(1)
    last = rank.gather(1, (counts - 1).clamp_min(0)[:, None])[:, 0]
    first = torch.where(counts > 0, rank[:, 0], 0)
    return first, precision, torch.where(counts > 0, counts.double() / last, 0.0)


def _strictly_above(row: Tensor, values: Tensor) -> Tensor:
    """How many entries of each row (q, N) are strictly higher than each of `values` (q, P)."""
    return row.shape[1] - torch.searchsorted(row.sort(dim=1).values, values.contiguous(), side="right")


def _check(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> None:
    if not len(queries) or not len(gallery):
        raise DataError(f"retrieval: {len(queries)} queries and {len(gallery)} gallery pictures; both must be there")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"retrieval: queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)}; (Q, D) and (G, D) needed"
        )
    if len(query_ids) != len(queries) or len(gallery_ids) != len(gallery):
        raise DataError("retrieval: one identity per query and per gallery picture is needed")
    if not (torch.isfinite(queries).all() and torch.isfinite(gallery).all()):
        raise DataError("retrieval: embeddings hold values that are not finite; the model has diverged")
