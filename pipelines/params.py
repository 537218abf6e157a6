"""The one schema of `params.yaml`: every knob, its type, its range and its default meaning.

Read once, validated whole, frozen. A mistake gives one line that names the key, the value and what is allowed. `compute:` is the
only section that results do not depend on; an environment variable PIPELINES_COMPUTE__<KEY> overrides a key of it.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.errors import ParameterError

if TYPE_CHECKING:
    from components.gadms.tasks import RetrievalConfig
    from components.persons.rules import Rules
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
    optimizer: Literal["adamw", "adam"] = "adamw"
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    warmup_start: Rate | None = None
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    report_every: Positive
    checkpoint_every: Positive
    precision: Literal["fp32", "bf16"]

    def loop(self) -> "LoopConfig":
        """As the training loop takes it."""
        from components.training.loop import LoopConfig

        own = self.model_dump(exclude={"batch", "beta2", "epsilon", "validate_every"})
        return LoopConfig(betas=(0.9, self.beta2), eps=self.epsilon, **own)


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
    """The dual encoder of person retrieval: an open_clip config (inline or by name), from scratch or from `pretrained`.

    `pretrained` is an open_clip tag, or published weights in a file, or a model folder; what is not a tag is pinned by its SHA-256.
    `image_size` is [height, width], null that of the pictures. `position_resize` fits the position embedding of weights that were
    trained at another size: bilinear as IRRA does, or bicubic as open_clip does.
    """

    architecture: dict[str, Any] | str
    pretrained: str | None
    pretrained_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    image_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    position_resize: Literal["bilinear", "bicubic"] = "bilinear"
    gradient_checkpointing: bool = False


class PersonDetector(Section):
    """Weights of torchvision's keypoint R-CNN, and what a person it finds must show. The limits are WebPerson's."""

    weights: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.85
    keypoints: Annotated[int, Field(ge=0, le=17)] = 8
    hips: Annotated[int, Field(ge=0, le=2)] = 1
    head: Annotated[int, Field(ge=0, le=5)] = 2


class Curate(Section):
    """Which generated people are kept: those the rules allow, that are sharp, and of these the best matches of their captions.

    `aspect` is a range of width / height; null, and a `short_side` of 0, allow all. Without a detector nobody is looked for.
    """

    quality_share: Fraction
    keep_fraction: Rate
    short_side: Count = 0
    aspect: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    detector: PersonDetector | None = None
    near_duplicates: Annotated[int, Field(ge=0, le=15)] | None = None
    matcher: Training

    @field_validator("aspect")
    @classmethod
    def _rising(cls, aspect: list[float] | None) -> list[float] | None:
        if aspect is not None and not 0 < aspect[0] <= aspect[1]:
            raise ValueError("must be two rising numbers above 0, width by height")
        return aspect

    def rules(self) -> "Rules":
        """As the rules of curation take them."""
        from components.persons.rules import Rules

        aspect = (self.aspect[0], self.aspect[1]) if self.aspect else None
        limits = self.detector.model_dump(exclude={"weights", "sha256"}) if self.detector else {}
        return Rules(short_side=self.short_side, aspect=aspect, **limits)


class Masking(Section):
    """How many tokens are masked, and what replaces them: see components/gadms/masking.py."""

    noise_limit: Fraction = 0.2
    prediction_limit: Fraction = 0.3
    slope: Annotated[float, Field(gt=0)] = 20.0
    threshold: float = 0.1
    random_noise_rate: Fraction = 0.15
    random_prediction_rate: Fraction = 0.15
    noise_replacement: Literal["mask", "bert"] = "mask"
    prediction_replacement: Literal["mask", "bert"] = "mask"
    rule: Literal["sigmoid", "nam"] = "sigmoid"
    target_noise_rate: Rate | None = None


class Scoring(Section):
    """How a caption's tokens are scored: see components/gadms/scoring.py. `layers` null: two thirds of the text layers."""

    name: Literal[
        "gradient", "released", "grad-eclip", "max-patch", "attention", "random", "leave-one-out", "path", "likelihood"
    ] = "gradient"
    layers: Positive | None = None
    scales: Annotated[list[Positive], Field(min_length=1)] = [1, 2]
    heads: Literal["model", "single"] = "model"
    points: Positive = 4
    temperature: Annotated[float, Field(gt=0)] | None = None
    normalisation: Literal["max", "signed", "rank", "quantile", "clip", "batch"] | None = None


