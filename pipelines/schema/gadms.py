"""Sections on person retrieval: the dual encoder, its training by GA-DMS and other methods, evaluation and search."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from components.gadms.methods import METHODS, RetrievalConfig
from components.settings import Count, Positive, Sha256
from components.training.config import ValidatedTrainingConfig
from pipelines.schema.section import Section


class Retrieval(Section):
    """The dual encoder of person retrieval: an open_clip config (inline or by name), from scratch or from `pretrained`.

    `pretrained` is an open_clip tag, or published weights in a file, or a model folder; what is not a tag is pinned by its SHA-256.
    `image_size` is [height, width], null that of the pictures. `position_resize` fits the position embedding of weights that were
    trained at another size: bilinear as IRRA does, or bicubic as open_clip does.
    """

    architecture: dict[str, Any] | str
    pretrained: str | None
    pretrained_sha256: Sha256 | None = None
    image_size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    position_resize: Literal["bilinear", "bicubic"] = "bilinear"
    gradient_checkpointing: bool = False


def _weights_take_effect(method: RetrievalConfig) -> RetrievalConfig:
    """Refuse the weight of a loss that the named method does not have, which training would leave out without a word."""
    if method.name is None or METHODS[method.name].masking != "none":
        return method
    masking = ", ".join(name for name, recipe in METHODS.items() if recipe.masking != "none")
    for key in ("mtp_weight", "id_weight"):
        if weight := getattr(method, key):
            raise ValueError(
                f"{key} = {weight}: {method.name} masks nothing and has its matching loss alone: set {key} to null, or name to one "
                f"of {masking}"
            )
    return method


Method = Annotated[RetrievalConfig, AfterValidator(_weights_take_effect)]


class GadmsPretrain(Section):
    """Pre-training: on curated generated people, on the people of `prepare`, or none.

    `streaming` is for a corpus larger than memory: Ray Data reads it ahead in `readers` processes per worker, 0 in the worker.
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
    """Retrieval on the test split, and token scores of training captions whose wrong words are known."""

    resamples: Annotated[int, Field(ge=100)]
    scored_captions: Positive


class Index(Section):
    """The searchable gallery."""

    split: Literal["train", "val", "test"]
    batch: Positive
