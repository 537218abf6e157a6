"""Noise levels of flow-matching samplers: the timestep shift, and how a pipeline's call asks its scheduler for timesteps.

Pipelines differ in what they pass to `scheduler.set_timesteps`, and schedulers in what they make of it (fixed or dynamic shift,
Karras, exponential, beta and flow sigmas, timesteps cut to integers). So the levels are taken from the scheduler itself, called
as the pipeline calls it; nothing is derived from its config.
"""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from components.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")
SamplerArguments = Callable[[Mapping[str, Any], int, int], dict[str, Any]]
"""(the scheduler's config, steps, image tokens) -> what a pipeline's call passes to `set_timesteps`, as in its source."""

TICKS = 1000
"""Pipelines of diffusers divide the scheduler's timesteps by this constant, whatever its `num_train_timesteps`."""

LARGEST_SIGMA = 1.01
"""Timesteps reach 1 + a rounding error, never this: a larger one is in another unit."""


def shift_sigma(sigma: Level, shift: float) -> Level:
    """Return SD3's timestep shift of u in [0, 1], shift * u / (1 + (shift - 1) u); a shift of 1/shift inverts it."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def spaced_levels(config: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
    """Chroma and Qwen-Image: evenly spaced levels, and always the shift of the resolution."""
    import numpy as np

    return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": _resolution_mu(config, tokens, max_shift=1.15)}


def spaced_levels_unless_flow(config: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
    """FLUX: the same, but a scheduler with flow sigmas spaces its own."""
    arguments = spaced_levels(config, steps, tokens)
    return arguments | {"sigmas": None} if config.get("use_flow_sigmas") else arguments


def resolution_shift(config: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
    """SD3: the shift of the resolution, for a scheduler that shifts by it."""
    return {"mu": _resolution_mu(config, tokens, max_shift=1.16)} if config.get("use_dynamic_shifting") else {}


def nothing(config: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
    """AuraFlow: the number of steps alone."""
    return {}


def sampler_timesteps(scheduler: Any, arguments: SamplerArguments, steps: int, tokens: int) -> "Tensor":
    """Return the timesteps of a sampler in `steps` steps, (steps,) float32 on the scale 0..1000, in the order of sampling.

    They are what the transformer sees, not `scheduler.sigmas`, which solvers round or keep on another scale. A sampler that
    evaluates twice per step (Heun) passes each level twice; it is here once. The scheduler is not changed. Raises
    `ParameterError` for a scheduler that cannot be called like this, with its own reason.
    """
    from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

    if steps < 1:
        raise ParameterError(f"sampler: {steps} steps; give at least 1")
    trial = copy.deepcopy(scheduler)  # not made from its config, which does not know of `set_shift`
    try:
        timesteps, _ = retrieve_timesteps(trial, steps, **arguments(trial.config, steps, tokens))
    except Exception as error:  # whatever the scheduler raises, the pipeline's own call would
        reason = (str(error).strip() or "it does not take the arguments that this pipeline passes").splitlines()[0]
        raise ParameterError(
            f"sampler: this pipeline cannot use {type(scheduler).__name__} as it is configured ({type(error).__name__}: "
            f"{reason.rstrip('.')}); choose another scheduler, or change its config"
        ) from error
    timesteps = timesteps.float().cpu()
    return timesteps.unique_consecutive() if getattr(trial, "order", 1) > 1 else timesteps


def _resolution_mu(config: Mapping[str, Any], tokens: int, max_shift: float) -> float:
    """Return diffusers' `mu` for `tokens` image tokens, linear in them; max_shift: the pipeline's default."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": max_shift}
    mu: float = calculate_shift(tokens, *(config.get(key, default) for key, default in defaults.items()))
    return mu
