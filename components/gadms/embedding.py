"""Embeddings of captions and pictures, in batches, without gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from components.gadms.model import DualEncoder
from components.training.evaluation_mode import evaluation_mode
from components.training.prefetch import Prefetch


@torch.no_grad()
def embed_captions(encoder: DualEncoder, captions: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Embed captions as unit vectors, float32 (N, D) on the CPU. Batches are sorted by length, to cut their padding."""
    if not captions:
        return torch.empty(0, encoder.embed_dim)
    ids = encoder.tokenizer(captions)
    order = ids.argmax(dim=-1).argsort(stable=True)
    result = torch.empty(len(captions), encoder.embed_dim)
    with evaluation_mode(encoder):
        for rows in order.split(batch_size):
            pooled, _ = encoder.encode_text(ids[rows].to(encoder.device))
            result[rows] = F.normalize(pooled.float(), dim=-1).cpu()
    return result


@torch.no_grad()
def embed_images(
    encoder: DualEncoder, image_ids: Sequence[int], pixels: Callable[[Sequence[int]], Tensor], *, batch_size: int = 256
) -> Tensor:
    """Embed pictures as unit vectors, float32 (N, D) on the CPU. `pixels(image_ids)` returns uint8 (n, 3, H, W).

    `pixels` is called in a thread, for one batch ahead.
    """
    begins, parts = range(0, len(image_ids), batch_size), []

    def read(number: int) -> Tensor:
        return pixels(image_ids[begins[number] : begins[number] + batch_size])

    with evaluation_mode(encoder), Prefetch(read, steps=len(begins)) as batches:
        for number in range(len(begins)):
            pooled, _ = encoder.encode_image(encoder.normalize_pixels(batches(number)))
            parts.append(F.normalize(pooled.float(), dim=-1).cpu())
    return torch.cat(parts) if parts else torch.empty(0, encoder.embed_dim)
