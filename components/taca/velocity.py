"""The flow-matching task that trains TACA's LoRA (arXiv 2506.07986, Eq. 13)."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.errors import ParameterError
from components.taca.families import Batch, Family
from components.taca.install import enable_taca
from components.taca.registry import FAMILIES, family_of
from components.taca.sampler import shift_sigma
from components.taca.schedule import TemperatureSchedule
from components.training.randomness import generator, rank_part
from components.training.task import PerSampleTask

_TEXT_PARTS = ("prompt_embeds", "pooled", "text_mask")


class VelocityTask(PerSampleTask):
    """A transformer with the velocity loss.

    x_t = (1 - sigma) x_0 + sigma noise; the transformer predicts noise - x_0; the loss is the mean squared error in
    float32. Noise levels: uniform in (sigma_low, 1] with shift 1 (TACA's LoRA: sigma_low = the threshold), else
    uniform in the unshifted time and shifted as a sampler's steps are. With a `schedule`, TACA is enabled in the
    transformer and every sample gets the gamma of its own noise level; without one the transformer is left as it is.

    Batch, any device: "latents" (B, S, C) packed, with "img_ids" (S, 3), for FLUX, Chroma and Qwen-Image, or (B, C, H,
    W) for SD3 and AuraFlow; "prompt_embeds" (B, T, D); for FLUX and SD3 "pooled" (B, P); for Chroma and Qwen-Image
    "text_mask" (B, T) bool, True where the transformer attends; as from `LatentCache.batch`. A caption is dropped
    with probability `caption_dropout`: all of its tensors are replaced by those of the empty prompt,
    `null_prompt_embeds` (T, D), `null_pooled` (P,), `null_text_mask` (T,), which classifier-free guidance needs.
    `guidance` is the embedded scale of a guidance-distilled model (FLUX.1-dev).

    Noise, noise levels and dropped captions depend on (seed, name, step) and are drawn for the global batch of `world_size` * B
    samples; rank r uses samples r B to (r + 1) B. So the data is the same for any number of workers.

    forward(batch, step) -> {"loss": scalar, this rank's mean}.
    """

    def __init__(
        self,
        transformer: nn.Module,
        *,
        null_prompt_embeds: Tensor,
        null_pooled: Tensor | None = None,
        null_text_mask: Tensor | None = None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sigma_low: float = 0.0,
        shift: float = 1.0,
        caption_dropout: float = 0.1,
        guidance: float = 3.5,
        schedule: TemperatureSchedule | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= sigma_low < 1:
            raise ParameterError(f"sigma_low = {sigma_low}: must lie in [0, 1)")
        if not shift > 0:
            raise ParameterError(f"shift = {shift}: must be above 0")
        if not 0 <= caption_dropout <= 1:
            raise ParameterError(f"caption_dropout = {caption_dropout}: must lie in [0, 1]")
        if not 0 <= rank < world_size:
            raise ParameterError(f"rank = {rank}: must lie in [0, {world_size})")
        self.transformer = transformer
        self.family: Family = family_of(transformer)
        if self.family.conventions is None:
            trained = ", ".join(family.name for family in FAMILIES.values() if family.conventions)
            raise ParameterError(
                f"{type(transformer).__name__}: cannot be trained here; TACA's LoRA is trained on {trained}"
            )
        self._conventions = self.family.conventions
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.sigma_low, self.shift = sigma_low, shift
        self.caption_dropout, self.guidance = caption_dropout, guidance
        null = {
            "prompt_embeds": null_prompt_embeds.reshape(null_prompt_embeds.shape[-2:]),
            "pooled": None if null_pooled is None else null_pooled.reshape(-1),
            "text_mask": None if null_text_mask is None else null_text_mask.reshape(-1),
        }
        self._text_parts = [name for name, tensor in null.items() if tensor is not None]
        for name in self._text_parts:
            # Not persistent: a checkpoint holds what training changes, and these are inputs.
            self.register_buffer(f"null_{name}", null[name], False)
        if schedule is not None:
            enable_taca(transformer, replace(schedule, unconditional=True))  # training has no two halves of guidance

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        device = next(self.transformer.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        latents = batch["latents"].float()
        sigma, noise, dropped = (drawn.to(device) for drawn in self.draw(latents.shape, step))
        batch |= self._drop_captions(batch, dropped)

        level = sigma.view(-1, *[1] * (latents.ndim - 1))
        noisy = (1 - level) * latents + level * noise
        velocity = self._velocity(noisy, sigma, batch)
        return {"loss": F.mse_loss(velocity.float(), noise - latents)}

    def _velocity(self, noisy: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """Call the transformer as its pipeline does. The noise level stays float32, also for a bfloat16 model, so that TACA
        compares the level that was drawn."""
        transformer: Any = self.transformer
        dtype, optional = transformer.dtype, {}
        if self._conventions.velocity is not None:
            return self._conventions.velocity(transformer, noisy.to(dtype), self.family.timestep(sigma), batch)
        if "pooled" in batch:
            optional["pooled_projections"] = batch["pooled"].to(dtype)
        if transformer.config.get("guidance_embeds"):
            optional["guidance"] = torch.full_like(sigma, self.guidance)
        return transformer(
            hidden_states=noisy.to(dtype),
            encoder_hidden_states=batch["prompt_embeds"].to(dtype),
            timestep=self.family.timestep(sigma),
            **optional,
            **self._conventions.forward_arguments(batch, dtype),
            return_dict=False,
        )[0]

    def draw(self, shape: torch.Size, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw this rank's sigma (B,) in (sigma_low, 1], noise of `shape` and dropped captions (B,) bool, on the CPU."""
        total = shape[0] * self.world_size
        lowest = shift_sigma(self.sigma_low, 1 / self.shift)  # in the sampler's time before its shift
        uniform = torch.rand(total, generator=generator(self.seed, "sigma", step), dtype=torch.float64)
        time = 1 - (1 - lowest) * uniform  # in (lowest, 1]
        sigma = shift_sigma(time, self.shift)
        noise = torch.randn((total, *shape[1:]), generator=generator(self.seed, "noise", step))
        dropped = torch.rand(total, generator=generator(self.seed, "drop", step)) < self.caption_dropout
        mine = [rank_part(drawn, self.rank, self.world_size) for drawn in (sigma, noise, dropped)]
        return mine[0].float(), mine[1], mine[2]

    def _drop_captions(self, batch: Batch, dropped: Tensor) -> dict[str, Tensor]:
        if (found := [name for name in _TEXT_PARTS if name in batch]) != self._text_parts:
            raise ParameterError(
                f"batch has {', '.join(found)}, the empty prompt {', '.join(self._text_parts)}: must be the same; "
                "pass all that LatentCache.null_caption() returns"
            )
        captions = {}
        for name in self._text_parts:
            given, null = batch[name], getattr(self, f"null_{name}")
            if given.shape[1:] != null.shape:
                raise ParameterError(
                    f"batch {name} has shape {tuple(given.shape)}, the empty prompt's is {tuple(null.shape)}; "
                    "embed both at one text length"
                )
            captions[name] = torch.where(dropped.view(-1, *[1] * null.ndim), null.to(given), given)
        return captions
