"""Fine-tune the decoder of the small model's VAE against a discriminator, until its pictures are hardly told from drawn ones.

A flow model leaves latents a little off, and a decoder that has learned to reconstruct answers with soft edges. As in VQGAN (Esser
et al. 2021, section 3.1) it learns here from reconstruction and from a discriminator, which sees generated pictures. The encoder
stays as it is, and with it all that the transformer has learned.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from components.taca.conventions import signed_pixels
from components.taca.toy.autoencoder import decibel
from components.training.randomness import stream_seed
from components.training.task import TrainingTask

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_LARGEST = 10.0
"""Of the factor on the adversarial loss."""
FASTER = 4
"""How many times as fast as the decoder the discriminator learns."""


class DecoderTask(TrainingTask):
    """Decoder and discriminator are trained in the same steps, each by its own loss; nothing else of the VAE is.

    Batch: `{"pixels": (B, 3, H, W) uint8, or float in [0, 1], "latents": (N, C, H / f, W / f)}`, of generated pictures, as the
    decoder takes them.
    From step `begin` on, when the discriminator has learned something, the decoder has to convince it, with `weight` in units of
    the reconstruction's gradient at the last layer (VQGAN, eq. 7).
    Scalars: loss, reconstruction (as of `AutoencoderTask`), psnr (dB), told (the share of drawn and generated pictures that the
    discriminator tells right).
    """

    def __init__(self, vae: "AutoencoderKL", *, seed: int, weight: float, begin: int) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        self.weight, self.begin = weight, begin
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "discriminator"))
            self.discriminator = discriminator()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return groups for AdamW: the discriminator learns faster than the decoder, and only its weights decay."""
        return [
            {"params": list(self.vae.decoder.parameters()), "lr": learning_rate, "weight_decay": 0.0},
            {"params": list(self.discriminator.parameters()), "lr": FASTER * learning_rate},
        ]

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        device = next(self.vae.parameters()).device
        drawn = signed_pixels(batch["pixels"].to(device))
        with torch.no_grad():
            latents = self.vae.encode(drawn).latent_dist.mean
        given = batch["latents"].to(latents)
        reconstructed, generated = self.vae.decode(torch.cat([latents, given])).sample.split([len(drawn), len(given)])
        squared = functional.mse_loss(reconstructed, drawn)
        reconstruction = functional.l1_loss(reconstructed, drawn) + squared
        own, convincing, told = self._judged(drawn, generated)
        loss = reconstruction + own
        if step >= self.begin and self.weight > 0:
            factor = self.weight * self._gradient(reconstruction) / (self._gradient(convincing) + 1e-6)
            loss = loss + factor.clamp(max=_LARGEST) * convincing
        return {"loss": loss, "reconstruction": reconstruction, "psnr": decibel(squared.detach() / 4), "told": told}

    def _judged(self, drawn: Tensor, generated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the discriminator's loss, the decoder's (which does not move the discriminator), and the share told right."""
        real, fake = self.discriminator(torch.cat([drawn, generated.detach()])).split([len(drawn), len(generated)])
        own = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        seen = functional_call(self.discriminator, frozen, (torch.cat([drawn, generated]),))[len(drawn) :]
        told = ((real > 0).double().mean() + (fake < 0).double().mean()) / 2
        return own, functional.softplus(-seen).mean(), told

    def _gradient(self, loss: Tensor) -> Tensor:
        """Return the norm of the gradient of a loss at the decoder's last layer."""
        (found,) = torch.autograd.grad(loss, self.vae.decoder.conv_out.weight, retain_graph=True)
        return found.norm()


def discriminator() -> nn.Module:
    """Return a classifier of pictures (N, 3, H, W) in [-1, 1], drawn or not: logits (N,), of the mean over patches of 9 x 9 pixels.

    Its norms see drawn and other pictures in one batch, so what differs between these stands out.
    """
    layers: list[nn.Module] = []
    for channels, wider, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2)):
        norm = nn.BatchNorm2d(wider, track_running_stats=False)
        layers += [nn.Conv2d(channels, wider, 3, stride, padding=1), norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))
