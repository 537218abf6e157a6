"""Retrieval metrics of one ranking at a time, with ties counted out: what `components.evaluation.retrieval` is compared with."""

from functools import cache
from math import comb

import torch


def expected(scores, query_ids, gallery_ids, left_out=None, top_k=(1, 5, 10)):
    """For each query None without a relevant picture, else its R@k for each of `top_k`, AP, INP, and whether it is tied.

    Equal scores come in every order with the same probability; each group of them is counted out by binomials, exactly.
    """
    query_ids, gallery_ids = torch.as_tensor(query_ids).tolist(), torch.as_tensor(gallery_ids).tolist()
    keys = [key.tolist() for key in left_out] if left_out else None
    results = []
    for i, row in enumerate(scores.tolist()):
        counts = {}  # score -> (relevant, irrelevant)
        for j, score in enumerate(row):
            own = gallery_ids[j] == query_ids[i]
            if not (own and keys and keys[0][i] == keys[1][j]):
                relevant, irrelevant = counts.get(score, (0, 0))
                counts[score] = (relevant + own, irrelevant + (not own))
        groups, above, before = [], 0, 0
        for score in sorted(counts, reverse=True):
            relevant, irrelevant = counts[score]
            if relevant:
                groups.append((above, before, relevant, irrelevant))
            before, above = before + relevant, above + irrelevant
        results.append(_metrics(groups, top_k) if groups else None)
    return results


def _metrics(groups, top_k):
    """groups: (irrelevant above, relevant above, relevant, irrelevant) of each score with a relevant picture, highest first."""
    (above, _, relevant, irrelevant), last = groups[0], groups[-1]
    total = last[1] + last[2]
    hits = []
    for k in top_k:
        places = min(max(0, k - above), relevant + irrelevant)
        hits.append(1 - comb(irrelevant, places) / comb(relevant + irrelevant, places))
    tied = any(group[3] for group in groups)
    return (*hits, sum(_precisions(*group) for group in groups) / total, _penalty(*last), tied)


@cache
def _precisions(above, before, relevant, irrelevant):
    """The expected sum of precisions at the relevant pictures of a group, over places and the relevant ones before them."""
    size = relevant + irrelevant
    return sum(
        comb(place - 1, found)
        * comb(size - place, relevant - 1 - found)
        / comb(size, relevant)
        * (before + found + 1)
        / (above + before + place)
        for place in range(1, size + 1)
        for found in range(min(place, relevant))
    )


@cache
def _penalty(above, before, relevant, irrelevant):
    """The expected number of relevant pictures over the rank of the last, over its places in the group."""
    size = relevant + irrelevant
    orders = comb(size, relevant)
    return sum(
        comb(place - 1, relevant - 1) / orders * (before + relevant) / (above + before + place)
        for place in range(relevant, size + 1)
    )
