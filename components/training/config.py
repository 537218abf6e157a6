"""The settings of a training run."""

from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import Field

from components.errors import ParameterError
from components.settings import AboveZero, Count, FromList, NotNegative, Positive, Rate, settings


@settings
class RateChange:
    """Other rates from the 0-based `step` on (those after warm-up); None keeps the rate before."""

    step: Positive
    learning_rate: Rate | None = None
    weight_decay: NotNegative | None = None


@settings
class LoopConfig:
    """How long, how fast, how often. Steps are optimiser steps; rates are those after warm-up.

    optimizer: adamw decays weights apart from the gradient; adam adds the decay to the gradient (L2), as IRRA's recipe does, whose
    epsilon of 1e-3 is large enough to be most of the denominator; muon moves matrices by Muon and the rest by AdamW (muon.py), and
    needs whole matrices, so the strategy ddp. beta1, beta2: Adam's decays of the first and the second moment. warmup_start: see
    `learning_rate_factor`. clip_norm: 0 is off.
    accumulate: micro-batches that a worker computes one after the other for one step.
    changes: other rates from some step on; they scale those of all parameter groups alike.
    """

    steps: Positive
    learning_rate: Rate
    weight_decay: NotNegative = 0.0
    warmup_steps: Count = 0
    clip_norm: NotNegative = 1.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: AboveZero = 1e-8
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    warmup_start: Rate | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    report_every: Positive = 20
    checkpoint_every: Positive = 100
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: Positive = 1
    changes: Annotated[tuple[RateChange, ...], FromList] = ()

    def __post_init__(self) -> None:
        before = 0
        for place, change in enumerate(self.changes):
            name = f"changes[{place}]"
            if not before < change.step < self.steps:
                raise ParameterError(
                    f"{name}.step = {change.step}: must be above {before} and below steps = {self.steps}"
                )
            if change.weight_decay is not None and not self.weight_decay > 0:
                raise ParameterError(f"{name}.weight_decay = {change.weight_decay}: changes only what begins above 0")
            before = change.step


@settings
class TrainingConfig(LoopConfig):
    """A training run of a stage. `batch` is the batch of an optimiser step, over all workers and micro-batches."""

    _: KW_ONLY
    batch: Positive


@settings
class ValidatedTrainingConfig(TrainingConfig):
    """Training that is validated on the val split every `validate_every` steps and keeps the best weights; None keeps the last."""

    validate_every: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validate_every is None:
            return
        if self.validate_every % self.report_every:
            raise ParameterError(f"validate_every = {self.validate_every}: must be a multiple of report_every")
        if self.ema_decay:
            raise ParameterError(
                "validate_every: the weights that are validated are not the average: set ema_decay to 0"
            )
