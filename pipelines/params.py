"""`params.yaml`, and the recipe of pre-training: read once, validated whole, frozen.

Each mistake gives one line that names the key, the value and what is allowed. Sections are in `pipelines/schema`; `compute:` is the
only one that results do not depend on; an environment variable PIPELINES_COMPUTE__<KEY> overrides a key of it.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from pydantic import TypeAdapter, ValidationError, model_validator

from components.errors import ParameterError
from components.settings import Count, first_mistake
from components.taca.config import TacaConfig
from pipelines.graph import RECIPE, Stage
from pipelines.schema.gadms import GadmsEvaluate, GadmsFinetune, GadmsPretrain, Index, Retrieval
from pipelines.schema.people import Curate, Pictures, Prepare
from pipelines.schema.pretraining import (
    PretrainAutoencoder,
    PretrainDecoder,
    PretrainEncoder,
    PretrainGenerator,
    PretrainProbe,
    PretrainPublish,
)
from pipelines.schema.reading import checked, parse_yaml, read_yaml
from pipelines.schema.running import Compute, Report, TrainParity
from pipelines.schema.section import Section
from pipelines.schema.taca import (
    BaseModelSection,
    Probe,
    TacaAttention,
    TacaCache,
    TacaEvaluate,
    TacaGenerate,
    TacaTrain,
)

PREFIX = "PIPELINES_COMPUTE__"


class ParameterFile(Section):
    """What the files of parameters have in common: a seed, the size of pictures, and the machine."""

    seed: Count
    pictures: Pictures
    if TYPE_CHECKING:  # the last section of every file, so that its mistakes are said last
        compute: Compute

    def only(self, keys: Iterable[str]) -> dict[str, Any]:
        """The named top-level keys as plain JSON values: what a stage is fingerprinted by and given."""
        return self.model_dump(mode="json", include=set(keys))

    def weights(self, sections: Iterable[str]) -> list[str]:
        """The paths of weights that these sections name, relative to the workspace; a tag of open_clip looks like one."""
        return []

    @classmethod
    def partial(cls, values: Mapping[str, Any]) -> Self:
        """Parameters that hold only `values` (from `only`). Reading any other key raises AttributeError: a stage cannot depend
        on what it did not declare."""
        types: dict[str, Any] = {key: cls.model_fields[key].annotation for key in values}
        parsed = {key: TypeAdapter(types[key]).validate_python(value) for key, value in values.items()}
        return cast(Self, cls.model_construct(**parsed))


class PretrainingParameters(ParameterFile):
    """All of `pretraining/recipe.yaml`; its `compute` may be left out."""

    pretrain_autoencoder: PretrainAutoencoder
    pretrain_generator: PretrainGenerator
    pretrain_decoder: PretrainDecoder
    pretrain_encoder: PretrainEncoder
    pretrain_probe: PretrainProbe
    pretrain_publish: PretrainPublish
    compute: Compute = Compute()


class Parameters(ParameterFile):
    """All of `params.yaml`."""

    prepare: Prepare
    probe: Probe
    base_model: BaseModelSection
    taca: TacaConfig
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

    @model_validator(mode="after")
    def _fine_tuning_fits_the_decoder_of_pre_training(self) -> Self:
        before, after = self.gadms_pretrain.method, self.gadms_finetune.method
        carried = self.gadms_pretrain.corpus != "none" and after.decoder_start == "pretrained"
        both = before.recipe.mtp_weight and after.recipe.mtp_weight
        if carried and both and before.decoder_depth != after.decoder_depth:
            raise ValueError(
                f"gadms_finetune.method.decoder_depth = {after.decoder_depth}: it goes on from the decoder of gadms_pretrain, "
                f"which has {before.decoder_depth} blocks; set both alike, or gadms_finetune.method.decoder_start to new"
            )
        return self

    def weights(self, sections: Iterable[str]) -> list[str]:
        """The paths of weights that these sections name, relative to the workspace; a tag of open_clip looks like one."""
        found = [self.retrieval.pretrained] if "retrieval" in sections else []
        found += [self.base_model.folder] if "base_model" in sections else []
        found += [self.probe.source] if "probe" in sections else []
        found += [self.curate.detector.weights] if "curate" in sections and self.curate.detector else []
        return [path for path in found if path]


Kind = TypeVar("Kind", bound=ParameterFile)


def kind_of(stage: Stage) -> type[ParameterFile]:
    """Return the class of the parameters that a stage reads."""
    return PretrainingParameters if stage.parameters == RECIPE else Parameters


def load_for(stage: Stage, root: Path) -> ParameterFile:
    """Read and validate the file of a stage's parameters in the workspace `root`. Raises ParameterError with a line per mistake."""
    return _load(root / stage.parameters, kind_of(stage), stage.parameters, None)


