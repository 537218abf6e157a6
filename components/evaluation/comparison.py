"""Paired comparison of arms with a baseline, on the same prompts or queries.

Pairing removes what all arms have in common (a hard prompt, a rare person), so a difference has a narrower interval than two means.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError
from components.evaluation.alignment import AlignmentScores, paired_difference
from components.evaluation.intervals import Interval, bootstrap_difference
from components.evaluation.retrieval_result import RetrievalResult

Columns = Mapping[str, Sequence[Any]]
NOT_ATTRIBUTES = ("source", "prompt_id")


def alignment_scores(table: Columns, source: str) -> tuple[list[int], AlignmentScores]:
    """Return the prompts (N,) and scores (N, A) of one source; a table has source, prompt_id and attribute columns (1, 0, NaN)."""
    rows = [row for row, value in enumerate(table["source"]) if value == source]
    attributes = tuple(name for name in table if name not in NOT_ATTRIBUTES)
    correct = np.array([[_number(table[name][row]) for name in attributes] for row in rows], dtype=np.float64)
    return [table["prompt_id"][row] for row in rows], AlignmentScores(attributes, correct)


def alignment_differences(
    tables: Mapping[str, Columns], baseline: str, source: str, seed: int
) -> dict[str, dict[str, Interval]]:
    """Return arm -> {"mean" or an attribute: `arm` minus `baseline` in percentage points}, resampled by prompt.

    Raises DataError when the arms' rows do not belong to the same prompts in the same order.
    """
    prompts, reference = alignment_scores(tables[baseline], source)
    differences = {}
    for arm, table in tables.items():
        if arm == baseline:
            continue
        asked, scores = alignment_scores(table, source)
        if asked != prompts:
            raise DataError(f"alignment of {arm!r} and {baseline!r} ({source}): different prompts; evaluate both again")
        differences[arm] = paired_difference(scores, reference, units=prompts, seed=seed)
    return differences


def retrieval_differences(
    tables: Mapping[str, Columns], baseline: str, identities: Mapping[int, int], seed: int, k: int = 1
) -> dict[str, Interval]:
    """Return arm -> R@k of `arm` minus that of `baseline` in percentage points, resampled by identity.

    tables hold caption_id and the columns of `RetrievalResult` (Q,), the same queries in the same order; identities: caption_id ->
    identity.
    Raises DataError when the queries differ.
    """
    queries = list(tables[baseline]["caption_id"])
    units = [identities[query] for query in queries]
    reference = retrieval_hits(tables[baseline], k)
    differences = {}
    for arm, table in tables.items():
        if arm == baseline:
            continue
        if list(table["caption_id"]) != queries:
            raise DataError(f"retrieval of {arm!r} and {baseline!r}: different queries; evaluate both again")
        differences[arm] = bootstrap_difference(retrieval_hits(table, k), reference, units=units, seed=seed)
    return differences


def retrieval_hits(table: Columns, k: int) -> NDArray[np.float64]:
    """Return the percentage with which a relevant picture is among the first k, NaN where the gallery has none: (Q,)."""
    results = RetrievalResult.from_columns(table)
    hits: NDArray[np.float64] = np.where(results.valid, 100 * results.hits(k), np.nan)
    return hits


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
