"""The schedule of a configuration for one model: a threshold rule meets the model's resolution and its sampler."""

from dataclasses import fields
from typing import Any

from torch import Tensor

from components.taca.config import TacaConfig
from components.taca.registry import conventions_of
from components.taca.sampler import TICKS, sampler_timesteps
from components.taca.schedule import TemperatureSchedule
from components.taca.transfer import resolve_threshold

MANY_STEPS = 1000
"""For a rule about steps where no number of steps is known."""


def resolve_schedule(config: TacaConfig, pipe: Any, *, tokens: int, steps: int | None = None) -> TemperatureSchedule:
    """Return the schedule of `config` (the section `taca` of params.yaml) for one model and sampler.

    pipe: its transformer may be missing; tokens: image tokens of its pictures; steps: of its sampler, None (in training) for many.
    Raises `ParameterError`, also for a rule that needs the sampler's levels where the pipeline cannot call its scheduler.
    """

    def levels(number: int | None, shift: float | None) -> Tensor:
        scheduler = pipe.scheduler
        if shift is not None:
            from diffusers import FlowMatchEulerDiscreteScheduler

            scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        arguments = conventions_of(pipe).sampler_arguments
        return sampler_timesteps(scheduler, arguments, number or steps or MANY_STEPS, tokens) / TICKS

    values = {field.name: getattr(config, field.name) for field in fields(TacaConfig)}
    return TemperatureSchedule(
        **values | {"threshold": resolve_threshold(config.threshold, tokens=tokens, levels=levels)}
    )
