"""What sections are made of, and the section that every training has."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from components.training.loop import LoopConfig
    from components.training.schedules import Change

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Strict, frozen, and without surprises: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RateChange(Section):
    """From `step` on, other rates; null keeps what there was."""

    step: Positive
    learning_rate: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class Training(Section):
    """What every training run has. Rates are those after warm-up, and `changes` are what becomes of them from some step on.

    `batch` is that of an optimiser step, over all workers; each computes its share in `accumulate` parts, one after the other.
    """

    steps: Positive
    batch: Positive
    accumulate: Positive = 1
    learning_rate: Rate
    warmup_steps: Count
    weight_decay: Annotated[float, Field(ge=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    optimizer: Literal["adamw", "adam"] = "adamw"
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    warmup_start: Rate | None = None
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    report_every: Positive
    checkpoint_every: Positive
    precision: Literal["fp32", "bf16"]
    changes: list[RateChange] = Field(default_factory=list)

    @model_validator(mode="after")
    def _changes_fit(self) -> Self:
        from components.training.schedules import require_changes

        require_changes(self._rate_changes(), self.steps, self.weight_decay)
        return self

    def _rate_changes(self) -> "list[Change]":
        from components.training.schedules import Change

        return [Change(**change.model_dump()) for change in self.changes]

    def loop(self) -> "LoopConfig":
        """As the training loop takes it."""
        from components.training.loop import LoopConfig

        own = self.model_dump(exclude={"batch", "beta2", "epsilon", "validate_every", "changes"})
        return LoopConfig(betas=(0.9, self.beta2), eps=self.epsilon, changes=self._rate_changes(), **own)


class ValidatedTraining(Training):
    """Training that looks at the val split every so many steps and keeps the weights that find most there; null keeps the last."""

    validate_every: Positive | None = None

    @model_validator(mode="after")
    def _what_is_validated_is_kept_and_reported(self) -> Self:
        if self.validate_every is None:
            return self
        if self.validate_every % self.report_every:
            raise ValueError(f"validate_every = {self.validate_every}: must be a multiple of report_every")
        if self.ema_decay:
            raise ValueError("validate_every: the weights that are validated are not the average: set ema_decay to 0")
        return self
