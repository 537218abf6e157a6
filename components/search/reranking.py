"""Re-ranking by k-reciprocal neighbours: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.

Two pictures are reciprocal neighbours where each is among the k1 nearest of the other (eq. 3). A picture's set takes in the sets
R(c, k1 / 2) of its members c with which it shares two thirds of them (eq. 5). It becomes a vector of weights exp(-d) (eq. 7),
averaged over the k2 nearest (eq. 11). The final distance is (1 - weight) of the Jaccard distance of two vectors (eq. 10) and
`weight` of d (eq. 12). d is 1 - cosine, divided by the largest of its column, as in the authors' code.

The variant for sentences: a sentence is never among the nearest of a picture, which are pictures. So its neighbours are its k1
best, taken as they are, and extended as a picture's are. A query by a picture alone follows the paper. Neighbours are sought in the
pool of the query's best pictures, not in the whole gallery.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
K1, K2, LAMBDA = 20, 6, 0.3
"""The paper's values."""
POOL = 300
"""The best pictures of a query among which it is re-ranked; more where more are asked for."""


def reranked(
    query: NDArray[np.floating],
    pool: NDArray[np.floating],
    *,
    is_picture: bool,
    k1: int = K1,
    k2: int = K2,
    weight: float = LAMBDA,
) -> NDArray[np.int64]:
    """Return the order of the pool's unit vectors (M, D), best first, for the unit vector of a query (D,).

    is_picture: whether the query is a picture, whose neighbours must be reciprocal.
    """
    if not len(pool):
        return np.empty(0, np.int64)
    everyone = np.concatenate([query[None], pool]).astype(np.float64)  # (1 + M, D), the query first
    distance = 1 - everyone @ everyone.T
    np.fill_diagonal(distance, 0)
    distance = distance.clip(0) / np.maximum(distance.max(axis=0), 1e-12)[:, None]  # symmetric before: rows are columns
    rank = _ranks(distance, is_picture)
    encoding = _encoding(distance, rank, k1, is_picture)
    near = (rank < k2).astype(np.float64)
    encoding = near @ encoding / near.sum(1, keepdims=True)
    shared = np.minimum(encoding[0], encoding[1:]).sum(1)
    jaccard = 1 - shared / np.maximum(2 - shared, 1e-12)  # the sums of both vectors are 1
    final = (1 - weight) * jaccard + weight * distance[0, 1:]
    return np.argsort(final, kind="stable")


def _ranks(distance: Floats, is_picture: bool) -> NDArray[np.int64]:
    """rank[i, j]: the place of j among the nearest of i, which is itself the first. A sentence comes last for every picture."""
    ordered = distance.copy()
    np.fill_diagonal(ordered, -1)
    if not is_picture:
        ordered[1:, 0] = np.inf
    order = np.argsort(ordered, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(order))[None].repeat(len(order), 0), axis=1)
    return rank


def _encoding(distance: Floats, rank: NDArray[np.int64], k1: int, is_picture: bool) -> Floats:
    """The weights of each one's extended reciprocal set, (1 + M, 1 + M), rows of sum 1."""
    reciprocal = _reciprocal(rank, k1, is_picture)
    half = _reciprocal(rank, round(k1 / 2), is_picture)
    size = half.sum(1)
    taken = reciprocal & (_both(reciprocal, half) > 2 / 3 * size[None])
    extended = reciprocal | (_both(taken, half.T) > 0)
    weights = np.where(extended, np.exp(-distance), 0)
    return weights / weights.sum(1, keepdims=True)


def _reciprocal(rank: NDArray[np.int64], k: int, is_picture: bool) -> NDArray[np.bool_]:
    """member[i, j]: whether j is in the set of i, which holds i itself and neighbours among the k nearest of each other."""
    near = rank <= k
    member = near & near.T
    if not is_picture:
        member[0] = near[0]
    return member


def _both(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Floats:
    """How many each row of the first has in common with each row of the second."""
    found: Floats = first.astype(np.float64) @ second.astype(np.float64).T
    return found
