"""Losses on features of the global batch, and the gathering of features from all ranks.

A loss over pairs (matching, contrastive) needs the features of every rank. `gather_features` returns them with exact
gradients, so that W ranks of b rows train exactly as one rank of W b rows. Proof: every rank computes the same global
loss L; the gather's backward sums the ranks' gradients, so rank r's rows get W dL/dx_r; DDP then averages over ranks:
(1/W) sum_r W dL/dx_r dx_r/dtheta = dL/dtheta.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def world_size() -> int:
    """Number of ranks of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_features(features: Tensor) -> Tensor:
    """Gather (b, ...) of every rank to (W b, ...) in rank order, differentiably. Tensors without gradient may have any type."""
    if world_size() == 1:
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features.contiguous()))


def cosine_similarities(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines (M, N) of features (M, D) and (N, D), in float32.

    Also under autocast, whose products are bfloat16: a temperature of 0.02 multiplies their error by 50, and near the end of
    training the differences that a matching loss learns from are smaller than that.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(rows.float(), dim=-1) @ F.normalize(columns.float(), dim=-1).T


def similarity_distribution_matching(image: Tensor, text: Tensor, identities: Tensor, tau: float = 0.02) -> Tensor:
    """SDM (IRRA equation 4-6; GA-DMS equation 7): KL(softmax of similarity || true matching), both directions, summed.

    image, text (B, D), normalised here; identities (B,), equal for matching rows. It does not train from random
    weights: at equal features it sits on the plateau 2 [(1 - 1/B) ln 1e8 - ln B]; begin with `contrastive`.
    """
    matches = (identities[:, None] == identities[None, :]).float()
    # The 1e-8 is part of the loss: it sets its scale.
    target = torch.log(matches / matches.sum(dim=1, keepdim=True) + 1e-8)
    logits = cosine_similarities(image, text) / tau
    return _reverse_kl(logits, target) + _reverse_kl(logits.T, target)


def _reverse_kl(logits: Tensor, target: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)
    return (log_p.exp() * (log_p - target)).sum(dim=1).mean()


def contrastive(
    image: Tensor, text: Tensor, identities: Tensor | None = None, temperature: float | Tensor = 0.07
) -> Tensor:
    """InfoNCE, mean of both directions: image, text (B, D), normalised here.

    With `identities` (B,) every row of the same identity is a positive of equal weight; without, only the row itself.
    """
    logits = cosine_similarities(image, text) / temperature
    if identities is None:
        target = torch.eye(len(image), device=image.device)
    else:
        target = (identities[:, None] == identities[None, :]).float()
        target = target / target.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def triplet_alignment(
    image: Tensor, text: Tensor, identities: Tensor, tau: float = 0.015, margin: float = 0.1
) -> Tensor:
    """TAL (RDE, CVPR 2024, and its code): a triplet hinge on the soft hardest negative, both directions, *summed* over rows.

        sum_i max(0, margin - sum_j a_ij s_ij + tau log sum_k exp(s_ik / tau)),  j of i's identity, k of all others,

    s the cosine of image and text (B, D), and a the softmax of s / tau over the positives, without gradient. Rows of one identity
    share `identities` (B,). A row without a negative in the batch adds nothing.
    """
    similarity = cosine_similarities(image, text)
    matches = identities[:, None] == identities[None, :]
    return _hinge(similarity, matches, tau, margin) + _hinge(similarity.T, matches.T, tau, margin)


def _hinge(similarity: Tensor, matches: Tensor, tau: float, margin: float) -> Tensor:
    weights = (similarity.detach() / tau).masked_fill(~matches, -torch.inf).softmax(dim=1)
    positive = (weights * similarity).sum(dim=1)
    lonely = matches.all(dim=1)
    # A row of -inf would have NaN gradients: rows without a negative are computed with all as negatives, then left out.
    negative = tau * (similarity / tau).masked_fill(matches & ~lonely[:, None], -torch.inf).logsumexp(dim=1)
    return (margin - positive + negative).clamp_min(0).masked_fill(lonely, 0).sum()


def masked_token_prediction(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy at the masked positions: logits (N, V), targets (N,); 0 where nothing is masked.

    The mean is over the masked tokens of all ranks: this rank's sum times W over the global count, because DDP
    averages. (The paper's equation 10 also divides by the vocabulary size; with that the term would vanish, and no
    code does.)
    """
    count = torch.tensor(float(len(targets)), device=logits.device)
    ranks = world_size()
    if ranks > 1:
        dist.all_reduce(count)
    return F.cross_entropy(logits.float(), targets, reduction="sum") * ranks / count.clamp_min(1)


def identity_classification(image: Tensor, text: Tensor, identities: Tensor, classifier: nn.Module) -> Tensor:
    """One shared classifier on both modalities, cross-entropy averaged over the two (IRRA equation 9).

    image, text (B, D); identities (B,) in 0..classes-1.
    """
    image_loss = F.cross_entropy(classifier(image).float(), identities)
    text_loss = F.cross_entropy(classifier(text).float(), identities)
    return (image_loss + text_loss) / 2
