"""Alignment of generated pictures with their prompts, attribute by attribute, as the probe reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from components.errors import DataError
from components.evaluation.intervals import Interval, bootstrap_difference, bootstrap_mean
from components.evaluation.probe.model import MISSING, AttributeProbe


@dataclass(frozen=True)
class AlignmentScores:
    """Whether each picture shows the attributes of its prompt.

    attributes: A names; correct: (N, A) float64, 1 shown, 0 not shown, NaN not in the prompt.
    """

    attributes: tuple[str, ...]
    correct: NDArray[np.float64]

    def per_picture(self) -> NDArray[np.float64]:
        """Return the fraction of its prompt's attributes that each picture shows: (N,), NaN for a prompt without attributes."""
        asked = ~np.isnan(self.correct)
        count = asked.sum(1)
        return np.where(count > 0, np.nansum(self.correct, axis=1) / np.maximum(count, 1), np.nan)

    def per_attribute(self) -> dict[str, float]:
        """Return name -> percent of the pictures with it in the prompt that show it, for attributes of any prompt."""
        asked = ~np.isnan(self.correct)
        return {
            name: 100 * float(self.correct[asked[:, column], column].mean())
            for column, name in enumerate(self.attributes)
            if asked[:, column].any()
        }

    def mean(self) -> float:
        """Return the mean of `per_attribute` in percent: rare attributes count as much as common ones."""
        return float(np.mean(list(self.per_attribute().values())))

    def interval(self, *, units: Sequence[object] | None = None, seed: int = 0, level: float = 0.95) -> Interval:
        """Return the mean of `per_picture` in percent, with its bootstrap interval over `units` (prompts), (N,)."""
        return bootstrap_mean(100 * self.per_picture(), units=units, seed=seed, level=level)


def score_alignment(
    probe: AttributeProbe, pictures: Tensor, prompt_attributes: Sequence[Mapping[str, str]]
) -> AlignmentScores:
    """Compare the probe's attributes of pictures (N, 3, H, W) with those of their N prompts.

    Raises `DataError` when the numbers differ or a prompt has a value that the probe does not know.
    """
    if len(pictures) != len(prompt_attributes):
        raise DataError(f"{len(pictures)} pictures but attributes of {len(prompt_attributes)} prompts")
    wanted = probe.labels(prompt_attributes)
    correct = (probe.predict(pictures) == wanted).double().numpy()
    correct[(wanted == MISSING).numpy()] = np.nan
    return AlignmentScores(tuple(probe.attributes), correct)


def paired_difference(
    first: AlignmentScores,
    second: AlignmentScores,
    *,
    units: Sequence[object] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return `first` minus `second` in percentage points for the same prompts and noise, paired by row.

    The keys are "mean" (over `per_picture`) and the attributes. `units` (N,) are the prompts, where a prompt has several pictures.
    Raises `DataError` when the two do not have the same prompts.
    """
    if first.attributes != second.attributes or first.correct.shape != second.correct.shape:
        raise DataError(
            "the two arms were scored on different attributes or numbers of pictures; score the same prompts"
        )
    if not np.array_equal(np.isnan(first.correct), np.isnan(second.correct)):
        raise DataError("the two arms were asked for different attributes; score the same prompts in the same order")
    options: dict[str, Any] = {"units": units, "seed": seed, "level": level}
    differences = {"mean": bootstrap_difference(100 * first.per_picture(), 100 * second.per_picture(), **options)}
    for column, name in enumerate(first.attributes):
        if not np.isnan(first.correct[:, column]).all():
            differences[name] = bootstrap_difference(
                100 * first.correct[:, column], 100 * second.correct[:, column], **options
            )
    return differences
