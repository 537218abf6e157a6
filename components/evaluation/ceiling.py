"""The ceiling of retrieval by attributes: a model that reads the attributes of pictures and captions without error."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def attribute_match_ceiling(
    queries: Sequence[Mapping[str, str]], gallery: Sequence[Mapping[str, str]], query_ids: Tensor, gallery_ids: Tensor
) -> dict[str, float]:
    """Return the expected R@1 in percent when each query takes the picture with most matching attributes, ties at random.

    The score counts equal attributes minus different ones, among those that both state. Below 100 where people look alike.
    """
    names = sorted({name for item in (*queries, *gallery) for name in item})
    asked, held = _codes(queries, names, gallery), _codes(gallery, names, queries)
    hits = []
    for row, identity in zip(asked, query_ids, strict=True):
        both = (row >= 0) & (held >= 0)  # (G, A)
        same = held == row
        agreement = (both & same).sum(1) - (both & ~same).sum(1)
        best = agreement == agreement.max()
        hits.append((gallery_ids[best] == identity).double().mean())
    return {"R@1": 100 * torch.stack(hits).mean().item()}


def _codes(items: Sequence[Mapping[str, str]], names: Sequence[str], others: Sequence[Mapping[str, str]]) -> Tensor:
    """Values as integers (N, A), -1 where an item does not state one; the numbering covers `others` too."""
    tables = [
        {value: code for code, value in enumerate(sorted({i[n] for i in (*items, *others) if n in i}))} for n in names
    ]
    rows = [[table.get(item.get(name, ""), -1) for name, table in zip(names, tables, strict=True)] for item in items]
    return torch.tensor(rows, dtype=torch.int64)
