"""Results of retrieval per query, the means over them, and their columns in a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.errors import DataError
from components.evaluation.ties import expected_hits

TOP_K = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalResult:
    """Per query (Q,), in the order given; queries without a relevant picture have rank 0 and zeros.

    Attributes:
        first_rank: int64, 1 + the number of irrelevant pictures that score higher than the first relevant one: its rank if it came
            first among equals.
        tied_relevant, tied_irrelevant: int64, the numbers of pictures with the score of the first relevant one, itself included.
        average_precision, inverse_negative_penalty: float64, expected over the order of equals.
        tied: bool, whether a relevant and an irrelevant picture have the same score, at any rank.
        found: int64, the gallery row with the highest score, the first of equals; -1 in results read from a table.
    """

    first_rank: Tensor
    tied_relevant: Tensor
    tied_irrelevant: Tensor
    average_precision: Tensor
    inverse_negative_penalty: Tensor
    tied: Tensor
    found: Tensor

    @classmethod
    def from_columns(cls, table: Mapping[str, Sequence[Any]]) -> "RetrievalResult":
        """Read the columns that `columns` wrote. Those that an earlier version did not write say that nothing is tied."""
        first = torch.tensor(table["first_rank"], dtype=torch.int64)
        others = {
            "tied_relevant": (first > 0).long(),
            "tied_irrelevant": torch.zeros_like(first),
            "average_precision": torch.zeros_like(first, dtype=torch.float64),
            "inverse_negative_penalty": torch.zeros_like(first, dtype=torch.float64),
            "tied": torch.zeros_like(first, dtype=torch.bool),
            "found": torch.full_like(first, -1),
        }
        read = {name: torch.tensor(table[name], dtype=c.dtype) if name in table else c for name, c in others.items()}
        return cls(first, **read)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of a table, one row per query; `found` is a row of a gallery that the table does not know."""
        return {field.name: getattr(self, field.name).numpy() for field in fields(self) if field.name != "found"}

    def rows(self, chosen: Sequence[int]) -> "RetrievalResult":
        """Return the result of some of the queries."""
        return RetrievalResult(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @property
    def valid(self) -> Tensor:
        """Whether the query has a relevant picture, bool (Q,)."""
        return self.first_rank > 0

    def hits(self, k: int) -> Tensor:
        """Return the probability that a relevant picture is among the first k, float64 (Q,): 0 or 1 but for ties."""
        return expected_hits(self.first_rank - 1, self.tied_relevant, self.tied_irrelevant, k)

    def metrics(self, top_k: tuple[int, ...] = TOP_K) -> dict[str, float]:
        """Return means in percent over the valid queries, the percentage with ties, and the numbers of queries."""
        valid = self.valid
        if not valid.any():
            raise DataError(
                "retrieval: no query has a picture of its identity in the gallery; check the identities of the split"
            )
        result = {f"R@{k}": 100 * self.hits(k)[valid].mean().item() for k in top_k}
        result["mAP"] = 100 * self.average_precision[valid].mean().item()
        result["mINP"] = 100 * self.inverse_negative_penalty[valid].mean().item()
        result["tied_share"] = 100 * self.tied[valid].double().mean().item()
        result["queries"] = float(valid.sum())
        result["queries_without_match"] = float((~valid).sum())
        return result
