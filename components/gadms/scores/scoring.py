"""Scores of caption tokens by name: how much each serves the match of its caption with its picture, in [0, 1].

    gradient        the paper's (`scores.py`)
    released        the paper's as its code computes it (`released.py`)
    grad-eclip, attention, max-patch, random        to compare with (`other_scores.py`)
    leave-one-out   what the match loses without the token, exactly; one text pass a token (`leave_one_out.py`)
    path            the same to first order, a forward and backward pass a point
    likelihood      how well the masked-token decoder predicts it: kept while training, see `caption_scorer.py`
    truth           0 for words known to be wrong, else 1: no score, but what a perfect one would do (drawn people)

Raw values of different scores have different scales; masking wants [0, 1]. Normalisations:

    max        ReLU, then divided by the caption's largest (the paper's score, made well defined)
    signed     divided by the caption's largest magnitude, then (1 + x) / 2: below one half *speaks against* the picture
    rank       place among the caption's tokens, worst 0, best 1; ties share theirs
    quantile   place among all tokens of the batch: a caption without a bad token has no low score
    clip       as it is, cut to [0, 1]
    batch      min-max over the whole batch tensor, as the released code does; one outlier moves all others

What ReLU throws away is what noise detection needs: a wrong word lowers the match, its raw score is negative, and "max"
makes it the equal of every word that does nothing, such as "a" and "the". With a trained encoder of the default pipeline and 800
of its training captions, the paper's score finds wrong words no better than chance with "max" (AUC 0.50 with one layer, 0.52 with
both of the small tower) and at 0.57 and 0.64 with its sign. "signed", "rank" and "quantile" keep the sign; masking then
wants a `target_noise_rate`, for they spread scores otherwise.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from components.errors import ParameterError
from components.gadms.masking import maskable
from components.gadms.model import DualEncoder
from components.gadms.scores.controls import attention_only, grad_eclip, max_patch, random_values
from components.gadms.scores.gradient import Heads, end_token_maps, scores_of
from components.gadms.scores.leave_one_out import leave_one_out, path
from components.gadms.scores.released import released_scores

ScoreName = Literal[
    "gradient",
    "released",
    "grad-eclip",
    "max-patch",
    "attention",
    "random",
    "leave-one-out",
    "path",
    "likelihood",
    "truth",
]
Normalisation = Literal["max", "signed", "rank", "quantile", "clip", "batch"]
USUAL: dict[ScoreName, Normalisation] = {
    "released": "batch",
    "max-patch": "clip",
    "random": "clip",
    "leave-one-out": "signed",
    "path": "signed",
    "likelihood": "quantile",
    "truth": "clip",
}
"""Where it is not "max". Of scores with a sign, only those that were published without it lose it unasked."""


@dataclass(frozen=True)
class ScoringConfig:
    """A score and its settings; one that a score does not have is ignored.

    layers: how many of the last text layers (None: two thirds). scales: widths of the key pooling. heads: "model", or
    "single" as in the released code. points: of the path. temperature: match against the other pictures of this rank's
    batch, so that the score depends on them (leave-one-out, path); None for the cosine alone. normalisation: None for
    the score's own (USUAL).
    """

    name: ScoreName = "gradient"
    layers: int | None = None
    scales: tuple[int, ...] = (1, 2)
    heads: Heads = "model"
    points: int = 4
    temperature: float | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        for key, allowed in {"name": ScoreName, "heads": Heads, "normalisation": Normalisation}.items():
            value, names = getattr(self, key), get_args(allowed)
            if value not in names and not (key == "normalisation" and value is None):
                raise ParameterError(f"score {key} = {value!r}: allowed are {', '.join(names)}")
        for key, number in {"points": self.points, **{f"scales[{i}]": s for i, s in enumerate(self.scales)}}.items():
            if number < 1:
                raise ParameterError(f"score {key} = {number}: must be at least 1")
        if not self.scales:
            raise ParameterError("score scales: at least one width is needed")
        if self.temperature is not None and not self.temperature > 0:
            raise ParameterError(f"score temperature = {self.temperature}: must be above 0, or null")

    @property
    def rule(self) -> Normalisation:
        return self.normalisation or USUAL.get(self.name, "max")


def token_scores(
    encoder: DualEncoder,
    ids: Tensor,
    image: Tensor,
    image_tokens: Tensor,
    config: ScoringConfig | None = None,
    *,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Scores fp32 (B, T) in [0, 1], 0 outside the caption's tokens.

    ids (B, T) raw captions; image (B, D) and image_tokens (B, 1 + P, D) of their pictures, taken as constants.
    `seed` and `step` name the draws of "random". In fp32 also under autocast, in train and eval mode, under no_grad,
    inside DDP; leaves no gradient and no graph behind.
    """
    config = config or ScoringConfig()
    raw = raw_scores(encoder, ids, image, image_tokens, config, seed=seed, step=step)
    return normalise(raw, maskable(ids, encoder.tokenizer.mask_id), config.rule)