def load(path: Path, *, for_dvc: bool | None = None) -> Parameters:
    """Read and validate a `params.yaml`, as `from_document` does. Raises ParameterError with a line per mistake."""
    return _load(path, Parameters, path.name, for_dvc)


def from_document(document: Mapping[str, Any], name: str, *, for_dvc: bool | None = None) -> Parameters:
    """Validate the plain values of a params.yaml; `name` is used in messages. Raises ParameterError with a line per mistake.

    `for_dvc` (None: in a stage that DVC runs): the environment must not choose the threads, as results depend on them, and DVC
    would not see it.
    """
    return _validated(document, Parameters, name, for_dvc)


def _load(path: Path, kind: type[Kind], name: str, for_dvc: bool | None) -> Kind:
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ParameterError(f"{path}: must hold a mapping of sections")
    return _validated(document, kind, name, for_dvc)


def _validated(document: Mapping[str, Any], kind: type[Kind], name: str, for_dvc: bool | None) -> Kind:
    written = document.get("compute") or {}
    overrides = _from_environment()
    if not overrides or not isinstance(written, Mapping):
        return checked({**document, "compute": written}, kind, name)
    for_dvc = "DVC_STAGE" in os.environ if for_dvc is None else for_dvc
    if for_dvc and overrides.get("threads", written.get("threads")) != written.get("threads"):
        raise ParameterError(
            f"{PREFIX}THREADS = {overrides['threads']}: results depend on the threads, and DVC does not see the environment: "
            f"set compute.threads in {name}, or run `dvc exp run -S compute.threads={overrides['threads']}`"
        )
    try:
        return checked({**document, "compute": {**written, **overrides}}, kind, name)
    except ParameterError as error:
        in_file = _refusal({**document, "compute": written}, kind, name).splitlines()
        own = [line for line in str(error).splitlines() if line in in_file]
        raise ParameterError("\n".join(own) or f"{PREFIX}* in the environment, over {error}") from error


def _refusal(document: Mapping[str, Any], kind: type[Kind], name: str) -> str:
    try:
        checked(document, kind, name)
    except ParameterError as error:
        return str(error)
    return ""


def as_environment(compute: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that set these keys of `compute` in another process."""
    return {f"{PREFIX}{key.upper()}": "null" if value is None else str(value) for key, value in compute.items()}


def _from_environment() -> dict[str, Any]:
    """Return the keys of `compute` that the environment sets. Raises ParameterError for a mistake in one alone."""
    found = {}
    for variable, text in os.environ.items():
        if not variable.startswith(PREFIX):
            continue
        key = variable.removeprefix(PREFIX).lower()
        found[key] = parse_yaml(text, f"{variable} = {text!r} in the environment")
        try:
            Compute.model_validate({key: found[key]})
        except ValidationError as error:
            if error.errors()[0]["loc"]:  # else only together with other keys
                about = f"{variable} = {text!r} in the environment"
                raise ParameterError(f"{about}: {first_mistake(error, Compute)}") from error
    return found
