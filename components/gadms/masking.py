"""Two masked copies of each caption (GA-DMS sections 4.2 and 4.3).

The *noise copy* goes to the matching loss: tokens with a low score, likely wrong, are masked. The *prediction copy*
goes to the masked-token loss: tokens with a high score, worth predicting, are masked. With s the score in [0, 1]:

    p_noise(s)      = noise_limit      * sigmoid(slope * (threshold - s))          (equation 5)
    p_prediction(s) = prediction_limit * sigmoid(slope * (s - threshold))          (equation 9)

A token whose score is not known yet is masked at random, at the plain rate. NAM (arXiv 2405.04940) has one copy and
another rule, which hits its rate by construction:

    p_noise(s)      = clip(rate + (1 - s) - mean of (1 - s) over the caption, 0, 1)

Masks are drawn for the global batch as a function of (seed, step), and each rank takes its rows, so they do not depend on the
number of workers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from components.gadms.config import MaskingConfig, Replacement
from components.training.randomness import generator, rank_part


@dataclass(frozen=True)
class DualMask:
    """Both copies. Ids int64 (B, T); `labels` int64 (B, T) holds the original id at predicted positions, 0 elsewhere."""

    noise_ids: Tensor
    prediction_ids: Tensor
    labels: Tensor
    noise_chosen: Tensor  # bool (B, T)
    prediction_chosen: Tensor  # bool (B, T)
    noise_rate: Tensor  # fraction of the maskable tokens, scalar
    prediction_rate: Tensor


def masking_probabilities(
    scores: Tensor, config: MaskingConfig, valid: Tensor | None = None, threshold: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (noise, prediction) probabilities like `scores` (B, T); a negative score is unknown and has the random rates.

    `valid` bool (B, T): the maskable tokens, by default all. `threshold` replaces that of `config`.
    """
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    unknown = scores < 0
    if config.rule == "nam":
        rate = config.random_noise_rate if config.target_noise_rate is None else config.target_noise_rate
        known, badness = valid & ~unknown, 1 - scores
        mean = (badness * known).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp_min(1)
        noise = (rate + badness - mean).clamp(0, 1)
        prediction = torch.full_like(scores, config.random_prediction_rate)
    else:
        distance = config.slope * (scores - (config.threshold if threshold is None else threshold))
        noise = config.noise_limit * torch.sigmoid(-distance)
        prediction = config.prediction_limit * torch.sigmoid(distance)
    noise = torch.where(unknown, config.random_noise_rate, noise)
    return noise, torch.where(unknown, config.random_prediction_rate, prediction)


def calibrated_threshold(scores: Tensor, valid: Tensor, config: MaskingConfig) -> Tensor:
    """Find the threshold at which the mean noise probability of known tokens is the target rate; scalar, by bisection.

    scores, valid (B, T) of the global batch. Without a target rate or a known token it is the threshold of `config`.
    """
    known = scores[valid & (scores >= 0)].double()
    plain = torch.tensor(config.threshold, dtype=torch.float64, device=scores.device)
    if config.target_noise_rate is None or config.rule == "nam" or not len(known):
        return plain.to(scores.dtype)
    margin = 40 / config.slope  # beyond it the sigmoid is 0 or 1
    low, high = plain * 0 - margin, plain * 0 + 1 + margin
    for _ in range(50):
        middle = (low + high) / 2
        rate = config.noise_limit * torch.sigmoid(config.slope * (middle - known)).mean()
        low, high = (
            torch.where(rate < config.target_noise_rate, middle, low),
            torch.where(rate < config.target_noise_rate, high, middle),
        )
    return ((low + high) / 2).to(scores.dtype)


def maskable(ids: Tensor, mask_id: int) -> Tensor:
    """Return the tokens between start and end, without padding: bool (B, T)."""
    before_end = torch.arange(ids.shape[1], device=ids.device) < ids.argmax(dim=-1, keepdim=True)
    return before_end & (ids > 0) & (ids < mask_id)


def dual_mask(
    ids: Tensor,
    scores: Tensor,
    *,
    mask_id: int,
    seed: int,
    step: int,
    config: MaskingConfig | None = None,
    rank: int = 0,
    world_size: int = 1,
    threshold: Tensor | None = None,
) -> DualMask:
    """Draw the noise copy and the prediction copy of raw captions.

    ids int64 (B, T), not changed; scores (B, T) in [0, 1], negative for unknown: with unknown scores alone, masking is random. With
    several ranks each passes its own rows, all the same number. `threshold`: that of `calibrated_threshold` for the rows of all
    ranks, by default for these rows.
    """
    config = config or MaskingConfig()
    scores, valid = scores.float(), maskable(ids, mask_id)
    if threshold is None:
        threshold = calibrated_threshold(scores, valid, config)
    noise, prediction = masking_probabilities(scores, config, valid, threshold)
    return _draw(ids, noise, prediction, mask_id, seed, step, config, rank, world_size)


def _draw(
    ids: Tensor,
    noise: Tensor,
    prediction: Tensor,
    mask_id: int,
    seed: int,
    step: int,
    config: MaskingConfig,
    rank: int,
    world_size: int,
) -> DualMask:
    rows, width = ids.shape
    stream = generator(seed, "mask", step)
    # (choose, how to replace, which random token) for each copy, of the whole batch.
    draws = torch.rand(world_size * rows, 6, width, generator=stream)
    draws = rank_part(draws, rank, world_size).to(ids.device)
    allowed = maskable(ids, mask_id)
    noise_chosen = allowed & (draws[:, 0] < noise)
    prediction_chosen = allowed & (draws[:, 3] < prediction)
    noise_ids = _replace(ids, noise_chosen, draws[:, 1], draws[:, 2], mask_id, config.noise_replacement)
    prediction_ids = _replace(ids, prediction_chosen, draws[:, 4], draws[:, 5], mask_id, config.prediction_replacement)
    if config.mask_first:
        noise_ids, noise_chosen = _mask_first(noise_ids, noise_chosen, allowed, mask_id)
        prediction_ids, prediction_chosen = _mask_first(prediction_ids, prediction_chosen, allowed, mask_id)
    total = allowed.sum().clamp_min(1)
    return DualMask(
        noise_ids=noise_ids,
        prediction_ids=prediction_ids,
        labels=torch.where(prediction_chosen, ids, 0),
        noise_chosen=noise_chosen,
        prediction_chosen=prediction_chosen,
        noise_rate=noise_chosen.sum() / total,
        prediction_rate=prediction_chosen.sum() / total,
    )


def _mask_first(ids: Tensor, chosen: Tensor, allowed: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Mask the first token, if it may be, of rows in which none was chosen; always by the mask token, as the released code does."""
    first = torch.zeros_like(chosen)
    first[:, 1] = allowed[:, 1] & ~chosen.any(-1)
    return torch.where(first, mask_id, ids), chosen | first


def _replace(ids: Tensor, chosen: Tensor, how: Tensor, which: Tensor, mask_id: int, rule: Replacement) -> Tensor:
    """Replace chosen tokens; random ones are from 1 to mask_id - 1, so that the end token keeps its position."""
    if rule == "mask":
        return torch.where(chosen, mask_id, ids)
    random = 1 + (which * (mask_id - 1)).long().clamp_max(mask_id - 2)
    replaced = torch.where(how < 0.8, mask_id, torch.where(how < 0.9, random, ids))
    return torch.where(chosen, replaced, ids)
