"""Expected values of retrieval metrics where pictures have equal scores, over a random order of the equal ones.

An encoder that gives every picture the same vector finds nothing, so its metrics must be those of a random ranking: a tie
resolved in the query's favour would give it R@1 = 100 %, and resolved by position it would depend on the order of the files.

Notation for one query and one score: a irrelevant and c relevant pictures score higher; r relevant and n irrelevant
pictures have this score. In a random order these m = r + n pictures take the ranks s + 1 ... s + m, where s = a + c.

    hit at k    of the first score with a relevant picture (c = 0): with t = k - a places left for m pictures,
                    1 - C(n, t) / C(m, t) = sum_{i < t} r / (m - i) prod_{j < i} (n - j) / (m - j), and 0 if t <= 0
    AP          the relevant pictures of this score contribute together
                    sum_{j=1..m} r/m (c + 1 + (j - 1) q) / (s + j) = r/m (m q + (c + 1 - q (s + 1)) (H_{s+m} - H_s)),
                where r/m is the probability of a relevant picture at place j, q = (r - 1) / (m - 1) that of another one at each
                place before it, and H the harmonic numbers (McSherry and Najork, ECIR 2008, for binary relevance)
    INP         of the last score with a relevant picture: the last of r among m is at place x with probability
                C(x - 1, r - 1) / C(m, r), so the expectation is sum_{x=r..m} C(x - 1, r - 1) / C(m, r) (c + r) / (s + x)

Without an irrelevant picture of the same score (n = 0) these are the plain definitions.
"""

import numpy as np
import torch
from torch import Tensor


def expected_hits(above: Tensor, relevant: Tensor, irrelevant: Tensor, k: int) -> Tensor:
    """Probability of a relevant picture among the first k: float64 like `above`; 0 where `relevant` is 0.

    above, relevant, irrelevant: a, r and n of the first score with a relevant picture, int64 tensors of one shape.
    """
    places = k - above
    hit, missed = torch.zeros(above.shape, dtype=torch.float64), torch.ones(above.shape, dtype=torch.float64)
    for taken in range(min(k, int(irrelevant.max()) + 1) if irrelevant.numel() else 0):
        left = (relevant + irrelevant - taken).clamp_min(1)
        hit = torch.where(taken < places, hit + missed * relevant / left, hit)
        missed = missed * (irrelevant - taken).clamp_min(0) / left
    return hit


def expected_precision(above: Tensor, before: Tensor, relevant: Tensor, irrelevant: Tensor) -> Tensor:
    """Expected precision at a relevant picture, averaged over the r of one score: float64; arguments: a, c, r, n of each score."""
    size, higher = relevant + irrelevant, above + before
    share = (relevant - 1).double() / (size - 1).clamp_min(1)
    harmonic = torch.special.digamma((higher + size + 1).double()) - torch.special.digamma((higher + 1).double())
    return share + (before + 1 - share * (higher + 1)) * harmonic / size


def expected_penalty(above: Tensor, before: Tensor, relevant: Tensor, irrelevant: Tensor) -> Tensor:
    """Expected INP, float64 (N,); arguments: a, c, r, n of the last score with a relevant picture, (N,).

    Takes time in proportion to n for each different combination of its arguments.
    """
    ties, row = torch.stack([above + before, relevant, irrelevant], dim=1).unique(dim=0, return_inverse=True)
    inverse_rank = torch.tensor([_inverse_last_rank(*tie) for tie in ties.tolist()], dtype=torch.float64)
    return (before + relevant) * inverse_rank[row]


def _inverse_last_rank(higher: int, relevant: int, irrelevant: int) -> float:
    """E[1 / rank of the last relevant picture]; the probabilities of places m ... r as products of their ratios."""
    place = np.arange(relevant + irrelevant, relevant - 1, -1, dtype=np.float64)
    ratios = (place[:-1] - relevant) / (place[:-1] - 1)
    chance = np.cumprod(np.concatenate([[relevant / place[0]], ratios]))
    return float((chance / (higher + place)).sum())
