"""Scores to compare the paper's with: Grad-ECLIP, attention alone, NAM's patches, and chance.

Each returns raw values (B, T), larger for a token that serves the match more; 0 outside the caption's tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from components.gadms.model import DualEncoder
from components.gadms.scores.gradient import EndTokenMaps, attention_fractions, scores_of
from components.training.randomness import generator


def grad_eclip(maps: EndTokenMaps) -> Tensor:
    """Grad-ECLIP (arXiv 2502.18816): gradient times value, weighted by the cosine of query and key; no pooling, no attention.

    Its ReLU is part of the normalisation; its sum over layers is a mean here, which the normalisation makes the same.
    """
    return scores_of(maps, scales=(1,), use_attention=False)


@torch.no_grad()
def attention_only(maps: EndTokenMaps) -> Tensor:
    """The end token's attention as fractions over the caption, mean over layers. Independent of the picture."""
    return torch.stack([attention_fractions(attention, maps.valid) for attention in maps.attentions]).mean(0)


@torch.no_grad()
def max_patch(encoder: DualEncoder, ids: Tensor, image_tokens: Tensor) -> Tensor:
    """NAM's score: the largest cosine of a token with a patch, both projected; image_tokens (B, 1 + P, D), class token first.

    NAM (arXiv 2405.04940) reads both towers two layers before the last. Here it is the last layer, which the training step has
    computed already.
    """
    _, tokens = encoder.encode_text(ids)
    patches = F.normalize(image_tokens[:, 1:].detach().to(tokens.dtype), dim=-1)
    cosine = F.normalize(tokens, dim=-1) @ patches.mT  # (B, L, P)
    return F.pad(cosine.amax(-1), (0, ids.shape[1] - tokens.shape[1]))


def random_values(ids: Tensor, seed: int, step: int) -> Tensor:
    """Uniform in [0, 1), a new draw at every step, independent of the rest of the batch: the caption names its stream."""
    rows = [torch.rand(len(row), generator=generator(seed, "random score", step, *row)) for row in ids.tolist()]
    return torch.stack(rows).to(ids.device)
