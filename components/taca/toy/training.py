"""Train the small text-to-image model from scratch: rectified flow, text encoders and transformer together, gamma = 1.

FLUX's text encoders are pre-trained. The toy's start random, are trained with the transformer here, and are frozen afterwards.
Their learning rate is a tenth: a fast transformer needs embeddings that change slowly. (Loss gained by the right caption over a
wrong one, after 400 steps of 16 pictures at rate 4e-3: 0.012 with encoders at the full rate, 0.031 with frozen ones, 0.040 at a
tenth.)
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from components.taca.sampler import shift_sigma
from components.training.randomness import generator, rank_part, sampled_rows
from components.training.task import PerSampleTask

if TYPE_CHECKING:
    from diffusers import FluxPipeline


class TextToImageTask(PerSampleTask):
    """Velocity matching from token ids, over the whole noise range.

    x_t = (1 - sigma) x_0 + sigma noise, target noise - x_0 (Lipman et al. 2023; Esser et al. 2024, section 3). Noise levels are
    stratified over the global batch, u = (k + U) / B, and shifted as the sampler shifts them, sigma = s u / (1 + (s - 1) u).

    Batch: `{"latents": (B, S, C) packed and scaled, "img_ids": (S, 3), "clip_ids": (B, T + 2), "t5_ids": (B, T),
    "empty_clip_ids": (T + 2,), "empty_t5_ids": (T,)}`; a fraction `caption_dropout` of the captions is replaced by the
    empty prompt, which classifier-free guidance needs. Randomness is drawn for the global batch of `world_size * B`
    from (seed, name, step). Scalars: loss.
    """

    def __init__(
        self,
        pipe: "FluxPipeline",
        *,
        seed: int,
        caption_dropout: float = 0.1,
        shift: float = 3.0,
        text_rate: float = 0.1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.transformer = pipe.transformer
        self.text_encoder = pipe.text_encoder
        self.text_encoder_2 = pipe.text_encoder_2
        for module in (self.transformer, self.text_encoder, self.text_encoder_2):
            module.requires_grad_(True)
        self.seed = seed
        self.caption_dropout = caption_dropout
        self.shift = shift
        self.text_rate = text_rate
        self.rank = rank
        self.world_size = world_size

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return groups for AdamW: weight decay for the transformer's matrices only, `text_rate` of the rate for the encoders."""
        transformer = list(self.transformer.parameters())
        text = [*self.text_encoder.parameters(), *self.text_encoder_2.parameters()]
        return [
            {"params": [p for p in transformer if p.ndim >= 2], "lr": learning_rate},
            {"params": [p for p in transformer if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
            {"params": text, "lr": self.text_rate * learning_rate, "weight_decay": 0.0},
        ]

    def forward(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        device = next(self.transformer.parameters()).device
        latents = batch["latents"].to(device)  # (B, S, C)
        sigma, noise, dropped = (part.to(device) for part in self._draw(latents, step))
        clip_ids = torch.where(dropped[:, None], batch["empty_clip_ids"].to(device), batch["clip_ids"].to(device))
        t5_ids = torch.where(dropped[:, None], batch["empty_t5_ids"].to(device), batch["t5_ids"].to(device))
        words = self.text_encoder_2(t5_ids)[0]  # (B, T, D)
        level = sigma[:, None, None]
        velocity = self.transformer(
            hidden_states=(1 - level) * latents + level * noise,
            timestep=sigma,
            encoder_hidden_states=words,
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            txt_ids=torch.zeros(words.shape[1], 3, device=device),
            img_ids=batch["img_ids"].to(device),
            return_dict=False,
        )[0]
        return {"loss": nn.functional.mse_loss(velocity.float(), noise - latents)}

    def _draw(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw this rank's noise levels (B,), noise (B, S, C) and dropped captions (B,) at `step`."""
        total = len(latents) * self.world_size
        source = generator(self.seed, "noise level", step)
        strata = torch.randperm(total, generator=source)  # every rank gets the whole range
        u = (strata + torch.rand(total, generator=source)) / total
        sigma = shift_sigma(u, self.shift)
        noise = torch.randn((total, *latents.shape[1:]), generator=generator(self.seed, "noise", step))
        dropped = torch.rand(total, generator=generator(self.seed, "caption dropout", step)) < self.caption_dropout
        mine = [rank_part(drawn, self.rank, self.world_size) for drawn in (sigma, noise, dropped)]
        return mine[0], mine[1], mine[2]


def token_ids(pipe: "FluxPipeline", captions: Sequence[str]) -> dict[str, Tensor]:
    """Tokenize captions as the pipeline itself does: `{"clip_ids": (N, T + 2), "t5_ids": (N, T)}`, int64."""
    ids = {}
    for key, tokenizer in (("clip_ids", pipe.tokenizer), ("t5_ids", pipe.tokenizer_2)):
        encoded = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids[key] = encoded.input_ids
    return ids


def base_batches(
    pipe: "FluxPipeline",
    latents: Tensor,
    img_ids: Tensor,
    captions: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Callable[[int], dict[str, Tensor]]:
    """Return `batches(step)` for `TextToImageTask`, drawn with replacement from packed latents (N, S, C) and their N captions.

    `batch_size` is global.
    """
    ids = token_ids(pipe, captions)
    empty = token_ids(pipe, [""])

    def batch(step: int) -> dict[str, Tensor]:
        chosen = sampled_rows(len(latents), batch_size, generator(seed, "base examples", step), rank, world_size)
        return {
            "latents": latents[chosen],
            "img_ids": img_ids,
            "clip_ids": ids["clip_ids"][chosen],
            "t5_ids": ids["t5_ids"][chosen],
            "empty_clip_ids": empty["clip_ids"][0],
            "empty_t5_ids": empty["t5_ids"][0],
        }

    return batch
