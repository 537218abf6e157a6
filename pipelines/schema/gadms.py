"""Sections on finding people: the dual encoder, GA-DMS and what it is compared to, evaluation and search."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from components.settings import Count, Fraction, Positive, Rate
from components.training.config import ValidatedTrainingConfig
from pipelines.schema.section import Section

if TYPE_CHECKING:
    from components.gadms.tasks import RetrievalConfig


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
    """How a caption's tokens are scored: see components/gadms/scores/scoring.py. `layers` null: two thirds of the text layers."""

    name: Literal[
        "gradient",
        "released",
        "grad-eclip",
        "max-patch",
        "attention",
        "random",
        "leave-one-out",
        "path",
        "likelihood",
        "truth",
    ] = "gradient"
    layers: Positive | None = None
    scales: list[Positive] = Field(default_factory=lambda: [1, 2], min_length=1)
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
        from components.gadms.scores.scoring import ScoringConfig
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
    training: ValidatedTrainingConfig


class GadmsFinetune(Section):
    """Fine-tuning on real people."""

    method: Method
    training: ValidatedTrainingConfig


class GadmsEvaluate(Section):
    """Retrieval on the test split, and scores of a few training captions whose wrong words are known."""

    resamples: Annotated[int, Field(ge=100)]
    scored_captions: Positive


class Index(Section):
    """The searchable gallery."""

    split: Literal["train", "val", "test"]
    batch: Positive
