"""Selection of training pictures as for WebPerson (GA-DMS section 3): filter by quality, then keep the best matches.

The quality of generated pictures is compared with real ones: a picture is dropped when it is duller or blurrier than nearly all of
them. Of the rest, the fraction with the best matching captions is kept, and one of near duplicates. True attributes are not used.
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
from components.persons.records import SPLITS

KEPT, BLURRED, FLAT, MISMATCHED = "kept", "blurred", "flat", "does not match its captions"
DUPLICATE, EQUAL, OTHER_SPLIT = "near duplicate", "equal to another picture", "person of another split"


@dataclass(frozen=True)
class Quality:
    """Per picture, float64 (N,): sharpness (mean absolute Laplacian of luminance), contrast (its standard deviation), in 0..255."""

    sharpness: NDArray[np.float64]
    contrast: NDArray[np.float64]


@dataclass(frozen=True)
class Thresholds:
    """Minimum sharpness and contrast of a picture."""

    sharpness: float
    contrast: float

    @classmethod
    def from_real(cls, real: Quality, fraction: float = 1.0, quantile: float = 0.005) -> "Thresholds":
        """`fraction` of the `quantile` of real pictures, which all but the worst reach; 0 accepts every picture."""
        return cls(
            fraction * float(np.quantile(real.sharpness, quantile)),
            fraction * float(np.quantile(real.contrast, quantile)),
        )


def quality(blocks: Iterable[Tensor]) -> Quality:
    """Measure uint8 pictures block by block, (n, 3, H, W) each, so that a corpus need not fit in memory."""
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
) -> list[str]:
    """Return for each of N pictures KEPT or the reason to drop it; `matches` (N,): how well each fits its captions.

    `refused` holds the reasons of the rules (`components.persons.curation.rules`), None where there is none. `keep_fraction` of the
    pictures that pass the quality test are kept, at least one; ties are broken by position. With `near`, only the best match of
    pictures whose `hashes` differ in at most that many bits is kept.

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
            f"curation: none of {len(matches)} generated pictures is kept ({counts}): train the generator longer, or "
            "lower curate.quality_share, or loosen the rules in curate"
        )
    return final_reasons(reasons, matches, hashes, keep_fraction=keep_fraction, near=near)


def final_reasons(
    reasons: Sequence[str | None],
    matches: Sequence[float | None],
    hashes: Sequence[int] | None = None,
    *,
    min_match: float | None = None,
    keep_fraction: float = 1.0,
    near: int | None = None,
) -> list[str]:
    """Return for each candidate KEPT or the reason to drop it. `matches` are None where nothing was matched.

    Candidates not rejected so far are dropped where their match is below `min_match`. The fraction `keep_fraction` with the best
    matches is kept of the rest, and of hashes at most `near` bits apart the best match (the first of equals).

    Raises ParameterError for a `keep_fraction` outside (0, 1], and for `near` without hashes.
    """
    if not 0 < keep_fraction <= 1:
        raise ParameterError(f"keep_fraction = {keep_fraction}: must lie in (0, 1]")
    if near is not None and hashes is None:
        raise ParameterError(f"near = {near}: near duplicates are found by their hashes; give one for each picture")
    final = [KEPT if reason is None else reason for reason in reasons]
    score = np.array([0.0 if match is None else match for match in matches], dtype=np.float64)
    best_first = [int(i) for i in np.argsort(-score, kind="stable") if final[i] == KEPT]
    if min_match is not None:
        for i in best_first:
            if score[i] < min_match:
                final[i] = MISMATCHED
        best_first = [i for i in best_first if final[i] == KEPT]
    enough = max(1, round(keep_fraction * len(best_first)))
    for i in best_first[enough:]:
        final[i] = MISMATCHED
    if near is not None and hashes is not None:
        seen = NearDuplicates(near)
        for i in best_first[:enough]:
            if seen.add(i, hashes[i]) is not None:
                final[i] = DUPLICATE
    return final


def without_conflicts(
    reasons: Sequence[str], contents: Sequence[str], identities: Sequence[int | None], splits: Sequence[str]
) -> list[str]:
    """Return `reasons` with those of kept candidates that `prepare` would refuse beside the others, so that it reads what is kept.

    A person of several splits is kept in the split of most of its pictures (on a tie the first). Of equal contents, those of the
    last split are kept, and of train one alone; val and test keep theirs, as in the galleries of published results.
    """
    final = list(reasons)
    kept = [i for i, reason in enumerate(final) if reason == KEPT]
    votes = Counter((identities[i], splits[i]) for i in kept)
    for i in kept:
        home = max(SPLITS, key=lambda split: votes[identities[i], split])
        if identities[i] is not None and splits[i] != home:
            final[i] = OTHER_SPLIT
    kept = [i for i in kept if final[i] == KEPT]
    last: dict[str, int] = {}
    for i in kept:
        last[contents[i]] = max(last.get(contents[i], 0), SPLITS.index(splits[i]))
    seen: set[str] = set()
    for i in kept:
        if splits[i] != SPLITS[last[contents[i]]] or (splits[i] == "train" and contents[i] in seen):
            final[i] = EQUAL
        seen.add(contents[i])
    return final