class Augmentation(Section):
    """What is done to training pictures: see components/persons/transforms.py."""

    flip: Fraction = 0.0
    pad: Count = 10
    erase: Fraction = 0.5


class Method(Section):
    """The objective of one phase of retrieval training: see components/gadms/{methods,tasks}.py. The arm is the method, unless
    `name` gives all arms one (the paper fine-tunes whatever was pre-trained by IRRA's); the rest is the same for all. A weight
    that is null is the one that the method was published with."""

    name: Literal["gadms", "random", "nam", "irra", "contrastive", "tal"] | None = None
    warmup_steps: Count = 0
    sdm_weight: Annotated[float, Field(ge=0)] = 1.0
    mtp_weight: Annotated[float, Field(ge=0)] | None = None
    id_weight: Annotated[float, Field(ge=0)] | None = None
    sdm_temperature: Annotated[float, Field(gt=0)] = 0.02
    contrastive_temperature: Annotated[float, Field(gt=0)] = 0.07
    tal_temperature: Annotated[float, Field(gt=0)] = 0.015
    tal_margin: Annotated[float, Field(ge=0)] = 0.1
    masking: Masking = Masking()
    scoring: Scoring = Scoring()
    score_timing: Literal["previous", "same-step"] = "previous"
    caption_aliasing: bool = False
    decoder_depth: Positive = 4
    head_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    bias_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    layer_decay: Rate = 1.0
    augmentation: Augmentation | None = None

    def config(self, arm: str) -> "RetrievalConfig":
        """As the retrieval task takes it. Raises ParameterError for an arm that is no method."""
        from components.gadms.masking import MaskingConfig
        from components.gadms.scoring import ScoringConfig
        from components.gadms.tasks import RetrievalConfig

        values = self.model_dump(exclude={"augmentation", "name"})
        values["masking"] = MaskingConfig(**values["masking"])
        values["scoring"] = ScoringConfig(**{**values["scoring"], "scales": tuple(self.scoring.scales)})
        return RetrievalConfig(method=self.name or arm, **values)  # type: ignore[arg-type]


class GadmsPretrain(Section):
    """Pre-training: on generated people that were curated, on the people of `prepare`, or not at all (`none`).

    `streaming` is for a corpus that fits in no memory: Ray Data reads it ahead with `readers` processes a worker, 0 in the worker.
    """

    corpus: Literal["curated", "people", "none"] = "curated"
    streaming: bool = False
    readers: Count = 2
    method: Method
    training: ValidatedTraining


class GadmsFinetune(Section):
    """Fine-tuning on real people."""

    method: Method
    training: ValidatedTraining


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
    min_workers: Positive | None = None
    backend: Literal["local", "job"] = "local"
    address: str | None = None
    storage: str | None = None
    patience: Positive = 120

    @field_validator("storage")
    @classmethod
    def _a_place_that_every_node_sees(cls, value: str | None) -> str | None:
        if value is None or value.startswith("/") or re.fullmatch(r"s3://[^/]+(/.*)?", value):
            return value
        raise ValueError("must be an absolute folder that every node sees, or s3://bucket/prefix")

    @model_validator(mode="after")
    def _jobs_have_a_storage(self) -> Self:
        if self.backend == "job" and not self.storage:
            raise ValueError(
                "compute.storage: a job needs an absolute folder that every node sees, or s3://bucket/prefix"
            )
        if self.min_workers is not None and self.min_workers > max(self.workers, 1):
            raise ValueError(f"compute.min_workers = {self.min_workers}: must not be above workers = {self.workers}")
        return self


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
