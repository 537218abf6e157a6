"""The temperature as a function of the noise level, and where in the transformer it applies.

Noise levels are sigma in [0, 1] throughout this package: 1 is pure noise, 0 the clean image (a FLUX timestep as the
transformer receives it; an SD3 timestep divided by 1000).
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.settings import Fraction, Positive, settings, to_json
from components.taca.config import Resolvable, TacaConfig
from components.taca.sampler import LARGEST_SIGMA, TICKS


@settings
class TemperatureSchedule(TacaConfig):
    """TACA's temperature (arXiv 2506.07986, Eq. 11), and variations to compare it with.

    Strength, by noise level:

    - `form` "piecewise", the paper's: `gamma` where sigma >= threshold, else 1. "constant": `gamma` at every step, the
      threshold is not used. "linear" and "cosine": `gamma` at sigma 1, falling to 1 at the threshold.
    - The comparison is `sigma >= threshold - tolerance` in float32. The default tolerance is half a tick of the 0..1000
      timestep table: it absorbs float32 and float16 rounding of a step that lies exactly on the threshold. A bfloat16
      timestep near 970 is known to within 4 ticks only, which no tolerance can repair (968 stands for anything from
      966 to 970; FLUX's 30-step schedule has a step at 966.01 that must stay off): keep the threshold between two steps,
      and check with `active_steps(sigmas, torch.bfloat16)`.

    Where in the transformer:

    - `streams`: "double" (text and image have keys by weights of their own) and "single" (by the same weights) blocks; many
      families have one of the two only. `layers`: indices of joint attention layers in the order of the forward pass, None for
      all. A layer must be in both.

    Which tokens:

    - `padding`: whether padding tokens of the text are scaled too, as in the paper. False needs a text mask: the pipelines of
      Qwen-Image and Chroma pass one, for others pass `joint_attention_kwargs={"taca_text_mask": (B, T) bool}`. A mask of None,
      which those pipelines pass for prompts of one length, says that nothing is padding.
    - `text_length`: how many of the tokens in the text stream are text, its first ones; None for all. FLUX.1 Redux appends the
      tokens of a picture to T5's 512: give 512, and they count as image.
    - `unconditional`: whether the unconditional half of classifier-free guidance is scaled too, as in the released code.

    Control arms, which are not TACA:

    - `effect` "bias" adds log(gamma) to the logits in place of multiplying them by gamma.
    - `queries` "text" acts on text queries x image keys, the opposite block.

    Raises `ParameterError` for a value out of its range, naming the field.
    """

    threshold: Annotated[float, Resolvable] = 0.97
    tolerance: Fraction = 5e-4
    text_length: Positive | None = None

    @property
    def active_from(self) -> float:
        """The lowest sigma at which the schedule is on: the threshold, or 0 for the form "constant"."""
        return 0.0 if self.form == "constant" else self.threshold

    def is_active(self, sigma: Tensor) -> Tensor:
        """Return where the schedule is on. sigma: any shape, any float dtype; returns bool of that shape."""
        if self.form == "constant":
            return torch.ones_like(sigma, dtype=torch.bool)
        return sigma.float() >= self.threshold - self.tolerance

    def gamma_at(self, sigma: Tensor) -> Tensor:
        """Return the temperature of each sample: sigma (B,) in [0, 1] of any float dtype -> (B,) float32, same device."""
        ones = torch.ones_like(sigma, dtype=torch.float32)
        return torch.where(self.is_active(sigma), self._active_gamma(sigma.float()), ones)

    def _active_gamma(self, sigma: Tensor) -> Tensor:
        if self.form in ("piecewise", "constant") or self.threshold == 1:
            return torch.full_like(sigma, self.gamma)
        fraction = ((sigma - self.threshold) / (1 - self.threshold)).clamp(0, 1)
        strength = fraction if self.form == "linear" else (1 - torch.cos(math.pi * fraction)) / 2
        return 1 + (self.gamma - 1) * strength

    def active_steps(self, sampler: Any, dtype: torch.dtype = torch.float32) -> int:
        """Count the sampler steps with TACA on.

        sampler: a scheduler of diffusers after `set_timesteps`, or the noise level of each step; repetitions (a sampler that
        evaluates twice, or a repeated last level) and a terminal 0 are no steps.
        dtype: that of the latents; pipelines round t = 1000 sigma to it before the transformer sees t / 1000.

        Raises `ParameterError` for a scheduler without timesteps set, whose table of 1000 training levels is not what it samples.
        """
        values = _levels(sampler)
        seen = (values[values > 0] * TICKS).to(dtype) / TICKS
        return int(self.is_active(seen).sum())

    def to_mapping(self) -> dict[str, Any]:
        """Return JSON values by field name, for LoRA metadata: gamma, threshold, tolerance, and fields that are not default."""
        values, always = to_json(self), ("gamma", "threshold", "tolerance")
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return {name: values[name] for name in (*always, *changed)}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "TemperatureSchedule":
        """Build a schedule from `to_mapping`; missing fields take their default, an unknown key is a `ParameterError`."""
        return cls(**mapping)


def _levels(sampler: Any) -> Tensor:
    """Return the noise level of each step of a scheduler or a sequence, (steps,) float32 on the CPU."""
    is_scheduler = hasattr(sampler, "set_timesteps")
    if is_scheduler and getattr(sampler, "num_inference_steps", None) is None:
        raise ParameterError(
            f"active_steps: {type(sampler).__name__} has no timesteps yet; call its set_timesteps first"
        )
    values = torch.as_tensor(sampler.timesteps / TICKS if is_scheduler else sampler, dtype=torch.float32).cpu()
    table = not is_scheduler and len(values) >= TICKS and values[-1] > 0
    if table or (len(values) and values.max() > LARGEST_SIGMA):
        raise ParameterError(
            f"active_steps: {len(values)} levels up to {values.max():g} without a last 0 are no sampler's steps but a "
            "scheduler's table before set_timesteps, or in another unit; give the scheduler itself, after set_timesteps"
        )
    return values.unique_consecutive()
