"""The loss in match of a caption with its picture when one token is masked: exactly, and to first order.

    exact          d_j = cos(text, image) - cos(text with token j masked, image)
    along a path   d_j ~ mean over points a in (0, 1) of  <d cos / d e_j at e + a (m - e),  e_j - m>

e are the token embeddings and m the mask's. Exact takes a text pass per token. The path moves all tokens at once towards the mask
and takes a forward and backward pass per point (integrated gradients, arXiv 1703.01365, with the masked caption as baseline). One
point at the caption itself is misleading, because cosines saturate.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from components.gadms.masking import maskable
from components.gadms.model import DualEncoder


@torch.no_grad()
def leave_one_out(
    encoder: DualEncoder, ids: Tensor, image: Tensor, *, rows_at_once: int = 512, temperature: float | None = None
) -> Tensor:
    """Compute exact drops (B, T), signed; 0 outside the caption's tokens. ids (B, T), image (B, D).

    Takes one text pass per token, `rows_at_once` captions at a time. With a `temperature` the match is the log-probability of the
    caption's own picture among those of the batch, instead of the cosine.
    """
    mask_id = encoder.tokenizer.mask_id
    rows, places = maskable(ids, mask_id).nonzero(as_tuple=True)
    drops = torch.zeros(ids.shape, device=ids.device, dtype=encoder.clip.positional_embedding.dtype)
    image = F.normalize(image.detach().to(drops.dtype), dim=-1)
    own = torch.arange(len(ids), device=ids.device)
    whole = _match(encoder.encode_text(ids)[0], image, own, temperature)
    for start in range(0, len(rows), rows_at_once):
        row, place = rows[start : start + rows_at_once], places[start : start + rows_at_once]
        masked = ids[row].scatter(1, place[:, None], mask_id)
        drops[row, place] = whole[row] - _match(encoder.encode_text(masked)[0], image, row, temperature)
    return drops


@torch.enable_grad()
def path(
    encoder: DualEncoder, ids: Tensor, image: Tensor, *, points: int = 4, temperature: float | None = None
) -> Tensor:
    """Compute first-order drops along the path (B, T), signed; 0 outside the caption's tokens. Leaves no gradient behind.

    Their sum tends to cos(text) - cos(all tokens masked) as `points` grows. `temperature` as in `leave_one_out`.
    """
    allowed = maskable(ids, encoder.tokenizer.mask_id)
    length = int(ids.argmax(-1).max()) + 1
    own = torch.arange(len(ids), device=ids.device)
    with torch.no_grad():
        embedded = encoder.embed_tokens(ids[:, :length])
        baseline = encoder.embed_tokens(torch.where(allowed, encoder.tokenizer.mask_id, ids)[:, :length])
        direction = embedded - baseline
        image = F.normalize(image.detach().to(embedded.dtype), dim=-1)
    total = torch.zeros_like(embedded[..., 0])
    for point in range(points):
        moved = (embedded - (point + 0.5) / points * direction).requires_grad_()
        match = _match(_pooled(encoder, moved, ids.argmax(-1)), image, own, temperature)
        total += (torch.autograd.grad(match.sum(), moved)[0] * direction).sum(-1)
    return F.pad(total / points, (0, ids.shape[1] - length)).masked_fill(~allowed, 0)


def _pooled(encoder: DualEncoder, embedded: Tensor, end: Tensor) -> Tensor:
    """Text features (B, D) from token embeddings (B, L, W)."""
    length = embedded.shape[1]
    hidden = encoder.clip.transformer(embedded, attn_mask=encoder.clip.attn_mask[:length, :length])
    return encoder.project_text(hidden[torch.arange(len(end), device=end.device), end])


def _match(text: Tensor, image: Tensor, own: Tensor, temperature: float | None) -> Tensor:
    """Match (N,) of text (N, D) with rows `own` of the normalised pictures (B, D)."""
    text = F.normalize(text, dim=-1)
    if temperature is None:
        return (text * image[own]).sum(-1)
    return (text @ image.T / temperature).log_softmax(-1).gather(1, own[:, None])[:, 0]
