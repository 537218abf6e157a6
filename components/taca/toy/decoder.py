"""Fine-tune the decoder of the small model's VAE against discriminators, until they hardly tell its pictures from drawn ones.

A flow model leaves latents a little off, and a decoder that has learned to reconstruct answers with soft edges. As in VQGAN (Esser
et al. 2021, section 3.1) it learns here from reconstruction and from discriminators: one sees reconstructions, one generated
pictures. The encoder stays as it is, and with it all that the transformer has learned.
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
"""Of the factors on adversarial losses."""


class DecoderTask(TrainingTask):
    """Decoder and discriminators are trained in the same steps, each by its own loss; nothing else of the VAE is.

    Batch: `{"pixels": (B, 3, H, W) uint8, or float in [0, 1], "latents": (N, C, H / f, W / f)}`, of generated pictures, as the
    decoder takes them.
    From step `begin` on, when the discriminators have learned something, the decoder has to convince them: of `reconstructed`
    pictures and of `generated` ones, with these weights in units of the reconstruction's gradient at the last layer (VQGAN, eq. 7).
    Scalars: loss, reconstruction (as of `AutoencoderTask`), psnr (dB), told_reconstructed and told_generated (the share of drawn
    and other pictures that the discriminator tells right).
    """

    def __init__(self, vae: "AutoencoderKL", *, seed: int, reconstructed: float, generated: float, begin: int) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        self.weights = {"reconstructed": reconstructed, "generated": generated}
        self.begin = begin
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "discriminators"))
            self.discriminators = nn.ModuleDict({name: discriminator() for name in self.weights})

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return groups for AdamW: the discriminators learn twice as fast as the decoder, and only their weights decay."""
        return [
            {"params": list(self.vae.decoder.parameters()), "lr": learning_rate, "weight_decay": 0.0},
            {"params": list(self.discriminators.parameters()), "lr": 2 * learning_rate},
        ]

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        device = next(self.vae.parameters()).device
        pixels = signed_pixels(batch["pixels"].to(device))
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mean
        given = batch["latents"].to(latents)
        reconstructed, generated = self.vae.decode(torch.cat([latents, given])).sample.split([len(pixels), len(given)])
        squared = functional.mse_loss(reconstructed, pixels)
        reconstruction = functional.l1_loss(reconstructed, pixels) + squared
        scalars = {"reconstruction": reconstruction, "psnr": decibel(squared.detach() / 4)}
        loss = reconstruction
        for name, decoded in (("reconstructed", reconstructed), ("generated", generated)):
            own, convincing, scalars[f"told_{name}"] = self._judged(name, pixels, decoded)
            loss = loss + own
            if step >= self.begin and self.weights[name] > 0:
                factor = self.weights[name] * self._gradient(reconstruction) / (self._gradient(convincing) + 1e-6)
                loss = loss + factor.clamp(max=_LARGEST) * convincing
        return {"loss": loss, **scalars}

    def _judged(self, name: str, drawn: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the discriminator's loss, the decoder's (which does not move the discriminator), and the share told right."""
        judge = self.discriminators[name]
        real, fake = judge(torch.cat([drawn, decoded.detach()])).split([len(drawn), len(decoded)])
        own = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        frozen = {key: parameter.detach() for key, parameter in judge.named_parameters()}
        seen = functional_call(judge, frozen, (torch.cat([drawn, decoded]),))[len(drawn) :]
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