def raw_scores(
    encoder: DualEncoder,
    ids: Tensor,
    image: Tensor,
    image_tokens: Tensor,
    config: ScoringConfig,
    *,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Before normalisation, (B, T): signed where the score is; meaningless outside the caption's tokens."""
    if config.name == "likelihood":
        raise ParameterError("score 'likelihood' is observed while a decoder trains; there is none to compute it from")
    if config.name == "truth":
        raise ParameterError(
            "score 'truth' is read from captions whose wrong words are known; there is none to compute"
        )
    if config.name == "random":
        return random_values(ids, seed, step)
    if config.name == "max-patch":
        return max_patch(encoder, ids, image_tokens)
    if config.name == "leave-one-out":
        return leave_one_out(encoder, ids, image, temperature=config.temperature)
    if config.name == "path":
        return path(encoder, ids, image, points=config.points, temperature=config.temperature)
    released = config.name == "released"
    maps = end_token_maps(
        encoder,
        ids,
        image,
        layers=config.layers,
        heads="single" if released else config.heads,
        padding=released,
    )
    if released:
        return released_scores(maps, config.scales)
    if config.name == "attention":
        raw = attention_only(maps)
    else:
        raw = grad_eclip(maps) if config.name == "grad-eclip" else scores_of(maps, config.scales)
    return F.pad(raw, (0, ids.shape[1] - raw.shape[1]))


@torch.no_grad()
def normalise(raw: Tensor, valid: Tensor, rule: Normalisation, pool: Tensor | None = None) -> Tensor:
    """Raw scores (B, T) to fp32 in [0, 1], larger still better; 0 where not `valid` (bool, B x T).

    `pool` (N,): the values that "quantile" places a score among, its own batch's without.
    """
    raw = raw.float()
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
        score = _quantile(raw, raw[valid] if pool is None else pool.float())
    elif rule == "batch":
        raw = raw.masked_fill(~valid, 0)
        low, high = raw.amin(), raw.amax()
        score = torch.where(high > low, (raw - low) / (high - low), torch.zeros_like(raw))
    else:
        score = raw.clamp(0, 1)
    return score.masked_fill(~valid, 0)


def _rank(raw: Tensor, valid: Tensor) -> Tensor:
    """Share of the caption's other tokens that score lower, ties one half; a token alone gets one half."""
    others = valid[:, None] & ~torch.eye(raw.shape[1], dtype=torch.bool, device=raw.device)  # (B, T, T)
    lower = (raw[:, None] < raw[..., None]).float() + (raw[:, None] == raw[..., None]).float() / 2
    count = (valid.sum(-1, keepdim=True) - 1).clamp_min(0)
    rank = (lower * others).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, rank, 0.5)


def _quantile(raw: Tensor, pool: Tensor) -> Tensor:
    """Share of `pool` below each value, ties one half."""
    if not len(pool):
        return torch.zeros_like(raw)
    ordered = pool.sort().values
    below = torch.searchsorted(ordered, raw.contiguous())
    not_above = torch.searchsorted(ordered, raw.contiguous(), side="right")
    return (below + not_above).float() / (2 * len(pool))
