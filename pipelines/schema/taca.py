"""Sections on drawing people: the model, TACA, its LoRA, and what judges them."""

from typing import Annotated, Literal

from pydantic import Field

from components.errors import ParameterError
from components.settings import Fraction, Positive
from components.taca.toy.config import TinyShape
from components.training.config import TrainingConfig
from pipelines.schema.section import Section


class Probe(Section):
    """The attribute classifier that judges generated people."""

    training: TrainingConfig


class BaseModelSection(Section):
    """The text-to-image model that TACA adapts: `tiny` trains a small one here, anything else names a published one."""

    source: str
    revision: str | None
    tiny: TinyShape
    caption_dropout: Fraction
    autoencoder: TrainingConfig
    training: TrainingConfig

    def pinned_revision(self) -> str:
        """The commit of a published model. Raises ParameterError until it is filled in: a branch can move."""
        if self.revision is None:
            raise ParameterError(f"base_model.revision is null: set it to the full commit of {self.source}")
        return self.revision


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
