"""Results of scores: means with intervals, scores per prompt, and differences of two folders of pictures.

Intervals resample prompts, because pictures of one prompt are not independent. Means are over pictures, as in the paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.compbench.pictures import Matched, PromptPicture
from components.evaluation.compbench.scoring import CategoryScores
from components.evaluation.intervals import Interval, bootstrap_difference, bootstrap_mean


def mean_score(scores: NDArray[np.float64], pictures: Sequence[PromptPicture], *, seed: int = 0) -> Interval:
    """Return the mean over pictures with its bootstrap interval over prompts."""
    return bootstrap_mean(scores, units=[picture.prompt for picture in pictures], seed=seed)


def per_prompt(scores: NDArray[np.float64], pictures: Sequence[PromptPicture]) -> dict[str, float]:
    """Return prompt -> mean score of its pictures, for prompts with a score, in the order of the pictures."""
    gathered: dict[str, list[float]] = {}
    for picture, score in zip(pictures, scores, strict=True):
        if not np.isnan(score):
            gathered.setdefault(picture.prompt, []).append(float(score))
    return {prompt: float(np.mean(values)) for prompt, values in gathered.items()}


def difference(first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0) -> Interval | None:
    """Return the mean over common prompts of `first` minus `second` (`per_prompt` of two folders), with its interval, or None."""
    shared = [prompt for prompt in first if prompt in second]
    if not shared:
        return None
    return bootstrap_difference([first[prompt] for prompt in shared], [second[prompt] for prompt in shared], seed=seed)


def arm_results(matched: Matched, found: CategoryScores) -> dict[str, Any]:
    """Return the entry of a results file for one folder of a category's pictures."""
    metrics = {
        metric: {**mean_score(scores, found.pictures).as_dict(), "prompts": per_prompt(scores, found.pictures)}
        for metric, scores in found.scores.items()
    }
    return {
        "pictures": len(found.pictures),
        "missing": matched.missing,
        "extra": list(matched.extra),
        "metrics": metrics,
        "skipped": found.skipped,
    }


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return metric -> `first` minus `second` with its interval, for common metrics and prompts of two `arm_results`."""
    found = {}
    for metric in first["metrics"]:
        if metric in second["metrics"]:
            ours, theirs = (arm["metrics"][metric]["prompts"] for arm in (first, second))
            interval = difference(ours, theirs)
            if interval:
                found[metric] = interval.as_dict()
    return found
