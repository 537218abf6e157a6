"""Train the small pipeline's VAE, and scale its latents for diffusion."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from components.errors import DataError
from components.taca.conventions import signed_pixels
from components.training.randomness import generator, rank_part, sampled_rows
from components.training.task import PerSampleTask

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class AutoencoderTask(PerSampleTask):
    """Reconstruction of pixels through a sampled latent, with a small KL term that keeps the latent space bounded and smooth.

    `latent_noise` above 0 adds white noise to the latents that are decoded, of a level drawn for each picture from 0 up to that
    share of the spread of its latents: the decoder then bears what a flow model leaves of its noise (as the noise-augmented
    decoder of RAE, arXiv 2510.11690).

    Batch: `{"pixels": (B, 3, H, W)}`, uint8 or float in [0, 1]: this rank's part of a global batch of `world_size * B`.
    Scalars: loss, reconstruction (mean absolute + mean squared error in [-1, 1] units), kl (nats per latent number),
    psnr (dB).
    """

    def __init__(
        self,
        vae: "AutoencoderKL",
        *,
        seed: int,
        kl_weight: float = 1e-5,
        latent_noise: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.seed = seed
        self.kl_weight = kl_weight
        self.latent_noise = latent_noise
        self.rank = rank
        self.world_size = world_size

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        pixels = signed_pixels(batch["pixels"].to(next(self.vae.parameters()).device))
        posterior = self.vae.encode(pixels).latent_dist
        mean, deviation = posterior.mean, posterior.std  # (B, C, H / f, W / f)
        latents = mean + deviation * self._noise(mean, "posterior", step)
        if self.latent_noise:
            source = generator(self.seed, "level of latent noise", step)
            levels = torch.rand(len(mean) * self.world_size, generator=source)
            level = self.latent_noise * rank_part(levels, self.rank, self.world_size).to(mean)
            spread = mean.detach().flatten(1).std(1)
            latents = latents + (level * spread)[:, None, None, None] * self._noise(mean, "latent noise", step)
        decoded = self.vae.decode(latents).sample
        squared = functional.mse_loss(decoded, pixels)
        reconstruction = functional.l1_loss(decoded, pixels) + squared
        kl = 0.5 * (mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        return {
            "loss": reconstruction + self.kl_weight * kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "psnr": decibel(squared.detach() / 4),  # /4: the range of [-1, 1] is 2
        }

    def _noise(self, latents: Tensor, name: str, step: int) -> Tensor:
        """Return this rank's part of the global batch's white noise for latents (B, C, H, W)."""
        shape = (len(latents) * self.world_size, *latents.shape[1:])
        noise = torch.randn(shape, generator=generator(self.seed, name, step))
        return rank_part(noise, self.rank, self.world_size).to(latents)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each picture: (N, C, H, W) uint8, or float in [0, 1] -> (N,)."""
    first, second = signed_pixels(first), signed_pixels(second)
    return decibel((first - second).square().flatten(1).mean(1) / 4)


@torch.no_grad()
def reconstruct(vae: "AutoencoderKL", pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Encode uint8 pictures (N, 3, H, W) to the posterior mean and decode them, to uint8."""
    device = next(vae.parameters()).device
    parts = []
    for part in pixels.split(batch_size):
        signed = signed_pixels(part.to(device)).to(vae.dtype)
        decoded = vae.decode(vae.encode(signed).latent_dist.mean).sample.float()
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
    return torch.cat(parts)


@torch.no_grad()
def set_latent_scale(vae: "AutoencoderKL", batches: Iterable[Tensor]) -> tuple[float, float]:
    """Measure the latents of training pictures and set the scale that makes `(z - shift) * scale` zero-mean with unit variance.

    `batches` yields pixels (B, 3, H, W). Writes `shift_factor` and `scaling_factor` into the VAE's config, where `FluxPipeline`
    and `save_pretrained` find them, and returns (shift, scale). Raises `DataError` if the latents do not vary.
    """
    device = next(vae.parameters()).device
    count, total, squares = 0, 0.0, 0.0
    for pixels in batches:
        latents = vae.encode(signed_pixels(pixels.to(device)).to(vae.dtype)).latent_dist.mean.double()
        count += latents.numel()
        total += latents.sum().item()
        squares += latents.square().sum().item()
    mean = total / max(count, 1)
    variance = squares / max(count, 1) - mean**2
    if count == 0 or not variance > 1e-12:
        raise DataError("the VAE's latents have no spread to scale: give training pictures that differ")
    scale = 1 / math.sqrt(variance)
    vae.register_to_config(shift_factor=mean, scaling_factor=scale)
    return mean, scale


def pixel_batches(
    pixels: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> Callable[[int], Any]:
    """Return `batches(step)` of `{"pixels"}`, drawn with replacement from uint8 pictures (N, 3, H, W). `batch_size` is global."""

    def batch(step: int) -> dict[str, Tensor]:
        return {
            "pixels": pixels[sampled_rows(len(pixels), batch_size, generator(seed, "pictures", step), rank, world_size)]
        }

    return batch


def decibel(mean_squared_error: Tensor) -> Tensor:
    return -10 * torch.log10(mean_squared_error.clamp_min(1e-12))
