"""The one schema of `params.yaml`: every knob, its type, its range and its default meaning.

Read once, validated whole, frozen. A mistake gives one line that names the key, the value and what is allowed. `compute:` is the
only section that results do not depend on; an environment variable PIPELINES_COMPUTE__<KEY> overrides a key of it.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.errors import ParameterError

if TYPE_CHECKING:
    from components.training.loop import LoopConfig

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Strict, frozen, and without surprises: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Pictures(Section):
    """The size at which people are drawn, generated and searched, in pixels."""

    height: Annotated[int, Field(ge=32, multiple_of=16)]
    width: Annotated[int, Field(ge=16, multiple_of=8)]


class Prepare(Section):
    """Where the people come from. `drawn` makes them; the others are read from data/raw."""

    source: str
    identities: dict[Literal["train", "val", "test"], Positive]
    pictures_per_identity: Annotated[int, Field(ge=4)]
    preset: Literal["clean", "cluttered", "occluded"]
    caption_noise: Fraction
    neighbours: Fraction
    max_bad_fraction: Fraction

    @field_validator("identities")
    @classmethod
    def _every_split(cls, identities: dict[str, int]) -> dict[str, int]:
        if missing := {"train", "val", "test"} - set(identities):
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        return identities


class Training(Section):
    """What every training run has. Rates are those after warm-up.

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
    report_every: Positive
    checkpoint_every: Positive
    precision: Literal["fp32", "bf16"]

    def loop(self) -> "LoopConfig":
        """As the training loop takes it."""
        from components.training.loop import LoopConfig

        return LoopConfig(betas=(0.9, self.beta2), **self.model_dump(exclude={"batch", "beta2"}))


class Probe(Section):
    """The attribute classifier that judges generated people."""

    training: Training


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
    autoencoder: Training
    training: Training

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
    training: Training


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


class Retrieval(Section):
    """The dual encoder of person retrieval: an open_clip config (inline or by name), from scratch or from `pretrained`."""

    architecture: dict[str, Any] | str
    pretrained: str | None


class Curate(Section):
    """Which generated people are kept: the sharp ones, and of those the fraction that match their captions best."""

    quality_share: Fraction
    keep_fraction: Rate
    matcher: Training


class Method(Section):
    """The objective of one phase of retrieval training. The arm decides what is masked; the rest is the same for all."""

    warmup_steps: Count
    mtp_weight: Annotated[float, Field(ge=0)]
    id_weight: Annotated[float, Field(ge=0)]
    scoring_layers: Positive | None
    decoder_depth: Positive


class GadmsPretrain(Section):
    """Pre-training on generated people."""

    method: Method
    training: Training


class GadmsFinetune(Section):
    """Fine-tuning on real people."""

    method: Method
    training: Training


class GadmsEvaluate(Section):
    """Retrieval on the test split, and scores of a few training captions whose wrong words are known."""

    resamples: Annotated[int, Field(ge=100)]
    scored_captions: Positive


class Index(Section):
    """The searchable gallery."""

    split: Literal["train", "val", "test"]
    batch: Positive


class TrainParity(Section):
    """The same training by two Ray Train workers and by one process, for a few steps."""

    steps: Positive
    workers: Annotated[int, Field(ge=2)]


class Report(Section):
    """How much the report shows."""

    people: Positive
    queries: Positive
    heatmaps: Positive


class Compute(Section):
    """Where and on what it runs. Results do not depend on it, but for `threads` (the order of floating-point sums)."""

    workers: Count = 0
    threads: Positive = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    max_failures: Count = 2


class Parameters(Section):
    """All of `params.yaml`."""

    seed: Count
    pictures: Pictures
    prepare: Prepare
    probe: Probe
    base_model: BaseModelSection
    taca: Taca
    taca_cache: TacaCache
    taca_train: TacaTrain
    taca_generate: TacaGenerate
    taca_evaluate: TacaEvaluate
    taca_attention: TacaAttention
    retrieval: Retrieval
    curate: Curate
    gadms_pretrain: GadmsPretrain
    gadms_finetune: GadmsFinetune
    gadms_evaluate: GadmsEvaluate
    index: Index
    train_parity: TrainParity
    report: Report
    compute: Compute

    @model_validator(mode="after")
    def _drawn_people_are_upright(self) -> Self:
        shape = self.pictures.height / self.pictures.width
        if self.prepare.source == "drawn" and not 2 <= shape <= 3:
            raise ValueError(f"pictures: height / width is {shape:.2f}: people are drawn between 2:1 and 3:1")
        return self

    def only(self, keys: Iterable[str]) -> dict[str, Any]:
        """The named top-level keys as plain JSON values: what a stage is fingerprinted by and given."""
        return self.model_dump(mode="json", include=set(keys))

    @classmethod
    def partial(cls, values: Mapping[str, Any]) -> "Parameters":
        """Parameters that hold only `values` (from `only`). Reading any other key raises AttributeError: a stage cannot depend
        on what it did not declare."""
        fields = cls.model_fields
        parsed = {
            key: fields[key].annotation.model_validate(value) if isinstance(value, Mapping) else value  # type: ignore[union-attr]
            for key, value in values.items()
        }
        return cls.model_construct(**parsed)


def load(path: Path) -> Parameters:
    """Read and validate a `params.yaml`. Raises ParameterError with one line."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ParameterError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(document, dict):
        raise ParameterError(f"{path}: must hold a mapping of sections")
    document["compute"] = {**(document.get("compute") or {}), **_from_environment()}
    try:
        return Parameters.model_validate(document)
    except ValidationError as error:
        raise ParameterError(f"{path.name}: {_one_line(error)}") from error


def _from_environment() -> dict[str, Any]:
    prefix = "PIPELINES_COMPUTE__"
    return {
        name.removeprefix(prefix).lower(): yaml.safe_load(value)
        for name, value in os.environ.items()
        if name.startswith(prefix)
    }


def _one_line(error: ValidationError) -> str:
    """The first mistake as `key = value: what is allowed`, with a suggestion for a misspelt key."""
    # A misspelt key comes before the one that it leaves missing: it is the cause.
    first, *others = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    location = first["loc"]
    key = ".".join(map(str, location))
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        return f"{key}: unknown key, {hint}{more}"
    if first["type"] == "missing":
        return f"{key}: missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:  # keys that contradict each other: the message names them
        return f"{message}{more}"
    value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    return f"{key}{value}: {message[0].lower()}{message[1:]}{more}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Parameters
    for key in location:
        section = section.model_fields[key].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields)
