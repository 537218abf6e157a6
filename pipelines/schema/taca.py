"""Sections on generating people: the base model, TACA's LoRA, sampling, and evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.errors import ParameterError
from components.settings import AboveZero, Fraction, Positive, Sha256
from components.taca.memory_options import Quantization
from components.taca.toy.config import TinyShape
from components.training.config import TrainingConfig
from pipelines.schema.section import Section


class Probe(Section):
    """The attribute classifier that judges generated people: trained here, or one of the folder `source`, pinned by `sha256`."""

    source: str | None = None
    sha256: Sha256 | None = None
    training: TrainingConfig


class BaseModelSection(Section):
    """The text-to-image model that TACA adapts: `tiny` trains a small one here, anything else names a published one.

    With a `revision` that is one of the Hugging Face hub, which stays in its cache; without, a pipeline folder below the workspace,
    pinned by `sha256`, which is copied.
    """

    source: str
    revision: str | None
    sha256: Sha256 | None = None
    tiny: TinyShape
    caption_dropout: Fraction
    autoencoder: TrainingConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _pinned_once(self) -> Self:
        if self.sha256 is not None and (self.revision is not None or self.source == "tiny"):
            raise ValueError(
                "base_model.sha256: pins a folder: set it to null, or revision to null and source to a folder"
            )
        return self

    @property
    def folder(self) -> str | None:
        """The path of a pipeline folder, relative to the workspace; None for `tiny` and for a model of the hub."""
        return self.source if self.source != "tiny" and self.revision is None else None

    def pinned_revision(self) -> str:
        """Return the commit of a published model. Raises ParameterError without one: a branch can move."""
        if self.revision is None:
            raise ParameterError(f"base_model.revision is null: set it to the full commit of {self.source}")
        return self.revision


class TacaCache(Section):
    """The training captions and pictures of the LoRA, encoded once. fit: how pictures are brought to the size of `pictures`."""

    captions: Positive
    batch: Positive
    fit: Literal["squash", "crop"]
    base_dtype: Literal["fp32", "bf16"]


class TacaTrain(Section):
    """Training of the LoRA that repairs what the temperature shifts. The base is frozen; the LoRA itself is always float32.

    alpha: null for the rank. targets: the ends of the names of linear layers; null for the joint attention layers.
    """

    rank: Positive
    alpha: AboveZero | None = None
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    caption_dropout: Fraction
    embedded_guidance: Annotated[float, Field(ge=0)]
    base_dtype: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    training: TrainingConfig


class TacaGenerate(Section):
    """Sampling: evaluation prompts for every arm, and a corpus for retrieval pre-training from the arm `curate` reads.

    quantize: of the base, whose base_dtype is bf16 then. negative_prompt: for guidance above 1.
    """

    prompts: Positive
    guidance: Annotated[list[Annotated[float, Field(ge=1)]], Field(min_length=1)]
    corpus: Positive
    corpus_guidance: Annotated[float, Field(ge=1)]
    embedded_guidance: Annotated[float, Field(ge=0)]
    steps: Positive
    batch: Positive
    base_dtype: Literal["fp32", "bf16", "fp16"]
    quantize: Quantization = "none"
    negative_prompt: str = ""


class TacaEvaluate(Section):
    """Bootstrap resamples of the alignment intervals."""

    resamples: Annotated[int, Field(ge=100)]


class TacaAttention(Section):
    """The number of evaluation prompts on which the attention mass on text is measured."""

    prompts: Positive
