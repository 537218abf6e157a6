"""Noise levels of flow-matching samplers: the timestep shift, fixed or by resolution."""

import math
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")


def shift_sigma(sigma: Level, shift: float) -> Level:
    """Return SD3's timestep shift of u in [0, 1], shift * u / (1 + (shift - 1) u); a shift of 1/shift inverts it."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def resolution_mu(scheduler: Any, tokens: int) -> float | None:
    """Return diffusers' `mu` of a scheduler for `tokens` image tokens, linear in them; None without `use_dynamic_shifting`."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    bounds = [config[key] for key in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")]
    mu: float = calculate_shift(tokens, *bounds)
    return mu


def sampler_shift(scheduler: Any, tokens: int) -> float:
    """Return the shift that a flow-matching scheduler of diffusers uses for `tokens` image tokens.

    A fixed one (SD3: 3), or with `use_dynamic_shifting` (FLUX) e^mu.
    """
    mu = resolution_mu(scheduler, tokens)
    if mu is None:
        return float(scheduler.config.shift)
    return mu if scheduler.config.get("time_shift_type") == "linear" else math.exp(mu)
