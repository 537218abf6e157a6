"""Score the pictures of a category with every metric that applies and is available.

A metric that is not available is left out with its reason, never replaced by another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.evaluation.compbench import blip_vqa, clip_score, published
from components.evaluation.compbench.blip_vqa import BlipVqa
from components.evaluation.compbench.clip_score import ClipScore
from components.evaluation.compbench.phrases import Reading
from components.evaluation.compbench.pictures import Progress, PromptPicture
from components.evaluation.compbench.prompts import BLIP_VQA, CLIP_SCORE, METRIC, THREE_IN_ONE, UNIDET, Relation

ACTION_PART = f"{THREE_IN_ONE}, action prompts"
NO_BLIP, NO_CLIP = "no BLIP folder is given", "no CLIP weights are given"


@dataclass(frozen=True)
class Instruments:
    """The models, where available, and the reading of each prompt."""

    blip: BlipVqa | None = None
    clip: ClipScore | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)


@dataclass
class CategoryScores:
    """metric -> score of every picture (N,), NaN where it does not apply; and metric -> reason why it was left out."""

    pictures: Sequence[PromptPicture]
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def score_category(
    category: str,
    pictures: Sequence[PromptPicture],
    instruments: Instruments,
    *,
    unidet: Path,
    relations: Mapping[str, Relation] | None = None,
    progress: Progress = iter,
) -> CategoryScores:
    """Score a category's pictures. unidet: path of UniDet's result, if any; relations: of complex prompts."""
    found = CategoryScores(pictures)
    metric = METRIC[category]
    if metric in (BLIP_VQA, THREE_IN_ONE):
        _score_questions(found, instruments, progress)
    if metric in (CLIP_SCORE, THREE_IN_ONE):
        _score_match(found, instruments, metric == THREE_IN_ONE, progress)
    if metric in (UNIDET, THREE_IN_ONE):
        if unidet.is_file():
            found.scores[UNIDET] = published.read_unidet(unidet, pictures)
        else:
            found.skipped[UNIDET] = f"it is not part of this project; put its result at {published.UNIDET_FILE}"
    if metric == THREE_IN_ONE:
        _combine(found, relations or {})
    return found


def three_in_one(
    relation: Sequence[Relation],
    attribute: NDArray[np.float64],
    spatial: NDArray[np.float64],
    action: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the mean of the parts of a picture's prompt, (N,): attributes, and its relations (3_in_1.py).

    relation: (N,). A required part that is NaN makes the result NaN.
    """
    kind = np.array(relation)
    choices = [(spatial + attribute) * 0.5, (action + attribute) * 0.5, (attribute + spatial + action) / 3]
    scores: NDArray[np.float64] = np.select([kind == "spatial", kind == "action", kind == "both"], choices, np.nan)
    return scores


def _score_questions(found: CategoryScores, instruments: Instruments, progress: Progress) -> None:
    if instruments.blip is None:
        found.skipped[BLIP_VQA] = NO_BLIP
        return
    phrases = {prompt: reading.phrases for prompt, reading in instruments.readings.items()}
    found.scores[BLIP_VQA] = blip_vqa.score_pictures(instruments.blip, found.pictures, phrases, progress=progress)


def _score_match(found: CategoryScores, instruments: Instruments, plain: bool, progress: Progress) -> None:
    """CLIPScore; `plain`: without the prompt's adjectives, as in the action part of 3-in-1."""
    if instruments.clip is None:
        found.skipped[CLIP_SCORE] = NO_CLIP
        return
    prompts = {picture.prompt for picture in found.pictures}
    texts = {prompt: prompt for prompt in prompts}
    if plain:
        without = {prompt: instruments.readings[prompt].without_adjectives for prompt in prompts}
        texts = {prompt: text for prompt, text in without.items() if text is not None}
        if len(texts) < len(prompts):
            found.skipped[CLIP_SCORE] = "the file of phrases does not give every complex prompt 'without_adjectives'"
            return
    found.scores[CLIP_SCORE] = clip_score.score_pictures(instruments.clip, found.pictures, texts, progress=progress)


def _combine(found: CategoryScores, relations: Mapping[str, Relation]) -> None:
    """3-in-1 where all three parts are available; otherwise for the prompts without UniDet, under another name."""
    nothing = np.full(len(found.pictures), np.nan)
    parts = [found.scores.get(metric, nothing) for metric in (BLIP_VQA, UNIDET, CLIP_SCORE)]
    scores = three_in_one([relations[picture.prompt] for picture in found.pictures], *parts)
    lacking = [metric for metric in (BLIP_VQA, UNIDET, CLIP_SCORE) if metric not in found.scores]
    if not lacking:
        found.scores[THREE_IN_ONE] = scores
        return
    found.skipped[THREE_IN_ONE] = f"it needs {' and '.join(lacking)}"
    if lacking == [UNIDET] and not np.isnan(scores).all():
        found.scores[ACTION_PART] = scores
