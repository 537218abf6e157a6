"""CLIP's normalisation of pictures, and batched augmentation for retrieval training (IRRA's `--img_aug`) with one generator.

The order is IRRA's: horizontal flip, zero padding and random crop, CLIP normalisation, random erasing *after* normalisation with
CLIP's mean as value (so the patch is not of the mean colour; published results have it so).

Captions of the drawn set say "left" and "right" as the viewer sees it (bag side, walking direction), which a flip makes false, so
`flip` is 0 by default. Published sets hardly mention sides, and their recipe flips with probability 0.5.
"""

import torch
from torch.nn.functional import pad as zero_pad

from components.errors import ParameterError
from components.persons.augmentation import AugmentationConfig
from components.training.randomness import rank_part

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ERASE_AREA = (0.02, 0.4)
"""Smallest and largest erased fraction of a picture."""
ERASE_RATIO = (0.3, 3.3)
"""Smallest and largest height:width of an erased box."""
_ERASE_TRIES = 10  # torchvision's RandomErasing gives up after ten boxes that do not fit


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Normalise as CLIP: uint8 (N, 3, H, W) -> float32, scaled to [0, 1], minus CLIP_MEAN, over CLIP_STD."""
    mean = torch.tensor(CLIP_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.to(torch.float32) / 255.0 - mean) / std


def augment(
    pixels: torch.Tensor, config: AugmentationConfig, generator: torch.Generator, *, rank: int = 0, world_size: int = 1
) -> torch.Tensor:
    """Augment and normalise: uint8 (N, 3, H, W) -> float32 (N, 3, H, W) on the same device.

    Every picture takes the same number of draws, in the order of the batch, so its augmentation does not depend on the others. With
    several ranks `pixels` are this rank's rows of a global batch, for which all numbers are drawn; every rank has the same number.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
        raise ParameterError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; expected uint8 (N, 3, H, W)")
    draws = torch.rand((world_size * len(pixels), 4 + 4 * _ERASE_TRIES), generator=generator)
    draws = rank_part(draws, rank, world_size).to(pixels.device)
    pixels = torch.where((draws[:, 0] < config.flip).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    pixels = _pad_and_crop(pixels, config.pad, draws[:, 1], draws[:, 2])
    erased = _erasing_mask(pixels, config.erase, draws[:, 3], draws[:, 4:].view(-1, _ERASE_TRIES, 4))
    value = torch.tensor(CLIP_MEAN, device=pixels.device).view(1, 3, 1, 1)
    return torch.where(erased.unsqueeze(1), value, normalise(pixels))


def _pad_and_crop(pixels: torch.Tensor, pad: int, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Pad by `pad`, then crop to the old size at an offset in 0..2 pad; `down`, `across` (N,) uniform in [0, 1)."""
    if not pad:
        return pixels
    count, _, height, width = pixels.shape
    padded = zero_pad(pixels, (pad, pad, pad, pad))
    rows = (down * (2 * pad + 1)).long()[:, None] + torch.arange(height, device=pixels.device)  # (N, H)
    columns = (across * (2 * pad + 1)).long()[:, None] + torch.arange(width, device=pixels.device)  # (N, W)
    sample = torch.arange(count, device=pixels.device)[:, None, None]
    cut = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]  # (N, H, W, 3)
    return cut.permute(0, 3, 1, 2)


def _erasing_mask(pixels: torch.Tensor, probability: float, chance: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Pixels to erase, bool (N, H, W): per picture the first of `boxes` (N, tries, 4) draws that fits."""
    height, width = pixels.shape[-2:]
    (low, high), (flat, tall) = ERASE_AREA, torch.tensor(ERASE_RATIO).log().tolist()
    area = height * width * (low + (high - low) * boxes[..., 0])  # (N, tries)
    ratio = torch.exp(flat + (tall - flat) * boxes[..., 1])
    h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (h < height) & (w < width)
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    h, w = h.gather(1, first), w.gather(1, first)  # (N, 1)
    top = (boxes[..., 2].gather(1, first) * (height - h + 1)).floor()
    left = (boxes[..., 3].gather(1, first) * (width - w + 1)).floor()
    y, x = torch.arange(height, device=pixels.device), torch.arange(width, device=pixels.device)
    rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)  # (N, H), (N, W)
    erase = (chance < probability) & fits.any(dim=1)
    return rows[:, :, None] & columns[:, None, :] & erase[:, None, None]
