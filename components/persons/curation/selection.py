"""Which pictures are fit to learn from (the idea of WebPerson, GA-DMS section 3: filter, then keep what matches).

The quality of generated ones is judged against real pictures, not by a fixed number: a picture is dropped when it is duller or
blurrier than nearly all real ones. Of the rest, the fraction that matches its captions best is kept, and of near duplicates one.
True attributes play no part.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.errors import DataError, ParameterError
from components.persons.curation.near_duplicates import NearDuplicates

KEPT, BLURRED, FLAT, MISMATCHED = "kept", "blurred", "flat", "does not match its captions"
DUPLICATE = "near duplicate"


@dataclass(frozen=True)
class Quality:
    """Per picture, float64 (N,): sharpness (mean absolute Laplacian of luminance), contrast (its standard deviation), in 0..255."""

    sharpness: NDArray[np.float64]
    contrast: NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """The least sharpness and contrast a picture may have."""

    sharpness: float
    contrast: float

    @classmethod
    def from_real(cls, real: Quality, share: float = 1.0, quantile: float = 0.005) -> "Thresholds":
        """`share` of what all but `quantile` of real pictures reach; a share of 0 lets everything pass."""
        return cls(
            share * float(np.quantile(real.sharpness, quantile)), share * float(np.quantile(real.contrast, quantile))
        )


@dataclass(frozen=True)
class Decision:
    """Whether a picture is kept, and why not."""

    reason: str

    @property
    def kept(self) -> bool:
        return self.reason == KEPT


def quality(blocks: Iterable[Tensor]) -> Quality:
    """Measure blocks of uint8 pictures (n, 3, H, W), one after another: a corpus need not fit in memory."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    sharpness, contrast = [], []
    for part in blocks:
        luminance = torch.einsum("nchw,c->nhw", part.double(), weights)
        inner = luminance[:, 1:-1, 1:-1]
        around = luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1] + luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
        sharpness.append((around - 4 * inner).abs().mean((1, 2)))
        contrast.append(luminance.flatten(1).std(1))
    return Quality(torch.cat(sharpness).numpy(), torch.cat(contrast).numpy())


def decide(
    measured: Quality,
    matches: Sequence[float],
    thresholds: Thresholds,
    keep_fraction: float,
    *,
    refused: Sequence[str | None] | None = None,
    hashes: Sequence[int] | None = None,
    near: int | None = None,
) -> list[Decision]:
    """A decision for each of N pictures; `matches` (N,) says how well each fits its captions (higher is better).

    `refused` holds the reasons that were found before (`components.persons.curation.rules`), None where there is none.
    `keep_fraction` of those that pass the quality test are kept, at least one; equal matches go by position. With `near`, of
    pictures whose `hashes` differ in at most that many bits only the best match stays.

    Raises ParameterError when `keep_fraction` does not lie in (0, 1], DataError when no picture passes.
    """
    reasons: list[str | None] = list(refused) if refused is not None else [None] * len(matches)
    for i, (sharpness, contrast) in enumerate(zip(measured.sharpness, measured.contrast, strict=True)):
        if reasons[i] is None and sharpness < thresholds.sharpness:
            reasons[i] = BLURRED
        elif reasons[i] is None and contrast < thresholds.contrast:
            reasons[i] = FLAT
    if all(reason is not None for reason in reasons):
        counts = ", ".join(f"{number} {reason}" for reason, number in Counter(reasons).most_common())
        raise DataError(
            f"curation: none of {len(matches)} generated pictures is fit to learn from ({counts}): train the generator longer, or "
            "lower curate.quality_share, or loosen the rules in curate"
        )
    none: list[int] = [0] * len(matches)
    final = final_reasons(reasons, matches, hashes or none, keep_fraction=keep_fraction, near=near)
    return [Decision(reason) for reason in final]


def final_reasons(
    reasons: Sequence[str | None],
    matches: Sequence[float | None],
    hashes: Sequence[int],
    *,
    least_match: float | None = None,
    keep_fraction: float = 1.0,
    near: int | None = None,
) -> list[str]:
    """The last word on each candidate: a reason to drop it, or KEPT. `matches` are None where nothing was matched.

    Of those that nothing is against: a match below `least_match` is dropped; of the rest the fraction `keep_fraction` that matches
    best is kept; and of hashes at most `near` bits apart the one that matches best (of equals, the first).
    """
    if not 0 < keep_fraction <= 1:
        raise ParameterError(f"keep_fraction = {keep_fraction}: must lie in (0, 1]")
    final = [KEPT if reason is None else reason for reason in reasons]
    score = np.array([0.0 if match is None else match for match in matches], dtype=np.float64)
    best_first = [int(i) for i in np.argsort(-score, kind="stable") if final[i] == KEPT]
    if least_match is not None:
        for i in best_first:
            if score[i] < least_match:
                final[i] = MISMATCHED
        best_first = [i for i in best_first if final[i] == KEPT]
    enough = max(1, round(keep_fraction * len(best_first)))
    for i in best_first[enough:]:
        final[i] = MISMATCHED
    if near is not None:
        seen = NearDuplicates(near)
        for i in best_first[:enough]:
            if seen.add(i, hashes[i]) is not None:
                final[i] = DUPLICATE
    return final
