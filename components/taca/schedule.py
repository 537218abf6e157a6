"""When TACA is on: the temperature as a function of the noise level.

Noise levels are sigma in [0, 1] throughout this package: 1 is pure noise, 0 the clean image (a FLUX timestep as the
transformer receives it; an SD3 timestep divided by 1000).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError


@dataclass(frozen=True)
class TemperatureSchedule:
    """The piecewise temperature of TACA (arXiv 2506.07986, Eq. 11): `gamma` where sigma >= threshold, else 1.

    The comparison is `sigma >= threshold - tolerance` in float32. The default tolerance is half a tick of the 0..1000
    timestep table: it absorbs float32 and float16 rounding of a step that lies exactly on the threshold. A bfloat16
    timestep near 970 is only known to within 4 ticks, which no tolerance can repair (968 stands for anything from 966
    to 970; FLUX's 30-step schedule has a step at 966.01 that must stay off); keep the threshold between two steps and
    let `active_steps(sigmas, torch.bfloat16)` say what such a pipeline does.

    Raises `ParameterError` for gamma that is not positive and finite, or threshold or tolerance outside [0, 1].
    """

    gamma: float = 1.2
    threshold: float = 0.97
    tolerance: float = 5e-4

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ParameterError(f"TemperatureSchedule {field.name} = {value!r}: must be a number")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ParameterError(f"TemperatureSchedule gamma = {self.gamma}: must be positive and finite (1 = off)")
        if not 0 <= self.threshold <= 1:
            hint = (
                f"; for timestep {self.threshold:g} of 0..1000 give {self.threshold / 1000:g}"
                if self.threshold > 1
                else ""
            )
            raise ParameterError(f"TemperatureSchedule threshold = {self.threshold}: must be a sigma in [0, 1]{hint}")
        if not 0 <= self.tolerance <= 1:
            raise ParameterError(f"TemperatureSchedule tolerance = {self.tolerance}: must lie in [0, 1]")

    def is_active(self, sigma: Tensor) -> Tensor:
        """Where the threshold is reached. sigma: any shape, any float dtype; returns bool of that shape."""
        return sigma.float() >= self.threshold - self.tolerance

    def gamma_at(self, sigma: Tensor) -> Tensor:
        """The temperature of each sample: sigma (B,) in [0, 1] of any float dtype -> (B,) float32, same device."""
        on = torch.full_like(sigma, self.gamma, dtype=torch.float32)
        return torch.where(self.is_active(sigma), on, torch.ones_like(on))

    def active_steps(self, sigmas: Sequence[float] | Tensor, dtype: torch.dtype = torch.float32) -> int:
        """How many of a sampler's steps run with TACA on.

        sigmas: the noise level of each step, e.g. a diffusers scheduler's `sigmas`; the terminal 0 is not a step and
        is left out. dtype: that of the latents; pipelines round t = 1000 sigma to it before the transformer sees t /
        1000.
        """
        values = torch.as_tensor(sigmas, dtype=torch.float32).cpu()
        seen = (values[values > 0] * 1000).to(dtype) / 1000
        return int(self.is_active(seen).sum())

    def to_mapping(self) -> dict[str, float]:
        """Plain numbers by field name, for params and LoRA metadata."""
        return {name: float(value) for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "TemperatureSchedule":
        """The inverse of `to_mapping`; missing fields take their default, an unknown key is a `ParameterError`."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(mapping) - set(known))
        if unknown:
            raise ParameterError(f"TemperatureSchedule: unknown key {unknown[0]!r}; known keys are {', '.join(known)}")
        return cls(**mapping)


def shift_sigma(sigma: float, shift: float) -> float:
    """SD3's timestep shift, shift * u / (1 + (shift - 1) u): where a step at u in [0, 1] lands. 1/shift undoes it."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def transfer_threshold(
    threshold: float,
    *,
    from_shift: float = 1.0,
    to_shift: float = 1.0,
    from_tokens: int = 4096,
    to_tokens: int = 4096,
) -> float:
    """A threshold for another model, equivalent to `threshold` on the one it was chosen for.

    Two rules of the same form; give one. By shift: the same fraction of a sampler's steps is active when the
    schedule's shift goes from `from_shift` to `to_shift`. By resolution: the image is equally hidden at `to_tokens`
    image tokens as at `from_tokens` (SD3's resolution shift, arXiv 2403.03206 Eq. 23, factor sqrt(to / from)). The
    paper's 0.97 was chosen at shift 3.16 (FLUX) and 3 (SD3.5) with 4096 tokens. Both together multiply the factors,
    which counts twice for a model whose shift already follows its resolution, as FLUX's does.
    """
    if not 0 <= threshold <= 1:
        raise ParameterError(f"threshold = {threshold}: must be a sigma in [0, 1]")
    for name, value in (("from_shift", from_shift), ("to_shift", to_shift)):
        if not value > 0:
            raise ParameterError(f"{name} = {value}: must be above 0")
    for name, tokens in (("from_tokens", from_tokens), ("to_tokens", to_tokens)):
        if tokens < 1:
            raise ParameterError(f"{name} = {tokens}: must be at least 1 image token")
    return shift_sigma(threshold, to_shift / from_shift * math.sqrt(to_tokens / from_tokens))


def threshold_for_fraction(fraction: float, shift: float) -> float:
    """The threshold above which the first `fraction` of a sampler's steps lie. The paper's fraction is about 0.1."""
    if not 0 <= fraction <= 1:
        raise ParameterError(f"fraction = {fraction}: must lie in [0, 1]")
    if not shift > 0:
        raise ParameterError(f"shift = {shift}: must be above 0")
    return shift_sigma(1 - fraction, shift)
