"""When TACA is on, how strong, and where: the temperature as a function of the noise level.

Noise levels are sigma in [0, 1] throughout this package: 1 is pure noise, 0 the clean image (a FLUX timestep as the
transformer receives it; an SD3 timestep divided by 1000).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from components.errors import ParameterError

Form = Literal["piecewise", "constant", "linear", "cosine"]
Effect = Literal["temperature", "bias"]
Queries = Literal["image", "text"]
Stream = Literal["double", "single"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


@dataclass(frozen=True)
class TemperatureSchedule:
    """TACA's temperature (arXiv 2506.07986, Eq. 11), with the variations that research compares it to.

    How strong, by noise level:

    - `form` "piecewise", the paper's: `gamma` where sigma >= threshold, else 1. "constant": `gamma` at every step, the
      threshold plays no part. "linear" and "cosine": `gamma` at sigma 1, falling to 1 at the threshold.
    - The comparison is `sigma >= threshold - tolerance` in float32. The default tolerance is half a tick of the 0..1000
      timestep table: it absorbs float32 and float16 rounding of a step that lies exactly on the threshold. A bfloat16
      timestep near 970 is only known to within 4 ticks, which no tolerance can repair (968 stands for anything from
      966 to 970; FLUX's 30-step schedule has a step at 966.01 that must stay off); keep the threshold between two steps
      and let `active_steps(sigmas, torch.bfloat16)` say what such a pipeline does.

    Where in the transformer:

    - `streams`: "double" (text and image with their own weights) and "single" (shared) blocks. `layers`: indices of
      joint attention layers in the order of the forward pass, None for all. A layer must be in both.

    Which tokens:

    - `padding`: whether padding tokens of the text are scaled too, as in the paper. False needs a text mask: Qwen-Image and
      Chroma are given one by their pipelines, for others pass `joint_attention_kwargs={"taca_text_mask": (B, T) bool}`.
    - `unconditional`: whether the unconditional half of classifier-free guidance is scaled too, as in the released code.

    Control arms, which are not TACA:

    - `effect` "bias" adds log(gamma) to the logits in place of multiplying them by gamma.
    - `queries` "text" acts on text queries x image keys, the opposite block.

    Raises `ParameterError` for a value out of its range, naming the field.
    """

    gamma: float = 1.2
    threshold: float = 0.97
    tolerance: float = 5e-4
    form: Form = "piecewise"
    streams: tuple[Stream, ...] = STREAMS
    layers: tuple[int, ...] | None = None
    padding: bool = True
    unconditional: bool = True
    effect: Effect = "temperature"
    queries: Queries = "image"

    def __post_init__(self) -> None:
        for name in ("gamma", "threshold", "tolerance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _wrong(name, value, "must be a number")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise _wrong("gamma", self.gamma, "must be positive and finite (1 = off)")
        if not 0 <= self.threshold <= 1:
            timestep = f"; for timestep {self.threshold:g} of 0..1000 give {self.threshold / 1000:g}"
            raise _wrong(
                "threshold", self.threshold, f"must be a sigma in [0, 1]{timestep if self.threshold > 1 else ''}"
            )
        if not 0 <= self.tolerance <= 1:
            raise _wrong("tolerance", self.tolerance, "must lie in [0, 1]")
        for name, allowed in (("form", Form), ("effect", Effect), ("queries", Queries)):
            if getattr(self, name) not in get_args(allowed):
                raise _wrong(name, getattr(self, name), f"must be one of {', '.join(get_args(allowed))}")
        # A mapping from YAML or JSON brings lists.
        object.__setattr__(self, "streams", tuple(self.streams))
        object.__setattr__(self, "layers", None if self.layers is None else tuple(self.layers))
        if not self.streams or not set(self.streams) <= set(STREAMS):
            raise _wrong("streams", list(self.streams), f"must be one or both of {', '.join(STREAMS)}")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise _wrong("layers", list(self.layers), "must be null for all, or indices from 0 up")

    @property
    def active_from(self) -> float:
        """The sigma from which up the schedule is on: the threshold, or 0 where it plays no part."""
        return 0.0 if self.form == "constant" else self.threshold

    def is_active(self, sigma: Tensor) -> Tensor:
        """Where the schedule is on. sigma: any shape, any float dtype; returns bool of that shape."""
        if self.form == "constant":
            return torch.ones_like(sigma, dtype=torch.bool)
        return sigma.float() >= self.threshold - self.tolerance

    def gamma_at(self, sigma: Tensor) -> Tensor:
        """The temperature of each sample: sigma (B,) in [0, 1] of any float dtype -> (B,) float32, same device."""
        ones = torch.ones_like(sigma, dtype=torch.float32)
        return torch.where(self.is_active(sigma), self._when_active(sigma.float()), ones)

    def _when_active(self, sigma: Tensor) -> Tensor:
        if self.form in ("piecewise", "constant") or self.threshold == 1:
            return torch.full_like(sigma, self.gamma)
        along = ((sigma - self.threshold) / (1 - self.threshold)).clamp(0, 1)
        strength = along if self.form == "linear" else (1 - torch.cos(math.pi * along)) / 2
        return 1 + (self.gamma - 1) * strength

    def active_steps(self, sigmas: Sequence[float] | Tensor, dtype: torch.dtype = torch.float32) -> int:
        """How many of a sampler's steps run with TACA on.

        sigmas: the noise level of each step, e.g. a diffusers scheduler's `sigmas`; the terminal 0 is not a step and
        is left out. dtype: that of the latents; pipelines round t = 1000 sigma to it before the transformer sees t /
        1000.
        """
        values = torch.as_tensor(sigmas, dtype=torch.float32).cpu()
        seen = (values[values > 0] * 1000).to(dtype) / 1000
        return int(self.is_active(seen).sum())

    def to_mapping(self) -> dict[str, Any]:
        """JSON values by field name, for params and LoRA metadata: gamma, threshold, tolerance, and what is not default."""
        always = ("gamma", "threshold", "tolerance")
        values: dict[str, Any] = {name: float(getattr(self, name)) for name in always}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in always and value != field.default:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "TemperatureSchedule":
        """The inverse of `to_mapping`; missing fields take their default, an unknown key is a `ParameterError`."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(mapping) - set(known))
        if unknown:
            raise ParameterError(f"TemperatureSchedule: unknown key {unknown[0]!r}; known keys are {', '.join(known)}")
        return cls(**mapping)


def _wrong(name: str, value: Any, allowed: str) -> ParameterError:
    return ParameterError(f"TemperatureSchedule {name} = {value!r}: {allowed}")
