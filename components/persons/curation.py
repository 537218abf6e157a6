"""Which generated pictures are fit to learn from (the idea of WebPerson, GA-DMS section 3: filter, then keep what matches).

Quality is judged against real pictures, not by a fixed number: a picture is dropped when it is duller or blurrier than nearly all
real ones. Of the rest, the fraction that matches its captions best is kept. True attributes play no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.errors import DataError, ParameterError

KEPT, BLURRED, FLAT, MISMATCHED = "kept", "blurred", "flat", "does not match its captions"


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


def quality(pixels: Tensor) -> Quality:
    """Measure uint8 pictures (N, 3, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    sharpness, contrast = [], []
    for part in pixels.split(512):
        luminance = torch.einsum("nchw,c->nhw", part.double(), weights)
        inner = luminance[:, 1:-1, 1:-1]
        around = luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1] + luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
        sharpness.append((around - 4 * inner).abs().mean((1, 2)))
        contrast.append(luminance.flatten(1).std(1))
    return Quality(torch.cat(sharpness).numpy(), torch.cat(contrast).numpy())


def decide(measured: Quality, matches: Sequence[float], thresholds: Thresholds, keep_fraction: float) -> list[Decision]:
    """A decision for each of N pictures; `matches` (N,) says how well each fits its captions (higher is better).

    `keep_fraction` of those that pass the quality test are kept, at least one; equal matches go by position.
    Raises ParameterError when it does not lie in (0, 1], DataError when no picture passes.
    """
    if not 0 < keep_fraction <= 1:
        raise ParameterError(f"keep_fraction = {keep_fraction}: must lie in (0, 1]")
    reasons = np.full(len(matches), KEPT, dtype=object)
    reasons[measured.contrast < thresholds.contrast] = FLAT
    reasons[measured.sharpness < thresholds.sharpness] = BLURRED
    passed = np.flatnonzero(reasons == KEPT)
    if not len(passed):
        raise DataError(
            f"curation: none of {len(matches)} generated pictures is as sharp and contrasted as real ones: train the generator "
            "longer, or lower curate.quality_share"
        )
    best_first = passed[np.argsort(-np.asarray(matches, dtype=np.float64)[passed], kind="stable")]
    reasons[best_first[max(1, round(keep_fraction * len(passed))) :]] = MISMATCHED
    return [Decision(str(reason)) for reason in reasons]
