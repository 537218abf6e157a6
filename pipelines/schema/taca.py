"""Sections on drawing people: the model, TACA, its LoRA, and what judges them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from components.errors import ParameterError
from components.settings import Count, Fraction, Positive
from components.training.config import TrainingConfig
from pipelines.schema.section import Section


class Probe(Section):
    """The attribute classifier that judges generated people."""

    training: TrainingConfig


class Tiny(Section):
    """The shape of the small text-to-image model."""

    width: Positive
    heads: Positive
    double_blocks: Positive
    single_blocks: Count
    latent_channels: Positive


class BaseModelSection(Section):
    """The text-to-image model that TACA adapts: `tiny` trains a small one here, anything else names a published one."""

    source: str
    revision: str | None
    tiny: Tiny
    caption_dropout: Fraction
    autoencoder: TrainingConfig
    training: TrainingConfig

    def pinned_revision(self) -> str:
        """The commit of a published model. Raises ParameterError until it is filled in: a branch can move."""
        if self.revision is None:
            raise ParameterError(f"base_model.revision is null: set it to the full commit of {self.source}")
        return self.revision


class Taca(Section):
    """Temperature-adjusted attention: when it is on, how strong, and where. See components/taca/schedule.py.

    `threshold` is a sigma, or a rule that follows the model: {sigma, tokens}, {sigma, shift} or {fraction}.
    """

    gamma: Annotated[float, Field(gt=0)]
    threshold: float | dict[str, float]
    form: Literal["piecewise", "constant", "linear", "cosine"]
    streams: Annotated[list[Literal["double", "single"]], Field(min_length=1)]
    layers: Annotated[list[Count], Field(min_length=1)] | None
    padding: bool
    unconditional: bool
    effect: Literal["temperature", "bias"]
    queries: Literal["image", "text"]

    @field_validator("threshold", mode="before")
    @classmethod
    def _rule(cls, threshold: Any) -> Any:
        if isinstance(threshold, float) and 0 <= threshold <= 1:
            return threshold  # a sigma as it is. The import below brings torch: seconds, for the runner of every stage
        from components.taca.transfer import resolve_threshold

        try:
            resolve_threshold(threshold, shift=1.0, tokens=1)
        except ParameterError as error:
            raise ValueError(str(error).rsplit(": ", 1)[-1]) from error
        return threshold


class TacaCache(Section):
    """How many training captions the LoRA sees, with their pictures, encoded once."""

    captions: Positive
    batch: Positive
    base_dtype: Literal["fp32", "bf16"]


class TacaTrain(Section):
    """The LoRA that repairs what the temperature shifts. The base is frozen; the LoRA itself is float32 always."""

    rank: Positive
    caption_dropout: Fraction
    embedded_guidance: Annotated[float, Field(ge=0)]
    base_dtype: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    training: TrainingConfig


class TacaGenerate(Section):
    """Sampling: evaluation prompts for every arm, and a corpus for retrieval pre-training from the arm `curate` reads."""

    prompts: Positive
    guidance: Annotated[list[Annotated[float, Field(ge=1)]], Field(min_length=1)]
    corpus: Positive
    corpus_guidance: Annotated[float, Field(ge=1)]
    embedded_guidance: Annotated[float, Field(ge=0)]
    steps: Positive
    batch: Positive
    base_dtype: Literal["fp32", "bf16"]


class TacaEvaluate(Section):
    """Bootstrap resamples of the alignment intervals."""

    resamples: Annotated[int, Field(ge=100)]


class TacaAttention(Section):
    """How many of the evaluation prompts the attention mass on text is measured on."""

    prompts: Positive
