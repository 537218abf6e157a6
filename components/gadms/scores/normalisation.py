"""Raw token scores to [0, 1]. Raw values of different scores have different scales; masking needs one.

    max        ReLU, then divided by the caption's largest (the paper's score, made well defined)
    signed     divided by the caption's largest magnitude, then (1 + x) / 2: below one half *speaks against* the picture
    rank       rank among the caption's tokens, worst 0, best 1; ties share theirs
    quantile   quantile among all tokens of the batch: a caption without a bad token has no low score
    clip       unchanged, cut to [0, 1]
    batch      min-max over the whole batch tensor, as the released code does; one outlier moves all others

ReLU discards what noise detection needs: a wrong word lowers the match, its raw score is negative, and "max" makes it equal to
every word without an effect, such as "a" and "the". With a trained encoder of the default pipeline and 800 of its training
captions, the paper's score finds wrong words no better than chance with "max" (AUC 0.50 with one layer, 0.52 with both of the
small tower) and at 0.57 and 0.64 with its sign. "signed", "rank" and "quantile" keep the sign; masking then needs a
`target_noise_rate`, because they spread scores differently.
"""

import torch
from torch import Tensor

from components.evaluation.auc import twice_below
from components.gadms.config import Normalisation


@torch.no_grad()
def normalise(raw: Tensor, valid: Tensor, rule: Normalisation, pool: Tensor | None = None) -> Tensor:
    """Map raw scores (B, T) to [0, 1], larger still better, in fp32 or better; 0 where not `valid` (bool, B x T).

    `pool` (N,): the values among which "quantile" ranks a score; by default those of the batch itself.
    """
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if rule == "max":
        score = raw.masked_fill(~valid, 0).relu()
        largest = score.amax(-1, keepdim=True)
        score = torch.where(largest > 0, score / largest, 0.0)
    elif rule == "signed":
        largest = raw.masked_fill(~valid, 0).abs().amax(-1, keepdim=True)
        score = (1 + torch.where(largest > 0, raw / largest, 0.0)) / 2
    elif rule == "rank":
        score = _rank(raw, valid)
    elif rule == "quantile":
        score = _quantile(raw, raw[valid] if pool is None else pool.to(raw.dtype))
    elif rule == "batch":
        raw = raw.masked_fill(~valid, 0)
        low, high = raw.amin(), raw.amax()
        score = torch.where(high > low, (raw - low) / (high - low), torch.zeros_like(raw))
    else:
        score = raw.clamp(0, 1)
    return score.masked_fill(~valid, 0)


def _rank(raw: Tensor, valid: Tensor) -> Tensor:
    """Fraction of the caption's other tokens that score lower, ties one half; a single token gets one half."""
    others = valid[:, None] & ~torch.eye(raw.shape[1], dtype=torch.bool, device=raw.device)  # (B, T, T)
    lower = (raw[:, None] < raw[..., None]).float() + (raw[:, None] == raw[..., None]).float() / 2
    count = (valid.sum(-1, keepdim=True) - 1).clamp_min(0)
    rank = (lower * others).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, rank, 0.5)


def _quantile(raw: Tensor, pool: Tensor) -> Tensor:
    """Fraction of `pool` (N,) below each value, ties one half."""
    return twice_below(raw, pool).float() / (2 * len(pool)) if len(pool) else torch.zeros_like(raw)
